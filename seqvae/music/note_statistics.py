"""Statistics of one stretch of music, each a single number as in other papers. Plain numpy.

Scope: notes `(N, >= 4)` as in `Piece`, and bars. Out of scope: models, files, and comparison of sets of statistics
(evaluation/statistics.py). Formulas and papers: docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from seqvae.music.notes import DURATION, ONSET, PITCH, STEPS_PER_BEAT, without_drums

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
Statistic = Callable[[Ints, Ints], float]
POSITIONS = 48  # limit per bar


def pitch_count(notes: Ints, bounds: Ints) -> float:
    """Number of different pitches (Yang and Lerch 2020)."""
    return float(len(np.unique(without_drums(notes)[:, PITCH])))


def note_count(notes: Ints, bounds: Ints) -> float:
    """Notes per bar, with drums (Yang and Lerch 2020)."""
    return len(notes) / (len(bounds) - 1)


def pitch_range(notes: Ints, bounds: Ints) -> float:
    """Semitones from the lowest to the highest pitch (Yang and Lerch 2020); nan without notes."""
    pitches = without_drums(notes)[:, PITCH]
    return float(np.ptp(pitches)) if len(pitches) else float("nan")


def pitch_interval(notes: Ints, bounds: Ints) -> float:
    """Mean absolute interval in semitones between the highest notes of successive onsets (Yang and Lerch 2020)."""
    heard = without_drums(notes)
    starts, at = np.unique(heard[:, ONSET], return_inverse=True)
    if len(starts) < 2:
        return float("nan")
    top = np.zeros(len(starts), np.int64)
    np.maximum.at(top, at, heard[:, PITCH])
    return float(np.abs(np.diff(top)).mean())


def inter_onset_interval(notes: Ints, bounds: Ints) -> float:
    """Mean beats between successive onsets; simultaneous notes count once (Yang and Lerch 2020)."""
    starts = np.unique(without_drums(notes)[:, ONSET])
    return float(np.diff(starts).mean() / STEPS_PER_BEAT) if len(starts) > 1 else float("nan")


def note_length(notes: Ints, bounds: Ints) -> float:
    """Mean duration of a note in beats: the mean of the note-length histogram of Yang and Lerch (2020)."""
    heard = without_drums(notes)
    return float(heard[:, DURATION].mean() / STEPS_PER_BEAT) if len(heard) else float("nan")


def polyphony(notes: Ints, bounds: Ints) -> float:
    """Mean number of sounding notes, over the steps in which a note sounds (Dong et al. 2020)."""
    heard = without_drums(notes)
    if not len(heard):
        return float("nan")
    change = np.zeros(int((heard[:, ONSET] + heard[:, DURATION]).max()) + 1, np.int64)
    np.add.at(change, heard[:, ONSET], 1)
    np.add.at(change, heard[:, ONSET] + heard[:, DURATION], -1)
    sounding = np.cumsum(change)
    return float(sounding[sounding > 0].mean())


def pitch_class_entropy(notes: Ints, bounds: Ints, window: int | None = None) -> float:
    """H = -sum h log2 h in bits, where h is the share of onsets of each pitch class (Wu and Yang 2020).

    The mean over all windows of `window` bars that hold a note; the whole stretch if `window` is None. nan without
    notes.
    """
    heard = without_drums(notes)
    count = len(bounds) - 1
    window = min(window or count, count)
    bar = np.searchsorted(bounds, heard[:, ONSET], side="right") - 1
    by_bar = np.zeros((count, 12))
    inside = (bar >= 0) & (bar < count)
    np.add.at(by_bar, (bar[inside], heard[inside, PITCH] % 12), 1)
    sums = np.concatenate([np.zeros((1, 12)), np.cumsum(by_bar, 0)])
    histograms = sums[window:] - sums[:-window]
    totals = histograms.sum(1, keepdims=True)
    shares = (histograms / np.maximum(totals, 1))[totals[:, 0] > 0]
    if not len(shares):
        return float("nan")
    return float(-(shares * np.log2(np.where(shares > 0, shares, 1))).sum(1).mean())


def grooving_similarity(notes: Ints, bounds: Ints) -> float:
    """Mean similarity of the onset patterns of all pairs of bars (Wu and Yang 2020); nan for a single bar.

    GS = mean over pairs of bars of 1 - (1 / Q) sum_i XOR(g_i, g'_i), with Q = 48 positions (64 in the paper).
    """
    count = len(bounds) - 1
    if count < 2:
        return float("nan")
    bar = np.searchsorted(bounds, notes[:, ONSET], side="right") - 1
    inside = (bar >= 0) & (bar < count)
    begins = np.zeros((count, POSITIONS))
    begins[bar[inside], notes[inside, ONSET] - bounds[bar[inside]]] = 1
    each = begins.sum(1)
    differ = each[:, None] + each[None] - 2 * begins @ begins.T
    upper = np.triu_indices(count, 1)
    return float(1 - (differ[upper] / POSITIONS).mean())


STATISTICS: dict[str, Statistic] = {
    "pitch count": pitch_count,
    "note count": note_count,
    "pitch-class entropy": pitch_class_entropy,
    "pitch range": pitch_range,
    "pitch interval": pitch_interval,
    "inter-onset interval": inter_onset_interval,
    "note length": note_length,
    "polyphony": polyphony,
}
"""The eight statistics that compare samples with real music, one number per stretch each."""


def statistics(notes: Ints, bounds: Ints) -> list[float]:
    """The eight statistics in the order of STATISTICS; nan where a statistic is not defined."""
    return [figure(notes, bounds) for figure in STATISTICS.values()]
