"""The PCA blocks against scikit-learn, and what balance, whitening and budgets promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from manyeyes.errors import ConfigError, DataError
from manyeyes.fusion import ConcatenateConfig, GlobalPcaConfig, IndependentPcaConfig
from manyeyes.fusion.independent import share_out
from manyeyes.maps import MapSpec, to_grid

SPECS = (
    MapSpec("small/a", 6, 4, (8, 8)),
    MapSpec("large/a", 20, 4, (8, 8)),
    MapSpec("small/b", 4, 8, (4, 4)),
)
GRID = (8, 8)


def data(seed: int = 0, b: int = 24, offset: float = 0.0, loud: float = 1.5) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    maps = []
    for spec in SPECS:
        falling = 2.0 ** -(torch.arange(spec.channels).float() ** 0.7)
        turn, _ = torch.linalg.qr(torch.randn(spec.channels, spec.channels, generator=random))
        noise = torch.randn(b, spec.channels, *spec.grid, generator=random) * falling[:, None, None]
        maps.append(torch.einsum("dc,bchw->bdhw", turn, noise) * (loud if "large" in spec.name else 1.0) + offset)
    return tuple(maps)


def matrix(maps: tuple[torch.Tensor, ...], indices: tuple[int, ...]) -> np.ndarray:
    resized = torch.cat([to_grid(maps[index], GRID) for index in indices], dim=1)
    return resized.movedim(1, -1).reshape(-1, resized.shape[1]).double().numpy()


def flat(fused: torch.Tensor) -> np.ndarray:
    return fused.movedim(1, -1).reshape(-1, fused.shape[1]).double().numpy()


def up_to_sign(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return theirs * np.sign((ours * theirs).sum(axis=0))


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("whiten", [False, True])
def test_global_equals_scikit_learn(offset: float, whiten: bool) -> None:
    maps = data(offset=offset)
    fusion = GlobalPcaConfig(components=8, balance=False, whiten=whiten).build(SPECS, GRID).fit([maps])
    samples = matrix(maps, (0, 1, 2))
    reference = PCA(8, whiten=whiten).fit(samples)
    ours, theirs = flat(fusion.transform(maps)), reference.transform(samples)
    np.testing.assert_allclose(ours, up_to_sign(ours, theirs), atol=1e-4 if offset else 2e-5)
    np.testing.assert_allclose(fusion.mean_, reference.mean_, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(fusion.explained_variance_ratio_, reference.explained_variance_ratio_, rtol=1e-5)


def test_global_axes_equal_scikit_learn_to_five_digits() -> None:
    maps = data()
    fusion = GlobalPcaConfig(components=8, balance=False, whiten=0).build(SPECS, GRID)
    fusion.fit([tuple(value[i : i + 5] for value in maps) for i in range(0, 24, 5)])
    reference = PCA(8).fit(matrix(maps, (0, 1, 2)))
    ours = fusion.weight_.double().numpy()
    np.testing.assert_allclose(ours, up_to_sign(ours.T, reference.components_.T).T, atol=1e-5)


@pytest.mark.parametrize("whiten", [0.0, 1.0])
def test_independent_equals_a_scikit_learn_pca_for_each_member(whiten: float) -> None:
    maps = data()
    fusion = IndependentPcaConfig(components=10, balance=False, whiten=whiten).build(SPECS, GRID).fit([maps])
    ours = flat(fusion.transform(maps))
    for start, indices in ((0, (0, 2)), (5, (1,))):
        samples = matrix(maps, indices)
        theirs = PCA(5, whiten=bool(whiten)).fit_transform(samples)
        mine = ours[:, start : start + 5]
        np.testing.assert_allclose(mine, up_to_sign(mine, theirs), atol=2e-5)


def test_largest_loading_is_positive() -> None:
    weight = GlobalPcaConfig(components=8).build(SPECS, GRID).fit([data()]).weight_
    unscaled = GlobalPcaConfig(components=8, balance=False, whiten=0).build(SPECS, GRID).fit([data()]).weight_
    assert weight.shape == (8, 30)
    assert (unscaled.gather(1, unscaled.abs().argmax(dim=1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("kind", [GlobalPcaConfig, IndependentPcaConfig])
def test_a_fraction_keeps_as_few_as_reach_it(kind: type[GlobalPcaConfig] | type[IndependentPcaConfig]) -> None:
    fusion = kind(components=0.8, balance=False).build(SPECS, GRID).fit([data()])
    groups = [(0, 1, 2)] if kind is GlobalPcaConfig else [(0, 2), (1,)]
    expected = [PCA(0.8, svd_solver="full").fit(matrix(data(), indices)).n_components_ for indices in groups]
    assert fusion.channels == sum(expected)


def test_balance_gives_a_loud_member_no_more_than_its_part() -> None:
    loud = data(loud=50.0)
    buried = GlobalPcaConfig(components=8, balance=False).build(SPECS, GRID).fit([loud]).shares()
    balanced = GlobalPcaConfig(components=8).build(SPECS, GRID).fit([loud])
    assert buried["small"] < 0.01
    assert balanced.shares()["small"] > 0.3
    quiet = GlobalPcaConfig(components=8).build(SPECS, GRID).fit([data()])
    torch.testing.assert_close(balanced.transform(loud), quiet.transform(data()), atol=1e-4, rtol=1e-3)


def test_balanced_members_have_variance_one() -> None:
    maps = data(loud=50.0)
    for config, rows in (
        (IndependentPcaConfig(components=10), (slice(0, 5), slice(5, 10))),
        (IndependentPcaConfig(components=10, whiten=1), (slice(0, 5), slice(5, 10))),
        (ConcatenateConfig(), ([*range(6), *range(26, 30)], slice(6, 26))),
    ):
        fused = flat(config.build(SPECS, GRID).fit([maps]).transform(maps))
        for mine in rows:
            assert fused[:, mine].var(axis=0, ddof=1).sum() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("kind", [GlobalPcaConfig, IndependentPcaConfig])
def test_whitening_is_tempered(kind: type[GlobalPcaConfig] | type[IndependentPcaConfig]) -> None:
    maps = data()
    std = {}
    for whiten in (0.0, 0.5, 1.0):
        fusion = kind(components=8, balance=False, whiten=whiten).build(SPECS, GRID).fit([maps])
        std[whiten] = flat(fusion.transform(maps)).std(axis=0, ddof=1)
    np.testing.assert_allclose(std[1.0], 1, rtol=1e-4)
    np.testing.assert_allclose(std[0.5], std[0.0] ** 0.5, rtol=1e-4)


def test_shares_are_the_variance_that_members_bring() -> None:
    """With every component kept and no whitening, a member's share is its part of the total variance."""
    maps = data(loud=2.0)
    shares = GlobalPcaConfig(components=30, balance=False, whiten=0).build(SPECS, GRID).fit([maps]).shares()
    small, large = (matrix(maps, indices).var(axis=0).sum() for indices in ((0, 2), (1,)))
    assert shares["small"] == pytest.approx(small / (small + large), rel=1e-4)


def test_whitening_does_not_blow_up_directions_without_variance() -> None:
    """Two equal channels leave an axis with rounding only; divided by its own std it would be noise of size one."""
    maps = data()
    twin = tuple(torch.cat([value, value], dim=1) for value in maps)
    specs = tuple(MapSpec(spec.name, 2 * spec.channels, spec.stride, spec.grid) for spec in SPECS)
    fusion = GlobalPcaConfig(components=60, whiten=1).build(specs, GRID).fit([twin])
    assert flat(fusion.transform(twin))[:, 30:].std(axis=0).max() < 1e-2


def test_never_more_components_than_positions_bear() -> None:
    spec = (MapSpec("a/only", 6, 4, (2, 2)),)
    maps = (torch.randn(1, 6, 2, 2, generator=torch.Generator().manual_seed(0)),)
    for config in (GlobalPcaConfig, IndependentPcaConfig):
        assert config(components=4).build(spec, (2, 2)).fit([maps]).channels == 3
        assert config(components=0.999999).build(spec, (2, 2)).fit([maps]).channels <= 3
        with pytest.raises(DataError, match="at least 5 positions"):
            config(components=5).build(spec, (2, 2)).fit([maps])
    with pytest.raises(DataError, match="at least 2 positions"):
        GlobalPcaConfig(components=1).build(spec, (1, 1)).fit([(torch.ones(1, 6, 1, 1),)])


def test_a_constant_member_gives_nothing_and_disturbs_nothing() -> None:
    maps = data()
    dead = (maps[0] * 0 + 5.3, maps[1], maps[2] * 0 - 100.7)
    for config in (GlobalPcaConfig(components=8), IndependentPcaConfig(components=8)):
        fusion = config.build(SPECS, GRID).fit([dead])
        fused = fusion.transform(dead)
        assert torch.isfinite(fused).all()
        assert fusion.shares()["small"] == 0
        # Nor does it speak up when its features change later: there was nothing to learn its scale from.
        assert torch.equal(fused, fusion.transform((maps[0], maps[1], maps[2])))


@settings(max_examples=50, deadline=None)
@given(total=st.integers(1, 60), limits=st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_shared_budget(total: int, limits: list[int]) -> None:
    given_out = share_out(total, {str(i): limit for i, limit in enumerate(limits)})
    assert sum(given_out.values()) == min(total, sum(limits))
    open_shares = [size for size, limit in zip(given_out.values(), limits, strict=True) if size < limit]
    assert all(size <= limit for size, limit in zip(given_out.values(), limits, strict=True))
    # Whoever has room left has no less than anyone else, but for the odd one.
    assert not open_shares or max(given_out.values()) - min(open_shares) <= 1


def sizes(**fields: object) -> list[int]:
    config = IndependentPcaConfig.parse(fields)
    found: list[int] = config.build(SPECS, GRID).fit([data()]).sizes_.tolist()
    return found


def test_budget_is_the_total() -> None:
    assert sizes(components=7) == [4, 3]
    assert sizes(components=24) == [10, 14]  # "small" has ten channels; the rest goes to "large"
    assert sizes(components=8, per_member={"large": 2}) == [6, 2]
    assert sizes(components=1000) == [10, 20]
    (kept, rest) = sizes(components=9, per_member={"small": 0.5})
    assert kept + rest == 9
    assert sizes(components=0.5, per_member={"small": 3})[0] == 3


def test_refuses_impossible_budgets() -> None:
    with pytest.raises(ConfigError, match=r"unknown members \['medium'\]; allowed: \['small', 'large'\]"):
        IndependentPcaConfig(per_member={"medium": 3}).build(SPECS, GRID)
    with pytest.raises(ConfigError, match="at least 2"):
        IndependentPcaConfig(components=1).build(SPECS, GRID)
    with pytest.raises(ConfigError, match="at least 9"):
        IndependentPcaConfig(components=8, per_member={"small": 8}).build(SPECS, GRID)
    for wrong in (0, -1, 1.5, 0.0, 1.0, True, "many"):
        with pytest.raises(ConfigError, match="components: expected a whole number of at least 1, or a fraction"):
            GlobalPcaConfig.parse({"components": wrong})
        with pytest.raises(ConfigError, match=r"per_member\.a: expected a whole number"):
            IndependentPcaConfig.parse({"per_member": {"a": wrong}})
