"""Everything on the page, put together: one HTML file with its style, script, pictures and data inside."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from manyeyes import __version__
from manyeyes.experiments.report import choice, contribution, curves, plots, tables
from manyeyes.experiments.report.contest import Contest, overall
from manyeyes.experiments.report.gallery import Gallery, Painter, disagreements, galleries
from manyeyes.experiments.report.results import Results
from manyeyes.experiments.report.standings import FEWEST_SETS
from manyeyes.experiments.report.thumbnails import thumbnail
from manyeyes.experiments.report.verdict import verdict
from manyeyes.experiments.report.words import breakable, correlation, percent, plain_name

HERE = "manyeyes.experiments.report"
COLOURS = 8
DRAWN = 12
"""Ensembles with galleries on the whole page, shared evenly by the sets: pictures are what makes the page heavy."""


@dataclass(frozen=True)
class Section:
    """One set."""

    number: int
    contest: Contest
    colours: dict[str, int]
    painters: list[Painter]

    @property
    def name(self) -> str:
        return self.contest.data

    @cached_property
    def rows(self) -> list[tables.Row]:
        return tables.rows(self.contest, self.colours)

    @property
    def has_spro(self) -> bool:
        return any(row.spro.value is not None for row in self.rows)

    @cached_property
    def defects(self) -> list[tables.DefectRow]:
        return tables.defect_rows(self.contest)

    @cached_property
    def roc(self) -> list[curves.Curve]:
        return curves.roc_curves(self.contest)

    @cached_property
    def pro(self) -> tuple[list[curves.Curve], float]:
        return curves.pro_curves(self.contest)

    @cached_property
    def choices(self) -> list[choice.Choice]:
        return choice.choices(self.contest)

    @property
    def scatters(self) -> list[tuple[choice.Choice, plots.Plot | None]]:
        return [(one, choice.scatter(one)) for one in self.choices]

    @property
    def contributions(self) -> list[contribution.Contribution]:
        return contribution.contributions(self.contest)

    @cached_property
    def disagreements(self) -> Gallery | None:
        return disagreements(self.contest, self.painters)

    @cached_property
    def galleries(self) -> list[tuple[str, bool, list[Gallery]]]:
        """Ensemble, whether it draws maps, and its galleries; best first."""
        return [(painter.name, painter.result.draws, galleries(painter)) for painter in self.painters]

    @property
    def notes(self) -> list[tuple[str, list[str]]]:
        """Each note once, with the ensembles that it concerns."""
        found: dict[str, list[str]] = {}
        for name, results in self.contest.results.items():
            for note in dict.fromkeys(note for result in results for note in result.figures["notes"]):
                found.setdefault(note, []).append(name)
        return list(found.items())


def render(results: Results) -> str:
    """The page as HTML. Pure but for reading the study's files and pictures."""
    thumbnail.cache_clear()  # pictures may have changed since an earlier page
    contests = results.contests
    colours = {name: place % COLOURS for place, (name, _) in enumerate(overall(contests))}
    each = max(1, DRAWN // len(contests))
    sections = []
    for number, contest in enumerate(contests):
        painters = [Painter(contest.first(name), name) for name in contest.whole[:each]]
        sections.append(Section(number, contest, colours, painters))
    standings = sorted(results.standings, key=lambda one: (one.auroc is None, -(one.auroc or 0.0)))
    environment = Environment(
        loader=PackageLoader(HERE, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["along"] = contribution.along
    for filter_ in (breakable, correlation, percent, plain_name):
        environment.filters[filter_.__name__] = filter_
    return environment.get_template("page.html").render(
        verdict=verdict(contests),
        sections=sections,
        overall=tables.overall_rows(contests, colours) if len(contests) > 1 else [],
        standings=tables.standing_rows(standings, results.baseline, colours),
        baseline=results.baseline,
        over_sets=len(contests) >= FEWEST_SETS,
        cost_plot=plots.cost_plot(standings),
        chosen=any(section.choices for section in sections),
        colours=colours,
        style=Markup(resource("style.css")),
        script=Markup(resource("script.js")),
        data=embedded({"sets": [curves.histogram_data(contest) for contest in contests]}),
        version=__version__,
        drawn=each,
    )


def resource(name: str) -> str:
    return (files(HERE) / name).read_text(encoding="utf-8")


def embedded(values: Any) -> Markup:
    """JSON for a script element: no value can end the element, open a comment, or break the line."""
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
