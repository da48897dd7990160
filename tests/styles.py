"""Styles and points for tests of style/, drawn at random."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from seqvae.style.gaussian import Style

seeds = st.integers(0, 2**31)
amounts = st.floats(-1, 2)
D = 6


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_style(seed: int, dimensions: int = D, persistence: float = 0.0) -> Style:
    """A style with any mean and a covariance with rotated axes of different lengths."""
    a = noise(dimensions, dimensions, seed=seed) + 0.5 * torch.eye(dimensions)
    covariance = a @ a.T / dimensions + 0.1 * torch.eye(dimensions)
    return Style(3 * noise(dimensions, seed=seed + 1), covariance, 9, "here", persistence)


def samples(s: Style, count: int, seed: int = 0) -> Tensor:
    """Points whose mean and covariance are exactly those of `s`."""
    x = noise(count, len(s.mean), seed=seed).double()
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / count)).T
    points: Tensor = s.mean + x @ torch.linalg.cholesky(s.covariance.double()).T
    return points.float()


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    centred = (x - x.mean(0)).double()
    return x.mean(0), (centred.T @ centred / len(x)).float()
