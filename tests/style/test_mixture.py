"""Mixtures: they find the clusters, their draws match their densities, and they are saved beside styles."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

from seqvae.checkpoint.folder import load_tensors, save_tensors
from seqvae.errors import StyleError
from seqvae.style import gaussian, mixture, styles_file
from seqvae.style.mixture import FLOOR, Mixture, climb, draw, fit, log_prob, pack, start, unpack

seeds = st.integers(0, 2**31)
D = 5


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def groups(count: int, k: int = 4, dimensions: int = D, apart: float = 4.0, seed: int = 0) -> Tensor:
    """Points of k clusters with the same correlations and different sizes, in dimensions of different scales."""
    mixing = noise(dimensions, dimensions, seed=seed) + 0.5 * torch.eye(dimensions)
    means, width = apart * noise(k, dimensions, seed=seed + 1), 0.5 + torch.arange(k) / k
    of = torch.randint(k, (count,), generator=torch.Generator().manual_seed(seed + 2))
    points = means[of] + width[of, None] * noise(count, dimensions, seed=seed + 3) @ mixing
    return 7 + points * torch.logspace(-1, 1, dimensions)


def covariances(m: Mixture) -> Tensor:
    """`(K, D, D)`."""
    root = m.scale[:, None] * m.axes * m.spreads[:, None]
    return root @ root.mT


def random_mixture(seed: int, k: int = 3, dimensions: int = D) -> Mixture:
    axes, _ = torch.linalg.qr(noise(dimensions, dimensions, seed=seed))
    weights = noise(k, seed=seed + 1).softmax(0)
    means, scale = 2 * noise(k, dimensions, seed=seed + 2), noise(dimensions, seed=seed + 3).exp()
    return Mixture(weights, means, scale, axes, noise(k, dimensions, seed=seed + 4).div(2).exp())


# --- fitting ----------------------------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 9))
def test_em_never_lowers_the_likelihood(seed: int, k: int) -> None:
    points = groups(150, seed=seed).double()
    points = (points - points.mean(0)) / points.std(0)
    found, reached = climb(points, start(points, k, torch.Generator().manual_seed(seed)), points.var(0))
    assert all(after >= before - 1e-9 for before, after in pairwise(reached))
    assert reached[-1] >= reached[0]
    weights, means, variances = found
    assert float(weights.sum()) == pytest.approx(1)
    assert (variances >= FLOOR**2 * points.var(0) * (1 - 1e-12)).all()
    # the final likelihood equals that computed by torch.distributions
    each = Normal(means, variances.sqrt()).log_prob(points[:, None]).sum(-1)  # type: ignore[no-untyped-call]
    assert float((weights.log() + each).logsumexp(1).mean()) == pytest.approx(reached[-1])


def test_distant_clusters_are_found() -> None:
    points = groups(4000, apart=40.0)
    found = fit(points, 4)
    of = torch.randint(4, (4000,), generator=torch.Generator().manual_seed(2))
    for group in range(4):
        own = points[of == group]
        nearest = int(((found.means - own.mean(0)) / found.scale).square().sum(1).argmin())
        torch.testing.assert_close(found.means[nearest], own.mean(0), rtol=0.02, atol=0.02)
        assert float(found.weights[nearest]) == pytest.approx(len(own) / 4000, abs=1e-3)


def test_clusters_are_found_among_many_dimensions_of_noise() -> None:
    """Without starting on the axes of largest variance, outliers are the start and one cluster is found."""
    of = torch.arange(600) % 3
    points = noise(600, 300)
    points[:, :12] += 2 * of[:, None]
    for seed in range(4):
        assert sorted(fit(points, 3, seed).weights.tolist()) == pytest.approx([1 / 3] * 3, abs=0.02)


@given(seeds)
def test_one_component_is_the_gaussian_of_the_points(seed: int) -> None:
    points = groups(4000, seed=seed)
    one = fit(points, 1)
    torch.testing.assert_close(one.means[0], points.mean(0), rtol=1e-3, atol=1e-3)
    deviation = points.std(0)
    away = (covariances(one)[0] - torch.cov(points.T)) / (deviation[:, None] * deviation)
    assert float(away.abs().max()) < 0.02, "many points are hardly shrunk"
    torch.testing.assert_close(covariances(one)[0].diagonal(), points.var(0), rtol=1e-2, atol=0)


def test_covariances_of_few_points_are_shrunk_toward_the_diagonal() -> None:
    mixing = noise(60, 60)
    few, many = noise(90, 60, seed=1) @ mixing, noise(4000, 60, seed=2) @ mixing
    expected = MultivariateNormal(few.mean(0), torch.cov(few.T)).log_prob(many)  # type: ignore[no-untyped-call]
    assert float(log_prob(fit(few, 1), many).mean()) > float(expected.mean()) + 10


def test_a_mixture_has_a_higher_held_out_likelihood_than_a_gaussian() -> None:
    points = groups(6000, k=6, dimensions=20, apart=2.0)
    seen, unseen = points[:4000], points[4000:]
    one, six = fit(seen, 1), fit(seen, 6)
    nearest = torch.cdist(seen / six.scale, six.means / six.scale).argmin(1)
    widths = torch.stack([seen[nearest == k].std(0) / six.scale for k in range(6)])
    straight = Mixture(six.weights, six.means, six.scale, torch.eye(20), widths)  # groups without correlations
    for other in (one, straight):
        assert float(log_prob(six, unseen).mean()) > float(log_prob(other, unseen).mean()) + 1


@given(seeds)
def test_a_seed_gives_one_mixture(seed: int) -> None:
    points = groups(80, seed=1)
    one, two = fit(points, 5, seed), fit(points, 5, seed)
    assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in vars(one))


@given(st.integers(1, 12), st.integers(1, 30), st.integers(1, 8), seeds)
def test_few_points_and_the_same_points_are_fitted_too(different: int, times: int, k: int, seed: int) -> None:
    points = groups(different, seed=seed).repeat(times, 1)
    found = fit(points, k, seed)
    assert len(found.weights) <= min(k, different)
    assert float(found.weights.sum()) == pytest.approx(1, abs=1e-5)
    assert log_prob(found, points).isfinite().all()
    drawn = draw(found, 20, torch.Generator().manual_seed(seed))
    assert drawn.isfinite().all()
    spread = (points - points.mean(0)).abs().max(0).values
    assert ((drawn - points.mean(0)).abs() <= 8 * spread + 1e-3).all()


@pytest.mark.parametrize("constant", [0, 2, D])
def test_a_dimension_that_does_not_vary_stays(constant: int) -> None:
    points = groups(300)
    points[:, :constant] = 3.5
    drawn = draw(fit(points), 100, torch.Generator().manual_seed(0))
    assert (drawn[:, :constant] - 3.5).abs().max() < 0.1 if constant else drawn.isfinite().all()


def test_fitting_no_points_is_an_error() -> None:
    with pytest.raises(StyleError, match="at least one input"):
        fit(torch.zeros(0, D))
    with pytest.raises(ValueError, match="components is 0"):
        fit(torch.zeros(3, D), 0)


# --- densities and draws ----------------------------------------------------------------------------------------------


@given(seeds)
def test_densities_equal_those_of_weighted_gaussians(seed: int) -> None:
    m, z = random_mixture(seed), 3 * noise(2, 7, D, seed=seed + 9)
    other = MixtureSameFamily(
        Categorical(m.weights.double()), MultivariateNormal(m.means.double(), covariances(m).double())
    )
    expected = other.log_prob(z.double()).float()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(log_prob(m, z), expected, rtol=1e-4, atol=1e-3)


def test_densities_integrate_to_1() -> None:
    m = random_mixture(3, dimensions=2)
    grid = torch.linspace(-25, 25, 1001)
    z = torch.cartesian_prod(grid, grid)
    assert float(log_prob(m, z).double().exp().sum() * (grid[1] - grid[0]) ** 2) == pytest.approx(1, abs=1e-3)


def test_draws_have_the_moments_of_the_mixture() -> None:
    m, count = random_mixture(5), 60000
    z = draw(m, count, torch.Generator().manual_seed(0))
    mean = m.weights @ m.means
    between = (m.means - mean).T @ (m.weights[:, None] * (m.means - mean))
    covariance = (m.weights[:, None, None] * covariances(m)).sum(0) + between
    deviation = covariance.diagonal().sqrt()
    assert ((z.mean(0) - mean).abs() < 4 * deviation / math.sqrt(count)).all()
    assert ((torch.cov(z.T) - covariance).abs() < 0.04 * deviation[:, None] * deviation).all()


def test_draws_have_the_densities_of_the_fitted_points() -> None:
    points = groups(4000)
    m = fit(points)
    drawn = draw(m, 4000, torch.Generator().manual_seed(0))
    assert float(log_prob(m, drawn).mean()) == pytest.approx(float(log_prob(m, points).mean()), abs=0.2)


def test_temperature_scales_the_spread_about_the_component_means() -> None:
    m = random_mixture(6)
    none, one, two = (draw(m, 50, torch.Generator().manual_seed(2), t) for t in (0.0, 1.0, 2.0))
    assert (none[:, None] == m.means).all(-1).any(1).all()
    assert len(none.unique(dim=0)) == len(m.means)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(two - none, 2 * (one - none), rtol=1e-3, atol=1e-4)


def test_draws_are_reproducible_and_may_be_zero_in_number() -> None:
    m = random_mixture(7)
    one, two = (draw(m, 9, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one, two)
    assert draw(m, 0, torch.Generator()).shape == (0, D)


# --- saving and loading -----------------------------------------------------------------------------------------------


@given(seeds, st.sampled_from([1e-4, 1.0, 1e4]))
def test_packing_keeps_a_mixture_of_any_scale(seed: int, scale: float) -> None:
    points = scale * groups(500, dimensions=40, seed=seed)
    m = fit(points, 4)
    again = unpack(pack(m))
    assert again is not None
    torch.testing.assert_close(log_prob(again, points), log_prob(m, points), rtol=1e-3, atol=0.05)
    one, two = (draw(x, 9, torch.Generator().manual_seed(1)) for x in (m, again))
    assert ((one - two) / m.scale).abs().max() < 1e-2


def test_a_file_stores_a_mixture_beside_styles_even_of_the_same_name(tmp_path: Path) -> None:
    points = groups(200)
    styles = {"mixture": gaussian.fit([points]), "rock": gaussian.fit([points + 1])}
    tensors, about = styles_file.pack(styles)
    packed = pack(fit(points))
    assert not tensors.keys() & packed.keys()
    path = tmp_path / "styles.safetensors"
    save_tensors(tensors | packed, about, path)
    assert styles_file.load(path, D).keys() == styles.keys()
    again = unpack(load_tensors(path)[0])
    assert again is not None
    assert torch.equal(again.means, fit(points).means)
    assert unpack(tensors) is None, "no mixture, though a style has its name"


def test_an_incomplete_mixture_is_refused() -> None:
    tensors = pack(random_mixture(0))
    for name in tensors:
        with pytest.raises(StyleError, match=name):
            unpack({key: tensor for key, tensor in tensors.items() if key != name})
    with pytest.raises(StyleError, match="differ in size"):
        unpack({**tensors, f"{mixture.NAME}means": torch.zeros(3, D + 1)})
