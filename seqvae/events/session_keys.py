"""Session keys suggested for a log: identifiers that divide its records into sessions.

Scope: regular expressions with one group that match an identifier in most records, and the sessions they give. Out of
scope: grouping itself (sessions.py), templates and models.

An identifier is a number, a hexadecimal id, a UUID or an address after a constant name, as in `sshd[2423]`,
`blk_-1608`, `[instance: 4f1a...]` or `user=ann`. A good key occurs in nearly every record, has many values, and the
records of one value lie closer together than those of different values.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seqvae.events.lines import Record

SAMPLE = 20_000
"""Number of records, from the first one on, that are searched for keys."""
COVERED = 0.5
"""Minimum share of records with the key."""
SESSIONS = 10
"""Minimum sessions in the sample."""
LONG = 0.6
"""Minimum share of a key's records in sessions of two or more records."""
LARGEST = 0.25
"""Maximum share of records in the largest session: a key with one dominant value does not divide the log."""

_VALUES = {
    r"([0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12})": 4,
    r"((?:\d{1,3}\.){3}\d{1,3})": 2,
    r"([0-9a-f]{16,64})": 3,
    r"(-?\d+)": 3,
    r"([\w.@-]+)": 1,
}
"""Patterns of values, each with a weight for the certainty that such a value is an identifier."""
_PLACES = re.compile(
    r"(?P<name>[A-Za-z][A-Za-z0-9_.-]*?(?:\[|[=:] ?|[_#/@-]|\())"
    r"(?P<value>[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}|(?:\d{1,3}\.){3}\d{1,3}"
    r"|[0-9a-f]{16,64}(?![\w])|-?\d+(?![\w.:]))"
    r"|(?P<field>[A-Za-z][\w.-]*=)(?P<word>[\w.@-]+)"
)


@dataclass(frozen=True)
class SessionKey:
    """A regular expression that divides a log, with statistics on a sample of its records."""

    pattern: str
    """A pattern with one group, for `--session`."""
    covered: float
    """Share of records with the key."""
    sessions: int
    """Number of different values of the group."""
    length: float
    """Mean number of records in a session."""


def suggest(records: Sequence[Record], most: int = 3) -> list[SessionKey]:
    r"""Keys that divide `records`, the best first; an empty list if most records have no identifier.

    >>> from seqvae.events.lines import LogReader
    >>> lines = [f"app[{n}]: {word}" for n in range(40) for word in ("open", "read", "close")]
    >>> suggest(list(LogReader("plain").records(lines)))[0].pattern
    'app\\[(\\d+)'
    """
    sample = records[:SAMPLE]
    found: dict[str, dict[int, str]] = defaultdict(dict)  # pattern -> record -> value
    weights: dict[str, int] = {}
    for i, record in enumerate(sample):
        for match in _PLACES.finditer(record.text):
            name = match["name"] or match["field"]
            value = match["value"] or match["word"]
            shape, weight = next((p, w) for p, w in _VALUES.items() if re.fullmatch(p, value))
            pattern = re.escape(name).replace(r"\ ", " ").replace(r"\-", "-") + shape
            weights[pattern] = weight
            found[pattern].setdefault(i, value)
    ranked = []
    for pattern, values in found.items():
        weight = weights[pattern]
        covered = len(values) / len(sample)
        if covered < COVERED:
            continue
        names, inverse, counts = np.unique(list(values.values()), return_inverse=True, return_counts=True)
        together = counts[counts > 1].sum() / counts.sum()
        if len(names) < SESSIONS or together < LONG or counts.max() > LARGEST * len(sample):
            continue
        if not any(value.startswith("-") for value in names):
            pattern = pattern.replace(r"(-?\d+)", r"(\d+)")
        key = SessionKey(pattern, covered, len(names), float(counts.mean()))
        near = _nearness(np.fromiter(values, np.int64), inverse)
        ranked.append((covered * together * near * weight, key))
    ranked.sort(key=lambda pair: (-pair[0], pair[1].pattern))
    return [key for _, key in ranked[:most]]


def _nearness(places: np.ndarray, value: np.ndarray) -> float:
    """How much closer than by chance the records of one value lie: from 0 (no closer) to 1 (adjacent).

    One minus the median distance between neighbouring records of one value, relative to the distance if each value's
    records were spread over the whole log.
    """
    order = np.lexsort((places, value))
    places, value = places[order], value[order]
    same = value[1:] == value[:-1]
    gaps = np.diff(places)[same]
    if not len(gaps):
        return 0.0
    counts = np.bincount(value)
    spread = len(places) / counts[value[1:][same]]
    return float(np.clip(1 - np.median(gaps / spread), 0.05, 1.0))
