"""Choice without labels: which heads count, and how much, from what all of them say of good and of spoilt pictures.

A head's proxy is its image AUROC between validation normals and made defects, structural and logical ones apart. Made
defects are no real ones, so the proxies weigh, they do not rule: see docs/choice.md for what was measured.

Pure arithmetic on scores; manyeyes.ensemble.choosing brings the scores and carries the choice out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from manyeyes.ensemble.config import FUSED, EnsembleConfig, MemberConfig, head_names
from manyeyes.errors import ConfigError, DataError
from manyeyes.fusion import AutoConfig, FusionConfig, PositiveSquareConfig, ScoreLevelConfig
from manyeyes.heads import HeadConfig

Array = NDArray[np.float64]
GROUPS = ("structural", "logical")
SHARPNESS = 4
"""Power of a proxy's distance from chance in its worth: half as far from chance as the best is a sixteenth of it."""
ENOUGH = 0.2
"""A head with this part of the best one's worth sees: made defects tell no better who of those that see is better."""
EQUAL_WORTH = 7
"""Validation normals whose worth of evidence the belief in equal weights has: on few, weights stay near equal."""
LEAST = 0.05
"""A head with less of the greatest weight than this is dropped."""
MARGIN = 0.005
"""Mean proxy AUROC by which a fused map must better the candidate before it to be worth its cost."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Every head's raw scores of validation normals and of made defects, and the defects' groups."""

    normal: Mapping[str, Array]
    """(n,) each, by head."""
    made: Mapping[str, Array]
    """(m,) each, by head."""
    groups: Sequence[str]
    """m of `GROUPS`."""
    entering: frozenset[str] | None = None
    """Members whose maps are in the fused maps; by default all that may be."""
    weak: frozenset[str] = frozenset()
    """Members that are left out, see `weak_members`."""

    def __post_init__(self) -> None:
        if not self.groups:
            raise DataError("a choice needs at least one made defect")

    @property
    def normals(self) -> int:
        """n."""
        return len(next(iter(self.normal.values())))

    @cached_property
    def proxies(self) -> dict[str, dict[str, float]]:
        """By head, see `proxies`."""
        return {name: proxies(self.normal[name], self.made[name], self.groups) for name in self.normal}


@dataclass(frozen=True)
class Choice:
    """``config`` is a plain one, without any choice left in it; ``origin`` names its heads in the choice's ensemble."""

    config: EnsembleConfig
    origin: Mapping[str, str]
    record: dict[str, Any]
    """For the run's figures: strategy, weights, proxies in 0..1."""
    considered: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Weights of heads by label, for members and for strategies."""

    @property
    def notes(self) -> list[str]:
        kept = ", ".join(f"{name} {weight:g}" for name, weight in self.record["weights"].items())
        dropped = ", ".join(self.record["dropped"]) or "none"
        counts = self.record["made_defects"]
        made = " and ".join(f"{count} {group}" for group, count in counts.items())
        weak = self.record["weak_members"]
        return [
            *([f"too weak on this part to be worth their trunks, left out: {', '.join(weak)}"] if weak else []),
            f"chosen without a real defect, by {made} made ones: {self.record['strategy']}; "
            f"weights {kept}; dropped: {dropped}",
        ]


def auroc(normal: Array, made: Array) -> float:
    """Share of pairs in which the made defect scores higher, ties counting half. Shapes: (n,), (m,)."""
    ordered = np.sort(normal)
    below = np.searchsorted(ordered, made, "left") + np.searchsorted(ordered, made, "right")
    return float(below.mean() / (2 * len(ordered)))


def proxies(normal: Array, made: Array, groups: Sequence[str]) -> dict[str, float]:
    """AUROC by group of defects, and the mean of both. Shapes: (n,), (m,)."""
    member = np.array(groups)
    found = {group: auroc(normal, made[member == group]) for group in GROUPS if (member == group).any()}
    return {**found, "mean": float(np.mean(list(found.values())))}


def worths(by_head: Sequence[Mapping[str, float]]) -> Array:
    """Powers of the proxies' distances from chance, relative to the best head, for each group apart.

    Shapes: k -> (k, groups), in 0..1; a group that nobody sees is 0.
    """
    above = np.array([[max(0.0, 2 * v - 1) for group, v in proxy.items() if group != "mean"] for proxy in by_head])
    best = above.max(axis=0)
    return np.asarray(np.divide(above, best, out=np.zeros_like(above), where=best > 0) ** SHARPNESS)


def trust_in(normals: int) -> float:
    """How much proxies from so many validation normals count against the belief that all heads are alike, 0..1."""
    return normals / (normals + EQUAL_WORTH)


def weigh(by_head: Sequence[Mapping[str, float]], normals: int, picturable: Sequence[bool] | None = None) -> Array:
    """Weights of heads from their proxies, the greatest 1: full for all that see, then falling, shrunk towards equal.

    A head sees a group of made defects with `ENOUGH` of the best one's worth; one that sees one group alone keeps half
    of its weight. Heads that draw a map are compared with each other, the others likewise, and the best of either
    branch with the other's: a made defect fills a small part of the picture, and pooled features hide what is small.

    Shapes: k, k (whether a head draws a map; by default all do) -> (k,).
    """
    drawn = np.ones(len(by_head), bool) if picturable is None else np.array(picturable)
    overall = worths(by_head)
    seen = np.zeros_like(overall)
    for branch in (drawn, ~drawn):
        if branch.any():
            within = worths([proxy for proxy, inside in zip(by_head, branch, strict=True) if inside])
            seen[branch] = np.minimum(1, within / ENOUGH) * np.minimum(1, overall[branch].max(axis=0) / ENOUGH)
    shares = seen.mean(axis=1)
    if not shares.any():
        return np.ones(len(shares))
    trust = trust_in(normals)
    mixed = trust * shares / shares.max() + (1 - trust)
    return np.asarray(mixed / mixed.max())


def weak_members(config: EnsembleConfig, evidence: Evidence) -> frozenset[str]:
    """Members that are all but blind on this part, of what their own heads say: they would only add noise.

    A member stays if any of its heads has `ENOUGH` of the worth of the best own head of its branch, picturable or not,
    averaged over the groups of defects; the fewer validation normals there are, the less is enough. Members without a
    head of their own are not judged, and at least one that gives a map to fuse stays.
    """
    owner = {name: member.name for member in config.members for name in head_names(member.name, member.heads)}
    names = [name for name in owner if name in evidence.normal]
    if not names:
        return frozenset()
    drawn = _picturable(config)
    enough = ENOUGH * trust_in(len(evidence.normal[names[0]]))
    found: dict[str, float] = {}
    for branch in ([n for n in names if n in drawn], [n for n in names if n not in drawn]):
        if branch:
            by_head = [proxies(evidence.normal[name], evidence.made[name], evidence.groups) for name in branch]
            found |= dict(zip(branch, worths(by_head).mean(axis=1).tolist(), strict=True))
    strong = {owner[name] for name, worth in found.items() if worth >= enough}
    weak = {owner[name] for name in names} - strong if strong else set()
    entering = {m.name for m in config.members if m.fuse and (evidence.entering is None or m.name in evidence.entering)}
    return frozenset(weak - entering if entering <= weak else weak)


@dataclass(frozen=True)
class Weighed:
    """Heads of a candidate: all of them, and those kept with their weights."""

    all: tuple[str, ...]
    kept: dict[str, float]


def best_candidate(
    config: EnsembleConfig, evidence: Evidence
) -> tuple[FusionConfig, dict[str, float], dict[str, Weighed]]:
    """The candidate with the best proxy, its heads' weights, and the heads of all candidates by kind. See `choose`."""
    assert isinstance(config.fusion, AutoConfig)
    by_head, drawn = evidence.proxies, _picturable(config)
    members = [member for member in config.members if member.name not in evidence.weak]
    own = [name for member in members for name in head_names(member.name, member.heads)]
    weighed: dict[str, Weighed] = {}
    best: tuple[FusionConfig, dict[str, float], float] | None = None
    for candidate in config.fusion.candidates:
        names = [*(head_names(candidate.kind, config.heads) if candidate in config.fusion.fused else ()), *own]
        if not names or not all(name in by_head for name in names):
            continue
        shares = weigh([by_head[name] for name in names], evidence.normals, [name in drawn for name in names])
        weights = _kept(names, shares, by_head, drawn)
        weighed[candidate.kind] = Weighed(tuple(names), weights)
        value = _judged(config, evidence, weights)["mean"]
        if best is None or value > best[2] + MARGIN:
            best = (candidate, weights, value)
    if best is None:
        raise ConfigError(
            "fusion.kind auto: no member has a feature map to fuse; add score_level to fusion.candidates, or a member "
            "with maps"
        )
    return best[0], best[1], weighed


def left_out_scores(
    config: EnsembleConfig, evidence: Evidence, members: Array, apart: Mapping[str, Array] | None = None
) -> Array:
    """Scores of the normals for a threshold, each by what is chosen without it.

    The choice prefers heads that put these very normals low, so that what is chosen with them puts them lower than new
    ones, and a threshold from that alarms too often. What no choice can undo, the members that the fused maps were
    fitted with, stays.

    ``apart`` are scores that depend on who is left out, see `Ensemble.left_out`.
    Shapes: number of each normal's group (n,), {head: (groups, n)} -> (n,).
    """
    apart = apart or {}
    found = np.zeros(evidence.normals)
    for group in range(int(members.max()) + 1):
        inside = members == group
        raw = {name: apart[name][group] if name in apart else scores for name, scores in evidence.normal.items()}
        others = replace(evidence, normal={name: scores[~inside] for name, scores in raw.items()})
        others = replace(others, weak=weak_members(config, others))
        _, weights, _ = best_candidate(config, others)
        combined = combination(config, others.normal, rounded(weights))
        found[inside] = combined({name: scores[inside] for name, scores in raw.items()})
    return found


def rounded(weights: Mapping[str, float]) -> dict[str, float]:
    """As they stand in the config of what is chosen."""
    return {name: round(weight, 3) for name, weight in weights.items()}


def choose(config: EnsembleConfig, evidence: Evidence) -> Choice:
    """Weights for every candidate, then the candidate with the best proxy; a dearer one must be better by `MARGIN`.

    Candidates without a head that judges them, because no member has a map, are left out.
    Raises: DataError if there is no made defect; ConfigError if no candidate is left.
    """
    by_head = evidence.proxies
    members = [member for member in config.members if member.name not in evidence.weak]
    considered: dict[str, dict[str, dict[str, float]]] = {"members": {}, "strategies": {}}
    for member in config.members:
        if member.heads:
            considered["members"][member.name] = dict.fromkeys(head_names(member.name, member.heads), 1.0)
    candidate, weights, weighed = best_candidate(config, evidence)
    for kind, found in weighed.items():
        considered["strategies"][f"{kind}, equal weights"] = dict.fromkeys(found.all, 1.0)
        considered["strategies"][kind] = found.kept
    judged = {
        part: {label: _judged(config, evidence, weights) for label, weights in found.items()}
        for part, found in considered.items()
    }
    entering = frozenset(m.name for m in members if evidence.entering is None or m.name in evidence.entering)
    plain, origin = resolved(config, candidate, weights, entering)
    record = {
        "strategy": plain.fusion.kind,  # scores alone, where no head of the fused map counts
        "weights": {name: rounded(weights)[old] for name, old in origin.items()},
        "dropped": [name for name in by_head if name not in weights],
        "weak_members": sorted(evidence.weak),
        "made_defects": {group: list(evidence.groups).count(group) for group in GROUPS},
        "proxies": {"heads": by_head, **judged},
    }
    return Choice(plain, origin, record, considered)


def verified(
    config: EnsembleConfig,
    choice: Choice,
    calibration: Mapping[str, Array],
    good: Mapping[str, Array],
    defective: Mapping[str, Array],
) -> dict[str, dict[str, float]]:
    """Image AUROC on real pictures of all that was considered, nothing fitted to them: what the proxies were worth.

    ``calibration`` are the scores of validation normals, the others those of test pictures. For a report; the choice
    has been made.
    """
    found = {"heads": {name: auroc(good[name], defective[name]) for name in good}}
    for part, by_label in choice.considered.items():
        found[part] = {}
        for label, weights in by_label.items():
            combined = combination(config, calibration, weights)
            found[part][label] = auroc(combined(good), combined(defective))
    return found


def _picturable(config: EnsembleConfig) -> set[str]:
    owners = [*((name, config.heads) for name, _ in config.fusions), *((m.name, m.heads) for m in config.members)]
    return {
        name
        for owner, heads in owners
        for name, head in zip(head_names(owner, heads), heads, strict=True)
        if head.reads != "vector"
    }


def _kept(
    names: Sequence[str], weights: Array, by_head: Mapping[str, Mapping[str, float]], drawn: set[str]
) -> dict[str, float]:
    """Heads worth their cost; of those that draw a map the best is always kept, so that there is something to see."""
    kept = {name: float(weight) for name, weight in zip(names, weights, strict=True) if weight >= LEAST}
    maps = [name for name in names if name in drawn]
    if maps and not drawn & set(kept):
        kept[max(maps, key=lambda name: by_head[name]["mean"])] = LEAST
    return kept


def _judged(config: EnsembleConfig, evidence: Evidence, weights: Mapping[str, float]) -> dict[str, float]:
    """Proxies of some heads' normalised and combined scores."""
    combined = combination(config, evidence.normal, weights)
    return proxies(combined(evidence.normal), combined(evidence.made), evidence.groups)


def combination(
    config: EnsembleConfig, calibration: Mapping[str, Array], weights: Mapping[str, float]
) -> Callable[[Mapping[str, Array]], Array]:
    """How raw scores of the heads in ``weights`` become one: normalised and combined as on ``calibration``."""
    names = list(weights)
    normalisers = {name: config.normaliser.build().fit(torch.from_numpy(calibration[name])) for name in names}

    def normalised(scores: Mapping[str, Array]) -> torch.Tensor:
        return torch.stack([normalisers[name].transform(torch.from_numpy(scores[name])) for name in names], 1)

    combiner = PositiveSquareConfig(weights=dict(weights)).build(names)
    combiner.fit(normalised(calibration))
    return lambda scores: np.asarray(combiner.combine(normalised(scores)).numpy())


def resolved(
    config: EnsembleConfig,
    candidate: FusionConfig,
    weights: Mapping[str, float],
    entering: frozenset[str] | None = None,
) -> tuple[EnsembleConfig, dict[str, str]]:
    """The plain config with the heads in ``weights`` and no others, and where each of its heads came from.

    A fused map that no kept head judges is not built; a member that nothing looks at is left out.
    """
    origin: dict[str, str] = {}

    def keep(owner: str, new_owner: str, heads: Sequence[HeadConfig]) -> tuple[HeadConfig, ...]:
        pairs = [(n, head) for n, head in zip(head_names(owner, heads), heads, strict=True) if n in weights]
        kept = tuple(head for _, head in pairs)
        origin.update(zip(head_names(new_owner, kept), (name for name, _ in pairs), strict=True))
        return kept

    heads = () if isinstance(candidate, ScoreLevelConfig) else keep(candidate.kind, FUSED, config.heads)
    members: list[MemberConfig] = []
    for member in config.members:
        own = keep(member.name, member.name, member.heads)
        if own or (heads and member.fuse and (entering is None or member.name in entering)):
            members.append(member.model_copy(update={"heads": own}))
    final = rounded(weights)
    combiner = PositiveSquareConfig(weights={name: final[old] for name, old in origin.items()})
    fusion = candidate if heads else ScoreLevelConfig()
    fields = {"members": tuple(members), "fusion": fusion, "heads": heads, "combiner": combiner}
    plain = EnsembleConfig.parse(config.model_copy(update=fields).model_dump(mode="json"), "chosen config")
    return plain, origin
