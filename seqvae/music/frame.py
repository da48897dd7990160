"""The frame of a piece: tempos, metres and keys on the grid, and the bars that metres make.

Scope: symusic scores without tracks, at `STEPS_PER_BEAT` ticks per quarter note. Out of scope: notes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from symusic.core import KeySignatureTick, ScoreTick, TempoTick, TimeSignatureTick

from seqvae.music.notes import STEPS_PER_BEAT

MAX_CHUNK_STEPS = 48
"""Length limit of a chunk in steps, one bar of 4/4; longer bars are split at beats."""
_SLOWEST, _FASTEST = 15_000_000, 60_000  # microseconds per quarter: 4 and 1000 beats per minute

FrameRows = tuple[list[tuple[int, int]], list[tuple[int, int, int]], list[tuple[int, int, int]]]
"""Tempos (step, microseconds per quarter), metres (step, numerator, denominator), keys (step, sharps, 1 if minor)."""


def frame_rows(frame: ScoreTick) -> FrameRows:
    """Tempos, metres and keys of a frame as integers."""
    tempos = [(t.time, t.mspq) for t in frame.tempos]
    metres = [(s.time, s.numerator, s.denominator) for s in frame.time_signatures]
    return tempos, metres, [(k.time, k.key, k.tonality) for k in frame.key_signatures]


def make_frame(rows: FrameRows) -> ScoreTick:
    """Inverse of `frame_rows`."""
    frame = ScoreTick(STEPS_PER_BEAT)
    tempos, metres, keys = rows
    for at, mspq in tempos:
        frame.tempos.append(TempoTick(at, mspq=mspq))
    for metre in metres:
        frame.time_signatures.append(TimeSignatureTick(*metre))
    for key in keys:
        frame.key_signatures.append(KeySignatureTick(*key))
    return frame


def clean_frame(score: ScoreTick, max_beats: int) -> ScoreTick:
    """Tempos, metres and keys of `score` on the grid, without impossible values (0/4, 60 sharps), up to `max_beats`."""
    per_quarter = score.ticks_per_quarter
    last = max_beats * per_quarter  # times in a file can have any value: bound them before computing with them

    def on_grid(rows: Iterable[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
        bounded = (row for row in rows if 0 <= row[0] <= last)
        return (((2 * STEPS_PER_BEAT * at + per_quarter) // (2 * per_quarter), *row) for at, *row in bounded)

    tempos, metres, keys = frame_rows(score)
    # of two events at the same step the later one counts, as in MIDI players
    speeds = {at: (min(_SLOWEST, max(_FASTEST, mspq)),) for at, mspq in on_grid(tempos) if mspq > 0}
    bars = {at: (n, d) for at, n, d in on_grid(metres) if n > 0 and d in (1, 2, 4, 8, 16, 32, 64)}
    modes = {at: (sharps, minor) for at, sharps, minor in on_grid(keys) if abs(sharps) <= 7 and minor in (0, 1)}
    # a repeated metre starts a bar; a repeated tempo or key changes nothing and is left out
    return make_frame((_changes(speeds), [(at, *bars[at]) for at in sorted(bars)], _changes(modes)))


def _changes(values: Mapping[int, tuple[int, ...]]) -> list[Any]:
    """(step, *value) wherever the value differs from the previous one, sorted by step."""
    rows = sorted(values.items())
    return [(at, *new) for (at, new), (_, old) in zip(rows, [(0, ()), *rows], strict=False) if new != old]


def seconds(frame: ScoreTick, end: int) -> float:
    """Duration of `end` steps in seconds; 120 beats per minute before the first tempo."""
    changes = [(0, 500_000), *(row for row in frame_rows(frame)[0] if row[0] < end), (end, 0)]
    return sum((b[0] - a[0]) * a[1] for a, b in pairwise(changes)) / STEPS_PER_BEAT / 1e6


def chunk_bounds(signatures: Iterable[tuple[int, int, int]], end: int) -> NDArray[np.int32]:
    """(C + 1,) int32 steps: bar lines of `signatures` [(step, numerator, denominator)], long bars split, up to `end`.

    Bars before the first signature are 4/4. A signature inside a bar ends that bar. If a bar is not a whole number of
    steps long, its lines are rounded without accumulating error.
    """
    found = [np.zeros(1, np.int64)]
    changes = [(0, 4, 4), *sorted(signatures), (end, 4, 4)]
    for (start, numerator, denominator), (after, _, _) in pairwise(changes):
        stop = min(after, end)
        if stop <= start:
            continue
        whole = 4 * STEPS_PER_BEAT * numerator  # a bar is whole / denominator steps
        bars = -(-(stop - start) * denominator // whole)
        lines = start + np.arange(bars + 1, dtype=np.int64) * whole // denominator
        starts = (lines[:, None] + np.array(_cuts(numerator, denominator))).reshape(-1)
        found.append(starts if stop == end else starts[starts < stop])
    bounds = np.unique(np.concatenate(found))
    return bounds[: np.searchsorted(bounds, end) + 1].astype(np.int32)


def _cuts(numerator: int, denominator: int) -> list[int]:
    """Starts of the chunks of a bar: 0, and for bars over `MAX_CHUNK_STEPS` the beats that split it most evenly."""
    length = max(1, 4 * STEPS_PER_BEAT * numerator // denominator)
    if length <= MAX_CHUNK_STEPS:
        return [0]
    beat = 3 * STEPS_PER_BEAT // 2 if denominator == 8 and numerator % 3 == 0 else STEPS_PER_BEAT
    beats = -(-length // beat)
    parts = -(-beats // (MAX_CHUNK_STEPS // beat))
    return [beat * (-(-beats * part // parts)) for part in range(parts)]
