"""Guarantees of conformal tests by simulation: 10,000 calibrations, with binomial intervals around the stated rates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from seqvae.anomaly import conformal
from seqvae.anomaly.conformal import Change, ChangeTest

RUNS = 10_000
Doubles = NDArray[np.float64]


def above(share: float, runs: int = RUNS) -> float:
    """A frequency that a probability of `share` exceeds once in 30,000 times."""
    return share + 4 * math.sqrt(share * (1 - share) / runs)


def below(share: float, runs: int = RUNS) -> float:
    return share - 4 * math.sqrt(share * (1 - share) / runs)


@pytest.fixture(scope="module")
def calibrations() -> Doubles:
    """Sorted uniform scores of 300 normal pieces per calibration: a score is the share of normal scores below it."""
    return np.sort(np.random.default_rng(0).random((RUNS, 300)), 1)


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3, 15, 299, 300])
@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_the_bound_holds_in_the_stated_share_of_calibrations(
    calibrations: Doubles, rank: int, confidence: float
) -> None:
    kept = (calibrations[:, rank - 1] <= conformal.bound(rank, 300, confidence)).mean()
    assert below(confidence) < kept < above(confidence)


def test_ties_can_only_make_fewer_false_alarms(calibrations: Doubles) -> None:
    limits = np.floor(calibrations[:, 14] * 50) / 50  # rounded down: exactly that share lies below
    assert (limits <= conformal.bound(15, 300)).mean() > 0.97


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_a_rank_with_confidence_is_the_largest_that_holds(calibrations: Doubles, share: float) -> None:
    rank = conformal.rank(share, 300, 0.95)
    assert (calibrations[:, rank - 1] <= share).mean() > below(0.95)
    assert (calibrations[:, rank] <= share).mean() < above(0.95)
    assert conformal.bound(rank, 300) <= share < conformal.bound(rank + 1, 300)


def test_a_rank_without_confidence_holds_on_average(calibrations: Doubles) -> None:
    rank = conformal.rank(0.05, 300)
    assert rank == 15
    rates = calibrations[:, rank - 1]
    assert rates.mean() == pytest.approx(15 / 301, abs=4 * rates.std() / math.sqrt(RUNS))
    assert (rates <= 0.05).mean() < 0.6, "which one calibration may well exceed"


def test_sizes_by_hand() -> None:
    assert conformal.sample_size(0.01, 0.95) == 299 == math.ceil(math.log(0.05) / math.log(0.99))
    assert (conformal.sample_size(0.05, 0.95), conformal.sample_size(0.5, 0.75)) == (59, 2)
    assert (conformal.sample_size(0.01), conformal.sample_size(0.002)) == (99, 499)
    for share, confidence in ((0.01, 0.95), (0.001, 0.99), (0.5, 0.75), (0.1, None), (1 / 3, None)):
        n = conformal.sample_size(share, confidence)
        assert conformal.rank(share, n, confidence) >= 1
        assert n == 1 or conformal.rank(share, n - 1, confidence) == 0
        least = conformal.least_share(n, confidence)
        assert conformal.rank(least, n, confidence) >= 1
        assert share * (1 - 1e-9) <= least * 1.1


def test_bounds_at_the_ends_of_their_range() -> None:
    assert (conformal.bound(0, 9), conformal.bound(10, 9)) == (0, 1)
    assert conformal.bound(1, 299) == pytest.approx(1 - 0.05 ** (1 / 299))
    assert conformal.bound(299, 299) == pytest.approx(0.95 ** (1 / 299))


# --- p-values ---------------------------------------------------------------------------------------------------------


def test_smoothed_p_values_are_uniform_where_scores_tie() -> None:
    rng = np.random.default_rng(1)
    scores = rng.choice(4, (RUNS, 20), p=[0.1, 0.6, 0.2, 0.1]).astype(float)
    drawn = 1 - rng.random(RUNS)
    p = np.array([conformal.smoothed(np.sort(row[1:]), row[0], u) for row, u in zip(scores, drawn, strict=True)])
    for share in (0.02, 0.1, 0.5, 0.9):
        assert below(share) < (p <= share).mean() < above(share)
    assert 0 < p.min() < p.max() <= 1


def test_ties_are_broken_by_seed_and_position() -> None:
    drawn = [conformal.uniform(3, i) for i in range(2000)]
    assert drawn == [conformal.uniform(3, i) for i in range(2000)]
    assert len({*drawn, *(conformal.uniform(4, i) for i in range(2000))}) == 4000
    assert 0.47 < np.mean(drawn) < 0.53


def test_discoveries_by_hand() -> None:
    assert conformal.discoveries([0.01, 0.9, 0.03, 0.029, 0.5], 0.05).tolist() == [True, False, True, True, False]
    assert conformal.discoveries([0.06, 0.9], 0.1).tolist() == [False, False]
    assert conformal.discoveries([0.1, 0.1], 0.1).tolist() == [True, True], "all of them"
    assert conformal.discoveries([], 0.1).tolist() == []
    assert conformal.least_discoveries(100, 99, 0.1) == 10
    few = np.array([0.01] * 10 + [1.0] * 90)
    assert conformal.discoveries(few, 0.1).sum() == 10
    few[0] = 1
    assert conformal.discoveries(few, 0.1).sum() == 0


@pytest.mark.parametrize("ties", [False, True])
def test_the_false_discovery_rate_is_the_stated_one(ties: bool) -> None:
    rng = np.random.default_rng(2)
    rate, normal, strange, n = 0.2, 15, 5, 60
    calibration, new = rng.normal(size=(RUNS, n)), rng.normal(size=(RUNS, normal + strange))
    new[:, normal:] -= 3
    if ties:
        calibration, new = np.round(calibration * 2), np.round(new * 2)
    p = (1 + (calibration[:, None, :] <= new[:, :, None]).sum(2)) / (n + 1)
    found = np.array([conformal.discoveries(row, rate) for row in p])
    false = found[:, :normal].sum(1) / np.maximum(found.sum(1), 1)
    promised = rate * normal / (normal + strange)
    assert false.mean() < promised + 4 * false.std() / math.sqrt(RUNS)
    assert found[:, normal:].mean() > 0.5
    if not ties:
        assert false.mean() > promised / 2, "and not much less"


# --- drift of the normal data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("anomalies", [0, 6])
def test_a_drift_is_reported_in_the_stated_share_of_unchanged_calibrations(anomalies: int) -> None:
    rng = np.random.default_rng(3)
    n, m, rank = 50, 60, 25
    limits = np.sort(rng.random((RUNS, n)), 1)[:, rank - 1 : rank]
    new = rng.random((RUNS, m))
    new[:, :anomalies] = -1
    table = np.array([conformal.change_p_value(count, m, rank, n, anomalies) for count in range(m + 1)])
    assert (np.diff(table) <= 0).all()
    p = table[(new < limits).sum(1)]
    for share in (0.01, 0.05, 0.3):
        exact = table[table <= share].max()  # the probability of a p-value as low
        assert below(exact) < (p <= share).mean() < above(exact) <= above(share)


def run(rng: np.random.Generator, n: int, m: int, shift: float = 0, strange: float = 0) -> Change | None:
    """Result of the test on m new pieces: normal ones are `shift` standard deviations lower, a share is `strange`."""
    calibration, new = np.sort(rng.normal(size=n)), rng.normal(size=m) - shift
    new[rng.permutation(m)[: round(strange * m)]] = -99
    test = ChangeTest(n)
    found = [test.add(float(p)) for p in (1 + np.searchsorted(calibration, new, "right")) / (n + 1)]
    return next((change for change in [*found, test.look()] if change is not None), None)


def test_unchanged_normal_data_rarely_count_as_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformal, "ALARM", 0.2)
    monkeypatch.setattr(conformal, "ANOMALIES", 0.0)
    rng = np.random.default_rng(4)
    alarms = np.mean([run(rng, 80, 230) is not None for _ in range(1000)])
    assert 0.02 < alarms < above(0.2, 1000), "over all looks"


def test_a_shift_is_distinguished_from_attacks() -> None:
    rng = np.random.default_rng(5)
    assert not any(run(rng, 300, 400, strange=0.05) for _ in range(100))
    changes = [run(rng, 300, 400, shift=1) for _ in range(50)]
    assert sum(change is not None for change in changes) == 50
    assert sum(run(rng, 300, 400, strange=0.3) is not None for _ in range(50)) >= 48, "a new kind of piece"
    first = changes[0]
    assert first is not None
    assert first.seen <= 100, "and as early as possible"
    assert first.share > first.level
    assert first.p_value < conformal.ALARM
    assert not any(run(rng, 300, 400, shift=-1) for _ in range(20)), "higher scores are no alarm"


def test_few_pieces_are_no_drift() -> None:
    test = ChangeTest(300)
    found = [test.add(1 / 301) for _ in range(conformal.LOOK - 1)]
    assert found == [None] * (conformal.LOOK - 1)
    assert test.look() is None
    change = test.add(1 / 301)
    assert change == Change(50, 1.0, 0.1, change.p_value if change else 0.0)
