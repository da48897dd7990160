"""A pass of the song model over windows of songs, for train_songs.py.

Scope: bars in slots of fixed length, their encoding and decoding, sums of nats; song vectors of a collection. Out of
scope: optimizers and schedules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from song_batches import WINDOW, Bars, Batches
from torch import Tensor
from torch.nn import functional

from seqvae.nn.binding import shifted
from seqvae.nn.loss import masked
from seqvae.nn.song_model import Conditions, Keys, SongModel, gaussian_kl, place_fields
from seqvae.protocols import EOS, PAD

EXPECTED = 0.5
"""Share of the windows of training that are decoded from the prior's mean, or from between it and the bar vector, as
new and moved bars are: half of these from the mean alone."""
LONGEST = 384
"""Bars with more tokens are left out."""


@dataclass
class Step:
    """Sums over a batch, in nats, and counts, as scalar tensors."""

    nats: Tensor
    kl_bar: Tensor
    kl_song: Tensor
    right: Tensor
    tokens: Tensor
    bars: Tensor
    windows: int


# (share of the bars, tokens) of each slot of a batch, the longest bars first. Fixed shapes let memory be reused, and a
# step be recorded as one graph of kernels.
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
"""Padded lengths of bars on a CPU, in tokens."""
GROUP_TOKENS = 1536
"""Tokens of a slot on a CPU, padding included, so the length determines the shape. oneDNN compiles its kernels for each
shape, which takes longer than to run them once; with shapes that followed the batch, it took two thirds of a step."""


def slots(sizes: Tensor) -> list[tuple[int, int, int, int]]:
    """(first, end, rows, tokens) of each slot, the longest bars first; `sizes (N,)` are their tokens, descending.

    A slot of fewer bars than `rows` is filled with empty ones.
    """
    out, first, count = [], 0, len(sizes)
    if sizes.device.type == "cpu":  # no graph to record: the number of slots may vary
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
    """Number of bars; the other rows are empty."""
    rows: Tensor
    """Indices of the bars in the batch `(K,)`; 0 in empty rows."""
    tokens: Tensor
    """Tokens `(K, T)`; EOS alone for a bar that does not fit."""
    fit: Tensor
    """Whether each bar fits and has tokens `(K,)`."""


def placed(bars: Bars, flat: Tensor, counts: Tensor) -> list[Slot]:
    """Slots with the bars `flat (N,)` of `counts (N,)` tokens, the longest first."""
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


@dataclass(frozen=True)
class Read:
    """The bars of a slot as the model reads them, for the encoder and for the decoder."""

    slot: Slot
    fields: Tensor
    """Position fields `(K, T, 3)`."""
    keys: Keys
    bound: Tensor
    """Bound tokens `(K, T, W)`."""


def encoded(model: SongModel, placement: list[Slot], count: int) -> tuple[Tensor, Tensor, list[Read]]:
    """Features `(N, F)` of the N bars of `placement`, 1.0 for each that fits, else 0.0, `(N,)`, and the bars read."""
    read, parts = [], []
    for slot in placement:
        fields = place_fields(slot.tokens, model.kind, model.value)
        keys = model.keys(fields)
        read.append(Read(slot, fields, keys, model.bound(slot.tokens, keys)))
        parts.append(model.encoder(read[-1].bound, slot.tokens != PAD)[: slot.count].float())
    order = torch.cat([slot.rows[: slot.count] for slot in placement])
    features = torch.cat(parts)
    fits = torch.cat([slot.fit[: slot.count] for slot in placement]).float()
    use = torch.zeros(count, device=order.device).index_copy(0, order, fits)
    return torch.zeros_like(features).index_copy(0, order, features), use, read


def decoded(
    model: SongModel, read: list[Read], z: Tensor, song: Tensor, given: Conditions, mask: float
) -> tuple[Tensor, Tensor, Tensor]:
    """-log p in nats, correct tokens and tokens of all bars, given `z (N, D)` and song vectors `song (N, E)`.

    A share `mask` of the decoder's input tokens is masked.
    """
    nats, right, count = (torch.zeros((), device=z.device) for _ in range(3))
    for bars in read:
        tokens, rows, fit = bars.slot.tokens, bars.slot.rows, bars.slot.fit[:, None]
        before, place = shifted(tokens), functional.pad(bars.fields[:, :-1], (0, 0, 1, 0))
        written = model.written_part(before, functional.pad(bars.bound[:, :-1], (0, 0, 1, 0)))
        hidden = model.teacher_forced(
            masked(before, mask), bars.fields, bars.keys, written, z[rows], song[rows], given.rows(rows)
        )
        found, hits = model.nats(hidden, tokens, model.allowed(before, place, bars.fields, given.length[rows]))
        nats = nats + (found * fit).sum()
        right = right + (hits & fit).sum()
        count = count + ((tokens != PAD) & fit).sum()
    return nats, right, count


def pass_over(
    model: SongModel, batches: Batches, index: Tensor, valid: Tensor, sample: bool = True, history: float = 0.5,
    swap: bool = False, expected: float = 0.0,
) -> Step:  # fmt: skip
    """A pass over windows `index (R, 2, W)`; `swap` uses the song vector of another song, as a control.

    A share `expected` of the windows is decoded from the prior's mean; in training it is EXPECTED.
    """
    bars = batches.bars
    device, training, r = index.device, batches.training, len(index)
    flat = index.flatten()
    counts = torch.where(valid.flatten(), bars.counts[flat], 0)
    counts = torch.where(counts <= LONGEST, counts, 0)
    placement = placed(bars, flat, counts)
    features, use, read = encoded(model, placement, len(flat))
    q = model.bar_posterior(features)
    z = q.sample() if sample else q.mean
    window = torch.arange(len(flat), device=device) // WINDOW
    counted = (use * (counts > 1)).view(2 * r, WINDOW)  # bars without notes have no evidence of the song
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
    # the part of the bars' residuals that is kept: all, or a random part, or nothing
    drawn = torch.rand(2, 2 * r, device=device)
    part = (2 * drawn[0] - 1).clamp(min=0) if training else torch.zeros_like(drawn[0])
    whole = drawn[1] >= (EXPECTED if training else expected)
    given = replace(given, has_bar=torch.where(whole, 1.0, part)[window])
    z = torch.lerp(mean.flatten(0, 1), z, given.has_bar[:, None])
    nats, right, tokens = decoded(model, read, z, song, given, 0.2 if training else 0.0)
    return Step(nats, (kl * use).sum(), qs.kl().sum(), right, tokens, use.sum(), 2 * r)


@torch.no_grad()
def song_vectors(model: SongModel, bars: Bars, most: int = 64) -> Tensor:
    """Means of q(s | bars) of every song `(songs, E)`, from up to `most` evenly spaced bars."""
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
