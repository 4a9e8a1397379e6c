"""Counting many scores at known thresholds without sorting them all, exactly.

The range of scores is cut into cells of equal width. A cell without a threshold need only be counted: its scores lie
on one side of every threshold together. Only scores that share a cell with a threshold are sorted. Anomaly maps have
a hundred normal pixels for each region pixel, so that most cells are of the first kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from manyeyes.experiments.metrics.ranks import Array, SortedScores

CELLS = 2**22


def thin(parts: Sequence[Array], thresholds: Array, cells: int = CELLS) -> list[SortedScores]:
    """Sorted scores that count like ``parts`` at every one of ``thresholds``, and nowhere else.

    Shapes: arrays (n_i,) and ascending thresholds (m,), all finite -> the scores that share a cell with a threshold,
    and the middles of the other cells with their counts.
    """
    if sum(map(len, parts)) < 2 * cells or not len(thresholds):
        return [SortedScores(np.sort(np.concatenate([thresholds[:0], *parts])))]
    low = min(float(thresholds[0]), *(float(part.min()) for part in parts if len(part)))
    high = max(float(thresholds[-1]), *(float(part.max()) for part in parts if len(part)))
    scale = (cells - 1) / (high - low) if high > low else 0.0
    if not np.isfinite(scale) or not np.isfinite(high - low):
        return [SortedScores(np.sort(np.concatenate(parts)))]

    def place(scores: Array) -> Array:
        # In float64, so that rounding never moves a score past a middle.
        places = np.subtract(scores, low, dtype=np.float64)
        places *= scale
        return places.astype(np.int64)

    marked = np.zeros(cells, dtype=bool)
    marked[place(thresholds)] = True
    counts = np.zeros(cells, dtype=np.int64)
    near = []
    for batch in _batches(parts, cells):
        # One part at a time stays in the processor's cache; the table of cells is walked once per batch.
        held = []
        for part in batch:
            held.append(place(part))
            near.append(part[marked.take(held[-1])])
        counts += np.bincount(np.concatenate(held), minlength=cells)
    counts[marked] = 0
    filled = np.flatnonzero(counts)
    middles = low + (filled + 0.5) / scale if scale else filled.astype(float)
    return [
        SortedScores(np.sort(np.concatenate(near))),
        SortedScores(middles, np.concatenate([[0], np.cumsum(counts[filled])])),
    ]


def _batches(parts: Sequence[Array], size: int) -> Iterator[list[Array]]:
    """The same arrays in groups of about ``size`` scores."""
    held: list[Array] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= size:
            yield held
            held = []
    if held:
        yield held
