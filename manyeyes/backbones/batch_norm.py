"""Batch norms of a frozen network, folded into the convolutions before them: the same maps in fewer passes over memory.

Source: folklore; the two are linear one after the other, and a norm in evaluation mode is a fixed scale and shift.
Which norm follows which convolution is seen in a pass over the network, not guessed from names, and the folded network
must give the same maps in a second pass; one that does not is left as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

CLOSE = 1e-4
"""Largest difference that counts as rounding, as a part of a map's largest value."""


@torch.no_grad()
def without_batch_norms(network: nn.Module, maps: Callable[[nn.Module], Sequence[Tensor]]) -> nn.Module:
    """A network that gives the same maps, to rounding, without most of its batch norms; it may be the very same one.

    ``maps`` runs a network on some picture. Convolutions may carry an activation that their norm carried before.
    Equals ``network`` (tests/backbones/test_batch_norm.py), which stays as it is.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return network
    if not (pairs := followers(network, maps)):
        return network
    folded = deepcopy(network)
    for convolution, norm in pairs:
        _fold(folded.get_submodule(convolution), folded.get_submodule(norm))
        _replace(folded, norm)
    before, after = maps(network), maps(folded)
    same = all(bool((a - b).abs().max() <= CLOSE * a.abs().max()) for a, b in zip(before, after, strict=True))
    return folded if same else network


def followers(network: nn.Module, maps: Callable[[nn.Module], Sequence[Tensor]]) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch norms that take what they give, each module run once in a pass."""
    gave: dict[int, tuple[str, Tensor]] = {}
    runs: Counter[str] = Counter()
    found: list[tuple[str, str]] = []

    def given(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            runs[name] += 1
            gave[id(output)] = (name, output)  # kept, so that no later tensor gets the same id

        return hook

    def taken(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            runs[name] += 1
            if id(inputs[0]) in gave:
                found.append((gave[id(inputs[0])][0], name))

        return hook

    with ExitStack() as stack:
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d):
                stack.callback(module.register_forward_hook(given(name)).remove)
            elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
                stack.callback(module.register_forward_pre_hook(taken(name)).remove)
        maps(network)
    once = Counter(name for pair in found for name in pair)
    return [pair for pair in found if all(runs[name] == 1 and once[name] == 1 for name in pair)]


def _fold(convolution: nn.Module, norm: nn.Module) -> None:
    """Give the convolution the scale and shift of the norm; computed in float64."""
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    scale = (norm.get_buffer("running_var").double() + norm.eps).rsqrt()
    shift = -norm.get_buffer("running_mean").double() * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    bias = shift if convolution.bias is None else shift + convolution.bias * scale
    weight = convolution.weight
    convolution.weight = nn.Parameter((weight * scale[:, None, None, None]).to(weight), requires_grad=False)
    convolution.bias = nn.Parameter(bias.to(weight), requires_grad=False)


def _replace(network: nn.Module, norm: str) -> None:
    """Put what a norm does besides, such as timm's activation, in its place."""
    parent, _, name = norm.rpartition(".")
    rest = [part for part in network.get_submodule(norm).children() if not isinstance(part, nn.Identity)]
    setattr(network.get_submodule(parent), name, nn.Sequential(*rest) if rest else nn.Identity())
