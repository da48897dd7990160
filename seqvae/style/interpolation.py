"""Paths between latent vectors: lines, arcs, grids; and the choice of even steps among points of a path.

Scope: geometry of tensors, and distances of decoded points. Out of scope: models, pieces, styles.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seqvae.protocols import Adapter, Ints

FALL = 1000.0  # cost of a distance that goes the wrong way: above any unevenness
REPEAT = 1e6  # cost of a step that changes nothing: above any other


def lerp(a: Tensor, b: Tensor, amount: Tensor | float) -> Tensor:
    """The straight line `(1 - amount) a + amount b`; shapes broadcast.

    >>> lerp(torch.zeros(2), torch.ones(2), 0.25)
    tensor([0.2500, 0.2500])
    """
    return (1 - amount) * a + amount * b


def slerp(a: Tensor, b: Tensor, amount: Tensor | float) -> Tensor:
    """The arc between `a` and `b (..., D)`, with the length interpolated linearly (Shoemake 1985).

    Points drawn from a normal distribution in many dimensions lie near a sphere; a straight line between two leaves it
    (White 2016). Directions follow the great circle and lengths a line, so the ends are `a` and `b` whatever their
    lengths. For parallel or opposite directions, or a zero vector, the arc is not unique and the line is taken.
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


def path(a: Tensor, b: Tensor, steps: int, kind: str = "slerp", shared: int = 0) -> Tensor:
    """`steps` points from `a` to `b (..., D)`, both included: `(steps, ..., D)`; `kind` is slerp or line.

    The first `shared` dimensions have an arc of their own, so that rows with equal ones keep them equal. Raises
    ValueError for fewer than two steps, which cannot include both ends, and for another kind.

    >>> path(torch.zeros(1), torch.ones(1), 3, "line").flatten()
    tensor([0.0000, 0.5000, 1.0000])
    """
    if steps < 2:
        raise ValueError(f"{steps} steps cannot hold both ends; take at least 2")
    if kind not in ("slerp", "line"):
        raise ValueError(f"unknown kind of path '{kind}'; choose slerp or line")
    if shared:
        parts = (slice(shared), slice(shared, None))
        return torch.cat([path(a[..., part], b[..., part], steps, kind) for part in parts], -1)
    way = slerp if kind == "slerp" else lerp
    inner = [way(a, b, i / (steps - 1)) for i in range(1, steps - 1)]
    return torch.stack([a, *inner, b])


def grid(corners: Tensor, rows: int, columns: int, kind: str = "slerp", shared: int = 0) -> Tensor:
    """A grid between four corners `(2, 2, ..., D)` (top row first): `(rows, columns, ..., D)`.

    The left and right sides are a `path` each, and each row is a `path` between them. With lines this is bilinear
    interpolation, the same with columns first; with arcs nearly so.
    """
    left = path(corners[0, 0], corners[1, 0], rows, kind, shared)
    right = path(corners[0, 1], corners[1, 1], rows, kind, shared)
    return torch.stack([path(a, b, columns, kind, shared) for a, b in zip(left, right, strict=True)])


def aligned(z: Sequence[Tensor]) -> list[Tensor]:
    """Latents `(S, D)` of several pieces, each repeated to the length of the longest."""
    longest = max(map(len, z))
    return [x[torch.arange(longest) % len(x)] for x in z]


def apart(adapter: Adapter, chunks: Sequence[list[Ints]], latents: Sequence[Tensor], end: int) -> Tensor:
    """`(P, K)`: distances of P decoded points of a path from the point `end`, with latents `(S, D)` of each.

    K measures: those of `Adapter.apart`, and the distance of the latents.
    """
    rows = []
    for one, z in zip(chunks, latents, strict=True):
        x, y = latents[end][: len(z)], z[: len(latents[end])]  # the segments common to both
        rows.append([*adapter.apart(chunks[end], one), float((x - y).norm())])
    return torch.tensor(rows)


def even(there: Tensor, back: Tensor, steps: int) -> list[int]:
    """The indices of `steps` points out of P, so that the decoded content changes evenly from one end to the other.

    `there (P, K)` and `back (P, K)` are K distances of each point from the first and from the last point. Both ends are
    chosen. Along the choice, distances `there` should not fall, distances `back` should not rise, and the position
    there / (there + back) should change in equal steps. The choice minimises the squared unevenness plus FALL times the
    changes in the wrong direction, by dynamic programming over pairs of neighbours. So latent steps become uneven where
    the decoder jumps. Raises ValueError for fewer points than steps.

    >>> there = torch.tensor([0.0, 0.1, 0.05, 0.5, 0.9, 1.0])[:, None]
    >>> even(there, 1 - there, 3)
    [0, 3, 5]
    """
    points = len(there)
    if not 2 <= steps <= points:
        raise ValueError(f"{steps} steps of {points} points; take at least 2 steps, and no more than points")
    there, back = (x.double() / x.double().max(0).values.clamp(min=1e-12) for x in (there, back))
    place = (there / (there + back).clamp(min=1e-12)).mean(1)
    wrong = (there[:, None] - there[None]).clamp(min=0) + (back[None] - back[:, None]).clamp(min=0)  # from i to j
    cost = FALL * wrong.sum(-1) + (place[None] - place[:, None] - 1 / (steps - 1)).square()
    return _cheapest(torch.where(torch.ones_like(cost).triu(1).bool(), cost, torch.inf), steps)


def walk(apart: Tensor, surprise: Tensor, steps: int, fluency: float, backward: float) -> list[int]:
    """The indices of `steps` out of P candidates: even steps of distance from the first to the last, and fluent ones.

    The candidates are in the order of their places on a path, and indices never fall. `apart (P, P)` are distances
    between candidates, in edits; `surprise (P,)` is low for fluent ones. With e = max(1, apart[0, -1] / (steps - 1))
    for an even step, the sum over steps from i to j of

        (apart_ij / e - 1)^2 + backward * (fall of the distance from the first + rise of that to the last) / e
        + fluency * surprise_j

    is minimised by dynamic programming. A candidate is repeated only where there are too few of them. Raises ValueError
    for fewer than two steps.

    >>> place = torch.tensor([0.0, 1.0, 2.0, 2.0, 4.0])
    >>> walk((place[:, None] - place).abs(), torch.tensor([0.0, 0.0, 1.0, 0.2, 0.0]), 3, 1.0, 1.0)
    [0, 3, 4]
    """
    if steps < 2:
        raise ValueError(f"{steps} steps cannot hold both ends; take at least 2")
    apart = apart.double()
    there, back = apart[0], apart[-1]
    step = (there[-1] / (steps - 1)).clamp(min=1)
    wrong = (there[:, None] - there[None]).clamp(min=0) + (back[None] - back[:, None]).clamp(min=0)  # from i to j
    cost = (apart / step - 1).square() + backward * wrong / step + fluency * surprise.double()[None]
    cost += REPEAT * torch.eye(len(cost))
    return _cheapest(torch.where(torch.ones_like(cost).triu().bool(), cost, torch.inf), steps)


def _cheapest(cost: Tensor, steps: int) -> list[int]:
    """`steps` indices from the first to the last that minimise the sum of `cost (P, P)` over neighbours."""
    total, came = cost[0], []
    for _ in range(steps - 2):
        total, before = (total[:, None] + cost).min(0)
        came.append(before)
    chosen = [len(cost) - 1]
    for before in reversed(came):
        chosen.append(int(before[chosen[-1]]))
    return [0, *reversed(chosen)]
