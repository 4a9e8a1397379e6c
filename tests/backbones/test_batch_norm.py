"""A folded network gives the same maps; what cannot be folded is left as it was."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from manyeyes.backbones.batch_norm import followers, without_batch_norms
from manyeyes.backbones.trunk import create, every_map

SIZE = (64, 48)


def worn(network: nn.Module) -> nn.Module:
    """The network with norms that change what they see, as trained ones do."""
    random = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight, module.bias):
                if tensor is not None:
                    tensor.data.copy_(torch.randn(tensor.shape, generator=random))
            assert module.running_var is not None
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=random) + 0.2)
    return network.eval().requires_grad_(False)


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("architecture", ["resnet10t", "test_efficientnet", "test_byobnet", "densenet121"])
def test_maps_stay_the_same(architecture: str) -> None:
    network, look = worn(create(architecture, SIZE)), every_map(SIZE)
    before = [value.clone() for value in look(network)]
    folded = without_batch_norms(network, look)
    assert folded is not network
    assert norms(folded) < norms(network) / 2 + 3
    for plain, value in zip(before, look(folded), strict=True):
        torch.testing.assert_close(value, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))
    assert all(torch.equal(*pair) for pair in zip(before, look(network), strict=True)), "the network itself changed"


def look(network: nn.Module) -> Sequence[Tensor]:
    with torch.no_grad():
        return [network(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))]


class Twice(nn.Module):
    """What the convolution gives is used beside the norm, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + self.norm(y)


class Shared(nn.Module):
    """One convolution serves two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.first(self.conv(x))))


@pytest.mark.parametrize("kind", [Twice, Shared])
def test_what_must_not_be_folded_is_left_alone(kind: type[nn.Module]) -> None:
    network = worn(kind())
    assert without_batch_norms(network, look) is network


def test_followers_are_seen_not_guessed() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    assert followers(worn(network), look) == []
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4, affine=False))
    assert followers(worn(network), look) == [("0", "1")]
    assert norms(without_batch_norms(network, look)) == 0
    assert not [hook for module in network.modules() for hook in module._forward_hooks]
