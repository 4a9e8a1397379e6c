"""Heads: learn what normal looks like from stored embeddings, then judge maps or pooled vectors."""

from typing import Annotated

from pydantic import Field

from manyeyes.heads.a_contrario import AContrario, AContrarioConfig
from manyeyes.heads.contract import MapHead, PyramidHead, Reads, VectorHead
from manyeyes.heads.coreset import coreset_coordinates, covering_radius, greedy_coreset
from manyeyes.heads.discriminator import Discriminator, DiscriminatorConfig
from manyeyes.heads.efficientad import EfficientAdHead, EfficientAdHeadConfig
from manyeyes.heads.gaussian import Gaussian, GaussianConfig
from manyeyes.heads.memory_bank import MemoryBank, MemoryBankConfig
from manyeyes.heads.positions import Positions, draw_positions, sample_positions
from manyeyes.heads.simplenet import SimpleNet, SimpleNetConfig
from manyeyes.heads.uflow import UFlowHead, UFlowHeadConfig

# A new kind is one more class in one of these unions.
MapHeadConfig = DiscriminatorConfig | SimpleNetConfig | MemoryBankConfig
VectorHeadConfig = GaussianConfig
PyramidHeadConfig = UFlowHeadConfig | EfficientAdHeadConfig
HeadConfig = Annotated[MapHeadConfig | VectorHeadConfig | PyramidHeadConfig, Field(discriminator="kind")]

__all__ = [
    "AContrario",
    "AContrarioConfig",
    "Discriminator",
    "DiscriminatorConfig",
    "EfficientAdHead",
    "EfficientAdHeadConfig",
    "Gaussian",
    "GaussianConfig",
    "HeadConfig",
    "MapHead",
    "MapHeadConfig",
    "MemoryBank",
    "MemoryBankConfig",
    "Positions",
    "PyramidHead",
    "PyramidHeadConfig",
    "Reads",
    "SimpleNet",
    "SimpleNetConfig",
    "UFlowHead",
    "UFlowHeadConfig",
    "VectorHead",
    "VectorHeadConfig",
    "coreset_coordinates",
    "covering_radius",
    "draw_positions",
    "greedy_coreset",
    "sample_positions",
]
