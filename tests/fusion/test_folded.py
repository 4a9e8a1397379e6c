"""The folded way equals the plain way, borders and resizing included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyeyes.errors import NotFittedError, ShapeError
from manyeyes.fusion import ConcatenateConfig, Folded, GlobalPcaConfig, IndependentPcaConfig
from manyeyes.fusion.folded import axis_matrix
from manyeyes.maps import MapSpec, neighbourhood_mean, to_grid

sides = st.integers(2, 9)
grids = st.tuples(sides, sides)
neighbourhoods = st.sampled_from([1, 3, 5])
members = st.sampled_from(["a", "b", "c"])
specs = st.lists(st.tuples(members, st.integers(1, 9), grids, neighbourhoods), min_size=1, max_size=4).map(
    lambda drawn: tuple(MapSpec(f"{m}/{i}", c, 8, g, n) for i, (m, c, g, n) in enumerate(drawn))
)
configs = st.one_of(
    st.builds(
        GlobalPcaConfig,
        components=st.sampled_from([1, 3, 12, 0.9]),
        balance=st.booleans(),
        whiten=st.sampled_from([0.0, 0.5, 1.0]),
    ),
    st.builds(
        IndependentPcaConfig,
        components=st.sampled_from([3, 12, 0.9]),
        balance=st.booleans(),
        whiten=st.sampled_from([0.0, 0.5, 1.0]),
    ),
    st.builds(ConcatenateConfig, balance=st.booleans()),
)


def maps_of(specs: tuple[MapSpec, ...], seed: int, b: int = 5) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(b, spec.channels, *spec.grid, generator=random) + 1 for spec in specs)


def averaged(maps: tuple[torch.Tensor, ...], specs: tuple[MapSpec, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(neighbourhood_mean(value, spec.neighbourhood) for value, spec in zip(maps, specs, strict=True))


@settings(max_examples=120, deadline=None)
@given(specs=specs, grid=grids, config=configs, seed=st.integers(0, 99))
def test_equals_the_plain_way(specs: tuple[MapSpec, ...], grid: tuple[int, int], config: Any, seed: int) -> None:
    fusion = config.build(specs, grid).fit([averaged(maps_of(specs, seed, b=8), specs)])
    new = maps_of(specs, seed + 1)
    plain, folded = fusion.transform(averaged(new, specs)), Folded(fusion)(new)
    assert folded.shape == (5, fusion.channels, *grid)
    torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-4 * max(1.0, float(plain.abs().max())))


@settings(max_examples=40, deadline=None)
@given(source=grids, target=grids, side=neighbourhoods)
def test_axis_matrices_are_the_plain_operations(source: tuple[int, int], target: tuple[int, int], side: int) -> None:
    value = torch.randn(2, 3, *source, dtype=torch.float64)
    rows, columns = (axis_matrix(source[axis], side, (target[axis],)) for axis in (0, 1))
    plain = to_grid(neighbourhood_mean(value, side), target)
    torch.testing.assert_close(rows @ value @ columns.T, plain, atol=1e-10, rtol=1e-10)
    if side == 1:  # without zeros from beyond the border a constant stays what it is
        torch.testing.assert_close(rows.sum(dim=1), torch.ones(target[0], dtype=torch.float64))


def test_axis_matrix_resizes_a_single_column_downwards() -> None:
    """torch's antialiased resize to a width of one repeats the first row; the matrix must not be made that way."""
    assert torch.equal(axis_matrix(4, 1, (4,)), torch.eye(4, dtype=torch.float64))
    halved = axis_matrix(8, 1, (4,))
    assert (halved.argmax(dim=1) // 2).tolist() == [0, 1, 2, 3]


SPECS = (MapSpec("a/2", 6, 8, (8, 8), 3), MapSpec("a/3", 8, 16, (4, 4), 3), MapSpec("b/1", 5, 8, (8, 8)))


@pytest.mark.parametrize("config", [GlobalPcaConfig(components=4), IndependentPcaConfig(components=6)])
def test_takes_maps_in_any_memory_layout_and_leaves_them_alone(config: Any) -> None:
    fusion = config.build(SPECS, (8, 8)).fit([averaged(maps_of(SPECS, 0), SPECS)])
    maps = maps_of(SPECS, 1)
    tokens = tuple(value.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for value in maps)
    folded = Folded(fusion)
    torch.testing.assert_close(folded(tokens), folded(maps), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(*pair) for pair in zip(maps, maps_of(SPECS, 1), strict=True))
    alone = torch.cat([folded(tuple(value[i : i + 1] for value in maps)) for i in range(5)])
    torch.testing.assert_close(folded(maps), alone, atol=1e-5, rtol=1e-5)


def test_has_no_state_of_its_own() -> None:
    fusion = GlobalPcaConfig(components=4).build(SPECS, (8, 8)).fit([maps_of(SPECS, 0)])
    assert not Folded(fusion).state_dict()


def test_refuses_what_it_cannot_fold() -> None:
    fusion = GlobalPcaConfig(components=4).build(SPECS, (8, 8))
    with pytest.raises(NotFittedError):
        Folded(fusion)
    folded = Folded(fusion.fit([maps_of(SPECS, 0)]))
    with pytest.raises(ShapeError, match=r"b/1.*\(8, 8\).*\(9, 8\)"):
        folded((*maps_of(SPECS, 0)[:2], torch.zeros(5, 5, 9, 8)))
    with pytest.raises(ShapeError, match="expected 3 maps"):
        folded(maps_of(SPECS, 0)[:2])
