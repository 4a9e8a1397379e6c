"""Pixel-level figures from one pass over the maps: AUROC, AUPR, F1 max, IoU, AU-PRO and AU-sPRO.

Kept of each image: its region pixels exactly, and its other pixels either exactly (float32 where that loses nothing)
or, once all images together pass a byte budget, as sketches whose counts are off by a relative 1.2e-4 at most
(sketch.py). Finishing counts the other pixels, once per defect type, at the distinct scores of region pixels
(thinning.py); nothing else is needed, because every curve is flat in between. False positives are counted over all
pixels outside every region, of good and of the group's defective images.
AU-PRO takes the 8-connected components of the union of an image's regions, AU-sPRO the regions as they were given.

Undefined: figures of a group without region pixels, without other pixels, or without regions. A defective image without
ground truth, or whose masks are empty, has no known pixels: it is left out here, and named in ``left_out``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import cv2
import numpy as np

from manyeyes.errors import DataError
from manyeyes.experiments.metrics import ranks, resampling
from manyeyes.experiments.metrics.figure import Figure, mean, undefined
from manyeyes.experiments.metrics.image import CONSTANT
from manyeyes.experiments.metrics.overlap import RegionScores, region_scores, summed_overlap
from manyeyes.experiments.metrics.ranks import Array, RankCounts, SortedScores
from manyeyes.experiments.metrics.sketch import ERROR, sketch
from manyeyes.experiments.metrics.thinning import thin

Regions = Sequence[tuple[Array, float]]
"""Each region's mask (H, W) of bool, and the covered area in pixels at which it counts as found."""

Cell = tuple[str, str]
"""Defect and group: images of one cell always come together."""

LIMITS = (0.01, 0.05, 0.1, 0.3, 1.0)
PRO_LIMIT = 0.3
CURVE = 120
"""Points of a PRO curve that are kept: more cannot be seen."""
BUDGET = 2**31
"""Bytes of exact scores kept before they are compressed, 2,000 maps of 512 x 512; finishing needs as much again."""

NO_REGIONS = "no defective image has a mask with defect pixels"
NO_NEGATIVES = "there is no pixel outside the regions"


@dataclass(frozen=True)
class PixelImage:
    """What is kept of one image. ``lengths`` says how many pixels each of ``negatives`` stands for; None: one.

    ``marked`` are the pixels inside and outside the regions that a mask marks; None where no mask was given.
    """

    name: str
    defect: str
    group: str
    negatives: Array
    lengths: Array | None
    positives: Array
    components: tuple[RegionScores, ...]
    regions: tuple[RegionScores, ...]
    marked: tuple[int, int] | None = None

    def compressed(self) -> PixelImage:
        if self.lengths is not None:
            return self
        values, lengths = sketch(self.negatives)
        return replace(self, negatives=values, lengths=lengths)


def describe_image(
    scores: Array, regions: Regions, name: str, defect: str = "good", group: str = "", marks: Array | None = None
) -> PixelImage:
    """Reduce one anomaly map, and what an automatic mask marks, to sufficient statistics.

    Shapes: scores (H, W), any float; masks and marks (H, W) of bool, at least one mask with a pixel unless good.
    Raises: DataError naming the image if the map is not 2-d and finite, or a mask has another size.
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or not np.issubdtype(scores.dtype, np.number):
        raise DataError(
            f"{name}: expected an anomaly map (H, W) of numbers, got shape {scores.shape} of {scores.dtype}"
        )
    if not np.isfinite(scores).all():
        raise DataError(f"{name}: the anomaly map has NaN or infinite values; expected finite scores")
    single = scores.astype(np.float32)
    scores = single if scores.dtype == np.float32 or np.array_equal(single, scores) else scores.astype(np.float64)
    union = np.zeros(scores.shape, dtype=bool)
    for mask, _ in regions:
        if mask.shape != scores.shape:
            raise DataError(
                f"{name}: the mask is {mask.shape[0]} x {mask.shape[1]} and the map {scores.shape[0]} x "
                f"{scores.shape[1]}; resize the map to the mask"
            )
        union |= mask
    return PixelImage(
        name=name,
        defect=defect,
        group=group or defect,
        negatives=scores[~union],
        lengths=None,
        positives=scores[union],
        components=tuple(region_scores(values, len(values)) for values in _by_component(scores, union)),
        regions=tuple(region_scores(scores[mask], area) for mask, area in regions if mask.any()),
        marked=None if marks is None else (int(marks[union].sum()), int(marks[~union].sum())),
    )


def _by_component(scores: Array, union: Array) -> list[Array]:
    """The scores of each 8-connected component of ``union``, component by component."""
    if not union.any():
        return []
    count, labels = cv2.connectedComponents(union.view(np.uint8), connectivity=8)
    of_pixel = labels[union]
    order = np.argsort(of_pixel, kind="stable")
    ends = np.cumsum(np.bincount(of_pixel, minlength=count)[1:])
    return np.split(scores[union][order], ends[:-1])


def merge(images: Sequence[PixelImage], thresholds: Array) -> list[SortedScores]:
    """The negatives of several images, sorted as far as counting at ``thresholds``, ascending (m,), needs it."""
    if all(image.lengths is None for image in images):
        return thin([image.negatives for image in images], thresholds)
    values = np.concatenate([image.negatives for image in images])
    lengths = np.concatenate(
        [np.ones(len(i.negatives), dtype=np.int64) if i.lengths is None else i.lengths for i in images]
    )
    order = np.argsort(values)
    return [SortedScores(values[order], np.concatenate([[0], np.cumsum(lengths[order])]))]


def count(images: Sequence[PixelImage], negatives: Sequence[SortedScores]) -> RankCounts:
    return ranks.count_ranks(np.concatenate([np.zeros(0, np.float32), *(i.positives for i in images)]), negatives)


def mean_overlap(counts: RankCounts, images: Sequence[PixelImage], regions: str) -> Array:
    held = [region for image in images for region in getattr(image, regions)]
    return summed_overlap(counts.thresholds, held) / max(len(held), 1)


class PixelStatistics:
    """Takes anomaly maps one by one, in any order, and finishes all pixel-level figures together.

    ``groups`` names the groups for which AU-sPRO is reported, each with all good images (LOCO: logical and structural).
    """

    def __init__(self, groups: Sequence[str] = (), budget: int = BUDGET) -> None:
        self.groups = tuple(groups)
        self.budget = budget
        self.images: list[PixelImage] = []
        self.left_out: list[str] = []
        self.compressed = False
        self._bytes = 0

    def update(
        self,
        scores: Array,
        regions: Regions,
        *,
        name: str,
        defect: str = "good",
        group: str = "",
        marks: Array | None = None,
    ) -> None:
        """Add one map (H, W) with its regions and, for all or for none, the pixels (H, W) that a mask marks.

        ``group`` defaults to ``defect``. Raises: as ``describe_image``.
        """
        if defect == "good" and any(mask.any() for mask, _ in regions):
            raise DataError(
                f"{name}: is called good and has a mask with defect pixels; name its defect or drop the mask"
            )
        image = describe_image(scores, regions, name, defect, group, marks)
        if defect != "good" and not len(image.positives):
            self.left_out.append(name)
            return
        if not self.groups:
            image = replace(image, regions=())
        self.images.append(image.compressed() if self.compressed else image)
        self._bytes += image.negatives.nbytes
        if not self.compressed and self._bytes > self.budget:
            self.images = [held.compressed() for held in self.images]
            self.compressed = True

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures must know, in words."""
        said = []
        if self.left_out:
            said.append(f"pixel: left out, defective without mask pixels: {', '.join(self.left_out)}")
        if self.compressed:
            said.append(
                f"pixel: more than {self.budget / 1e9:.1f} GB of scores, so counts of normal pixels are compressed; "
                f"false-positive rates are off by a relative {ERROR:.1g} at most"
            )
        return said

    def finish(
        self,
        limit: float = PRO_LIMIT,
        limits: Sequence[float] = LIMITS,
        threshold: float | None = None,
        repetitions: int = 0,
        seed: int = 0,
    ) -> dict[str, Any]:
        """``{"all": {...}, "groups": {name: {...}}, "defects": {name: {...}}}``, each together with all good images.

        Each holds ``auroc``, ``aupr``, ``f1_max``, ``f1_threshold``, ``iou_max`` (at that threshold), ``au_pro``, and
        groups also ``au_spro`` by limit; with a threshold ``iou`` too, with marks ``iou_mask``, that of the marks.
        ``groups`` ends with the ``mean`` of AU-sPRO.
        With ``repetitions`` > 0 areas and F1 max carry a 95 % stratified bootstrap interval over images.
        ``curve`` is the PRO curve of "all", false-positive rates and overlaps up to ``limit``; None where undefined.
        """
        cells: dict[Cell, list[PixelImage]] = {}
        for image in self.images:
            cells.setdefault((image.defect, image.group), []).append(image)
        known = [image.positives for image in self.images] + ([np.array([threshold])] if threshold is not None else [])
        thresholds = np.unique(np.concatenate(known)) if known else np.zeros(0)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            # The largest first, so that the threads end together. Sorting releases the interpreter's lock.
            order = sorted(cells, key=lambda cell: -sum(len(image.negatives) for image in cells[cell]))
            merged = dict(zip(order, pool.map(lambda cell: merge(cells[cell], thresholds), order), strict=True))

        def chosen(place: int, wanted: str | None) -> tuple[Cell, ...]:
            return tuple(cell for cell in cells if cell[0] == "good" or wanted in (None, cell[place]))

        of_groups = {name: chosen(1, name) for name in self.groups}

        @cache
        def figures(kept: tuple[Cell, ...]) -> dict[str, Any]:
            images = [image for cell in kept for image in cells[cell]]
            spro = limits if kept in of_groups.values() else ()
            values = _figures(images, [part for cell in kept for part in merged[cell]], limit, spro, threshold)
            if repetitions and values["au_pro"].value is not None:
                return resampling.with_intervals(values, images, limit, spro, repetitions, seed)
            return values

        def plain(kept: tuple[Cell, ...]) -> dict[str, Any]:
            return {name: value for name, value in figures(kept).items() if isinstance(value, Figure)}

        groups = {name: plain(kept) | {"au_spro": figures(kept)["au_spro"]} for name, kept in of_groups.items()}
        if groups:
            spros = {name: found["au_spro"] for name, found in groups.items()}
            groups["mean"] = {"au_spro": {key: mean({g: s[key] for g, s in spros.items()}) for key in map(str, limits)}}
        kinds = sorted({defect for defect, _ in cells} - {"good"})
        defects = {kind: plain(chosen(0, kind)) for kind in kinds}
        everything = chosen(0, None)
        return {
            "all": plain(everything),
            "groups": groups,
            "defects": defects,
            "curve": figures(everything).get("pro_curve"),
        }


def _figures(
    images: Sequence[PixelImage],
    negatives: Sequence[SortedScores],
    limit: float,
    limits: Sequence[float],
    threshold: float | None,
) -> dict[str, Any]:
    counts = count(images, negatives)
    names = [
        "auroc",
        "aupr",
        "f1_max",
        "f1_threshold",
        "iou_max",
        "au_pro",
        *(["iou"] if threshold is not None else []),
        *(["iou_mask"] if any(image.marked for image in images) else []),
    ]
    if not counts.n_positives or not counts.n_negatives:
        nothing = undefined(NO_NEGATIVES if counts.n_positives else NO_REGIONS)
        empty: dict[str, Any] = dict.fromkeys(names, nothing)
        return empty | ({"au_spro": dict.fromkeys(map(str, limits), nothing)} if limits else {})
    f1 = ranks.f1_curve(counts)
    best = int(f1.argmax())
    tied = len(counts.thresholds) == 1 and counts.negatives[0] - counts.negatives_above[0] == counts.n_negatives
    overlap = mean_overlap(counts, images, "components")
    values: dict[str, Any] = {
        "auroc": Figure(float(ranks.auroc(counts)), note=CONSTANT if tied else None),
        "aupr": Figure(float(ranks.average_precision(counts))),
        "f1_max": Figure(float(f1[best])),
        "f1_threshold": Figure(float(counts.thresholds[best])),
        "iou_max": Figure(float(f1[best] / (2 - f1[best]))),
        "au_pro": Figure(float(ranks.area_under_overlap(counts, overlap, limit))),
    }
    values["pro_curve"] = pro_curve(counts, overlap, limit)
    if threshold is not None:
        values["iou"] = Figure(iou(images, negatives, threshold))
    if "iou_mask" in names:
        covered, alarms = (sum(counts) for counts in zip(*(i.marked for i in images if i.marked), strict=True))
        values["iou_mask"] = Figure(covered / (counts.n_positives + alarms))
    if limits:
        overlap = mean_overlap(counts, images, "regions")
        values["au_spro"] = {str(at): Figure(float(ranks.area_under_overlap(counts, overlap, at))) for at in limits}
    return values


def pro_curve(counts: RankCounts, overlap: Array, limit: float) -> tuple[Array, Array]:
    """The curve under which AU-PRO is the area, thinned to at most ``CURVE`` points evenly spaced along it.

    Returns: false-positive rates up to ``limit`` and mean overlaps, both rising from 0, (p,).
    """
    rates = np.concatenate([[0.0], counts.negatives / counts.n_negatives])
    overlaps = np.concatenate([[0.0], overlap])
    last = int(np.searchsorted(rates, limit, side="right"))
    end = np.interp(limit, rates, overlaps)
    rates, overlaps = np.append(rates[:last], limit), np.append(overlaps[:last], end)
    along = np.cumsum(np.abs(np.diff(rates, prepend=0.0)) / limit + np.abs(np.diff(overlaps, prepend=0.0)))
    kept = np.unique(np.searchsorted(along, np.linspace(0, along[-1], CURVE)).clip(0, len(rates) - 1))
    return rates[kept], overlaps[kept]


def iou(images: Sequence[PixelImage], negatives: Sequence[SortedScores], threshold: float) -> float:
    """Intersection over union of the pixels with score >= threshold and the union of all regions, over all images."""
    covered = sum(int(np.count_nonzero(image.positives >= np.float64(threshold))) for image in images)
    alarms = sum(int(scores.counts(np.array([threshold]))[0][0]) for scores in negatives)
    return covered / (sum(len(image.positives) for image in images) + alarms)
