"""One pass of the song model over windows of songs, for train_songs.py.

Scope: bars in slots of equal length, their encoding and decoding, sums of nats; song vectors of a collection. Out of
scope: optimizers and time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from song_batches import WINDOW, Bars, Batches
from torch import Tensor
from torch.nn import functional

from seqvae.nn.binding import shifted
from seqvae.nn.loss import masked
from seqvae.nn.song_model import Conditions, SongModel, gaussian_kl
from seqvae.protocols import EOS, PAD

LONGEST = 384
"""Bars with more tokens are left out."""


@dataclass
class Step:
    """Sums over a batch, in nats, and counts; all tensors without dimensions."""

    nats: Tensor
    kl_bar: Tensor
    kl_song: Tensor
    right: Tensor
    tokens: Tensor
    bars: Tensor
    windows: int


# (share of the bars, tokens): where the bars of a batch go, the longest first. Shapes that never change are what memory
# is reused for, and what can be recorded as one graph of kernels.
SLOTS = (
    (1 / 32, 384),
    (1 / 16, 208),
    (3 / 32, 160),
    (5 / 32, 120),
    (7 / 32, 80),
    (7 / 32, 56),
    (5 / 32, 40),
    (1 / 16, 24),
)


LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
"""Lengths of bars on a CPU, in tokens."""
GROUP_TOKENS = 1536
"""Tokens of a group on a CPU, padding included: with its length a group has its shape. oneDNN compiles its kernels for
each shape, which takes longer than to run them once; with shapes that followed the batch, two thirds of a step."""


def slots(sizes: Tensor) -> list[tuple[int, int, int, int]]:
    """(first, end, rows, tokens) of the places of bars, the longest first; `sizes (N,)` are their tokens, falling.

    A slot of fewer bars than `rows` is filled with empty ones.
    """
    out, first, count = [], 0, len(sizes)
    if sizes.device.type == "cpu":  # no graph to record: as many groups as it takes
        known = sizes.tolist()
        while first < count:
            longest = next(length for length in LENGTHS if length >= known[first])
            rows = GROUP_TOKENS // longest
            out.append((first, min(first + rows, count), rows, longest))
            first += rows
        return out
    for i, (share, size) in enumerate(SLOTS):
        end = count if i == len(SLOTS) - 1 else first + round(share * count)
        if end > first:
            out.append((first, end, end - first, size))
        first = end
    return out


@dataclass(frozen=True)
class Slot:
    """Bars of about equal length, padded to the same number of tokens."""

    count: int
    """How many they are; the other rows are empty."""
    rows: Tensor
    """Their numbers among the bars of a batch `(K,)`; 0 in empty rows."""
    tokens: Tensor
    """Their tokens `(K, T)`; EOS alone for a bar that does not fit."""
    fit: Tensor
    """Whether each fits and has tokens `(K,)`."""


def placed(bars: Bars, flat: Tensor, counts: Tensor) -> list[Slot]:
    """The bars `flat (N,)` of `counts (N,)` tokens by slot, the longest first."""
    order = counts.argsort(descending=True, stable=True)
    size = counts[order]
    out = []
    for first, end, count, longest in slots(size):
        empty_rows = (0, count - (end - first))
        fit = functional.pad((size[first:end] > 0) & (size[first:end] <= longest), empty_rows)
        rows = functional.pad(order[first:end], empty_rows)
        tokens = bars.padded(flat[rows], longest)
        empty = torch.full_like(tokens, PAD)
        empty[:, 0] = EOS
        out.append(Slot(end - first, rows, torch.where(fit[:, None], tokens, empty), fit))
    return out


def encoded(model: SongModel, places: list[Slot], count: int) -> tuple[Tensor, Tensor]:
    """Features `(N, F)` of the N bars of `places`, and 1.0 for each that fits, else 0.0, `(N,)`."""
    order = torch.cat([slot.rows[: slot.count] for slot in places])
    features = torch.cat([model.bar_features(slot.tokens)[: slot.count] for slot in places]).float()
    fits = torch.cat([slot.fit[: slot.count] for slot in places]).float()
    use = torch.zeros(count, device=order.device).index_copy(0, order, fits)
    return torch.zeros_like(features).index_copy(0, order, features), use


def decoded(
    model: SongModel, places: list[Slot], z: Tensor, song: Tensor, given: Conditions, mask: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Nats, number of right tokens and number of tokens of all bars, from `z (N, D)` and song vectors `song (N, E)`.

    A share `mask` of the tokens before each step is masked.
    """
    nats, right, count = (torch.zeros((), device=z.device) for _ in range(3))
    for slot in places:
        inputs = masked(shifted(slot.tokens), mask)
        rows = slot.rows
        logits = model.decode_logits(slot.tokens, inputs, z[rows], song[rows], given.rows(rows)).float().flatten(0, 1)
        targets = torch.where(slot.fit[:, None], slot.tokens, PAD).flatten()
        nats = nats + functional.cross_entropy(logits, targets, ignore_index=PAD, reduction="sum")
        right = right + ((logits.detach().argmax(-1) == targets) & (targets != PAD)).sum()
        count = count + (targets != PAD).sum()
    return nats, right, count


def pass_over(
    model: SongModel, batches: Batches, index: Tensor, valid: Tensor, sample: bool = True, history: float = 0.5,
    swap: bool = False,
) -> Step:  # fmt: skip
    """One pass over windows `index (R, 2, W)`; `swap` gives each song another one's song vector, as a control."""
    bars = batches.bars
    device, training, r = index.device, batches.training, len(index)
    flat = index.flatten()
    counts = torch.where(valid.flatten(), bars.counts[flat], 0)
    counts = torch.where(counts <= LONGEST, counts, 0)
    places = placed(bars, flat, counts)
    features, use = encoded(model, places, len(flat))
    q = model.bar_posterior(features)
    z = q.sample() if sample else q.mean
    window = torch.arange(len(flat), device=device) // WINDOW
    counted = (use * (counts > 1)).view(2 * r, WINDOW)  # bars without notes say nothing of who plays
    qs = model.song_posterior(features.view(2 * r, WINDOW, -1), counted)
    s = qs.sample() if sample else qs.mean
    other = torch.arange(2 * r, device=device).view(r, 2).flip(1).flatten()  # the other window of the song
    if swap:
        other = other.roll(2)
    given = batches.conditions(flat, window, 2 * r)
    s = s[other]
    if training:
        keep = (torch.rand(2 * r, 1, device=device) >= 0.1).float()
        s = keep * s + (1 - keep) * model.no_song
    song = s[window]
    past = (torch.rand(2 * r, device=device) < history).float()
    joint = torch.cat([song, model.condition(given)], -1).view(2 * r, WINDOW, -1)
    mean, logvar = model.prior(joint, z.view(2 * r, WINDOW, -1), past)
    kl = gaussian_kl(q, mean.flatten(0, 1), logvar.flatten(0, 1)).sum(-1)
    nats, right, tokens = decoded(model, places, z, song, given, 0.2 if training else 0.0)
    return Step(nats, (kl * use).sum(), qs.kl().sum(), right, tokens, use.sum(), 2 * r)


@torch.no_grad()
def song_vectors(model: SongModel, bars: Bars, most: int = 64) -> Tensor:
    """Means of q(s | bars) of every song, `(songs, E)`, from up to `most` bars spread over it."""
    model.eval()
    out = torch.zeros(len(bars.song) - 1, model.config.song)
    for first in range(0, len(out), 64):
        rows = [
            np.unique(np.linspace(a, b - 1, most).astype(np.int64)) if b - a > most else np.arange(a, b)
            for a, b in zip(bars.song[first : first + 64], bars.song[first + 1 : first + 65], strict=False)
        ]
        flat = torch.from_numpy(np.concatenate(rows)).to(bars.tokens.device)
        order = bars.counts[flat].clamp(max=LONGEST).argsort()
        features = torch.zeros(len(flat), model.encoder.size, device=flat.device)
        for part in order.chunk(8):
            size = -(-int(bars.counts[flat[part]].clamp(max=LONGEST).max()) // 8) * 8
            features[part] = model.bar_features(bars.padded(flat[part], size)).float()
        at = 0
        for i, row in enumerate(rows):
            mine = slice(at, at + len(row))
            at += len(row)
            sounding = (bars.counts[flat[mine]] > 1).float()
            out[first + i] = model.song_posterior(features[None, mine], sounding[None]).mean[0].cpu()
    return out
