"""Numbers and names as people read them."""

from __future__ import annotations

import re

import numpy as np
from markupsafe import Markup, escape

from manyeyes.experiments.metrics.figure import Interval

DASH = "–"


def percent(value: float | None) -> str:
    """A share in % with one digit, or a dash."""
    return DASH if value is None else f"{100 * value:.1f}"


def whole_percent(value: float) -> str:
    """A share in % without a digit, or with one where it would say 0 or nearly nothing."""
    return f"{100 * value:.0f}" if value >= 0.0095 or value == 0 else f"{100 * value:.1f}"


def span(interval: Interval | None, sign: bool = False) -> str:
    """An interval in %; nothing for one without width, as two rankings that are alike have: it says nothing."""
    if interval is None or interval[0] == interval[1]:
        return ""
    low, high = (points(value) if sign else percent(value) for value in interval)
    return f"{low} to {high}"


def points(difference: float) -> str:
    """A difference of shares in points, with its sign."""
    return signed(re.sub(r"[+-]0\.0$", "0.0", f"{100 * difference:+.1f}"))


def significance(p: float | None) -> str:
    """A p-value as short as it says anything."""
    if p is None:
        return "no test"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.1 else f"p = {p:.2f}"


def correlation(value: float | None) -> str:
    """A correlation with its sign and two digits, or a dash."""
    return DASH if value is None else signed(re.sub(r"[+-]0\.00$", "0.00", f"{value:+.2f}"))


def number(value: float) -> str:
    """Three significant digits, all digits before the point, and an exponent only where nothing else can be read."""
    if value == 0 or 0.001 <= abs(value) < 1e6:
        digits = max(0, 2 - int(np.floor(np.log10(abs(value))))) if value else 0
        return signed(f"{value:.{digits}f}")
    return signed(f"{value:.2e}")


def signed(text: str) -> str:
    """With a true minus sign, and none before a zero."""
    return text[1:] if re.fullmatch(r"-0(\.0*)?", text) else text.replace("-", "−")


def plain_name(name: str) -> str:
    """A kind as words: independent_pca is independent PCA."""
    return re.sub(r"\bpca\b", "PCA", name.replace("_", " "))


def breakable(name: str) -> Markup:
    """A name, escaped, that may be broken after an underscore, a plus or a slash, as narrow columns need."""
    return Markup(re.sub(r"([_+/])", r"\1<wbr>", str(escape(name))))
