"""Fast computations, each beside a plain reference that gives the same result.

Scope: merged positions, table lookup, fused cross-entropy, matrix products whose rows do not depend on the batch,
bf16. Out of scope: parameters, models, the meaning of tokens. tests/nn/test_kernels.py compares each computation with
its reference.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

DISALLOWED = -1e9  # the logit of a disallowed token; finite: a row of infinities has no gradient
FAINT = -70.0  # logits are clamped here: exp of smaller values is ten times slower and adds nothing
BLOCK_LOGITS = 1 << 18  # logits of one block of the softmax, which fits into a processor's cache
SPAN_LOGITS = 1 << 24  # logits that are computed by one product
DEPTH = 256  # terms summed by one call
ROWS = 16  # fewer rows go to another kernel
WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
"""Values of ONEDNN_MAX_CPU_ISA that leave oneDNN no instruction for bf16 products."""
_mm, _addmm, _further = torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.addmm_.default


# --- positions --------------------------------------------------------------------------------------------------------


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

        The divisor is the same for full and empty rows (8 is the root of a usual count of tokens). Divided by the
        row's own count, a token in a full row would weigh less than one in an empty row, and adding the mean of dense
        sequences to a sparse one would add it too faintly.
        """
        return self.unpack(x).sum(1) / 8


# --- tables -----------------------------------------------------------------------------------------------------------


def plain_take(table: Tensor, index: Tensor, frozen: bool = False) -> Tensor:
    """The result of `take` by indexing."""
    return (torch.cat([table[:1].detach(), table[1:]]) if frozen else table)[index]


def take(table: Tensor, index: Tensor | None, frozen: bool = False) -> Tensor:
    """Rows `index (...)` of `table (U, W)`: `(..., W)`; None returns the table. `frozen`: no gradient for row 0."""
    if index is None:
        return table
    if not (torch.is_grad_enabled() and table.requires_grad):
        return functional.embedding(index, table)
    return _Take.apply(table, index, frozen)  # type: ignore[no-untyped-call, no-any-return]


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


# --- cross-entropy ----------------------------------------------------------------------------------------------------


def plain_cross_entropy(
    x: Tensor, weight: Tensor, outer: Tensor, targets: Tensor, disallowed: Tensor | None = None,
    index: Tensor | None = None, outer_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The result of `fused_cross_entropy`, with all logits `(M, V)` at once."""
    logits = (x if index is None else x[index]) @ weight.T
    logits = logits.float() + (outer if outer_index is None else outer[outer_index])
    if disallowed is not None:
        logits = logits.masked_fill(disallowed, DISALLOWED)
    right = logits.gather(1, targets[:, None])[:, 0] >= logits.amax(1)
    return functional.cross_entropy(logits, targets, reduction="sum"), right


def fused_cross_entropy(
    x: Tensor, weight: Tensor, outer: Tensor, targets: Tensor, disallowed: Tensor | None = None,
    index: Tensor | None = None, outer_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Cross-entropy of `targets (M,)` in nats, summed to a scalar, and whether each is the argmax `(M,)`.

    The logits of position m are row `index[m]` of `x (U, W)`, or row m, times `weight (V, W)`, plus row
    `outer_index[m]` of `outer (O, V)`, or its only row. Tokens of `disallowed (M, V)` have no probability.

    A softmax over hundreds or thousands of tokens is a large share of a small model's cost, and most of it is memory
    traffic: logits, probabilities and gradients of every position, each written and read in fp32. Here the softmax is
    computed in blocks of rows that fit into a processor's cache, and each block's gradient while its probabilities are
    in cache, which a plain sum over positions allows.
    """
    out: tuple[Tensor, Tensor] = _FusedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        x, weight, outer, targets, disallowed, index, outer_index
    )
    return out


class _FusedCrossEntropy(torch.autograd.Function):
    """`fused_cross_entropy` with its gradients, which the forward pass has computed."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, outer: Tensor, targets: Tensor, disallowed: Tensor | None,
        index: Tensor | None, outer_index: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        slopes = _Slopes.of(x, weight, outer, ctx.needs_input_grad)
        total = torch.zeros((), device=x.device)
        right = torch.empty(len(targets), dtype=torch.bool, device=x.device)
        block = max(16, BLOCK_LOGITS // len(weight))
        # positions that share rows of x share their products; others have products of their own, computed by spans
        span = len(targets) if index is not None else max(block, SPAN_LOGITS // len(weight) // block * block)
        for here in _slices(0, len(targets), span):
            rows_of_x = slice(None) if index is not None else here
            products = x[rows_of_x] @ weight.T
            # without `index` the gradient of a block overwrites its products, which are no longer needed
            slope = products if index is None else torch.zeros(products.shape, device=x.device)
            for rows in _slices(here.start, here.stop, block):
                mine = index[rows] if index is not None else slice(rows.start - here.start, rows.stop - here.start)
                outer_rows = None if outer_index is None else outer_index[rows]
                logits = products[mine].float()
                logits += outer if outer_rows is None else outer[outer_rows]
                if disallowed is not None:  # a sum, since masked_fill takes several times as long
                    logits.add_(disallowed[rows].view(torch.uint8).float(), alpha=DISALLOWED)
                nats, right[rows] = _softmax_(logits, targets[rows, None], gradient=slopes.any)
                total += nats
                if slopes.any:
                    slopes.add_outer(logits, outer_rows)
                    if isinstance(mine, slice):
                        slope[mine] = logits
                    else:
                        slope.index_add_(0, mine, logits)
            if slopes.any:
                slopes.add_product(x, weight, slope.to(x.dtype), rows_of_x)
        ctx.slopes, ctx.dtype = slopes, weight.dtype
        ctx.mark_non_differentiable(right)
        return total, right

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        own, by = ctx.slopes, slopes[0]
        return (
            None if own.x is None else own.x * by.to(own.x.dtype),
            None if own.weight is None else (own.weight * by).to(ctx.dtype),
            None if own.outer is None else own.outer * by,
            *(None,) * 4,
        )


@dataclass
class _Slopes:
    """Gradients of the summed cross-entropy; None where none is needed."""

    x: Tensor | None
    weight: Tensor | None
    outer: Tensor | None

    @staticmethod
    def of(x: Tensor, weight: Tensor, outer: Tensor, needed: Sequence[bool]) -> _Slopes:
        return _Slopes(
            torch.empty_like(x) if needed[0] else None,
            torch.zeros(weight.shape, device=x.device) if needed[1] else None,
            torch.zeros(outer.shape, device=x.device) if needed[2] else None,
        )

    @property
    def any(self) -> bool:
        return not (self.x is None and self.weight is None and self.outer is None)

    def add_outer(self, slope: Tensor, index: Tensor | None) -> None:
        """Add the gradient of a block's logits, `slope (M, V)`, to rows `index (M,)` of `outer`, or its only row."""
        if self.outer is not None and index is not None:
            self.outer.index_add_(0, index, slope)
        elif self.outer is not None:
            self.outer += slope.sum(0)

    def add_product(self, x: Tensor, weight: Tensor, slope: Tensor, rows: slice) -> None:
        """Add the gradients of the product `x[rows] @ weight.T` from that of its result, `slope`."""
        if self.x is not None:
            torch.mm(slope, weight, out=self.x[rows])
        if self.weight is not None:
            self.weight += slope.T @ x[rows]


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` from `start` to `stop`."""
    for at in range(start, stop, size):
        yield slice(at, min(at + size, stop))


def _softmax_(logits: Tensor, targets: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of `logits (M, V)` with `targets (M, 1)`, and whether each target is the argmax `(M,)`.

    The logits are overwritten: with `gradient`, by the gradient of the sum, the softmax minus 1 at the target.
    """
    likely, most = logits.gather(1, targets), logits.amax(1, keepdim=True)
    p = logits.sub_(most).clamp_(min=FAINT).exp_()
    sums = p.sum(1, keepdim=True)
    if gradient:
        p.div_(sums).scatter_add_(1, targets, torch.full_like(likely, -1.0))
    return (sums.log() + most - likely).sum(), (likely >= most)[:, 0]


# --- products ---------------------------------------------------------------------------------------------------------


def product(a: Tensor, b: Tensor, onto: Tensor | None = None) -> Tensor:
    """`a (M, K) @ b (K, N)`, plus `onto (M, N)` or `(N,)`; the rows do not depend on M or on the number of threads.

    Both CPU libraries of torch choose the order of summation by the number of rows and of threads, and use other
    kernels for few rows. A sum of 256 terms has one order, and from 16 rows on the kernel is the same. So a product is
    computed here in blocks of 256 columns, each added to the sum so far (which takes no longer, and rounds bf16 once a
    block), and with at least 16 rows. This was found by trying (rows 1 to 600, one thread and two, sums of 20 to 4,000
    terms; it does not hold for a matrix of one column) and is held by tests/nn/test_kernels.py; no library promises it.
    """
    rows, depth = a.shape
    if rows < ROWS:
        a = functional.pad(a, (0, 0, 0, ROWS - rows))
        onto = functional.pad(onto, (0, 0, 0, ROWS - rows)) if onto is not None and onto.shape[:-1] == (rows,) else onto
    first = a[:, :DEPTH], b[:DEPTH]
    total: Tensor = _mm(*first) if onto is None else _addmm(onto, *first)
    for at in range(DEPTH, depth, DEPTH):
        total = _further(total, a[:, at : at + DEPTH], b[at : at + DEPTH])
    return total[:rows]


class Steady(TorchDispatchMode):
    """While active, matrix products on a CPU are those of `product`, in the backward pass too.

    Row-wise and elementwise operations of torch need no such care, and its recurrent layers satisfy this as they are.
    Attention is not covered, as its sums are as long as the longest row: its batches have rows of one length
    (`BatchInference`). Python stands between torch and each of its operations, which costs time, so only `Codec.exact`
    uses it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch in place of each operation."""
        kwargs = kwargs or {}
        if func is _mm and args[0].is_cpu:
            return product(*args)
        if func is torch.ops.aten.mm.out and args[0].is_cpu:
            return kwargs["out"].copy_(product(*args))
        if func is _addmm and args[0].is_cpu and not kwargs:
            return product(args[1], args[2], args[0])
        if func is _further and args[0].is_cpu and not kwargs:
            return args[0].copy_(product(args[1], args[2], args[0]))
        return func(*args, **kwargs)


def steady(exact: bool) -> AbstractContextManager[object]:
    """`Steady` if `exact`, else no change."""
    return Steady() if exact else nullcontext()


# --- bf16 -------------------------------------------------------------------------------------------------------------


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


def cast(weight: Tensor) -> Tensor:
    """A table in autocast's type: lookup and multiplication of half the bytes is most of the cost of binding."""
    device = weight.device.type
    return weight.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weight
