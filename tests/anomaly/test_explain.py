"""Which tokens are marked, and which spans of characters."""

from __future__ import annotations

import numpy as np
import pytest

from seqvae.anomaly import explain
from seqvae.anomaly.evidence import Evidence
from seqvae.anomaly.explain import Span
from seqvae.text.tokenizer import TextTokenizer

LINES = ["get /a?id=1", "get /b?id=2", "post /añ?id=3"]


@pytest.fixture(scope="module")
def characters() -> TextTokenizer:
    return TextTokenizer.train(LINES, 400, "char")


def evidence(tokenizer: TextTokenizer, line: str, rare: dict[int, float]) -> Evidence:
    """Evidence of a line with the log-probabilities of `rare` tokens, -0.1 for the others."""
    [tokens] = tokenizer.encode(line)
    log_prob = np.array([rare.get(i, -0.1) for i in range(len(tokens))], np.float32)
    return Evidence(tokens, log_prob, log_prob, 0.0, 0.0, len(tokens), np.zeros((1, 2), np.float32))


def test_unlikely_characters_are_spans_with_their_positions(characters: TextTokenizer) -> None:
    line = "get /a?id=1<1>&b=2"
    one = evidence(characters, line, {12: -9.0, 14: -7.0, 18: -8.0})
    spans = [Span(11, 14, "<1>", -16.1), Span(17, 18, "2", -8.0)]
    assert explain.unlikely(characters, one) == spans
    assert [line[span.start : span.end] for span in spans] == [span.text for span in spans]
    assert explain.marked(characters, one) == {12, 13, 14, 18}


def test_the_least_likely_character_is_always_a_span(characters: TextTokenizer) -> None:
    one = evidence(characters, "get /a?id=1", {4: -0.5})
    assert explain.unlikely(characters, one) == [Span(3, 4, " ", -0.5)]


def test_letters_of_several_tokens_have_one_position(characters: TextTokenizer) -> None:
    one = evidence(characters, "get /ü<", {6: -7.0, 7: -7.0, 8: -9.0})
    assert explain.unlikely(characters, one) == [Span(5, 7, "ü<", -23.0)]


def test_an_early_end_is_a_span_without_characters(characters: TextTokenizer) -> None:
    one = evidence(characters, "get /", {6: -9.0})
    assert explain.unlikely(characters, one) == [Span(5, 5, "", -9.0)]


def test_words_are_marked_one_by_one() -> None:
    words = TextTokenizer.train(["the food was good"] * 9, 300, "bpe")
    assert not explain.by_character(words)
    one = evidence(words, "the food was good", {2: -9.0})
    assert explain.marked(words, one) == explain.pointed(one)
