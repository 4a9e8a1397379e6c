"""What each part of an ensemble is worth by itself, and what went into the fused map."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from manyeyes.ensemble import EnsembleConfig
from manyeyes.ensemble.config import FUSED
from manyeyes.ensemble.run import STATE
from manyeyes.experiments.report.contest import Contest, Result
from manyeyes.experiments.report.words import DASH, percent

LOWEST = 0.3
"""AUROCs are drawn as bars from chance, 0.5, to the right up to 1, and to the left down to this."""


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
    fused: Fused | None


def contributions(contest: Contest) -> list[Contribution]:
    """One for each ensemble, best first; AUROCs are means over seeds, the fused map that of the first seed."""
    return [Contribution(name, _groups(contest, name), fused_map(contest.first(name))) for name in contest.ranking]


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
