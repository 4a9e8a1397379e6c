"""DeLong's variance of the AUROC, its confidence interval, and the paired test of two AUROCs on the same images.

Source: DeLong, DeLong and Clarke-Pearson 1988, by mid-ranks after Sun and Xu 2014 (O(n log n)).
The interval is symmetric in logit(AUROC), which keeps it inside [0, 1] and holds its coverage near 1, where image
AUROCs of anomaly detectors live. At an AUROC of exactly 1 or 0 the variance estimate is 0 and says nothing: there we
give the exact one-sided bound from min(good, defective) disjoint pairs that were all ranked alike, (0.025^(1/k), 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm, rankdata
from scipy.stats import t as student_t

from manyeyes.experiments.metrics.figure import Interval
from manyeyes.experiments.metrics.ranks import Array

LEVEL = 0.95


@dataclass(frozen=True)
class Placements:
    """How often each defective image outscores a good one, (d,), and each good one is outscored, (g,); ties half."""

    defective: Array
    good: Array

    @property
    def auroc(self) -> float:
        return float(self.defective.mean())


def placements(good: Array, defective: Array) -> Placements:
    """DeLong's structural components. Shapes: (g,), (d,), neither empty."""
    ranks = rankdata(np.concatenate([good, defective]))
    of_good = (rankdata(good) - ranks[: len(good)]) / len(defective) + 1
    of_defective = (ranks[len(good) :] - rankdata(defective)) / len(good)
    return Placements(of_defective, of_good)


def covariance(a: Placements, b: Placements) -> float:
    """Covariance of two AUROCs on the same images; of one with itself, its variance. NaN with one image of a class."""
    if min(len(a.good), len(a.defective)) < 2:
        return math.nan
    defective = np.cov(a.defective, b.defective)[0, 1] / len(a.defective)
    return float(defective + np.cov(a.good, b.good)[0, 1] / len(a.good))


def interval(good: Array, defective: Array, level: float = LEVEL) -> Interval | None:
    """Confidence interval of the AUROC; None where none can be given (one image of a class, or constant scores)."""
    return interval_of(placements(good, defective), level)


def interval_of(parts: Placements, level: float = LEVEL, extra: float = 0.0, runs: int = 1) -> Interval | None:
    """As `interval`. The mean of several seeds' placements gives the interval of their mean AUROC on these images.

    ``extra`` is variance from elsewhere that adds to that of the images, such as that of the mean over ``runs`` seeds.
    """
    value, tail = parts.auroc, (1 - level) / 2
    if value in (0.0, 1.0):
        bound = tail ** (1 / min(len(parts.good), len(parts.defective)))
        return (bound, 1.0) if value == 1 else (0.0, 1 - bound)
    variance = covariance(parts, parts) + extra
    if not variance > 0:
        return None
    half = student(freedom(variance, extra, runs)).ppf(1 - tail) * math.sqrt(variance) / (value * (1 - value))
    return float(expit(logit(value) - half)), float(expit(logit(value) + half))


def freedom(variance: float, extra: float, runs: int) -> float:
    """Degrees of freedom of a ``variance`` of which ``extra`` was estimated from a few runs, the rest from many images.

    Source: Welch 1947, Satterthwaite 1946.
    """
    return (runs - 1) * (variance / extra) ** 2 if extra > 0 and runs > 1 else math.inf


def student(degrees: float) -> Any:
    """Student's law, which is the normal one for infinitely many degrees of freedom."""
    return student_t(degrees) if math.isfinite(degrees) else norm


@dataclass(frozen=True)
class Difference:
    """Figure of run a minus that of run b on the same images. ``p`` is two-sided; None where no test is possible."""

    value: float
    interval: Interval | None
    p: float | None = None


def paired_test(
    good_a: Array, defective_a: Array, good_b: Array, defective_b: Array, level: float = LEVEL
) -> Difference:
    """DeLong's test that two runs have the same AUROC; row i of both runs is the same image.

    Two runs that rank every pair alike differ by 0 with p = 1; a difference without variance has no test.
    """
    return difference_of(placements(good_a, defective_a), placements(good_b, defective_b), level)


def difference_of(a: Placements, b: Placements, level: float = LEVEL, extra: float = 0.0, runs: int = 1) -> Difference:
    """As `paired_test`, from placements on the same images; ``extra`` and ``runs`` as in `interval_of`."""
    value = a.auroc - b.auroc
    variance = covariance(a, a) + covariance(b, b) - 2 * covariance(a, b) + extra
    if not variance > 1e-15:
        same = np.array_equal(a.good, b.good) and np.array_equal(a.defective, b.defective)
        return Difference(value, (0.0, 0.0) if same else None, 1.0 if same else None)
    error = math.sqrt(variance)
    law = student(freedom(variance, extra, runs))
    half = float(law.ppf(1 - (1 - level) / 2)) * error
    p = float(2 * law.sf(abs(value) / error))
    return Difference(value, (max(-1.0, value - half), min(1.0, value + half)), p)
