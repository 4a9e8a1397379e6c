"""What a study has to do: its cells, each under the key of all that its figures depend on, and what they share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from manyeyes.config import LARGEST_SEED
from manyeyes.data import ImageSet, Sample
from manyeyes.data import folds as folds_of
from manyeyes.ensemble import Ensemble, EnsembleConfig
from manyeyes.ensemble.store import samples_fingerprint
from manyeyes.ensemble.training import require_labels, split
from manyeyes.ensemble.trunks import further_pictures
from manyeyes.errors import ConfigError, DataError
from manyeyes.experiments.bench import Bench, Group, Job
from manyeyes.experiments.sources import code_digest
from manyeyes.experiments.study import Cell


@dataclass(frozen=True)
class Plan:
    """``cells``, all of them, in the order ensembles x sets x seeds x folds; ``jobs`` for those not finished yet."""

    cells: tuple[Cell, ...]
    jobs: tuple[Job, ...]
    groups: tuple[Group, ...]


def plan_study(
    configs: Sequence[EnsembleConfig], sets: Sequence[ImageSet], seeds: Sequence[int], folds: int, bench: Bench
) -> Plan:
    """Everything that can be refused is refused here, before any work.

    Raises: ConfigError if two ensembles or sets share a name or a seed is negative; DataError if a set has no test
    pictures, or a combiner learns from labels.
    """
    _check_names([config.name for config in configs], "ensembles")
    _check_names([image_set.name for image_set in sets], "sets")
    if not seeds or min(seeds) < 0:
        raise ConfigError(f"seeds: expected numbers from 0 on, got {min(seeds) if seeds else 'none'}")
    if max(seeds) > LARGEST_SEED:
        raise ConfigError(f"seeds: expected numbers up to {LARGEST_SEED}, got {max(seeds)}")
    cells: list[tuple[int, Cell]] = []
    jobs: list[Job] = []
    groups: dict[tuple[str, str, str], Group] = {}
    for image_set in map(absolute, sets):
        if not image_set.test:
            raise DataError(f"{image_set.root}: has no test pictures to compare on; expected test/<defect> folders")
        keys = Keys(image_set, bench)
        for order, declared in enumerate(configs):
            for seed in dict.fromkeys(seeds):
                config = declared.model_copy(update={"seed": seed})
                ensemble = bench.ensemble(config)
                found = list(_jobs(config, image_set, folds, ensemble, keys))
                cells += [(order, job.cell) for job in found]
                unfinished = [job for job in found if not job.cell.finished]
                if not unfinished:
                    continue
                require_labels(ensemble, None)
                jobs += unfinished
                frame = config.frame.sized(ensemble.canvas)
                key = (image_set.name, frame.fingerprint(), config.store)
                group = groups.get(key, Group(image_set, frame, config.store, ()))
                groups[key] = replace(group, configs=(*group.configs, config))
    in_order = tuple(cell for _, cell in sorted(cells, key=lambda item: item[0]))
    return Plan(in_order, tuple(jobs), tuple(groups.values()))


def _jobs(config: EnsembleConfig, image_set: ImageSet, count: int, ensemble: Ensemble, keys: Keys) -> Iterator[Job]:
    if not count:
        yield Job(config, image_set, keys.cell(config, ensemble, None), split(image_set, config), ())
        return
    for fold, (rest, held) in enumerate(folds_of(image_set.train, count, config.seed)):
        parts = split(replace(image_set, train=rest), config)
        yield Job(config, image_set, keys.cell(config, ensemble, (fold, count)), parts, held)


class Keys:
    """Names cells on one set. Other pictures, ground truth, weights, code or settings give other names."""

    def __init__(self, image_set: ImageSet, bench: Bench) -> None:
        self.image_set, self.settings = image_set, bench.settings
        self.arithmetic = bench.arithmetic
        self.truth = _truth(image_set.test)

    def cell(self, config: EnsembleConfig, ensemble: Ensemble, fold: tuple[int, int] | None) -> Cell:
        settings = self.settings
        splits = self.image_set.train, self.image_set.validation, self.image_set.test
        pictures = [sample for part in splits for sample in part]
        listed = samples_fingerprint(pictures, config.frame, settings.skip_bad)
        weights = " ".join(sorted(ensemble.eyes.stages))
        further = [digits for trunk in ensemble.trainable for digits in further_pictures(trunk, config.frame)]
        facts = [code_digest(), config.fingerprint(), weights, self.arithmetic, listed, *further, self.truth]
        text = "|".join([*facts, str([len(part) for part in splits]), str(settings.repetitions), str(fold)])
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        part = f"--fold{fold[0] + 1}of{fold[1]}" if fold else ""
        name = f"{self.image_set.name}--{config.name}--seed{config.seed}{part}--{key}"
        number = fold[0] if fold else None
        return Cell(config.name, self.image_set.name, config.seed, settings.folder / "cells" / name, number)


def _truth(test: Sequence[Sample]) -> str:
    """Changes when the defects, the masks or their saturations do."""
    digest = hashlib.sha256()
    for sample in test:
        for region in sample.regions:
            status = region.path.stat() if region.path.exists() else None
            digest.update(os.fsencode(f"{region}|{status and (status.st_size, status.st_mtime_ns)}"))
        digest.update(os.fsencode(f"{sample.path}|{sample.defect}|{sample.group}\n"))
    return digest.hexdigest()[:16]


def absolute(image_set: ImageSet) -> ImageSet:
    """The same set with absolute paths, as workers in other folders and later readers of the study need them."""

    def moved(sample: Sample) -> Sample:
        regions = tuple(replace(region, path=region.path.absolute()) for region in sample.regions)
        return replace(sample, path=Path(sample.path).absolute(), regions=regions)

    train, validation, test = (
        tuple(map(moved, part)) for part in (image_set.train, image_set.validation, image_set.test)
    )
    return replace(image_set, root=image_set.root.absolute(), train=train, validation=validation, test=test)


def _check_names(names: Sequence[str], what: str) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"{what} to compare need different names; {', '.join(repeated)} stands more than once")
