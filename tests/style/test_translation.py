"""Moves between styles: differences of means, the discriminant, optimal transport."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from styles import D, amounts, moments, noise, random_style, samples, seeds
from torch import Tensor

from seqvae.errors import StyleError
from seqvae.style import translation
from seqvae.style.gaussian import Style, fit
from seqvae.style.translation import blend, transport, vector


@given(seeds, amounts)
def test_the_mean_method_moves_every_segment_by_the_same(seed: int, amount: float) -> None:
    s, t, z = random_style(seed), random_style(seed + 7), noise(5, D, seed=seed)
    torch.testing.assert_close(vector(s, t), t.mean - s.mean)
    torch.testing.assert_close(vector(z.mean(0), t), t.mean - z.mean(0))
    moved = blend(z, s, t, amount)
    torch.testing.assert_close(moved, z + amount * (t.mean - s.mean))
    torch.testing.assert_close(blend(moved, t, s, amount), z, rtol=1e-3, atol=1e-4)


@given(seeds)
def test_half_is_half_of_the_difference_of_the_means(seed: int) -> None:
    s, t = random_style(seed), random_style(seed + 7)
    torch.testing.assert_close(blend(s.mean[None], s, t, 0.5)[0], (s.mean + t.mean) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(blend(s.mean[None], s, t, 1.0)[0], t.mean, rtol=1e-4, atol=1e-5)


@given(seeds, st.sampled_from(get_args(translation.Method)))
def test_amount_0_moves_nothing(seed: int, method: translation.Method) -> None:
    s, t, z = random_style(seed), random_style(seed + 7), noise(5, D, seed=seed)
    assert torch.equal(blend(z, s, t, 0.0, method), z)
    torch.testing.assert_close(blend(z, s, s, 1.0, method), z, rtol=1e-2, atol=1e-2)


@given(seeds, st.sampled_from(get_args(translation.Method)), st.sampled_from([1e-4, 1e3]))
def test_moves_do_not_depend_on_the_units_of_the_space(seed: int, method: translation.Method, unit: float) -> None:
    s, t, z = random_style(seed), random_style(seed + 7), noise(5, D, seed=seed)
    a, b = (replace(one, mean=unit * one.mean, covariance=unit**2 * one.covariance) for one in (s, t))
    moved = blend(unit * z, a, b, 0.5, method) / unit
    torch.testing.assert_close(moved, blend(z, s, t, 0.5, method), rtol=1e-2, atol=1e-2)
    assert translation.separation(a, b) == pytest.approx(translation.separation(s, t), abs=1e-3)


def test_the_mean_method_is_the_default() -> None:
    s, t, z = random_style(0), random_style(7), noise(5, D)
    assert torch.equal(translation.translate(s, t, 0.5)(z), z + 0.5 * vector(s, t))
    assert torch.equal(translation.compose([translation.translate(s, t, 0.5)])(z), z + 0.5 * vector(s, t))


def test_in_one_dimension_the_discriminant_reaches_the_other_mean() -> None:
    s, t = (Style(torch.tensor([mean]), torch.tensor([[1.0]]), 9) for mean in (0.0, 0.5))
    z = torch.tensor([[0.0], [-1.0], [0.25], [2.0]])
    assert blend(z, s, t, 1.0, "discriminant").flatten().tolist() == pytest.approx([0.5, 0.5, 0.5, 2.0])
    assert blend(z, s, t, 0.5, "discriminant").flatten().tolist() == pytest.approx([0.25, -0.25, 0.375, 2.0])
    # half a standard deviation apart: the normal distribution function at a quarter
    assert translation.separation(s, t) == pytest.approx(0.5987, abs=1e-4)


def test_a_constant_dimension_distinguishes_two_styles() -> None:
    s, t = (Style(torch.tensor(mean), torch.diag(torch.tensor([1.0, 0.0])), 9) for mean in ([0.0, 0.0], [0.1, 1.0]))
    assert translation.separation(s, t) == pytest.approx(1.0)
    z = torch.tensor([[3.0, 0.0]])  # far out in the varying dimension, at the source mean in the constant one
    torch.testing.assert_close(blend(z, s, t, 1.0, "discriminant"), torch.tensor([[3.1, 1.0]]), rtol=1e-3, atol=1e-3)


def places(z: Tensor, s: Style, t: Style) -> Tensor:
    """Positions of points on the discriminant axis: 0 at the mean of `s`, 1 at that of `t`."""
    axis = torch.linalg.inv((s.covariance + t.covariance).double() / 2) @ (t.mean - s.mean).double()
    place: Tensor = (z.double() - s.mean) @ axis / ((t.mean - s.mean).double() @ axis)
    return place


@given(seeds, st.floats(1, 3))
def test_the_discriminant_moves_all_points_to_one_position_and_none_back(seed: int, amount: float) -> None:
    s, t = random_style(seed), random_style(seed + 7)
    z = torch.cat([samples(s, 50, seed), t.mean + 2 * (t.mean - s.mean).unsqueeze(0)])
    before, after = places(z, s, t), places(blend(z, s, t, amount, "discriminant"), s, t)
    torch.testing.assert_close(after, before.clamp(min=amount), rtol=1e-3, atol=1e-3)


@given(seeds, st.floats(0, 1))
def test_amounts_up_to_one_move_each_point_a_share_of_its_way(seed: int, amount: float) -> None:
    s, t = random_style(seed), random_style(seed + 7)
    z = samples(s, 50, seed)
    before, after = places(z, s, t), places(blend(z, s, t, amount, "discriminant"), s, t)
    behind = before < 1
    expected = torch.where(behind, (1 - amount) * before + amount, before)
    torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-3)
    moved = blend(z, s, t, amount, "discriminant") - z
    along = (moved @ vector(s, t))[:, None] * vector(s, t) / vector(s, t).square().sum()
    torch.testing.assert_close(moved, along, rtol=1e-2, atol=1e-3)  # and only along the difference of means


@given(seeds)
def test_moving_from_a_style_to_itself_changes_nothing(seed: int) -> None:
    s, z = random_style(seed), noise(5, D, seed=seed).double()
    way = translation.advance(z, s, s, 1.0)
    assert way.tolist() == [0.0] * 5
    assert way.dtype == z.dtype


@given(seeds)
def test_separation_is_the_share_on_the_correct_side(seed: int) -> None:
    s = random_style(seed)
    t = replace(random_style(seed + 7), covariance=s.covariance)
    share = translation.separation(s, t)
    assert share == pytest.approx(translation.separation(t, s))
    points = s.mean + noise(4000, D, seed=seed) @ torch.linalg.cholesky(s.covariance).T
    assert float((places(points, s, t) < 0.5).float().mean()) == pytest.approx(share, abs=0.03)
    assert translation.separation(s, s) == pytest.approx(0.5)


@given(seeds)
def test_transport_gives_the_target_s_mean_and_covariance(seed: int) -> None:
    s, t = random_style(seed), random_style(seed + 7)
    mean, covariance = moments(transport(s, t)(samples(s, 200)))
    torch.testing.assert_close(mean, t.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(covariance, t.covariance, rtol=1e-2, atol=1e-2)


@given(seeds)
def test_transport_is_the_map_of_least_distance(seed: int) -> None:
    """Its matrix is symmetric and positive: among all maps with these moments only this one moves least."""
    s, t = random_style(seed), random_style(seed + 7)
    a = transport(s, t)(s.mean + torch.eye(D)) - t.mean
    torch.testing.assert_close(a, a.T, rtol=1e-2, atol=1e-2)
    assert torch.linalg.eigvalsh((a + a.T) / 2).min() > 0
    x = samples(s, 200)
    root = torch.linalg.cholesky(t.covariance) @ torch.linalg.inv(torch.linalg.cholesky(s.covariance))
    other = t.mean + (x - s.mean) @ root.T  # the same moments by another map
    assert (transport(s, t)(x) - x).square().sum() <= (other - x).square().sum() * (1 + 1e-3)


@given(seeds, amounts)
def test_with_equal_covariances_transport_is_the_mean_method(seed: int, amount: float) -> None:
    s, z = random_style(seed), noise(5, D, seed=seed)
    t = replace(random_style(seed + 7), covariance=s.covariance)
    torch.testing.assert_close(blend(z, s, t, amount, "transport"), blend(z, s, t, amount), rtol=1e-2, atol=1e-2)


@given(seeds)
def test_transport_from_a_style_to_itself_is_the_identity(seed: int) -> None:
    s, z = random_style(seed), noise(5, D, seed=seed)
    torch.testing.assert_close(transport(s, s)(z), z, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(blend(z, s, s, 1.0), z)


@given(seeds)
def test_transport_there_and_back_is_the_identity(seed: int) -> None:
    s, t, z = random_style(seed), random_style(seed + 7), noise(5, D, seed=seed)
    torch.testing.assert_close(transport(t, s)(transport(s, t)(z)), z, rtol=2e-2, atol=2e-2)


def test_in_one_dimension_transport_scales_by_the_deviations() -> None:
    s = Style(torch.tensor([1.0]), torch.tensor([[4.0]]), 1)
    t = Style(torch.tensor([10.0]), torch.tensor([[9.0]]), 1)
    assert transport(s, t)(torch.tensor([[1.0], [3.0]])).flatten().tolist() == pytest.approx([10, 13])


def test_transport_needs_a_source_style_with_variance() -> None:
    s, t = random_style(0), random_style(1)
    with pytest.raises(StyleError, match="--from"):
        blend(noise(2, D), s.mean, t, 0.5, "transport")
    with pytest.raises(StyleError, match="more than one segment"):
        blend(noise(2, D), fit([noise(1, D)]), t, 0.5, "transport")


@given(seeds)
def test_composed_moves_add_up_and_no_move_is_the_identity(seed: int) -> None:
    z, a, b = (noise(3, D, seed=seed + i) for i in range(3))
    torch.testing.assert_close(translation.compose([lambda z: z + a, lambda z: z + b])(z), z + a + b)
    torch.testing.assert_close(translation.compose([])(z), z)
