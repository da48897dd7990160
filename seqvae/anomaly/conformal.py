"""Conformal tests: bounds on false alarms, smoothed p-values, false discoveries in a batch, and a test for a change.

Knows ranks, p-values and the distributions of both. Refuses to know scores, detectors and their folders
(anomaly/calibration.py).

All statements suppose that normal scores are exchangeable: those of the n calibration pieces and those of new normal
pieces. A piece is called anomalous where its score is below the r-th smallest of the n; r is the *rank* of the limit.
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
    """Upper confidence bound on the rate of false alarms of one calibration with a limit of this rank.

    Given the calibration, the rate of false alarms is distributed as Beta(r, n + 1 - r) where scores are continuous
    (Vovk 2012, Conditional validity of inductive conformal predictors), and is stochastically smaller where they tie.
    The bound is the quantile of this distribution, for a rank that was chosen before the scores were seen. For r = 1 it
    is 1 - (1 - confidence)^(1/n).
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
    """The largest rank of a limit whose rate of false alarms is at most `share`; 0 where there is none.

    On the average over calibrations it is floor(share (n + 1)) (Vovk, Gammerman and Shafer 2005). With a `confidence`,
    it is the largest r with P(Binomial(n, share) >= r) >= confidence: then `bound` is at most `share` (Wilks 1941; Vovk
    2012).
    """
    if confidence is not None:
        return int((binomial_tails(n, share) >= confidence * (1 - _ROUNDING)).sum()) - 1
    found = math.floor(share * (n + 1)) + 1  # a product is rounded
    while found / (n + 1) > share:
        found -= 1
    return found


def sample_size(share: float, confidence: float | None = None) -> int:
    """The least n that has a limit of such a rate of false alarms.

    On the average it is 1 / share - 1. With a confidence it is log(1 - confidence) / log(1 - share), since all of n
    scores lie above the share with probability (1 - share)^n: 299 for 1 % with 95 %.
    """
    exact = 1 / share - 1 if confidence is None else math.log1p(-confidence) / math.log1p(-share)
    return max(1, math.ceil(exact * (1 - _ROUNDING)))


def least_share(n: int, confidence: float | None = None) -> float:
    """The lowest rate of false alarms that n pieces allow, rounded up to two digits."""
    value = 1 / (n + 1) if confidence is None else bound(1, n, confidence)
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / step) * step


# --- p-values ---------------------------------------------------------------------------------------------------------


def smoothed(normal: Doubles, score: float, uniform: float) -> float:
    """(number below + u (1 + number equal)) / (n + 1), of sorted scores `normal (n,)` and u uniform on (0, 1].

    It is uniform on (0, 1] for a new normal piece, whether scores tie or not (Vovk, Gammerman and
    Shafer 2005, Algorithmic learning in a random world, chapter 2).
    """
    below, to = np.searchsorted(normal, score, "left"), np.searchsorted(normal, score, "right")
    return float(below + uniform * (1 + to - below)) / (len(normal) + 1)


def uniform(seed: int, index: int) -> float:
    """A number uniform on (0, 1]: the one of a piece, whatever is scored beside it."""
    return 1 - float(np.random.default_rng([seed, index]).random())


def discoveries(p_values: ArrayLike, rate: float) -> NDArray[np.bool_]:
    """`(m,)`: which pieces are discoveries at this false discovery rate, by the procedure of Benjamini and Hochberg.

    With k the largest number for which k p-values are at most rate k / m, it is these k (Benjamini and Hochberg 1995).
    The expected share of normal pieces among the discoveries is at most `rate` for p-values that depend positively
    (PRDS; Benjamini and Yekutieli 2001), as conformal p-values of one calibration do (Bates, Candès, Lei, Romano and
    Sesia 2023, Testing for outliers with conformal p-values). Ties change nothing: given the values of the n + 1 normal
    scores, the other p-values grow with the score of the new one. It is an average over calibrations and batches.
    """
    p = np.asarray(p_values, np.float64)
    allowed = rate * np.arange(1, len(p) + 1) / max(1, len(p)) * (1 + _ROUNDING)
    passed = np.flatnonzero(np.sort(p) <= allowed)
    out: NDArray[np.bool_] = p <= (allowed[passed[-1]] if len(passed) else -1.0)
    return out


def least_discoveries(m: int, n: int, rate: float) -> int:
    """How many of m pieces must be stranger than all n normal ones before any can be a discovery."""
    return max(1, math.ceil(m / (rate * (n + 1)) * (1 - _ROUNDING)))


# --- has normal changed? ----------------------------------------------------------------------------------------------

ANOMALIES = 0.1
"""Share of new pieces that may be anomalous, however strange, before normal is said to have changed."""
LEVELS = 0.1, 0.5
"""Where p-values are counted: a new kind of normal piece shows at the first, a shift of all at the second."""
LOOK = 50
"""New pieces before the first look; they double from one look to the next."""
ALARM = 0.01
"""Probability that an unchanged normal is said to have changed, over all looks."""


def change_p_value(count: int, m: int, rank: int, n: int, anomalies: int = 0) -> float:
    """P-value of "normal has not changed", where `count` of m new scores are below the r-th smallest of n.

    Among m - a new normal pieces the number below it is distributed as BetaBinomial(m - a; r, n + 1 - r), the negative
    hypergeometric distribution, and is stochastically smaller where scores tie (a precedence test; Mathisen 1943,
    Balakrishnan and Ng 2006). The a others can add a at most, so that the test holds for any a anomalies.
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
    """Of them, those that are as strange as the strangest `level` of the normal pieces."""
    level: float
    p_value: float


@dataclass
class ChangeTest:
    """Whether new pieces as a whole are stranger than the n calibration pieces were, with up to ANOMALIES apart.

    They are counted below each of LEVELS, at LOOK pieces, at twice as many and so on, and at their end. The i-th look
    has a share 1 / (i (i + 1)) of ALARM, which adds up to ALARM, divided by the levels (Bonferroni). So an unchanged
    normal is said to have changed with probability ALARM at most, if no more than a tenth of the pieces are anomalous
    whenever it looks. Attacks of 5 % never add up to an alarm; a burst of anomalies above the tenth does, and is told
    from a change only by who looks at them. New pieces that are less strange than the normal ones raise no alarm.
    """

    n: int
    seen: int = 0
    _counts: list[int] = field(default_factory=lambda: [0] * len(LEVELS))
    _looks: int = 0

    def add(self, p_value: float) -> Change | None:
        """One more new piece, by its p-value without random ties; what a look found, if it is time for one."""
        self.seen += 1
        for i, level in enumerate(LEVELS):
            self._counts[i] += p_value * (self.n + 1) <= self._rank(level) + 0.5
        due = self.seen >= LOOK and self.seen == LOOK << self._looks
        return self.look() if due else None

    def look(self) -> Change | None:
        """Look now, such as at the end of the pieces, however many there are above LOOK."""
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
