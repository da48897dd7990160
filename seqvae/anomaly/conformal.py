"""Conformal tests: bounds on false alarms, smoothed p-values, false discoveries in a batch, and a change test.

Scope: ranks, p-values and their distributions. Out of scope: scores, detectors and their folders
(anomaly/calibration.py).

All results assume that normal scores are exchangeable: those of the n calibration pieces and those of new normal
pieces. A piece is anomalous if its score is below the r-th smallest of the n; r is the *rank* of the threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

Doubles = NDArray[np.float64]

CONFIDENCE = 0.95
"""Probability that a bound holds, over calibrations."""
_ROUNDING = 1e-9  # relative error of sums of logarithms


# --- bounds on the rate of false alarms -------------------------------------------------------------------------------


def _tails(log_ratios: Doubles) -> Doubles:
    """`(n + 1,)`: P(K >= k) for k = 0 ... n, from log(P(K = k + 1) / P(K = k)) `(n,)`."""
    logs = np.concatenate([[0.0], np.cumsum(log_ratios)])
    weights = np.exp(logs - logs.max())
    out: Doubles = np.minimum(np.cumsum(weights[::-1])[::-1] / weights.sum(), 1)
    return out


def binomial_tails(n: int, share: float) -> Doubles:
    """`(n + 1,)`: P(K >= k) for K ~ Binomial(n, share), 0 < share < 1."""
    k = np.arange(n)
    return _tails(np.log((n - k) / (k + 1)) + math.log(share) - math.log1p(-share))


def bound(rank: int, n: int, confidence: float = CONFIDENCE) -> float:
    """Upper confidence bound on the rate of false alarms of one calibration with a threshold of this rank.

    Given the calibration, the rate of false alarms is distributed as Beta(r, n + 1 - r) for continuous scores (Vovk
    2012, Conditional validity of inductive conformal predictors), and is stochastically smaller with ties. The bound is
    a quantile of this distribution, valid for a rank chosen before the scores were seen. For r = 1 it is
    1 - (1 - confidence)^(1/n).
    """
    if rank < 1:
        return 0.0
    if rank > n:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if binomial_tails(n, middle)[rank] >= confidence:  # P(Beta(r, n + 1 - r) <= x) = P(Binomial(n, x) >= r)
            high = middle
        else:
            low = middle
    return high


def rank(share: float, n: int, confidence: float | None = None) -> int:
    """The largest rank of a threshold whose rate of false alarms is at most `share`; 0 if there is none.

    On average over calibrations it is floor(share (n + 1)) (Vovk, Gammerman and Shafer 2005). With a `confidence`, it
    is the largest r with P(Binomial(n, share) >= r) >= confidence: then `bound` is at most `share` (Wilks 1941; Vovk
    2012).
    """
    if confidence is not None:
        return int((binomial_tails(n, share) >= confidence * (1 - _ROUNDING)).sum()) - 1
    found = math.floor(share * (n + 1)) + 1  # one more, against rounding of the product
    while found / (n + 1) > share:
        found -= 1
    return found


def sample_size(share: float, confidence: float | None = None) -> int:
    """The least n for which a threshold with this rate of false alarms exists.

    On average it is 1 / share - 1. With a confidence it is log(1 - confidence) / log(1 - share), since all n scores lie
    above the quantile with probability (1 - share)^n: 299 for 1 % with 95 %.
    """
    exact = 1 / share - 1 if confidence is None else math.log1p(-confidence) / math.log1p(-share)
    return max(1, math.ceil(exact * (1 - _ROUNDING)))


def least_share(n: int, confidence: float | None = None) -> float:
    """The lowest rate of false alarms possible with n pieces, rounded up to two digits."""
    value = 1 / (n + 1) if confidence is None else bound(1, n, confidence)
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / step) * step


# --- p-values ---------------------------------------------------------------------------------------------------------


def smoothed(normal: Doubles, score: float, uniform: float) -> float:
    """(number below + u (1 + number equal)) / (n + 1), for sorted scores `normal (n,)` and u uniform on (0, 1].

    For a new normal piece it is uniform on (0, 1], with or without ties (Vovk, Gammerman and Shafer 2005, Algorithmic
    learning in a random world, chapter 2).
    """
    below, to = np.searchsorted(normal, score, "left"), np.searchsorted(normal, score, "right")
    return float(below + uniform * (1 + to - below)) / (len(normal) + 1)


def uniform(seed: int, index: int) -> float:
    """A number uniform on (0, 1] for the piece `index`, independent of other pieces."""
    return 1 - float(np.random.default_rng([seed, index]).random())


def discoveries(p_values: ArrayLike, rate: float) -> NDArray[np.bool_]:
    """`(m,)`: True for discoveries at this false discovery rate, by the procedure of Benjamini and Hochberg.

    With k the largest number for which k p-values are at most rate k / m, these k are discoveries (Benjamini and
    Hochberg 1995). The expected share of normal pieces among them is at most `rate` for p-values with positive
    dependence (PRDS; Benjamini and Yekutieli 2001), as conformal p-values of one calibration have (Bates, Candès, Lei,
    Romano and Sesia 2023, Testing for outliers with conformal p-values). Ties do not matter: given the values of the
    n + 1 normal scores, the other p-values grow with the score of the new one. The rate holds on average over
    calibrations and batches.
    """
    p = np.asarray(p_values, np.float64)
    allowed = rate * np.arange(1, len(p) + 1) / max(1, len(p)) * (1 + _ROUNDING)
    passed = np.flatnonzero(np.sort(p) <= allowed)
    out: NDArray[np.bool_] = p <= (allowed[passed[-1]] if len(passed) else -1.0)
    return out


def least_discoveries(m: int, n: int, rate: float) -> int:
    """Minimum number of the m pieces that must score below all n normal ones before any can be a discovery."""
    return max(1, math.ceil(m / (rate * (n + 1)) * (1 - _ROUNDING)))


# --- change test ------------------------------------------------------------------------------------------------------

ANOMALIES = 0.1
"""Share of new pieces that may be anomalous, with any scores, without an alarm."""
LEVELS = 0.1, 0.5
"""Levels at which p-values are counted: the first detects a new kind of normal piece, the second a shift of all."""
LOOK = 50
"""New pieces before the first look; the number doubles from look to look."""
ALARM = 0.01
"""Probability of an alarm over all looks if normal has not changed."""


def change_p_value(count: int, m: int, rank: int, n: int, anomalies: int = 0) -> float:
    """P-value of "normal has not changed", where `count` of m new scores are below the r-th smallest of n.

    Among m - a new normal pieces the number below it is distributed as BetaBinomial(m - a; r, n + 1 - r), the negative
    hypergeometric distribution, and is stochastically smaller with ties (a precedence test; Mathisen 1943, Balakrishnan
    and Ng 2006). The a others add at most a, so the test is valid with any a anomalies.
    """
    if count <= anomalies:
        return 1.0
    k, m = np.arange(m - anomalies), m - anomalies
    ratios = np.log((m - k) * (k + rank)) - np.log((k + 1.0) * (m - k - 1 + n + 1 - rank))
    return float(_tails(ratios)[count - anomalies])


@dataclass(frozen=True)
class Change:
    """Evidence that normal has changed."""

    seen: int
    """New pieces so far."""
    share: float
    """Share of them that score as low as the lowest `level` of the normal pieces."""
    level: float
    p_value: float


@dataclass
class ChangeTest:
    """Tests whether new pieces score lower than the n calibration pieces, apart from a share ANOMALIES of them.

    Scores are counted below each of LEVELS, after LOOK pieces, after twice as many and so on, and at the end. The i-th
    look uses a share 1 / (i (i + 1)) of ALARM (these add up to ALARM), divided by the number of levels (Bonferroni). So
    without a change the probability of an alarm is at most ALARM, if at every look no more than a tenth of the pieces
    is anomalous. Attacks of 5 % never add up to an alarm. A burst of more than a tenth does, and only a person can
    distinguish it from a change. New pieces that score higher than the normal ones raise no alarm.
    """

    n: int
    seen: int = 0
    _counts: list[int] = field(default_factory=lambda: [0] * len(LEVELS))
    _looks: int = 0

    def add(self, p_value: float) -> Change | None:
        """Add a new piece by its p-value without random ties; the result of a look, if one is due."""
        self.seen += 1
        for i, level in enumerate(LEVELS):
            self._counts[i] += p_value * (self.n + 1) <= self._rank(level) + 0.5
        due = self.seen >= LOOK and self.seen == LOOK << self._looks
        return self.look() if due else None

    def look(self) -> Change | None:
        """Look now, for example at the end, at any number of pieces from LOOK on."""
        if self.seen < LOOK:
            return None
        self._looks += 1
        limit = ALARM / (self._looks * (self._looks + 1)) / len(LEVELS)
        anomalies = math.ceil(ANOMALIES * self.seen)
        for level, count in zip(LEVELS, self._counts, strict=True):
            p_value = change_p_value(count, self.seen, self._rank(level), self.n, anomalies)
            if p_value <= limit:
                return Change(self.seen, count / self.seen, level, p_value)
        return None

    def _rank(self, level: float) -> int:
        return max(1, rank(level, self.n))
