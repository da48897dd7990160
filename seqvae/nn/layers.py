"""Building blocks of the networks: binding to positions, residual blocks, attention with a cache, fused cross-entropy.

Scope: tensors and shapes. Out of scope: the meaning of tokens, latents, training.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

DISALLOWED = -1e9  # the logit of a disallowed token; finite: a row of infinities has no gradient
WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
"""Values of ONEDNN_MAX_CPU_ISA that leave oneDNN no instruction for bf16 products."""
FAINT = -70.0  # logits are clamped here: exp of smaller values is ten times slower and adds nothing
BOS = 1  # start of sequence, the same id in every tokenizer
Cache = list[Tensor]  # passed from step to step: recurrent states, or keys and values so far


@dataclass(frozen=True)
class Packing:
    """Positions of M tokens in N rows of T steps, and their distinct position fields.

    Positions of a row with equal fields share one unbound code, computed once. Fields apply one after the other, so the
    number of rows grows from field to field. An index of None stands for the identity.
    """

    shape: tuple[int, int]
    """N and T."""
    at: Tensor | None
    """Flat indices of the positions among all N * T, `(M,)`, rising; None for all of them."""
    tree: list[tuple[Tensor | None, Tensor]]
    """For each field, the parent row of each new row, and the field's value there, `(U,)`."""
    indices: list[Tensor | None]
    """The row of each position, `(M,)`: of the code, and after each field."""

    @staticmethod
    def of(tokens: Tensor, fields: Tensor, sizes: Sequence[int], weight: Tensor | None) -> Packing:
        """Positions of `tokens (N, T)` with `fields (N, T, K)` where `weight (N, T)` is True, equal fields merged.

        Without `weight`, all positions, each with a row of its own.
        """
        n, t = tokens.shape
        if weight is None:
            rows = None if t == 1 else torch.arange(n, device=tokens.device).repeat_interleave(t)
            values = fields.flatten(0, 1).unbind(-1) if sizes else ()
            tree = [(None if i else rows, value) for i, value in enumerate(values)]
            return Packing((n, t), None, tree, [rows, *(None,) * len(sizes)])
        at = weight.flatten().nonzero()[:, 0]
        rows = at // t
        columns = fields.flatten(0, 1)[at].unbind(-1)
        if not sizes or torch.onnx.is_in_onnx_export():  # sizes in a graph may not depend on the tokens
            tree = [(None if i else rows, value) for i, value in enumerate(columns)]
            return Packing((n, t), at, tree, [rows, *(None,) * len(sizes)])
        key = rows
        for size, value in zip(sizes, columns, strict=True):
            key = key * size + value
        distinct, index = torch.unique(key, return_inverse=True)
        levels, indices = [], []
        for size in reversed(sizes):
            values = distinct % size
            indices.append(index)
            distinct, parent = (distinct // size).unique_consecutive(return_inverse=True)
            levels.append((parent, values))
            index = parent[index]
        first, values = levels.pop()
        return Packing((n, t), at, [(distinct[first], values), *levels[::-1]], [rows, *indices[::-1]])

    @property
    def rows(self) -> Tensor | None:
        """The batch row of each position, `(M,)`."""
        return self.indices[0]

    def pack(self, x: Tensor) -> Tensor:
        """The values of `x (N, T, ...)` at these positions: `(M, ...)`."""
        flat = x.flatten(0, 1)
        return flat if self.at is None else flat.index_select(0, self.at)

    def unpack(self, x: Tensor) -> Tensor:
        """`x (M, W)` at these positions, and zeros elsewhere: `(N, T, W)`."""
        n, t = self.shape
        if self.at is not None:
            x = x.new_zeros(n * t, x.shape[1]).index_copy(0, self.at, x)
        return x.view(n, t, -1)

    def sums(self, x: Tensor) -> Tensor:
        """Sums of `x (M, W)` over each row, divided by 8: `(N, W)`.

        The divisor is the same for full and empty bars (8 is the root of a usual count of tokens). Divided by the
        bar's own count, a kick drum in a full bar would weigh less than one in an empty bar, and adding the mean of a
        dense style to a sparse song would add it too faintly.
        """
        return self.unpack(x).sum(1) / 8


class Binding(nn.Module):
    """Tokens bound to their positions by multiplication, and codes unbound by a position.

    A position has fields (cues) from the general to the special, and each value of a field has a key. A token's
    embedding times the keys of its position binds the two. A sum of bound vectors, multiplied by the same keys, returns
    the tokens of that position. With keys of +1 and -1 this holds from the first random weights on
    (multiply-add-permute memories, Gayler 1998; Plate 1995), so notes are copied through one latent vector long before
    a recurrence would learn to do it. The depth of a token (`binding_depth`) is the number of fields it is bound to. In
    music a program is bound to none (it is in the bar), a position to its program, a pitch to both. So each can be
    retrieved whatever token came before it.
    """

    binding_depth: Tensor

    def __init__(self, binding_depth: Tensor, field_sizes: Sequence[int], width: int, previous: bool = False) -> None:
        """`binding_depth (V,)`: number of fields each token is bound to, 0..K.

        `previous` binds to the token before, too.
        """
        super().__init__()
        self.field_sizes = tuple(field_sizes)
        self.embed = nn.Embedding(len(binding_depth), width)
        self.before = nn.Embedding(len(binding_depth), width) if previous else None
        self.keys = nn.ModuleList(nn.Embedding(size, width) for size in field_sizes)
        self.scale = nn.Parameter(torch.tensor(1.0 / math.sqrt(width)))
        self.bias = nn.Parameter(torch.zeros(len(binding_depth)))
        if not field_sizes:
            # A vocabulary of thousands of mostly rare words: from small initial values embeddings arrange by meaning
            # several times sooner, because gradients soon outweigh the random start.
            with torch.no_grad():
                self.embed.weight.mul_(0.25)
                self.scale.mul_(2.0)
        self.register_buffer("binding_depth", binding_depth, persistent=False)
        for table in [*self.keys, *([self.before] if self.before is not None else [])]:
            assert isinstance(table, nn.Embedding)
            with torch.no_grad():
                table.weight.copy_(torch.randint(0, 2, table.weight.shape) * 2.0 - 1.0)
                table.weight[0] = 1.0  # an absent field changes nothing; `key` gives this row no gradient

    def key(self, field: int, values: Tensor) -> Tensor:
        """Keys `(..., W)` of one field's `values (...)`."""
        table = self.keys[field]
        assert isinstance(table, nn.Embedding)
        return take(_cast(table.weight), values, frozen=True)

    def bind(self, tokens: Tensor, fields: Tensor, weight: Tensor | None = None) -> Tensor:
        """Bound vectors `(..., T, W)` of `tokens (..., T)` with `fields (..., T, K)`.

        With a `weight (..., T)`, those of the M positions where it is True: `(M, W)`.
        """
        if weight is None:
            return self.bind(tokens, fields, torch.ones_like(tokens, dtype=torch.bool)).view(*tokens.shape, -1)
        n, t = tokens.numel() // tokens.shape[-1], tokens.shape[-1]
        counted = self.binding_depth[tokens].unsqueeze(-1) > torch.arange(len(self.field_sizes), device=tokens.device)
        flat = tokens.reshape(n, t)
        fields = (fields * counted).reshape(n, t, len(self.field_sizes))
        packing = Packing.of(flat, fields, self.field_sizes, weight.reshape(n, t))
        x = self.tokens(packing.pack(flat))
        keys: Tensor | None = None
        for i, (parent, values) in enumerate(packing.tree):
            key = self.key(i, values)
            keys = key if keys is None else take(keys, parent) * key
        if keys is not None:
            x = x * take(keys, packing.indices[-1])
        return x if self.before is None else x * self.after(packing.pack(shifted(tokens).reshape(n, t)))

    def after(self, previous: Tensor) -> Tensor:
        """Keys `(..., W)` of the position after each of `previous (...)`."""
        assert self.before is not None
        return take(_cast(self.before.weight), previous)

    def tokens(self, tokens: Tensor) -> Tensor:
        """Embeddings of `tokens (...)`: `(..., W)`."""
        return take(_cast(self.embed.weight), tokens)

    def logits(self, x: Tensor, columns: Tensor | None = None) -> Tensor:
        """Similarity of `x (..., W)` to each token's embedding, or to those of `columns`: `(..., V)`."""
        weight: Tensor = self.embed.weight
        bias: Tensor = self.bias
        if columns is not None:
            weight, bias = weight[columns], bias[columns]
        return functional.linear(x * self.scale, weight, bias)

    def cross_entropy(
        self, x: Tensor, targets: Tensor, disallowed: Tensor | None = None, index: Tensor | None = None,
        outer: Tensor | None = None, outer_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Cross-entropy of `targets (M,)` in nats, summed to a scalar, and whether each is the argmax `(M,)`.

        Position m has row `index[m]` of `x (U, W)`, or row m; row `outer_index[m]` of `outer (O, V)` is added to its
        logits. Probabilities are normalised over the tokens that `disallowed (M, V)` permits. The result is that of
        `logits` and a cross-entropy, without an fp32 tensor `(M, V)`.
        """
        x, weight = _cast(x), _cast(self.embed.weight * self.scale)
        outer = self.bias.unsqueeze(0) if outer is None else self.bias + outer
        out: tuple[Tensor, Tensor] = _FusedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            x, weight, outer, targets, disallowed, index, outer_index
        )
        return out


class _Take(torch.autograd.Function):
    """Rows of a table, with gradients summed in fp32, and optionally no gradient for row 0.

    Sums in bf16 would stop growing after some hundred terms, and the sort in torch's own backward takes twice the time.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, frozen: bool) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size, ctx.dtype, ctx.frozen = table.shape, table.dtype, frozen
        return functional.embedding(index, table)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        slope = slopes[0].reshape(-1, ctx.size[1])
        if slope.is_cuda:  # atomic additions to one row would serialise; a product does not
            hits = (index.reshape(-1, 1) == torch.arange(ctx.size[0], device=index.device)).to(slope.dtype)
            sums = (hits.T @ slope).float()
        else:
            sums = slope.new_zeros(ctx.size, dtype=torch.float32).index_add_(0, index.flatten(), slope.float())
        if ctx.frozen:
            sums[0] = 0.0
        return sums.to(ctx.dtype), None, None


def take(table: Tensor, index: Tensor | None, frozen: bool = False) -> Tensor:
    """Rows `index (...)` of `table (U, W)`: `(..., W)`; None returns the table. `frozen`: no gradient for row 0."""
    if index is None:
        return table
    if not (torch.is_grad_enabled() and table.requires_grad):
        return functional.embedding(index, table)
    return _Take.apply(table, index, frozen)  # type: ignore[no-untyped-call, no-any-return]


class _FusedCrossEntropy(torch.autograd.Function):
    """Linear layer and cross-entropy, with the softmax in blocks of rows that fit into a processor's cache.

    A softmax over hundreds or thousands of tokens is a large share of a small model's cost, and most of it is memory
    traffic: logits, probabilities and gradients of every position, each written and read in fp32. Here a block's
    gradient is computed while its probabilities are in cache, which a plain sum over positions allows.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, outer: Tensor, targets: Tensor, disallowed: Tensor | None,
        index: Tensor | None, outer_index: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        count, size = len(targets), len(weight)
        total = torch.zeros((), device=x.device)
        right = torch.empty(count, dtype=torch.bool, device=x.device)
        wanted_x, wanted_weight, wanted_outer = ctx.needs_input_grad[:3]
        slopes_wanted = wanted_x or wanted_weight or wanted_outer
        slope_x = torch.empty_like(x) if wanted_x else None
        slope_weight = torch.zeros(weight.shape, device=x.device) if wanted_weight else None
        slope_outer = torch.zeros(outer.shape, device=x.device) if wanted_outer else None
        shared = slope_shared = None  # logits computed once for positions that share a row
        if index is not None:
            shared = x @ weight.T
            slope_shared = torch.zeros(shared.shape, device=x.device) if slopes_wanted else None
        block = max(16, (1 << 18) // size)
        span = count if index is not None else max(block, (1 << 24) // size // block * block)
        for begin in range(0, count, span):
            here = slice(begin, min(begin + span, count))
            products = x[here] @ weight.T if shared is None else shared
            for at in range(here.start, here.stop, block):
                rows = slice(at, min(at + block, here.stop))
                mine = slice(rows.start - begin, rows.stop - begin)
                logits = (products[mine] if index is None else products[index[rows]]).float()
                logits += outer if outer_index is None else outer[outer_index[rows]]
                if disallowed is not None:  # a sum, since masked_fill takes several times as long
                    logits.add_(disallowed[rows].view(torch.uint8).float(), alpha=DISALLOWED)
                wanted = targets[rows, None]
                likely, most = logits.gather(1, wanted), logits.amax(1, keepdim=True)
                right[rows] = (likely >= most)[:, 0]
                p = logits.sub_(most).clamp_(min=FAINT).exp_()
                sums = p.sum(1, keepdim=True)
                total += (sums.log() + most - likely).sum()
                if not slopes_wanted:
                    continue
                p.div_(sums).scatter_add_(1, wanted, torch.full_like(likely, -1.0))
                if slope_outer is not None and outer_index is not None:
                    slope_outer.index_add_(0, outer_index[rows], p)
                elif slope_outer is not None:
                    slope_outer += p.sum(0)
                if slope_shared is not None and index is not None:
                    slope_shared.index_add_(0, index[rows], p)
                else:
                    products[mine] = p  # overwrites logits that are no longer needed
            if not slopes_wanted:
                continue
            slope = products if slope_shared is None else slope_shared.to(x.dtype)
            kept = here if slope_shared is None else slice(None)
            if slope_x is not None:
                torch.mm(slope, weight, out=slope_x[kept])
            if slope_weight is not None:
                slope_weight += slope.T @ x[kept]
        ctx.slopes = slope_x, slope_weight, slope_outer, weight.dtype
        ctx.mark_non_differentiable(right)
        return total, right

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, outer, dtype = ctx.slopes
        by = slopes[0]
        return (
            None if x is None else x * by.to(x.dtype),
            None if weight is None else (weight * by).to(dtype),
            None if outer is None else outer * by,
            *(None,) * 4,
        )


def multiplies_bf16(device: torch.device) -> bool:
    """True if a device has instructions for bf16 products; without them autocast is slower than fp32.

    On a CPU the products are oneDNN's, which obeys ONEDNN_MAX_CPU_ISA: with AVX2 on a processor with AMX, a product in
    bf16 takes 65 times as long as one in fp32 (512 by 512, one thread).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in WITHOUT_BF16:
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _cast(weight: Tensor) -> Tensor:
    """A table in autocast's type: lookup and multiplication of half the bytes is most of the cost of binding."""
    device = weight.device.type
    return weight.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weight


def shifted(tokens: Tensor) -> Tensor:
    """Decoder inputs: the token before each of `tokens (..., T)`, BOS first."""
    return torch.cat([torch.full_like(tokens[..., :1], BOS), tokens[..., :-1]], -1)


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
        keep = (torch.rand(*size, x.shape[-1], device=x.device) >= self.share).to(x.dtype) / (1 - self.share)
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
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """As `Attention.forward`."""
        mixed, cache = self.attention(self.norm(x), mask, cache)
        return self.feed(x + self.dropout(mixed)), cache
