"""Refinement of posterior means for their own tokens by gradient steps (semi-amortized inference, Kim et al. 2018).

Scope: the search for a latent vector that decodes to given tokens. Out of scope: the loss of training (nn/loss.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqvae.config import RefineConfig
from seqvae.nn.binding import shifted
from seqvae.nn.latent import LatentDecoder, LatentModel
from seqvae.nn.posterior import Posterior
from seqvae.protocols import PAD, Given

RATE, DECAY = 0.1, 0.9
FLOOR = 0.05  # nats a unit: much smaller gradients are noise, which Adam would scale up to full steps


def refine(
    model: LatentModel, tokens: Tensor, fields: Tensor, allowed: Tensor | None, posterior: Posterior,
    config: RefineConfig, low: bool = False, given: Given | None = None,
) -> Posterior:  # fmt: skip
    """A posterior whose mean is optimized for its own `tokens (B, C, T)`.

    Each of `config.steps` steps descends the gradient of -log p(x|z) - bag log p(x|z, fields) + beta |z|^2 / 2 by Adam,
    which scales every number on its own, so that results do not depend on the rest of the batch. The last term is the
    part of the KL that depends on the mean. Segments with a token that is not yet the most likely one continue by
    -log p(x|z) alone, up to `config.most_steps` steps. With `low`, the decoder computes in bf16. Dimensions that the
    segments of a piece share stay as they are; `given (B * C,)` is known of the chunks.
    """
    z = posterior.mean.clone()
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    rows = torch.arange(len(z), device=z.device)  # segments that continue
    segments = _Segments.of(model, tokens, fields, allowed, given)
    # the recurrent kernels of CUDA have no backward in evaluation
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        for step in range(1, max(config.steps, config.most_steps) + 1):
            slope, right = _slope(z[rows], segments, config if step <= config.steps else None, low)
            if step > config.steps:
                wrong = segments.wrong(right)
                rows, slope = rows[wrong], slope[wrong]
                if not len(rows):
                    break
                segments = segments.where(model, wrong)
            slope[:, : model.shared] = 0.0
            with torch.no_grad():
                first[rows] = first[rows].lerp(slope, 1 - DECAY)
                second[rows] = second[rows].lerp(slope.square(), 1 - DECAY)
                even = 1 - DECAY**step
                z[rows] -= RATE * (first[rows] / even) / ((second[rows] / even).sqrt() + FLOOR)
    return Posterior(z.detach(), posterior.logvar)


@dataclass(frozen=True)
class _Segments:
    """Segments `tokens (B, C, T)`, and the inputs of the decoder that do not change from step to step."""

    decoder: LatentDecoder
    tokens: Tensor
    fields: Tensor
    allowed: Tensor | None
    given: Given | None
    inputs: Tensor
    packing: Any
    targets: Tensor
    disallowed: Tensor | None

    @staticmethod
    def of(
        model: LatentModel, tokens: Tensor, fields: Tensor, allowed: Tensor | None, given: Given | None
    ) -> _Segments:
        weight = tokens != PAD
        disallowed = None if allowed is None else ~allowed[weight]
        decoder, inputs = model.under(given), shifted(tokens)
        packing = decoder.packing(tokens, fields)
        return _Segments(decoder, tokens, fields, allowed, given, inputs, packing, tokens[weight], disallowed)

    def where(self, model: LatentModel, kept: Tensor) -> _Segments:
        """The segments where `kept (B,)` is True."""
        allowed = None if self.allowed is None else self.allowed[kept]
        given = None if self.given is None else self.given[kept.repeat_interleave(self.tokens.shape[1]).cpu().numpy()]
        return _Segments.of(model, self.tokens[kept], self.fields[kept], allowed, given)

    def wrong(self, right: Tensor) -> Tensor:
        """Whether each segment has a target that is not the most likely token `(B,)`; `right (M,)` by target."""
        wrong = torch.zeros(len(self.tokens), dtype=torch.bool, device=right.device)
        wrong[(self.tokens != PAD).nonzero()[:, 0][~right]] = True
        return wrong


def _slope(z: Tensor, segments: _Segments, config: RefineConfig | None, low: bool) -> tuple[Tensor, Tensor]:
    """The gradient at `z (B, D)`, and whether each target is the most likely token `(M,)`.

    Without a `config`, of -log p(x|z) alone.
    """
    here = z.detach().requires_grad_()
    autoregressive, direct = segments.decoder.decoder_outputs(
        here, segments.inputs, segments.fields, segments.packing, low
    )
    nats, right = autoregressive.cross_entropy(segments.targets, segments.disallowed)
    if config is not None:
        nats = nats + config.beta * here.square().sum() / 2
    if config is not None and config.bag > 0:
        nats = nats + config.bag * direct.cross_entropy(segments.targets, segments.disallowed)[0]
    (slope,) = torch.autograd.grad(nats, here)
    return slope, right
