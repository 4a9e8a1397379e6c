"""Seeded splits that depend on the files' names and the seed alone: not on order, machine, or where the set lies."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from manyeyes.data.listing import natural_key
from manyeyes.data.sample import Sample
from manyeyes.errors import ConfigError

Samples = tuple[Sample, ...]


def hold_out(train: Sequence[Sample], fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Hold validation pictures out of ``train``: (the rest, the held-out part), both in natural order.

    The held-out part is ``fraction`` of all, rounded; at least one picture and never all, once there are two.

    Raises: ConfigError unless 0 < fraction < 1.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction of pictures to hold out: expected a number between 0 and 1, got {fraction}")
    count = len(train)
    held = min(max(round(count * fraction), 1), count - 1) if count else 0
    ranked = sorted(train, key=lambda sample: _rank(sample, seed))
    return in_order(ranked[held:]), in_order(ranked[:held])


def folds(train: Sequence[Sample], count: int, seed: int) -> list[tuple[Samples, Samples]]:
    """Cut ``train`` into ``count`` parts of like size by seed: for each part, (all others, the part).

    Raises: ConfigError unless 2 <= count <= number of pictures.
    """
    if not 2 <= count <= len(train):
        raise ConfigError(f"folds: expected a number from 2 to {len(train)}, the number of pictures, got {count}")
    ranked = sorted(train, key=lambda sample: _rank(sample, seed))
    parts = [ranked[part::count] for part in range(count)]
    return [
        (in_order([sample for other in parts if other is not part for sample in other]), in_order(part))
        for part in parts
    ]


def in_order(samples: Sequence[Sample]) -> Samples:
    return tuple(sorted(samples, key=lambda sample: natural_key(str(sample.path))))


def _rank(sample: Sample, seed: int) -> tuple[str, str]:
    # Hashes outlive any generator: the same split for every version of NumPy. Equal names fall back to the path.
    path = sample.path
    digest = hashlib.sha256(f"{seed}/{path.parent.name}/{path.name}".encode(errors="surrogateescape")).hexdigest()
    return digest, str(path)
