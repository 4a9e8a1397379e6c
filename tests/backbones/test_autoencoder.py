"""EfficientAD's autoencoder against the table of the paper at 256 px, and its sizes at any other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from manyeyes.backbones.autoencoder import Resize, autoencoder, draw_as_he
from manyeyes.backbones.pdn import cells

# kernel, in, out and the side of the map that comes out, at 256 px
ENCODER = [(4, 3, 32, 128), (4, 32, 32, 64), (4, 32, 64, 32), (4, 64, 64, 16), (4, 64, 64, 8), (8, 64, 64, 1)]
DECODER = [
    *((4, 64, 64, 4), (4, 64, 64, 9), (4, 64, 64, 16), (4, 64, 64, 33), (4, 64, 64, 64), (4, 64, 64, 128)),
    *((3, 64, 64, 64), (3, 64, 384, 64)),
]


def seen(network: nn.Sequential, image: Tensor) -> tuple[list[tuple[int, ...]], list[int], Tensor]:
    """(kernel, in, out, side of its output) of every convolution, and the side of every upsampling."""
    convolutions, resizes = [], []
    value = image
    for layer in network:
        value = layer(value)
        if isinstance(layer, nn.Conv2d):
            shape = (layer.kernel_size[0], layer.in_channels, layer.out_channels, value.shape[2])
            convolutions.append(shape)
        elif isinstance(layer, Resize):
            resizes.append(value.shape[2])
    return convolutions, resizes, value


def test_layers_and_sizes_are_those_of_the_table() -> None:
    with torch.device("meta"):
        convolutions, resizes, out = seen(autoencoder((256, 256), (64, 64), 384), torch.zeros(1, 3, 256, 256))
    assert convolutions == ENCODER + DECODER
    assert resizes == [3, 8, 15, 32, 63, 127, 64]
    assert tuple(out.shape) == (1, 384, 64, 64)


def test_count_of_parameters() -> None:
    count = sum(kernel**2 * before * after + after for kernel, before, after, _ in ENCODER + DECODER)
    assert count == 1_096_320
    network = autoencoder((256, 256), (64, 64), 384)
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert [layer.p for layer in network if isinstance(layer, nn.Dropout)] == [0.2] * 6


@pytest.mark.parametrize("size", [(33, 33), (64, 96), (70, 51), (200, 33), (40, 256)])
def test_any_size_and_aspect_ends_on_the_teachers_grid_through_one_code(size: tuple[int, int]) -> None:
    grid = (cells(size[0]), cells(size[1]))
    network = autoencoder(size, grid, 5).eval()
    codes: list[Tensor] = []
    network[10].register_forward_hook(lambda module, inputs, value: codes.append(value))
    value = network(torch.rand(2, 3, *size))
    assert tuple(value.shape) == (2, 5, *grid)
    assert tuple(codes[0].shape) == (2, 64, 1, 1)
    assert value.isfinite().all()
    assert not torch.equal(value[0], value[1])


def test_drawn_as_he_a_picture_passes_through_and_by_default_it_does_not() -> None:
    torch.manual_seed(0)
    network, picture = autoencoder((64, 64), (16, 16), 8).eval(), torch.randn(2, 3, 64, 64)

    def difference() -> float:
        with torch.no_grad():
            first, second = network(picture)
        return float((first - second).std())

    assert difference() < 1e-3
    draw_as_he(network)
    assert difference() > 0.01
    biases = [layer.bias for layer in network if isinstance(layer, nn.Conv2d)]
    assert all(not bool(bias.any()) for bias in biases if bias is not None)
