"""Metrics of sentences against values computed by hand, against sacrebleu, and against their definitions."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU

from seqvae.evaluation import text_metrics as text
from seqvae.evaluation.statistics import corpus_interval, resampled
from seqvae.text import edit_distance

LINES = ["the food was great .", "the staff was rude .", "great food and great staff !", "i will be back ."]
sentences = st.lists(st.sampled_from("abcd"), max_size=7).map(" ".join)


# --- BLEU -------------------------------------------------------------------------------------------------------------


def test_bleu_of_itself_is_100() -> None:
    assert corpus_interval(text.bleu_statistics(LINES, LINES), text.bleu_of) == pytest.approx((100, 100, 100))


@given(st.lists(st.tuples(sentences, sentences), min_size=1, max_size=5))
def test_bleu_is_that_of_sacrebleu(pairs: list[tuple[str, str]]) -> None:
    written, wanted = [a for a, _ in pairs], [b for _, b in pairs]
    expected = BLEU(tokenize="none", force=True).corpus_score(written, [wanted]).score
    assert text.bleu_of(text.bleu_statistics(written, wanted).sum(0)) == pytest.approx(expected)


def test_bleu_leaves_the_words_as_they_are_split() -> None:
    # the default tokenizer would split "it's" into two words, and a full stop from its word
    assert text.bleu_statistics(["it's good."], ["it's good."])[0].tolist() == [2, 2, 2, 1, 0, 0, 2, 1, 0, 0]
    assert "tok:none" in text.bleu_signature()
    assert "smooth:exp" in text.bleu_signature()


def test_sentence_bleu() -> None:
    assert text.sentence_bleu("back .", "back .") == 100, "shorter than four words"
    # two of two words, one of one bigram, and brevity e^(1 - 3/2)
    assert text.sentence_bleu("i will", "i will return") == pytest.approx(100 * math.exp(-0.5))
    assert text.sentence_bleu("a b", "c d") == text.sentence_bleu("", "c d") == 0


# --- edit distance ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("the food was great .", "the food was great .", 0),
        ("the food was great .", "food was bad .", 2 / 5),
        ("great", "", 1),
        ("", "", 0),
        ("a b c", "d e f", 1),
    ],
)
def test_edit_distance(a: str, b: str, expected: float) -> None:
    assert edit_distance.edit_distance(a, b) == edit_distance.edit_distance(b, a) == expected


@given(sentences, sentences, sentences)
def test_edits_are_a_metric(a: str, b: str, c: str) -> None:
    assert (edit_distance.edits(a, b) == 0) == (a == b)
    assert edit_distance.edits(a, c) <= edit_distance.edits(a, b) + edit_distance.edits(b, c)


# --- language model ---------------------------------------------------------------------------------------------------


def test_kneser_ney_by_hand() -> None:
    model = text.NGram(2).fit(["a b", "a b", "a c c"])
    # bigrams: <s>a 3, ab 2, b</s> 2, ac 1, cc 1, c</s> 1, so D2 = 3 / (3 + 4). Different words before a: 1, b: 1, c: 2,
    # </s>: 2, so D1 = 2 / (2 + 4), and 1/3 * 4/6 is left for the five words alike.
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
def test_kneser_ney_as_it_is_defined(order: int, lines: list[str], line: str) -> None:
    model = text.NGram(order).fit(lines)
    words = line.split()
    expected = [_defined(lines, order, model.vocabulary, words, i) for i in range(len(words) + 1)]
    assert np.exp(model.word_log_probs(line)) == pytest.approx(expected)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@given(lines=st.lists(sentences, min_size=1, max_size=6), context=sentences)
def test_probabilities_sum_to_1(order: int, lines: list[str], context: str) -> None:
    model, place = text.NGram(order).fit(lines), len(context.split())
    words = [word for word in model.vocabulary if word != text.END]
    total = sum(math.exp(model.word_log_probs(f"{context} {word}")[place]) for word in words)
    assert total + math.exp(model.word_log_probs(context)[place]) == pytest.approx(1)


def test_words_seen_once_are_unknown() -> None:
    model = text.NGram(2).fit(["a a b", "a c"])
    assert set(model.vocabulary) == {text.UNKNOWN, text.END, "a"}
    assert model.log_prob("a b") == model.log_prob("a c") == model.log_prob("a never")
    assert model.unknown(["a b c", "a"]) == 0.5


def test_a_vocabulary_may_be_that_of_another_model() -> None:
    large = text.NGram(3).fit(LINES * 2)
    small = text.NGram(3, large.vocabulary).fit(LINES[:1])
    assert small.vocabulary == large.vocabulary
    assert small.log_prob("i will be back .") < large.log_prob("i will be back .")


def test_perplexity_counts_the_end_of_each_line() -> None:
    model = text.NGram(4).fit(LINES * 2)
    nats = -sum(model.log_prob(line) for line in LINES)
    assert model.perplexity(LINES) == pytest.approx(math.exp(nats / (5 + 5 + 6 + 5 + 4)))
    assert model.log_probs([]).tolist() == []


def test_a_language_model_wants_lines() -> None:
    with pytest.raises(ValueError, match="no line"):
        text.NGram().fit([])
    with pytest.raises(ValueError, match="at least 1"):
        text.NGram(0)


def test_a_hundred_thousand_sentences_take_seconds() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.zipf(1.4, (100_000, 10)) % 9000
    lines = [" ".join(map(str, row)) for row in numbers.tolist()]
    start = time.perf_counter()
    text.NGram(4).fit(lines)
    assert time.perf_counter() - start < 10, "about 1.5 s on an idle machine"


# --- intervals --------------------------------------------------------------------------------------------------------


def test_an_interval_of_a_mean_is_that_of_the_textbook() -> None:
    x = np.random.default_rng(1).normal(3, 1, 1000)
    value, low, high = corpus_interval(np.column_stack([x, np.ones(1000)]), text.share_of)
    assert value == pytest.approx(x.mean())
    assert high - low == pytest.approx(3.92 / math.sqrt(1000), rel=0.15)
    assert low < 3 < high


def test_sentences_are_drawn_whole_and_alike_each_time() -> None:
    rows = np.arange(12.0).reshape(3, 2, 2)
    sums = resampled(rows, seed=4, draws=50)
    assert sums.shape == (50, 2, 2)
    # the rows differ by a constant, so all columns of a sum show the same counts
    assert (sums - sums[:, :1, :1] == rows[0] * 3).all()
    assert (sums == resampled(rows, seed=4, draws=50)).all()
    assert math.isnan(corpus_interval(np.zeros((0, 2)), text.share_of)[0])


def test_a_sweep_is_read_where_it_crosses_the_accuracy() -> None:
    accuracy, bleu = np.array([10.0, 60, 80, 95]), np.array([70.0, 40, 20, 10])
    assert text.crossing(accuracy, bleu, 73.6) == pytest.approx(40 - 20 * 13.6 / 20)
    assert text.crossing(accuracy, bleu, 80) == 20
    assert text.crossing(accuracy, bleu, 5) == 70, "reached before any move"
    assert math.isnan(text.crossing(accuracy, bleu, 96))
    # only the first crossing counts, not the way back down
    assert text.crossing(np.array([50.0, 90, 70, 90]), np.array([50.0, 30, 20, 5]), 70) == pytest.approx(40)
