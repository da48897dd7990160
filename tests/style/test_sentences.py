"""Walks of sentences, with a trained tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SENTENCES
from torch import Tensor

import seqvae
from seqvae.codec import Codec
from seqvae.nn.sampling import Sampling
from seqvae.style import sentences

A, B = SENTENCES[0], SENTENCES[-1]


@pytest.fixture(scope="module")
def codec(tiny_text: Path) -> Codec:
    return seqvae.load(tiny_text, exact=True)


def test_a_walk_has_the_given_ends_and_different_sentences(codec: Codec) -> None:
    walk = codec.interpolate(A, B, 5)
    assert (walk[0], walk[-1], len(walk)) == (A, B, 5)
    assert len(set(walk)) == 5
    assert len(set(codec.interpolate(A, B, 5, "slerp"))) < 5
    assert all(x != y for x, y in pairwise(codec.interpolate(A, B, 4)))
    assert codec.interpolate(A, B, 5) == walk


def test_a_walk_from_a_sentence_to_itself_is_constant(codec: Codec) -> None:
    assert codec.interpolate(A, A, 3) == [A] * 3


def test_a_sentence_of_the_training_lines_is_less_surprising_than_its_words_reversed(codec: Codec) -> None:
    reverse = " ".join(reversed(A.split()))
    nats = sentences.surprise(codec, [A, reverse], codec.model.config.latent)
    assert 0 < float(nats[0]) < float(nats[1])
    assert sentences.surprise(codec, [], codec.model.config.latent).shape == (0,)


class Ruler:
    """Decodes the first number of a vector, rounded to halves, and blank lines above 4."""

    def segments(self, piece: Any) -> list[list[Any]]:
        raise NotImplementedError

    def token_log_probs(self, z: Tensor, segments: Sequence[list[Any]]) -> Tensor:
        raise NotImplementedError

    def decode(self, z: Sequence[Tensor], *, sampling: Sampling | None = None) -> list[str]:
        return ["" if x[0, 0] > 4.1 else f"{round(2 * float(x[0, 0])) / 2:g} {len(x)}" for x in z]


def test_candidates_are_in_the_order_of_the_path_with_the_segments_of_the_nearer_end() -> None:
    ends = [torch.tensor([[1.0]]), torch.tensor([[5.0], [5.0]])]
    found = [line.split() for line in sentences.candidates(Ruler(), ends)]
    assert [float(place) for place, _ in found] == sorted(float(place) for place, _ in found)
    assert (found[0], found[-1]) == (["1", "1"], ["4", "2"])


class Drawing:
    """A decoder that draws the given lines, and prefers those with few letters."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def segments(self, piece: Any) -> list[list[Any]]:
        return [[piece]] if piece else []

    def decode(self, z: Sequence[Tensor], *, sampling: Sampling | None = None) -> list[Any]:
        assert len(z) == len(self.lines)
        return self.lines

    def token_log_probs(self, z: Tensor, segments: Sequence[list[Any]]) -> Tensor:
        assert z.shape == (1, len(segments), 3)
        return -torch.tensor([float(len(line)) for (line,) in segments]).view(1, -1, 1, 1)


@pytest.mark.parametrize(
    ("lines", "chosen"),
    [
        (["one two three four five six", "one two three four five", "one"], "one two three four five"),
        (["and he said unto them, saying,", "and it was the voice of the Lord"], "and it was the voice of the Lord"),
        (["a long enough line with :", "one two three"], "one two three"),
        (["", "one two three four five six"], "one two three four five six"),
    ],
)
def test_the_likeliest_whole_draw_is_kept(lines: list[str], chosen: str) -> None:
    z, best_of = torch.zeros(1, 3), len(lines)
    assert sentences.drawn(Drawing(lines), 1, z, Sampling(), best_of) == [chosen]
    twice = Drawing([*lines, *reversed(lines)])
    assert sentences.drawn(twice, 2, z, Sampling(), best_of) == [chosen, chosen]
    assert sentences.drawn(Drawing(lines), best_of, z, Sampling(), 1) == lines
