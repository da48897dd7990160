"""Exemplars of a style: sums of two pieces' latents, from which new pieces are drawn.

Scope: the sums, and draws from them. Out of scope: styles and files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

PAIRS = 96  # sums of two pieces stored in a style; older files have 24
ROW = 4  # segments in each sum
DIRECTIONS = 64  # principal directions in which sums are stored
FEW = 8  # pieces: with fewer there are too few sums, and a Gaussian serves
SHARE = (0.2, 0.4)  # share of a second sum in a draw


def pair(pieces: Sequence[Tensor], mean: Tensor, most: int = PAIRS, rank: int = DIRECTIONS) -> Tensor | None:
    """`Style.exemplars` of pieces `(S, D)`: at most `most` sums, of pieces drawn at random without replacement.

    Pieces shorter than ROW segments are repeated, single segments are left out. None if most are single segments or
    fewer than FEW pieces remain. K sums of 2 K pieces do not reveal the pieces: there are twice as many unknown vectors
    as equations, and components outside the principal directions are lost.
    """
    longer = [z - mean for z in pieces if len(z) > 1]
    if len(longer) < max(FEW, len(pieces) / 2):
        return None
    order = torch.randperm(len(longer), generator=torch.Generator().manual_seed(0)).tolist()
    row = torch.arange(ROW)
    count = min(most, len(longer) // 2)
    chosen = [longer[i][row % len(longer[i])] for i in order[: 2 * count]]
    weights, directions = principal((torch.stack(chosen[:count]) + torch.stack(chosen[count:])) / 2**0.5, rank)
    return (weights @ directions).float()


def principal(exemplars: Tensor, rank: int = DIRECTIONS) -> tuple[Tensor, Tensor]:
    """Weights `(K, S, R)` and orthonormal directions `(R, D)` that approximate `exemplars (K, S, D)` best.

    PCA about 0.
    """
    directions = torch.linalg.svd(exemplars.flatten(0, 1), full_matrices=False)[2][:rank]
    return exemplars @ directions.T, directions


def draw(exemplars: Tensor, segments: int, generator: torch.Generator, number: int | None) -> Tensor:
    """`(segments, D)`: one of `exemplars (K, S, D)` with a share of another, a new one at each repetition."""
    order = torch.randperm(len(exemplars), generator=generator).tolist()
    first = order[0] if number is None else number % len(exemplars)
    others = [i for i in order if i != first]
    if number is not None:  # sums far from this number, so that neighbouring draws do not share them
        half, near = len(exemplars) // 2, max(1, len(exemplars) // 8)
        others = [i for i in others if abs((i - first) % len(exemplars) - half) <= near] or others
    low, high = SHARE
    share = low + (high - low) * float(torch.rand((), generator=generator))
    count = -(-segments // exemplars.shape[1])
    rows = [(1 - share) * exemplars[first] + share * exemplars[others[i % len(others)]] for i in range(count)]
    return torch.cat(rows)[:segments] / math.hypot(1 - share, share)
