"""Whether a part of a branch, its block or one of its heads, is fitted or comes from an equal fit of before."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from torch import nn

from manyeyes.config import Config

if TYPE_CHECKING:
    from manyeyes.ensemble.branch import Branch
    from manyeyes.ensemble.reading import TapSource


class Memory(Protocol):
    """Leaves ``module``, which ``part`` declares, fitted on ``taps``: by ``fit`` or by what an equal fit has left."""

    def __call__(
        self, branch: Branch, taps: TapSource, part: Config, module: nn.Module, fit: Callable[[], object]
    ) -> None: ...


def fit_anew(branch: Branch, taps: TapSource, part: Config, module: nn.Module, fit: Callable[[], object]) -> None:
    """Remembers nothing."""
    del branch, taps, part, module
    fit()
