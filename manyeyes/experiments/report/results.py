"""The study's tables as files: ``results.md`` for people, ``results.json`` for programs, two CSV for spreadsheets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from manyeyes.experiments.report.choice import correlations
from manyeyes.experiments.report.contest import Contest
from manyeyes.experiments.report.standings import COSTS, FEWEST_SETS, Standing, standings
from manyeyes.experiments.report.words import DASH, correlation, number, percent, plain_name, points, significance, span
from manyeyes.experiments.study import Study
from manyeyes.experiments.tables import write_csv
from manyeyes.files import write_json, write_text

Row = dict[str, str]
NOTE = (
    "Image AUROC in %, mean over seeds, with its 95 % interval (pictures and seeds). Differences are in points, paired "
    "by picture and seed, p corrected by Holm for the number of ensembles. The rank is the mean over sets, 1 is best. "
    "◆: no other ensemble is at least as good and as quick, and better in one of both."
)
CHOICES = (
    "Chosen without labels: weights of the heads' scores with the first seed, and Spearman's rank correlation of the "
    "image AUROC on made defects with that on the test pictures, over all strategies, members and heads."
)


@dataclass(frozen=True)
class Results:
    """All contests of a study, read once, and where each ensemble stands."""

    study: Study

    @cached_property
    def contests(self) -> list[Contest]:
        return [Contest.read(self.study, data) for data in self.study.sets]

    @property
    def baseline(self) -> str:
        return self.study.baseline or self.study.ensembles[0]

    @cached_property
    def standings(self) -> list[Standing]:
        return standings(self.contests, self.baseline)

    def accuracy(self) -> list[Row]:
        """A row per ensemble: image AUROC on every set."""
        rows = []
        for standing in self.standings:
            name = standing.ensemble
            row = {"ensemble": name}
            for contest in self.contests:
                row[f"{contest.data}: image AUROC"] = _with_span(contest, name) if name in contest.results else DASH
            if len(self.contests) > 1:
                row["mean"] = _text(standing.auroc, standing.interval)
                row["rank"] = DASH if standing.rank is None else f"{standing.rank:.1f}"
            row["pixel AUROC"] = _mean(self.contests, name, "pixel", "auroc")
            row["AU-PRO"] = _mean(self.contests, name, "pixel", "au_pro")
            rows.append(row)
        return rows

    def comparison(self) -> list[Row]:
        """A row per ensemble: its difference to the baseline, and what it costs."""
        rows = []
        for standing in self.standings:
            difference, costs = standing.difference, standing.costs
            row = {
                "ensemble": standing.ensemble,
                f"against {self.baseline}": "baseline" if standing.ensemble == self.baseline else DASH,
                "p": "",
            }
            if difference is not None:
                interval = span(difference.interval, sign=True)
                row[f"against {self.baseline}"] = points(difference.value) + (f" ({interval})" if interval else "")
                row["p"] = significance(difference.p)
            if len(self.contests) >= FEWEST_SETS:
                row["p over sets"] = "" if standing.p_over_sets is None else significance(standing.p_over_sets)
            row |= {
                "ms/image": _number(costs["ms_per_image"]),
                "fit s": _number(costs["fit_seconds"]),
                "peak MB": _number(costs["peak_memory_mb"]),
                "artefact MB": _number(costs["artefact_mb"]),
                "front": "◆" if standing.on_front else "",
            }
            rows.append(row)
        return rows

    def choices(self) -> list[Row]:
        """A row per ensemble that was chosen and set; none where nothing was."""
        rows = []
        for contest in self.contests:
            for name in contest.ensembles:
                records = [r.figures["choice"] for r in contest.results[name] if "choice" in r.figures]
                if not records:
                    continue
                strategies = [plain_name(record["strategy"]) for record in records]
                taken = [f"{s} ({strategies.count(s)} of {len(records)})" for s in dict.fromkeys(strategies)]
                found = correlations(records)
                weights = sorted(records[0]["weights"].items(), key=lambda item: -item[1])
                rows.append(
                    {
                        "ensemble": name,
                        "set": contest.data,
                        "strategy": strategies[0] if len(records) == 1 else ", ".join(taken),
                        "weights": ", ".join(f"{head} {weight:.2f}" for head, weight in weights),
                        "rank correlation": correlation(found[-1].of["mean"]) if found else DASH,
                    }
                )
        return rows

    def plain(self) -> dict[str, Any]:
        """Everything as plain values; AUROCs are shares, p-values are corrected."""
        against = {contest.data: contest.against(self.baseline) for contest in self.contests if self._has(contest)}
        cells = []
        for contest in self.contests:
            for name in contest.ensembles:
                found = against.get(contest.data, {}).get(name)
                cells.append(
                    {
                        "ensemble": name,
                        "set": contest.data,
                        "runs": len(contest.results[name]),
                        "image_auroc": contest.mean(name, "image", "auroc"),
                        **_interval("image_auroc", contest.interval(name)),
                        "difference": found and found.value,
                        **_interval("difference", found.interval if found else None),
                        "p": found and found.p,
                        "pixel_auroc": contest.mean(name, "pixel", "auroc"),
                        "au_pro": contest.mean(name, "pixel", "au_pro"),
                        **{cost: contest.mean(name, "cost", cost) for cost in COSTS},
                    }
                )
        ensembles = [
            {
                "ensemble": s.ensemble,
                "image_auroc": s.auroc,
                **_interval("image_auroc", s.interval),
                "rank": s.rank,
                "difference": s.difference and s.difference.value,
                **_interval("difference", s.difference.interval if s.difference else None),
                "p": s.difference and s.difference.p,
                "p_over_sets": s.p_over_sets,
                **s.costs,
                "on_front": s.on_front,
            }
            for s in self.standings
        ]
        choices = [
            {
                "ensemble": name,
                "set": contest.data,
                "seed": result.cell.seed,
                "fold": result.cell.fold,
                **{key: value for key, value in record.items() if key != "made"},
                "rank_correlation": {row.part: row.of for row in correlations([record])},
            }
            for contest in self.contests
            for name in contest.ensembles
            for result in contest.results[name]
            if (record := result.figures.get("choice"))
        ]
        return {"baseline": self.baseline, "cells": cells, "ensembles": ensembles, "choices": choices}

    def _has(self, contest: Contest) -> bool:
        return self.baseline in contest.results

    def write(self) -> None:
        """Raises: RunError if a file cannot be written."""
        plain, folder = self.plain(), self.study.folder
        write_json(folder / "results.json", plain)
        write_csv(folder / "cells.csv", plain["cells"])
        write_csv(folder / "ensembles.csv", plain["ensembles"])
        parts = ["# Results", _markdown(self.accuracy()), _markdown(self.comparison()), NOTE]
        if choices := self.choices():
            parts += ["## Choices", _markdown(choices), CHOICES]
        write_text(folder / "results.md", "\n\n".join(parts) + "\n")


def _interval(name: str, interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _with_span(contest: Contest, name: str) -> str:
    return _text(contest.mean(name, "image", "auroc"), contest.interval(name))


def _text(value: float | None, interval: tuple[float, float] | None) -> str:
    return percent(value) + (f" ({span(interval)})" if interval else "")


def _mean(contests: Sequence[Contest], name: str, *path: str) -> str:
    known = [value for c in contests if name in c.results and (value := c.mean(name, *path)) is not None]
    return percent(sum(known) / len(known)) if known else DASH


def _number(value: float | None) -> str:
    return DASH if value is None else number(value)


def _markdown(rows: Sequence[Row]) -> str:
    head = list(rows[0])
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
