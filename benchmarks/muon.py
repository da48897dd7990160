"""The optimizer Muon for the inner matrices of a network, for train_songs.py and train_sentences.py.

Scope: updates of matrices. Out of scope: embeddings, vectors and output layers, which AdamW updates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Muon:
    """Orthogonalized momentum (Jordan et al. 2024), scaled to the size of AdamW's updates (Liu et al. 2025)."""

    def __init__(self, parameters: list[Tensor], momentum: float = 0.95) -> None:
        shapes: dict[tuple[int, ...], list[Tensor]] = {}
        for parameter in parameters:
            shapes.setdefault(tuple(parameter.shape), []).append(parameter)
        self.groups = [(group, torch.zeros_like(torch.stack(group).detach())) for group in shapes.values()]
        self.momentum = momentum

    @torch.no_grad()
    def step(self, rate: float | Tensor, decay: float) -> None:
        """One update from the gradients; `rate ()` as a tensor may change in a recorded graph."""
        for group, moment in self.groups:
            slope = torch.stack([parameter.grad for parameter in group if parameter.grad is not None])
            moment.lerp_(slope, 1 - self.momentum)
            step = orthogonal(slope.lerp(moment, self.momentum)).float()
            size = 0.2 * math.sqrt(max(step.shape[1:]))
            torch._foreach_mul_(group, 1 - rate * decay)
            torch._foreach_sub_(group, list((step * (rate * size)).unbind(0)))


def orthogonal(x: Tensor) -> Tensor:
    """Matrices `x (K, M, N)` with all singular values near 1, by five Newton-Schulz iterations."""
    tall = x.shape[1] > x.shape[2]
    x = (x.mT if tall else x).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x
