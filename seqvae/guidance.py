"""What one band says to the decoder of a bar: which instruments enter, which must play, and what the kit hits.

Scope: weights of tokens in the music vocabulary (`vocabulary.Lean`). Out of scope: how a band is chosen (band.py), and
how probabilities are multiplied (sampling.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqvae.midi_tokenizer import MidiTokenizer
from seqvae.vocabulary import EOS, Lean

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float64]
Logs = NDArray[np.float32]
DRUMS = 128
ENTER = 2.0  # log weight of an instrument of the band, against going on with the one before
NEVER = -60.0  # log weight of an instrument that is not in the band
KIT = 2.0  # power of the shares of drum hits
RARE = 0.03  # added to them
USUAL = 0.5  # the share of a hit that weighs as much as an end


@dataclass(frozen=True)
class Plan:
    """What one song says of all its bars."""

    programs: Sequence[int]
    """The band."""
    due: Sequence[int]
    """Those of the band that play in every bar that is full."""
    hits: Floats | None = None
    """`(48, 128)`: shares of bars with a drum hit, by step and pitch; None where the kit is left to the decoder."""


def lean(tokenizer: MidiTokenizer, plan: Plan, full: NDArray[np.bool_]) -> Lean:
    """Weights of all tokens for rows of which some are `full (N,)`.

    Instruments outside the band never enter, those in it weigh e^ENTER; what is due is neither passed over nor left out
    at the end. A drum hit weighs ((share + RARE) / (USUAL + RARE)) ** KIT.
    """
    programs, positions, drums = (tokenizer.ids(kind) for kind in ("program", "position", "drum"))
    size, steps = tokenizer.vocab_size, tokenizer.max_steps
    columns = np.arange(size, dtype=np.int32)
    entering = np.zeros(size, np.float32)
    entering[programs] = NEVER
    entering[programs[list(plan.programs)]] = ENTER
    late = np.zeros((DRUMS + 2, size), np.float32)  # by the last program + 1
    for program in plan.due:
        late[: program + 1, programs[program + 1 :]] = NEVER
        late[: program + 1, EOS] = NEVER
    kit = np.zeros((steps + 1, size), np.float32)  # by the last position + 1
    if plan.hits is not None:
        shares = np.zeros((steps, len(drums)))
        shares[: len(plan.hits)] = plan.hits[:steps]
        weights = KIT * np.log((shares + RARE) / (USUAL + RARE))
        kit[:, positions] = weights.max(1)
        kit[1:, drums] = weights

    def weigh(rows: Longs, state: Ints) -> tuple[Ints, Logs]:
        program, position = state[:, 1], state[:, 2]
        weights = entering + np.where(full[rows, None], late[program + 1], np.float32(0))
        on = program == DRUMS
        weights[on] += kit[position[on] + 1]
        return columns, weights

    return weigh
