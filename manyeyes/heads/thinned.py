"""An even part of a stream, in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor


class Thinned:
    """Rows of a stream: all of them, or every second, fourth ... so that at most ``most`` are held."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.parts: list[Tensor] = []
        self.every, self.seen, self.held = 1, 0, 0

    def add(self, rows: Tensor) -> None:
        """Shapes: (n, ...)."""
        part = rows[-self.seen % self.every :: self.every]
        if self.every > 1:
            part = part.clone()  # a view would keep all of its batch
        self.seen, self.held = self.seen + len(rows), self.held + len(part)
        self.parts.append(part)
        while self.held > self.most:
            self.parts, self.every = [self.all()[::2].clone()], 2 * self.every
            self.held = len(self.parts[0])

    def all(self) -> Tensor:
        """What is held, in the order of the stream; at least one part must have come."""
        return torch.cat(self.parts)
