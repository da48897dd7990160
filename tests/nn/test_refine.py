"""Refinement of posterior means, compared with torch's Adam and a dense L-BFGS on one segment at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from precision import needs_bf16
from torch import Tensor

from seqvae.config import ModelConfig, RefineConfig
from seqvae.nn.binding import shifted
from seqvae.nn.model import SequenceVAE
from seqvae.nn.posterior import Posterior
from seqvae.nn.refine import refine
from seqvae.protocols import EOS, PAD

V = 30


class Segments:
    """A small model with six segments, `tokens (6, 1, 6)`, and the tokens allowed at each position."""

    def __init__(self) -> None:
        torch.manual_seed(2)
        config = ModelConfig(chunks=1, latent=32, width=64, hidden=16, previous=True)
        self.model = SequenceVAE(config, (), torch.zeros(V, dtype=torch.long)).eval()
        self.tokens = torch.randint(4, V, (6, 1, 6))
        self.tokens[..., -1] = EOS
        self.tokens[:3, :, 2:] = torch.tensor([EOS, 0, 0, 0])  # short ones are reconstructed sooner
        self.fields = torch.zeros(*self.tokens.shape, 0, dtype=torch.long)
        self.allowed = torch.rand(*self.tokens.shape, V) < 0.5
        self.allowed.scatter_(-1, self.tokens[..., None], True)
        with torch.no_grad():
            self.first = self.model.encode(self.tokens, self.fields)

    def refined(self, config: RefineConfig, ruled: bool = True) -> Tensor:
        allowed = self.allowed if ruled else None
        return refine(self.model, self.tokens, self.fields, allowed, self.first, config).mean

    def by_adam(self, config: RefineConfig, ruled: bool = True) -> Tensor:
        """Reference of the first steps of `refine`, one segment at a time."""
        means = []
        for i, mean in enumerate(self.first.mean):
            z = mean[None].clone().requires_grad_()
            adam = torch.optim.Adam([z], lr=0.1, betas=(0.9, 0.9), eps=0.05)
            for _ in range(config.steps):
                logits, bag, _ = self.nats(i, z, ruled)
                adam.zero_grad()
                (logits + config.bag * bag + config.beta * z.square().sum() / 2).backward()
                adam.step()
            means.append(z.detach()[0])
        return torch.stack(means)

    def by_lbfgs(self, config: RefineConfig, ruled: bool = True) -> tuple[Tensor, list[int]]:
        """Reference of all steps of `refine`, with matrices, and the number of gradients of each segment."""
        means, steps = [], []
        for i, mean in enumerate(self.by_adam(config, ruled)):
            z, scale, step = mean[None].clone().requires_grad_(), 0.1, config.steps
            pairs: list[tuple[Tensor, Tensor]] = []
            seen: list[tuple[int, Tensor]] = []
            before: tuple[Tensor, Tensor] | None = None
            while step < config.most_steps:
                nats, _, right = self.nats(i, z, ruled)
                slope = torch.autograd.grad(nats, z)[0][0]
                seen.append((int(right.sum()), z.detach()[0]))
                step += 1
                if right.all():
                    break
                if before is not None:
                    s, y = z.detach()[0] - before[0], slope - before[1]
                    if s @ y > 1e-6:
                        pairs, scale = [*pairs[-7:], (s, y)], float(s @ y / (y @ y))
                before = z.detach()[0], slope
                inverse = scale * torch.eye(len(slope))
                for s, y in pairs:  # BFGS (Nocedal and Wright 2006, 6.17)
                    left = torch.eye(len(s)) - torch.outer(s, y) / (s @ y)
                    inverse = left @ inverse @ left.T + torch.outer(s, s) / (s @ y)
                move = -inverse @ slope
                z = (before[0] + move * min(1.0, 2.5 / float(move.norm())))[None].requires_grad_()
            means.append(max(seen, key=lambda one: one[0])[1])
            steps.append(step)
        return torch.stack(means), steps

    def count(self, z: Tensor) -> list[int]:
        """The tokens of each segment that are the most likely given `z (6, D)`."""
        return [int(self.nats(i, z[i : i + 1], True)[2].sum()) for i in range(len(z))]

    def nats(self, i: int, z: Tensor, ruled: bool) -> tuple[Tensor, Tensor, Tensor]:
        """`-log p(x|z)` of one segment, that of the bag of words, and whether each token is the most likely `(T,)`."""
        tokens = self.tokens[i : i + 1]
        both = self.model.decode_logits(z, shifted(tokens), self.fields[i : i + 1])
        logits, bag = (x.masked_fill(~self.allowed[i : i + 1], -1e9) if ruled else x for x in both)
        there = tokens != PAD
        own = [-x.log_softmax(-1).gather(-1, tokens[..., None])[..., 0][there].sum() for x in (logits, bag)]
        return own[0], own[1], (logits.argmax(-1) == tokens)[there]


@pytest.fixture(scope="module")
def segments() -> Segments:
    return Segments()


CONFIG = RefineConfig(bag=0.3, steps=8, beta=0.5)


@pytest.mark.parametrize("ruled", [True, False])
@pytest.mark.parametrize("changes", [{}, {"bag": 0.0}, {"beta": 0.0}, {"steps": 1}])
def test_refinement_equals_adam_on_the_documented_loss(
    segments: Segments, changes: dict[str, float], ruled: bool
) -> None:
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]
    expected = segments.by_adam(config, ruled)
    torch.testing.assert_close(segments.refined(config, ruled), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("ruled", [True, False])
def test_each_segment_is_refined_until_its_tokens_are_the_most_likely(segments: Segments, ruled: bool) -> None:
    config = replace(CONFIG, steps=4, most_steps=16, beta=0.5)
    expected, steps = segments.by_lbfgs(config, ruled)
    assert min(steps) < max(steps), "otherwise the test shows nothing"
    torch.testing.assert_close(segments.refined(config, ruled), expected, rtol=1e-2, atol=1e-3)
    i = steps.index(min(steps))  # alone the search ends as soon as this segment is reconstructed
    one = Posterior(segments.first.mean[i : i + 1], segments.first.logvar[i : i + 1])
    allowed = segments.allowed[i : i + 1] if ruled else None
    alone = refine(segments.model, segments.tokens[i : i + 1], segments.fields[i : i + 1], allowed, one, config)
    torch.testing.assert_close(alone.mean[0], expected[i], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("most", [5, 6, 8, 12, 20, 40])
def test_no_segment_ends_with_fewer_right_tokens(segments: Segments, most: int) -> None:
    config = replace(CONFIG, steps=4)
    before = segments.count(segments.refined(config))
    after = segments.count(segments.refined(replace(config, most_steps=most)))
    assert all(x <= y for x, y in zip(before, after, strict=True))
    if most == 40:
        assert sum(after) > sum(before)


def test_a_step_too_far_is_not_taken(segments: Segments, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, steps=4)
    before = segments.refined(config)
    for name in ("FIRST", "LONGEST"):
        monkeypatch.setattr(f"seqvae.nn.refine.{name}", 1e4)
    torch.testing.assert_close(segments.refined(replace(config, most_steps=6)), before)


def test_refinement_creates_its_tensors_on_the_device_of_its_input(segments: Segments) -> None:
    expected = segments.refined(replace(CONFIG, most_steps=12))
    with torch.device("meta"):  # tensors made on the default device have no values
        torch.testing.assert_close(segments.refined(replace(CONFIG, most_steps=12)), expected)


@needs_bf16
@pytest.mark.bf16
def test_refinement_in_bf16_is_optional(segments: Segments) -> None:
    first = Posterior(segments.first.mean, segments.first.logvar)
    inputs = (segments.model, segments.tokens, segments.fields, None)
    default, exact, low = (
        refine(*inputs, first, CONFIG).mean, refine(*inputs, first, CONFIG, False).mean,
        refine(*inputs, first, CONFIG, True).mean,
    )  # fmt: skip
    assert torch.equal(default, exact)
    assert not torch.equal(default, low)
    # for a gradient of about 0 rounding decides the sign of a step of 0.1
    torch.testing.assert_close(default, low, rtol=0.1, atol=0.1)
