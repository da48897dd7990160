"""Controls of a move: the same move of another piece, no piece at all, and a random vector as long.

Knows: latent vectors and figures by piece. Refuses to know: how they are decoded, and what the figures are of. What a
blend keeps says something of the piece only as far as it is more than the controls keep; what it gains, only as far as
it is more than a random vector gains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.music import note_metrics as measures
from seqvae.style.vectors import Style

Floats = NDArray[np.float64]
Figure = tuple[float, float, float]


def random_vectors(styles: Sequence[Style], lengths: Sequence[float], generator: torch.Generator) -> Tensor:
    """`(N, D)`: directions from the covariance of all latents, each of one of `lengths (N,)`.

    The covariance is that within the styles, a mean over them, and that of their means (the law of total variance, each
    style weighing the same). A sphere would mostly point where no latent varies, which the decoder hardly hears.
    """
    count = len(lengths)
    means = torch.stack([style.mean for style in styles]).double()
    noise = torch.randn(count, len(styles), generator=generator, dtype=torch.float64) @ (means - means.mean(0))
    for style in styles:
        noise += torch.randn(count, means.shape[1], generator=generator, dtype=torch.float64) @ style.root
    size = noise.norm(dim=1).clamp(min=1e-12)
    scaled: Tensor = noise * (torch.tensor(lengths, dtype=torch.float64) / size)[:, None]
    return scaled.float()


def others(groups: Sequence[str], rng: np.random.Generator) -> list[int]:
    """For each piece the number of another, of its own group where there is one; itself where it is alone."""
    out = []
    for i, group in enumerate(groups):
        rest = [j for j in range(len(groups)) if j != i]
        near = [j for j in rest if groups[j] == group] or rest or [i]
        out.append(near[int(rng.integers(len(near)))])
    return out


def as_long(z: Tensor, segments: int) -> Tensor:
    """`(segments, D)`: the rows of `z (S, D)` from the first on, begun again where they end."""
    return z[torch.arange(segments) % len(z)]


def beyond(own: Floats, control: Floats) -> Figure:
    """Mean and interval of the paired differences `(N,)`, NaN left out."""
    differences = own - control
    return measures.interval(differences[~np.isnan(differences)])


def shown(differences: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """The figures that show the piece: by control and figure, those above every control with the whole interval."""
    first, *rest = differences.values()
    return [name for name, x in first.items() if x[1] > 0 and all(other[name][1] > 0 for other in rest)]
