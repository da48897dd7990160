"""The baseline `rule`: its loop and bass from a style, and its arrangement of a song."""

from __future__ import annotations

from conftest import MakePiece, groove

from seqvae.evaluation.rule_baseline import Rule

DRUMS = 128
KICK, SNARE, HAT = 36, 38, 42


def test_the_loop_is_the_most_typical_bar(make_piece: MakePiece) -> None:
    def song(*hits: tuple[int, int], bass: int = 33) -> object:
        twice = [[at + bar, 1, pitch, DRUMS, 90] for at, pitch in hits for bar in (0, 48)]
        return make_piece([*twice, [96, 1, KICK, DRUMS, 90], [0, 48, 40, bass, 80]], [0, 48, 96, 144])

    usual = ((0, KICK), (24, SNARE))
    songs = [song(*usual), song(*usual, (12, HAT), bass=32), song((12, HAT), (0, KICK))]
    found = Rule.of(songs)  # type: ignore[arg-type]
    assert found.loop == {(0, KICK), (24, SNARE), (12, HAT)}, "2/3 and 2/3 like the others; the first 2/3 and 1/3"
    assert found.bass == 33


def test_a_style_without_drums_has_no_loop(make_piece: MakePiece) -> None:
    bare = make_piece([[0, 48, 60, 0, 80], [0, 48, 43, 42, 80]], [0, 48])
    found = Rule.of([bare, bare, groove(0)])
    assert (found.loop, found.bass) == (frozenset(), 42), "one song of three has drums and a bass"


def test_the_arrangement_is_the_song_with_a_loop_and_a_bass(make_piece: MakePiece) -> None:
    song = make_piece(
        [[0, 36, 64, 0, 70], [0, 12, 60, 0, 70], [12, 12, 57, 40, 70], [0, 12, 40, 32, 80], [6, 1, HAT, DRUMS, 80]],
        [0, 48, 72],
    )
    made = Rule(frozenset({(0, KICK), (36, SNARE)}), 33)(song)
    own = [[0, 12, 60, 0], [0, 36, 64, 0], [12, 12, 57, 40]]
    # lowest at each beat: 40 of the removed bass, 57 and 64, moved into 28 to 39; then silence
    bass = [[0, 12, 28, 33], [12, 12, 33, 33], [24, 12, 28, 33]]
    drums = [[0, 1, KICK, DRUMS], [36, 1, SNARE, DRUMS], [48, 1, KICK, DRUMS]]
    assert sorted(made.notes[:, :4].tolist()) == sorted([*own, *bass, *drums])
    assert made.notes.tolist() == sorted(made.notes.tolist(), key=lambda row: (row[0], row[3], row[2]))
    assert made.bounds is song.bounds
