"""Threads for decoding: Pillow and OpenCV release Python's lock while they work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

import cv2

MAX_WORKERS = 64

_OURS = Lock()
_begun = 0
_before = 1

T = TypeVar("T")
R = TypeVar("R")


def worker_count() -> int:
    """One thread for each core that this process may use (in a container fewer than the machine has), 64 at most."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_WORKERS, usable)


@contextmanager
def opencv_on_one_thread() -> Iterator[None]:
    """Without OpenCV's own threads, which would only be in the way of ours. The last of several that overlap puts back
    the number that was there before the first."""
    global _begun, _before  # OpenCV has one number for the whole process, and so have we
    with _OURS:
        if not _begun:
            _before = cv2.getNumThreads()
            cv2.setNumThreads(1)
        _begun += 1
    try:
        yield
    finally:
        with _OURS:
            _begun -= 1
            if not _begun:
                cv2.setNumThreads(_before)


def in_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``[function(item) for item in items]``; the first error in order is raised."""
    with ThreadPoolExecutor(worker_count()) as pool:
        return list(pool.map(function, items))
