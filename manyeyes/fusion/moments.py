"""Sufficient statistics of a stream of feature vectors: all that an exact PCA needs, in one pass and O(c^2) memory.

Source: textbook shifted sums (Chan, Golub, LeVeque 1983). Each chunk's c x c product is one float32 matrix product of
samples centred on a fixed shift (the first chunk's mean), so that a mean far larger than the spread costs no digits;
chunks add up in float64. A double-precision product would take twice the time and give nothing that float32 features
hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from einops import rearrange
from torch import Tensor

from manyeyes.errors import DataError
from manyeyes.maps import Grid, MapSpec, to_grid, upper_gram

ROWS = 8192
"""Samples per matrix product: large enough that the product dominates, small enough that a chunk stays under 100 MB."""


class Moments:
    """Count, mean and second moment of (n, c) samples, kept on the device of the samples.

    Samples may lie in memory channel by channel. Equals the mean and covariance of all samples at once
    (tests/fusion/test_moments.py).
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.count = 0
        self._shift = torch.zeros(channels)
        self._sum = torch.zeros(channels, dtype=torch.float64)
        # Only the upper triangle counts.
        self._second = torch.zeros(channels, channels, dtype=torch.float64)

    def update(self, samples: Tensor, *, spend: bool = False) -> Self:
        """Add samples; ``spend`` allows them to be overwritten, which saves a copy.

        Shapes: (n, c). Raises: DataError if a value is not finite, or too large to be squared.
        """
        exact = samples if samples.dtype == torch.float64 else samples.float()
        for chunk in torch.split(exact.detach(), ROWS):
            if self.count == 0:
                self._move(chunk)
            centred = chunk.sub_(self._shift) if spend or exact is not samples else chunk - self._shift
            self._second += upper_gram(centred)
            # Of a chunk in its own type, which sums pairwise: float64 throughout takes a third of the product's time.
            self._sum += centred.sum(dim=0)
            self.count += len(chunk)
        # A value that is not finite, or whose square is not, stays on the diagonal.
        if not torch.isfinite(self._second.diagonal()).all():
            raise DataError(
                "expected finite features, got NaN, infinite or far too large ones; check the trunk's weights and input"
            )
        return self

    def merge(self, other: Moments) -> Self:
        """Add what ``other`` has seen. Equals one `Moments` updated with both streams."""
        if other.count == 0:
            return self
        if self.count == 0:
            self._shift, self._sum, self._second = other._shift, other._sum.clone(), other._second.clone()
        else:
            offset = other._shift.double() - self._shift.double()
            cross = torch.outer(other._sum, offset)
            self._second += other._second + cross + cross.T + other.count * torch.outer(offset, offset)
            self._sum += other._sum + other.count * offset
        self.count += other.count
        return self

    @property
    def mean(self) -> Tensor:
        """Shapes: (c,) float64. Raises: DataError if nothing was seen."""
        self._require_samples()
        return self._shift.double() + self._sum / self.count

    def covariance(self) -> Tensor:
        """Unbiased (n - 1), as NumPy and scikit-learn; zero for one sample.

        Shapes: (c, c) float64, symmetric. Raises: DataError if nothing was seen.
        """
        self._require_samples()
        scatter = self._second - torch.outer(self._sum, self._sum / self.count)
        return (scatter.triu() + scatter.triu(1).T) / max(self.count - 1, 1)

    def _require_samples(self) -> None:
        if self.count == 0:
            raise DataError("expected features of normal images to learn from, got none; supply at least one image")

    def _move(self, chunk: Tensor) -> None:
        self._shift = chunk.double().mean(dim=0).to(chunk.dtype)
        self._sum = self._sum.to(chunk.device)
        self._second = self._second.to(chunk.device)


def positions(maps: tuple[Tensor, ...], grid: Grid) -> Iterator[Tensor]:
    """Every position of maps resized to ``grid`` and concatenated is one sample; a few images at a time.

    Shapes: k x (b, c_i, h_i, w_i) -> chunks of (n, sum of c_i), in all b * h * w samples. No chunk shares memory with
    the maps or with another chunk.
    """
    images = max(1, ROWS // (grid[0] * grid[1]))
    for start in range(0, len(maps[0]), images):
        # Channels last, as they come from the store: resizing is many times faster so.
        few = [value[start : start + images].contiguous(memory_format=torch.channels_last) for value in maps]
        samples = few[0].new_empty(len(few[0]), *grid, sum(value.shape[1] for value in few))
        for value, place in zip(few, torch.split(samples, [value.shape[1] for value in few], dim=-1), strict=True):
            place.copy_(rearrange(to_grid(value, grid), "b c h w -> b h w c"))
        yield samples.flatten(0, 2)


@dataclass(frozen=True)
class Wanted:
    """Moments of these maps, side by side on this grid."""

    specs: tuple[MapSpec, ...]
    grid: Grid


class KnownMoments:
    """Moments that blocks fitted on the same pictures share: a member's own block and the fused one ask for the same.

    Equals taking them anew, to the bit, where the pictures come in the same batches (tests/fusion/test_moments.py).
    """

    def __init__(self) -> None:
        self._known: dict[Wanted, Moments] = {}

    def take(self, wanted: Mapping[Wanted, Sequence[int]], batches: Iterable[tuple[Tensor, ...]]) -> list[Moments]:
        """Moments of what is wanted, each with the places of its maps in the batches.

        The batches are read once for all that is not known yet, or not at all. Nothing is remembered of a stream that
        breaks off. Raises: DataError if a value is not finite.
        """
        found = {each: Moments(sum(spec.channels for spec in each.specs)) for each in wanted if each not in self._known}
        for maps in batches if found else ():
            for each, moments in found.items():
                for chunk in positions(tuple(maps[place] for place in wanted[each]), each.grid):
                    moments.update(chunk, spend=True)
        self._known |= found
        return [self._known[each] for each in wanted]


def channel_variance(chunks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel in one pass and O(c) memory, for blocks that need no covariance.

    Shapes: chunks of (n, c) -> (c,), (c,), both float64; variance with n - 1, zero for one sample.
    Raises: DataError if there is no sample or a value is not finite.
    """
    count, mean, scatter = 0, torch.zeros(()), torch.zeros(())
    for chunk in chunks:
        variance, centre = torch.var_mean(chunk.double(), dim=0, correction=0)
        if not torch.isfinite(variance).all():
            raise DataError("expected finite features, got NaN or infinite ones; check the trunk's weights and input")
        new = len(chunk)
        if count == 0:
            mean, scatter = torch.zeros_like(centre), torch.zeros_like(variance)
        offset = centre - mean
        mean = mean + offset * (new / (count + new))
        scatter = scatter + variance * new + offset**2 * (count * new / (count + new))
        count += new
    if count == 0:
        raise DataError("expected features of normal images to learn from, got none; supply at least one image")
    return mean, scatter / max(count - 1, 1)
