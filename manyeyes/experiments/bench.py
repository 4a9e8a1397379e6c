"""The bench at which one process extracts the features of a study's sets, and fits and measures its cells."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, islice, zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout

from manyeyes.backbones import Eyes, TrainableTrunk, TrunkPool
from manyeyes.data import Frame, ImageBatches, ImageSet, Sample
from manyeyes.device import Precision, arithmetic, resolve_device, trunk_precision
from manyeyes.ensemble import Ensemble, EnsembleConfig, Extraction, FeatureStore, Prediction, save_run
from manyeyes.ensemble.choosing import Chosen
from manyeyes.ensemble.run import STATE
from manyeyes.ensemble.store import StoredTaps
from manyeyes.ensemble.training import fit_extracted
from manyeyes.ensemble.trunks import TRAINED, train_trunks
from manyeyes.errors import DataError
from manyeyes.experiments.evaluation import Stopwatch, measure, peak_memory, restart_peak
from manyeyes.experiments.fits import SharedFits
from manyeyes.experiments.metrics import image_figures
from manyeyes.experiments.sources import code_digest
from manyeyes.experiments.study import Cell, write_cell
from manyeyes.files import make_folder, read_json, write_json
from manyeyes.progress import Progress, Silent

Stored = tuple[StoredTaps, tuple[Sample, ...]]
ROUNDS = 4
SHOWN = 24
"""Made defects that a report shows."""


@dataclass(frozen=True)
class Settings:
    """What is the same for all cells of a study: where it lies, and how its cells are to be made."""

    folder: Path
    device: str = "auto"
    precision: Precision = "auto"
    batch_size: int = 8
    skip_bad: bool = False
    repetitions: int = 0
    threads: int | None = None


@dataclass(frozen=True)
class Group:
    """What shares an extraction: one set on one canvas, and all ensembles that look at it there."""

    image_set: ImageSet
    frame: Frame
    store: Literal["float16", "float32"]
    configs: tuple[EnsembleConfig, ...]


@dataclass(frozen=True)
class Job:
    """One cell to come: ``parts`` are its training and validation pictures, ``held`` those of its fold."""

    config: EnsembleConfig
    image_set: ImageSet
    cell: Cell
    parts: tuple[Sequence[Sample], Sequence[Sample]]
    held: Sequence[Sample]


@dataclass(frozen=True)
class Extract:
    """The task of filling the store for a group."""

    settings: Settings
    group: Group

    def __call__(self, progress: Progress) -> None:
        working_bench(self.settings).extract(self.group, progress)


@dataclass(frozen=True)
class Measure:
    """The task of finishing a cell; one that another process has in hand is waited for, or left out."""

    settings: Settings
    job: Job
    wait: bool

    def __call__(self, progress: Progress) -> None:
        cell = self.job.cell
        try:
            with FileLock(make_folder(cell.folder) / ".lock", timeout=-1 if self.wait else 0):
                if not cell.finished:
                    for part in cell.folder.rglob(".*.part"):  # what a killed process was writing
                        part.unlink(missing_ok=True)
                    working_bench(self.settings).measure(self.job, progress)
        except Timeout:
            return


@lru_cache(maxsize=1)
def bench_of(settings: Settings) -> Bench:
    """One for all tasks of a process, so that every trunk is built once in it."""
    return Bench(settings)


def working_bench(settings: Settings) -> Bench:
    """The same for a task, which keeps to its threads: it has a process of its own where it is given any."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return bench_of(settings)


class Bench:
    """Device, trunks and store of one process."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.device, self.pool = settings, resolve_device(settings.device), TrunkPool()

    @property
    def arithmetic(self) -> str:
        """What trunks compute in here; part of what names cells and times."""
        with trunk_precision(self.device, self.settings.precision):
            return arithmetic(self.device)

    def ensemble(self, config: EnsembleConfig) -> Ensemble:
        """Unfitted, its trunks shared with all ensembles of this process."""
        return Ensemble(config, self.pool)

    def extract(self, group: Group, progress: Progress) -> None:
        """Take the features of all pictures of a group that are not stored yet, and the time of every trunk."""
        ensembles = [self.ensemble(config) for config in group.configs]
        eyes = Eyes([e for ensemble in ensembles for e in ensemble.extractors]).to(self.device)
        # A trunk that learns from good parts differs from cell to cell: `measure` trains it and looks through it.
        ready = [trunk.key for trunk in eyes.each() if not isinstance(trunk, TrainableTrunk)]
        if ready:
            self._features(eyes.restricted(ready), group, progress)
        for ensemble in ensembles:  # each up to its own stages
            if mine := [key for key in ready if key in ensemble.eyes.stages]:
                self._time_trunks(ensemble.eyes.restricted(mine), group)

    def _features(self, eyes: Eyes, group: Group, progress: Progress) -> tuple[Stored, Stored]:
        """Of all good pictures that may be trained or calibrated on, and of the test pictures."""
        image_set, extraction = group.image_set, self.extraction(group.store)
        everything = (*image_set.train, *image_set.validation)
        normals = extraction(eyes, everything, group.frame, f"extracting {image_set.name}, normals", progress)
        test = extraction(eyes, image_set.test, group.frame, f"extracting {image_set.name}, test", progress)
        return normals, test

    def extraction(self, precision: Literal["float16", "float32"]) -> Extraction:
        """Into the study's store, whose features have this precision."""
        settings = self.settings
        store = FeatureStore(settings.folder / "features", precision)
        return Extraction(store, self.device, settings.batch_size, settings.precision, settings.skip_bad)

    def _timing(self, eyes: Eyes, trunk: str) -> Path:
        """Where the time of a trunk is kept that is run up to the stages of ``eyes``, by this code on this device."""
        settings = self.settings
        facts = [eyes.stages[trunk], self.arithmetic, settings.batch_size, settings.threads, code_digest()]
        key = hashlib.sha256(str(facts).encode()).hexdigest()[:12]
        return settings.folder / "timings" / f"{trunk}-{key}.json"

    def _time_trunks(self, eyes: Eyes, group: Group) -> None:
        """The time of every trunk that was not taken yet."""
        for trunk in eyes.each():
            path = self._timing(eyes, trunk.key)
            if not path.exists():
                self._time_trunk(eyes.restricted([trunk.key]), group, path)

    def _time_trunk(self, eyes: Eyes, group: Group, path: Path) -> None:
        """Milliseconds per image of a trunk by itself, without reading pictures: the median of three batches."""
        size = self.settings.batch_size
        batch = next(iter(ImageBatches(group.image_set.test[:size], group.frame, size, skip_bad=True)))
        images = batch.images.to(self.device)
        if not len(images):
            return
        watch, times = Stopwatch(self.device, [], []), []
        for _ in range(ROUNDS):
            start = watch.now()
            with torch.no_grad(), trunk_precision(self.device, self.settings.precision):
                eyes(images)
            times.append((watch.now() - start) / len(images))
        write_json(path, {"ms_per_image": 1000 * statistics.median(times[1:])})

    def measure(self, job: Job, progress: Progress) -> None:
        """Fit the job's ensemble on stored features, measure it and write its cell."""
        cell, ensemble = job.cell, self.ensemble(job.config).to(self.device)
        frame = job.config.frame.sized(ensemble.canvas)
        group = Group(job.image_set, frame, job.config.store, (job.config,))
        store, train = self.settings.folder / "features", job.parts[0]
        trained = train_trunks(ensemble, train, frame, store / TRAINED, self.settings.skip_bad, progress)
        normals, test = self._features(ensemble.eyes, group, Silent())
        self._time_trunks(ensemble.eyes, group)
        fits = SharedFits(self.settings.folder / "fits", job.config, self.device)
        restart_peak(self.device)
        start = time.perf_counter()
        fit = fit_extracted(ensemble, *normals, job.parts, None, self.extraction(job.config.store), progress, fits)
        ensemble = fit.ensemble
        fit_seconds = time.perf_counter() - start - fits.waited
        watch = Stopwatch(self.device, [], [])
        fold = "" if cell.fold is None else f", fold {cell.fold + 1}"
        result = measure(
            ensemble,
            judge_stored(ensemble, *test, watch),
            test[1],
            frame,
            repetitions=self.settings.repetitions,
            advance=progress.step(f"{cell.data}, {cell.ensemble}, seed {cell.seed}{fold}"),
        )
        figures = result.figures
        figures["train_images"], figures["validation_images"] = fit.train, fit.validation
        if fit.chosen is not None:
            figures["choice"] = choice_figures(fit.chosen, test, progress)
        if job.held:
            figures["held_out"] = held_out(ensemble, normals, job.held, result.pictures)
        counts = {"train_images": fit.train, "validation_images": fit.validation}
        save_run(cell.run, ensemble, self.device, counts, declared=job.config)
        heads = 1000 * statistics.median(watch.rest[1:] or watch.rest)
        trunks = sum(self._trunk_ms(ensemble.eyes, key) for key in ensemble.eyes.stages)
        figures["cost"] = {
            "ms_per_image": round(trunks + heads, 3),
            "ms_trunks": round(trunks, 3),
            "ms_heads": round(heads, 3),
            "fit_seconds": round(fit_seconds + fits.recalled + trained, 2),
            "fit_seconds_shared": round(fits.recalled, 2),
            "peak_memory_mb": round(peak_memory(self.device) / 1e6, 1),
            "artefact_mb": round((cell.run / STATE).stat().st_size / 1e6, 3),
        }
        write_cell(cell, result)

    def _trunk_ms(self, eyes: Eyes, trunk: str) -> float:
        path = self._timing(eyes, trunk)
        return float(read_json(path)["ms_per_image"]) if path.exists() else 0.0


def judge_stored(
    ensemble: Ensemble, taps: StoredTaps, samples: Sequence[Sample], watch: Stopwatch | None = None
) -> Iterator[tuple[Prediction, Sequence[Sample]]]:
    """Predictions from stored taps, batch by batch, with the samples that they belong to."""
    done = 0
    for batch in taps.only(ensemble.tap_keys()):
        begin = watch.now() if watch else 0.0
        prediction = ensemble.predict_taps(batch)
        if watch:
            watch.rest.append((watch.now() - begin) / len(prediction))
        yield prediction, samples[done : done + len(prediction)]
        done += len(prediction)


def choice_figures(chosen: Chosen, test: Stored, progress: Progress) -> dict[str, Any]:
    """Why the ensemble is what it is, some of the made defects, and what all candidates do on the test pictures."""
    by_kind = groupby(sorted(chosen.made, key=lambda sample: sample.defect), key=lambda sample: sample.defect)
    in_turn = zip_longest(*(list(samples) for _, samples in by_kind))
    made = [
        {
            "path": str(sample.path.absolute()),
            "mask": str(sample.regions[0].path.absolute()),
            "kind": sample.defect,
            "group": sample.group,
        }
        for sample in islice((sample for turn in in_turn for sample in turn if sample is not None), SHOWN)
    ]
    labels = np.array([sample.label for sample in test[1]])
    taps = test[0].only(chosen.wide.tap_keys())
    return {**chosen.record, "made": made, "truth": chosen.verified(taps, labels, progress)}


def held_out(
    ensemble: Ensemble, normals: Stored, held: Sequence[Sample], pictures: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What a fold's own good pictures say: how many raise an alarm, and how they rank against the test's defects.

    Raises: DataError if none of them could be read.
    """
    wanted = {sample.path for sample in held}
    rows = [index for index, sample in enumerate(normals[1]) if sample.path in wanted]
    if not rows:
        raise DataError(f"no readable picture is left in a fold of {len(held)}; mend the files or take fewer folds")
    judged = list(judge_stored(ensemble, normals[0].subset(rows), [normals[1][row] for row in rows]))
    scores = np.concatenate([prediction.score.double().cpu().numpy() for prediction, _ in judged])
    defective = np.array([picture["score"] for picture in pictures if picture["label"]])
    threshold = float(ensemble.score_threshold_)
    return {
        "images": len(rows),
        "false_alarm_rate": float((scores >= threshold).mean()),
        "image_auroc": image_figures(scores, defective)["auroc"].value,
    }
