"""What an ensemble says of a batch of pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """Verdicts on b pictures; higher is more anomalous everywhere. No field is ever None.

    ``map`` is on the canvas and all zero for an ensemble without any picturable head (``Ensemble.picturable``).
    ``heads`` are normalised scores by head, ``members`` each member's own heads combined, ``branches`` the combined
    ``picturable`` and ``unpicturable`` heads; a member or branch without heads is absent.
    """

    score: Tensor
    """(b,)"""
    map: Tensor
    """(b, H, W)"""
    heads: dict[str, Tensor]
    """(b,) each"""
    members: dict[str, Tensor]
    """(b,) each"""
    branches: dict[str, Tensor]
    """(b,) each"""
    alarm: Tensor
    """(b,) bool: the score reaches the threshold"""
    mask: Tensor
    """(b, H, W) bool: where a defect is, as the config's ``mask`` says it"""

    def __len__(self) -> int:
        return len(self.score)

    @staticmethod
    def cat(parts: list[Prediction]) -> Prediction:
        """Join the predictions of several batches."""

        def join(name: str) -> dict[str, Tensor]:
            return {key: torch.cat([getattr(part, name)[key] for part in parts]) for key in getattr(parts[0], name)}

        return Prediction(
            torch.cat([part.score for part in parts]),
            torch.cat([part.map for part in parts]),
            join("heads"),
            join("members"),
            join("branches"),
            torch.cat([part.alarm for part in parts]),
            torch.cat([part.mask for part in parts]),
        )
