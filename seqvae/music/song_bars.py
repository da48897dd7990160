"""Bars of a song with the conditions of the song model: length, harmony and melody of each bar.

Scope: numpy arrays from a `Piece`, for inference and for training shards. Out of scope: torch and models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqvae.music import tracks
from seqvae.music.notes import DURATION, ONSET, PITCH, STEPS_PER_BEAT, without_drums
from seqvae.music.piece import Notes, Piece
from seqvae.music.tokenizer import MidiTokenizer, moved
from seqvae.protocols import Given

Ints = NDArray[np.int32]
Bytes = NDArray[np.uint8]

CHROMA_LEVELS = 15
"""Level of the loudest pitch class of a beat; the others are rounded shares of it."""


@dataclass(frozen=True)
class SongBars:
    """A song by bars, transposed to the common key if the tokenizer has one; C bars of at most B beats."""

    tokens: list[Ints]
    """Token ids of each bar, each ending in EOS."""
    lengths: Bytes
    """Length of each bar in steps, `(C,)`."""
    chroma: Bytes
    """How long each pitch class sounds in each beat, `(C, B, 12)`; the longest has the level `CHROMA_LEVELS`."""
    bass: Bytes
    """Pitch class + 1 of the lowest note of each beat as in `tonality.lowest`, `(C, B)`; 0 for none."""
    melody: Bytes
    """Pitch + 1 and duration in steps of the melody note that begins at each step, `(C, S, 2)`; 0 for none."""
    shift: int
    """Semitones by which the song is transposed."""


def song_bars(piece: Piece, tokenizer: MidiTokenizer) -> SongBars:
    """The bars of `piece` and their conditions; the melody is `tracks.melody`."""
    shift = tokenizer.shift(piece)
    notes = moved(piece.notes, shift)
    beats, roots = tokenizer.max_steps // STEPS_PER_BEAT, tokenizer.roots(piece)
    return SongBars(
        tokenizer.encode(piece),
        np.diff(piece.bounds).astype(np.uint8),
        beat_chroma(notes, piece.bounds, beats),
        np.where(roots.any(-1), roots.argmax(-1) + 1, 0).astype(np.uint8),
        melody_grid(moved(tracks.melody(piece)[0], shift), piece.bounds, tokenizer.max_steps),
        shift,
    )


def conditions(bars: SongBars) -> Given:
    """Records `(C,)` of the bars, as the song model takes them.

    `length` in steps; `harmony (B, 24)`: shares of the pitch classes by beat, and the bass as one-hot; `melody (S, 2)`
    as in `SongBars`; `has_harmony` and `has_melody` are 0 in a song without such notes; `has_bar` is 1, and 0 where a
    bar is to be decoded from what the prior expects.
    """
    beats, steps = bars.chroma.shape[1], bars.melody.shape[1]
    out = np.zeros(
        len(bars.lengths),
        [
            ("length", np.int32), ("harmony", np.float32, (beats, 24)), ("has_harmony", np.float32),
            ("melody", np.uint8, (steps, 2)), ("has_melody", np.float32), ("has_bar", np.float32),
        ],
    )  # fmt: skip
    out["length"], out["has_bar"] = bars.lengths, 1.0
    out["harmony"] = np.concatenate([bars.chroma / CHROMA_LEVELS, np.eye(13)[bars.bass][..., 1:]], -1)
    out["has_harmony"], out["melody"], out["has_melody"] = bars.chroma.any(), bars.melody, bars.melody.any()
    return out


def _beat_edges(bounds: Ints, beats: int) -> Ints:
    """Steps at which the beats of each bar begin and end, `(C, B + 1)`; beats beyond a short bar are empty."""
    edges: Ints = np.minimum(bounds[:-1, None] + STEPS_PER_BEAT * np.arange(beats + 1), bounds[1:, None])
    return edges


def beat_chroma(notes: Notes, bounds: Ints, beats: int) -> Bytes:
    """Pitch classes by beat, `(C, B, 12)`, as in `SongBars.chroma`."""
    steps = int(bounds[-1])
    pitched = without_drums(notes)
    begin = np.clip(pitched[:, ONSET], 0, steps)
    end = np.clip(pitched[:, ONSET] + pitched[:, DURATION], 0, steps)
    pitch = pitched[:, PITCH]
    change = np.zeros((steps + 1, 12), np.int32)
    np.add.at(change, (begin, pitch % 12), 1)
    np.add.at(change, (end, pitch % 12), -1)
    sounded = np.concatenate([np.zeros((1, 12), np.int64), change[:-1].cumsum(0)]).cumsum(0)
    edges = _beat_edges(bounds, beats)
    share = (sounded[edges[:, 1:]] - sounded[edges[:, :-1]]).astype(np.float64)
    loudest = share.max(-1, keepdims=True)
    levels: Bytes = np.rint(CHROMA_LEVELS * share / np.where(loudest > 0, loudest, 1)).astype(np.uint8)
    return levels


def melody_grid(line: Notes, bounds: Ints, steps: int) -> Bytes:
    """Melody notes by bar and step, `(C, S, 2)`, as in `SongBars.melody`."""
    grid = np.zeros((len(bounds) - 1, steps, 2), np.uint8)
    bar = np.searchsorted(bounds, line[:, ONSET], side="right") - 1
    inside = (bar >= 0) & (bar < len(grid))
    line, bar = line[inside], bar[inside]
    grid[bar, line[:, ONSET] - bounds[bar]] = np.stack(
        [line[:, PITCH] + 1, np.minimum(line[:, DURATION], 255)], 1
    ).astype(np.uint8)
    return grid
