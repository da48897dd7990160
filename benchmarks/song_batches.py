"""Training batches of the song model for train_songs.py: bars on a device, windows of songs, and conditions of bars.

Scope: the file of song_data.py, random pairs of windows, harmony and melody with dropout. Out of scope: the model and
its training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seqvae.config import SongConfig
from seqvae.nn.song_model import CHORD_SYMBOLS, Conditions
from seqvae.protocols import PAD

WINDOW = 8
"""Bars of a window; the song vector of one window is inferred from the other of its song."""


@dataclass
class Bars:
    """All bars of a collection on one device."""

    tokens: Tensor
    start: Tensor
    counts: Tensor
    lengths: Tensor
    chroma: Tensor
    bass: Tensor
    melody: Tensor
    song: np.ndarray
    split: np.ndarray
    style: np.ndarray
    kind: Tensor
    value: Tensor

    @staticmethod
    def load(path: Path, device: torch.device) -> Bars:
        """The content of a file of bars."""
        d = dict(np.load(path))

        def put(x: np.ndarray) -> Tensor:
            return torch.from_numpy(x).to(device)

        def starts(counts: np.ndarray) -> np.ndarray:
            return np.concatenate([[0], counts.astype(np.int64).cumsum()])[:-1]

        packed = d["chroma"]
        chroma = np.empty((*packed.shape[:-1], 12), np.uint8)
        chroma[..., 0::2], chroma[..., 1::2] = packed & 15, packed >> 4
        melody = np.zeros((len(d["counts"]), 48, 2), np.uint8)
        melody[np.repeat(np.arange(len(melody)), d["mel_counts"]), d["mel"][:, 0]] = d["mel"][:, 1:]
        return Bars(
            put(d["tokens"].astype(np.int16)), put(starts(d["counts"])), put(d["counts"].astype(np.int64)),
            put(d["lengths"]), put(chroma), put(d["bass"]),
            put(melody),
            d["song"].astype(np.int64), d["split"], d["style"], put(d["kind"].astype(np.int64)),
            put(d["value"].astype(np.int64)),
        )  # fmt: skip

    def padded(self, bars: Tensor, size: int) -> Tensor:
        """Tokens `(N, T)` of some bars."""
        at = torch.arange(size, device=bars.device)
        inside = at < self.counts[bars][:, None]
        index = (self.start[bars][:, None] + at).clamp(max=len(self.tokens) - 1)
        return torch.where(inside, self.tokens[index].long(), PAD)


def windows(bars: Bars, songs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Bar indices `(R, 2, W)` of two disjoint windows of each song, and a mask of the bars that exist."""
    first, end = bars.song[songs], bars.song[songs + 1]
    size = end - first
    half = np.minimum(WINDOW, size // 2)
    # a in [0, size - 2 half], b in [a + half, size - half], then either order
    a = (rng.random(len(songs)) * (size - 2 * half + 1)).astype(np.int64)
    b = a + half + (rng.random(len(songs)) * (size - 2 * half - a + 1)).astype(np.int64)
    pair = np.stack([a, b], 1)
    swap = rng.random(len(songs)) < 0.5
    pair[swap] = pair[swap][:, ::-1]
    offset = np.arange(WINDOW)
    valid = np.broadcast_to(offset < half[:, None, None], (len(songs), 2, WINDOW)).copy()
    index = first[:, None, None] + pair[..., None] + np.minimum(offset, (half - 1)[:, None, None])
    return index, valid


def chord_templates(device: torch.device) -> tuple[Tensor, Tensor]:
    """Binary chord templates `(K, 12)` on all roots, and their roots `(K,)`."""
    shapes = [(0, 4, 7), (0, 3, 7), (0, 4, 7, 10), (0, 3, 7, 10), (0, 4, 7, 11), (0, 3, 6), (0, 5, 7)]
    rows, roots = [], []
    for root in range(12):
        for shape in shapes:
            row = torch.zeros(12)
            row[[(root + step) % 12 for step in shape]] = 1.0
            rows.append(row)
            roots.append(root)
    return torch.stack(rows).to(device), torch.tensor(roots, device=device)


class Batches:
    """Conditions of bars, with dropout in training."""

    def __init__(self, bars: Bars, config: SongConfig, training: bool) -> None:
        self.bars, self.config, self.training = bars, config, training
        self.chords, self.roots = chord_templates(bars.tokens.device)
        self.classes = torch.eye(13, device=bars.tokens.device)[:, 1:]  # pitch class + 1 to one-hot, 0 to none

    def conditions(self, index: Tensor, window: Tensor, count: int) -> Conditions:
        """Conditions of the bars `index (N,)`, with dropout by window; `window (N,)` is below `count`."""
        bars, device = self.bars, index.device
        chroma = bars.chroma[index].float() / 15.0
        bass = self.classes[bars.bass[index].long()]
        melody = bars.melody[index].long()
        one = torch.ones(len(index), device=device)
        if not self.training:
            return Conditions(bars.lengths[index].long(), torch.cat([chroma, bass], -1), one, melody, one, one)
        kind = torch.rand(count, device=device)[window]
        symbols = (kind >= 0.15) & (kind < 0.45)
        has_harmony = torch.where(symbols, CHORD_SYMBOLS, (kind >= 0.15).float())
        as_chord = symbols[:, None, None].float()
        # the chord template nearest to a beat's chroma, with its root in the bass; zeros for silence
        near = (chroma / chroma.norm(dim=-1, keepdim=True).clamp(min=1e-6)) @ (
            self.chords / self.chords.norm(dim=-1, keepdim=True)
        ).T
        best = (near + 0.15 * bass[..., self.roots]).argmax(-1)
        sounds = (chroma.sum(-1, keepdim=True) > 0).float()
        chord = torch.cat([self.chords[best], self.classes[self.roots[best] + 1]], -1) * sounds
        keep_bass = (torch.rand(count, device=device) < 0.8).float()[window][:, None, None]
        plain = torch.cat([chroma, bass * keep_bass], -1)
        harmony = (as_chord * chord + (1 - as_chord) * plain) * (kind >= 0.15)[:, None, None]
        has_melody = (torch.rand(count, device=device) < 0.5)[window]
        melody = melody * has_melody[:, None, None]
        return Conditions(bars.lengths[index].long(), harmony, has_harmony, melody, has_melody.float(), one)
