"""Styles: where they are fitted, what moves between them, and how they are kept."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seqvae.checkpoint.folder import save_tensors
from seqvae.errors import CheckpointError, StyleError
from seqvae.music.band import Ensemble
from seqvae.style import vectors as style
from seqvae.style.vectors import SHRINKAGE, Style, blend, choose, draw, fit, pack, transport, unpack, vector

seeds = st.integers(0, 2**31)
amounts = st.floats(-1, 2)
D = 6


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_style(seed: int, dimensions: int = D, persistence: float = 0.0) -> Style:
    """Any mean, and a covariance whose axes are turned and of unlike lengths."""
    a = noise(dimensions, dimensions, seed=seed) + 0.5 * torch.eye(dimensions)
    covariance = a @ a.T / dimensions + 0.1 * torch.eye(dimensions)
    return Style(3 * noise(dimensions, seed=seed + 1), covariance, 9, "here", persistence)


def samples(s: Style, count: int, seed: int = 0) -> Tensor:
    """Points whose mean and covariance are exactly those of `s`."""
    x = noise(count, len(s.mean), seed=seed).double()
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / count)).T
    points: Tensor = s.mean + x @ torch.linalg.cholesky(s.covariance.double()).T
    return points.float()


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    centred = (x - x.mean(0)).double()
    return x.mean(0), (centred.T @ centred / len(x)).float()


# --- fitting ----------------------------------------------------------------------------------------------------------


def test_a_long_piece_counts_once() -> None:
    short, long = torch.tensor([[0.0, 2.0]]), torch.tensor([[4.0, 0.0]]).repeat(99, 1)
    fitted = fit([short, long], "two pieces")
    assert fitted.mean.tolist() == [2.0, 1.0]
    assert (fitted.count, fitted.source) == (2, "two pieces")
    # spread about the mean, each piece half: (4 + 4) / 2 and (1 + 1) / 2; together -2, shrunk
    off = -2.0 * (1 - SHRINKAGE)
    torch.testing.assert_close(fitted.covariance, torch.tensor([[4.0, off], [off, 1.0]]))


@given(seeds)
def test_pieces_of_one_length_give_the_moments_of_all_segments(seed: int) -> None:
    z = noise(10, 7, D, seed=seed) + noise(10, 1, D, seed=seed + 1)
    fitted = fit(list(z))
    mean, covariance = moments(z.flatten(0, 1))
    torch.testing.assert_close(fitted.mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fitted.covariance.diagonal(), covariance.diagonal(), rtol=1e-4, atol=1e-5)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * covariance.diagonal().diag()
    torch.testing.assert_close(fitted.covariance, shrunk, rtol=1e-4, atol=1e-5)


@given(seeds)
def test_the_order_of_pieces_does_not_matter_and_empty_ones_are_none(seed: int) -> None:
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
    ([[1, -1, 1, -1]], 0.0),  # -1 of 1: what leans away from its neighbour does not lean on it
])  # fmt: skip
def test_persistence_of_a_few_numbers_wherever_they_lie_and_however_small(
    pieces: list[list[int]], expected: float
) -> None:
    for scale, shift in ((1.0, 0.0), (1e-3, 0.0), (10.0, 50.0)):
        fitted = fit([scale * torch.tensor(piece)[:, None] + shift for piece in pieces])
        assert fitted.persistence == pytest.approx(expected, rel=1e-4)
        assert fitted.source == ""


@pytest.mark.parametrize("latents", [[], [torch.zeros(0, D)]])
def test_no_piece_is_no_style(latents: list[Tensor]) -> None:
    with pytest.raises(StyleError, match="at least one piece"):
        fit(latents)


# --- moving -----------------------------------------------------------------------------------------------------------


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


@given(seeds, st.sampled_from(get_args(style.Method)))
def test_amount_0_moves_nothing(seed: int, method: style.Method) -> None:
    s, t, z = random_style(seed), random_style(seed + 7), noise(5, D, seed=seed)
    assert torch.equal(blend(z, s, t, 0.0, method), z)
    torch.testing.assert_close(blend(z, s, s, 1.0, method), z, rtol=1e-2, atol=1e-2)


@given(seeds, st.sampled_from(get_args(style.Method)), st.sampled_from([1e-4, 1e3]))
def test_a_space_measured_in_other_units_is_moved_in_alike(seed: int, method: style.Method, unit: float) -> None:
    s, t, z = random_style(seed), random_style(seed + 7), noise(5, D, seed=seed)
    a, b = (replace(one, mean=unit * one.mean, covariance=unit**2 * one.covariance) for one in (s, t))
    moved = blend(unit * z, a, b, 0.5, method) / unit
    torch.testing.assert_close(moved, blend(z, s, t, 0.5, method), rtol=1e-2, atol=1e-2)
    assert style.separation(a, b) == pytest.approx(style.separation(s, t), abs=1e-3)


def test_unasked_the_mean_method_moves() -> None:
    s, t, z = random_style(0), random_style(7), noise(5, D)
    assert torch.equal(style.translate(s, t, 0.5)(z), z + 0.5 * vector(s, t))
    assert torch.equal(style.compose([style.translate(s, t, 0.5)])(z), z + 0.5 * vector(s, t))


def test_in_one_dimension_the_discriminant_goes_to_the_other_mean_however_near() -> None:
    s, t = (Style(torch.tensor([mean]), torch.tensor([[1.0]]), 9) for mean in (0.0, 0.5))
    z = torch.tensor([[0.0], [-1.0], [0.25], [2.0]])
    assert blend(z, s, t, 1.0, "discriminant").flatten().tolist() == pytest.approx([0.5, 0.5, 0.5, 2.0])
    assert blend(z, s, t, 0.5, "discriminant").flatten().tolist() == pytest.approx([0.25, -0.25, 0.375, 2.0])
    # half a deviation apart: the normal distribution up to a quarter
    assert style.separation(s, t) == pytest.approx(0.5987, abs=1e-4)


def test_what_never_varies_tells_two_styles_apart() -> None:
    s, t = (Style(torch.tensor(mean), torch.diag(torch.tensor([1.0, 0.0])), 9) for mean in ([0.0, 0.0], [0.1, 1.0]))
    assert style.separation(s, t) == pytest.approx(1.0)
    z = torch.tensor([[3.0, 0.0]])  # far out where the pieces vary, and not moved where they do not
    torch.testing.assert_close(blend(z, s, t, 1.0, "discriminant"), torch.tensor([[3.1, 1.0]]), rtol=1e-3, atol=1e-3)


def places(z: Tensor, s: Style, t: Style) -> Tensor:
    """Where points lie on the discriminant axis: 0 at the mean of `s`, 1 at that of `t`."""
    axis = torch.linalg.inv((s.covariance + t.covariance).double() / 2) @ (t.mean - s.mean).double()
    place: Tensor = (z.double() - s.mean) @ axis / ((t.mean - s.mean).double() @ axis)
    return place


@given(seeds, st.floats(1, 3))
def test_the_discriminant_takes_all_to_one_place_and_none_back(seed: int, amount: float) -> None:
    s, t = random_style(seed), random_style(seed + 7)
    z = torch.cat([samples(s, 50, seed), t.mean + 2 * (t.mean - s.mean).unsqueeze(0)])
    before, after = places(z, s, t), places(blend(z, s, t, amount, "discriminant"), s, t)
    torch.testing.assert_close(after, before.clamp(min=amount), rtol=1e-3, atol=1e-3)


@given(seeds, st.floats(0, 1))
def test_up_to_one_the_discriminant_takes_each_its_share_of_the_way(seed: int, amount: float) -> None:
    s, t = random_style(seed), random_style(seed + 7)
    z = samples(s, 50, seed)
    before, after = places(z, s, t), places(blend(z, s, t, amount, "discriminant"), s, t)
    behind = before < 1
    wanted = torch.where(behind, (1 - amount) * before + amount, before)
    torch.testing.assert_close(after, wanted, rtol=1e-3, atol=1e-3)
    moved = blend(z, s, t, amount, "discriminant") - z
    along = (moved @ vector(s, t))[:, None] * vector(s, t) / vector(s, t).square().sum()
    torch.testing.assert_close(moved, along, rtol=1e-2, atol=1e-3)  # and only along the difference of means


@given(seeds)
def test_from_a_style_to_itself_there_is_no_way_to_go(seed: int) -> None:
    s, z = random_style(seed), noise(5, D, seed=seed).double()
    way = style.advance(z, s, s, 1.0)
    assert way.tolist() == [0.0] * 5
    assert way.dtype == z.dtype


@given(seeds)
def test_separation_is_the_share_on_the_own_side(seed: int) -> None:
    s = random_style(seed)
    t = replace(random_style(seed + 7), covariance=s.covariance)
    told = style.separation(s, t)
    assert told == pytest.approx(style.separation(t, s))
    points = s.mean + noise(4000, D, seed=seed) @ torch.linalg.cholesky(s.covariance).T
    assert float((places(points, s, t) < 0.5).float().mean()) == pytest.approx(told, abs=0.03)
    assert style.separation(s, s) == pytest.approx(0.5)


@given(seeds)
def test_transport_gives_the_target_s_mean_and_covariance(seed: int) -> None:
    s, t = random_style(seed), random_style(seed + 7)
    mean, covariance = moments(transport(s, t)(samples(s, 200)))
    torch.testing.assert_close(mean, t.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(covariance, t.covariance, rtol=1e-2, atol=1e-2)


@given(seeds)
def test_transport_is_the_least_way_and_not_another(seed: int) -> None:
    """Its matrix is symmetric and positive: of all maps with these moments that is the one that moves least."""
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
def test_a_style_is_already_where_it_is(seed: int) -> None:
    s, z = random_style(seed), noise(5, D, seed=seed)
    torch.testing.assert_close(transport(s, s)(z), z, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(blend(z, s, s, 1.0), z)


@given(seeds)
def test_there_and_back_is_nothing(seed: int) -> None:
    s, t, z = random_style(seed), random_style(seed + 7), noise(5, D, seed=seed)
    torch.testing.assert_close(transport(t, s)(transport(s, t)(z)), z, rtol=2e-2, atol=2e-2)


def test_in_one_dimension_transport_scales_by_the_deviations() -> None:
    s = Style(torch.tensor([1.0]), torch.tensor([[4.0]]), 1)
    t = Style(torch.tensor([10.0]), torch.tensor([[9.0]]), 1)
    assert transport(s, t)(torch.tensor([[1.0], [3.0]])).flatten().tolist() == pytest.approx([10, 13])


def test_transport_needs_a_style_with_a_spread_to_start_from() -> None:
    s, t = random_style(0), random_style(1)
    with pytest.raises(StyleError, match="--from"):
        blend(noise(2, D), s.mean, t, 0.5, "transport")
    with pytest.raises(StyleError, match="more than one segment"):
        blend(noise(2, D), fit([noise(1, D)]), t, 0.5, "transport")


# --- drawing ----------------------------------------------------------------------------------------------------------


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


def test_what_is_drawn_is_fitted_again() -> None:
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


# --- keeping ----------------------------------------------------------------------------------------------------------


def check_same(a: Style, b: Style) -> None:
    assert torch.equal(a.mean, b.mean)
    scale = float(b.covariance.abs().max())
    assert (a.covariance - b.covariance).abs().max() <= 1e-3 * scale
    assert (a.count, a.source, a.persistence, a.effects) == (b.count, b.source, b.persistence, b.effects)


@given(seeds, st.sampled_from([1e-6, 1.0, 1e6]))
def test_packing_keeps_a_style_of_any_scale(seed: int, scale: float) -> None:
    s = random_style(seed, persistence=0.25)
    s = replace(s, covariance=scale * s.covariance)
    again = unpack(*pack({"a": s, "b.c": s}))
    assert list(again) == ["a", "b.c"]
    for kept in again.values():
        check_same(kept, s)


@given(seeds)
def test_of_many_dimensions_the_variances_and_the_largest_directions_are_kept(seed: int) -> None:
    few = noise(200, 100, seed=seed)  # as many directions as are kept, and more
    low = Style(torch.zeros(200), few @ few.T + torch.eye(200), 9)
    all_at_once = unpack(*pack({"low": low, "full": random_style(seed, 200)}))
    for name, s in (("low", low), ("full", random_style(seed, 200))):
        kept = all_at_once[name].covariance
        torch.testing.assert_close(kept.diagonal(), s.covariance.diagonal(), rtol=1e-3, atol=1e-3)
        assert torch.linalg.eigvalsh(kept.double()).min() > 0, "it can be drawn from"
    error = (all_at_once["low"].covariance - low.covariance).norm() / low.covariance.norm()
    assert error < 0.02


def test_a_file_keeps_what_vectors_do(tmp_path: Path) -> None:
    found = style.Effect(0.5, 8, (0.1, 0.0, 0.2), (0.7, 0.6, 0.8), (0.1, 0.0, 0.2), {"chroma": (0.9, 0.8, 1.0)}, 0.004)
    beside = replace(found, kept_of_another={"chroma": (0.8, 0.7, 0.9)}, kept_of_none={"chroma": (0.7, 0.6, 0.8)})
    styles = {"rock": replace(random_style(0), effects={"jazz": found, "folk": beside}), "jazz": random_style(1)}
    style.save(styles, tmp_path / "my.styles")
    again = style.load(tmp_path / "my.styles")
    assert again["rock"].effects == {"jazz": found, "folk": beside}
    assert again["jazz"].effects == {}


@given(seeds)
def test_moves_together_add_up_and_none_is_none(seed: int) -> None:
    z, a, b = (noise(3, D, seed=seed + i) for i in range(3))
    torch.testing.assert_close(style.compose([lambda z: z + a, lambda z: z + b])(z), z + a + b)
    torch.testing.assert_close(style.compose([])(z), z)


def test_a_file_keeps_styles(tmp_path: Path) -> None:
    styles = {"rock": random_style(0), "jazz": random_style(1)}
    styles["swing"] = styles["jazz"]  # one style under two names
    path = tmp_path / "my.styles"
    style.save(styles, path)
    again = style.load(path, D)
    assert again.keys() == styles.keys()
    for name, kept in again.items():
        check_same(kept, styles[name])


def test_styles_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "my.styles"
    style.save({"rock": random_style(0)}, path)
    with pytest.raises(StyleError, match=f"'rock' has {D} dimensions, the model 99"):
        style.load(path, 99)


def test_a_file_of_other_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "my.styles"
    tensors, about = pack({"rock": random_style(0)})
    for bad_tensors, bad_about in [
        ({"rock.mean": tensors["rock.mean"]}, about),
        (tensors, {"rock": "{"}),
        (tensors, {"rock": "3"}),
        (tensors, {"rock": "{}"}),
        (tensors, {"rock": about["rock"][:-1] + ', "effects": {"jazz": {"p": 1}}}'}),
        ({**tensors, "rock.mean": torch.zeros(D + 1)}, about),
    ]:
        save_tensors(bad_tensors, bad_about, path)
        with pytest.raises(StyleError):
            style.load(path)


@pytest.mark.parametrize(("wrong", "what"), [
    ({"rock.factors": noise(D + 1, D)}, "differ in size"),
    ({"rock.factors": noise(D, 2, 3)}, "differ in size"),
    ({"rock.variances": torch.ones(D + 1)}, "differ in size"),
    ({"rock.mean": noise(D, 2), "rock.factors": noise(D, 2, 3), "rock.variances": torch.ones(D, 2)}, "differ in size"),
    ({"rock.mean": torch.full((D,), float("nan"))}, "NaN, infinity or a negative variance"),
    ({"rock.variances": -torch.ones(D)}, "a negative variance"),
    ({"rock.sums": torch.zeros(3, 0, D)}, "sums of pieces"),
    ({"rock.coefficients": torch.zeros(3, 0, 2), "rock.directions": torch.zeros(2, D)}, "sums of pieces"),
])  # fmt: skip
def test_tensors_that_do_not_fit_together_are_refused(wrong: dict[str, Tensor], what: str) -> None:
    tensors, about = pack({"rock": random_style(0)})
    with pytest.raises(StyleError, match=f"style 'rock'.*{what}"):
        unpack(tensors | wrong, about)
    with pytest.raises(StyleError, match="not a styles file"):
        unpack(tensors, {"jazz": about["rock"]})


def test_more_than_fits_into_memory_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack({"a": random_style(0), "b": random_style(1)})  # covariances of 6 x 6 each
    monkeypatch.setattr(style, "MOST", 72)
    assert unpack(*packed).keys() == {"a", "b"}
    monkeypatch.setattr(style, "MOST", 71)
    with pytest.raises(StyleError, match="2 styles of 6 dimensions are too large"):
        unpack(*packed)


def test_a_file_that_is_not_there_or_no_file_of_tensors_is_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none"):
        style.load(tmp_path / "none")
    (tmp_path / "text").write_text("rock")
    with pytest.raises(CheckpointError, match="text"):
        style.load(tmp_path / "text")


# --- sums of pieces ---------------------------------------------------------------------------------------------------


def test_sums_are_of_two_pieces_each_and_none_is_in_two() -> None:
    pieces = [noise(5, D, seed=i) for i in range(21)]
    sums, mean = style.pair(pieces, torch.ones(D)), torch.ones(D)
    assert sums is not None
    assert sums.shape == (10, style.ROW, D)
    parts = torch.stack([(z - mean)[: style.ROW].flatten() for z in pieces]) / math.sqrt(2)
    used: list[int] = []
    for one in sums.flatten(1):
        a, b = next((i, j) for i in range(21) for j in range(i) if torch.allclose(parts[i] + parts[j], one, atol=1e-4))
        used += [a, b]
    assert len(set(used)) == 20


def test_of_many_pieces_there_are_so_many_sums_in_so_many_directions_as_spread_as_pieces() -> None:
    axes = torch.linalg.qr(noise(200, 200))[0][:50]
    many = style.pair([3 * noise(4, 50, seed=i) @ axes for i in range(2000)], torch.zeros(200))
    assert many is not None
    assert len(many) == style.PAIRS
    assert many.std() == pytest.approx(3 * math.sqrt(50 / 200), rel=0.1), "nothing is lost where the pieces lie"
    full = style.pair([noise(4, 200, seed=i) for i in range(2000)], torch.zeros(200))
    assert full is not None
    assert torch.linalg.matrix_rank(full.flatten(0, 1), rtol=1e-4) == style.DIRECTIONS


def test_principal_directions_leave_least() -> None:
    sums = noise(30, 4, 20) * torch.linspace(5, 1, 20)
    weights, directions = style.principal(sums, 7)
    assert weights.shape == (30, 4, 7)
    torch.testing.assert_close(directions @ directions.T, torch.eye(7), atol=1e-5, rtol=0)
    left = (sums - weights @ directions).square().sum()
    assert left == pytest.approx(float(torch.linalg.svdvals(sums.flatten(0, 1))[7:].square().sum()), rel=1e-4)


def test_single_segments_and_few_pieces_have_no_sums() -> None:
    assert fit([noise(1, D, seed=i) for i in range(50)]).exemplars is None
    assert fit([noise(3, D, seed=i) for i in range(style.FEW - 1)]).exemplars is None
    assert fit([noise(1 if i % 3 else 3, D, seed=i) for i in range(60)]).exemplars is None, (
        "sentences, some of them long"
    )
    short = fit([noise(2, D, seed=i) for i in range(style.FEW)]).exemplars
    assert short is not None
    torch.testing.assert_close(short[:, :2], short[:, 2:], msg="a short piece begins again")


def test_a_draw_is_of_two_sums_and_as_spread_as_they_are() -> None:
    s = replace(fit([noise(4, 200, seed=i) for i in range(80)]), mean=torch.full((200,), 5.0))
    assert s.exemplars is not None
    generator = torch.Generator().manual_seed(0)
    for z in (draw(s, 4, generator) for _ in range(20)):
        weights = torch.linalg.lstsq(s.exemplars.flatten(1).T, (z - s.mean).flatten()[:, None]).solution[:, 0]
        found, order = weights.sort(descending=True)
        low, high = (share / (1 - share) for share in style.SHARE)
        assert low * 0.99 < float(found[1] / found[0]) < high * 1.01
        assert found[2:].abs().max() < 1e-2, order
    drawn = torch.stack([draw(s, 4, generator) for _ in range(300)]) - s.mean
    assert drawn.std() == pytest.approx(float(s.exemplars.std()), rel=0.05)


def test_a_long_draw_keeps_one_sum_and_changes_the_other() -> None:
    s = fit([noise(4, 200, seed=i) for i in range(80)])
    assert s.exemplars is not None
    z = draw(s, 10, torch.Generator().manual_seed(1)) - s.mean
    kept = [
        int(torch.linalg.lstsq(s.exemplars[:, 0].T, row[:, None]).solution[:, 0].argmax()) for row in (z[0], z[4], z[8])
    ]
    assert len(z) == 10
    assert len(set(kept)) == 1
    assert not torch.allclose(z[:4], z[4:8])


def test_sums_are_kept_in_files_and_wrong_ones_refused(tmp_path: Path) -> None:
    s = fit([noise(4, 200, seed=i) for i in range(80)])
    assert s.exemplars is not None
    style.save({"a": s}, tmp_path / "one.styles")
    again = style.load(tmp_path / "one.styles")["a"]
    assert again.exemplars is not None
    torch.testing.assert_close(again.exemplars, s.exemplars, rtol=1e-3, atol=5e-3)
    tensors, about = pack({"a": s})
    weights, directions = tensors["a.coefficients"], tensors["a.directions"]
    assert weights.shape == (40, style.ROW, style.DIRECTIONS)
    for wrong in (
        {"a.coefficients": weights[:, :, 1:]}, {"a.coefficients": weights[:1]}, {"a.coefficients": weights[0]},
        {"a.coefficients": weights * float("nan")}, {"a.directions": directions[:, 1:]},
        {"a.directions": directions[0]}, {"a.directions": directions * float("inf")},
    ):  # fmt: skip
        with pytest.raises(StyleError, match="sums of pieces"):
            unpack(tensors | wrong, about)
    assert unpack(tensors | {"a.coefficients": weights[:2]}, about)["a"].exemplars is not None, "two are enough"
    with pytest.raises(StyleError, match=r"a\.directions"):
        unpack({name: x for name, x in tensors.items() if name != "a.directions"}, about)


def test_sums_of_older_files_are_read_as_they_are() -> None:
    tensors, about = pack({"a": random_style(6)})
    old = noise(24, style.ROW, D).half()
    found = unpack(tensors | {"a.sums": old}, about)["a"]
    assert found.exemplars is not None
    assert torch.equal(found.exemplars, old.float())
    for wrong in (old[:, :, 1:], old[:1], old * float("nan")):
        with pytest.raises(StyleError, match="sums of pieces"):
            unpack(tensors | {"a.sums": wrong}, about)


def test_few_numbers_that_make_many_sums_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack({"a": fit([noise(4, D, seed=i) for i in range(20)])})  # 10 sums of 4 segments of 6 numbers
    monkeypatch.setattr(style, "MOST", 240)
    assert unpack(*packed).keys() == {"a"}
    monkeypatch.setattr(style, "MOST", 239)
    with pytest.raises(StyleError, match="sums of pieces are too large"):
        unpack(*packed)


@pytest.mark.parametrize("count", [24, style.PAIRS])
def test_numbers_in_a_row_draw_without_replacement_and_with_random_weights(count: int) -> None:
    sums = torch.eye(count)[:, None].repeat(1, style.ROW, 1)
    s = Style(torch.zeros(count), torch.eye(count), 2 * count, exemplars=sums)

    def drawn(number: int) -> Tensor:
        return draw(s, style.ROW, torch.Generator().manual_seed(7 * number), number=number)[0]

    first = torch.stack([drawn(5 + number) for number in range(count)])
    assert sorted(first.argmax(1).tolist()) == list(range(count))
    assert len({round(float(row.sort().values[-2] / row.max()), 6) for row in first}) == count, "weights of their own"
    companions = first[:8].topk(2).indices[:, 1].tolist()
    assert not set(companions) & set(first[:8].argmax(1).tolist()), "those beside a draw are not in it"
    assert torch.equal(drawn(3), drawn(3))
    assert not torch.allclose(drawn(3), drawn(3 + count)), "another round is another song"
    assert drawn(3).argmax() == drawn(3 + count).argmax()


def test_a_new_piece_is_drawn_from_one_of_the_styles_that_know_their_ensembles() -> None:
    nobody = Ensemble(np.zeros(129), np.zeros((48, 128)), np.zeros(3), np.zeros(3))
    rng = torch.Generator().manual_seed(0)
    plain = {name: fit([torch.randn(3, 4, generator=rng) for _ in range(n)]) for name, n in (("a", 30), ("b", 10))}
    assert choose(plain, 5) == [], "without ensembles all styles are drawn from together"
    known = {name: replace(style, ensemble=nobody) for name, style in plain.items()}
    drawn = choose({**known, "all": known["a"], "c": plain["a"]}, 400)
    assert {id(style) for style in drawn} == {id(known["a"]), id(known["b"])}
    assert 260 <= sum(style is known["a"] for style in drawn) <= 340, "three times as many songs, three times as often"
