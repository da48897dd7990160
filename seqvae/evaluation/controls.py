"""Controls of a move: the same move of another piece, no piece at all, and a random vector of equal length.

Scope: latent vectors, and figures by piece. Out of scope: decoding, and the meaning of the figures. Content that a
blend keeps comes from the piece only as far as it exceeds the controls. A gain in style comes from the style vector
only as far as it exceeds the gain from a random vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.music import note_metrics as measures
from seqvae.style.gaussian import Style

Floats = NDArray[np.float64]
Figure = tuple[float, float, float]


def random_vectors(styles: Sequence[Style], lengths: Sequence[float], generator: torch.Generator) -> Tensor:
    """Random directions from the covariance of all latents, scaled to `lengths (N,)`: `(N, D)`.

    The covariance is the mean within the styles plus that of the style means (law of total variance, with equal weights
    of the styles). Directions from a sphere would mostly point where latents do not vary and the decoder ignores them.
    """
    count = len(lengths)
    means = torch.stack([style.mean for style in styles]).double()
    noise = torch.randn(count, len(styles), generator=generator, dtype=torch.float64) @ (means - means.mean(0))
    for style in styles:
        noise += torch.randn(count, means.shape[1], generator=generator, dtype=torch.float64) @ style.root
    if shared := styles[0].shared:  # a style vector has no other components
        noise[:, shared:] = 0.0
    size = noise.norm(dim=1).clamp(min=1e-12)
    scaled: Tensor = noise * (torch.tensor(lengths, dtype=torch.float64) / size)[:, None]
    return scaled.float()


def others(groups: Sequence[str], rng: np.random.Generator) -> list[int]:
    """For each piece the index of another one, of its group if possible; its own index if it is the only piece."""
    out = []
    for i, group in enumerate(groups):
        rest = [j for j in range(len(groups)) if j != i]
        near = [j for j in rest if groups[j] == group] or rest or [i]
        out.append(near[int(rng.integers(len(near)))])
    return out


def as_long(z: Tensor, segments: int) -> Tensor:
    """The rows of `z (S, D)`, repeated or cut to `(segments, D)`."""
    return z[torch.arange(segments) % len(z)]


def beyond(own: Floats, control: Floats) -> Figure:
    """Mean and 95 % interval of the paired differences `(N,)`, without nan."""
    differences = own - control
    return measures.interval(differences[~np.isnan(differences)])


def shown(differences: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """Names of figures that prove content of the piece: their whole interval is above zero for every control."""
    first, *rest = differences.values()
    return [name for name, x in first.items() if x[1] > 0 and all(other[name][1] > 0 for other in rest)]
