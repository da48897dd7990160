"""`SequenceVAE`: encoder, latent vector and decoder composed.

Scope: the calls from tokens to posterior, from z to predictions, and from z to tokens by nn/sampling.py and nn/beam.py.
Out of scope: losses (nn/loss.py), the meaning of tokens, files.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqvae import _aliases
from seqvae.config import ModelConfig
from seqvae.nn import noise
from seqvae.nn.beam import search
from seqvae.nn.binding import Binding
from seqvae.nn.decoder import Decoder, DecoderOutput
from seqvae.nn.encoder import Encoder
from seqvae.nn.kernels import Packing, multiplies_bf16
from seqvae.nn.latent import LatentModel
from seqvae.nn.memory import MemoryDecoder, PooledEncoder
from seqvae.nn.posterior import Posterior
from seqvae.nn.sampling import Sampling, decode
from seqvae.protocols import PAD, Given, Grammar, Guidance


@dataclass(frozen=True)
class Output:
    """The result of one forward pass over a batch."""

    autoregressive: DecoderOutput
    """Predictions of each non-PAD token given z and the tokens before it in its chunk."""
    direct: DecoderOutput
    """Predictions of each non-PAD token given z and its position fields alone."""
    posterior: Posterior
    """Mean and log-variance `(B, D)`."""
    z: Tensor
    """The decoded latent vector `(B, D)`."""


@_aliases.renamed(decode="decode_logits", write="generate")
class SequenceVAE(LatentModel):
    """A variational autoencoder (Kingma and Welling 2014) of segments of C chunks of T tokens."""

    def __init__(self, config: ModelConfig, field_sizes: tuple[int, ...], binding_depth: Tensor) -> None:
        """`field_sizes` and `binding_depth (V,)` come from the tokenizer; see `binding.Binding`."""
        super().__init__()
        self.config, self.vocab_size, self.field_sizes = config, len(binding_depth), tuple(field_sizes)
        binding = Binding(binding_depth, self.field_sizes, config.width, config.previous)
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
        if config.without > 0:
            self.absent = nn.Parameter(torch.zeros(config.latent))

    def encode(self, tokens: Tensor, fields: Tensor, track_dropout: float = 0.0) -> Posterior:
        """`tokens (B, C, T)` with PAD at the end and `fields (B, C, T, K)`, to a posterior `(B, D)`.

        With `track_dropout`, in every other segment the tokens of a chunk that share a value of the first position
        field are weakened by a common random share of at most `track_dropout`.
        """
        mask = tokens != PAD
        x = self.decoder.binding.bind(tokens, fields, mask)
        if track_dropout > 0 and self.field_sizes:
            under = torch.cat([fields[..., 1:, 0], fields[..., -1:, 0]], -1)  # a token of depth 0 opens its own group
            drawn = noise.uniform((*tokens.shape[:2], self.field_sizes[0]), x.device)
            # the root favours large shares: tokens hardly weakened teach little
            shares = track_dropout * drawn.sqrt().gather(-1, under)
            shares[1::2] = 0
            x = x * (1 - shares)[mask].unsqueeze(-1).to(x.dtype)
        posterior: Posterior = self.encoder(x, mask)
        return posterior

    def under(self, given: Given | None) -> SequenceVAE:
        """The model itself, whose decoder has no conditions."""
        return self

    def decoder_outputs(
        self, z: Tensor, inputs: Tensor, fields: Tensor, packing: Packing | None = None, low: bool = False
    ) -> tuple[DecoderOutput, DecoderOutput]:
        """Predictions from `z (B, D)` with and without history; `inputs (B, C, T)` are the tokens before each step.

        At all positions, or at `packing`. With `low`, in bf16 throughout, with cached bf16 weights: for a search of z.
        """
        b, c, t = inputs.shape
        decoder = self._halved() if low else self.decoder
        code = decoder.codes(z.to(decoder.norm.weight.dtype)).view(b * c, -1)
        autoregressive, direct, _ = decoder(
            code, inputs.view(b * c, t), fields.view(b * c, t, -1), decoder.start(code), packing
        )
        return autoregressive, direct

    def packing(self, tokens: Tensor, fields: Tensor) -> Packing:
        """Positions where `tokens (B, C, T)` with `fields (B, C, T, K)` are not PAD, for `decoder_outputs`."""
        rows = tokens.flatten(0, 1)
        return self.decoder.packing(rows, fields.flatten(0, 1), rows != PAD)

    def decode_logits(self, z: Tensor, inputs: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher-forced logits with and without history, `(B, C, T, V)`; `inputs (B, C, T)` are shifted tokens."""
        logits, direct = (output.logits().view(*inputs.shape, -1) for output in self.decoder_outputs(z, inputs, fields))
        return logits, direct

    @torch.no_grad()
    def generate(
        self,
        z: Tensor,
        grammar: Grammar,
        state: NDArray[np.int32],
        settings: Sampling,
        guidances: Sequence[Guidance] = (),
    ) -> list[list[NDArray[np.int32]]]:
        """Generate from `z (B, D)` token by token: for each row the token ids of its C chunks, each ending in EOS.

        `state (B * C, S)` is the grammar's initial state, one row a chunk. All chunks are decoded side by side; with
        `settings.beam` above 1, by beam search. `guidances` shift logits during decoding, e.g. for chroma guidance.
        """
        draws = settings.temperature > 0 and settings.beam < 2
        decoder = self._halved() if draws and multiplies_bf16(z.device) else self.decoder
        code = self.decoder.codes(z).flatten(0, 1).to(decoder.norm.weight.dtype)
        cache = decoder.start(code)

        def step(tokens: Tensor, fields: Tensor, keep: Tensor | None) -> Tensor:
            nonlocal code, cache
            if keep is not None:
                code, cache = code.index_select(0, keep), decoder.select(cache, keep)
            autoregressive, cache = decoder.step(code, tokens, fields, cache)
            return autoregressive.logits()

        rows = (search if settings.beam > 1 else decode)(step, grammar, state, settings, z.device, guidances)
        c = self.config.chunks
        return [rows[i : i + c] for i in range(0, len(rows), c)]

    @torch.no_grad()
    def outline(self, z: Tensor, given: Given | None) -> tuple[Tensor, Tensor] | None:
        """As `LatentModel.outline`, from the codes of `z`; None for a model without position fields."""
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
        self, tokens: Tensor, fields: Tensor, source: Tensor, inputs: Tensor, sample: bool, track_dropout: float = 0.0,
        without: Tensor | None = None,
    ) -> Output:  # fmt: skip
        """One pass: the encoder reads `source` and the decoder reads `inputs`; either may be masked.

        Segments where `without (B,)` is True are decoded from `absent` in place of z.
        """
        posterior = self.encode(source, fields, track_dropout)
        z = posterior.sample() if sample else posterior.mean
        if without is not None:
            z = torch.where(without[:, None], self.absent, z)
        autoregressive, direct = self.decoder_outputs(z, inputs, fields, self.packing(tokens, fields))
        return Output(autoregressive, direct, posterior, z)
