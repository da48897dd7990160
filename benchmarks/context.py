"""A SequenceVAE with a decoder conditioned on the previous segment, and its training, for `search_context.py`.

p(x_t | z_t, z_(t-1)): a second code comes from the posterior mean of the previous segment (without gradient; zeros at
the start of a song and after silence). It is unbound with the same position fields as the first code, a small network
combines both results, and the second code also adds to the initial state of the LSTM. The number and the size of the
latents are unchanged, the prior is N(0, I), and all segments still decode in parallel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from seqvae.checkpoint import folder as checkpoint
from seqvae.config import ModelConfig
from seqvae.data.dataset import Longs, TokenData
from seqvae.nn import noise
from seqvae.nn.binding import Binding
from seqvae.nn.blocks import Cache, Residual
from seqvae.nn.decoder import Decoder, OuterLogits
from seqvae.nn.kernels import Packing, take
from seqvae.nn.loss import Loss
from seqvae.nn.model import SequenceVAE
from seqvae.nn.posterior import active_units
from seqvae.parallel import divide
from seqvae.protocols import EOS, PAD, Ints
from seqvae.train import loop as training
from seqvae.train.trainer import Run

# --- the model --------------------------------------------------------------------------------------------------------


class ContextDecoder(Decoder):
    """A decoder of pairs of codes `(N, 2 W)`: of a chunk, and of the previous segment for this chunk."""

    def __init__(self, config: ModelConfig, binding: Binding) -> None:
        super().__init__(config, binding)
        width = config.width
        self.remember = nn.Linear(config.latent, config.chunks * width)
        self.past = nn.Sequential(Residual(width, 2), nn.LayerNorm(width))
        last, self.opening = nn.Linear(width, width), nn.Linear(width, width)
        self.join = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(approximate="tanh"), last)
        with torch.no_grad():  # start close to the plain decoder
            last.weight.mul_(0.1)
            self.opening.weight.mul_(0.1)

    def codes(self, z: Tensor) -> Tensor:
        """Codes `(B, C, 2 W)` of `z (B, 2 D)`: latents of a segment and of the previous one."""
        now, before = z.chunk(2, -1)
        past = self.past(self.remember(before).view(-1, self.chunks, self.width))
        return torch.cat([super().codes(now), past], -1)

    def start(self, code: Tensor) -> Cache:
        """As Decoder, plus a projection of the previous segment's code."""
        now, past = code.chunk(2, -1)
        return super().start(now + self.opening(past))

    def _unbind(self, code: Tensor, packing: Packing) -> tuple[Tensor, list[OuterLogits]]:
        (current, past), outer = code.chunk(2, -1), []
        norms = dict(zip((k for k, _ in self.levels), self.level_norms, strict=True))
        columns = dict(self.levels)
        for k, (parent, values) in enumerate(packing.tree):
            if k in columns:
                both = current + self.join(torch.cat([current, past], -1))
                part = self.binding.logits(norms[k](both), columns[k].to(code.device))
                outer.append(OuterLogits(columns[k], part, packing.indices[k]))
            key = self.binding.key(k, values)
            current, past = take(current, parent) * key, take(past, parent) * key
        return current + self.join(torch.cat([current, past], -1)), outer


class ContextVAE(SequenceVAE):
    """A SequenceVAE whose decoder is conditioned on `before (B, D)`, to be set before each pass."""

    def __init__(self, config: ModelConfig, field_sizes: tuple[int, ...], binding_depth: Tensor) -> None:
        super().__init__(config, field_sizes, binding_depth)
        self.decoder = ContextDecoder(config, self.decoder.binding)
        self.before: Tensor | None = None
        with torch.no_grad():
            for layer in (self.decoder.conduct, self.decoder.remember):
                layer.weight.copy_(self.encoder.mean.weight.T)

    def _both(self, z: Tensor) -> Tensor:
        assert self.before is not None
        return torch.cat([z, self.before.to(z)], -1)

    def decoder_outputs(self, z: Tensor, *rest: Any, **named: Any) -> Any:
        """As SequenceVAE, of `z (B, D)` after `before`."""
        return super().decoder_outputs(self._both(z), *rest, **named)

    def generate(self, z: Tensor, *rest: Any, **named: Any) -> Any:
        """As SequenceVAE, of `z (B, D)` after `before`."""
        return super().generate(self._both(z), *rest, **named)


# --- its training -----------------------------------------------------------------------------------------------------


class ContextData(TokenData):
    """Token shards that return each segment together with the previous one."""

    def gather(self, pieces: Longs, firsts: Longs, chunks: int) -> Ints:
        """Tokens `(B, 2 C, T)`: the previous segment, then the segment; chunks before a song's start have EOS alone."""
        begins = np.array([self.record(piece)["first"] for piece in pieces.tolist()], np.int64)
        parts = []
        for at in range(-chunks, 0):
            part = super().gather(pieces, np.maximum(firsts + at, begins), 1)
            part[firsts + at < begins] = PAD
            part[firsts + at < begins, 0, 0] = EOS
            parts.append(part)
        parts.append(super().gather(pieces, firsts, chunks))
        out = np.zeros((len(pieces), 2 * chunks, max(part.shape[2] for part in parts)), np.int32)
        at = 0
        for part in parts:
            out[:, at : at + part.shape[1], : part.shape[2]] = part
            at += part.shape[1]
        return out


def _trimmed(tokens: Ints) -> Ints:
    """Tokens without the steps that are PAD throughout."""
    return tokens[..., : max(1, int((tokens != PAD).any((0, 1)).sum()))]


class ContextRun(Run):
    """A run on segments with their previous segments."""

    def divided(self, tokens: Ints) -> tuple[Ints, Ints]:
        """Split `tokens (B, 2 C, T)` into previous segments and segments."""
        chunks = self.recipe.model.chunks
        return _trimmed(tokens[:, :chunks]), _trimmed(tokens[:, chunks:])

    def loss(self, tokens: Ints, training: bool, model: Any = None, mean_kl: Any = None) -> Loss:
        """As Run, conditioned on the previous segments."""
        model = model or self.model
        before, now = self.divided(tokens)
        with torch.no_grad():
            model.before = model.encode(*self.tensors(before)).mean * sounds(before).to(self.device)
        return super().loss(now, training, model, mean_kl)

    def step(self, tokens: Ints) -> Loss:
        """As Run; mixing happens here, because the batch size counts segments without the previous ones."""
        recipe, config = self.recipe, self.recipe.train
        rng = np.random.default_rng([config.seed, self.progress.epoch, self.progress.position])
        if rng.random() < config.mix:
            tokens = self.tokenizer.mix(tokens, self.batches.random_segments(len(tokens), rng), rng)
            now = self.divided(tokens)[1]
            tokens = tokens[: max(1, config.batch_tokens // (now.shape[1] * now.shape[2]))]
        self.recipe = replace(recipe, train=replace(config, mix=0.0))
        try:
            return super().step(tokens)
        finally:
            self.recipe = recipe

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The metrics of Run that follow from the loss, and active units."""
        totals, means, seen = np.zeros(3), [], 0
        model = self.model.eval()
        with self._fork():
            torch.manual_seed(0)
            for rows, firsts in self.validation:
                tokens = self.data.gather(rows, firsts, self.recipe.model.chunks)
                part = divide((tokens != PAD).sum((1, 2)), 1)[0]
                with noise.of(part), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                    result = self.loss(tokens, training=False)
                    means.append(model.encode(*self.tensors(self.divided(tokens)[1])).mean)
                totals += np.array([result.reconstruction, result.kl, result.accuracy]) * len(tokens)
                seen += len(tokens)
        model.train()
        reconstruction, kl, accuracy = (totals / seen).tolist()
        return {
            "loss": reconstruction + self.recipe.objective.beta * kl,
            "elbo": -(reconstruction + kl),
            "kl_bits": kl / float(np.log(2)),
            "active_units": float(active_units(torch.cat(means))),
            "accuracy": accuracy,
        }


def sounds(tokens: Ints) -> Tensor:
    """`(B, 1)`: 1 for segments `tokens (B, C, T)` with notes, 0 for silence."""
    return torch.from_numpy(((tokens != PAD).sum(-1) > 1).any(-1)).float()[:, None]


@contextlib.contextmanager
def in_context(wanted: bool) -> Iterator[None]:
    """Train and load models conditioned on the previous segment, if `wanted`."""
    if not wanted:
        yield
        return
    with mock.patch.object(checkpoint, "SequenceVAE", ContextVAE), mock.patch.object(training, "Run", ContextRun):
        yield
