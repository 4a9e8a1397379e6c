"""Compression of many negative scores with a bounded relative error of every count.

The scores of one image are sorted from the top and cut into blocks, each at most ``ERROR`` x 2 as long as all that
lies above it; a block is represented by its middle score and its length. Whatever the threshold, the count of scores
>= it is then off by at most half the block that it cuts: a relative error of ``ERROR``. Sums over images keep the
bound, and so do false-positive rates; an area up to a limit, divided by the limit, moves by less than ``ERROR``. The
highest 1 / (2 ERROR) scores are kept one by one. The rule is our own, like relative-error quantile summaries.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from manyeyes.experiments.metrics.ranks import Array

ERROR = 2.0**-13
"""Largest relative error of a count, 1.2e-4. A map of 512 x 512 then takes 20,000 scores instead of 262,144."""


def sketch(scores: Array, error: float = ERROR) -> tuple[Array, Array]:
    """Shapes: (n,) -> ascending representatives (k,) and how many scores each stands for, (k,) int64, summing to n."""
    middles, lengths = _blocks(len(scores), error)
    return np.sort(scores)[middles], lengths


@lru_cache(maxsize=8)
def _blocks(n: int, error: float) -> tuple[Array, Array]:
    ends = [0]
    while ends[-1] < n:
        ends.append(min(n, ends[-1] + max(1, int(2 * error * ends[-1]))))
    edges = np.array(ends, dtype=np.int64)
    lengths = np.diff(edges)
    middles = n - 1 - (edges[:-1] + lengths // 2)
    return middles[::-1].copy(), lengths[::-1].copy()
