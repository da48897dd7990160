"""Styles: named sets of pieces in the latent space, their means and covariances, and moves between them.

Scope: the arithmetic of styles. Out of scope: encoding and decoding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from seqvae import _aliases
from seqvae.checkpoint.folder import load_tensors, save_tensors
from seqvae.errors import StyleError
from seqvae.music.band import Ensemble

Method = Literal["mean", "discriminant", "transport"]
SHRINKAGE = 0.1
PAIRS = 96  # sums of two pieces stored in a style; older files have 24
ROW = 4  # segments in each sum
DIRECTIONS = 64  # principal directions in which sums are stored
FEW = 8  # pieces: with fewer there are too few sums, and a Gaussian serves
FAR = 1e6  # larger amounts are clamped, so that no vector overflows
SHARE = (0.2, 0.4)  # share of a second sum in a draw
RANK = 128  # directions of a covariance stored on disk
MOST = 1 << 28  # maximum numbers in all covariances of one file


Figure = tuple[float, float, float]
"""A mean over songs and its 95 % interval."""


@dataclass(frozen=True)
class Effect:
    """The effect of a style vector on pieces it was not fitted on; see evaluation/style_effect.py."""

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

    @cached_property
    def root(self) -> Tensor:
        """Symmetric square root of the covariance in double precision, cached because it takes longer than a draw."""
        return _root(self.covariance.double())


def fit(latents: Sequence[Tensor], source: str = "") -> Style:
    """A style from the latent vectors `(S, D)` of each of its pieces.

    The covariance of a few hundred segments in hundreds of dimensions is noisy, so it is shrunk toward its diagonal
    with the weight SHRINKAGE (Ledoit and Wolf 2004, with a fixed weight). Raises StyleError if there is no piece.
    """
    pieces = [z.double() for z in latents if len(z)]
    if not pieces:
        raise StyleError("a style needs at least one piece that can be read; name other files")
    mean = torch.stack([z.mean(0) for z in pieces]).mean(0)
    # one product over all segments, weighted by piece: a matrix for each piece would not fit in memory
    rows = torch.cat([(z - mean) / len(z) ** 0.5 for z in pieces])
    covariance = rows.T @ rows / len(pieces)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * covariance.diagonal().diag()
    pairs = [((z[:-1] - mean) * (z[1:] - mean)).sum() / (len(z) - 1) for z in pieces if len(z) > 1]
    spread = covariance.trace().clamp(min=1e-12)
    persistence = float((torch.stack(pairs).mean() / spread).clamp(0, 1)) if pairs else 0.0
    return Style(mean.float(), covariance.float(), len(pieces), source, persistence, pair(pieces, mean))


def pair(pieces: Sequence[Tensor], mean: Tensor, most: int = PAIRS, rank: int = DIRECTIONS) -> Tensor | None:
    """`Style.exemplars` of pieces `(S, D)`: at most `most` sums, of pieces drawn at random without replacement.

    Pieces shorter than ROW segments are repeated, single segments are left out. None if most are single segments or
    fewer than FEW pieces remain. K sums of 2 K pieces do not reveal the pieces: there are twice as many unknown vectors
    as equations, and components outside the principal directions are lost.
    """
    longer = [z - mean for z in pieces if len(z) > 1]
    if len(longer) < max(FEW, len(pieces) / 2):
        return None
    order = torch.randperm(len(longer), generator=torch.Generator().manual_seed(0)).tolist()
    row = torch.arange(ROW)
    count = min(most, len(longer) // 2)
    chosen = [longer[i][row % len(longer[i])] for i in order[: 2 * count]]
    weights, directions = principal((torch.stack(chosen[:count]) + torch.stack(chosen[count:])) / 2**0.5, rank)
    return (weights @ directions).float()


def principal(exemplars: Tensor, rank: int = DIRECTIONS) -> tuple[Tensor, Tensor]:
    """Weights `(K, S, R)` and orthonormal directions `(R, D)` that approximate `exemplars (K, S, D)` best.

    PCA about 0.
    """
    directions = torch.linalg.svd(exemplars.flatten(0, 1), full_matrices=False)[2][:rank]
    return exemplars @ directions.T, directions


def vector(source: Style | Tensor, target: Style) -> Tensor:
    """`(D,)`: mean_target - mean_source; `source` may be a piece's own mean `(D,)`."""
    return target.mean - (source.mean if isinstance(source, Style) else source)


def blend(z: Tensor, source: Style | Tensor, target: Style, amount: float, method: Method = "mean") -> Tensor:
    """Move `z (S, D)` from a style (or a point `(D,)`) toward another by `amount`; see `translate`."""
    return translate(source, target, amount, method)(z)


def translate(
    source: Style | Tensor, target: Style, amount: float, method: Method = "mean"
) -> Callable[[Tensor], Tensor]:
    """The map of `z (S, D)` from a style (or a point `(D,)`) toward another by `amount`; amount 0 gives `z` itself.

    mean: z + amount (mean_t - mean_s). discriminant: along the same difference, but each row only as far as needed to
    reach a common position (`advance`); a segment that is already half-way moves half as much. transport:
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
    """Share of the difference of means that takes each row of `z (S, D)` to a common position: `(S,)`, at least 0.

    The position of z is p = w.(z - mean_s) / w.(mean_t - mean_s) with w = S^-1 (mean_t - mean_s) and S the mean of the
    two covariances: 0 at the source's mean and 1 at the target's, on the axis that separates them best (Fisher 1936).
    Up to amount 1 z moves from p to (1 - amount) p + amount; above 1, to `amount`. Rows already beyond stay.
    """
    pooled = (source.covariance + target.covariance).double() / 2
    between = vector(source, target).double()
    pooled = pooled + 1e-6 * pooled.diagonal().mean().clamp(min=1e-12) * torch.eye(len(pooled))
    w = torch.linalg.solve(pooled, between)
    if not between @ w > 0:  # the two styles are the same
        return torch.zeros(len(z), dtype=z.dtype)
    place = (z.double() - source.mean) @ w / (between @ w)
    goal = (1 - amount) * place + amount if amount <= 1 else torch.full_like(place, amount)
    way: Tensor = (goal - place).clamp(min=0).to(z.dtype)
    return way


def separation(one: Style, other: Style) -> float:
    """Share of segments on their own style's side of the axis that separates two styles best: 0.5 to 1.

    Phi(d / 2) with d^2 = (mean_a - mean_b) S^-1 (mean_a - mean_b) and S the mean of the covariances: exact for two
    Gaussians with equal covariance.
    """
    pooled = (one.covariance + other.covariance).double() / 2
    between = vector(one, other).double()
    pooled = pooled + 1e-6 * pooled.diagonal().mean().clamp(min=1e-12) * torch.eye(len(pooled))
    squared = (between @ torch.linalg.solve(pooled, between)).clamp(min=0)
    return float(torch.special.ndtr(squared.sqrt() / 2))


def transport(source: Style, target: Style) -> Callable[[Tensor], Tensor]:
    """T(z) = mean_t + A (z - mean_s), A = S_s^-1/2 (S_s^1/2 S_t S_s^1/2)^1/2 S_s^-1/2 (Knott and Smith 1984).

    The map between two Gaussians that moves `z (S, D)` least. With equal covariances A = I. Raises StyleError for a
    source without spread: no linear map makes a Gaussian of a point.
    """
    if not source.covariance.trace() > 0:
        raise StyleError("transport needs a style of more than one segment to start from; fit it on more pieces")
    s, t = source.covariance.double(), target.covariance.double()
    root, inverse = _root(s), _root(s, inverse=True)
    a = inverse @ _root(root @ t @ root) @ inverse
    return lambda z: (target.mean + (z.double() - source.mean) @ a).to(z.dtype)


def _root(matrix: Tensor, inverse: bool = False) -> Tensor:
    """Symmetric square root of a positive matrix, or its inverse."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    values = values.clamp(min=1e-10 * float(values.max().clamp(min=1e-10)))
    power = values.rsqrt() if inverse else values.sqrt()
    root: Tensor = (vectors * power) @ vectors.T
    return root


def standard(dimensions: int) -> Style:
    """The prior N(0, I) as a style."""
    return Style(torch.zeros(dimensions), torch.eye(dimensions), 0, "the prior N(0, I)")


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
    distribution and consecutive segments are as similar as in its pieces. A Gaussian in many dimensions models poorly
    which notes sound together; docs/experiments.md has measurements of both.
    """
    if style.exemplars is not None:
        return style.mean + temperature * _accompanied(style.exemplars, segments, generator, number)
    noise = torch.randn(segments, len(style.mean), generator=generator, dtype=torch.float64) @ style.root * temperature
    r = style.persistence
    steps = [noise[0]]
    for k in range(1, segments):
        steps.append(r * steps[-1] + (1 - r * r) ** 0.5 * noise[k])
    return (style.mean + torch.stack(steps)).float()


def _accompanied(exemplars: Tensor, segments: int, generator: torch.Generator, number: int | None) -> Tensor:
    """`(segments, D)`: one of `exemplars (K, S, D)` with a share of another, a new one at each repetition."""
    order = torch.randperm(len(exemplars), generator=generator).tolist()
    first = order[0] if number is None else number % len(exemplars)
    others = [i for i in order if i != first]
    if number is not None:  # sums far from this number, so that neighbouring draws do not share them
        half, some = len(exemplars) // 2, max(1, len(exemplars) // 8)
        others = [i for i in others if abs((i - first) % len(exemplars) - half) <= some] or others
    low, high = SHARE
    share = low + (high - low) * float(torch.rand((), generator=generator))
    count = -(-segments // exemplars.shape[1])
    rows = [(1 - share) * exemplars[first] + share * exemplars[others[i % len(others)]] for i in range(count)]
    return torch.cat(rows)[:segments] / math.hypot(1 - share, share)


def pack(styles: Mapping[str, Style], rank: int = RANK) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and text for styles.safetensors.

    A covariance is stored as its `rank` largest directions and the remaining variances, `F F^T + diag(v)`, as in factor
    analysis. This keeps the diagonal and takes a tenth of the space. Sums are stored as `principal` returns them.
    """
    tensors: dict[str, Tensor] = {}
    about: dict[str, str] = {}
    for name, style in styles.items():
        values, vectors = torch.linalg.eigh(style.covariance.double())
        factors = (vectors * values.clamp(min=0).sqrt())[:, -rank:].half()
        left = (style.covariance.diagonal() - factors.float().square().sum(1)).clamp(min=0)
        mean = style.mean.float().clone()  # a file may not hold a tensor twice, and a style may have two names
        tensors |= {f"{name}.mean": mean, f"{name}.factors": factors, f"{name}.variances": left.float()}
        if style.exemplars is not None:
            weights, directions = principal(style.exemplars.double())
            tensors |= {f"{name}.coefficients": weights.half(), f"{name}.directions": directions.half()}
        if style.ensemble is not None:
            for part in fields(Ensemble):
                kept = torch.from_numpy(getattr(style.ensemble, part.name))
                tensors[f"{name}.{part.name}"] = kept.half() if part.name == "hits" else kept.float()
        facts = {"count": style.count, "source": style.source, "persistence": style.persistence}
        effects = {source: asdict(effect) for source, effect in style.effects.items()}
        about[name] = json.dumps(facts | {"effects": effects} if effects else facts)
    return tensors, about


def unpack(tensors: Mapping[str, Tensor], about: Mapping[str, str], dimensions: int | None = None) -> dict[str, Style]:
    """Styles from the result of `pack`.

    Raises StyleError for missing tensors, NaN, or another number of dimensions. Sizes are checked before a covariance
    is computed, since it is far larger than its stored form.
    """
    styles = {}
    sizes = [tensors[key].numel() for key in tensors if key.endswith(".mean")]
    if sum(size**2 for size in sizes) > MOST:
        raise StyleError(f"{len(sizes)} styles of {max(sizes):,} dimensions are too large; write fewer into one file")
    try:
        for name, text in about.items():
            facts = json.loads(text)
            factors, left = tensors[f"{name}.factors"].float(), tensors[f"{name}.variances"].float()
            mean = tensors[f"{name}.mean"].float()
            if dimensions is not None and mean.shape != (dimensions,):
                raise StyleError(
                    f"style '{name}' has {mean.numel()} dimensions, the model {dimensions}; fit it with this model"
                )
            if factors.shape[:-1] != mean.shape or left.shape != mean.shape or mean.ndim != 1:
                raise StyleError(f"style '{name}': mean and covariance differ in size; fit it again")
            if not (all(part.isfinite().all() for part in (mean, factors, left)) and (left >= 0).all()):
                raise StyleError(f"style '{name}': holds NaN, infinity or a negative variance; fit it again")
            exemplars = _exemplars(name, tensors, len(mean))
            ensemble = _ensemble(name, tensors)
            covariance = factors @ factors.T + left.diag()
            told = facts["count"], facts["source"], facts["persistence"]
            effects = {source: _effect(found) for source, found in facts.get("effects", {}).items()}
            styles[name] = Style(mean, covariance, *told, exemplars, ensemble, effects)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise StyleError(f"not a styles file ({error}); write one with `seqvae style fit`") from error
    return styles


def _exemplars(name: str, tensors: Mapping[str, Tensor], dimensions: int) -> Tensor | None:
    """The sums of a style, None if there are none; raises StyleError for damaged ones."""
    if f"{name}.coefficients" in tensors:
        weights, directions = tensors[f"{name}.coefficients"].float(), tensors[f"{name}.directions"].float()
        if directions.ndim != 2 or weights.shape[2:] != directions.shape[:1]:
            raise StyleError(f"style '{name}': its sums of pieces and their directions differ in size; fit it again")
        if weights.shape[:2].numel() * directions.shape[1] > MOST:
            raise StyleError(f"style '{name}': its sums of pieces are too large; fit it again")
        exemplars = weights @ directions
    elif f"{name}.sums" in tensors:  # older files store them directly
        exemplars = tensors[f"{name}.sums"].float()
    else:
        return None
    if exemplars.ndim != 3 or len(exemplars) < 2 or not exemplars.shape[1] or exemplars.shape[2] != dimensions:
        raise StyleError(f"style '{name}': its sums of pieces and its mean differ in size; fit it again")
    if not exemplars.isfinite().all():
        raise StyleError(f"style '{name}': its sums of pieces hold NaN or infinity; fit it again")
    return exemplars


def _ensemble(name: str, tensors: Mapping[str, Tensor]) -> Ensemble | None:
    """The ensemble of a style, None if there is none; raises StyleError for a damaged one."""
    sizes = {"programs": (129,), "hits": (48, 128), "size": (3,), "notes": (3,)}
    found = {part: tensors[f"{name}.{part}"] for part in sizes if f"{name}.{part}" in tensors}
    if not found:
        return None
    if {part: tuple(x.shape) for part, x in found.items()} != sizes:
        raise StyleError(f"style '{name}': its ensemble is incomplete; fit it again")
    if not all(bool((x.isfinite() & (x >= 0)).all()) for x in found.values()):
        raise StyleError(f"style '{name}': its ensemble holds NaN, infinity or a negative number; fit it again")
    return Ensemble(**{part: x.double().numpy() for part, x in found.items()})


def _effect(facts: Mapping[str, Any]) -> Effect:
    """An effect from JSON, with lists made tuples again."""
    figures = {name: tuple(facts[name]) for name in ("before", "after", "control")}
    names = [name for name in ("kept", "kept_of_another", "kept_of_none") if name in facts]
    kept = {of: {name: tuple(x) for name, x in facts[of].items()} for of in names}
    return Effect(**{**facts, **figures, **kept})


def save(styles: Mapping[str, Style], path: Path) -> None:
    """Write styles to one .safetensors file."""
    save_tensors(*pack(styles), path)


def load(path: Path, dimensions: int | None = None) -> dict[str, Style]:
    """Read styles that `save` wrote; raises StyleError if they have another number of dimensions."""
    tensors, about = load_tensors(path)
    try:
        return unpack(tensors, about, dimensions)
    except StyleError as error:
        raise StyleError(f"{path}: {error}") from error
