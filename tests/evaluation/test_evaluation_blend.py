"""Content preservation, transfer strength, and gains over baselines, against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import Trained, groove

import seqvae
from seqvae.evaluation import blend as evaluate_blend
from seqvae.evaluation import test_songs
from seqvae.evaluation.style_classifier import StyleClassifier


def test_content_preservation_is_counted_bar_by_bar() -> None:
    bounds = np.array([0, 48, 96, 144], np.int32)
    song = np.array([[0, 12, 60, 0], [48, 12, 64, 0]], np.int32)
    other = np.array([[0, 12, 60, 0], [96, 12, 64, 0]], np.int32)
    kept = evaluate_blend.kept(song, other, bounds)
    assert kept == {
        "chroma": pytest.approx((1 + 0) / 2),  # the third bar is empty in the song and does not count
        "groove": pytest.approx((1 + 47 / 48) / 2),
        **dict.fromkeys(("melody", "bass", "rhythm"), pytest.approx((1 + 0) / 2)),
        "chroma_fidelity": pytest.approx((1 + 0) / 2),
        "groove_fidelity": pytest.approx((1 + 0) / 2),
    }
    nothing = evaluate_blend.kept(song[:0], other, bounds)
    assert all(math.isnan(x) for x in nothing.values())


def test_strength_by_hand() -> None:
    # a song of A at .9, its blend at .2, moved back at .8: ((.9 - .2) + (.8 - .2)) / 2
    assert evaluate_blend.strength_of(0.9, 0.2, 0.8) == pytest.approx(0.65)
    assert evaluate_blend.strength_of(1, 0, 1) == 1
    assert evaluate_blend.strength_of(0.5, 0.5, 0.5) == 0


def test_a_classifier_of_two_styles_refuses_a_third() -> None:
    stretches = [(name, groove(i)) for i in range(6) for name in [("straight", "swung")[i % 2]]]
    classifier = StyleClassifier([*stretches, ("empty", groove(0, bars=2))], 2, True, 0)
    piece = groove(9)
    probabilities = classifier.probability(piece.notes, piece.bounds)
    between = classifier.between(piece.notes, piece.bounds, "swung", "straight")
    assert between == pytest.approx(probabilities["swung"] / (probabilities["swung"] + probabilities["straight"]))
    assert between + classifier.between(piece.notes, piece.bounds, "straight", "swung") == pytest.approx(1)
    assert between > 0.5


def test_gains_are_per_song_and_above_both_baselines() -> None:
    own = np.array(["a"] * 12 + ["b"] * 12)
    better = np.where(own[:, None] == np.array(["a", "b"]), np.nan, 0.9)  # (song, target); nan for its own style
    half = np.where(np.isnan(better), np.nan, 0.5)
    names = ("amount 0.5", "amount 1", "own 0.5", "own 1")
    found = evaluate_blend._margins(
        {**dict.fromkeys(names, better), "programs swapped": half, "random 0.5": better, "random 1": half},
        own, ["a", "b"],
    )  # fmt: skip
    assert found["margin"]["amount 1 over random 1"]["all"] == pytest.approx([0.4, 0.4, 0.4])
    chance = found["p_values"]
    assert chance["amount 1 over both"]["all"] < 0.001
    assert chance["amount 1 over both"]["a to b"] < 0.002, "twelve songs: 2^-12 at the least"
    assert chance["amount 0.5 over programs swapped"]["all"] < 0.001
    assert chance["amount 0.5 over both"]["all"] == 1, "no better than a random vector"


def test_preservation_beyond_the_controls_is_paired_over_songs() -> None:
    def rows(*values: float) -> evaluate_blend.Floats:
        """`(songs, targets, KEPT)`: the first song is moved to two styles, the second to one."""
        table = np.array([[values[0], values[1]], [np.nan, values[2]]])
        return np.repeat(table[..., None], len(evaluate_blend.KEPT), 2)

    kept = dict.fromkeys(evaluate_blend.CONDITIONS, rows(0.5, 0.7, 0.6))  # songs: .6 and .6
    kept["another song, own 1"] = rows(0.1, 0.3, 0.2)  # .2 and .2
    kept["target mean"] = rows(0.5, 0.5, 0.7)  # .5 and .7: one song above, one below
    found = evaluate_blend._beyond(kept)
    assert set(found) == set(evaluate_blend.MOVES)
    assert found["own 1"]["another song"]["melody"] == pytest.approx([0.4, 0.4, 0.4])
    assert found["own 1"]["target mean"]["melody"] == pytest.approx([0, -0.1, 0.1])
    assert found["own 1, harmony 0"]["target mean"]["melody"] == [0, 0, 0], "the mean has no guidance either"
    assert found["amount 1"]["another song"]["melody"] == [0, 0, 0]


def test_the_first_segments_of_a_song_decode_as_in_the_whole_song(trained: Trained) -> None:
    codec = seqvae.load(trained.best)
    (song,) = test_songs.encode(codec, "odd", [groove(3)])
    part = song.front(2, codec.chunks)
    assert (len(song.z), len(song.harmony)) == (4, 8)
    assert (len(part.z), len(part.logvar), len(part.kl), len(part.harmony), len(part.piece.bounds)) == (2, 2, 2, 4, 5)
    assert part.shift == song.shift
    whole, front = (test_songs.decode(codec, [x], [x.z])[0] for x in (song, part))
    until = part.piece.bounds[-1]
    assert front.tolist() == whole[whole[:, 0] < until].tolist(), "segments are decoded on their own"


def test_chroma_guidance_uses_the_harmony_of_the_own_song(trained: Trained) -> None:
    codec = seqvae.load(trained.best)
    songs = test_songs.encode(codec, "odd", [groove(3), groove(8)])
    z = [torch.zeros_like(song.z) for song in songs]  # does not depend on the song
    kept = {
        strength: [
            evaluate_blend.kept(song.piece.notes, notes, song.piece.bounds)["chroma"]
            for song, notes in zip(songs, test_songs.decode(codec, songs, z, strength), strict=True)
        ]
        for strength in (0.0, 4.0)
    }
    assert np.mean(kept[4.0]) > np.mean(kept[0.0])
    assert test_songs.decode(codec, [], []) == []
