"""U-Flow's two extractors: a normalised pyramid, and the CaiT pair at the sizes of the paper."""

from __future__ import annotations

import pytest
import torch

from manyeyes.backbones import TrunkPool, UFlowConfig, uflow_cait, uflow_pyramid
from manyeyes.backbones.pixels import as_grid
from manyeyes.backbones.trunk import create, declare
from manyeyes.errors import ConfigError


def test_pyramid_scales_are_normalised_per_image() -> None:
    config = uflow_pyramid("resnet10t", weights="random", size=64)
    member = config.build(TrunkPool())
    assert [(spec.name, spec.stride) for spec in member.specs] == [("1", 4), ("2", 8), ("3", 16)]
    images = torch.rand(2, 3, 64, 64)
    images[1] *= 0.2
    for value in member(images):
        flat = value.flatten(1).double()
        torch.testing.assert_close(flat.mean(1), torch.zeros(2, dtype=torch.float64), atol=1e-5, rtol=0)
        torch.testing.assert_close(flat.std(1), torch.ones(2, dtype=torch.float64), atol=1e-2, rtol=0)
    unnormalised = UFlowConfig(sources=(config.sources[0].model_copy(update={"layer_norm": False}),))
    raw = unnormalised.build(TrunkPool())(images)[0].double()
    expected = (raw[1] - raw[1].mean()) / (raw[1].var(correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(member(images)[0][1].double(), expected, atol=1e-4, rtol=1e-4)


def test_cait_pair_is_that_of_the_paper() -> None:
    config = uflow_cait()
    for source, shape in zip(config.sources, [(768, 28, 28), (384, 14, 14)], strict=True):
        size = as_grid(source.trunk.size)
        with torch.device("meta"):  # shapes only: the large one has 356 million parameters
            network = create(source.trunk.architecture, size)
            stage = declare(source.trunk.architecture, network, size)[str(source.stages[0])]
        assert (stage.channels, *stage.grid) == shape
        assert not source.layer_norm
    assert [source.stages for source in config.sources] == [(40,), (20,)]


def test_scales_of_two_trunks_carry_their_architecture() -> None:
    values = [
        {"trunk": {"architecture": name, "weights": "random", "size": 32}, "stages": [1], "layer_norm": False}
        for name in ("cait_xxs24_224", "test_vit")
    ]
    member = UFlowConfig.parse({"sources": values}).build(TrunkPool())
    assert [spec.name for spec in member.specs] == ["cait_xxs24_224.1", "test_vit.1"]
    larger = {**values[0], "trunk": {**values[0]["trunk"], "size": 64}}
    twice = UFlowConfig.parse({"sources": [values[0], larger]}).build(TrunkPool())
    assert [spec.name for spec in twice.specs] == ["cait_xxs24_224-32x32.1", "cait_xxs24_224-64x64.1"]
    with pytest.raises(ConfigError, match=r"test_vit-32x32\.1 named twice"):
        UFlowConfig.parse({"sources": [values[1], values[1]]}).build(TrunkPool())
