"""A piano roll as plain numbers: when each bar and note begins, in seconds, as a page draws it beside its sound.

Knows what a score and a piece hold. Refuses to know colours, pages and pictures. What it gives can be written as JSON.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from seqvae import midi
from seqvae.midi import Piece


def in_seconds(score: Any, frame: Piece) -> dict[str, Any]:
    """The roll of a score (symusic's) whose bars are those of `frame`.

    `bars` are the seconds at which each begins and the last one ends, `seconds` is when the last note ends; every track
    has a `name`, a `program` (`midi.DRUMS` for drums) and `notes` of (start, length, pitch, velocity).
    """
    tracks = []
    end = 0.0
    for track in score.to("second").tracks:
        a = track.notes.numpy()
        columns = (np.round(a["time"].astype(float), 4), np.round(a["duration"].astype(float), 4), a["pitch"])
        notes = [list(row) for row in zip(*(c.tolist() for c in (*columns, a["velocity"])), strict=True)]
        program = midi.DRUMS if track.is_drum else track.program
        tracks.append({"name": track.name, "program": program, "notes": notes})
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
