"""SimpleNet: noise as it is declared, batch norm folded exactly, and small anomalies in few components."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from curved import CHANNELS, features, pointed, ranked
from einops import rearrange
from pydantic import ValidationError
from torch import Tensor, nn

from manyeyes.errors import DataError
from manyeyes.heads import SimpleNetConfig
from manyeyes.heads.noise import folded
from manyeyes.heads.simplenet import SLOPE, SimpleNet, ascended


def fitted(offset: float = 0.0, seed: int = 0, **fields: Any) -> SimpleNet:
    config = SimpleNetConfig(**({"hidden": 64, "steps": 300, "batch": 128} | fields))
    return config.build(CHANNELS).fit([features(16, 1, offset)], seed)


def test_the_folded_network_is_the_trained_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch norm's shift and scale included, which a fit moves far from 0 and 1."""
    kept: list[nn.Module] = []
    train = SimpleNet._train

    def watched(self: SimpleNet, *args: Any) -> Any:
        kept.extend(train(self, *args))
        return tuple(kept)

    monkeypatch.setattr(SimpleNet, "_train", watched)
    head = fitted()
    hidden, norm, output = kept
    network = nn.Sequential(hidden, norm, nn.LeakyReLU(0.2), output).eval()
    value = features(2, 5)
    with torch.no_grad():
        expected = rearrange(-network(rearrange(value, "b d h w -> (b h w) d")), "(b h w) 1 -> b h w", b=2, h=8)
    torch.testing.assert_close(head.anomaly_map(value), expected, rtol=1e-4, atol=1e-4)
    assert norm.get_buffer("running_mean").abs().max() > 0.1


def noise(share: float, low: float, high: float, rows: int = 20_000) -> Tensor:
    head = SimpleNetConfig(share=share).build(CHANNELS)
    generator = torch.Generator().manual_seed(0)
    return head._noise(torch.Size([rows, CHANNELS]), math.log(low), math.log(high), generator)


def test_noise_touches_a_random_share_of_the_components() -> None:
    touched = (noise(0.05, 1.0, 1.0) != 0).float().mean(dim=1)
    assert float(touched.mean()) == pytest.approx((0.05 + 1) / 2, abs=0.01)
    assert float(touched.std()) == pytest.approx(0.95 / math.sqrt(12), rel=0.15), "uniform, feature by feature"
    assert bool((noise(1.0, 1.0, 1.0) != 0).all())


def test_noise_is_as_strong_in_total_whatever_its_share() -> None:
    for share in (0.05, 0.5, 1.0):
        assert float(noise(share, 2.0, 2.0).square().mean()) == pytest.approx(4.0, rel=0.05)


def test_strengths_are_log_uniform_between_the_limits() -> None:
    found = noise(1.0, 0.3, 3.0).square().mean(dim=1).sqrt().log()
    assert float(found.mean()) == pytest.approx((math.log(0.3) + math.log(3.0)) / 2, abs=0.05)
    assert float(found.std()) == pytest.approx(math.log(10) / math.sqrt(12), rel=0.1)


def test_a_small_anomaly_in_few_components_is_found() -> None:
    assert ranked(fitted(steps=600)) > 0.97


def test_a_constant_in_the_features_does_not_change_how_strong_the_noise_is() -> None:
    """Concatenation does not centre. Noise relative to the uncentred mean square drowned the features: 0.6."""
    assert ranked(fitted(offset=30.0, steps=600), offset=30.0) > 0.9


def test_the_map_says_where() -> None:
    assert pointed(fitted(steps=600)) > 0.9


@pytest.mark.parametrize("constant", [0.0, 5.0])
def test_features_that_are_all_equal_are_refused(constant: float) -> None:
    with pytest.raises(DataError, match="all features are equal"):
        SimpleNetConfig(steps=2).build(3).fit([torch.full((4, 3, 4, 4), constant)], 0)


def test_noise_from_strong_to_weak_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"expected 0 < weakest <= strongest, got \[1.0, 0.3\]"):
        SimpleNetConfig(noise=(1.0, 0.3))


def test_the_step_of_the_noise_is_that_of_the_networks_gradient() -> None:
    """Against autograd through the same network outside training, at the length of the noise."""
    torch.manual_seed(0)
    hidden, norm, output = nn.Linear(CHANNELS, 32), nn.BatchNorm1d(32), nn.Linear(32, 1, bias=False)
    norm(hidden(3 * torch.randn(512, CHANNELS) + 1))  # so that its running statistics are not 0 and 1
    network = nn.Sequential(hidden, norm, nn.LeakyReLU(SLOPE), output).eval()
    normal, noise = torch.randn(64, CHANNELS), torch.randn(64, CHANNELS)
    fake = (normal + noise).requires_grad_()
    (gradient,) = torch.autograd.grad(network(fake).sum(), fake)
    length = noise.norm(dim=1, keepdim=True)
    moved = noise + 0.3 * length * gradient / gradient.norm(dim=1, keepdim=True)
    expected = moved * length / moved.norm(dim=1, keepdim=True)
    found = ascended(normal, noise, 0.3, folded(hidden, norm), output.weight)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert (network(normal + found) > network(normal + noise)).float().mean() > 0.95


def test_noise_that_touches_no_component_stays_none() -> None:
    """With few components it happens, and a division by its length would spoil the network for good."""
    hidden, norm, output = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1, bias=False)
    assert not ascended(torch.randn(5, 3), torch.zeros(5, 3), 0.2, folded(hidden, norm), output.weight).any()
    head = SimpleNetConfig(hidden=8, steps=200, batch=64, share=0.01).build(3)
    value = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert head.fit([value], 0).anomaly_map(value).isfinite().all()
