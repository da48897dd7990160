"""Accents: tables of a style, and the velocities of decoded notes."""

from __future__ import annotations

import numpy as np
import pytest

from seqvae.music import accents
from seqvae.music.notes import DRUMS

BOUNDS = np.array([0, 48, 96], np.int32)


def song(loud: dict[tuple[int, int, int], int]) -> tuple[np.ndarray, np.ndarray]:
    """Notes of (onset, pitch, program) with their velocities, and two bars."""
    rows = [(onset, 6, pitch, program, velocity) for (onset, pitch, program), velocity in sorted(loud.items())]
    return np.array(rows, np.int32), BOUNDS


def test_a_table_has_the_loud_first_beat_of_each_instrument_and_not_its_volume() -> None:
    one = song({(0, 36, DRUMS): 110, (12, 36, DRUMS): 90, (0, 60, 0): 70, (12, 60, 0): 50, (48, 60, 0): 70})
    table = accents.accents([one] * 50)
    assert table[128 + 36, [0, 4]] == pytest.approx([10, -10], abs=1)
    assert table[0, [0, 4]] == pytest.approx([20 / 3, -40 / 3], abs=1)
    assert not table[0, 8] and not table[5].any()  # never heard there


def test_an_instrument_without_dynamics_has_no_accents_and_few_songs_have_weak_ones() -> None:
    flat = song({(0, 60, 0): 80, (12, 60, 0): 80, (0, 36, DRUMS): 100})
    loud = song({(0, 60, 0): 100, (12, 60, 0): 60})
    assert not accents.accents([flat]).any()
    assert np.array_equal(accents.accents([flat, loud]), accents.accents([loud]))
    assert 0 < accents.accents([loud])[0, 0] < accents.accents([loud] * 20)[0, 0] < 20


def test_notes_that_stay_keep_their_velocity_and_others_have_their_bar_s() -> None:
    like, bounds = song({(0, 60, 0): 100, (12, 64, 0): 40, (48, 60, 0): 20})
    notes = np.array([[0, 6, 60, 24], [12, 6, 65, 0], [24, 6, 67, 0], [48, 6, 62, 0], [48, 6, 60, DRUMS]], np.int32)
    assert accents.velocities(notes, like, bounds).tolist() == [100, 70, 70, 20, 20]
    table = np.zeros((accents.ROWS, accents.PLACES))
    table[0, 8], table[128 + 60, 0] = 10, 200
    assert accents.velocities(notes, like, bounds, table).tolist() == [100, 70, 80, 20, 127]


def test_a_new_song_is_played_at_80() -> None:
    empty = np.zeros((0, 5), np.int32)
    assert accents.velocities(np.array([[0, 6, 60, 0]], np.int32), empty, BOUNDS).tolist() == [80]
    assert accents.velocities(empty[:, :4], empty, BOUNDS).tolist() == []
