"""How low a score is among normal ones: its share, interpolated between them and extrapolated below them.

Scope: the surprise of one score. Out of scope: merging scores, p-values (anomaly/calibration.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
TAIL = 0.1  # lowest share of scores, from which the scale of their tail is estimated
UNIT = 0.1  # smallest scale of a tail, in the unit of the score
SUDDEN = 0.01  # a score this far below all others has its full surprise; a difference in the last digit has not
DIGITS = 3  # decimals of a score: equal pieces may differ in the last digits, which must not matter


@dataclass(frozen=True, eq=False)
class Tail:
    """The lower tail of normal scores, prepared for the surprise of many scores; see `surprise`."""

    different: Doubles
    """The distinct scores, sorted."""
    shares: Doubles
    """-log of the share of normal scores that are as low as each."""
    jump: float
    """What the shares of a score below all others and of the lowest one differ by, as logarithms."""
    scale: float

    @classmethod
    def of(cls, column: Doubles) -> Tail:
        """The tail of a sorted `column (n,)`."""
        n = len(column)
        different, counts = np.unique(column, return_counts=True)
        shares = -np.log((counts.cumsum() + 1) / (n + 1))
        k = max(1, round(TAIL * n))
        scale = max(float(column[min(k, n - 1)] - column[:k].mean()), UNIT)
        return cls(different, shares, math.log(n + 1) - float(shares[0]), scale)

    def surprise(self, value: float) -> float:
        """-log of the share of normal scores that are as low as `value`, in nats."""
        below = max(float(self.different[0]) - value, 0.0)
        known = float(np.interp(value, self.different, self.shares))
        return known + self.jump * min(1.0, below / SUDDEN) + math.log1p(below / self.scale)


def surprise(column: Doubles, value: float) -> float:
    """-log of the share of a sorted `column (n,)` of normal scores that are as low as `value`, in nats.

    Between scores the logarithm of (k + 1) / (n + 1) is interpolated, with k scores as low. Below all scores the share
    is 1 / (n + 1) / (1 + (lowest - value) / m), with m the mean of t - score within the lowest tenth and t the first
    score above it: a Pareto tail of shape 1, since a value beyond all data may lie anywhere.
    """
    return Tail.of(column).surprise(value)


def pareto_surprise(column: Doubles, value: float) -> float:
    """As `surprise`, by the formula of earlier versions, which detectors with the score `fisher` keep.

    Below the lowest tenth, k of n scores, the share is k / n / (1 + (t - value) / m), with t the first score above the
    tenth and m the mean of t - score within it: a Pareto tail of shape 1, since a value beyond all data may lie
    anywhere.
    """
    n = len(column)
    k = max(1, round(TAIL * n))
    t = float(column[min(k, n - 1)])
    if value >= t:
        return -math.log((np.searchsorted(column, value, side="right") + 1) / (n + 1))
    mean = max(t - float(column[:k].mean()), 10.0**-DIGITS)
    return -math.log((k + 1) / (n + 1)) + math.log1p((t - value) / mean)
