"""A branch: some members' maps, the block that makes them one embedding, and the heads that judge it.

The fused map is one branch; every member with heads of its own is another. They are the same thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, cast

import torch
from torch import Tensor, nn

from manyeyes.backbones import FeatureExtractor
from manyeyes.ensemble.config import head_names
from manyeyes.ensemble.reading import Embeddings, Reading, Taps, TapSource
from manyeyes.errors import NotFittedError
from manyeyes.fusion import Folded, Fusion, FusionConfig
from manyeyes.heads import HeadConfig
from manyeyes.heads.contract import MapHead, VectorHead
from manyeyes.maps import Grid, MapSpec, finest_grid, neighbourhood_mean, pooled
from manyeyes.progress import Advance


@dataclass(frozen=True)
class Judgement:
    """What one branch says of a batch: a score per head, and a map per picturable head, by name."""

    scores: dict[str, Tensor]
    """(b,) each."""
    maps: dict[str, Tensor]
    """(b, h, w) each, on the branch's grid."""


class Branch(nn.Module):
    """Members' taps -> embedding and pooled features -> heads' scores and maps."""

    def __init__(
        self,
        name: str,
        members: Sequence[tuple[str, FeatureExtractor]],
        fusion: FusionConfig,
        heads: Sequence[HeadConfig],
        grid: Grid | None = None,
    ) -> None:
        super().__init__()
        self.name, self.head_configs = name, tuple(heads)
        self.names = head_names(name, heads)
        self.extractors = [extractor for _, extractor in members]  # a plain list: trunks are not this module's state
        self.specs = tuple(_named(spec, member) for member, extractor in members for spec in extractor.specs)
        self.spatial = [index for index, spec in enumerate(self.specs) if spec.spatial]
        self.fusion: Fusion | None = None
        self.folded: Folded | None = None
        if self.map_names:
            specs = tuple(self.specs[index] for index in self.spatial)
            self.fusion = fusion.build(specs, grid or finest_grid(specs))
        self.heads = nn.ModuleDict()
        self._build_heads()

    def _build_heads(self) -> None:
        """Heads whose width is known; map heads wait for the fusion's fit."""
        width = sum(spec.channels for spec in self.specs)
        for name, config in zip(self.names, self.head_configs, strict=True):
            if not config.picturable:
                self.heads[name] = config.build(width)
            elif self.fusion is not None and self.fusion.is_fitted:
                self.heads[name] = config.build(self.fusion.channels)

    @property
    def map_names(self) -> list[str]:
        """Names of the picturable heads."""
        return [name for name, config in zip(self.names, self.head_configs, strict=True) if config.picturable]

    @property
    def has_vector_heads(self) -> bool:
        return len(self.map_names) < len(self.names)

    @property
    def tap_keys(self) -> list[str]:
        return list(dict.fromkeys(tap.key for extractor in self.extractors for tap in extractor.taps))

    def raw_maps(self, taps: Taps) -> tuple[Tensor, ...]:
        """All members' maps before the neighbourhood mean. Shapes: k x (b, c_i, h_i, w_i)."""
        return tuple(value for extractor in self.extractors for value in extractor.raw_maps(taps))

    def embed(self, raw: tuple[Tensor, ...]) -> Tensor:
        """The fused map, the folded way. Shapes: k x (b, c_i, h_i, w_i) -> (b, d, h, w)."""
        if self.folded is None:
            raise NotFittedError(f"branch {self.name!r} was used before fit; call fit or load first")
        return cast(Tensor, self.folded(tuple(raw[index] for index in self.spatial)))

    def finish_fusion(self) -> None:
        """After the fusion's fit or load: fold it, and build the heads that waited for its width."""
        if self.fusion is not None:
            self.folded = Folded(self.fusion)
        self._build_heads()

    def judge(self, taps: Taps) -> Judgement:
        """Scores and maps of a batch."""
        raw = self.raw_maps(taps)
        embedding = self.embed(raw) if self.fusion is not None else None
        vectors = pooled(raw) if self.has_vector_heads else None
        scores, maps = {}, {}
        for name in self.names:
            head = self.heads[name]
            if isinstance(head, MapHead):
                assert embedding is not None
                maps[name], scores[name] = head.judge(embedding)
            else:
                assert isinstance(head, VectorHead)
                assert vectors is not None
                scores[name] = head.score(vectors)
        return Judgement(scores, maps)

    def fit(self, taps: TapSource, seed: int, advance: Advance) -> Self:
        """Fit the block, then every head. Reads the taps once for the block and once for all heads."""
        steps = 1 + len(self.names)
        vectors = self._fit_fusion(taps)
        self.finish_fusion()
        embeddings = Embeddings(taps, lambda batch: self.embed(self.raw_maps(batch)))
        with torch.inference_mode(False):
            for done, name in enumerate(self.names, start=1):
                advance(done, steps)
                head = self.heads[name]
                if isinstance(head, MapHead):
                    head.fit(embeddings, seed)
                else:
                    cast(VectorHead, head).fit(vectors, seed)
        advance(steps, steps)
        return self

    def _fit_fusion(self, taps: TapSource) -> list[Tensor]:
        """Fit the block where there is one; give the pooled features, (b, c) per batch, seen on the way."""
        vectors: list[Tensor] = []
        wanted = len(taps) if self.has_vector_heads else 0

        def look(batch: Taps) -> tuple[Tensor, ...]:
            raw = self.raw_maps(batch)
            if sum(len(vector) for vector in vectors) < wanted:
                vectors.append(pooled(raw))
            spatial = [(raw[index], self.specs[index].neighbourhood) for index in self.spatial]
            return tuple(neighbourhood_mean(value, side) for value, side in spatial)

        batches = Reading(taps, look)
        if self.fusion is not None:
            self.fusion.fit(batches)
        else:
            for _ in batches:
                pass
        return vectors

    def load_fitted(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Load the block before the rest, so that the heads behind it can be built with its width."""
        if self.fusion is not None:
            start = f"{prefix}fusion."
            self.fusion.load_state_dict({key[len(start) :]: v for key, v in state.items() if key.startswith(start)})
            self.finish_fusion()


def _named(spec: MapSpec, member: str) -> MapSpec:
    return replace(spec, name=f"{member}/{spec.name}")
