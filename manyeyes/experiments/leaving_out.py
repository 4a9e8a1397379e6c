"""What a member is worth to its ensemble: the ensemble without it.

Cheap: the other heads' stored scores are combined again. The fused map, which the member has helped to make, stays as
it is. Honest: the ensemble is declared and fitted anew without the member, as one more ensemble of the study.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from manyeyes.ensemble import EnsembleConfig
from manyeyes.errors import ConfigError


def without(ensemble: str, member: str) -> str:
    """The name of an ensemble that is fitted without one of its members."""
    return f"{ensemble}-without-{member}"


def reduced(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Which of the names are another one's without a member: the other one, and the member.

    >>> reduced(["all", "all-without-dino", "one-without-all"])
    {'all-without-dino': ('all', 'dino')}
    """
    found = {}
    for name in names:
        parents = [other for other in names if name.startswith(without(other, "")) and name != without(other, "")]
        if parents:
            parent = max(parents, key=len)
            found[name] = parent, name.removeprefix(without(parent, ""))
    return found


def without_each_member(configs: Iterable[EnsembleConfig]) -> list[EnsembleConfig]:
    """Every ensemble of several members without each of them in turn, where what is left can still judge."""
    found = []
    for config in configs:
        for member in config.members if len(config.members) > 1 else ():
            values: dict[str, Any] = config.model_dump(mode="json")
            values["name"] = without(config.name, member.name)
            values["members"] = [item for item in values["members"] if item["name"] != member.name]
            try:
                found.append(EnsembleConfig.parse(values))
            except ConfigError:  # such as weights that name heads of the member
                continue
    return found


def recombined(
    config: EnsembleConfig, pictures: Sequence[dict[str, Any]], member: str
) -> tuple[NDArray[np.float64] | None, str]:
    """Scores of all heads but the member's own, combined again, or None and the reason why they cannot be.

    ``pictures`` are a cell's, with the normalised score of every head. Shapes: n pictures -> (n,).
    """
    names = [name for name in pictures[0]["heads"] if name.split("/")[0] != member]
    if len(names) == len(pictures[0]["heads"]):
        return None, "it has no head of its own; it only feeds the fused map"
    if not names:
        return None, "nothing else judges"
    combiner = config.combiner.build(names)
    if not combiner.is_fitted:
        return None, f"combiner {config.combiner.kind} must be fitted anew: compare with --leave-one-out"
    scores = torch.tensor([[picture["heads"][name] for name in names] for picture in pictures], dtype=torch.float32)
    return combiner.combine(scores).double().numpy(), ""
