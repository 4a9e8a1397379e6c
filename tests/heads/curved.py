"""Features of good parts on a curved surface, and what is asked of every discriminator of them."""

from __future__ import annotations

import torch
from einops import rearrange
from sklearn.metrics import roc_auc_score
from torch import Tensor

from manyeyes.heads import MapHead

CHANNELS = 24


def features(images: int, seed: int, offset: float = 0.0) -> Tensor:
    """Maps on a curved surface of three dimensions within all components, and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randn(images * 64, 3, generator=generator)
    mixing = torch.randn(6, CHANNELS, generator=torch.Generator().manual_seed(99))
    rows = torch.cat([inner, inner.square() - 1], dim=1) @ mixing
    rows = rows + 0.05 * torch.randn(rows.shape, generator=generator) + offset
    return rearrange(rows, "(b h w) d -> b d h w", h=8, w=8)


def lifted(value: Tensor, components: int, strength: float) -> Tensor:
    """One position of each map moved in some components only."""
    broken = value.clone()
    broken[:, :components, 3, 4] += strength
    return broken


def ranked(head: MapHead, offset: float = 0.0) -> float:
    """AUROC of small anomalies in two components."""
    good, bad = features(60, 7, offset), lifted(features(60, 8, offset), 2, 4.0)
    scores = torch.cat([head.anomaly_map(value).amax(dim=(1, 2)) for value in (good, bad)])
    return float(roc_auc_score([0] * 60 + [1] * 60, scores))


def pointed(head: MapHead) -> float:
    """Share of the maps whose maximum is where the anomaly is."""
    peaks = head.anomaly_map(lifted(features(20, 9), 2, 6.0)).flatten(1).argmax(dim=1)
    return float((peaks == 3 * 8 + 4).float().mean())
