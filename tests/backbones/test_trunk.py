"""timm trunks against timm's other ways to the same features, and their declarations against what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.functional import resize

from manyeyes.backbones import Eyes, TimmTrunkConfig, bundled, trunk
from manyeyes.backbones.stages import StageExtractor
from manyeyes.errors import ConfigError, ManyeyesError

CONVOLUTIONAL = ["resnet10t", "test_efficientnet", "test_convnext", "test_byobnet", "test_nfnet"]
TRANSFORMERS = ["test_vit", "test_vit2", "test_vit4", "test_vit_relpos", "cait_xxs24_224"]
FIXED = ["resmlp_12_224", "xcit_nano_12_p16_224", "tnt_s_patch16_224"]
"""Networks of one width whose patches do not tell their grid, or that give maps only."""


def build(architecture: str, **fields: Any) -> trunk.TimmTrunk:
    return TimmTrunkConfig(**{"architecture": architecture, "weights": "random", "size": 64} | fields).build()


def images(n: int = 2, size: int = 64) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("size", [64, (80, 48)])
@pytest.mark.parametrize("architecture", [*CONVOLUTIONAL, *TRANSFORMERS])
def test_declared_stages_equal_what_comes_out(architecture: str, size: Any) -> None:
    built = build(architecture, size=size)
    for name, value in built(images(), list(built.stages)).items():
        stage = built.stage(name)
        assert (name, tuple(value.shape)) == (stage.name, (2, stage.channels, *stage.grid))


@pytest.mark.parametrize("architecture", FIXED)
def test_networks_that_are_neither_are_declared_too(architecture: str) -> None:
    built = build(architecture, size=224)
    value = built(torch.rand(1, 3, 224, 224), ["1"])["1"]
    assert tuple(value.shape[1:]) == (built.stage("1").channels, *built.stage("1").grid) == (value.shape[1], 14, 14)


@pytest.mark.parametrize("architecture", CONVOLUTIONAL)
def test_odd_sizes_are_declared_exactly(architecture: str) -> None:
    built = build(architecture, size=(71, 45))
    for name, value in built(images(1), list(built.stages)).items():
        assert tuple(value.shape[2:]) == built.stage(name).grid


def test_stages_are_declared_without_a_shape_only_pass_too(monkeypatch: pytest.MonkeyPatch) -> None:
    built = build("resnet10t", size=(71, 45))

    def fail(*_: Any) -> None:
        raise NotImplementedError("no shape-only pass")

    monkeypatch.setattr(trunk, "_create_for", fail)
    assert trunk.declare("resnet10t", built.network, (71, 45)) == built.stages


@pytest.mark.parametrize("architecture", CONVOLUTIONAL)
def test_maps_equal_timms_features_only(architecture: str) -> None:
    built = build(architecture)
    names = [name for name in built.stages if name != "pooled"]
    # timm's wrappers rename layers (then one seed draws the same weights) or draw fewer (then the names agree).
    torch.manual_seed(0)
    indices = [int(name) for name in names]
    other = timm.create_model(architecture, num_classes=0, features_only=True, out_indices=indices)
    torch.manual_seed(TimmTrunkConfig().seed)
    plain = trunk.create(architecture, (64, 64))  # what the trunk was before its batch norms were folded
    other.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        expected = other.eval()(built.pixels.normalise(images()))
    for name, value in zip(names, expected, strict=True):
        torch.testing.assert_close(built(images(), [name])[name], value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", TRANSFORMERS)
def test_blocks_go_through_the_networks_own_final_norm(architecture: str) -> None:
    built = build(architecture)
    seen: list[Tensor] = []
    built.network.blocks[1].register_forward_hook(lambda *args: seen.append(args[2]))
    value = built(images(), ["1"])["1"]
    tokens = built.network.norm(seen[0])
    prefix = tokens.shape[1] - 16
    expected = tokens[:, prefix:].transpose(1, 2).reshape(2, -1, 4, 4)
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("architecture", ["test_vit", "cait_xxs24_224"])
def test_maps_of_transformers_are_their_tokens_uncopied(architecture: str) -> None:
    for value in build(architecture)(images(), ["0", "1"]).values():
        assert value.stride()[1] == 1  # channels last in memory


@pytest.mark.parametrize("architecture", [*CONVOLUTIONAL, *TRANSFORMERS])
def test_pooled_is_the_input_of_the_classifier_in_the_same_pass(architecture: str) -> None:
    built = build(architecture)
    with torch.no_grad():
        pixels = built.pixels.normalise(images())
        expected = built.network.forward_head(built.network.forward_features(pixels), pre_logits=True)
    passes: list[int] = []
    first = next(module for module in built.network.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_hook(lambda *_: passes.append(1))
    found = built(images(), ["pooled", "1", "0"])
    assert len(passes) == 1
    for value in (found["pooled"], built(images(), ["pooled"])["pooled"]):
        torch.testing.assert_close(value[:, :, 0, 0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["resnet10t", "test_vit"])
def test_compiled_trunks_give_the_same_maps(architecture: str) -> None:
    built = build(architecture)
    eyes = Eyes([StageExtractor(built, (0, 1))])
    expected = eyes(images())
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    eyes.compile_trunks(backend)
    with torch.inference_mode():
        found = eyes(images())
    assert graphs, "nothing was compiled"
    assert found.keys() == expected.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key])


def test_layers_past_the_deepest_stage_are_not_run() -> None:
    built = build("resnet10t")
    built.network.layer3.register_forward_hook(lambda *_: pytest.fail("layer3 was run"))
    assert list(built(images(), ["2", "1"])) == ["2", "1"]


def test_negative_stages_count_from_the_end() -> None:
    built = build("resnet10t")
    assert built.stage("-1") == built.stage("4")
    assert built.stage("-5") == built.stage("0")
    assert torch.equal(built(images(), ["-2"])["-2"], built(images(), ["3"])["3"])
    for name in ("-6", "5", "", "layer1", "-x"):
        with pytest.raises(ConfigError, match="stages 0 to 4 or pooled"):
            built.stage(name)


def test_input_is_resized_with_antialias_then_normalised() -> None:
    built = build("resnet10t", size=(48, 32))
    seen: list[Tensor] = []
    first = next(module for module in built.network.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_hook(lambda *args: seen.append(args[1][0]))
    built(images(2, 100), ["1"])
    small = resize(images(2, 100), [48, 32], antialias=True)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(seen[0], (small - mean) / std)


def test_bundled_weights_have_their_own_mean_and_std() -> None:
    built = TimmTrunkConfig(size=32).build()
    assert built.pixels.mean.flatten().tolist() == pytest.approx([127 / 255] * 3)
    assert built.pixels.std.flatten().tolist() == pytest.approx([128 / 255] * 3)
    assert built.weights_source.startswith("bundled package")


def test_mean_and_std_are_those_of_the_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "tf_efficientnet_b0"
    for stem in (name, f"{name}.mine"):
        save_file(timm.create_model(name).state_dict(), tmp_path / f"{stem}.safetensors")
    monkeypatch.setenv("MANYEYES_WEIGHTS", str(tmp_path))
    means = {tag: build(name, weights=tag).pixels.mean.flatten().tolist() for tag in ("ap_in1k", "ns_jft_in1k", "mine")}
    assert means["ap_in1k"] == pytest.approx([0.5, 0.5, 0.5])
    assert means["ns_jft_in1k"] == means["mine"] == pytest.approx([0.485, 0.456, 0.406])


def test_seeds_draw_other_weights() -> None:
    a, b = (build("test_resnet", seed=seed) for seed in (0, 1))
    assert a.weights_digest != b.weights_digest
    assert not torch.equal(a(images(), ["1"])["1"], b(images(), ["1"])["1"])


def test_a_square_size_has_one_spelling() -> None:
    assert TimmTrunkConfig(size=(64, 64)).fingerprint() == TimmTrunkConfig(size=64).fingerprint()
    assert TimmTrunkConfig(size=(64, 48)).fingerprint() != TimmTrunkConfig(size=(48, 64)).fingerprint()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"architecture": "resnet81"}, "did you mean resnet18"),
        ({"architecture": "qqqqqqqq"}, "has no such model"),
        ({"architecture": "resnet18.tv_in1k"}, "architecture: resnet18 and weights: tv_in1k"),
        ({"architecture": "test_vit", "size": 70}, "patches are 16 px; set size to a multiple, such as 64 or 80"),
        ({"architecture": "resnet18", "weights": "bundled"}, f"for {bundled.ARCHITECTURE} only"),
    ],
)
def test_bad_configs_say_what_to_write(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ManyeyesError, match=words):
        TimmTrunkConfig(**{"weights": "random"} | fields).build()


@pytest.mark.parametrize("size", [0, 15, 5000, (64,), (64, 64, 64), (64, 8), "large", 64.5, True])
def test_bad_sizes_are_refused(size: Any) -> None:
    with pytest.raises(ConfigError, match=r"size: expected one whole number of pixels from 16 to 4096, or \[height"):
        TimmTrunkConfig.parse({"size": size})
