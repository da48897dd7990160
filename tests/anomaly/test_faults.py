"""Faults that a detector puts into its own normal sessions, and odds learned from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SESSIONS
from evidences import D, evidence
from numpy.typing import NDArray

from seqvae import codec
from seqvae.anomaly import calibration, faults, odds
from seqvae.anomaly.calibration import Calibration
from seqvae.anomaly.evidence import Evidence
from seqvae.anomaly.odds import Odds
from seqvae.anomaly.tails import surprise
from seqvae.errors import SeqVAEError

Doubles = NDArray[np.float64]


def test_each_fault_changes_a_normal_session_as_it_is_called() -> None:
    normal = SESSIONS[:150]
    found = faults.put(normal[:100], normal, 0)
    assert found == faults.put(normal[:100], normal, 0) != faults.put(normal[:100], normal, 1)
    assert not {line for lines in found.values() for line in lines} & set(normal)
    counts = [Counter(line.split()) for line in normal[:100]]
    assert all(Counter(line.split()) in counts for line in found["shuffled"])
    assert all(line.split().count(faults.UNKNOWN) == 1 for line in found["novel"])
    assert all(any((one - Counter(line.split())).total() == 1 for one in counts) for line in found["dropped"])
    assert all(any((Counter(line.split()) - one).total() == 1 for one in counts) for line in found["doubled"])
    assert {len(lines) for lines in found.values()} == {faults.MOST}
    assert not any(faults.put(["a", "b"], ["a", "b"], 0).values()), "one event has no order"
    assert not faults.put(["a b"], ["b a", "a b"], 0)["shuffled"]


def test_faults_depend_on_the_requested_and_the_known_sessions_alone(
    tiny_events: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "examine", lambda codec, lines, samples, seed: lines)
    model = codec.load(tiny_events)

    def found(others: list[str]) -> Any:
        faulty = faults.source(model, SESSIONS[:100] + others, SESSIONS[100:110], 1, 0)
        assert faulty is not None
        return faulty(range(100))

    some = found([])
    assert some
    assert found([line for lines in some for line in lines[:20]]) == some, "others that equal a fault"


def _normal(rng: np.random.Generator) -> Evidence:
    return evidence(-rng.exponential(1, 20), rng.normal(0, 1, D))


def _fault(score: str, rng: np.random.Generator) -> Evidence:
    """A piece that differs from normal in one score alone."""
    one = _normal(rng)
    if score == "error":
        return replace(one, error=one.error - np.float32(1.5))
    if score == "novelty":
        return replace(one, tokens=one.tokens + np.int32(1000))
    return replace(one, means=one.means + np.float32(12))


def _fitted(score: str | None, seed: int = 0) -> Calibration:
    rng = np.random.default_rng(7)
    normal = [_normal(rng) for _ in range(600)]

    def faulty(indices: Sequence[int]) -> list[list[Evidence]]:
        assert len(indices) == 200, "faults are put into the pieces of the tails alone"
        return [[_fault(str(score), rng) for _ in range(100)], [_fault("latent", rng) for _ in range(100)]]

    near, tokens = [torch.randn(500, D, generator=torch.Generator().manual_seed(0))], [normal[0].tokens]
    return calibration.fit(normal, "combined", near, seed, tokens, faulty=faulty if score else None)


@pytest.mark.parametrize("score", ["error", "novelty", "latent"])
def test_a_fault_that_only_one_score_sees_is_found(score: str) -> None:
    found, rng = _fitted(score), np.random.default_rng(8)
    some = [found.scores(_fault(score, rng))["combined"] for _ in range(200)]
    assert np.mean(np.array(some) < found.threshold(0.01)) > 0.95
    new = [found.scores(_normal(rng))["combined"] for _ in range(1000)]
    assert np.mean(np.array(new) < found.threshold(0.01)) < 0.03


def test_without_faults_it_is_missed() -> None:
    found, rng = _fitted(None), np.random.default_rng(8)
    some = [found.scores(_fault("error", rng))["combined"] for _ in range(200)]
    assert np.mean(np.array(some) < found.threshold(0.01)) < 0.05


def test_odds_are_the_same_for_the_same_seed_and_kept() -> None:
    found, again = _fitted("error"), _fitted("error")
    assert found.odds.landmarks.shape == (odds.LANDMARKS, len(calibration.COLUMNS))
    assert found.odds.weights.shape == (2, len(calibration.EVIDENT) + odds.LANDMARKS + 1)
    assert np.array_equal(found.odds.weights, again.odds.weights) and np.array_equal(found.normal, again.normal)
    assert not np.array_equal(found.odds.weights, _fitted("error", seed=1).odds.weights)
    kept = calibration.from_tensors("combined", found.tensors())
    one = _fault("error", np.random.default_rng(0))
    assert kept.scores(one) == found.scores(one)
    plain = _fitted(None)
    assert "odds" not in plain.tensors(), "earlier versions read it"
    assert calibration.from_tensors("combined", plain.tensors()).scores(one) == plain.scores(one)


def test_too_few_tails_learn_no_odds() -> None:
    rng = np.random.default_rng(0)
    normal = [_normal(rng) for _ in range(3 * calibration.FEWEST - 1)]
    faulty = [[_fault("error", rng) for _ in range(100)]]
    near = [torch.randn(100, D)]
    assert not len(calibration.fit(normal, known=near, faulty=lambda _: faulty).odds)
    assert len(calibration.fit([*normal, _normal(rng)], known=near, faulty=lambda _: faulty).odds)


def test_log_odds_are_those_of_two_gaussians() -> None:
    rng = np.random.default_rng(0)
    found = odds.log_odds(rng.normal(0, 1, (20_000, 2)), rng.normal([1, 0], 1, (5_000, 2)))
    assert found == pytest.approx([1, 0, -0.5], abs=0.06)


def test_a_fault_between_normal_scores_is_found_where_it_is_rare_and_earlier_odds_miss_it() -> None:
    """Normal pieces have low scores of both kinds or of none, faults of one: no sum of scores separates these."""
    rng, columns = np.random.default_rng(0), len(calibration.COLUMNS)

    def rows(count: int, fault: bool) -> Doubles:
        both = rng.random(count) < 0.5
        out = np.zeros((count, columns))
        for name, low in (("worst", both), ("latent", both ^ fault)):
            out[:, calibration.COLUMNS.index(name)] = rng.normal(-3 * low, 0.3)
        return out

    tails, evident = rows(250, False), [calibration.COLUMNS.index(name) for name in calibration.EVIDENT]
    found, sides = odds.learn(tails, [list(rows(150, True))], evident, 0), odds.ends(tails)

    def auc(some: Odds) -> float:
        def of(row: Doubles) -> float:
            surprises = np.array([sides[i][0].surprise(float(row[i])) for i in evident])
            return float(some.log(surprises, odds.two_sided(sides, row))[0])

        normal, faulty = (np.array([of(row) for row in rows(200, fault)]) for fault in (False, True))
        return float(np.mean(faulty[:, None] > normal))

    linear = Odds(np.delete(found.weights, np.arange(odds.LANDMARKS) + len(evident), 1), found.landmarks[:0])
    assert auc(found) > 0.9 and auc(linear) < 0.7


def test_odds_of_earlier_versions_are_read() -> None:
    found = _fitted("error")
    weights = found.odds.weights[:, [*range(len(calibration.EVIDENT)), -1]]
    old = {**found.tensors(), "odds": torch.from_numpy(weights)}
    del old["landmarks"]
    read, one = calibration.from_tensors("combined", old), _fault("error", np.random.default_rng(0))
    surprises = [
        surprise(read.tails[:, i], float(read._row(one)[i]))
        for i in map(calibration.COLUMNS.index, calibration.EVIDENT)
    ]
    np.testing.assert_allclose(read.odds.log(np.array(surprises), np.zeros(10)), weights @ [*surprises, 1])
    with pytest.raises(SeqVAEError, match="do not fit together"):
        calibration.from_tensors("combined", {**found.tensors(), "landmarks": torch.zeros(3, 10)})


def _p_values(weights: Doubles, normal: Doubles, new: Doubles) -> Doubles:
    """`(S,)`: p-values of `new (S, F)` among `normal (S, n, F)`; high odds are anomalous."""
    found: Doubles = (1 + ((normal @ weights) >= (new @ weights)[:, None]).sum(1)) / (normal.shape[1] + 1)
    return found


def test_p_values_hold_where_odds_are_learned_from_other_pieces_and_only_there() -> None:
    rng, n, f, level = np.random.default_rng(0), 99, 30, 0.05
    valid, invalid = [], []
    for _ in range(100):  # with 100 calibrations each
        tails, some = rng.standard_t(3, (100, f)), rng.standard_t(3, (150, f))
        normal, new = rng.standard_t(3, (100, n, f)), rng.standard_t(3, (100, f))
        valid.append(_p_values(odds.log_odds(tails, some)[:-1], normal, new))
        invalid.append(_p_values(odds.log_odds(normal[0], some)[:-1], normal[:1], new[:1]))
    found = np.concatenate(valid)
    assert len(found) == 10_000
    for at in (0.01, level, 0.2):
        assert abs(np.mean(found <= at) - at) < 4 * np.sqrt(at * (1 - at) / len(found))
    assert np.mean(np.concatenate(invalid) <= level) > 2 * level, "odds that fit the compared pieces"
