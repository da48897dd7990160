"""Chord symbols: spellings, bars, and their song of block chords."""

from __future__ import annotations

import numpy as np
import pytest

from seqvae.errors import UsageError
from seqvae.music import chords

C, CIS, D, ES, E, F, FIS, G, AS, A, B, H = range(12)


@pytest.mark.parametrize(
    ("symbol", "bass", "tones"),
    [
        ("C", C, {C, E, G}),
        ("F#m7", FIS, {FIS, A, CIS, E}),
        ("Bbmaj7", B, {B, D, F, A}),
        ("B♭Δ", B, {B, D, F, A}),
        ("C-7", C, {C, ES, G, B}),
        ("Cmin7", C, {C, ES, G, B}),
        ("Bø7", H, {H, D, F, A}),
        ("Bm7b5", H, {H, D, F, A}),
        ("Co7", C, {C, ES, FIS, A}),
        ("C°", C, {C, ES, FIS}),
        ("E+", E, {E, AS, C}),
        ("A7(b9)", A, {A, CIS, E, G, B}),
        ("G7/B", H, {G, H, D, F}),
        ("Cm7/Bb", B, {C, ES, G, B}),
        ("D5", D, {D, A}),
        ("Bb5", B, {B, F}),
        ("Bbb", A, {A, CIS, E}),
        ("C/Bbb", A, {C, E, G}),
        ("C^9", C, {C, E, G, H, D}),
        ("CM", C, {C, E, G}),
        ("C6/9", C, {C, E, G, A, D}),
        ("C+7", C, {C, E, AS, B}),
        ("C7+", C, {C, E, AS, B}),
        ("Caug7", C, {C, E, AS, B}),
    ],
)
def test_symbols_are_spelled_in_many_ways(symbol: str, bass: int, tones: set[int]) -> None:
    lowest, *others = chords.pitches(symbol)
    assert (lowest % 12, {tone % 12 for tone in others}) == (bass, tones)
    assert lowest < min(others)


@pytest.mark.parametrize("symbol", ["H", "xyz", "Cfoo", "C/X", "C/9", "7"])
def test_an_unknown_symbol_is_one_line_with_examples(symbol: str) -> None:
    with pytest.raises(UsageError, match=r"write such as") as error:
        chords.pitches(symbol)
    assert f"'{symbol}'" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "C | | G", "% | C"])
def test_a_bar_needs_a_chord(text: str) -> None:
    with pytest.raises(UsageError):
        chords.song(text, 4)


def test_chords_share_the_beats_of_a_bar_and_begin_again() -> None:
    piece = chords.song("C | F G | %", 4, tempo=90)
    basses = piece.notes[piece.notes[:, 2] < chords.CHORD]
    assert basses[:, [0, 1, 2]].tolist() == [
        [0, 48, 36], [48, 24, 41], [72, 24, 43], [96, 24, 41], [120, 24, 43], [144, 48, 36]
    ]  # fmt: skip
    assert piece.bounds.tolist() == [0, 48, 96, 144, 192]
    assert round(piece.frame.tempos[0].qpm) == 90


def test_three_beats_have_at_most_three_chords_and_silence_has_no_notes() -> None:
    assert set(chords.song("C N.C. G", 1, beats=3).notes[:, 0]) == {0, 24}
    with pytest.raises(UsageError, match="at most 3"):
        chords.song("C D E F", 1, beats=3)


def test_the_harmony_of_the_song_is_that_of_the_chords() -> None:
    from seqvae.music.tokenizer import MidiTokenizer

    tokenizer = MidiTokenizer(max_steps=48, common_key=True)
    piece = chords.song("D | Bm | G | A", 8)
    assert tokenizer.shift(piece) == -2  # D major to C major
    loud = tokenizer.harmony(piece)[1, 0].argsort()[-3:]
    assert set(np.sort(loud).tolist()) == {A, C, E}  # B minor in D is A minor in C


def test_new_songs_have_room_for_all_chords() -> None:
    from seqvae.cli.moves import segments_for

    assert [segments_for(text, 2) for text in (None, "C", "C | F", "C | F G | %")] == [0, 1, 1, 2]


def test_double_bars_and_repeat_signs_are_bar_lines() -> None:
    assert chords.bars("|: C | Am :|: F || G |]") == [["C"], ["Am"], ["F"], ["G"]]
