"""Chord progressions of a style: a Markov chain over the chords of bars, in C major or A minor.

Scope: the chord of a bar, transition probabilities over the songs of a style, and new progressions as chord symbols.
Out of scope: the notes of a symbol (chords.py), voicings, chords within a bar.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from seqvae.music.key import home_shift, lowest
from seqvae.music.notes import DRUMS, DURATION, ONSET, PITCH, PROGRAM, STEPS_PER_BEAT, without_drums

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
NAMES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
SHAPES = {
    "": (0, 4, 7), "m": (0, 3, 7), "7": (0, 4, 7, 10), "m7": (0, 3, 7, 10), "maj7": (0, 4, 7, 11), "dim": (0, 3, 6),
    "sus4": (0, 5, 7),
}  # fmt: skip
SYMBOLS = [name + shape for name in NAMES for shape in SHAPES]
"""The chords, K of them: all shapes on each root."""
START = len(SYMBOLS)  # the row of the table for the first bar
IN_BASS = 0.15  # advantage of the chord whose root is in the bass
OVERALL = 2.0  # transitions from each chord that are counted as the style's chords overall
FEW = 8  # songs needed for a table; fewer would expose single songs


def _templates() -> Floats:
    """Unit chroma of each chord, `(K, 12)`."""
    rows = np.zeros((len(SYMBOLS), 12))
    for i in range(len(SYMBOLS)):
        root, shape = divmod(i, len(SHAPES))
        tones = list(SHAPES.values())[shape]
        rows[i, [(root + tone) % 12 for tone in tones]] = len(tones) ** -0.5
    return rows


def chords(notes: Ints, bounds: Ints) -> Ints:
    """The chord of each bar in which pitched notes begin, `(M,)`: an index of SYMBOLS, in the key of the notes.

    The nearest chord by cosine to the steps of each pitch class, with an advantage for the root in the bass.
    """
    pitched = without_drums(notes)
    bar = np.clip(np.searchsorted(bounds, pitched[:, ONSET], side="right") - 1, 0, len(bounds) - 2)
    chroma = np.zeros((len(bounds) - 1, 12))
    steps = np.minimum(pitched[:, DURATION], bounds[bar + 1] - pitched[:, ONSET])
    np.add.at(chroma, (bar, pitched[:, PITCH] % 12), steps.clip(min=1))
    bass = lowest(notes, bounds, STEPS_PER_BEAT, 1)[:, 0]  # (C, 12)
    length = np.linalg.norm(chroma, axis=1, keepdims=True)
    near = chroma / np.maximum(length, 1e-9) @ _templates().T + IN_BASS * np.repeat(bass, len(SHAPES), 1)
    found: Ints = near.argmax(1)[length[:, 0] > 0].astype(np.int32)
    return found


def transitions(songs: Iterable[tuple[Ints, Ints]]) -> Floats:
    """`(K + 1, K)`: probability of the next bar's chord after each chord, and of the first bar's in the last row.

    `songs` are notes and bars; each counts once, in its own key moved to C major or A minor. All 0 for fewer than FEW.
    """
    counts, known = np.zeros((START + 1, START)), 0
    for notes, bounds in songs:
        shifted = notes.copy()
        shifted[:, PITCH] += np.where(notes[:, PROGRAM] == DRUMS, 0, home_shift(notes)).astype(np.int32)
        found = chords(shifted, bounds)
        if len(found):
            known += 1
            np.add.at(counts, (np.append(START, found[:-1]), found), 1 / len(found))
    if known < FEW:
        return np.zeros_like(counts)
    overall = counts.sum(0) / counts.sum()
    scale = counts[:START].sum() / START  # a chord's mean number of transitions
    weights = counts + OVERALL * scale * overall
    table: Floats = weights / weights.sum(1, keepdims=True)
    return table


def progression(table: Floats, order: NDArray[np.int64], rng: np.random.Generator) -> str:
    """Chord symbols by bar, "C | Am | ...", drawn from `table (K + 1, K)`; bar i has the chord of bar `order[i]`."""
    chosen: list[int] = []
    for bar, first in enumerate(order.tolist()):
        if first < bar:
            chosen.append(chosen[first])
        else:
            row = np.asarray(table[chosen[-1] if chosen else START], np.float64)
            chosen.append(int(rng.choice(START, p=row / row.sum())))
    return " | ".join(SYMBOLS[chord] for chord in chosen)
