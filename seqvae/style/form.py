"""The form of a new song: sections that come again, with a little variation.

Scope: the bar that each bar repeats, the themes of sections, their chords. Out of scope: the draw of a style
(style/gaussian.py), the prior (nn/song_vae.py), chord probabilities (music/progressions.py).
"""

from __future__ import annotations

from collections.abc import Sequence
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
from seqvae.nn.song_model import CHORD_SYMBOLS
from seqvae.protocols import Given, Guide, Ints

Floats = NDArray[np.float64]
BARS = 16
"""Bars of a new song by default."""
FORM = (0, 0, 2, 0)  # A A B A: the section that each section repeats
LEAST = 2  # bars of a section at least
SAMPLING = 1.0, 0.98  # temperature and top-p of new songs
LOOSER = 1 / 3  # of the chroma guidance, toward chords that nobody asked for
THEME = 0.5  # part of a theme's residual in the other bars of its section


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


def themes(sizes: Sequence[int]) -> NDArray[np.int64]:
    """`(C,)`: the bar that is the theme of each bar, the one with most of `sizes (C,)` in a section like the bar's.

    Sections are those of `order`, and have four bars where these would be uneven.

    >>> themes([1, 3, 1, 1, 1, 2, 1, 1]).tolist()
    [1, 1, 1, 1, 5, 5, 1, 1]
    """
    at = np.arange(len(sizes))
    repeats = order(len(sizes))
    section = len(FORM) if (repeats == at).all() else len(sizes) // len(FORM)
    first = repeats - at % section
    return np.array([a + int(np.argmax(sizes[a : a + section])) for a in first.tolist()], np.int64)


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

    def generate_tokens(
        self, z: Tensor, given: Given | None, sampling: Sampling, harmony: Floats | None = None, strength: float = 0.0,
        guide: Guide | None = None,
    ) -> list[Ints]:  # fmt: skip
        """Token ids of bars."""

    def tensors(self, segments: Sequence[list[Ints]]) -> tuple[Tensor, Tensor]:
        """Tokens and position fields."""


def composed(
    codec: BarCodec, z: Tensor, given: Given | None, sampling: Sampling, guide: Guide | None = None,
    repeats: NDArray[np.int64] | None = None,
) -> tuple[Tensor, list[Ints]]:  # fmt: skip
    """A new song: latent vectors `(S, D)` with the song vectors of `z (S, D)`, and the bars' token ids.

    The bars are drawn twice, under the conditions `given (C,)`, whose harmony stands for chord symbols, and the
    guidance of `guide`: first each from the prior's mean, that is without a residual. The fullest bar of a section is
    its theme, and the others are drawn again with a part THEME of the theme's residual, so that a section has one
    rhythm. Bar i repeats the bar `repeats[i]` before it, by default as in `order`; the last bar of a section that
    repeats another is written anew.
    """
    repeats = order(len(z)) if repeats is None else repeats
    known = batches.filled(no_melody(given), len(z))
    assert known is not None
    known = known.copy()
    known["has_harmony"] *= CHORD_SYMBOLS
    drafted = known.copy()
    drafted["has_bar"] = 0.0
    rows = z.clone()
    rows[:, codec.model.shared :] = 0.0
    bars = codec.generate_tokens(rows, drafted, sampling, guide=guide)
    drafts = codec.model.read(*codec.tensors([[bar] for bar in bars]), rows, known)
    theme = themes([len(bar) for bar in bars])
    part = np.where(np.arange(len(z)) == theme, 0.0, THEME)
    drafted["has_bar"] = part
    rows[:, codec.model.shared :] = torch.from_numpy(part)[:, None] * drafts[theme, codec.model.shared :]
    bars = codec.generate_tokens(rows, drafted, sampling, guide=guide)
    for i, first in enumerate(repeats.tolist()):
        goes_on = i + 1 < len(repeats) and repeats[i + 1] == first + 1
        if first < i and goes_on:
            bars[i] = bars[first]
    return codec.model.read(*codec.tensors([[bar] for bar in bars]), rows, known), bars
