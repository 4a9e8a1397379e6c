"""What EfficientAD's student and autoencoder are trained with: losses and the change of colours.

Source: Batzner, Heckler, Koenig, WACV 2024, arXiv 2303.14535, section 3.2 and algorithm 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manyeyes.backbones.distillation_views import grey_of


def hard_feature_loss(difference: Tensor, quantile: float) -> Tensor:
    """Mean of the squared differences that reach their ``quantile``, over all elements of the batch.

    Shapes: any -> (). Equals the mean of those >= torch.quantile, which many releases refuse to take
    of more than 2^24 elements.
    """
    squares = difference.float().square().flatten()
    count = len(squares) - math.ceil(quantile * (len(squares) - 1))
    return squares.topk(max(1, count), sorted=False).values.mean()


def change_colours(images: Tensor, generator: torch.Generator, change: float = 0.2) -> Tensor:
    """One of brightness, contrast and saturation, times a number in 1 +- ``change``, per image.

    Shapes: (b, 3, h, w) in [0, 1] -> (b, 3, h, w) in [0, 1].
    """
    changed = []
    for index in range(len(images)):
        image = images[index : index + 1]
        which = int(torch.randint(3, (), generator=generator))
        factor = 1 + change * (2 * float(torch.rand((), generator=generator)) - 1)
        if which == 0:
            base = torch.zeros_like(image)
        else:
            base = grey_of(image) if which == 2 else grey_of(image).mean().expand_as(image)
        changed.append(base + (image - base) * factor)
    return torch.cat(changed).clamp(0, 1)
