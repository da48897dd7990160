"""Sampling of one token: temperature, top-k, top-p and guidance, against known shares of draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seqvae.nn.sampling import Sampling, _guided, choose

# probabilities .4 .3 .15 .1 .05, out of order
PROBABILITIES = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
LOGITS = PROBABILITIES.log()
GRID = (np.arange(1000) + 0.5) / 1000  # draws that fill [0, 1) evenly


def shares(settings: Sampling, logits: Tensor = LOGITS) -> list[float]:
    """Share of the draws of each token."""
    chosen = choose(logits.expand(len(GRID), -1), settings, GRID)
    return (np.bincount(chosen, minlength=len(logits)) / len(GRID)).round(3).tolist()  # type: ignore[no-any-return]


# --- one choice -------------------------------------------------------------------------------------------------------


def test_temperature_1_draws_from_the_distribution() -> None:
    assert shares(Sampling(temperature=1)) == pytest.approx([0.1, 0.4, 0.05, 0.3, 0.15], abs=0.002)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_sharpens_and_flattens(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(-1).tolist()
    assert shares(Sampling(temperature=temperature)) == pytest.approx(expected, abs=0.002)


def test_a_temperature_near_0_is_the_most_likely_token() -> None:
    assert shares(Sampling(temperature=1e-6)) == [0, 1, 0, 0, 0]


@pytest.mark.parametrize(("k", "expected"), [
    (1, [0, 1, 0, 0, 0]),
    (2, [0, 4 / 7, 0, 3 / 7, 0]),
    (4, [0.1 / 0.95, 0.4 / 0.95, 0, 0.3 / 0.95, 0.15 / 0.95]),
    (9, [0.1, 0.4, 0.05, 0.3, 0.15]),
])  # fmt: skip
def test_top_k_draws_among_the_k_most_likely(k: int, expected: list[float]) -> None:
    assert shares(Sampling(temperature=1, top_k=k)) == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize(("p", "expected"), [
    (0.01, [0, 1, 0, 0, 0]),
    (0.39, [0, 1, 0, 0, 0]),
    (0.5, [0, 4 / 7, 0, 3 / 7, 0]),  # the one that crosses the line is in
    (0.8, [0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85]),
    (1.0, [0.1, 0.4, 0.05, 0.3, 0.15]),
])  # fmt: skip
def test_top_p_draws_among_the_fewest_that_reach_p(p: float, expected: list[float]) -> None:
    assert shares(Sampling(temperature=1, top_p=p)) == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize("settings", [
    Sampling(temperature=1), Sampling(temperature=1, top_k=20), Sampling(temperature=1, top_p=0.7),
    Sampling(temperature=2, top_p=0.95), Sampling(temperature=1, top_k=100, top_p=0.8),
])  # fmt: skip
def test_a_large_vocabulary_is_drawn_from_without_sorting_it(settings: Sampling) -> None:
    logits = 2 * torch.randn(1003, generator=torch.Generator().manual_seed(0))
    draws = (np.arange(20000) + 0.5) / 20000
    chosen = choose(logits.expand(len(draws), -1), settings, draws)
    ranked, order = (logits.double() / settings.temperature).sort(descending=True)
    p = ranked.softmax(-1)
    p[settings.top_k or len(p) :] = 0
    p /= p.sum()
    p[p.cumsum(-1) - p >= settings.top_p] = 0
    expected = torch.zeros_like(p).scatter(0, order, p / p.sum()).numpy()
    found = np.bincount(chosen, minlength=len(logits)) / len(draws)
    assert (expected[np.unique(chosen)] > 0).all()
    assert np.abs(found - expected).max() < (1e-4 if settings == Sampling(temperature=1) else 2e-3)


@pytest.mark.parametrize("settings", [Sampling(temperature=1), Sampling(temperature=1, top_k=2)])
def test_the_smallest_draw_gives_a_token_of_positive_probability(settings: Sampling) -> None:
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]])
    draws = np.array([0.0, np.nextafter(1, 0)])
    assert choose(logits.expand(2, -1), settings, draws).tolist() == [1, 2]


@pytest.mark.parametrize("size", [2, 3, 7, 64, 65])
def test_of_nearly_equal_tokens_only_the_smallest_is_outside_the_top_k(size: int) -> None:
    logits = -1e-3 * torch.arange(float(size)).expand(len(GRID), -1)
    chosen = choose(logits, Sampling(temperature=1, top_k=size - 1), GRID)
    assert (np.bincount(chosen, minlength=size) > 0).tolist() == [True] * (size - 1) + [False]


def test_tokens_that_reach_p_exactly_are_enough() -> None:
    halves = torch.tensor([0.25, 0.5, 0.25]).log()
    assert shares(Sampling(temperature=1, top_p=0.5), halves) == [0, 1, 0]
    assert shares(Sampling(temperature=1, top_k=3, top_p=0.5), halves) == [0, 1, 0]


def test_a_single_row_is_drawn_among_all_tokens_that_reach_p() -> None:
    logits = -1e-4 * torch.arange(1000.0)[None]  # nearly uniform: about 950 of them are needed
    settings = Sampling(temperature=1, top_p=0.95)
    tokens = [int(choose(logits, settings, np.array([uniform]))[0]) for uniform in np.linspace(0.951, 0.999, 50)]
    assert max(tokens) < 955, "draws beyond p are repeated"
    assert np.histogram(tokens, 3, (0, 955))[0].min() > 10, "among all of them"


def test_top_p_applies_after_temperature_and_top_k() -> None:
    # squared: .16 .09 .0225 .01 .0025; the first two hold 88 % of it, and 100 % of the top two
    assert shares(Sampling(temperature=0.5, top_p=0.85)) == pytest.approx([0, 0.64, 0, 0.36, 0], abs=0.002)
    assert shares(Sampling(temperature=1, top_k=2, top_p=0.57)) == [0, 1, 0, 0, 0]


logit_rows = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=12)


@given(logit_rows, st.integers(0, 12), st.floats(0.01, 1), st.floats(0.05, 5), st.sets(st.integers(0, 11)))
def test_tokens_outside_the_grammar_are_never_chosen(
    row: list[float], k: int, p: float, temperature: float, forbidden: set[int]
) -> None:
    logits = torch.tensor(row)
    allowed = torch.tensor([i not in forbidden for i in range(len(row))])
    allowed[0] |= not bool(allowed.any())
    logits[~allowed] = float("-inf")
    draws = np.array([0.0, 0.3, 0.999, np.nextafter(1, 0)])
    chosen = choose(logits.expand(4, -1), Sampling(temperature=temperature, top_k=k, top_p=p), draws)
    assert allowed[chosen].all()
    if k:
        best = logits.sort(descending=True).values
        assert (logits[chosen] >= best[min(k, len(row)) - 1]).all()
    assert allowed[choose(logits[None], Sampling(), None)].all()


@given(logit_rows)
def test_temperature_0_takes_the_largest_logit(row: list[float]) -> None:
    assert row[int(choose(torch.tensor([row]), Sampling(), None)[0])] == max(row)


@pytest.mark.parametrize("bad", [
    {"temperature": -0.1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1},
    {"max_tokens": 0}, {"beam": -1},
])  # fmt: skip
def test_settings_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        Sampling(**bad)


# --- guidance ---------------------------------------------------------------------------------------------------------


def test_guidance_moves_probability_only_among_its_tokens() -> None:
    allowed = np.ones((1, 5), np.bool_)
    columns = np.array([1, 3], np.int32)
    weights = np.log(np.array([[1.0, 4.0]], np.float32))
    p = _guided(LOGITS[None], allowed, columns, weights).softmax(-1)[0]
    assert p[[0, 2, 4]].tolist() == pytest.approx([0.1, 0.05, 0.15])  # the others stay
    # .4 and .3 times 1 and 4, scaled to the .7 that they had together
    assert p[[1, 3]].tolist() == pytest.approx([0.7 * 0.4 / 1.6, 0.7 * 1.2 / 1.6])


def test_guidance_gives_no_probability_to_tokens_not_allowed() -> None:
    allowed = np.array([[True, True, True, False, True]])
    p = _guided(LOGITS[None], allowed, np.array([1, 3], np.int32), np.zeros((1, 2), np.float32)).softmax(-1)[0]
    assert p[3] == 0
    open_ = PROBABILITIES.clone()
    open_[3] = 0
    assert p.tolist() == pytest.approx((open_ / open_.sum()).tolist())
