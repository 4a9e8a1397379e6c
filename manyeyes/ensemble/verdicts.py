"""Verdicts on pictures in memory or on disk, one by one, with maps and masks at each picture's own size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image

from manyeyes.data import Frame, read_image, to_rgb
from manyeyes.device import Precision, to_device, trunk_precision
from manyeyes.ensemble.prediction import Prediction

if TYPE_CHECKING:
    from manyeyes.ensemble.ensemble import Ensemble

Picture = str | Path | NDArray[Any] | Image.Image
"""A file, an array as `manyeyes.data.to_rgb` takes it, or a picture of Pillow's."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """What an ensemble says of one picture of (h, w) px; higher is more anomalous everywhere."""

    score: float
    alarm: bool
    """Whether the score reaches the threshold."""
    heads: dict[str, float]
    """Normalised scores."""
    members: dict[str, float]
    """Each member's own heads combined."""
    map: NDArray[np.float32]
    """(h, w), all zero for an ensemble without any picturable head."""
    mask: NDArray[np.bool_]
    """(h, w): where a defect is. Its threshold is not the score's: either may speak without the other."""


def verdicts(
    ensemble: Ensemble, pictures: Iterable[Picture], batch_size: int = 8, precision: Precision = "auto"
) -> Iterator[Verdict]:
    """Verdicts in the order of ``pictures``, ``batch_size`` at a time, on the ensemble's device.

    Raises: DataError for a picture that cannot be read or used; NotFittedError before ``fit`` or load.
    """
    frame, device = ensemble.config.frame.sized(ensemble.canvas), next(ensemble.eyes.parameters()).device
    stream = iter(pictures)
    while few := list(islice(stream, batch_size)):
        images = [
            read_image(one, frame.bits) if isinstance(one, str | Path) else to_rgb(one, frame.bits) for one in few
        ]
        placed = torch.from_numpy(np.stack([frame.place(image) for image in images]))
        pixels = rearrange(placed, "b h w c -> b c h w").float().div_(255)
        with torch.inference_mode(), trunk_precision(device, precision):
            taps = ensemble.eyes(to_device(pixels, device))
        prediction = ensemble.predict_taps(taps)
        for index, image in enumerate(images):
            yield verdict(ensemble, frame, prediction, index, image.shape[:2])


def verdict(ensemble: Ensemble, frame: Frame, prediction: Prediction, index: int, size: Sequence[int]) -> Verdict:
    """The verdict on one picture, of (h, w) px, of a batch."""
    anomaly_map = frame.to_image(prediction.map[index], (size[0], size[1]))
    return Verdict(
        score=float(prediction.score[index]),
        alarm=bool(prediction.alarm[index]),
        heads={head: float(scores[index]) for head, scores in prediction.heads.items()},
        members={member: float(scores[index]) for member, scores in prediction.members.items()},
        map=anomaly_map,
        mask=marked(ensemble, frame, prediction, index, anomaly_map),
    )


def marked(
    ensemble: Ensemble, frame: Frame, prediction: Prediction, index: int, anomaly_map: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """The mask of one picture of a batch, at the size of its ``anomaly_map``; empty outside the region of interest.

    Shapes: (h, w) -> (h, w).
    """
    size = (anomaly_map.shape[0], anomaly_map.shape[1])
    if not ensemble.picturable:
        return np.zeros(size, dtype=bool)
    if ensemble.config.mask.kind == "conformal":  # the threshold is finer than the mask on the canvas
        marks = anomaly_map >= float(ensemble.map_threshold_)
    else:
        marks = frame.to_image(prediction.mask[index].float(), size) >= 0.5
    return np.asarray(marks & frame.looked_at(size))
