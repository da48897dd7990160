"""Offsets of styles of lines: direction and length of a move by amount 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from styles import D, noise, random_style, samples
from torch import Tensor

from seqvae.errors import StyleError
from seqvae.style import offsets, styles_file, translation
from seqvae.style.gaussian import Style, fit

WORDS = {"cold": 0.0, "warm": 1.0}
LINES = {"cold": [f"{i} cold" for i in range(40)], "warm": [f"{i} warm" for i in range(40)]}


class Thermometer:
    """A codec of two words in one dimension: a line is decoded as warm above a threshold."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def encode(self, pieces: Sequence[Any]) -> list[Tensor]:
        """Cold lines at 0 to 1.95 and warm ones at 1 to 2.95, in even steps."""
        return [torch.tensor([[WORDS[line.split()[1]] + int(line.split()[0]) / 20]]) for line in pieces]

    def decode(self, z: Sequence[Tensor]) -> list[Any]:
        """The two words alone."""
        return [f"0 {'warm' if float(x) > self.threshold else 'cold'}" for x in z]


def _styles() -> dict[str, Style]:
    return {name: fit(Thermometer(0).encode(lines)) for name, lines in LINES.items()}


def test_amount_1_moves_four_of_five_lines() -> None:
    """Cold lines must come above 3 to be warm, and warm lines that are moved back are cold at once."""
    codec = Thermometer(3.0)
    known = offsets.fitted_together(codec, _styles(), LINES)
    way = translation.vector(known["cold"], known["warm"])
    assert torch.equal(way, -translation.vector(known["warm"], known["cold"]))
    moved = codec.decode([z + way for z in codec.encode(LINES["cold"])])
    back = codec.decode([z - way for z in codec.encode(LINES["warm"])])
    right = [x.endswith("warm") for x in moved] + [x.endswith("cold") for x in back]
    assert sum(right) / len(right) == pytest.approx(0.8, abs=0.15)
    assert float(way) == pytest.approx(3 - 0.4 * 1.95, abs=0.6), "the difference of the means is 1, and moves none"


def test_a_move_without_enough_accepted_lines_has_the_length_with_most() -> None:
    known = offsets.fitted_together(Thermometer(1e9), _styles(), LINES)
    way = translation.vector(known["cold"], known["warm"])
    assert way.isfinite().all() and float(way) > 0


def test_the_direction_is_the_discriminant_with_many_lines_and_the_difference_with_few() -> None:
    s, t = random_style(0), random_style(7)
    pooled = (s.covariance + t.covariance).double() / 2
    fisher, between = torch.linalg.solve(pooled, (t.mean - s.mean).double()), (t.mean - s.mean).double()

    def angle(count: int, way: Tensor) -> float:
        found = offsets.directions([replace(one, count=count) for one in (s, t)])
        assert found is not None
        return float(torch.cosine_similarity((found[1] - found[0]).double(), way, dim=0))

    assert angle(10**9, fisher) == pytest.approx(1, abs=1e-6)
    assert angle(1, between) > angle(100, between)
    assert offsets.directions([s, s]) is None


def test_all_offsets_have_one_length_and_the_style_of_all_lines_is_their_centre() -> None:
    found = offsets.directions([random_style(seed) for seed in (0, 7, 9)])
    assert found is not None
    torch.testing.assert_close(found.norm(dim=1), found.norm(dim=1).mean().expand(3))
    known = {"a": replace(random_style(0), offset=found[0])}
    whole = offsets.centre(random_style(1), known)
    assert torch.equal(translation.vector(whole, known["a"]), found[0])
    assert offsets.centre(random_style(1), {"a": random_style(0)}).offset is None


def test_every_method_moves_as_far_as_the_offsets_say() -> None:
    base = random_style(0)
    s = replace(base, offset=-2 * torch.ones(D))
    t = replace(base, mean=base.mean + 0.1 * torch.ones(D), offset=2 * torch.ones(D))
    z = samples(s, 50)
    plain, carried = (translation.blend(z, s, t, 1.0, method) for method in ("mean", "transport"))
    torch.testing.assert_close(plain, z + 4)
    torch.testing.assert_close(carried, z + 4, rtol=1e-3, atol=1e-3)
    placed = translation.blend(z, s, t, 1.0, "discriminant")
    torch.testing.assert_close(placed.mean(0), s.mean + 4, rtol=0.2, atol=0.5)
    torch.testing.assert_close(translation.blend(z, z[0], t, 0.5), z + 1)


def test_orthogonal_offsets() -> None:
    u = noise(D, seed=3)
    styles = {str(seed): replace(random_style(seed), offset=noise(D, seed=seed)) for seed in (0, 7)}
    made = translation.orthogonal(styles, [u])
    assert float(translation.vector(made["0"], made["7"]) @ u) == pytest.approx(0, abs=1e-4)


def test_a_file_keeps_the_offset(tmp_path: Path) -> None:
    style = replace(random_style(0), offset=noise(D))
    styles_file.save({"a": style, "b": random_style(1)}, tmp_path / "my.styles")
    again = styles_file.load(tmp_path / "my.styles")
    assert again["b"].offset is None
    assert again["a"].offset is not None
    torch.testing.assert_close(again["a"].offset, noise(D), rtol=1e-3, atol=1e-3)
    for damaged in (noise(D - 1), torch.full((D,), torch.nan)):
        tensors, about = styles_file.pack({"a": style})
        with pytest.raises(StyleError, match="style 'a': its offset is damaged; fit it again"):
            styles_file.unpack(tensors | {"a.offset": damaged}, about)
