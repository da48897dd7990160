"""Random numbers of the networks, by rows of a batch.

Scope: uniform and normal draws and dropout, for a whole batch or for the rows of one part of it. Out of scope: seeds,
and draws for decoding (nn/sampling.py).

All noise of the networks is drawn here. Within `of(part)`, a draw is made for all rows of the batch, and the rows of
the part are returned. So every process draws the same numbers, whichever rows it computes, and its generator ends in
the same state: that of a single process, from which a run can resume in any number of processes. The draws are cheap
beside the computation, except for dropout in transformer layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqvae.parallel import Part

_part: Part | None = None  # the part in whose context noise is drawn; None for a whole batch


@contextlib.contextmanager
def of(part: Part) -> Iterator[None]:
    """A context in which the noise of a part's rows is the same as in a pass over the whole batch."""
    global _part
    before, _part = _part, part if part.count != part.of else None
    try:
        yield
    finally:
        _part = before


def uniform(shape: Sequence[int], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Uniform numbers in [0, 1); a row of the batch may be several consecutive rows of `shape`."""
    return _rows(shape, lambda shape: torch.rand(shape, generator=generator, device=device))


def normal(shape: Sequence[int], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal numbers, as `uniform`."""
    return _rows(shape, lambda shape: torch.randn(shape, generator=generator, device=device))


class Dropout(nn.Dropout):
    """Dropout of single numbers."""

    def forward(self, x: Tensor) -> Tensor:
        """`x (N, ...)` to the same shape; unchanged in evaluation."""
        if _part is None or not self.training:
            return super().forward(x)
        return x * _rows(x.shape, lambda shape: functional.dropout(x.new_ones(shape), self.p))


def _rows(shape: Sequence[int], draw: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
    """A draw of `shape`: the part's rows of a draw for the whole batch."""
    if _part is None:
        return draw(tuple(shape))
    rows = _part.rows
    each, rest = divmod(shape[0], rows.stop - rows.start)
    assert rest == 0, "noise that does not go by rows of the batch cannot be divided"
    return draw((each * _part.of, *shape[1:]))[each * rows.start : each * rows.stop]
