"""Odds of artificial faults: how their scores differ from those of normal sessions, learned by logistic regression.

Scope: regression, its features, and odds of one session. Out of scope: putting faults into sessions
(anomaly/faults.py), scores and calibration (anomaly/calibration.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqvae.anomaly.tails import DIGITS, Tail

Doubles = NDArray[np.float64]
FOLDS = 5  # parts of the tails for cross-fitting
LANDMARKS = 150  # maximum sessions that new ones are compared with
WIDTH = 4.0
"""Standard deviation of the Gaussian around a landmark, in nats of `two_sided`."""
HEIGHT = 2.0
"""Height of this Gaussian: the larger, the less the penalty weighs against it."""
PENALTY = 1.0  # of the squared weights
STEPS = 50


@dataclass(frozen=True)
class Odds:
    """Log-odds of K kinds of fault, from F surprises and from the similarity to M landmarks.

    They are the average of two regressions, in the logarithm. One is linear in the surprises: it holds far from all
    that was seen. The other is linear in Gaussians around landmarks, some of the normal sessions and faults: it finds
    faults whose scores lie between those of normal sessions, which are common but not together.
    """

    weights: Doubles
    """`(K, F + M + 1)`: weights of surprises and of Gaussians, and a constant."""
    landmarks: Doubles
    """`(M, C)`: `two_sided` of the landmarks; M is 0 in detectors of earlier versions."""

    def __len__(self) -> int:
        return len(self.weights)

    def log(self, surprises: Doubles, sides: Doubles) -> Doubles:
        """`(K,)`: log-odds from the surprises `(F,)` and the `two_sided` scores `(C,)` of a session."""
        features = np.concatenate([surprises, gaussians(sides[None], self.landmarks)[0], [1.0]])
        return (self.weights * features).sum(1)  # type: ignore[no-any-return]


def none(surprises: int, columns: int) -> Odds:
    """Odds of no fault, for F surprises and C columns of scores."""
    return Odds(np.zeros((0, surprises + 1)), np.zeros((0, columns)))


def ends(tails: Doubles) -> list[tuple[Tail, Tail]]:
    """The lower and the upper tail of each column of `tails (n, C)`, the upper one turned over."""
    ordered = np.sort(tails, 0)
    return [(Tail.of(column), Tail.of(-column[::-1])) for column in ordered.T]


def two_sided(tails: Sequence[tuple[Tail, Tail]], row: Doubles) -> Doubles:
    """`(C,)`: each score's surprise from below minus that from above; about 0 at the median, positive if low."""
    pairs = zip(tails, row.tolist(), strict=True)
    return np.array([low.surprise(value) - high.surprise(-value) for (low, high), value in pairs])


def gaussians(sides: Doubles, landmarks: Doubles) -> Doubles:
    """`(n, M)`: Gaussians around `landmarks (M, C)` at `sides (n, C)`."""
    squares = ((sides[:, None] - landmarks) ** 2).sum(2)
    return HEIGHT * np.exp(-squares / (2 * WIDTH**2))  # type: ignore[no-any-return]


def learn(tails: Doubles, faults: Sequence[Sequence[Doubles]], evident: Sequence[int], seed: int) -> Odds:
    """Odds of K kinds of fault from rows of scores `(C,)`, and from `tails (n, C)` of normal ones in random order.

    The surprises are those of the columns `evident`. Those of normal rows are measured from other rows than themselves
    (cross-fitting): otherwise none is surprising. Landmarks are random normal rows and faults.
    """
    if not faults:
        return none(len(evident), tails.shape[1])
    fold = np.arange(len(tails)) % FOLDS
    others = [ends(tails[fold != i]) for i in range(FOLDS)]

    def crossed(rows: Sequence[Doubles] | Doubles) -> tuple[Doubles, Doubles]:
        low = [[others[i % FOLDS][c][0].surprise(float(row[c])) for c in evident] for i, row in enumerate(rows)]
        return np.array(low), np.stack([two_sided(others[i % FOLDS], row) for i, row in enumerate(rows)])

    normal, found = crossed(tails), [crossed(rows) for rows in faults]
    pool = np.vstack([normal[1], *(sides for _, sides in found)])
    landmarks = pool[np.random.default_rng(seed).permutation(len(pool))[:LANDMARKS]].round(DIGITS)

    def weights(low: Doubles, sides: Doubles) -> Doubles:
        linear = log_odds(normal[0], low)
        curved = log_odds(gaussians(normal[1], landmarks), gaussians(sides, landmarks))
        return np.concatenate([linear[:-1], curved[:-1], [linear[-1] + curved[-1]]]) / 2

    return Odds(np.stack([weights(*some) for some in found]).round(DIGITS), landmarks)


def log_odds(normal: Doubles, faults: Doubles) -> Doubles:
    """`(F + 1,)`: weights and constant of the log-odds of a fault, from `normal (n, F)` and `faults (m, F)`.

    Logistic regression with a Gaussian prior on the weights; faults together weigh as much as normal, so the odds
    estimate the ratio of the two densities (Sugiyama, Suzuki and Kanamori 2012, Density ratio estimation). By hand, as
    scikit-learn is not among what `seqvae[logs]` installs.
    """
    x = np.vstack([normal, faults])
    x = np.column_stack([x, np.ones(len(x))])
    sign = np.repeat([-1.0, 1.0], [len(normal), len(faults)])
    weight = np.repeat([1.0, len(normal) / len(faults)], [len(normal), len(faults)])
    ridge = np.append(np.full(normal.shape[1], PENALTY), 1e-6)
    found = np.zeros(x.shape[1])

    def loss(at: Doubles) -> float:
        return float(weight @ np.logaddexp(0, -sign * (x @ at)) + ridge @ at**2 / 2)

    for _ in range(STEPS):  # Newton's method
        wrong = 1 / (1 + np.exp(np.clip(sign * (x @ found), -500, 500)))
        gradient = ridge * found - x.T @ (weight * sign * wrong)
        curvature = (x * (weight * wrong * (1 - wrong))[:, None]).T @ x + np.diag(ridge)
        step = np.linalg.solve(curvature, gradient)
        while loss(found - step) > loss(found) and np.abs(step).max() > 1e-9:
            step = step / 2
        found = found - step
        if np.abs(step).max() < 1e-7:
            break
    return found
