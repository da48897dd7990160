"""Gaussian posteriors against torch.distributions, and information measures at their limits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from seqvae.nn.posterior import LOGVAR_RANGE, Posterior, active_units, floored_kl, log_prior, mutual_information


def random_posterior(seed: int, rows: int = 6, dimensions: int = 5) -> Posterior:
    generator = torch.Generator().manual_seed(seed)
    mean = 2 * torch.randn(rows, dimensions, generator=generator)
    return Posterior(mean, torch.empty(rows, dimensions).uniform_(-6, 2, generator=generator))


def reference(posterior: Posterior) -> Normal:
    return Normal(posterior.mean, (0.5 * posterior.logvar).exp())


seeds = st.integers(0, 2**31)


@given(seeds)
def test_kl_equals_that_of_torch(seed: int) -> None:
    posterior = random_posterior(seed)
    expected = kl_divergence(reference(posterior), Normal(torch.zeros(6, 5), torch.ones(6, 5)))
    torch.testing.assert_close(posterior.kl(), expected)


@given(seeds)
def test_densities_equal_those_of_torch(seed: int) -> None:
    posterior = random_posterior(seed)
    z = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(seed))
    expected = Independent(reference(posterior), 1).log_prob(z)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(posterior.log_prob(z), expected)
    expected = Normal(0.0, 1.0).log_prob(z).sum(-1)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(log_prior(z), expected)


def test_kl_is_zero_for_the_prior_alone() -> None:
    assert Posterior(torch.zeros(2, 3), torch.zeros(2, 3)).kl().tolist() == [[0.0] * 3] * 2
    assert (random_posterior(0).kl() > 0).all()


@pytest.mark.parametrize("logvar", LOGVAR_RANGE)
def test_figures_are_finite_at_the_ends_of_the_range(logvar: float) -> None:
    posterior = Posterior(torch.full((4, 3), 5.0), torch.full((4, 3), logvar))
    z = posterior.sample(torch.Generator().manual_seed(0))
    for figure in (posterior.kl(), posterior.log_prob(z), log_prior(z), torch.tensor(mutual_information(posterior, z))):
        assert figure.isfinite().all()
    assert math.exp(logvar) == pytest.approx(float(torch.tensor(logvar, dtype=torch.bfloat16).exp()), rel=0.05)


def test_samples_have_the_mean_and_the_spread() -> None:
    one = random_posterior(3, rows=1)
    many = Posterior(one.mean.expand(20000, -1), one.logvar.expand(20000, -1))
    z = many.sample(torch.Generator().manual_seed(1))
    deviation = (0.5 * one.logvar[0]).exp()
    assert ((z.mean(0) - one.mean[0]).abs() < 4 * deviation / math.sqrt(20000)).all()
    assert ((z.std(0) / deviation - 1).abs() < 4 / math.sqrt(2 * 20000)).all()
    assert (torch.corrcoef(z.T) - torch.eye(5)).abs().max() < 0.04


def test_samples_repeat_with_a_seed_and_differ_without() -> None:
    posterior = random_posterior(4)
    draws = [posterior.sample(torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*draws)
    assert not torch.equal(posterior.sample(), posterior.sample())


def test_a_sample_is_the_noise_of_the_generator_shifted_and_scaled() -> None:
    noise = torch.randn(6, 5, generator=torch.Generator().manual_seed(7))
    z = random_posterior(4).sample(torch.Generator().manual_seed(7))
    torch.testing.assert_close((z - random_posterior(4).mean) / reference(random_posterior(4)).scale, noise)


@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_a_sample_is_on_the_device_of_the_posterior(generator: torch.Generator | None) -> None:
    there = Posterior(torch.zeros(2, 3, device="meta"), torch.zeros(2, 3, device="meta"))
    assert there.sample(generator).device.type == "meta"


def test_gradients_reach_mean_and_variance() -> None:
    mean, logvar = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    Posterior(mean, logvar).sample(torch.Generator().manual_seed(0)).square().sum().backward()  # type: ignore[no-untyped-call]
    assert mean.grad is not None
    assert logvar.grad is not None
    assert (mean.grad != 0).all()
    assert (logvar.grad > 0).all(), "a broader posterior makes the squares larger"


# --- free bits --------------------------------------------------------------------------------------------------------


def test_free_bits_apply_to_the_average_of_the_batch() -> None:
    kl = torch.tensor([[4.0, 0.1, 0.0], [0.0, 0.3, 0.0]])
    # averages 2, 0.2 and 0: the second and third are raised to the floor, the first keeps the value of its one row
    assert float(floored_kl(kl, 0.5)) == pytest.approx(2.0 + 0.5 + 0.5)
    assert float(floored_kl(kl, 0.0)) == pytest.approx(2.2)


def test_below_the_floor_the_kl_has_no_gradient() -> None:
    kl = torch.tensor([[2.0, 0.1]], requires_grad=True)
    floored_kl(kl, 0.5).backward()  # type: ignore[no-untyped-call]
    assert kl.grad is not None
    assert kl.grad.tolist() == [[1.0, 0.0]]


# --- figures ----------------------------------------------------------------------------------------------------------


def information(mean: Tensor, logvar: float, seed: int = 0) -> float:
    posterior = Posterior(mean, torch.full_like(mean, logvar))
    return mutual_information(posterior, posterior.sample(torch.Generator().manual_seed(seed)))


@given(seeds, st.floats(-10, 3), st.floats(0, 20))
def test_mutual_information_is_between_0_and_log_n(seed: int, logvar: float, spread: float) -> None:
    mean = spread * torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
    assert 0 <= information(mean, logvar, seed) <= math.log(16) + 1e-9


def test_distant_posteriors_have_mutual_information_log_n() -> None:
    assert information(100 * torch.eye(32), -4.0) == pytest.approx(math.log(32), abs=1e-6)


def test_equal_posteriors_have_no_mutual_information() -> None:
    assert information(torch.ones(32, 8), 0.0) == pytest.approx(0, abs=1e-9)


def test_two_equal_halves_have_one_bit_of_mutual_information() -> None:
    mean = torch.zeros(64, 2)
    mean[32:] = 50.0
    assert information(mean, 0.0) == pytest.approx(math.log(2), abs=1e-6)


@given(seeds)
def test_mutual_information_equals_its_definition(seed: int) -> None:
    posterior = random_posterior(seed)
    z = posterior.sample(torch.Generator().manual_seed(seed))
    rows = zip(posterior.mean.expand(6, 6, 5).unbind(1), posterior.logvar.expand(6, 6, 5).unbind(1), strict=True)
    pairs = torch.stack([Posterior(mean, logvar).log_prob(z) for mean, logvar in rows], 1)
    expected = float((pairs.diagonal() - (pairs.double().exp().mean(1)).log()).mean())
    assert mutual_information(posterior, z) == pytest.approx(max(0.0, expected), abs=1e-4)


def test_active_units_have_a_varying_mean() -> None:
    mean = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    mean *= torch.tensor([1.0, 0.3, 0.2, 0.05, 0.01, 0.0])  # variances 1, .09, .04, .0025, .0001, 0
    assert active_units(mean) == 3
    assert active_units(mean, threshold=0.5) == 1
    assert active_units(mean[:1]) == 0, "one alone does not vary"
    assert active_units(mean + 100) == 3, "the mean is not informative"
    assert active_units(torch.tensor([[0.0], [1.0]]), threshold=0.5) == 0, "a variance of .5 is not more than that"
