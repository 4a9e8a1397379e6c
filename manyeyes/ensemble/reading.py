"""How fits read the feature store: taps through a function, and embeddings kept on disk between the heads."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from manyeyes.errors import RunError
from manyeyes.files import reserve

Taps = Mapping[str, Tensor]
T = TypeVar("T")


class TapSource(Protocol):
    """Taps of some pictures, batch by batch; re-iterable."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]: ...

    def __len__(self) -> int:
        """Number of pictures."""
        ...

    def only(self, keys: Sequence[str]) -> TapSource:
        """The same pictures, reading only some taps."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digits that change with the pictures and with the taps."""
        ...

    @property
    def scratch(self) -> Path | None:
        """A folder for temporary files of this size, None for the system's own."""
        ...


class Reading(Generic[T]):
    """A re-iterable view of batches through a function, without gradients."""

    def __init__(self, batches: Iterable[Taps], function: Callable[[Taps], T]) -> None:
        self.batches, self.function = batches, function

    def __iter__(self) -> Iterator[T]:
        for batch in self.batches:
            with torch.inference_mode():
                value = self.function(batch)
            yield value


class Embeddings:
    """Embeddings of all pictures, computed in the first pass and read from a temporary file in every later one.

    Yields: (b, d, h, w) float32. The file is half precision, like the features that it comes from, and has no name,
    so that it vanishes with the process.
    """

    def __init__(self, taps: TapSource, embed: Callable[[Taps], Tensor]) -> None:
        self.taps, self.embed = taps, embed
        self.file: np.memmap | None = None

    def __iter__(self) -> Iterator[Tensor]:
        if self.file is None:
            yield from self._first_pass()
            return
        start = 0
        for count in self.counts:
            yield torch.from_numpy(self.file[start : start + count]).to(self.device).float()
            start += count

    def _first_pass(self) -> Iterator[Tensor]:
        file: np.memmap | None = None
        counts: list[int] = []
        for embedding in Reading(self.taps, self.embed):
            if file is None:
                shape = (len(self.taps), *embedding.shape[1:])
                file = _scratch_file(self.taps.scratch, shape)
                self.device = embedding.device
            stored = embedding.half()
            file[sum(counts) : sum(counts) + len(stored)] = stored.cpu().numpy()
            counts.append(len(stored))
            yield stored.float()
        self.file, self.counts = file, counts


def _scratch_file(folder: Path | None, shape: tuple[int, ...]) -> np.memmap:
    """Half-precision numbers in a file without a name. Raises: RunError if the disk is full."""
    where = folder or tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile(dir=folder) as handle:
            reserve(handle.fileno(), int(np.prod(shape)) * 2, where)
            return np.memmap(handle, dtype=np.float16, mode="r+", shape=shape)
    except OSError as error:
        raise RunError(f"{where}: embeddings cannot be kept there ({error.strerror}); choose another folder") from None
