"""Metrics of notes: similarity of two stretches of music, and features of one. Plain numpy.

Scope: notes `(N, >= 4)` as in `Piece` (onset, duration, pitch, program; 128 is drums), 12 steps per beat.
Out of scope: models, latents, files, classifiers. Formulas and papers: docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from seqvae.music.notes import (
    DRUMS,
    DURATION,
    ONSET,
    PITCH,
    PROGRAM,
    STEPS_PER_BEAT,
    chroma,
    instrument_line,
    skyline,
    without_drums,
)

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]

# General MIDI drum pitches: kick, snare, closed hat, open hat, ride and crash, toms
_DRUM_PARTS = ([35, 36], [37, 38, 39, 40], [42, 44], [46], [49, 51, 52, 53, 55, 57, 59], [41, 43, 45, 47, 48, 50])


def note_f1(a: Ints, b: Ints) -> float:
    """F1 of two sets of notes, compared by onset, pitch and program; 1 if both are empty.

    2 |A & B| / (|A| + |B|), the harmonic mean of precision and recall.
    """
    return _f1(a[:, [ONSET, PITCH, PROGRAM]], b[:, [ONSET, PITCH, PROGRAM]])


def _f1(a: Ints, b: Ints) -> float:
    """F1 of the distinct rows of two tables; 1 if both are empty."""
    x, y = set(map(tuple, a.tolist())), set(map(tuple, b.tolist()))
    return 2 * len(x & y) / (len(x) + len(y)) if x or y else 1.0


def chroma_similarity(a: Ints, b: Ints) -> float | None:
    """Cosine of the chroma of two bars, by time sounded; `chroma_fidelity` counts onsets.

    None if `a` has no pitched note, 0 if only `b` has none.
    """
    return _cosine(chroma(a), chroma(b))


def distances(a: Ints, b: Ints) -> tuple[float, float]:
    """1 - note F1, and 1 - chroma similarity, which is 0 between two songs without pitched notes."""
    x, y = chroma_similarity(a, b), chroma_similarity(b, a)
    return 1.0 - note_f1(a, b), 0.0 if x is None and y is None else 1.0 - (x or 0.0)


def groove_similarity(a: Ints, b: Ints, start: int, length: int) -> float:
    """Grooving similarity of two bars (Wu and Yang 2020): 1 - mean over steps of the XOR of their onset masks."""
    x, y = np.zeros(length, bool), np.zeros(length, bool)
    x[a[:, ONSET] - start] = True
    y[b[:, ONSET] - start] = True
    return 1.0 - float((x ^ y).mean())


def chroma_fidelity(a: Ints, b: Ints) -> float | None:
    """Cosine of the onset counts by pitch class of two bars, as in FIGARO and MuseMorphose.

    von Rütte et al. (2022), Wu and Yang (2023). In `chroma_similarity` a long note counts more. None if `a` has no
    pitched note, 0 if only `b` has none (FIGARO uses a flat histogram for either).
    """
    x, y = (np.bincount(without_drums(n)[:, PITCH] % 12, minlength=12).astype(float) for n in (a, b))
    return _cosine(x, y)


def groove_fidelity(a: Ints, b: Ints, start: int, length: int) -> float | None:
    """Cosine of the onset counts by step of two bars, smoothed by 1, 4, 1 (FIGARO, von Rütte et al. 2022).

    MuseMorphose (Wu and Yang 2023) has 16 positions per bar and no smoothing. `groove_similarity` (Wu and Yang 2020)
    does not count the onsets at a step. None if `a` is empty, 0 if only `b` is.
    """
    x, y = (
        np.convolve(np.bincount(n[:, ONSET] - start, minlength=length), [1, 4, 1])[1:-1].astype(float) for n in (a, b)
    )
    return _cosine(x, y)


def _cosine(x: Floats, y: Floats) -> float | None:
    """Cosine of `x` and `y`; None if `x` is zero, 0 if only `y` is."""
    if not x.any():
        return None
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y))) if y.any() else 0.0


def line_f1(a: Ints, b: Ints, highest: bool = True) -> float | None:
    """F1 of onset and pitch of the top or bottom line over all instruments (`skyline`).

    Instruments are not compared, because a blend changes them. None if `a` has no pitched note.
    """
    x, y = skyline(a, highest), skyline(b, highest)
    return _f1(x[:, [ONSET, PITCH]], y[:, [ONSET, PITCH]]) if len(x) else None


def rhythm_f1(a: Ints, b: Ints) -> float:
    """F1 of the onset steps; unlike `groove_similarity` it ignores steps without an onset in both."""
    return _f1(a[:, [ONSET]], b[:, [ONSET]])


def part_f1(original: Ints, other: Ints) -> dict[str, float | None]:
    """`note_f1` of melody, bass and drums; None for a part that the original does not have.

    The melody is the top line of the instrument that most often has the highest note of an onset in the original. The
    bass is the bottom line of the instrument that most often has the lowest. A single instrument may be both.
    """
    out: dict[str, float | None] = {}
    for name, highest in (("melody", True), ("bass", False)):
        programs, counts = np.unique(skyline(original, highest)[:, PROGRAM], return_counts=True)
        if len(programs):
            program = int(programs[counts.argmax()])
            out[name] = note_f1(instrument_line(original, program, highest), instrument_line(other, program, highest))
        else:
            out[name] = None
    drums = original[original[:, PROGRAM] == DRUMS]
    out["drums"] = note_f1(drums, other[other[:, PROGRAM] == DRUMS]) if len(drums) else None
    return out


def swap_programs(notes: Ints, ranking: Sequence[int]) -> Ints:
    """Baseline without a model: the i-th most used instrument becomes the i-th of `ranking`; drums are unchanged."""
    swapped = notes.copy()
    programs, counts = np.unique(without_drums(notes)[:, PROGRAM], return_counts=True)
    for i, program in enumerate(programs[np.argsort(-counts, kind="stable")]):
        swapped[notes[:, PROGRAM] == program, PROGRAM] = ranking[i % len(ranking)]
    return swapped


def program_ranking(collections: Sequence[Ints]) -> list[int]:
    """Programs except drums, sorted by the number of pieces that use them; a piano if there are none."""
    used = np.zeros(128, int)
    for notes in collections:
        programs = np.unique(notes[:, PROGRAM])
        used[programs[programs < 128]] += 1
    return [int(p) for p in np.argsort(-used, kind="stable") if used[p]] or [0]


def features(notes: Ints, steps: int, instruments: bool = True) -> Floats:
    """Classifier features of `steps` steps of music: shares, rates and means, about 100 (65 without instruments).

    Without `instruments` no feature depends on programs or drums: rhythm, harmony, register and texture remain.
    """
    pitched = without_drums(notes)
    heard = notes if instruments else pitched
    beats = max(1, steps) / STEPS_PER_BEAT
    onset, count = heard[:, ONSET], max(1, len(heard))
    place = np.bincount(onset % STEPS_PER_BEAT, minlength=STEPS_PER_BEAT) / count
    beat = np.bincount(onset // STEPS_PER_BEAT % 4, minlength=4) / count
    duration = pitched[:, DURATION]
    edges = [1, 2, 3, 4, 6, 7, 9, 12, 13, 18, 24, 36, 48, 10**6]
    lasting = np.histogram(duration, edges)[0] / max(1, len(pitched))
    register = np.histogram(pitched[:, PITCH], [0, 36, 43, 48, 55, 60, 64, 67, 72, 79, 84, 128])[0] / max(
        1, len(pitched)
    )
    starts, sizes = np.unique(pitched[:, ONSET], return_counts=True)
    chords = np.bincount(np.minimum(sizes, 8), minlength=9)[1:] / max(1, len(starts))
    lowest = np.array([pitched[pitched[:, ONSET] == s, PITCH].min() for s in starts], int)
    above = pitched[:, PITCH] - lowest[np.searchsorted(starts, pitched[:, ONSET])] if len(starts) else np.zeros(0, int)
    intervals = np.bincount(above % 12, minlength=12) / max(1, len(pitched))
    leaps = np.abs(np.diff(lowest)) if len(lowest) > 1 else np.zeros(1, int)
    c = chroma(pitched)
    c = np.sort(c / max(1.0, c.sum()))[::-1]
    entropy = float(-(c[c > 0] * np.log(c[c > 0])).sum())
    out = [
        place, beat, lasting, register, chords, intervals, c,
        [np.log1p(len(heard) / beats), np.log1p(len(pitched) / beats), entropy, leaps.mean(), (leaps == 0).mean(),
         float(duration.sum()) / max(1, steps), len(np.unique(pitched[:, PITCH])) / max(1, len(pitched))],
    ]  # fmt: skip
    if instruments:
        drums = notes[notes[:, PROGRAM] == DRUMS, PITCH]
        families = np.bincount(np.minimum(pitched[:, PROGRAM] // 8, 15), minlength=16)
        out += [families / max(1, len(pitched)), np.minimum(families, 1),
                [np.log1p(np.isin(drums, part).sum() / beats) for part in _DRUM_PARTS],
                [min(1, len(drums)), np.log1p(len(drums) / beats), len(np.unique(notes[:, PROGRAM]))]]  # fmt: skip
    return np.concatenate([np.asarray(x, float) for x in out])


def interval(
    per_song: Floats, seed: int = 0, draws: int = 2000, figure: Callable[[Floats], Floats] = lambda x: x.mean(-1)
) -> tuple[float, float, float]:
    """(mean over songs, low, high): 95 % bootstrap interval over songs."""
    x = np.asarray(per_song, float)
    if not len(x):
        return (float("nan"),) * 3
    picks = np.random.default_rng(seed).integers(len(x), size=(draws, len(x)))
    low, high = np.percentile(figure(x[picks]), [2.5, 97.5])
    return float(figure(x)), float(low), float(high)
