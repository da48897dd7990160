"""Invariants of every encoder and decoder."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, cast

import numpy as np
import pytest
import torch
from conftest import MakePiece
from torch import Tensor

from seqvae.checkpoint import folder as checkpoint
from seqvae.config import ModelConfig, ObjectiveConfig
from seqvae.errors import ConfigError
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.nn.beam import search
from seqvae.nn.binding import shifted
from seqvae.nn.decoder import Decoder
from seqvae.nn.kernels import Steady
from seqvae.nn.loss import loss
from seqvae.nn.model import SequenceVAE
from seqvae.nn.posterior import LOGVAR_RANGE
from seqvae.nn.sampling import Sampling
from seqvae.protocols import EOS, PAD

ENCODERS = ("recurrent", "transformer", "set")
DECODERS = ("recurrent", "transformer")
CHUNKS, LATENT = 2, 12


def build(tokenizer: MidiTokenizer, encoder: str, decoder: str) -> SequenceVAE:
    """A small model with perturbed initial weights, so that no weight of zero hides a fault."""
    config = ModelConfig(
        chunks=CHUNKS, latent=LATENT, width=32, hidden=24, heads=4, layers=2, dropout=0.5,
        encoder=cast(Literal["recurrent", "transformer", "set"], encoder),
        decoder=cast(Literal["recurrent", "transformer"], decoder),
    )  # fmt: skip
    torch.manual_seed(0)
    model = checkpoint.build(config, tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module", params=itertools.product(ENCODERS, DECODERS), ids="-".join)
def model(request: pytest.FixtureRequest, tokenizer: MidiTokenizer) -> SequenceVAE:
    return build(tokenizer, *request.param)


@pytest.fixture(scope="module", params=DECODERS)
def decoding(request: pytest.FixtureRequest, tokenizer: MidiTokenizer) -> SequenceVAE:
    """For invariants of the decoder alone."""
    return build(tokenizer, "set", request.param)


@pytest.fixture(scope="module", params=ENCODERS)
def encoding(request: pytest.FixtureRequest, tokenizer: MidiTokenizer) -> SequenceVAE:
    """For invariants of the encoder alone."""
    return build(tokenizer, request.param, "recurrent")


@pytest.fixture(scope="module")
def segments(tokenizer: MidiTokenizer, make_piece: MakePiece) -> list[list[list[int]]]:
    """Four segments of two chunks, of different lengths, one chunk of them empty."""
    rng = np.random.default_rng(0)
    out = []
    for sizes in ((3, 5), (9, 1), (0, 4), (6, 6)):
        rows = [
            [48 * c + int(rng.integers(48)), int(rng.integers(1, 49)), int(rng.integers(128)), int(program), 80]
            for c, size in enumerate(sizes)
            for program in rng.choice([0, 33, 128], size)
        ]
        out.append([chunk.tolist() for chunk in tokenizer.encode(make_piece(rows, [0, 48, 96]))])
    return out


def tensors(
    tokenizer: MidiTokenizer, segments: Sequence[Sequence[Sequence[int]]], extra: int = 0
) -> tuple[Tensor, Tensor]:
    """Tokens `(B, C, T)`, padded by `extra` positions, and their position fields."""
    width = max(len(chunk) for segment in segments for chunk in segment) + extra
    tokens = np.full((len(segments), CHUNKS, width), PAD, np.int32)
    for b, segment in enumerate(segments):
        for c, chunk in enumerate(segment):
            tokens[b, c, : len(chunk)] = chunk
    return torch.from_numpy(tokens).long(), torch.from_numpy(tokenizer.position_fields(tokens)).long()


def latents(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, LATENT, generator=torch.Generator().manual_seed(seed))


Segments = list[list[list[int]]]


# --- shapes -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_one_pass_gives_logits_of_every_token_and_a_posterior(
    model: SequenceVAE, tokenizer: MidiTokenizer, segments: Segments
) -> None:
    tokens, fields = tensors(tokenizer, segments)
    output = model(tokens, fields, tokens, shifted(tokens), True)
    logits, bag = output.autoregressive.logits(), output.direct.logits()
    assert logits.shape == bag.shape == ((tokens != PAD).sum(), tokenizer.vocab_size)
    assert output.z.shape == output.posterior.mean.shape == output.posterior.logvar.shape == (4, LATENT)
    assert logits.isfinite().all()
    low, high = LOGVAR_RANGE
    assert ((output.posterior.logvar >= low) & (output.posterior.logvar <= high)).all()
    assert not torch.equal(output.z, output.posterior.mean)
    assert torch.equal(model(tokens, fields, tokens, shifted(tokens), False).z, output.posterior.mean)


def test_decoder_inputs_are_the_previous_tokens() -> None:
    assert shifted(torch.tensor([[5, 6, 2, 0], [2, 0, 0, 0]])).tolist() == [[1, 5, 6, 2], [1, 2, 0, 0]]


def test_every_weight_has_a_gradient(model: SequenceVAE, tokenizer: MidiTokenizer, segments: Segments) -> None:
    tokens, fields = tensors(tokenizer, segments)
    torch.manual_seed(0)
    model.zero_grad()
    loss(model, tokens, fields, ObjectiveConfig(bag=1.0, schedule="constant"), 1).total.backward()  # type: ignore[no-untyped-call]
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()]
    assert idle == []
    model.zero_grad()


# --- encoder ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_padding_and_other_rows_do_not_change_a_posterior(
    encoding: SequenceVAE, tokenizer: MidiTokenizer, segments: Segments
) -> None:
    together = encoding.encode(*tensors(tokenizer, segments, extra=7))
    for i, segment in enumerate(segments):
        alone = encoding.encode(*tensors(tokenizer, [segment]))
        torch.testing.assert_close(together.mean[i], alone.mean[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.logvar[i], alone.logvar[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_posterior_depends_on_the_order_of_chunks(
    encoding: SequenceVAE, tokenizer: MidiTokenizer, segments: Segments
) -> None:
    turned = [[b, a] for a, b in segments]
    there, back = encoding.encode(*tensors(tokenizer, segments)), encoding.encode(*tensors(tokenizer, turned))
    assert ((there.mean - back.mean).abs().amax(1) > 1e-2).all()


@torch.no_grad()
def test_every_token_changes_the_posterior(encoding: SequenceVAE, tokenizer: MidiTokenizer, segments: Segments) -> None:
    tokens, fields = tensors(tokenizer, segments[:1])
    before = encoding.encode(tokens, fields).mean
    for c, t in (tokens[0] > EOS).nonzero().tolist():
        changed = tokens.clone()
        changed[0, c, t] = 3  # masked
        assert (encoding.encode(changed, fields).mean - before).abs().max() > 1e-4


@torch.no_grad()
def test_track_dropout_changes_every_other_segment(
    encoding: SequenceVAE, tokenizer: MidiTokenizer, segments: Segments
) -> None:
    tokens, fields = tensors(tokenizer, segments)
    clear, faint = encoding.encode(tokens, fields).mean, encoding.encode(tokens, fields, track_dropout=0.7).mean
    torch.testing.assert_close(faint[1::2], clear[1::2], atol=1e-5, rtol=1e-5)
    assert ((faint[::2] - clear[::2]).abs().amax(1) > 1e-3).all()
    torch.testing.assert_close(encoding.encode(tokens, fields, track_dropout=1e-9).mean, clear, atol=1e-5, rtol=1e-5)


# --- decoder ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_steps_with_the_cache_equal_one_full_pass(
    model: SequenceVAE, tokenizer: MidiTokenizer, segments: Segments
) -> None:
    tokens, fields = tensors(tokenizer, segments)
    z = model.encode(tokens, fields).mean
    logits, bag = model.decode_logits(z, shifted(tokens), fields)
    code = model.decoder.codes(z).flatten(0, 1)
    inputs, flat = shifted(tokens).flatten(0, 1), fields.flatten(0, 1)
    cache = model.decoder.start(code)
    for t in range(tokens.shape[-1]):
        step, step_bag, cache = model.decoder(code, inputs[:, t : t + 1], flat[:, t : t + 1], cache)
        torch.testing.assert_close(step.logits(), logits.flatten(0, 1)[:, t], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(step_bag.logits(), bag.flatten(0, 1)[:, t], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_chunk_sees_only_its_own_tokens(decoding: SequenceVAE, tokenizer: MidiTokenizer, segments: Segments) -> None:
    z = latents(len(segments))
    tokens, fields = tensors(tokenizer, segments)
    others, other_cues = tokens.clone(), fields.clone()
    others[:, 1], other_cues[:, 1] = tokens[:, 1].roll(1, 0), fields[:, 1].roll(1, 0)
    before, after = (
        decoding.decode_logits(z, shifted(tokens), fields)[0],
        decoding.decode_logits(z, shifted(others), other_cues)[0],
    )
    torch.testing.assert_close(after[:, 0], before[:, 0], rtol=1e-5, atol=1e-5)
    assert (after[:, 1] - before[:, 1]).abs().max() > 1e-2


@torch.no_grad()
def test_a_token_does_not_change_earlier_logits(
    decoding: SequenceVAE, tokenizer: MidiTokenizer, segments: Segments
) -> None:
    tokens, fields = tensors(tokenizer, segments)
    z = latents(len(segments))
    before, bag = decoding.decode_logits(z, shifted(tokens), fields)
    for at in range(tokens.shape[-1] - 1):
        changed = tokens.clone()
        changed[:, :, at] = tokenizer.vocabulary["Pitch_99"]
        new_fields = torch.from_numpy(tokenizer.position_fields(changed.numpy().astype(np.int32))).long()
        after, new_bag = decoding.decode_logits(z, shifted(changed), new_fields)
        torch.testing.assert_close(after[:, :, : at + 1], before[:, :, : at + 1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(new_bag[:, :, : at + 1], bag[:, :, : at + 1], rtol=1e-5, atol=1e-5)
        assert (after[:, :, at + 1] - before[:, :, at + 1]).abs().amax(-1).min() > 1e-3


@torch.no_grad()
def test_the_bag_of_words_depends_only_on_the_code_and_the_position_fields(
    decoding: SequenceVAE, tokenizer: MidiTokenizer, segments: Segments
) -> None:
    tokens, fields = tensors(tokenizer, segments)
    z = latents(len(segments))
    bag = decoding.decode_logits(z, shifted(tokens), fields)[1]
    masked = decoding.decode_logits(z, torch.full_like(tokens, 3), fields)[1]
    torch.testing.assert_close(masked, bag)
    assert (decoding.decode_logits(latents(4, 1), shifted(tokens), fields)[1] - bag).abs().amax(-1).min() > 1e-3
    assert (decoding.decode_logits(z, shifted(tokens), fields.flip(2))[1] - bag).abs().max() > 1e-3


@torch.no_grad()
def test_each_binding_depth_gives_the_logits_of_its_own_tokens(
    decoding: SequenceVAE, tokenizer: MidiTokenizer, segments: Segments
) -> None:
    tokens, fields = tensors(tokenizer, segments)
    before = decoding.decode_logits(latents(4), shifted(tokens), fields)
    assert isinstance(decoding.decoder, Decoder)
    norms, binding_depth = decoding.decoder.level_norms, torch.from_numpy(tokenizer.binding_depth)
    assert len(norms) == len(set(binding_depth.tolist()) - {len(tokenizer.field_sizes)})
    for (level, _), norm in zip(decoding.decoder.levels, norms, strict=True):
        assert isinstance(norm, torch.nn.LayerNorm)
        norm.bias.add_(1)
        after = decoding.decode_logits(latents(4), shifted(tokens), fields)
        norm.bias.sub_(1)
        for a, b in zip(before, after, strict=True):  # the logits and the bag's
            moved = (a - b).abs().amax((0, 1, 2)) > 1e-4
            assert moved[binding_depth == level].all()
            assert not moved[binding_depth != level].any()


@torch.no_grad()
def test_every_chunk_depends_on_the_latent_vector(
    decoding: SequenceVAE, tokenizer: MidiTokenizer, segments: Segments
) -> None:
    tokens, fields = tensors(tokenizer, segments)
    one, two = (decoding.decode_logits(latents(4, seed), shifted(tokens), fields)[0] for seed in (0, 1))
    assert (one - two).abs().amax(-1).min() > 1e-3
    codes = decoding.decoder.codes(latents(4))
    assert codes.shape == (4, CHUNKS, 32)
    assert (codes[:, 0] - codes[:, 1]).abs().amax(-1).min() > 1e-2, "each chunk has a code of its own"


# --- writing ----------------------------------------------------------------------------------------------------------


def write(model: SequenceVAE, tokenizer: MidiTokenizer, z: Tensor, settings: Sampling) -> list[list[list[int]]]:
    grammar = tokenizer.grammar()
    with Steady():
        written = model.generate(z, grammar, grammar.start(len(z) * CHUNKS), settings)
    return [[chunk.tolist() for chunk in segment] for segment in written]


@pytest.mark.parametrize(("temperature", "beam"), [(0.0, 0), (1.0, 0), (0.0, 3)])
def test_other_rows_do_not_change_the_generated_tokens(
    decoding: SequenceVAE, tokenizer: MidiTokenizer, temperature: float, beam: int
) -> None:
    z = 2 * latents(5)
    settings = {"temperature": temperature, "seed": 3, "max_tokens": 24, "beam": beam}
    together = write(decoding, tokenizer, z, Sampling(**settings))  # type: ignore[arg-type]
    assert len({str(segment) for segment in together}) == 5
    for i in range(5):
        alone = write(decoding, tokenizer, z[i : i + 1], Sampling(**settings, first_row=CHUNKS * i))  # type: ignore[arg-type]
        assert alone[0] == together[i]


def test_greedy_decoding_takes_the_most_likely_token_at_each_step(
    decoding: SequenceVAE, tokenizer: MidiTokenizer
) -> None:
    z = 2 * latents(3)
    written = write(decoding, tokenizer, z, Sampling(max_tokens=40))
    tokens, fields = tensors(tokenizer, written)
    with torch.no_grad():
        logits = decoding.decode_logits(z, shifted(tokens), fields)[0].flatten(0, 1)
    grammar = tokenizer.grammar()
    rows = tokens.flatten(0, 1).numpy().astype(np.int32)
    state = grammar.start(len(rows))
    checked = 0
    for t in range(rows.shape[1]):
        best = logits[:, t].masked_fill(~torch.from_numpy(grammar.allowed(state)), float("-inf")).argmax(-1).numpy()
        here = (rows[:, t] != PAD) & ~((rows[:, t] == EOS) & (t > 30))  # near the limit a bar may have been cut
        assert (best == rows[:, t])[here].all()
        checked += int(here.sum())
        state = grammar.advance(state, rows[:, t])
    assert checked > 50


def test_beam_search_is_the_same_without_a_cache(decoding: SequenceVAE, tokenizer: MidiTokenizer) -> None:
    """The cache of a hypothesis moves with the hypothesis."""
    z = 2 * latents(3)
    code = decoding.decoder.codes(z).flatten(0, 1)
    inputs = torch.zeros(len(code), 0, dtype=torch.long)
    before = torch.zeros(len(code), 0, len(tokenizer.field_sizes), dtype=torch.long)

    @torch.no_grad()
    def step(tokens: Tensor, fields: Tensor, keep: Tensor | None) -> Tensor:
        nonlocal code, inputs, before
        rows = torch.arange(len(code)) if keep is None else keep
        code, inputs, before = code[rows], torch.cat([inputs[rows], tokens], 1), torch.cat([before[rows], fields], 1)
        logits: Tensor = decoding.decoder(code, inputs, before, decoding.decoder.start(code))[0].logits()
        return logits.view(*inputs.shape, -1)[:, -1]

    settings, grammar = Sampling(max_tokens=24, beam=4), tokenizer.grammar()
    written = write(decoding, tokenizer, z, settings)
    searched = search(step, grammar, grammar.start(len(code)), settings, z.device)
    assert [chunk.tolist() for chunk in searched] == [chunk for segment in written for chunk in segment]
    assert written != write(decoding, tokenizer, z, Sampling(max_tokens=24))
    assert write(decoding, tokenizer, z, Sampling(max_tokens=24, beam=1)) == write(
        decoding, tokenizer, z, Sampling(max_tokens=24)
    )


def test_a_step_without_gradients_equals_a_training_step(decoding: SequenceVAE, tokenizer: MidiTokenizer) -> None:
    """For saturated gates too: only negligible terms are clamped."""
    decoder = decoding.decoder
    for size in (1.0, 300.0):
        code = size * decoder.codes(latents(4)).flatten(0, 1)
        tokens = torch.randint(4, tokenizer.vocab_size, (len(code), 1), generator=torch.Generator().manual_seed(1))
        fields = torch.zeros(len(code), 1, len(tokenizer.field_sizes), dtype=torch.long)
        cache = other = decoder.start(code)
        for _ in range(3):
            outputs, _, cache = decoder(code, tokens, fields, cache)
            with torch.no_grad():
                alone, other = decoder.step(code, tokens, fields, other)
            torch.testing.assert_close(alone.logits(), outputs.logits(), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(other, cache, rtol=1e-4, atol=1e-5)


def test_samples_follow_changes_of_the_weights(tokenizer: MidiTokenizer) -> None:
    """Sampling uses a cached copy of the weights in lower precision."""
    one, other = (build(tokenizer, "set", "recurrent") for _ in range(2))
    drawn = Sampling(temperature=1, max_tokens=16)
    before = write(one, tokenizer, latents(3), drawn)
    assert write(one, tokenizer, latents(3), drawn) == before
    with torch.no_grad():
        for model in (one, other):
            for parameter in model.decoder.parameters():
                parameter.mul_(1.5)
    assert write(one, tokenizer, latents(3), drawn) == write(other, tokenizer, latents(3), drawn) != before
    assert "_half" not in one.state_dict() and not any("_half" in name for name, _ in one.named_parameters())


def test_generating_leaves_no_gradients(decoding: SequenceVAE, tokenizer: MidiTokenizer) -> None:
    z = latents(1).requires_grad_()
    write(decoding, tokenizer, z, Sampling(max_tokens=4))
    assert z.grad is None


# --- building ---------------------------------------------------------------------------------------------------------


def test_a_seed_gives_one_model(tokenizer: MidiTokenizer) -> None:
    one, two = (build(tokenizer, "set", "recurrent").state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("config", [
    ModelConfig(width=30, heads=4, encoder="transformer"),
    ModelConfig(width=32, hidden=30, heads=4, decoder="transformer"),
    ModelConfig(width=31, encoder="recurrent"),
])  # fmt: skip
def test_incompatible_sizes_are_an_error_in_one_line(config: ModelConfig, tokenizer: MidiTokenizer) -> None:
    with pytest.raises(ConfigError, match="does not divide"):
        checkpoint.build(config, tokenizer)
