"""Matrix products whose rows do not depend on batch size or on the number of threads.

Scope: the order of summation in the CPU libraries of torch. Out of scope: models and data. `Codec.exact` uses it; there
Python stands between torch and each of its operations, which costs time.

Both CPU libraries of torch choose the order of summation by the number of rows and of threads, and use other kernels
for few rows. A sum of 256 terms has one order, and from 16 rows on the kernel is the same. So a product is computed
here in blocks of 256 columns, each added to the sum so far (which takes no longer, and rounds bf16 once a block), and
with at least 16 rows. This was found by trying (rows 1 to 600, one thread and two, sums of 20 to 4,000 terms; it does
not hold for a matrix of one column) and is held by tests/nn/test_kernels.py; no library promises it. Row-wise and
elementwise operations of torch need no such care.
Torch's recurrent layers satisfy this as they are. Attention is not covered: its sums are as long as the longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

DEPTH = 256  # terms summed by one call
ROWS = 16  # fewer rows go to another kernel
_mm, _addmm, _further = torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.addmm_.default


def product(a: Tensor, b: Tensor, onto: Tensor | None = None) -> Tensor:
    """`a (M, K) @ b (K, N)`, plus `onto (M, N)` or `(N,)`."""
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
    """While active, matrix products on a CPU are those of `product`, in the backward pass too."""

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
