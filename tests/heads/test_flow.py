"""The flow as a map: there and back again, and its log-determinant against automatic differentiation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from manyeyes.errors import ConfigError
from manyeyes.heads.flow import UShape, rise, sink
from manyeyes.maps import MapSpec

PYRAMIDS = {
    "resnet": ((16, 4), (8, 8), (6, 16)),
    "cait": ((12, 7), (20, 14)),
    "odd channels": ((7, 3), (5, 6), (3, 12)),
    "a scale left out": ((37, 2), (5, 8)),
    "two scales on one grid": ((6, 4), (9, 4)),
    "nothing rises": ((3, 2), (4, 4)),
    "one scale": ((5, 6),),
}
pyramids = pytest.mark.parametrize("shapes", PYRAMIDS.values(), ids=PYRAMIDS.keys())


def specs(shapes: tuple[tuple[int, int], ...]) -> list[MapSpec]:
    return [MapSpec(f"{side} px", channels, 4, (side, side)) for channels, side in shapes]


def shaken(shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, strength: float = 0.2) -> UShape:
    """A flow that has learned something: a fresh one only permutes."""
    flow = UShape(specs(shapes), steps=4, width=1.0, clamp=2.0, seed=0).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for parameter in flow.parameters():
        if parameter.requires_grad:
            parameter.data += strength * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return flow


def maps(shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(count, c, side, side, generator=generator, dtype=dtype) for c, side in shapes]


@pyramids
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@torch.no_grad()
def test_there_and_back_again(shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, tolerance: float) -> None:
    flow, given = shaken(shapes, dtype), maps(shapes, dtype)
    latents, log_determinant = flow(given)
    assert log_determinant.shape == (2,)
    assert sum(z[0].numel() for z in latents) == sum(x[0].numel() for x in given), "as many values as before"
    assert [z.shape[2:] for z in latents] == [x.shape[2:] for x in given]
    before, after = (torch.cat([value.flatten() for value in values]).sort().values for values in (given, latents))
    assert float((before - after).abs().max()) > 0.1, "a flow that only permutes would prove nothing"
    for back, before in zip(flow.inverse(latents), given, strict=True):
        torch.testing.assert_close(back, before, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shapes", [((8, 1), (4, 2), (2, 4)), ((5, 2), (3, 4)), ((9, 1), (3, 3))], ids=str)
def test_log_determinant_is_that_of_the_jacobian(shapes: tuple[tuple[int, int], ...]) -> None:
    flow, given = shaken(shapes, torch.float64, 0.5), maps(shapes, torch.float64, 1)
    sizes = [value.numel() for value in given]

    def flat(values: Tensor) -> Tensor:
        parts = torch.split(values, sizes)
        latents, _ = flow([part.reshape(value.shape) for part, value in zip(parts, given, strict=True)])
        return torch.cat([z.flatten() for z in latents])

    jacobian = torch.autograd.functional.jacobian(flat, torch.cat([value.flatten() for value in given]))
    expected = torch.linalg.slogdet(jacobian).logabsdet
    _, found = flow(given)
    assert abs(float(expected)) > 1, "a flow that keeps every volume would prove nothing"
    torch.testing.assert_close(found[0], expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_the_volume_of_an_image_does_not_depend_on_its_batch() -> None:
    shapes = PYRAMIDS["resnet"]
    flow, given = shaken(shapes, torch.float64), maps(shapes, torch.float64, 3)
    _, together = flow(given)
    alone = torch.cat([flow([value[i : i + 1] for value in given])[1] for i in range(3)])
    torch.testing.assert_close(alone, together)


@torch.no_grad()
def test_a_fresh_flow_only_permutes_and_half_of_the_channels_leave() -> None:
    given = maps(((16, 2), (8, 4)), torch.float32)
    flow = UShape(specs(((16, 2), (8, 4))), 4, 1.0, 2.0, 0)
    latents, log_determinant = flow(given)
    assert [z.shape[1] for z in latents] == [8, 8 + 2]
    torch.testing.assert_close(log_determinant, torch.zeros(2), rtol=0, atol=1e-3)
    before = torch.cat([value[0].flatten() for value in given]).sort().values
    after = torch.cat([value[0].flatten() for value in latents]).sort().values
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)


def test_the_seed_alone_decides_and_no_generator_moves() -> None:
    def values(seed: int) -> Tensor:
        return torch.cat(
            [value.flatten() for value in UShape(specs(((6, 4),)), 2, 1.0, 2.0, seed).state_dict().values()]
        )

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    before = np.random.get_state()[1].tolist()  # noqa: NPY002 - FrEIA's, which is what must not move
    assert torch.equal(values(0), values(0))
    assert not torch.equal(values(0), values(1))
    assert torch.equal(torch.rand(3), expected)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_rearranging_puts_four_channels_on_two_by_two_positions() -> None:
    value = torch.arange(8.0).reshape(1, 8, 1, 1)
    risen = rise(value, 2)
    assert risen.shape == (1, 2, 2, 2)
    assert risen[0, 0].flatten().tolist() == [0, 1, 2, 3]
    assert torch.equal(sink(risen, 2), value)


@pytest.mark.parametrize("grids", [((29, 29), (57, 57)), ((4, 4), (8, 12))], ids=str)
def test_grids_that_do_not_nest_are_refused_in_words(grids: tuple[tuple[int, int], ...]) -> None:
    pair = [MapSpec(f"stage {index}", 4, 4, grid) for index, grid in enumerate(grids)]
    with pytest.raises(ConfigError, match=r"'stage 1' is no whole multiple .*'stage 0'; choose an input size"):
        UShape(pair, 2, 1.0, 2.0, 0)


def test_one_channel_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"has one channel, and a coupling step needs two"):
        UShape(specs(((1, 4),)), 2, 1.0, 2.0, 0)
