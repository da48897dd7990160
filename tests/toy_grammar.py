"""A small grammar, and steps of decoding with constant logits, for tests of sampling and beam search."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.nn.sampling import Step
from seqvae.protocols import BOS, EOS

Ints = NDArray[np.int32]
CPU = torch.device("cpu")


class Even:
    """A grammar of tokens 0..5 (EOS is 2) of pairs: EOS is allowed at even positions."""

    vocabulary = 6

    def start(self, rows: int, lengths: Ints | None = None) -> Ints:
        return start(rows)

    def allowed(self, state: Ints) -> NDArray[np.bool_]:
        ok = np.ones((len(state), self.vocabulary), bool)
        ok[:, :2] = False
        ok[:, EOS] = state[:, 0] % 2 == 0
        return ok

    def advance(self, state: Ints, tokens: Ints) -> Ints:
        assert state.dtype == tokens.dtype == np.int32
        assert Even.allowed(self, state)[np.arange(len(state)), tokens].all(), "advanced by a token that is not allowed"
        return np.stack([state[:, 0] + 1, tokens], 1)

    def position_fields(self, state: Ints) -> Ints:
        return state[:, :1]


def start(rows: int) -> Ints:
    return np.tile(np.array([[0, BOS]], np.int32), (rows, 1))


def steady(logits: Tensor) -> Step:
    """A step with the same logits `(N, V)` at every position; finished rows are removed."""
    current = logits

    def step(tokens: Tensor, fields: Tensor, keep: Tensor | None) -> Tensor:
        nonlocal current
        current = current if keep is None else current[keep]
        assert len(tokens) == len(fields) == len(current)
        return current

    return step


def random_logits(rows: int, seed: int = 0, end: float = 0.0) -> Tensor:
    logits = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))
    logits[:, EOS] += end
    return logits
