"""Detectors of anomalous logs without a neural network, for anomalies.py to set beside ours.

Each is fitted on normal sessions, lines of event ids with white space between them, and gives a function from sessions
to scores, of which low ones are anomalous, as ours are. Nothing here is tuned on anomalous sessions.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.ensemble import IsolationForest

Doubles = NDArray[np.float64]
Scorer = Callable[[Sequence[str]], Doubles]
BLOCK = 1024  # sessions compared at once: bounds memory, not results
EDGE = ""  # what stands before and after a session; no event can be called that


def counter(train: Sequence[str]) -> Scorer:
    """A function to event counts `(N, types + 1)`: one column a type of training, the last for all that it lacks."""
    place = {event: i for i, event in enumerate(sorted({event for line in train for event in line.split()}))}

    def counts(lines: Sequence[str]) -> Doubles:
        out = np.zeros((len(lines), len(place) + 1))
        for row, line in zip(out, lines, strict=True):
            for event, count in Counter(line.split()).items():
                row[place.get(event, -1)] += count
        return out

    return counts


def event_counts(train: Sequence[str]) -> Scorer:
    """Minus the distance to the nearest event counts of training, in standard deviations of each event type.

    No type is taken to vary less than one that a single training session holds, once: so types that never vary count
    for much, and so do types never seen.
    """
    counts = counter(train)
    vectors = counts(train)
    once = 1 / max(2, len(train))
    scale = np.maximum(vectors.std(0), math.sqrt(once * (1 - once)))
    known = np.unique(vectors, axis=0) / scale

    def score(lines: Sequence[str]) -> Doubles:
        scaled = counts(lines) / scale  # by differences: equal counts are at 0
        return -np.concatenate([cdist(scaled[i : i + BLOCK], known).min(1) for i in range(0, len(scaled), BLOCK)])

    return score


def stide(train: Sequence[str], n: int) -> Scorer:
    """Minus the share of a session's n-grams that no training session has (Forrest et al. 1996)."""
    known = {gram for line in train for gram in _grams(line, n)}
    return lambda lines: -np.array([np.mean([gram not in known for gram in _grams(line, n)]) for line in lines])


def _grams(line: str, n: int) -> Iterator[tuple[str, ...]]:
    """All runs of n events; a shorter session is one run, filled up at its end."""
    events = line.split()
    events += [EDGE] * (n - len(events))
    return (tuple(events[i : i + n]) for i in range(len(events) - n + 1))


def witten_bell(train: Sequence[str], order: int, of: Callable[[list[float]], np.float64 | float] = np.mean) -> Scorer:
    """Mean log-probability of an event, a session's end among them, in an n-gram model (Witten and Bell 1991).

    `of` is taken instead of the mean, such as the minimum.

    p(w|h) = (c(hw) + T(h) p(w|h')) / (c(h) + T(h)), with h' the context without its first event, T(h) the number of
    different events after h and c(h) of all. Without a context, h' is uniform over the types of training, the end, and
    one more type for all that training lacks.
    """
    after: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for line in train:
        for context, event in _contexts(line, order):
            for k in range(order):
                after[context[order - 1 - k :]][event] += 1
    known = {context: (events, events.total(), len(events)) for context, events in after.items()}
    uniform = 1 / (len(after[()]) + 1)

    def nats(line: str) -> Iterator[float]:
        for context, event in _contexts(line, order):
            p = uniform
            for k in range(order):
                if (found := known.get(context[order - 1 - k :])) is None:
                    break  # longer contexts have not been seen either
                events, total, kinds = found
                p = (events[event] + kinds * p) / (total + kinds)
            yield math.log(p)

    return lambda lines: np.array([of(list(nats(line))) for line in lines])


def _contexts(line: str, order: int) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every event and the end of a session, each after the `order` - 1 that stand before it."""
    before = order - 1
    events = (*[EDGE] * before, *line.split(), EDGE)
    return ((events[i - before : i], events[i]) for i in range(before, len(events)))


def isolation_forest(train: Sequence[str], seed: int) -> Scorer:
    """How many random cuts it takes to set a session's event counts apart, with scikit-learn's defaults."""
    counts = counter(train)
    forest = IsolationForest(random_state=seed).fit(counts(train))
    return lambda lines: np.asarray(forest.score_samples(counts(lines)), np.float64)


def baselines(seed: int) -> dict[str, Callable[[Sequence[str]], Scorer]]:
    """All by name, each to be fitted on normal sessions."""
    return {
        "event counts": event_counts,
        "STIDE, n = 6": partial(stide, n=6),
        "STIDE, n = 10": partial(stide, n=10),
        "n-gram model, order 8": partial(witten_bell, order=8),
        "n-gram model, order 6, worst event": partial(witten_bell, order=6, of=min),
        "isolation forest": partial(isolation_forest, seed=seed),
    }
