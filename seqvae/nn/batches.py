"""Batches of rows with different lengths in few shapes, and the lengths of chunks.

Scope: row numbers, lengths, other values per chunk. Out of scope: tokens and models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", np.int32, np.float64)


def even(count: int) -> int:
    """`count` rounded up to a number with at most three leading binary digits: 1 to 8, 10, 12, 14, 16, 20, ..."""
    step = 1 << max(0, count.bit_length() - 3)
    return -(-count // step) * step


def batches(lengths: NDArray[np.int64], tokens: int) -> list[list[int]]:
    """Row numbers sorted by length and cut so that rows times longest, both rounded by `even`, is at most `tokens`.

    A batch has at least one row.
    """
    batches: list[list[int]] = [[]]
    for i in np.argsort(lengths, kind="stable"):
        if batches[-1] and even(len(batches[-1]) + 1) * even(int(lengths[i])) > tokens:
            batches.append([])
        batches[-1].append(int(i))
    return [batch for batch in batches if batch]


def joined(limits: Sequence[NDArray[Number] | None]) -> NDArray[Number] | None:
    """The values per chunk of several pieces, concatenated; None for a kind without such values."""
    parts = [part for part in limits if part is not None]
    return np.concatenate(parts) if parts else None


def filled(lengths: NDArray[np.int32] | None, chunks: int) -> NDArray[np.int32] | None:
    """The lengths of `chunks` chunks of a piece; those that pad its last segment have length 1."""
    if lengths is None:
        return None
    return np.append(lengths[:chunks], np.ones(max(0, chunks - len(lengths)), np.int32))


def unpadded(lengths: NDArray[np.int32] | None, chunks: int) -> int:
    """The number of the first of `chunks` chunks that belong to a piece, without the padding of its last segment."""
    return chunks if lengths is None else min(chunks, len(lengths))
