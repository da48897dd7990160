"""P-values are valid for any data, and scores measure how anomalous a piece is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from evidences import D, compared, evidence, pieces
from hypothesis import assume, example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from seqvae.anomaly import calibration
from seqvae.anomaly.calibration import (
    COLUMNS,
    COMBINED,
    FISHER,
    LEAST,
    Calibration,
    Score,
    figures,
    fit,
)
from seqvae.anomaly.evidence import Evidence
from seqvae.anomaly.tails import DIGITS
from seqvae.anomaly.tails import pareto_surprise as _pareto_surprise
from seqvae.anomaly.tails import surprise as _surprise
from seqvae.errors import SeqVAEError

Doubles = NDArray[np.float64]
Rng = np.random.Generator
SCORES = get_args(Score)

nats = st.floats(-50, 0, allow_subnormal=False).map(lambda x: round(x, 2))
halves = st.integers(-8, 8).map(lambda x: x / 2)  # many of them equal


# --- figures ----------------------------------------------------------------------------------------------------------


def test_figures_by_hand() -> None:
    piece = replace(evidence([-1, -4, -1], kl=3), read=5)
    by_hand = {
        "probability": -2, "error": -1.9, "elbo": -9 / 5, "importance": -8.5 / 5, "worst": -4, "familiar": -2,
        "sum": -6, "quantile": -3.4,
    }  # fmt: skip
    assert dict(zip(COLUMNS, figures(piece).tolist(), strict=False)) == pytest.approx(by_hand)
    assert len(figures(piece)) == len(COLUMNS) - 2
    assert COLUMNS[-2:] == ("novelty", "latent"), "columns that need more than the evidence"


def test_familiarity_is_the_best_run_of_a_long_piece() -> None:
    long = [-1.0] * 100 + [-0.5] * calibration.RUN + [-9.0] * 50
    row = dict(zip(COLUMNS, figures(evidence(long)).tolist(), strict=False))
    assert row["familiar"] == -0.5
    assert row["probability"] < -2
    assert row["worst"] == -9


@given(st.lists(st.floats(-20, 0, width=32), min_size=1, max_size=40), st.integers(0, 2**32 - 1))
def test_last_digits_do_not_change_scores(log_prob: list[float], seed: int) -> None:
    piece = evidence(np.round(log_prob, 2))
    exact = replace(piece, error=piece.error.round(2), elbo=-1.0, importance=-2.0, read=1)
    rng = np.random.default_rng(seed)
    shaken = replace(
        exact,
        log_prob=exact.log_prob + rng.uniform(-1e-5, 1e-5, len(log_prob)).astype(np.float32),
        elbo=-1.0 + 1e-6,
    )
    mean = exact.log_prob.astype(float).mean() * 10**DIGITS
    assume(abs(mean % 1 - 0.5) > 0.1)  # a value on the border of two roundings may fall to either side
    assert figures(shaken).tolist() == figures(exact).tolist()


# --- p-values ---------------------------------------------------------------------------------------------------------


def test_p_values_by_hand() -> None:
    normal = compared([-3, -2, -2, -1])
    expected = {-9: 1 / 5, -3.01: 1 / 5, -3: 2 / 5, -2.5: 2 / 5, -2: 4 / 5, -1.5: 4 / 5, -1: 1, 7: 1}
    assert {score: normal.p_value(score) for score in expected} == expected


def test_bounds_by_hand() -> None:
    normal = compared([-3, -2, -2, -1])
    assert normal.bound(-3, 0.2) == pytest.approx(1 - 0.05**0.25), "nothing is below"
    assert normal.bound(-1, 0.8) == pytest.approx(0.95**0.25)
    assert normal.bound(-2, None) == normal.bound(-2, 0.6), "the largest possible rank"
    assert normal.bound(-2.5, None) == normal.bound(-2, 0.4)
    assert normal.bound(-3, 0.5, 0.9) == pytest.approx(1 - 0.1**0.25)
    assert normal.bound(math.inf, 1) == normal.bound(0, None) == 1
    assert normal.p_value(-2, 0.5) == (1 + 0.5 * 3) / 5


def test_thresholds_by_hand() -> None:
    normal = compared([-3, -2, -2, -1])
    expected = {0.1: -math.inf, 0.2: -3, 0.3: -3, 0.4: -2, 0.6: -2, 0.8: -1, 0.99: -1, 1: math.inf, 0: -math.inf}
    assert {p: normal.threshold(p) for p in expected} == expected
    assert normal.threshold(0.5, 0.9) == -3, "P(Binomial(4, 0.5) >= 1) = 0.94"
    assert normal.threshold(0.4, 0.9) == -math.inf
    assert compared([]).p_value(-99) == 1, "without a calibration nothing is anomalous"
    assert compared([]).threshold(0.99) == -math.inf


@given(
    normal=st.lists(halves | nats, max_size=40),
    score=halves | nats,
    p=st.floats(0, 1) | st.tuples(st.integers(0, 41), st.integers(1, 41)).map(lambda x: min(1.0, x[0] / x[1])),
)
@example(normal=[-1.0] * 9, score=-1.0, p=math.nextafter(1, 0))
@example(normal=[-2.0, -1.0], score=-3.0, p=math.nextafter(1 / 3, 0))
@example(normal=[-2.0, -1.0], score=-3.0, p=1 / 3)
def test_a_score_is_below_the_threshold_exactly_when_its_p_value_is_low_enough(
    normal: list[float], score: float, p: float
) -> None:
    found = compared(normal)
    for here in (score, *normal):
        assert (here < found.threshold(p)) == (found.p_value(here) <= p)


@given(st.lists(halves, min_size=1, max_size=30), st.lists(halves, min_size=2, max_size=10))
def test_the_lower_the_score_the_lower_the_p_value(normal: list[float], scores: list[float]) -> None:
    found = compared(normal)
    values = [found.p_value(score) for score in sorted(scores)]
    assert values == sorted(values)
    assert all(1 / (len(normal) + 1) <= value <= 1 for value in values)
    thresholds = [found.threshold(p) for p in np.linspace(0, 1, 30)]
    assert thresholds == sorted(thresholds)


Draw = Callable[[Rng], Evidence]


def _smooth(rng: Rng) -> Evidence:
    return evidence(-rng.exponential(1, rng.integers(1, 20)), rng.normal(0, 1, D))


def _few(rng: Rng) -> Evidence:
    """Samples of five sessions: one is rare, one has two windows."""
    kind = rng.choice(5, p=[0.6, 0.2, 0.1, 0.07, 0.03])
    where = np.full((1 + kind % 2, D), float(kind))
    return evidence([-1.0, -float(kind), -0.25], where)


def _heavy(rng: Rng) -> Evidence:
    """Distributions without a mean, in tokens and in latents, with an infinitely low score now and then."""
    return evidence(-np.abs(rng.standard_cauchy(3)).clip(max=1e6), rng.standard_cauchy(D).clip(-1e6, 1e6))


def _groups(rng: Rng) -> Evidence:
    """Two unrelated clusters, one of them constant."""
    if rng.random() < 0.3:
        return evidence([-3.0] * 5, [9.0] * D)
    return evidence(rng.uniform(-1, 0, 40), rng.normal(0, 1e-3, D))


@pytest.mark.parametrize("draw", [_smooth, _few, _heavy, _groups])
@pytest.mark.parametrize(("score", "known"), [("combined", 0), ("combined", 12), ("latent", 0)])
def test_at_most_a_share_p_of_new_normal_pieces_has_a_p_value_of_p_or_less(
    draw: Draw, score: Score, known: int
) -> None:
    """Over many draws of known, calibration and new pieces from the same distribution, whatever it is."""
    shares, levels = [], np.array([0.1, 0.2, 0.35, 0.5])
    for seed in range(150):
        rng = np.random.default_rng([seed, known])
        reference = [torch.from_numpy(draw(rng).means) for _ in range(known)]
        found = fit([draw(rng) for _ in range(24)], score, reference, seed)
        values = np.array([found.p_value(found.scores(draw(rng))[score]) for _ in range(6)])
        shares.append((values[:, None] <= levels).mean(0))
    share, error = np.mean(shares, 0), np.std(shares, 0) / math.sqrt(len(shares))
    assert (share <= levels + 3 * error).all()
    if draw is _smooth:  # without ties the share is also no less, up to the granularity of the p-values
        steps = len(found.normal) + 1
        assert (share >= np.floor(levels * steps) / steps - 3 * error).all()


# --- surprise ---------------------------------------------------------------------------------------------------------

columns = st.lists(halves | nats, min_size=2, max_size=60).map(lambda x: np.sort(np.array(x, float)))


@given(columns, halves | nats)
def test_surprise_is_the_share_of_normal_scores_as_low_and_interpolated_between_them(
    column: Doubles, value: float
) -> None:
    n = len(column)
    for figure in column.tolist():
        assert _surprise(column, figure) == pytest.approx(-math.log(((column <= figure).sum() + 1) / (n + 1)))
    below, above = column[column <= value], column[column >= value]
    if len(below) and len(above):
        ends = sorted([_surprise(column, float(above[0])), _surprise(column, float(below[-1]))])
        assert ends[0] - 1e-9 <= _surprise(column, value) <= ends[1] + 1e-9


@pytest.mark.parametrize("surprise", [_surprise, _pareto_surprise])
@given(column=columns, values=st.lists(halves | st.floats(-1e6, 10), min_size=2, max_size=20))
def test_the_lower_the_figure_the_greater_the_surprise(
    surprise: Callable[[Doubles, float], float], column: Doubles, values: list[float]
) -> None:
    surprises = [surprise(column, value) for value in sorted(values, reverse=True)]
    assert all(low <= high + 1e-9 for low, high in pairwise(surprises))
    assert surprises[0] >= 0
    assert all(math.isfinite(surprise) for surprise in surprises)
    low = float(column[0]) - 1
    assert surprise(column, low - 5) > surprise(column, low) > surprise(column, float(column[0]))


@pytest.mark.parametrize("surprise", [_surprise, _pareto_surprise])
def test_the_tail_has_the_shape_of_pareto_and_the_scale_of_the_figures(
    surprise: Callable[[Doubles, float], float],
) -> None:
    column = np.sort(np.random.default_rng(0).normal(0, 1, 400))
    far = [surprise(column, -(10.0**k)) for k in range(4, 8)]
    np.testing.assert_allclose(np.diff(far), math.log(10), atol=1e-3)  # ten times as far is a tenth as likely
    for scale in (0.5, 20.0):
        for value in (-5.0, -1.5, 0.0, 1.0):
            assert surprise(scale * column, scale * value) == pytest.approx(surprise(column, value), rel=1e-3)


def test_equal_figures_make_the_last_digit_no_surprise() -> None:
    column = np.full(100, -1.0)
    for surprise, most, least in ((_pareto_surprise, 3.2, 8), (_surprise, 0.5, 6.9)):
        assert surprise(column, -1.0) == 0
        assert surprise(column, -1.0 - 10.0**-DIGITS) < most
        assert surprise(column, -2.0) > least


# --- distance ---------------------------------------------------------------------------------------------------------


def spread(count: int, seed: int = 0, dimensions: int = D) -> Tensor:
    """Points that correlate, in dimensions of unlike scales."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=torch.Generator().manual_seed(99))
    return 5 + torch.randn(count, dimensions, generator=generator) @ mixing * torch.logspace(-0.5, 0.5, dimensions)


def mahalanobis(known: Tensor, z: Tensor) -> float:
    """By the inverse of the covariance: from `z` to the nearest of `known`."""
    inverse = np.linalg.inv(np.cov(known.double().numpy().T))
    return min(math.sqrt(float(x @ inverse @ x)) for x in (known - z).double().numpy())


def test_known_latents_are_at_distance_0() -> None:
    known = spread(300)
    found = fit(pieces(20), known=[known[:100], known[100:]])
    assert [found.distance(known[i : i + 1].numpy()) for i in range(300)] == [0] * 300
    assert found.distance(known.numpy()) == 0, "a piece of many known segments"


def test_other_latents_have_their_mahalanobis_distance() -> None:
    known = spread(3000)
    found = fit(pieces(20), known=[known])
    for i, z in enumerate(spread(20, seed=7) * torch.linspace(1, 9, 20)[:, None]):
        expected = mahalanobis(known, z)
        assert found.distance(z[None].numpy()) == pytest.approx(expected, rel=0.05, abs=2e-3), i
    assert expected > 10


def test_the_distance_of_a_piece_is_the_mean_of_its_segments() -> None:
    found = fit(pieces(20), known=[spread(100)])
    segments = spread(5, seed=3).mul(3).numpy()
    each = [found.distance(segments[i : i + 1]) for i in range(5)]
    assert found.distance(segments) == pytest.approx(np.mean(each), abs=2e-3)
    assert len(set(each)) == 5


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_distances_do_not_depend_on_the_scale_of_the_latents(scale: float) -> None:
    known, z = spread(500), 2 * spread(8, seed=2)
    one = fit(pieces(20), known=[known])
    other = fit(pieces(20), known=[scale * known])
    for x in z:
        assert other.distance(scale * x[None].numpy()) == pytest.approx(one.distance(x[None].numpy()), rel=1e-2)


def test_equal_normal_latents_make_rounding_no_distance() -> None:
    where = torch.tensor([[0.7, -1.3, 0.02]])
    found = fit(pieces(20), known=[where] * 50)
    shaken = where + torch.tensor([[1e-7, -2e-7, 1e-7]])
    assert found.distance(where.numpy()) == found.distance(shaken.numpy()) == 0
    assert found.distance((where + 0.1).numpy()) > 10, "but any other is distant"


def test_a_subset_of_very_many_known_latents_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    known = spread(400)
    whole = fit(pieces(20), known=[known, known])
    assert whole.latents.shape == (400, D), "each once"
    monkeypatch.setattr(calibration, "LATENTS", 100 * D)
    part, again, other = (fit(pieces(20), known=[known], seed=seed) for seed in (0, 0, 1))
    assert part.latents.shape == (100, D)
    assert torch.equal(part.latents, again.latents)
    assert not torch.equal(part.latents, other.latents)
    distances = [part.distance(x[None].numpy()) for x in known]
    assert distances.count(0) == 100
    assert max(distances) < 3, "and the others have a neighbour"


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted() -> Calibration:
    return fit(pieces(300))


USUAL = [-1.0, -0.4, -1.5, -0.1, -2.0, -0.8]


def test_every_score_is_reported(fitted: Calibration) -> None:
    piece = evidence(USUAL, [1.0, 2.0, 3.0])
    scores = fitted.scores(piece)
    assert set(scores) == set(SCORES)
    others = [-fitted.novelty(piece.tokens), -fitted.distance(piece.means)]
    assert [scores[name] for name in COLUMNS] == [*figures(piece).tolist(), *others]
    by_hand = {name: _surprise(fitted.tails[:, COLUMNS.index(name)], scores[name]) for name in COMBINED}
    total = sum(math.exp(exponent * by_hand[name]) for name, exponent in COMBINED.items())
    assert scores["combined"] == pytest.approx(-math.log(total))
    fisher = sum(_pareto_surprise(fitted.tails[:, COLUMNS.index(name)], scores[name]) for name in FISHER)
    assert scores["fisher"] == pytest.approx(-fisher)


@given(st.lists(nats, min_size=len(COLUMNS), max_size=len(COLUMNS)), st.sampled_from([*COMBINED]), st.floats(0, 100))
def test_the_combined_score_falls_with_each_of_its_components_alone(
    fitted: Calibration, row: list[float], name: Score, by: float
) -> None:
    def combined(figures: list[float]) -> float:
        return fitted._scores(np.array(figures))["combined"]

    i = COLUMNS.index(name)
    lower = [x - by if k == i else x for k, x in enumerate(row)]
    assert combined(lower) <= combined(row)
    far = [min(x, float(fitted.tails[0, i])) - 1 - by if k == i else x for k, x in enumerate(row)]
    assert combined(far) < combined(row), "in the tail it falls with every step"
    others = [x if column in COMBINED else x - by for column, x in zip(COLUMNS, row, strict=True)]
    assert combined(others) == combined(row)


def test_a_piece_anomalous_in_one_component_is_detected(fitted: Calibration) -> None:
    usual = fitted.scores(evidence(USUAL))
    assert fitted.p_value(usual["combined"]) > 0.3
    unlikely = evidence([-4.0] * 6)  # none of them is the lowest of the calibration
    one_token = evidence([*[0.0] * 500, -200.0])  # with a mean better than usual
    elsewhere = evidence(USUAL, [40.0, 0.0, 0.0])
    for name, piece in {"probability": unlikely, "worst": one_token, "latent": elsewhere}.items():
        scores = fitted.scores(piece)
        assert scores[name] < usual[name]  # type: ignore[index]
        assert fitted.p_value(scores["combined"]) < 0.05, name
    assert fitted.scores(one_token)["probability"] > usual["probability"]


def spoken(tokens: list[int], where: Doubles | None = None, worst: float = -2.0) -> Evidence:
    """Evidence of a session of these tokens, each of log-probability -1 but the last."""
    made = evidence([*[-1.0] * (len(tokens) - 1), worst], np.zeros(D) if where is None else where)
    return replace(made, tokens=np.array(tokens, np.int32))


def test_novelty_counts_unknown_n_grams() -> None:
    known = [np.array(tokens, np.int32) for tokens in ([5, 6, 7], [5, 7])]
    found = fit(pieces(20), known=[torch.zeros(1, D)], tokens=known)

    def unknown(*tokens: int) -> float:
        return found.novelty(np.array(tokens, np.int32)) * len(tokens)

    assert unknown(5, 6, 7) == unknown(5, 7) == unknown(5) == 0
    assert unknown(5, 6) == 0, "the end of a session is a token of its own"
    assert unknown(6, 7) == pytest.approx(3, abs=0.01), "start 6, start start 6, start 6 7"
    assert unknown(5, 6, 7, 5) == pytest.approx(2, abs=0.01), "7 5 and 6 7 5"
    assert unknown(5, 9) == pytest.approx(3, abs=0.01)
    assert fit([spoken([5, 6])] * 20).novelty(np.array([5, 6], np.int32)) == 0, "of a third without known pieces"


def test_the_most_frequent_of_very_many_n_grams_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "GRAMS", 3)
    known = [np.array(tokens, np.int32) for tokens in ([5], [5], [6])]
    found = fit(pieces(20), known=[torch.zeros(1, D)], tokens=known)
    assert len(found.grams) == 3
    assert found.novelty(known[0]) == 0 < found.novelty(known[2])


def test_an_extreme_value_in_one_component_is_not_outvoted() -> None:
    """One normal session in fifty lies far away in latent space; sessions in the wrong order lie where normal ones do.

    The sum of surprises spends its few false alarms on the distant ones and misses some in the wrong order.
    """
    rng = np.random.default_rng(0)

    def normal() -> Evidence:
        far = 40 * (rng.random() < 0.02) * np.ones(D)
        return spoken([5, 6, 7, *[8] * int(rng.integers(4))], rng.normal(0, 1, D) + far, -2 - rng.exponential())

    known = [normal() for _ in range(100)]
    latents, tokens = [torch.from_numpy(one.means) for one in known], [one.tokens for one in known]
    calibrated = [normal() for _ in range(400)]
    faults = {
        "order": [spoken([7, 6, 5, 8], rng.normal(0, 1, D), -9.0 - rng.exponential()) for _ in range(50)],
        "distance": [spoken([5, 6, 7], rng.normal(0, 1, D) + 400) for _ in range(50)],
        "novelty": [spoken([5, 9, 7, 9], rng.normal(0, 1, D)) for _ in range(50)],
    }
    found = {name: fit(calibrated, name, latents, 0, tokens) for name in ("combined", "fisher")}
    shares = {
        name: {
            kind: np.mean([one.p_value(one.scores(x)[one.score]) <= 0.01 for x in some])
            for kind, some in faults.items()
        }
        for name, one in found.items()
    }
    assert shares["combined"] == {"order": 1, "distance": 1, "novelty": 1}
    assert shares["fisher"]["order"] < 0.8
    combined = found["combined"]
    new = [normal() for _ in range(1000)]
    assert np.mean([combined.p_value(combined.scores(x)["combined"]) <= 0.01 for x in new]) < 0.03


# --- fitting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [0, 40])
def test_fitting_is_the_same_for_the_same_seed(known: int) -> None:
    near = [spread(1, seed=i) for i in range(known)]
    one, again, other = (fit(iter(pieces(60)), known=near, seed=seed).tensors() for seed in (4, 4, 5))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["normal"], other["normal"]), "another seed splits the pieces differently"


@pytest.mark.parametrize(("count", "known", "parts"), [
    (LEAST, 0, (2, 2, 2)), (60, 0, (20, 20, 20)), (LEAST, 5, (5, 2, 4)), (60, 5, (5, 20, 40)),
    (150, 0, (50, 30, 70)), (150, 5, (5, 30, 120)),
])  # fmt: skip
def test_known_and_calibration_pieces_are_disjoint(
    monkeypatch: pytest.MonkeyPatch, count: int, known: int, parts: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(calibration, "TAILS", 30)
    given = [evidence([-1.0 - i / 1e3], [float(i), 0, 0]) for i in range(count)]
    found = fit(given, "worst", [torch.full((1, D), -1.0 - i) for i in range(known)])
    assert (len(found.latents), len(found.tails), len(found.normal)) == parts
    worst = found.tails[:, COLUMNS.index("worst")]
    assert not set(worst.round(3)) & set(found.normal.round(3))
    if not known:
        near = [i for i in range(count) if found.distance(given[i].means) == 0]
        assert not {round(-1.0 - i / 1e3, 3) for i in near} & {*worst.round(3), *found.normal.round(3)}


@pytest.mark.parametrize("score", SCORES)
def test_the_requested_score_is_the_calibrated_one(score: Score) -> None:
    given = pieces(60)
    found = fit(given, score)
    assert found.score == score
    everyone = sorted(found.scores(piece)[score] for piece in given)
    assert set(found.normal) <= set(everyone)
    assert found.normal.tolist() == sorted(found.normal.tolist())
    assert (found.tails == np.sort(found.tails, 0)).all()


@pytest.mark.parametrize("count", range(LEAST))
def test_few_pieces_are_an_error(count: int) -> None:
    with pytest.raises(SeqVAEError, match=f"{count} normal pieces are too few"):
        fit(pieces(count))


def test_an_unknown_score_is_an_error_that_lists_the_choices() -> None:
    def never() -> Any:
        raise AssertionError("evidence was requested")
        yield

    with pytest.raises(SeqVAEError, match="unknown score 'best'") as caught:
        fit(never(), "best")  # type: ignore[arg-type]
    assert all(score in str(caught.value) for score in SCORES)
