"""Rows of unlike lengths cut into batches of few shapes, and what is said of several pieces in a row.

Scope: numbers of rows and their lengths. Out of scope: tokens and models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", np.int32, np.float64)


def even(count: int) -> int:
    """The least number that is no smaller and has three binary digits before zeros: 1 to 8, 10, 12, 14, 16, 20, ..."""
    step = 1 << max(0, count.bit_length() - 3)
    return -(-count // step) * step


def batches(lengths: NDArray[np.int64], tokens: int) -> list[list[int]]:
    """Row numbers sorted by length and cut so that rows times longest, both evened, stays within `tokens`.

    There is at least one row in a batch.
    """
    batches: list[list[int]] = [[]]
    for i in np.argsort(lengths, kind="stable"):
        if batches[-1] and even(len(batches[-1]) + 1) * even(int(lengths[i])) > tokens:
            batches.append([])
        batches[-1].append(int(i))
    return [batch for batch in batches if batch]


def joined(limits: Sequence[NDArray[Number] | None]) -> NDArray[Number] | None:
    """What is said of the chunks of several pieces, in a row; None for a kind of which nothing is."""
    parts = [part for part in limits if part is not None]
    return np.concatenate(parts) if parts else None
