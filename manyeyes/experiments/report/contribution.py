"""What each part of an ensemble is worth by itself and to the others, and what went into the fused map."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import safe_open

from manyeyes.ensemble import EnsembleConfig
from manyeyes.ensemble.config import FUSED
from manyeyes.ensemble.run import STATE
from manyeyes.experiments.leaving_out import recombined
from manyeyes.experiments.metrics import image_figures
from manyeyes.experiments.report.contest import Contest, Result
from manyeyes.experiments.report.words import DASH, percent, points, significance

LOWEST = 0.3
"""AUROCs are drawn as bars from chance, 0.5, to the right up to 1, and to the left down to this."""
SPREAD = 0.05
"""Changes of AUROC are drawn to both sides of the middle, up to this or the largest of them."""


@dataclass(frozen=True)
class AurocBar:
    """``left`` and ``width`` in % of an axis from ``LOWEST`` to 1; ``title`` says why a figure is undefined."""

    name: str
    text: str
    left: float
    width: float
    title: str = ""

    @classmethod
    def draw(cls, name: str, value: float | None, reason: str) -> AurocBar:
        if value is None:
            return cls(name, DASH, along(0.5), 0, reason)
        low, high = sorted((along(0.5), along(value)))
        return cls(name, percent(value), low, high - low)


def along(auroc: float) -> float:
    return 100 * (max(auroc, LOWEST) - LOWEST) / (1 - LOWEST)


@dataclass(frozen=True)
class Loss:
    """What becomes of the ensemble's image AUROC without a member: ``refitted``, or its other heads' scores combined.

    ``value`` is the change, None where there is none to be had; ``small`` says how sure it is, or why it is undefined.
    """

    member: str
    refitted: bool
    value: float | None
    small: str
    left: float = 50.0
    width: float = 0.0

    @property
    def text(self) -> str:
        return DASH if self.value is None else points(self.value)


@dataclass(frozen=True)
class Fused:
    """The fused map: ``shares`` of its energy by member, and how much variance its components explain."""

    kind: str
    components: int
    shares: list[tuple[str, float]]
    explained: list[tuple[str, float]]
    """Of all members together, or of each where every member has its own components."""


@dataclass(frozen=True)
class Contribution:
    ensemble: str
    groups: list[tuple[str, list[AurocBar]]]
    losses: list[Loss]
    fused: Fused | None


def contributions(contest: Contest) -> list[Contribution]:
    """One for each ensemble, best first; AUROCs are means over seeds, the fused map that of the first seed."""
    return [
        Contribution(name, _groups(contest, name), losses(contest, name), fused_map(contest.first(name)))
        for name in contest.whole
    ]


def losses(contest: Contest, ensemble: str) -> list[Loss]:
    """For every member of an ensemble of several: what is lost without it, most needed first."""
    refits = {member: name for name, (parent, member) in contest.reduced.items() if parent == ensemble}
    members = list(dict.fromkeys([*contest.first(ensemble).figures["members"], *refits]))
    if len(members) < 2:
        return []
    found = []
    for member in members:
        own = []
        if member in contest.first(ensemble).figures["members"]:
            own.append(_recombined(contest, ensemble, member))
        if member in refits and (difference := contest.difference(refits[member], ensemble)) is not None:
            own.append(Loss(member, True, difference.value, significance(difference.p)))
        found.append(own)
    found.sort(key=lambda own: min((loss.value for loss in own if loss.value is not None), default=1.0))
    return _drawn([loss for own in found for loss in own])


def _recombined(contest: Contest, ensemble: str, member: str) -> Loss:
    """The mean over seeds of the change when the other heads' scores are combined again."""
    changes = []
    for result in contest.results[ensemble]:
        config = EnsembleConfig.from_yaml(result.cell.run / "config.yaml")
        scores, reason = recombined(config, result.pictures, member)
        if scores is None:
            return Loss(member, False, None, reason)
        without = image_figures(scores[result.labels == 0], scores[result.labels == 1])["auroc"].value
        whole = result.figure("image", "auroc")
        if without is None or whole is None:
            return Loss(member, False, None, result.reason("image", "auroc"))
        changes.append(without - whole)
    return Loss(member, False, statistics.fmean(changes), "")


def _drawn(found: Sequence[Loss]) -> list[Loss]:
    """With bars from the middle: to the left what is worse without the member."""
    reach = max([SPREAD, *(abs(loss.value) for loss in found if loss.value is not None)])
    drawn = []
    for loss in found:
        width = 50 * abs(loss.value or 0.0) / reach
        drawn.append(replace(loss, left=50 - width if (loss.value or 0.0) < 0 else 50.0, width=width))
    return drawn


def _groups(contest: Contest, ensemble: str) -> list[tuple[str, list[AurocBar]]]:
    whole = contest.mean(ensemble, "image", "auroc")
    groups = [
        ("Together", [AurocBar.draw("whole ensemble", whole, contest.reason(ensemble, "image", "auroc"))]),
    ]
    for kind, title in (("branches", "Branches"), ("members", "Members alone"), ("heads", "Heads alone")):
        bars = []
        for name in contest.first(ensemble).figures[kind]:
            path = (kind, name, "image_auroc")
            bars.append(AurocBar.draw(name, contest.mean(ensemble, *path), contest.reason(ensemble, *path)))
        groups.append((title, bars))
    return [(title, bars) for title, bars in groups if bars]


def fused_map(result: Result) -> Fused | None:
    """Read from the run's tensors by name, because building its trunks costs. None where nothing was fused."""
    config = EnsembleConfig.from_yaml(result.cell.run / "config.yaml")
    if config.fusion.kind == "score_level" or not (result.cell.run / STATE).exists():
        return None
    return _read(result.cell.run / STATE, config)


def _read(state: Path, config: EnsembleConfig) -> Fused | None:
    prefix = "branches.0.fusion."
    with safe_open(str(state), framework="pt") as file:
        keys = set(file.keys())
        if f"{prefix}shares_" not in keys or not any(key.startswith(f"branches.0.heads.{FUSED}/") for key in keys):
            return None
        shares = file.get_tensor(f"{prefix}shares_").tolist()
        ratio = (
            file.get_tensor(f"{prefix}explained_variance_ratio_")
            if f"{prefix}explained_variance_ratio_" in keys
            else None
        )
        sizes = file.get_tensor(f"{prefix}sizes_").tolist() if f"{prefix}sizes_" in keys else None
        components = file.get_slice(f"{prefix}{'weight_' if ratio is not None else 'scale_'}").get_shape()[0]
    names = [member.name for member in config.members if member.fuse]
    if len(names) != len(shares):  # a member without a spatial map has joined at score level
        names = [f"fused member {number}" for number in range(1, len(shares) + 1)]
    explained: list[tuple[str, float]] = []
    if ratio is not None and sizes is not None:
        explained = [(name, float(part.sum())) for name, part in zip(names, ratio.split(sizes), strict=True)]
    elif ratio is not None:
        explained = [("all members", float(ratio.sum()))]
    return Fused(config.fusion.kind, int(components), list(zip(names, shares, strict=True)), explained)
