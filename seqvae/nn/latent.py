"""The interface of a model with a latent vector for each segment: what inference and the codec need of it.

Scope: the methods, and their defaults for a model whose segments are independent. Out of scope: the models
(nn/model.py, nn/song_vae.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from seqvae.config import ModelConfig
from seqvae.nn.posterior import Posterior
from seqvae.nn.sampling import Sampling
from seqvae.protocols import Given, Grammar, Guidance


class Predictions(Protocol):
    """Predictions of the next token at M positions."""

    def logits(self) -> Tensor:
        """Logits `(M, V)`."""

    def cross_entropy(self, targets: Tensor, disallowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """-log p of `targets (M,)` in nats, summed to a scalar; and whether each is the most likely token `(M,)`."""


class LatentDecoder(Protocol):
    """A decoder of latent vectors `z (B, D)`, under given conditions of their B segments."""

    def packing(self, tokens: Tensor, fields: Tensor) -> Any:
        """Positions where `tokens (B, C, T)` with `fields (B, C, T, K)` are not PAD, for `decoder_outputs`."""

    def decoder_outputs(
        self, z: Tensor, inputs: Tensor, fields: Tensor, packing: Any = None, low: bool = False
    ) -> tuple[Predictions, Predictions]:
        """Predictions with and without history; `inputs (B, C, T)` are the tokens before each step.

        At all positions, or at `packing`. With `low`, in bf16 throughout.
        """

    def decode_logits(self, z: Tensor, inputs: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher-forced logits with and without history, `(B, C, T, V)`."""

    def generate(
        self, z: Tensor, grammar: Grammar, state: NDArray[np.int32], settings: Sampling,
        guidances: Sequence[Guidance] = (),
    ) -> list[list[NDArray[np.int32]]]:  # fmt: skip
        """For each row the token ids of its C chunks, each ending in EOS; `state (B * C, S)` as of the grammar."""


class LatentModel(nn.Module):
    """A model from tokens to a Gaussian over latent vectors and back."""

    config: ModelConfig
    vocab_size: int
    field_sizes: tuple[int, ...]
    shared: int = 0
    """The first dimensions of a latent vector that all segments of a piece have in common."""
    conditioned: bool = False
    """Whether a segment is encoded and decoded under conditions; see `protocols.Given`."""
    band: bool = True
    """Whether music is decoded by one band (style/arranger.py)."""
    absent: Tensor
    """The vector `(D,)` that is decoded in place of z; only in a model with `config.without` above 0."""

    def encode(self, tokens: Tensor, fields: Tensor) -> Posterior:
        """`tokens (B, C, T)` with PAD at the end and `fields (B, C, T, K)`, to a posterior `(B, D)` of each alone."""
        raise NotImplementedError

    def pooled(self, alone: Posterior, piece: Tensor, sounding: Tensor, given: Given | None) -> Posterior:
        """Posteriors `(S, D)` of all segments of some pieces, from those of each segment `alone`.

        `piece (S,)` numbers the piece of each segment from 0, `sounding (S,)` is 1.0 for a segment with content.
        """
        return alone

    def under(self, given: Given | None) -> LatentDecoder:
        """The decoder of B segments, under their conditions where the model has such."""
        raise NotImplementedError

    def read(self, tokens: Tensor, fields: Tensor, z: Tensor, given: Given | None) -> Tensor:
        """Latent vectors `(S, D)` of segments of a piece, whose shared dimensions are those of `z (S, D)`."""
        raise NotImplementedError

    def after_move(self, z: Tensor, moved: Tensor, given: Given | None) -> tuple[Tensor, Given | None]:
        """Vectors to decode, and their conditions, where a move led from `z (S, D)` to `moved (S, D)`."""
        return moved, given

    def outline(self, z: Tensor, given: Given | None) -> tuple[Tensor, Tensor] | None:
        """Tokens of the outermost depth `(K,)` and their logits `(B * C, K)`, without decoding a token.

        From `z (B, D)` and the conditions `given (B * C,)`; None where no such output exists.
        """
        return None
