"""EfficientAD's student in closed form: the teacher's layers, and a last one that agrees with it on good pictures only.

The last layer of a patch description network is linear in what the layers before it give. The student that says what
the teacher says on good pictures and nothing on penalty pictures, the two wishes of the paper's loss (Batzner, Heckler,
Koenig, WACV 2024, arXiv 2303.14535, section 3.2), is a least-squares fit away. Where the paper learns from the hardest
thousandth of all differences, here positions are fitted again with weights that grow where they were missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from manyeyes.backbones.least_squares import LeastSquares, position_rows
from manyeyes.backbones.pdn import CHANNELS
from manyeyes.checkpoint import drawn_at
from manyeyes.config import Config

GOOD, OTHER = 23, 24
HEAVIEST = 30.0
"""A position's weight, relative to the mean, is at most this and at least its inverse."""


class StudentFit(Config):
    """How a student is fitted to its teacher (`fit_student`)."""

    pictures: int = Field(64, ge=1, description="good pictures to fit to, evenly spread over all")
    natural: int = Field(200, ge=1, description="penalty pictures to fit to, evenly spread over the folder")
    positions: int = Field(24_576, ge=256, description="random positions of either kind, the good held in memory")
    penalty: float = Field(0.1, ge=0, description="weight of penalty positions, all together, against the good ones")
    ridge: float = Field(1e-2, gt=0, description="ridge, relative to the mean variance of an input")
    rounds: int = Field(3, ge=0, description="fits with weights on the positions that the fit before missed")


@torch.no_grad()
def fit_student(
    student: nn.Sequential,
    good: Iterable[tuple[Tensor, Tensor]],
    natural: Iterable[tuple[Tensor, Tensor]],
    shares: tuple[float, float],
    config: StudentFit,
    seed: int,
    tick: Callable[[], None],
) -> None:
    """Replace the student's last layer. Its other layers are the teacher's.

    ``good``: normalised pixels (1, 3, H, W) with what teacher and autoencoder say of them, one after the other
    (1, 768, h, w). ``natural``: pixels of penalty pictures with zeros (1, 384, h, w). ``shares``: of the positions of
    either, what is used. ``tick`` is called after every picture and after every fit.
    Raises: DataError if the pictures look the same everywhere or the ridge is too small for them.
    """
    last = cast(nn.Conv2d, student[-1])
    inputs = last.weight[0].numel()
    whole, quiet = LeastSquares(inputs, last.out_channels), LeastSquares(inputs, CHANNELS)
    seen: list[tuple[Tensor, Tensor]] = []
    for rows, values in position_rows(student, good, shares[0], drawn_at(seed, GOOD)):
        whole.see(rows, values)
        seen.append((rows, values[:, :CHANNELS].clone()))
        tick()
    for rows, values in position_rows(student, natural, shares[1], drawn_at(seed, OTHER)):
        quiet.see(rows, values)
        tick()
    _set(last, slice(CHANNELS, None), *(value[CHANNELS:] for value in whole.solve(config.ridge)))
    system = whole.only(slice(CHANNELS))
    weights = seen[0][0].new_ones(sum(len(rows) for rows, _ in seen))
    for left in reversed(range(config.rounds + 1)):
        if quiet.count:
            system.add(quiet, config.penalty * system.count / quiet.count)
        weight, bias = system.solve(config.ridge)
        _set(last, slice(CHANNELS), weight, bias)
        tick()
        if left:
            flat, shift = weight.to(weights).T, bias.to(weights)
            missed = torch.cat([(rows @ flat + shift - values).square().mean(dim=1) for rows, values in seen])
            weights = _limited(weights * _limited(missed).sqrt())
            system = LeastSquares(inputs, CHANNELS)
            for (rows, values), heavy in zip(seen, torch.split(weights, [len(rows) for rows, _ in seen]), strict=True):
                system.see(rows, values, heavy)


def _limited(values: Tensor) -> Tensor:
    """Relative to their mean, and within `HEAVIEST`; all one where there is nothing but zeros."""
    mean = values.mean()
    return (values / mean).clamp(1 / HEAVIEST, HEAVIEST) if bool(mean > 0) else torch.ones_like(values)


def _set(layer: nn.Conv2d, channels: slice, weight: Tensor, bias: Tensor) -> None:
    layer.weight[channels] = weight.view_as(layer.weight[channels]).to(layer.weight)
    cast(Tensor, layer.bias)[channels] = bias.to(layer.weight)
