"""Expected tokens at the surprising positions of a piece."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from conftest import session

from seqvae import codec
from seqvae.anomaly.evidence import examine
from seqvae.anomaly.expectation import expected
from seqvae.codec import Codec
from seqvae.nn import inference


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding to bf16 depends on the batch."""
    monkeypatch.setattr(inference, "multiplies_bf16", lambda device: False)


@pytest.fixture(scope="module")
def events(tiny_events: Path) -> Codec:
    return codec.load(tiny_events)


@pytest.mark.parametrize("number", [1000, 1004, 1011])
def test_probabilities_are_those_of_the_evidence(events: Codec, number: int) -> None:
    """With one draw the log-probability of the actual token equals that in the evidence, in every window."""
    piece = session(number)
    [evidence] = examine(events, [piece], samples=1, seed=3)
    size = events.tokenizer.vocab_size
    found = expected(events, piece, range(len(evidence.tokens)), most=size, samples=1, seed=3)
    for token, value, options in zip(evidence.tokens.tolist(), evidence.log_prob.tolist(), found, strict=True):
        assert sum(p for _, p in options) == pytest.approx(1, abs=1e-5)
        assert [p for _, p in options] == sorted((p for _, p in options), reverse=True)
        assert math.log(dict(options)[token]) == pytest.approx(value, abs=1e-3)


def test_positions_are_returned_in_the_order_given(events: Codec) -> None:
    piece = " ".join(["open", *["read", "check"] * 12, "close"])  # three windows
    every = expected(events, piece, range(27))
    assert expected(events, piece, [20, 3, 11]) == [every[20], every[3], every[11]]
    assert expected(events, piece, []) == []


def test_the_normal_event_is_expected_instead_of_an_anomalous_one(events: Codec) -> None:
    piece = "open read check write panic check close"  # `sync` follows `write`
    [[(token, probability), *_]] = expected(events, piece, [4])
    assert events.tokenizer.token_text(token) == "sync" and probability > 0.5
