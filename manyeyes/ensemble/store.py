"""The feature store: what the trunks saw of a list of pictures, on disk, extracted once and read by every fit.

One folder per (trunk, canvas, list of pictures), one ``.npy`` file per stage, half precision by default, written batch
by batch and read as a memory map: neither writing nor reading holds more than one batch. Files are (n, h, w, c), as
trunks give their maps and as every fit reads them fastest: nothing is transposed on the way. An extraction that was
killed continues after its last checkpoint. Two processes may share a store: the second waits for the first or, where
the first died, takes over.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from manyeyes.backbones import Eyes
from manyeyes.data import Frame, ImageBatches, Sample
from manyeyes.device import arithmetic, to_device
from manyeyes.errors import DataError, RunError
from manyeyes.files import make_folder, read_json, require_space, reserve, source_digest, write_json
from manyeyes.maps import all_finite

Indices = NDArray[np.int64]
Progress = Callable[[int, int], None]
Precision = Literal["float16", "float32"]
CHECKPOINT_SECONDS = 5.0
LOOKING = ("backbones", "checkpoint.py", "data/frame.py", "data/images.py", "data/loading.py", "device.py", "maps.py")
"""Sources that features depend on: what other code has extracted or trained is not taken for this code's."""
REOPEN = 32
"""Batches between two openings of the store's files."""


def samples_fingerprint(samples: Sequence[Sample], frame: Frame, skip_bad: bool) -> str:
    """16 hexadecimal digits that change when a picture, its size or date on disk, the order, the canvas, or the code or
    the libraries that look at them change."""
    digest = hashlib.sha256(f"{frame.fingerprint()}{skip_bad}{source_digest(*LOOKING)}".encode())
    for sample in samples:
        try:
            status = sample.path.stat()
        except OSError as error:
            if not skip_bad:
                raise DataError(f"{sample.path}: cannot be read ({error.strerror})") from None
            continue
        digest.update(os.fsencode(f"{sample.path.resolve()}|{status.st_size}|{status.st_mtime_ns}\n"))
    return digest.hexdigest()[:16]


class StoredTaps:
    """Taps of some pictures, read batch by batch from the store. Re-iterable; a slice of images costs nothing.

    Yields: {tap key: (b, c, h, w) float32, channels last in memory}.
    """

    def __init__(
        self, arrays: dict[str, Path], indices: Sequence[int] | Indices, batch_size: int, device: torch.device
    ) -> None:
        self.arrays, self.batch_size, self.device = arrays, batch_size, device
        self.indices = np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.indices)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the pictures, their order and the taps."""
        # The folder of a file is named after all pictures of the list.
        listed = sorted(f"{key}|{path.parent.name}" for key, path in self.arrays.items())
        return hashlib.sha256(f"{listed}".encode() + self.indices.tobytes()).hexdigest()[:16]

    @property
    def half(self) -> bool:
        return all(
            np.load(path, mmap_mode="r", allow_pickle=False).dtype == np.float16 for path in self.arrays.values()
        )

    @property
    def scratch(self) -> Path:
        return next(iter(self.arrays.values())).parent

    def only(self, keys: Sequence[str]) -> StoredTaps:
        """The same pictures, reading only some taps."""
        return StoredTaps({key: self.arrays[key] for key in keys}, self.indices, self.batch_size, self.device)

    def subset(self, positions: Sequence[int]) -> StoredTaps:
        """Some of these pictures, by their position in this list."""
        return StoredTaps(
            self.arrays, self.indices[np.asarray(positions, dtype=np.int64)], self.batch_size, self.device
        )

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        files: dict[str, np.memmap] = {}
        for number, start in enumerate(range(0, len(self.indices), self.batch_size)):
            if number % REOPEN == 0:  # so that pages already read, which count as memory, are given back
                files = {key: np.load(path, mmap_mode="r", allow_pickle=False) for key, path in self.arrays.items()}
            rows = self.indices[start : start + self.batch_size]
            stored = {key: torch.from_numpy(file[rows]).to(self.device) for key, file in files.items()}
            yield {key: rearrange(value, "b h w c -> b c h w").float() for key, value in stored.items()}


def _require_alike(records: Mapping[Path, Mapping[str, Any]]) -> None:
    """Rows of all trunks and stages are the same pictures.

    Raises: RunError if a picture could be read for some of them only.
    """
    if len({(record["rows"], str(record["skipped"])) for record in records.values()}) > 1:
        folders = ", ".join(map(str, records))
        raise RunError(
            f"{folders}: features of different pictures, because not all could be read each time; delete them"
        )


class FeatureStore:
    """Extract once per distinct trunk, canvas, list of pictures and arithmetic; hand out `StoredTaps`.

    A stage that is stored is never written again, so that others may read it while further stages are extracted.
    """

    def __init__(self, folder: str | Path, precision: Precision = "float16") -> None:
        self.folder, self.precision = make_folder(folder), precision

    def extract(
        self,
        eyes: Eyes,
        samples: Sequence[Sample],
        frame: Frame,
        *,
        batch_size: int,
        device: torch.device,
        skip_bad: bool = False,
        progress: Progress | None = None,
    ) -> tuple[StoredTaps, tuple[Sample, ...], list[tuple[Path, str]]]:
        """Taps of ``samples``, extracted now or found in the store.

        Returns: the taps; the samples that they belong to (all, unless ``skip_bad`` left some out); what was left out.
        Raises: DataError naming the picture that cannot be read; RunError if the disk is full.
        """
        if not samples:
            raise DataError("there is no picture to extract features from")
        pictures = f"{samples_fingerprint(samples, frame, skip_bad)}-{self.precision}-nhwc-{arithmetic(device)}"
        folders = {key: self.folder / key / pictures for key in eyes.stages}
        arrays = {f"{key}.{stage}": folders[key] / f"{stage}.npy" for key in eyes.stages for stage in eyes.stages[key]}
        with FileLock(self.folder / f"{pictures}.lock"):
            part = eyes.without({key: self._stored(folder) for key, folder in folders.items()})
            if part.stages:
                batches = ImageBatches(samples, frame, batch_size, skip_bad=skip_bad)
                self._extract(part, batches, folders, device, progress)
            records = [read_json(folder / "done.json") for folder in folders.values()]
            _require_alike(dict(zip(folders.values(), records, strict=True)))
        skipped = [(Path(path), reason) for path, reason in records[0]["skipped"]]
        left_out = {path for path, _ in skipped}
        kept = tuple(sample for sample in samples if sample.path not in left_out)
        if not kept:
            raise DataError(f"none of the {len(samples)} pictures could be read; the first: {skipped[0][1]}")
        return StoredTaps(arrays, range(len(kept)), batch_size, device), kept, skipped

    def _stored(self, folder: Path) -> list[str]:
        """The stages that are there as a whole."""
        done = folder / "done.json"
        stages: list[str] = read_json(done)["stages"] if done.exists() else []
        return stages

    def _extract(
        self,
        part: Eyes,
        batches: ImageBatches,
        folders: dict[str, Path],
        device: torch.device,
        progress: Progress | None,
    ) -> None:
        """All trunks and stages of ``part``, none of which is stored."""
        total, missing = len(batches.samples), list(part.stages)
        state = self._resume(part, batches, {key: folders[key] for key in missing})
        files: dict[str, np.memmap] = {}
        row = state["rows"]
        batches.skipped[:] = [(Path(path), reason) for path, reason in state["skipped"]]
        saved = time.monotonic()
        try:
            for number, batch in enumerate(batches.starting(state["batches"]), start=state["batches"]):
                if len(batch.images):
                    taps = part(to_device(batch.images, device))
                    for key, value in taps.items():
                        stored = self._cast(value, key)
                        if key not in files:
                            files[key] = self._open(folders, key, (total, *stored.shape[1:]), row > 0)
                        files[key][row : row + len(stored)] = stored
                    row += len(batch.images)
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    for file in files.values():
                        file.flush()
                    files.clear()  # gives their pages back, which count as memory; opened again by the next batch
                    self._checkpoint(folders, missing, number + 1, row, batches)
                    saved = time.monotonic()
                if progress:
                    progress(min((number + 1) * batches.batch_size, total), total)
            for file in files.values():
                file.flush()
        except OSError as error:
            raise RunError(f"{self.folder}: the feature store cannot be written: {error.strerror}") from error
        skipped = [[str(path), reason] for path, reason in batches.skipped]
        for key in missing:
            done, record = folders[key] / "done.json", {"rows": row, "skipped": skipped}
            if done.exists():
                _require_alike({done: read_json(done), folders[key]: record})
            write_json(done, {"stages": [*self._stored(folders[key]), *part.stages[key]], **record})
            (folders[key] / "state.json").unlink(missing_ok=True)

    def _checkpoint(
        self, folders: dict[str, Path], keys: Sequence[str], batch: int, rows: int, batches: ImageBatches
    ) -> None:
        skipped = [[str(path), reason] for path, reason in batches.skipped]
        for key in keys:
            write_json(folders[key] / "state.json", {"batches": batch, "rows": rows, "skipped": skipped})

    def _resume(self, part: Eyes, batches: ImageBatches, folders: dict[str, Path]) -> dict[str, Any]:
        """How far a killed extraction of the same trunks and stages came: the least of their states."""
        states = []
        for key, folder in folders.items():
            path, stages = folder / "state.json", folder / "stages.json"
            whole = path.exists() and stages.exists() and read_json(stages) == [batches.batch_size, part.stages[key]]
            states.append(read_json(path) if whole else {"batches": 0, "rows": 0, "skipped": []})
            if not whole:
                path.unlink(missing_ok=True)  # before its stages are: it must never be taken for theirs
                write_json(stages, [batches.batch_size, part.stages[key]])
        least: dict[str, Any] = min(states, key=lambda state: state["batches"])
        if not least["rows"]:  # all files are made anew
            for folder in folders.values():
                (folder / "state.json").unlink(missing_ok=True)
        return least

    def _open(self, folders: dict[str, Path], key: str, shape: tuple[int, ...], resume: bool) -> np.memmap:
        trunk, _, stage = key.partition(".")
        path = folders[trunk] / f"{stage}.npy"
        if resume:
            return np.lib.format.open_memmap(path, mode="r+")
        path.unlink(missing_ok=True)  # of an attempt that was killed early: its space counts as free
        needed = int(np.prod(shape)) * np.dtype(self.precision).itemsize
        require_space(path.parent, needed)
        file = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(self.precision), shape=shape)
        with open(path, "rb+") as handle:
            reserve(handle.fileno(), path.stat().st_size, path)
        return file

    def _cast(self, value: Tensor, key: str) -> np.ndarray:
        stored = rearrange(value, "b c h w -> b h w c").to(getattr(torch, self.precision))
        if not all_finite(stored):
            wider = "" if self.precision == "float32" else ", or set store: float32"
            raise DataError(
                f"features {key}: not finite in {self.precision}; the weights may be broken, or the trunk's values too "
                f"large for half precision: try --precision float32{wider}"
            )
        return stored.cpu().numpy()
