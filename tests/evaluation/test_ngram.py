"""N-gram language models."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqvae.evaluation import ngram

LINES = ["the food was great .", "the staff was rude .", "great food and great staff !", "i will be back ."]
sentences = st.lists(st.sampled_from("abcd"), max_size=7).map(" ".join)


def test_kneser_ney_by_hand() -> None:
    model = ngram.NGram(2).fit(["a b", "a b", "a c c"])
    # bigrams: <s>a 3, ab 2, b</s> 2, ac 1, cc 1, c</s> 1, so D2 = 3 / (3 + 4). Different words before a: 1, b: 1, c: 2,
    # </s>: 2, so D1 = 2 / (2 + 4), and 1/3 * 4/6 is left for the five words in equal parts.
    b, end = 7 / 45, 29 / 90
    expected = [6 / 7 + 1 / 7 * 7 / 45, 11 / 21 + 2 / 7 * b, 11 / 14 + 3 / 14 * end]
    assert np.exp(model.word_log_probs("a b")) == pytest.approx(expected)
    # after a word that never was a context the order is one lower; <unk> has its share of the remaining mass
    assert np.exp(model.word_log_probs("what b"))[1] == pytest.approx(b)
    assert np.exp(model.word_log_probs("what b"))[0] == pytest.approx(1 / 7 * 2 / 45)
    assert model.log_prob("a b") == pytest.approx(math.log(math.prod(expected)))


def _defined(lines: Sequence[str], order: int, vocabulary: Sequence[str], line: Sequence[str], i: int) -> float:
    """P(line[i] | the words before it) by the definition in the class's docstring, with a loop over everything."""
    read = [["<s>", *(w if w in vocabulary else "<unk>" for w in one.split()), "</s>"] for one in lines]
    counts: list[Counter[tuple[str, ...]]] = [
        Counter(tuple(one[k : k + n]) for one in read for k in range(len(one) - n + 1)) for n in range(1, order + 1)
    ]

    def adjusted(n: int) -> dict[tuple[str, ...], int]:
        if n == order:
            return {g: c for g, c in counts[n - 1].items() if g != ("<s>",)}
        before = Counter(g[1:] for g in counts[n])
        whole = {g: counts[n - 1][g] if g[0] == "<s>" else before[g] for g in counts[n - 1]}
        return {g: c for g, c in whole.items() if g != ("<s>",)}

    def p(n: int, word: str, context: tuple[str, ...]) -> float:
        if n == 0:
            return 1 / len(vocabulary)
        if len(context) < n - 1:
            return p(n - 1, word, context)
        context = context[len(context) - n + 1 :]
        a = adjusted(n)
        once, twice = (sum(c == k for c in a.values()) for k in (1, 2))
        discount = once / (once + 2 * twice) if once and twice else 0.75
        after = {g[-1]: c for g, c in a.items() if g[:-1] == context}
        lower = p(n - 1, word, context[1:])
        if not after:
            return lower
        total = sum(after.values())
        return max(after.get(word, 0) - discount, 0) / total + discount * len(after) / total * lower

    known = ["<s>", *(w if w in vocabulary else "<unk>" for w in line), "</s>"]
    return p(order, known[i + 1], tuple(known[: i + 1]))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@given(lines=st.lists(sentences, min_size=1, max_size=6), line=sentences)
def test_kneser_ney_equals_its_definition(order: int, lines: list[str], line: str) -> None:
    model = ngram.NGram(order).fit(lines)
    words = line.split()
    expected = [_defined(lines, order, model.vocabulary, words, i) for i in range(len(words) + 1)]
    assert np.exp(model.word_log_probs(line)) == pytest.approx(expected)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@given(lines=st.lists(sentences, min_size=1, max_size=6), context=sentences)
def test_probabilities_sum_to_1(order: int, lines: list[str], context: str) -> None:
    model, place = ngram.NGram(order).fit(lines), len(context.split())
    words = [word for word in model.vocabulary if word != ngram.END]
    total = sum(math.exp(model.word_log_probs(f"{context} {word}")[place]) for word in words)
    assert total + math.exp(model.word_log_probs(context)[place]) == pytest.approx(1)


def test_words_seen_once_become_unknown() -> None:
    model = ngram.NGram(2).fit(["a a b", "a c"])
    assert set(model.vocabulary) == {ngram.UNKNOWN, ngram.END, "a"}
    assert model.log_prob("a b") == model.log_prob("a c") == model.log_prob("a never")
    assert model.unknown(["a b c", "a"]) == 0.5


def test_a_vocabulary_may_be_that_of_another_model() -> None:
    large = ngram.NGram(3).fit(LINES * 2)
    small = ngram.NGram(3, large.vocabulary).fit(LINES[:1])
    assert small.vocabulary == large.vocabulary
    assert small.log_prob("i will be back .") < large.log_prob("i will be back .")


def test_perplexity_counts_the_end_of_each_line() -> None:
    model = ngram.NGram(4).fit(LINES * 2)
    nats = -sum(model.log_prob(line) for line in LINES)
    assert model.perplexity(LINES) == pytest.approx(math.exp(nats / (5 + 5 + 6 + 5 + 4)))
    assert model.log_probs([]).tolist() == []


def test_a_language_model_needs_lines() -> None:
    with pytest.raises(ValueError, match="no line"):
        ngram.NGram().fit([])
    with pytest.raises(ValueError, match="at least 1"):
        ngram.NGram(0)


def test_a_hundred_thousand_sentences_take_seconds() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.zipf(1.4, (100_000, 10)) % 9000
    lines = [" ".join(map(str, row)) for row in numbers.tolist()]
    start = time.perf_counter()
    ngram.NGram(4).fit(lines)
    assert time.perf_counter() - start < 10, "about 1.5 s on an idle machine"
