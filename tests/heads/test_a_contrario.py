"""The a-contrario mask: the binomial tail it rests on, and the promise that normal pictures are rarely marked."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor

from manyeyes.errors import ConfigError, DataError, NotFittedError
from manyeyes.heads import AContrario, AContrarioConfig
from manyeyes.heads.a_contrario import log10_tails, rarity, window_counts

FLOW = ((24, 8, 8), (16, 16, 16), (12, 32, 32))


def noise(count: int, seed: int, shapes: tuple[tuple[int, int, int], ...] = FLOW) -> list[Tensor]:
    """Squares of independent standard normal values: what a perfect flow makes of normal pictures."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, *shape, generator=generator).square() for shape in shapes]


def smooth_noise(count: int, seed: int) -> list[Tensor]:
    """One channel, neighbours alike: what the anomaly map of a head looks like on normal pictures."""
    values = torch.randn(count, 1, 40, 40, generator=torch.Generator().manual_seed(seed))
    return [5 * F.avg_pool2d(values, 5, stride=1, padding=2)[:, :, 4:36, 4:36]]


def fired(test: AContrario, maps: list[Tensor]) -> float:
    """Windows with fewer false alarms than promised, per picture."""
    tests = len(test.config.windows) * sum(value.shape[2] * value.shape[3] for value in maps)
    limit = math.log10(test.config.false_alarms / tests)
    total = 0
    for value, counts, spreads in zip(maps, test._counts(maps), test.dispersion_.tolist(), strict=True):
        for side, count, spread in zip(test.config.windows, counts, spreads, strict=True):
            total += int((rarity(count, side, value.shape[1], test.config.chance, spread) < limit).sum())
    return total / len(maps[0])


@pytest.mark.parametrize(("trials", "chance"), [(1, 0.1), (9, 0.1), (300, 0.1), (75, 0.01)])
def test_tails_are_those_of_the_binomial_law(trials: int, chance: float) -> None:
    expected = scipy.stats.binom.sf(torch.arange(trials + 1).numpy() - 1, trials, chance)
    found = 10 ** log10_tails(trials, chance).double().numpy()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-30)


def test_fewer_trials_make_the_same_count_less_rare() -> None:
    plain, half = log10_tails(40, 0.1), log10_tails(40, 0.1, 2.0)
    assert (half[8:] > plain[8:]).all()
    torch.testing.assert_close(half[::2], log10_tails(20, 0.1))


def test_windows_end_at_the_border() -> None:
    ones = torch.ones(1, 1, 4, 5)
    assert window_counts(ones, 3)[0].tolist() == [[4, 6, 6, 6, 4], [6, 9, 9, 9, 6], [6, 9, 9, 9, 6], [4, 6, 6, 6, 4]]
    corner = rarity(4 * torch.ones(1, 4, 5), 3, 1, 0.1, 1.0)[0, 0, 0]
    assert float(corner) == pytest.approx(-4, abs=1e-4), "four of four trials at 0.1"


@pytest.mark.parametrize("promised", [1.0, 10.0])
def test_on_independent_normal_values_it_fires_at_the_promised_rate(promised: float) -> None:
    test = AContrarioConfig(false_alarms=promised).build().fit([noise(40, 0)])
    assert promised / 2 <= fired(test, noise(400, 1)) <= promised * 2
    torch.testing.assert_close(test.dispersion_, torch.ones(3, 3, dtype=torch.float64), rtol=0, atol=0.12)
    expected = torch.full_like(test.quantiles_, float(scipy.stats.chi2.ppf(0.9, 1)))
    torch.testing.assert_close(test.quantiles_, expected, rtol=0, atol=0.35)


def test_values_that_depend_on_each_other_do_not_break_the_promise() -> None:
    test = AContrarioConfig(windows=(3, 9)).build().fit([smooth_noise(40, 0)])
    assert (test.dispersion_ > 3).all()
    fresh = smooth_noise(200, 1)
    assert fired(test, fresh) <= 2
    test.dispersion_ = torch.ones_like(test.dispersion_)
    assert fired(test, fresh) > 20, "taken for independent, they would"


def test_a_defect_is_marked_where_it_is_and_normal_values_are_not() -> None:
    test = AContrarioConfig().build().fit([noise(20, 0)])
    maps = noise(3, 1)
    for value, side in zip(maps, (8, 16, 32), strict=True):
        value[1, :, side // 4 : side // 2, side // 2 : side * 3 // 4] *= 6
    mask = test.mask(maps, (32, 32))
    assert mask.dtype == torch.bool
    assert mask.shape == (3, 32, 32)
    assert mask[1, 8:16, 16:24].all()
    assert not mask[1, :5].any()
    assert mask[[0, 2]].float().mean() < 0.01
    alone = torch.cat([test.mask([value[i : i + 1] for value in maps], (32, 32)) for i in range(3)])
    assert torch.equal(alone, mask)


def test_a_constant_map_is_never_marked() -> None:
    test = AContrarioConfig().build().fit([[torch.full((3, 1, 8, 8), 2.0)]])
    assert not test.mask([torch.full((1, 1, 8, 8), 2.0)], (8, 8)).any()


def test_state_loads_and_use_before_fit_is_refused() -> None:
    fresh = AContrarioConfig().build()
    with pytest.raises(NotFittedError, match="before fit"):
        fresh.mask(noise(1, 0), (32, 32))
    with pytest.raises(DataError, match="at least one normal picture"):
        fresh.fit([])
    test = AContrarioConfig().build().fit([noise(8, 0)])
    fresh.load_state_dict(test.state_dict())
    assert torch.equal(fresh(noise(2, 1), (32, 32)), test(noise(2, 1), (32, 32)))


def test_batches_do_not_matter_to_the_fit() -> None:
    whole = noise(8, 0)
    parts = [[value[i : i + 3] for value in whole] for i in (0, 3, 6)]
    one, many = AContrarioConfig().build().fit([whole]), AContrarioConfig().build().fit(parts)
    assert torch.equal(one.quantiles_, many.quantiles_)
    torch.testing.assert_close(one.dispersion_, many.dispersion_)


def test_even_windows_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"odd side of a window, such as 3, got 4"):
        AContrarioConfig.parse({"windows": [3, 4]})
