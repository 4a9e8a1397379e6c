"""Pictures in random order: batches that come once, kept as 8-bit pixels in a file without a name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyeyes.backbones.pixels import Pixels
from manyeyes.errors import RunError
from manyeyes.maps import Grid


class KeptPictures:
    """Every picture of ``batches`` at ``size``, at most ``most`` of them; the file vanishes with the process.

    Raises: RunError if the disk is full.
    """

    def __init__(self, batches: Iterable[Tensor], size: Grid, folder: Path | None, most: int | None = None) -> None:
        self.count = 0
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                for pixels in _bytes(batches, size, most):
                    file.write(pixels.tobytes())
                    self.count += len(pixels)
                file.flush()
                if self.count:
                    # The map keeps what the file held after it is closed.
                    self.values = np.memmap(file, dtype=np.uint8, mode="r", shape=(self.count, 3, *size))
        except OSError as error:
            where = folder or tempfile.gettempdir()
            raise RunError(
                f"{where}: pictures cannot be kept there ({error.strerror}); choose another folder"
            ) from None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, numbers: Tensor) -> Tensor:
        """Shapes: (b,) int64 -> (b, 3, H, W) in [0, 1]."""
        return torch.from_numpy(np.ascontiguousarray(self.values[numbers.numpy()])).float().div_(255)


def _bytes(batches: Iterable[Tensor], size: Grid, most: int | None) -> Iterator[NDArray[np.uint8]]:
    """Shapes: (b, 3, H, W) each in [0, 1] -> (b, 3, *size) each, ``most`` pictures in all."""
    pixels, count = Pixels(size), 0
    for batch in batches:
        wanted = batch if most is None else batch[: most - count]
        if len(wanted):  # none where a whole batch could not be read
            yield pixels.resize(wanted.float().cpu()).mul(255).round_().clamp_(0, 255).byte().numpy()
        count += len(wanted)
        if count == most:
            return
