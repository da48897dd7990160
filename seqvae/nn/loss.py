"""The loss: reconstruction and weighted KL in nats, annealing and free bits.

Scope: the formulas. Out of scope: refinement of posteriors (nn/refine.py), optimizers, data, files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seqvae.config import ObjectiveConfig
from seqvae.nn import noise
from seqvae.nn.binding import shifted
from seqvae.nn.model import Output, SequenceVAE
from seqvae.nn.posterior import floored_kl
from seqvae.protocols import EOS, MASK, PAD


def beta_at(config: ObjectiveConfig, step: float) -> float:
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
    """`tokens` with a random `share` of the non-PAD tokens replaced by MASK."""
    if share <= 0:
        return tokens
    hit = noise.uniform(tokens.shape, tokens.device, generator) < share
    return tokens.masked_fill(hit & (tokens != PAD), MASK)


def dropped(tokens: Tensor, share: float, generator: torch.Generator | None = None) -> Tensor:
    """`tokens (..., T)` with a random `share` of those before EOS removed, the rest moved up, and PAD at the end."""
    if share <= 0:
        return tokens
    lost = noise.uniform(tokens.shape, tokens.device, generator) < share
    lost = (lost & (tokens != EOS)) | (tokens == PAD)
    order = lost.to(torch.int8).argsort(dim=-1, stable=True)  # kept tokens first, in their order
    return tokens.masked_fill(lost, PAD).gather(-1, order)


def objective_at(config: ObjectiveConfig, step: float) -> tuple[ObjectiveConfig, float]:
    """The objective in force at a step (the first is 1), and the step counted from the start of that phase."""
    if step <= config.pretrain_steps:
        return replace(config, autoencoder=True), step
    return config, step - config.pretrain_steps


def charged_kl(kl: Tensor, config: ObjectiveConfig) -> Tensor:
    """The KL term that beta multiplies, a scalar in nats a segment, from `kl (B, D)`.

    K = sum_d max(mean over the batch of KL_d, free_bits); then max(K, free_bits_total), and |K - target_kl| if there is
    a target. Floors apply to batch averages, so that a dimension may serve some segments and not others.
    """
    total = floored_kl(kl, config.free_bits).clamp(min=config.free_bits_total)
    return (total - config.target_kl).abs() if config.target_kl > 0 else total


@dataclass(frozen=True)
class Loss:
    """The parts of one batch's loss; `total` is differentiated."""

    total: Tensor
    """Nats a token: the loss summed over the batch, divided by the number of tokens."""
    reconstruction: float
    """-E log p(x|z), nats a segment."""
    kl: float
    """KL(q(z|x) || p(z)), nats a segment, without floor."""
    beta: float
    accuracy: float
    """Share of tokens that are the most likely one, given the true tokens before them."""
    kl_per_unit: Tensor
    """Mean KL of each dimension, `(D,)` nats."""


def loss(
    model: SequenceVAE,
    tokens: Tensor,
    fields: Tensor,
    config: ObjectiveConfig,
    step: float,
    training: bool = True,
    allowed: Tensor | None = None,
    whole: Callable[[Tensor], Tensor] | None = None,
) -> Loss:
    """The loss of `tokens (B, C, T)` with `fields (B, C, T, K)`.

    Probabilities are normalised over the tokens that the grammar allows, `allowed (B, C, T, V)`, as in decoding, or
    over all tokens if it is None. So the model need not learn the grammar's rules.

    Loss of a segment: -log p(x|z) + beta K + bag * (-sum_t log p(x_t | z, cue_t)), with K from `charged_kl`.
    In evaluation nothing is masked; z is the posterior mean for the plain autoencoder, else one draw.

    In training a share w of the segments is decoded without z and with all of its input tokens (`ModelConfig.without`).
    They need no code, so K has the weight (1 - w) beta: that of the other segments, whatever the share.

    Where `tokens` are a part of a batch, `whole` maps the mean KL `(D,)` of the part to that of the batch, since floors
    apply to batch averages. The losses of the parts, each times its share of the tokens, then add up to the loss of the
    batch, and so do their gradients.
    """
    config, step = objective_at(config, step)
    source = tokens
    if training:
        source = (dropped if config.denoise_by == "drop" else masked)(tokens, config.denoise)
    clear = shifted(tokens)
    inputs = masked(clear, config.word_dropout) if training else clear
    track_dropout = config.track_dropout if training else 0.0
    share, without = model.config.without if training else 0.0, None
    if share > 0:
        without = noise.uniform((len(tokens),), tokens.device) < share
        inputs = torch.where(without[:, None, None], clear, inputs)
    output: Output = model(tokens, fields, source, inputs, not config.autoencoder, track_dropout, without)
    weight = tokens != PAD
    targets, disallowed = tokens[weight], None if allowed is None else ~allowed[weight]
    reconstruction, right = output.autoregressive.cross_entropy(targets, disallowed)
    kl = output.posterior.kl()
    beta = beta_at(config, step)
    here = kl.detach().mean(0)
    level = kl if whole is None else kl + (whole(here) - here)  # the part's gradients at the batch's average
    charged = reconstruction + (1 - share) * beta * len(tokens) * charged_kl(level, config)
    if config.bag > 0 and training:
        charged = charged + config.bag * output.direct.cross_entropy(targets, disallowed)[0]
    return Loss(
        total=charged / len(right),
        reconstruction=float(reconstruction.detach()) / len(tokens),
        kl=float(kl.detach().sum()) / len(tokens),
        beta=beta,
        accuracy=float(right.float().mean()),
        kl_per_unit=here,
    )
