"""Evidence of a model about a piece: the log-probability of each token, and the piece's latents.

Scope: the evidence of one piece, and joining that of windows. Out of scope: thresholds for anomalies
(anomaly/calibration.py), files, the terminal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.codec import Codec
from seqvae.nn.posterior import Posterior, log_prior
from seqvae.nn.segments import context, song_length

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
WINDOWS = 2048  # segments examined at once: limits memory and does not change results
REMEMBERED = 1 << 21  # tokens of earlier pieces whose evidence is kept for equal ones


@dataclass(frozen=True, eq=False)
class Evidence:
    """Evidence about one piece of S segments and N tokens, in nats.

    A token that a window repeats from the window before it counts once, at its first occurrence.
    """

    tokens: Ints
    """Token ids `(N,)`."""
    log_prob: Floats
    """`(N,)`: log-probability of each token, averaged over draws from the posterior (An and Cho 2015)."""
    error: Floats
    """`(N,)`: log-probability of each token given the posterior mean: minus an autoencoder's reconstruction error."""
    elbo: float
    """Evidence lower bound over all segments: the tokens' mean log-probabilities minus the KL."""
    importance: float
    """Importance-weighted log-likelihood (Burda et al. 2016), over all segments."""
    read: int
    """Tokens in all segments, including those that windows repeat; the two sums above are over these."""
    means: Floats
    """`(S, D)`: posterior means."""


def examine(codec: Codec, pieces: Iterable[Any], samples: int = 16, seed: int = 0) -> Iterator[Evidence]:
    """Evidence of every piece, in order and in bounded memory, independent of the other pieces.

    All segments get the same `samples` draws of noise, so order and neighbours do not matter, except for the last
    digits if `codec.exact` is not set. Equal segments of a batch are examined once, and equal pieces may get the same
    object: as logs repeat sessions, the evidence of the last different pieces is kept, at most REMEMBERED tokens.
    Raises ReadError for a piece that cannot be read.
    """
    noise = torch.randn(samples, codec.model.config.latent, generator=torch.Generator().manual_seed(seed))
    waiting: list[list[list[Ints]]] = []
    ready: dict[tuple[bytes, ...], Evidence] = {}
    count = 0
    for piece in pieces:
        waiting.append(codec.segments(codec.adapter.read(piece)))
        count += len(waiting[-1])
        if count >= WINDOWS:
            yield from _examined(codec, waiting, noise, ready)
            waiting, count = [], 0
            _forget(ready)
    yield from _examined(codec, waiting, noise, ready)


def latents(codec: Codec, pieces: Iterable[Any]) -> list[Tensor]:
    """Posterior means `(S, D)` of every piece, as of `reference`."""
    return reference(codec, pieces)[0]


def reference(codec: Codec, pieces: Iterable[Any]) -> tuple[list[Tensor], list[Ints]]:
    """Posterior means `(S, D)` and tokens `(N,)` of every piece, unrefined and counted once as in `Evidence`.

    Raises ReadError for a piece that cannot be read.
    """
    split = [codec.segments(codec.adapter.read(piece)) for piece in pieces]
    means = codec.posteriors([segment for piece in split for segment in piece]).mean
    overlap = codec.tokenizer.overlap
    tokens = []
    for piece in split:
        chunks = [chunk for segment in piece for chunk in segment]
        tokens.append(np.concatenate([chunks[0], *(chunk[overlap:] for chunk in chunks[1:])]))
    return list(torch.split(means, [len(piece) for piece in split])), tokens


@dataclass(frozen=True)
class _SegmentScores:
    """Evidence about one segment: by chunk and token, and as a whole."""

    log_prob: list[Floats]
    error: list[Floats]
    elbo: float
    weights: NDArray[np.float64]
    """`(L,)`: log p(x, z) - log q(z | x) of each draw."""
    mean: Floats


def _forget(ready: dict[tuple[bytes, ...], Evidence]) -> None:
    """Drop the evidence of the earliest pieces beyond REMEMBERED tokens."""
    kept = sum(one.read for one in ready.values())
    for of in list(ready):
        if kept <= REMEMBERED:
            break
        kept -= ready.pop(of).read


def _examined(
    codec: Codec, split: Sequence[list[list[Ints]]], noise: Tensor, ready: dict[tuple[bytes, ...], Evidence]
) -> Iterator[Evidence]:
    """Evidence of pieces that are split into segments; that of new ones is added to `ready`."""
    keys = [
        tuple(b"|".join([context(segment), *(chunk.tobytes() for chunk in segment)]) for segment in piece)
        for piece in split
    ]
    different: dict[bytes, list[Ints]] = {}
    for of, piece in zip(keys, split, strict=True):
        if of not in ready:
            different.update(zip(of, piece, strict=True))
    found: dict[bytes, _SegmentScores] = {}
    for at in range(0, len(different), WINDOWS):
        block = list(different)[at : at + WINDOWS]
        found.update(zip(block, _segments(codec, [different[key] for key in block], noise), strict=True))
    for of, piece in zip(keys, split, strict=True):
        if of in ready:
            yield ready[of]
            continue
        windows = [found[key] for key in of]
        weights = np.stack([one.weights for one in windows])
        # a vector that all segments share has one draw for all of them
        weights = weights.sum(0, keepdims=True) if codec.model.shared else weights
        bounds = np.logaddexp.reduce(weights, axis=1) - math.log(len(noise))
        chunks = [chunk for segment in piece for chunk in segment]
        begin = [0] + [codec.tokenizer.overlap] * (len(chunks) - 1)

        def joined(parts: Sequence[NDArray[Any]], begin: Sequence[int] = begin) -> NDArray[Any]:
            return np.concatenate([part[first:] for part, first in zip(parts, begin, strict=True)])

        ready[of] = Evidence(
            joined(chunks),
            joined([part for one in windows for part in one.log_prob]),
            joined([part for one in windows for part in one.error]),
            sum(one.elbo for one in windows),
            float(bounds.astype(np.float32).sum(dtype=np.float64)),
            sum(map(len, chunks)),
            np.stack([one.mean for one in windows]),
        )
        yield ready[of]


def _segments(codec: Codec, segments: Sequence[list[Ints]], noise: Tensor) -> Iterator[_SegmentScores]:
    """Evidence of segments, with the same `noise (L, D)` for each."""
    posterior = codec.posteriors(segments)
    draws = posterior.mean + (0.5 * posterior.logvar).exp() * noise[:, None]
    log_p = codec.token_log_probs(torch.cat([draws, posterior.mean[None]]), segments)
    # summed in fp64, then rounded: the order of summation depends on lengths in the batch
    total = log_p[:-1].double().flatten(2).sum(-1)
    share = torch.tensor([1 / song_length(segment) for segment in segments], dtype=torch.float64)
    kl, weight = torch.zeros_like(share), total
    for part, times in ((slice(codec.model.shared), share), (slice(codec.model.shared, None), 1.0)):
        wide = Posterior(posterior.mean[:, part].double(), posterior.logvar[:, part].double())
        kl = kl + times * wide.kl().sum(1)
        weight = weight + times * (log_prior(draws[..., part].double()) - wide.log_prob(draws[..., part].double()))
    elbo = (total.mean(0) - kl).float().tolist()
    average, error, means = log_p[:-1].double().mean(0).float().numpy(), log_p[-1].numpy(), posterior.mean.numpy()
    for i, segment in enumerate(segments):
        lengths = [len(chunk) for chunk in segment]
        yield _SegmentScores(
            [average[i, c, :length] for c, length in enumerate(lengths)],
            [error[i, c, :length] for c, length in enumerate(lengths)],
            elbo[i],
            weight[:, i].numpy(),
            means[i],
        )
