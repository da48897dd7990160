"""Styles of a finished checkpoint, fitted on its training pieces.

Scope: the choice of pieces and segments for each style, and of a mixture. Out of scope: fitting itself
(style/gaussian.py, style/mixture.py), and training.
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
from seqvae.codec import Codec, Ints, load
from seqvae.data.dataset import Longs, TokenData
from seqvae.modality import counted, modality
from seqvae.music.band import Ensemble
from seqvae.protocols import PAD
from seqvae.style import gaussian, mixture, offsets, styles_file

Report = Callable[[str], None]
Floats = NDArray[np.float64]
STYLE_PIECES = 20000  # maximum pieces of a style; its mean converges with far fewer
MIXTURE = 64  # components of the mixture with enough points; samples with 16 and 256 were less like real sentences
STYLE_BATCH = 4096  # segments gathered at a time


def pieces_of_styles(data: TokenData, rng: np.random.Generator, most: int = STYLE_PIECES) -> dict[str, Longs]:
    """At most `most` random training pieces of each style, sorted; reads shard by shard."""
    kept: dict[int, tuple[Floats, Longs]] = {}  # pieces with the smallest random numbers so far
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


def _stretches(
    data: TokenData, chosen: Longs, chunks: int, segments: int, rng: np.random.Generator
) -> tuple[Longs, Longs]:
    """At most `segments` consecutive segments of each of the pieces `chosen`, from a random start.

    For each segment its piece and its first chunk.
    """
    pieces, firsts, _ = data.windows(chosen, chunks)
    rank = np.arange(len(pieces)) - np.searchsorted(pieces, pieces)  # of a segment within its piece
    count = np.searchsorted(pieces, pieces, side="right") - np.searchsorted(pieces, pieces)
    place = rng.random(len(chosen))[np.searchsorted(chosen, pieces)]
    begin = (place * np.maximum(1, count - segments + 1)).astype(np.int64)
    kept = (rank >= begin) & (rank < begin + segments)
    return pieces[kept], firsts[kept]


def _encoded(
    codec: Codec, data: TokenData, pieces: Longs, firsts: Longs, generator: torch.Generator
) -> tuple[list[Tensor], list[Tensor], list[list[Ints]]]:
    """Posterior means of segments and draws from their posteriors, by batch `(B, D)`; the tokens of each piece."""
    means: list[Tensor] = []
    draws: list[Tensor] = []
    _, index = np.unique(pieces, return_inverse=True)
    songs: list[list[Ints]] = [[] for _ in np.unique(pieces)]
    for at in range(0, len(pieces), STYLE_BATCH):
        here = slice(at, at + STYLE_BATCH)
        tokens = data.gather(pieces[here], firsts[here], codec.chunks)
        rows = [[chunk[chunk != PAD] for chunk in segment] for segment in tokens]
        posterior = codec.posteriors(rows)
        for song, segment in zip(index[here], rows, strict=True):
            songs[song] += segment
        means.append(posterior.mean)
        draws.append(posterior.sample(generator))
    return means, draws, songs


def fit_styles(folder: Path, data: TokenData, report: Report, segments: int = 16, most: int = STYLE_PIECES) -> None:
    """Fit every style of the training split, and `all` of them together, and add them to the checkpoint.

    From each piece at most `segments` consecutive segments, from a random start; at most `most` pieces a style.
    """
    codec = load(folder)
    rng = np.random.default_rng(0)
    latents: dict[str, list[Tensor]] = {}
    ensembles: dict[str, Ensemble | None] = {}
    lines: dict[str, list[str]] = {}
    of_lines = modality(codec.tokenizer.kind).content == "sentences"
    draws: list[Tensor] = []  # from the posteriors, for the mixture: wider than posterior means
    generator = torch.Generator().manual_seed(0)
    for name, chosen in sorted(pieces_of_styles(data, rng, most).items()):
        pieces, firsts = _stretches(data, chosen, codec.chunks, segments, rng)
        means, drawn, songs = _encoded(codec, data, pieces, firsts, generator)
        draws += drawn
        if means:
            _, sizes = np.unique(pieces, return_counts=True)
            latents[name] = list(torch.split(torch.cat(means), sizes.tolist()))
            ensembles[name] = codec.adapter.ensemble(songs)
            if of_lines:
                lines[name] = [codec.adapter.assemble(song, "") for song in songs]
    about = "{}: {} pieces of the training split"
    styles = {
        name: replace(gaussian.fit(z, about.format(name, len(z))), ensemble=ensembles[name])
        for name, z in sorted(latents.items())
    }
    styles = offsets.fitted_together(codec, styles, lines)
    everything = [z for one in latents.values() for z in one]
    styles["all"] = offsets.centre(gaussian.fit(everything, about.format("all styles", len(everything))), styles)
    kept = checkpoint.load(folder)
    kept.styles, kept.about_styles = styles_file.pack(styles)
    if all(len(z) == 1 for z in everything):  # longer pieces are sampled segment by segment instead
        points = torch.cat(draws)
        kept.styles |= mixture.pack(mixture.fit(points, min(MIXTURE, max(1, len(points) // 300))))
    checkpoint.save(kept, folder)
    report(
        "styles: " + ", ".join(f"{name} ({counted(one.count, codec.tokenizer.kind)})" for name, one in styles.items())
    )
