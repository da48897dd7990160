"""From logits to tokens: temperature, top-k, top-p, grammar, stopping.

Knows: one step function and one grammar. Refuses to know: models, latents, files. A row's tokens follow from its own
logits and its own seed, never from its neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int32]
BOS, EOS = 1, 2


class Grammar(Protocol):
    """The part of a tokenizer's grammar that decoding needs; see tokenizer.Grammar."""

    def allowed(self, state: Ints) -> NDArray[np.bool_]:
        """`(N, V)`: True where a token may come next; EOS only where what is there is complete."""

    def advance(self, state: Ints, tokens: Ints) -> Ints:
        """States `(N, S)` after `tokens (N,)`."""

    def cues(self, state: Ints) -> Ints:
        """Cues `(N, K)` of the next token."""


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen."""

    temperature: float = 0.0
    """0 takes the most likely token; 1 draws from the model; between, sharper."""
    top_k: int = 0
    """Draw among the k most likely; 0 for all."""
    top_p: float = 1.0
    """Draw among the most likely tokens that together reach this probability (Holtzman et al. 2020)."""
    max_tokens: int = 1024
    """Tokens a chunk at most, EOS included; the chunk then ends at the last complete note or word."""
    seed: int = 0
    """Seed; row i of a call uses (seed, first_row + i)."""
    first_row: int = 0
    """Number of a call's first row, for callers that decode a long piece in several calls."""

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1 and self.max_tokens > 0):
            raise ValueError("temperature and top_k must be at least 0, top_p in (0, 1], max_tokens above 0")


Step = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(tokens (N, 1), cues (N, 1, K), rows that stay or None for all) -> logits (N, V)."""


def decode(step: Step, grammar: Grammar, state: Ints, settings: Sampling, device: torch.device) -> list[Ints]:
    """Decode rows side by side until each has ended: the token ids of each, EOS included.

    A row that has not ended after `max_tokens` is cut back to where it could last have ended, and ended there.
    `state (N, S)` is where the grammar starts. Rows that have ended leave the batch.
    """
    rows = np.arange(len(state))
    out: list[list[int]] = [[] for _ in rows]
    whole = np.zeros(len(rows), np.int64)  # tokens of each row after which it could last have ended
    draws = (
        [np.random.default_rng([settings.seed, settings.first_row + int(i)]) for i in rows]
        if settings.temperature > 0
        else []
    )
    tokens = np.full(len(rows), BOS, np.int32)
    keep: Tensor | None = None
    for done in range(settings.max_tokens):
        cues = torch.from_numpy(grammar.cues(state)).to(device)[:, None]
        logits = step(torch.from_numpy(tokens).to(device).long()[:, None], cues.long(), keep)
        allowed = grammar.allowed(state)
        whole[rows[allowed[:, EOS]]] = done
        logits = logits.float().masked_fill(~torch.from_numpy(allowed).to(device), float("-inf"))
        uniform = np.array([draws[i].random() for i in rows]) if draws else None
        tokens = choose(logits, settings, uniform).astype(np.int32)
        for i, token in zip(rows, tokens, strict=True):
            out[i].append(int(token))
        alive = tokens != EOS
        if not alive.any():
            break
        state = grammar.advance(state, tokens)
        keep = None
        if not alive.all():
            rows, state, tokens = rows[alive], state[alive], tokens[alive]
            keep = torch.from_numpy(np.flatnonzero(alive)).to(device)
    else:
        for i in rows:
            out[i] = [*out[i][: whole[i]], EOS]
    return [np.array(row, np.int32) for row in out]


def choose(logits: Tensor, settings: Sampling, uniform: NDArray[np.float64] | None) -> NDArray[np.int64]:
    """One token a row of `logits (N, V)`; `uniform (N,)` in [0, 1) are the draws, unused at temperature 0."""
    if uniform is None:
        best: NDArray[np.int64] = logits.argmax(-1).cpu().numpy()
        return best
    ranked, order = (logits / settings.temperature).sort(dim=-1, descending=True, stable=True)
    if settings.top_k:
        ranked[:, settings.top_k :] = float("-inf")
    p = ranked.double().softmax(-1)
    below = p.cumsum(-1) - p
    p = p.masked_fill(below >= settings.top_p, 0.0)
    cumulative = p.cumsum(-1)
    target = torch.from_numpy(uniform).to(cumulative.device)[:, None] * cumulative[:, -1:]
    place = (cumulative <= target).sum(-1).clamp(max=logits.shape[-1] - 1)
    # rounding may step past the last token that has any probability
    place = torch.minimum(place, (p > 0).sum(-1) - 1)
    chosen: NDArray[np.int64] = order.gather(-1, place[:, None])[:, 0].cpu().numpy()
    return chosen
