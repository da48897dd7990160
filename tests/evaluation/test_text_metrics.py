"""Metrics of sentences against values computed by hand, against sacrebleu, and against their definitions."""

from __future__ import annotations

import math

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
def test_bleu_equals_sacrebleu(pairs: list[tuple[str, str]]) -> None:
    written, references = [a for a, _ in pairs], [b for _, b in pairs]
    expected = BLEU(tokenize="none", force=True).corpus_score(written, [references]).score
    assert text.bleu_of(text.bleu_statistics(written, references).sum(0)) == pytest.approx(expected)


def test_bleu_does_not_tokenize_again() -> None:
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
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert (edit_distance.edits(a, b) == 0) == (a == b)
    assert edit_distance.edits(a, c) <= edit_distance.edits(a, b) + edit_distance.edits(b, c)


# --- intervals --------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_matches_the_textbook() -> None:
    x = np.random.default_rng(1).normal(3, 1, 1000)
    value, low, high = corpus_interval(np.column_stack([x, np.ones(1000)]), text.share_of)
    assert value == pytest.approx(x.mean())
    assert high - low == pytest.approx(3.92 / math.sqrt(1000), rel=0.15)
    assert low < 3 < high


def test_the_bootstrap_draws_whole_sentences_reproducibly() -> None:
    rows = np.arange(12.0).reshape(3, 2, 2)
    resamples = resampled(rows, seed=4, draws=50)
    assert resamples.shape == (50, 2, 2)
    # the rows differ by a constant, so all columns of a sum show the same counts
    assert (resamples - resamples[:, :1, :1] == rows[0] * 3).all()
    assert (resamples == resampled(rows, seed=4, draws=50)).all()
    assert math.isnan(corpus_interval(np.zeros((0, 2)), text.share_of)[0])


def test_a_sweep_is_evaluated_where_it_crosses_the_accuracy() -> None:
    accuracy, bleu = np.array([10.0, 60, 80, 95]), np.array([70.0, 40, 20, 10])
    assert text.crossing(accuracy, bleu, 73.6) == pytest.approx(40 - 20 * 13.6 / 20)
    assert text.crossing(accuracy, bleu, 80) == 20
    assert text.crossing(accuracy, bleu, 5) == 70, "reached before any move"
    assert math.isnan(text.crossing(accuracy, bleu, 96))
    # only the first crossing counts, not the way back down
    assert text.crossing(np.array([50.0, 90, 70, 90]), np.array([50.0, 30, 20, 5]), 70) == pytest.approx(40)
