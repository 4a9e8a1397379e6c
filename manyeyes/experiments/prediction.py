"""``manyeyes predict``: verdicts on new pictures, written as heatmaps, masks, boxes and scores."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from manyeyes.data import Frame, ImageBatches, Sample, paths_to_samples, read_image
from manyeyes.device import Precision, resolve_device
from manyeyes.ensemble import Ensemble, Prediction
from manyeyes.ensemble.run import STATE, owned
from manyeyes.ensemble.verdicts import verdict
from manyeyes.errors import DataError, ManyeyesError, RunError
from manyeyes.experiments.evaluation import Alarm, Stopwatch, loaded, predict_batches
from manyeyes.experiments.pictures import boxes, heatmap, outlined, shade
from manyeyes.experiments.verdict_list import ENDINGS, VerdictList, absolute
from manyeyes.files import writing
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
    """Write OUT/heatmaps, OUT/masks and OUT/maps (``.npy``), each at its picture's size, OUT/verdicts.json and .csv.

    What an earlier call has written there is no picture to judge; its verdicts stay in the JSON beside this call's. A
    call that stops leaves the verdicts that it has.

    Returns: of this call {"run", "threshold", "map_threshold", "pictures": [{path, file, score, alarm, heads, members,
    boxes, heatmap, mask, map}], "left_out": [{path, file, reason}], "cost"}; ``run`` is a digest of its state, ``file``
    the absolute path.
    Raises: DataError naming a picture that cannot be read; RunError if ``out`` cannot be written, or holds verdicts of
    another run or at other thresholds.
    """
    progress = progress or Silent()
    where = resolve_device(device)
    samples = _without_own(paths_to_samples(paths), Path(out))
    ensemble = loaded(run, where, compiled, progress, alarm)
    precision = ensemble.agreed(precision)
    judge = {
        "run": _digest(Path(run) / STATE),
        "threshold": float(ensemble.score_threshold_),
        "map_threshold": float(ensemble.map_threshold_),
    }
    frame = ensemble.config.frame.sized(ensemble.canvas)
    batches = ImageBatches(samples, frame, batch_size, skip_bad=skip_bad)
    watch = Stopwatch(where, [], [])
    advance = progress.step("judging")
    pictures: list[dict[str, Any]] = []

    def verdicts() -> dict[str, Any]:
        return {
            **judge,
            "pictures": pictures,
            "left_out": [
                {"path": str(path), "file": absolute(path), "reason": reason} for path, reason in batches.skipped
            ],
            "cost": watch.cost() if pictures else {},
        }

    with owned(out, "these verdicts") as folder:
        listed = VerdictList(folder, judge)
        kept = len(listed.pictures.keys() - {absolute(sample.path) for sample in samples})
        if kept:
            progress.say(f"{out}: keeps verdicts of earlier calls on {kept} other picture{'s' * (kept > 1)}")
        try:
            for prediction, batch, sizes in predict_batches(ensemble, batches, where, precision, watch):
                for index, (sample, size) in enumerate(zip(batch, sizes, strict=True)):
                    files = listed.files(sample.path)
                    pictures.append(_write(files, ensemble, frame, prediction, index, sample, size))
                advance(len(pictures), len(samples))
        except BaseException:
            if pictures:
                with suppress(ManyeyesError):  # the first error says more
                    listed.write(verdicts())
            raise
        found = verdicts()
        listed.write(found)
    return found


def _digest(path: Path) -> str:
    """16 hexadecimal digits of the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _without_own(samples: Sequence[Sample], out: Path) -> tuple[Sample, ...]:
    """Each picture once, without the heatmaps and masks of an earlier call into the same folder.

    Raises: DataError if no other is left.
    """
    own = {(out / f"{kind}s").resolve() for kind in ENDINGS}
    once: dict[str, Sample] = {}
    for sample in samples:
        if sample.path.resolve().parent not in own:
            once.setdefault(absolute(sample.path), sample)
    found = tuple(once.values())
    if not found:
        raise DataError(f"{out}: holds no picture besides those that an earlier run wrote; choose another --out")
    return found


def _write(
    files: dict[str, Path],
    ensemble: Ensemble,
    frame: Frame,
    prediction: Prediction,
    index: int,
    sample: Sample,
    size: tuple[int, int],
) -> dict[str, Any]:
    threshold = float(ensemble.map_threshold_)
    found = verdict(ensemble, frame, prediction, index, size)
    image = read_image(sample.path, frame.bits)
    drawn = image
    if ensemble.picturable:  # else the map is all zero, which would be shaded as if it stood at the threshold
        drawn = heatmap(image, shade(found.map, threshold, CEILING * abs(threshold)))
    write_png(files["heatmap"], outlined(drawn, found.mask)[..., ::-1])
    write_png(files["mask"], found.mask.astype(np.uint8) * 255)
    with writing(files["map"]) as temporary, open(temporary, "wb") as file:
        np.save(file, found.map, allow_pickle=False)
    return {
        "path": str(sample.path),
        "file": absolute(sample.path),
        "score": found.score,
        "alarm": found.alarm,
        "heads": found.heads,
        "members": found.members,
        "boxes": boxes(found.mask, found.map),
        **{kind: str(path) for kind, path in files.items()},
    }


def write_png(path: Path, image: np.ndarray) -> None:
    """Write a BGR or grey picture whole or not at all. Raises: RunError."""
    done, encoded = cv2.imencode(".png", image)
    if not done:
        raise RunError(f"{path}: cannot be encoded as PNG")
    with writing(path) as temporary:
        temporary.write_bytes(encoded.tobytes())
