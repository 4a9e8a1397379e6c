"""Stratified bootstrap: good and defective images are drawn apart, with replacement, as often as there are.

A replicate is a vector of weights, how often each image was drawn; all replicates are finished at once from weighted
cumulative counts. Intervals of figures are normal on the logit scale and corrected for bias: near 1 plain percentiles
cover too little, and F1 max, the best of many thresholds, comes out too high on a sample and higher still on its
replicates. Differences take plain percentiles. The same seed and the same numbers of images give the
same weights, so replicates of two runs on the same images are paired: subtract them.
Source: Efron and Tibshirani 1993, chapters 10 and 12. Coverage is simulated in benchmarks/intervals.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy.special import expit, logit

from manyeyes.experiments.metrics import ranks
from manyeyes.experiments.metrics.delong import LEVEL, Difference, student
from manyeyes.experiments.metrics.figure import Interval
from manyeyes.experiments.metrics.ranks import Array, RankCounts, SortedScores

REPETITIONS = 2000

CLIP = 1e-4
"""Replicates nearer than this to 0 or 1 count as that near, because logit(1) is infinite."""

IMAGE_FIGURES: Mapping[str, Callable[[RankCounts], Array]] = {
    "auroc": ranks.auroc,
    "aupr": ranks.average_precision,
    "f1_max": lambda counts: ranks.f1_curve(counts).max(axis=-1),
}


def draw(good: int, defective: int, repetitions: int, seed: int) -> tuple[Array, Array]:
    """Weights (repetitions, good) and (repetitions, defective): how often each image was drawn."""
    strata = (np.random.default_rng([seed, stratum]) for stratum in (0, 1))
    of_good, of_defective = (
        rng.multinomial(n, np.full(n, 1 / n), size=repetitions) if n else np.zeros((repetitions, 0), dtype=np.int64)
        for rng, n in zip(strata, (good, defective), strict=True)
    )
    return of_good, of_defective


def weighted_counts(good: Array, defective: Array, of_good: Array, of_defective: Array) -> RankCounts:
    """Rank counts of every replicate. Shapes: (g,), (d,), (r, g), (r, d) -> counts (r, m)."""
    plain = ranks.count_ranks(defective, [SortedScores(np.sort(good))])

    def drawn(scores: Array, weights: Array, places: Array) -> Array:
        totals = np.cumsum(weights[:, np.argsort(-scores, kind="stable")], axis=1)
        return np.pad(totals, ((0, 0), (1, 0)))[:, places]

    return RankCounts(
        thresholds=plain.thresholds,
        positives=drawn(defective, of_defective, plain.positives),
        negatives=drawn(good, of_good, plain.negatives),
        negatives_above=drawn(good, of_good, plain.negatives_above),
        n_positives=of_defective.sum(axis=1),
        n_negatives=of_good.sum(axis=1),
    )


def replicates(figure: str, good: Array, defective: Array, repetitions: int = REPETITIONS, seed: int = 0) -> Array:
    """One of ``IMAGE_FIGURES`` in every replicate. Shapes: (g,), (d,), neither empty -> (repetitions,)."""
    weights = draw(len(good), len(defective), repetitions, seed)
    return IMAGE_FIGURES[figure](weighted_counts(good, defective, *weights))


def interval(values: Array, estimate: float, images: int, level: float = LEVEL) -> Interval | None:
    """Interval of a figure in [0, 1] from its replicates: Student's on the logit scale, less the bootstrap's bias.

    ``images`` is the size of the smallest class that was drawn from: a few images show little of how much they vary.
    None where no replicate differs from the others, as with a perfect figure, one is undefined, or a class has a
    single image, which every replicate holds.
    """
    if images < 2 or not len(values) or not np.isfinite(values).all() or np.ptp(values) == 0:
        return None
    drawn, centre = (logit(np.clip(scores, CLIP, 1 - CLIP)) for scores in (values, estimate))
    half = student(images - 1).ppf((1 + level) / 2) * drawn.std()
    middle = 2 * centre - drawn.mean()
    return float(expit(middle - half)), float(expit(middle + half))


def percentiles(values: Array, images: int, level: float = LEVEL) -> Interval | None:
    """Plain percentile interval, for differences; None where a replicate is undefined or a class has one image."""
    if images < 2 or not len(values) or not np.isfinite(values).all():
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference(
    figure: str,
    good_a: Array,
    defective_a: Array,
    good_b: Array,
    defective_b: Array,
    repetitions: int = REPETITIONS,
    seed: int = 0,
) -> Difference:
    """Figure of run a minus that of run b, with its paired interval; row i of both runs is the same image."""
    values = [
        (replicates(figure, *run, repetitions, seed), IMAGE_FIGURES[figure](_plain(*run)))
        for run in ((good_a, defective_a), (good_b, defective_b))
    ]
    estimate = float(values[0][1] - values[1][1])
    return Difference(estimate, percentiles(values[0][0] - values[1][0], min(len(good_a), len(defective_a))))


def _plain(good: Array, defective: Array) -> RankCounts:
    return ranks.count_ranks(defective, [SortedScores(np.sort(good))])
