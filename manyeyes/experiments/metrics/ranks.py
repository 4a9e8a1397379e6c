"""Counts by rank: all that ROC, precision-recall and overlap curves need, and their areas.

Every curve here moves upwards at scores of positives only, so the distinct positive scores and the numbers of
negatives above and at them determine each area exactly. Nothing is binned; ties count one half, as in the
Mann-Whitney statistic. A score is called positive where it is >= the threshold, so that a threshold taken from
the data decides its own sample.
All functions accept leading axes (bootstrap replicates) and work on the last one; 0/0 gives NaN.
Oracles: scikit-learn's roc_auc_score and average_precision_score (tests/experiments/metrics/test_ranks.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class SortedScores:
    """Scores in ascending order, (n,). ``cumulative`` (n + 1,) counts what lies before each; None: one by one."""

    values: Array
    cumulative: Array | None = None

    @property
    def total(self) -> int:
        return len(self.values) if self.cumulative is None else int(self.cumulative[-1])

    def counts(self, thresholds: Array) -> tuple[Array, Array]:
        """How many scores are >= and how many are > each threshold: two int64 arrays of the thresholds' shape."""
        left = np.searchsorted(self.values, thresholds, side="left")
        right = left.copy()
        tied = np.flatnonzero(np.take(self.values, left, mode="clip") == thresholds) if len(self.values) else left[:0]
        right[tied] = np.searchsorted(self.values, thresholds[tied], side="right")
        if self.cumulative is not None:
            left, right = self.cumulative[left], self.cumulative[right]
        return self.total - left, self.total - right


@dataclass(frozen=True)
class RankCounts:
    """Counts at the m distinct positive scores, in descending order.

    Shapes: thresholds (m,); positives, negatives and negatives_above (..., m); n_positives and n_negatives (...).
    ``positives`` and ``negatives`` count scores >= the threshold, ``negatives_above`` those strictly above.
    """

    thresholds: Array
    positives: Array
    negatives: Array
    negatives_above: Array
    n_positives: Any
    n_negatives: Any


def count_ranks(positives: Array, negatives: Sequence[SortedScores]) -> RankCounts:
    """Count at every distinct positive score; ``negatives`` may be spread over several sorted arrays.

    Shapes: (p,), arrays of (n_i,) -> m distinct thresholds.
    """
    ordered = np.sort(positives)
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, dtype=np.int64)
    ascending = ordered[first]
    at_least = np.zeros(len(ascending), dtype=np.int64)
    above = np.zeros(len(ascending), dtype=np.int64)
    for scores in negatives:
        more_at_least, more_above = scores.counts(ascending)
        at_least += more_at_least
        above += more_above
    return RankCounts(
        thresholds=ascending[::-1],
        positives=(len(ordered) - first)[::-1],
        negatives=at_least[::-1],
        negatives_above=above[::-1],
        n_positives=len(ordered),
        n_negatives=sum(scores.total for scores in negatives),
    )


def auroc(counts: RankCounts) -> Array:
    """Area under the ROC curve: the chance that a positive outscores a negative, ties counting one half."""
    gained = np.diff(counts.positives, axis=-1, prepend=0)
    not_outscored = (gained * (counts.negatives + counts.negatives_above) / 2).sum(axis=-1)
    pairs = np.asarray(counts.n_positives) * np.asarray(counts.n_negatives, dtype=float)
    return np.asarray(1 - ratio(not_outscored, pairs))


def average_precision(counts: RankCounts) -> Array:
    """AUPR as scikit-learn defines it: precision at each threshold, weighted by the recall gained there."""
    gained = np.diff(counts.positives, axis=-1, prepend=0)
    return ratio((gained * precision(counts)).sum(axis=-1), counts.n_positives)


def precision(counts: RankCounts) -> Array:
    """Precision at every threshold, (..., m); 1 where nothing is called positive (a bootstrap replicate may do so)."""
    called = counts.positives + counts.negatives
    return np.where(called > 0, counts.positives / np.maximum(called, 1), 1.0)


def f1_curve(counts: RankCounts) -> Array:
    """F1 at every threshold, (..., m). Its maximum over all real thresholds is reached at one of these."""
    called = counts.positives + counts.negatives
    return ratio(2 * counts.positives, called + np.asarray(counts.n_positives)[..., None])


def area_under_overlap(counts: RankCounts, overlap: Array, limit: float) -> Array:
    """Area under overlap against false-positive rate from 0 to ``limit``, divided by ``limit``.

    The curve runs flat between positive scores and straight across ties; at the limit it is interpolated. With the
    true-positive rate as overlap and limit 1 this is the AUROC.

    Shapes: overlap (..., m), the mean covered fraction at each threshold -> (...).
    Source: the official MVTec LOCO evaluation (Bergmann et al. 2022), at all thresholds instead of a subset.
    """
    n = np.asarray(counts.n_negatives, dtype=float)[..., None]
    start = ratio(counts.negatives_above, n)
    end = ratio(counts.negatives, n)
    before = np.concatenate([np.zeros_like(end[..., :1]), end[..., :-1]], axis=-1)
    low = np.concatenate([np.zeros_like(overlap[..., :1]), overlap[..., :-1]], axis=-1)
    flat = low * (np.minimum(start, limit) - np.minimum(before, limit))
    width = np.minimum(end, limit) - np.minimum(start, limit)
    share = np.divide(width, end - start, out=np.zeros_like(width), where=end > start)
    across = width * (low + (overlap - low) * share / 2)
    rest = overlap[..., -1] * (limit - np.minimum(end[..., -1], limit))
    return np.asarray(((flat + across).sum(axis=-1) + rest) / limit)


def ratio(numerator: Any, denominator: Any) -> Array:
    """Division that gives NaN, silently, where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, dtype=float), denominator)
    nowhere: Array = np.full(numerator.shape, np.nan)
    return np.asarray(np.divide(numerator, denominator, out=nowhere, where=denominator != 0))
