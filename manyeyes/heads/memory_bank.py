"""Memory bank: a position is as anomalous as it is far from the nearest of the normal features that were kept.

Source: PatchCore (Roth et al., CVPR 2022, arXiv 2106.08265): greedy coreset (section 3.2), distance and image score
(section 3.3, equations 6 and 7).
We differ: the coreset is exact, and chosen on principal axes (coreset.py); the image score is the largest distance, as
in the authors' code, unless ``reweight`` asks for the paper's equation 7.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import ClassVar, Literal, Self

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor

from manyeyes.config import Config
from manyeyes.errors import ConfigError
from manyeyes.heads.contract import MapHead
from manyeyes.heads.coreset import coreset_coordinates, greedy_coreset
from manyeyes.heads.nearest import LeadingAxes, exact_distances, faiss_nearest, nearest_entries, tiled
from manyeyes.heads.positions import draw_positions, rows_of


class MemoryBankConfig(Config):
    reads: ClassVar[Literal["map"]] = "map"
    kind: Literal["memory_bank"] = "memory_bank"
    ratio: float = Field(0.01, gt=0, le=1, description="Entries kept, as a fraction of all positions of all images.")
    max_entries: int = Field(16_384, ge=1, description="Entries kept at most; prediction time grows with them.")
    candidates: int = Field(
        262_144, ge=1, description="Positions the coreset is chosen from at most; drawn uniformly where there are more."
    )
    coreset_dimensions: int = Field(64, ge=1, description="Leading principal axes on which the coreset is chosen.")
    neighbours: int = Field(1, ge=1, description="A position scores the mean distance to this many nearest entries.")
    reweight: bool = Field(
        False, description="Re-weight the image score by PatchCore's equation 7; the map is as it is."
    )
    reweight_neighbours: int = Field(
        9, ge=2, description="Entries around the nearest one, itself included, to weigh by."
    )
    chunk: int = Field(
        2048, ge=1, description="Positions and entries per matrix product; bounds the memory of a search."
    )
    search: Literal["torch", "faiss"] = Field(
        "torch", description="Library of the exact nearest-neighbour search; faiss needs `pip install manyeyes[faiss]`."
    )

    def build(self, channels: int) -> MemoryBank:
        """Raises: ConfigError if ``search`` is faiss and it is not installed."""
        if self.search == "faiss" and importlib.util.find_spec("faiss") is None:
            raise ConfigError(
                "search: faiss is not installed; expected it or search: torch; run `pip install manyeyes[faiss]`"
            )
        return MemoryBank(self, channels)


class MemoryBank(MapHead):
    """Euclidean distance from each position to its nearest bank entry, or the mean over its k nearest.

    Shapes: embedding (b, d, h, w) -> map (b, h, w); ``bank_`` (m, d) float32.
    Units:  those of the embedding.
    Raises: ShapeError if d is not ``channels``; NotFittedError before ``fit``; DataError as `draw_positions`.
    Source: Roth et al. 2022, section 3.3. Equals a float64 distance matrix (tests/heads/test_memory_bank.py).
    """

    bank_: Tensor

    def __init__(self, config: MemoryBankConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.channels = channels
        self.leading: LeadingAxes | None = None
        self.declare("bank_")

    @torch.no_grad()
    def fit(self, embeddings: Iterable[Tensor], seed: int) -> Self:
        config = self.config
        drawn = draw_positions(embeddings, config.candidates, seed, self.channels)
        count = min(max(1, round(config.ratio * drawn.seen)), config.max_entries, len(drawn.values))
        coordinates = coreset_coordinates(drawn.values, config.coreset_dimensions)
        self.bank_ = drawn.values[greedy_coreset(coordinates, count, seed)]
        return self

    @torch.no_grad()
    def anomaly_map(self, embedding: Tensor) -> Tensor:
        distances, _ = self._search(embedding)
        return distances.mean(dim=3)

    @torch.no_grad()
    def judge(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """The map, and the largest distance as image score, re-weighted where the config asks for it.

        Shapes: (b, d, h, w) -> (b, h, w), (b,).
        """
        distances, entries = self._search(embedding)
        anomaly_map = distances.mean(dim=3)
        scores = anomaly_map.amax(dim=(1, 2))
        if not self.config.reweight:
            return anomaly_map, scores
        worst = anomaly_map.flatten(1).argmax(dim=1)
        image = torch.arange(len(embedding), device=embedding.device)
        positions = rearrange(embedding, "b d h w -> b (h w) d")[image, worst].float()
        nearest = rearrange(entries, "b h w k -> b (h w) k")[image, worst, 0]
        return anomaly_map, scores * nearest_weight(positions, nearest, self.bank_, self.config.reweight_neighbours)

    def _leading(self) -> LeadingAxes:
        """The search on leading axes for the bank as it is now, derived when it is first needed."""
        if self.leading is None or self.leading.bank is not self.bank_:
            self.leading = LeadingAxes(self.bank_)
        return self.leading

    def _search(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Distances and entries, nearest first. Shapes: (b, d, h, w) -> 2 x (b, h, w, k)."""
        self.require_fit()
        rows = rows_of(embedding, self.channels, "memory bank").float()
        b, _, h, w = embedding.shape
        k = min(self.config.neighbours, len(self.bank_))
        if self.config.search == "faiss":
            entries = faiss_nearest(rows, self.bank_, k)
        elif k == 1 and not rows.is_cuda and self._leading().pays:
            entries = self._leading()(rows, tiled(b, h, w))
        else:
            entries = nearest_entries(rows, self.bank_, k, self.config.chunk)
        distances, order = exact_distances(rows, self.bank_, entries, self.config.chunk).sort(dim=1)
        return (
            rearrange(distances, "(b h w) k -> b h w k", b=b, h=h, w=w),
            rearrange(entries.gather(1, order), "(b h w) k -> b h w k", b=b, h=h, w=w),
        )


def nearest_weight(positions: Tensor, nearest: Tensor, bank: Tensor, neighbours: int) -> Tensor:
    """PatchCore's equation 7: one minus the softmax share of the nearest entry among the entries around it.

    A position whose nearest entry is itself a rare one weighs more. A bank of one entry has nothing to compare with: 1.

    Shapes: (b, d), (b,) indices into (m, d) -> (b,) in (0, 1].
    """
    if len(bank) == 1:
        return torch.ones_like(positions[:, 0])
    to_bank = torch.cdist(bank[nearest], bank, compute_mode="donot_use_mm_for_euclid_dist")
    # The entry itself stands first even if it has twins.
    to_bank.scatter_(1, nearest.unsqueeze(1), -1.0)
    around = to_bank.topk(min(neighbours, len(bank)), dim=1, largest=False).indices
    distances = (positions.unsqueeze(1) - bank[around]).norm(dim=2)
    share: Tensor = distances.softmax(dim=1)[:, 0]
    return torch.ones_like(share) - share
