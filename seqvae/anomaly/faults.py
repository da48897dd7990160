"""Artificial faults in normal sessions, from which `combined` learns without labels how faults differ from normal.

Scope: putting faults into sessions. Out of scope: learning from them (anomaly/odds.py), scores and calibration
(anomaly/calibration.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from seqvae.anomaly.evidence import Evidence, examine
from seqvae.codec import Codec
from seqvae.modality import modality

Fault = Literal["shuffled", "novel", "dropped", "doubled"]
Faulty = Callable[[Sequence[int]], list[list[Evidence]]]
"""Evidence of faults put into the pieces with these indices, by kind of fault."""
UNKNOWN = "<new>"  # an event that is in no vocabulary
MOST = 150  # faults of each kind
ENOUGH = 20  # a kind with fewer faults is left out
TRIES = 10 * MOST


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
