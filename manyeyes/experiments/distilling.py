"""``manyeyes distill``: a folder of natural pictures and a trunk in, a teacher's weights and their figures out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from manyeyes import __version__
from manyeyes.backbones.distillation import DistillationConfig, Distilled, distil
from manyeyes.checkpoint import write_tensors
from manyeyes.config import override
from manyeyes.data import Frame, Sample, paths_to_samples, read_image
from manyeyes.data.threads import in_threads
from manyeyes.device import resolve_device
from manyeyes.ensemble.store import samples_fingerprint
from manyeyes.errors import ConfigError, RunError
from manyeyes.files import make_folder, write_json
from manyeyes.progress import Progress, Silent

TOGETHER = 64
"""Pictures read at once before a distillation."""


def distillation_config(
    trunk: str, stages: str, size: str, overrides: Iterable[str] = (), source: str = "distill"
) -> DistillationConfig:
    """The config of a command line: ``trunk`` is a timm name with or without tag, ``stages`` numbers with commas.

    Raises: ConfigError naming the option.
    """
    architecture, _, tag = trunk.partition(".")
    try:
        numbers = [int(stage) for stage in stages.split(",")]
    except ValueError:
        raise ConfigError(f"--stages {stages!r}: expected whole numbers with commas between, such as 2,3") from None
    network = {"architecture": architecture, "weights": tag or default_tag(architecture), "size": 512}
    values: dict[str, Any] = {"trunk": network, "stages": numbers, "size": size}
    return DistillationConfig.parse(override(values, overrides), source)


def default_tag(architecture: str) -> str:
    """timm's own choice of weights for an architecture; ``bundled`` where the package brings them."""
    from timm.models import get_pretrained_cfg

    if architecture == "tf_efficientnet_lite0":
        return "bundled"
    try:
        found = get_pretrained_cfg(architecture, allow_unregistered=False)
    except RuntimeError:
        found = None
    return found.tag if found is not None and found.tag else "pretrained"


def _require_readable(samples: Sequence[Sample], progress: Progress) -> None:
    """A picture that is broken is named now, and not after hours, when its mending would make another training of it.

    Raises: DataError.
    """
    advance = progress.step("reading pictures")
    for start in range(0, len(samples), TOGETHER):
        in_threads(lambda sample: read_image(sample.path).shape, samples[start : start + TOGETHER])
        advance(min(start + TOGETHER, len(samples)), len(samples))


def distil_folder(
    config: DistillationConfig,
    images: str | Path,
    out: str | Path,
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> Distilled:
    """Distil from all pictures under ``images`` and write ``out`` (fp16) and its figures beside it as JSON.

    A killed call goes on where it stopped, from ``out`` with the suffix .checkpoint, which is deleted at the end.
    Raises: DataError, ConfigError, WeightsError; RunError if ``out`` exists or the files cannot be written.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: expected a name that ends in .safetensors")
    make_folder(out.parent)
    if out.exists():
        raise RunError(f"{out}: is there already; delete it to distil it anew, or choose another --out")
    samples = paths_to_samples([images])
    progress = progress or Silent()

    def read(number: int) -> Tensor:
        return rearrange(torch.tensor(read_image(samples[number].path)), "h w c -> c h w").float().div_(255)

    _require_readable(samples, progress)
    checkpoint = out.with_suffix(".checkpoint")
    fingerprint = samples_fingerprint(samples, Frame(size=config.trunk.size), False)
    found = distil(config, read, len(samples), fingerprint, checkpoint, resolve_device(device), progress)
    figures = {
        "explained": round(found.overall, 4),
        "explained_per_channel": [round(float(value), 4) for value in found.explained],
        "held_out_pictures": found.pictures,
        "pictures": len(samples),
        "trunk_digest": found.trunk_digest,
        "config": config.model_dump(mode="json"),
        "manyeyes": __version__,
    }
    header = {key: value if isinstance(value, str) else json.dumps(value) for key, value in figures.items()}
    write_json(out.with_suffix(".json"), figures)
    # Last, because it says that all is done.
    write_tensors(out, {key: value.half() for key, value in found.network.state_dict().items()}, header)
    checkpoint.unlink(missing_ok=True)
    return found
