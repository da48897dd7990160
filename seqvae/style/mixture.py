"""A mixture of Gaussians over the latent space: where the segments of all pieces lie, to draw new ones from.

Knows: fitting by expectation and maximisation, drawing, densities in nats. Refuses to know: how a segment was encoded
or will be decoded, styles, files.

What the encoder makes of all data, the aggregate posterior, is not the prior it was pulled toward and not one Gaussian
either: draws from those fall between its groups (Ghosh et al. 2020, who fit a mixture after training for that reason).
Here every group has its own mean, and its own widths along axes that all share, the principal axes of the whole. That
is few enough numbers for hundreds of dimensions, it is quick (after one rotation there is no matrix larger than points
times dimensions), and with one group it is the Gaussian of full covariance.

Mean log-density in nats of held-out draws from posteriors, with 16 groups fitted on 20,000 sentences (256 dimensions,
a model of low beta) and 7,000 segments of music (1,024 dimensions), and the time that took on one core:

====================================  =============  ==============
one Gaussian, as a style is           −266.6         −1,755
a diagonal covariance each            −266.4    2 s  −1,680     1 s
one full covariance that all share    −265.1    2 s  −1,781     2 s
a full covariance each, half shrunk   −264.8   40 s
as here                               −263.9    4 s  −1,623    15 s
====================================  =============  ==============

Where the encoder is held close to the prior there is less to tell: of sentences at 54 nats of KL, −181.3 by one
Gaussian and −181.0 here.

scikit-learn's `GaussianMixture` knows the three kinds in the middle. It could climb for us between the rotation and the
shrinkage, but the climb is a dozen lines, it starts worse (see `start`), it refuses fewer points than groups, and
training would need one package more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from seqvae.errors import StyleError

FLOOR = 0.1  # of a group's width along an axis, in widths of the whole: no group shrinks to a point
ROUNDS = 10  # of k-means before the start
STEPS = 200  # of expectation and maximisation at most
ENOUGH = 1e-3  # nats a point: climbing by less than this is the end
NAME = "mixture."  # before each tensor in a file


@dataclass(frozen=True)
class Mixture:
    """K groups in D dimensions. A draw is `means[k] + scale * (axes @ (spreads[k] * noise))`, k by `weights`."""

    weights: Tensor
    """`(K,)`: the share of each group; they sum to 1."""
    means: Tensor
    """`(K, D)`."""
    scale: Tensor
    """`(D,)`: standard deviation of all points in each dimension."""
    axes: Tensor
    """`(D, D)`: directions in units of `scale`, one a column, orthonormal; the widest first."""
    spreads: Tensor
    """`(K, D)`: standard deviation of each group along each axis."""


def fit(latents: Tensor, components: int = 16, seed: int = 0) -> Mixture:
    """A mixture of at most `components` groups of `latents (N, D)`, the same for the same seed.

    To have draws spread as the encoder's are, give draws from the posteriors: their means lie closer together. There
    are no more groups than different points. Raises StyleError where there is no point.

    The groups climb to a peak of their likelihood. Along the principal axes of a sample variances are too unlike each
    other, the more so the fewer points there are; in the end each group's are therefore moved toward their mean, by as
    much as would be best for one Gaussian (OAS, Chen et al. 2010). That is the shrinkage of `style.fit` with a weight
    told by the data: from 20,000 points in 256 dimensions a sixth, from 2,000 two thirds, worth 9 nats a point.
    """
    if components < 1:
        raise ValueError(f"components is {components}, it must be at least 1")
    if not len(latents):
        raise StyleError("a mixture needs at least one piece that can be read; name other files")
    points = latents.double()
    centre = points.mean(0)
    scale = points.std(0, correction=0)
    scale = scale.clamp(min=max(1e-6, 1e-3 * float(scale.square().mean().sqrt())))
    points = (points - centre) / scale
    correlation = points.T @ points / len(points)
    wide, axes = (part.flip(-1) for part in torch.linalg.eigh(correlation))
    points = points @ axes
    groups, _ = climb(points, start(points, components, torch.Generator().manual_seed(seed)), wide.clamp(min=1e-3))
    weights, means, variances = groups
    share = shrinkage(correlation, len(points))
    variances = (1 - share) * variances + share * variances.mean(1, keepdim=True)
    parts = weights, centre + means @ axes.T * scale, scale, axes, variances.sqrt()
    return Mixture(*(part.float() for part in parts))


Groups = tuple[Tensor, Tensor, Tensor]
"""Weights `(K,)`, means `(K, D)` and variances `(K, D)`."""


def start(points: Tensor, components: int, generator: torch.Generator) -> Tensor:
    """To which group each of `points (N, D)` belongs at first: `(N, K)`, 0 or 1; columns widest first.

    By k-means++ (Arthur and Vassilvitskii 2007) in the first K - 1 dimensions, in which lies what tells K groups apart
    (Ding and He 2004). In all of them noise does: of 1,024 dimensions the start is then outliers, and stays there.
    """
    near = points[:, : max(1, components - 1)]
    chosen = [torch.randint(len(near), (1,), generator=generator)]
    distance = (near - near[chosen[0]]).square().sum(1)
    while len(chosen) < components and float(distance.max()) > 0:
        chosen.append(torch.multinomial(distance / distance.sum(), 1, generator=generator))
        distance = torch.minimum(distance, (near - near[chosen[-1]]).square().sum(1))
    centres = near[torch.cat(chosen)]
    for _ in range(ROUNDS):
        belongs = torch.cdist(near, centres).argmin(1)
        counts = belongs.bincount(minlength=len(centres)).clamp(min=1).unsqueeze(1)
        centres = torch.zeros_like(centres).index_add_(0, belongs, near) / counts
    groups = functional.one_hot(belongs, len(centres)).to(points.dtype)
    return groups[:, groups.any(0)]


def climb(points: Tensor, belongs: Tensor, wide: Tensor) -> tuple[Groups, list[float]]:
    """Expectation and maximisation (Dempster et al. 1977) from `belongs (N, K)`, until the likelihood stands still.

    `wide (D,)` are the variances of all points. Returns the groups and the mean log-density of `points (N, D)` after
    every step, in nats; it never falls, for a width at its floor is the likeliest of those allowed.
    """
    reached: list[float] = []
    squares = points.square()
    while True:
        size = belongs.sum(0).clamp(min=1e-9)
        means = belongs.T @ points / size[:, None]
        variances = belongs.T @ squares / size[:, None] - means.square()
        groups = size / size.sum(), means, torch.maximum(variances, FLOOR**2 * wide)
        each = _log_density(points, groups)
        total = each.logsumexp(1)
        reached.append(float(total.mean()))
        if len(reached) >= STEPS or (len(reached) > 1 and reached[-1] - reached[-2] < ENOUGH):
            return groups, reached
        belongs = (each - total[:, None]).exp()


def _log_density(points: Tensor, groups: Groups) -> Tensor:
    """log (weight times density) of `points (..., D)` under each group: `(..., K)`, by products of matrices."""
    weights, means, variances = groups
    precision = 1 / variances
    squares = points.square() @ precision.T - 2 * points @ (means * precision).T + (means.square() * precision).sum(1)
    return weights.log() - 0.5 * (squares + (variances.log() + math.log(2 * math.pi)).sum(1))


def shrinkage(covariance: Tensor, count: int) -> float:
    """How much of a covariance `(D, D)` of `count` points to move to its mean variance (Chen et al. 2010, eq. 23)."""
    size = len(covariance)
    spread, square = float(covariance.trace()) ** 2, float(covariance.square().sum())
    above = (1 - 2 / size) * square + spread
    below = (count + 1 - 2 / size) * (square - spread / size)
    return min(1.0, above / below) if below > 0 else 1.0


def log_prob(mixture: Mixture, z: Tensor) -> Tensor:
    """Log-density of `z (..., D)`: `(...)`, in nats."""
    scale, axes = mixture.scale.double(), mixture.axes.double()
    means = mixture.means.double()
    centre = means.mean(0)  # squares of what is far from the origin would cancel
    groups = mixture.weights.double(), (means - centre) / scale @ axes, mixture.spreads.double().square()
    density = _log_density((z.double() - centre) / scale @ axes, groups).logsumexp(-1) - scale.log().sum()
    return density.to(z.dtype)


def draw(mixture: Mixture, count: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """`(count, D)`: as many points, each of a group drawn by its weight.

    `temperature` scales how far a point lies from the mean of its group, 0 for the mean itself.
    """
    if not count:
        return torch.zeros(0, mixture.means.shape[1])
    group = torch.multinomial(mixture.weights.double(), count, replacement=True, generator=generator)
    noise = torch.randn(count, mixture.means.shape[1], generator=generator, dtype=torch.float64)
    away = noise * mixture.spreads[group] @ mixture.axes.double().T * mixture.scale
    return (mixture.means[group] + temperature * away).float()


def pack(mixture: Mixture) -> dict[str, Tensor]:
    """Tensors as they lie beside the styles in styles.safetensors; the axes, which are most of it, in half precision.

    No name is one that `style.pack` gives, not even for a style called "mixture".
    """
    tensors = {f"{NAME}{part.name}": getattr(mixture, part.name).float().clone() for part in fields(mixture)}
    return tensors | {f"{NAME}axes": mixture.axes.half()}


def unpack(tensors: Mapping[str, Tensor]) -> Mixture | None:
    """The mixture that `pack` put among tensors, None where there is none; raises StyleError for half of one."""
    names = [part.name for part in fields(Mixture)]
    found = {name: tensors[NAME + name].float() for name in names if NAME + name in tensors}
    if not found:
        return None
    if len(found) < len(names):
        missing = ", ".join(NAME + name for name in names if name not in found)
        raise StyleError(f"a mixture without {missing}; fit it again")
    mixture = Mixture(**found)
    k, d = len(mixture.weights), len(mixture.scale)
    if (mixture.means.shape, mixture.spreads.shape, mixture.axes.shape) != ((k, d), (k, d), (d, d)):
        raise StyleError("a mixture whose parts differ in size; fit it again")
    return mixture
