"""A patch description network in training: batch norm before every ReLU, folded into the convolutions afterwards.

The folded network is the published one, key for key; with the norms it learns many times faster at a large rate.
The last layer is linear in what the others give, so that it is fitted in closed form at the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from manyeyes.backbones.least_squares import LeastSquares, position_rows
from manyeyes.backbones.pdn import PdnSize, patch_description_network

JUDGING = 4
RIDGES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


def with_norms(size: PdnSize, out: int) -> nn.Sequential:
    """`patch_description_network` with a batch norm between each convolution and its ReLU; freshly drawn."""
    layers: list[nn.Module] = []
    plain = patch_description_network(size, out)
    for layer, after in zip(plain, [*list(plain)[1:], None], strict=True):
        if isinstance(layer, nn.Conv2d) and isinstance(after, nn.ReLU):
            kernel = cast(tuple[int, int], layer.kernel_size)
            layers += [
                nn.Conv2d(layer.in_channels, layer.out_channels, kernel, bias=False),
                nn.BatchNorm2d(layer.out_channels, momentum=0.03),
            ]
        else:
            layers.append(nn.ReLU(inplace=True) if isinstance(layer, nn.ReLU) else layer)
    return nn.Sequential(*layers)


@torch.no_grad()
def folded(network: nn.Sequential, size: PdnSize, out: int) -> nn.Sequential:
    """The same function in evaluation mode as a plain network with the published keys."""
    plain = patch_description_network(size, out)
    targets = [layer for layer in plain if isinstance(layer, nn.Conv2d)]
    layers = list(network)
    sources = [(layer, layers[i + 1 : i + 2]) for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    for target, (source, following) in zip(targets, sources, strict=True):
        norm = following[0] if following else None
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert target.bias is not None
            gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            target.weight.copy_(source.weight * gain.view(-1, 1, 1, 1))
            target.bias.copy_(norm.bias - norm.running_mean * gain)
        else:
            assert target.bias is not None
            assert source.bias is not None
            target.weight.copy_(source.weight)
            target.bias.copy_(source.bias)
    return plain.eval()


@torch.no_grad()
def improve_last(network: nn.Sequential, batches: Iterable[tuple[Tensor, Tensor]], share: float, seed: int) -> float:
    """Add to the last convolution the least-squares fit to what it leaves, as strongly as every fourth batch bears.

    ``batches`` as in `position_rows`. Returns: the share of the remaining error on those fourth batches that is gone;
    0, and nothing is changed, if no fit helps there.
    """
    last = cast(nn.Conv2d, network[-1])
    weight, bias = last.weight.flatten(1), cast(Tensor, last.bias)
    system = LeastSquares(weight.shape[1], len(weight))
    judges: list[tuple[Tensor, Tensor]] = []
    for index, (rows, wanted) in enumerate(position_rows(network, batches, share, torch.Generator().manual_seed(seed))):
        rest = wanted - (rows @ weight.T + bias)
        if index % JUDGING:
            system.see(rows, rest)
        else:
            judges.append((rows.cpu(), rest.cpu()))
    before = sum(float(rest.square().sum()) for _, rest in judges)
    best, change = before, None
    for ridge in RIDGES if system.count else ():
        found = system.solve(ridge)
        left = sum(float((rest - rows @ found[0].T - found[1]).square().sum()) for rows, rest in judges)
        if left < best:
            best, change = left, found
    if change is not None:
        last.weight.add_(change[0].view_as(last.weight).to(last.weight))
        bias.add_(change[1].to(bias))
    return 1 - best / before if before else 0.0
