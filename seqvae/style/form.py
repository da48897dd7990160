"""The form of a new song: sections that come again, with a little variation.

Scope: the bar that each bar repeats, the order in which bars are drawn, their chords. Out of scope: the draw of a style
(style/gaussian.py), the prior (nn/song_vae.py), chord probabilities (music/progressions.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.music import progressions
from seqvae.music.band import Ensemble
from seqvae.nn import batches
from seqvae.nn.latent import LatentModel
from seqvae.nn.sampling import Sampling
from seqvae.nn.segments import no_melody
from seqvae.protocols import Given, Ints

BARS = 16
"""Bars of a new song by default."""
FORM = (0, 0, 2, 0)  # A A B A: the section that each section repeats
LEAST = 2  # bars of a section at least
VARIATION = 0.3  # correlation of a repeated bar's residual with a new draw


def order(bars: int) -> NDArray[np.int64]:
    """`(bars,)`: the first bar like each bar, in the form A A B A; no bar repeats where sections would be uneven.

    >>> order(8).tolist()
    [0, 1, 0, 1, 4, 5, 0, 1]
    """
    section = bars // len(FORM)
    at = np.arange(bars)
    if bars % len(FORM) or section < LEAST:
        return at
    return np.array(FORM)[at // section] * section + at % section


def chords(ensemble: Ensemble | None, bars: int, seed: Sequence[int]) -> Any:
    """A new progression of a style as a song of block chords (`music.chords.song`); None for a style without chords."""
    if ensemble is None or not ensemble.chords.any():
        return None
    from seqvae.music.chords import song

    rng = np.random.default_rng(seed)
    return song(progressions.progression(ensemble.chords, order(bars), rng), bars)


class BarCodec(Protocol):
    """The part of a codec that new songs need, as in `Codec`."""

    model: LatentModel

    def generate_tokens(self, z: Tensor, given: Given | None, sampling: Sampling) -> list[Ints]:
        """Token ids of bars."""

    def tensors(self, segments: Sequence[list[Ints]]) -> tuple[Tensor, Tensor]:
        """Tokens and position fields."""


def composed(codec: BarCodec, z: Tensor, given: Given | None, sampling: Sampling) -> Tensor:
    """Latent vectors `(S, D)` of a new song from independent draws of its bars, `z (S, D)`, in the form of `order`.

    A new bar is drawn by the decoder from the bar vector that the prior expects after the bars before, and encoded, as
    in ancestral sampling of bars. A bar that repeats another has its residual e, varied by its own draw n:
    sqrt(1 - r^2) e + r n with r = VARIATION. `given (C,)` are the conditions of the bars.
    """
    first = order(len(z))
    new = np.unique(first)
    known = batches.filled(no_melody(given), len(z))
    assert known is not None
    known = known[new]
    ahead = known.copy()
    ahead["has_bar"] = 0.0
    rows = z[new].clone()
    for i in range(len(new)):
        rows[i] = codec.model.expected(rows[: i + 1], known[: i + 1])
        own, here = replace(sampling, first_row=sampling.first_row + i), slice(i, i + 1)
        tokens, fields = codec.tensors([codec.generate_tokens(rows[here], ahead[here], own)])
        rows[here] = codec.model.read(tokens, fields, rows[here], known[here])
    out = rows[np.searchsorted(new, first)]
    again = torch.from_numpy(first != np.arange(len(z)))
    own_part = slice(codec.model.shared, None)
    out[again, own_part] = (1 - VARIATION**2) ** 0.5 * out[again, own_part] + VARIATION * z[again, own_part]
    return out
