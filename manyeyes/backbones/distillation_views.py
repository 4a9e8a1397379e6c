"""Augmented views of natural pictures, kept for some steps and then forgotten: no folder is too large or too small.

A view is one picture cropped, turned, coloured, with the targets of all its positions. Views are numbered: number, seed
and folder say what a view is, so that a resumed training rebuilds those that it had in memory. They are made where the
trunk is, several at once if a step needs several, while threads read the pictures of the next ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from manyeyes.backbones.distillation_targets import Targets
from manyeyes.checkpoint import drawn_at
from manyeyes.device import trunk_precision
from manyeyes.maps import Grid

ORDER, VIEW = 1, 2
GREY = (0.299, 0.587, 0.114)
OFTEN = 0.8
"""Share of the views whose colours change at all."""

Read = Callable[[int], Tensor]
"""Reads one picture by number: (3, h, w) in [0, 1]."""


@dataclass(frozen=True)
class Augmentation:
    """``zoom``: smallest share of the picture's area in a crop. ``turn``: mirrored and turned by quarters."""

    zoom: float
    turn: bool
    colour: float
    grey: float

    def __call__(self, picture: Tensor, size: Grid, generator: torch.Generator) -> Tensor:
        """A square crop, resized. Shapes: (3, h, w) -> (1, 3, *size)."""

        def draw(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand((), generator=generator))

        _, h, w = picture.shape
        # Stretched to a square as pictures of parts are, but for the crop's own shape.
        side, shape = draw(self.zoom, 1.0) ** 0.5, draw(0.87, 1.15) if self.zoom < 1 else 1.0
        height, width = (min(1.0, side * factor) for factor in (shape, 1 / shape))
        rows, columns = max(1, round(h * height)), max(1, round(w * width))
        top, left = (int(draw(0, room + 1 - 1e-6)) for room in (h - rows, w - columns))
        view = picture[None, :, top : top + rows, left : left + columns]
        view = F.interpolate(view, size=size, mode="bilinear", align_corners=False, antialias=True)
        if self.turn:
            quarters, mirrored = int(draw(0, 4)), draw(0, 1) < 0.5
            view = torch.rot90(view, quarters if size[0] == size[1] else 2 * (quarters % 2), (2, 3))
            view = view.flip(3) if mirrored else view
        if draw(0, 1) < OFTEN:
            contrast, brightness, saturation = (draw(1 - self.colour, 1 + self.colour) for _ in range(3))
            mean = view.mean()
            view = ((view - mean) * contrast + mean) * brightness
            view = grey_of(view).lerp(view, saturation)
        if draw(0, 1) < self.grey:
            view = grey_of(view).expand(-1, 3, -1, -1)
        return view.clamp(0, 1)


def grey_of(image: Tensor) -> Tensor:
    """Shapes: (b, 3, h, w) -> (b, 1, h, w)."""
    return (image * image.new_tensor(GREY).view(3, 1, 1)).sum(dim=1, keepdim=True)


class Views:
    """The latest views, moving on by `advance_to`; half precision, on the trunk's device.

    ``latest`` holds pairs of image (3, *image_size) and targets (384, h, w) as the trunk gives them. Views are made
    ``together`` at a time, always the same ones: rounding depends on who shares a forward pass.
    """

    def __init__(
        self,
        read: Read,
        chosen: Sequence[int],
        targets: Targets,
        augmentation: Augmentation,
        image_size: Grid,
        kept: int,
        seed: int,
        together: int = 1,
    ) -> None:
        self.read, self.chosen, self.targets, self.augmentation = read, tuple(chosen), targets, augmentation
        self.image_size, self.kept, self.seed, self.together = image_size, kept, seed, together
        self.device = next(targets.trunk.parameters()).device
        self.latest: deque[tuple[Tensor, Tensor]] = deque(maxlen=kept)
        self.next = 0
        self.pool = ThreadPoolExecutor()
        self.ahead: dict[int, Future[Tensor]] = {}

    def advance_to(self, count: int) -> None:
        """Hold the ``kept`` views before ``count``, which is rounded up to whole groups; only new ones are made."""
        end = -(-count // self.together) * self.together
        begun = max(self.next, (end - self.kept) // self.together * self.together)
        for first in range(begun, end, self.together):
            self.latest.extend(self._made(range(first, first + self.together)))
        self.next = max(self.next, end)

    def view(self, number: int) -> tuple[Tensor, Tensor]:
        """Image (3, *image_size) and its targets (384, h, w)."""
        [only] = self._made(range(number, number + 1))
        return only

    def _made(self, numbers: range) -> list[tuple[Tensor, Tensor]]:
        pictures = self._begun(numbers)
        self.ahead = self._begun(range(numbers.stop, numbers.stop + len(numbers)))
        size, larges = self.targets.trunk.input_size, []
        for number in numbers:
            picture = pictures[number].result().to(self.device)
            larges.append(self.augmentation(picture, size, drawn_at(self.seed, VIEW, number)))
        return list(zip(*self.pairs(torch.cat(larges)), strict=True))

    def _begun(self, numbers: range) -> dict[int, Future[Tensor]]:
        """The pictures of these views, in reading."""
        return {
            number: self.ahead.get(number) or self.pool.submit(self.read, self._picture(number)) for number in numbers
        }

    def _picture(self, number: int) -> int:
        """Every picture once a round, in an order of the round's own."""
        epoch, place = divmod(number, len(self.chosen))
        order = torch.randperm(len(self.chosen), generator=drawn_at(self.seed, ORDER, epoch))
        return self.chosen[int(order[place])]

    def pairs(self, large: Tensor) -> tuple[Tensor, Tensor]:
        """What the network sees, what the trunk says. Shapes: (b, 3, H, W) -> (b, 3, *image_size), (b, 384, h, w)."""
        large = large.to(self.device)
        small = F.interpolate(large, size=self.image_size, mode="bilinear", align_corners=False, antialias=True)
        with trunk_precision(self.device):
            targets = self.targets(large)
        return small.half(), targets.half()
