"""Blocks that encoders and decoders are made of: dropout, residual blocks, attention with a cache.

Scope: hidden vectors `(N, T, W)`. Out of scope: tokens and their positions (nn/binding.py), latents, training.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqvae.nn import noise

Cache = list[Tensor]  # passed from step to step: recurrent states, or keys and values so far


class LockedDropout(nn.Module):
    """Dropout with one mask for all steps of a row (Gal and Ghahramani 2016).

    A recurrence would average out a mask drawn anew for each step.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor, rows: Tensor | None = None, count: int = 0) -> Tensor:
        """`x (N, T, W)`, or `x (M, W)` in `rows (M,)` of `count`, to the same shape; unchanged in evaluation."""
        if not self.training or self.share == 0:
            return x
        size = (count,) if rows is not None else (x.shape[0], 1)
        keep = (noise.uniform((*size, x.shape[-1]), x.device) >= self.share).to(x.dtype) / (1 - self.share)
        return x * (keep if rows is None else keep[rows])


class Residual(nn.Module):
    """Pre-norm feed-forward block with a residual connection, `(..., W)` to `(..., W)`."""

    def __init__(self, width: int, expansion: int = 2, hidden: int = 0) -> None:
        """`hidden` is the width between the two layers, by default `expansion` times `width`."""
        super().__init__()
        hidden = hidden or expansion * width
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        nn.init.zeros_(self.down.bias)
        with torch.no_grad():
            self.down.weight.mul_(0.1)  # nearly the identity at first, so that bound tokens can be retrieved

    def forward(self, x: Tensor) -> Tensor:
        """`(..., W)` to `(..., W)`."""
        out: Tensor = x + self.down(functional.gelu(self.up(self.norm(x)), approximate="tanh"))
        return out


class Attention(nn.Module):
    """Multi-head self-attention, causal or with a mask, with a cache; rotary positions (Su et al. 2021) or none."""

    def __init__(self, width: int, heads: int, rotary: bool = True) -> None:
        super().__init__()
        if width % heads or (width // heads) % 2:
            raise ValueError(f"width {width} does not divide into {heads} heads of even size")
        self.heads, self.rotary = heads, rotary
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """`x (N, T, W)`; `mask (N, 1 or T, S)` True where a key is visible, None for causal; returns `(N, T, W)`."""
        n, t, width = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        past = 0 if cache is None else cache[0].shape[2]
        if self.rotary:
            q, k = _rotate(q, past), _rotate(k, past)
        if cache is not None:
            k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        if mask is None:
            seen = torch.ones(t, k.shape[2], dtype=torch.bool, device=x.device).tril(past)
        else:
            seen = mask[:, None]
        if x.is_cuda and mask is None and cache is None:
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif x.is_cuda:
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        else:
            # on a CPU in bf16 the backward of the fused kernel is several times slower than plain products
            weights = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
            mixed = weights.masked_fill(~seen, float("-inf")).softmax(-1).to(v.dtype) @ v
        return self.out(mixed.transpose(1, 2).reshape(n, t, width)), [k, v]


def _rotate(x: Tensor, past: int) -> Tensor:
    """Rotary positions for `x (N, H, T, D)`, whose first step is number `past`."""
    half = x.shape[-1] // 2
    frequency = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angle = torch.arange(past, past + x.shape[2], device=x.device)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class TransformerLayer(nn.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, width: int, heads: int, dropout: float, hidden: int = 0, rotary: bool = True) -> None:
        """`hidden` as in `Residual`, 4 times the width by default."""
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, rotary)
        self.feed = Residual(width, 4, hidden)
        self.dropout = noise.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """As `Attention.forward`."""
        mixed, cache = self.attention(self.norm(x), mask, cache)
        return self.feed(x + self.dropout(mixed)), cache
