"""What is chosen follows from a row's own logits and seed, never breaks the grammar, and always ends."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from seqvae.midi_tokenizer import MidiTokenizer
from seqvae.sampling import BOS, EOS, Sampling, Step, _leaned, choose, decode, search, worth

Ints = NDArray[np.int32]
CPU = torch.device("cpu")
# probabilities .4 .3 .15 .1 .05, out of order
PROBABILITIES = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
LOGITS = PROBABILITIES.log()
GRID = (np.arange(1000) + 0.5) / 1000  # draws that fill [0, 1) evenly


def shares(settings: Sampling, logits: Tensor = LOGITS) -> list[float]:
    """The share of all draws that chooses each token."""
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


def test_top_p_is_counted_after_temperature_and_top_k() -> None:
    # squared: .16 .09 .0225 .01 .0025; the first two hold 88 % of it, and 100 % of the top two
    assert shares(Sampling(temperature=0.5, top_p=0.85)) == pytest.approx([0, 0.64, 0, 0.36, 0], abs=0.002)
    assert shares(Sampling(temperature=1, top_k=2, top_p=0.57)) == [0, 1, 0, 0, 0]


logit_rows = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=12)


@given(logit_rows, st.integers(0, 12), st.floats(0.01, 1), st.floats(0.05, 5), st.sets(st.integers(0, 11)))
def test_what_the_grammar_forbids_is_never_chosen(
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
def test_temperature_0_is_the_largest(row: list[float]) -> None:
    assert row[int(choose(torch.tensor([row]), Sampling(), None)[0])] == max(row)


@pytest.mark.parametrize("bad", [
    {"temperature": -0.1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1},
    {"max_tokens": 0}, {"beam": -1},
])  # fmt: skip
def test_settings_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        Sampling(**bad)


# --- a sequence -------------------------------------------------------------------------------------------------------


class Even:
    """A grammar of tokens 0..5 (EOS is 2) where only pairs are complete: EOS may come at even places."""

    vocabulary = 6

    def allowed(self, state: Ints) -> NDArray[np.bool_]:
        ok = np.ones((len(state), self.vocabulary), bool)
        ok[:, :2] = False
        ok[:, EOS] = state[:, 0] % 2 == 0
        return ok

    def advance(self, state: Ints, tokens: Ints) -> Ints:
        return np.stack([state[:, 0] + 1, tokens], 1).astype(np.int32)

    def cues(self, state: Ints) -> Ints:
        return state[:, :1]


def start(rows: int) -> Ints:
    return np.tile(np.array([[0, BOS]], np.int32), (rows, 1))


def steady(logits: Tensor) -> Step:
    """A step whose rows (N, V) of logits are the same at every place; rows that leave are left out."""
    current = logits

    def step(tokens: Tensor, cues: Tensor, keep: Tensor | None) -> Tensor:
        nonlocal current
        current = current if keep is None else current[keep]
        assert len(tokens) == len(cues) == len(current)
        return current

    return step


def random_logits(rows: int, seed: int = 0, end: float = 0.0) -> Tensor:
    logits = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))
    logits[:, EOS] += end
    return logits


def test_each_step_is_told_the_token_before_and_its_cue() -> None:
    told: list[tuple[list[int], list[int]]] = []

    def step(tokens: Tensor, cues: Tensor, keep: Tensor | None) -> Tensor:
        told.append((tokens[:, 0].tolist(), cues[:, 0, 0].tolist()))
        logits = torch.zeros(len(tokens), 6)
        logits[:, [3, 4, 5, 4, EOS][len(told) - 1]] = 9.0
        return logits

    assert [row.tolist() for row in decode(step, Even(), start(2), Sampling(), CPU)] == [[3, 4, 5, 4, EOS]] * 2
    assert told == [
        ([BOS] * 2, [0] * 2),
        ([3] * 2, [1] * 2),
        ([4] * 2, [2] * 2),
        ([5] * 2, [3] * 2),
        ([4] * 2, [4] * 2),
    ]


def test_temperature_0_takes_the_most_likely_allowed_token() -> None:
    logits = random_logits(20, end=1.0)
    for row, own in zip(decode(steady(logits), Even(), start(20), Sampling(max_tokens=9), CPU), logits, strict=True):
        grammatical = own.clone()
        grammatical[:2] = float("-inf")
        odd = grammatical.clone()
        odd[EOS] = float("-inf")
        even, odd_token = int(grammatical.argmax()), int(odd.argmax())
        expected = [EOS] if even == EOS else [even, odd_token] * 4 + [EOS]
        assert row.tolist() == expected


def test_rows_that_have_ended_leave_and_the_others_go_on() -> None:
    sizes: list[int] = []
    inner = steady(random_logits(50, end=1.0))

    def step(tokens: Tensor, cues: Tensor, keep: Tensor | None) -> Tensor:
        sizes.append(len(tokens))
        return inner(tokens, cues, keep)

    rows = decode(step, Even(), start(50), Sampling(temperature=1, max_tokens=400), CPU)
    lengths = np.array([len(row) for row in rows])
    assert sizes == [int((lengths > t).sum()) for t in range(lengths.max())]
    assert len(set(lengths.tolist())) > 3
    assert all(row[-1] == EOS and EOS not in row[:-1] for row in rows)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_is_the_same_alone_and_among_others(temperature: float) -> None:
    logits = random_logits(9, end=0.5)
    settings = {"temperature": temperature, "top_p": 0.9, "seed": 5, "max_tokens": 30}
    together = decode(steady(logits), Even(), start(9), Sampling(**settings), CPU)  # type: ignore[arg-type]
    for i in range(9):
        alone = decode(steady(logits[i : i + 1]), Even(), start(1), Sampling(**settings, first_row=i), CPU)  # type: ignore[arg-type]
        assert alone[0].tolist() == together[i].tolist()


def test_more_rows_than_are_chosen_for_at_once_are_drawn_like_one() -> None:
    logits = random_logits(150, end=0.5)
    settings = Sampling(temperature=1, top_p=0.9, max_tokens=12)
    together = decode(steady(logits), Even(), start(150), settings, CPU)
    for i in (0, 63, 64, 127, 149):
        alone = decode(steady(logits[i : i + 1]), Even(), start(1), replace(settings, first_row=i), CPU)
        assert alone[0].tolist() == together[i].tolist()


def test_seeds_differ_and_repeat() -> None:
    def rows(seed: int) -> list[list[int]]:
        out = decode(steady(random_logits(8)), Even(), start(8), Sampling(temperature=1, seed=seed), CPU)
        return [row.tolist() for row in out]

    assert rows(0) == rows(0)
    assert rows(0) != rows(1)
    assert len({tuple(row) for row in rows(0)}) > 1, "rows of one call have draws of their own"


def test_frequencies_follow_the_probabilities() -> None:
    count = 3000
    logits = torch.tensor([0.0, 0.0, 0.0, 1.0, -1.0, 0.5])
    rows = decode(steady(logits.expand(count, -1)), Even(), start(count), Sampling(temperature=1, seed=3), CPU)
    first = np.bincount([int(row[0]) for row in rows], minlength=6)[2:]
    expected = count * logits[2:].softmax(-1).numpy()
    assert ((first - expected) ** 2 / expected).sum() < 16.3  # chi-square with 3 degrees of freedom, p = .001
    second = np.bincount([int(row[1]) for row in rows if len(row) > 1], minlength=6)[3:]
    expected = second.sum() * logits[3:].softmax(-1).numpy()
    assert ((second - expected) ** 2 / expected).sum() < 13.8  # 2 degrees of freedom


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 8])
def test_out_of_tokens_a_row_ends_where_it_last_could(limit: int) -> None:
    logits = torch.tensor([[0.0, 0, -50, 1, 0, 0], [0, 0, 50, 0, 0, 0]])  # one never ends by itself, one at once
    endless, short = decode(steady(logits), Even(), start(2), Sampling(max_tokens=limit), CPU)
    assert endless.tolist() == [3] * ((limit - 1) // 2 * 2) + [EOS]
    assert short.tolist() == [EOS]


def test_no_rows_give_no_rows() -> None:
    assert decode(steady(torch.zeros(0, 6)), Even(), start(0), Sampling(), CPU) == []


# --- a search ---------------------------------------------------------------------------------------------------------


class Spoken:
    """A step whose logits follow from a row's own tokens so far: a cache of them, which must go where its row goes."""

    def __init__(self, rows: int, seed: int, end: float = 0.0) -> None:
        self.told = [[seed, row] for row in range(rows)]
        self.end = end

    def logits(self, told: list[int]) -> Tensor:
        """What follows `[seed, row, BOS, *tokens]`, whoever asks."""
        out = torch.from_numpy(np.random.default_rng(told).normal(size=Even.vocabulary)).float()
        out[EOS] += self.end
        return out

    def __call__(self, tokens: Tensor, cues: Tensor, keep: Tensor | None) -> Tensor:
        told = self.told if keep is None else [self.told[int(i)] for i in keep]
        self.told = [[*row, int(token)] for row, token in zip(told, tokens[:, 0], strict=True)]
        assert [len(row) - 3 for row in self.told] == cues[:, 0, 0].tolist(), "the grammar's state goes with its row"
        return torch.stack([self.logits(row) for row in self.told])

    def nats(self, row: int, tokens: list[int]) -> float:
        """Log-probability of `tokens` as those of one row, under the grammar."""
        told, total = [self.told[0][0], row, BOS], 0.0
        for place, token in enumerate(tokens):
            logits = self.logits(told)
            logits[: EOS + place % 2] = float("-inf")
            total += float(logits.double().log_softmax(-1)[token])
            told = [*told, token]
        return total


def found(rows: int, seed: int, beam: int, limit: int, end: float = 0.0) -> list[list[int]]:
    settings = Sampling(beam=beam, max_tokens=limit)
    return [row.tolist() for row in search(Spoken(rows, seed, end), Even(), start(rows), settings, CPU)]


@given(st.integers(0, 2**31), st.sampled_from([-2.0, -1.0, 0.0, 1.0]))
def test_a_search_wide_enough_finds_the_best_row_of_all(seed: int, end: float) -> None:
    spoken = Spoken(2, seed, end)
    everything = [[*pairs, EOS] for length in (0, 2, 4) for pairs in product((3, 4, 5), repeat=length)]
    for row, tokens in enumerate(found(2, seed, 200, 5, end)):
        assert tokens == max(everything, key=lambda one: worth(spoken.nats(row, one), len(one)))


@given(st.integers(0, 2**31), st.sampled_from([-1.0, 0.0, 1.0]))
def test_a_search_finds_nothing_worse_than_token_by_token(seed: int, end: float) -> None:
    spoken = Spoken(3, seed, end)
    by_token = [row.tolist() for row in decode(Spoken(3, seed, end), Even(), start(3), Sampling(max_tokens=41), CPU)]
    for beam in (2, 3, 8):
        for row, (one, other) in enumerate(zip(found(3, seed, beam, 41, end), by_token, strict=True)):
            # one of 41 tokens has perhaps been cut, and what was cut ended where nobody would have ended it
            better = worth(spoken.nats(row, one), len(one)) - worth(spoken.nats(row, other), len(other))
            assert len(other) == 41 or better >= -1e-6


def test_a_wider_search_finds_better_rows() -> None:
    means = []
    for beam in (1, 2, 4, 16):
        rows = found(60, 7, beam, 30)
        means.append(np.mean([worth(Spoken(60, 7).nats(i, row), len(row)) for i, row in enumerate(rows)]))
    assert means[0] + 0.05 < means[1] < means[2] < means[3]


@given(st.integers(0, 2**31), st.integers(1, 12), st.sampled_from([-3.0, 0.0, 2.0]))
def test_a_search_with_one_hypothesis_is_decoding(seed: int, limit: int, end: float) -> None:
    by_token = decode(Spoken(4, seed, end), Even(), start(4), Sampling(max_tokens=limit), CPU)
    assert found(4, seed, 1, limit, end) == [row.tolist() for row in by_token]


def test_of_equals_a_search_takes_what_decoding_takes() -> None:
    level = torch.zeros(3, 6)
    for limit in (1, 6, 7):
        by_token = decode(steady(level), Even(), start(3), Sampling(max_tokens=limit), CPU)
        searched = search(steady(level), Even(), start(3), Sampling(beam=1, max_tokens=limit), CPU)
        assert [row.tolist() for row in searched] == [row.tolist() for row in by_token]


@pytest.mark.parametrize("beam", [2, 5])
def test_a_row_is_searched_alike_alone_and_among_others(beam: int) -> None:
    together = found(9, 3, beam, 20, end=-2.0)
    assert len({len(row) for row in together}) > 1, "they leave at different times"
    for i in range(9):
        spoken = Spoken(9, 3, end=-2.0)
        spoken.told = spoken.told[i : i + 1]
        alone = search(spoken, Even(), start(1), Sampling(beam=beam, max_tokens=20), CPU)
        assert alone[0].tolist() == together[i]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 8])
def test_a_search_out_of_tokens_ends_where_it_last_could(limit: int) -> None:
    logits = torch.tensor([[0.0, 0, -50, 3, 0, 0], [0, 0, 50, 0, 0, 0]])
    endless, short = search(steady(logits), Even(), start(2), Sampling(beam=3, max_tokens=limit), CPU)
    assert endless.tolist() == [3] * ((limit - 1) // 2 * 2) + [EOS]
    assert short.tolist() == [EOS]


def test_a_search_neither_draws_nor_needs_rows() -> None:
    drawn = Sampling(temperature=2, top_k=1, top_p=0.1, seed=8, beam=3, max_tokens=12)
    assert [row.tolist() for row in search(Spoken(4, 1), Even(), start(4), drawn, CPU)] == found(4, 1, 3, 12)
    assert search(steady(torch.zeros(0, 6)), Even(), start(0), Sampling(beam=3), CPU) == []


# --- music ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.sampled_from([(0.0, 0), (1.0, 0), (0.0, 3)]), st.integers(1, 40))
def test_every_bar_is_whole_however_it_was_cut(
    tokenizer: MidiTokenizer, seed: int, how: tuple[float, int], limit: int
) -> None:
    lengths = np.array([48, 36, 1, 48], np.int32)
    table = torch.randn(tokenizer.vocab_size, tokenizer.vocab_size, generator=torch.Generator().manual_seed(seed))
    table[:, [i for name, i in tokenizer.vocabulary.items() if name.startswith("Program")]] += 1.0

    def step(tokens: Tensor, cues: Tensor, keep: Tensor | None) -> Tensor:
        return 3 * table[tokens[:, 0]]

    grammar = tokenizer.grammar()
    settings = Sampling(temperature=how[0], seed=seed, max_tokens=limit, beam=how[1])
    chunks = (search if how[1] else decode)(step, grammar, grammar.start(4, lengths), settings, CPU)
    assert all(1 <= len(chunk) <= limit and chunk[-1] == EOS for chunk in chunks)
    bounds = np.cumsum([0, *lengths])
    notes = tokenizer.decode_notes(chunks, bounds)
    for chunk, again in zip(chunks, tokenizer.encode_notes(notes, bounds), strict=True):
        assert chunk.tolist() == again.tolist()


# --- leaning ----------------------------------------------------------------------------------------------------------


def test_leaning_moves_probability_among_its_tokens_alone() -> None:
    allowed = np.ones((1, 5), np.bool_)
    columns = np.array([1, 3], np.int32)
    weights = np.log(np.array([[1.0, 4.0]], np.float32))
    p = _leaned(LOGITS[None], allowed, columns, weights).softmax(-1)[0]
    assert p[[0, 2, 4]].tolist() == pytest.approx([0.1, 0.05, 0.15])  # the others stay
    # .4 and .3 times 1 and 4, scaled to the .7 that they had together
    assert p[[1, 3]].tolist() == pytest.approx([0.7 * 0.4 / 1.6, 0.7 * 1.2 / 1.6])


def test_leaning_gives_nothing_to_what_is_not_allowed() -> None:
    allowed = np.array([[True, True, True, False, True]])
    p = _leaned(LOGITS[None], allowed, np.array([1, 3], np.int32), np.zeros((1, 2), np.float32)).softmax(-1)[0]
    assert p[3] == 0
    open_ = PROBABILITIES.clone()
    open_[3] = 0
    assert p.tolist() == pytest.approx((open_ / open_.sum()).tolist())


@pytest.mark.parametrize("beam", [0, 3])
def test_each_row_leans_its_own_way_whatever_rows_have_ended(beam: int) -> None:
    """Rows lean to tokens 5 and 6 in turns; the even ones end one step before the odd ones."""

    class Free:
        """Any token, until each row has written as many as its state says."""

        def allowed(self, state: Ints) -> NDArray[np.bool_]:
            ok = np.zeros((len(state), 7), np.bool_)
            ok[:, [4, 5, 6]] = state[:, :1] > 0
            ok[:, EOS] = state[:, 0] == 0
            return ok

        def advance(self, state: Ints, tokens: Ints) -> Ints:
            return state - 1

        def cues(self, state: Ints) -> Ints:
            return np.zeros((len(state), 0), np.int32)

    def step(tokens: Tensor, cues: Tensor, keep: Tensor | None) -> Tensor:
        return torch.zeros(len(tokens), 7)

    def lean(rows: NDArray[np.int64], state: Ints) -> tuple[Ints, NDArray[np.float32]]:
        weights = np.zeros((len(rows), 2), np.float32)
        weights[np.arange(len(rows)), rows % 2] = 3.0
        return np.array([5, 6], np.int32), weights

    state = np.array([[1], [2], [1], [2]], np.int32)
    write = search if beam else decode
    found = write(step, Free(), state, Sampling(beam=beam), CPU, lean)
    assert [row.tolist() for row in found] == [[5, EOS], [6, 6, EOS], [5, EOS], [6, 6, EOS]]
