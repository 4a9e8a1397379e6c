"""A-contrario test: where do so many values of normal rarity come together that chance does not explain it?

Source: Desolneux, Moisan, Morel 2000 (number of false alarms); U-Flow (Tailanian, Pardo, Muse, arXiv 2211.12353,
section 3.4; facts from the paper only). Around every position a window counts the values above a quantile that normal
values exceed with a known chance. Were they independent, the count would be binomial, and the number of windows of a
normal picture that are at least as improbable is the number of false alarms (NFA): windows with NFA < e are met at most
e times per normal picture on average, and no defect is needed to choose the threshold.
We differ (docs/uflow.md):
- the NFA is not the probability times the number of windows, which is only a bound of it: a count moves in steps, so
  that most windows cannot be as improbable as that without being far more so;
- the quantiles are those of every channel on held-out normals, not the chi-squared law's, which flows do not keep;
- neighbouring values depend on each other, so a count stands for fewer trials: how many fewer is read off the variance
  and the tail of the counts on held-out normals. On independent standard normal values both change nothing;
- a second, rarer quantile is counted besides 0.9: a single smooth map is hardly ever improbable at 0.9;
- a mark ends where its significance falls below a share of its peak: windows that only touch a defect count too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import AfterValidator, Field
from scipy import ndimage
from torch import Tensor

from manyeyes.config import Config
from manyeyes.errors import DataError
from manyeyes.fitted import Fitted
from manyeyes.heads.thinned import Thinned
from manyeyes.maps import Grid, even_step, to_grid

SAMPLE = 256
"""Positions per picture and map from which the quantiles are taken, evenly spread."""
MOST = 1 << 17
"""Positions of all pictures that are held for each map at most."""
ENOUGH = 20
"""Windows of normal pictures that must reach a count before their share is taken for its probability."""
TINY = 1e-300
"""Probabilities end here, where double precision does."""


def _odd(side: int) -> int:
    if side < 1 or side % 2 == 0:
        raise ValueError(f"expected an odd side of a window, such as 3, got {side}")
    return side


class AContrarioConfig(Config):
    """A mask without a threshold to tune: what has fewer false alarms per picture than ``false_alarms``."""

    kind: Literal["a_contrario"] = "a_contrario"
    chances: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.1, 0.001), min_length=1, description="shares of normal values that count as rare, each counted by itself"
    )
    windows: tuple[Annotated[int, AfterValidator(_odd)], ...] = Field(
        (1, 3, 5),
        min_length=1,
        description="sides of the windows, in positions of each map; a single map needs 3 and 5",
    )
    false_alarms: float = Field(
        1.0,
        gt=0,
        description="windows of a normal picture that may be marked, on average; the paper's log NFA < 0 is 1",
    )
    edge: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="a mark ends where its significance falls below this share of its peak; 0: nowhere",
    )

    def build(self) -> AContrario:
        return AContrario(self)


class Windows(NamedTuple):
    """``number`` windows of ``values`` values each, one of which is rare with ``chance``; see `log10_tails`."""

    number: int
    values: int
    chance: float
    spread: float


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
        samples: list[Thinned] = []
        for batch in maps:
            samples = samples or [Thinned(MOST) for _ in batch]
            for kept, value in zip(samples, batch, strict=True):
                kept.add(_sample(value))
        if not samples:
            raise DataError("a-contrario mask: expected at least one normal picture, got none")
        columns = [kept.all() for kept in samples]
        self.quantiles_ = torch.stack(
            [torch.cat([_quantile(values, 1 - chance) for values in columns]) for chance in self.config.chances]
        )
        histograms: dict[tuple[int, ...], Tensor] = {}
        for batch in maps:
            for place, side, channels, counts in self._counts(batch):
                found = histogram(counts, side, channels)
                histograms[place] = histograms.get(place, torch.zeros_like(found)) + found
        spreads = [dispersion(found.cpu(), self.config.chances[level]) for (level, *_), found in histograms.items()]
        shape = (len(self.config.chances), len(columns), len(self.config.windows))
        self.dispersion_ = torch.tensor(spreads, dtype=torch.float64, device=self.quantiles_.device).reshape(shape)
        return self

    @torch.no_grad()
    def forward(self, maps: Sequence[Tensor], grid: Grid) -> Tensor:
        """The smallest log10 NFA of the windows around a pixel, over all maps. Below 0 is one false alarm a picture."""
        self.require_fit()
        lowest: list[Tensor | None] = [None] * len(maps)
        for row, found in self.judged(maps):
            known = lowest[row]
            lowest[row] = found if known is None else torch.minimum(known, found)
        drawn = [to_grid(found[:, None], grid)[:, 0] for found in lowest if found is not None]
        return torch.stack(drawn).amin(dim=0)

    @torch.no_grad()
    def judged(self, maps: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
        """log10 NFA of every window, per chance, map and side: the map's number, and (b, h_i, w_i) for its windows."""
        spreads = self.dispersion_.tolist()
        rows: list[tuple[int, Tensor]] = []
        windows: list[Windows] = []
        for (level, row, column), side, channels, counts in self._counts(maps):
            chance, spread = self.config.chances[level], spreads[level][row][column]
            rows.append((row, rarity(counts, side, channels, chance, spread)))
            sizes = window_sizes(counts.shape[1], counts.shape[2], side)
            windows += [Windows(number, positions * channels, chance, spread) for positions, number in sizes]
        probabilities, alarms = (value.to(self.quantiles_.device) for value in false_alarms(tuple(windows)))
        for row, tails in rows:
            yield row, alarms[torch.searchsorted(probabilities, tails)]

    def mask(self, maps: Sequence[Tensor], grid: Grid) -> Tensor:
        """Pixels with fewer false alarms than the config allows, without the skirts of their marks.

        Shapes: k x (b, c_i, h_i, w_i) -> (b, *grid) bool.
        """
        significance = math.log10(self.config.false_alarms) - cast(Tensor, self(maps, grid))
        return trimmed(significance, self.config.edge)

    def _counts(self, maps: Sequence[Tensor]) -> Iterator[tuple[tuple[int, int, int], int, int, Tensor]]:
        """Rare values around every position: (chance, map, window) by their numbers, side, channels, (b, h_i, w_i)."""
        for level, row_of_quantiles in enumerate(self.quantiles_):
            quantiles = torch.split(row_of_quantiles, [value.shape[1] for value in maps])
            for row, (value, quantile) in enumerate(zip(maps, quantiles, strict=True)):
                rare = (value > quantile[:, None, None]).sum(dim=1, keepdim=True).float()
                for column, side in enumerate(self.config.windows):
                    yield (level, row, column), side, value.shape[1], window_counts(rare, side)


@lru_cache(maxsize=64)
def false_alarms(windows: tuple[Windows, ...]) -> tuple[Tensor, Tensor]:
    """How many windows of a normal picture are on average at least as improbable as one that is met.

    Returns: log10 of the probabilities that these windows can have, ascending, and of the number for each. Never more
    than the probability times the number of windows. Shapes: (n,), (n,) float32.
    """
    tables = [log10_tails(each.values, each.chance, each.spread) for each in windows]
    met = torch.unique(torch.cat(tables))
    total = torch.zeros(len(met), dtype=torch.float64)
    for each, table in zip(windows, tables, strict=True):
        steps = torch.unique(table)  # what so many values can have
        reached = torch.searchsorted(steps, met, right=True) - 1  # the largest of these that is not above
        total += each.number * torch.where(reached < 0, 0.0, 10.0 ** steps[reached.clamp_min(0)].double())
    return met, total.log10().float()


def trimmed(significance: Tensor, edge: float) -> Tensor:
    """Where it is above 0, without what lies below ``edge`` times the peak of its 8-connected component.

    Shapes: (b, h, w) -> (b, h, w) bool.
    """
    mask = significance > 0
    if not edge or not bool(mask.any()):
        return mask
    kept = np.zeros(mask.shape, dtype=bool)
    for index, (values, marked) in enumerate(zip(significance.cpu().numpy(), mask.cpu().numpy(), strict=True)):
        labels, count = ndimage.label(marked, structure=np.ones((3, 3)))
        if count:
            peaks = np.concatenate([[np.inf], ndimage.maximum(values, labels, np.arange(1, count + 1))])
            kept[index] = values >= edge * peaks[labels]
    return torch.from_numpy(kept).to(mask.device)


def window_counts(values: Tensor, side: int) -> Tensor:
    """Sum over the part inside the border of the window around every position. Shapes: (b, 1, h, w) -> (b, h, w)."""
    return F.avg_pool2d(values, side, stride=1, padding=side // 2, divisor_override=1)[:, 0]


@lru_cache(maxsize=64)
def window_sizes(h: int, w: int, side: int) -> tuple[tuple[int, int], ...]:
    """How many positions of a window lie inside the border, and how many windows of a map of (h, w) that holds for.

    >>> window_sizes(3, 3, 3)
    ((4, 4), (6, 4), (9, 1))
    """
    found = torch.unique(window_counts(torch.ones(1, 1, h, w), side), return_counts=True)
    return tuple((int(positions), int(number)) for positions, number in zip(*found, strict=True))


def rarity(counts: Tensor, side: int, channels: int, chance: float, spread: float) -> Tensor:
    """log10 of the probability of so many rare values in each window. Shapes: (b, h, w) -> (b, h, w)."""
    inside = window_counts(counts.new_ones(1, 1, *counts.shape[1:]), side)[0]
    tails = torch.empty_like(counts)
    for positions in torch.unique(inside).tolist():
        here = inside == positions
        table = log10_tails(int(positions) * channels, chance, spread).to(counts.device)
        tails[:, here] = table[counts[:, here].long()]
    return tails


def histogram(counts: Tensor, side: int, channels: int) -> Tensor:
    """How often each count is met in whole windows. Shapes: (b, h, w) -> (side^2 * channels + 1,) int64."""
    reach = side // 2
    if min(counts.shape[1:]) > 2 * reach:
        counts = counts[:, reach : counts.shape[1] - reach, reach : counts.shape[2] - reach]
    return torch.bincount(counts.flatten().long(), minlength=side**2 * channels + 1)


def dispersion(histogram: Tensor, chance: float) -> float:
    """How many values stand for one independent trial, so that neither variance nor tail of the counts is too large.

    Never below 1, and near 1 for independent values. The variance is the mean square about the expected count. The tail
    is looked at where `ENOUGH` windows are left: if they are more than twice as many as its probability says, their
    share becomes the probability.
    Shapes: (trials + 1,) -> a number.
    """
    trials = len(histogram) - 1
    weights, expected = histogram.double() / histogram.sum(), trials * chance
    square = (torch.arange(trials + 1, dtype=torch.float64) - expected).square()
    low = max(1.0, float(square @ weights) / (expected * (1 - chance)))
    reached = histogram.flip(0).cumsum(0).flip(0)
    count = int((reached >= min(ENOUGH, int(reached[0]))).nonzero().amax())
    share = float(reached[count]) / float(reached[0])
    if count <= expected or count == trials or 2 * tail(count, trials, chance, low) >= share:
        return low
    high = float(trials)
    for _ in range(30):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if tail(count, trials, chance, middle) < share else (low, middle)
    return low


def tail(count: float, values: int, chance: float, spread: float) -> float:
    """The probability of `log10_tails` for one count."""
    from scipy.special import betainc

    return float(betainc(count / spread, (values - count) / spread + 1, chance))


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
    step = even_step(rows.shape[1], SAMPLE, values.shape[3])
    # A copy: of a single picture, a view would keep the whole map.
    return rearrange(rows[:, ::step], "b n c -> (b n) c").float().clone()


def _quantile(rows: Tensor, level: float) -> Tensor:
    """Of every column, the value that a new one exceeds with probability 1 - ``level`` at most, where n values can say
    so. Shapes: (n, c) -> (c,)."""
    rank = min(len(rows), math.ceil(level * (len(rows) + 1) - 1e-9))
    return rows.kthvalue(max(1, rank), dim=0).values
