"""The loss against sums computed by hand, and masks of the right share."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from precision import needs_bf16
from torch import Tensor
from torch.nn import functional

from seqvae.checkpoint import folder as checkpoint
from seqvae.config import ModelConfig, ObjectiveConfig, RefineConfig
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.nn.binding import Binding, shifted
from seqvae.nn.decoder import DecoderOutput
from seqvae.nn.loss import Loss, charged_kl, dropped, loss, masked, objective_at
from seqvae.nn.model import Output, SequenceVAE
from seqvae.nn.posterior import Posterior
from seqvae.nn.refine import refine
from seqvae.protocols import EOS, MASK, PAD

# two segments of two chunks of up to three tokens of a vocabulary of four (MASK, 3, is an ordinary token here)
TOKENS = torch.tensor([[[3, 1, 2], [2, 0, 0]], [[1, 2, 0], [1, 1, 2]]])
COUNT = 9
MEAN = torch.tensor([[1.0, 0.0], [0.0, -2.0]])
LOGVAR = torch.tensor([[0.0, 0.0], [math.log(4), 0.0]])
# (mean^2 + variance - 1 - logvar) / 2 by dimension
KL = [[0.5, 0.0], [(4 - 1 - math.log(4)) / 2, 2.0]]


def plain(logits: Tensor) -> DecoderOutput:
    """Decoder output with known logits `(M, V)`: the embedding is the identity."""
    size = logits.shape[-1]
    binding = Binding(torch.zeros(size, dtype=torch.long), (), size)
    binding.requires_grad_(False)
    binding.embed.weight.copy_(torch.eye(size))
    binding.scale.fill_(1.0)
    return DecoderOutput(binding, logits, None, [])


class Fixed:
    """A stand-in for a model: returns fixed logits and records its arguments."""

    def __init__(self, logits: Tensor, bag: Tensor | None = None, without: float = 0.0) -> None:
        self.fixed, self.bag = logits, logits if bag is None else bag
        self.config = ModelConfig(without=without)
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self, tokens: Tensor, fields: Tensor, source: Tensor, inputs: Tensor, sample: bool, track_dropout: float,
        without: Tensor | None,
    ) -> Output:  # fmt: skip
        self.calls.append(
            {
                "tokens": tokens,
                "position_fields": fields,
                "source": source,
                "inputs": inputs,
                "sample": sample,
                "fade": track_dropout,
                "without": without,
            }
        )
        outputs, bag = (plain(logits[tokens != PAD]) for logits in (self.fixed, self.bag))
        return Output(outputs, bag, Posterior(MEAN, LOGVAR), MEAN)


def run(model: Fixed, config: ObjectiveConfig, tokens: Tensor = TOKENS, step: int = 10, training: bool = True) -> Loss:
    fields = torch.zeros(*tokens.shape, 1, dtype=torch.long)
    return loss(cast(SequenceVAE, model), tokens, fields, config, step, training)


def even() -> Tensor:
    """Uniform logits."""
    return torch.zeros(*TOKENS.shape, 4)


CONSTANT = ObjectiveConfig(schedule="constant", beta=1.0)


# --- the sum ----------------------------------------------------------------------------------------------------------


def test_the_loss_of_uniform_logits_is_known() -> None:
    result = run(Fixed(even()), replace(CONSTANT, beta=0.5))
    reconstruction, kl = COUNT * math.log(4), sum(map(sum, KL))
    assert result.reconstruction == pytest.approx(reconstruction / 2), "nats a segment"
    assert result.kl == pytest.approx(kl / 2)
    assert result.beta == 0.5
    assert float(result.total) == pytest.approx((reconstruction + 0.5 * kl) / COUNT), "nats a token"
    assert result.kl_per_unit.tolist() == pytest.approx([(KL[0][0] + KL[1][0]) / 2, 1.0])


def test_the_loss_is_the_negative_log_probability_of_the_token() -> None:
    logits = torch.randn(*TOKENS.shape, 4, generator=torch.Generator().manual_seed(0))
    nats = 0.0
    right = 0
    for b in range(2):
        for c in range(2):
            for t in range(3):
                token = int(TOKENS[b, c, t])
                if token != PAD:
                    row = logits[b, c, t].exp()
                    nats -= math.log(float(row[token] / row.sum()))
                    right += int(row.argmax()) == token
    result = run(Fixed(logits), CONSTANT)
    assert result.reconstruction == pytest.approx(nats / 2)
    assert result.accuracy == pytest.approx(right / COUNT)


def test_probabilities_are_normalised_over_allowed_tokens() -> None:
    allowed = torch.ones(*TOKENS.shape, 4, dtype=torch.bool)
    allowed[..., PAD] = False
    allowed[0, 0, 0] = torch.tensor([False, True, False, True])
    fields = torch.zeros(*TOKENS.shape, 1, dtype=torch.long)
    logits = even()
    logits[..., PAD] = 9.0  # likely but not allowed
    for bag in (0.0, 1.0):
        config = replace(CONSTANT, beta=0.0, bag=bag)
        result = loss(cast(SequenceVAE, Fixed(logits)), TOKENS, fields, config, 1, True, allowed)
        nats = 8 * math.log(3) + math.log(2)
        assert result.reconstruction == pytest.approx(nats / 2)
        assert float(result.total) == pytest.approx((1 + bag) * nats / COUNT)


def test_a_token_without_alternatives_has_no_loss_but_a_gradient() -> None:
    logits = even().requires_grad_()
    allowed = functional.one_hot(TOKENS, 4).bool()
    fields = torch.zeros(*TOKENS.shape, 1, dtype=torch.long)
    result = loss(cast(SequenceVAE, Fixed(logits)), TOKENS, fields, replace(CONSTANT, beta=0.0), 1, True, allowed)
    assert float(result.total.detach()) == 0
    result.total.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-30


def test_padding_has_no_loss() -> None:
    logits = even()
    logits[TOKENS == PAD] = torch.tensor([-50.0, 30.0, 0.0, 0.0])
    assert float(run(Fixed(logits), CONSTANT).total) == pytest.approx(float(run(Fixed(even()), CONSTANT).total))


def test_free_bits_apply_per_dimension_to_the_batch_average() -> None:
    config = replace(CONSTANT, beta=2.0, free_bits=0.8)
    per_unit = [(KL[0][0] + KL[1][0]) / 2, (KL[0][1] + KL[1][1]) / 2]
    expected = COUNT * math.log(4) + 2.0 * 2 * sum(max(0.8, kl) for kl in per_unit)
    result = run(Fixed(even()), config)
    assert float(result.total) == pytest.approx(expected / COUNT)
    assert result.kl == pytest.approx(sum(map(sum, KL)) / 2), "the reported KL has no floor"


def test_the_bag_of_words_loss_is_added() -> None:
    bag = torch.randn(*TOKENS.shape, 4, generator=torch.Generator().manual_seed(1))
    model = Fixed(even(), bag)
    own = float(functional.cross_entropy(bag[TOKENS != PAD], TOKENS[TOKENS != PAD], reduction="sum"))
    without = run(model, CONSTANT)
    with_bag = run(model, replace(CONSTANT, bag=0.25))
    assert float(with_bag.total - without.total) == pytest.approx(0.25 * own / COUNT, rel=1e-4)
    assert with_bag.reconstruction == without.reconstruction
    evaluated = run(model, replace(CONSTANT, bag=0.25), training=False)
    assert float(evaluated.total) == pytest.approx(float(without.total)), "it does not count in evaluation"


def test_the_autoencoder_uses_the_mean_and_has_no_kl() -> None:
    model = Fixed(even())
    result = run(model, ObjectiveConfig(autoencoder=True, beta=1.0))
    assert not model.calls[0]["sample"]
    assert result.beta == 0
    assert float(result.total) == pytest.approx(math.log(4))
    run(model, CONSTANT)
    run(model, CONSTANT, training=False)
    assert [call["sample"] for call in model.calls[1:]] == [True, True]


def test_the_loss_of_a_segment_does_not_depend_on_the_batch() -> None:
    """A doubled batch has twice the sum over twice the tokens."""

    class Twice(Fixed):
        def __call__(self, *arguments: Any) -> Output:
            once = super().__call__(*arguments)
            return replace(once, posterior=Posterior(MEAN.repeat(2, 1), LOGVAR.repeat(2, 1)))

    once = run(Fixed(even()), CONSTANT)
    twice = run(Twice(even().repeat(2, 1, 1, 1)), CONSTANT, TOKENS.repeat(2, 1, 1))
    assert float(twice.total) == pytest.approx(float(once.total))
    assert (twice.reconstruction, twice.kl) == pytest.approx((once.reconstruction, once.kl))


@pytest.mark.parametrize("free_bits", [0.0, 0.8])
def test_the_losses_of_the_parts_of_a_batch_add_up(free_bits: float) -> None:
    """Weighted by their shares of tokens, with their gradients: free bits use averages over the whole batch."""

    class Part(Fixed):
        rows = slice(0, 2)

        def __call__(self, *arguments: Any) -> Output:
            return replace(super().__call__(*arguments), posterior=Posterior(mean[self.rows], LOGVAR[self.rows]))

    config = replace(CONSTANT, free_bits=free_bits)
    mean = MEAN.clone().requires_grad_()
    batch = run(Part(even()), config)
    (expected,) = torch.autograd.grad(batch.total, mean)
    total, slopes = torch.zeros(()), torch.zeros(2, 2)
    for i in range(2):
        part = Part(even()[i : i + 1])
        part.rows = slice(i, i + 1)
        tokens = TOKENS[i : i + 1]
        given: list[Tensor] = []
        fields = torch.zeros(*tokens.shape, 1, dtype=torch.long)

        def whole(own: Tensor, given: list[Tensor] = given) -> Tensor:
            given.append(own)
            return torch.tensor(KL).mean(0)

        result = loss(cast(SequenceVAE, part), tokens, fields, config, 10, whole=whole)
        torch.testing.assert_close(given, [torch.tensor(KL[i])])
        share = int((tokens != PAD).sum()) / COUNT
        total = total + share * result.total
        slopes = slopes + share * torch.autograd.grad(result.total, mean)[0]
    assert float(total.detach()) == pytest.approx(float(batch.total.detach()))
    torch.testing.assert_close(slopes, expected)


# --- the KL term ------------------------------------------------------------------------------------------------------

KLS = torch.tensor([[0.5, 0.0, 2.0], [0.1, 0.2, 4.0]])  # means of dimensions .3, .1, 3: in all 3.4


@pytest.mark.parametrize(
    ("changes", "charged"),
    [
        ({}, 3.4),
        ({"free_bits": 0.25}, 0.3 + 0.25 + 3),
        ({"free_bits_total": 3.0}, 3.4),
        ({"free_bits_total": 5.0}, 5.0),
        ({"target_kl": 3.0}, 0.4),
        ({"target_kl": 4.0}, 0.6),
        ({"target_kl": 0.5}, 2.9),
        ({"free_bits": 0.25, "target_kl": 4.0}, 0.45),
    ],
)
def test_the_kl_term_by_hand(changes: dict[str, float], charged: float) -> None:
    assert float(charged_kl(KLS, replace(CONSTANT, **changes))) == pytest.approx(charged)  # type: ignore[arg-type]


def test_the_kl_has_no_gradient_below_its_floor_and_a_negative_one_below_its_target() -> None:
    def slope(**changes: float) -> Tensor:
        kl = KLS.clone().requires_grad_()
        charged_kl(kl, replace(CONSTANT, **changes)).backward()  # type: ignore[arg-type, no-untyped-call]
        assert kl.grad is not None
        return kl.grad

    assert not slope(free_bits_total=5.0).any()
    assert slope(free_bits=0.25)[0].tolist() == [0.5, 0.0, 0.5]
    assert (slope(target_kl=4.0) == -0.5).all()
    assert (slope(target_kl=3.0) == 0.5).all()


def test_the_schedule_begins_after_pretraining_as_an_autoencoder() -> None:
    config = replace(CONSTANT, schedule="linear", anneal_steps=10, pretrain_steps=5)
    assert objective_at(config, 5)[0].autoencoder
    assert objective_at(config, 6) == (config, 1)
    model = Fixed(even())
    for step in (5, 6):
        run(model, config, step=step)
    assert [call["sample"] for call in model.calls] == [False, True]
    assert [run(Fixed(even()), config, step=step).beta for step in (5, 6, 15)] == pytest.approx([0, 0.1, 1])


# --- noise ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.floats(0, 1))
def test_dropped_tokens_are_removed_and_the_rest_moves_up(seed: int, share: float) -> None:
    tokens = torch.tensor([[[5, 6, 7, 8, 2, 0], [9, 2, 0, 0, 0, 0]]])
    out = dropped(tokens, share, torch.Generator().manual_seed(seed))
    assert out.shape == tokens.shape
    for before, after in zip(tokens[0].tolist(), out[0].tolist(), strict=True):
        words = [t for t in after if t != PAD]
        assert words[-1] == EOS, "the end is never lost"
        assert after == words + [PAD] * (len(after) - len(words))
        left = iter(before)
        assert all(word in left for word in words), "in their order"


# --- masks ------------------------------------------------------------------------------------------------------------


def many_tokens() -> Tensor:
    """(500, 2, 40): a third of it padding, and no MASK."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, 100, (500, 2, 40), generator=generator)
    return tokens.masked_fill(torch.rand(500, 2, 1, generator=generator) * 60 < torch.arange(40) - 10, PAD)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_right_share_is_masked_and_never_padding(share: float) -> None:
    tokens = many_tokens()
    before = tokens.clone()
    out = masked(tokens, share, torch.Generator().manual_seed(1))
    assert torch.equal(tokens, before), "the argument is unchanged"
    there = tokens != PAD
    assert torch.equal(out == PAD, ~there)
    hit = out == MASK
    assert torch.equal(out[~hit], tokens[~hit])
    deviation = math.sqrt(share * (1 - share) / int(there.sum()))
    assert abs(float(hit[there].float().mean()) - share) <= 4 * deviation


def test_dropout_is_for_the_decoder_and_noise_for_the_encoder() -> None:
    tokens = many_tokens()
    model = Fixed(torch.zeros(*tokens.shape, 100))
    config = replace(CONSTANT, word_dropout=0.3, denoise=0.1, track_dropout=0.7)
    run(model, config, tokens)
    run(model, config, tokens, training=False)
    training, evaluation = model.calls
    there = tokens != PAD
    assert float((training["source"] == MASK)[there].float().mean()) == pytest.approx(0.1, abs=0.01)
    assert torch.equal(training["source"] == PAD, ~there)
    shift = torch.cat([torch.ones(500, 2, 1, dtype=torch.long), tokens[..., :-1]], -1)
    hit = training["inputs"] == MASK
    assert float(hit[shift != PAD].float().mean()) == pytest.approx(0.3, abs=0.01)
    assert torch.equal(training["inputs"][~hit], shift[~hit])
    # targets are never masked, and nothing is in evaluation
    assert torch.equal(training["tokens"], tokens)
    assert torch.equal(training["position_fields"], torch.zeros(*tokens.shape, 1, dtype=torch.long))
    assert (training["fade"], evaluation["fade"]) == (0.7, 0.0)
    assert torch.equal(evaluation["source"], tokens)
    assert torch.equal(evaluation["inputs"], shift)
    loss(cast(SequenceVAE, model), tokens, training["position_fields"], config, 1)
    assert model.calls[-1]["fade"] == 0.7, "training is the default"


def test_a_share_of_the_segments_is_decoded_without_z_and_from_all_of_its_input() -> None:
    tokens = many_tokens()
    model = Fixed(torch.zeros(*tokens.shape, 100), without=0.25)
    found = run(model, replace(CONSTANT, word_dropout=0.3), tokens)
    run(model, replace(CONSTANT, word_dropout=0.3), tokens, training=False)
    training, evaluation = model.calls
    alone = training["without"]
    assert float(alone.float().mean()) == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / len(tokens)))
    assert not (training["inputs"][alone] == MASK).any()
    assert (training["inputs"][~alone] == MASK).any(-1).float().mean() > 0.5
    assert evaluation["without"] is None
    kl = 0.75 * len(tokens) * sum(map(sum, KL)) / 2
    count = int((tokens != PAD).sum())
    assert float(found.total) == pytest.approx(math.log(100) + kl / count, rel=1e-5), "no KL for these segments"


def test_token_deletion_is_only_for_the_encoder() -> None:
    tokens = many_tokens()
    model = Fixed(torch.zeros(*tokens.shape, 100))
    run(model, replace(CONSTANT, denoise=0.2, denoise_by="drop"), tokens)
    [call] = model.calls
    assert not (call["source"] == MASK).any()
    assert float((call["source"] != PAD).sum() / (tokens != PAD).sum()) == pytest.approx(0.8, abs=0.01)
    assert torch.equal(call["inputs"], shifted(tokens))


@pytest.mark.parametrize("spoil", [masked, dropped])
def test_noise_follows_the_generator_and_is_on_the_device_of_the_tokens(spoil: Any) -> None:
    tokens = many_tokens()
    one, again, other = (spoil(tokens, 0.3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    assert torch.equal(spoil(tokens, 0.0, generator), tokens)
    assert torch.equal(generator.get_state(), before), "no noise draws no random numbers"
    assert spoil(tokens.to("meta"), 0.3).device.type == "meta"


# --- refinement -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def case(tokenizer: MidiTokenizer) -> tuple[SequenceVAE, Tensor, Tensor, Tensor]:
    """A small model, the tokens `(3, 2, T)` of three segments, their position fields and allowed tokens."""
    torch.manual_seed(3)
    model = checkpoint.build(ModelConfig(latent=12, width=32, hidden=16), tokenizer).eval()
    rng = np.random.default_rng(0)
    rows = []
    for size in (4, 9, 2):
        notes = np.stack([rng.permutation(96)[:size], np.full(size, 6), rng.integers(40, 80, size), np.zeros(size)], 1)
        rows.append(tokenizer.encode_notes(notes.astype(np.int32), np.array([0, 48, 96], np.int32)))
    tokens = np.zeros((3, 2, max(len(chunk) for row in rows for chunk in row)), np.int32)
    for i, row in enumerate(rows):
        for c, chunk in enumerate(row):
            tokens[i, c, : len(chunk)] = chunk
    fields, allowed = tokenizer.position_fields(tokens), tokenizer.allowed(tokens)
    return model, torch.from_numpy(tokens).long(), torch.from_numpy(fields).long(), torch.from_numpy(allowed)


Case = tuple[SequenceVAE, Tensor, Tensor, Tensor]
REFINED = RefineConfig(steps=20, beta=0.01)


@torch.no_grad()
def nats(case: Case, z: Tensor) -> Tensor:
    """`-log p(x|z)` of each segment, in nats."""
    model, tokens, fields, allowed = case
    logits = model.decode_logits(z, shifted(tokens), fields)[0].masked_fill(~allowed, -1e9).log_softmax(-1)
    log_probs = logits.gather(-1, tokens[..., None])[..., 0].masked_fill(tokens == PAD, 0)
    return -log_probs.sum((1, 2))


def test_refining_makes_every_segment_likelier(case: Case) -> None:
    model, tokens, fields, allowed = case
    with torch.no_grad():
        first = model.encode(tokens, fields)
    refined = refine(model, tokens, fields, allowed, first, REFINED)
    assert (nats(case, refined.mean) < nats(case, first.mean) - 0.5).all()
    assert torch.equal(refined.logvar, first.logvar)
    assert not refined.mean.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


@needs_bf16
@pytest.mark.bf16
def test_a_search_in_bf16_finds_as_much(case: Case) -> None:
    model, tokens, fields, allowed = case
    with torch.no_grad():
        first = model.encode(tokens, fields)
    fine = nats(case, refine(model, tokens, fields, allowed, first, REFINED).mean).sum()
    coarse = nats(case, refine(model, tokens, fields, allowed, first, REFINED, low=True).mean).sum()
    assert coarse < fine + 0.1 * (nats(case, first.mean).sum() - fine)
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("layers", [1, 2])
def test_gradients_are_equal_with_frozen_weights(case: Case, layers: int, tokenizer: MidiTokenizer) -> None:
    _, tokens, fields, _ = case
    torch.manual_seed(4)
    model = checkpoint.build(ModelConfig(latent=12, width=32, hidden=16, layers=layers), tokenizer).eval()
    slopes = []
    for learned in (True, False):
        model.requires_grad_(learned)
        z = torch.ones(len(tokens), 12, requires_grad=True)
        outputs, _ = model.decoder_outputs(z, shifted(tokens), fields, model.packing(tokens, fields))
        loss, _ = outputs.cross_entropy(tokens[tokens != PAD])
        slopes.append(torch.autograd.grad(loss, z)[0])
    assert slopes[0].abs().max() > 1e-2
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-4, atol=1e-5)


def test_no_steps_change_nothing_and_a_large_kl_weight_shortens_the_mean(case: Case) -> None:
    model, tokens, fields, allowed = case
    with torch.no_grad():
        first = model.encode(tokens, fields)
    same = refine(model, tokens, fields, allowed, first, replace(REFINED, steps=0))
    assert torch.equal(same.mean, first.mean)
    light, heavy = (
        refine(model, tokens, fields, allowed, first, replace(REFINED, beta=beta)).mean for beta in (0.0, 100.0)
    )
    assert (heavy.norm(dim=1) < light.norm(dim=1)).all()


def test_the_refinement_of_a_segment_does_not_depend_on_others(case: Case) -> None:
    model, tokens, fields, allowed = case
    with torch.no_grad():
        first = model.encode(tokens, fields)
    together = refine(model, tokens, fields, allowed, first, REFINED).mean
    for i in range(len(tokens)):
        one = Posterior(first.mean[i : i + 1], first.logvar[i : i + 1])
        alone = refine(model, tokens[i : i + 1], fields[i : i + 1], allowed[i : i + 1], one, REFINED).mean
        torch.testing.assert_close(alone[0], together[i], atol=2e-3, rtol=1e-3)


def test_a_segment_is_refined_until_it_is_reconstructed() -> None:
    torch.manual_seed(2)
    config = ModelConfig(chunks=1, latent=64, width=128, hidden=16, previous=True)
    model = SequenceVAE(config, (), torch.zeros(30, dtype=torch.long)).eval()
    tokens = torch.randint(4, 30, (12, 1, 6))
    tokens[..., -1] = EOS
    tokens[:6, :, 2:] = torch.tensor([EOS, 0, 0, 0])  # short ones are reconstructed sooner
    fields = torch.zeros(*tokens.shape, 0, dtype=torch.long)
    with torch.no_grad():
        first = model.encode(tokens, fields)

    def right(z: Tensor) -> Tensor:
        """Whether each segment's tokens are all the most likely."""
        with torch.no_grad():
            best = model.decode_logits(z, shifted(tokens), fields)[0].argmax(-1)
        return ((best == tokens) | (tokens == PAD)).all(-1).all(-1)

    short = refine(model, tokens, fields, None, first, replace(REFINED, steps=1)).mean
    long = refine(model, tokens, fields, None, first, replace(REFINED, steps=1, most_steps=300)).mean
    done = right(short)
    assert 0 < done.sum() < len(tokens), "otherwise the test shows nothing"
    assert right(long).sum() > done.sum()
    assert torch.equal(long[done], short[done]), "reconstructed segments are unchanged"
