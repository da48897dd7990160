"""Interpolation paths: distances from the ends by hand, and smoothness."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seqvae.evaluation import interpolation as evaluate_paths


def chord(*pitches: int) -> np.ndarray:
    return np.array([[0, 12, pitch, 0] for pitch in pitches], np.int32).reshape(-1, 4)


def test_distances_by_hand() -> None:
    latents = np.array([[0.0, 0], [3, 4], [6, 8]])
    notes = [chord(60), chord(60, 64), chord(64)]
    there = evaluate_paths.distances(latents, notes, 0)
    assert there["latent"].tolist() == [0, 5, 10]
    assert there["notes"] == pytest.approx([0, 1 - 2 / 3, 1])
    assert there["chroma"] == pytest.approx([0, 1 - 1 / math.sqrt(2), 1])
    back = evaluate_paths.distances(latents, notes, -1)
    for name in evaluate_paths.DISTANCES:
        assert back[name] == pytest.approx(there[name][::-1])
        assert evaluate_paths.walk(there[name], back[name])[:2] == (1, 1)


def test_silence_is_far_from_music_and_at_distance_0_from_silence() -> None:
    there = evaluate_paths.distances(np.zeros((3, 1)), [chord(), chord(), chord(60)], 0)
    assert there["notes"].tolist() == [0, 0, 1]
    assert there["chroma"].tolist() == [0, 0, 1]


def test_a_path_that_turns_back_is_not_monotone() -> None:
    there, back = np.array([0.0, 2, 1, 4]), np.array([4.0, 3, 2, 0])
    monotone, rising, largest = evaluate_paths.walk(there, back)
    assert monotone == 0
    assert rising == pytest.approx(5 / 6)
    assert largest == pytest.approx(3 / 4)


def test_constant_steps_are_monotone_and_equal_ends_have_no_largest_step() -> None:
    assert evaluate_paths.walk(np.array([0.0, 0, 1, 1]), np.array([1.0, 1, 0, 0]))[0] == 1
    assert math.isnan(evaluate_paths.walk(np.zeros(4), np.zeros(4))[2])
