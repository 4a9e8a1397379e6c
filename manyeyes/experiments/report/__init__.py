"""The report of a study: one self-contained page that needs no network."""

from pathlib import Path

from manyeyes.experiments.report.page import render
from manyeyes.experiments.report.results import Results
from manyeyes.experiments.study import Study
from manyeyes.files import write_text

__all__ = ["write_report"]


def write_report(study: Study) -> Path:
    """Write ``study.report`` and the tables beside it from its finished cells, and return the report's path.

    Raises: RunError if a file cannot be written.
    """
    results = Results(study)
    results.write()
    write_text(study.report, render(results))
    return study.report
