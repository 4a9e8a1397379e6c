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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manyeyes import __version__
from manyeyes.backbones import Eyes, TrunkPool
from manyeyes.data import Frame, ImageBatches, ImageSet, Sample
from manyeyes.device import Precision, resolve_device, trunk_precision
from manyeyes.ensemble import Ensemble, EnsembleConfig, Extraction, FeatureStore, Prediction, save_run
from manyeyes.ensemble.run import owned
from manyeyes.ensemble.store import StoredTaps, samples_fingerprint
from manyeyes.ensemble.training import fit_extracted, require_labels, split
from manyeyes.errors import ConfigError, DataError
from manyeyes.experiments.evaluation import Evaluation, Stopwatch, measure
from manyeyes.files import read_json, write_json, writing
from manyeyes.progress import Progress, Silent

FIGURES, PICTURES, MAPS = "figures.json", "pictures.json", "maps.npy"


@dataclass(frozen=True)
class Cell:
    """One finished cell. ``folder`` holds its figures, its pictures' scores, small maps, and its run."""

    ensemble: str
    data: str
    seed: int
    folder: Path

    @property
    def figures(self) -> dict[str, Any]:
        return dict(read_json(self.folder / FIGURES))

    @property
    def pictures(self) -> list[dict[str, Any]]:
        return list(read_json(self.folder / PICTURES))

    @property
    def maps(self) -> np.ndarray:
        """(n, 64, 64) float16, aligned with ``pictures``."""
        maps: np.ndarray = np.load(self.folder / MAPS, allow_pickle=False)
        return maps

    @property
    def run(self) -> Path:
        return self.folder / "run"


@dataclass(frozen=True)
class Study:
    """Finished cells in the order ensembles x sets x seeds."""

    folder: Path
    cells: tuple[Cell, ...]

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def ensembles(self) -> list[str]:
        return list(dict.fromkeys(cell.ensemble for cell in self.cells))

    @property
    def sets(self) -> list[str]:
        return list(dict.fromkeys(cell.data for cell in self.cells))

    def of(self, ensemble: str, data: str) -> list[Cell]:
        return [cell for cell in self.cells if (cell.ensemble, cell.data) == (ensemble, data)]

    def table(self) -> list[dict[str, str]]:
        """One row per ensemble: image AUROC in % per set, mean over sets, pixel figures and cost, means over seeds."""
        rows = []
        for ensemble in self.ensembles:
            row, aurocs = {"ensemble": ensemble}, []
            for data in self.sets:
                values = [cell.figures["image"]["auroc"] for cell in self.of(ensemble, data)]
                known = [100 * value for value in values if value is not None]
                if known:
                    aurocs.append(statistics.fmean(known))
                spread = f" ±{statistics.stdev(known):.1f}" if len(known) > 1 else ""
                row[f"{data}: image AUROC"] = f"{statistics.fmean(known):.1f}{spread}" if known else "-"
            mine = [cell.figures for cell in self.cells if cell.ensemble == ensemble]
            if len(self.sets) > 1:
                row["mean"] = f"{statistics.fmean(aurocs):.1f}" if aurocs else "-"
            row["pixel AUROC"] = _mean([figures["pixel"]["auroc"] for figures in mine])
            row["AU-PRO"] = _mean([figures["pixel"]["au_pro"] for figures in mine])
            row["fit s"] = f"{statistics.fmean(f['cost']['fit_seconds'] for f in mine):.1f}"
            row["ms/image"] = f"{statistics.fmean(f['cost']['ms_per_image'] for f in mine):.1f}"
            rows.append(row)
        return rows


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * statistics.fmean(known):.1f}" if known else "-"


def run_study(
    configs: Sequence[EnsembleConfig],
    sets: Sequence[ImageSet],
    out: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    device: str = "auto",
    precision: Precision = "auto",
    batch_size: int = 8,
    skip_bad: bool = False,
    repetitions: int = 0,
    progress: Progress | None = None,
) -> Study:
    """Fit and measure every ensemble on every set with every seed, then write the tables and the report.

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
            cells += work.cells(configs, seeds)
        order = {config.name: index for index, config in enumerate(configs)}
        study = Study(folder, tuple(sorted(cells, key=lambda cell: order[cell.ensemble])))
        from manyeyes.experiments.report import write_report

        write_report(study)
        return study


def _check_names(names: Sequence[str], what: str) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"{what} to compare need different names; {', '.join(repeated)} stands more than once")


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

    def cells(self, configs: Sequence[EnsembleConfig], seeds: Sequence[int]) -> Iterator[Cell]:
        wanted = [config.model_copy(update={"seed": seed}) for config in configs for seed in dict.fromkeys(seeds)]
        ensembles = {config.fingerprint(): Ensemble(config, self.pool) for config in wanted}
        found = {config.fingerprint(): self._cell(config, ensembles[config.fingerprint()]) for config in wanted}
        todo = [config for config in wanted if not (found[config.fingerprint()].folder / FIGURES).exists()]
        by_canvas: dict[tuple[str, str], list[tuple[EnsembleConfig, Ensemble]]] = {}
        for config in todo:
            ensemble = ensembles.pop(config.fingerprint()).to(self.device)
            require_labels(ensemble, None)
            frame = config.frame.sized(ensemble.canvas)
            by_canvas.setdefault((frame.fingerprint(), config.store), []).append((config, ensemble))
        for (_, store), group in by_canvas.items():
            self._group(store, group, found)
        yield from found.values()

    def _cell(self, config: EnsembleConfig, ensemble: Ensemble) -> Cell:
        pictures = (*self.image_set.train, *self.image_set.validation, *self.image_set.test)
        listed = samples_fingerprint(pictures, config.frame, self.skip_bad)
        weights = " ".join(sorted(ensemble.eyes.stages))
        text = f"{__version__}|{config.fingerprint()}|{weights}|{listed}|{self._truth()}|{self.repetitions}"
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        name = f"{self.image_set.name}--{config.name}--seed{config.seed}--{key}"
        return Cell(config.name, self.image_set.name, config.seed, self.folder / "cells" / name)

    def _truth(self) -> str:
        """Changes when the defects, the masks or their saturations do."""
        digest = hashlib.sha256()
        for sample in self.image_set.test:
            for region in sample.regions:
                status = region.path.stat() if region.path.exists() else None
                digest.update(f"{region}|{status and (status.st_size, status.st_mtime_ns)}".encode())
            digest.update(f"{sample.path}|{sample.defect}|{sample.group}\n".encode())
        return digest.hexdigest()[:16]

    def _group(self, store: str, group: list[tuple[EnsembleConfig, Ensemble]], found: dict[str, Cell]) -> None:
        frame = group[0][0].frame.sized(group[0][1].canvas)
        extraction = Extraction(
            FeatureStore(self.folder / "features", store),  # type: ignore[arg-type]
            self.device,
            self.batch_size,
            self.precision,
            self.skip_bad,
        )
        eyes = Eyes([extractor for _, ensemble in group for extractor in ensemble.extractors])
        normals = (*self.image_set.train, *self.image_set.validation)
        taps, kept = extraction(eyes, normals, frame, f"extracting {self.image_set.name}, normals", self.progress)
        test, tested = extraction(
            eyes, self.image_set.test, frame, f"extracting {self.image_set.name}, test", self.progress
        )
        self._time_trunks(eyes, frame)
        while group:  # each fitted ensemble is let go before the next is fitted
            config, ensemble = group.pop(0)
            self._fit_and_measure(config, ensemble, (taps, kept), (test, tested), frame, found[config.fingerprint()])

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

    def _fit_and_measure(
        self,
        config: EnsembleConfig,
        ensemble: Ensemble,
        normals: tuple[StoredTaps, tuple[Sample, ...]],
        test: tuple[StoredTaps, tuple[Sample, ...]],
        frame: Frame,
        cell: Cell,
    ) -> None:
        label = f"{cell.data}, {cell.ensemble}, seed {cell.seed}"
        start = time.perf_counter()
        rows = fit_extracted(ensemble, normals[0], normals[1], split(self.image_set, config), None, Silent())
        fit_seconds = time.perf_counter() - start
        watch = Stopwatch(self.device, [], [])

        def judged() -> Iterator[tuple[Prediction, Sequence[Sample]]]:
            done = 0
            for batch in test[0].only(ensemble.tap_keys()):
                begin = watch.now()
                prediction = ensemble.predict_taps(batch)
                watch.rest.append((watch.now() - begin) / len(prediction))
                yield prediction, test[1][done : done + len(prediction)]
                done += len(prediction)

        result = measure(
            ensemble, judged(), test[1], frame, repetitions=self.repetitions, advance=self.progress.step(label)
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
        save_run(cell.run, ensemble, self.device, {"train_images": rows[0], "validation_images": rows[1]})
        write_cell(cell, result)


def write_cell(cell: Cell, result: Evaluation) -> None:
    """Write a finished cell; its figures last, because they say that it is finished."""
    with writing(cell.folder / MAPS) as temporary, open(temporary, "wb") as file:
        np.save(file, result.maps, allow_pickle=False)
    write_json(cell.folder / PICTURES, result.pictures)
    identity = {"ensemble": cell.ensemble, "data": cell.data, "seed": cell.seed}
    write_json(cell.folder / FIGURES, {**identity, **result.figures})
