"""The loss against sums made by hand, the schedules at points known beforehand, and masks of the right share."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from seqvae import checkpoint
from seqvae.config import ModelConfig, ObjectiveConfig
from seqvae.latent import Posterior
from seqvae.model import PAD, Output, SequenceVAE, shifted
from seqvae.objective import MASK, Loss, beta_at, loss, masked, refine
from seqvae.tokenizer import MidiTokenizer

# two segments of two chunks of up to three tokens of a vocabulary of four (MASK, 3, is said to be a token here)
TOKENS = torch.tensor([[[3, 1, 2], [2, 0, 0]], [[1, 2, 0], [1, 1, 2]]])
COUNT = 9
MEAN = torch.tensor([[1.0, 0.0], [0.0, -2.0]])
LOGVAR = torch.tensor([[0.0, 0.0], [math.log(4), 0.0]])
# (mean^2 + variance - 1 - logvar) / 2 by dimension
KL = [[0.5, 0.0], [(4 - 1 - math.log(4)) / 2, 2.0]]


class Told:
    """Stands in for a model: gives the logits it is made with, and keeps what it was called with."""

    def __init__(self, logits: Tensor, bag: Tensor | None = None) -> None:
        self.logits, self.bag = logits, logits if bag is None else bag
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self, tokens: Tensor, cues: Tensor, source: Tensor, inputs: Tensor, sample: bool, fade: float
    ) -> Output:
        self.calls.append({"tokens": tokens, "source": source, "inputs": inputs, "sample": sample, "fade": fade})
        return Output(self.logits, self.bag, Posterior(MEAN, LOGVAR), MEAN)


def run(model: Told, config: ObjectiveConfig, tokens: Tensor = TOKENS, step: int = 10, training: bool = True) -> Loss:
    cues = torch.zeros(*tokens.shape, 1, dtype=torch.long)
    return loss(cast(SequenceVAE, model), tokens, cues, config, step, training)


def even() -> Tensor:
    """Every token is as likely as every other."""
    return torch.zeros(*TOKENS.shape, 4)


CONSTANT = ObjectiveConfig(schedule="constant", beta=1.0)


# --- the sum ----------------------------------------------------------------------------------------------------------


def test_the_loss_of_even_chances_is_known() -> None:
    result = run(Told(even()), replace(CONSTANT, beta=0.5))
    reconstruction, kl = COUNT * math.log(4), sum(map(sum, KL))
    assert result.reconstruction == pytest.approx(reconstruction / 2), "nats a segment"
    assert result.kl == pytest.approx(kl / 2)
    assert result.beta == 0.5
    assert float(result.total) == pytest.approx((reconstruction + 0.5 * kl) / COUNT), "nats a token"
    assert result.kl_per_unit.tolist() == pytest.approx([(KL[0][0] + KL[1][0]) / 2, 1.0])


def test_the_loss_is_that_of_the_token_s_own_probability() -> None:
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
    result = run(Told(logits), CONSTANT)
    assert result.reconstruction == pytest.approx(nats / 2)
    assert result.accuracy == pytest.approx(right / COUNT)


def test_probabilities_are_among_what_is_allowed() -> None:
    allowed = torch.ones(*TOKENS.shape, 4, dtype=torch.bool)
    allowed[..., PAD] = False
    allowed[0, 0, 0] = torch.tensor([False, True, False, True])
    cues = torch.zeros(*TOKENS.shape, 1, dtype=torch.long)
    logits = even()
    logits[..., PAD] = 9.0  # likely, and forbidden
    for bag in (0.0, 1.0):
        config = replace(CONSTANT, beta=0.0, bag=bag)
        result = loss(cast(SequenceVAE, Told(logits)), TOKENS, cues, config, 1, True, allowed)
        nats = 8 * math.log(3) + math.log(2)
        assert result.reconstruction == pytest.approx(nats / 2)
        assert float(result.total) == pytest.approx((1 + bag) * nats / COUNT)


def test_a_single_choice_costs_nothing_and_has_a_gradient() -> None:
    logits = even().requires_grad_()
    allowed = functional.one_hot(TOKENS, 4).bool()
    cues = torch.zeros(*TOKENS.shape, 1, dtype=torch.long)
    result = loss(cast(SequenceVAE, Told(logits)), TOKENS, cues, replace(CONSTANT, beta=0.0), 1, True, allowed)
    assert float(result.total.detach()) == 0
    result.total.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad.any()


def test_padding_costs_nothing() -> None:
    logits = even()
    logits[TOKENS == PAD] = torch.tensor([-50.0, 30.0, 0.0, 0.0])
    assert float(run(Told(logits), CONSTANT).total) == pytest.approx(float(run(Told(even()), CONSTANT).total))


def test_free_bits_are_charged_by_dimension_on_the_batch_s_average() -> None:
    config = replace(CONSTANT, beta=2.0, free_bits=0.8)
    per_unit = [(KL[0][0] + KL[1][0]) / 2, (KL[0][1] + KL[1][1]) / 2]
    expected = COUNT * math.log(4) + 2.0 * 2 * sum(max(0.8, kl) for kl in per_unit)
    result = run(Told(even()), config)
    assert float(result.total) == pytest.approx(expected / COUNT)
    assert result.kl == pytest.approx(sum(map(sum, KL)) / 2), "what is reported has no floor"


def test_the_bag_adds_its_own_cross_entropy() -> None:
    bag = torch.randn(*TOKENS.shape, 4, generator=torch.Generator().manual_seed(1))
    model = Told(even(), bag)
    own = float(functional.cross_entropy(bag[TOKENS != PAD], TOKENS[TOKENS != PAD], reduction="sum"))
    without = run(model, CONSTANT)
    with_bag = run(model, replace(CONSTANT, bag=0.25))
    assert float(with_bag.total - without.total) == pytest.approx(0.25 * own / COUNT, rel=1e-4)
    assert with_bag.reconstruction == without.reconstruction
    evaluated = run(model, replace(CONSTANT, bag=0.25), training=False)
    assert float(evaluated.total) == pytest.approx(float(without.total)), "in evaluation it is not charged"


def test_the_autoencoder_takes_the_mean_and_pays_no_kl() -> None:
    model = Told(even())
    result = run(model, ObjectiveConfig(autoencoder=True, beta=1.0))
    assert not model.calls[0]["sample"]
    assert result.beta == 0
    assert float(result.total) == pytest.approx(math.log(4))
    run(model, CONSTANT)
    run(model, CONSTANT, training=False)
    assert [call["sample"] for call in model.calls[1:]] == [True, True]


def test_a_segment_costs_the_same_in_whatever_batch() -> None:
    """Twice the batch is twice the sum over twice the tokens."""

    class Twice(Told):
        def __call__(self, *arguments: Any) -> Output:
            return Output(self.logits, self.bag, Posterior(MEAN.repeat(2, 1), LOGVAR.repeat(2, 1)), MEAN)

    once = run(Told(even()), CONSTANT)
    twice = run(Twice(even().repeat(2, 1, 1, 1)), CONSTANT, TOKENS.repeat(2, 1, 1))
    assert float(twice.total) == pytest.approx(float(once.total))
    assert (twice.reconstruction, twice.kl) == pytest.approx((once.reconstruction, once.kl))


# --- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schedule", "step", "expected"), [
    ("constant", 0, 0.4), ("constant", 10**6, 0.4),
    ("linear", 0, 0.0), ("linear", 50, 0.2), ("linear", 100, 0.4), ("linear", 1000, 0.4),
    ("logistic", 50, 0.2), ("logistic", 0, 0.4 / (1 + math.exp(6))), ("logistic", 100, 0.4 / (1 + math.exp(-6))),
    ("logistic", 10**6, 0.4),
    ("cyclical", 0, 0.0), ("cyclical", 25, 0.2), ("cyclical", 50, 0.4), ("cyclical", 99, 0.4),
    ("cyclical", 100, 0.0), ("cyclical", 325, 0.2), ("cyclical", 375, 0.4),
])  # fmt: skip
def test_beta_at_known_points(schedule: Any, step: int, expected: float) -> None:
    assert beta_at(ObjectiveConfig(beta=0.4, schedule=schedule, anneal_steps=100), step) == pytest.approx(expected)


@given(
    st.sampled_from(["constant", "linear", "logistic", "cyclical"]),
    st.integers(0, 5000),
    st.integers(0, 10**7),
    st.floats(0, 5),
)
def test_beta_stays_between_nothing_and_its_end(schedule: Any, anneal: int, step: int, beta: float) -> None:
    config = ObjectiveConfig(beta=beta, schedule=schedule, anneal_steps=anneal)
    assert 0 <= beta_at(config, step) <= beta
    assert beta_at(replace(config, autoencoder=True), step) == 0
    if schedule != "cyclical":
        assert beta_at(config, step + 1) >= beta_at(config, step)


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
    assert torch.equal(tokens, before), "the argument is left alone"
    there = tokens != PAD
    assert torch.equal(out == PAD, ~there)
    hit = out == MASK
    assert torch.equal(out[~hit], tokens[~hit])
    deviation = math.sqrt(share * (1 - share) / int(there.sum()))
    assert abs(float(hit[there].float().mean()) - share) <= 4 * deviation


def test_dropout_is_for_the_decoder_and_noise_for_the_encoder() -> None:
    tokens = many_tokens()
    model = Told(torch.zeros(*tokens.shape, 100))
    config = replace(CONSTANT, word_dropout=0.3, denoise=0.1, fade=0.7)
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
    # what is to be told is never masked, and in evaluation nothing is
    assert torch.equal(training["tokens"], tokens)
    assert (training["fade"], evaluation["fade"]) == (0.7, 0.0)
    assert torch.equal(evaluation["source"], tokens)
    assert torch.equal(evaluation["inputs"], shift)


# --- refinement -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def case(tokenizer: MidiTokenizer) -> tuple[SequenceVAE, Tensor, Tensor, Tensor]:
    """A small model, the tokens (3, 2, T) of three segments, their cues and what the grammar allows."""
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
    cues, allowed = tokenizer.cues(tokens), tokenizer.allowed(tokens)
    return model, torch.from_numpy(tokens).long(), torch.from_numpy(cues).long(), torch.from_numpy(allowed)


Case = tuple[SequenceVAE, Tensor, Tensor, Tensor]
REFINED = ObjectiveConfig(refine=20, refine_beta=0.01)


@torch.no_grad()
def nats(case: Case, z: Tensor) -> Tensor:
    """-log p(x|z) of each segment."""
    model, tokens, cues, allowed = case
    logits = model.decode(z, shifted(tokens), cues)[0].masked_fill(~allowed, -1e9).log_softmax(-1)
    told = logits.gather(-1, tokens[..., None])[..., 0].masked_fill(tokens == PAD, 0)
    return -told.sum((1, 2))


def test_refining_makes_every_segment_likelier(case: Case) -> None:
    model, tokens, cues, allowed = case
    with torch.no_grad():
        first = model.encode(tokens, cues)
    refined = refine(model, tokens, cues, allowed, first, REFINED)
    assert (nats(case, refined.mean) < nats(case, first.mean) - 0.5).all()
    assert torch.equal(refined.logvar, first.logvar)
    assert not refined.mean.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_steps_change_nothing_and_a_heavy_kl_shortens(case: Case) -> None:
    model, tokens, cues, allowed = case
    with torch.no_grad():
        first = model.encode(tokens, cues)
    same = refine(model, tokens, cues, allowed, first, replace(REFINED, refine=0))
    assert torch.equal(same.mean, first.mean)
    light, heavy = (
        refine(model, tokens, cues, allowed, first, replace(REFINED, refine_beta=beta)).mean for beta in (0.0, 100.0)
    )
    assert (heavy.norm(dim=1) < light.norm(dim=1)).all()


def test_a_segment_is_refined_alone_as_among_others(case: Case) -> None:
    model, tokens, cues, allowed = case
    with torch.no_grad():
        first = model.encode(tokens, cues)
    together = refine(model, tokens, cues, allowed, first, REFINED).mean
    for i in range(len(tokens)):
        one = Posterior(first.mean[i : i + 1], first.logvar[i : i + 1])
        alone = refine(model, tokens[i : i + 1], cues[i : i + 1], allowed[i : i + 1], one, REFINED).mean
        torch.testing.assert_close(alone[0], together[i], atol=2e-3, rtol=1e-3)
