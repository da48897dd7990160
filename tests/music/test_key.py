"""Transposition to C major or A minor and back from every key, and harmony by beat."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from seqvae.music.key import harmony, home_shift, lowest
from seqvae.music.notes import chroma
from seqvae.music.piece import PITCH, Piece
from seqvae.music.tokenizer import MidiTokenizer

Ints = NDArray[np.int32]
C_MAJOR = [0, 2, 4, 5, 7, 9, 11, 12]


def melody(pitches: list[int], program: int = 0) -> Ints:
    """One note per beat."""
    return np.array([[12 * i, 12, pitch, program, 80] for i, pitch in enumerate(pitches)], np.int32)


def scale(tonic: int, steps: list[int]) -> Ints:
    """A rising scale, with the tonic and its fifth repeated, as they dominate in a piece."""
    return melody([tonic + step for step in [*steps, 0, 7, 0, 4 if 4 in steps else 3, 0]])


@pytest.mark.parametrize("tonic", range(54, 66))
def test_every_major_key_is_transposed_to_c_major(tonic: int) -> None:
    assert (tonic + home_shift(scale(tonic, C_MAJOR))) % 12 == 0


@pytest.mark.parametrize("tonic", range(54, 66))
def test_every_minor_key_is_transposed_to_a_minor(tonic: int) -> None:
    notes = scale(tonic, [0, 2, 3, 5, 7, 8, 10, 12])
    assert (tonic + home_shift(notes)) % 12 == 9  # A


@given(st.lists(st.integers(0, 127), min_size=1, max_size=30))
def test_the_transposition_is_short_and_stays_in_range(pitches: list[int]) -> None:
    notes = melody(pitches)
    shift = home_shift(notes)
    assert abs(shift) <= 12
    assert min(pitches) + shift >= 0 and max(pitches) + shift <= 127


def test_drums_have_no_key() -> None:
    assert home_shift(melody([35, 38, 42, 46], program=128)) == 0
    assert not chroma(melody([35, 38], program=128)).any()


def test_a_chorale_in_f_sharp_minor_is_transposed_up_to_a_minor(bach: Piece) -> None:
    assert home_shift(bach.notes) == 3


def test_tokens_in_a_common_key_are_equal_for_every_transposition(bach: Piece) -> None:
    tokenizer = MidiTokenizer(common_key=True)
    expected = tokenizer.encode(bach)
    for semitones in (-2, 2, 6):  # further away the shift goes the other way, to another octave
        moved = bach.notes.copy()
        moved[:, PITCH] += semitones
        other = replace(bach, notes=moved)
        spelled = tokenizer.encode(other)
        assert all(np.array_equal(a, b) for a, b in zip(spelled, expected, strict=True))
        back = tokenizer.decode_notes(spelled, other.bounds, tokenizer.shift(other))
        assert set(map(tuple, back[:, :4].tolist())) == set(map(tuple, moved[:, :4].tolist()))


def test_written_keys_stay_unless_a_common_key_is_requested(bach: Piece) -> None:
    tokenizer = MidiTokenizer()
    assert tokenizer.shift(bach) == 0
    notes = tokenizer.decode_notes(tokenizer.encode(bach), bach.bounds)
    assert set(map(tuple, notes[:, :4].tolist())) == set(map(tuple, bach.notes[:, :4].tolist()))


def test_notes_out_of_range_after_transposing_back_are_moved_by_an_octave() -> None:
    tokenizer = MidiTokenizer(common_key=True)
    notes = np.array([[0, 12, 125, 0], [12, 12, 1, 0]], np.int32)
    chunks = tokenizer.encode_notes(notes, np.array([0, 48], np.int32))
    bounds = np.array([0, 48], np.int32)
    assert tokenizer.decode_notes(chunks, bounds, -5)[:, PITCH].tolist() == [118, 6]
    assert tokenizer.decode_notes(chunks, bounds, 5)[:, PITCH].tolist() == [120, 8]


def test_the_harmony_of_a_beat_is_mostly_the_notes_sounding_in_it() -> None:
    # C for a bar of two beats, then D; G# in the second bar
    notes = np.array([[0, 24, 60, 0, 80], [24, 24, 62, 0, 80], [48, 48, 68, 0, 80]], np.int32)
    weights = harmony(notes, np.array([0, 48, 96], np.int32), 12, 4)
    assert weights.shape == (2, 4, 12)
    assert weights.sum(-1) == pytest.approx(np.ones((2, 4)))
    # .5 of the beat's own, .45 of its bar (C and D equally), .05 of the piece (G# in half of it)
    assert weights[0, 0, [0, 2, 8]] == pytest.approx([0.5 + 0.225 + 0.0125, 0.225 + 0.0125, 0.025])
    assert weights[0, 3, [0, 2]] == pytest.approx([0.225 + 0.0125, 0.5 + 0.225 + 0.0125])
    assert weights[1, 2, 8] == pytest.approx(0.95 + 0.025)


def test_a_held_note_counts_in_later_beats_and_bars() -> None:
    notes = np.array([[0, 96, 60, 0, 80], [0, 12, 64, 0, 80]], np.int32)
    weights = harmony(notes, np.array([0, 48, 96], np.int32), 12, 4)
    assert weights[1, 0, 0] > 0.99 - 0.05
    assert weights[0, 1, 0] > weights[0, 0, 0]


def test_a_silent_beat_takes_the_harmony_of_its_bar_and_a_silent_bar_that_of_the_piece() -> None:
    notes = np.array([[0, 12, 60, 0, 80], [12, 12, 67, 0, 80]], np.int32)
    weights = harmony(notes, np.array([0, 48, 96], np.int32), 12, 4)
    assert (weights[0, 3] > 0).nonzero()[0].tolist() == [0, 7]
    assert (weights[1, 0] > 0).nonzero()[0].tolist() == [0, 7]


def test_drums_alone_have_no_harmony() -> None:
    weights = harmony(melody([36, 38], program=128), np.array([0, 48], np.int32), 12, 4)
    assert not weights.any()


def test_chroma_guidance_depends_on_the_current_beat_and_the_strength(bach: Piece, tokenizer: MidiTokenizer) -> None:
    weights = tokenizer.harmony(bach)
    rows = np.arange(len(weights))
    state = tokenizer.grammar().start(len(weights))
    state[:, 2] = 25  # in the third beat
    columns, weak = tokenizer.chroma_guidance(weights, 1.0)(rows, state)
    _, strong = tokenizer.chroma_guidance(weights, 2.0)(rows, state)
    assert strong == pytest.approx(2 * weak)
    sixty = int(np.flatnonzero(columns == tokenizer.vocabulary["Pitch_60"])[0])
    assert weak[:, sixty] == pytest.approx(np.log(weights[:, 2, 0] + 0.01), rel=1e-5)
    assert len(columns) == 128  # pitches without drums


def test_the_lowest_pitch_sounds_at_the_beat_or_begins_in_it() -> None:
    notes = np.array([[0, 24, 48, 0, 80], [12, 12, 64, 0, 80], [30, 6, 50, 0, 80], [60, 12, 53, 128, 80]], np.int32)
    found = lowest(notes, np.array([0, 48, 84], np.int32), 12, 4)
    assert found.shape == (2, 4, 12)
    assert found[0].argmax(-1).tolist() == [0, 0, 2, 2], "C is held, D begins late, and nothing comes after it"
    assert not found[1].any(), "drums have no pitch class"
