"""Bars of a score in the order in which they sound, the metre that each of them has, and the notes in them.

Knows repeats, endings, jumps (da capo, dal segno), ties, and which metre a bar of an unusual length has. Out of scope:
how a format writes these marks (`notation` and `abc` read them).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from symusic.core import NoteTick, ScoreTick, TrackTick

TICKS = 10_080
"""Ticks in a quarter note, in which thirds, fifths, sevenths and ninths are whole."""
_LAST_TICK = 200_000 * TICKS  # more are no 32-bit integer
DRUMS = 128
"""The program of drums."""
VELOCITY = 80
"""Velocity of notes whose score does not say, mezzo-forte."""
TEMPO = 100.0
"""Quarters a minute of scores that say none."""
SLOWEST, FASTEST = 4.0, 1000.0
"""Quarters a minute that a MIDI file can say and a listener can follow."""

Metre = tuple[int, int]
"""Numerator and denominator."""


@dataclass
class Marks:
    """The marks of one bar that say which bar sounds next.

    Attributes:
        forward: a repeat begins with this bar.
        times: how often the stretch that ends with this bar is played; 0 if no repeat ends here.
        endings: the times at which this bar is played, if it belongs to an ending.
        signs: any of "segno" and "coda" (where a jump leads), "to coda" and "fine" (after this bar).
        jump: after this bar, "capo" to the beginning, "segno" to the sign; else "".
        until: where the music goes after the jump: "fine", "coda", or "" to its end.
    """

    forward: bool = False
    times: int = 0
    endings: frozenset[int] = frozenset()
    signs: frozenset[str] = frozenset()
    jump: str = ""
    until: str = ""


def unfold(bars: Sequence[Marks]) -> list[int]:
    """Indices of `bars` as they sound; as written where the marks make it more than eight times as long.

    A repeat without a beginning starts after the last repeat or ending. After a jump no repeat is taken, and the last
    ending is played.
    """
    order: list[int] = []
    start, turn, at = 0, 1, 0
    jump: Marks | None = None
    taken: set[int] = set()
    longest = 8 * len(bars) + 20
    while at < len(bars) and len(order) <= longest:
        bar = bars[at]
        if bar.forward or (at and bars[at - 1].endings and not bar.endings):
            if at != start:
                turn = 1
            start = at
        last = _last_ending(bars, at)
        if last and (turn if jump is None else last) not in bar.endings:
            at += 1
            continue
        order.append(at)
        here, at = at, at + 1
        if jump is None and turn < (max(2, last) if last and bar.times else bar.times):
            turn, at = turn + 1, start
            continue
        if bar.times and not bar.endings:
            start, turn = at, 1
        if jump is not None:
            if jump.until != "coda" and "fine" in bar.signs:
                break
            if jump.until == "coda" and "to coda" in bar.signs:
                at = next((index for index in range(at, len(bars)) if "coda" in bars[index].signs), at)
        if bar.jump and here not in taken:
            taken.add(here)
            signs = [index for index in range(at) if "segno" in bars[index].signs]
            jump, start, turn = bar, 0, 1
            at = signs[-1] if bar.jump == "segno" and signs else 0
    return order if len(order) <= longest else list(range(len(bars)))


def _last_ending(bars: Sequence[Marks], at: int) -> int:
    """The highest number of the endings beside one another that bar `at` is one of; 0 if none, or none leads back."""
    if not bars[at].endings:
        return 0
    first, stop = at, at
    while first > 0 and bars[first - 1].endings and not bars[first].forward:
        first -= 1
    while stop < len(bars) and bars[stop].endings and (stop == first or not bars[stop].forward):
        stop += 1
    group = bars[first:stop]
    return max(max(bar.endings) for bar in group) if any(bar.times or bar.jump for bar in group) else 0


def metres(bars: Iterable[tuple[Fraction, Fraction, Metre | None]]) -> Iterator[tuple[Fraction, int, int]]:
    """(quarter, numerator, denominator) where the metre changes; a pickup or a split bar is a metre of its own.

    Args:
        bars: start and length of each bar in quarters, and the metre written at it or before it.
    """
    last: Metre | None = None
    for start, length, metre in bars:
        written = metre or (4, 4)
        sounding = as_metre(length, written)
        if (sounding or written) != last:
            yield start, *(sounding or written)
        # where no metre says this length, the grid restarts at the next bar line
        last = sounding


def as_metre(length: Fraction, written: Metre) -> Metre | None:
    """The metre in which a bar has `length` quarters: the written one if it does; None if no usual one does."""
    if length in (0, Fraction(4 * written[0], written[1])):
        return written
    for denominator in (4, 8, 16, 32):
        beats = length * denominator / 4
        if beats.denominator == 1 and beats < 256:
            return int(beats), denominator
    return None


class Sound(NamedTuple):
    """One note; times in quarters, `tie` "start", "stop", "continue" or ""."""

    start: Fraction
    length: Fraction
    pitch: int
    program: int
    velocity: int
    tie: str = ""


def to_ticks(quarters: Fraction) -> int:
    """`quarters` in ticks."""
    return round(quarters * TICKS)


def joined(sounds: Iterable[Sound]) -> list[Sound]:
    """`sounds` in order of their starts, tied notes of one pitch and program as one note."""
    found: list[Sound] = []
    held: dict[tuple[int, int, int], int] = {}  # program, pitch and end of a note that a tie keeps open: its index
    for sound in sorted(sounds, key=lambda sound: sound.start):
        end = sound.start + sound.length
        index = None
        if sound.tie in ("stop", "continue"):
            index = held.pop((sound.program, sound.pitch, round(sound.start * 480)), None)
        if index is None:
            index = len(found)
            found.append(sound)
        else:
            found[index] = found[index]._replace(length=end - found[index].start)
        if sound.tie in ("start", "continue"):
            held[sound.program, sound.pitch, round(end * 480)] = index
    return found


def add_sounds(tracks: dict[int, TrackTick], sounds: Iterable[Sound], start: Fraction) -> None:
    """Notes of `sounds` from quarter `start`, added to the track of their program, those with MIDI's pitches.

    Raises ValueError for a note later than 200,000 quarters.
    """
    for sound in joined(sounds):
        if not 0 <= sound.pitch < 128:
            continue
        if sound.program not in tracks:
            drums = sound.program == DRUMS
            tracks[sound.program] = TrackTick("", 0 if drums else sound.program, drums)
        at, length = to_ticks(start + sound.start), max(1, to_ticks(sound.length))
        if at + length > _LAST_TICK:
            raise ValueError("a note later than 200,000 quarter notes")
        tracks[sound.program].notes.append(NoteTick(at, length, sound.pitch, sound.velocity))


def add_tracks(score: ScoreTick, tracks: dict[int, TrackTick]) -> None:
    """`tracks` added to `score` in order of their programs."""
    for program in sorted(tracks):
        score.tracks.append(tracks[program])
