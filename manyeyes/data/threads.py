"""Threads for decoding: Pillow and OpenCV release Python's lock while they work."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

MAX_WORKERS = 64

T = TypeVar("T")
R = TypeVar("R")


def worker_count() -> int:
    """One thread for each core that this process may use (in a container fewer than the machine has), 64 at most."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_WORKERS, usable)


def in_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``[function(item) for item in items]``; the first error in order is raised."""
    with ThreadPoolExecutor(worker_count()) as pool:
        return list(pool.map(function, items))
