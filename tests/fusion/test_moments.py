"""Streaming moments against NumPy's float64 of all samples at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyeyes.errors import DataError
from manyeyes.fusion import GlobalPcaConfig, IndependentPcaConfig, KnownMoments
from manyeyes.fusion.moments import ROWS, Moments, Wanted, channel_variance, positions
from manyeyes.maps import MapSpec, to_grid

CHANNELS = 6


def samples(n: int, seed: int = 0, offset: float = 0.0, spread: float = 1.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(CHANNELS, CHANNELS, generator=random)
    return torch.randn(n, CHANNELS, generator=random) @ mix * spread + offset


@pytest.mark.parametrize(("offset", "spread"), [(0, 1), (1e3, 1), (-1e3, 0.1), (0, 1e-4), (0, 1e6)])
def test_equals_numpy(offset: float, spread: float) -> None:
    data = samples(3 * ROWS + 17, offset=offset, spread=spread)
    moments = Moments(CHANNELS).update(data)
    reference = data.double().numpy()
    covariance = np.cov(reference, rowvar=False)
    np.testing.assert_allclose(moments.mean, reference.mean(axis=0), rtol=1e-7, atol=1e-6 * spread)
    np.testing.assert_allclose(moments.covariance(), covariance, rtol=1e-5, atol=1e-5 * covariance.max())


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 199), max_size=5), offset=st.sampled_from([0.0, 1e3]), seed=st.integers(0, 9))
def test_the_cut_into_batches_does_not_matter(cuts: list[int], offset: float, seed: int) -> None:
    data = samples(200, seed, offset)
    parts = torch.tensor_split(data, sorted(cuts))
    streamed, merged = Moments(CHANNELS), Moments(CHANNELS)
    for part in parts:
        streamed.update(part)
        merged.merge(Moments(CHANNELS).update(part))
    expected = torch.cov(data.double().T)
    for moments in (streamed, merged):
        assert moments.count == 200
        torch.testing.assert_close(moments.mean, data.double().mean(dim=0), rtol=1e-7, atol=1e-6)
        torch.testing.assert_close(moments.covariance(), expected, rtol=1e-5, atol=1e-5 * float(expected.max()))


def test_merging_leaves_the_other_alone() -> None:
    other = Moments(CHANNELS).update(samples(9, 1))
    before = other.covariance()
    Moments(CHANNELS).merge(other).update(samples(9, 2))
    assert torch.equal(other.covariance(), before)


def test_memory_is_the_channels_squared() -> None:
    few, many = Moments(CHANNELS).update(samples(10)), Moments(CHANNELS).update(samples(20_000))
    for moments in (few, many):
        held = sum(value.numel() for value in vars(moments).values() if isinstance(value, torch.Tensor))
        assert held == CHANNELS**2 + 2 * CHANNELS


def test_the_covariance_of_many_channels_is_torchs() -> None:
    data = torch.randn(900, 517, generator=torch.Generator().manual_seed(0))
    covariance = Moments(data.shape[1]).update(data).covariance()
    assert torch.equal(covariance, covariance.T)
    torch.testing.assert_close(covariance, torch.cov(data.double().T), atol=1e-5, rtol=1e-5)


def test_half_precision_does_not_overflow() -> None:
    """A sum of squares over 65504 is infinite in float16."""
    moments = Moments(CHANNELS).update(samples(4000, spread=30).half())
    assert torch.isfinite(moments.covariance()).all()


def test_one_sample_has_no_variance() -> None:
    assert not Moments(CHANNELS).update(samples(1)).covariance().any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e30])
def test_refuses_what_cannot_be_squared(bad: float) -> None:
    data = samples(50)
    data[33, 2] = bad
    with pytest.raises(DataError, match="finite"):
        Moments(CHANNELS).update(data)


def test_refuses_nothing() -> None:
    with pytest.raises(DataError, match="got none"):
        _ = Moments(CHANNELS).mean
    with pytest.raises(DataError, match="got none"):
        Moments(CHANNELS).update(torch.zeros(0, CHANNELS)).covariance()
    with pytest.raises(DataError, match="got none"):
        channel_variance([])


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_channel_variance_equals_numpy(offset: float) -> None:
    data = samples(500, offset=offset)
    mean, variance = channel_variance(data.tensor_split([1, 7, 300]))
    np.testing.assert_allclose(mean, data.double().mean(dim=0), rtol=1e-12)
    np.testing.assert_allclose(variance, data.double().var(dim=0), rtol=1e-9)


def test_positions_are_those_of_the_resized_maps() -> None:
    maps = (torch.randn(5, 2, 60, 60), torch.randn(5, 3, 30, 20))
    chunks = list(positions(maps, (60, 60)))
    assert max(len(chunk) for chunk in chunks) <= ROWS
    expected = torch.cat([to_grid(value, (60, 60)) for value in maps], dim=1).movedim(1, -1).reshape(-1, 5)
    assert torch.equal(torch.cat(chunks), expected)


MAPS = (MapSpec("a/1", 3, 4, (8, 8)), MapSpec("b/1", 2, 4, (8, 8)), MapSpec("b/2", 4, 8, (4, 4)))


class Stream:
    """Two batches of maps as `MAPS` names them, counting how often they are read."""

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        self.batches = [
            tuple(torch.randn(5, spec.channels, *spec.grid, generator=random) for spec in MAPS) for _ in range(2)
        ]
        self.readings = 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        self.readings += 1
        yield from self.batches


@pytest.mark.parametrize("kind", [IndependentPcaConfig, GlobalPcaConfig])
def test_blocks_on_the_same_pictures_share_their_moments_to_the_bit(
    kind: type[IndependentPcaConfig] | type[GlobalPcaConfig],
) -> None:
    """The fused block of two members, then member b's own block, which reads other maps at other places."""
    known, stream, alone = KnownMoments(), Stream(), Stream()
    fused = IndependentPcaConfig(components=4).build(MAPS, (8, 8)).fit(stream, known)
    own = kind(components=3, whiten=0).build(MAPS[1:], (8, 8)).fit((maps[1:] for maps in stream.batches), known)
    assert stream.readings == 1
    assert torch.equal(fused.weight_, IndependentPcaConfig(components=4).build(MAPS, (8, 8)).fit(alone).weight_)
    plain = kind(components=3, whiten=0).build(MAPS[1:], (8, 8)).fit([maps[1:] for maps in alone.batches])
    assert torch.equal(own.weight_, plain.weight_)
    assert torch.equal(own.mean_, plain.mean_)


def test_known_moments_are_not_read_again_and_others_are() -> None:
    known, stream = KnownMoments(), Stream()
    wanted = {Wanted(MAPS[:1], (8, 8)): (0,), Wanted(MAPS[1:], (8, 8)): (1, 2)}
    first, second = known.take(wanted, stream)
    assert first.channels == 3
    assert second.channels == 6
    again, other = known.take({Wanted(MAPS[1:], (8, 8)): (1, 2), Wanted(MAPS[1:], (4, 4)): (1, 2)}, stream)
    assert again is second
    assert other is not second
    assert other.count == 10 * 16
    assert stream.readings == 2
    known.take(wanted, stream)
    assert stream.readings == 2


def test_nothing_is_remembered_of_a_broken_stream() -> None:
    known, stream = KnownMoments(), Stream()
    stream.batches.append(tuple(value * float("nan") for value in stream.batches[0]))
    wanted = {Wanted(MAPS[:1], (8, 8)): (0,)}
    with pytest.raises(DataError):
        known.take(wanted, stream)
    stream.batches.pop()
    assert known.take(wanted, stream)[0].count == 10 * 64
