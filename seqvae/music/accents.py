"""Accents: how loud an instrument plays at a place in the bar, compared with its mean in the song.

Scope: notes `(N, 5)` and bars `(C + 1,)` as in `Piece`, and tables over the songs of a style. Out of scope: tokens,
models, files. Plain numpy. Tokens hold no velocities: decoded notes take theirs from here.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from seqvae.music.notes import DRUMS, ONSET, PITCH, PROGRAM, STEPS_PER_BEAT, VELOCITY

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
PLACES = 16
"""Places of a bar of 4/4, a quarter of a beat each; longer bars begin again from the first."""
ROWS = 256
"""Instruments: the programs 0 to 127, then the pitches of the drum kit."""
FLAT = 1.0  # standard deviation of the velocities of an instrument below which it has no dynamics
SHRINK = 3.0  # songs without accents that are counted in each cell


def cells(notes: Ints, bounds: Ints) -> tuple[Ints, Ints]:
    """Row and place of each note `(N,)` in a table of accents."""
    bar = np.clip(np.searchsorted(bounds, notes[:, ONSET], side="right") - 1, 0, len(bounds) - 2)
    place = (notes[:, ONSET] - bounds[bar]) * 4 // STEPS_PER_BEAT % PLACES
    row = np.where(notes[:, PROGRAM] == DRUMS, 128 + notes[:, PITCH], notes[:, PROGRAM])
    return row, place


def accents(songs: Iterable[tuple[Ints, Ints]]) -> Floats:
    """Mean difference of the velocity from the instrument's mean in its song, `(256, 16)`; 0 where nothing is known.

    Each song counts once in a cell, and instruments without dynamics in a song do not count. A cell with few songs is
    drawn toward 0. How loud an instrument is on the whole is left out: in songs not used for a table its mean explains
    none of the variance.
    """
    total, count = np.zeros((2, ROWS * PLACES))
    for notes, bounds in songs:
        row, place = cells(notes, bounds)
        loud = notes[:, VELOCITY].astype(float)
        found = np.maximum(np.bincount(row, minlength=ROWS), 1)
        mean = np.bincount(row, weights=loud, minlength=ROWS) / found
        apart = loud - mean[row]
        spread = np.sqrt(np.bincount(row, weights=apart**2, minlength=ROWS) / found)
        apart, index = apart[spread[row] >= FLAT], (row * PLACES + place)[spread[row] >= FLAT]
        there = np.bincount(index, minlength=len(total))
        total += np.bincount(index, weights=apart, minlength=len(total)) / np.maximum(there, 1)
        count += there > 0
    return (total / (count + SHRINK)).reshape(ROWS, PLACES)


def velocities(notes: Ints, like: Ints, bounds: Ints, table: Floats | None = None) -> Ints:
    """Velocities `(N,)`, 1..127, of new `notes (N, >= 4)` for a song with the notes `like (M, 5)`.

    A note that the song has, at the same onset and pitch, keeps its velocity. Any other has the mean of its bar in the
    song, or of the song where that bar is empty, and the accent of its instrument and place in the `table`.
    """
    bars = len(bounds) - 1
    bar, home = (np.clip(np.searchsorted(bounds, x[:, ONSET], side="right") - 1, 0, bars - 1) for x in (notes, like))
    total = np.bincount(home, weights=like[:, VELOCITY], minlength=bars)
    count = np.bincount(home, minlength=bars)
    usual = total.sum() / count.sum() if len(like) else 80.0
    loud = np.where(count > 0, total / np.maximum(count, 1), usual)[bar]
    if table is not None:
        loud = loud + table[cells(notes, bounds)]
    drums, old_drums = notes[:, PROGRAM] == DRUMS, like[:, PROGRAM] == DRUMS
    key = (notes[:, ONSET].astype(np.int64) * 128 + notes[:, PITCH]) * 2 + drums
    known = (like[:, ONSET].astype(np.int64) * 128 + like[:, PITCH]) * 2 + old_drums
    if len(known):
        order = np.argsort(known, kind="stable")
        at = np.minimum(np.searchsorted(known[order], key), len(known) - 1)
        loud = np.where(known[order][at] == key, like[order[at], VELOCITY], loud)
    return np.clip(np.round(loud), 1, 127).astype(np.int32)
