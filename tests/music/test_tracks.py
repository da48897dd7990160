"""Tracks: the melody, names of parts, and kept parts that stay unchanged and are not doubled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqvae.errors import UsageError
from seqvae.music import piece as midi
from seqvae.music.piece import DRUMS, DURATION, ONSET, PITCH, PROGRAM, Notes
from seqvae.music.tracks import MELODY, keep, melody, named

# onset, duration, pitch, program
note = st.tuples(st.integers(0, 40), st.integers(1, 12), st.integers(48, 60), st.sampled_from([0, 33, 40, DRUMS]))
bands = st.lists(note, max_size=25, unique_by=lambda row: (row[0], row[2], row[3])).map(
    lambda rows: np.array([[*row, 80] for row in sorted(rows)], np.int32).reshape(-1, 5)
)
flutes = np.array([[0, 12, 76, 73, 80], [12, 12, 74, 73, 80], [24, 24, 72, 73, 80]], np.int32)
piano = np.array([[at, 12, pitch, 0, 60] for at in (0, 12, 24, 36) for pitch in (48, 52, 55)], np.int32)
beats = np.array([[at, 1, 38, DRUMS, 90] for at in (0, 12, 24, 36)], np.int32)


def piece_of(notes: Notes) -> midi.Piece:
    """Notes as a piece without tracks."""
    return midi.Piece(notes, np.array([0, 48, 96], np.int32), midi.make_frame(([], [], [])))


def same(a: Notes, b: Notes) -> bool:
    return sorted(a.tolist()) == sorted(b.tolist())


@pytest.mark.parametrize(
    ("part", "program"),
    [("melody", MELODY), ("Drums", DRUMS), (0, 0), ("127", 127), ("acoustic grand piano", 0), ("Violin", 40)],
)
def test_parts_have_names_and_numbers(part: str | int, program: int) -> None:
    assert named([part]) == {program}


def test_an_unknown_part_is_an_error_with_suggestions() -> None:
    with pytest.raises(UsageError, match=r"no track 'fretless'; choose Fretless Bass"):
        named(["fretless"])
    for wrong in ("128", "-1", "theremin", ""):
        with pytest.raises(UsageError, match="choose melody, drums, a program from 0 to 127"):
            named([wrong])


def test_the_melody_is_the_top_line_of_the_highest_instrument() -> None:
    line, program = melody(piece_of(np.concatenate([piano, flutes, beats])))
    assert (program, same(line, flutes)) == (73, True)
    line, program = melody(piece_of(np.concatenate([piano, beats])))
    assert (program, line[:, PITCH].tolist()) == (0, [55] * 4)
    line, program = melody(piece_of(beats))
    assert (program, len(line)) == (-1, 0)


@given(bands, bands, st.sets(st.sampled_from([0, 33, DRUMS])))
def test_a_kept_instrument_is_unchanged_and_the_others_are_new(new: Notes, old: Notes, parts: set[int]) -> None:
    result = keep(new, piece_of(old), frozenset(parts))
    for program in (0, 33, 40, DRUMS):
        expected = old if program in parts else new
        assert same(result[result[:, PROGRAM] == program], expected[expected[:, PROGRAM] == program])


@given(bands, bands, st.booleans())
def test_a_kept_melody_stays_complete_on_top_and_is_not_doubled(new: Notes, old: Notes, drums: bool) -> None:
    result = keep(new, piece_of(old), frozenset({MELODY, DRUMS} if drums else {MELODY}))
    line, program = melody(piece_of(old))
    rows = result.tolist()
    assert all(row in rows for row in line.tolist())
    assert len({(row[ONSET], row[PITCH], row[PROGRAM]) for row in rows}) == len(rows)
    kept = line.tolist()
    for row in rows:
        if row in kept or row[PROGRAM] == DRUMS:
            continue
        assert row in new.tolist()
        for step in range(row[ONSET], row[ONSET] + row[DURATION]):
            sounding = [one for one in kept if one[ONSET] <= step < one[ONSET] + one[DURATION]]
            if sounding:
                assert row[PITCH] < max(sounding, key=lambda one: one[ONSET])[PITCH]
    if len(line) and (old[:, PROGRAM] == program).sum() < 2 * len(line):
        assert same(result[result[:, PROGRAM] == program], line), "an instrument of the melody's own"


def test_the_melody_of_the_model_is_replaced() -> None:
    old, new = np.concatenate([piano, flutes]), np.concatenate([piano, flutes - np.array([0, 0, 1, 0, 0]), beats])
    assert same(keep(new, piece_of(old), frozenset({MELODY})), np.concatenate([flutes, piano, beats]))


def test_a_score_has_kept_notes_to_the_tick() -> None:
    old = np.concatenate([piano, flutes])
    new = np.concatenate(
        [piano + np.array([0, 0, 24, 0, 0]), beats]
    )  # the piano would play above the flute, on its pitches
    again = midi.read(midi.to_score(keep(new, piece_of(old), frozenset({MELODY})), midi.make_frame(([], [], []))))
    assert same(again.notes[again.notes[:, PROGRAM] == 73], flutes)
