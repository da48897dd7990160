"""Samples compared with real music: shares, silence, distances, copies."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Trained, groove

import seqvae
from seqvae.evaluation import generation as evaluate_samples
from seqvae.music import piece as midi
from seqvae.music.piece import Piece


@pytest.mark.parametrize(
    ("count", "sizes", "expected"),
    [
        (10, {"a": 1, "b": 1}, {"a": 5, "b": 5}),
        (10, {"a": 2, "b": 1}, {"a": 7, "b": 3}),  # 6.67 and 3.33
        (5, {"a": 1, "b": 1, "c": 1}, {"a": 2, "b": 2, "c": 1}),
        (1, {"a": 0, "b": 3}, {"a": 0, "b": 1}),
    ],
)
def test_shares_add_up(count: int, sizes: dict[str, int], expected: dict[str, int]) -> None:
    assert evaluate_samples.shared(count, sizes) == expected


def test_sampled_pieces_have_all_their_bars_and_silence_is_not_an_error(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = seqvae.load(trained.best)
    codec.styles = {"odd": codec.fit_style([groove(i) for i in (1, 3, 5)])}
    drawn = evaluate_samples.draw(codec, "odd", 3, 2, seed=0)
    assert [piece.bounds.tolist() for piece in drawn] == [[0, 48, 96, 144, 192]] * 3
    assert evaluate_samples.draw(codec, "odd", 0, 2, seed=0) == []
    silence = midi.to_score(np.zeros((0, 5), np.int32), groove(0).frame)
    monkeypatch.setattr(type(codec), "sample", lambda *_: [silence])
    [piece] = evaluate_samples.draw(codec, "odd", 1, 2, seed=0)
    assert len(piece.notes) == 0
    assert len(piece.bounds) == 5


def test_figures_of_a_piece_by_hand() -> None:
    # bar 1: C and G together (1 bit), bar 2: C; onsets at 0 in both
    rows = np.array([[0, 12, 60, 0, 80], [0, 12, 67, 0, 80], [48, 12, 60, 0, 80]], np.int32)
    one, four, alike = evaluate_samples.within(Piece(rows, np.array([0, 48, 96], np.int32), groove(0).frame))
    assert one == pytest.approx(0.5)
    assert four == pytest.approx(-(2 / 3 * np.log2(2 / 3) + 1 / 3 * np.log2(1 / 3)))
    assert alike == 1


def test_frechet_distance_of_the_same_distribution_is_the_floor() -> None:
    rng = np.random.default_rng(0)

    def pieces(mean: float) -> list[np.ndarray]:
        return [rng.normal(mean, 1, (4, 3)) for _ in range(40)]

    test_songs = pieces(0)
    same, far = (evaluate_samples.frechet(pieces(mean), test_songs, 0) for mean in (0.0, 2.0))
    assert same["pieces"] == 20
    assert same["ratio"] < 2
    low, high = far["samples"][1:]
    assert low < 3 * 2**2 + far["test_songs"][0] < high * 1.2, "three dimensions, each 2 away, and what chance adds"
    assert far["samples"][1] > far["test_songs"][2]
