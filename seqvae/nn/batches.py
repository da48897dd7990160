"""Batches of rows with different lengths in few shapes, and the lengths of chunks.

Scope: row numbers, lengths, other values per chunk. Out of scope: tokens and models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqvae.protocols import Given


def even(count: int) -> int:
    """`count` rounded up to a number with at most three leading binary digits: 1 to 8, 10, 12, 14, 16, 20, ..."""
    step = 1 << max(0, count.bit_length() - 3)
    return -(-count // step) * step


def batches(lengths: NDArray[np.int64], tokens: int, equal: bool = False) -> list[list[int]]:
    """Row numbers sorted by length and cut so that rows times longest, both rounded by `even`, is at most `tokens`.

    A batch has at least one row, and with `equal` rows of one length alone.
    """
    batches: list[list[int]] = [[]]
    for i in np.argsort(lengths, kind="stable"):
        full = even(len(batches[-1]) + 1) * even(int(lengths[i])) > tokens
        if batches[-1] and (full or (equal and lengths[batches[-1][0]] != lengths[i])):
            batches.append([])
        batches[-1].append(int(i))
    return [batch for batch in batches if batch]


def joined(values: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    """The values per chunk of several pieces, concatenated; None for a kind without such values."""
    parts = [part for part in values if part is not None]
    return np.concatenate(parts) if parts else None


def lengths_of(given: Given | None) -> NDArray[np.int32] | None:
    """The lengths of chunks `(N,)` in steps, from their conditions."""
    return given if given is None or given.dtype.names is None else np.asarray(given["length"])


def filled(given: Given | None, chunks: int) -> Given | None:
    """What is given of `chunks` chunks of a piece; those that pad its last segment have length 1."""
    if given is None:
        return None
    padding = np.zeros(max(0, chunks - len(given)), given.dtype)
    if given.dtype.names is None:
        padding[:] = 1
    else:
        padding["length"] = padding["has_bar"] = 1
    return np.concatenate([given[:chunks], padding])


def unpadded(lengths: NDArray[np.int32] | None, chunks: int) -> int:
    """The number of the first of `chunks` chunks that belong to a piece, without the padding of its last segment."""
    return chunks if lengths is None else min(chunks, len(lengths))
