"""Attributes of pieces made by hand, and division of a folder by them."""

from __future__ import annotations

import pytest
from conftest import MakePiece, groove

from seqvae.errors import StyleError
from seqvae.music.attributes import ATTRIBUTES, density, divide, drums, mode
from seqvae.music.piece import DRUMS, Piece


def scale(make_piece: MakePiece, steps: str, tonic: int = 0) -> Piece:
    """Two bars of a scale, its tonic and fifth twice as long."""
    rows, at = [], 0
    for step in map(int, steps.split()):
        length = 12 if step in (0, 7) else 6
        rows.append([at, length, 60 + tonic + step, 0, 80])
        at += length
    return make_piece(rows, [0, 48, 96])


def test_drums_are_counted_over_bars_with_notes(make_piece: MakePiece) -> None:
    notes = [[0, 12, 60, 0, 80], [48, 12, 60, 0, 80], [144, 12, 60, 0, 80], [150, 1, 38, DRUMS, 80]]
    assert drums(make_piece(notes, [0, 48, 96, 144, 192])) == pytest.approx(1 / 3)
    assert drums(groove(0)) == 1


@pytest.mark.parametrize("tonic", range(12))
def test_minor_is_distinguished_from_major_in_every_key(make_piece: MakePiece, tonic: int) -> None:
    assert mode(scale(make_piece, "0 2 4 5 7 9 11", tonic)) < 0
    assert mode(scale(make_piece, "0 2 3 5 7 8 11", tonic)) > 0


def test_without_pitches_there_is_no_mode(make_piece: MakePiece) -> None:
    assert mode(make_piece([[0, 1, 38, DRUMS, 80]], [0, 48])) == 0


def test_density_is_notes_a_beat(make_piece: MakePiece) -> None:
    assert density(make_piece([[0, 12, 60, 0, 80], [12, 12, 62, 0, 80]], [0, 48])) == 0.5


def test_the_lowest_and_highest_thirds_are_sparse_and_dense(make_piece: MakePiece) -> None:
    pieces = [make_piece([[at, 1, 60, 0, 80] for at in range(count)], [0, 48]) for count in range(1, 10)]
    found = divide(ATTRIBUTES["density"], pieces)
    assert found == {"sparse": pieces[:3], "dense": pieces[6:]}


def test_a_folder_with_equal_values_cannot_be_divided() -> None:
    with pytest.raises(StyleError, match="none of 2 songs is without-drums"):
        divide(ATTRIBUTES["drums"], [groove(0), groove(1)])
    with pytest.raises(StyleError, match="none of 2 songs is dense"):
        divide(ATTRIBUTES["density"], [groove(0), groove(0)])
    with pytest.raises(StyleError, match="none of 0 songs is sparse"):
        divide(ATTRIBUTES["density"], [])
