"""Paths between points: exact ends, linear norms, equal steps of angle."""

from __future__ import annotations

import doctest
import itertools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from seqvae.style import interpolation as interpolate
from seqvae.style.interpolation import grid, lerp, path, slerp

KINDS = ["slerp", "line"]
points = st.integers(0, 2**31).map(lambda seed: torch.randn(2, 8, generator=torch.Generator().manual_seed(seed)))
lengths = st.floats(0.01, 100)
amounts = st.floats(0, 1)


def angle(a: Tensor, b: Tensor) -> float:
    return math.atan2(*[float((a / a.norm() + sign * b / b.norm()).norm()) for sign in (-1, 1)]) * 2


def test_the_examples_in_the_docstrings_are_true() -> None:
    result = doctest.testmod(interpolate)
    assert result.attempted >= 2
    assert result.failed == 0


@given(points, lengths, st.integers(2, 9), st.sampled_from(KINDS))
def test_a_path_has_exactly_its_ends(ab: Tensor, scale: float, steps: int, kind: str) -> None:
    a, b = ab[0], scale * ab[1]
    way = path(a, b, steps, kind)
    assert way.shape == (steps, 8)
    assert torch.equal(way[0], a)
    assert torch.equal(way[-1], b)


@given(points, lengths, lengths, amounts)
def test_the_norm_is_linear_along_the_arc(ab: Tensor, la: float, lb: float, amount: float) -> None:
    a, b = la * ab[0] / ab[0].norm(), lb * ab[1] / ab[1].norm()
    assert float(slerp(a, b, amount).norm()) == pytest.approx((1 - amount) * la + amount * lb, rel=1e-4)


@given(lengths, amounts)
def test_the_norm_is_linear_from_or_to_zero_too(length: float, amount: float) -> None:
    a = length * torch.nn.functional.normalize(torch.arange(1.0, 9), dim=0)
    zero = torch.zeros(8)
    torch.testing.assert_close(slerp(zero, a, amount), amount * a)
    torch.testing.assert_close(slerp(a, zero, amount), (1 - amount) * a)


@given(points, st.integers(3, 9))
def test_the_angle_grows_in_equal_steps_along_the_arc(ab: Tensor, steps: int) -> None:
    way = path(ab[0], ab[1], steps).double()
    whole = angle(way[0], way[-1])
    for k in range(1, steps):
        assert angle(way[k - 1], way[k]) == pytest.approx(whole / (steps - 1), rel=1e-3, abs=1e-5)


@given(points, amounts)
def test_the_arc_stays_in_the_plane_of_its_ends(ab: Tensor, amount: float) -> None:
    basis = torch.linalg.qr(ab.double().T).Q
    point = slerp(ab[0].double(), ab[1].double(), amount)
    torch.testing.assert_close(basis @ (basis.T @ point), point)


@given(points, amounts)
def test_the_reversed_path_is_the_same(ab: Tensor, amount: float) -> None:
    torch.testing.assert_close(slerp(ab[0], ab[1], amount), slerp(ab[1], ab[0], 1 - amount), rtol=1e-4, atol=1e-5)


@given(points, amounts, st.sampled_from([-3.0, 0.5, 2.0]))
def test_the_line_is_used_if_the_arc_is_not_unique(ab: Tensor, amount: float, factor: float) -> None:
    a, b = ab[0], factor * ab[0]
    torch.testing.assert_close(slerp(a, b, amount), lerp(a, b, amount), rtol=1e-4, atol=1e-5)


@given(points, amounts)
def test_the_line_is_the_weighted_mean(ab: Tensor, amount: float) -> None:
    torch.testing.assert_close(lerp(ab[0], ab[1], amount), ab[0] + amount * (ab[1] - ab[0]), rtol=1e-4, atol=1e-5)


def test_the_arc_of_high_dimension_stays_on_the_sphere_and_the_line_does_not() -> None:
    a, b = torch.randn(2, 512, generator=torch.Generator().manual_seed(0))
    assert float(slerp(a, b, 0.5).norm()) == pytest.approx(math.sqrt(512), rel=0.05)
    assert float(lerp(a, b, 0.5).norm()) < 0.8 * math.sqrt(512)


def test_rows_have_independent_paths() -> None:
    a, b = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    together = path(a, b, 4)
    for i in range(5):
        torch.testing.assert_close(together[:, i], path(a[i], b[i], 4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_grid_has_its_corners_and_its_sides_are_paths(kind: str) -> None:
    corners = torch.randn(2, 2, 6, generator=torch.Generator().manual_seed(2))
    sheet = grid(corners, 3, 5, kind)
    assert sheet.shape == (3, 5, 6)
    assert torch.equal(sheet[0, 0], corners[0, 0])
    assert torch.equal(sheet[0, -1], corners[0, 1])
    assert torch.equal(sheet[-1, 0], corners[1, 0])
    assert torch.equal(sheet[-1, -1], corners[1, 1])
    torch.testing.assert_close(sheet[0], path(corners[0, 0], corners[0, 1], 5, kind))
    torch.testing.assert_close(sheet[:, 0], path(corners[0, 0], corners[1, 0], 3, kind))
    torch.testing.assert_close(sheet[1], path(sheet[1, 0], sheet[1, -1], 5, kind))


def test_a_grid_of_lines_is_bilinear() -> None:
    corners = torch.randn(2, 2, 6, generator=torch.Generator().manual_seed(2))
    sheet = grid(corners, 3, 5, "line")
    torch.testing.assert_close(sheet[1, 2], corners.mean((0, 1)))
    torch.testing.assert_close(sheet, grid(corners.transpose(0, 1), 5, 3, "line").transpose(0, 1))


# --- perceptually even steps ------------------------------------------------------------------------------------------


def goes_wrong(chosen: list[int], there: Tensor, back: Tensor) -> float:
    """Total decrease and increase of the distances in the wrong direction."""
    return float((-there[chosen].diff(dim=0)).clamp(min=0).sum() + back[chosen].diff(dim=0).clamp(min=0).sum())


@given(st.integers(0, 2**31), st.integers(2, 6), st.integers(1, 3))
def test_even_steps_have_the_least_reversal_of_all_choices(seed: int, steps: int, distances: int) -> None:
    there = torch.rand(8, distances, generator=torch.Generator().manual_seed(seed))
    there[0], there[-1] = 0, 1
    back = 1 - there.roll(1, 0)
    back[0], back[-1] = 1, 0
    chosen = interpolate.even(there, back, steps)
    assert len(chosen) == steps
    assert (chosen[0], chosen[-1], sorted(set(chosen))) == (0, 7, chosen)
    least = min(goes_wrong([0, *inner, 7], there, back) for inner in itertools.combinations(range(1, 7), steps - 2))
    assert goes_wrong(chosen, there, back) <= least + 1e-3


def test_even_steps_skip_a_jump_and_a_standstill() -> None:
    there = torch.tensor([0.0] * 6 + [0.2, 0.4, 0.6, 0.8] + [1.0] * 6)[:, None]
    assert there[interpolate.even(there, 1 - there, 6), 0].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])


def test_between_equal_ends_any_steps_are_even() -> None:
    nothing = torch.zeros(9, 2)
    assert len(interpolate.even(nothing, nothing, 5)) == 5


@pytest.mark.parametrize("steps", [1, 10])
def test_there_are_no_more_even_steps_than_points(steps: int) -> None:
    with pytest.raises(ValueError, match="9 points"):
        interpolate.even(torch.rand(9, 1), torch.rand(9, 1), steps)


@pytest.mark.parametrize("steps", [1, 0, -2])
def test_a_path_needs_room_for_both_ends(steps: int) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        path(torch.zeros(2), torch.ones(2), steps)
    with pytest.raises(ValueError, match="at least 2"):
        grid(torch.zeros(2, 2, 3), steps, 4)


def test_an_unknown_kind_of_path_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="slerp or line"):
        path(torch.zeros(2), torch.ones(2), 3, "spline")


@given(points)
def test_zero_vectors_give_no_nan(ab: Tensor) -> None:
    assume(not torch.equal(ab[0], ab[1]))
    tiny = ab * 1e-30
    assert path(tiny[0], tiny[1], 5).isfinite().all()


def distances(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)


def test_a_walk_repeats_no_candidate_where_there_are_enough() -> None:
    places = torch.tensor([0.0, 0.0, 0.0, 0.0, 9.0])
    chosen = interpolate.walk((places[:, None] - places).abs(), torch.zeros(5), 5, 1.0, 1.0)
    assert chosen == [0, 1, 2, 3, 4]
    assert interpolate.walk(distances([0, 9], [9, 0]), torch.zeros(2), 3, 1.0, 1.0) in ([0, 0, 1], [0, 1, 1])


def test_a_walk_weighs_even_steps_against_fluency_and_direction() -> None:
    places = torch.tensor([0.0, 4.0, 5.0, 10.0])
    apart, odd = (places[:, None] - places).abs(), torch.tensor([0.0, 0.0, 1.0, 0.0])
    assert interpolate.walk(apart, odd, 3, 0.0, 1.0) == [0, 2, 3]
    assert interpolate.walk(apart, odd, 3, 1.0, 1.0) == [0, 1, 3]
    # the second of the two between is fluent, but leads away from the end
    apart = distances([0, 4, 2, 8], [4, 0, 4, 4], [2, 4, 0, 10], [8, 4, 10, 0])
    odd = torch.tensor([0.0, 2.7, 0.0, 0.0])
    assert interpolate.walk(apart, odd, 3, 1.0, 0.0) == [0, 2, 3]
    assert interpolate.walk(apart, odd, 3, 1.0, 1.0) == [0, 1, 3]


def test_a_walk_needs_room_for_both_ends() -> None:
    with pytest.raises(ValueError, match="take at least 2"):
        interpolate.walk(torch.zeros(2, 2), torch.zeros(2), 1, 1.0, 1.0)
