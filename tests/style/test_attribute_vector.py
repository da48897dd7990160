"""Moves to the value of an attribute, and vectors that are orthogonal to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import MakePiece, groove
from hypothesis import given
from hypothesis import strategies as st
from styles import D, noise, random_style, seeds

from seqvae.errors import StyleError
from seqvae.music.attributes import ATTRIBUTES, density
from seqvae.music.piece import Piece
from seqvae.style import attribute_vector
from seqvae.style.attribute_vector import AttributeGoal, calibrated, pair, partner, reach, unit
from seqvae.style.gaussian import Effect, Level, Style
from seqvae.style.translation import orthogonal, vector

ZERO = (0.0, 0.0, 0.0)
SPARSE, DENSE = Level("density", 2.0, 1.0, 12.0, 60.0), Level("density", 10.0, 1.0, 12.0, 60.0)


def goal(amount: float = 1.0, source: Level = SPARSE, target: Level = DENSE) -> AttributeGoal:
    return AttributeGoal(ATTRIBUTES["density"], source, target, amount)


def fitted(levels: dict[str, Level]) -> dict[str, Style]:
    return {name: replace(random_style(i), level=level) for i, (name, level) in enumerate(levels.items())}


def test_the_amount_is_the_share_of_the_way_to_the_targets_mean() -> None:
    assert goal(0.5).wanted(2.0) == 6.0
    assert goal(1.0).wanted(4.0) == 10.0
    assert goal(0.5, DENSE, SPARSE).wanted(10.0) == 6.0
    assert goal(-0.125).wanted(2.0) == 1.0, "a negative amount leads away"


def test_a_move_ends_where_the_range_of_real_songs_ends() -> None:
    assert goal(1.5).wanted(2.0) == 12.0
    assert goal(3.0, DENSE, SPARSE).wanted(10.0) == 1.0
    assert goal(1.0).wanted(20.0) == 20.0, "a song beyond the target stays"
    assert goal(-1.0).wanted(0.5) == 0.5, "a song outside of the range goes no farther out"


@given(st.floats(0.2, 30), st.floats(0.5, 3), st.floats(0.1, 1.5))
def test_the_goal_is_reached_whatever_the_gain_and_the_curve_of_the_decoder(
    gain: float, power: float, amount: float
) -> None:
    tried: list[float] = []

    def decode(share: float) -> float:
        tried.append(share)
        return 2.0 + gain * 8 * float(share**power)

    to = goal(amount)
    reached = reach(to, 2.0, decode, lambda made: (made, False))
    best = min((decode(x) for x in [*tried]), key=lambda made: (not to.inside(made), abs(made - to.wanted(2))))
    assert reached == best
    assert to.inside(reached)
    if 1 <= gain <= 8 and power == 1:
        assert reached == pytest.approx(to.wanted(2.0), rel=0.1)


def test_the_nearest_try_is_taken() -> None:
    assert reach(goal(), 2.0, lambda share: 2.0 + 56 * share, lambda made: (made, False)) == pytest.approx(10, abs=2)
    assert reach(goal(), 2.0, lambda share: 2.0 + 5 * share, lambda made: (made, False)) == pytest.approx(10, abs=0.8)


def test_a_song_stays_where_the_decoder_goes_the_wrong_way_or_out_of_range() -> None:
    tried: list[float] = []

    def decode(share: float) -> float:
        tried.append(share)
        return 2.0 - share

    assert reach(goal(), 2.0, decode, lambda made: (made, False)) == 2.0
    assert tried == pytest.approx([1, 1.6, 2.56, 0.5, 0.25, 0.75, 0])
    assert reach(goal(), 2.0, lambda share: 50.0 if share else 2.0, lambda made: (made, False)) == 2.0
    assert reach(goal(), 20.0, lambda share: share, lambda made: (made, False)) == 0.0, "at no multiple of the vector"


def test_crowded_results_are_too_far(make_piece: MakePiece) -> None:
    made = reach(goal(), 2.0, lambda share: share, lambda share: (2.0 + 8 * share, share > 0.7))
    assert 0.5 <= made <= 0.7

    def notes(count: int) -> Piece:
        return make_piece([[i % 48, 1, 40 + i // 48, 0, 80] for i in range(count)], [0, 48])

    limited = goal(target=replace(DENSE, crowded=10.0))
    assert limited.crowded(notes(41), notes(8))
    assert not limited.crowded(notes(40), notes(8))
    assert not limited.crowded(notes(48), notes(48)), "the original has as many"


def test_a_notice_names_a_clipped_or_missed_value(make_piece: MakePiece) -> None:
    def notes(count: int) -> Piece:
        return make_piece([[i % 48, 1, 40 + i // 48, 0, 80] for i in range(count)], [0, 48])

    said = goal(2.0).notice(notes(8), notes(48))
    assert said == "density 18.00 is outside of the range of real songs, 1.00 to 12.00; moved from 2.00 to 12.00"
    assert goal().notice(notes(8), notes(40)) is None
    assert goal().notice(notes(8), notes(12)) == (
        "density moved from 2.00 to 3.00; it did not reach 10.00"
    )  # fmt: skip


def test_the_length_of_a_vector_follows_from_its_measured_slope() -> None:
    found = fitted({"sparse": SPARSE, "dense": DENSE})
    assert unit(found["sparse"], found["dense"]) == 1.0
    effect = Effect(1.0, 2, ZERO, ZERO, ZERO, {}, 1.0, attribute="density", slope=32.0)
    measured = replace(found["dense"], effects={"sparse": effect})
    assert unit(found["sparse"], measured) == 0.25
    assert unit(random_style(3), measured) == 1.0
    assert calibrated(8.0, -3.0) == 1.0
    assert calibrated(8.0, 1e-9) == attribute_vector.UNITS[1]


def test_the_ends_of_an_attribute_find_each_other() -> None:
    found = fitted({"dense": DENSE, "sparse": SPARSE, "minor": Level("mode", 1, -1, 2, 60)})
    assert pair(found, "density") == (found["sparse"], found["dense"])
    assert partner(found, found["dense"]) is found["sparse"]
    assert partner(found, found["minor"]) is None
    assert partner(found, random_style(9)) is None
    with pytest.raises(StyleError, match="no vector of 'mode'"):
        pair(found, "mode")
    slow, fast = fitted({"slow": Level("speed", 1, 0, 9, 60), "fast": Level("speed", 2, 0, 9, 60)}).values()
    with pytest.raises(StyleError, match="no attribute 'speed'"):
        attribute_vector.goal(slow, fast, 1.0)


@pytest.mark.parametrize(
    ("name", "parts"), [("drums", [0, 33]), ("density", ["melody"]), ("mode", [])]
)  # fmt: skip
def test_the_attribute_says_which_parts_stay(name: str, parts: list[str | int]) -> None:
    assert AttributeGoal(ATTRIBUTES[name], SPARSE, DENSE, 1.0).parts(groove(0)) == parts


def test_the_range_of_real_songs_is_that_of_the_whole_folder(make_piece: MakePiece) -> None:
    class Fitter:
        def fit_styles(self, sets: Mapping[str, tuple[Sequence[Any], str]]) -> dict[str, Style]:
            return {name: replace(random_style(len(mine)), source=source) for name, (mine, source) in sets.items()}

    pieces = [make_piece([[at, 1, 60, 0, 80] for at in range(count)], [0, 48]) for count in range(41)]
    found = attribute_vector.fit(Fitter(), "density", pieces, "songs")
    assert found["sparse"].source == "songs: sparse"
    low, high = found["sparse"].level, found["dense"].level
    assert low is not None
    assert high is not None
    assert (low.low, low.high, low.crowded) == (high.low, high.high, high.crowded) == (0.5, 9.5, 9.5)
    assert low.mean == pytest.approx(sum(map(density, pieces[:14])) / 14)
    assert density(groove(0)) > low.mean


@given(seeds, st.integers(1, 2))
def test_orthogonal_vectors_lose_nothing_but_multiples_of_the_others(seed: int, count: int) -> None:
    styles = {name: random_style(seed + 7 * i) for i, name in enumerate("abc")}
    u = torch.stack([noise(D, seed=seed + i) for i in range(count)], 1)
    made = orthogonal(styles, list(u.T))
    for a, b in (("a", "b"), ("b", "c")):
        way, before = vector(made[a], made[b]), vector(styles[a], styles[b])
        torch.testing.assert_close(u.T @ way, torch.zeros(count), atol=1e-4, rtol=0)
        multiples = torch.linalg.lstsq(u, (before - way)[:, None]).solution
        torch.testing.assert_close(u @ multiples[:, 0], before - way, atol=1e-4, rtol=0)
    means = [torch.stack([one.mean for one in x.values()]).mean(0) for x in (styles, made)]
    torch.testing.assert_close(*means, atol=1e-5, rtol=1e-5)


def test_nothing_is_orthogonal_to_itself_or_to_no_vector() -> None:
    styles = {name: random_style(i) for i, name in enumerate("ab")}
    with pytest.raises(StyleError, match="nothing is left"):
        orthogonal(styles, [vector(styles["a"], styles["b"])])
    with pytest.raises(StyleError, match="same mean"):
        orthogonal(styles, [torch.zeros(6)])
