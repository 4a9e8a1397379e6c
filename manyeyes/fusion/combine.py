"""Combiners: the normalised scores of all heads become one score; higher is more anomalous.

Sources: sum and maximum as in classifier fusion (Kittler et al. 1998); Fisher's method (1925). Ours is the square of
the positive part: it keeps a defect that one head alone sees, where a sum drowns it among heads that see nothing. All
but the stacking kinds learn from normal images alone and never decrease when one head's score rises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from manyeyes.config import Config
from manyeyes.errors import ConfigError
from manyeyes.fusion.contract import Combiner
from manyeyes.fusion.normalise import quantiles
from manyeyes.fusion.stacking import StackingForestConfig, StackingLogisticConfig

BELOW = 1e-3
"""Slope of `PositiveSquare` under zero: images that no head finds unusual stay ranked."""


class Sum(Combiner):
    """Sum of all heads."""

    def _combine(self, scores: Tensor) -> Tensor:
        return scores.sum(dim=1)


class Mean(Combiner):
    """Mean of all heads: ranks as `Sum`, on the scale of one head."""

    def _combine(self, scores: Tensor) -> Tensor:
        return scores.mean(dim=1)


class Max(Combiner):
    """The most alarmed head decides."""

    def _combine(self, scores: Tensor) -> Tensor:
        return scores.amax(dim=1)


class Weighted(Combiner):
    """Weighted sum; the weights are the user's."""

    weights: Tensor

    def __init__(self, names: Sequence[str], weights: Sequence[float]) -> None:
        super().__init__(names)
        self.register_buffer("weights", torch.tensor(tuple(weights)), persistent=False)

    def _combine(self, scores: Tensor) -> Tensor:
        return (scores * self.weights).sum(dim=1)


class PositiveSquare(Combiner):
    """Weighted sum of max(z, 0)^2, and of a thousandth of z where it is negative, so that nothing ties at zero.

    For scores with mean 0 and standard deviation 1 on normals, such as those of the ``zscore`` normaliser.
    """

    weights: Tensor

    def __init__(self, names: Sequence[str], weights: Sequence[float]) -> None:
        super().__init__(names)
        self.register_buffer("weights", torch.tensor(tuple(weights)), persistent=False)

    def _combine(self, scores: Tensor) -> Tensor:
        return ((scores.clamp_min(0) ** 2 + BELOW * scores.clamp_max(0)) * self.weights).sum(dim=1)


class Vote(Combiner):
    """Part of the heads beyond (over, not at) a quantile of their own normal scores; ties go by the mean of all heads.

    Units: votes / k, plus less than 1 / k for the tie.
    """

    thresholds_: Tensor

    def __init__(self, names: Sequence[str], quantile: float) -> None:
        super().__init__(names)
        self.quantile = quantile
        self.declare("thresholds_")

    def _fit(self, scores: Tensor, labels: Tensor) -> None:
        columns = [quantiles(column, self.quantile)[0] for column in scores.T]
        self.thresholds_ = torch.tensor(columns, device=scores.device)

    def _combine(self, scores: Tensor) -> Tensor:
        votes = (scores > self.thresholds_).sum(dim=1)
        mean = scores.mean(dim=1)
        # In (0, 1), and slow to saturate, so that images far out stay ranked.
        tie = (1 + mean / (1 + mean.abs())) / 2
        return (votes + 0.999 * tie) / len(self.names)


class Fisher(Combiner):
    """Fisher's -2 sum of ln p: large where several heads find an image unlikely, or one finds it very unlikely."""

    def __init__(self, names: Sequence[str], scale: Literal["z", "tail"]) -> None:
        super().__init__(names)
        self.scale = scale

    def _combine(self, scores: Tensor) -> Tensor:
        if self.scale == "tail":
            log_p = -scores * torch.log(torch.tensor(10.0, dtype=scores.dtype))
        else:
            log_p = torch.special.log_ndtr(-scores)
        return -2 * log_p.sum(dim=1)


class SumConfig(Config):
    """See `Sum`."""

    kind: Literal["sum"] = "sum"

    def build(self, names: Sequence[str]) -> Sum:
        return Sum(names)


class MeanConfig(Config):
    """See `Mean`."""

    kind: Literal["mean"] = "mean"

    def build(self, names: Sequence[str]) -> Mean:
        return Mean(names)


class MaxConfig(Config):
    """See `Max`."""

    kind: Literal["max"] = "max"

    def build(self, names: Sequence[str]) -> Max:
        return Max(names)


Weights = dict[str, Annotated[float, Field(ge=0)]]


def require_known(weights: Weights, names: Sequence[str]) -> None:
    """For whoever knows all heads. Raises: ConfigError if a weight names none of them."""
    unknown = sorted(set(weights) - set(names))
    if unknown:
        raise ConfigError(f"combiner.weights: unknown heads {unknown}; allowed: {list(names)}")


def weights_of(weights: Weights, names: Sequence[str]) -> list[float]:
    """``names`` may be some of the heads only; where none of them weighs anything, all weigh the same."""
    found = [weights.get(name, 1.0) for name in names]
    return found if any(found) else [1.0] * len(found)


class WeightedConfig(Config):
    """See `Weighted`."""

    kind: Literal["weighted"] = "weighted"
    weights: Weights = Field(description="weight of each head by its name; heads that are not named weigh 1")

    def build(self, names: Sequence[str]) -> Weighted:
        return Weighted(names, weights_of(self.weights, names))


class PositiveSquareConfig(Config):
    """See `PositiveSquare`."""

    kind: Literal["positive_square"] = "positive_square"
    weights: Weights = Field({}, description="weight of each head by its name; heads that are not named weigh 1")

    def build(self, names: Sequence[str]) -> PositiveSquare:
        return PositiveSquare(names, weights_of(self.weights, names))


class VoteConfig(Config):
    """See `Vote`."""

    kind: Literal["vote"] = "vote"
    quantile: float = Field(0.95, gt=0, lt=1, description="a head votes beyond this quantile of its own normal scores")

    def build(self, names: Sequence[str]) -> Vote:
        return Vote(names, self.quantile)


class FisherConfig(Config):
    """See `Fisher`."""

    kind: Literal["fisher"] = "fisher"
    scale: Literal["z", "tail"] = Field(
        "z", description="what the scores are: z-scores of a normal distribution, or -log10 p of the tail normaliser"
    )

    def build(self, names: Sequence[str]) -> Fisher:
        return Fisher(names, self.scale)


CombinerConfig = Annotated[
    SumConfig
    | MeanConfig
    | MaxConfig
    | WeightedConfig
    | PositiveSquareConfig
    | VoteConfig
    | FisherConfig
    | StackingLogisticConfig
    | StackingForestConfig,
    Field(discriminator="kind"),
]
