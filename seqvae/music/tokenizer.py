"""Music tokenizer: one bar per chunk, exactly one token sequence for each set of notes.

Scope: the vocabulary of music, and the order of tokens in a bar. Out of scope: allowed next tokens (music/grammar.py),
augmentation (music/augment.py), files (music/piece.py) and torch; everything here is numpy.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from seqvae.config import TokenizerConfig
from seqvae.errors import TokenizerError
from seqvae.music import augment, grammar
from seqvae.music.grammar import MidiGrammar
from seqvae.music.key import harmony, home_shift, lowest
from seqvae.music.notes import DRUMS, PITCH, PROGRAM, STEPS_PER_BEAT
from seqvae.protocols import EOS, Bools, Guidance, Ints

_KINDS = {"program": grammar.PROGRAM, "position": grammar.POSITION, "pitch": grammar.PITCH, "drum": grammar.DRUM}
MOST_STEPS = 384  # limit of a chunk's length: the grammar's tables grow with its square
_BASSES = np.arange(32, 40)  # the bass programs of General MIDI
LEAST = 0.01  # added to the share of a pitch class, so that a silent one keeps a finite log-weight
Floats = NDArray[np.float64]


class MidiTokenizer:
    """A REMI-like token stream (Huang and Yang 2020) over MidiTok's vocabulary: a bar per chunk, track after track.

    A chunk is ``(Program (Position (Pitch Duration)+)+)* EOS`` with programs, positions and pitches rising strictly,
    so that a set of notes has exactly one token sequence. Drums (program 128) come last and have no durations.
    Velocities are not kept. Notes are rows ``[onset, duration, pitch, program]`` in steps from the start of the chunk.
    """

    kind = "midi"
    overlap = 0
    unknown: int | None = None
    max_tokens = 1024  # several times the fullest bar

    def __init__(self, max_steps: int = 48, common_key: bool = False) -> None:
        """Raises TokenizerError unless `max_steps` is a whole number of beats from 48 to MOST_STEPS steps."""
        if max_steps % STEPS_PER_BEAT or not 4 * STEPS_PER_BEAT <= max_steps <= MOST_STEPS:
            raise TokenizerError(
                f"tokenizer.max_steps: {max_steps} is not possible; choose a multiple of {STEPS_PER_BEAT} from "
                f"{4 * STEPS_PER_BEAT} to {MOST_STEPS}"
            )
        self.max_steps, self.common_key = max_steps, common_key
        self.vocabulary = _vocabulary(max_steps)
        self.vocab_size = len(self.vocabulary)
        self._names = sorted(self.vocabulary, key=self.vocabulary.__getitem__)
        self.token_types: Ints = np.zeros(self.vocab_size, np.int32)
        """Type of each token `(V,)`, as in music/grammar.py; 0 for special tokens."""
        self.token_values: Ints = np.zeros(self.vocab_size, np.int32)
        """Program, position or pitch of each token, or its duration in steps, `(V,)`."""
        for name, token in self.vocabulary.items():
            self.token_types[token], self.token_values[token] = _meaning(name)
        self._id = {kind: self._table(kind) for kind in _KINDS.values()}
        ids = np.flatnonzero(self.token_types == grammar.DURATION)
        self._durations, self._duration_ids = self.token_values[ids], ids.astype(np.int32)
        self.field_sizes: tuple[int, ...] = (130, max_steps + 1, 129)
        # a program binds to the bar, a position to its program, a note to both, and a duration to the pitch as well
        scopes = {grammar.PROGRAM: 0, grammar.POSITION: 1, grammar.PITCH: 3, grammar.DRUM: 3, grammar.DURATION: 3}
        self.binding_depth = np.array([scopes.get(int(kind), 0) for kind in self.token_types], np.int32)

    @functools.cached_property
    def _grammar(self) -> MidiGrammar:
        return MidiGrammar(self.token_types, self.token_values, self.max_steps)

    def _table(self, kind: int) -> Ints:
        """Token ids of one type, indexed by value."""
        ids = np.flatnonzero(self.token_types == kind)
        table = np.zeros(int(self.token_values[ids].max()) + 1, np.int32)
        table[self.token_values[ids]] = ids
        return table

    def ids(self, kind: Literal["program", "position", "pitch", "drum"]) -> Ints:
        """Token ids of one kind, in the order of their values from 0."""
        return self._id[_KINDS[kind]]

    def encode_notes(self, notes: Ints, bounds: Ints) -> list[Ints]:
        """Tokens of every chunk between `bounds (C + 1,)` in steps; `notes (N, >= 4)` as in `Piece`, in any order."""
        chunk = np.searchsorted(bounds, notes[:, 0], side="right") - 1
        inside = (chunk >= 0) & (chunk < len(bounds) - 1)
        notes, chunk = notes[inside], chunk[inside]
        position = notes[:, 0] - bounds[chunk]
        order = np.lexsort((-notes[:, 1], notes[:, 2], position, notes[:, 3], chunk))  # of duplicates keep the longest
        chunk, position = chunk[order], position[order]
        duration, pitch, program = notes[order, 1], notes[order, 2], notes[order, 3]
        keys = np.stack([chunk, program, position, pitch], 1)
        changed = np.ones((len(keys), 4), bool)
        changed[1:] = np.logical_or.accumulate(keys[1:] != keys[:-1], axis=1)
        drum = program == DRUMS
        # four candidate tokens per note: program, position, pitch, duration; repeated ones are left out
        nearest = np.abs(self._durations[None] - np.unique(duration)[:, None]).argmin(1)
        duration_id = (
            self._duration_ids[nearest[np.searchsorted(np.unique(duration), duration)]] if len(notes) else duration
        )
        ids = np.stack(
            [
                self._id[grammar.PROGRAM][program],
                self._id[grammar.POSITION][position],
                np.where(drum, self._id[grammar.DRUM][pitch], self._id[grammar.PITCH][pitch]),
                duration_id,
            ],
            1,
        )
        emit = np.stack([changed[:, 1], changed[:, 2], changed[:, 3], changed[:, 3] & ~drum], 1)
        counts = np.bincount(chunk, weights=emit.sum(1), minlength=len(bounds) - 1).astype(np.int64)
        ends = np.cumsum(counts)
        flat = np.insert(ids[emit].astype(np.int32), ends, EOS)
        ends += np.arange(1, len(ends) + 1)
        return [flat[end - n - 1 : end] for end, n in zip(ends.tolist(), counts.tolist(), strict=True)]

    def decode_notes(self, chunks: Sequence[Ints], bounds: Ints, shift: int = 0) -> Ints:
        """Notes `(N, 4)` of chunks that begin at `bounds[c]`; tokens that break the grammar are skipped.

        Pitches are moved by `-shift` semitones, which undoes `encode`'s shift; those outside 0..127 by an octave more.
        """
        rows: list[list[int]] = []
        for start, length, tokens in zip(bounds, np.diff(bounds), chunks, strict=False):
            program = position = -1
            pending: int | None = None
            for kind, value in zip(self.token_types[tokens], self.token_values[tokens], strict=True):
                if kind == grammar.PROGRAM:
                    program, position, pending = int(value), -1, None
                elif kind == grammar.POSITION:
                    position, pending = (int(value) if value < length else -1), None
                elif kind == grammar.PITCH and program >= 0 and position >= 0:
                    pending = int(value)
                elif kind == grammar.DURATION and pending is not None:
                    rows.append([int(start) + position, int(value), pending, program])
                    pending = None
                elif kind == grammar.DRUM and program == DRUMS and position >= 0:
                    rows.append([int(start) + position, 1, int(value), DRUMS])
        return moved(np.array(rows, np.int32).reshape(-1, 4), -shift)

    def shift(self, piece: Any) -> int:
        """Semitones by which `encode` transposes a `Piece` to the common key; 0 without a common key."""
        return home_shift(piece.notes) if self.common_key else 0

    def encode(self, piece: Any) -> list[Ints]:
        """Token ids of every chunk of a `Piece`, transposed by `shift`."""
        return self.encode_notes(moved(piece.notes, self.shift(piece)), piece.bounds)

    def harmony(self, piece: Any) -> Floats:
        """Chroma around every beat of every chunk of a `Piece`, transposed as in `encode`: `(C, B, 12)`."""
        notes = moved(piece.notes, self.shift(piece))
        return harmony(notes, piece.bounds, STEPS_PER_BEAT, self.max_steps // STEPS_PER_BEAT)

    def roots(self, piece: Any) -> Floats:
        """One-hot lowest pitch class at every beat of every chunk, transposed as in `encode`: `(C, B, 12)`."""
        notes = moved(piece.notes, self.shift(piece))
        return lowest(notes, piece.bounds, STEPS_PER_BEAT, self.max_steps // STEPS_PER_BEAT)

    def chroma_guidance(
        self, sounding: Floats, strength: float, roots: Floats | None = None, below: int = 0
    ) -> Guidance:
        """Log-weights for chroma guidance: decoded pitches of row n follow the harmony `sounding[n]`, `(N, B, 12)`.

        The weight of a pitch is (share of its pitch class + LEAST) ** strength. If `roots (N, B, 12)` are given, they
        replace the harmony, with twice the strength, on bass programs and on all pitches below `below`.
        """
        columns = np.flatnonzero(self.token_types == grammar.PITCH).astype(np.int32)
        weights = (strength * np.log(sounding + LEAST)).astype(np.float32)
        low = None if roots is None else (2 * strength * np.log(roots + LEAST)).astype(np.float32)
        classes, deep = self.token_values[columns] % 12, self.token_values[columns] < below

        def weigh(rows: NDArray[np.int64], state: Ints) -> tuple[Ints, NDArray[np.float32]]:
            beat = np.clip(state[:, grammar.LAST_POSITION], 0, None) // STEPS_PER_BEAT
            by_class = weights[rows, beat]
            if low is not None:
                bass = np.isin(state[:, grammar.LAST_PROGRAM], _BASSES)
                by_class[bass] = low[rows[bass], beat[bass]]
            out = by_class[:, classes]
            if low is not None and below:
                out[:, deep] = low[rows, beat][:, classes[deep]]
            return columns, out

        return weigh

    def token_text(self, token: int) -> str:
        """Name of a token for display: as in MidiTok's vocabulary (`Pitch_60`), or `<eos>` for a special token."""
        name = self._names[token]
        return name if self.token_types[token] else f"<{name.removesuffix('_None').lower()}>"

    def position_fields(self, tokens: Ints) -> Ints:
        """Position fields `(..., T, 3)`: program + 1, position + 1 and pitch + 1 before each token, 0 for none."""
        return self.grammar().position_fields(self.grammar().states(tokens).reshape(-1, 5)).reshape(*tokens.shape, 3)

    def allowed(self, tokens: Ints) -> Bools:
        """Mask `(..., T, V)` of tokens that the grammar allows at each step of `tokens (..., T)`, in full chunks."""
        allowed = self.grammar().allowed(self.grammar().states(tokens).reshape(-1, 5))
        return allowed.reshape(*tokens.shape, self.vocab_size)

    def mix(self, tokens: Ints, others: Ints, rng: np.random.Generator) -> Ints:
        """As `augment.mix`."""
        return augment.mix(tokens, others, rng, self.token_types, self.token_values)

    def grammar(self) -> MidiGrammar:
        """The grammar for constrained decoding."""
        return self._grammar

    @classmethod
    def make(cls, config: TokenizerConfig, pieces: Callable[[], Iterable[Any]]) -> MidiTokenizer:
        """As `modality.make`; nothing is learned from the pieces."""
        return cls(config.max_steps, config.common_key)

    @classmethod
    def load(cls, folder: Path, **settings: Any) -> MidiTokenizer:
        """The tokenizer with the settings written by `save`."""
        return cls(**settings)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"max_steps": self.max_steps, "common_key": self.common_key}
        (folder / "tokenizer.json").write_text(json.dumps({"kind": self.kind, **settings}) + "\n")


def _vocabulary(max_steps: int) -> dict[str, int]:
    """Token ids by name, in the order of MidiTok 3's REMI with programs and drum tokens.

    Durations are exact up to the length of a chunk and multiples of half a beat up to sixteen beats: 99.6 % of the
    notes of real files are exact.
    """
    beats = max_steps // STEPS_PER_BEAT
    exact = [f"{beat}.{part}.{STEPS_PER_BEAT}" for beat in range(beats) for part in range(STEPS_PER_BEAT)]
    halves = [f"{beat}.{part}.2" for beat in range(beats, 16) for part in range(2)]
    names = [
        *(f"{name}_None" for name in ("PAD", "BOS", "EOS", "MASK", "Bar")),
        *(f"Pitch_{pitch}" for pitch in range(128)),
        *(f"Duration_{duration}" for duration in [*exact[1:], *halves, f"{max(beats, 16)}.0.2"]),
        *(f"Position_{step}" for step in range(48)),  # MidiTok's positions of four beats; further ones come last
        *(f"PitchDrum_{pitch}" for pitch in range(128)),
        *(f"Program_{program}" for program in [*range(128), -1]),
        *(f"Position_{step}" for step in range(48, max_steps)),
    ]
    return {name: token for token, name in enumerate(names)}


def _meaning(name: str) -> tuple[int, int]:
    """Type and value of a token by its name in the vocabulary."""
    kind, value = name.split("_", 1)
    match kind:
        case "Program":
            return grammar.PROGRAM, DRUMS if value == "-1" else int(value)
        case "Position":
            return grammar.POSITION, int(value)
        case "Pitch":
            return grammar.PITCH, int(value)
        case "PitchDrum":
            return grammar.DRUM, int(value)
        case "Duration":
            beats, part, resolution = map(int, value.split("."))
            return grammar.DURATION, (beats * resolution + part) * STEPS_PER_BEAT // resolution
    return 0, 0


def moved(notes: Ints, shift: int) -> Ints:
    """Transpose notes, except drums, by `shift` semitones; pitches that leave 0..127 move by an octave."""
    if not shift:
        return notes
    out = notes.copy()
    pitch = notes[:, PITCH] + np.where(notes[:, PROGRAM] == DRUMS, 0, shift)
    out[:, PITCH] = pitch - 12 * (pitch > 127) + 12 * (pitch < 0)
    return out
