"""A figure that knows when it is undefined, and the JSON in which a reader finds out why.

An undefined figure is never 0 or 0.5: its value is None and its reason says what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

Interval: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Figure:
    """One number of an evaluation. ``value`` is None exactly where ``reason`` says why; ``note`` warns of a reading.

    ``interval`` is the 95 % confidence interval, None where none was asked for or none can be given.
    """

    value: float | None
    reason: str | None = None
    interval: Interval | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if (self.value is None) != (self.reason is not None):
            raise ValueError(f"a figure has either a value or a reason, got {self.value!r} and {self.reason!r}")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"a figure is finite or undefined with a reason, got {self.value!r}")

    def within(self, interval: Interval | None) -> Figure:
        """The same figure with an interval; an undefined figure stays without one."""
        return self if self.value is None else replace(self, interval=interval)


Tree: TypeAlias = Mapping[str, Any]
"""Figures by name, nested to any depth."""


def undefined(reason: str) -> Figure:
    return Figure(None, reason)


def mean(figures: Mapping[str, Figure]) -> Figure:
    """The plain mean of all figures; undefined, with the first reason, if one of them is."""
    for name, figure in figures.items():
        if figure.value is None:
            return undefined(f"{name}: {figure.reason}")
    values = [figure.value for figure in figures.values() if figure.value is not None]
    return Figure(sum(values) / len(values)) if values else undefined("there is nothing to average")


def walk(tree: Tree, path: str = "") -> Iterator[tuple[str, Figure]]:
    """Every figure with its dotted path; a dot inside a key (a limit such as 0.05) is kept as it is."""
    for key, item in tree.items():
        here = f"{path}.{key}" if path else key
        if isinstance(item, Figure):
            yield here, item
        else:
            yield from walk(item, here)


def to_json(tree: Tree, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Plain values for JSON: each figure its value or null, beside ``undefined``, ``intervals`` and ``notes``.

    ``undefined`` maps the path of every null to its reason, ``intervals`` the path of a figure to [low, high].
    """
    figures = list(walk(tree))
    plain = _values(tree)
    plain["undefined"] = {path: figure.reason for path, figure in figures if figure.value is None}
    plain["intervals"] = {path: list(figure.interval) for path, figure in figures if figure.interval is not None}
    plain["notes"] = [*notes, *(f"{path}: {figure.note}" for path, figure in figures if figure.note)]
    return plain


def _values(tree: Tree) -> dict[str, Any]:
    return {key: item.value if isinstance(item, Figure) else _values(item) for key, item in tree.items()}
