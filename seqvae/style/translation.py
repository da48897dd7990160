"""Moves between styles: differences of means, along the discriminant, optimal transport.

Scope: the arithmetic of moves, and how far apart styles lie. Out of scope: fitting styles (style/gaussian.py), encoding
and decoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from seqvae.errors import StyleError
from seqvae.style.gaussian import Style, matrix_root
from seqvae.style.method import Method as Method

FAR = 1e6  # larger amounts are clamped, so that no vector overflows


def vector(source: Style | Tensor, target: Style) -> Tensor:
    """`(D,)`: the move by amount 1. offset_target - offset_source where styles have these, else the same of the means.

    `source` may be a piece's own mean `(D,)`: mean_target - source, or the offset of the target where it has one.

    Where the segments of a piece share dimensions, a piece's own mean differs from the target's in these alone.
    """
    if isinstance(source, Style):
        if source.offset is not None and target.offset is not None:
            return target.offset - source.offset
        return target.mean - source.mean
    if target.offset is not None:
        return target.offset
    between = target.mean - source
    if target.shared:
        between[target.shared :] = 0.0
    return between


def blend(z: Tensor, source: Style | Tensor, target: Style, amount: float, method: Method = "mean") -> Tensor:
    """Move `z (S, D)` from a style (or a point `(D,)`) toward another by `amount`; see `translate`."""
    return translate(source, target, amount, method)(z)


def translate(
    source: Style | Tensor, target: Style, amount: float, method: Method = "mean"
) -> Callable[[Tensor], Tensor]:
    """The map of `z (S, D)` from a style (or a point `(D,)`) toward another by `amount`; amount 0 gives `z` itself.

    mean: z + amount v with v the `vector` of the two. discriminant: along the same vector, but each row only as far as
    needed to reach a common position (`advance`); a segment that is already half-way moves half as much. transport:
    (1 - amount) z + amount T(z), with T the optimal transport between the two Gaussians (`transport`). A point has no
    covariance: other methods than mean then raise StyleError.
    """
    if math.isfinite(amount):  # decoding rejects NaN and infinity
        amount = max(-FAR, min(FAR, amount))
    if method == "mean":
        shift = amount * vector(source, target)
        return lambda z: z + shift
    if not isinstance(source, Style):
        raise StyleError(f"{method} needs a style to start from; add --from, or use the mean method")
    if method == "discriminant":
        return lambda z: z + advance(z, source, target, amount)[:, None] * vector(source, target)
    carried = transport(source, target)
    return lambda z: (1 - amount) * z + amount * carried(z)


def compose(translations: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    """The sum of several moves: z + sum_i (move_i(z) - z).

    For mean differences with weights w_i this is z + sum_i w_i (mean_i - mean_s): a point between several styles.
    """
    if len(translations) == 1:
        return translations[0]
    return lambda z: z + sum((move(z) - z for move in translations), torch.zeros_like(z))


mover, together = translate, compose  # their names in earlier versions


def advance(z: Tensor, source: Style, target: Style, amount: float) -> Tensor:
    """Share of the `vector` v that takes each row of `z (S, D)` to a common position: `(S,)`, at least 0.

    The position of z is p = w.(z - mean_s) / w.v with w = S^-1 (mean_t - mean_s) and S the mean of the two covariances,
    on the axis that separates them best (Fisher 1936): 0 at the source's mean and 1 at mean_s + v, the target's mean
    for styles without offsets.
    Up to amount 1 z moves from p to (1 - amount) p + amount; above 1, to `amount`. Rows already beyond stay.
    """
    way, w = vector(source, target).double(), _discriminant(source, target)[1]
    if not way @ w > 0:  # the two styles are the same
        return torch.zeros(len(z), dtype=z.dtype)
    place = (z.double() - source.mean) @ w / (way @ w)
    goal = (1 - amount) * place + amount if amount <= 1 else torch.full_like(place, amount)
    share: Tensor = (goal - place).clamp(min=0).to(z.dtype)
    return share


def separation(one: Style, other: Style) -> float:
    """Share of segments on their own style's side of the axis that separates two styles best: 0.5 to 1.

    Phi(d / 2) with d^2 = (mean_a - mean_b) S^-1 (mean_a - mean_b) and S the mean of the covariances: exact for two
    Gaussians with equal covariance.
    """
    between, w = _discriminant(one, other)
    squared = (between @ w).clamp(min=0)
    return float(torch.special.ndtr(squared.sqrt() / 2))


def _discriminant(source: Style, target: Style) -> tuple[Tensor, Tensor]:
    """mean_t - mean_s and S^-1 (mean_t - mean_s), both `(D,)`, with S the mean of the covariances."""
    pooled = (source.covariance + target.covariance).double() / 2
    between = (target.mean - source.mean).double()
    pooled = pooled + 1e-6 * pooled.diagonal().mean().clamp(min=1e-12) * torch.eye(len(pooled))
    return between, torch.linalg.solve(pooled, between)


def orthogonal(styles: Mapping[str, Style], directions: Sequence[Tensor]) -> dict[str, Style]:
    """The styles with means moved so that their differences are orthogonal to `directions (D,)`.

    Gram-Schmidt with the inner product a^T b of the latent space. With U the directions as columns and m the mean of
    the means, mean_i becomes mean_i - U (U^T U)^-1 U^T (mean_i - m). With a^T S^-1 b and S the mean of the covariances
    the decoder hardly responds to the remainder of a vector of drums (docs/blending.md). The same is taken from
    offsets. Raises StyleError for a direction of no length, and for differences with hardly a remainder.
    """
    u = torch.stack(list(directions), 1).double()
    if not u.norm(dim=0).min() > 0:
        raise StyleError("no vector can be orthogonal to two styles with the same mean; name two others")
    means = torch.stack([style.mean for style in styles.values()]).double()
    apart, across = means - means.mean(0), torch.linalg.pinv(u).T @ u.T
    left = apart - apart @ across
    if left.norm() < 1e-3 * apart.norm():
        raise StyleError("the vector is a sum of those that it should be orthogonal to; nothing is left of it")
    moved = (means.mean(0) + left).float()
    offsets = [None if x.offset is None else (x.offset - x.offset.double() @ across).float() for x in styles.values()]
    return {
        name: replace(style, mean=mean, offset=offset)
        for (name, style), mean, offset in zip(styles.items(), moved, offsets, strict=True)
    }


def transport(source: Style, target: Style) -> Callable[[Tensor], Tensor]:
    """T(z) = mean_t + A (z - mean_s), A = S_s^-1/2 (S_s^1/2 S_t S_s^1/2)^1/2 S_s^-1/2 (Knott and Smith 1984).

    The map between two Gaussians that moves `z (S, D)` least. With equal covariances A = I. The target's Gaussian has
    its mean at mean_s plus the `vector` of the two, which is mean_t for styles without offsets. Raises StyleError for a
    source without spread: no linear map makes a Gaussian of a point.
    """
    if not source.covariance.trace() > 0:
        raise StyleError("transport needs a style of more than one segment to start from; fit it on more pieces")
    s, t = source.covariance.double(), target.covariance.double()
    root, inverse = matrix_root(s), matrix_root(s, inverse=True)
    a = inverse @ matrix_root(root @ t @ root) @ inverse
    mean = source.mean.double() + vector(source, target)
    return lambda z: (mean + (z.double() - source.mean) @ a).to(z.dtype)
