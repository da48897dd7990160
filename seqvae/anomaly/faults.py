"""Artificial faults in normal sessions, from which `combined` learns without labels how faults differ from normal.

Scope: putting faults into sessions, and logistic regression of faults against normal. Out of scope: scores and
calibration (anomaly/calibration.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from seqvae.anomaly.evidence import Evidence, examine
from seqvae.codec import Codec
from seqvae.modality import modality

Doubles = NDArray[np.float64]
Fault = Literal["shuffled", "novel", "dropped", "doubled"]
Faulty = Callable[[Sequence[int]], list[list[Evidence]]]
"""Evidence of faults put into the pieces with these indices, by kind of fault."""
UNKNOWN = "<new>"  # an event that is in no vocabulary
MOST = 150  # faults of each kind
ENOUGH = 20  # a kind with fewer faults is left out
TRIES = 10 * MOST
PENALTY = 1.0  # of the squared weights
STEPS = 50


def applies(codec: Codec) -> bool:
    """True for models of sessions: in music and sentences, no such change is a fault in any case."""
    return modality(codec.tokenizer.kind).content == "sessions"


def put(sessions: Iterable[str], normal: Iterable[str], seed: int) -> dict[Fault, list[str]]:
    """At most MOST faults of each kind, each in a random one of the sessions with more than one event.

    The events are shuffled, one is inserted that no vocabulary has, one is dropped, or one is doubled. A result that is
    among the `normal` sessions is no fault.
    """
    rng = np.random.default_rng(seed)
    longer = [events for line in sessions if len(events := line.split()) > 1]
    known = {tuple(line.split()) for line in normal}
    out: dict[Fault, list[str]] = {kind: [] for kind in get_args(Fault)}
    for kind, found in out.items():
        for _ in range(TRIES if longer else 0):
            changed = _changed(longer[int(rng.integers(len(longer)))], kind, rng)
            if tuple(changed) not in known:
                found.append(" ".join(changed))
            if len(found) == MOST:
                break
    return out


def _changed(events: list[str], kind: Fault, rng: np.random.Generator) -> list[str]:
    at = int(rng.integers(len(events)))
    if kind == "shuffled":
        return [events[i] for i in rng.permutation(len(events))]
    if kind == "dropped":
        return events[:at] + events[at + 1 :]
    return [*events[:at], UNKNOWN if kind == "novel" else events[at], *events[at:]]


def source(codec: Codec, pieces: Sequence[Any], known: Iterable[Any], samples: int, seed: int) -> Faulty | None:
    """Faults of sessions for `calibration.fit`; None for models of other sequences. `known` are other normal ones.

    Faults depend on the requested and the known sessions alone: a score that depended on sessions of the last part of
    calibration would break their exchangeability with new ones.
    """
    known = list(known)
    if not (applies(codec) and all(isinstance(piece, str) for piece in [*pieces, *known])):
        return None

    def faulty(indices: Sequence[int]) -> list[list[Evidence]]:
        sessions = [pieces[i] for i in indices]
        found = put(sessions, [*sessions, *known], seed)
        return [list(examine(codec, some, samples, seed)) for some in found.values() if len(some) >= ENOUGH]

    return faulty


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
