"""Music to token ids and back: one bar a chunk, one spelling for each set of notes.

Knows: the music vocabulary, the order of tokens inside a bar, and the grammar that says which token may follow.
Refuses to know: files (music/piece.py reads them) and torch. Everything here is numpy.
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
from seqvae.protocols import EOS, PAD, Bools, Ints, Lean

_PROGRAM, _POSITION, _PITCH, _DRUM, _DURATION = range(1, 6)
_PHASE, _LAST_PROGRAM, _LAST_POSITION, _LAST_PITCH, _LENGTH = range(5)
_START, _AFTER_PROGRAM, _AFTER_POSITION, _AFTER_PITCH, _AFTER_NOTE, _DONE = range(6)
# the phase after a token of each type; the first is that of special tokens, of which only EOS is ever reached
_PHASES = np.array([_DONE, _AFTER_PROGRAM, _AFTER_POSITION, _AFTER_PITCH, _AFTER_NOTE, _AFTER_NOTE], np.int32)

STEPS_PER_BEAT = 12  # the grid of music/piece.py, which is not imported: it needs symusic, and training does not
MOST_STEPS = 384  # of a chunk: tables of what may follow grow with the square
_BASSES = np.arange(32, 40)  # General MIDI's family
LEAST = 0.01  # what a pitch class that does not sound at all weighs
Floats = NDArray[np.float64]


class MidiTokenizer:
    """A REMI-like stream (Huang and Yang 2020) over MidiTok's vocabulary, one chunk a bar, tracks one after another.

    A chunk is ``(Program (Position (Pitch Duration)+)+)* EOS`` with programs, positions and pitches rising strictly,
    so that a set of notes has exactly one spelling. Drums (program 128) come last and have no durations. Velocities are
    not kept. Notes are rows ``[onset, duration, pitch, program]`` with onsets counted from the start of the chunk.
    """

    kind = "midi"
    overlap = 0
    max_tokens = 1024  # several times the fullest bar

    def __init__(self, max_steps: int = 48, common_key: bool = False) -> None:
        """Raises TokenizerError where `max_steps` is no number of whole beats from 48 to MOST_STEPS."""
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
        self.cue_sizes: tuple[int, ...] = (130, max_steps + 1, 129)
        # a program is in the bar, a position in its program; notes stand under both, durations under the pitch too
        scopes = {_PROGRAM: 0, _POSITION: 1, _PITCH: 3, _DRUM: 3, _DURATION: 3}
        self.scope = np.array([scopes.get(int(kind), 0) for kind in self._type], np.int32)

    @functools.cached_property
    def rising(self) -> tuple[Bools, Bools, Bools]:
        """What may follow by the last value of its kind plus 2, in row 0 nothing: made once, looked up at every step.

        Programs and the end `(130, V)`; positions before a chunk's end `(S + 1, S + 1, V)`; pitches, drums, durations
        and padding `(4, 129, V)`, the last two whatever the pitch.
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
        """Token id by value for one type of token."""
        ids = np.flatnonzero(self._type == kind)
        table = np.zeros(int(self._value[ids].max()) + 1, np.int32)
        table[self._value[ids]] = ids
        return table

    def ids(self, kind: Literal["program", "position", "pitch", "drum"]) -> Ints:
        """The tokens of one kind, in the order of their values from 0."""
        return self._id[{"program": _PROGRAM, "position": _POSITION, "pitch": _PITCH, "drum": _DRUM}[kind]]

    def encode_notes(self, notes: Ints, bounds: Ints) -> list[Ints]:
        """Tokens of every chunk between `bounds (C + 1,)` steps; `notes (N, >= 4)` as in `midi.Piece`, any order."""
        chunk = np.searchsorted(bounds, notes[:, 0], side="right") - 1
        inside = (chunk >= 0) & (chunk < len(bounds) - 1)
        notes, chunk = notes[inside], chunk[inside]
        position = notes[:, 0] - bounds[chunk]
        order = np.lexsort((-notes[:, 1], notes[:, 2], position, notes[:, 3], chunk))  # of equals the longest is kept
        chunk, position = chunk[order], position[order]
        duration, pitch, program = notes[order, 1], notes[order, 2], notes[order, 3]
        keys = np.stack([chunk, program, position, pitch], 1)
        changed = np.ones((len(keys), 4), bool)
        changed[1:] = np.logical_or.accumulate(keys[1:] != keys[:-1], axis=1)
        drum = program == 128
        # four candidate tokens a note: program, position, pitch, duration; those that repeat are left out
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
        """Notes `(N, 4)` of chunks that begin at `bounds[c]`; tokens that break the grammar are passed over.

        Pitches are moved back by the `shift` that `encode` moved them by; what leaves 0..127 comes back by an octave.
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
        """Semitones by which `encode` moves the pitches of a `midi.Piece`: to the common key, or not at all."""
        return home_shift(piece.notes) if self.common_key else 0

    def encode(self, piece: Any) -> list[Ints]:
        """Token ids of every chunk of a `midi.Piece`, moved by `shift`."""
        return self.encode_notes(moved(piece.notes, self.shift(piece)), piece.bounds)

    def harmony(self, piece: Any) -> Floats:
        """What sounds around every beat of every chunk of a `midi.Piece`, moved as `encode` moves it: `(C, B, 12)`."""
        notes = moved(piece.notes, self.shift(piece))
        return harmony(notes, piece.bounds, STEPS_PER_BEAT, self.max_steps // STEPS_PER_BEAT)

    def roots(self, piece: Any) -> Floats:
        """The pitch class that is lowest at every beat of every chunk, moved likewise: `(C, B, 12)`."""
        notes = moved(piece.notes, self.shift(piece))
        return lowest(notes, piece.bounds, STEPS_PER_BEAT, self.max_steps // STEPS_PER_BEAT)

    def lean(self, sounding: Floats, strength: float, roots: Floats | None = None, below: int = 0) -> Lean:
        """For decoding: notes of rows whose harmony is `sounding (N, B, 12)` lean to its pitch classes.

        A pitch weighs (share of its class + LEAST) ** strength; on a bass, where `roots (N, B, 12)` are given, the
        share there, with twice the strength, and on other instruments what is lower than the pitch `below`.
        """
        columns = np.flatnonzero(self._type == _PITCH).astype(np.int32)
        weights = (strength * np.log(sounding + LEAST)).astype(np.float32)
        low = None if roots is None else (2 * strength * np.log(roots + LEAST)).astype(np.float32)
        classes, deep = self._value[columns] % 12, self._value[columns] < below

        def lean(rows: NDArray[np.int64], state: Ints) -> tuple[Ints, NDArray[np.float32]]:
            beat = np.clip(state[:, _LAST_POSITION], 0, None) // STEPS_PER_BEAT
            told = weights[rows, beat]
            if low is not None:
                bass = np.isin(state[:, _LAST_PROGRAM], _BASSES)
                told[bass] = low[rows[bass], beat[bass]]
            out = told[:, classes]
            if low is not None and below:
                out[:, deep] = low[rows, beat][:, classes[deep]]
            return columns, out

        return lean

    def token_text(self, token: int) -> str:
        """One token to be shown: its name in MidiTok's vocabulary, such as `Pitch_60`, or a special one by its own."""
        name = self._names[token]
        return name if self._type[token] else f"<{name.removesuffix('_None').lower()}>"

    def _states(self, tokens: Ints) -> Ints:
        """The grammar's states `(..., T, 5)` before each token, without stepping through them."""
        kind, value = self._type[tokens], self._value[tokens]
        index = np.arange(tokens.shape[-1])

        def last(*kinds: int) -> NDArray[np.int64]:
            """Step of the latest token of some kinds, -1 before the first."""
            return np.maximum.accumulate(np.where(np.isin(kind, kinds), index, -1), axis=-1)

        program, position, pitch = last(_PROGRAM), last(_POSITION), last(_PITCH, _DRUM)
        # a position counts until the next program, a pitch until the next position or program
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

    def cues(self, tokens: Ints) -> Ints:
        """Cues `(..., T, 3)`: program + 1, position + 1 and pitch + 1 before each token, 0 where there is none."""
        return self.grammar().cues(self._states(tokens).reshape(-1, 5)).reshape(*tokens.shape, 3)

    def allowed(self, tokens: Ints) -> Bools:
        """`(..., T, V)`: what the grammar allows at each step of `tokens (..., T)`, in chunks of full length."""
        allowed = self.grammar().allowed(self._states(tokens).reshape(-1, 5))
        return allowed.reshape(*tokens.shape, self.vocab_size)

    def augment(self, chunks: Ints, amount: int) -> Ints:
        """Transpose by `amount` semitones; drums stay; a chunk that would leave 0..127 moves an octave back, or not."""
        pitched, value = self._type[chunks] == _PITCH, self._value[chunks]
        highest = np.where(pitched, value, 0).max(-1, keepdims=True)
        lowest = np.where(pitched, value, 127).min(-1, keepdims=True)
        # all of a chunk or none of it: pitches must go on rising
        shift = amount - 12 * (highest + amount > 127) + 12 * (lowest + amount < 0)
        shift = np.where((highest + shift > 127) | (lowest + shift < 0), 0, shift)
        moved = chunks.copy()
        moved[pitched] = self._id[_PITCH][(value + shift)[pitched]]
        return moved

    def mix(self, tokens: Ints, others: Ints, rng: np.random.Generator) -> Ints:
        """Each segment `(B, C, T)` and about half of the tracks of another, of instruments that it has not itself."""
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
        """The tokens of each program of a chunk."""
        chunk = chunk[self._type[chunk] > 0]
        starts = np.flatnonzero(self._type[chunk] == _PROGRAM)
        return {int(self._value[part[0]]): part for part in np.split(chunk, starts)[1:]}

    def grammar(self) -> MidiGrammar:
        """The rules of decoding."""
        return MidiGrammar(self)

    @classmethod
    def make(cls, config: TokenizerConfig, pieces: Callable[[], Iterable[Any]]) -> MidiTokenizer:
        """As `modality.make`; nothing is learned from pieces."""
        return cls(config.max_steps, config.common_key)

    @classmethod
    def load(cls, folder: Path, **settings: Any) -> MidiTokenizer:
        """The tokenizer with the settings that `save` wrote."""
        return cls(**settings)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"max_steps": self.max_steps, "common_key": self.common_key}
        (folder / "tokenizer.json").write_text(json.dumps({"kind": self.kind, **settings}) + "\n")


def _vocabulary(max_steps: int) -> dict[str, int]:
    """Token ids by name, in the order of MidiTok 3's REMI with programs and tokens for drums.

    Durations are exact up to the length of a chunk, and to half beats up to sixteen beats: of the notes of real files
    99.6 % are exact.
    """
    beats = max_steps // STEPS_PER_BEAT
    exact = [f"{beat}.{part}.{STEPS_PER_BEAT}" for beat in range(beats) for part in range(STEPS_PER_BEAT)]
    halves = [f"{beat}.{part}.2" for beat in range(beats, 16) for part in range(2)]
    names = [
        *(f"{name}_None" for name in ("PAD", "BOS", "EOS", "MASK", "Bar")),
        *(f"Pitch_{pitch}" for pitch in range(128)),
        *(f"Duration_{duration}" for duration in [*exact[1:], *halves, f"{max(beats, 16)}.0.2"]),
        *(f"Position_{step}" for step in range(48)),  # MidiTok has those of four beats, and the rest comes last
        *(f"PitchDrum_{pitch}" for pitch in range(128)),
        *(f"Program_{program}" for program in [*range(128), -1]),
        *(f"Position_{step}" for step in range(48, max_steps)),
    ]
    return {name: token for token, name in enumerate(names)}


def moved(notes: Ints, shift: int) -> Ints:
    """Notes with all pitches but drums moved by `shift` semitones, those that leave 0..127 back by an octave."""
    if not shift:
        return notes
    out = notes.copy()
    pitch = notes[:, 2] + np.where(notes[:, 3] == 128, 0, shift)
    out[:, 2] = pitch - 12 * (pitch > 127) + 12 * (pitch < 0)
    return out


class MidiGrammar:
    """Rules under which every decoded chunk is a set of notes inside its bar, spelled in the one right way."""

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
        """`(N, V)`: programs, positions and pitches rise strictly; positions lie inside the chunk."""
        programs, positions, notes = self._tables
        phase, program, position, pitch, length = state.T
        ended = phase == _AFTER_NOTE  # a note is complete: anything larger may follow, or the end
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

    def cues(self, state: Ints) -> Ints:
        """Cues `(N, 3)` as `MidiTokenizer.cues` has them."""
        pitch = np.where(state[:, _PHASE] == _AFTER_PITCH, state[:, _LAST_PITCH] + 1, 0)
        return np.stack([state[:, _LAST_PROGRAM] + 1, state[:, _LAST_POSITION] + 1, pitch], 1).astype(np.int32)
