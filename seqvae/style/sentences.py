"""A walk of sentences between two: decoded around the path, the fluent ones in even steps. New sentences.

Scope: the sentences that a model decodes near a path between two latent vectors, or draws without one, their fluency,
and the choice among them. Out of scope: the geometry of paths and the search for the best choice
(style/interpolation.py), the codec.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.nn.sampling import Sampling
from seqvae.style import interpolation
from seqvae.text.edit_distance import edits

Ints = NDArray[np.int32]
POINTS = 32  # decoded on each of the two paths, whatever the number of steps
DECODINGS = (Sampling(), Sampling(beam=4), Sampling(temperature=0.5))  # three sentences a point
DRAWS = 32  # latents for the fluency of a sentence
FLUENCY = 1.0  # cost of a nat per token, where a step of twice the even length costs 1
BACKWARD = 1.0  # cost of an even step in the wrong direction
TOP_P, BEST_OF = 0.6, 8  # defaults for new sentences, chosen by reading draws of `prose` (docs/experiments.md)
LEAST = 5  # words of a new sentence, if a draw has as many


class Decoder(Protocol):
    """The part of a codec that reads and writes sentences."""

    def segments(self, piece: Any) -> list[list[Ints]]:
        """As `Codec.segments`."""

    def decode(self, z: Sequence[Tensor], *, sampling: Sampling | None = None) -> list[Any]:
        """As `Codec.decode`."""

    def token_log_probs(self, z: Tensor, segments: Sequence[list[Ints]]) -> Tensor:
        """As `Codec.token_log_probs`."""


def between(
    codec: Decoder, a: str, b: str, z: Sequence[Tensor], steps: int, fluency: float = FLUENCY,
    backward: float = BACKWARD,
) -> list[str]:  # fmt: skip
    """`steps` sentences from `a` to `b`, both included as they are; `z` are the latents `(S, D)` of the two.

    All between are decoded near the arc or the line from one to the other. They are different from each other where
    enough different ones are decoded; if `a` equals `b`, all are `a`. `fluency` and `backward` are the weights of
    `interpolation.walk`; their defaults were chosen on validation lines of the model `reviews`. Raises ValueError for
    fewer than two steps.
    """
    if a == b:
        return [a] * steps
    found = candidates(codec, z)
    lines = [a, *(line for line in found if line not in (a, b)), b]
    apart = torch.zeros(len(lines), len(lines))
    for i in range(len(lines)):
        for j in range(i + 1, len(lines)):
            apart[i, j] = apart[j, i] = edits(lines[i], lines[j])
    nats = torch.zeros(len(lines))
    nats[1:-1] = surprise(codec, lines[1:-1], z[0].shape[1])
    return [lines[i] for i in interpolation.walk(apart, nats, steps, fluency, backward)]


def candidates(codec: Decoder, z: Sequence[Tensor]) -> list[str]:
    """Different sentences decoded around the path between two latents `(S, D)`, by their mean place on it."""
    ends, half = interpolation.aligned(z), POINTS // 2
    points = []
    for kind in ("slerp", "line"):
        path = interpolation.path(ends[0], ends[1], POINTS, kind)
        points += [x[: len(z[int(i >= half)])] for i, x in enumerate(path)]  # as many segments as the nearer end has
    places: dict[str, list[int]] = {}
    for sampling in DECODINGS:
        for i, line in enumerate(codec.decode(points, sampling=sampling)):
            if line.strip():
                places.setdefault(line, []).append(i % POINTS)
    return sorted(places, key=lambda line: float(np.mean(places[line])))


def surprise(codec: Decoder, lines: Sequence[str], latent: int) -> Tensor:
    """- log mean p(line | z) / tokens of each line over DRAWS draws of z from N(0, I), in nats: `(N,)`; low is fluent.

    At z = 0 alone the decoder prefers fragments of the most frequent sentence.
    """
    log_p, tokens = _likelihoods(codec, lines, torch.randn(DRAWS, latent, generator=torch.Generator().manual_seed(0)))
    return -log_p / tokens


def drawn(codec: Decoder, count: int, z: Tensor, sampling: Sampling, best_of: int = BEST_OF) -> list[str]:
    """`count` new sentences by a decoder that has learned to write without z; `z (S, D)` is the vector in its place.

    Each is the one of `best_of` draws that the decoder gives the largest probability, at temperature 1. A draw of fewer
    than LEAST words, or that ends in a comma, colon or semicolon, is taken only if all are such.
    """
    lines = codec.decode([z] * (count * best_of), sampling=sampling)
    if best_of == 1:
        return lines
    log_p = _likelihoods(codec, lines, z[:1])[0].tolist()
    whole = [len(line.split()) >= LEAST and not line.endswith((",", ":", ";")) for line in lines]
    best = (max(range(i, i + best_of), key=lambda k: (whole[k], log_p[k])) for i in range(0, len(lines), best_of))
    return [lines[k] for k in best]


def _likelihoods(codec: Decoder, lines: Sequence[str], z: Tensor) -> tuple[Tensor, Tensor]:
    """log mean p(line | z) over `z (L, D)`, in nats, and the number of tokens, of each line: two `(N,)`."""
    split = [codec.segments(line) for line in lines]
    segments = [segment for one in split for segment in one]
    if not segments:
        return torch.zeros(len(lines)), torch.zeros(len(lines))
    log_p = codec.token_log_probs(z[:, None].expand(-1, len(segments), -1), segments).double().sum((2, 3))
    tokens = torch.tensor([float(sum(map(len, segment))) for segment in segments])
    both = torch.stack([log_p.logsumexp(0).cpu() - math.log(len(z)), tokens])
    sums = [one.sum(1) for one in torch.split(both, [len(one) for one in split], 1)]
    nats, count = torch.stack(sums, 1)
    return nats, count
