"""Greedy k-centre coreset: the points that cover all others with the smallest radius a greedy choice can reach.

Source: PatchCore (Roth et al., arXiv 2106.08265, algorithm 1); farthest-point rule of Gonzalez, 1985.
We differ: the choice is exact where the authors' is approximate (ten random anchors); the coordinates are the leading
principal axes where theirs are a random projection.

Why it is fast. A point's distance to the nearest pick only ever falls, so a point under some level cannot be picked
before the largest distance of all has come down to that level. Each stage therefore takes the far points, a small
matrix that stays in cache, and picks among them until their largest distance reaches the level of the rest; then the
rest catches up with all the new picks in one matrix product. No point is left out, so the picks are those of the plain
loop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from manyeyes.errors import DataError, ShapeError

AXES_ROWS = 65_536
BLOCK_ENTRIES = 1 << 21


@torch.no_grad()
def coreset_coordinates(features: Tensor, dimensions: int = 64) -> Tensor:
    """Coordinates on the leading principal axes, on which a coreset is chosen almost as well as on all channels.

    The axes come from at most 65,536 evenly spaced rows. Distances never grow: the axes are orthonormal.

    What it costs at most: let R be the covering radius on all channels of k greedy picks made on these coordinates, r
    theirs on the coordinates, G that of k exact greedy picks on all channels, and t the largest norm that the axes left
    out hold of a centred row. Two rows differ there by at most 2t, so R^2 <= r^2 + 4 t^2. Greedy picks cover with at
    most twice the best radius of any k picks (Gonzalez), which shrinks under projection and is at most G on all
    channels: r <= 2 G. Together R <= 2 sqrt(G^2 + t^2) (tests/heads/test_coreset.py).

    Shapes: (n, d) -> (n, min(d, dimensions)) float32, centred. Equals sklearn PCA up to sign where n <= 65,536.
    """
    features = features.float()
    n, d = features.shape
    mean = features.mean(dim=0)
    if d <= dimensions:
        return features - mean
    axes = _leading_axes(features[:: -(-n // AXES_ROWS)] - mean, dimensions)
    return torch.addmm(-(mean @ axes), features, axes)


def _leading_axes(centred: Tensor, dimensions: int) -> Tensor:
    """Shapes: (n, d) -> (d, dimensions), by falling variance."""
    covariance = (centred.T @ centred).double() / len(centred)
    vectors: Tensor = torch.linalg.eigh(covariance).eigenvectors
    return vectors[:, -dimensions:].flip(1).to(centred)


@torch.no_grad()
def greedy_coreset(points: Tensor, count: int, seed: int, start: int | None = None) -> Tensor:
    """Pick ``count`` points, each the farthest from all picks before it; of equally far points the first.

    The first pick is ``start``, or drawn with ``seed``. Same picks as `plain_greedy_coreset`, up to float32 rounding.

    Shapes: (n, p) -> (count,) int64, distinct, in order of choice.
    Raises: DataError if there are fewer than ``count`` points or a value is not finite.
    """
    first = _first_pick(points, count, seed, start)
    # With the first pick as origin, the expanded square loses no digits to a common offset.
    coordinates = points.float() - points[first].float()
    rows, queries = _lifted(coordinates)
    n = len(points)
    distances = rows @ queries[first]
    distances[first] = -torch.inf
    picks = [first]
    far_count = max(min(n, 1024), n // 16)
    while len(picks) < count:
        level, far = _farthest(distances, far_count)
        fresh = far[_pick_among(rows[far], queries[far], distances[far], level, count - len(picks))]
        picks += fresh.tolist()
        if len(picks) < count:
            _catch_up(distances, rows, queries[fresh])
            distances[fresh] = -torch.inf
    return torch.tensor(picks, device=points.device)


def _lifted(coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and queries whose inner product is the squared distance: (x, |x|^2, 1) . (-2z, 1, |z|^2)."""
    squares = coordinates.square().sum(dim=1, keepdim=True)
    ones = torch.ones_like(squares)
    return torch.cat([coordinates, squares, ones], dim=1), torch.cat([-2 * coordinates, ones, squares], dim=1)


def _farthest(distances: Tensor, far_count: int) -> tuple[float, Tensor]:
    """The indices of the farthest points, ascending, and the level above which no other point lies."""
    values, far = distances.topk(far_count, sorted=False)
    level = values.min()
    if level == values.max():
        # All tie, perhaps with points left out: only the first of them all is certain.
        return float(level), distances.argmax().reshape(1)
    return float(level), far.sort().values


def _pick_among(rows: Tensor, queries: Tensor, distances: Tensor, level: float, limit: int) -> Tensor:
    """Plain greedy picks among a few far points while the farthest is above ``level``; at least one."""
    product = torch.empty_like(distances)
    picks: list[int] = []
    while len(picks) < limit:
        farthest = int(distances.argmax())
        if picks and not float(distances[farthest]) > level:
            break
        picks.append(farthest)
        torch.mv(rows, queries[farthest], out=product)
        torch.minimum(distances, product, out=distances)
        distances[farthest] = -torch.inf
    return torch.tensor(picks, device=rows.device)


def _catch_up(distances: Tensor, rows: Tensor, queries: Tensor) -> None:
    """Lower every point's squared distance to the nearest of some queries, in place."""
    for some in torch.split(queries, 256):
        size = max(1, BLOCK_ENTRIES // len(some))
        for block, nearest in zip(torch.split(rows, size), torch.split(distances, size), strict=True):
            torch.minimum(nearest, (block @ some.T).amin(dim=1), out=nearest)


def _first_pick(points: Tensor, count: int, seed: int, start: int | None) -> int:
    if points.ndim != 2:
        raise ShapeError(f"coreset points: expected (n, p), got {tuple(points.shape)}")
    n = len(points)
    if not 1 <= count <= n:
        raise DataError(f"coreset: expected 1 to {n} picks of {n} points, got {count}; lower the count or add images")
    if not bool(points.isfinite().all()):
        raise DataError("coreset: expected finite points, got NaN or infinity; look for broken images or weights")
    if start is None:
        return int(torch.randint(n, (), generator=torch.Generator().manual_seed(seed)))
    if not 0 <= start < n:
        raise DataError(f"coreset: expected a start from 0 to {n - 1}, got {start}")
    return start


@torch.no_grad()
def plain_greedy_coreset(points: Tensor, count: int, seed: int, start: int | None = None) -> Tensor:
    """The reference: one pass over all points per pick, in float64. Takes, gives and raises as `greedy_coreset`."""
    picks = [_first_pick(points, count, seed, start)]
    exact = points.double()
    distances = torch.full((len(points),), torch.inf, dtype=torch.float64, device=points.device)
    while True:
        distances = torch.minimum(distances, (exact - exact[picks[-1]]).square().sum(dim=1))
        distances[picks[-1]] = -torch.inf
        if len(picks) == count:
            return torch.tensor(picks, device=points.device)
        picks.append(int(distances.argmax()))


@torch.no_grad()
def covering_radius(points: Tensor, picks: Tensor) -> float:
    """The largest Euclidean distance from any point to its nearest pick.

    Shapes: (n, p), (k,) indices. Equals the largest row minimum of a float64 distance matrix.
    """
    exact = points.double()
    centres = exact[picks]
    size = max(1, BLOCK_ENTRIES // len(picks))
    nearest = [torch.cdist(block, centres).amin(dim=1).max() for block in torch.split(exact, size)]
    return float(torch.stack(nearest).max())
