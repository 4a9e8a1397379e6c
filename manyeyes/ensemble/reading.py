"""How fits read the feature store: taps through a function, and embeddings kept on disk between the heads."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BufferedRandom
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from manyeyes.errors import DataError, RunError
from manyeyes.files import reserve
from manyeyes.maps import all_finite

Taps = Mapping[str, Tensor]
T = TypeVar("T")
SAME = 2e-3
"""Features of equal pictures may differ by this part of the largest: twice the rounding to half precision."""


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
    def half(self) -> bool:
        """Whether the taps come from half precision."""
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


class Gathered:
    """What is said of every picture, by name, batch by batch into tensors of ``count`` rows.

    Many small tensors that stay, made between large ones that go, would leave memory in pieces that nothing fits into
    again.
    """

    def __init__(self, count: int) -> None:
        self.count, self.done = count, 0
        self.values: dict[str, Tensor] = {}

    def add(self, parts: Mapping[str, Tensor]) -> None:
        """The next rows of everything. Shapes: {name: (b, ...)}."""
        rows = 0
        for name, part in parts.items():
            if name not in self.values:
                with torch.inference_mode(False):  # what is fitted on them may be changed later
                    self.values[name] = part.new_empty(self.count, *part.shape[1:])
            rows = len(part)
            self.values[name][self.done : self.done + rows] = part
        self.done += rows


class Embeddings:
    """Embeddings of all pictures, computed in the first pass and read from a temporary file in every later one.

    Yields: (b, d, h, w) float32, channels last in memory. Raises: DataError if the file cannot hold a value.
    The file has the precision of the features that it comes from and no name, so that it vanishes with the process. It
    is read and written in pieces, never mapped: pages of a map count as memory of the process, and would grow with the
    number of pictures. To be used in a ``with``.
    """

    def __init__(self, taps: TapSource, embed: Callable[[Taps], Tensor]) -> None:
        self.taps, self.embed = taps, embed
        self.dtype = torch.float16 if taps.half else torch.float32
        self.file: BufferedRandom | None = None
        self.files: list[BufferedRandom] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self.files:
            file.close()

    def __iter__(self) -> Iterator[Tensor]:
        if self.file is None:
            yield from self._first_pass()
            return
        offset = 0
        for shape in self.shapes:
            stored = torch.empty(shape, dtype=self.dtype)
            self.file.seek(offset)
            self.file.readinto(stored.numpy().data.cast("B"))
            offset += stored.nbytes
            yield rearrange(stored, "b h w d -> b d h w").to(self.device).float()

    def _first_pass(self) -> Iterator[Tensor]:
        file: BufferedRandom | None = None
        shapes: list[tuple[int, ...]] = []
        for embedding in Reading(self.taps, self.embed):
            stored = rearrange(embedding.to(self.dtype), "b d h w -> b h w d")
            if self.dtype == torch.float16 and all_finite(embedding) and not all_finite(stored):
                raise DataError(
                    f"the fused map reaches {float(embedding.abs().max()):.3g}, more than half precision holds "
                    "(65,504); use a fusion with balance: true or whiten, or set store: float32"
                )
            if file is None:
                needed = len(self.taps) * stored[0].numel() * stored.element_size()
                file = _scratch_file(self.taps.scratch, needed)
                self.files.append(file)
                self.device = embedding.device
            # Another pass may have read elsewhere since.
            file.seek(sum(int(np.prod(shape)) for shape in shapes) * stored.element_size())
            file.write(np.ascontiguousarray(stored.cpu().numpy()).data.cast("B"))
            shapes.append(tuple(stored.shape))
            yield rearrange(stored, "b h w d -> b d h w").float()
        self.file, self.shapes = file, shapes


def _scratch_file(folder: Path | None, needed: int) -> BufferedRandom:
    """A file of ``needed`` bytes without a name. Raises: RunError if the disk is full."""
    where = folder or tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile(dir=folder) as handle:
            reserve(handle.fileno(), needed, where)
            return os.fdopen(os.dup(handle.fileno()), "r+b")
    except OSError as error:
        raise RunError(f"{where}: embeddings cannot be kept there ({error.strerror}); choose another folder") from None


def require_difference(batches: Iterable[Taps]) -> None:
    """Raises: DataError if there are several pictures and all look the same. Reads up to the first that differs."""
    first: dict[str, Tensor] = {}
    seen = 0
    for batch in batches:
        count = len(next(iter(batch.values())))
        seen += count
        for key, value in batch.items() if count else ():  # a batch of unreadable pictures is empty
            reference = first.setdefault(key, value[:1])
            if bool(((value - reference).abs() > SAME * reference.abs().max()).any()):
                return
    if seen > 1:
        raise DataError(
            f"all {seen} training pictures are equal, so nothing shows how good parts vary; give different ones"
        )
