"""Trunks that learn from good pictures before they are frozen: trained once per seed and pictures, then kept."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError
from torch import Tensor

from manyeyes.backbones import TrainableTrunk
from manyeyes.backbones.contract import PicturesIn
from manyeyes.checkpoint import read_tensors, write_tensors
from manyeyes.data import Frame, ImageBatches, Sample, paths_to_samples
from manyeyes.ensemble.ensemble import Ensemble
from manyeyes.ensemble.reading import require_difference
from manyeyes.ensemble.store import samples_fingerprint
from manyeyes.errors import RunError
from manyeyes.files import make_folder
from manyeyes.maps import spread_evenly
from manyeyes.progress import Progress

BATCH = 8
PREFIX = "trained."
TRAINED = "trained"
"""Folder, beside the stored features, of trunks that had to be trained."""


class Pictures:
    """The pictures of some samples on their canvas, batch by batch; re-iterable. Yields: (b, 3, H, W) in [0, 1]."""

    def __init__(self, samples: Sequence[Sample], frame: Frame, skip_bad: bool) -> None:
        self.batches = ImageBatches(samples, frame, BATCH, skip_bad=skip_bad)

    def __iter__(self) -> Iterator[Tensor]:
        return (batch.images for batch in self.batches)


def train_trunks(
    ensemble: Ensemble, train: Sequence[Sample], frame: Frame, folder: Path, skip_bad: bool, progress: Progress
) -> float:
    """Train what has to be trained on ``train``, or take what an equal training has left in ``folder``.

    A killed training goes on where it stopped; a second process that needs the same one waits for it.
    Returns: seconds of training, here or where it was done; of a killed one, those since it was taken up again.
    Raises: as `TrainableTrunk.fit`; DataError if all pictures are equal; RunError if a kept training is broken.
    """
    waiting = [trunk for trunk in ensemble.trainable if not trunk.is_fitted]
    if not waiting:
        return 0.0
    make_folder(folder)
    pictures = samples_fingerprint(train, frame, skip_bad)
    seed, seconds = ensemble.config.seed, 0.0
    for trunk in waiting:
        identity = trunk.identity(seed, "|".join([pictures, *further_pictures(trunk, frame)]))
        path = folder / f"{identity}.safetensors"
        with FileLock(path.with_suffix(".lock")):
            if path.exists():
                learned, spent = _load(path)
                trunk.restore(learned, identity)
                seconds += spent
                continue
            start = time.perf_counter()
            checkpoint = path.with_suffix(".checkpoint")
            images = Pictures(train, frame, skip_bad)
            require_difference({"picture": batch} for batch in images)
            trunk.fit(images, identity, seed, _pictures_in(frame), checkpoint, progress)
            spent = time.perf_counter() - start
            write_tensors(path, trunk.learned(), {"seconds": f"{spent:.3f}"})
            seconds += spent
            checkpoint.unlink(missing_ok=True)
    ensemble.look_again()
    return seconds


def _pictures_in(frame: Frame) -> PicturesIn:
    def pictures_in(folder: str, most: int) -> Pictures:
        found = paths_to_samples([folder])
        spread = [found[place] for place in spread_evenly(len(found), most)]
        return Pictures(spread, _whole(frame), skip_bad=True)

    return pictures_in


def further_pictures(trunk: TrainableTrunk, frame: Frame) -> list[str]:
    """Digits that change with what a training reads besides good parts. Raises: DataError if there is no picture."""
    return [samples_fingerprint(paths_to_samples([folder]), _whole(frame), skip_bad=True) for folder in trunk.reads]


def _whole(frame: Frame) -> Frame:
    """The same canvas without a region of interest."""
    return Frame(size=frame.size)


def _load(path: Path) -> tuple[dict[str, Tensor], float]:
    try:
        tensors, header = read_tensors(path)
        return tensors, float(header.get("seconds", 0.0))
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path}: is no whole training ({error}); delete it and train again") from None


def learned_tensors(trunks: Iterable[TrainableTrunk]) -> dict[str, Tensor]:
    """What all trained trunks have learned, for the run: names begin with `PREFIX` and the trunk's declared key."""
    return {f"{PREFIX}{trunk.declared_key}.{key}": value for trunk in trunks for key, value in trunk.learned().items()}


def restore_trunks(ensemble: Ensemble, keys: Iterable[str], state: Mapping[str, Tensor]) -> None:
    """Give trainable trunks what a run has saved of them; ``keys`` are the keys of the run's trunks."""
    for trunk in ensemble.trainable:
        start = f"{PREFIX}{trunk.declared_key}."
        learned = {key[len(start) :]: value for key, value in state.items() if key.startswith(start)}
        for key in keys:
            if learned and key.startswith(f"{trunk.declared_key}-"):
                trunk.restore(learned, key[len(trunk.declared_key) + 1 :])
    if ensemble.trainable:
        ensemble.look_again()
