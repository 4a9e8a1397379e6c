"""Normal equations against numpy's least squares, rows against unfolding everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from manyeyes.backbones import least_squares
from manyeyes.backbones.least_squares import LeastSquares, position_rows
from manyeyes.errors import DataError

Rows = tuple[Tensor, Tensor, Tensor]


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(count: int = 50, seed: int = 1) -> Rows:
    """Inputs far from zero, outputs, weights."""
    generator = drawn(seed)
    inputs, outputs = torch.rand(count, 6, generator=generator) + 3, torch.rand(count, 2, generator=generator)
    return inputs, outputs, 4 * torch.rand(count, generator=generator)


def expected(given: Rows, ridge: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ridge regression by numpy's own least squares: rows times the root of their weight, an intercept for the mean."""
    x, y, w = (part.double().numpy() for part in given)
    mean, middle = np.average(x, axis=0, weights=w), np.average(y, axis=0, weights=w)
    root = np.sqrt(w)[:, None]
    centred, wanted = root * (x - mean), root * (y - middle)
    strength = np.sqrt(ridge * np.square(centred).sum() / x.shape[1]) * np.eye(x.shape[1])
    found = np.linalg.lstsq(np.vstack([centred, strength]), np.vstack([wanted, np.zeros((6, 2))]), rcond=None)[0]
    return found.T, middle - mean @ found


def matches(system: LeastSquares, given: Rows, ridge: float) -> None:
    for found, wanted in zip(system.solve(ridge), expected(given, ridge), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("block", [1, 20, 1000])
@pytest.mark.parametrize("ridge", [1e-6, 0.03, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_least_squares_is_ridge_regression_on_centred_data(
    ridge: float, weighted: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(least_squares, "BLOCK", block)
    x, y, w = rows()
    system = LeastSquares(6, 2)
    for part in torch.arange(50).split(17):
        system.see(x[part], y[part], w[part] if weighted else None)
    matches(system, (x, y, w if weighted else torch.ones(50)), ridge)


def test_systems_are_added_with_a_weight() -> None:
    first, second = rows(seed=1), rows(30, seed=2)
    one, other = LeastSquares(6, 2), LeastSquares(6, 2)
    one.see(*first)
    other.see(*second)
    one.add(other, 0.25)
    weights = torch.cat([first[2], 0.25 * second[2]])
    matches(one, (torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]]), weights), 0.03)
    matches(other, second, 0.03)


def test_some_outputs_alone_are_a_copy() -> None:
    given = rows()
    whole = LeastSquares(6, 2)
    whole.see(*given)
    part = whole.only(slice(1, 2))
    part.see(given[0], given[1][:, 1:])
    matches(whole, given, 0.03)
    weight, bias = whole.only(slice(1, 2)).solve(0.03)
    torch.testing.assert_close(weight, whole.solve(0.03)[0][1:])
    torch.testing.assert_close(bias, whole.solve(0.03)[1][1:])


def test_inputs_that_never_change_are_refused() -> None:
    system = LeastSquares(6, 2)
    system.see(torch.full((9, 6), 0.7), torch.rand(9, 2))
    with pytest.raises(DataError, match="pictures that all look the same"):
        system.solve(0.01)


def test_no_row_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="fitted to no position at all"):
        LeastSquares(6, 2).solve(0.01)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 2))


@torch.no_grad()
def test_rows_are_what_the_last_layer_sees_of_each_position() -> None:
    net, images = network(), torch.randn(2, 3, 9, 12, generator=drawn(3))
    said = net(images)
    last = net[-1]
    (found,) = position_rows(net, [(images, said)], share=1.0, generator=drawn(0))
    unfolded = F.unfold(net[:-1](images), 2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(found[0], unfolded)
    assert isinstance(last, nn.Conv2d)
    torch.testing.assert_close(found[0] @ last.weight.flatten(1).T + last.bias, found[1])


@torch.no_grad()
def test_a_share_of_the_positions_is_drawn_by_seed_and_keeps_what_belongs_together() -> None:
    net, images = network(), torch.randn(4, 3, 30, 30, generator=drawn(4))
    said = net(images)
    one, again, other = (
        list(position_rows(net, [(images, said)] * 2, share=0.2, generator=drawn(seed))) for seed in (0, 0, 1)
    )
    last = net[-1]
    assert isinstance(last, nn.Conv2d)
    for part, wanted in one:
        torch.testing.assert_close(part @ last.weight.flatten(1).T + last.bias, wanted)
        assert len(part) == pytest.approx(0.2 * 4 * 27 * 27, rel=0.15)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0][0], one[1][0])
    assert one[0][0].shape != other[0][0].shape or not torch.equal(one[0][0], other[0][0])
