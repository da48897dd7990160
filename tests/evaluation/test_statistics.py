"""Overlaps, distances and p-values against values computed by hand and against invariants."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from seqvae.evaluation import statistics as distributions


def normal(count: int, mean: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, count)


@pytest.mark.parametrize("apart", [0.0, 0.7, 2.0, 5.0])
def test_overlapped_area_of_two_pairs_of_points(apart: float) -> None:
    """Points at -1 and 1, and the same points shifted by d: their densities cross half-way, at d / 2.

    Standard deviation sqrt 2, so the bandwidth is h = sqrt 2 * 2^(-1/5), and the area is twice the tail beyond d / 2:
    Phi(-(d / 2 - 1) / h) + Phi(-(d / 2 + 1) / h).
    """
    a = np.array([-1.0, 1.0])
    h = math.sqrt(2) * 2**-0.2
    tail = NormalDist().cdf
    by_hand = tail(-(apart / 2 - 1) / h) + tail(-(apart / 2 + 1) / h)
    assert distributions.overlapped_area(a, a + apart) == pytest.approx(by_hand, abs=2e-3)


def test_overlapped_area_is_symmetric_and_bounded() -> None:
    a, b = normal(50), normal(80, 1, 1)
    assert distributions.overlapped_area(a, b) == pytest.approx(distributions.overlapped_area(b, a))
    assert distributions.overlapped_area(a, a) == pytest.approx(1)
    assert distributions.overlapped_area(a, a + 100) == pytest.approx(0, abs=1e-6)
    assert math.isnan(distributions.overlapped_area(a, np.zeros(0)))


def test_a_set_of_equal_numbers_is_a_peak_and_no_error() -> None:
    same = np.full(5, 3.0)
    assert distributions.overlapped_area(same, same) == pytest.approx(1)
    assert distributions.overlapped_area(same, normal(100)) < 0.2


def test_overlaps_do_not_depend_on_units() -> None:
    a, b = normal(40), normal(40, 1, 1)
    assert distributions.overlapped_area(1000 * a + 5, 1000 * b + 5) == pytest.approx(
        distributions.overlapped_area(a, b), abs=1e-6
    )


def test_overlaps_of_columns_have_intervals_and_a_mean() -> None:
    a = np.column_stack([normal(60), normal(60, 3, 1)])
    b = np.column_stack([normal(70, 0, 2), normal(70, 0, 3)])
    a[:5, 1] = np.nan  # pieces without a value
    figures, (mean, low, high) = distributions.overlaps(a, b)
    assert [x[0] for x in figures] == [
        pytest.approx(distributions.overlapped_area(a[:, 0], b[:, 0])),
        pytest.approx(distributions.overlapped_area(a[5:, 1], b[:, 1])),
    ]
    assert mean == pytest.approx((figures[0][0] + figures[1][0]) / 2)
    for value, least, most in (*figures, (mean, low, high)):
        assert 0 <= least < value < most <= 1


def test_frechet_distance_of_gaussians_on_a_line() -> None:
    # means 0 and 3, standard deviations 1 and 2: 3^2 + 1 + 4 - 2 * 1 * 2
    x, y = np.array([[-1.0], [1.0]]), np.array([[1.0], [5.0]])
    assert distributions.frechet_distance(x, y) == pytest.approx(9 + 1)


def test_frechet_distance_of_covariances_that_do_not_commute() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 3)), rng.normal(size=(50, 3)) @ rng.normal(size=(3, 3))
    s, t = np.cov(x.T, bias=True), np.cov(y.T, bias=True)
    roots = np.sqrt(np.linalg.eigvals(s @ t)).real.sum()
    by_hand = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t) - 2 * roots
    assert distributions.frechet_distance(x, y) == pytest.approx(by_hand)
    assert distributions.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("count", [6, 7])
def test_halves_hold_half_and_differ(count: int) -> None:
    drawn = distributions.halves(count, 200, np.random.default_rng(0))
    assert set(drawn.sum(1)) == {(count + 1) // 2}
    assert drawn.mean(0) == pytest.approx(np.full(count, (count + 1) // 2 / count), abs=0.15)


def test_the_spread_over_halves_is_the_error_of_a_mean() -> None:
    """The mean of n numbers with deviation 1 has standard error 1 / sqrt n; means of halves have it about the mean."""
    x = normal(400)
    chosen = distributions.halves(400, 2000, np.random.default_rng(1))
    _, low, high = distributions.spread(float(x.mean()), (chosen @ x) / 200)
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(400), rel=0.1)


def test_the_sign_test_p_value_counts_all_flips() -> None:
    # of the 2^3 signs of (3, 2, 1), 1 has a sum of at least 6, and 2 a sum of at least 4
    assert distributions.flipped(np.array([3.0, 2.0, 1.0])) == pytest.approx(1 / 8, abs=0.01)
    assert distributions.flipped(np.array([3.0, 2.0, -1.0])) == pytest.approx(2 / 8, abs=0.01)
    assert distributions.flipped(np.zeros(4)) == 1
    assert distributions.flipped(np.ones(30)) == 1 / (distributions.FLIPS + 1)
    assert math.isnan(distributions.flipped(np.zeros(0)))


def test_the_sign_test_p_value_is_uniform_without_an_effect() -> None:
    found = np.array([distributions.flipped(normal(12, 0, seed), seed, 500) for seed in range(400)])
    assert (found <= 0.05).mean() == pytest.approx(0.05, abs=0.03)


def test_the_partner_test_p_value_counts_all_assignments() -> None:
    # own partner 1, others 0: among the 3! assignments only the right one has mean 1
    assert distributions.matched(np.eye(3)) == pytest.approx(1 / 6, abs=0.01)
    assert distributions.matched(np.zeros((4, 4))) == 1
    assert distributions.matched(-np.eye(3)) == 1


def test_lead_is_the_share_of_others_surpassed() -> None:
    scores = np.array([[3.0, 1, 2], [5, 5, 4], [0, 1, -1]])
    assert distributions.lead(scores).tolist() == [1, 0.75, 0]
