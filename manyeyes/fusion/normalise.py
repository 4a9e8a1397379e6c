"""Score normalisers: bring every head's scores to one scale, from scores of normal validation images alone.

Sources: z-score as in PUAD (arXiv 2402.15143); the quantile form of EfficientAD (arXiv 2303.14535); median and MAD from
robust statistics; the tail probability from conformal prediction, with an exponential tail beyond the data (peaks over
threshold, Pickands 1975). PatchCore's ensemble takes minimum and maximum of the TEST set: none of these does.

A head that gives every normal image the same score has no spread to measure; its scores are then only shifted.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from manyeyes.config import Config
from manyeyes.fusion.contract import ScoreNormaliser

ROUNDING = 1e-6
"""A spread below this part of the largest score is rounding, not spread."""

SMALLEST = 1e-20
"""Nor is less than this: dividing by it would make ordinary scores infinite."""

MAD_TO_STD = 1.4826
"""1 / the third quartile of the standard normal: makes the median absolute deviation a standard deviation."""


def quantiles(scores: Tensor, *at: float) -> tuple[float, ...]:
    """Linear quantiles of any number of scores; ``torch.quantile`` refuses more than 2^24.

    The probabilities are float64 even where the scores are not: their product with n needs the digits.
    """
    values = np.quantile(scores.detach().cpu().numpy(), np.array(at, dtype=np.float64))
    return tuple(float(value) for value in values)


def usable(spread: float, scores: Tensor) -> bool:
    """Whether a spread is more than the rounding of equal scores."""
    return spread > max(ROUNDING * float(scores.abs().max()), SMALLEST)


class Affine(ScoreNormaliser):
    """(score - location) / scale; a kind says what the two are. Strictly increasing up to rounding."""

    location_: Tensor
    scale_: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.declare("location_", "scale_")

    @abstractmethod
    def _measure(self, scores: Tensor) -> tuple[float, float]:
        """Location and scale of (n,) scores; a scale of zero if there is no spread."""

    def _fit(self, scores: Tensor) -> None:
        location, scale = self._measure(scores)
        self.location_ = torch.tensor(location, device=scores.device)
        self.scale_ = torch.tensor(scale if usable(scale, scores) else 1.0, device=scores.device)

    def _transform(self, scores: Tensor) -> Tensor:
        return (scores - self.location_) / self.scale_


class ZScore(Affine):
    """Mean 0, standard deviation (n - 1) 1 on normals. One image alone is only shifted to 0."""

    def _measure(self, scores: Tensor) -> tuple[float, float]:
        values = scores.double()
        return float(values.mean()), float(values.std()) if len(values) > 1 else 0.0


class Robust(Affine):
    """Median 0, median absolute deviation * 1.4826 1 on normals; the standard deviation where that is zero."""

    def _measure(self, scores: Tensor) -> tuple[float, float]:
        (median,) = quantiles(scores, 0.5)
        scale = MAD_TO_STD * quantiles((scores - median).abs(), 0.5)[0]
        if not usable(scale, scores) and len(scores) > 1:
            scale = float(scores.double().std())
        return median, scale


class MinMax(Affine):
    """Smallest normal score 0, largest 1; not clipped, so that defects stay ranked."""

    def _measure(self, scores: Tensor) -> tuple[float, float]:
        low, high = float(scores.min()), float(scores.max())
        return low, high - low


class Quantile(Affine):
    """EfficientAD's: 0 at the lower quantile of normal scores, 0.1 at the upper. Any number of pixels."""

    def __init__(self, config: QuantileConfig) -> None:
        super().__init__()
        self.config = config

    def _measure(self, scores: Tensor) -> tuple[float, float]:
        low, high = quantiles(scores, self.config.low, self.config.high)
        return low, 10 * (high - low)


class Tail(ScoreNormaliser):
    """-log10 of the part of normal images that score as high, strictly increasing.

    At a normal score it is -log10(#{normals >= score} / (n + 1)), linear in between. Beyond the largest the probability
    falls exponentially, by the mean excess over the 0.9 quantile of normals; below the smallest it rises to one.
    Keeps the normal scores themselves, at most `KNOTS` of them.
    """

    KNOTS = 16384
    knots_: Tensor
    values_: Tensor
    excess_: Tensor

    def __init__(self, config: TailConfig) -> None:
        super().__init__()
        self.config = config
        self.declare("knots_", "values_", "excess_")

    def _fit(self, scores: Tensor) -> None:
        ordered = np.sort(scores.cpu().numpy().astype(np.float64))
        n = len(ordered)
        knots, first = np.unique(ordered, return_index=True)
        if len(knots) > self.KNOTS:
            # Dense where it matters: ranks counted from the top, spaced evenly in their logarithm.
            ranks = np.unique(np.geomspace(1, len(knots), self.KNOTS).astype(int))
            knots, first = knots[len(knots) - ranks[::-1]], first[len(knots) - ranks[::-1]]
        values = -np.log10((n - first) / (n + 1))
        threshold = np.quantile(ordered, self.config.threshold)
        over = ordered[ordered > threshold] - threshold
        excess = float(over.mean()) if len(over) else 0.0
        if not usable(excess, scores):
            excess = float(ordered.std())
        self.knots_ = torch.from_numpy(knots).float().to(scores.device)
        self.values_ = torch.from_numpy(values).float().to(scores.device)
        self.excess_ = torch.tensor(excess if usable(excess, scores) else 1.0, device=scores.device)

    def _transform(self, scores: Tensor) -> Tensor:
        knots, values = self.knots_.to(scores.dtype), self.values_.to(scores.dtype)
        right = torch.searchsorted(knots, scores.contiguous()).clamp(1, max(len(knots) - 1, 1))
        left = right - 1
        right = right.clamp_max(len(knots) - 1)
        step = (knots[right] - knots[left]).clamp_min(torch.finfo(scores.dtype).tiny)
        inside = values[left] + (values[right] - values[left]) * ((scores - knots[left]) / step).clamp(0, 1)
        above = (scores - knots[-1]).clamp_min(0) / (self.excess_ * math.log(10))
        below = torch.exp((scores - knots[0]).clamp_max(0) / self.excess_)
        return inside * below + above


class ZScoreConfig(Config):
    """Mean and standard deviation. See `ZScore`."""

    kind: Literal["zscore"] = "zscore"

    def build(self) -> ZScore:
        return ZScore()


class RobustConfig(Config):
    """Median and median absolute deviation. See `Robust`."""

    kind: Literal["robust"] = "robust"

    def build(self) -> Robust:
        return Robust()


class MinMaxConfig(Config):
    """Smallest and largest normal score. See `MinMax`."""

    kind: Literal["minmax"] = "minmax"

    def build(self) -> MinMax:
        return MinMax()


class QuantileConfig(Config):
    """Two quantiles, as EfficientAD's maps. See `Quantile`."""

    kind: Literal["quantile"] = "quantile"
    low: float = Field(0.9, ge=0, lt=1, description="quantile of normal scores that becomes 0")
    high: float = Field(0.995, gt=0, le=1, description="quantile of normal scores that becomes 0.1")

    @model_validator(mode="after")
    def _ordered(self) -> QuantileConfig:
        if self.low >= self.high:
            raise ValueError(f"low must be under high, got {self.low} and {self.high}")
        return self

    def build(self) -> Quantile:
        return Quantile(self)


class TailConfig(Config):
    """-log10 of the tail probability among normals. See `Tail`."""

    kind: Literal["tail"] = "tail"
    threshold: float = Field(0.9, gt=0, lt=1, description="the tail beyond the data is measured over this quantile")

    def build(self) -> Tail:
        return Tail(self)


NormaliserConfig = Annotated[
    ZScoreConfig | RobustConfig | MinMaxConfig | QuantileConfig | TailConfig, Field(discriminator="kind")
]
