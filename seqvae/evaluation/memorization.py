"""Copies of training pieces: the longest run of notes that a piece shares with a collection.

Scope: runs of notes as steps, and search among millions of them by hashes. Out of scope: models, files, and the origin
of pieces. Plain numpy.

A run is a sequence of one instrument's notes in the order of onset, then pitch. It is represented by its steps,
(semitones, time) from each note to the next, so that a transposed copy is a copy. A run of k steps has k + 1 notes. All
windows of k steps have a hash. The search tests for a shared window with k = 1, 2, 4, ... and then bisects, because a
shared run of k steps contains a shared run of k - 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqvae.music.notes import DRUMS, ONSET, PITCH, PROGRAM

Ints = NDArray[np.int32]
Hashes = NDArray[np.uint64]
Longs = NDArray[np.int64]
_BASE = np.uint64(0x9E3779B97F4A7C15)  # any odd number has an inverse modulo 2^64
_INVERSE = np.uint64(pow(int(_BASE), -1, 2**64))
_SIEVE = 24  # bits of a hash that exclude most of a collection before the search


@dataclass(frozen=True)
class Runs:
    """The concatenated steps of many pieces, prepared for hashing windows of any length."""

    prefix: Hashes
    """`(n + 1,)`: sum of value_j BASE^j over j < i, modulo 2^64."""
    powers: Hashes
    """`(n,)`: BASE^-i."""
    ends: Longs
    """`(pieces,)`: end of the steps of each piece."""

    def windows(self, length: int, begin: int = 0, end: int | None = None) -> Hashes:
        """Hash of each window of `length` steps inside steps `begin` to `end`; equal runs have equal hashes."""
        last = (len(self.powers) if end is None else end) - length + 1
        if last <= begin:
            return np.zeros(0, np.uint64)
        return (self.prefix[begin + length : last + length] - self.prefix[begin:last]) * self.powers[begin:last]


def runs(pieces: Iterable[Ints], seed: int = 0) -> Runs:
    """The runs of pieces, notes `(N, >= 4)` each; drums are left out."""
    rng = np.random.default_rng(seed)
    values = [_values(notes, rng) for notes in pieces]
    ends = np.cumsum([len(one) for one in values], dtype=np.int64)
    flat = np.concatenate(values) if values else np.zeros(0, np.uint64)
    powers = _powers(_BASE, len(flat))
    prefix = np.zeros(len(flat) + 1, np.uint64)
    np.cumsum(flat * powers, out=prefix[1:])
    return Runs(prefix, _powers(_INVERSE, len(flat)), ends)


def _values(notes: Ints, rng: np.random.Generator) -> Hashes:
    """A 64-bit value of each step, and a unique random one at the end of each instrument and piece."""
    rows = notes[notes[:, PROGRAM] != DRUMS]
    if not len(rows):
        return np.zeros(0, np.uint64)
    rows = rows[np.lexsort((rows[:, PITCH], rows[:, ONSET], rows[:, PROGRAM]))].astype(np.int64)
    step = np.diff(rows[:, [ONSET, PITCH]], axis=0)
    mixed = _mix((step[:, 0] * 256 + step[:, 1] + 128).astype(np.uint64))
    values = np.append(mixed, np.uint64(0))
    ends = np.append(np.diff(rows[:, PROGRAM]) != 0, True)
    values[ends] = rng.integers(0, 2**64, int(ends.sum()), np.uint64)
    return values


def _mix(x: Hashes) -> Hashes:
    """Spread small numbers over 64 bits (the finalizer of SplitMix64, Steele et al. 2014)."""
    x = x + _BASE
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _powers(base: np.uint64, count: int) -> Hashes:
    """base^0, base^1, ... modulo 2^64."""
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)


def longest_shared(pieces: Sequence[Ints], collection: Runs) -> list[int]:
    """Notes in the longest run that each piece shares with any of a collection; 0 for a piece without a step.

    Two different runs have equal hashes with probability 2^-64 per pair.
    """
    mine = runs(pieces, seed=1)
    begins = np.append(0, mine.ends[:-1]).astype(np.int64)
    shared = np.zeros(len(pieces), np.int64)  # steps known to be shared
    failed = mine.ends - begins  # steps known not to be shared: the last value of a piece is not a step
    length = 1
    pending = failed > 1
    while pending.any():
        numbers = np.flatnonzero(pending)
        _ask(mine, begins, collection, numbers, np.full(len(numbers), length), shared, failed)
        length *= 2
        pending = (shared == length // 2) & (length < failed)
    while (left := np.flatnonzero(failed - shared > 1)).size:
        _ask(mine, begins, collection, left, (shared[left] + failed[left]) // 2, shared, failed)
    return [int(steps) + 1 if steps else 0 for steps in shared]


def _ask(
    mine: Runs, begins: Longs, collection: Runs, numbers: Longs, lengths: Longs, shared: Longs, failed: Longs
) -> None:
    """Test whether pieces `numbers` share a run of `lengths` steps, and write the result to `shared` or `failed`."""
    for length in np.unique(lengths).tolist():
        chosen = numbers[lengths == length]
        windows = [mine.windows(length, int(begins[i]), int(mine.ends[i])) for i in chosen]
        own = np.unique(np.concatenate(windows))
        theirs = collection.windows(length)
        sieve = np.zeros(1 << _SIEVE, bool)
        shift = np.uint64(64 - _SIEVE)
        sieve[own >> shift] = True
        found = np.intersect1d(own, theirs[sieve[theirs >> shift]])
        for i, window in zip(chosen, windows, strict=True):
            if np.isin(window, found).any():
                shared[i] = length
            else:
                failed[i] = length
