"""A-contrario test: where do so many values of normal rarity come together that chance does not explain it?

Source: Desolneux, Moisan, Morel 2000 (number of false alarms); U-Flow (Tailanian, Pardo, Muse, arXiv 2211.12353,
section 3.4; facts from the paper only). Around every position a window counts the values above a quantile that normal
values exceed with probability 0.1. Were they independent, the count would be binomial; the probability of so many,
times the number of windows looked at, is the number of false alarms (NFA): windows with NFA < e are met at most e times
per normal picture on average, and no defect is needed to choose the threshold.
We differ: the quantile is that of every channel on held-out normal pictures instead of the chi-squared law's, which
trained flows do not keep on new pictures; and neighbouring values are not independent, so a count stands for fewer
trials: its variance on held-out normals over the binomial one says how many fewer. Both are no-ops on independent
standard normal values (tests/heads/test_a_contrario.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Annotated, Literal, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import AfterValidator, Field
from torch import Tensor

from manyeyes.config import Config
from manyeyes.errors import DataError
from manyeyes.fitted import Fitted
from manyeyes.maps import Grid, to_grid

SAMPLE = 256
"""Positions per picture and map from which the quantiles are taken, evenly spread."""
TINY = 1e-300
"""Probabilities end here, where double precision does."""


def _odd(side: int) -> int:
    if side < 1 or side % 2 == 0:
        raise ValueError(f"expected an odd side of a window, such as 3, got {side}")
    return side


class AContrarioConfig(Config):
    """A mask without a threshold to tune: what has fewer false alarms per picture than ``false_alarms``."""

    kind: Literal["a_contrario"] = "a_contrario"
    chance: float = Field(0.1, gt=0, lt=1, description="share of normal values that count as rare")
    windows: tuple[Annotated[int, AfterValidator(_odd)], ...] = Field(
        (1, 3, 5), min_length=1, description="sides of the windows, in positions of each map"
    )
    false_alarms: float = Field(
        1.0,
        gt=0,
        description="windows of a normal picture that may be marked, on average; the paper's log NFA < 0 is 1",
    )

    def build(self) -> AContrario:
        return AContrario(self)


class AContrario(Fitted):
    """log10 of the number of false alarms of every pixel, from several maps with several channels each.

    The maps hold values that grow with anomaly, such as the squares of a flow's latents, or anomaly maps as they are.
    Shapes: k x (b, c_i, h_i, w_i) -> (b, *grid). Raises: NotFittedError before ``fit``.
    """

    quantiles_: Tensor
    dispersion_: Tensor

    def __init__(self, config: AContrarioConfig) -> None:
        super().__init__()
        self.config = config
        self.declare("quantiles_", "dispersion_")

    @torch.no_grad()
    def fit(self, maps: Iterable[Sequence[Tensor]]) -> Self:
        """Learn from a re-iterable of maps of normal pictures that no head was fitted on, in two passes.

        Raises: DataError if there is no picture.
        """
        samples = [[_sample(value) for value in batch] for batch in maps]
        if not samples:
            raise DataError("a-contrario mask: expected at least one normal picture, got none")
        columns = [torch.cat(parts) for parts in zip(*samples, strict=True)]
        self.quantiles_ = torch.cat([_quantile(values, 1 - self.config.chance) for values in columns])
        totals, pictures = torch.zeros(len(columns), len(self.config.windows), dtype=torch.float64), 0
        for batch in maps:
            for row, (value, counts) in enumerate(zip(batch, self._counts(batch), strict=True)):
                for column, (side, count) in enumerate(zip(self.config.windows, counts, strict=True)):
                    totals[row, column] += dispersion(count, side, value.shape[1], self.config.chance) * len(value)
            pictures += len(batch[0])
        # Fewer trials than values, never more.
        self.dispersion_ = (totals / pictures).clamp(min=1).to(self.quantiles_.device)
        return self

    @torch.no_grad()
    def forward(self, maps: Sequence[Tensor], grid: Grid) -> Tensor:
        """The smallest log10 NFA of the windows around a pixel, over all maps. Below 0 is one false alarm a picture."""
        self.require_fit()
        tests = len(self.config.windows) * sum(value.shape[2] * value.shape[3] for value in maps)
        lowest = []
        for value, counts, spreads in zip(maps, self._counts(maps), self.dispersion_.tolist(), strict=True):
            tails = [
                rarity(count, side, value.shape[1], self.config.chance, spread)
                for side, count, spread in zip(self.config.windows, counts, spreads, strict=True)
            ]
            lowest.append(to_grid(torch.stack(tails).amin(dim=0)[:, None], grid)[:, 0])
        return torch.stack(lowest).amin(dim=0) + math.log10(tests)

    def mask(self, maps: Sequence[Tensor], grid: Grid) -> Tensor:
        """Pixels with fewer false alarms than the config allows. Shapes: k x (b, c_i, h_i, w_i) -> (b, *grid) bool."""
        return cast(Tensor, self(maps, grid)) < math.log10(self.config.false_alarms)

    def _counts(self, maps: Sequence[Tensor]) -> list[list[Tensor]]:
        """Rare values around every position, by map and window. Shapes: -> (b, h_i, w_i) each."""
        quantiles = torch.split(self.quantiles_, [value.shape[1] for value in maps])
        rare = [
            (value > quantile[:, None, None]).sum(dim=1, keepdim=True).float()
            for value, quantile in zip(maps, quantiles, strict=True)
        ]
        return [[window_counts(value, side) for side in self.config.windows] for value in rare]


def window_counts(values: Tensor, side: int) -> Tensor:
    """Sum over the part inside the border of the window around every position. Shapes: (b, 1, h, w) -> (b, h, w)."""
    return F.avg_pool2d(values, side, stride=1, padding=side // 2, divisor_override=1)[:, 0]


def rarity(counts: Tensor, side: int, channels: int, chance: float, spread: float) -> Tensor:
    """log10 of the probability of so many rare values in each window. Shapes: (b, h, w) -> (b, h, w)."""
    inside = window_counts(counts.new_ones(1, 1, *counts.shape[1:]), side)[0]
    tails = torch.empty_like(counts)
    for positions in torch.unique(inside).tolist():
        here = inside == positions
        table = log10_tails(int(positions) * channels, chance, spread).to(counts.device)
        tails[:, here] = table[counts[:, here].long()]
    return tails


def dispersion(counts: Tensor, side: int, channels: int, chance: float) -> float:
    """Mean square of the counts about their expectation, over that of independent trials; where windows are whole.

    Shapes: (b, h, w) -> a number, near 1 for independent values.
    """
    reach, trials = side // 2, side**2 * channels
    if min(counts.shape[1:]) > 2 * reach:
        counts = counts[:, reach : counts.shape[1] - reach, reach : counts.shape[2] - reach]
    return float((counts.double() - trials * chance).square().mean()) / (trials * chance * (1 - chance))


@lru_cache(maxsize=256)
def log10_tails(values: int, chance: float, spread: float = 1.0) -> Tensor:
    """log10 of the probability of k or more rare ones among ``values`` normal values, which stand for values / spread
    independent ones: P(B(values / spread, chance) >= k / spread), by the incomplete beta function, which is the
    binomial tail and goes on between the whole numbers.

    Shapes: (values + 1,) float32, for k from 0 on. Equals scipy.stats.binom.sf(k - 1) at ``spread`` 1.
    """
    from scipy.special import betainc

    found = np.arange(1, values + 1) / spread
    tails = np.concatenate([[1.0], betainc(found, (values / spread - found) + 1, chance)])
    return torch.from_numpy(np.log10(np.maximum(tails, TINY))).float()


def _sample(values: Tensor) -> Tensor:
    """Some positions of every picture. Shapes: (b, c, h, w) -> (n, c) float32."""
    rows = rearrange(values, "b c h w -> b (h w) c")
    step = max(1, rows.shape[1] // SAMPLE)
    return rearrange(rows[:, ::step], "b n c -> (b n) c").float()


def _quantile(rows: Tensor, level: float) -> Tensor:
    """Of every column, the smallest value that at most a share of 1 - ``level`` exceed. Shapes: (n, c) -> (c,)."""
    rank = min(len(rows), math.ceil(level * len(rows)))
    return rows.kthvalue(max(1, rank), dim=0).values
