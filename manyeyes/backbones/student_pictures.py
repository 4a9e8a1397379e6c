"""Pictures in random order: batches that come once, kept as 8-bit pixels in a file without a name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from manyeyes.backbones.pixels import Pixels
from manyeyes.errors import RunError
from manyeyes.maps import Grid


class KeptPictures:
    """Every picture of ``batches`` at ``size``, at most ``most`` of them; the file vanishes with the process.

    Raises: RunError if the disk is full.
    """

    def __init__(self, batches: Iterable[Tensor], size: Grid, folder: Path | None, most: int | None = None) -> None:
        self.shape = (3, *size)
        pixels = Pixels(size)
        self.count = 0
        try:
            self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            for batch in batches:
                resized = pixels.resize(batch.float().cpu()).mul(255).round_().clamp_(0, 255).byte()
                self.file.write(resized.numpy().tobytes())
                self.count += len(resized)
                if most is not None and self.count >= most:
                    break
            self.file.flush()
        except OSError as error:
            where = folder or tempfile.gettempdir()
            raise RunError(
                f"{where}: pictures cannot be kept there ({error.strerror}); choose another folder"
            ) from None
        shape = (max(self.count, 1), *self.shape)
        if self.count:
            self.values = np.memmap(self.file, dtype=np.uint8, mode="r", shape=shape)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, numbers: Tensor) -> Tensor:
        """Shapes: (b,) int64 -> (b, 3, H, W) in [0, 1]."""
        return torch.from_numpy(np.ascontiguousarray(self.values[numbers.numpy()])).float().div_(255)
