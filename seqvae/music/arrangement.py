"""Statistics of an arrangement: an excerpt alone, relative to real songs of a style, and relative to its original.

Scope: notes `(N, >= 4)` and bars `(C + 1,)` as in `Piece`; a note belongs to the bar in which it begins, and drums are
an instrument, program 128. Out of scope: models, files, the choice of songs, and means over songs
(evaluation/arrangement.py). Plain numpy. Definitions: docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from seqvae.music import note_metrics as measures
from seqvae.music import note_statistics
from seqvae.music.note_statistics import Statistic
from seqvae.music.notes import (
    DRUMS,
    DURATION,
    ONSET,
    PITCH,
    PROGRAM,
    STEPS_PER_BEAT,
    by_bar,
    instrument_line,
    skyline,
    without_drums,
)

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
NAN = float("nan")
HALF_NEW = (0.3, 0.7)
"""Range of the share of new notes in which a song counts as half-way."""


# --- one excerpt alone ------------------------------------------------------------------------------------------------


def _bar(notes: Ints, bounds: Ints) -> NDArray[np.int64]:
    """Index of the bar in which each note begins, `(N,)`."""
    return np.searchsorted(bounds, notes[:, ONSET], side="right") - 1


def playing(notes: Ints, bounds: Ints) -> Bools:
    """Mask `(C, 129)`: whether an instrument begins a note in a bar."""
    found = np.zeros((len(bounds) - 1, DRUMS + 1), bool)
    bar = _bar(notes, bounds)
    inside = (bar >= 0) & (bar < len(found))
    found[bar[inside], notes[inside, PROGRAM]] = True
    return found


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else NAN


def _jaccard(a: AbstractSet[Hashable], b: AbstractSet[Hashable]) -> float:
    return len(a & b) / len(a | b)


def instruments(notes: Ints, bounds: Ints) -> float:
    """Number of instruments in the excerpt."""
    return float(playing(notes, bounds).any(0).sum())


def instruments_a_bar(notes: Ints, bounds: Ints) -> float:
    """Mean number of instruments per bar, over bars with notes; nan without notes."""
    by_bar = playing(notes, bounds).sum(1)
    return _mean(by_bar[by_bar > 0])


def band(notes: Ints, bounds: Ints) -> float:
    """Jaccard index of the instruments of neighbouring two-bar windows.

    Windows are bars 1 and 2, 3 and 4, and so on. The mean of |A & B| / |A | B| over neighbouring windows, at least one
    of which has notes; nan without notes.
    """
    bars = playing(notes, bounds)
    windows = [set(np.flatnonzero(bars[at : at + 2].any(0)).tolist()) for at in range(0, len(bars), 2)]
    return _mean([_jaccard(a, b) for a, b in pairwise(windows) if a | b])


def presence(notes: Ints, bounds: Ints) -> float:
    """Share of bars in which an instrument plays, averaged over the instruments; nan without notes."""
    shares = playing(notes, bounds).mean(0)
    return _mean(shares[shares > 0])


def drum_bars(notes: Ints, bounds: Ints) -> float:
    """Share of bars with drums."""
    return float(playing(notes, bounds)[:, DRUMS].mean())


def drum_switches(notes: Ints, bounds: Ints) -> float:
    """Share of neighbouring bars where only one has drums; nan for a single bar."""
    return _mean(np.diff(playing(notes, bounds)[:, DRUMS].astype(int)) != 0)


def kit_repeated(notes: Ints, bounds: Ints) -> float:
    """Jaccard index of the drum hits of neighbouring bars; a hit is (step in the bar, pitch).

    The mean over neighbouring bars with drums in one or both; 0 where drums begin or stop. nan without drums.
    """
    hits = _placed(notes[notes[:, PROGRAM] == DRUMS], bounds, [PITCH])
    return _mean([_jaccard(a, b) for a, b in pairwise(hits) if a | b])


def onsets_repeated(notes: Ints, bounds: Ints) -> float:
    """Jaccard index of the onsets (steps in the bar) of neighbouring bars.

    The mean over neighbouring bars with notes in one or both; nan without notes.
    """
    return _mean([_jaccard(a, b) for a, b in pairwise(_placed(notes, bounds, [])) if a | b])


def _placed(notes: Ints, bounds: Ints, columns: Sequence[int]) -> list[set[Hashable]]:
    """The set of (step in the bar, *columns) of the notes of each bar."""
    return [
        {(row[ONSET] - int(start), *(row[c] for c in columns)) for row in bar.tolist()}
        for bar, start in zip(by_bar(notes, bounds), bounds, strict=False)
    ]


def clashes(notes: Ints, bounds: Ints) -> float:
    """Share of simultaneous pairs of pitches that are a semitone apart, regardless of octaves.

    Pairs of different pitches that sound at a step with a pitched onset, pooled over these steps. A pair clashes if
    the higher pitch minus the lower is 1 modulo 12. 0 if no two pitches sound together, nan without pitched notes.
    """
    heard = without_drums(notes)
    if not len(heard):
        return NAN
    sounds = sounding(heard, np.unique(heard[:, ONSET]))
    count = sounds.sum(1)
    pairs = int((count * (count - 1) // 2).sum())
    close = sum(int((sounds[:, apart:] & sounds[:, :-apart]).sum()) for apart in range(1, 128, 12))
    return close / pairs if pairs else 0.0


def sounding(notes: Ints, steps: Ints) -> Bools:
    """Mask `(len(steps), 128)`: whether a pitch sounds at a step; drums are left out."""
    heard = without_drums(notes)
    out = np.zeros((len(steps), 128), bool)
    first = np.searchsorted(steps, heard[:, ONSET])
    last = np.searchsorted(steps, heard[:, ONSET] + heard[:, DURATION])
    for a, b, pitch in zip(first.tolist(), last.tolist(), heard[:, PITCH].tolist(), strict=True):
        out[a:b, pitch] = True
    return out


def chroma_repeated(notes: Ints, bounds: Ints) -> float:
    """Mean `measures.chroma_similarity` of neighbouring bars that both have pitched notes; nan without such bars."""
    heard = by_bar(without_drums(notes), bounds)
    return _mean([measures.chroma_similarity(a, b) or 0.0 for a, b in pairwise(heard) if len(a) and len(b)])


def low_pitch(notes: Ints, bounds: Ints) -> float:
    """5th percentile of the pitches, without drums; nan without pitched notes."""
    return float(np.percentile(x, 5)) if len(x := without_drums(notes)[:, PITCH]) else NAN


def high_pitch(notes: Ints, bounds: Ints) -> float:
    """95th percentile of the pitches, without drums; nan without pitched notes."""
    return float(np.percentile(x, 95)) if len(x := without_drums(notes)[:, PITCH]) else NAN


STATISTICS: dict[str, Statistic] = {
    "instruments": instruments,
    "instruments a bar": instruments_a_bar,
    "band": band,
    "bars an instrument plays in": presence,
    "bars with drums": drum_bars,
    "drum switches": drum_switches,
    "kit repeated": kit_repeated,
    "notes a bar": note_statistics.note_count,
    "onsets repeated": onsets_repeated,
    "semitone clashes": clashes,
    "chroma repeated": chroma_repeated,
    "5th percentile of pitch": low_pitch,
    "95th percentile of pitch": high_pitch,
}
"""The 13 statistics that compare an arrangement with real songs of a style."""


def statistics(notes: Ints, bounds: Ints) -> Floats:
    """The 13 statistics in the order of STATISTICS, `(13,)`; nan where a statistic is not defined."""
    return np.array([figure(notes, bounds) for figure in STATISTICS.values()])


# --- relative to real songs of a style --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """Interval of the middle 80 % of real songs in each of K statistics."""

    low: Floats
    """10th percentiles `(K,)` over the songs in which the statistic is defined; infinity if fewer than 10 % are."""
    high: Floats
    """90th percentiles `(K,)`; minus infinity if fewer than 10 % are."""
    absent: Bools
    """Mask `(K,)`: whether the statistic is nan in at least 10 % of the songs."""

    @classmethod
    def of(cls, rows: Floats) -> Range:
        """The range of songs with statistics `(N, K)`."""
        missing = np.isnan(rows).mean(0)
        low, high = np.full(rows.shape[1], np.inf), np.full(rows.shape[1], -np.inf)
        known = missing <= 0.9
        low[known], high[known] = np.nanpercentile(rows[:, known], [10, 90], axis=0)
        return cls(low, high, missing >= 0.1)

    def inside(self, row: Floats) -> Bools:
        """Mask `(K,)`: low <= statistic <= high; for nan, whether it is `absent` in real songs too."""
        return np.where(np.isnan(row), self.absent, (self.low <= row) & (row <= self.high))


# --- relative to the original -----------------------------------------------------------------------------------------


def _keys(notes: Ints) -> set[tuple[int, int]]:
    """(onset, pitch) of the pitched notes."""
    return set(map(tuple, without_drums(notes)[:, [ONSET, PITCH]].tolist()))


def top_line_there(original: Ints, other: Ints, line: Ints | None = None) -> float:
    """Share of the original's top line (`skyline`) whose onset and pitch occur in the other piece.

    On any instrument except drums; nan for an original without pitched notes. If `line` is given, the original's named
    melody (`tracks.named_melody`), it replaces the top line, here and below.
    """
    there = _keys(other)
    return _mean([key in there for key in _keys(skyline(original) if line is None else line)])


def top_line_heard(original: Ints, other: Ints, line: Ints | None = None) -> float:
    """Share of the original's audible top line that is audible as the other piece's top line.

    A note of the top line is audible if nothing higher sounds at its onset. The share is over the original's audible
    notes, or over all notes of `line`. A note counts as found if the other piece has its onset and pitch and nothing
    higher sounds there. nan without such notes.
    """
    top = skyline(original) if line is None else line
    steps, pitch = top[:, ONSET], top[:, PITCH]  # each onset once, sorted
    before, after = (_highest(notes, steps) == pitch for notes in (original, other))
    before |= line is not None
    found = _keys(other)
    there = np.array([key in found for key in map(tuple, top[:, [ONSET, PITCH]].tolist())], bool)
    return _mean((after & there)[before])


def _highest(notes: Ints, steps: Ints) -> NDArray[np.int64]:
    """Highest sounding pitch at each step, `(len(steps),)`; -1 for silence."""
    sounds = sounding(notes, steps)
    return np.where(sounds.any(1), 127 - sounds[:, ::-1].argmax(1), -1)


def new_notes(original: Ints, other: Ints) -> float:
    """Share of the other piece's notes that the original does not have; compares onset, pitch and drums or not.

    The same note on another instrument is not new. nan if the other piece has no notes.
    """
    known, notes = ({(o, p, g == DRUMS) for o, _, p, g in x[:, :4].tolist()} for x in (original, other))
    return len(notes - known) / len(notes) if notes else NAN


def bass_agreement(original: Ints, other: Ints, bounds: Ints) -> float:
    """Share of half bars in which the lowest sounding pitch has the same pitch class as in the original.

    Measured at the beginning of each bar and, in bars longer than two beats, two beats later. Places where the
    original is silent do not count; where the other piece is silent it disagrees. nan without places that count.
    """
    starts = bounds[:-1]
    later = starts + 2 * STEPS_PER_BEAT
    places = np.unique(np.concatenate([starts, later[later < bounds[1:]]]))
    lowest = []
    for notes in (original, other):
        sounds = sounding(notes, places)
        lowest.append(np.where(sounds.any(1), sounds.argmax(1) % 12, -1))
    return _mean((lowest[0] == lowest[1])[lowest[0] >= 0])


def accompaniment(notes: Ints, original: Ints, line: Ints | None = None) -> Ints:
    """The pitched notes that do not coincide in onset and pitch with the original's tune.

    The tune is the original's top line, the top line of the instrument that is most often highest (a rule that keeps
    the melody copies it), and `line` if given.
    """
    top = skyline(original)
    programs, counts = np.unique(top[:, PROGRAM], return_counts=True)
    tune = _keys(top) | (_keys(instrument_line(original, int(programs[counts.argmax()]), True)) if len(top) else set())
    tune |= set() if line is None else _keys(line)
    heard = without_drums(notes)
    found: Ints = heard[[key not in tune for key in map(tuple, heard[:, [ONSET, PITCH]].tolist())]]
    return found


def chroma_kept(original: Ints, other: Ints, bounds: Ints, line: Ints | None = None) -> float:
    """Mean `measures.chroma_similarity` of the accompaniment over the bars in which the original has one."""
    a, b = (by_bar(accompaniment(notes, original, line), bounds) for notes in (original, other))
    values = [measures.chroma_similarity(x, y) for x, y in zip(a, b, strict=True)]
    return _mean([value for value in values if value is not None])


def notes_kept(original: Ints, other: Ints, line: Ints | None = None) -> float:
    """Share of the original's accompaniment whose onset and pitch occur in the other; nan without accompaniment."""
    there = _keys(other)
    return _mean([key in there for key in _keys(accompaniment(original, original, line))])
