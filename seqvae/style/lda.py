"""Linear discriminant analysis of styles: the plane that separates them best, and sampling at a point of it.

Scope: planes through Gaussians, as tensors. Out of scope: decoding, drawing the plane.

For K styles the plane is Fisher's: the directions W (D, 2) with W^T S W = I, where S is the mean of the styles'
covariances, along which the means spread most (Rao 1948). There are K - 1 of them; with fewer than two, the widest
direction of S follows. Many z project to one point u of the plane. A draw at u comes from the Gaussian of the most
likely style k, conditioned on the projection u: with C = W^T S_k W and e ~ N(0, S_k),

    z = m_k + S_k W C^-1 (u - W^T m_k) + spread (e - S_k W C^-1 W^T e).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from seqvae.style.gaussian import Style


@dataclass(frozen=True)
class Plane:
    """A plane through the styles of a model."""

    axes: Tensor
    """W above, `(D, 2)`; the projection of z is `z @ axes`."""
    styles: dict[str, Style]

    def place(self, style: Style) -> tuple[Tensor, Tensor]:
        """Mean `(2,)` and covariance `(2, 2)` of a style's projection."""
        return style.mean.double() @ self.axes, self.axes.T @ style.covariance.double() @ self.axes

    def shares(self, at: Tensor) -> dict[str, float]:
        """Probability of each style at a point `(2,)` of the plane, with equal prior probabilities."""
        logs = []
        for style in self.styles.values():
            mean, spread = self.place(style)
            away = at - mean
            logs.append(-0.5 * (away @ torch.linalg.solve(spread, away) + spread.logdet()))
        found: list[float] = torch.stack(logs).softmax(0).tolist()
        return dict(zip(self.styles, found, strict=True))

    def draw(self, at: Tensor, spread: float, seed: int) -> Tensor:
        """A latent vector `(D,)` that projects to `at (2,)`."""
        shares = self.shares(at)
        style = self.styles[max(shares, key=shares.__getitem__)]
        mean, own = self.place(style)
        noise = torch.randn(len(style.mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        away = spread * (style.root @ noise)
        back = style.covariance.double() @ self.axes
        z: Tensor = style.mean.double() + away + back @ torch.linalg.solve(own, at - mean - away @ self.axes)
        return z.float()


def plane(styles: Mapping[str, Style]) -> Plane:
    """The plane that separates styles best."""
    one = next(iter(styles.values()))
    within = torch.stack([style.covariance.double() for style in styles.values()]).mean(0)
    within = within + 1e-6 * within.diagonal().mean().clamp(min=1e-12) * torch.eye(len(one.mean))
    lower = torch.linalg.cholesky(within)
    means = torch.stack([style.mean.double() for style in styles.values()])
    apart = torch.linalg.solve_triangular(lower, (means - means.mean(0)).T, upper=False)
    found = torch.linalg.svd(apart, full_matrices=False).U[:, : min(2, len(styles) - 1)]
    wide = lower.T @ torch.linalg.eigh(within).eigenvectors.flip(-1)[:, :2]  # in whitened units, as `found`
    basis = torch.linalg.qr(torch.cat([found, wide], 1)).Q[:, :2]
    basis = basis * torch.where(basis.sum(0) < 0, -1.0, 1.0)  # fixes the sign
    return Plane(torch.linalg.solve_triangular(lower.T, basis, upper=True), dict(styles))
