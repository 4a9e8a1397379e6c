"""ROC and PRO curves as SVG paths, and the scores behind the histograms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyeyes.experiments.report.contest import Contest, Result
from manyeyes.experiments.report.words import percent

Array = NDArray[np.float64]


CURVES = 8
"""More curves, and more colours, cannot be told apart."""


@dataclass(frozen=True)
class Curve:
    """``path`` is an SVG path in a square of 100 x 100, false alarms to the right, detections upwards.

    ``at`` is the point (x, y) in it where the calibrated threshold stands; ``area`` what the whole figure is called by.
    """

    ensemble: str
    path: str
    title: str
    area: str
    at: tuple[float, float] | None = None


def roc(good: Array, defective: Array) -> tuple[Array, Array]:
    """False-alarm and detection rates of score >= t at every t, from (0, 0) to (1, 1), without points on a line.

    Shapes: (g,), (d,) -> (m,), (m,).
    """
    thresholds = np.unique(np.concatenate([good, defective]))[::-1]
    alarms = [np.searchsorted(np.sort(x), thresholds, side="left") for x in (good, defective)]
    x = np.concatenate([[0.0], 1 - alarms[0] / len(good)])
    y = np.concatenate([[0.0], 1 - alarms[1] / len(defective)])
    turns = np.abs(np.diff(x[:-1]) * np.diff(y[1:]) - np.diff(x[1:]) * np.diff(y[:-1])) > 1e-12
    kept = np.concatenate([[True], turns, [True]])
    return x[kept], y[kept]


def svg_path(x: Array, y: Array) -> str:
    """A line through points in 0..1, in a square of 100 x 100 whose y points downwards. Shapes: (m,), (m,)."""
    return "M" + "L".join(f"{100 * a:.2f} {100 - 100 * b:.2f}" for a, b in zip(x, y, strict=True))


def roc_curves(contest: Contest) -> list[Curve]:
    """The best ensembles' curves with the first seed, best first; none where a class has no picture."""
    found = []
    for name in contest.whole[:CURVES]:
        result = contest.first(name)
        good, defective = result.scores[result.labels == 0], result.scores[result.labels == 1]
        if not len(good) or not len(defective):
            continue
        x, y = roc(good, defective)
        threshold = result.figures["threshold"]
        at = float((good >= threshold).mean()), float((defective >= threshold).mean())
        title = f"{name}: at its threshold {100 * at[0]:.0f} % false alarms, {100 * at[1]:.0f} % of defects found"
        area = percent(result.figure("image", "auroc"))
        found.append(Curve(name, svg_path(x, y), title, area, (100 * at[0], 100 - 100 * at[1])))
    return found


def pro_curves(contest: Contest) -> tuple[list[Curve], float]:
    """As `roc_curves`, of the mean overlap with the defects' regions, and the false-positive rate at the right edge.

    None where a set has no masks or an ensemble no maps.
    """
    known = {name: curve for name in contest.whole if (curve := contest.first(name).pro_curve) is not None}
    limit = max((float(x[-1]) for x, _ in known.values()), default=1.0)
    found = []
    for name, (x, y) in list(known.items())[:CURVES]:
        area = percent(contest.first(name).figure("pixel", "au_pro"))
        title = f"{name}: covers {100 * y[-1]:.0f} % of a region where {100 * x[-1]:.0f} % of good pixels are marked"
        found.append(Curve(name, svg_path(x / limit, y), title, area))
    return found, limit


def histogram_data(contest: Contest) -> dict[str, Any]:
    """What the page's script needs to draw scores and to count at any threshold; ensembles best first, first seed."""
    return {"name": contest.data, "ensembles": [_ensemble(contest.first(name), name) for name in contest.ranking]}


def _ensemble(result: Result, name: str) -> dict[str, Any]:
    parts = [{"label": "the whole ensemble", "kind": "", "scores": digits(result.scores)}]
    first = result.pictures[0]
    for kind, word in (("branches", "Branches"), ("members", "Members"), ("heads", "Heads")):
        for part in first[kind]:
            parts.append({"label": part, "kind": word, "scores": digits(result.judged(kind, part))})
    return {
        "name": name,
        "threshold": digits(np.array([result.figures["threshold"]]))[0],
        "promised": result.figures["false_alarm_rate"]["guaranteed"],
        "defects": [picture["defect"] for picture in result.pictures],
        "labels": result.labels.tolist(),
        "parts": parts,
    }


def digits(values: Array) -> list[float]:
    """Nine significant digits tell any two float32 apart, so that score >= threshold decides as it did."""
    return [float(f"{value:.9g}") for value in values]
