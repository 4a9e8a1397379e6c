"""The discriminator: the answer that theory knows, batch norm folded, units, and small anomalies in few components."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from curved import CHANNELS, features, lifted, pointed, ranked
from einops import rearrange, reduce
from pydantic import ValidationError
from torch import Tensor

from manyeyes.errors import DataError
from manyeyes.heads import DiscriminatorConfig, discriminator
from manyeyes.heads.discriminator import Denoiser, Discriminator, relative_error
from manyeyes.heads.noise import strengths


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discriminator, "training_precision", lambda device: nullcontext())


def fitted(offset: float = 0.0, seed: int = 0, **fields: Any) -> Discriminator:
    config = DiscriminatorConfig(**({"hidden": 64, "steps": 300, "batch": 128} | fields))
    return config.build(CHANNELS).fit([features(16, 1, offset)], seed)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Denoiser]:
    """The networks that are trained from now on."""
    kept: list[Denoiser] = []
    train = Discriminator._train

    def _train(self: Discriminator, *args: Any) -> Denoiser:
        kept.append(train(self, *args))
        return kept[-1]

    monkeypatch.setattr(Discriminator, "_train", _train)
    return kept


def noises(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The noise of every step from now on."""
    drawn: list[Tensor] = []

    def error(seen: Tensor, noise: Tensor, weakest: float) -> Tensor:
        drawn.append(noise.clone())
        return relative_error(seen, noise, weakest)

    monkeypatch.setattr(discriminator, "relative_error", error)
    return drawn


def test_of_gaussian_features_it_says_what_theory_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best guess of noise of variance s^2 on features of variance v is s^2 / (v + s^2) of what is seen."""
    networks, channels = watched(monkeypatch), 48
    variance = torch.linspace(0.1, 2.0, channels)
    variance = variance / variance.mean()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40_000, channels, generator=generator) * variance.sqrt()
    config = DiscriminatorConfig(hidden=32, steps=1500, batch=512, clean=0.0, noise=(0.7, 0.7))
    head = config.build(channels).fit([rearrange(rows, "(b h w) d -> b d h w", h=20, w=20)], 0)
    noisy = torch.randn(4000, channels, generator=generator) * (variance + 0.49).sqrt()
    best = noisy * 0.49 / (variance + 0.49)
    with torch.no_grad():
        seen = networks[0].eval()(noisy)
    assert float((seen - best).square().mean() / best.square().mean()) < 0.02
    expected = reduce(best.square(), "n d -> n", "mean")
    found = head.anomaly_map(rearrange(noisy, "n d -> n d 1 1"))[:, 0, 0]
    assert float((found - expected).abs().mean() / expected.mean()) < 0.1


def test_the_folded_network_is_the_trained_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch norm's shift and scale included, which a fit moves far from 0 and 1, and the features' own."""
    networks = watched(monkeypatch)
    head = fitted(offset=3.0)
    training, value = rearrange(features(16, 1, 3.0), "b d h w -> (b h w) d"), features(2, 5, 3.0)
    mean = training.mean(dim=0)
    scale = (training - mean).square().mean().sqrt()
    with torch.no_grad():
        seen = networks[0].eval()((rearrange(value, "b d h w -> (b h w) d") - mean) / scale)
    expected = rearrange(seen.square().mean(dim=1), "(b h w) -> b h w", b=2, h=8)
    torch.testing.assert_close(head.anomaly_map(value), expected, rtol=1e-4, atol=1e-5)
    assert networks[0].norm.get_buffer("running_mean").abs().max() > 0.01
    assert networks[0].skip.weight.abs().max() > 0.01, "begins as zero"


def test_bfloat16_says_the_same_within_its_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a constant in the features, which is taken away in float32."""
    head, value = fitted(offset=30.0, steps=600), lifted(features(8, 5, 30.0), 2, 4.0)
    exact = head.anomaly_map(value)
    monkeypatch.setattr(
        discriminator, "training_precision", lambda device: torch.autocast(device.type, dtype=torch.bfloat16)
    )
    rounded = head.anomaly_map(value)
    assert rounded.dtype == torch.float32
    assert not rounded.equal(exact)
    assert float((rounded - exact).abs().mean() / exact.mean()) < 0.01


def test_units_are_mean_squares_of_the_features() -> None:
    """Of features on a surface most of the noise is seen; noise of half the strength has a quarter of the square."""
    head, value = fitted(steps=1500, noise=(0.2, 1.5)), features(40, 7)
    scale = float((value - value.mean(dim=(0, 2, 3), keepdim=True)).square().mean().sqrt())
    noise = scale * torch.randn(value.shape, generator=torch.Generator().manual_seed(3))
    clean, half, whole = (float(head.anomaly_map(value + share * noise).mean()) for share in (0.0, 0.5, 1.0))
    assert clean < 0.05
    assert 0.5 * 0.25 < half < 0.25
    assert 0.6 < whole < 1.0


def test_noise_is_as_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = noises(monkeypatch)
    fitted(steps=40, batch=600, clean=0.25, noise=(0.5, 2.0))
    assert all(not noise[:150].any() and noise[150:].any(dim=1).all() for noise in drawn)
    found = torch.cat([noise[150:] for noise in drawn]).square().mean(dim=1).sqrt().log()
    assert float(found.mean()) == pytest.approx(0.0, abs=0.03)
    assert float(found.std()) == pytest.approx(math.log(4) / math.sqrt(12), rel=0.15)


def test_a_small_batch_always_has_a_noisy_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = noises(monkeypatch)
    fitted(steps=5, batch=2, clean=0.9)
    assert all(not noise[0].any() and noise[1].any() for noise in drawn)


def test_strengths_are_log_uniform_between_the_limits() -> None:
    found = strengths(20_000, math.log(0.3), math.log(3.0), torch.Generator().manual_seed(0)).log()
    assert found.shape == (20_000, 1)
    assert float(found.min()) == pytest.approx(math.log(0.3), abs=0.01)
    assert float(found.max()) == pytest.approx(math.log(3.0), abs=0.01)
    assert float(found.mean()) == pytest.approx((math.log(0.3) + math.log(3.0)) / 2, abs=0.03)
    assert float(found.std()) == pytest.approx(math.log(10) / math.sqrt(12), rel=0.05)


def test_errors_count_in_proportion_to_the_noise() -> None:
    noise = torch.tensor([[0.0, 0.0], [0.5, 0.5], [3.0, 1.0]])
    seen = torch.tensor([[0.5, 0.5], [0.0, 0.0], [3.0, 0.0]])
    expected = (0.25 / 0.25 + 0.25 / (0.25 + 0.25) + 0.5 / (5.0 + 0.25)) / 3
    assert float(relative_error(seen, noise, 0.5)) == pytest.approx(expected)


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_a_small_anomaly_in_few_components_is_found(offset: float) -> None:
    """With a constant in the features too: concatenation does not centre."""
    assert ranked(fitted(offset, steps=600), offset) > 0.97


def test_the_map_says_where() -> None:
    assert pointed(fitted(steps=600)) > 0.9


@pytest.mark.parametrize("constant", [0.0, 5.0])
def test_features_that_are_all_equal_are_refused(constant: float) -> None:
    with pytest.raises(DataError, match="discriminator: all features are equal"):
        DiscriminatorConfig(steps=2).build(3).fit([torch.full((4, 3, 4, 4), constant)], 0)


def test_noise_from_strong_to_weak_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"expected 0 < weakest <= strongest, got \[1.0, 0.3\]"):
        DiscriminatorConfig(noise=(1.0, 0.3))
