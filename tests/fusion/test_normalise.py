"""Normalisers: monotone whatever they are fitted on, right to the number, and defined where there is no spread."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from manyeyes.errors import ConfigError
from manyeyes.fusion import MinMaxConfig, QuantileConfig, RobustConfig, TailConfig, ZScoreConfig

ALL = [ZScoreConfig(), RobustConfig(), MinMaxConfig(), QuantileConfig(), TailConfig()]
each = pytest.mark.parametrize("config", ALL, ids=lambda config: config.kind)
values = st.floats(-1e4, 1e4, width=32)


def normals(n: int = 200, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 3 + 20


@each
@settings(max_examples=60, deadline=None)
@given(
    fit=st.lists(values, min_size=1, max_size=30),
    new=st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=30),
)
def test_never_decreases(config: Any, fit: list[float], new: list[float]) -> None:
    ordered = torch.tensor(sorted([*fit, *new]))
    normalised = config.build().fit(torch.tensor(fit)).transform(ordered)
    assert torch.isfinite(normalised).all()
    # In float32 the steps of an interpolation may round down by an ulp or two.
    assert (normalised.diff() >= -1e-6 * normalised.abs().max().clamp_min(1)).all()


@each
def test_increases_strictly_within_and_beyond_the_normals(config: Any) -> None:
    ordered = torch.linspace(10, 90, 400, dtype=torch.float64)
    assert (config.build().fit(normals()).transform(ordered).diff() > 0).all()


@each
@pytest.mark.parametrize("fit", [[5.0], [5.0] * 9, [0.3, 0.3 + 3e-8] * 5, [0.0] * 4])
def test_without_spread_scores_are_only_shifted(config: Any, fit: list[float]) -> None:
    normaliser = config.build().fit(torch.tensor(fit))
    low, at, high = normaliser.transform(torch.tensor([fit[0] - 1, fit[0], fit[0] + 1])).tolist()
    assert low < at < high
    assert high - low < 3  # not divided by the rounding of equal scores


@each
def test_half_scores_and_maps_come_back_as_float32_maps(config: Any) -> None:
    maps = normals(600).reshape(6, 10, 10)
    assert config.build().fit(maps.half()).transform(maps.half()).dtype == torch.float32
    assert config.build().fit(maps).transform(maps).shape == maps.shape
    assert config.build().fit(maps).transform(maps.double()).dtype == torch.float64


def test_zscore() -> None:
    z = ZScoreConfig().build().fit(normals()).transform(normals())
    np.testing.assert_allclose(z, stats.zscore(normals().double(), ddof=1), atol=1e-5)


def test_zscore_of_large_scores_keeps_its_digits() -> None:
    far = normals() + 1e4
    z = ZScoreConfig().build().fit(far).transform(far)
    np.testing.assert_allclose(z, stats.zscore(far.double(), ddof=1), atol=1e-3)


def test_robust_ignores_a_few_outliers() -> None:
    spoilt = torch.cat([normals(), torch.full((5,), 1e6)])
    z = RobustConfig().build().fit(spoilt).transform(normals())
    mad = stats.median_abs_deviation(spoilt.double(), scale="normal")
    np.testing.assert_allclose(z, (normals() - np.median(spoilt)) / mad, rtol=1e-3, atol=1e-3)
    assert 0.8 < float(z.std()) < 1.3


def test_robust_falls_back_where_most_scores_are_equal() -> None:
    fit = torch.tensor([1.0] * 9 + [2.0])
    z = RobustConfig().build().fit(fit).transform(torch.tensor([1.0, 2.0]))
    assert z.tolist() == pytest.approx([0, 1 / float(fit.std())], rel=1e-5)


def test_minmax_is_not_clipped() -> None:
    unit = MinMaxConfig().build().fit(torch.tensor([2.0, 3.0, 6.0]))
    assert unit.transform(torch.tensor([0.0, 2.0, 6.0, 10.0])).tolist() == [-0.5, 0.0, 1.0, 2.0]


def test_quantile_is_efficientad_s() -> None:
    fit = normals(1000)
    low, high = np.quantile(fit.double(), [0.9, 0.995])
    ours = QuantileConfig().build().fit(fit).transform(normals(50, 1))
    np.testing.assert_allclose(ours, 0.1 * (normals(50, 1).double() - low) / (high - low), rtol=1e-3, atol=1e-5)


def test_quantile_of_more_pixels_than_float32_can_count() -> None:
    n = 2**24 + 10_001
    pixels = torch.arange(n, dtype=torch.float32) / n
    ours = QuantileConfig().build().fit(pixels).transform(torch.tensor([0.9, 0.995]))
    assert ours.tolist() == pytest.approx([0, 0.1], abs=1e-5)


def test_quantiles_must_be_in_order() -> None:
    with pytest.raises(ConfigError, match="low must be under high"):
        QuantileConfig.parse({"low": 0.99, "high": 0.9})


def test_tail_is_the_conformal_probability_at_the_normals() -> None:
    fit = torch.tensor([4.0, 1.0, 2.0, 2.0, 3.0])
    at = TailConfig().build().fit(fit).transform(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_allclose(10 ** -at.double(), [5 / 6, 4 / 6, 2 / 6, 1 / 6], rtol=1e-5)


def test_tail_stays_a_probability_below_the_normals() -> None:
    low = TailConfig().build().fit(normals()).transform(torch.tensor([5.0, 8.0, 11.0], dtype=torch.float64))
    assert (low > 0).all()
    assert (low < np.log10(201 / 200)).all()


def test_tail_beyond_the_normals_is_exponential() -> None:
    """For exponential scores the true probability is known far outside the sample."""
    fit = torch.from_numpy(np.random.default_rng(0).exponential(2.0, 5000))
    far = float(fit.max()) + torch.tensor([4.0, 14.0], dtype=torch.float64)
    step = TailConfig().build().fit(fit).transform(far).diff()
    assert float(step) == pytest.approx(10 / 2 / np.log(10), rel=0.1)


def test_tail_keeps_few_knots_of_many_pixels() -> None:
    fit = normals(100_000)
    tail = TailConfig().build().fit(fit)
    assert len(tail.knots_) <= tail.KNOTS
    ordered = fit.double().sort().values
    at = ordered[[10, 1_000, 50_000, 99_000, 99_990, 99_999]]
    expected = np.array([99_990, 99_000, 50_000, 1_000, 10, 1]) / 100_001
    np.testing.assert_allclose(10 ** -tail.transform(at), expected, rtol=1e-3)
