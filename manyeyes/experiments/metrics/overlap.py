"""Per-region overlap: PRO and saturated PRO as one cumulative sum over region pixels.

sPRO of a region is min(covered area / saturation area, 1). Sorted by descending score, its first ``saturation``
pixels each add 1 / saturation and the others nothing, so that a region is described by that many scores.
PRO is sPRO with the saturation area equal to the region's area; there is no second implementation.
Source: Bergmann et al. 2022 (MVTec LOCO, sPRO); Bergmann et al. 2020 (PRO). Differs from the official evaluation in
taking every distinct score as a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from manyeyes.experiments.metrics.ranks import Array


@dataclass(frozen=True)
class RegionScores:
    """The highest ceil(saturation) scores of one region, in descending order; ``saturation`` is in pixels."""

    scores: Array
    saturation: float

    def weights(self) -> Array:
        """What each of its scores adds to the region's sPRO, (k,) float64; they sum to 1."""
        weights = np.full(len(self.scores), 1 / self.saturation)
        weights[-1] = 1 - (len(weights) - 1) / self.saturation
        return weights


def region_scores(scores: Array, saturation: float) -> RegionScores:
    """Describe a region by the scores of its pixels, (a,). The saturation area is at most the area, and above 0."""
    saturation = min(saturation, float(len(scores)))
    return RegionScores(np.sort(scores)[::-1][: math.ceil(saturation)].copy(), saturation)


def summed_overlap(thresholds: Array, regions: Sequence[RegionScores]) -> Array:
    """The regions' sPROs, summed, where scores >= threshold are covered.

    Shapes: descending thresholds (m,) -> (m,) float64. Divide by the number of regions for the mean sPRO.
    """
    if not regions or not len(thresholds):
        return np.zeros(len(thresholds))
    scores = np.concatenate([region.scores for region in regions])
    weights = np.concatenate([region.weights() for region in regions])
    # The first threshold, counted from the highest, that is <= the score.
    place = len(thresholds) - np.searchsorted(thresholds[::-1], scores, side="right")
    reached = place < len(thresholds)
    return np.cumsum(np.bincount(place[reached], weights[reached], minlength=len(thresholds)))
