"""A threshold for a promised false-alarm rate, from good parts alone.

Source: split conformal prediction (Vovk et al. 2005; Lei et al. 2018). With n calibration scores exchangeable with a
new good part's, an alarm above the k-th smallest, k = ceil((n + 1)(1 - rate)), is false with probability at most
``rate``, whatever the scores' distribution. The plain empirical quantile alarms too often on small n.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manyeyes.errors import DataError


def guaranteed_rate(scores: Tensor, threshold: float) -> float:
    """The false-alarm rate that ``score >= threshold`` has at most, by the same scores: a new good part's score is as
    likely as any to have any rank among the n + 1. Shapes: (n,) -> a number in 0..1.
    """
    return (1 + int((scores >= threshold).sum())) / (scores.numel() + 1)


def conformal_threshold(scores: Tensor, rate: float) -> tuple[float, float]:
    """The threshold for ``score >= threshold``, and the false-alarm rate that it guarantees.

    The guaranteed rate is ``rate``, or 1 / (n + 1) where n scores are too few to promise less.

    Shapes: (n,) -> two floats. Raises: DataError if n is 0 or a score is not finite.
    """
    if scores.numel() == 0 or not bool(torch.isfinite(scores).all()):
        raise DataError("a threshold needs at least one validation score, all finite")
    n = scores.numel()
    # The tolerance keeps (n + 1)(1 - rate) = 19.000000000000004 from asking for the 20th score.
    k = math.ceil((n + 1) * (1 - rate) - 1e-9)
    guaranteed = rate if k <= n else 1 / (n + 1)
    kth = scores.flatten().double().sort().values[min(k, n) - 1].to(scores.dtype)
    return float(torch.nextafter(kth, torch.full_like(kth, math.inf))), guaranteed
