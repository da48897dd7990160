"""Controls of a style move against values computed by hand: random vectors, other pieces, paired differences."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from seqvae.cli import training as workshop
from seqvae.data.dataset import Half, half_of, split_of
from seqvae.evaluation import controls
from seqvae.style.gaussian import Style


def style(mean: list[float], variances: list[float]) -> Style:
    return Style(torch.tensor(mean), torch.diag(torch.tensor(variances)), 1)


def test_random_vectors_have_the_requested_length_and_lie_in_directions_of_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    within = [style([1.0, 2.0, 0.0], [4.0, 0.0, 0.0])] * 2
    drawn = controls.random_vectors(within, [2.0, 0.5, 3.0], generator)
    assert drawn.abs().tolist() == [pytest.approx([x, 0, 0], abs=1e-2) for x in (2.0, 0.5, 3.0)]
    between = [style([0.0, 3.0, 0.0], [0.0] * 3), style([0.0, -3.0, 0.0], [0.0] * 3)]
    drawn = controls.random_vectors(between, [2.0, 1.0], generator)
    assert drawn.abs().tolist() == [pytest.approx([0, x, 0], abs=1e-2) for x in (2.0, 1.0)]


def test_random_vectors_have_the_covariance_within_and_between_styles() -> None:
    """For a Gaussian with deviations a, b scaled to length 1, the mean squares are a / (a + b), b / (a + b)."""
    # within: a mean of variances 2 and 6, 1 and 1; between: means at +-sqrt 5 on the first axis; together 4 + 5 and 1
    styles = [style([5**0.5, 0.0], [2.0, 1.0]), style([-(5**0.5), 0.0], [6.0, 1.0])]
    drawn = controls.random_vectors(styles, [1.0] * 20_000, torch.Generator().manual_seed(0))
    assert drawn.square().mean(0).tolist() == pytest.approx([3 / 4, 1 / 4], abs=0.01)


def test_the_other_piece_is_of_the_same_style_if_possible() -> None:
    groups = ["a", "b", "a", "c"]
    for seed in range(20):
        found = controls.others(groups, np.random.default_rng(seed))
        assert found[0] == 2
        assert found[2] == 0
        assert found[1] != 1
        assert found[3] != 3
    assert controls.others(["a"], np.random.default_rng(0)) == [0]


def test_a_short_piece_is_repeated() -> None:
    z = torch.tensor([[1.0], [2.0]])
    assert controls.as_long(z, 5)[:, 0].tolist() == [1, 2, 1, 2, 1]
    assert controls.as_long(z, 1)[:, 0].tolist() == [1]


def test_differences_are_paired_and_only_figures_above_every_control_are_shown() -> None:
    own, control = np.array([1.0, np.nan, 0.5, 0.75]), np.array([0.5, 0.2, 0.0, 0.25])
    assert controls.beyond(own, control) == (0.5, 0.5, 0.5), "each pair is .5 apart, whatever songs are drawn"
    found = {
        "another song": {"chroma": (0.1, -0.1, 0.3), "melody": (0.2, 0.1, 0.3), "bass": (0.2, 0.1, 0.3)},
        "target mean": {"chroma": (0.5, 0.4, 0.6), "melody": (0.2, 0.1, 0.3), "bass": (0.0, -0.1, 0.1)},
    }
    assert controls.shown(found) == ["melody"]


def test_held_out_songs_are_halved_into_choosing_and_final() -> None:
    titles = [f"title {i}" for i in range(20_000)]
    halves = {title: half_of(title) for title in titles}
    assert all((half is None) == (split_of(title) == "train") for title, half in halves.items())
    counts = {half: sum(x == half for x in halves.values()) for half in get_args(Half)}
    assert counts == {half: pytest.approx(1000, abs=120) for half in ("choose", "final")}
    # a separate hash: both halves contain songs of the old test split and of the validation split
    assert {(half, split_of(title)) for title, half in halves.items() if half} == {
        (half, split) for half in counts for split in ("test", "valid")
    }
    assert get_args(workshop.Half) == get_args(Half)
