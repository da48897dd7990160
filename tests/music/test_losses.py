"""Reports of notes lost by the grid, the vocabulary and a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from symusic.core import NoteTick, ScoreTick, TrackTick

from seqvae.music import library, losses
from seqvae.music import piece as midi
from seqvae.music.tokenizer import MidiTokenizer


def read(*notes: tuple[int, int, int]) -> midi.Piece:
    """A piano piece of notes (tick of 480 a beat, ticks, pitch)."""
    score = ScoreTick(480)
    track = TrackTick("", 0, False)
    for time, duration, pitch in notes:
        track.notes.append(NoteTick(time, duration, pitch, 80))
    score.tracks.append(track)
    return midi.read(score)


def report(piece: midi.Piece, again: midi.Notes | None = None, most: int = 1024) -> str:
    tokenizer = MidiTokenizer()
    tokenizer.max_tokens = most
    return losses.sentence(tokenizer, piece, [tokenizer.encode(piece)], again)


def test_no_loss_is_reported_for_a_song_on_the_grid() -> None:
    piece = read((0, 480, 60), (480, 160, 64), (1920, 2160, 67))
    assert piece.rounding == (0, 0)
    assert report(piece, piece.notes) == ""


@pytest.mark.parametrize(
    ("notes", "words"),
    [
        ([(0, 480, 60), (15, 480, 62)], "50% begin off the grid of twelve steps a beat and are moved"),
        ([(0, 480, 60), (5, 480, 60)], "50% coincide with another of their instrument on the grid"),
        ([(0, 2200, 60), (0, 480, 62)], "50% get a length that the vocabulary has"),
    ],
)
def test_each_loss_is_reported_with_its_share(notes: list[tuple[int, int, int]], words: str) -> None:
    assert report(read(*notes)) == f"of its notes {words}"


def test_full_bars_and_unreconstructed_notes_are_reported() -> None:
    piece = read(*((0, 480, pitch) for pitch in range(60, 68)), (1920, 480, 60), (1920, 480, 61))
    assert report(piece, most=10) == "of its notes 80% are in bars that are too full for the model"
    assert report(piece, piece.notes[:9]) == "of its notes 10% do not come back"
    advice = "(5 notes a bar; `seqvae blend --keep` leaves a track unchanged)"
    assert report(piece, piece.notes[:5]) == f"of its notes 50% do not come back {advice}"
    other = piece.notes + np.array([0, 5, 0, 0, 1], np.int32)
    assert report(piece, other) == "", "durations and velocities do not count"


def test_the_cache_keeps_the_shares() -> None:
    piece = read((15, 480, 60), (0, 480, 60), (0, 240, 60))
    assert piece.rounding == pytest.approx((1 / 3, 2 / 3))
    assert library.unpack(library.pack(piece), "").rounding == piece.rounding


def test_reconstruct_and_blend_report_losses(tiny_music: Path, here: Path) -> None:
    from commands import seqvae

    score = midi.to_score(read((0, 480, 60)).notes, midi.make_frame(([], [], [])))
    score.tracks[0].notes.append(NoteTick(495, 480, 64, 80))
    midi.write(score, here / "a.mid")
    moved = "a.mid: of its notes 50% begin off the grid of twelve steps a beat and are moved"
    for verb in (["reconstruct"], ["blend", "--to", "wild"]):
        result = seqvae(*verb, "a.mid", "-m", tiny_music, "-o", "b.mid")
        assert result.stderr.startswith(moved), result.stderr


def test_blend_reports_at_amount_0_what_the_model_loses(tiny_music: Path, here: Path) -> None:
    from commands import seqvae, song

    song(here / "a.mid", 1)
    for amount, reported in (("0", True), ("0.5", False)):
        result = seqvae("blend", "a.mid", "--to", "wild", "--amount", amount, "--keep", "none", "-m", tiny_music)
        assert ("do not come back" in result.stderr) == reported, result.stderr
