"""A patch description network in training: batch norm before every ReLU, folded into the convolutions afterwards.

The folded network is the published one, key for key; with the norms it learns many times faster at a large rate.
The last layer is linear in what the others give, so that it is fitted in closed form at the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from manyeyes.backbones.pdn import PdnSize, patch_description_network


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
            gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            target.weight.copy_(source.weight * gain.view(-1, 1, 1, 1))
            target.bias.copy_(norm.bias - norm.running_mean * gain)  # type: ignore[union-attr]
        else:
            target.weight.copy_(source.weight)
            target.bias.copy_(source.bias)  # type: ignore[union-attr, arg-type]
    return plain.eval()


@torch.no_grad()
def refit_last(
    network: nn.Sequential, batches: Iterable[tuple[Tensor, Tensor]], ridge: float, share: float, seed: int
) -> None:
    """Replace the last convolution by the least-squares one, from streamed normal equations.

    ``batches`` are images (b, 3, H, W) with their targets (b, c, h, w); of their positions a random ``share`` is used.
    ``ridge`` is relative to the mean square of an input. Memory: one square matrix of the last layer's inputs.
    """
    last = cast(nn.Conv2d, network[-1])
    before = network[:-1]
    kernel = cast(tuple[int, int], last.kernel_size)
    inputs = last.in_channels * kernel[0] * kernel[1]
    device = last.weight.device
    square = torch.zeros(inputs, inputs, dtype=torch.float64)
    product = torch.zeros(inputs, last.out_channels, dtype=torch.float64)
    sums = [torch.zeros(inputs, dtype=torch.float64), torch.zeros(last.out_channels, dtype=torch.float64)]
    count = 0
    generator = torch.Generator().manual_seed(seed)
    for images, targets in batches:
        rows = rearrange(F.unfold(before(images), kernel), "b c n -> (b n) c")
        wanted = rearrange(targets.to(rows), "b c h w -> (b h w) c")
        chosen = (torch.rand(len(rows), generator=generator) < share).to(device)
        rows, wanted = rows[chosen], wanted[chosen]
        square += (rows.T @ rows).double().cpu()
        product += (rows.T @ wanted).double().cpu()
        for total, values in zip(sums, (rows, wanted), strict=True):
            total += values.double().sum(dim=0).cpu()
        count += len(rows)
    mean, middle = (total / count for total in sums)
    square -= count * torch.outer(mean, mean)
    product -= count * torch.outer(mean, middle)
    square.diagonal().add_(ridge * float(square.diagonal().mean()))
    weight = torch.cholesky_solve(product, torch.linalg.cholesky(square)).T
    last.weight.copy_(weight.view_as(last.weight))
    assert last.bias is not None
    last.bias.copy_(middle - weight @ mean)
