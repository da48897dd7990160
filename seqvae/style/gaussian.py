"""Styles: the distribution of a named set of pieces in the latent space.

Scope: `Style`, fitting it to latents, and drawing from it. Out of scope: moves between styles
(style/translation.py), files (style/styles_file.py), encoding and decoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from seqvae import _aliases
from seqvae.errors import StyleError
from seqvae.music.band import Ensemble
from seqvae.style import exemplars
from seqvae.style.line_classifier import LineWeights

SHRINKAGE = 0.1


Figure = tuple[float, float, float]
"""A mean over songs and its 95 % interval."""


@dataclass(frozen=True)
class Effect:
    """The effect of a style vector on pieces it was not fitted on; see evaluation/style_effect.py.

    With an `attribute`, `before`, `after` and `control` are its values; see evaluation/attribute_effect.py.
    """

    amount: float
    """Amount of the vector added."""
    songs: int
    """Number of moved pieces of the source style."""
    before: Figure
    """Probability of the target style according to a style classifier, for reconstructions without a move."""
    after: Figure
    """The same for the moved pieces."""
    control: Figure
    """The same for pieces moved by a random vector of the same length."""
    kept: dict[str, Figure]
    """Preservation of the original by metric: chroma and groove for music, BLEU for text."""
    p: float
    """p-value of `after` above `control`: a permutation test of signs over songs."""
    kept_of_another: dict[str, Figure] = field(default_factory=dict)
    """The same metrics with another piece's latents moved in place of the own ones, with the same guidance."""
    kept_of_none: dict[str, Figure] = field(default_factory=dict)
    """The same metrics with the target's mean alone; values above neither control are no evidence of preservation."""
    attribute: str = ""
    """Name of the attribute between the two styles, if there is one."""
    slope: float = 0.0
    """Change of the attribute per difference of means: linear regression through the unmoved songs."""
    wanted: float = 0.0
    """Mean value at which the moves aim."""
    inside: float = 0.0
    """Share of moved songs with a value in the range of real songs."""


@dataclass(frozen=True)
class Level:
    """An attribute's value in a style that `style fit --attribute` made."""

    attribute: str
    """A name in music/attributes.py."""
    mean: float
    """Mean over the songs of the style."""
    low: float
    """5th percentile over all songs of the folder."""
    high: float
    """95th percentile of the same."""
    crowded: float
    """95th percentile of the notes per beat of the same songs."""


@_aliases.renamed(sums="exemplars")
@dataclass(frozen=True)
class Style:
    """One style: the distribution of its pieces in the latent space."""

    mean: Tensor
    """`(D,)`: the mean over pieces of each piece's mean, so that a long piece counts once."""
    covariance: Tensor
    """`(D, D)`: of segments about `mean`, with equal weight for each piece, shrunk toward its diagonal."""
    count: int
    """Number of pieces it was fitted on."""
    source: str = ""
    """Source of the pieces, as text."""
    persistence: float = 0.0
    """Correlation of a segment's latent vector, less the mean, with that of the segment before it in the same piece."""
    exemplars: Tensor | None = None
    """`(K, S, D)`: K sums of two pieces' latents less the mean, divided by the root of 2, with S segments each, in at
    most DIRECTIONS principal directions. No single piece is among them, and no piece is in two sums. None if most
    pieces are single segments, or there are few pieces."""
    ensemble: Ensemble | None = None
    """The ensembles of its songs; None for other kinds than music."""
    effects: Mapping[str, Effect] = field(default_factory=dict)
    """Measured effects of the vector to this style, by the name of the style that it starts from."""
    classifier: LineWeights | None = None
    """Weights that tell its lines from those of the styles fitted with it; None for other kinds and a single style."""
    shared: int = 0
    """The first dimensions, which all segments of a piece have in common. Where there are such, the others are those
    of the prior N(0, I), whose mean depends on the shared ones (nn/song_vae.py)."""
    level: Level | None = None
    """The attribute that it is an end of; None for other styles."""
    offset: Tensor | None = None
    """`(D,)`: a move by amount 1 from a style s to a style t of lines adds offset_t - offset_s; see style/offsets.py.
    None for other kinds and a single style: such moves add mean_t - mean_s."""

    @cached_property
    def root(self) -> Tensor:
        """Symmetric square root of the covariance in double precision, cached because it takes longer than a draw."""
        return matrix_root(self.covariance.double())


def fit(latents: Sequence[Tensor], source: str = "", shared: int = 0) -> Style:
    """A style from the latent vectors `(S, D)` of each of its pieces; `shared` as in `Style`.

    The covariance of a few hundred segments in hundreds of dimensions is noisy, so it is shrunk toward its diagonal
    with the weight SHRINKAGE (Ledoit and Wolf 2004, with a fixed weight). Raises StyleError if there is no piece.
    """
    pieces = [z.double() for z in latents if len(z)]
    if not pieces:
        raise StyleError("a style needs at least one piece that can be read; name other files")
    if shared:
        common = fit([z[:1, :shared] for z in pieces])
        prior = standard(pieces[0].shape[1])
        mean, covariance = prior.mean, prior.covariance
        mean[:shared], covariance[:shared, :shared] = common.mean, common.covariance
        return Style(mean, covariance, len(pieces), source, shared=shared)
    mean = torch.stack([z.mean(0) for z in pieces]).mean(0)
    # one product over all segments, weighted by piece: a matrix for each piece would not fit in memory
    rows = torch.cat([(z - mean) / len(z) ** 0.5 for z in pieces])
    covariance = rows.T @ rows / len(pieces)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * covariance.diagonal().diag()
    pairs = [((z[:-1] - mean) * (z[1:] - mean)).sum() / (len(z) - 1) for z in pieces if len(z) > 1]
    spread = covariance.trace().clamp(min=1e-12)
    persistence = float((torch.stack(pairs).mean() / spread).clamp(0, 1)) if pairs else 0.0
    return Style(mean.float(), covariance.float(), len(pieces), source, persistence, exemplars.pair(pieces, mean))


def standard(dimensions: int, shared: int = 0) -> Style:
    """The prior N(0, I) as a style."""
    return Style(torch.zeros(dimensions), torch.eye(dimensions), 0, "the prior N(0, I)", shared=shared)


def choose(styles: Mapping[str, Style], count: int, seed: int = 0) -> list[Style]:
    """A style for each of `count` new pieces, drawn in proportion to its pieces; none if no style knows its ensembles.

    A band of one style plays as one; all styles together have no band.
    """
    known = [style for name, style in sorted(styles.items()) if name != "all" and style.ensemble is not None]
    if not known:
        return []
    shares = np.array([style.count for style in known], np.float64)
    return [known[np.random.default_rng((seed, i)).choice(len(known), p=shares / shares.sum())] for i in range(count)]


def draw(
    style: Style, segments: int, generator: torch.Generator, temperature: float = 1.0, number: int | None = None
) -> Tensor:
    """Latent vectors `(segments, D)` of a new piece; `temperature` scales their distance from the mean.

    If a style has `exemplars`, a draw is one of them plus a SHARE of another, scaled so that the spread stays the same:
    a mixture of four pieces that keeps the order of segments. After ROW segments it starts again with another second
    sum. This is the exemplar prior (Norouzi et al. 2020) with sums in place of pieces. `number` selects the first sum,
    so that consecutive numbers draw without replacement; None draws it at random.

    Otherwise from N(mean, temperature^2 covariance) with autocorrelated segments: z_1 is drawn from the Gaussian, then
    z_k - mean = r (z_(k-1) - mean) + sqrt(1 - r^2) noise with r the persistence. So every segment has the style's
    distribution and consecutive segments are as similar as in its pieces. Shared dimensions are drawn once. A Gaussian
    in many dimensions models poorly which notes sound together; docs/experiments.md has measurements of both.
    """
    if style.exemplars is not None:
        return style.mean + temperature * exemplars.draw(style.exemplars, segments, generator, number)
    noise = torch.randn(segments, len(style.mean), generator=generator, dtype=torch.float64) @ style.root * temperature
    r = style.persistence
    steps = [noise[0]]
    for k in range(1, segments):
        steps.append(r * steps[-1] + (1 - r * r) ** 0.5 * noise[k])
    drawn = torch.stack(steps)
    drawn[:, : style.shared] = drawn[0, : style.shared]
    return (style.mean + drawn).float()


def matrix_root(matrix: Tensor, inverse: bool = False) -> Tensor:
    """Symmetric square root of a positive matrix, or its inverse."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    values = values.clamp(min=1e-10 * float(values.max().clamp(min=1e-10)))
    power = values.rsqrt() if inverse else values.sqrt()
    root: Tensor = (vectors * power) @ vectors.T
    return root
