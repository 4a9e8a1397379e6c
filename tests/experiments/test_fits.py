"""Fits that ensembles of a study share."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from filelock import FileLock
from torch import nn

from manyeyes.ensemble.presets import load_config
from manyeyes.experiments import fits
from manyeyes.experiments.fits import SharedFits
from manyeyes.heads import GaussianConfig

CPU = torch.device("cpu")


@pytest.fixture
def shared(tmp_path: Path) -> SharedFits:
    return SharedFits(tmp_path, load_config("bundled"), CPU)


def fit(shared: SharedFits, module: nn.Linear, seconds: float = 0.0) -> None:
    def fitting() -> None:
        time.sleep(seconds)
        nn.init.ones_(module.weight)

    branch, taps = SimpleNamespace(members=["lite0"]), SimpleNamespace(fingerprint="rows")
    shared(cast(Any, branch), cast(Any, taps), GaussianConfig(), module, fitting)


def test_a_part_that_is_there_comes_back_with_the_seconds_that_it_took(shared: SharedFits, tmp_path: Path) -> None:
    fit(shared, nn.Linear(2, 1), seconds=0.05)
    assert shared.recalled == 0
    later, module = SharedFits(tmp_path, shared.config, CPU), nn.Linear(2, 1)
    fit(later, module)
    assert torch.equal(module.weight, torch.ones(1, 2))
    assert later.recalled >= 0.05


def test_waiting_for_whoever_fits_a_part_is_told_from_fitting_it(
    shared: SharedFits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other lets go as soon as it is waited for; a clock of our own says that this took seven seconds."""
    fit(shared, nn.Linear(2, 1))
    (lock,) = tmp_path.glob("*.lock")
    held, waiting, clock, events = threading.Event(), threading.Event(), [0.0], []

    def hold() -> None:
        with FileLock(lock):
            held.set()
            waiting.wait(60)
            events.append("let go")

    class Waiting(FileLock):
        def acquire(self, *arguments: Any, **options: Any) -> Any:
            clock[0] += 7
            waiting.set()
            taken = super().acquire(*arguments, **options)
            events.append("taken")
            return taken

    monkeypatch.setattr(fits, "FileLock", Waiting)
    monkeypatch.setattr(fits, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(60)
    later = SharedFits(tmp_path, shared.config, CPU)
    fit(later, nn.Linear(2, 1))
    other.join(60)
    assert events == ["let go", "taken"]
    assert later.waited == 7
    assert later.recalled < 1, "what the part took to fit, not what the wait took"
