"""Every kind of head against every check of the contract: a new kind is tested by existing."""

from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from manyeyes.config import Config
from manyeyes.errors import ConfigError, DataError, NotFittedError, ShapeError
from manyeyes.heads import DiscriminatorConfig, GaussianConfig, HeadConfig, MapHead, MemoryBankConfig, VectorHead

CHANNELS = 6

EXAMPLES: list[Config] = [
    DiscriminatorConfig(hidden=32, steps=80, batch=64),
    MemoryBankConfig(ratio=0.1),
    MemoryBankConfig(ratio=0.1, neighbours=3, chunk=7, coreset_dimensions=3),
    MemoryBankConfig(ratio=0.1, reweight=True),
    MemoryBankConfig(ratio=0.1, candidates=100, max_entries=5),
    GaussianConfig(),
    GaussianConfig(shrinkage="oas", standardise=True),
    GaussianConfig(shrinkage=0.2),
]
examples = pytest.mark.parametrize("config", EXAMPLES, ids=lambda config: f"{config.kind}-{config.fingerprint()[:4]}")


def is_map_head(config: Config) -> bool:
    assert config.picturable == isinstance(config.build(CHANNELS), MapHead)
    return config.picturable


def images(config: Config, count: int, seed: int = 0) -> Tensor:
    """Embeddings of normal images, in the shape that the head takes."""
    values = torch.randn(count, CHANNELS, 5, 4, generator=torch.Generator().manual_seed(seed)) + 3
    return values if is_map_head(config) else values.mean(dim=(2, 3))


class Batches:
    """A re-iterable that gives fresh copies and keeps what it gave, to see whether it was changed."""

    def __init__(self, values: Tensor, size: int = 4) -> None:
        self.values, self.size = values, size
        self.given: list[Tensor] = []

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.values.split(self.size):
            self.given.append(batch.clone())
            yield self.given[-1]


def fitted(config: Config, values: Tensor, seed: int = 0, size: int = 4):
    return config.build(CHANNELS).fit(Batches(values, size), seed)


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
    head = config.build(CHANNELS)
    with pytest.raises(NotFittedError, match="before fit"):
        head.score(images(config, 1))
    if isinstance(head, MapHead):
        with pytest.raises(NotFittedError, match="before fit"):
            head.anomaly_map(images(config, 1))


@examples
def test_fit_returns_self_and_shapes_are_those_declared(config):
    head = config.build(CHANNELS)
    assert head.fit(Batches(images(config, 12)), 0) is head
    fresh = images(config, 3, seed=1)
    scores = head.score(fresh)
    assert scores.shape == (3,)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    if isinstance(head, MapHead):
        anomaly_map, judged = head.judge(fresh)
        assert anomaly_map.shape == (3, 5, 4)
        assert anomaly_map.isfinite().all()
        assert torch.equal(anomaly_map, head.anomaly_map(fresh))
        assert torch.equal(judged, scores)
    else:
        assert isinstance(head, VectorHead)


@examples
def test_far_features_score_above_normal_ones(config):
    head = fitted(config, images(config, 12))
    normal = images(config, 5, seed=1)
    assert head.score(normal + 20).min() > head.score(normal).max()


@examples
def test_batch_scores_as_its_images_one_by_one(config):
    head = fitted(config, images(config, 12))
    fresh = images(config, 5, seed=1)
    torch.testing.assert_close(head.score(fresh), torch.cat([head.score(one) for one in fresh.split(1)]))


@examples
def test_same_seed_same_head_whatever_the_batch_size(config):
    values, fresh = images(config, 12), images(config, 3, seed=1)
    expected = fitted(config, values, seed=5).score(fresh)
    torch.testing.assert_close(fitted(config, values, seed=5).score(fresh), expected, rtol=0, atol=0)
    torch.testing.assert_close(fitted(config, values, seed=5, size=7).score(fresh), expected)


@examples
def test_second_fit_forgets_the_first(config):
    values, fresh = images(config, 12), images(config, 3, seed=1)
    twice = fitted(config, 5 * images(config, 9, seed=2)).fit(Batches(values), 0)
    torch.testing.assert_close(twice.score(fresh), fitted(config, values).score(fresh), rtol=0, atol=0)


@examples
def test_state_loads_into_a_fresh_head(config):
    head, fresh = fitted(config, images(config, 12)), images(config, 3, seed=1)
    loaded = config.build(CHANNELS)
    assert all(value.is_contiguous() for value in head.state_dict().values()), "safetensors refuses other layouts"
    loaded.load_state_dict(head.state_dict())
    torch.testing.assert_close(loaded.score(fresh), head.score(fresh), rtol=0, atol=0)


@examples
def test_no_gradient_and_no_input_is_changed(config):
    values = images(config, 12)
    batches = Batches(values.clone().requires_grad_())
    head = config.build(CHANNELS).fit(batches, 0)
    fresh = images(config, 3, seed=1).requires_grad_()
    before = fresh.detach().clone()
    assert not head.score(fresh).requires_grad
    assert torch.equal(fresh.detach(), before)
    assert torch.equal(torch.cat([given.detach() for given in batches.given[: len(values) // 4]]), values)
    assert not any(value.requires_grad for value in head.state_dict().values())


@examples
def test_features_from_inference_mode_fit_and_score(config):
    """Trunks run in inference mode, whose tensors may not be changed or kept for a gradient later."""
    with torch.inference_mode():
        values = images(config, 12)
    head = config.build(CHANNELS).fit(Batches(values), 0)
    torch.testing.assert_close(head.score(values), fitted(config, images(config, 12)).score(values))


@examples
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused_by_name(config, bad):
    values = images(config, 12)
    values[9, 2] = bad
    with pytest.raises(DataError, match="image 9"):
        fitted(config, values)


@examples
def test_no_image_is_refused(config):
    with pytest.raises(DataError, match="image"):
        config.build(CHANNELS).fit([], 0)


@examples
def test_one_image_fits_or_is_refused_in_words(config):
    values = images(config, 1)
    if is_map_head(config):
        assert fitted(config, values).score(values).isfinite().all()
    else:
        with pytest.raises(DataError, match="at least 2 normal images"):
            fitted(config, values)


@examples
@pytest.mark.parametrize("level", [0.0, 1.7, 1e4])
def test_equal_images_fit_or_are_refused_in_words(config, level):
    values = torch.full_like(images(config, 6), level)
    head = config.build(CHANNELS)
    try:
        head.fit(Batches(values), 0)
    except DataError:
        return
    assert head.score(values).isfinite().all()
    assert (head.score(values + 1 + level) > head.score(values)).all()


@examples
def test_wrong_channels_are_refused(config):
    head = fitted(config, images(config, 12))
    wide = torch.cat([images(config, 2), images(config, 2)], dim=1)
    with pytest.raises(ShapeError, match="6"):
        head.score(wide)
    with pytest.raises(ShapeError, match="6"):
        config.build(CHANNELS).fit([wide], 0)
