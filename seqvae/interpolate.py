"""Ways between latent vectors: lines, arcs, grids. Pure tensors.

Knows: geometry. Refuses to know: models, pieces, styles.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lerp(a: Tensor, b: Tensor, amount: Tensor | float) -> Tensor:
    """The straight line: `(1 - amount) a + amount b`, shapes broadcast.

    >>> lerp(torch.zeros(2), torch.ones(2), 0.25)
    tensor([0.2500, 0.2500])
    """
    return (1 - amount) * a + amount * b


def slerp(a: Tensor, b: Tensor, amount: Tensor | float) -> Tensor:
    """The arc between `a` and `b (..., D)`, where length goes evenly from one's to the other's (Shoemake 1985).

    Points drawn from a normal in many dimensions lie near a sphere; a straight line between two leaves it (White 2016).
    Directions turn along the great circle, and lengths go in a line, so the ends are `a` and `b` whatever their
    lengths. Where the two point the same way or exactly opposite ways, or one is zero, there is no one arc, and the
    line is taken.
    """
    x, y = a.double(), b.double()
    length_a, length_b = x.norm(dim=-1, keepdim=True), y.norm(dim=-1, keepdim=True)
    unit_a, unit_b = x / length_a.clamp(min=1e-12), y / length_b.clamp(min=1e-12)
    cosine = (unit_a * unit_b).sum(-1, keepdim=True).clamp(-1, 1)
    angle = cosine.acos()
    sine = angle.sin()
    safe = sine.clamp(min=1e-6)
    turned = (((1 - amount) * angle).sin() * unit_a + (amount * angle).sin() * unit_b) / safe
    arc = turned * lerp(length_a, length_b, amount)
    no_arc = (sine < 1e-6) | (length_a * length_b == 0)
    return torch.where(no_arc, lerp(x, y, amount), arc).to(a.dtype)


def path(a: Tensor, b: Tensor, steps: int, kind: str = "slerp") -> Tensor:
    """`steps` points from `a` to `b (..., D)`, both included: `(steps, ..., D)`; `kind` is slerp or line.

    Raises ValueError for fewer than two steps, for they could not hold both ends, or for another kind.

    >>> path(torch.zeros(1), torch.ones(1), 3, "line").flatten()
    tensor([0.0000, 0.5000, 1.0000])
    """
    if steps < 2:
        raise ValueError(f"{steps} steps cannot hold both ends; take at least 2")
    if kind not in ("slerp", "line"):
        raise ValueError(f"unknown kind of path '{kind}'; choose slerp or line")
    way = slerp if kind == "slerp" else lerp
    inner = [way(a, b, i / (steps - 1)) for i in range(1, steps - 1)]
    return torch.stack([a, *inner, b])


def grid(corners: Tensor, rows: int, columns: int) -> Tensor:
    """A sheet between four corners `(2, 2, ..., D)` (top row first): `(rows, columns, ..., D)`, by straight lines."""
    left = path(corners[0, 0], corners[1, 0], rows, "line")
    right = path(corners[0, 1], corners[1, 1], rows, "line")
    return torch.stack([path(a, b, columns, "line") for a, b in zip(left, right, strict=True)])
