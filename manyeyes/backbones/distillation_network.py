"""A patch description network in training: batch norm before every ReLU, folded into the convolutions afterwards.

The folded network is the published one, key for key; with the norms it learns many times faster at a large rate.
The last layer is linear in what the others give, so that it is fitted in closed form at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from manyeyes.backbones.pdn import PdnSize, patch_description_network
from manyeyes.errors import DataError

JUDGING = 4
SMALLEST_SPREAD = 1e-6
"""Variance of the inputs, as a share of their mean square, below which float32 sums hold nothing but rounding."""
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


class LeastSquares:
    """Streamed normal equations of a linear map from inputs to outputs, both centred.

    Memory: one square matrix of the inputs, in float64.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.square = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.product = torch.zeros(inputs, outputs, dtype=torch.float64)
        self.sums = torch.zeros(inputs, dtype=torch.float64), torch.zeros(outputs, dtype=torch.float64)
        self.count = 0

    def see(self, rows: Tensor, wanted: Tensor) -> None:
        """Shapes: (n, inputs), (n, outputs)."""
        self.square += (rows.T @ rows).double().cpu()
        self.product += (rows.T @ wanted).double().cpu()
        for total, values in zip(self.sums, (rows, wanted), strict=True):
            total += values.double().sum(dim=0).cpu()
        self.count += len(rows)

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Weight (outputs, inputs) and bias (outputs,); ``ridge`` is relative to an input's mean variance.

        Raises: DataError if the inputs never change or the ridge is too small for float32 inputs.
        """
        mean, middle = (total / self.count for total in self.sums)
        square = self.square - self.count * torch.outer(mean, mean)
        spread = float(square.diagonal().mean())
        if not spread > SMALLEST_SPREAD * float(self.square.diagonal().mean()):
            raise DataError("a layer cannot be fitted to pictures that all look the same everywhere")
        square.diagonal().add_(ridge * spread)
        factor, failed = torch.linalg.cholesky_ex(square)
        if int(failed):
            raise DataError(f"a ridge of {ridge:g} is lost in the rounding of these pictures' features; raise it")
        weight = torch.cholesky_solve(self.product - self.count * torch.outer(mean, middle), factor).T
        return weight.float(), (middle - weight @ mean).float()


@torch.no_grad()
def refit_last(
    network: nn.Sequential, batches: Iterable[tuple[Tensor, Tensor]], ridge: float, share: float, seed: int
) -> None:
    """Replace the last convolution by the least-squares one.

    ``batches`` are normalised images (b, 3, H, W) with what is wanted of them (b, c, h, w); of their positions a random
    ``share`` is used. ``ridge`` draws the weight to zero.
    """
    last = cast(nn.Conv2d, network[-1])
    system = LeastSquares(last.weight[0].numel(), last.out_channels)
    for rows, wanted in _rows(network, batches, share, seed):
        system.see(rows, wanted)
    weight, bias = system.solve(ridge)
    last.weight.copy_(weight.view_as(last.weight))
    cast(Tensor, last.bias).copy_(bias)


@torch.no_grad()
def improve_last(network: nn.Sequential, batches: Iterable[tuple[Tensor, Tensor]], share: float, seed: int) -> float:
    """Add to the last convolution the least-squares fit to what it leaves, as strongly as every fourth batch bears.

    ``batches`` as in `refit_last`. Returns: the share of the remaining error on those fourth batches that is gone; 0,
    and nothing is changed, if no fit helps there.
    """
    last = cast(nn.Conv2d, network[-1])
    weight, bias = last.weight.flatten(1), cast(Tensor, last.bias)
    system = LeastSquares(weight.shape[1], len(weight))
    judges: list[tuple[Tensor, Tensor]] = []
    for index, (rows, wanted) in enumerate(_rows(network, batches, share, seed)):
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


def _rows(
    network: nn.Sequential, batches: Iterable[tuple[Tensor, Tensor]], share: float, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs of the last convolution and what is wanted of it, position by position."""
    last = cast(nn.Conv2d, network[-1])
    kernel = cast(tuple[int, int], last.kernel_size)
    generator = torch.Generator().manual_seed(seed)
    for images, targets in batches:
        rows = rearrange(F.unfold(network[:-1](images), kernel), "b c n -> (b n) c")
        wanted = rearrange(targets.to(rows), "b c h w -> (b h w) c")
        chosen = (torch.rand(len(rows), generator=generator) < share).to(rows.device)
        yield rows[chosen], wanted[chosen]
