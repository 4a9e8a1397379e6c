"""Nearest entries of a bank: the plain search by blocked matrix products, and two faster ones that find the same.

Source: the leading-axes bound is the partial distance search of Bei and Gray (1985) on principal axes, with the rest of
both vectors bounded by the difference of their norms. Where we differ: a block of similar queries shares its survivors,
so that what is left is a small matrix product instead of a loop over pairs.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from einops import rearrange, repeat
from torch import Tensor

SHARE, STEP = 0.8, 16
"""The leading axes of a bank hold at least this part of its energy; their number is a multiple of the step."""
BLOCK, CHUNK = 128, 2048
"""Queries that share their survivors, and queries prepared at once."""
ROUNDING = 1e-5
"""Bounds are trusted to this part of the squared norms: float32 sums of hundreds of terms, with room to spare."""


def nearest_entries(rows: Tensor, bank: Tensor, k: int, chunk: int) -> Tensor:
    """Indices of the k nearest bank entries of each row by blocked matrix products, in no particular order.

    Ranked by |y|^2 - 2xy around the bank's mean, so that a common offset costs no digits; entries whose distances
    differ by less than float32 rounding may stand in for each other.
    Shapes: (n, d), (m, d) -> (n, k) int64. Memory: ``chunk`` x ``chunk`` and the bank.
    """
    centre = bank.mean(dim=0)
    centred = bank - centre
    halves = centred.square().sum(dim=1) / 2
    found = []
    for block in torch.split(rows, chunk):
        queries = block - centre
        best = torch.empty(len(block), 0, device=rows.device)
        indices = torch.empty(len(block), 0, dtype=torch.int64, device=rows.device)
        for first in range(0, len(bank), chunk):
            some = slice(first, first + chunk)
            near, at = _smallest(torch.addmm(halves[some], queries, centred[some].T, alpha=-1), k)
            best, indices = torch.cat([best, near], dim=1), torch.cat([indices, at + first], dim=1)
            best, at = _smallest(best, k)
            indices = indices.gather(1, at)
        found.append(indices)
    return torch.cat(found)


def _smallest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if k == 1:  # several times as fast as topk
        near, at = values.min(dim=1, keepdim=True)
    else:
        near, at = values.topk(min(k, values.shape[1]), dim=1, largest=False, sorted=False)
    return near, at


class LeadingAxes:
    """The nearest entry of each query, measuring in full only what a bound on the leading axes leaves.

    With a and r the parts of a vector on the bank's leading principal axes and on the rest, |x - y|^2 is at least
    |x_a - y_a|^2 + (|x_r| - |y_r|)^2: one matrix product over few axes bounds every distance from below. A block of
    queries then measures those entries that could be nearest to any of them. A query's own limit is first guessed (its
    smallest bound and the rest that an unrelated entry would add); the few whose entry is farther than the guess are
    searched the plain way, so that no guess can change the answer.

    Equals `nearest_entries` with k = 1 (tests/heads/test_nearest.py). The bank lies around its mean, as there.
    """

    def __init__(self, bank: Tensor) -> None:
        self.bank = bank
        self.centre = bank.mean(dim=0)
        self.centred = bank - self.centre
        squares = self.centred.square().sum(dim=1)
        self.halves = squares / 2
        values, vectors = torch.linalg.eigh((self.centred.T @ self.centred).double())
        energy = values.flip(0).clamp_min(0).cumsum(0)
        needed = int((energy < SHARE * energy[-1]).sum()) + 1
        self.count = -(-needed // STEP) * STEP
        self.axes = vectors.flip(1)[:, : self.count].to(bank)
        leading = self.centred @ self.axes
        rest = _rest(squares, leading)
        self.spread = float(2 * rest.square().mean().sqrt())
        self.bounds = torch.cat([-2 * leading, -2 * rest, squares[:, None]], dim=1).T.contiguous()
        self.margin = ROUNDING * float(squares.max())

    @property
    def pays(self) -> bool:
        """Whether bounds save work: enough entries, and few enough axes that hold nearly all."""
        return len(self.bank) >= 2 * BLOCK and 2 * self.count <= self.bank.shape[1]

    def __call__(self, rows: Tensor, order: Tensor) -> Tensor:
        """Shapes: (n, d), (n,) the rows' numbers with similar rows together -> (n, 1) int64."""
        entries = torch.empty(len(rows), 1, dtype=torch.int64, device=rows.device)
        for some in torch.split(order, CHUNK):
            queries = rows.index_select(0, some) - self.centre
            squares = torch.linalg.vector_norm(queries, dim=1).square()
            leading = queries @ self.axes
            rest = _rest(squares, leading)
            bounded = torch.cat([leading, rest, torch.ones_like(rest)], dim=1)
            guess = rest[:, 0] * self.spread + self.margin
            parts = zip(*(torch.split(value, BLOCK) for value in (bounded, queries, guess)), strict=True)
            found = [self._block(*part) for part in parts]
            entries[some, 0] = torch.cat([at for at, _ in found])
            far = torch.cat([excess for _, excess in found]) > -(ROUNDING * squares + self.margin)
            entries[some[far]] = nearest_entries(rows[some[far]], self.bank, 1, CHUNK)
        return entries

    def _block(self, bounded: Tensor, queries: Tensor, guess: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest entries within the guessed limits, and by how much their squared distances exceed these.

        Shapes: (n, count + 2), (n, d), (n,) -> (n,), (n,). Bounds and limits leave out the query's |x|^2.
        """
        bounds = bounded @ self.bounds
        limits = bounds.amin(dim=1) + guess
        some = ((bounds - limits[:, None]).amin(dim=0) <= 0).nonzero()[:, 0]
        products = torch.addmm(self.halves[some], queries, self.centred.index_select(0, some).T, alpha=-1)
        nearest, at = products.min(dim=1)
        return some[at], 2 * nearest - limits


def _rest(squares: Tensor, leading: Tensor) -> Tensor:
    """What the leading axes leave of the norms. Shapes: (n,), (n, p) -> (n, 1)."""
    return (squares - leading.square().sum(dim=1)).clamp_min(0).sqrt()[:, None]


@lru_cache(maxsize=32)
def tiled(b: int, h: int, w: int) -> Tensor:
    """The numbers of the rows of (b h w), ordered by square tiles of about `BLOCK` positions over all images.

    >>> tiled(64, 1, 3)[:4]
    tensor([0, 3, 6, 9])
    """
    side = max(1, round((BLOCK / b) ** 0.5))
    tile = repeat(torch.arange(h) // side * w, "h -> b h w", b=b, w=w) + torch.arange(w) // side
    order: Tensor = rearrange(tile, "b h w -> (b h w)").argsort(stable=True)
    return order


def faiss_nearest(rows: Tensor, bank: Tensor, k: int) -> Tensor:
    """`nearest_entries` by faiss, on the CPU, around the bank's mean as there."""
    import faiss

    centre = bank.mean(dim=0)
    queries, entries = ((value - centre).cpu().contiguous().numpy() for value in (rows, bank))
    _, found = faiss.knn(queries, entries, k)
    return torch.from_numpy(found).to(rows.device)


def exact_distances(rows: Tensor, bank: Tensor, entries: Tensor, chunk: int) -> Tensor:
    """Distances from the differences themselves: zero for a bank member, where the expanded square has only noise.

    Shapes: (n, d), (m, d), (n, k) -> (n, k).
    """
    return torch.cat(
        [
            (block.unsqueeze(1) - bank[some]).norm(dim=2)
            for block, some in zip(torch.split(rows, chunk), torch.split(entries, chunk), strict=True)
        ]
    )
