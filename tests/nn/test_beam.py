"""Beam search: the best rows are found, one hypothesis is greedy decoding, and rows are independent."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from toy_grammar import CPU, Even, start, steady

from seqvae.nn.beam import search, worth
from seqvae.nn.sampling import Sampling, decode
from seqvae.protocols import BOS, EOS


class Spoken:
    """A step with logits computed from a row's own previous tokens, which are its cache and must move with the row."""

    def __init__(self, rows: int, seed: int, end: float = 0.0) -> None:
        self.prefixes = [[seed, row] for row in range(rows)]
        self.end = end

    def logits(self, prefix: list[int]) -> Tensor:
        """Logits after the prefix `[seed, row, BOS, *tokens]`."""
        out = torch.from_numpy(np.random.default_rng(prefix).normal(size=Even.vocabulary)).float()
        out[EOS] += self.end
        return out

    def __call__(self, tokens: Tensor, fields: Tensor, keep: Tensor | None) -> Tensor:
        before = self.prefixes if keep is None else [self.prefixes[int(i)] for i in keep]
        self.prefixes = [[*row, int(token)] for row, token in zip(before, tokens[:, 0], strict=True)]
        assert [len(row) - 3 for row in self.prefixes] == fields[:, 0, 0].tolist(), (
            "the grammar's state moves with its row"
        )
        return torch.stack([self.logits(row) for row in self.prefixes])

    def nats(self, row: int, tokens: list[int]) -> float:
        """Log-probability of `tokens` in one row, under the grammar."""
        prefix, total = [self.prefixes[0][0], row, BOS], 0.0
        for place, token in enumerate(tokens):
            logits = self.logits(prefix)
            logits[: EOS + place % 2] = float("-inf")
            total += float(logits.double().log_softmax(-1)[token])
            prefix = [*prefix, token]
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
    """Reference search for one row with lists of hypotheses: the result and the number of steps."""
    going: list[tuple[float, list[int], bool]] = [(0.0, [], True)]  # nats, tokens, the same as `decode`?
    ended: list[tuple[float, list[int]]] = []
    for step in range(limit):
        options = []
        for nats, tokens, greedy in going:
            logits = spoken.logits([spoken.prefixes[0][0], row, BOS, *tokens]).double()
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
def test_a_search_equals_the_reference_in_result_and_steps(seed: int, beam: int, limit: int, end: float) -> None:
    steps = 0

    class Counted(Spoken):
        def __call__(self, *arguments: Any) -> Tensor:
            nonlocal steps
            steps += 1
            return super().__call__(*arguments)

    settings = Sampling(beam=beam, max_tokens=limit)
    [found] = search(Counted(1, seed, end), Even(), start(1), settings, CPU)
    assert (found.tolist(), steps) == by_lists(Spoken(1, seed, end), 0, beam, limit)


def test_the_score_is_the_log_probability_with_the_length_penalty_of_wu() -> None:
    assert worth(-10.0, 1) == -10
    assert worth(-10.0, 7) == pytest.approx(-10 / 2**0.6)


@given(st.integers(0, 2**31), st.sampled_from([-1.0, 0.0, 1.0]))
def test_a_search_finds_nothing_worse_than_greedy_decoding(seed: int, end: float) -> None:
    spoken = Spoken(3, seed, end)
    by_token = [row.tolist() for row in decode(Spoken(3, seed, end), Even(), start(3), Sampling(max_tokens=41), CPU)]
    for beam in (2, 3, 8):
        for row, (one, other) in enumerate(zip(found(3, seed, beam, 41, end), by_token, strict=True)):
            # a sequence of 41 tokens may have been truncated, at an unlikely end
            better = worth(spoken.nats(row, one), len(one)) - worth(spoken.nats(row, other), len(other))
            assert len(other) == 41 or better >= -1e-6


def test_a_wider_search_finds_better_rows() -> None:
    means = []
    for beam in (1, 2, 4, 16):
        rows = found(60, 7, beam, 30)
        means.append(np.mean([worth(Spoken(60, 7).nats(i, row), len(row)) for i, row in enumerate(rows)]))
    assert means[0] + 0.05 < means[1] < means[2] < means[3]


@given(st.integers(0, 2**31), st.integers(1, 12), st.sampled_from([-3.0, 0.0, 2.0]))
def test_a_search_with_one_hypothesis_is_greedy_decoding(seed: int, limit: int, end: float) -> None:
    by_token = decode(Spoken(4, seed, end), Even(), start(4), Sampling(max_tokens=limit), CPU)
    assert found(4, seed, 1, limit, end) == [row.tolist() for row in by_token]


def test_a_search_breaks_ties_like_greedy_decoding() -> None:
    level = torch.zeros(3, 6)
    for limit in (1, 6, 7):
        by_token = decode(steady(level), Even(), start(3), Sampling(max_tokens=limit), CPU)
        searched = search(steady(level), Even(), start(3), Sampling(beam=1, max_tokens=limit), CPU)
        assert [row.tolist() for row in searched] == [row.tolist() for row in by_token]


@pytest.mark.parametrize("beam", [2, 5])
def test_the_search_of_a_row_does_not_depend_on_other_rows(beam: int) -> None:
    together = found(9, 3, beam, 20, end=-2.0)
    assert len({len(row) for row in together}) > 1, "they leave at different times"
    for i in range(9):
        spoken = Spoken(9, 3, end=-2.0)
        spoken.prefixes = spoken.prefixes[i : i + 1]
        alone = search(spoken, Even(), start(1), Sampling(beam=beam, max_tokens=20), CPU)
        assert alone[0].tolist() == together[i]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 8])
def test_a_search_out_of_tokens_ends_at_the_last_possible_end(limit: int) -> None:
    logits = torch.tensor([[0.0, 0, -50, 3, 0, 0], [0, 0, 50, 0, 0, 0]])
    endless, short = search(steady(logits), Even(), start(2), Sampling(beam=3, max_tokens=limit), CPU)
    assert endless.tolist() == [3] * ((limit - 1) // 2 * 2) + [EOS]
    assert short.tolist() == [EOS]


def test_a_search_draws_no_random_numbers_and_accepts_no_rows() -> None:
    drawn = Sampling(temperature=2, top_k=1, top_p=0.1, seed=8, beam=3, max_tokens=12)
    assert [row.tolist() for row in search(Spoken(4, 1), Even(), start(4), drawn, CPU)] == found(4, 1, 3, 12)
    assert search(steady(torch.zeros(0, 6)), Even(), start(0), Sampling(beam=3), CPU) == []
