"""``manyeyes predict``: verdicts on new pictures, written as heatmaps, masks, boxes and scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from manyeyes.data import Frame, ImageBatches, Sample, paths_to_samples, read_image
from manyeyes.device import Precision, resolve_device
from manyeyes.ensemble import Ensemble, Prediction
from manyeyes.ensemble.verdicts import marked
from manyeyes.errors import DataError, ManyeyesError, RunError
from manyeyes.experiments.evaluation import Alarm, Stopwatch, loaded, predict_batches
from manyeyes.experiments.pictures import boxes, heatmap, outlined, shade
from manyeyes.files import make_folder, write_json, writing
from manyeyes.progress import Progress, Silent

CEILING = 3.0
"""Map values this many times the threshold are fully red."""


def predict_paths(
    run: str | Path,
    paths: Sequence[Path],
    out: str | Path,
    *,
    device: str = "auto",
    precision: Precision = "auto",
    batch_size: int = 8,
    skip_bad: bool = False,
    compiled: bool = False,
    alarm: Alarm | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write OUT/heatmaps, OUT/masks and OUT/maps (``.npy``), each at its picture's size, and OUT/verdicts.json.

    What an earlier run has written there is no picture to judge. A run that stops leaves the verdicts that it has.

    Returns: {"threshold", "map_threshold", "pictures": [{path, score, alarm, heads, boxes, heatmap, mask, map}],
    "left_out", "cost"}.
    Raises: DataError naming a picture that cannot be read; RunError if ``out`` cannot be written.
    """
    progress = progress or Silent()
    where = resolve_device(device)
    samples = _without_own(paths_to_samples(paths), Path(out))
    ensemble = loaded(run, where, compiled, progress, alarm)
    folder = make_folder(out)
    frame = ensemble.config.frame.sized(ensemble.canvas)
    batches = ImageBatches(samples, frame, batch_size, skip_bad=skip_bad)
    watch = Stopwatch(where, [], [])
    names = _names(samples)
    advance = progress.step("judging")
    pictures: list[dict[str, Any]] = []

    def verdicts() -> dict[str, Any]:
        return {
            "threshold": float(ensemble.score_threshold_),
            "map_threshold": float(ensemble.map_threshold_),
            "pictures": pictures,
            "left_out": [{"path": str(path), "reason": reason} for path, reason in batches.skipped],
            "cost": watch.cost() if pictures else {},
        }

    try:
        for prediction, batch, sizes in predict_batches(ensemble, batches, where, precision, watch):
            for index, (sample, size) in enumerate(zip(batch, sizes, strict=True)):
                pictures.append(_write(folder, names[sample.path], ensemble, frame, prediction, index, sample, size))
            advance(len(pictures), len(samples))
    except BaseException:
        if pictures:
            with suppress(ManyeyesError):  # the first error says more
                write_json(folder / VERDICTS, verdicts())
        raise
    found = verdicts()
    write_json(folder / VERDICTS, found)
    return found


def _without_own(samples: Sequence[Sample], out: Path) -> tuple[Sample, ...]:
    """Without the heatmaps and masks of an earlier run into the same folder. Raises: DataError if no other is left."""
    own = {(out / f"{kind}s").resolve() for kind in ENDINGS}
    found = tuple(sample for sample in samples if sample.path.resolve().parent not in own)
    if not found:
        raise DataError(f"{out}: holds no picture besides those that an earlier run wrote; choose another --out")
    return found


def _write(
    folder: Path,
    name: str,
    ensemble: Ensemble,
    frame: Frame,
    prediction: Prediction,
    index: int,
    sample: Sample,
    size: tuple[int, int],
) -> dict[str, Any]:
    threshold = float(ensemble.map_threshold_)
    anomaly_map = frame.to_image(prediction.map[index], size)
    mask = marked(ensemble, frame, prediction, index, anomaly_map)
    image = read_image(sample.path, frame.bits)
    drawn = image
    if ensemble.picturable:  # else the map is all zero, which would be shaded as if it stood at the threshold
        drawn = heatmap(image, shade(anomaly_map, threshold, CEILING * abs(threshold)))
    files = {kind: folder / f"{kind}s" / f"{name}.{ending}" for kind, ending in ENDINGS.items()}
    write_png(files["heatmap"], outlined(drawn, mask)[..., ::-1])
    write_png(files["mask"], mask.astype(np.uint8) * 255)
    with writing(files["map"]) as temporary, open(temporary, "wb") as file:
        np.save(file, anomaly_map.astype(np.float32), allow_pickle=False)
    return {
        "path": str(sample.path),
        "score": float(prediction.score[index]),
        "alarm": bool(prediction.alarm[index]),
        "heads": {head: float(scores[index]) for head, scores in prediction.heads.items()},
        "members": {member: float(scores[index]) for member, scores in prediction.members.items()},
        "boxes": boxes(mask, anomaly_map),
        **{kind: str(path) for kind, path in files.items()},
    }


VERDICTS = "verdicts.json"
ENDINGS = {"heatmap": "png", "mask": "png", "map": "npy"}


def write_png(path: Path, image: np.ndarray) -> None:
    """Write a BGR or grey picture whole or not at all. Raises: RunError."""
    done, encoded = cv2.imencode(".png", image)
    if not done:
        raise RunError(f"{path}: cannot be encoded as PNG")
    with writing(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def _names(samples: Sequence[Sample]) -> dict[Path, str]:
    """A file name for each picture: its own, with as many parent folders before it as make all different."""
    paths = [Path(os.path.abspath(sample.path)) for sample in samples]  # noqa: PTH100 - links keep their names
    # With its ending where nothing else tells them apart: a.png beside a.jpg.
    for plain in ([path.with_suffix("") for path in paths], paths):
        for depth in range(1, max(len(path.parts) for path in paths)):
            names = ["_".join(path.parts[1:][-depth:]) for path in plain]
            if len(set(names)) == len(names):
                return {sample.path: name for sample, name in zip(samples, names, strict=True)}
    return {
        sample.path: f"{index:06}_{path.stem}" for index, (sample, path) in enumerate(zip(samples, paths, strict=True))
    }
