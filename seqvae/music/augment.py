"""Augmentation of music tokens for training: mixing of tracks.

Scope: padded chunks of tokens. `types (V,)` and `values (V,)` are those of `MidiTokenizer`. Out of scope: when to
augment (train/trainer.py).
"""

from __future__ import annotations

import numpy as np

from seqvae.music.grammar import PROGRAM
from seqvae.protocols import EOS, PAD, Ints


def mix(tokens: Ints, others: Ints, rng: np.random.Generator, types: Ints, values: Ints) -> Ints:
    """Add to each segment `(B, C, T)` about half of another's tracks, of instruments that it does not have."""
    rows: list[list[Ints]] = []
    for mine, other in zip(tokens, others, strict=True):
        tracks = [_tracks(chunk, types, values) for chunk in mine]
        extra = [_tracks(chunk, types, values) for chunk in other]
        new = sorted({program for chunk in extra for program in chunk} - {p for chunk in tracks for p in chunk})
        taken = {program for program in new if rng.random() < 0.5}
        for here, more in zip(tracks, extra, strict=True):
            here |= {program: more[program] for program in taken & more.keys()}
        rows.append([np.concatenate([*(t[p] for p in sorted(t)), np.array([EOS], np.int32)]) for t in tracks])
    out = np.full((*tokens.shape[:2], max(len(chunk) for row in rows for chunk in row)), PAD, np.int32)
    for i, row in enumerate(rows):
        for c, chunk in enumerate(row):
            out[i, c, : len(chunk)] = chunk
    return out


def _tracks(chunk: Ints, types: Ints, values: Ints) -> dict[int, Ints]:
    """The tokens of a chunk by program."""
    chunk = chunk[types[chunk] > 0]
    starts = np.flatnonzero(types[chunk] == PROGRAM)
    return {int(values[part[0]]): part for part in np.split(chunk, starts)[1:]}
