"""Every distinct trunk is built once, however many members name it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from manyeyes.backbones.contract import TrainableTrunk, Trunk
from manyeyes.backbones.efficientad_trunk import EfficientAdTrunkConfig
from manyeyes.backbones.pdn import PdnTrunkConfig
from manyeyes.backbones.trunk import TimmTrunkConfig

TrunkConfig = Annotated[TimmTrunkConfig | PdnTrunkConfig | EfficientAdTrunkConfig, Field(discriminator="kind")]


class TrunkPool:
    """Trunks by the fingerprint of their config, so that extractors of equal configs share one module.

    Trunks that are to be trained are shared within one ensemble only: `for_ensemble` gives a pool that builds its own.
    """

    def __init__(self, frozen: dict[str, Trunk] | None = None) -> None:
        self.frozen: dict[str, Trunk] = {} if frozen is None else frozen
        self.trainable: dict[str, Trunk] = {}

    def for_ensemble(self) -> TrunkPool:
        """The same frozen trunks, now and later, and no trainable ones yet."""
        return TrunkPool(self.frozen)

    @property
    def trunks(self) -> dict[str, Trunk]:
        return self.frozen | self.trainable

    def get(self, config: TrunkConfig) -> Trunk:
        """The trunk of a config, built at the first call. Raises: ConfigError, WeightsError."""
        key = config.fingerprint()
        if key not in self.trunks:
            trunk = config.build()
            (self.trainable if isinstance(trunk, TrainableTrunk) else self.frozen)[key] = trunk
        return self.trunks[key]
