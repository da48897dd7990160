"""A piano roll as plain numbers: times of bars and notes in seconds, and a colour for each instrument.

Scope: the content of a score and a piece, and colours that colour-blind people can distinguish. Out of scope: pages and
pictures. The result can be written as JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from seqvae.music import piece as midi
from seqvae.music.notes import DRUMS, PROGRAM
from seqvae.music.piece import Piece

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#332288")
"""Colours of Okabe and Ito (2008), without black and yellow; the last one is from Tol (2021)."""
DRUM_COLOUR = "#555555"


def colours(programs: Iterable[int], more: Iterable[int] = ()) -> dict[int, str]:
    """A colour for each program of notes; the program with most notes has the first colour.

    Programs that occur only in `more` follow the others. Drums are grey and last. If there are more programs than
    colours, the colours repeat in a lighter shade.
    """
    counted = [Counter(sorted(part)) for part in (programs, more)]
    pitched = dict.fromkeys(program for part in counted for program, _ in part.most_common() if program != DRUMS)
    found = {program: shade(i) for i, program in enumerate(pitched)}
    return found | ({DRUMS: DRUM_COLOUR} if any(DRUMS in part for part in counted) else {})


def shade(number: int) -> str:
    """The colour with index `number`, from 0."""
    return _lighter(COLOURS[number % len(COLOURS)], number // len(COLOURS))


def _lighter(colour: str, times: int) -> str:
    """A colour mixed with white `times` times."""
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - (255 - value) * 0.55**times):02x}" for value in channels)


def programs(score: Any) -> list[int]:
    """The program of every note of a symusic score; `midi.DRUMS` for drums."""
    return [DRUMS if track.is_drum else track.program for track in score.tracks for _ in range(len(track.notes))]


def in_seconds(score: Any, frame: Piece, tints: Mapping[int, str] | None = None) -> dict[str, Any]:
    """The piano roll of a symusic score whose bars are those of `frame`.

    `bars` are the start of each bar and the end of the last, and `seconds` is the end of the last note, in seconds.
    Every track with notes has a `name`, a `program` (`midi.DRUMS` for drums), a `colour` and `notes` of (start, length,
    pitch, velocity). Colours are those of `tints`, by default `colours` of the notes of `frame` and of the score.
    """
    tints = tints or colours(frame.notes[:, PROGRAM].tolist(), programs(score))
    tracks = []
    end = 0.0
    for track in score.to("second").tracks:
        if not len(track.notes):
            continue
        a = track.notes.numpy()
        columns = (np.round(a["time"].astype(float), 4), np.round(a["duration"].astype(float), 4), a["pitch"])
        notes = [list(row) for row in zip(*(c.tolist() for c in (*columns, a["velocity"])), strict=True)]
        program = DRUMS if track.is_drum else track.program
        tracks.append({"name": track.name, "program": program, "colour": tints[program], "notes": notes})
        end = max([end, *(note[0] + note[1] for note in notes)])
    return {"bars": clock(frame), "seconds": round(end, 4), "tracks": tracks}


def clock(piece: Piece) -> list[float]:
    """Start of each bar and end of the last, in seconds; 120 beats per minute before the first tempo."""
    rows = [(0, 500_000), *(row for row in midi.frame_rows(piece.frame)[0])]
    at = np.array([row[0] for row in rows], float)
    speed = np.array([row[1] for row in rows], float) / midi.STEPS_PER_BEAT / 1e6
    passed = np.concatenate([[0.0], np.cumsum(np.diff(at) * speed[:-1])])
    last = np.searchsorted(at, piece.bounds, side="right") - 1
    times: list[float] = np.round(passed[last] + (piece.bounds - at[last]) * speed[last], 4).tolist()
    return times
