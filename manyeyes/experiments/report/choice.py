"""How an ensemble with ``fusion.kind: auto`` was chosen: weights, made defects, and what its proxies were worth.

A proxy is an image AUROC between held-out good pictures and defects that were made from them. The choice knows nothing
else. What the same heads, members and strategies did on the test pictures (``truth``) was measured afterwards, and
Spearman's rank correlation of both says whether made defects were good judges on this part.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy.stats import spearmanr

from manyeyes.data import Frame
from manyeyes.experiments.report.contest import Contest, Result
from manyeyes.experiments.report.contribution import AurocBar
from manyeyes.experiments.report.plots import Plot, Point, joined, share_axis
from manyeyes.experiments.report.thumbnails import contoured, data_uri, thumbnail, truth
from manyeyes.experiments.report.words import plain_name

FUSED = "fused"
PROXIES = ("structural", "logical", "mean")
PARTS = ("strategies", "members", "heads")
FEWEST = 3
"""Points that a rank correlation needs."""


@dataclass(frozen=True)
class Weight:
    """Of a head that was kept; ``width`` is 0..100. ``proxy`` is its AUROC on made defects."""

    name: str
    text: str
    width: float
    proxy: float | None


@dataclass(frozen=True)
class Made:
    """One made defect with its outline. ``picture`` is a data URI, empty where the file is gone."""

    kind: str
    group: str
    path: str
    picture: str


@dataclass(frozen=True)
class Judged:
    """A strategy, member or head: its proxies, and its AUROC on the test pictures, None where it was not measured."""

    part: str
    name: str
    proxies: dict[str, float | None]
    true: float | None
    chosen: bool = False

    @property
    def bar(self) -> AurocBar:
        return AurocBar.draw(self.name, self.proxies["mean"], "no such defect was made")


@dataclass(frozen=True)
class Correlation:
    """Spearman's, of a proxy with the truth over ``points`` of a part; mean over seeds, None where it is undefined."""

    part: str
    points: int
    of: dict[str, float | None]


@dataclass(frozen=True)
class Choice:
    """What is shown is the choice with the first seed; ``others`` says in words what the other seeds chose."""

    ensemble: str
    strategy: str
    made: dict[str, int]
    weights: list[Weight]
    dropped: list[Judged]
    weak: list[str]
    """Members that were left out altogether."""
    elsewhere: list[str]
    """Heads on fused maps that were not chosen."""
    judged: list[Judged]
    others: list[str]
    correlations: list[Correlation]
    """Empty where nothing is known of the test pictures."""
    cards: list[Made] = field(default_factory=list)

    def of(self, part: str) -> list[Judged]:
        return [one for one in self.judged if one.part == part]


def choices(contest: Contest) -> list[Choice]:
    """One for each ensemble that was chosen, best first; each made picture is shown once."""
    shown: set[str] = set()
    found = []
    for name in contest.whole:
        results = [result for result in contest.results[name] if "choice" in result.figures]
        if results:
            found.append(_choice(name, results, shown))
    return found


def _choice(name: str, results: Sequence[Result], shown: set[str]) -> Choice:
    record = results[0].figures["choice"]
    judged = all_judged(record)
    heads = {one.name: one for one in judged if one.part == "heads"}
    strategy, kinds = record["strategy"], {one.name.split(",")[0] for one in judged if one.part == "strategies"}
    foreign = [head for head in record["dropped"] if head.split("/")[0] in kinds - {strategy}]
    return Choice(
        ensemble=name,
        strategy=strategy,
        made=dict(record["made_defects"]),
        weights=_weights(record["weights"], heads, strategy),
        dropped=[heads[head] for head in record["dropped"] if head not in foreign and head in heads],
        weak=list(record.get("weak_members", ())),
        elsewhere=foreign,
        judged=judged,
        others=[_in_words(result) for result in results[1:]],
        correlations=correlations([result.figures["choice"] for result in results]),
        cards=_cards(record.get("made", ()), shown),
    )


def _weights(weights: Mapping[str, float], heads: Mapping[str, Judged], strategy: str) -> list[Weight]:
    """Greatest first; a head on the fused map has its proxy under the strategy's name."""
    greatest = max([*weights.values(), 1e-9])
    found = []
    for name, weight in sorted(weights.items(), key=lambda item: -item[1]):
        owner, _, head = name.partition("/")
        judged = heads.get(f"{strategy}/{head}" if owner == FUSED else name)
        found.append(Weight(name, f"{weight:.2f}", 100 * weight / greatest, judged.proxies["mean"] if judged else None))
    return found


def _in_words(result: Result) -> str:
    record, cell = result.figures["choice"], result.cell
    fold = "" if cell.fold is None else f", fold {cell.fold + 1}"
    weights = sorted(record["weights"].items(), key=lambda item: -item[1])
    return f"seed {cell.seed}{fold}: {plain_name(record['strategy'])}; " + ", ".join(f"{n} {w:.2f}" for n, w in weights)


def all_judged(record: Mapping[str, Any]) -> list[Judged]:
    """Strategies, members and heads, each by falling proxy."""
    true = record.get("truth") or {}
    found = []
    for part in PARTS:
        for name, proxy in record["proxies"].get(part, {}).items():
            values = {kind: proxy.get(kind) for kind in PROXIES}
            chosen = part == "strategies" and name == record["strategy"]
            found.append(Judged(part, name, values, (true.get(part) or {}).get(name), chosen))
    return sorted(found, key=lambda one: (PARTS.index(one.part), -(one.proxies["mean"] or 0.0)))


def correlations(records: Sequence[Mapping[str, Any]]) -> list[Correlation]:
    """For strategies, members, heads, and all of them; empty where no record has a truth."""
    judged = [[one for one in all_judged(record) if one.true is not None] for record in records]
    if not any(judged):
        return []
    found = []
    for part in (*PARTS, "all"):
        chosen = [[one for one in ones if part in (one.part, "all")] for ones in judged if ones]
        of = {kind: _mean([spearman(ones, kind) for ones in chosen]) for kind in PROXIES}
        found.append(Correlation(part, max(len(ones) for ones in chosen), of))
    return found


def spearman(ones: Sequence[Judged], kind: str = "mean") -> float | None:
    """Rank correlation of a proxy with the truth; None under `FEWEST` points, or where one of both is constant."""
    pairs = [(proxy, one.true) for one in ones if (proxy := one.proxies[kind]) is not None and one.true is not None]
    if len(pairs) < FEWEST or any(len(set(values)) < 2 for values in zip(*pairs, strict=True)):
        return None
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def scatter(choice: Choice) -> Plot | None:
    """True AUROC against the mean proxy, of every strategy, member and head; None where nothing is known of the truth.

    Strategies are marked; labels count their rows in the table from 1.
    """
    known = [
        (row, one, proxy, one.true)
        for row, one in enumerate(choice.judged, 1)
        if (proxy := one.proxies["mean"]) is not None and one.true is not None
    ]
    if not known:
        return None
    x, y = share_axis([proxy for *_, proxy, _ in known]), share_axis([true for *_, true in known])
    points = [
        Point(
            one.part,
            str(row) if one.part == "strategies" else "",
            x.at(proxy),
            100 - y.at(true),
            f"{plain_name(one.name)}: {100 * proxy:.1f} % on made defects, {100 * true:.1f} % on the test pictures",
            one.chosen,
        )
        for row, one, proxy, true in known
    ]
    return Plot(joined(points), x, y)


def _cards(made: Sequence[Mapping[str, Any]], shown: set[str]) -> list[Made]:
    """Kinds in turn, structural ones first."""
    turns: dict[str, int] = {}
    keyed = []
    for one in made:
        turn = turns[one["kind"]] = turns.get(one["kind"], 0) + 1
        if one["path"] not in shown:
            keyed.append((turn, one["group"] != "structural", one["kind"], one["path"], one))
    found = []
    for *_, path, one in sorted(keyed, key=lambda item: item[:4]):
        shown.add(path)
        found.append(Made(one["kind"], one["group"], path, _outlined(path, one["mask"])))
    return found


def _outlined(path: str, mask: str) -> str:
    image = thumbnail(path, Frame().bits)
    if image is None:
        return ""
    where = truth((mask,), image.shape[:2])
    return data_uri(image if where is None else contoured(image, where))
