"""The loss: reconstruction, weighted KL, and what keeps the posterior from collapsing.

Knows: the formulas of the design, section 6, in nats. Refuses to know: optimizers, data, files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from seqvae.config import ObjectiveConfig
from seqvae.latent import Posterior, floored_kl
from seqvae.model import PAD, Output, SequenceVAE, shifted

CLOSED = -1e9  # the logit of a token that may not come; finite, for a row of infinities has no gradient
REFINE_RATE, REFINE_DECAY = 0.1, 0.9
REFINE_FLOOR = 0.05  # nats a unit: slopes far below are noise, and must not be blown up to full steps
MASK = 3  # the id every tokenizer gives to a masked token


def beta_at(config: ObjectiveConfig, step: int) -> float:
    """Weight of the KL at a step, 0 for the plain autoencoder.

    linear: beta min(1, step / n). logistic: beta / (1 + exp(-12 (step / n - 1/2))), Bowman et al. 2016. cyclical:
    linear over the first half of every n steps, then flat (Fu et al. 2019). constant: beta.
    """
    if config.autoencoder:
        return 0.0
    n = max(1, config.anneal_steps)
    if config.schedule == "constant":
        return config.beta
    if config.schedule == "linear":
        return config.beta * min(1.0, step / n)
    if config.schedule == "logistic":
        return config.beta / (1.0 + math.exp(-min(60.0, 12.0 * (step / n - 0.5))))
    return config.beta * min(1.0, 2.0 * (step % n) / n)


def masked(tokens: Tensor, share: float, generator: torch.Generator | None = None) -> Tensor:
    """`tokens` with a random `share` of those that are not PAD replaced by MASK."""
    if share <= 0:
        return tokens
    hit = torch.rand(tokens.shape, generator=generator, device=tokens.device) < share
    return tokens.masked_fill(hit & (tokens != PAD), MASK)


def refine(
    model: SequenceVAE, tokens: Tensor, cues: Tensor, allowed: Tensor, posterior: Posterior, config: ObjectiveConfig
) -> Posterior:
    """A posterior whose mean has been improved for its own `tokens (B, C, T)` in `config.refine` steps.

    Each step goes down the gradient of -log p(x|z) - bag log p(x|z, cues) + refine_beta |z|^2 / 2 (the part of the KL
    that knows the mean) by Adam, which takes every number on its own, so that neighbours in a batch do not matter.
    """
    weight = tokens != PAD
    targets = tokens[weight]
    closed = ~allowed[weight]
    z = posterior.mean.clone()
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    # the recurrent kernels of CUDA have no backward in evaluation
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        for step in range(1, config.refine + 1):
            z = z.detach().requires_grad_()
            logits, bag = model.decode(z, shifted(tokens), cues)
            nats = config.refine_beta * z.square().sum() / 2
            for share, told in ((1.0, logits), (config.bag, bag)):
                if share > 0:
                    chosen = told[weight].float().masked_fill(closed, CLOSED)
                    nats = nats + share * functional.cross_entropy(chosen, targets, reduction="sum")
            (slope,) = torch.autograd.grad(nats, z)
            with torch.no_grad():
                first = first.lerp(slope, 1 - REFINE_DECAY)
                second = second.lerp(slope.square(), 1 - REFINE_DECAY)
                even = 1 - REFINE_DECAY**step
                z = z - REFINE_RATE * (first / even) / ((second / even).sqrt() + REFINE_FLOOR)
    return Posterior(z.detach(), posterior.logvar)


@dataclass(frozen=True)
class Loss:
    """The parts of one batch's loss; `total` is what is differentiated."""

    total: Tensor
    """Nats a token: the sum over the batch of all that is charged, divided by the number of tokens."""
    reconstruction: float
    """-E log p(x|z), nats a segment."""
    kl: float
    """KL(q(z|x) || p(z)), nats a segment, no floor."""
    beta: float
    accuracy: float
    """Share of tokens told right given the true tokens before them."""
    kl_per_unit: Tensor
    """`(D,)` nats."""


def loss(
    model: SequenceVAE,
    tokens: Tensor,
    cues: Tensor,
    config: ObjectiveConfig,
    step: int,
    training: bool = True,
    allowed: Tensor | None = None,
) -> Loss:
    """One pass over `tokens (B, C, T)` with `cues (B, C, T, K)`.

    Probabilities are among the tokens that the grammar allows, `allowed (B, C, T, V)`, as they are in decoding, and
    among all where it is None. So nothing has to be learned that the rules say already.

    Charged a segment: -log p(x|z) + beta sum_d max(KL_d, free_bits) + bag * (-sum_t log p(x_t | z, cue_t)).
    In evaluation nothing is masked, and z is the posterior mean for the plain autoencoder, else one draw.
    """
    source = masked(tokens, config.denoise) if training else tokens
    inputs = shifted(tokens)
    inputs = masked(inputs, config.word_dropout) if training else inputs
    fade = config.fade if training else 0.0
    output: Output = model(tokens, cues, source, inputs, not config.autoencoder, fade)
    weight = tokens != PAD
    targets = tokens[weight]
    closed = None if allowed is None else ~allowed[weight]

    def open_logits(logits: Tensor) -> Tensor:
        chosen = logits[weight].float()
        return chosen if closed is None else chosen.masked_fill(closed, CLOSED)

    logits = open_logits(output.logits)
    reconstruction = functional.cross_entropy(logits, targets, reduction="sum")
    kl = output.posterior.kl()
    beta = beta_at(config, step)
    charged = reconstruction + beta * len(tokens) * floored_kl(kl, config.free_bits)
    if config.bag > 0 and training:
        charged = charged + config.bag * functional.cross_entropy(
            open_logits(output.bag_logits), targets, reduction="sum"
        )
    return Loss(
        total=charged / len(targets),
        reconstruction=float(reconstruction.detach()) / len(tokens),
        kl=float(kl.detach().sum()) / len(tokens),
        beta=beta,
        accuracy=float((logits.argmax(-1) == targets).float().mean()),
        kl_per_unit=kl.detach().mean(0),
    )
