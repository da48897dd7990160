"""Styles: fitting, and drawing from them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from styles import D, moments, noise, random_style, seeds
from torch import Tensor

from seqvae.errors import StyleError
from seqvae.music.band import Ensemble
from seqvae.style.gaussian import SHRINKAGE, Style, choose, draw, fit


def test_long_and_short_pieces_have_equal_weight() -> None:
    short, long = torch.tensor([[0.0, 2.0]]), torch.tensor([[4.0, 0.0]]).repeat(99, 1)
    fitted = fit([short, long], "two pieces")
    assert fitted.mean.tolist() == [2.0, 1.0]
    assert (fitted.count, fitted.source) == (2, "two pieces")
    # variance about the mean, each piece half: (4 + 4) / 2 and (1 + 1) / 2; covariance -2, shrunk
    off = -2.0 * (1 - SHRINKAGE)
    torch.testing.assert_close(fitted.covariance, torch.tensor([[4.0, off], [off, 1.0]]))


@given(seeds)
def test_pieces_of_equal_length_give_the_moments_of_all_segments(seed: int) -> None:
    z = noise(10, 7, D, seed=seed) + noise(10, 1, D, seed=seed + 1)
    fitted = fit(list(z))
    mean, covariance = moments(z.flatten(0, 1))
    torch.testing.assert_close(fitted.mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fitted.covariance.diagonal(), covariance.diagonal(), rtol=1e-4, atol=1e-5)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * covariance.diagonal().diag()
    torch.testing.assert_close(fitted.covariance, shrunk, rtol=1e-4, atol=1e-5)


@given(seeds)
def test_the_order_of_pieces_does_not_matter_and_empty_ones_are_ignored(seed: int) -> None:
    pieces = [noise(n, D, seed=seed + n) for n in (1, 5, 3)]
    one, two = fit(pieces), fit([torch.zeros(0, D), *reversed(pieces)])
    torch.testing.assert_close(one.mean, two.mean)
    torch.testing.assert_close(one.covariance, two.covariance)
    assert one.count == two.count == 3


def test_persistence_is_the_correlation_of_neighbours() -> None:
    assert fit([noise(1, D, seed=i) for i in range(5)]).persistence == 0, "single segments have no neighbour"
    still = [noise(1, D, seed=i).repeat(8, 1) for i in range(400)]
    assert fit(still).persistence == pytest.approx(1, abs=0.01)
    assert fit([noise(50, D, seed=i) for i in range(50)]).persistence == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize(("pieces", "expected"), [
    ([[3, 1], [-1, -3]], 0.6),  # 3 and 3 of a variance of 5
    ([[3, 1, 1], [-3, -1, -1]], 6 / 11),  # (3 + 1) / 2 of 11 / 3
    ([[1, 2, 2, 1], [-1, -2, -2, -1]], 1.0),  # 8 / 3 of 2.5: more than there can be
    ([[1, -1, 1, -1]], 0.0),  # -1 of 1: a negative correlation is no persistence
])  # fmt: skip
def test_persistence_does_not_depend_on_offset_and_scale(pieces: list[list[int]], expected: float) -> None:
    for scale, shift in ((1.0, 0.0), (1e-3, 0.0), (10.0, 50.0)):
        fitted = fit([scale * torch.tensor(piece)[:, None] + shift for piece in pieces])
        assert fitted.persistence == pytest.approx(expected, rel=1e-4)
        assert fitted.source == ""


@pytest.mark.parametrize("latents", [[], [torch.zeros(0, D)]])
def test_fitting_no_piece_is_an_error(latents: list[Tensor]) -> None:
    with pytest.raises(StyleError, match="at least one piece"):
        fit(latents)


def test_draws_have_the_style_s_mean_and_covariance() -> None:
    s = random_style(3)
    mean, covariance = moments(draw(s, 40000, torch.Generator().manual_seed(0)))
    deviation = s.covariance.diagonal().sqrt()
    assert ((mean - s.mean).abs() < 4 * deviation / math.sqrt(40000)).all()
    assert ((covariance - s.covariance).abs() < 0.04 * deviation[:, None] * deviation).all()


@pytest.mark.parametrize("persistence", [0.0, 0.6, 0.95])
def test_neighbours_correlate_by_the_persistence(persistence: float) -> None:
    s = random_style(4, persistence=persistence)
    generator = torch.Generator().manual_seed(0)
    z = torch.stack([draw(s, 4, generator) for _ in range(8000)]) - s.mean
    for k in range(1, 4):
        common = (z[:, 0] * z[:, k]).mean(0) / s.covariance.diagonal()
        assert common.mean() == pytest.approx(persistence**k, abs=0.03)
        spread = z[:, k].square().mean(0) / s.covariance.diagonal()
        assert spread.mean() == pytest.approx(1, abs=0.05), "the last is spread like the first"


def test_fitting_draws_recovers_the_style() -> None:
    s = random_style(5, persistence=0.7)
    generator = torch.Generator().manual_seed(1)
    again = fit([draw(s, 12, generator) for _ in range(3000)])
    torch.testing.assert_close(again.mean, s.mean, rtol=0.1, atol=0.1)
    torch.testing.assert_close(again.covariance.diagonal(), s.covariance.diagonal(), rtol=0.1, atol=0.05)
    assert again.persistence == pytest.approx(0.7, abs=0.03)


def test_temperature_scales_the_spread_and_0_is_the_mean() -> None:
    s = random_style(6)
    one, two = (draw(s, 50, torch.Generator().manual_seed(2), temperature) for temperature in (1.0, 2.0))
    torch.testing.assert_close(two - s.mean, 2 * (one - s.mean), rtol=1e-3, atol=1e-4)
    assert torch.equal(draw(s, 3, torch.Generator().manual_seed(2), 0.0), s.mean.expand(3, -1))


@pytest.mark.parametrize(
    "s", [random_style(6), fit([noise(4, D, seed=i) for i in range(40)])], ids=["Gaussian", "sums"]
)
def test_draws_follow_the_generator(s: Style) -> None:
    one, again, other = (draw(s, 5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_new_piece_is_drawn_from_one_of_the_styles_with_an_ensemble() -> None:
    nobody = Ensemble(np.zeros(129), np.zeros((48, 128)), np.zeros(3), np.zeros(3))
    rng = torch.Generator().manual_seed(0)
    plain = {name: fit([torch.randn(3, 4, generator=rng) for _ in range(n)]) for name, n in (("a", 30), ("b", 10))}
    assert choose(plain, 5) == [], "without ensembles all styles are drawn from together"
    known = {name: replace(style, ensemble=nobody) for name, style in plain.items()}
    drawn = choose({**known, "all": known["a"], "c": plain["a"]}, 400)
    assert {id(style) for style in drawn} == {id(known["a"]), id(known["b"])}
    assert 260 <= sum(style is known["a"] for style in drawn) <= 340, "three times as many songs, three times as often"
