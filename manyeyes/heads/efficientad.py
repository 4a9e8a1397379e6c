"""EfficientAD's own head: its local and global maps, each on the scale of good parts, averaged.

Source: Batzner, Heckler, Koenig, WACV 2024, arXiv 2303.14535, section 3.3: 0.1 (m - q_0.9) / (q_0.995 - q_0.9), the
quantiles over all pixels of validation normals; the image score is the maximum.
Where we differ: quantiles from a regular subsample where there are more than two million pixels, and on the map's own
grid instead of the picture's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from manyeyes.config import Config
from manyeyes.errors import DataError, ShapeError
from manyeyes.heads.contract import Pyramid, PyramidHead, unseen
from manyeyes.heads.thinned import Thinned
from manyeyes.maps import MapSpec, check_maps
from manyeyes.progress import Advance

MOST = 1 << 21
UNIT = 0.1
"""Height of a normalised map at its higher quantile."""


class EfficientAdHeadConfig(Config):
    """Averages maps of one channel that already are anomaly maps, such as EfficientAD's local and global."""

    reads: ClassVar[Literal["pyramid"]] = "pyramid"
    kind: Literal["efficientad"] = "efficientad"
    quantiles: tuple[float, float] = Field((0.9, 0.995), description="of good pixels; they become 0 and 0.1")

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.quantiles
        if not 0 <= low < high <= 1:
            raise ValueError(f"quantiles: expected two numbers 0 <= low < high <= 1, got {list(self.quantiles)}")
        return self

    def build(self, specs: tuple[MapSpec, ...]) -> EfficientAdHead:
        """Raises: ShapeError unless all maps have one channel and one grid."""
        return EfficientAdHead(self, specs)


class EfficientAdHead(PyramidHead):
    """Mean of the quantile-normalised maps; the image score is the maximum.

    Shapes: k x (b, 1, h, w) -> (b, h, w), (b,). Units: 0.1 from the lower to the higher quantile of good pixels.
    Raises: DataError if there is no image or a value is not finite; NotFittedError before ``fit``.
    """

    low_: Tensor
    high_: Tensor

    def __init__(self, config: EfficientAdHeadConfig, specs: tuple[MapSpec, ...]) -> None:
        super().__init__()
        if any(spec.channels != 1 for spec in specs) or len({spec.grid for spec in specs}) != 1:
            found = ", ".join(f"{spec.name} ({spec.channels} x {spec.grid[0]} x {spec.grid[1]})" for spec in specs)
            raise ShapeError(f"head efficientad: expected maps of 1 channel on one grid (local, global), got {found}")
        self.config, self.specs = config, specs
        self.declare("low_", "high_")

    def fit(
        self,
        pyramids: Iterable[Pyramid],
        seed: int,
        advance: Advance = unseen,
        checkpoint: Path | None = None,
    ) -> Self:
        """Take the quantiles of these pictures; `calibrate` takes better ones. Nothing is random."""
        del seed, advance, checkpoint
        return self.calibrate(pyramids)

    @torch.no_grad()
    def calibrate(self, pyramids: Iterable[Pyramid]) -> Self:
        """Take the quantiles of pictures that nothing was trained on."""
        pixels = self._thinned(pyramids)
        at = torch.tensor(self.config.quantiles, device=pixels[0].device)
        self.low_, self.high_ = torch.stack([torch.quantile(values[:, 0], at) for values in pixels], dim=1)
        return self

    @torch.no_grad()
    def left_out(self, pyramids: Iterable[Pyramid], members: Tensor) -> Tensor:
        scales = []
        for pixels in self._thinned(pyramids):
            values, order = pixels[:, 0].sort()
            groups = members.to(values.device)[pixels[order, 1].long()]
            others = (values[groups != group] for group in range(int(members.max()) + 1))
            scales.append(torch.stack([at_quantiles(part, self.config.quantiles) for part in others]))
        low, high = torch.stack(scales, dim=2).unbind(1)
        parts = []
        for batch in pyramids:
            maps = torch.cat(batch, dim=1).float()
            each = zip(low, high, strict=True)
            parts.append(torch.stack([scaled(maps, *limits).amax(dim=(1, 2)) for limits in each]))
        return torch.cat(parts, dim=1)

    def _thinned(self, pyramids: Iterable[Pyramid]) -> list[Tensor]:
        """See `thinned`, for each map."""
        return [thinned(batch[index] for batch in self._checked(pyramids)) for index in range(len(self.specs))]

    def _checked(self, pyramids: Iterable[Pyramid]) -> Iterator[Pyramid]:
        seen = 0
        for batch in pyramids:
            check_maps(batch, self.specs)
            finite = torch.cat(batch, dim=1).isfinite().flatten(1).all(dim=1)
            if not bool(finite.all()):
                number = seen + int(finite.logical_not().nonzero()[0])
                raise DataError(
                    f"head efficientad: maps of image {number} (counted from 0): expected finite values, got NaN or "
                    "infinity; look for a broken image or broken weights"
                )
            seen += len(finite)
            yield batch

    @torch.no_grad()
    def judge(self, maps: Pyramid) -> tuple[Tensor, Tensor]:
        self.require_fit()
        check_maps(maps, self.specs)
        anomaly_map = scaled(torch.cat(maps, dim=1).float(), self.low_, self.high_)
        return anomaly_map, anomaly_map.amax(dim=(1, 2))


def scaled(maps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Mean of the maps, each on its own scale. Shapes: (b, k, h, w), 2 x (k,) -> (b, h, w)."""
    # Equal quantiles, as of constant maps, leave the map's own unit.
    span = torch.where(high > low, high - low, torch.ones_like(low))
    return (UNIT * (maps - low.view(-1, 1, 1)) / span.view(-1, 1, 1)).mean(dim=1)


def at_quantiles(values: Tensor, at: Sequence[float]) -> Tensor:
    """As torch.quantile, of values in ascending order. Shapes: (n,) -> (len(at),)."""
    places = torch.tensor([share * (len(values) - 1) for share in at], dtype=torch.float64, device=values.device)
    below = places.long()
    above = (below + 1).clamp(max=len(values) - 1)
    return torch.lerp(values[below], values[above], (places - below).to(values))


def thinned(batches: Iterable[Tensor]) -> Tensor:
    """All values, or a half, a quarter ... of them, evenly over the map, so that fewer than `MOST` are held.

    Shapes: (b, c, h, w) each -> (n, 2): value, number of its image counted from 0. Raises: DataError if there is none.
    """
    kept, images = Thinned(MOST), 0
    shuffling = torch.Generator().manual_seed(0)
    for batch in batches:
        maps = batch.float().flatten(1)
        # Each map in an order of its own, or every 64th value would be the left border of every row.
        orders = [torch.randperm(maps.shape[1], generator=shuffling) for _ in maps]
        values = maps.gather(1, torch.stack(orders).to(maps.device))
        # A float32 counts images exactly up to 16 million.
        numbers = torch.arange(images, images + len(maps), device=maps.device).float()
        kept.add(torch.stack([values, numbers[:, None].expand_as(values)], dim=2).flatten(0, 1))
        images += len(maps)
    if not kept.held:
        raise DataError("head efficientad: expected maps of at least one good image, got none")
    return kept.all()
