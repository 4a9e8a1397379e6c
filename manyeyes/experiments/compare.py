"""Compare ensembles on sets: features extracted once, every cell fitted from the store and kept, a table, a report.

A cell is one ensemble on one set with one seed. Its results are written whole as soon as it is finished, under a key of
its config, its weights, its pictures, their ground truth and the version of the code, so that a killed study goes on
where it stopped.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manyeyes import __version__
from manyeyes.backbones import Eyes, TrunkPool
from manyeyes.data import Frame, ImageBatches, ImageSet, Sample
from manyeyes.data import folds as folds_of
from manyeyes.device import Precision, resolve_device, trunk_precision
from manyeyes.ensemble import Ensemble, EnsembleConfig, Extraction, FeatureStore, Prediction, save_run
from manyeyes.ensemble.run import owned
from manyeyes.ensemble.store import StoredTaps, samples_fingerprint
from manyeyes.ensemble.training import fit_extracted, require_labels, split
from manyeyes.errors import ConfigError, DataError
from manyeyes.experiments.evaluation import Stopwatch, measure
from manyeyes.experiments.metrics import image_figures
from manyeyes.experiments.study import FIGURES, Cell, Study, write_cell
from manyeyes.progress import Progress, Silent

Stored = tuple[StoredTaps, tuple[Sample, ...]]


def run_study(
    configs: Sequence[EnsembleConfig],
    sets: Sequence[ImageSet],
    out: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    folds: int = 0,
    device: str = "auto",
    precision: Precision = "auto",
    batch_size: int = 8,
    skip_bad: bool = False,
    repetitions: int = 0,
    progress: Progress | None = None,
) -> Study:
    """Fit and measure every ensemble on every set with every seed, then write the tables and the report.

    With ``folds`` >= 2 a whole training is cross-validated: each fold trains on the other folds' good pictures and is
    measured on the test split; its own good pictures, which it has not seen, give ``held_out`` in its figures.
    Features of a set are taken once per trunk, input size and canvas, and kept in OUT/features.
    Raises: ConfigError if two ensembles or sets share a name; DataError if a set has no test pictures.
    """
    _check_names([config.name for config in configs], "ensembles")
    if min(seeds) < 0:
        raise ConfigError(f"seeds: expected numbers from 0 on, got {min(seeds)}")
    _check_names([image_set.name for image_set in sets], "sets")
    progress = progress or Silent()
    where = resolve_device(device)
    with owned(out) as folder:
        pool = TrunkPool()
        trunk_ms: dict[str, float] = {}
        cells: list[Cell] = []
        for image_set in sets:
            if not image_set.test:
                raise DataError(f"{image_set.root}: has no test pictures to compare on; expected test/<defect> folders")
            work = Work(
                image_set, folder, where, precision, batch_size, skip_bad, repetitions, pool, trunk_ms, progress
            )
            cells += work.cells(configs, seeds, folds)
        order = {config.name: index for index, config in enumerate(configs)}
        study = Study(folder, tuple(sorted(cells, key=lambda cell: order[cell.ensemble])))
        from manyeyes.experiments.report import write_report

        write_report(study)
        return study


def _check_names(names: Sequence[str], what: str) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"{what} to compare need different names; {', '.join(repeated)} stands more than once")


@dataclass(frozen=True)
class Job:
    """One cell to come: ``parts`` are its training and validation pictures, ``held`` those of its fold."""

    config: EnsembleConfig
    ensemble: Ensemble
    cell: Cell
    parts: tuple[Sequence[Sample], Sequence[Sample]]
    held: Sequence[Sample]


@dataclass
class Work:
    """All cells of one set."""

    image_set: ImageSet
    folder: Path
    device: torch.device
    precision: Precision
    batch_size: int
    skip_bad: bool
    repetitions: int
    pool: TrunkPool
    trunk_ms: dict[str, float]
    progress: Progress

    def cells(self, configs: Sequence[EnsembleConfig], seeds: Sequence[int], count: int) -> list[Cell]:
        cells, groups = self._plan(configs, seeds, count)
        for (_, store), group in groups.items():
            self._group(store, group)
        return cells

    def _plan(
        self, configs: Sequence[EnsembleConfig], seeds: Sequence[int], count: int
    ) -> tuple[list[Cell], dict[tuple[str, str], list[Job]]]:
        """All cells, and the jobs of the unfinished ones by what shares an extraction; nothing else holds a job."""
        cells: list[Cell] = []
        groups: dict[tuple[str, str], list[Job]] = {}
        for job in (
            job for config in configs for seed in dict.fromkeys(seeds) for job in self._jobs(config, seed, count)
        ):
            cells.append(job.cell)
            if not (job.cell.folder / FIGURES).exists():
                require_labels(job.ensemble, None)
                frame = job.config.frame.sized(job.ensemble.canvas)
                groups.setdefault((frame.fingerprint(), job.config.store), []).append(job)
        return cells, groups

    def _jobs(self, config: EnsembleConfig, seed: int, count: int) -> Iterator[Job]:
        config = config.model_copy(update={"seed": seed})
        if not count:
            ensemble = Ensemble(config, self.pool)
            yield Job(config, ensemble, self._cell(config, ensemble, None), split(self.image_set, config), ())
            return
        for fold, (rest, held) in enumerate(folds_of(self.image_set.train, count, seed)):
            ensemble = Ensemble(config, self.pool)
            parts = split(replace(self.image_set, train=rest), config)
            yield Job(config, ensemble, self._cell(config, ensemble, (fold, count)), parts, held)

    def _cell(self, config: EnsembleConfig, ensemble: Ensemble, fold: tuple[int, int] | None) -> Cell:
        pictures = (*self.image_set.train, *self.image_set.validation, *self.image_set.test)
        listed = samples_fingerprint(pictures, config.frame, self.skip_bad)
        weights = " ".join(sorted(ensemble.eyes.stages))
        text = f"{__version__}|{config.fingerprint()}|{weights}|{listed}|{self._truth()}|{self.repetitions}|{fold}"
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        part = f"--fold{fold[0] + 1}of{fold[1]}" if fold else ""
        name = f"{self.image_set.name}--{config.name}--seed{config.seed}{part}--{key}"
        number = fold[0] if fold else None
        return Cell(config.name, self.image_set.name, config.seed, self.folder / "cells" / name, number)

    def _truth(self) -> str:
        """Changes when the defects, the masks or their saturations do."""
        digest = hashlib.sha256()
        for sample in self.image_set.test:
            for region in sample.regions:
                status = region.path.stat() if region.path.exists() else None
                digest.update(f"{region}|{status and (status.st_size, status.st_mtime_ns)}".encode())
            digest.update(f"{sample.path}|{sample.defect}|{sample.group}\n".encode())
        return digest.hexdigest()[:16]

    def _group(self, store: str, group: list[Job]) -> None:
        frame = group[0].config.frame.sized(group[0].ensemble.canvas)
        extraction = Extraction(
            FeatureStore(self.folder / "features", store),  # type: ignore[arg-type]
            self.device,
            self.batch_size,
            self.precision,
            self.skip_bad,
        )
        eyes = Eyes([extractor for job in group for extractor in job.ensemble.extractors]).to(self.device)
        everything = (*self.image_set.train, *self.image_set.validation)
        normals = extraction(eyes, everything, frame, f"extracting {self.image_set.name}, normals", self.progress)
        test = extraction(eyes, self.image_set.test, frame, f"extracting {self.image_set.name}, test", self.progress)
        self._time_trunks(eyes, frame)
        while group:  # each fitted ensemble is let go before the next is fitted
            self._fit_and_measure(group.pop(0), normals, test, frame)

    def _time_trunks(self, eyes: Eyes, frame: Frame) -> None:
        """Milliseconds per image of each distinct trunk by itself, once per study: the median of three batches."""
        batch = next(iter(ImageBatches(self.image_set.test[: self.batch_size], frame, self.batch_size, skip_bad=True)))
        images = batch.images.to(self.device)
        if not len(images):
            return
        watch = Stopwatch(self.device, [], [])
        for trunk in eyes.each():
            if trunk.key in self.trunk_ms:
                continue
            times = []
            for _ in range(4):
                start = watch.now()
                with torch.no_grad(), trunk_precision(self.device, self.precision):
                    trunk(images, eyes.stages[trunk.key])
                times.append((watch.now() - start) / len(images))
            self.trunk_ms[trunk.key] = 1000 * statistics.median(times[1:])

    def _fit_and_measure(self, job: Job, normals: Stored, test: Stored, frame: Frame) -> None:
        ensemble, cell = job.ensemble.to(self.device), job.cell
        fold = "" if cell.fold is None else f", fold {cell.fold + 1}"
        start = time.perf_counter()
        rows = fit_extracted(ensemble, *normals, job.parts, None, Silent())
        fit_seconds = time.perf_counter() - start
        watch = Stopwatch(self.device, [], [])
        result = measure(
            ensemble,
            judge_stored(ensemble, *test, watch),
            test[1],
            frame,
            repetitions=self.repetitions,
            advance=self.progress.step(f"{cell.data}, {cell.ensemble}, seed {cell.seed}{fold}"),
        )
        trunks = sum(self.trunk_ms.get(key, 0.0) for key in ensemble.eyes.stages)
        heads = 1000 * statistics.median(watch.rest[1:] or watch.rest)
        result.figures["cost"] = {
            "ms_per_image": round(trunks + heads, 3),
            "ms_trunks": round(trunks, 3),
            "ms_heads": round(heads, 3),
            "fit_seconds": round(fit_seconds, 2),
        }
        result.figures["train_images"], result.figures["validation_images"] = rows
        if job.held:
            result.figures["held_out"] = held_out(ensemble, normals, job.held, result.pictures)
        save_run(cell.run, ensemble, self.device, {"train_images": rows[0], "validation_images": rows[1]})
        write_cell(cell, result)


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
