"""Baseline detectors of anomalous log sessions without a neural network, for anomalies.py.

Scope: event counts, STIDE, n-gram models and isolation forests. Out of scope: thresholds and metrics.

Each baseline is fitted on normal sessions (lines of event ids between spaces) and returns a function from sessions to
scores; low scores are anomalous, as with our detector. Nothing is tuned on anomalous sessions.
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
BLOCK = 1024  # sessions compared at once: limits memory, does not change results
EDGE = ""  # padding before and after a session; no event has this name


def counter(train: Sequence[str]) -> Scorer:
    """A function to event counts `(N, types + 1)`: a column for each type of training, and one for unknown types."""
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

    The least standard deviation is that of a type that occurs once in a single training session, so deviations in
    constant types and unknown types weigh much.
    """
    counts = counter(train)
    vectors = counts(train)
    once = 1 / max(2, len(train))
    scale = np.maximum(vectors.std(0), math.sqrt(once * (1 - once)))
    known = np.unique(vectors, axis=0) / scale

    def score(lines: Sequence[str]) -> Doubles:
        scaled = counts(lines) / scale  # not centred, so that equal counts have distance 0
        return -np.concatenate([cdist(scaled[i : i + BLOCK], known).min(1) for i in range(0, len(scaled), BLOCK)])

    return score


def stide(train: Sequence[str], n: int) -> Scorer:
    """Minus the share of a session's n-grams that occur in no training session (Forrest et al. 1996)."""
    known = {gram for line in train for gram in _grams(line, n)}
    return lambda lines: -np.array([np.mean([gram not in known for gram in _grams(line, n)]) for line in lines])


def _grams(line: str, n: int) -> Iterator[tuple[str, ...]]:
    """All n-grams; a shorter session is padded to one n-gram."""
    events = line.split()
    events += [EDGE] * (n - len(events))
    return (tuple(events[i : i + n]) for i in range(len(events) - n + 1))


def witten_bell(train: Sequence[str], order: int, of: Callable[[list[float]], np.float64 | float] = np.mean) -> Scorer:
    """Mean log-probability per event, with the end of a session, in an n-gram model (Witten and Bell 1991), in nats.

    `of` replaces the mean, for example by the minimum.

    p(w|h) = (c(hw) + T(h) p(w|h')) / (c(h) + T(h)), with h' the context without its first event, T(h) the number of
    distinct events after h, and c(h) the number of all events after h. The recursion ends in the uniform distribution
    over the types of training, the end, and one type for all unknown events.
    """
    after: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for line in train:
        for context, event in _contexts(line, order):
            for k in range(order):
                after[context[order - 1 - k :]][event] += 1
    known = {context: (events, events.total(), len(events)) for context, events in after.items()}
    uniform = 1 / (len(after[()]) + 1)

    def log_probabilities(line: str) -> Iterator[float]:
        for context, event in _contexts(line, order):
            p = uniform
            for k in range(order):
                if (found := known.get(context[order - 1 - k :])) is None:
                    break  # longer contexts are unseen as well
                events, total, kinds = found
                p = (events[event] + kinds * p) / (total + kinds)
            yield math.log(p)

    return lambda lines: np.array([of(list(log_probabilities(line))) for line in lines])


def _contexts(line: str, order: int) -> Iterator[tuple[tuple[str, ...], str]]:
    """(context of `order` - 1 events, event) for every event of a session and its end."""
    before = order - 1
    events = (*[EDGE] * before, *line.split(), EDGE)
    return ((events[i - before : i], events[i]) for i in range(before, len(events)))


def isolation_forest(train: Sequence[str], seed: int) -> Scorer:
    """Score of an isolation forest (Liu et al. 2008) on event counts, with scikit-learn's defaults."""
    counts = counter(train)
    forest = IsolationForest(random_state=seed).fit(counts(train))
    return lambda lines: np.asarray(forest.score_samples(counts(lines)), np.float64)


def baselines(seed: int) -> dict[str, Callable[[Sequence[str]], Scorer]]:
    """All baselines by name, each to be fitted on normal sessions."""
    return {
        "event counts": event_counts,
        "STIDE, n = 6": partial(stide, n=6),
        "STIDE, n = 10": partial(stide, n=10),
        "n-gram model, order 8": partial(witten_bell, order=8),
        "n-gram model, order 6, worst event": partial(witten_bell, order=6, of=min),
        "isolation forest": partial(isolation_forest, seed=seed),
    }
