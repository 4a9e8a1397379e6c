"""The student in closed form: against a slow reference, and what it agrees on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from manyeyes.backbones.least_squares import position_rows
from manyeyes.backbones.pdn import CHANNELS
from manyeyes.backbones.student_fit import GOOD, OTHER, StudentFit, fit_student
from manyeyes.checkpoint import drawn_at

Array = NDArray[np.float64]
Pairs = list[tuple[Tensor, Tensor]]


def silence() -> None:
    pass


def network(out: int = 2 * CHANNELS) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, out, 2))


def pictures(count: int, seed: int, contrast: float) -> list[Tensor]:
    return list(contrast * torch.randn(count, 1, 3, 16, 16, generator=torch.Generator().manual_seed(seed)))


@torch.no_grad()
def wanted(images: list[Tensor], bend: float) -> Pairs:
    """What is not linear in the rows, so that no fit is exact."""
    torch.manual_seed(1)
    teacher = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Conv2d(6, 2 * CHANNELS, 2))
    plain = network()
    return [(image, plain(image) + bend * teacher(image).square()) for image in images]


def silent(images: list[Tensor]) -> Pairs:
    return [(image, torch.zeros(1, CHANNELS, 13, 13)) for image in images]


def ridge(rows: Array, values: Array, weights: Array, relative: float) -> Array:
    """Weighted ridge regression, its intercept free. Shapes: -> (inputs + 1, outputs)."""
    mean = np.average(rows, axis=0, weights=weights)
    centred = rows - mean
    square = (centred * weights[:, None]).T @ centred
    square += relative * square.diagonal().mean() * np.eye(len(square))
    middle = np.average(values, axis=0, weights=weights)
    found = np.linalg.solve(square, (centred * weights[:, None]).T @ (values - middle))
    return np.vstack([found, middle - mean @ found])


def limited(values: Array) -> Array:
    return np.clip(values / values.mean(), 1 / 30, 30)


@torch.no_grad()
@pytest.mark.parametrize("rounds", [0, 2])
def test_the_fit_is_the_slow_one(rounds: int) -> None:
    student, config = network(), StudentFit(rounds=rounds, penalty=0.4, ridge=0.05)
    good, other = wanted(pictures(5, 0, 1.0), 0.5), silent(pictures(3, 1, 2.0))
    fit_student(student, good, other, (0.5, 0.7), config, 3, silence)
    body = network()
    x, y = (
        torch.cat(part).double().numpy()
        for part in zip(*position_rows(body, good, 0.5, drawn_at(3, GOOD)), strict=True)
    )
    quiet = torch.cat([rows for rows, _ in position_rows(body, other, 0.7, drawn_at(3, OTHER))]).double().numpy()
    first, last = y[:, :CHANNELS], y[:, CHANNELS:]
    weights = np.ones(len(x))
    for left in reversed(range(rounds + 1)):
        rows = np.vstack([x, quiet])
        values = np.vstack([first, np.zeros((len(quiet), CHANNELS))])
        every = np.concatenate([weights, np.full(len(quiet), 0.4 * weights.sum() / len(quiet))])
        found = ridge(rows, values, every, 0.05)
        if left:
            missed = np.square(x @ found[:-1] + found[-1] - first).mean(axis=1)
            weights = limited(weights * np.sqrt(limited(missed)))
    second = ridge(x, last, np.ones(len(x)), 0.05)
    expected = np.hstack([found, second])
    layer = student[-1]
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    np.testing.assert_allclose(layer.weight.flatten(1).T, expected[:-1], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(layer.bias, expected[-1], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_positions_that_were_missed_most_are_missed_less_with_every_round() -> None:
    good, other = wanted(pictures(6, 0, 1.0), 0.5), silent(pictures(2, 1, 2.0))
    worst = []
    for rounds in (0, 3):
        student = network()
        fit_student(student, good, other, (1.0, 1.0), StudentFit(rounds=rounds), 0, silence)
        errors = torch.cat(
            [(student(image) - said)[:, :CHANNELS].square().mean(dim=1).flatten() for image, said in good]
        )
        worst.append(float(errors.topk(len(errors) // 100).values.mean()))
    assert worst[1] < 0.9 * worst[0]


@torch.no_grad()
def test_the_layers_before_the_last_stay_the_teachers() -> None:
    student, before = network(), network()
    fit_student(student, wanted(pictures(3, 0, 1.0), 0), silent(pictures(2, 1, 2.0)), (1, 1), StudentFit(), 0, silence)
    for mine, its in zip(student[:-1].parameters(), before[:-1].parameters(), strict=True):
        assert torch.equal(mine, its)
