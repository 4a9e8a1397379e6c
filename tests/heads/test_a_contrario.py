"""The a-contrario mask: the binomial tail it rests on, and the promise that normal pictures are rarely marked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor

from manyeyes.errors import ConfigError, DataError, NotFittedError
from manyeyes.heads import AContrario, AContrarioConfig
from manyeyes.heads.a_contrario import (
    Windows,
    _sample,
    dispersion,
    false_alarms,
    log10_tails,
    rarity,
    trimmed,
    window_counts,
)
from manyeyes.heads.thinned import Thinned

WIDE = ((96, 8, 8), (64, 16, 16), (48, 32, 32))
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
    limit = math.log10(test.config.false_alarms)
    return sum(int((found < limit).sum()) for _, found in test.judged(maps)) / len(maps[0])


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


@pytest.mark.parametrize("config", [{}, {"chances": [0.1], "windows": [1, 3, 5]}], ids=["default", "paper"])
@pytest.mark.parametrize("promised", [1.0, 10.0])
def test_on_independent_normal_values_it_fires_at_the_promised_rate(promised: float, config: dict[str, Any]) -> None:
    test = AContrarioConfig.parse({"false_alarms": promised, **config}).build().fit([noise(60, 0, WIDE)])
    assert promised / 1.5 <= fired(test, noise(200, 1, WIDE)) <= promised * 1.5
    torch.testing.assert_close(test.dispersion_[0], torch.ones_like(test.dispersion_[0]), rtol=0, atol=0.15)
    expected = torch.full_like(test.quantiles_[0], float(scipy.stats.chi2.ppf(0.9, 1)))
    torch.testing.assert_close(test.quantiles_[0], expected, rtol=0, atol=0.35)


@pytest.mark.parametrize("promised", [1.0, 10.0])
def test_a_single_map_of_independent_values_keeps_the_promise_as_far_as_counts_can(promised: float) -> None:
    """One value per position: small counts in large steps, so half of the promise may be all there is."""
    shapes = ((1, 32, 32),)
    test = AContrarioConfig(false_alarms=promised).build().fit([noise(60, 0, shapes)])
    assert promised / 2.2 <= fired(test, noise(400, 1, shapes)) <= promised * 1.5


def test_false_alarms_are_the_windows_that_can_be_so_improbable() -> None:
    """100 windows of one trial at 0.1 and 10 of two at 0.5, by hand: tails 1, 0.1 and 1, 0.75, 0.25."""
    windows = (Windows(100, 1, 0.1, 1.0), Windows(10, 2, 0.5, 1.0))
    probabilities, alarms = false_alarms(windows)
    assert (10 ** probabilities.double()).tolist() == pytest.approx([0.1, 0.25, 0.75, 1])
    assert (10 ** alarms.double()).tolist() == pytest.approx([10, 10 + 2.5, 10 + 7.5, 110])
    bound = probabilities.double() + math.log10(110)
    assert (alarms.double() <= bound + 1e-6).all()


def test_values_that_depend_on_each_other_do_not_break_the_promise() -> None:
    test = AContrarioConfig(chances=(0.1,), windows=(3, 9)).build().fit([smooth_noise(40, 0)])
    assert (test.dispersion_[0] > 3).all()
    fresh = smooth_noise(200, 1)
    assert fired(test, fresh) <= 2
    test.dispersion_ = torch.ones_like(test.dispersion_)
    assert fired(test, fresh) > 20, "taken for independent, they would"


def test_pictures_that_differ_as_a_whole_do_not_break_the_promise() -> None:
    """The variance of counts is hardly moved by a few odd normal pictures, their tail is."""

    def odd(count: int, seed: int) -> list[Tensor]:
        values = noise(count, seed, ((40, 16, 16),))
        values[0][::20] *= 2.5
        return values

    test = AContrarioConfig(chances=(0.1,), windows=(1,)).build().fit([odd(60, 0)])
    assert fired(test, odd(400, 1)) <= 2
    test.dispersion_ = torch.full_like(test.dispersion_, 1.5)
    assert fired(test, odd(400, 1)) > 2.5


def test_dispersion_is_read_off_variance_and_tail() -> None:
    law = scipy.stats.binom(30, 0.1)
    exact = torch.from_numpy(law.pmf(range(31)) * 1e6).round().long()
    assert dispersion(exact, 0.1) == pytest.approx(1, abs=0.01)
    twice = torch.zeros(61, dtype=torch.long)
    twice[::2] = exact  # every trial stands for two values
    assert dispersion(twice, 0.1) == pytest.approx(2, abs=0.02)
    heavy = exact.clone()
    heavy[20] = 40
    assert 10 ** float(log10_tails(30, 0.1, dispersion(heavy, 0.1))[20]) == pytest.approx(40 / 1e6, rel=0.01)
    assert dispersion(torch.tensor([9, 0, 0]), 0.1) == 1


def test_a_defect_is_marked_where_it_is_and_normal_values_are_not() -> None:
    test = AContrarioConfig().build().fit([noise(20, 0)])
    maps = noise(3, 1)
    for value, side in zip(maps, (8, 16, 32), strict=True):
        value[1, :, side // 4 : side // 2, side // 2 : side * 3 // 4] *= 6
    mask = test.mask(maps, (32, 32))
    assert mask.dtype == torch.bool
    assert mask.shape == (3, 32, 32)
    truth = torch.zeros(32, 32, dtype=torch.bool)
    truth[8:16, 16:24] = True
    assert mask[1][truth].float().mean() > 0.85
    assert float((mask[1] & truth).sum() / (mask[1] | truth).sum()) > 0.35
    assert mask[[0, 2]].float().mean() < 0.01
    alone = torch.cat([test.mask([value[i : i + 1] for value in maps], (32, 32)) for i in range(3)])
    assert torch.equal(alone, mask)


def test_a_single_smooth_map_can_be_marked() -> None:
    """At a chance of 0.1 no count in a 3 x 3 window of dependent values is improbable, however large they are."""
    maps = smooth_noise(3, 1)
    maps[0][1, :, 10:16, 10:16] += 20
    default = AContrarioConfig().build().fit([smooth_noise(60, 0)])
    mask = default.mask(maps, (32, 32))
    assert mask[1, 10:16, 10:16].float().mean() > 0.5
    assert float(mask[1].float().mean()) < 0.1
    assert float(mask[[0, 2]].float().mean()) < 0.01
    paper = AContrarioConfig(chances=(0.1,), windows=(1, 3)).build().fit([smooth_noise(60, 0)])
    assert not paper.mask(maps, (32, 32)).any()


def test_a_mark_ends_below_a_share_of_its_own_peak() -> None:
    significance = torch.tensor([[[-1.0, 2, 8, 3, -1, 1], [-1, 1, 1, 1.9, -5, 0.5]], [[-1.0] * 6] * 2])
    expected = [[False, True, True, True, False, True], [False, False, False, False, False, True]]
    assert trimmed(significance, 0.25).tolist() == [expected, [[False] * 6] * 2]
    assert torch.equal(trimmed(significance, 0), significance > 0)


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


@pytest.mark.parametrize("side", [16, 64, 100])
def test_quantiles_are_taken_from_all_columns(side: int) -> None:
    columns = torch.arange(float(side)).expand(2, 1, side, side)
    counts = torch.bincount(_sample(columns)[:, 0].long(), minlength=side)
    assert counts.min() > 0
    assert counts.max() <= 1.5 * counts.min() + 2


def test_even_windows_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"odd side of a window, such as 3, got 4"):
        AContrarioConfig.parse({"windows": [3, 4]})


def test_rows_of_a_long_stream_are_thinned_evenly() -> None:
    stream = torch.arange(1000.0).view(-1, 1)
    kept = Thinned(100)
    for part in torch.split(stream, [7, 93, 300, 1, 599]):
        kept.add(part)
    assert 50 <= len(kept.all()) <= 100
    assert torch.equal(kept.all(), stream[:: kept.every])
    assert sum(part.untyped_storage().nbytes() for part in kept.parts) == 4 * kept.held, "what is left out is let go"


def test_the_sample_of_a_single_picture_does_not_keep_its_map() -> None:
    sample = _sample(torch.rand(1, 8, 64, 64))
    assert sample.untyped_storage().nbytes() == sample.nbytes
