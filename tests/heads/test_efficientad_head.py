"""EfficientAD's own head: quantiles as numpy's, any number of pixels, an average of two maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

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
    found = thinned(values.split(list(sizes)))
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
    found = thinned(batches)
    assert len(found) <= 1 << 21
    assert torch.quantile(found, torch.tensor([0.9, 0.995])).tolist() == pytest.approx([0.9, 0.995], abs=1e-3)


def test_other_maps_are_refused() -> None:
    wide, other = MapSpec("teacher", 384, 4, (9, 7)), MapSpec("global", 1, 4, (5, 5))
    for specs in ((SPECS[0], wide), (SPECS[0], other)):
        with pytest.raises(ShapeError, match="expected maps of 1 channel on one grid"):
            EfficientAdHeadConfig().build(specs)


@pytest.mark.parametrize("quantiles", [(0.9, 0.9), (0.9, 1.1), (-0.1, 0.5)])
def test_bad_quantiles_are_refused(quantiles: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="0 <= low < high <= 1"):
        EfficientAdHeadConfig.parse({"quantiles": quantiles})
