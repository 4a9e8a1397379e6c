"""A run folder: what a fit leaves behind, whole or absent, and without pickle.

``state.safetensors`` is the run: fitted tensors and, in its header, the config, the environment, the trunks' digests
and the figures, so that one rename makes all of it true at once. ``config.yaml``, ``environment.json`` and
``metrics.json`` say the same for people. Trunk weights are named and hashed, not copied.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from manyeyes import __version__
from manyeyes.backbones import TrunkPool
from manyeyes.checkpoint import write_tensors
from manyeyes.device import resolve_device
from manyeyes.ensemble.config import EnsembleConfig
from manyeyes.ensemble.ensemble import Ensemble
from manyeyes.ensemble.trunks import PREFIX, learned_tensors, restore_trunks
from manyeyes.errors import ConfigError, NotFittedError, RunError, WeightsError
from manyeyes.files import library_versions, make_folder, write_json, write_text

STATE = "state.safetensors"
FORMAT = "1"


def environment(device: torch.device) -> dict[str, Any]:
    """What a fit ran on."""
    processor = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    )
    return {
        "manyeyes": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": str(device),
        "processor": processor,
        **library_versions(),
    }


def save_run(
    folder: str | Path,
    ensemble: Ensemble,
    device: torch.device | str,
    metrics: dict[str, Any],
    declared: EnsembleConfig | None = None,
) -> Path:
    """Write a fitted ensemble. A killed save leaves the old run whole.

    ``declared`` is the config that the fit began with, where a choice has made another of it.
    Raises: RunError naming the file; NotFittedError before ``fit``.
    """
    ensemble.require_fit()
    folder, device = make_folder(folder), torch.device(device)
    trunks = {
        trunk.key: {"weights": trunk.weights_source, "digest": trunk.weights_digest} for trunk in ensemble.eyes.each()
    }
    details: dict[str, Any] = {"environment": environment(device), "trunks": trunks, "metrics": metrics}
    details["notes"] = ensemble.notes
    details["trunk_dtype"] = ensemble.trunk_dtype
    details["declared"] = (declared or ensemble.config).fingerprint()
    tensors = {key: value for key, value in ensemble.state_dict().items() if not key.startswith("eyes.")}
    tensors |= learned_tensors(ensemble.trainable)
    config = json.dumps(ensemble.config.model_dump(mode="json"))
    header = {"format": FORMAT, "config": config, "details": json.dumps(details, allow_nan=False)}
    write_tensors(folder / STATE, tensors, header)
    write_text(folder / "config.yaml", ensemble.config.to_yaml())
    write_json(folder / "environment.json", {**environment(device), "trunks": trunks})
    write_json(folder / "metrics.json", metrics | {"notes": ensemble.notes})
    return folder


def read_header(folder: str | Path) -> tuple[EnsembleConfig, dict[str, Any]]:
    """The config and the details of a run.

    Raises: RunError if there is no whole run in the folder, or one whose config another version of this package wrote.
    """
    path = Path(folder) / STATE
    if not path.exists():
        raise RunError(f"{folder}: holds no finished run (no {STATE}); train one with `manyeyes train`")
    try:
        path.open("rb").close()  # safetensors says of a file without permission that it is not there
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
        config, details = json.loads(header["config"]), json.loads(header["details"])
    except PermissionError:
        raise RunError(f"{path}: no permission to read it") from None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise RunError(f"{path}: is no whole run ({error}); train it again") from None
    try:
        return EnsembleConfig.parse(config, str(path)), details
    except ConfigError as error:
        raise RunError(
            f"{error}; manyeyes {details['environment']['manyeyes']} fitted this run, and this version declares "
            "ensembles otherwise: train it again"
        ) from None


def load_run(folder: str | Path, device: torch.device | str = "cpu", pool: TrunkPool | None = None) -> Ensemble:
    """The fitted ensemble of a run folder. ``device`` as `resolve_device` takes it.

    Raises: ConfigError for a device that this machine does not have; RunError if there is no run or it is broken;
            WeightsError if a trunk's weights are not those of the fit.
    """
    device = resolve_device(str(device))
    config, details = read_header(folder)
    edited = Path(folder) / "config.yaml"
    if edited.exists() and not _says(edited, config):
        raise RunError(f"{edited}: was changed after the fit; train again with it, or restore it to use this run")
    ensemble = Ensemble(config, pool)
    state = _state(Path(folder) / STATE)
    restore_trunks(ensemble, details["trunks"], state)
    for trunk in ensemble.eyes.each():
        known = details["trunks"].get(trunk.key)
        if known is None:
            digests = ", ".join(f"{entry['weights']} ({entry['digest']})" for entry in details["trunks"].values())
            raise WeightsError(
                f"{folder}: was fitted with weights {digests}, found {trunk.weights_source} ({trunk.weights_digest}); "
                "supply the same weights or train again"
            )
    try:
        ensemble.load_fitted({key: value for key, value in state.items() if not key.startswith(PREFIX)})
    except (RuntimeError, NotFittedError) as error:
        raise RunError(
            f"{folder}/{STATE}: does not fit its config ({' '.join(str(error).split())[:200]}); train again"
        ) from None
    ensemble.notes = list(details["notes"])
    ensemble.trunk_dtype = details.get("trunk_dtype")
    return ensemble.to(device)


def _state(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path}: does not fit its config ({error}); train again") from None


def _says(path: Path, config: EnsembleConfig) -> bool:
    """Whether a YAML file declares this config."""
    try:
        return EnsembleConfig.from_yaml(path) == config
    except ConfigError:
        return False


@contextmanager
def owned(folder: str | Path, what: str = "this run") -> Iterator[Path]:
    """Own the folder that ``what`` is written to while the body runs. Raises: RunError if another process does."""
    folder = make_folder(folder)
    try:
        with FileLock(folder / ".lock", timeout=0):
            for part in folder.glob(".*.[0-9]*.part"):  # what a killed process was writing
                part.unlink(missing_ok=True)
            yield folder
    except Timeout:
        raise RunError(f"{folder}: another process is writing {what}; wait for it or choose another folder") from None
