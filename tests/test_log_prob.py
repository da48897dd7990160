"""Reconstruction log-probability of a piece, whatever the other pieces."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import groove
from precision import needs_bf16

from seqvae.codec import Codec
from seqvae.config import ObjectiveConfig
from seqvae.music.piece import Piece
from seqvae.nn import batches, inference
from seqvae.nn.binding import shifted
from seqvae.nn.loss import loss
from seqvae.nn.model import SequenceVAE
from seqvae.nn.posterior import Posterior


@pytest.mark.bf16
@pytest.mark.parametrize("half", [False, pytest.param(True, marks=needs_bf16)], ids=["fp32", "bf16"])
def test_the_log_probability_is_the_negative_cross_entropy_of_the_tokens(
    small: Codec, song: Piece, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sharp(self: Codec, segments: Any) -> Posterior:
        """The posterior without variance, so that every sample is the mean."""
        mean = self.model.encode(*self.tensors(segments)).mean.detach()
        return Posterior(mean, torch.full_like(mean, -40.0))

    monkeypatch.setattr(Codec, "posteriors", sharp)
    monkeypatch.setattr(inference, "multiplies_bf16", lambda device: half)
    for piece in (song, groove(1)):
        segments = small.segments(piece)
        config, model = ObjectiveConfig(autoencoder=True), small.model
        assert isinstance(model, SequenceVAE)
        tokens, fields = small.tensors(segments)
        allowed = torch.from_numpy(small.tokenizer.allowed(tokens.numpy().astype(np.int32)))
        expected = loss(model, tokens, fields, config, 1, False, allowed).reconstruction
        scored = small.log_prob([piece], samples=2)[0]
        if half:
            # A logit is a sum that is rounded to 8 bits, and so are the numbers it is a sum of: each token is off by up
            # to 2^-8 of the largest logit. Roundings go up and down, so that the sum over tokens grows by its root.
            mean = model.encode(tokens, fields).mean
            logits = model.decode_logits(mean, shifted(tokens), fields)[0]
            off = 2**-8 * float(logits.abs().max()) * math.sqrt(int((tokens > 0).sum()))
            assert scored == pytest.approx(-expected * len(segments), abs=off)
        else:
            assert scored == pytest.approx(-expected * len(segments), rel=1e-5)


def test_each_token_has_its_own_log_probability(small: Codec, song: Piece) -> None:
    log_probs, tokens = small.token_log_prob(song, samples=3)
    assert log_probs.shape == tokens.shape
    assert (log_probs[tokens == 0] == 0).all()
    assert (log_probs[tokens != 0] < 0).all()
    assert log_probs.isfinite().all()
    assert small.log_prob([song], samples=3)[0] == pytest.approx(float(log_probs.sum()), rel=1e-5)
    assert [chunk[chunk != 0].tolist() for chunk in tokens.flatten(0, 1).numpy()] == [
        chunk.tolist() for segment in small.segments(song) for chunk in segment
    ]


def test_scoring_uses_few_tensor_shapes(small: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    shapes: set[torch.Size] = set()
    monkeypatch.setattr(inference, "multiplies_bf16", lambda device: False)
    monkeypatch.setattr(inference, "BATCH_TOKENS", 4096)
    monkeypatch.setattr(inference, "SCORE_NUMBERS", 2048 * small.tokenizer.vocab_size)
    for name in ("encode", "decode_logits"):
        original = getattr(small.model, name)

        def seen(first: torch.Tensor, second: torch.Tensor, *rest: torch.Tensor, original: Any = original) -> Any:
            shapes.update(x.shape for x in (first, second))
            return original(first, second, *rest)

        monkeypatch.setattr(small.model, name, seen)

    def scored(count: int) -> tuple[Posterior, torch.Tensor]:
        lengths = rng.integers(1, 30, (count, small.chunks))
        segments = [[rng.integers(3, 100, n).astype(np.int32) for n in row] for row in lengths]
        posterior = small.posteriors(segments)
        return posterior, small.token_log_probs(posterior.mean[None], segments)

    for count in range(1, 120, 2):
        scored(count)
    evened = len(shapes)
    state = rng.bit_generator.state
    posterior, log_probs = scored(77)
    shapes.clear()
    monkeypatch.setattr(batches, "even", lambda count: count)
    rng.bit_generator.state = state
    exact, expected = scored(77)
    torch.testing.assert_close(posterior.mean, exact.mean)
    torch.testing.assert_close(log_probs, expected, rtol=1e-4, atol=1e-4)
    for count in range(1, 120, 2):
        scored(count)
    assert evened < len(shapes) / 2


def test_other_pieces_and_batches_do_not_change_a_log_probability(
    small: Codec, song: Piece, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = replace(small, exact=True)
    together = exact.log_prob([song, groove(0)], samples=4, seed=2)
    assert all(math.isfinite(x) and x < 0 for x in together)
    assert exact.log_prob([song], samples=4, seed=2)[0] == together[0]
    assert exact.log_prob([groove(0)], samples=4, seed=3)[0] != together[1]
    monkeypatch.setattr(inference, "BATCH_TOKENS", 32)
    assert exact.log_prob([song], samples=4, seed=2)[0] == together[0]


def test_estimates_of_more_draws_vary_less(small: Codec) -> None:
    def spread(samples: int) -> float:
        return float(np.std([small.log_prob([groove(0)], samples=samples, seed=seed)[0] for seed in range(6)]))

    assert spread(16) < spread(1)
