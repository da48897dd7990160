"""Products of matrices of which a row comes out the same, whatever stands beside it, on one thread and on many.

Knows: how the processor's libraries divide a product. Refuses to know: models, pieces, and what is multiplied. It is
used where exactness is asked for (`Codec.exact`), since Python then stands between torch and each of its operations.

Both libraries that torch has for a processor choose by the number of rows, and of threads, in which order they add up a
long sum; and for few rows they take other code. A sum of 256 terms is added up in one order, and from 16 rows on the
code is the same. So a product is taken here in parts of so many columns, each added onto the ones before (which takes
no longer, and rounds bf16 once a part), and of fewer rows none is taken. Found by trying (rows 1 to 600, one thread and
two, sums of 20 to 4,000 terms; not so for a matrix of one column) and held by tests/nn/test_kernels.py; no library
promises it. What torch does to each row or number on its own needs nothing.

Recurrent layers of torch keep to it as they are. Attention is not covered: its sums are as long as the longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

DEPTH = 256  # terms that are added up at once
ROWS = 16  # below so many, another kernel multiplies
_mm, _addmm, _further = torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.addmm_.default


def product(a: Tensor, b: Tensor, onto: Tensor | None = None) -> Tensor:
    """`a (M, K) @ b (K, N)`, and `onto (M, N)` or `(N,)` added."""
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
    """While it is entered, products on a processor are those of `product`, slopes' own among them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What torch calls in place of each operation."""
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
    """`Steady` where `exact`, else torch as it is."""
    return Steady() if exact else nullcontext()
