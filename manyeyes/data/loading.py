"""Pictures in batches, decoded and placed by threads a bounded number of batches ahead of whoever consumes them.

Decoding and resizing release Python's lock, so threads overlap with the forward pass and nothing is copied between
processes. A bounded number of batches exists besides the one being used, whatever the number of pictures: enough that
every thread has a picture to decode.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from manyeyes.data.frame import Frame, Size
from manyeyes.data.images import read_image
from manyeyes.data.sample import Sample
from manyeyes.data.threads import opencv_on_one_thread, worker_count
from manyeyes.errors import DataError

AHEAD = 2

Placed = tuple[NDArray[np.uint8], Size]


@dataclass(frozen=True, eq=False)
class Batch:
    """``images``: RGB in [0, 1], (b, 3, H, W) float32. ``sizes``: (h, w) of each picture as it was on disk."""

    images: Tensor
    samples: tuple[Sample, ...]
    sizes: tuple[Size, ...]


class ImageBatches:
    """Batches of placed pictures in the order of ``samples``. Re-iterable: every pass reads the files anew.

    A batch is always ``batch_size`` consecutive samples. With ``skip_bad``, unreadable ones are missing from theirs and
    stand in ``skipped`` once it was handed out; a batch of nothing else has no image (b = 0).

    Raises: ConfigError if the frame has no size; while iterating, DataError naming the first unreadable file.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        frame: Frame,
        batch_size: int,
        workers: int | None = None,
        skip_bad: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.samples, self.frame, self.batch_size, self.skip_bad = tuple(samples), frame, batch_size, skip_bad
        self.canvas = frame.canvas
        self.workers = workers or worker_count()
        self.ahead = max(AHEAD, -(-self.workers // batch_size))
        self.skipped: list[tuple[Path, str]] = []

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.samples) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.starting(0)

    def starting(self, batch: int) -> Iterator[Batch]:
        """Iterate from batch number ``batch`` on; what earlier batches skipped stays in ``skipped``."""
        groups = [self.samples[i : i + self.batch_size] for i in range(0, len(self.samples), self.batch_size)]
        groups = groups[batch:]
        ahead = {sample.path for group in groups for sample in group}
        self.skipped[:] = [(path, reason) for path, reason in self.skipped if path not in ahead]
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="manyeyes-images")
        pending: deque[tuple[tuple[Sample, ...], list[Future[Placed]]]] = deque()
        waiting = iter(groups)
        with opencv_on_one_thread():
            try:
                while True:
                    for group in waiting:
                        pending.append((group, [pool.submit(self._load, sample) for sample in group]))
                        if len(pending) > self.ahead:
                            break
                    if not pending:
                        return
                    yield self._finish(*pending.popleft())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _load(self, sample: Sample) -> Placed:
        image = read_image(sample.path, self.frame.bits)
        placed = rearrange(self.frame.place(image), "h w c -> c h w")
        return np.ascontiguousarray(placed), (image.shape[0], image.shape[1])

    def _finish(self, group: tuple[Sample, ...], futures: list[Future[Placed]]) -> Batch:
        kept, placed, sizes = [], [], []
        for sample, future in zip(group, futures, strict=True):
            try:
                pixels, size = future.result()
            except DataError as error:
                if not self.skip_bad:
                    raise
                self.skipped.append((sample.path, str(error)))
                continue
            kept.append(sample)
            placed.append(pixels)
            sizes.append(size)
        stacked = np.stack(placed) if placed else np.zeros((0, 3, *self.canvas), dtype=np.uint8)
        return Batch(torch.from_numpy(stacked).float().div_(255), tuple(kept), tuple(sizes))
