"""Sampling depends on a row's own logits and seed, obeys the grammar, and always ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from toy_grammar import CPU, Even, Ints, random_logits, start, steady

from seqvae.music.tokenizer import MidiTokenizer
from seqvae.nn.beam import search
from seqvae.nn.sampling import Sampling, choose, decode
from seqvae.protocols import BOS, EOS


def test_each_step_gets_the_previous_token_and_its_position_fields() -> None:
    inputs: list[tuple[list[int], list[int]]] = []

    def step(tokens: Tensor, fields: Tensor, keep: Tensor | None) -> Tensor:
        inputs.append((tokens[:, 0].tolist(), fields[:, 0, 0].tolist()))
        logits = torch.zeros(len(tokens), 6)
        logits[:, [3, 4, 5, 4, EOS][len(inputs) - 1]] = 9.0
        return logits

    assert [row.tolist() for row in decode(step, Even(), start(2), Sampling(), CPU)] == [[3, 4, 5, 4, EOS]] * 2
    assert inputs == [
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


def test_finished_rows_are_removed_and_the_others_continue() -> None:
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
def test_a_row_does_not_depend_on_other_rows(temperature: float) -> None:
    logits = random_logits(9, end=0.5)
    settings = {"temperature": temperature, "top_p": 0.9, "seed": 5, "max_tokens": 30}
    together = decode(steady(logits), Even(), start(9), Sampling(**settings), CPU)  # type: ignore[arg-type]
    for i in range(9):
        alone = decode(steady(logits[i : i + 1]), Even(), start(1), Sampling(**settings, first_row=i), CPU)  # type: ignore[arg-type]
        assert alone[0].tolist() == together[i].tolist()


def test_rows_in_several_batches_are_sampled_like_one_row() -> None:
    logits = random_logits(150, end=0.5)
    settings = Sampling(temperature=1, top_p=0.9, max_tokens=12)
    together = decode(steady(logits), Even(), start(150), settings, CPU)
    for i in (0, 63, 64, 127, 149):
        alone = decode(steady(logits[i : i + 1]), Even(), start(1), replace(settings, first_row=i), CPU)
        assert alone[0].tolist() == together[i].tolist()


def test_samples_repeat_with_a_seed_and_differ_between_seeds() -> None:
    def rows(seed: int) -> list[list[int]]:
        out = decode(steady(random_logits(8)), Even(), start(8), Sampling(temperature=1, seed=seed), CPU)
        return [row.tolist() for row in out]

    assert rows(0) == rows(0)
    assert rows(0) != rows(1)
    assert len({tuple(row) for row in rows(0)}) > 1, "rows of one call have independent samples"


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
def test_a_row_out_of_tokens_ends_at_the_last_possible_end(limit: int) -> None:
    logits = torch.tensor([[0.0, 0, -50, 1, 0, 0], [0, 0, 50, 0, 0, 0]])  # one never ends by itself, one at once
    endless, short = decode(steady(logits), Even(), start(2), Sampling(max_tokens=limit), CPU)
    assert endless.tolist() == [3] * ((limit - 1) // 2 * 2) + [EOS]
    assert short.tolist() == [EOS]


@pytest.mark.parametrize("write", [decode, search])
def test_ids_are_int32_on_the_device_of_the_logits(write: Any) -> None:
    own, many, settings = random_logits(4), torch.linspace(0, 1, 999)[None], Sampling(temperature=1, max_tokens=9)
    half, ways = np.array([0.5]), [settings, replace(settings, top_k=100), replace(settings, top_p=0.9)]
    chosen = [choose(many, way, half).tolist() for way in ways]
    expected = write(steady(own), Even(), start(4), settings, CPU)
    assert {row.dtype for row in expected} == {np.dtype(np.int32)}
    with torch.device("meta"):  # tensors made on the default device have no values
        assert [choose(many, way, half).tolist() for way in ways] == chosen
        again = write(steady(own), Even(), start(4), settings, CPU)
    assert [row.tolist() for row in again] == [row.tolist() for row in expected]


def test_rows_in_one_state_share_one_grammar_lookup() -> None:
    counts: list[int] = []

    class Counted(Even):
        def allowed(self, state: Ints) -> NDArray[np.bool_]:
            counts.append(len(state))
            return super().allowed(state)

    decode(steady(random_logits(1).expand(5, -1)), Counted(), start(5), Sampling(max_tokens=4), CPU)
    decode(steady(random_logits(5, end=-9.0)), Counted(), start(5), Sampling(max_tokens=2), CPU)
    assert counts == [1] * 4 + [1, 5]


def test_no_rows_give_no_rows() -> None:
    assert decode(steady(torch.zeros(0, 6)), Even(), start(0), Sampling(), CPU) == []


# --- music ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.sampled_from([(0.0, 0), (1.0, 0), (0.0, 3)]), st.integers(1, 40))
def test_every_bar_is_complete_after_truncation(
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


# --- guidance ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beam", [0, 3])
def test_each_row_has_its_own_guidance_after_other_rows_end(beam: int) -> None:
    """Guidance favours tokens 5 and 6 in alternating rows; even rows end one step before odd ones."""

    class Free:
        """Any token, until each row has as many as its state counts."""

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
        assert len({*(state[:, 0] - rows % 2).tolist()}) == 1, "rows and states move together"
        weights = np.zeros((len(rows), 2), np.float32)
        weights[np.arange(len(rows)), rows % 2] = 3.0
        return np.array([5, 6], np.int32), weights

    state = np.array([[1], [2], [1], [2]], np.int32)
    write = search if beam else decode
    found = write(step, Free(), state, Sampling(beam=beam), CPU, [guidance])
    assert [row.tolist() for row in found] == [[5, EOS], [6, 6, EOS], [5, EOS], [6, 6, EOS]]
