"""Every distinct trunk is built once, however many members name it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from manyeyes.backbones.contract import Trunk
from manyeyes.backbones.pdn import PdnTrunkConfig
from manyeyes.backbones.trunk import TimmTrunkConfig

TrunkConfig = Annotated[TimmTrunkConfig | PdnTrunkConfig, Field(discriminator="kind")]


class TrunkPool:
    """Trunks by the fingerprint of their config, so that extractors of equal configs share one module."""

    def __init__(self) -> None:
        self.trunks: dict[str, Trunk] = {}

    def get(self, config: TrunkConfig) -> Trunk:
        """The trunk of a config, built at the first call. Raises: ConfigError, WeightsError."""
        key = config.fingerprint()
        if key not in self.trunks:
            self.trunks[key] = config.build()
        return self.trunks[key]
