"""What every extractor promises, crossed with every kind of the union: a new kind without an example fails here."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from manyeyes.backbones import (
    EfficientAdConfig,
    EfficientAdTrunkConfig,
    ExtractorConfig,
    Eyes,
    FeatureExtractor,
    PatchCoreConfig,
    PdnTrunkConfig,
    ScalesConfig,
    TimmConfig,
    TimmTrunkConfig,
    TrainableTrunk,
    TrunkPool,
    UFlowConfig,
)
from manyeyes.backbones.student_schedule import Schedule, TrainingConfig
from manyeyes.errors import ConfigError, DataError, ManyeyesError, NotFittedError, ShapeError
from manyeyes.progress import Silent

RESNET = TimmTrunkConfig(architecture="resnet10t", weights="random", size=64)
VIT = TimmTrunkConfig(architecture="test_vit", weights="random", size=(64, 48))
CAIT = TimmTrunkConfig(architecture="cait_xxs24_224", weights="random", size=32)

TAUGHT = EfficientAdTrunkConfig(
    teacher=PdnTrunkConfig(weights="random", image_size=(64, 48)),
    training=TrainingConfig(schedule=Schedule(steps=1, crop=40)),
)

EXAMPLES: dict[str, Any] = {
    "timm-cnn": TimmConfig(trunk=RESNET, stages=(0, 2, -1, "pooled")),
    "timm-vit": TimmConfig(trunk=VIT, stages=(1, 5, "pooled")),
    "timm-pooled-only": TimmConfig(trunk=RESNET, stages=("pooled",)),
    "timm-bundled": TimmConfig(trunk=TimmTrunkConfig(size=64), stages=(2, 3, 4), neighbourhood=5),
    "patchcore": PatchCoreConfig(trunk=RESNET),
    "uflow-pyramid": UFlowConfig(sources=(ScalesConfig(trunk=RESNET),)),
    "uflow-pair": UFlowConfig(
        sources=(
            ScalesConfig(trunk=CAIT, stages=(1,), layer_norm=False),
            ScalesConfig(trunk=VIT, stages=(1,), layer_norm=False),
        )
    ),
    "efficientad": EfficientAdConfig(trunk=TAUGHT, maps=("local", "global", "student", "autoencoder")),
    "efficientad-pooled": EfficientAdConfig(trunk=TAUGHT, maps=("student_teacher_pooled", "teacher_pooled")),
    "efficientad-teacher-medium": EfficientAdConfig(
        trunk=EfficientAdTrunkConfig(teacher=PdnTrunkConfig(weights="random", size="medium", image_size=(40, 48))),
        maps=("teacher",),
    ),
}
KINDS = get_args(get_args(ExtractorConfig)[0])

POOL = TrunkPool()

every = pytest.mark.parametrize("name", EXAMPLES)


def trained(extractor: FeatureExtractor) -> FeatureExtractor:
    """Its trunks have learned from a few pictures what is to be learned."""
    for trunk in extractor.trunks:
        if isinstance(trunk, TrainableTrunk) and not trunk.is_fitted:
            trunk.fit([pictures()], "0" * 16, 0, lambda folder: [], None, Silent())
    return extractor


def extractor(name: str) -> FeatureExtractor:
    return trained(EXAMPLES[name].build(POOL))


def pictures(n: int = 3, size: tuple[int, int] = (70, 50)) -> Tensor:
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(5))


def test_every_kind_has_an_example() -> None:
    lacking = {kind.__name__ for kind in KINDS} - {type(example).__name__ for example in EXAMPLES.values()}
    assert not lacking, f"give each an example above: {lacking}"


@every
def test_specs_equal_what_comes_out(name: str) -> None:
    member = extractor(name)
    maps = member(pictures())
    assert len({spec.name for spec in member.specs}) == len(member.specs) == len(maps) > 0
    for value, spec, tap in zip(maps, member.specs, member.taps, strict=True):
        assert tuple(value.shape) == (3, spec.channels, *spec.grid)
        assert value.dtype == torch.float32
        assert torch.isfinite(value).all()
        assert value.std() > 0
        assert spec.spatial == (not spec.name.endswith("pooled"))
        if spec.spatial:
            # Rounding of odd sizes at every halving may add or take one position.
            for side, cells in zip(tap.trunk.input_size, spec.grid, strict=True):
                assert abs(side / spec.stride - cells) <= 1


@every
def test_an_extractor_is_frozen(name: str) -> None:
    member = extractor(name).train()
    assert not any(module.training for module in member.modules())
    assert not any(parameter.requires_grad for parameter in member.parameters())
    images = pictures(2).requires_grad_()
    assert not any(value.requires_grad for value in member(images))


@every
def test_features_can_train_a_head(name: str) -> None:
    # Inference tensors cannot be saved for a backward pass; heads train on these maps.
    value = extractor(name)(pictures(2))[0]
    weight = torch.ones(value.shape[1], requires_grad=True)
    (value * weight[:, None, None]).sum().backward()
    assert weight.grad is not None


@every
def test_input_is_not_mutated(name: str) -> None:
    images = pictures(2)
    before = images.clone()
    extractor(name)(images)
    assert torch.equal(images, before)


@every
def test_a_batch_equals_its_images_one_by_one(name: str) -> None:
    member, images = extractor(name), pictures(3)
    together = member(images)
    for index in range(3):
        for whole, alone in zip(together, member(images[index : index + 1]), strict=True):
            torch.testing.assert_close(whole[index], alone[0], atol=1e-4, rtol=1e-4)


@every
def test_same_config_same_features(name: str) -> None:
    images = pictures(1)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = trained(EXAMPLES[name].build(TrunkPool()))
    second = trained(EXAMPLES[name].build(TrunkPool()))
    assert torch.equal(state, torch.random.get_rng_state()), "building drew from the caller's random numbers"
    for a, b in zip(first(images), second(images), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
    assert [tap.key for tap in first.taps] == [tap.key for tap in second.taps]


@every
def test_any_image_size_grey_and_inference_tensors(name: str) -> None:
    member = extractor(name)
    grey = pictures(1, (50, 70))[:, :1].expand(-1, 3, -1, -1)
    with torch.inference_mode():
        tiny = torch.full((1, 3, 1, 1), 0.5)
    for images in (grey, tiny, pictures(1, (64, 64)).double()):
        for value, spec in zip(member(images), member.specs, strict=True):
            assert tuple(value.shape) == (1, spec.channels, *spec.grid)
            assert torch.isfinite(value).all()


@every
def test_autocast_gives_float_maps(name: str) -> None:
    member, images = extractor(name), pictures(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halves = member(images)
    for half, full in zip(halves, member(images), strict=True):
        assert half.dtype == torch.float32
        assert (half - full).square().mean() < 0.05 * full.square().mean()


@every
def test_bad_images_are_refused(name: str) -> None:
    member = extractor(name)
    good = pictures(2)
    for bad, error, words in [
        ((good * 255).to(torch.uint8), ShapeError, "divide 8-bit images by 255"),
        (good * 255, DataError, r"\[0, 1\]"),
        (good.masked_fill(good > 0.9, float("nan")), DataError, "nan"),
        (good.masked_fill(good > 0.9, float("inf")), DataError, "inf"),
        (good[:, :1], ShapeError, r"\(b, 3, H, W\)"),
        (good[0], ShapeError, r"\(b, 3, H, W\)"),
        (good[:0], ShapeError, "at least one image"),
    ]:
        with pytest.raises(error, match=words):
            member(bad)


@every
def test_config_survives_yaml(name: str, tmp_path: Any) -> None:
    config = EXAMPLES[name]
    path = tmp_path / "member.yaml"
    path.write_text(config.to_yaml())
    again = type(config).from_yaml(path)
    assert again == config
    assert again.fingerprint() == config.fingerprint()
    assert TypeAdapter(ExtractorConfig).validate_python(again.model_dump(mode="json")) == config


@every
def test_unknown_field_is_refused(name: str) -> None:
    config = EXAMPLES[name]
    with pytest.raises(ConfigError, match="stagez"):
        type(config).parse(config.model_dump() | {"stagez": (1, 2)})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_is_described_for_editors(kind: Any) -> None:
    fields = kind.model_json_schema()["properties"]
    assert all("description" in field for name, field in fields.items() if name != "kind")


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValidationError, match="patchcore"):
        TypeAdapter(ExtractorConfig).validate_python({"kind": "patchwork"})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (TimmConfig(trunk=RESNET, stages=(4, -1)), "named twice"),
        (TimmConfig(trunk=RESNET, stages=(5,)), "stages 0 to 4 or pooled"),
        (TimmConfig(trunk=RESNET, stages=(-6,)), "'-6' does not exist"),
        (PatchCoreConfig(trunk=RESNET, stages=(2, 2)), "named twice"),
        (UFlowConfig(sources=(ScalesConfig(trunk=RESNET, stages=(1, 1)),)), "named twice"),
        (EfficientAdConfig(trunk=TAUGHT, maps=("teacher", "teacher")), "named twice"),
        (EfficientAdConfig(trunk=EfficientAdTrunkConfig(teacher=PdnTrunkConfig(image_size=32))), "at least 33 px"),
    ],
)
def test_bad_stages_are_refused(config: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config.build(POOL)


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (TimmConfig, {}, "stages: this field is required"),
        (TimmConfig, {"stages": []}, "stages"),
        (TimmConfig, {"stages": ["poolled"]}, "stages.0: expected a stage's index or pooled, got 'poolled'"),
        (PatchCoreConfig, {"neighbourhood": 4}, "expected an odd side, such as 5"),
        (PatchCoreConfig, {"trunk": {"size": 0}}, "trunk.size"),
        (EfficientAdConfig, {"trunk": {"teacher": {"padding": True}}}, "trunk.teacher: .*expected padding: false"),
        (EfficientAdConfig, {"trunk": {"teacher": {"seed": 2**64}}}, "trunk.teacher.seed: "),
        (EfficientAdConfig, {"maps": ["loacl"]}, "maps.0: "),
        (EfficientAdConfig, {"trunk": {"training": {"schedule": {"crop": 30}}}}, "trunk.training.schedule.crop: "),
    ],
)
def test_bad_fields_are_named(kind: Any, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ManyeyesError, match=words):
        kind.parse(values)


def count_passes(member_configs: list[Any]) -> int:
    """Forward passes that one batch costs, counted at the first convolution."""
    pool = TrunkPool()
    eyes = Eyes([config.build(pool) for config in member_configs])
    passes: list[int] = []
    for trunk in pool.trunks.values():
        first = next(module for module in trunk.modules() if isinstance(module, torch.nn.Conv2d))
        first.register_forward_hook(lambda *_: passes.append(1))
    eyes(pictures(2))
    return len(passes)


def test_members_that_name_one_trunk_and_size_cost_one_pass() -> None:
    members = [
        TimmConfig(trunk=RESNET, stages=(1, "pooled")),
        PatchCoreConfig(trunk=RESNET.model_copy()),
        UFlowConfig(sources=(ScalesConfig(trunk=TimmTrunkConfig(**RESNET.model_dump() | {"size": (64, 64)})),)),
    ]
    assert count_passes(members) == 1


def test_another_size_costs_another_pass() -> None:
    larger = RESNET.model_copy(update={"size": 96})
    assert count_passes([PatchCoreConfig(trunk=RESNET), PatchCoreConfig(trunk=larger)]) == 2


def test_halves_of_a_student_are_one_pass() -> None:
    config = EfficientAdConfig(trunk=TAUGHT, maps=("student", "student_teacher", "student_autoencoder"))
    member = trained(config.build(POOL))
    passes: list[int] = []
    member.trunks[0].student.register_forward_hook(lambda *_: passes.append(1))
    whole, first, last = member(pictures(1))
    assert passes == [1]
    assert torch.equal(whole, torch.cat([first, last], dim=1))


def test_a_trunk_that_has_not_learned_does_not_look() -> None:
    member = EXAMPLES["efficientad"].build(TrunkPool())
    with pytest.raises(NotFittedError, match="EfficientAD has not been trained"):
        member(pictures(1))
    with pytest.raises(NotFittedError, match="EfficientAD has not been trained"):
        member.trunks[0].learned()


def test_taps_shared_in_an_ensemble_equal_a_member_alone() -> None:
    members = [extractor(name) for name in EXAMPLES]
    images = pictures(2)
    taps = Eyes(members)(images)
    for member in members:
        for shared, alone in zip(member.maps(taps), member(images), strict=True):
            torch.testing.assert_close(shared, alone, atol=1e-5, rtol=1e-5)


def test_neighbourhood_is_left_out_of_raw_maps() -> None:
    member, images = extractor("patchcore"), pictures(1)
    raw = member.raw_maps(Eyes([member])(images))
    for value, mean in zip(raw, member(images), strict=True):
        inner = value[0, :, :3, :3].mean(dim=(1, 2))
        torch.testing.assert_close(mean[0, :, 1, 1], inner)
        assert not torch.allclose(value, mean)
