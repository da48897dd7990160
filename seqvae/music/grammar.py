"""The grammar of music tokens: which tokens may follow, so that every decoded chunk is a set of notes in its bar.

Scope: types of tokens, states, and tables of allowed tokens. Out of scope: the vocabulary (music/tokenizer.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from seqvae.music.notes import DRUMS
from seqvae.protocols import EOS, PAD, Bools, Ints

PROGRAM, POSITION, PITCH, DRUM, DURATION = range(1, 6)
"""Types of tokens; special tokens have the type 0."""
PHASE, LAST_PROGRAM, LAST_POSITION, LAST_PITCH, LENGTH = range(5)
"""Columns of a state."""
START, AFTER_PROGRAM, AFTER_POSITION, AFTER_PITCH, AFTER_NOTE, DONE = range(6)
"""Phases."""
PHASES = np.array([DONE, AFTER_PROGRAM, AFTER_POSITION, AFTER_PITCH, AFTER_NOTE, AFTER_NOTE], np.int32)
"""Phase after a token of each type; of the special tokens only EOS occurs."""


def rising(types: Ints, values: Ints, max_steps: int) -> tuple[Bools, Bools, Bools]:
    """Tables of allowed next tokens, indexed by the last value of a type plus 2; row 0 allows nothing.

    Programs and EOS `(130, V)`; positions before a chunk's end `(S + 1, S + 1, V)`; pitches, drums, durations and
    padding `(4, 129, V)`, of which the last two do not depend on the pitch.
    """

    def after(kind: int, count: int) -> Bools:
        rows: Bools = (types == kind) & (values > np.arange(-2, count)[:, None])
        rows[0] = False
        return rows

    programs = after(PROGRAM, DRUMS + 1)
    programs[1:, EOS] = True
    positions = after(POSITION, max_steps)[:, None] & (values < np.arange(max_steps + 1)[:, None])
    notes = np.stack([after(PITCH, 128), after(DRUM, 128), *np.zeros((2, 130, len(types)), bool)])
    notes[2], notes[3, :, PAD] = types == DURATION, True
    return programs, positions, notes


class MidiGrammar:
    """Rules by which every decoded chunk is a set of notes inside its bar, in the one order of tokens."""

    def __init__(self, types: Ints, values: Ints, max_steps: int) -> None:
        """Types and values of all tokens `(V,)`, and the longest chunk in steps."""
        self._types, self._values, self._max_steps = types, values, max_steps
        self._tables = rising(types, values, max_steps)

    def start(self, rows: int, lengths: Ints | None = None) -> Ints:
        """States `(N, 5)`: phase, last program, position and pitch (-1 for none), and chunk length in steps."""
        state = np.full((rows, 5), -1, np.int32)
        state[:, PHASE] = START
        state[:, LENGTH] = self._max_steps if lengths is None else lengths
        return state

    def states(self, tokens: Ints) -> Ints:
        """States `(..., T, 5)` before each token of full chunks `(..., T)`, computed without a loop over tokens."""
        kind, value = self._types[tokens], self._values[tokens]
        index = np.arange(tokens.shape[-1])

        def last(*kinds: int) -> NDArray[np.int64]:
            """Index of the latest token of some kinds at each step, -1 before the first."""
            return np.maximum.accumulate(np.where(np.isin(kind, kinds), index, -1), axis=-1)

        program, position, pitch = last(PROGRAM), last(POSITION), last(PITCH, DRUM)
        # a position is valid until the next program, a pitch until the next position or program
        valid = (program >= 0, position > program, pitch > np.maximum(program, position))
        after = np.empty((*tokens.shape, 5), np.int32)
        after[..., PHASE] = PHASES[kind]
        after[..., LENGTH] = self._max_steps
        for column, at, good in zip(
            (LAST_PROGRAM, LAST_POSITION, LAST_PITCH), (program, position, pitch), valid, strict=True
        ):
            after[..., column] = np.where(good, np.take_along_axis(value, np.maximum(at, 0), -1), -1)
        before = np.empty_like(after)
        before[..., 0, :] = self.start(1)[0]
        before[..., 1:, :] = after[..., :-1, :]
        return before

    def allowed(self, state: Ints) -> Bools:
        """Mask `(N, V)`: programs, positions and pitches rise strictly; positions lie inside the chunk."""
        programs, positions, notes = self._tables
        phase, program, position, pitch, length = state.T
        ended = phase == AFTER_NOTE  # after a complete note: any larger value, or EOS
        ok: Bools = programs[np.where((phase == START) | ended, program + 2, 0)]
        ok |= positions[
            np.where((phase == AFTER_PROGRAM) | ended, position + 2, 0), np.minimum(length, self._max_steps)
        ]
        of = np.where(program == DRUMS, 1, 0)
        row = np.where((phase == AFTER_POSITION) | ended, pitch + 2, 0)
        ok |= notes[np.where(phase == AFTER_PITCH, 2, np.where(phase == DONE, 3, of)), row]
        return ok

    def advance(self, state: Ints, tokens: Ints) -> Ints:
        """States `(N, 5)` after `tokens (N,)`."""
        state = state.copy()
        kind, value = self._types[tokens], self._values[tokens]
        is_program, is_position = kind == PROGRAM, kind == POSITION
        is_pitch, is_drum = kind == PITCH, kind == DRUM
        state[is_program, LAST_PROGRAM] = value[is_program]
        state[is_program, LAST_POSITION] = -1
        state[is_position, LAST_POSITION] = value[is_position]
        state[is_program | is_position, LAST_PITCH] = -1
        state[is_pitch | is_drum, LAST_PITCH] = value[is_pitch | is_drum]
        state[:, PHASE] = PHASES[kind]
        return state

    def position_fields(self, state: Ints) -> Ints:
        """Position fields `(N, 3)`, as in `MidiTokenizer.position_fields`."""
        pitch = np.where(state[:, PHASE] == AFTER_PITCH, state[:, LAST_PITCH] + 1, 0)
        return np.stack([state[:, LAST_PROGRAM] + 1, state[:, LAST_POSITION] + 1, pitch], 1).astype(np.int32)
