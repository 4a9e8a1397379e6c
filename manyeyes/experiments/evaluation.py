"""Measure an ensemble on labelled pictures: figures as plain JSON, and what is kept of every picture for the report."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from manyeyes.backbones import Eyes
from manyeyes.data import Frame, ImageBatches, ImageSet, Sample, image_size
from manyeyes.device import Precision, resolve_device, to_device, trunk_precision
from manyeyes.ensemble import Ensemble, Prediction, load_run
from manyeyes.ensemble.run import STATE
from manyeyes.ensemble.verdicts import marked
from manyeyes.errors import DataError
from manyeyes.experiments.metrics import ImageStatistics, PixelStatistics, image_figures, summarise
from manyeyes.experiments.metrics.figure import to_json
from manyeyes.experiments.metrics.ground_truth import loco_groups, regions_of, shared_size
from manyeyes.experiments.tables import picture_row, write_csv
from manyeyes.maps import Grid, to_grid
from manyeyes.progress import Progress, Silent

Judged = tuple[Prediction, Sequence[Sample]]
THUMBNAIL = (64, 64)
NO_MAPS = "the ensemble has no picturable head, so there are no maps to measure"


@dataclass(frozen=True)
class Evaluation:
    """``figures`` are JSON-ready; ``pictures`` has a row per test picture; ``maps`` are its (n, 64, 64) float16.

    ``pro_curve`` is false-positive rates and overlaps, None where there is no mask or no map.
    """

    figures: dict[str, Any]
    pictures: list[dict[str, Any]]
    maps: NDArray[np.float16]
    pro_curve: list[list[float]] | None = None


def measure(
    ensemble: Ensemble,
    judged: Iterable[Judged],
    test: Sequence[Sample],
    frame: Frame,
    *,
    repetitions: int = 0,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Every figure of an ensemble's predictions on ``test``.

    Maps are resized to the ground truth; a mask of another size than its picture decides. Good pictures count at the
    size that all masks share, else at their own. ``repetitions`` > 0 adds 95 % intervals.
    Raises: DataError if a score is not finite, or a mask is broken.
    """
    groups = loco_groups(tuple(test))
    image, pixel = ImageStatistics(groups), PixelStatistics(groups)
    parts: dict[str, dict[str, list[float]]] = {"members": {}, "branches": {}, "heads": {}}
    pictures: list[dict[str, Any]] = []
    thumbnails: list[NDArray[np.float16]] = []
    marks: list[float] = []
    threshold = float(ensemble.score_threshold_)
    has_pixels = ensemble.picturable and any(sample.regions for sample in test)
    shared = shared_size(test) if has_pixels else None
    for prediction, samples in judged:
        names = [sample.path.name for sample in samples]
        scores = prediction.score.double().cpu().tolist()
        image.update(scores, names, [s.defect for s in samples], [s.group for s in samples])
        for kind, held in parts.items():
            for name, values in getattr(prediction, kind).items():
                held.setdefault(name, []).extend(values.double().cpu().tolist())
        maps = prediction.map.float().cpu()
        thumbnails.append(to_grid(maps[:, None], THUMBNAIL)[:, 0].half().numpy())
        for index, sample in enumerate(samples):
            if has_pixels:
                _measure_map(pixel, ensemble, prediction, index, sample, frame, shared)
            if not sample.label:
                marks.append(_marked_share(ensemble, prediction, index, sample, frame))
            pictures.append(
                {
                    "path": str(sample.path),
                    "defect": sample.defect,
                    "group": sample.group,
                    "label": sample.label,
                    "score": scores[index],
                    "alarm": scores[index] >= threshold,
                    "masks": [str(region.path) for region in sample.regions],
                    **{kind: {name: held[name][len(pictures)] for name in held} for kind, held in parts.items()},
                }
            )
        advance(len(pictures), len(test))
    if not pictures:
        raise DataError("there is no test picture to measure with")
    pixel_threshold = float(ensemble.map_threshold_) if has_pixels else None
    figures = summarise(image, pixel, threshold, pixel_threshold, repetitions)
    pro_curve = figures.pop("pro_curve")
    if not ensemble.picturable:
        figures["undefined"] = {
            path: NO_MAPS if "pixel." in path else why for path, why in figures["undefined"].items()
        }
        figures["notes"].append(f"pixel: {NO_MAPS}")
    for part in (figures, figures["undefined"], figures["intervals"]):
        part.pop("au_pro", None)  # it is pixel.au_pro
    figures |= _parts(parts, np.array([picture["label"] for picture in pictures]), ensemble)
    good = [picture for picture in pictures if not picture["label"]]
    figures["threshold"] = threshold
    figures["map_threshold"] = float(ensemble.map_threshold_)
    figures["false_alarm_rate"] = {
        "asked": ensemble.config.threshold.false_alarm_rate,
        "guaranteed": float(ensemble.guaranteed_rate_),
        "observed": sum(picture["alarm"] for picture in good) / len(good) if good else None,
        "observed_interval": _exact_interval(sum(picture["alarm"] for picture in good), len(good)),
    }
    figures["mask"] = {
        "good_images": sum(share > 0 for share in marks) / len(marks) if good else None,
        "good_pixels": sum(marks) / len(marks) if good else None,
    }
    if not good:
        for name in (
            "false_alarm_rate.observed",
            "false_alarm_rate.observed_interval",
            "mask.good_images",
            "mask.good_pixels",
        ):
            figures["undefined"][name] = "there is no good image"
    figures["notes"] = [*ensemble.notes, *figures["notes"]]
    return Evaluation(figures, pictures, np.concatenate(thumbnails), pro_curve)


def _exact_interval(count: int, total: int) -> list[float] | None:
    """Clopper-Pearson's 95 % interval of a share, None of nothing."""
    from scipy.stats import binomtest

    return [float(limit) for limit in binomtest(count, total).proportion_ci()] if total else None


def _measure_map(
    pixel: PixelStatistics,
    ensemble: Ensemble,
    prediction: Prediction,
    index: int,
    sample: Sample,
    frame: Frame,
    shared: Grid | None,
) -> None:
    regions = regions_of(sample)
    h, w = regions[0][0].shape if regions else shared or image_size(sample.path)
    scores = frame.to_image(prediction.map[index].float().cpu(), (int(h), int(w)))
    marks = marked(ensemble, frame, prediction, index, scores)
    pixel.update(scores, regions, name=sample.path.name, defect=sample.defect, group=sample.group, marks=marks)


def _marked_share(ensemble: Ensemble, prediction: Prediction, index: int, sample: Sample, frame: Frame) -> float:
    """Of the picture's own pixels, as its user sees the mask."""
    scores = frame.to_image(prediction.map[index].float().cpu(), image_size(sample.path))
    return float(marked(ensemble, frame, prediction, index, scores).mean())


def _parts(
    parts: Mapping[str, Mapping[str, Sequence[float]]], labels: NDArray[np.int64], ensemble: Ensemble
) -> dict[str, Any]:
    """Image AUROC of every member, branch and head by itself; null with its reason for those without a score."""

    def auroc(scores: Sequence[float]) -> dict[str, Any]:
        values = np.asarray(scores)
        found = to_json(image_figures(values[labels == 0], values[labels == 1]))
        reason = found["undefined"].get("auroc")
        return {"image_auroc": found["auroc"], **({"reason": reason} if reason else {})}

    members: dict[str, Any] = {}
    for member in ensemble.config.members:
        if member.name in parts["members"]:
            members[member.name] = auroc(parts["members"][member.name])
        else:
            members[member.name] = {"image_auroc": None, "reason": "no head of its own; it only feeds the fused map"}
    branches = {}
    for name in ("picturable", "unpicturable"):
        known = parts["branches"].get(name)
        branches[name] = auroc(known) if known else {"image_auroc": None, "reason": "no such head"}
    heads = {name: auroc(scores) for name, scores in parts["heads"].items()}
    return {"members": members, "branches": branches, "heads": heads}


@dataclass
class Stopwatch:
    """Seconds per picture of the trunks and of all that follows, without reading and decoding; medians over batches."""

    device: torch.device
    trunks: list[float]
    rest: list[float]

    def cost(self) -> dict[str, Any]:
        # The first batch pays for start-up, and is the only one where there is only one.
        trunks, rest = (statistics.median(times[1:] or times) * 1000 for times in (self.trunks, self.rest))
        return {
            "ms_per_image": round(trunks + rest, 3),
            "ms_trunks": round(trunks, 3),
            "ms_heads": round(rest, 3),
            "peak_memory_mb": round(peak_memory(self.device) / 1e6, 1),
        }

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def peak_memory(device: torch.device) -> int:
    """Largest number of bytes that this process has held: on the device for CUDA, else resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def restart_peak(device: torch.device) -> None:
    """Count `peak_memory` from now on; where the system cannot do that, it stays that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def predict_batches(
    ensemble: Ensemble, batches: ImageBatches, device: torch.device, precision: Precision, watch: Stopwatch
) -> Iterator[tuple[Prediction, Sequence[Sample], Sequence[tuple[int, int]]]]:
    """Predictions batch by batch, with their samples and the sizes of their pictures."""
    eyes: Eyes = ensemble.eyes
    for batch in batches:
        if not len(batch.images):
            continue
        start = watch.now()
        with torch.inference_mode(), trunk_precision(device, precision):
            taps = eyes(to_device(batch.images, device))
        seen = watch.now()
        prediction = ensemble.predict_taps(taps)
        done = watch.now()
        watch.trunks.append((seen - start) / len(batch.images))
        watch.rest.append((done - seen) / len(batch.images))
        yield prediction, batch.samples, batch.sizes


@dataclass(frozen=True)
class Alarm:
    """Where alarm begins instead of where the fit has put it: another false-alarm rate, or a threshold by hand."""

    rate: float | None = None
    threshold: float | None = None


def loaded(
    run: str | Path, device: torch.device, compiled: bool, progress: Progress, alarm: Alarm | None = None
) -> Ensemble:
    """The ensemble of a run on a device; on a CUDA device with its trunks ``compiled``, if that is wished."""
    ensemble = load_run(run, device)
    if alarm is not None and alarm != Alarm():
        ensemble.alarm_at(alarm.rate, alarm.threshold)
    if compiled and device.type == "cuda":
        ensemble.eyes.compile_trunks()
    elif compiled:
        progress.say(f"--compile is for CUDA devices; on {device.type} the trunks run as they are")
    return ensemble


def evaluate_run(
    run: str | Path,
    image_set: ImageSet,
    *,
    device: str = "auto",
    precision: Precision = "auto",
    batch_size: int = 8,
    skip_bad: bool = False,
    compiled: bool = False,
    repetitions: int = 1000,
    alarm: Alarm | None = None,
    table: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Figures of a run on the test split of a set; ``table`` becomes a CSV file with a row per picture.

    Raises: DataError if it has none; as `load_run` and `measure`.
    """
    if not image_set.test:
        raise DataError(f"{image_set.root}: has no test pictures; expected test/<defect> folders")
    progress = progress or Silent()
    where = resolve_device(device)
    ensemble = loaded(run, where, compiled, progress, alarm)
    precision = ensemble.agreed(precision)
    frame = ensemble.config.frame.sized(ensemble.canvas)
    batches = ImageBatches(image_set.test, frame, batch_size, skip_bad=skip_bad)
    watch = Stopwatch(where, [], [])
    judged = ((p, samples) for p, samples, _ in predict_batches(ensemble, batches, where, precision, watch))
    measured = measure(
        ensemble,
        judged,
        image_set.test,
        frame,
        repetitions=repetitions,
        advance=progress.step(f"measuring on {image_set.name}"),
    )
    if table:
        write_csv(table, [picture_row(row, "path", "label", "defect", "score", "alarm") for row in measured.pictures])
    result = measured.figures
    result["cost"] = {**watch.cost(), "artefact_mb": round((Path(run) / STATE).stat().st_size / 1e6, 3)}
    result["left_out"] = [{"path": str(path), "reason": reason} for path, reason in batches.skipped]
    result["data"] = {"root": str(image_set.root), "layout": image_set.layout}
    return result


def in_words(figures: Mapping[str, Any]) -> list[str]:
    """What the table of `summary` does not say: what the threshold does, and why a figure is missing."""
    counts, rate, share = figures["counts"], figures["false_alarm_rate"], figures["image"]["accuracy_defective"]
    lines = []
    if counts["good"]:
        low, high = rate["observed_interval"]
        promise = f"at most {rate['guaranteed']:.1%} promised" if rate["guaranteed"] < 1 else "nothing promised"
        lines.append(
            f"at its threshold {round(rate['observed'] * counts['good'])} of {counts['good']} good parts raise an "
            f"alarm (95 % interval {low:.1%} to {high:.1%}; {promise})"
        )
    if counts["defective"]:
        lines.append(f"{round((1 - share) * counts['defective'])} of {counts['defective']} defective parts raise none")
    shown = (why for path, why in figures["undefined"].items() if not path.startswith("by_defect."))
    return lines + [f"no figure: {why}" for why in dict.fromkeys(shown)]


def summary(figures: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows for people: the whole, both branches, every member and every head."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    image, pixel = figures["image"], figures["pixel"]
    rows = [
        {
            "what": "ensemble",
            "image AUROC": percent(image["auroc"]),
            "AUPR": percent(image["aupr"]),
            "F1 max": percent(image["f1_max"]),
            "pixel AUROC": percent(pixel["auroc"]),
            "AU-PRO": percent(pixel["au_pro"]),
        }
    ]
    blank = dict.fromkeys(list(rows[0])[2:], "")
    for kind in ("branches", "members", "heads"):
        for name, values in figures[kind].items():
            rows.append({"what": f"  {name}", "image AUROC": percent(values["image_auroc"]), **blank})
    return rows
