import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from torch import Tensor

from manyeyes.errors import DataError, ShapeError
from manyeyes.heads import coreset_coordinates, covering_radius, greedy_coreset
from manyeyes.heads.coreset import plain_greedy_coreset


def cloud(n: int, p: int, seed: int = 0) -> Tensor:
    """Clusters of unlike width, as features of a part are."""
    draws = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(12, p, generator=draws)
    widths = torch.rand(12, 1, generator=draws) ** 3
    cluster = torch.randint(12, (n,), generator=draws)
    return centres[cluster] + widths[cluster] * torch.randn(n, p, generator=draws)


@pytest.mark.parametrize("count", [1, 2, 37, 400])
@pytest.mark.parametrize("seed", range(3))
def test_picks_are_those_of_the_plain_loop(count, seed):
    """On whole numbers, where float32 is exact."""
    points = (20 * cloud(6000, 16, seed)).round()
    assert torch.equal(greedy_coreset(points, count, seed), plain_greedy_coreset(points, count, seed))


def test_radius_is_that_of_the_plain_loop():
    """On real numbers, where rounding may swap two picks that are equally far."""
    points = cloud(6000, 16)
    picks, plain = (choose(points, 600, 0) for choose in (greedy_coreset, plain_greedy_coreset))
    assert covering_radius(points, picks) == pytest.approx(covering_radius(points, plain), rel=1e-5)
    assert len(set(picks.tolist()) & set(plain.tolist())) > 590


def test_picks_survive_an_offset_a_thousand_times_the_spread():
    """The expanded square |x|^2 - 2xz + |z|^2 of raw coordinates loses all digits here."""
    points = (20 * cloud(6000, 16)).round() + 2**20
    assert torch.equal(greedy_coreset(points, 100, 0), plain_greedy_coreset(points, 100, 0))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 3000),
    p=st.integers(1, 3),
    side=st.integers(1, 6),
    share=st.floats(0, 1),
    seed=st.integers(0, 999),
)
def test_ties_and_twins_fall_as_in_the_plain_loop(n, p, side, share, seed):
    """Whole-numbered points on a small lattice: float32 is exact, nearly all distances tie, most points are twins."""
    points = torch.randint(side, (n, p), generator=torch.Generator().manual_seed(seed)).float()
    count = max(1, int(share * min(n, 50)))
    picks = greedy_coreset(points, count, seed)
    assert torch.equal(picks, plain_greedy_coreset(points, count, seed))


def test_all_points_can_be_picked_once():
    points = torch.ones(2500, 4)
    assert greedy_coreset(points, 2500, 0).unique().numel() == 2500


def test_start_is_the_first_pick_and_the_seed_draws_it_otherwise():
    points = cloud(500, 8)
    assert greedy_coreset(points, 5, 0, start=77)[0] == 77
    assert len({int(greedy_coreset(points, 1, seed)) for seed in range(9)}) > 1


def test_greedy_is_within_twice_the_best_radius():
    """Gonzalez: no choice of k centres covers with less than half the greedy radius; here 12 tight clusters."""
    points = cloud(3000, 8)
    picks = greedy_coreset(points, 13, 0)
    others = torch.randint(3000, (50, 13), generator=torch.Generator().manual_seed(1))
    assert covering_radius(points, picks) <= 2 * min(covering_radius(points, other) for other in others)


@settings(max_examples=25, deadline=None)
@given(
    axes=st.integers(1, 12), count=st.integers(1, 60), decay=st.sampled_from([0.0, 1.0, 3.0]), seed=st.integers(0, 99)
)
def test_radius_of_picks_on_few_axes_is_bounded_by_exact_greedy(axes, count, decay, seed):
    """The bounds that `coreset_coordinates` states, on all channels, for spectra that fall slowly and fast."""
    points = cloud(400, 16, seed) * torch.arange(1, 17).float() ** -decay
    coordinates = coreset_coordinates(points, axes)
    picks = greedy_coreset(coordinates, count, seed)
    radius, projected = covering_radius(points, picks), covering_radius(coordinates, picks)
    exact = covering_radius(points, greedy_coreset(points, count, seed))
    left_out = (points - points.mean(dim=0)).square().sum(dim=1) - coordinates.square().sum(dim=1)
    tail = float(left_out.clamp_min(0).max())
    assert radius <= (projected**2 + 4 * tail) ** 0.5 * (1 + 1e-4)
    assert projected <= 2 * exact * (1 + 1e-4)
    assert radius <= 2 * (exact**2 + tail) ** 0.5 * (1 + 1e-4)


def test_covering_radius_equals_a_distance_matrix():
    points = cloud(3000, 8)
    picks = torch.tensor([3, 500, 2999])
    expected = cdist(points.double(), points[picks].double()).min(axis=1).max()
    assert covering_radius(points, picks) == pytest.approx(expected, rel=1e-12)
    assert covering_radius(points, torch.arange(3000)) == pytest.approx(0, abs=1e-6)


def test_coordinates_equal_sklearn_up_to_sign():
    points = cloud(2000, 24)
    ours = coreset_coordinates(points, 10).numpy()
    theirs = PCA(10, svd_solver="full").fit_transform(points.double().numpy())
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=2e-4)


def test_coordinates_of_few_channels_keep_all_distances():
    points = cloud(300, 5) + 7
    coordinates = coreset_coordinates(points, 64)
    assert coordinates.shape == (300, 5)
    expected = torch.from_numpy(cdist(points, points)).float()
    torch.testing.assert_close(torch.from_numpy(cdist(coordinates, coordinates)).float(), expected)


def test_fewer_points_than_axes():
    assert coreset_coordinates(cloud(3, 100), 64).isfinite().all()


def test_bad_requests_are_refused_in_words():
    points = cloud(10, 4)
    with pytest.raises(DataError, match="1 to 10 picks of 10 points, got 11"):
        greedy_coreset(points, 11, 0)
    with pytest.raises(DataError, match="got 0"):
        greedy_coreset(points, 0, 0)
    with pytest.raises(DataError, match="start from 0 to 9"):
        greedy_coreset(points, 2, 0, start=10)
    with pytest.raises(ShapeError, match=r"\(n, p\)"):
        greedy_coreset(points[0], 2, 0)
    points[4, 1] = torch.nan
    with pytest.raises(DataError, match="finite"):
        greedy_coreset(points, 2, 0)
