"""A fair sample of the positions of all images, drawn in one pass over a stream of embeddings.

Every position gets a random key from one seeded stream, and the positions with the smallest keys are kept. The
keys follow the order of the images alone, so the sample does not depend on how the images fall into batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from manyeyes.errors import DataError, ShapeError

COLUMN_BLOCK = 32


@dataclass(frozen=True)
class Positions:
    """Sampled positions in the order of the stream, and the number of those that they were drawn from.

    Shapes: ``values`` (n, d) float32.
    """

    values: Tensor
    seen: int


def sample_positions(embeddings: Iterable[Tensor], limit: int, seed: int, channels: int | None = None) -> Tensor:
    """At most ``limit`` positions of all images, drawn uniformly without replacement; all where there are fewer.

    Shapes: m x (b, d, h, w) -> (n, d) float32, in the order of the stream. Raises: as `draw_positions`.
    """
    return draw_positions(embeddings, limit, seed, channels).values


@torch.no_grad()
def draw_positions(embeddings: Iterable[Tensor], limit: int, seed: int, channels: int | None = None) -> Positions:
    """`sample_positions` with the number of all. Memory: the sample, for a moment twice as it grows, and one batch.

    Raises: DataError if there is no position or a value is not finite; ShapeError if a batch is no map, or d is not
            ``channels``, by default that of the first batch.
    """
    if limit < 1:
        raise DataError(f"sample of positions: expected a limit of at least 1, got {limit}")
    draws = np.random.default_rng(seed)
    keys, orders = np.empty(0), np.empty(0, np.int64)
    kept: Tensor | None = None
    seen = image_count = 0
    for batch in embeddings:
        channels = _check(batch, image_count, channels)
        rows = rearrange(batch, "b d h w -> (b h w) d")
        if kept is None:
            kept = torch.empty(0, channels, device=rows.device)
        if len(keys) < min(limit, seen + len(rows)):
            room = min(limit, max(2 * len(keys), seen + len(rows)))
            keys, orders = np.resize(keys, room), np.resize(orders, room)
            kept = torch.cat([kept, kept.new_empty(room - len(kept), channels)])
        new_keys = draws.random(len(rows))
        entering, slots = _exchange(keys[: min(seen, limit)], new_keys, limit)
        keys[slots] = new_keys[entering]
        orders[slots] = seen + entering
        kept[_indices(slots, kept)] = rows[_indices(entering, rows)].float()
        seen += len(rows)
        image_count += len(batch)
    if kept is None or not seen:
        raise DataError("expected embeddings of at least one normal image, got none; look at the training folder")
    order = np.argsort(orders[: min(seen, limit)])
    return Positions(_reordered(kept, _indices(order, kept)), seen)


def rows_of(embedding: Tensor, channels: int, name: str) -> Tensor:
    """The positions of a map, one after the other. Shapes: (b, d, h, w) -> (b h w, d).

    Raises: ShapeError naming the head if it is no map of ``channels``.
    """
    if embedding.ndim != 4 or embedding.shape[1] != channels:
        raise ShapeError(f"{name}: expected (b, {channels}, h, w), got {tuple(embedding.shape)}")
    return rearrange(embedding, "b d h w -> (b h w) d")


def _check(batch: Tensor, first_image: int, channels: int | None) -> int:
    if batch.ndim != 4 or (channels is not None and batch.shape[1] != channels):
        raise ShapeError(f"embeddings: expected (b, {channels or 'd'}, h, w), got {tuple(batch.shape)}")
    finite = batch.isfinite().flatten(1).all(dim=1)
    if not bool(finite.all()):
        image = first_image + int(finite.logical_not().nonzero()[0])
        raise DataError(
            f"embedding of training image {image} (counted from 0): expected finite values, got NaN or infinity; "
            "look for a broken image or broken weights"
        )
    return batch.shape[1]


def _exchange(keys: NDArray[Any], new_keys: NDArray[Any], limit: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Which new rows enter the sample, and their slots: free ones, and those of the rows that drop out."""
    filled, total = len(keys), len(keys) + len(new_keys)
    stays = np.ones(total, bool)
    if total > limit:
        stays[np.argpartition(np.concatenate([keys, new_keys]), limit - 1)[limit:]] = False
    slots = np.concatenate([np.flatnonzero(~stays[:filled]), np.arange(filled, min(limit, total))])
    return np.flatnonzero(stays[filled:]), slots


def _indices(values: NDArray[Any], beside: Tensor) -> Tensor:
    return torch.from_numpy(values).to(beside.device)


def _reordered(rows: Tensor, order: Tensor) -> Tensor:
    """The rows of a large matrix in another order; a few columns at a time, so that there is never a second one."""
    if len(order) < len(rows):
        return rows[order]
    for block in torch.split(rows, COLUMN_BLOCK, dim=1):
        block.copy_(block[order])
    return rows
