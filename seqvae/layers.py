"""Building blocks of the networks: cue keys, residual blocks, attention and recurrence with a cache.

Knows: tensors and shapes. Refuses to know: what a token means, what a latent is, how anything is trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CLOSED = -1e9  # the logit of a token that may not come; finite, for a row of infinities has no gradient
BOS = 1  # the id every tokenizer gives to the start
Cache = list[Tensor]  # what a decoding step hands to the next: recurrent states, or keys and values so far


class Binding(nn.Module):
    """Tokens bound to their places by multiplication, and codes asked with a place.

    A cue has fields from the general to the special, and each value of a field has a key. A token's embedding times the
    keys of its place binds the two; a sum of bound vectors, asked with the same keys (multiplied by them), gives back
    the tokens of that place. With keys of +1 and -1 this holds from the first random weights on (multiply-add-permute
    memories, Gayler 1998; Plate 1995), which is why notes are copied through one latent vector long before a recurrence
    would learn to. The scope of a token says how many fields its place has: a program is bound to nothing (it is in the
    bar), a position to its program, a pitch to both, and so each can be asked for whatever came just before it.
    """

    scope: Tensor

    def __init__(self, scope: Tensor, cue_sizes: Sequence[int], width: int, previous: bool = False) -> None:
        """`scope (V,)`: fields of the cue that count for each token, 0..K; `previous` adds the token before it."""
        super().__init__()
        self.cue_sizes = tuple(cue_sizes)
        self.embed = nn.Embedding(len(scope), width)
        self.before = nn.Embedding(len(scope), width) if previous else None
        self.keys = nn.ModuleList(nn.Embedding(size, width) for size in cue_sizes)
        self.scale = nn.Parameter(torch.tensor(1.0 / math.sqrt(width)))
        self.bias = nn.Parameter(torch.zeros(len(scope)))
        if not cue_sizes:
            # Thousands of words, most of them rare: from small beginnings they come to lie by meaning several times
            # sooner, for what they are to be outweighs what they were by chance.
            with torch.no_grad():
                self.embed.weight.mul_(0.25)
                self.scale.mul_(2.0)
        self.register_buffer("scope", scope, persistent=False)
        for table in [*self.keys, *([self.before] if self.before is not None else [])]:
            assert isinstance(table, nn.Embedding)
            with torch.no_grad():
                table.weight.copy_(torch.randint(0, 2, table.weight.shape) * 2.0 - 1.0)
                table.weight[0] = 1.0  # a field that says nothing changes nothing; `key` lets no gradient move it

    def key(self, field: int, values: Tensor) -> Tensor:
        """Keys `(..., W)` of one field's `values (...)`."""
        table = self.keys[field]
        assert isinstance(table, nn.Embedding)
        return functional.embedding(values, _cast(table.weight), padding_idx=0)

    def bind(self, tokens: Tensor, cues: Tensor) -> Tensor:
        """`tokens (...)` at `cues (..., K)` to `(..., W)`."""
        x = self.tokens(tokens)
        for i in range(len(self.keys)):
            x = x * self.key(i, cues[..., i] * (self.scope[tokens] > i))
        if self.before is not None:
            x = x * self.after(shifted(tokens))
        return x

    def after(self, previous: Tensor) -> Tensor:
        """Keys `(..., W)` of the place after each of `previous (...)`."""
        assert self.before is not None
        return functional.embedding(previous, _cast(self.before.weight))

    def tokens(self, tokens: Tensor) -> Tensor:
        """Embeddings of `tokens (...)`: `(..., W)`."""
        return functional.embedding(tokens, _cast(self.embed.weight))

    def logits(self, x: Tensor, columns: Tensor | None = None) -> Tensor:
        """How much `x (..., W)` looks like each token, or each of some: `(..., V)`."""
        weight: Tensor = self.embed.weight
        bias: Tensor = self.bias
        if columns is not None:
            weight, bias = weight[columns], bias[columns]
        return functional.linear(x * self.scale, weight, bias)

    def nats(self, x: Tensor, targets: Tensor, closed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """-log p of `targets (N,)` summed over rows `x (N, W)`, a scalar, and which rows are most likely right `(N,)`.

        Probabilities are among the tokens that `closed (N, V)` leaves. As `logits` and a cross-entropy, without ever
        holding `(N, V)` numbers.
        """
        x, weight = _cast(x * self.scale), _cast(self.embed.weight)
        out: tuple[Tensor, Tensor] = _Nats.apply(x, weight, self.bias, targets, closed)  # type: ignore[no-untyped-call]
        return out


class _Nats(torch.autograd.Function):
    """Linear layer and cross-entropy in blocks of rows that fit into a processor's cache.

    A softmax over some thousands of words is most of what a small model costs, and most of that is memory: logits,
    probabilities and gradients of every token, each written and read again. Here a block's gradient is taken while its
    probabilities are at hand, which a plain sum over rows allows.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, closed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        block = max(16, (1 << 20) // len(weight))
        total = torch.zeros((), device=x.device)
        right = torch.empty(len(x), dtype=torch.bool, device=x.device)
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        slope_x = torch.empty_like(x) if wants_x else None
        slope_weight = torch.zeros(weight.shape, device=x.device) if wants_weight else None
        slope_bias = torch.zeros(bias.shape, device=x.device) if wants_weight else None
        for at in range(0, len(x), block):
            rows = slice(at, at + block)
            logits = (x[rows] @ weight.T).float().add_(bias)
            if closed is not None:
                logits.masked_fill_(closed[rows], CLOSED)
            wanted = targets[rows, None]
            told = logits.gather(1, wanted)
            right[rows] = (told >= logits.amax(1, keepdim=True))[:, 0]
            p = logits.log_softmax(1)
            total -= p.gather(1, wanted).sum()
            if not wants_x and not wants_weight:
                continue
            p.exp_().scatter_add_(1, wanted, torch.full_like(told, -1.0))
            slope = p.to(x.dtype)
            if slope_x is not None:
                torch.mm(slope, weight, out=slope_x[rows])
            if slope_weight is not None and slope_bias is not None:
                slope_weight += slope.T @ x[rows]
                slope_bias += p.sum(0)
        ctx.slopes = slope_x, slope_weight, slope_bias, weight.dtype
        ctx.mark_non_differentiable(right)
        return total, right

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, dtype = ctx.slopes
        by = slopes[0]
        return (
            None if x is None else x * by.to(x.dtype),
            None if weight is None else (weight * by).to(dtype),
            None if bias is None else bias * by,
            None,
            None,
        )


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 in hardware; where it does not, autocast is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _cast(weight: Tensor) -> Tensor:
    """A table in autocast's type: looking up and multiplying half the bytes is most of the cost of binding."""
    device = weight.device.type
    return weight.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weight


def shifted(tokens: Tensor) -> Tensor:
    """The token before each of `tokens (..., T)`: BOS, then every token but the last. What a decoder is told."""
    return torch.cat([torch.full_like(tokens[..., :1], BOS), tokens[..., :-1]], -1)


class LockedDropout(nn.Module):
    """Drops the same features at every step of a row, so that a recurrence has no noise to average out.

    Gal and Ghahramani 2016. `x (N, T, W)`; a mask drawn for each step would be undone by what the steps have in common.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """`(N, T, W)` to `(N, T, W)`, unchanged in evaluation."""
        if not self.training or self.share == 0:
            return x
        keep = torch.rand(x.shape[0], 1, x.shape[2], device=x.device) >= self.share
        return x * (keep.to(x.dtype) / (1 - self.share))


class Residual(nn.Module):
    """A pre-norm feed-forward block with a residual connection, any leading shape, width to width."""

    def __init__(self, width: int, expansion: int = 2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        nn.init.zeros_(self.down.bias)
        with torch.no_grad():
            self.down.weight.mul_(0.1)  # nearly the identity at first, so that what was bound can be asked

    def forward(self, x: Tensor) -> Tensor:
        """`(..., W)` to `(..., W)`."""
        out: Tensor = x + self.down(functional.gelu(self.up(self.norm(x)), approximate="tanh"))
        return out


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions (Su et al. 2021), causal or with a mask, with a cache."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads or (width // heads) % 2:
            raise ValueError(f"width {width} does not divide into {heads} heads of even size")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """`x (N, T, W)`; `mask (N, 1 or T, S)` True where a key may be seen, None for causal; returns `(N, T, W)`."""
        n, t, width = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        past = 0 if cache is None else cache[0].shape[2]
        q, k = _rotate(q, past), _rotate(k, past)
        if cache is not None:
            k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        if mask is None:
            seen = torch.ones(t, k.shape[2], dtype=torch.bool, device=x.device).tril(past)
        else:
            seen = mask[:, None]
        if x.is_cuda:
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        else:
            # plain products: on a CPU in bf16 the backward of the fused kernel is several times slower
            weights = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
            mixed = weights.masked_fill(~seen, float("-inf")).softmax(-1).to(v.dtype) @ v
        return self.out(mixed.transpose(1, 2).reshape(n, t, width)), [k, v]


def _rotate(x: Tensor, past: int) -> Tensor:
    """Rotary positions for `x (N, H, T, D)` whose first step is number `past`."""
    half = x.shape[-1] // 2
    frequency = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angle = torch.arange(past, past + x.shape[2], device=x.device)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class TransformerLayer(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed = Residual(width, 4)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """As `Attention.forward`."""
        mixed, cache = self.attention(self.norm(x), mask, cache)
        return self.feed(x + self.dropout(mixed)), cache


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of `x (..., T, W)` over T where `mask (..., T)`, in units of 8: `(..., W)`.

    The unit is the same for full and empty bars (8 is the root of a usual count of tokens). Divided by a bar's own
    count, a kick drum in a full bar would weigh less than one in an empty bar, and adding the mean of a dense style to
    a sparse piece would whisper it.
    """
    return (x * mask.to(x.dtype).unsqueeze(-1)).sum(-2) / 8
