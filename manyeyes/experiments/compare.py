"""Compare ensembles on sets: features extracted once, every cell fitted from the store and kept, tables, a report.

A cell is one ensemble on one set with one seed. Its results are written whole as soon as it is finished, under a key of
its config, its weights, its pictures, their ground truth and the code, so that a killed study goes on where it stopped.
Every cell has a lock: several processes may work on one study, each on the cells that no other has in hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from manyeyes.data import ImageSet
from manyeyes.device import Precision
from manyeyes.ensemble import EnsembleConfig
from manyeyes.errors import ConfigError, RunError
from manyeyes.experiments.bench import Extract, Measure, Settings, bench_of
from manyeyes.experiments.engines import Engine, LostWorker, Sequential
from manyeyes.experiments.plan import Plan, plan_study
from manyeyes.experiments.study import Study
from manyeyes.files import make_folder
from manyeyes.progress import Progress, Silent

ATTEMPTS = 3
"""How often tasks are begun whose worker was lost."""


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
    baseline: str | None = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> Study:
    """Fit and measure every ensemble on every set with every seed, then write the tables and the report.

    With ``folds`` >= 2 a whole training is cross-validated: each fold trains on the other folds' good pictures and is
    measured on the test split; its own good pictures, which it has not seen, give ``held_out`` in its figures.
    Features of a set are taken once per trunk, input size and canvas, and kept in OUT/features; equal blocks and heads
    are fitted once and kept in OUT/fits.
    ``baseline`` names the ensemble that the others are compared with, by default the first.
    Raises: as `plan_study`; ConfigError if ``baseline`` is none of the ensembles; RunError if workers are lost again
    and again.
    """
    engine, progress = engine or Sequential(), progress or Silent()
    names = [config.name for config in configs]
    if not names or not sets:
        raise ConfigError("a study needs at least one ensemble and one image set")
    if baseline is not None and baseline not in names:
        raise ConfigError(f"baseline {baseline!r}: none of the ensembles; allowed: {', '.join(names)}")
    folder = Path(out).absolute()
    settings = Settings(folder, engine.placed(device), precision, batch_size, skip_bad, repetitions, engine.threads)
    try:
        plan = plan_study(configs, sets, seeds, folds, bench_of(settings))
        make_folder(folder)
        with engine:
            finish(plan, settings, engine, progress)
    finally:
        bench_of.cache_clear()  # lets go of the trunks
    study = Study(folder, plan.cells, baseline)
    from manyeyes.experiments.report import write_report

    write_report(study)
    return study


def finish(plan: Plan, settings: Settings, engine: Engine, progress: Progress) -> None:
    """Extract what is missing, then make every cell that is not finished; lost ones again."""
    done = progress.step("cells")
    extractions = [Extract(settings, group) for group in plan.groups]
    extracted, wait, lost = False, False, 0
    while jobs := [job for job in plan.jobs if not job.cell.finished]:
        try:
            if not extracted:
                for _ in engine.run(extractions, progress):
                    pass
                extracted = True
            for _ in engine.run([Measure(settings, job, wait) for job in jobs], progress):
                done(sum(job.cell.finished for job in plan.jobs), len(plan.jobs))
            # What is left is in the hands of another process: stand by, and take over if it dies.
            wait = True
        except LostWorker as error:
            lost += 1
            if lost == ATTEMPTS:
                raise RunError(
                    f"{settings.folder}: workers died {lost} times ({str(error).split('.')[0]}); "
                    "if memory ran out, take fewer --jobs; finished cells are kept"
                ) from None
            progress.say(f"a worker was lost; its cells are begun again ({lost} of {ATTEMPTS - 1})")
