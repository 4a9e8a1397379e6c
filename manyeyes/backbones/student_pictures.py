"""Pictures in random order: batches that come once, kept as 8-bit pixels in a file without a name; penalty pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from manyeyes.backbones.distillation_views import Augmentation
from manyeyes.backbones.pixels import Pixels
from manyeyes.checkpoint import drawn_at
from manyeyes.errors import RunError
from manyeyes.maps import Grid

NATURAL = 22


class KeptPictures:
    """Every picture of ``batches`` at ``size``; the file vanishes with the process.

    Raises: RunError if the disk is full.
    """

    def __init__(self, batches: Iterable[Tensor], size: Grid, folder: Path | None) -> None:
        self.count = 0
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                for pixels in _bytes(batches, size):
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


def photograph_views(count: int, size: Grid, seed: int) -> Iterator[Tensor]:
    """Views of the two photographs that come with scikit-learn (a temple, a flower), cut out, turned and coloured.

    Shapes: ``count`` times (1, 3, *size) in [0, 1].
    """
    from sklearn.datasets import load_sample_images

    found = load_sample_images().images
    photographs = [rearrange(torch.from_numpy(image.copy()), "h w c -> c h w").float() / 255 for image in found]
    changed = Augmentation(zoom=0.1, turn=True, colour=0.4, grey=0.1)
    for number in range(count):
        yield changed(photographs[number % len(photographs)], size, drawn_at(seed, NATURAL, number))


def _bytes(batches: Iterable[Tensor], size: Grid) -> Iterator[NDArray[np.uint8]]:
    """Shapes: (b, 3, H, W) each in [0, 1] -> (b, 3, *size) each."""
    pixels = Pixels(size)
    for batch in batches:
        if len(batch):  # none where a whole batch could not be read
            yield pixels.resize(batch.float().cpu()).mul(255).round_().clamp_(0, 255).byte().numpy()
