"""Band guidance: token weights for entering instruments, instruments that must play, and drum hits.

Scope: weights of tokens in the music vocabulary (`protocols.Guidance`). Out of scope: how a band is chosen
(music/band.py), and how probabilities are multiplied (nn/sampling.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqvae.music.notes import DRUMS, STEPS_PER_BEAT
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.protocols import EOS, Guidance

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float64]
Logs = NDArray[np.float32]
Bools = NDArray[np.bool_]
ENTER = 2.0  # log weight of an instrument of the band relative to the other tokens
NEVER = -60.0  # log weight of an instrument that is not in the band
KIT = 2.0  # power of the shares of drum hits
RARE = 0.03  # added to them
USUAL = 0.5  # the share of a hit that weighs as much as an end
BEATS = 0.25  # share of a hit from which the kit does not pass over a beat
REGISTER = 1.0  # log weight a semitone of a bass note farther than REACH from where the bass plays
REACH = 6  # semitones: of an octave each pitch class comes once
CHORD = range(48, 60)  # C3 to B3, in which the lowest note of a chord lies; its highest is above
BASSES = range(32, 40)  # General MIDI's family


@dataclass(frozen=True)
class Plan:
    """The choices of a song that hold in all its bars."""

    programs: Sequence[int]
    """The band."""
    due: Sequence[int]
    """Programs of the band that play in every full bar."""
    hits: Floats | None = None
    """`(48, 128)`: shares of bars with a drum hit, by step and pitch; None leaves the kit to the decoder."""
    middle: float | None = None
    """The pitch around which a bass plays; None leaves it to the decoder."""
    low: int | None = None
    """The program that plays the bass, if one must."""
    chords: int | None = None
    """The program that plays chords, if one must."""


def band_guidance(
    tokenizer: MidiTokenizer, plan: Plan, full: NDArray[np.bool_], changes: Bools | None = None
) -> Guidance:
    """Log weights of all tokens for N rows (bars); `full (N,)` marks bars with notes.

    Instruments outside the band never enter; instruments of the band have the weight ENTER. In full bars every due
    instrument enters. A drum hit has the weight KIT log((share + RARE) / (USUAL + RARE)). In full bars drums begin at
    every beat with a hit in BEATS of the bars, the bass at every beat at which the harmony `changes (N, B)`, and chords
    at every such beat of a half bar, with the lowest note in CHORD and the highest above. A bass note beyond REACH
    from `plan.middle` loses REGISTER a semitone; if another instrument plays the bass, this holds for its lowest note
    at those beats.
    """
    programs, positions = tokenizer.ids("program"), tokenizer.ids("position")
    steps = tokenizer.max_steps
    columns = np.arange(tokenizer.vocab_size, dtype=np.int32)
    entering, late = _entering(tokenizer, plan)
    kit, register = _kit(tokenizer, plan), _register(plan)
    beats = _beats(plan, full, changes, steps)
    following = [_following(x) for x in beats]
    outside = np.setdiff1d(np.arange(128), CHORD)
    pitches, places, carries = tokenizer.ids("pitch"), np.arange(steps), plan.low in BASSES

    def weigh(rows: Longs, state: Ints) -> tuple[Ints, Logs]:
        program, position = state[:, 1], state[:, 2]
        weights = entering + np.where(full[rows, None], late[program + 1], np.float32(0))
        on = program == DRUMS
        weights[on] += kit[position[on] + 1]
        low = program == plan.low
        near = low if carries else low & (state[:, 3] < 0) & (position >= 0)
        if not carries:
            near &= beats[0][rows, np.maximum(position, 0)]
        weights[np.ix_(near, pitches)] += register
        chords = program == plan.chords
        begins = chords & beats[2][rows, np.maximum(position, 0)] & (position >= 0)
        weights[np.ix_(begins & (state[:, 3] < 0), pitches[outside])] += NEVER
        weights[np.ix_(begins & (state[:, 3] >= 0) & (state[:, 3] < CHORD.stop), [EOS, *programs, *positions])] += NEVER
        for playing, after in zip((low, on, chords), following, strict=True):
            due = after[rows[playing], position[playing] + 1]
            mine = weights[playing]
            mine[:, positions] += np.where(places > due[:, None], np.float32(NEVER), np.float32(0))
            mine[np.ix_(due < steps, [EOS, *programs])] += NEVER
            weights[playing] = mine
        return columns, weights

    return weigh


def _entering(tokenizer: MidiTokenizer, plan: Plan) -> tuple[Logs, Logs]:
    """Weights `(V,)` of instruments that enter, and in full bars `(DRUMS + 2, V)`, by the last program + 1."""
    programs = tokenizer.ids("program")
    entering = np.zeros(tokenizer.vocab_size, np.float32)
    entering[programs] = NEVER
    entering[programs[list(plan.programs)]] = ENTER
    late = np.zeros((DRUMS + 2, tokenizer.vocab_size), np.float32)
    for program in plan.due:
        late[: program + 1, programs[program + 1 :]] = NEVER
        late[: program + 1, EOS] = NEVER
    return entering, late


def _kit(tokenizer: MidiTokenizer, plan: Plan) -> Logs:
    """Weights of drum hits and of their positions, `(S + 1, V)`, by the last position + 1."""
    drums, steps = tokenizer.ids("drum"), tokenizer.max_steps
    kit = np.zeros((steps + 1, tokenizer.vocab_size), np.float32)
    if plan.hits is not None:
        shares = np.zeros((steps, len(drums)))
        shares[: len(plan.hits)] = plan.hits[:steps]
        weights = KIT * np.log((shares + RARE) / (USUAL + RARE))
        kit[:, tokenizer.ids("position")] = weights.max(1)
        kit[1:, drums] = weights
    return kit


def _register(plan: Plan) -> Logs:
    """Weights of the pitches of a bass, `(128,)`."""
    register = np.zeros(128, np.float32)
    if plan.middle is not None:
        register -= REGISTER * np.maximum(0, np.abs(np.arange(128) - plan.middle) - REACH)
    return register


def _beats(plan: Plan, full: Bools, changes: Bools | None, steps: int) -> Bools:
    """Steps at which a bass, drums, and chords begin, `(3, N, S)`."""
    beats = np.zeros((3, len(full), steps), bool)
    if changes is not None:
        beats[0, :, : changes.shape[1] * STEPS_PER_BEAT : STEPS_PER_BEAT] = changes & full[:, None]
        beats[2, :, :: 2 * STEPS_PER_BEAT] = beats[0, :, :: 2 * STEPS_PER_BEAT]
    if plan.hits is not None:
        often = plan.hits[::STEPS_PER_BEAT].max(1) >= BEATS
        beats[1, :, : len(plan.hits) : STEPS_PER_BEAT] = often & full[:, None]
    return beats


def _following(due: Bools) -> Longs:
    """`(N, S + 1)`: by the last step + 1, the next of the steps that are `due (N, S)`, S where there is none."""
    count, steps = due.shape
    out = np.full((count, steps + 1), steps)
    for step in reversed(range(steps)):
        out[:, step] = np.where(due[:, step], step, out[:, step + 1])
    return out
