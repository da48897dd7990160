"""Shares of a song's notes that the grid, the vocabulary and a model lose, for messages.

Scope: notes in steps. Out of scope: loudness, and events beside notes (music/track_events.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqvae.protocols import Tokenizer

Ints = NDArray[np.int32]
LEAST = 0.005
"""Smaller shares are not reported."""
MUCH = 0.1
"""If a greater share of notes does not come back, the message says what to do."""
OFF = 0.25
"""Steps by which the grid moves a note that is said to begin off the grid; a fiftieth of a quarter note."""


def rounding(moved: NDArray[np.float64], kept: int) -> tuple[float, float]:
    """Shares of notes that the grid moves by more than OFF, and joins with another: from `moved (N,)` in steps."""
    return float((np.abs(moved) > OFF).mean()), 1 - kept / len(moved)


def sentence(tokenizer: Tokenizer, piece: Any, segments: Sequence[Sequence[Ints]], again: Ints | None = None) -> str:
    """What a `Piece` loses on the way to the tokens of its `segments`, with shares; empty if it is nothing.

    Of a reconstruction with the notes `again (M, 5)`, also the share that comes back with onset, pitch and instrument.
    """
    if not len(piece.notes):
        return ""
    off, joined = piece.rounding
    chunks = [chunk for segment in segments for chunk in segment]
    spelled: Any = tokenizer
    spoken = spelled.decode_notes(chunks, piece.bounds, spelled.shift(piece))
    pitched = piece.notes[piece.notes[:, 3] < 128]
    longer = 1 - _shared(pitched[:, :4], spoken[:, :4])
    full = np.array([len(chunk) > tokenizer.max_tokens for chunk in chunks])
    cut = float(full[np.searchsorted(piece.bounds, piece.notes[:, 0], side="right") - 1].mean())
    back = 1.0 if again is None else _shared(piece.notes[:, [0, 2, 3]], again[:, [0, 2, 3]])
    shares = [
        (off, "begin off the grid of twelve steps a beat and are moved"),
        (joined, "coincide with another of their instrument on the grid"),
        (longer, "get a length that the vocabulary has"),
        (cut, "are in bars that are too full for the model"),
        (1 - back, "do not come back"),
    ]
    found = [f"{share:.0%} {what}" for share, what in shares if share > LEAST]
    if 1 - back > MUCH:
        bars = len(piece.bounds) - 1
        found[-1] += f" ({len(piece.notes) / bars:.0f} notes a bar; `seqvae blend --keep` leaves a track unchanged)"
    return f"of its notes {', '.join(found)}" if found else ""


def _shared(notes: Ints, others: Ints) -> float:
    """The share of rows of `notes (N, K)` that are in `others (M, K)` too; 1 without notes."""
    there = set(map(tuple, others.tolist()))
    return float(np.mean([tuple(row) in there for row in notes.tolist()])) if len(notes) else 1.0
