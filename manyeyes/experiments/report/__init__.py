"""The report of a study: one self-contained page that needs no network."""

from pathlib import Path

from manyeyes.experiments.report.page import render
from manyeyes.experiments.study import Study
from manyeyes.files import write_text

__all__ = ["write_report"]


def write_report(study: Study) -> Path:
    """Write ``study.report`` from its finished cells and return its path. Raises: RunError if it cannot be written."""
    write_text(study.report, render(study))
    return study.report
