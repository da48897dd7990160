"""The styles that a finished checkpoint comes with: those of the pieces that it was trained on.

Knows: which pieces and how many segments of each stand for a style, and when there are points enough for a mixture.
Refuses to know: how a style is fitted (style/vectors.py, style/mixture.py), and how the model was trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.checkpoint import folder as checkpoint
from seqvae.codec import Ints, load
from seqvae.data.dataset import Longs, TokenData
from seqvae.music.band import Ensemble
from seqvae.protocols import PAD
from seqvae.style import mixture
from seqvae.style import vectors as style

Report = Callable[[str], None]
Floats = NDArray[np.float64]
STYLE_PIECES = 20000  # of one style at most: its mean is known long before
MIXTURE = 64  # groups of the mixture, where there are points enough: 16 and 256 drew sentences less like real ones
STYLE_BATCH = 4096  # segments gathered at a time


def pieces_of_styles(data: TokenData, rng: np.random.Generator, most: int = STYLE_PIECES) -> dict[str, Longs]:
    """At most so many pieces of each style of the training split, drawn at random; in order, and shard by shard."""
    kept: dict[int, tuple[Floats, Longs]] = {}  # those that drew the smallest numbers so far
    for number in range(data.index["shards"]):
        shard = data.shard(number)
        trained = np.flatnonzero(data.in_split(shard.pieces["group"], "train"))
        styles, drawn = shard.pieces["style"][trained], rng.random(len(trained))
        for one in np.unique(styles).tolist():
            before, pieces = kept.get(one, (np.zeros(0), np.zeros(0, np.int64)))
            draws = np.concatenate([before, drawn[styles == one]])
            pieces = np.concatenate([pieces, shard.begin + trained[styles == one]])
            least = np.argsort(draws)[:most]
            kept[one] = draws[least], pieces[least]
    return {data.styles[one]: np.sort(pieces) for one, (_, pieces) in kept.items()}


def fit_styles(folder: Path, data: TokenData, report: Report, segments: int = 16, most: int = STYLE_PIECES) -> None:
    """Fit every style of the training split, and `all` of them together, and write them into the checkpoint.

    At most `segments` segments in a row of each piece, from a random place, and of at most `most` pieces a style.
    """
    codec = load(folder)
    rng = np.random.default_rng(0)
    latents: dict[str, list[Tensor]] = {}
    ensembles: dict[str, Ensemble | None] = {}
    draws: list[Tensor] = []  # of the posteriors: what the mixture is to be like, wider than their means
    generator = torch.Generator().manual_seed(0)
    for name, chosen in sorted(pieces_of_styles(data, rng, most).items()):
        pieces, firsts, _ = data.windows(chosen, codec.chunks)
        # of each piece some segments in a row: rank them within the piece, and begin at a place of its own
        rank = np.arange(len(pieces)) - np.searchsorted(pieces, pieces)
        count = np.searchsorted(pieces, pieces, side="right") - np.searchsorted(pieces, pieces)
        place = rng.random(len(chosen))[np.searchsorted(chosen, pieces)]
        begin = (place * np.maximum(1, count - segments + 1)).astype(np.int64)
        kept = (rank >= begin) & (rank < begin + segments)
        pieces, firsts = pieces[kept], firsts[kept]
        means: list[Tensor] = []
        songs: list[list[Ints]] = [[] for _ in np.unique(pieces)]
        place_of = np.unique(pieces, return_inverse=True)[1]
        for at in range(0, len(pieces), STYLE_BATCH):
            tokens = data.gather(pieces[at : at + STYLE_BATCH], firsts[at : at + STYLE_BATCH], codec.chunks)
            rows = [[chunk[chunk != PAD] for chunk in segment] for segment in tokens]
            posterior = codec.posteriors(rows)
            for song, segment in zip(place_of[at : at + STYLE_BATCH], rows, strict=True):
                songs[song] += segment
            means.append(posterior.mean)
            draws.append(posterior.sample(generator))
        if means:
            _, sizes = np.unique(pieces, return_counts=True)
            latents[name] = list(torch.split(torch.cat(means), sizes.tolist()))
            ensembles[name] = codec.form.ensemble(songs)
    about = "{}: {} pieces of the training split"
    styles = {
        name: replace(style.fit(z, about.format(name, len(z))), ensemble=ensembles[name])
        for name, z in sorted(latents.items())
    }
    everything = [z for one in latents.values() for z in one]
    styles["all"] = style.fit(everything, about.format("all styles", len(everything)))
    kept = checkpoint.load(folder)
    kept.styles, kept.about_styles = style.pack(styles)
    if all(len(z) == 1 for z in everything):  # longer pieces are drawn segment after segment, each leaning on the last
        drawn = torch.cat(draws)
        kept.styles |= mixture.pack(mixture.fit(drawn, min(MIXTURE, max(1, len(drawn) // 300))))
    checkpoint.save(kept, folder)
    report("styles: " + ", ".join(f"{name} ({one.count} pieces)" for name, one in styles.items()))
