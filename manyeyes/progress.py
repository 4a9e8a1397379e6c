"""How long work tells how far it is: a callback from inside, a bar outside."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

Advance = Callable[[int, int], None]
"""Called with (done, total)."""


class Progress(Protocol):
    """Where steps of long work are shown."""

    def step(self, what: str) -> Advance:
        """Begin a step; the returned function moves its bar."""
        ...

    def say(self, text: str) -> None:
        """A line that stays."""
        ...


class Silent:
    """Shows nothing."""

    def step(self, what: str) -> Advance:
        return lambda done, total: None

    def say(self, text: str) -> None:
        pass


class Lines(Silent):
    """No bars; the lines that stay go to standard error."""

    def say(self, text: str) -> None:
        print(text, file=sys.stderr)


@contextmanager
def shown(quiet: bool = False) -> Iterator[Progress]:
    """Bars on the terminal's standard error while the body runs; with ``quiet`` only the lines that stay."""
    if quiet:
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:

        class Shown:
            def step(self, what: str) -> Advance:
                task: TaskID = bars.add_task(what, total=None)
                return lambda done, total: bars.update(task, completed=done, total=total)

            def say(self, text: str) -> None:
                bars.console.print(text, highlight=False, markup=False)

        yield Shown()
