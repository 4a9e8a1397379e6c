"""Tensors as one safetensors file that is whole or absent, and checkpoints of a training: networks and optimiser.

Randomness needs no state here: trainings draw from generators seeded by the number of the step (`drawn_at`), so that a
resumed training sees what the killed one would have seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from manyeyes.errors import DataError, RunError
from manyeyes.files import writing

OPTIMISER = "optimiser"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write tensors of any device and memory layout, those that share memory among them.

    Raises: RunError as `writing` if the disk is full or the file cannot be written.
    """
    with writing(path) as temporary:
        # safetensors refuses what shares memory, and layouts such as channels last.
        whole = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        try:
            save_file(whole, str(temporary), metadata=dict(header))
        except SafetensorError as error:
            # safetensors wraps the system's error in words: pass the likely one on.
            raise OSError(28 if "No space" in str(error) else 5, str(error)) from None


def read_tensors(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header. Raises: SafetensorError or OSError if it is no whole file."""
    with safe_open(str(path), framework="pt", device=str(device)) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no dict


def drawn_at(*numbers: int) -> torch.Generator:
    """A CPU generator that depends on ``numbers`` alone: seed, purpose, step."""
    state = 0
    for number in numbers:
        state = (state * 1_000_003 + number + 1) % (1 << 61)
    return torch.Generator().manual_seed(state)


def save_checkpoint(
    path: Path,
    step: int,
    identity: str,
    networks: Mapping[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write everything that the next step depends on. ``identity`` names the training that it belongs to.

    Raises: RunError if the disk is full; DataError if the last step has spoilt a network, and nothing is written.
    """
    tensors = {
        f"{name}.{key}": value for name, module in networks.items() for key, value in module.state_dict().items()
    }
    for name, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise DataError(
                f"the training has diverged: {name} is not finite at step {step}, and no checkpoint of it is kept; "
                "lower learning_rate"
            )
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"{OPTIMISER}.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    tensors |= {f"extra.{key}": value for key, value in (extra or {}).items()}
    header = {"identity": identity, "progress": json.dumps({"step": step})}
    write_tensors(path, tensors, header)


def load_checkpoint(
    path: Path, identity: str, networks: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer
) -> tuple[int, dict[str, Tensor]] | None:
    """Restore networks and optimiser; give the step to go on with and the extra tensors, None without a checkpoint.

    Raises: RunError if the file is broken or of another training.
    """
    if not path.exists():
        return None
    try:
        tensors, header = read_tensors(path)
        found, step = header["identity"], int(json.loads(header["progress"])["step"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise RunError(f"{path}: is no whole checkpoint ({error}); delete it and train again") from None
    if found != identity:
        raise RunError(
            f"{path}: belongs to another training (other pictures, options or version); delete it or choose another"
        )
    try:
        for name, module in networks.items():
            module.load_state_dict(_below(tensors, name))
    except RuntimeError:
        raise RunError(f"{path}: holds another network, of another version; delete it and train again") from None
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in _below(tensors, OPTIMISER).items():
        index, _, field = key.partition(".")
        moments.setdefault(int(index), {})[field] = value
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    return step, _below(tensors, "extra")


def _below(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    start = f"{name}."
    return {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}
