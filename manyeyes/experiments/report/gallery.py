"""Which pictures to show: worst misses, worst false alarms, best found, and where ensembles disagree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from manyeyes.data import Frame
from manyeyes.ensemble import EnsembleConfig
from manyeyes.experiments.report.contest import Contest, Result
from manyeyes.experiments.report.thumbnails import data_uri, overlay, thumbnail, truth
from manyeyes.experiments.report.words import number, signed

CARDS = 6
"""Pictures per gallery."""
RIVALS = 6
"""Ensembles side by side in a disagreement."""
SPREAD = 0.25
"""Ensembles that all say alarm, or all say good, still disagree where their ranks of a picture differ by this share."""


@dataclass(frozen=True)
class Bar:
    """``width`` is 0..100."""

    name: str
    text: str
    width: float


@dataclass(frozen=True)
class View:
    """What one ensemble says of one picture. ``heat`` is a data URI, empty where the ensemble draws no maps."""

    ensemble: str
    heat: str
    score: str
    threshold: str
    alarm: bool
    at: float
    mark: float
    heads: list[Bar]


@dataclass(frozen=True)
class Card:
    """One picture. ``picture`` is a data URI, empty where the file is gone."""

    name: str
    path: str
    defect: str
    label: int
    picture: str
    outlined: bool
    views: list[View]


@dataclass(frozen=True)
class Gallery:
    title: str
    lead: str
    cards: list[Card]


class Painter:
    """Draws cards of one result: its maps, its frame and the scales that are common to all its pictures."""

    def __init__(self, result: Result, name: str) -> None:
        self.result, self.name = result, name
        self.frame: Frame = EnsembleConfig.from_yaml(result.cell.run / "config.yaml").frame
        self.maps: NDArray[np.float16] = result.cell.maps
        self.rows = {picture["path"]: row for row, picture in enumerate(result.pictures)}
        threshold = float(result.figures["map_threshold"])
        peaks = self.maps.astype(np.float32).max(axis=(1, 2))
        self.scale = threshold, max(float(np.quantile(peaks, 0.95)), 1.5 * abs(threshold))
        good = np.abs(result.scores[result.labels == 0])
        self.unit = float(np.median(good)) if len(good) and np.median(good) > 0 else 1.0
        ends = np.arcsinh(np.append(result.scores, result.figures["threshold"]) / self.unit)
        self.ends = float(ends.min()), float(ends.max())
        heads = [value for picture in result.pictures for value in picture["heads"].values()]
        self.strongest = max([3.0, *heads])

    def card(self, row: int) -> Card:
        picture = self.result.pictures[row]
        image = thumbnail(picture["path"], self.frame.bits)
        mask = None if image is None else truth(tuple(picture["masks"]), image.shape[:2])
        path = PurePath(picture["path"])
        return Card(
            name=f"{path.parent.name}/{path.name}",
            path=picture["path"],
            defect=picture["defect"],
            label=picture["label"],
            picture="" if image is None else data_uri(image),
            outlined=mask is not None,
            views=[self.view(row)],
        )

    def view(self, row: int) -> View:
        picture = self.result.pictures[row]
        threshold = self.result.figures["threshold"]
        image = thumbnail(picture["path"], self.frame.bits)
        heat = ""
        if image is not None and self.result.draws:
            mask = truth(tuple(picture["masks"]), image.shape[:2])
            heat = data_uri(overlay(image, self.maps[row], self.frame, self.scale, mask))
        heads = sorted(picture["heads"].items(), key=lambda item: -item[1])
        return View(
            ensemble=self.name,
            heat=heat,
            score=number(picture["score"]),
            threshold=number(threshold),
            alarm=picture["alarm"],
            at=self._along(picture["score"]),
            mark=self._along(threshold),
            heads=[Bar(name, signed(f"{value:.1f}"), self._strength(value)) for name, value in heads],
        )

    def _along(self, score: float) -> float:
        """Where a score stands between the lowest and the highest, 0..100; high scores are compressed."""
        low, high = self.ends
        return 100 * (float(np.arcsinh(score / self.unit)) - low) / max(high - low, 1e-12)

    def _strength(self, value: float) -> float:
        return 100 * float(np.arcsinh(max(value, 0.0)) / np.arcsinh(self.strongest))


def galleries(painter: Painter) -> list[Gallery]:
    """Misses, false alarms and best found of one ensemble."""
    pictures, scores = painter.result.pictures, painter.result.scores
    rising = [int(row) for row in np.argsort(scores, kind="stable")]
    defective = [row for row in rising if pictures[row]["label"]]
    good = [row for row in reversed(rising) if not pictures[row]["label"]]
    missed = [row for row in defective if not pictures[row]["alarm"]]
    alarms = [row for row in good if pictures[row]["alarm"]]
    found = _varied([row for row in reversed(defective) if pictures[row]["alarm"]], pictures)
    shown = []
    if missed:
        shown.append(_gallery("Worst misses", "Defective parts with the lowest scores", missed, painter))
    elif defective:
        lead = "No defect was missed. These came closest to the threshold"
        shown.append(_gallery("Misses: none", lead, defective, painter, CARDS // 2, counted=False))
    if alarms:
        shown.append(_gallery("Worst false alarms", "Good parts with the highest scores", alarms, painter))
    elif good:
        lead = "No good part raised an alarm. These came closest to the threshold"
        shown.append(_gallery("False alarms: none", lead, good, painter, CARDS // 2, counted=False))
    if found:
        lead = "Defects with the highest scores, of as many kinds as there are"
        shown.append(_gallery("Best found", lead, found, painter))
    return shown


def _gallery(
    title: str, lead: str, rows: Sequence[int], painter: Painter, most: int = CARDS, counted: bool = True
) -> Gallery:
    share = f" ({most} of {len(rows)})" if counted and len(rows) > most else ""
    return Gallery(title, f"{lead}{share}.", [painter.card(row) for row in rows[:most]])


def _varied(rows: Iterable[int], pictures: Sequence[dict[str, Any]]) -> list[int]:
    """The first row of every kind of defect, then the second of every kind, and so on."""
    turns: dict[str, int] = {}
    keyed = []
    for place, row in enumerate(rows):
        kind = pictures[row]["defect"]
        turns[kind] = turns.get(kind, 0) + 1
        keyed.append((turns[kind], place, row))
    return [row for _, _, row in sorted(keyed)]


def disagreements(contest: Contest, painters: Sequence[Painter]) -> Gallery | None:
    """Pictures that some ensembles call defective and others good, then those that they rank most differently.

    None with a single ensemble, or where all agree.
    """
    painters = painters[:RIVALS]
    if len(painters) < 2:
        return None
    paths = [p["path"] for p in painters[0].result.pictures if p["path"] in contest.common]
    rows = [[painter.rows[path] for path in paths] for painter in painters]
    alarms = np.array(
        [[p.result.pictures[row]["alarm"] for row in r] for p, r in zip(painters, rows, strict=True)], dtype=bool
    )
    ranks = np.array([rankdata(p.result.scores[r]) / len(r) for p, r in zip(painters, rows, strict=True)])
    spread = ranks.max(axis=0) - ranks.min(axis=0)
    split = np.ptp(alarms.astype(int), axis=0) > 0
    order = sorted(range(len(paths)), key=lambda i: (not split[i], -spread[i]))
    chosen = [i for i in order if split[i] or spread[i] > SPREAD]
    if not chosen:
        return None
    cards = []
    for index in chosen[:CARDS]:
        card = painters[0].card(rows[0][index])
        others = [painter.view(r[index]) for painter, r in zip(painters[1:], rows[1:], strict=True)]
        cards.append(Card(**{**vars(card), "views": [*card.views, *others]}))
    lead = f"The ensembles decide differently on {int(split.sum())} of {len(paths)} pictures"
    return Gallery("Disagreements", f"{lead}; shown are those where their opinions lie furthest apart.", cards)
