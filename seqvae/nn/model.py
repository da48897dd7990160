"""`SequenceVAE`: encoder, latent vector and decoder composed.

Scope: the calls from tokens to posterior, from z to predictions, and from z to tokens by nn/sampling.py. Out of scope:
losses (nn/loss.py), the meaning of tokens, files.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqvae.config import ModelConfig
from seqvae.nn.decoder import Decoder, Told
from seqvae.nn.encoder import Encoder
from seqvae.nn.layers import Binding, Places, multiplies_bf16
from seqvae.nn.memory import MemoryDecoder, PooledEncoder
from seqvae.nn.posterior import Posterior
from seqvae.nn.sampling import Sampling, decode, search
from seqvae.protocols import PAD, Grammar, Lean


@dataclass(frozen=True)
class Output:
    """The result of one forward pass over a batch."""

    told: Told
    """Predictions of each non-PAD token given z and the tokens before it in its chunk."""
    bag: Told
    """Predictions of each non-PAD token given z and its position fields alone."""
    posterior: Posterior
    """Mean and log-variance `(B, D)`."""
    z: Tensor
    """The decoded latent vector `(B, D)`."""


class SequenceVAE(nn.Module):
    """A variational autoencoder (Kingma and Welling 2014) of segments of C chunks of T tokens."""

    def __init__(self, config: ModelConfig, cue_sizes: tuple[int, ...], scope: Tensor) -> None:
        """`cue_sizes` and `scope (V,)` come from the tokenizer; see `layers.Binding`."""
        super().__init__()
        self.config, self.vocab_size, self.cue_sizes = config, len(scope), tuple(cue_sizes)
        binding = Binding(scope, self.cue_sizes, config.width, config.previous)
        self.encoder = PooledEncoder(config) if config.encoder == "pooled" else Encoder(config)
        # a tuple, so that torch does not register it as a submodule
        self._half: tuple[list[tuple[int, int]], Decoder | MemoryDecoder] | None = None
        self.decoder: Decoder | MemoryDecoder  # shares the encoder's binding, so bound tokens can be retrieved
        self.decoder = MemoryDecoder(config, binding) if config.decoder == "memory" else Decoder(config, binding)
        if isinstance(self.encoder, Encoder) and isinstance(self.decoder, Decoder):
            with torch.no_grad():
                self.decoder.conduct.weight.copy_(self.encoder.mean.weight.T)
        if isinstance(self.encoder, PooledEncoder) and isinstance(self.decoder, MemoryDecoder):
            self.decoder.begin_as(self.encoder)

    def encode(self, tokens: Tensor, cues: Tensor, fade: float = 0.0) -> Posterior:
        """`tokens (B, C, T)` with PAD at the end and `cues (B, C, T, K)`, to a posterior `(B, D)`.

        With `fade`, in every other segment the tokens that share a value of the first position field (in music, one
        instrument in one bar) are weakened by a common random share of at most `fade`.
        """
        mask = tokens != PAD
        x = self.decoder.binding.bind(tokens, cues, mask)
        if fade > 0 and self.cue_sizes:
            under = torch.cat([cues[..., 1:, 0], cues[..., -1:, 0]], -1)  # a token of depth 0 opens its own group
            # the root favours large shares: tokens hardly weakened teach little
            shares = fade * torch.rand(*tokens.shape[:2], self.cue_sizes[0], device=x.device).sqrt().gather(-1, under)
            shares[1::2] = 0
            x = x * (1 - shares)[mask].unsqueeze(-1).to(x.dtype)
        posterior: Posterior = self.encoder(x, mask)
        return posterior

    def tell(
        self, z: Tensor, inputs: Tensor, cues: Tensor, places: Places | None = None, low: bool = False
    ) -> tuple[Told, Told]:
        """Predictions from `z (B, D)` with and without history; `inputs (B, C, T)` are the tokens before each step.

        At all positions, or at `places`. With `low`, in bf16 throughout, with cached bf16 weights: for a search of z.
        """
        b, c, t = inputs.shape
        decoder = self._halved() if low else self.decoder
        code = decoder.codes(z.to(decoder.norm.weight.dtype)).view(b * c, -1)
        told, bag, _ = decoder(code, inputs.view(b * c, t), cues.view(b * c, t, -1), decoder.start(code), places)
        return told, bag

    def places(self, tokens: Tensor, cues: Tensor) -> Places:
        """Positions where `tokens (B, C, T)` with `cues (B, C, T, K)` are not PAD, for `tell`."""
        rows = tokens.flatten(0, 1)
        return self.decoder.places(rows, cues.flatten(0, 1), rows != PAD)

    def decode(self, z: Tensor, inputs: Tensor, cues: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher-forced logits with and without history, `(B, C, T, V)`; `inputs (B, C, T)` are shifted tokens."""
        told, bag = (told.logits().view(*inputs.shape, -1) for told in self.tell(z, inputs, cues))
        return told, bag

    @torch.no_grad()
    def write(
        self, z: Tensor, grammar: Grammar, state: NDArray[np.int32], settings: Sampling, leans: Sequence[Lean] = ()
    ) -> list[list[NDArray[np.int32]]]:
        """Generate from `z (B, D)` token by token: for each row the token ids of its C chunks, each ending in EOS.

        `state (B * C, S)` is the grammar's initial state, one row a chunk. All chunks are decoded side by side; with
        `settings.beam` above 1, by beam search. `leans` shift logits during decoding, e.g. for chroma guidance.
        """
        draws = settings.temperature > 0 and settings.beam < 2
        decoder = self._halved() if draws and multiplies_bf16(z.device) else self.decoder
        code = self.decoder.codes(z).flatten(0, 1).to(decoder.norm.weight.dtype)
        cache = decoder.start(code)

        def step(tokens: Tensor, cues: Tensor, keep: Tensor | None) -> Tensor:
            nonlocal code, cache
            if keep is not None:
                code, cache = code.index_select(0, keep), decoder.select(cache, keep)
            told, cache = decoder.step(code, tokens, cues, cache)
            return told.logits()

        rows = (search if settings.beam > 1 else decode)(step, grammar, state, settings, z.device, leans)
        c = self.config.chunks
        return [rows[i : i + c] for i in range(0, len(rows), c)]

    @torch.no_grad()
    def outline(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        """Tokens of the outermost depth `(K,)` and their logits `(B * C, K)`, from the codes of `z (B, D)` alone.

        No token is decoded. None for a model without position fields.
        """
        if not isinstance(self.decoder, Decoder) or not self.decoder.levels:
            return None
        code = self.decoder.codes(z.to(self.decoder.norm.weight)).flatten(0, 1)
        _, columns = self.decoder.levels[0]
        logits = self.decoder.binding.logits(self.decoder.level_norms[0](code), columns.to(code.device))
        return columns.cpu(), logits.float().cpu()

    def _halved(self) -> Decoder | MemoryDecoder:
        """The decoder with weights in bf16; cached until a weight changes."""
        weights = list(self.decoder.parameters())
        stamp = [(weight.data_ptr(), weight._version) for weight in weights]
        if self._half is None or self._half[0] != stamp:
            low = {id(weight): nn.Parameter(weight.bfloat16(), requires_grad=False) for weight in weights}
            self._half = stamp, copy.deepcopy(self.decoder, low).eval()
        return self._half[1]

    def forward(
        self, tokens: Tensor, cues: Tensor, source: Tensor, inputs: Tensor, sample: bool, fade: float = 0.0
    ) -> Output:
        """One pass: the encoder reads `source` and the decoder reads `inputs`; either may be masked."""
        posterior = self.encode(source, cues, fade)
        z = posterior.sample() if sample else posterior.mean
        told, bag = self.tell(z, inputs, cues, self.places(tokens, cues))
        return Output(told, bag, posterior, z)
