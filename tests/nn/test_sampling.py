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

from seqvae.music.tokenizer import MidiTokenizer
from seqvae.nn.sampling import Sampling, Step, choose, decode, search, worth
from seqvae.protocols import BOS, EOS

Ints = NDArray[np.int32]
CPU = torch.device("cpu")


# --- a sequence -------------------------------------------------------------------------------------------------------


class Even:
    """A grammar of tokens 0..5 (EOS is 2) where only pairs are complete: EOS may come at even places."""

    vocabulary = 6

    def start(self, rows: int, lengths: Ints | None = None) -> Ints:
        return start(rows)

    def allowed(self, state: Ints) -> NDArray[np.bool_]:
        ok = np.ones((len(state), self.vocabulary), bool)
        ok[:, :2] = False
        ok[:, EOS] = state[:, 0] % 2 == 0
        return ok

    def advance(self, state: Ints, tokens: Ints) -> Ints:
        assert state.dtype == tokens.dtype == np.int32
        assert Even.allowed(self, state)[np.arange(len(state)), tokens].all(), "what is forbidden is never told"
        return np.stack([state[:, 0] + 1, tokens], 1)

    def position_fields(self, state: Ints) -> Ints:
        return state[:, :1]


def start(rows: int) -> Ints:
    return np.tile(np.array([[0, BOS]], np.int32), (rows, 1))


def steady(logits: Tensor) -> Step:
    """A step whose rows (N, V) of logits are the same at every place; rows that leave are left out."""
    current = logits

    def step(tokens: Tensor, fields: Tensor, keep: Tensor | None) -> Tensor:
        nonlocal current
        current = current if keep is None else current[keep]
        assert len(tokens) == len(fields) == len(current)
        return current

    return step


def random_logits(rows: int, seed: int = 0, end: float = 0.0) -> Tensor:
    logits = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))
    logits[:, EOS] += end
    return logits


def test_each_step_is_told_the_token_before_and_its_cue() -> None:
    told: list[tuple[list[int], list[int]]] = []

    def step(tokens: Tensor, fields: Tensor, keep: Tensor | None) -> Tensor:
        told.append((tokens[:, 0].tolist(), fields[:, 0, 0].tolist()))
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

    def step(tokens: Tensor, fields: Tensor, keep: Tensor | None) -> Tensor:
        sizes.append(len(tokens))
        return inner(tokens, fields, keep)

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


@pytest.mark.parametrize("write", [decode, search])
def test_ids_are_int32_and_made_where_the_logits_are(write: Any) -> None:
    own, many, settings = random_logits(4), torch.linspace(0, 1, 999)[None], Sampling(temperature=1, max_tokens=9)
    half, ways = np.array([0.5]), [settings, replace(settings, top_k=100), replace(settings, top_p=0.9)]
    chosen = [choose(many, way, half).tolist() for way in ways]
    expected = write(steady(own), Even(), start(4), settings, CPU)
    assert {row.dtype for row in expected} == {np.dtype(np.int32)}
    with torch.device("meta"):  # what is made where nobody says where has no values
        assert [choose(many, way, half).tolist() for way in ways] == chosen
        again = write(steady(own), Even(), start(4), settings, CPU)
    assert [row.tolist() for row in again] == [row.tolist() for row in expected]


def test_rows_in_one_state_ask_the_grammar_once() -> None:
    asked: list[int] = []

    class Asked(Even):
        def allowed(self, state: Ints) -> NDArray[np.bool_]:
            asked.append(len(state))
            return super().allowed(state)

    decode(steady(random_logits(1).expand(5, -1)), Asked(), start(5), Sampling(max_tokens=4), CPU)
    decode(steady(random_logits(5, end=-9.0)), Asked(), start(5), Sampling(max_tokens=2), CPU)
    assert asked == [1] * 4 + [1, 5]


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

    def __call__(self, tokens: Tensor, fields: Tensor, keep: Tensor | None) -> Tensor:
        told = self.told if keep is None else [self.told[int(i)] for i in keep]
        self.told = [[*row, int(token)] for row, token in zip(told, tokens[:, 0], strict=True)]
        assert [len(row) - 3 for row in self.told] == fields[:, 0, 0].tolist(), "the grammar's state goes with its row"
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


def by_lists(spoken: Spoken, row: int, beam: int, limit: int) -> tuple[list[int], int]:
    """What a search finds for one row, hypothesis by hypothesis; and how many steps it takes."""
    going: list[tuple[float, list[int], bool]] = [(0.0, [], True)]  # nats, tokens, whether it is what `decode` writes
    ended: list[tuple[float, list[int]]] = []
    for step in range(limit):
        options = []
        for nats, tokens, greedy in going:
            logits = spoken.logits([spoken.told[0][0], row, BOS, *tokens]).double()
            logits[: EOS + step % 2] = float("-inf")
            for token, more in enumerate(logits.log_softmax(-1).tolist()):
                if more > float("-inf"):
                    options.append((nats + more, [*tokens, token], greedy and token == int(logits.argmax())))
        options.sort(key=lambda one: (not one[2], -one[0]))
        ended += [(worth(nats, step + 1), tokens) for nats, tokens, _ in options[:beam] if tokens[-1] == EOS]
        going = [one for one in options[: 2 * beam] if one[1][-1] != EOS][:beam]
        best = max(ended, default=(float("-inf"), []))
        hope = max((worth(nats, limit) for nats, _, _ in going), default=float("-inf"))
        if hope <= best[0] or (len(ended) >= beam and not going[0][2]):
            return best[1], step + 1
    if ended:
        return best[1], limit
    return [*max(going)[1][: (limit - 1) // 2 * 2], EOS], limit


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 12), st.sampled_from([-2.0, 0.0, 1.0]))
def test_a_search_is_what_lists_of_hypotheses_find_in_as_many_steps(
    seed: int, beam: int, limit: int, end: float
) -> None:
    steps = 0

    class Counted(Spoken):
        def __call__(self, *arguments: Any) -> Tensor:
            nonlocal steps
            steps += 1
            return super().__call__(*arguments)

    settings = Sampling(beam=beam, max_tokens=limit)
    [found] = search(Counted(1, seed, end), Even(), start(1), settings, CPU)
    assert (found.tolist(), steps) == by_lists(Spoken(1, seed, end), 0, beam, limit)


def test_worth_is_the_log_probability_by_the_length_as_wu_has_it() -> None:
    assert worth(-10.0, 1) == -10
    assert worth(-10.0, 7) == pytest.approx(-10 / 2**0.6)


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

    def step(tokens: Tensor, fields: Tensor, keep: Tensor | None) -> Tensor:
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


@pytest.mark.parametrize("beam", [0, 3])
def test_each_row_leans_its_own_way_whatever_rows_have_ended(beam: int) -> None:
    """Rows lean to tokens 5 and 6 in turns; the even ones end one step before the odd ones."""

    class Free:
        """Any token, until each row has written as many as its state says."""

        def start(self, rows: int, lengths: Ints | None = None) -> Ints:
            return np.ones((rows, 1), np.int32)

        def allowed(self, state: Ints) -> NDArray[np.bool_]:
            ok = np.zeros((len(state), 7), np.bool_)
            ok[:, [4, 5, 6]] = state[:, :1] > 0
            ok[:, EOS] = state[:, 0] == 0
            return ok

        def advance(self, state: Ints, tokens: Ints) -> Ints:
            return state - 1

        def position_fields(self, state: Ints) -> Ints:
            return np.zeros((len(state), 0), np.int32)

    def step(tokens: Tensor, fields: Tensor, keep: Tensor | None) -> Tensor:
        return torch.zeros(len(tokens), 7)

    def guidance(rows: NDArray[np.int64], state: Ints) -> tuple[Ints, NDArray[np.float32]]:
        assert len({*(state[:, 0] - rows % 2).tolist()}) == 1, "rows and states go together"
        weights = np.zeros((len(rows), 2), np.float32)
        weights[np.arange(len(rows)), rows % 2] = 3.0
        return np.array([5, 6], np.int32), weights

    state = np.array([[1], [2], [1], [2]], np.int32)
    write = search if beam else decode
    found = write(step, Free(), state, Sampling(beam=beam), CPU, [guidance])
    assert [row.tolist() for row in found] == [[5, EOS], [6, 6, EOS], [5, EOS], [6, 6, EOS]]
