"""Chords of bars, their transitions over songs, and progressions drawn from these."""

from __future__ import annotations

import numpy as np

from seqvae.music.chords import song
from seqvae.music.progressions import START, SYMBOLS, chords, progression, transitions
from seqvae.style import form


def test_block_chords_are_heard_as_their_symbols() -> None:
    text = ["C", "Am", "Dm7", "G7", "Fmaj7", "Bdim", "Esus4", "Bbm"]
    piece = song(" | ".join(text), 8)
    assert [SYMBOLS[i] for i in chords(piece.notes, piece.bounds)] == text


def test_bars_without_pitched_notes_have_no_chord() -> None:
    piece = song("C | N.C. | F", 3)
    assert [SYMBOLS[i] for i in chords(piece.notes, piece.bounds)] == ["C", "F"]


def test_transitions_are_probabilities_in_a_common_key() -> None:
    low, high = (song(text, 16) for text in ("C | F | G | C", "D | G | A | D"))  # the same a tone higher
    table = transitions([(one.notes, one.bounds) for one in [low, high] * 4])
    np.testing.assert_allclose(table.sum(1), 1)
    assert SYMBOLS[int(table[START].argmax())] == "C"
    assert SYMBOLS[int(table[SYMBOLS.index("F")].argmax())] == "G"
    assert table[SYMBOLS.index("F"), SYMBOLS.index("A")] < 1e-9  # only known chords come
    np.testing.assert_allclose(table, transitions([(low.notes, low.bounds)] * 8))


def test_few_songs_have_no_table() -> None:
    piece = song("C | F", 8)
    assert not transitions([(piece.notes, piece.bounds)] * 7).any()


def test_a_progression_repeats_the_sections_of_the_form() -> None:
    table = np.full((START + 1, START), 1 / START)
    drawn = progression(table, form.order(16), np.random.default_rng(0)).split(" | ")
    assert len(drawn) == 16
    assert drawn[:4] == drawn[4:8] == drawn[12:]
    assert drawn[8:12] != drawn[:4]
    again = progression(table, form.order(16), np.random.default_rng(1)).split(" | ")
    assert again != drawn
    assert len(song(" | ".join(SYMBOLS), len(SYMBOLS)).notes) >= 4 * len(SYMBOLS)  # each is a chord symbol
