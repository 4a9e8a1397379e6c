"""The three linear operations on maps, each against a slow way to the same, and what their declaration refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyeyes import maps
from manyeyes.errors import ShapeError
from manyeyes.maps import (
    MapSpec,
    all_finite,
    check_maps,
    finest_grid,
    neighbourhood_mean,
    pooled,
    spread_evenly,
    to_grid,
    upper_gram,
)

SIDE = st.integers(1, 9)
few = settings(max_examples=25, deadline=None)


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@few
@given(SIDE, SIDE, st.sampled_from([1, 3, 5]))
def test_the_neighbourhood_mean_sees_zeros_beyond_the_border(h: int, w: int, side: int) -> None:
    """A mean over the part inside cost PatchCore 7 points on parts with a busy border."""
    maps, reach = some(2, 3, h, w), side // 2
    expected = torch.empty_like(maps)
    for y in range(h):
        for x in range(w):
            window = maps[..., max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
            expected[..., y, x] = window.sum(dim=(2, 3)) / side**2
    torch.testing.assert_close(neighbourhood_mean(maps, side), expected)


@few
@given(SIDE, SIDE, SIDE, SIDE)
def test_to_grid_is_linear_keeps_constants_and_commutes_with_projections(h: int, w: int, rows: int, cols: int) -> None:
    a, b, weight = some(1, 3, h, w), some(1, 3, h, w, seed=1), some(2, 3, seed=2)
    grid = (rows, cols)
    torch.testing.assert_close(to_grid(2 * a + b, grid), 2 * to_grid(a, grid) + to_grid(b, grid))
    torch.testing.assert_close(to_grid(torch.full_like(a, 3.5), grid), torch.full((1, 3, *grid), 3.5).double())
    projected = torch.einsum("dc,bchw->bdhw", weight, to_grid(a, grid))
    torch.testing.assert_close(projected, to_grid(torch.einsum("dc,bchw->bdhw", weight, a), grid))


def test_to_grid_keeps_pixel_centres_in_place() -> None:
    ramp = ((torch.arange(8) + 0.5) / 8).expand(1, 1, 8, 8)
    for cols in (4, 16):
        inner = to_grid(ramp, (8, cols))[0, 0, 0, 2:-2]
        torch.testing.assert_close(inner, ((torch.arange(cols) + 0.5) / cols)[2:-2])


def test_the_right_grid_is_left_alone() -> None:
    maps = some(1, 2, 4, 5)
    assert to_grid(maps, (4, 5)) is maps
    assert neighbourhood_mean(maps, 1) is maps


def test_finest_grid_takes_rows_and_columns_apart_and_skips_what_is_not_spatial() -> None:
    specs = (MapSpec("a", 3, 4, (8, 4)), MapSpec("b", 3, 8, (4, 6)), MapSpec("c", 3, 64, (1, 1), spatial=False))
    assert finest_grid(specs) == (8, 6)
    with pytest.raises(ShapeError, match=r"nothing to fuse; use kind: score_level"):
        finest_grid(specs[2:])


def test_pooled_is_the_mean_of_each_channel() -> None:
    maps = (some(2, 3, 4, 4), some(2, 5, 1, 1))
    expected = torch.cat([maps[0].flatten(2).mean(2), maps[1].flatten(1)], dim=1)
    torch.testing.assert_close(pooled(maps), expected)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ((some(2, 3, 4, 4),), r"expected 2 maps \(a, b\), got 1"),
        ((some(2, 3, 4, 4), some(2, 4, 4, 4)), r"map 'b': expected \(b, 5, h, w\) with b = 2, got \(2, 4, 4, 4\)"),
        ((some(2, 3, 4, 4), some(1, 5, 4, 4)), r"map 'b'.*got \(1, 5, 4, 4\)"),
        ((some(2, 3, 4), some(2, 5, 4, 4)), r"map 'a'.*got \(2, 3, 4\)"),
    ],
)
def test_maps_that_are_not_as_declared(maps: tuple[torch.Tensor, ...], message: str) -> None:
    specs = (MapSpec("a", 3, 4, (4, 4)), MapSpec("b", 5, 4, (4, 4)))
    with pytest.raises(ShapeError, match=message):
        check_maps(maps, specs)
    check_maps((some(2, 3, 4, 4), some(2, 5, 2, 2)), specs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_values_are_finite_whatever_their_sum_would_be_in_their_own_precision(dtype: torch.dtype) -> None:
    values = torch.full((3, 64, 64), 60_000.0).to(dtype)
    assert all_finite(values)
    for broken in (float("nan"), float("inf"), -float("inf")):
        spoilt = values.clone()
        spoilt[1, 2, 3] = broken
        assert not all_finite(spoilt)


@few
@given(st.integers(0, 9), SIDE, st.booleans(), st.integers(1, 4))
def test_the_upper_triangle_is_that_of_the_product_in_any_layout(n: int, c: int, turned: bool, block: int) -> None:
    rows = some(c, n).T if turned else some(n, c)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "BLOCK", block)
        found = upper_gram(rows)
    torch.testing.assert_close(found.triu(), torch.einsum("ni,nj->ij", rows, rows).triu())
    assert upper_gram(rows.half()).dtype == torch.float16


@few
@given(st.integers(0, 40), st.integers(1, 50))
def test_places_are_spread_evenly(count: int, most: int) -> None:
    found = spread_evenly(count, most)
    assert len(found) == len(set(found)) == min(count, most)
    assert found == sorted(found)
    assert all(0 <= place < count for place in found)
    assert max(np.diff(found), default=0) - min(np.diff(found), default=0) <= 1
