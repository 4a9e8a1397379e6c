"""EfficientAD's own head: quantiles as numpy's, any number of pixels, an average of two maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from manyeyes.ensemble.threshold import conformal_threshold
from manyeyes.errors import ConfigError, ShapeError
from manyeyes.heads import EfficientAdHeadConfig
from manyeyes.heads import efficientad as module
from manyeyes.heads.efficientad import thinned
from manyeyes.maps import MapSpec

SPECS = (MapSpec("local", 1, 4, (9, 7)), MapSpec("global", 1, 4, (9, 7)))


def maps(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    values = torch.rand(2, count, 1, 9, 7, generator=torch.Generator().manual_seed(seed))
    return values[0].square(), 5 + 3 * values[1]


def test_maps_are_the_papers_formula() -> None:
    good, fresh = maps(11), maps(4, 1)
    head = EfficientAdHeadConfig().build(SPECS).fit([maps(3, 9)], 0)
    head.calibrate([tuple(value[:5] for value in good), tuple(value[5:] for value in good)])
    expected = np.zeros((4, 9, 7))
    for normal, value in zip(good, fresh, strict=True):
        low, high = np.quantile(normal.numpy(), [0.9, 0.995])
        expected += 0.5 * 0.1 * (value[:, 0].numpy() - low) / (high - low)
    found, scores = head.judge(fresh)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores, expected.max((1, 2)), rtol=1e-4)


@pytest.mark.parametrize("sizes", [(4, 4, 4), (1, 10, 1), (1,) * 12, (12,)])
def test_thinning_keeps_values_from_everywhere(sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 512)
    values = torch.arange(12.0 * 16 * 16).reshape(12, 1, 16, 16)
    found, images = thinned(values.split(list(sizes))).unbind(1)
    assert (images == found // 256).all()
    assert 256 < len(found) <= 512
    assert len(set(found.tolist())) == len(found)
    assert set(found.tolist()) <= set(values.flatten().tolist())
    for place in (found % 16, found // 16 % 16, found // 256):  # columns, rows, pictures
        assert len(torch.unique(place)) == (12 if place.max() < 12 else 16)


def test_thinned_quantiles_of_sixteen_million_pixels() -> None:
    n = 2**24 + 1000
    batches = (
        torch.rand(1, 1, 1024, 1024, generator=torch.Generator().manual_seed(seed))
        for seed in range(n // (1 << 20) + 1)
    )
    found = thinned(batches)[:, 0]
    assert len(found) <= 1 << 21
    assert torch.quantile(found, torch.tensor([0.9, 0.995])).tolist() == pytest.approx([0.9, 0.995], abs=1e-3)


def test_left_out_scores_are_those_of_a_head_calibrated_without_the_group() -> None:
    good = maps(11)
    head = EfficientAdHeadConfig().build(SPECS)
    batches = [tuple(value[:5] for value in good), tuple(value[5:] for value in good)]
    members = torch.arange(11) % 4
    found = head.calibrate(batches).left_out(batches, members)
    assert found.shape == (4, 11)
    for group in range(4):
        head.calibrate([tuple(value[members != group] for value in good)])
        torch.testing.assert_close(found[group], head.score(good))


def test_a_threshold_from_left_out_scores_keeps_its_promise() -> None:
    # Pictures differ in how loud they are: quantiles that know a picture make it look calmer than a new one.
    generator = torch.Generator().manual_seed(0)

    def loud(count: int) -> tuple[Tensor, Tensor]:
        volume = (0.7 * torch.randn(2, count, 1, 1, 1, generator=generator)).exp()
        first, second = volume * torch.randn(2, count, 1, 9, 7, generator=generator).square()
        return first, second

    known, held_out = [], []
    head = EfficientAdHeadConfig().build(SPECS)
    for _ in range(200):
        good, fresh = loud(5), loud(100)
        head.calibrate([good])
        scores = head.score(fresh)
        apart = head.left_out([good], torch.arange(5)).diagonal()
        for found, calibration in ((known, head.score(good)), (held_out, apart)):
            found.append((scores >= conformal_threshold(calibration, 0.2)[0]).float().mean())
    assert float(torch.stack(held_out).mean()) <= 0.2 + 0.02 < float(torch.stack(known).mean())


def test_other_maps_are_refused() -> None:
    wide, other = MapSpec("teacher", 384, 4, (9, 7)), MapSpec("global", 1, 4, (5, 5))
    for specs in ((SPECS[0], wide), (SPECS[0], other)):
        with pytest.raises(ShapeError, match="expected maps of 1 channel on one grid"):
            EfficientAdHeadConfig().build(specs)


@pytest.mark.parametrize("quantiles", [(0.9, 0.9), (0.9, 1.1), (-0.1, 0.5)])
def test_bad_quantiles_are_refused(quantiles: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="0 <= low < high <= 1"):
        EfficientAdHeadConfig.parse({"quantiles": quantiles})
