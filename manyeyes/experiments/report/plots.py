"""Points in a square of 100 x 100 for the page's SVG, on axes with round ticks: accuracy against cost and the like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from manyeyes.experiments.report.standings import Standing
from manyeyes.experiments.report.words import number, percent

NEAR = 4
"""Labels of points that are nearer would lie on each other."""
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Axis:
    """``ticks`` are (place, text), places 0..100 from the low end."""

    low: float
    high: float
    log: bool
    ticks: list[tuple[float, str]]

    def at(self, value: float) -> float:
        return _place(value, self.low, self.high, self.log)


def _place(value: float, low: float, high: float, log: bool) -> float:
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return 100 * (value - low) / (high - low)


def share_axis(values: Sequence[float]) -> Axis:
    """For AUROCs: the finest round steps around all values that need at most six ticks, in %.

    >>> [text for _, text in share_axis([0.83, 0.97]).ticks], [text for _, text in share_axis([0.991, 1.0]).ticks]
    (['80', '85', '90', '95', '100'], ['99', '100'])
    """
    for step in STEPS:
        first, last = math.floor(min(values) / step + 1e-9), max(math.ceil(max(values) / step - 1e-9), 1)
        first = min(first, last - 1)
        if last - first <= 5:
            break
    ticks = [(100 * tick / (last - first), f"{100 * (first + tick) * step:.0f}") for tick in range(last - first + 1)]
    return Axis(first * step, last * step, False, ticks)


def cost_axis(values: Sequence[float]) -> Axis:
    """For times: logarithmic, between 1, 2 or 5 times powers of ten, with ticks there, at more or at fewer places.

    >>> [text for _, text in cost_axis([12.0, 30.0]).ticks], [text for _, text in cost_axis([12.0, 300.0]).ticks]
    (['10', '20', '30', '40', '50'], ['10', '20', '50', '100', '200', '500'])
    """
    powers = range(math.floor(math.log10(min(values))) - 1, math.ceil(math.log10(max(values))) + 1)
    every, whole, tens = (
        [digit * 10.0**power for power in powers for digit in d] for d in (range(1, 10), (1, 2, 5), (1,))
    )
    low = max(value for value in whole if value <= min(values) * (1 + 1e-9))
    high = min(value for value in whole if value >= max(values) * (1 - 1e-9) and value > low)
    for candidates in (every, whole, tens):
        inside = [value for value in candidates if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(inside) <= 6:
            break
    return Axis(low, high, True, [(_place(value, low, high, True), f"{value:g}") for value in inside])


@dataclass(frozen=True)
class Point:
    """``x`` to the right, ``y`` downwards. ``label`` is a number that the table beside the plot explains."""

    name: str
    label: str
    x: float
    y: float
    title: str
    marked: bool = False


@dataclass(frozen=True)
class Plot:
    """Points on two axes, and a ``line`` as an SVG path."""

    points: list[Point]
    x: Axis
    y: Axis
    line: str = ""


def joined(points: Sequence[Point]) -> list[Point]:
    """With the labels of points that lie on each other at the first of them: 2, 4."""
    found: list[Point] = []
    for point in points:
        for place, other in enumerate(found):
            if point.label and other.label and max(abs(point.x - other.x), abs(point.y - other.y)) < NEAR:
                found[place] = replace(other, label=f"{other.label}, {point.label}")
                point = replace(point, label="")
                break
        found.append(point)
    return found


def cost_plot(standings: Sequence[Standing]) -> Plot | None:
    """Image AUROC against milliseconds per picture, with the front; labels count the standings from 1.

    None with a single ensemble, or where nothing was measured.
    """
    known = [
        (place, standing, standing.auroc, ms)
        for place, standing in enumerate(standings, 1)
        if standing.auroc is not None and (ms := standing.costs["ms_per_image"])
    ]
    if len(known) < 2:
        return None
    x, y = cost_axis([ms for *_, ms in known]), share_axis([auroc for _, _, auroc, _ in known])
    points = [
        Point(
            standing.ensemble,
            str(place),
            x.at(ms),
            100 - y.at(auroc),
            f"{standing.ensemble}: {percent(auroc)} %, {number(ms)} ms per picture",
            standing.on_front,
        )
        for place, standing, auroc, ms in known
    ]
    points = joined(points)
    front = sorted((point.x, point.y) for point in points if point.marked)
    line = f"M{front[0][0]:.2f} 100V{front[0][1]:.2f}" + "".join(f"H{x:.2f}V{y:.2f}" for x, y in front[1:]) + "H100"
    return Plot(points, x, y, line)
