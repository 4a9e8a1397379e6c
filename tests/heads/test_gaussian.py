import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import OAS, LedoitWolf, ShrunkCovariance
from torch import Tensor

from manyeyes.errors import ConfigError
from manyeyes.heads import Gaussian, GaussianConfig

ORACLES = {"ledoit-wolf": LedoitWolf(), "oas": OAS(), 0.3: ShrunkCovariance(shrinkage=0.3)}


def vectors(images: int, c: int, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    mixing = torch.randn(c, c, generator=torch.Generator().manual_seed(9)) / c**0.5
    return torch.randn(images, c, generator=draws) @ mixing + 5


def gaussian_of(values: Tensor, **fields) -> Gaussian:
    return GaussianConfig(**fields).build(values.shape[1]).fit(values.split(7), 0)


@pytest.mark.parametrize("shrinkage", list(ORACLES))
@pytest.mark.parametrize("images", [15, 200])
def test_score_equals_sklearn(shrinkage, images):
    """Also with fewer images than channels, where only the shrinkage makes the covariance invertible."""
    values, fresh = vectors(images, 40), vectors(20, 40, seed=1)
    expected = np.sqrt(ORACLES[shrinkage].fit(values.double().numpy()).mahalanobis(fresh.double().numpy()))
    ours = gaussian_of(values, shrinkage=shrinkage).score(fresh)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5)


def test_standardised_score_equals_sklearn_on_standardised_channels():
    values, fresh = vectors(30, 12), vectors(9, 12, seed=1)
    exact = values.double().numpy()
    mean, scale = exact.mean(axis=0), exact.std(axis=0)
    oracle = LedoitWolf().fit((exact - mean) / scale)
    expected = np.sqrt(oracle.mahalanobis((fresh.double().numpy() - mean) / scale))
    np.testing.assert_allclose(gaussian_of(values, standardise=True).score(fresh).numpy(), expected, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(powers=st.lists(st.integers(-6, 6), min_size=5, max_size=5))
def test_standardised_score_ignores_the_scale_of_each_channel(powers):
    scale = 2.0 ** torch.tensor(powers)
    values, fresh = vectors(30, 5), vectors(9, 5, seed=1)
    plain = gaussian_of(values, standardise=True).score(fresh)
    torch.testing.assert_close(gaussian_of(values * scale, standardise=True).score(fresh * scale), plain)


def test_plain_score_does_depend_on_the_scale_of_a_channel():
    """The reason that ``standardise`` exists: the shrinkage target is a multiple of the identity."""
    scale = torch.tensor([64.0, 1, 1, 1, 1])
    values, fresh = vectors(30, 5), vectors(9, 5, seed=1)
    scaled = gaussian_of(values * scale).score(fresh * scale)
    assert not torch.allclose(scaled, gaussian_of(values).score(fresh), rtol=1e-2)


@pytest.mark.parametrize("standardise", [False, True])
def test_constant_channel_and_no_shrinkage_stay_finite(standardise):
    values = vectors(6, 20)
    values[:, 3] = 2.5
    head = gaussian_of(values, shrinkage=0.0, standardise=standardise)
    assert head.score(values).isfinite().all()
    changed = values.clone()
    changed[:, 3] += 1
    assert (head.score(changed) > head.score(values)).all()


def test_centred_features_without_shrinkage_stay_invertible():
    """A covariance of low rank and a mean of zero: its null eigenvalues come out negative by rounding."""
    values = 1e3 * vectors(6, 20)
    values = values - values.double().mean(dim=0).float()
    assert gaussian_of(values, shrinkage=0.0).score(values).isfinite().all()


@pytest.mark.parametrize("level", [0.0, 1.7, 1e4])
@pytest.mark.parametrize("standardise", [False, True])
def test_equal_vectors_score_zero(level, standardise):
    values = torch.full((6, 4), level)
    head = gaussian_of(values, standardise=standardise)
    torch.testing.assert_close(head.score(values), torch.zeros(6), rtol=0, atol=1e-6)
    assert (head.score(values + 1) > 1).all()


def test_scores_do_not_overflow():
    values = torch.zeros(4, 3)
    assert gaussian_of(values).score(torch.full((1, 3), 3e38)).isfinite().all()


@pytest.mark.parametrize("shrinkage", [-0.1, 1.5, "ledoit_wolf"])
def test_shrinkage_outside_its_range_is_refused(shrinkage):
    with pytest.raises(ConfigError, match="shrinkage"):
        GaussianConfig.parse({"shrinkage": shrinkage})
