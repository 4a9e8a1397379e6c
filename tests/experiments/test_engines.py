"""Where cells run makes no difference: engines agree, lost work is done again, processes share one folder."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FORKSERVER, draw_parts, small_config, small_member
from filelock import FileLock
from workers import Fails, Suicide

from manyeyes.data import ImageSet, read_image_set
from manyeyes.errors import ConfigError, DataError, RunError
from manyeyes.experiments.compare import run_study
from manyeyes.experiments.engines import (
    Engine,
    LostWorker,
    Notes,
    Processes,
    RayCluster,
    Sequential,
    Task,
    cores,
    engine_of,
)
from manyeyes.experiments.study import Study
from manyeyes.fusion import GlobalPcaConfig, ScoreLevelConfig
from manyeyes.progress import Progress, Silent

CONFIGS = (
    small_config(name="scores", fusion=ScoreLevelConfig(), heads=()),
    small_config(name="global", fusion=GlobalPcaConfig(components=8)),
    small_config(name="one", members=(small_member("one"),), fusion=ScoreLevelConfig(), heads=()),
)


def study(out: Path | str, root: Path | str, **more: Any) -> Study:
    return run_study(CONFIGS, [read_image_set(root)], out, device="cpu", batch_size=4, **more)


def told(found: Study) -> list[Any]:
    """All that a study has found, without what a clock or a scale has measured."""
    return [
        (cell.ensemble, cell.seed, {k: v for k, v in cell.figures.items() if k != "cost"}, cell.pictures)
        for cell in found.cells
    ]


def test_ray_equals_joblib_equals_one_after_another(parts: ImageSet, tmp_path: Path) -> None:
    sequential = Sequential()
    sequential.threads = 1
    processes = Processes(2)
    processes.threads = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, about itself
        ray = RayCluster("local", 2)
        ray.threads = 1
        found = {
            type(engine).__name__: study(tmp_path / type(engine).__name__, parts.root, engine=engine)
            for engine in (sequential, processes, ray)
        }
    one, two, three = (told(value) for value in found.values())
    assert len(one) == 3
    assert one == two == three
    first = [np.stack([cell.maps for cell in value.cells]) for value in found.values()]
    assert np.array_equal(first[0], first[1])
    assert np.array_equal(first[0], first[2])


def test_a_killed_worker_is_noticed_and_its_task_runs_again(tmp_path: Path) -> None:
    task, notes = Suicide(tmp_path / "tried"), Notes()
    with Processes(2) as engine:
        with pytest.raises(LostWorker):
            list(engine.run([task], notes))
        assert list(engine.run([task], notes)) == [None]
        assert notes.said == ["survived"]
        with pytest.raises(DataError, match=r"^picture.png: is broken$"):
            list(engine.run([Fails()], notes))


class Flaky(Engine):
    """Loses its worker so many times after the first task of a run."""

    def __init__(self, losses: int) -> None:
        self.losses = losses

    def run(self, tasks: Sequence[Task], progress: Progress) -> Iterator[None]:
        for number, task in enumerate(tasks):
            if number and self.losses:
                self.losses -= 1
                raise LostWorker("A worker was killed. Perhaps by the system.")
            task(progress)
            yield

    def __exit__(self, *error: object) -> None:
        pass


def test_cells_of_lost_workers_are_begun_again(parts: ImageSet, tmp_path: Path) -> None:
    whole = study(tmp_path / "whole", parts.root)
    notes = Notes()
    assert told(study(tmp_path / "lossy", parts.root, engine=Flaky(2), progress=notes)) == told(whole)
    assert notes.said == [f"a worker was lost; its cells are begun again ({n} of 2)" for n in (1, 2)]
    with pytest.raises(RunError, match=r"workers died 3 times \(A worker was killed\); if memory ran out"):
        study(tmp_path / "hopeless", parts.root, engine=Flaky(9), seeds=(0, 1))
    assert len(list((tmp_path / "hopeless/cells").glob("*/figures.json"))) == 3


class Log(Silent):
    """Writes which process has measured which cell."""

    def __init__(self, path: str) -> None:
        self.path = path

    def step(self, what: str) -> Any:
        if "seed" in what:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(f"{os.getpid()} {what}\n")
        return super().step(what)


def take_part(out: str, root: str, log: str) -> None:
    study(out, root, seeds=(0, 1), progress=Log(log))


def test_two_processes_share_the_work(parts: ImageSet, tmp_path: Path) -> None:
    alone = study(tmp_path / "alone", parts.root, seeds=(0, 1))
    held, *others = sorted(tmp_path / "shared/cells" / cell.folder.name for cell in alone.cells)
    held.mkdir(parents=True)
    log = tmp_path / "log.txt"
    workers = [
        FORKSERVER.Process(target=take_part, args=(str(tmp_path / "shared"), str(parts.root), str(log)))
        for _ in range(2)
    ]
    with FileLock(held / ".lock"):  # as a third process that has this cell in hand
        for worker in workers:
            worker.start()
        deadline = time.monotonic() + 120
        while not all((cell / "figures.json").exists() for cell in others):
            assert all(worker.is_alive() for worker in workers), "ended while a cell was in another's hands"
            assert time.monotonic() < deadline, "the other cells were not finished while one was in another's hands"
            time.sleep(0.1)
        assert not (held / "figures.json").exists()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    measured = [line.split(maxsplit=1)[1] for line in log.read_text().splitlines()]
    assert sorted(measured) == sorted(set(measured)), "no cell was made twice"
    assert len(measured) == 6
    assert told(study(tmp_path / "shared", parts.root, seeds=(0, 1))) == told(alone)


def test_workers_threads_are_not_the_callers(parts: ImageSet, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        study(tmp_path, parts.root, engine=Processes(cores()))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_command_line_chooses_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(engine_of(), Sequential)
    chosen = engine_of(jobs=3)
    assert isinstance(chosen, Processes)
    assert chosen.jobs == 3
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"Ray is not installed; run `pip install manyeyes\[ray\]`"):
        engine_of(ray="local")


@pytest.mark.parametrize(("cuda", "auto"), [(False, "cpu"), (True, "cuda")])
def test_ray_gives_each_task_the_device_that_the_cells_are_named_after(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, auto: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    engine = RayCluster("local", 2)
    assert engine.placed("auto") == auto
    assert engine.cuda is cuda
    assert engine.placed("cpu") == "cpu"
    assert not engine.cuda
    with pytest.raises(ConfigError, match="--device cpu:0: Ray gives every task a GPU of its own; use cpu with --ray"):
        engine.placed("cpu:0")
    assert Sequential().placed("cuda:1") == "cuda:1"


def test_parts_in_common_are_fitted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from manyeyes.heads.memory_bank import MemoryBank

    root = draw_parts(tmp_path / "parts", train=8, good=2, defective=2)
    fits: list[int] = []
    fit = MemoryBank.fit

    def counted(self: MemoryBank, embeddings: Any, seed: int) -> MemoryBank:
        fits.append(seed)
        return fit(self, embeddings, seed)

    monkeypatch.setattr(MemoryBank, "fit", counted)
    found = study(tmp_path / "study", root)
    assert len(fits) == 3, "the banks of both members, and that of the fused map"
    shared = [cell.figures["cost"]["fit_seconds_shared"] > 0 for cell in found.cells]
    assert shared == [False, True, True]
    # A bank on another block, or with another seed, is another bank.
    study(tmp_path / "study", root, seeds=(0, 1))
    assert fits == [0, 0, 0, 1, 1, 1]


def test_a_broken_fit_is_named(tmp_path: Path) -> None:
    root = draw_parts(tmp_path / "parts", train=8, good=2, defective=2)
    found = study(tmp_path / "study", root)
    (found.cells[0].folder / "figures.json").unlink()
    for path in (tmp_path / "study/fits").glob("gaussian-*.safetensors"):
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(
        RunError, match=r"gaussian-\w+.safetensors: is no whole fit .* delete it and run the study again"
    ):
        study(tmp_path / "study", root)
