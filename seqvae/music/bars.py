"""Bars of a score in playing order, their metres and their notes.

Scope: repeats, endings, jumps (da capo, dal segno), ties, and the metre of bars of unusual length. Out of scope: the
marks of each file format (music/readers.py and music/abc.py read them).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from symusic.core import NoteTick, ScoreTick, TrackTick

from seqvae.music.notes import DRUMS

TICKS = 10_080
"""Ticks in a quarter note; thirds, fifths, sevenths and ninths of it are whole."""
_LAST_TICK = 200_000 * TICKS  # more do not fit a 32-bit integer
VELOCITY = 80
"""Velocity of notes without a dynamic: mezzo-forte."""
TEMPO = 100.0
"""Quarters per minute of scores without a tempo."""
SLOWEST, FASTEST = 4.0, 1000.0
"""Limits of the tempo in quarters per minute, for MIDI files and listeners."""

Metre = tuple[int, int]
"""Numerator and denominator."""


@dataclass
class Marks:
    """The marks of one bar that determine which bar follows.

    Attributes:
        forward: a repeat begins with this bar.
        times: how often the passage that ends with this bar is played; 0 if no repeat ends here.
        endings: the numbers of the passes in which this bar is played, if it belongs to an ending.
        signs: any of "segno" and "coda" (targets of a jump), "to coda" and "fine" (after this bar).
        jump: after this bar, "capo" to the beginning or "segno" to the sign; else "".
        until: where playing continues or ends after the jump: "fine", "coda", or "" for the end of the score.
    """

    forward: bool = False
    times: int = 0
    endings: frozenset[int] = frozenset()
    signs: frozenset[str] = frozenset()
    jump: str = ""
    until: str = ""


def unfold(bars: Sequence[Marks]) -> list[int]:
    """Indices of `bars` in playing order; in written order if the marks make it more than eight times as long.

    A repeat without a beginning starts after the last repeat or ending. After a jump repeats are not taken, and the
    last ending is played.
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
    """The highest number among the adjacent endings around bar `at`; 0 without an ending, or if none leads back."""
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
    """(quarter, numerator, denominator) at each change of metre; a pickup or split bar has a metre of its own.

    Args:
        bars: start and length of each bar in quarters, and the last metre written at or before it.
    """
    last: Metre | None = None
    for start, length, metre in bars:
        written = metre or (4, 4)
        sounding = as_metre(length, written)
        if (sounding or written) != last:
            yield start, *(sounding or written)
        # if no metre has this length, the grid restarts at the next bar line
        last = sounding


def as_metre(length: Fraction, written: Metre) -> Metre | None:
    """The metre of a bar of `length` quarters, preferably the written one; None if no usual metre fits."""
    if length in (0, Fraction(4 * written[0], written[1])):
        return written
    for denominator in (4, 8, 16, 32):
        beats = length * denominator / 4
        if beats.denominator == 1 and beats < 256:
            return int(beats), denominator
    return None


class Sound(NamedTuple):
    """One note; start and length in quarters, `tie` is "start", "stop", "continue" or "", `part` the part's name."""

    start: Fraction
    length: Fraction
    pitch: int
    program: int
    velocity: int
    tie: str = ""
    part: str = ""


PartTracks = dict[tuple[int, str], TrackTick]
"""Tracks by program and name of a part."""


def to_ticks(quarters: Fraction) -> int:
    """`quarters` in ticks."""
    return round(quarters * TICKS)


def joined(sounds: Iterable[Sound]) -> list[Sound]:
    """`sounds` sorted by start, with tied notes of one pitch, program and part joined."""
    found: list[Sound] = []
    # (part, program, pitch, end) of a note with an open tie: its index
    held: dict[tuple[str, int, int, int], int] = {}
    for sound in sorted(sounds, key=lambda sound: sound.start):
        end = sound.start + sound.length
        index = None
        if sound.tie in ("stop", "continue"):
            index = held.pop((sound.part, sound.program, sound.pitch, round(sound.start * 480)), None)
        if index is None:
            index = len(found)
            found.append(sound)
        else:
            found[index] = found[index]._replace(length=end - found[index].start)
        if sound.tie in ("start", "continue"):
            held[sound.part, sound.program, sound.pitch, round(end * 480)] = index
    return found


def add_sounds(tracks: PartTracks, sounds: Iterable[Sound], start: Fraction) -> None:
    """Add `sounds`, from quarter `start`, to the track of their part; pitches outside MIDI's range are left out.

    Raises ValueError for a note later than 200,000 quarters.
    """
    for sound in joined(sounds):
        if not 0 <= sound.pitch < 128:
            continue
        key = sound.program, sound.part
        if key not in tracks:
            drums = sound.program == DRUMS
            tracks[key] = TrackTick(sound.part, 0 if drums else sound.program, drums)
        at, length = to_ticks(start + sound.start), max(1, to_ticks(sound.length))
        if at + length > _LAST_TICK:
            raise ValueError("a note later than 200,000 quarter notes")
        tracks[key].notes.append(NoteTick(at, length, sound.pitch, sound.velocity))


def add_tracks(score: ScoreTick, tracks: PartTracks) -> None:
    """Add `tracks` to `score`, sorted by program; parts of one program keep their order."""
    for key in sorted(tracks, key=lambda key: key[0]):
        score.tracks.append(tracks[key])
