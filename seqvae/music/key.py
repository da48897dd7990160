"""The key of a piece, and chroma by beat.

Scope: notes `(N, >= 4)` as in `Piece` (onset, duration, pitch, program; 128 is drums). Out of scope: tokens, models,
files. Plain numpy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from seqvae.music.notes import DURATION, ONSET, PITCH, chroma, without_drums

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]

# Key profiles of C major and A minor (Albrecht and Shanahan 2013, table 1), both starting from C. They share a scale,
# so a piece that is taken for its relative key is transposed alike.
_MAJOR = np.array([0.238, 0.006, 0.111, 0.006, 0.137, 0.094, 0.016, 0.214, 0.009, 0.080, 0.008, 0.081])
_MINOR = np.roll([0.220, 0.006, 0.104, 0.123, 0.019, 0.103, 0.012, 0.214, 0.062, 0.022, 0.061, 0.052], 9)


def home_shift(notes: Ints) -> int:
    """Semitones, -6 to 6, that transpose a piece to C major or A minor within 0..127, by the smaller interval.

    The key is the one whose profile is nearest to the shares of the pitch classes (Albrecht and Shanahan 2013). 0 for
    a piece without pitched notes, and for a piece that cannot be transposed within 0..127.
    """
    sounded = chroma(notes)
    if not sounded.any():
        return 0
    shares = sounded / sounded.sum()
    far = [min(np.square(np.roll(shares, k) - profile).sum() for profile in (_MAJOR, _MINOR)) for k in range(12)]
    best = int(np.argmin(far))
    pitches = without_drums(notes)[:, PITCH]
    ways = sorted((best, best - 12), key=abs)
    return next((way for way in ways if pitches.min() + way >= 0 and pitches.max() + way <= 127), 0)


def minority(notes: Ints) -> float:
    """Distance of the pitch classes to the best major key minus that to the best minor key; positive for minor.

    Distances as in `home_shift`, times 100. 0 for a piece without pitched notes.
    """
    sounded = chroma(notes)
    if not sounded.any():
        return 0.0
    shares = sounded / sounded.sum()
    major, minor = (
        min(float(np.square(np.roll(shares, k) - profile).sum()) for k in range(12)) for profile in (_MAJOR, _MINOR)
    )
    return 100 * (major - minor)


def harmony(notes: Ints, bounds: Ints, beat: int, beats: int) -> Floats:
    """Smoothed chroma of each beat of each bar, shares of the pitch classes `(C, beats, 12)`.

    The shares in a beat of `beat` steps weigh half, those in its bar most of the other half, and those in the whole
    piece the rest. All 0 in a piece without pitched notes. `bounds (C + 1,)` in steps.
    """
    pitched = without_drums(notes)
    steps = int(bounds[-1])
    begin = np.clip(pitched[:, ONSET], 0, steps)
    end = np.clip(pitched[:, ONSET] + pitched[:, DURATION], 0, steps)
    change = np.zeros((steps + 1, 12))
    np.add.at(change, (begin, pitched[:, PITCH] % 12), 1.0)
    np.add.at(change, (end, pitched[:, PITCH] % 12), -1.0)
    sounded = np.concatenate([np.zeros((1, 12)), change[:-1].cumsum(0)]).cumsum(0)  # (steps + 1, 12), cumulative
    cuts = np.minimum(bounds[:-1, None] + beat * np.arange(beats + 1), bounds[1:, None])
    by_beat = sounded[cuts[:, 1:]] - sounded[cuts[:, :-1]]
    by_bar = (sounded[bounds[1:]] - sounded[bounds[:-1]])[:, None]
    parts = [_shares(by_beat), _shares(by_bar), _shares(sounded[-1])]
    return sum((share * part for share, part in zip(_LEVELS, parts, strict=True)), np.zeros_like(by_beat))


_LEVELS = (0.5, 0.45, 0.05)


def _shares(sounded: Floats) -> Floats:
    """Normalise `(..., 12)` to a sum of 1, or leave 0 where nothing sounds."""
    total = sounded.sum(-1, keepdims=True)
    shares: Floats = sounded / np.where(total > 0, total, 1.0)
    return shares


def lowest(notes: Ints, bounds: Ints, beat: int, beats: int) -> Floats:
    """One-hot pitch class of the lowest note of each beat of each bar, `(C, beats, 12)`.

    The lowest note that sounds at the beat, else the lowest that begins within it, else that of the previous beat in
    the bar, else all 0. `bounds (C + 1,)` in steps.
    """
    pitched = without_drums(notes)
    onset, pitch = pitched[:, ONSET], pitched[:, PITCH]
    grid = bounds[:-1, None] + beat * np.arange(beats)
    inside = grid < bounds[1:, None]
    starts = grid[inside]
    held, begun = np.full((2, len(starts)), 128)
    first, last = np.searchsorted(starts, onset), np.searchsorted(starts, onset + pitched[:, DURATION])
    for i, j, p in zip(first.tolist(), last.tolist(), pitch.tolist(), strict=True):
        held[i:j] = np.minimum(held[i:j], p)
    home = np.searchsorted(starts, onset, side="right") - 1
    np.minimum.at(begun, home[home >= 0], pitch[home >= 0])
    found = np.full(grid.shape, 128)
    found[inside] = np.where(held < 128, held, begun)
    for b in range(1, beats):
        found[:, b] = np.where(found[:, b] < 128, found[:, b], found[:, b - 1])
    out = np.zeros((*found.shape, 12))
    bars, at = np.nonzero(found < 128)
    out[bars, at, found[bars, at] % 12] = 1.0
    return out
