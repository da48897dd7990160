"""Similarity of two sets of numbers or vectors, tests of differences, bootstrap intervals. Plain numpy.

Scope: overlap of densities, the Fréchet distance, random halves, permutation tests, intervals of corpus figures. Out of
scope: the measured quantities. Formulas and papers: docs/evaluation.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Figure = tuple[float, float, float]
GRID = 1024  # points at which two densities are compared
REACH = 4.0  # bandwidths by which the grid exceeds the range of both sets
HALVES = 100
FLIPS = 20000


def overlapped_area(a: Floats, b: Floats) -> float:
    """Integral of min(f, g): 1 for equal sets, 0 for disjoint sets (Yang and Lerch 2020); nan if a set is empty.

    f and g are Gaussian kernel densities with Scott's bandwidth, standard deviation times n^(-1/5), each of its own
    set. Both are evaluated on one grid that exceeds the range of both sets, and sum to 1 on it. mgeval integrates
    between the extreme points and so loses the tails. Its divergence evaluates the two densities on two different
    grids, which makes them incomparable.
    """
    if not len(a) or not len(b):
        return float("nan")
    f, g = _kernels(a, b)
    return _overlap(f.mean(0), g.mean(0))


def overlaps(a: Floats, b: Floats, seed: int = 0) -> tuple[list[Figure], Figure]:
    """`overlapped_area` of each column of `a (N, K)` and `b (M, K)` with 95 % intervals, and of their mean.

    Rows are pieces, nan where a number is not defined. The intervals are from random halves of the pieces of both
    sets (`spread`), with fixed kernels.
    """
    rng = np.random.default_rng(seed)
    in_a, in_b = (halves(len(one), HALVES, rng).astype(float) for one in (a, b))
    values, drawn = [], []
    for x, y in zip(a.T, b.T, strict=True):
        keep_x, keep_y = ~np.isnan(x), ~np.isnan(y)
        if not keep_x.any() or not keep_y.any():
            values.append(float("nan"))
            drawn.append(np.full(HALVES, np.nan))
            continue
        f, g = _kernels(x[keep_x], y[keep_y])
        values.append(_overlap(f.mean(0), g.mean(0)))
        halved = [_mixed(w[:, keep], k) for w, keep, k in ((in_a, keep_x, f), (in_b, keep_y, g))]
        drawn.append(np.minimum(*halved).sum(1))
    figures = [spread(value, draws, 0.0, 1.0) for value, draws in zip(values, drawn, strict=True)]
    return figures, spread(float(np.mean(values)), np.mean(drawn, 0), 0.0, 1.0)


def _mixed(chosen: Floats, kernels: Floats) -> Floats:
    """The density of each random choice of points, `(draws, GRID)`."""
    return np.asarray(chosen @ kernels / np.maximum(chosen.sum(1, keepdims=True), 1.0))


def _kernels(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """The kernels of two sets on one grid, `(len(a), GRID)` and `(len(b), GRID)`; rows sum to 1."""
    both = np.concatenate([a, b])
    least = 1e-3 * float(np.std(both)) + 1e-9  # makes a set of equal numbers a narrow peak
    widths = [max(least, float(np.std(x, ddof=1)) * len(x) ** -0.2 if len(x) > 1 else 0.0) for x in (a, b)]
    beyond = REACH * max(widths)
    grid = np.linspace(both.min() - beyond, both.max() + beyond, GRID)
    spacing = grid[1] - grid[0]
    kernels = []
    for x, width in zip((a, b), widths, strict=True):
        k = np.exp(-0.5 * ((grid - x[:, None]) / max(width, spacing)) ** 2)
        kernels.append(k / k.sum(1, keepdims=True))
    return kernels[0], kernels[1]


def _overlap(f: Floats, g: Floats) -> float:
    return float(np.minimum(f, g).sum())


def frechet_distance(x: Floats, y: Floats) -> float:
    """|m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^1/2) of Gaussians fitted to rows `(N, D)` (Dowson and Landau 1982).

    This is FID (Heusel et al. 2017) in a latent space instead of a network's layer. For X and Y with their means
    removed, tr (S_x S_y)^1/2 is the sum of the singular values of X Y^T / sqrt(n_x n_y), so no matrix is larger than
    rows by rows. The distance shrinks with the number of rows: compare only sets of equal size.
    """
    m, n = x.mean(0), y.mean(0)
    a, b = (x - m) / len(x) ** 0.5, (y - n) / len(y) ** 0.5
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(((m - n) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * cross)


def halves(count: int, draws: int, rng: np.random.Generator) -> Bools:
    """`(draws, count)`: a random half of `count` items per row, rounded up."""
    ranks = rng.random((draws, count)).argsort(1).argsort(1)
    return np.asarray(ranks < (count + 1) // 2)


def spread(value: float, drawn: Floats, least: float = -np.inf, most: float = np.inf) -> Figure:
    """(value, low, high): 95 % interval, 1.96 standard deviations of the figure over random halves either way.

    A half without replacement differs from the whole as the whole does from its population (Politis and Romano 1994;
    the half-sample jackknife). The bootstrap repeats points, which sharpens densities and enlarges distances.
    """
    width = 1.96 * float(np.std(drawn))
    return value, max(least, value - width), min(most, value + width)


def flipped(differences: Floats, seed: int = 0, flips: int = FLIPS) -> float:
    """One-sided p-value of a mean above 0 by a sign-flip permutation test (Fisher 1935); nan without songs.

    `differences` are paired, one per song: under the null hypothesis either of a pair is equally likely to be better.
    p = (1 + number of the `flips` draws of signs whose mean is as large) / (flips + 1).
    """
    d = np.asarray(differences, float)
    if not len(d):
        return float("nan")
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, (flips, len(d)), dtype=np.int8) * 2 - 1
    reached = int((signs @ d >= d.sum() - 1e-12 * np.abs(d).sum()).sum())
    return (1 + reached) / (flips + 1)


def lead(scores: Floats) -> Floats:
    """`(N,)`: the share of others over which each row prefers its own partner, the diagonal of `scores (N, N)`.

    Ties count half: 1 if the own partner is first of all, 0.5 by chance. The mean is an area under the ROC curve.
    """
    own = np.diagonal(scores)[:, None]
    below = (scores < own).sum(1) + ((scores == own).sum(1) - 1) / 2
    return np.asarray(below / max(1, len(scores) - 1))


def matched(scores: Floats, seed: int = 0, shuffles: int = FLIPS) -> float:
    """p-value that row i of `scores (N, N)` fits its own partner, column i, better than chance.

    A permutation test of the mean of the diagonal against random assignments of partners to rows. p as in `flipped`.
    """
    rng = np.random.default_rng(seed)
    own = float(np.diagonal(scores).mean())
    partners = rng.random((shuffles, len(scores))).argsort(1)
    drawn = scores[np.arange(len(scores)), partners].mean(1)
    return (1 + int((drawn >= own - 1e-12 * abs(own)).sum())) / (shuffles + 1)


# --- bootstrap intervals ----------------------------------------------------------------------------------------------


def resampled(statistics: Floats, seed: int = 0, draws: int = 1000) -> Floats:
    """Sums of statistics `(N, ...)` over N sentences resampled with replacement (Koehn 2004): `(draws, ...)`.

    Draws the count of each sentence, in blocks, because resampled rows would not fit in memory.
    """
    rng, n = np.random.default_rng(seed), len(statistics)
    flat = statistics.reshape(n, -1)
    block = max(1, 4_000_000 // n)
    sums = [
        rng.multinomial(n, np.full(n, 1 / n), size=min(block, draws - done)) @ flat for done in range(0, draws, block)
    ]
    return np.concatenate(sums).reshape(draws, *statistics.shape[1:])


def with_interval(value: float, drawn: Floats) -> Figure:
    """A value with the 2.5 and 97.5 percentiles of its resampled values, without nan."""
    if np.isnan(drawn).all():
        return float(value), math.nan, math.nan
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(value), float(low), float(high)


def corpus_interval(statistics: Floats, figure: Callable[[Floats], Floats], seed: int = 0) -> Figure:
    """`figure` of the summed statistics `(N, K)` of N sentences, with a 95 % bootstrap interval over sentences."""
    if not len(statistics):
        return (math.nan,) * 3
    return with_interval(float(figure(statistics.sum(0))), figure(resampled(statistics, seed)))
