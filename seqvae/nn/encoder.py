"""The encoder: tokens to a posterior.

Scope: the vector of each chunk, and the posterior from the chunk vectors of a segment. Out of scope: the meaning of
tokens, losses, decoding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqvae.config import ModelConfig
from seqvae.nn.blocks import Residual, TransformerLayer
from seqvae.nn.kernels import Packing
from seqvae.nn.posterior import Posterior, first_logvar, posterior_from


class Encoder(nn.Module):
    """Encodes every chunk on its own to one vector, and maps the chunk vectors of a segment to q(z|x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.token_encoder: nn.Module | None = None  # `set`: the sum of bound tokens alone
        if config.encoder == "recurrent":
            self.token_encoder = RecurrentEncoder(config)
        elif config.encoder == "transformer":
            self.token_encoder = TransformerEncoder(config)
        self.chunk = nn.Sequential(Residual(config.width, 2), Residual(config.width, 2))
        self.mean = nn.Linear(config.chunks * config.width, config.latent)
        self.logvar = nn.Linear(config.chunks * config.width, config.latent)
        nn.init.orthogonal_(self.mean.weight)
        nn.init.zeros_(self.mean.bias)
        first_logvar(self.logvar)

    def forward(self, x: Tensor, mask: Tensor) -> Posterior:
        """Bound tokens `x (M, W)` at the positions where `mask (B, C, T)` is True, to a posterior `(B, D)`."""
        b, c, t = mask.shape
        mask = mask.view(b * c, t)
        packing = Packing.of(mask, mask, (), mask)
        if self.token_encoder is not None:
            x = packing.pack(self.token_encoder(packing.unpack(x), mask))
        chunks = self.chunk(packing.sums(x).view(b, c, -1)).flatten(1)
        return posterior_from(chunks, self.mean, self.logvar)


class RecurrentEncoder(nn.Module):
    """Bidirectional LSTM."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.width % 2:
            raise ValueError(f"width {config.width} does not divide into two directions")
        self.lstm = nn.LSTM(config.width, config.width // 2, config.layers, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`x (N, T, W)`, `mask (N, T)` to `(N, T, W)`; the backward half starts at each row's own last token."""
        lengths = mask.sum(1).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])
        return out


class TransformerEncoder(nn.Module):
    """Bidirectional transformer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerLayer(config.width, config.heads, config.dropout) for _ in range(config.layers)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`x (N, T, W)`, `mask (N, T)` to `(N, T, W)`."""
        seen = mask | (torch.arange(mask.shape[1], device=mask.device) == 0)  # an empty row still has one key
        for layer in self.layers:
            x, _ = layer(x, seen[:, None])
        return x
