"""Decoding: logits to tokens by temperature, top-k and top-p, under a grammar.

Scope: one step function and one grammar. Out of scope: beam search (nn/beam.py), models, latents, files. A row's tokens
depend on its own logits and its own seed, never on the other rows of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.nn.kernels import DISALLOWED
from seqvae.protocols import BOS, EOS, Grammar, Guidance

Ints = NDArray[np.int32]
_ROWS = 64  # rows sampled at once: their probabilities stay in the processor's cache
_BLOCK = 64  # tokens per block in the first stage of a draw
_FEW = 64  # tokens that nearly always contain the top-p set
TEMPERATURE, TOP_P = 0.9, 0.95  # defaults for new samples


@dataclass(frozen=True)
class Sampling:
    """Decoding settings."""

    temperature: float = 0.0
    """0 takes the most likely token; 1 draws from the model; values between give sharper distributions."""
    top_k: int = 0
    """Draw among the k most likely; 0 for all."""
    top_p: float = 1.0
    """Draw among the most likely tokens that together reach this probability (Holtzman et al. 2020)."""
    max_tokens: int = 1024
    """Maximum tokens of a chunk, EOS included; a longer chunk ends at the last place where it could have ended."""
    seed: int = 0
    """Seed; row i of a call uses (seed, first_row + i)."""
    first_row: int = 0
    """Index of the call's first row, for callers that decode a long sequence in several calls."""
    beam: int = 0
    """Hypotheses per row in beam search, which draws nothing; 0 or 1 for no search."""

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1 and self.max_tokens > 0):
            raise ValueError("temperature and top_k must be at least 0, top_p in (0, 1], max_tokens above 0")
        if self.beam < 0:
            raise ValueError("beam must be at least 0; 0 and 1 stand for no search")


Step = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(tokens (N, 1), position fields (N, 1, K), rows of the previous step that continue or None for all) -> logits (N, V).

The continuing rows come in any order, and in beam search a row may occur more than once.
"""


def decode(
    step: Step,
    grammar: Grammar,
    state: Ints,
    settings: Sampling,
    device: torch.device,
    guidances: Sequence[Guidance] = (),
) -> list[Ints]:
    """Decode rows side by side until each has ended: the token ids of each row, EOS included.

    A row that has not ended after `max_tokens` is cut back to the last place where it could have ended.
    `state (N, S)` is the grammar's initial state. Rows that have ended leave the batch.
    """
    rows = np.arange(len(state))
    out = np.full((len(rows), settings.max_tokens), EOS, np.int32)
    length = np.full(len(rows), settings.max_tokens)
    whole = np.zeros(len(rows), np.int64)  # length of each row at the last place where it could have ended
    draws = (
        [np.random.default_rng([settings.seed, settings.first_row + int(i)]) for i in rows]
        if settings.temperature > 0
        else []
    )
    tokens = np.full(len(rows), BOS, np.int32)
    keep: Tensor | None = None
    for done in range(settings.max_tokens):
        logits, allowed = next_logits(step, grammar, state, tokens, keep, device, guidances, rows)
        whole[rows[np.broadcast_to(allowed[:, EOS], len(rows))]] = done
        uniform = np.array([draws[i].random() for i in rows]) if draws else None
        tokens = _chosen(logits, allowed, settings, uniform)
        out[rows, done] = tokens
        alive = tokens != EOS
        length[rows[~alive]] = done + 1
        if not alive.any():
            break
        state = grammar.advance(state, tokens)
        keep = None
        if not alive.all():
            rows, state, tokens = rows[alive], state[alive], tokens[alive]
            keep = torch.from_numpy(np.flatnonzero(alive)).to(device)
    else:
        out[rows, whole[rows]] = EOS
        length[rows] = whole[rows] + 1
    return [row[:size].copy() for row, size in zip(out, length, strict=True)]


def next_logits(
    step: Step, grammar: Grammar, state: Ints, tokens: Ints, keep: Tensor | None, device: torch.device,
    guidances: Sequence[Guidance], rows: NDArray[np.int64],
) -> tuple[Tensor, NDArray[np.bool_]]:  # fmt: skip
    """One step with guidance: logits `(N, V)`, and the allowed tokens, `(N, V)`, or `(1, V)` where all rows are equal.

    `tokens (N,)` are the tokens before, `state (N, S)` the grammar's states, `keep` the rows of the previous step that
    continue (all if None), and `rows (N,)` their numbers in the call.
    """
    fields = torch.from_numpy(grammar.position_fields(state)).to(device)[:, None]
    logits = step(torch.from_numpy(tokens).to(device).long()[:, None], fields.long(), keep)
    allowed = grammar.allowed(state[:1] if len(state) and (state == state[0]).all() else state)
    for guidance in guidances:
        logits = _guided(logits, allowed, *guidance(rows, state))
    return logits, allowed


def _chosen(
    logits: Tensor, allowed: NDArray[np.bool_], settings: Sampling, uniform: NDArray[np.float64] | None
) -> Ints:
    """`choose` under a grammar's `allowed (N or 1, V)`, by blocks of rows."""
    tokens = np.empty(len(logits), np.int32)
    for at in range(0, len(tokens), _ROWS):
        rows = slice(at, at + _ROWS)
        permitted = allowed if len(allowed) == 1 else allowed[rows]
        tokens[rows] = choose(masked(logits[rows], permitted), settings, None if uniform is None else uniform[rows])
    return tokens


def masked(logits: Tensor, allowed: NDArray[np.bool_]) -> Tensor:
    """Logits `(N, V)` in fp32, minus infinity for tokens that are not allowed."""
    return logits.float() + torch.from_numpy(np.where(allowed, np.float32(0), np.float32(-np.inf))).to(logits.device)


def _guided(logits: Tensor, allowed: NDArray[np.bool_], columns: Ints, weights: NDArray[np.float32]) -> Tensor:
    """Logits `(N, V)` with `weights` added to those of `columns`; their total probability stays the same."""
    where = torch.from_numpy(columns).long().to(logits.device)
    disallowed = torch.from_numpy(~allowed[:, columns]).to(logits.device)
    before = logits.index_select(1, where).float().masked_fill(disallowed, DISALLOWED)
    after = before + torch.from_numpy(weights).to(logits.device)
    after += before.logsumexp(1, keepdim=True) - after.logsumexp(1, keepdim=True)
    return logits.float().index_copy(1, where, after)


def choose(logits: Tensor, settings: Sampling, uniform: NDArray[np.float64] | None) -> NDArray[np.int64]:
    """One token per row of `logits (N, V)`; `uniform (N,)` in [0, 1) are the draws, unused at temperature 0.

    A token drawn from the full distribution is kept if it lies in the top-k or top-p set, which can be tested without
    sorting. The few others are drawn again within the set, from the remainder of their uniform number.
    """
    if uniform is None:
        best: NDArray[np.int64] = logits.max(-1).indices.cpu().numpy()  # several times faster than argmax
        return best
    p = (logits / settings.temperature).softmax(-1)
    token, rest = _drawn(p, torch.from_numpy(uniform).to(p.device))
    if settings.top_k or settings.top_p < 1:
        out = _outside(p, token, settings).nonzero()[:, 0]
        if len(out):
            token[out] = _within(p[out], rest[out], settings)
    chosen: NDArray[np.int64] = token.cpu().numpy()
    return chosen


def _drawn(p: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Indices `(N,)` drawn in proportion to `p (N, M)`, and the remainders of the draws, uniform again."""
    if p.shape[-1] > 2 * _BLOCK:  # a block first: a sum is several times faster than a cumulative sum
        whole = p.shape[-1] // _BLOCK * _BLOCK
        sums = p[:, :whole].reshape(len(p), whole // _BLOCK, _BLOCK).sum(-1)
        block, uniform = _drawn(torch.cat([sums, p[:, whole:].sum(-1, keepdim=True)], -1), uniform)
        places = block[:, None] * _BLOCK + torch.arange(_BLOCK, device=p.device)
        within = p.gather(-1, places.clamp(max=p.shape[-1] - 1)).masked_fill(places >= p.shape[-1], 0.0)
        place, uniform = _drawn(within, uniform)
        return block * _BLOCK + place, uniform
    p = p.double()
    sums = p.cumsum(-1)
    total = sums[:, -1]
    # below the total however it is rounded, so that no index of probability 0 is drawn
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))[:, None]
    place = (sums <= target).sum(-1, keepdim=True)
    here = p.gather(-1, place)
    rest = ((target - (sums.gather(-1, place) - here)) / here).clamp(0.0, 1.0)
    return place[:, 0], rest[:, 0]


def _outside(p: Tensor, token: Tensor, settings: Sampling) -> Tensor:
    """Whether top-k or top-p excludes each `token (N,)` of `p (N, V)`; of equal tokens the first ranks first."""
    if settings.top_k and settings.top_p < 1:  # top-p applies to the distribution that top-k leaves
        return torch.ones_like(token, dtype=torch.bool)
    here = p.gather(-1, token[:, None])
    # tokens ranked before are each at least as likely, and sum to at most 1 - p: most rows pass without a count
    out = here[:, 0] * (settings.top_k + 1) <= 1 if settings.top_k else here[:, 0] <= 1.001 - settings.top_p
    rows = out.nonzero()[:, 0]
    p, here = p[rows], here[rows]
    before = (p > here) | ((p == here) & (torch.arange(p.shape[-1], device=p.device) < token[rows, None]))
    if settings.top_k:
        out[rows] = before.sum(-1) >= settings.top_k
    else:
        out[rows] = (p * before).sum(-1) >= settings.top_p
    return out


def _within(p: Tensor, uniform: Tensor, settings: Sampling) -> Tensor:
    """Tokens `(N,)` drawn from `p (N, V)` within the top-k and top-p set."""
    ranked, order = p.topk(min(settings.top_k or _FEW, p.shape[-1]), -1)
    within = ranked.double()
    within = within / within.sum(-1, keepdim=True) if settings.top_k else within
    below = within.cumsum(-1) - within
    place, _ = _drawn(within.masked_fill(below >= settings.top_p, 0.0), uniform)
    token = order.gather(-1, place[:, None])[:, 0]
    more = (below[:, -1] + within[:, -1] < settings.top_p).nonzero()[:, 0]
    if len(more) and order.shape[-1] < p.shape[-1] and not settings.top_k:  # the first few do not reach top-p
        token[more] = _within(p[more], uniform[more], replace(settings, top_k=p.shape[-1]))
    return token
