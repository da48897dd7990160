"""Tables of notes: columns, lines, bars and chroma, on which all measures of music rest. Plain numpy.

Scope: notes `(N, >= 4)` as in `Piece`. Out of scope: files (music/piece.py), comparisons (music/note_metrics.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]

ONSET, DURATION, PITCH, PROGRAM, VELOCITY = range(5)
"""Columns of a table of notes; onset and duration in steps."""
DRUMS = 128
"""Program number of drum notes; 0 to 127 are the General MIDI programs."""
STEPS_PER_BEAT = 12
"""Steps in a quarter note; 12 holds both thirds and quarters of a beat exactly."""


def without_drums(notes: Ints) -> Ints:
    """The pitched notes."""
    found: Ints = notes[notes[:, PROGRAM] != DRUMS]
    return found


def chroma(notes: Ints) -> Floats:
    """Steps for which each pitch class sounds, `(12,)`, without drums."""
    pitched = without_drums(notes)
    return np.bincount(pitched[:, PITCH] % 12, weights=pitched[:, DURATION], minlength=12).astype(float)


def skyline(notes: Ints, highest: bool = True) -> Ints:
    """The highest or lowest pitched note of each onset (skyline, Uitdenbogerd and Zobel 1998), without drums."""
    rows = without_drums(notes)
    rows = rows[np.lexsort((rows[:, PITCH] if highest else -rows[:, PITCH], rows[:, ONSET]))]
    last = np.append(np.diff(rows[:, ONSET]) != 0, True)[: len(rows)]
    found: Ints = rows[last]
    return found


def instrument_line(notes: Ints, program: int, highest: bool) -> Ints:
    """The top or bottom line of an instrument."""
    return skyline(notes[notes[:, PROGRAM] == program], highest)


def by_bar(notes: Ints, bounds: Ints) -> list[Ints]:
    """The notes that begin in each bar between `bounds (C + 1,)`, a table per bar."""
    home = np.searchsorted(bounds, notes[:, ONSET], side="right") - 1
    return [notes[home == c] for c in range(len(bounds) - 1)]
