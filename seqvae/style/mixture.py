"""A mixture of Gaussians fitted to the latents of all training segments, for sampling.

Scope: fitting by expectation-maximisation, sampling, log-densities in nats. Out of scope: encoding, decoding, styles,
files.

The aggregate posterior (the distribution of encoded data) is neither the prior nor one Gaussian: draws from those fall
between its clusters (Ghosh et al. 2020, who for that reason fit a mixture after training). Here every component has its
own mean, and its own standard deviations along axes that all components share, the principal axes of the data. These
are few enough parameters for hundreds of dimensions, fitting is quick (after one rotation no matrix is larger than
points times dimensions), and with one component it is a Gaussian of full covariance.

Mean log-density in nats of held-out draws from posteriors, with 16 components fitted on 20,000 sentences (256
dimensions, a model of low beta) and 7,000 segments of music (1,024 dimensions), and the time on one core:

====================================  =============  ==============
one Gaussian, as in a style           −266.6         −1,755
a diagonal covariance each            −266.4    2 s  −1,680     1 s
one shared full covariance            −265.1    2 s  −1,781     2 s
a full covariance each, half shrunk   −264.8   40 s
as here                               −263.9    4 s  −1,623    15 s
====================================  =============  ==============

Where the encoder stays close to the prior the gain is small: for sentences at 54 nats of KL, −181.3 with one Gaussian
and −181.0 here.

scikit-learn's `GaussianMixture` has the three kinds in the middle. It could do the iterations between rotation and
shrinkage, but these are a dozen lines, its start is worse (see `start`), it rejects fewer points than components, and
training would need one more package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from seqvae.errors import StyleError

FLOOR = 0.1  # minimum standard deviation of a component along an axis, relative to all data
ROUNDS = 10  # iterations of k-means for the start
STEPS = 200  # maximum iterations of expectation-maximisation
ENOUGH = 1e-3  # nats a point: convergence threshold
NAME = "mixture."  # prefix of tensor names in a file


@dataclass(frozen=True)
class Mixture:
    """K components in D dimensions; a draw is `means[k] + scale * (axes @ (spreads[k] * noise))`, k by `weights`."""

    weights: Tensor
    """`(K,)`: weights of the components; they sum to 1."""
    means: Tensor
    """`(K, D)`."""
    scale: Tensor
    """`(D,)`: standard deviation of all points in each dimension."""
    axes: Tensor
    """`(D, D)`: orthonormal directions in units of `scale`, one a column, the widest first."""
    spreads: Tensor
    """`(K, D)`: standard deviation of each component along each axis."""


def fit(latents: Tensor, components: int = 16, seed: int = 0) -> Mixture:
    """Fit a mixture of at most `components` components to `latents (N, D)`; deterministic for a seed.

    For draws as wide as the encoder's, give draws from the posteriors: posterior means lie closer together. There are
    no more components than distinct points. Raises StyleError if there is no point.

    After EM, each component's variances are moved toward their mean, because sample variances along principal axes
    differ too much, the more so with fewer points. The share is optimal for one Gaussian (OAS, Chen et al. 2010). This
    is the shrinkage of `style.fit` with a weight estimated from data: from 20,000 points in 256 dimensions a sixth,
    from 2,000 two thirds, worth 9 nats a point.
    """
    if components < 1:
        raise ValueError(f"components is {components}, it must be at least 1")
    if not len(latents):
        raise StyleError("a mixture needs at least one input that can be read; name other files")
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
    """Initial assignment of `points (N, D)` to components: `(N, K)`, 0 or 1; columns of `points` widest first.

    By k-means++ (Arthur and Vassilvitskii 2007) in the first K - 1 dimensions, which contain the separation of K
    clusters (Ding and He 2004). In all dimensions noise dominates: with 1,024 of them the initial components are
    outliers, and EM does not leave them.
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
    """Expectation-maximisation (Dempster et al. 1977) from `belongs (N, K)`, until the likelihood converges.

    `wide (D,)` are the variances of all points. Returns the components and the mean log-density of `points (N, D)` in
    nats after every iteration. It never falls, since a variance at its floor is the most likely one permitted.
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
    """log (weight times density) of `points (..., D)` under each component: `(..., K)`, by matrix products."""
    weights, means, variances = groups
    precision = 1 / variances
    squares = points.square() @ precision.T - 2 * points @ (means * precision).T + (means.square() * precision).sum(1)
    return weights.log() - 0.5 * (squares + (variances.log() + math.log(2 * math.pi)).sum(1))


def shrinkage(covariance: Tensor, count: int) -> float:
    """Shrinkage of a covariance `(D, D)` of `count` points to its mean variance (Chen et al. 2010, eq. 23)."""
    size = len(covariance)
    spread, square = float(covariance.trace()) ** 2, float(covariance.square().sum())
    above = (1 - 2 / size) * square + spread
    below = (count + 1 - 2 / size) * (square - spread / size)
    return min(1.0, above / below) if below > 0 else 1.0


def log_prob(mixture: Mixture, z: Tensor) -> Tensor:
    """Log-density of `z (..., D)`: `(...)`, in nats."""
    scale, axes = mixture.scale.double(), mixture.axes.double()
    means = mixture.means.double()
    centre = means.mean(0)  # far from the origin, differences of squares would lose precision
    groups = mixture.weights.double(), (means - centre) / scale @ axes, mixture.spreads.double().square()
    density = _log_density((z.double() - centre) / scale @ axes, groups).logsumexp(-1) - scale.log().sum()
    return density.to(z.dtype)


def draw(mixture: Mixture, count: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """`count` points `(count, D)`, each from a component drawn by its weight.

    `temperature` scales the distance of a point from the mean of its component; 0 gives the mean.
    """
    if not count:
        return torch.zeros(0, mixture.means.shape[1])
    group = torch.multinomial(mixture.weights.double(), count, replacement=True, generator=generator)
    noise = torch.randn(count, mixture.means.shape[1], generator=generator, dtype=torch.float64)
    away = noise * mixture.spreads[group] @ mixture.axes.double().T * mixture.scale
    return (mixture.means[group] + temperature * away).float()


def pack(mixture: Mixture) -> dict[str, Tensor]:
    """Tensors for styles.safetensors; the axes, most of the numbers, in half precision.

    No name collides with those of `style.pack`, even for a style called "mixture".
    """
    tensors = {f"{NAME}{part.name}": getattr(mixture, part.name).float().clone() for part in fields(mixture)}
    return tensors | {f"{NAME}axes": mixture.axes.half()}


def unpack(tensors: Mapping[str, Tensor]) -> Mixture | None:
    """The mixture among the tensors of a file, None if there is none; raises StyleError for an incomplete one."""
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
