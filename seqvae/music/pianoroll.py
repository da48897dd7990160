"""A piano roll as plain numbers: when each bar and note begins, in seconds, as a page draws it beside its sound.

Knows what a score and a piece hold, and which colour an instrument has in every picture: one that colour-blind people
tell from the others. Refuses to know pages and pictures. What it gives can be written as JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from seqvae.music import piece as midi
from seqvae.music.piece import DRUMS, PROGRAM, Piece

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#332288")
"""Of Okabe and Ito (2008), without black and yellow; the last is of Tol (2021)."""
DRUM_COLOUR = "#555555"


def colours(programs: Iterable[int], more: Iterable[int] = ()) -> dict[int, str]:
    """A colour for each of the programs of notes: the first colour is of the program with most notes.

    Programs of which only `more` has notes come after the others. Drums are grey, and last. Where there are more
    programs than colours, a colour comes again, lighter.
    """
    counted = [Counter(sorted(part)) for part in (programs, more)]
    pitched = dict.fromkeys(program for part in counted for program, _ in part.most_common() if program != DRUMS)
    found = {program: shade(i) for i, program in enumerate(pitched)}
    return found | ({DRUMS: DRUM_COLOUR} if any(DRUMS in part for part in counted) else {})


def shade(number: int) -> str:
    """The colour of that number, from 0."""
    return _lighter(COLOURS[number % len(COLOURS)], number // len(COLOURS))


def _lighter(colour: str, times: int) -> str:
    """A colour mixed with white, so often."""
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - (255 - value) * 0.55**times):02x}" for value in channels)


def programs(score: Any) -> list[int]:
    """The program of every note of a score (symusic's); `midi.DRUMS` for drums."""
    return [DRUMS if track.is_drum else track.program for track in score.tracks for _ in range(len(track.notes))]


def in_seconds(score: Any, frame: Piece, tints: Mapping[int, str] | None = None) -> dict[str, Any]:
    """The roll of a score (symusic's) whose bars are those of `frame`.

    `bars` are the seconds at which each begins and the last one ends, `seconds` is when the last note ends; every track
    has a `name`, a `program` (`midi.DRUMS` for drums), a `colour` and `notes` of (start, length, pitch, velocity).
    Colours are those of `tints`; without them, instruments of the notes of `frame` have theirs.
    """
    tints = tints or colours(frame.notes[:, PROGRAM].tolist(), programs(score))
    tracks = []
    end = 0.0
    for track in score.to("second").tracks:
        a = track.notes.numpy()
        columns = (np.round(a["time"].astype(float), 4), np.round(a["duration"].astype(float), 4), a["pitch"])
        notes = [list(row) for row in zip(*(c.tolist() for c in (*columns, a["velocity"])), strict=True)]
        program = DRUMS if track.is_drum else track.program
        colour = tints.get(program, DRUM_COLOUR)  # of a track without notes
        tracks.append({"name": track.name, "program": program, "colour": colour, "notes": notes})
        end = max([end, *(note[0] + note[1] for note in notes)])
    return {"bars": clock(frame), "seconds": round(end, 4), "tracks": tracks}


def clock(piece: Piece) -> list[float]:
    """When each bar begins, and the last one ends, in seconds; 120 beats a minute until the first tempo."""
    rows = [(0, 500_000), *(row for row in midi.frame_rows(piece.frame)[0])]
    at = np.array([row[0] for row in rows], float)
    speed = np.array([row[1] for row in rows], float) / midi.STEPS_PER_BEAT / 1e6
    passed = np.concatenate([[0.0], np.cumsum(np.diff(at) * speed[:-1])])
    last = np.searchsorted(at, piece.bounds, side="right") - 1
    times: list[float] = np.round(passed[last] + (piece.bounds - at[last]) * speed[last], 4).tolist()
    return times
