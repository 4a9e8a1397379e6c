"""Every kind of head against every check of the contract: a new kind is tested by existing."""

import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor

from manyeyes.config import Config
from manyeyes.errors import ConfigError, DataError, NotFittedError, ShapeError
from manyeyes.heads import (
    DiscriminatorConfig,
    EfficientAdHeadConfig,
    GaussianConfig,
    HeadConfig,
    MapHead,
    MemoryBankConfig,
    PyramidHead,
    SimpleNetConfig,
    UFlowHeadConfig,
    VectorHead,
)
from manyeyes.heads.flow_training import Schedule
from manyeyes.maps import MapSpec

CHANNELS = 6
GRID = (8, 4)
SPECS = (MapSpec("fine", CHANNELS, 4, GRID), MapSpec("coarse", CHANNELS - 2, 8, (4, 2)))
# What a head that reads ready anomaly maps gets: one channel each, on one grid.
ONE_CHANNEL = (MapSpec("local", 1, 4, GRID), MapSpec("global", 1, 4, GRID))
CLASSES = {"map": MapHead, "vector": VectorHead, "pyramid": PyramidHead}


EXAMPLES: list[Config] = [
    DiscriminatorConfig(hidden=32, steps=80, batch=64),
    SimpleNetConfig(hidden=32, steps=80, batch=64),
    MemoryBankConfig(ratio=0.1),
    MemoryBankConfig(ratio=0.1, neighbours=3, chunk=7, coreset_dimensions=3),
    MemoryBankConfig(ratio=0.1, reweight=True),
    MemoryBankConfig(ratio=0.1, candidates=100, max_entries=5),
    GaussianConfig(),
    GaussianConfig(shrinkage="oas", standardise=True),
    GaussianConfig(shrinkage=0.2),
    UFlowHeadConfig(steps=2, training=Schedule(steps=8)),
    UFlowHeadConfig(steps=1, width=1, training=Schedule(steps=4, memory=2e-6)),
    EfficientAdHeadConfig(),
    EfficientAdHeadConfig(quantiles=(0.5, 1.0)),
]
examples = pytest.mark.parametrize("config", EXAMPLES, ids=lambda config: f"{config.kind}-{config.fingerprint()[:4]}")


def build(config: Config) -> Any:
    specs = ONE_CHANNEL if config.kind == "efficientad" else SPECS
    head = config.build(specs if config.reads == "pyramid" else CHANNELS)
    assert isinstance(head, CLASSES[config.reads])
    return head


def images(count: int, seed: int = 0) -> Tensor:
    """Features of normal images."""
    return torch.randn(count, CHANNELS, *GRID, generator=torch.Generator().manual_seed(seed)) + 3


def shown(config: Config, values: Tensor) -> Any:
    """The features in the shape that the head reads."""
    if config.reads == "map":
        return values
    if config.reads == "vector":
        return values.mean(dim=(2, 3))
    if config.kind == "efficientad":
        # Wrong channels stay wrong: 12 of them give maps of 2.
        halves = values.unflatten(1, (CHANNELS, -1)).chunk(2, dim=1)
        return tuple(half.mean(dim=1) for half in halves)
    return values.clone(), 2 * F.avg_pool2d(values, 2)[:, : values.shape[1] - 2]


def parts(features: Any) -> tuple[Tensor, ...]:
    return features if isinstance(features, tuple) else (features,)


class Batches:
    """A re-iterable that gives fresh copies and keeps what it gave, to see whether it was changed."""

    def __init__(self, config: Config, values: Tensor, size: int = 4) -> None:
        self.config, self.values, self.size = config, values, size
        self.given: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        for batch in self.values.split(self.size):
            self.given.append(shown(self.config, batch.clone()))
            yield self.given[-1]


def fitted(config: Config, values: Tensor, seed: int = 0, size: int = 4) -> Any:
    return build(config).fit(Batches(config, values, size), seed)


def score(config: Config, head: Any, values: Tensor) -> Tensor:
    return head.score(shown(config, values))


def test_examples_cover_every_kind():
    kinds = {kind.model_fields["kind"].default for kind in get_args(get_args(HeadConfig)[0])}
    assert kinds == {config.kind for config in EXAMPLES}


@examples
def test_config_survives_a_round_trip_and_chooses_its_class_by_kind(config):
    assert TypeAdapter(HeadConfig).validate_python(config.model_dump(mode="json")) == config


@examples
def test_unknown_fields_are_refused(config):
    with pytest.raises(ConfigError, match="neighbors"):
        type(config).parse({**config.model_dump(), "neighbors": 3})


@examples
def test_use_before_fit_raises(config):
    head = build(config)
    with pytest.raises(NotFittedError, match="before fit"):
        score(config, head, images(1))
    if isinstance(head, MapHead):
        with pytest.raises(NotFittedError, match="before fit"):
            head.anomaly_map(images(1))


@examples
def test_fit_returns_self_and_shapes_are_those_declared(config):
    head = build(config)
    assert head.fit(Batches(config, images(12)), 0) is head
    fresh = images(3, seed=1)
    scores = score(config, head, fresh)
    assert scores.shape == (3,)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    if not isinstance(head, VectorHead):
        anomaly_map, judged = head.judge(shown(config, fresh))
        assert anomaly_map.shape == (3, *GRID)
        assert anomaly_map.isfinite().all()
        assert torch.equal(judged, scores)
    if isinstance(head, MapHead):
        assert torch.equal(anomaly_map, head.anomaly_map(fresh))
    if isinstance(head, PyramidHead):
        assert head.calibrate(Batches(config, images(4, seed=2))) is head
        assert score(config, head, fresh).isfinite().all()


@examples
def test_far_features_score_above_normal_ones(config):
    head = fitted(config, images(12))
    normal = images(5, seed=1)
    assert score(config, head, normal + 20).min() > score(config, head, normal).max()


@examples
def test_batch_scores_as_its_images_one_by_one(config):
    head = fitted(config, images(12))
    fresh = images(5, seed=1)
    torch.testing.assert_close(
        score(config, head, fresh), torch.cat([score(config, head, one) for one in fresh.split(1)])
    )


@examples
def test_same_seed_same_head_whatever_the_batch_size(config):
    values, fresh = images(12), images(3, seed=1)
    expected = score(config, fitted(config, values, seed=5), fresh)
    torch.testing.assert_close(score(config, fitted(config, values, seed=5), fresh), expected, rtol=0, atol=0)
    torch.testing.assert_close(score(config, fitted(config, values, seed=5, size=7), fresh), expected)


@examples
def test_second_fit_forgets_the_first(config):
    values, fresh = images(12), images(3, seed=1)
    twice = fitted(config, 5 * images(9, seed=2)).fit(Batches(config, values), 0)
    torch.testing.assert_close(
        score(config, twice, fresh), score(config, fitted(config, values), fresh), rtol=0, atol=0
    )


@examples
def test_state_loads_into_a_fresh_head(config):
    head, fresh = fitted(config, images(12)), images(3, seed=1)
    loaded = build(config)
    assert all(value.is_contiguous() for value in head.state_dict().values()), "safetensors refuses other layouts"
    loaded.load_state_dict(head.state_dict())
    torch.testing.assert_close(score(config, loaded, fresh), score(config, head, fresh), rtol=0, atol=0)


@examples
def test_no_gradient_and_no_input_is_changed(config):
    values = images(12)
    batches = Batches(config, values.clone().requires_grad_())
    head = build(config).fit(batches, 0)
    fresh = images(3, seed=1).requires_grad_()
    before = fresh.detach().clone()
    assert not score(config, head, fresh).requires_grad
    assert torch.equal(fresh.detach(), before)
    for given, batch in zip(batches.given, values.split(batches.size), strict=False):
        assert all(map(torch.equal, parts(given), parts(shown(config, batch))))
    assert not any(value.requires_grad for value in head.state_dict().values())


@examples
def test_features_from_inference_mode_fit_and_score(config):
    """Trunks run in inference mode, whose tensors may not be changed or kept for a gradient later."""
    with torch.inference_mode():
        values = images(12)
    head = build(config).fit(Batches(config, values), 0)
    torch.testing.assert_close(score(config, head, values), score(config, fitted(config, images(12)), values))


@examples
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused_by_name(config, bad):
    values = images(12)
    values[9, 2] = bad
    with pytest.raises(DataError, match="image 9"):
        fitted(config, values)


@examples
def test_no_image_is_refused(config):
    with pytest.raises(DataError, match="image"):
        build(config).fit([], 0)


@examples
def test_one_image_fits_or_is_refused_in_words(config):
    values = images(1)
    if config.reads != "vector":
        assert score(config, fitted(config, values), values).isfinite().all()
    else:
        with pytest.raises(DataError, match="at least 2 normal images"):
            fitted(config, values)


# Heads that learn by noise or by standardising have nothing to go by where nothing varies; all others fit.
REFUSE_EQUAL_IMAGES = {
    "discriminator": "discriminator: all features are equal; the training pictures may be constant",
    "simplenet": "simplenet: all features are equal; the training pictures may be constant",
    "u_flow": "u_flow: all features of a scale are equal; the training pictures may be constant",
}


@examples
@pytest.mark.parametrize("level", [0.0, 1.7, 1e4])
def test_equal_images_fit_or_are_refused_in_words(config, level):
    values = torch.full_like(images(6), level)
    head = build(config)
    if config.kind in REFUSE_EQUAL_IMAGES:
        with pytest.raises(DataError, match=f"^{re.escape(REFUSE_EQUAL_IMAGES[config.kind])}"):
            head.fit(Batches(config, values), 0)
        return
    head.fit(Batches(config, values), 0)
    assert score(config, head, values).isfinite().all()
    assert (score(config, head, values + 1 + level) > score(config, head, values)).all()


@examples
def test_wrong_channels_are_refused(config):
    head = fitted(config, images(12))
    wide = torch.cat([images(2), images(2)], dim=1)
    expected = "1" if config.kind == "efficientad" else "6"
    with pytest.raises(ShapeError, match=rf"\b{expected}\b"):
        score(config, head, wide)
    with pytest.raises(ShapeError, match=rf"\b{expected}\b"):
        build(config).fit([shown(config, wide)], 0)


@pytest.mark.parametrize("kind", [DiscriminatorConfig, SimpleNetConfig])
@pytest.mark.parametrize("steps", [1, 2, 19, 20, 21])
def test_a_discriminator_learns_for_any_number_of_steps(
    kind: type[DiscriminatorConfig | SimpleNetConfig], steps: int
) -> None:
    """PyTorch's one-cycle schedule divides by zero where its first phase is exactly one step."""
    head = kind(hidden=8, steps=steps, batch=16).build(CHANNELS)
    maps = torch.randn(4, CHANNELS, 5, 5, generator=torch.Generator().manual_seed(0))
    assert head.fit([maps], 0).judge(maps)[1].isfinite().all()
