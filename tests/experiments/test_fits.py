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


def test_waiting_for_whoever_fits_a_part_is_told_from_fitting_it(shared: SharedFits, tmp_path: Path) -> None:
    fit(shared, nn.Linear(2, 1))
    (lock,) = tmp_path.glob("*.lock")
    held = threading.Event()

    def hold() -> None:
        with FileLock(lock):
            held.set()
            time.sleep(0.2)

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    later = SharedFits(tmp_path, shared.config, CPU)
    fit(later, nn.Linear(2, 1))
    assert later.waited >= 0.15
    assert later.recalled < later.waited
    other.join()
