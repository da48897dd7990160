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
PAIRS = 8  # differences of z and of gradients from which L-BFGS estimates the curvature
FIRST = 0.1  # units a nat: inverse curvature before the first difference
LONGEST = 2.5  # length of a step of L-BFGS, which takes the place of a line search


def refine(
    model: LatentModel, tokens: Tensor, fields: Tensor, allowed: Tensor | None, posterior: Posterior,
    config: RefineConfig, low: bool = False, given: Given | None = None,
) -> Posterior:  # fmt: skip
    """A posterior whose mean is optimized for its own `tokens (B, C, T)`.

    Each of `config.steps` steps descends the gradient of -log p(x|z) - bag log p(x|z, fields) + beta |z|^2 / 2 by Adam.
    The last term is the part of the KL that depends on the mean. Segments with a token that is not yet the most likely
    one continue by L-BFGS on -log p(x|z) alone, up to `config.most_steps` gradients in all, and get the vector with
    most tokens right. Both methods treat each segment on its own, so that results do not depend on the rest of the
    batch. With `low`, the decoder computes in bf16. Dimensions that the segments of a piece share stay as they are;
    `given (B * C,)` are the conditions of the chunks.
    """
    segments = _Segments.of(model, tokens, fields, allowed, given)
    # the recurrent kernels of CUDA have no backward in evaluation
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        z = _adam(model, posterior.mean.clone(), segments, config, low)
        if (more := config.most_steps - config.steps) > 0:
            z = _lbfgs(model, z, segments, more, low)
    return Posterior(z.detach(), posterior.logvar)


def _adam(model: LatentModel, z: Tensor, segments: _Segments, config: RefineConfig, low: bool) -> Tensor:
    """`z (B, D)` after `config.steps` steps of Adam, which scales every number on its own."""
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    for step in range(1, config.steps + 1):
        slope, _ = _slope(model, z, segments, config, low)
        first, second = first.lerp(slope, 1 - DECAY), second.lerp(slope.square(), 1 - DECAY)
        even = 1 - DECAY**step
        z = z - RATE * (first / even) / ((second / even).sqrt() + FLOOR)
    return z


def _lbfgs(model: LatentModel, z: Tensor, segments: _Segments, steps: int, low: bool) -> Tensor:
    """The vectors with most tokens right among `z (B, D)` and the next ones of L-BFGS, from `steps` gradients."""
    best, most = z.clone(), torch.full(z.shape[:1], -1, device=z.device)
    rows = torch.arange(len(z), device=z.device)  # segments that continue
    scale = torch.full_like(z[:, :1], FIRST)
    pairs: list[_Pair] = []
    move = slope = torch.zeros_like(z)
    for step in range(steps):
        before = slope
        slope, right = _slope(model, z, segments, None, low)
        count = segments.count(right)
        better = count > most[rows]
        best[rows[better]], most[rows[better]] = z[better], count[better]
        if step:
            pair = _Pair.of(move, slope - before)
            scale = torch.where(pair.weight > 0, pair.scale, scale)
            pairs = [*pairs[1 - PAIRS :], pair]
        wrong = count < segments.lengths
        if not wrong.all():
            if not wrong.any():
                break
            rows, z, slope, scale = rows[wrong], z[wrong], slope[wrong], scale[wrong]
            segments, pairs = segments.where(model, wrong), [pair.where(wrong) for pair in pairs]
        move = -_divided(slope, pairs, scale)
        move = move * (LONGEST / move.norm(dim=1, keepdim=True)).clamp_max(1)
        z = z + move
    return best


@dataclass(frozen=True)
class _Pair:
    """Differences of z and of gradients `(B, D)` by one step; `weight (B, 1)` is 1 / s.y, or 0 without curvature."""

    move: Tensor
    change: Tensor
    weight: Tensor

    @staticmethod
    def of(move: Tensor, change: Tensor) -> _Pair:
        product = (move * change).sum(1, keepdim=True)
        return _Pair(move, change, torch.where(product > 1e-6, 1 / product, 0))

    def where(self, kept: Tensor) -> _Pair:
        """The segments where `kept (B,)` is True."""
        return _Pair(self.move[kept], self.change[kept], self.weight[kept])

    @property
    def scale(self) -> Tensor:
        """Inverse curvature along the step `(B, 1)`."""
        return 1 / (self.weight * self.change.square().sum(1, keepdim=True))


def _divided(slope: Tensor, pairs: list[_Pair], scale: Tensor) -> Tensor:
    """Gradients `(B, D)` times the inverse Hessian of L-BFGS (two-loop recursion; Nocedal and Wright 2006, 7.4)."""
    parts = []
    for pair in reversed(pairs):
        parts.append(pair.weight * (pair.move * slope).sum(1, keepdim=True))
        slope = slope - parts[-1] * pair.change
    slope = scale * slope
    for pair, part in zip(pairs, reversed(parts), strict=True):
        slope = slope + pair.move * (part - pair.weight * (pair.change * slope).sum(1, keepdim=True))
    return slope


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

    @property
    def lengths(self) -> Tensor:
        """Tokens of each segment `(B,)`."""
        return (self.tokens != PAD).sum((1, 2))

    def count(self, right: Tensor) -> Tensor:
        """Targets of each segment that are the most likely token `(B,)`; `right (M,)` by target."""
        places = (self.tokens != PAD).nonzero()[right, 0]
        return torch.bincount(places, minlength=len(self.tokens))


def _slope(
    model: LatentModel, z: Tensor, segments: _Segments, config: RefineConfig | None, low: bool
) -> tuple[Tensor, Tensor]:
    """The gradient at `z (B, D)`, and whether each target is the most likely token `(M,)`.

    Without a `config`, of -log p(x|z) alone. It is 0 in the dimensions that the segments of a piece share.
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
    slope[:, : model.shared] = 0.0
    return slope, right
