"""Music tokenizer: one bar per chunk, exactly one token sequence for each set of notes.

Scope: the vocabulary of music, the order of tokens in a bar, and the grammar of allowed next tokens.
Out of scope: files (music/piece.py) and torch; everything here is numpy.
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
from seqvae.music.key import harmony, home_shift, lowest
from seqvae.protocols import EOS, PAD, Bools, Guidance, Ints

_PROGRAM, _POSITION, _PITCH, _DRUM, _DURATION = range(1, 6)
_PHASE, _LAST_PROGRAM, _LAST_POSITION, _LAST_PITCH, _LENGTH = range(5)
_START, _AFTER_PROGRAM, _AFTER_POSITION, _AFTER_PITCH, _AFTER_NOTE, _DONE = range(6)
# phase after a token of each type; first the special tokens, of which only EOS occurs
_PHASES = np.array([_DONE, _AFTER_PROGRAM, _AFTER_POSITION, _AFTER_PITCH, _AFTER_NOTE, _AFTER_NOTE], np.int32)

STEPS_PER_BEAT = 12  # as in music/piece.py, which is not imported because it needs symusic and training does not
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
        self._type = np.zeros(self.vocab_size, np.int32)
        self._value = np.zeros(self.vocab_size, np.int32)
        for token, i in self.vocabulary.items():
            name, value = token.split("_", 1)
            if name == "Program":
                self._type[i], self._value[i] = _PROGRAM, 128 if value == "-1" else int(value)
            elif name == "Position":
                self._type[i], self._value[i] = _POSITION, int(value)
            elif name in ("Pitch", "PitchDrum"):
                self._type[i], self._value[i] = (_PITCH if name == "Pitch" else _DRUM), int(value)
            elif name == "Duration":
                beats, part, resolution = map(int, value.split("."))
                self._type[i] = _DURATION
                self._value[i] = (beats * resolution + part) * STEPS_PER_BEAT // resolution
        self._id = {kind: self._table(kind) for kind in (_PROGRAM, _POSITION, _PITCH, _DRUM)}
        ids = np.flatnonzero(self._type == _DURATION)
        self._durations, self._duration_ids = self._value[ids], ids.astype(np.int32)
        self.field_sizes: tuple[int, ...] = (130, max_steps + 1, 129)
        # a program binds to the bar, a position to its program, a note to both, and a duration to the pitch as well
        scopes = {_PROGRAM: 0, _POSITION: 1, _PITCH: 3, _DRUM: 3, _DURATION: 3}
        self.binding_depth = np.array([scopes.get(int(kind), 0) for kind in self._type], np.int32)

    @functools.cached_property
    def rising(self) -> tuple[Bools, Bools, Bools]:
        """Tables of allowed next tokens, indexed by the last value of a kind plus 2; row 0 allows nothing.

        Programs and EOS `(130, V)`; positions before a chunk's end `(S + 1, S + 1, V)`; pitches, drums, durations and
        padding `(4, 129, V)`, of which the last two do not depend on the pitch.
        """
        kind, value = self._type, self._value

        def after(wanted: int, count: int) -> Bools:
            rows: Bools = (kind == wanted) & (value > np.arange(-2, count)[:, None])
            rows[0] = False
            return rows

        programs = after(_PROGRAM, 129)
        programs[1:, EOS] = True
        lengths = np.arange(self.max_steps + 1)
        positions = after(_POSITION, self.max_steps)[:, None] & (value < lengths[:, None])
        notes = np.stack([after(_PITCH, 128), after(_DRUM, 128), *np.zeros((2, 130, len(kind)), bool)])
        notes[2], notes[3, :, PAD] = kind == _DURATION, True
        return programs, positions, notes

    def _table(self, kind: int) -> Ints:
        """Token ids of one type, indexed by value."""
        ids = np.flatnonzero(self._type == kind)
        table = np.zeros(int(self._value[ids].max()) + 1, np.int32)
        table[self._value[ids]] = ids
        return table

    def ids(self, kind: Literal["program", "position", "pitch", "drum"]) -> Ints:
        """Token ids of one kind, in the order of their values from 0."""
        return self._id[{"program": _PROGRAM, "position": _POSITION, "pitch": _PITCH, "drum": _DRUM}[kind]]

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
        drum = program == 128
        # four candidate tokens per note: program, position, pitch, duration; repeated ones are left out
        nearest = np.abs(self._durations[None] - np.unique(duration)[:, None]).argmin(1)
        duration_id = (
            self._duration_ids[nearest[np.searchsorted(np.unique(duration), duration)]] if len(notes) else duration
        )
        ids = np.stack(
            [
                self._id[_PROGRAM][program],
                self._id[_POSITION][position],
                np.where(drum, self._id[_DRUM][pitch], self._id[_PITCH][pitch]),
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
            for kind, value in zip(self._type[tokens], self._value[tokens], strict=True):
                if kind == _PROGRAM:
                    program, position, pending = int(value), -1, None
                elif kind == _POSITION:
                    position, pending = (int(value) if value < length else -1), None
                elif kind == _PITCH and program >= 0 and position >= 0:
                    pending = int(value)
                elif kind == _DURATION and pending is not None:
                    rows.append([int(start) + position, int(value), pending, program])
                    pending = None
                elif kind == _DRUM and program == 128 and position >= 0:
                    rows.append([int(start) + position, 1, int(value), 128])
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
        columns = np.flatnonzero(self._type == _PITCH).astype(np.int32)
        weights = (strength * np.log(sounding + LEAST)).astype(np.float32)
        low = None if roots is None else (2 * strength * np.log(roots + LEAST)).astype(np.float32)
        classes, deep = self._value[columns] % 12, self._value[columns] < below

        def weigh(rows: NDArray[np.int64], state: Ints) -> tuple[Ints, NDArray[np.float32]]:
            beat = np.clip(state[:, _LAST_POSITION], 0, None) // STEPS_PER_BEAT
            told = weights[rows, beat]
            if low is not None:
                bass = np.isin(state[:, _LAST_PROGRAM], _BASSES)
                told[bass] = low[rows[bass], beat[bass]]
            out = told[:, classes]
            if low is not None and below:
                out[:, deep] = low[rows, beat][:, classes[deep]]
            return columns, out

        return weigh

    def token_text(self, token: int) -> str:
        """Name of a token for display: as in MidiTok's vocabulary (`Pitch_60`), or `<eos>` for a special token."""
        name = self._names[token]
        return name if self._type[token] else f"<{name.removesuffix('_None').lower()}>"

    def _states(self, tokens: Ints) -> Ints:
        """States `(..., T, 5)` of the grammar before each token, computed without a loop over tokens."""
        kind, value = self._type[tokens], self._value[tokens]
        index = np.arange(tokens.shape[-1])

        def last(*kinds: int) -> NDArray[np.int64]:
            """Index of the latest token of some kinds at each step, -1 before the first."""
            return np.maximum.accumulate(np.where(np.isin(kind, kinds), index, -1), axis=-1)

        program, position, pitch = last(_PROGRAM), last(_POSITION), last(_PITCH, _DRUM)
        # a position is valid until the next program, a pitch until the next position or program
        valid = (program >= 0, position > program, pitch > np.maximum(program, position))
        after = np.empty((*tokens.shape, 5), np.int32)
        after[..., _PHASE] = _PHASES[kind]
        after[..., _LENGTH] = self.max_steps
        for column, at, good in zip(
            (_LAST_PROGRAM, _LAST_POSITION, _LAST_PITCH), (program, position, pitch), valid, strict=True
        ):
            after[..., column] = np.where(good, np.take_along_axis(value, np.maximum(at, 0), -1), -1)
        before = np.empty_like(after)
        before[..., 0, :] = self.grammar().start(1)[0]
        before[..., 1:, :] = after[..., :-1, :]
        return before

    def position_fields(self, tokens: Ints) -> Ints:
        """Cues `(..., T, 3)`: program + 1, position + 1 and pitch + 1 before each token, 0 for none."""
        return self.grammar().position_fields(self._states(tokens).reshape(-1, 5)).reshape(*tokens.shape, 3)

    def allowed(self, tokens: Ints) -> Bools:
        """Mask `(..., T, V)` of tokens that the grammar allows at each step of `tokens (..., T)`, in full chunks."""
        allowed = self.grammar().allowed(self._states(tokens).reshape(-1, 5))
        return allowed.reshape(*tokens.shape, self.vocab_size)

    def augment(self, chunks: Ints, amount: int) -> Ints:
        """Transpose all but drums by `amount` semitones; a chunk that would leave 0..127 moves an octave, or stays."""
        pitched, value = self._type[chunks] == _PITCH, self._value[chunks]
        highest = np.where(pitched, value, 0).max(-1, keepdims=True)
        lowest = np.where(pitched, value, 127).min(-1, keepdims=True)
        # the whole chunk or none of it, because pitches must keep rising
        shift = amount - 12 * (highest + amount > 127) + 12 * (lowest + amount < 0)
        shift = np.where((highest + shift > 127) | (lowest + shift < 0), 0, shift)
        moved = chunks.copy()
        moved[pitched] = self._id[_PITCH][(value + shift)[pitched]]
        return moved

    def mix(self, tokens: Ints, others: Ints, rng: np.random.Generator) -> Ints:
        """Add to each segment `(B, C, T)` about half of another's tracks, of instruments that it does not have."""
        rows: list[list[Ints]] = []
        for mine, other in zip(tokens, others, strict=True):
            tracks = [self._tracks(chunk) for chunk in mine]
            extra = [self._tracks(chunk) for chunk in other]
            new = sorted({program for chunk in extra for program in chunk} - {p for chunk in tracks for p in chunk})
            taken = {program for program in new if rng.random() < 0.5}
            for here, more in zip(tracks, extra, strict=True):
                here |= {program: more[program] for program in taken & more.keys()}
            rows.append([np.concatenate([*(t[p] for p in sorted(t)), np.array([EOS], np.int32)]) for t in tracks])
        out = np.full((*tokens.shape[:2], max(len(chunk) for row in rows for chunk in row)), PAD, np.int32)
        for i, row in enumerate(rows):
            for c, chunk in enumerate(row):
                out[i, c, : len(chunk)] = chunk
        return out

    def _tracks(self, chunk: Ints) -> dict[int, Ints]:
        """The tokens of a chunk by program."""
        chunk = chunk[self._type[chunk] > 0]
        starts = np.flatnonzero(self._type[chunk] == _PROGRAM)
        return {int(self._value[part[0]]): part for part in np.split(chunk, starts)[1:]}

    def grammar(self) -> MidiGrammar:
        """The grammar for constrained decoding."""
        return MidiGrammar(self)

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


def moved(notes: Ints, shift: int) -> Ints:
    """Transpose notes, except drums, by `shift` semitones; pitches that leave 0..127 move by an octave."""
    if not shift:
        return notes
    out = notes.copy()
    pitch = notes[:, 2] + np.where(notes[:, 3] == 128, 0, shift)
    out[:, 2] = pitch - 12 * (pitch > 127) + 12 * (pitch < 0)
    return out


class MidiGrammar:
    """Rules by which every decoded chunk is a set of notes inside its bar, in the one order of tokens."""

    def __init__(self, tokenizer: MidiTokenizer) -> None:
        self._type, self._value = tokenizer._type, tokenizer._value
        self._max_steps = tokenizer.max_steps
        self._tables = tokenizer.rising

    def start(self, rows: int, lengths: Ints | None = None) -> Ints:
        """States `(N, 5)`: phase, last program, position and pitch (-1 for none), and chunk length in steps."""
        state = np.full((rows, 5), -1, np.int32)
        state[:, _PHASE] = _START
        state[:, _LENGTH] = self._max_steps if lengths is None else lengths
        return state

    def allowed(self, state: Ints) -> Bools:
        """Mask `(N, V)`: programs, positions and pitches rise strictly; positions lie inside the chunk."""
        programs, positions, notes = self._tables
        phase, program, position, pitch, length = state.T
        ended = phase == _AFTER_NOTE  # after a complete note: any larger value, or EOS
        ok: Bools = programs[np.where((phase == _START) | ended, program + 2, 0)]
        ok |= positions[
            np.where((phase == _AFTER_PROGRAM) | ended, position + 2, 0), np.minimum(length, self._max_steps)
        ]
        of = np.where(program == 128, 1, 0)
        row = np.where((phase == _AFTER_POSITION) | ended, pitch + 2, 0)
        ok |= notes[np.where(phase == _AFTER_PITCH, 2, np.where(phase == _DONE, 3, of)), row]
        return ok

    def advance(self, state: Ints, tokens: Ints) -> Ints:
        """States `(N, 5)` after `tokens (N,)`."""
        state = state.copy()
        kind, value = self._type[tokens], self._value[tokens]
        is_program, is_position = kind == _PROGRAM, kind == _POSITION
        is_pitch, is_drum = kind == _PITCH, kind == _DRUM
        state[is_program, _LAST_PROGRAM] = value[is_program]
        state[is_program, _LAST_POSITION] = -1
        state[is_position, _LAST_POSITION] = value[is_position]
        state[is_program | is_position, _LAST_PITCH] = -1
        state[is_pitch | is_drum, _LAST_PITCH] = value[is_pitch | is_drum]
        state[:, _PHASE] = _PHASES[kind]
        return state

    def position_fields(self, state: Ints) -> Ints:
        """Cues `(N, 3)` as in `MidiTokenizer.position_fields`."""
        pitch = np.where(state[:, _PHASE] == _AFTER_PITCH, state[:, _LAST_PITCH] + 1, 0)
        return np.stack([state[:, _LAST_PROGRAM] + 1, state[:, _LAST_POSITION] + 1, pitch], 1).astype(np.int32)
