"""Trains the song model on prepared bars, for a number of minutes, on a GPU or a CPU.

python benchmarks/train_songs.py data.npz OUT --minutes 9      # resumable here: --resume OUT/state.pt

Needs torch, numpy and safetensors alone. Prints a line every ten seconds and saves weights in bf16 every two minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from train_sentences import Muon

from seqvae.layers import TransformerLayer, multiplies_bf16, shifted
from seqvae.objective import masked
from seqvae.song_model import Conditions, SongConfig, SongModel, gaussian_kl
from seqvae.vocabulary import PAD

WINDOW = 8
"""Bars of a window; the song vector of one window is inferred from the other of its song."""
LONGEST = 384
"""Bars with more tokens are left out."""
PART = 14 << 20
"""Bytes of one file of weights."""


@dataclass
class Bars:
    """All bars of a collection on one device."""

    tokens: Tensor
    start: Tensor
    counts: Tensor
    lengths: Tensor
    chroma: Tensor
    bass: Tensor
    melody_start: Tensor
    melody_counts: Tensor
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
        return Bars(
            put(d["tokens"].astype(np.int16)), put(starts(d["counts"])), put(d["counts"].astype(np.int64)),
            put(d["lengths"]), put(chroma), put(d["bass"]),
            put(starts(d["mel_counts"])), put(d["mel_counts"].astype(np.int64)), put(d["mel"]),
            d["song"].astype(np.int64), d["split"], d["style"], put(d["kind"].astype(np.int64)),
            put(d["value"].astype(np.int64)),
        )  # fmt: skip

    def padded(self, bars: Tensor, size: int) -> Tensor:
        """Tokens `(N, T)` of some bars."""
        at = torch.arange(size, device=bars.device)
        inside = at < self.counts[bars][:, None]
        index = (self.start[bars][:, None] + at).clamp(max=len(self.tokens) - 1)
        return torch.where(inside, self.tokens[index].long(), PAD)

    def melodies(self, bars: Tensor, steps: int) -> Tensor:
        """Melody grids `(N, S, 2)` of some bars."""
        most = int(self.melody_counts[bars].max()) if len(bars) else 0
        at = torch.arange(most, device=bars.device)
        inside = at < self.melody_counts[bars][:, None]
        rows = self.melody[(self.melody_start[bars][:, None] + at).clamp(max=len(self.melody) - 1)].long()
        grid = torch.zeros(len(bars), steps + 1, 2, dtype=torch.long, device=bars.device)
        place = torch.where(inside, rows[..., 0], steps)
        grid.scatter_(1, place[..., None].expand(-1, -1, 2), rows[..., 1:])
        return grid[:, :steps]


def windows(bars: Bars, songs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """For each of some songs two windows of bars `(R, 2, W)` that do not overlap, and which bars are there."""
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
    """Chords `(K, 12)` of 0 and 1 on all roots, and their roots `(K,)`."""
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
    """Conditions of bars with what is left out at random."""

    def __init__(self, bars: Bars, config: SongConfig, training: bool) -> None:
        self.bars, self.config, self.training = bars, config, training
        self.chords, self.roots = chord_templates(bars.tokens.device)

    def conditions(self, index: Tensor, window: Tensor, count: int) -> Conditions:
        """Of bars `index (N,)` in windows `window (N,)`, of which there are `count`: one choice for each window."""
        bars, device = self.bars, index.device
        chroma = bars.chroma[index].float() / 15.0
        bass = functional.one_hot(bars.bass[index].long(), 13)[..., 1:].float()
        melody = bars.melodies(index, self.config.steps)
        if not self.training:
            one = torch.ones(len(index), device=device)
            return Conditions(bars.lengths[index].long(), torch.cat([chroma, bass], -1), one, melody, one)
        kind = torch.rand(count, device=device)[window]
        has_harmony = (kind >= 0.15).float()
        as_chord = ((kind >= 0.15) & (kind < 0.45))[:, None, None].float()
        # the chord that a beat's chroma is most like, its root in the bass; nothing where nothing sounds
        near = (chroma / chroma.norm(dim=-1, keepdim=True).clamp(min=1e-6)) @ (
            self.chords / self.chords.norm(dim=-1, keepdim=True)
        ).T
        best = (near + 0.15 * bass[..., self.roots]).argmax(-1)
        sounds = (chroma.sum(-1, keepdim=True) > 0).float()
        chord = torch.cat([self.chords[best], functional.one_hot(self.roots[best], 12).float()], -1) * sounds
        keep_bass = (torch.rand(count, device=device) < 0.8).float()[window][:, None, None]
        plain = torch.cat([chroma, bass * keep_bass], -1)
        harmony = (as_chord * chord + (1 - as_chord) * plain) * has_harmony[:, None, None]
        has_melody = (torch.rand(count, device=device) < 0.5)[window]
        melody = melody * has_melody[:, None, None]
        return Conditions(bars.lengths[index].long(), harmony, has_harmony, melody, has_melody.float())


@dataclass
class Step:
    """Sums over a batch, in nats, and counts."""

    nats: Tensor
    kl_bar: Tensor
    kl_song: Tensor
    right: Tensor
    tokens: int
    bars: int
    windows: int


def pass_over(
    model: SongModel, batches: Batches, index: np.ndarray, valid: np.ndarray, groups: int, sample: bool = True,
    history: float = 0.5, swap: bool = False,
) -> Step:  # fmt: skip
    """One pass over windows `index (R, 2, W)`; `swap` gives each song another one's song vector, as a control."""
    bars = batches.bars
    device = bars.tokens.device
    training = batches.training
    r = len(index)
    flat = torch.from_numpy(index.reshape(-1)).to(device)
    there = torch.from_numpy(valid.reshape(-1)).to(device)
    counts = bars.counts[flat]
    use = there & (counts <= LONGEST)
    order = torch.nonzero(use)[:, 0]
    order = order[counts[order].argsort()]
    size = counts[order]
    cuts = [round(len(order) * i / groups) for i in range(groups + 1)]
    longest = [int(x) for x in size[torch.tensor([max(0, c - 1) for c in cuts[1:]], device=device)].tolist()]
    parts = [
        (order[a:b], bars.padded(flat[order[a:b]], -(-n // 8) * 8))
        for a, b, n in zip(cuts, cuts[1:], longest, strict=False)
    ]
    features = torch.zeros(len(flat), model.encoder.size, device=device)
    features = features.index_copy(0, order, torch.cat([model.bar_features(tokens) for _, tokens in parts]).float())
    q = model.bar_posterior(features)
    z = q.sample() if sample else q.mean
    window = torch.arange(len(flat), device=device) // WINDOW
    counted = (use & (counts > 1)).float().view(2 * r, WINDOW)  # bars without notes say nothing of who plays
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
    condition = model.condition(given)
    past = (torch.rand(2 * r, device=device) < history).float()
    joint = torch.cat([song, condition], -1).view(2 * r, WINDOW, -1)
    mean, logvar = model.prior(joint, z.view(2 * r, WINDOW, -1), past)
    kl = gaussian_kl(q, mean.flatten(0, 1), logvar.flatten(0, 1)).sum(-1)
    kl_bar = (kl * use).sum()
    kl_song = qs.kl().sum()
    nats, right, count = torch.zeros((), device=device), torch.zeros((), device=device), int(size.sum())
    for rows, tokens in parts:
        inputs = shifted(tokens)
        inputs = masked(inputs, 0.2) if training else inputs
        logits = model.decode_logits(tokens, inputs, z[rows], song[rows], given.rows(rows)).float().flatten(0, 1)
        targets = tokens.flatten()
        nats = nats + functional.cross_entropy(logits, targets, ignore_index=PAD, reduction="sum")
        right = right + ((logits.detach().argmax(-1) == targets) & (targets != PAD)).sum()
    return Step(nats, kl_bar, kl_song, right, count, len(order), 2 * r)


def save(model: SongModel, folder: Path, about: dict[str, object]) -> None:
    """Weights in bf16, in files below `PART`, and the settings."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, Tensor]] = [{}]
    room = PART
    for name, x in model.state_dict().items():
        x = x.detach().to("cpu", torch.bfloat16).contiguous()
        if x.nbytes > room:
            parts.append({})
            room = PART
        parts[-1][name] = x
        room -= x.nbytes
    for i, part in enumerate(parts):
        save_file(part, folder / f"song-{i}.safetensors")
    (folder / "song.json").write_text(json.dumps({"config": dataclasses.asdict(model.config), **about}) + "\n")


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
            heard = (bars.counts[flat[mine]] > 1).float()
            out[first + i] = model.song_posterior(features[None, mine], heard[None]).mean[0].cpu()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--songs", type=int, default=64, help="songs of a batch, 16 bars each")
    parser.add_argument("--groups", type=int, default=4, help="bars of a batch are padded in so many groups by length")
    parser.add_argument("--rate", type=float, default=1.2e-3)
    parser.add_argument("--beta", type=float, default=0.3, help="the KL's weight at most")
    parser.add_argument("--least", type=float, default=0.08, help="its weight at least, in the end")
    parser.add_argument("--target", type=float, default=0.96, help="share of tokens that are to be right")
    parser.add_argument("--muon", type=float, default=0.0, help="peak rate of Muon for inner matrices; 0 for AdamW")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--vectors", action="store_true", help="keep the song vectors of all songs, to fit styles")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], help="name=value of SongConfig")
    args = parser.parse_args()
    begin = time.time()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    bars = Bars.load(args.data, device)
    changes = {name: int(value) for name, value in (change.split("=") for change in args.set)}
    model = SongModel(SongConfig(vocab=len(bars.kind), **changes), bars.kind, bars.value).to(device)
    numbers = sum(p.numel() for p in model.parameters())
    print(f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}: {numbers / 1e6:.2f} M weights, "
          f"{len(bars.counts):,} bars, read in {time.time() - begin:.0f} s", flush=True)  # fmt: skip
    if args.compile:
        for module in model.modules():
            if isinstance(module, TransformerLayer):
                module.compile(dynamic=True)
    # matrices inside of the networks are stepped by Muon where it is asked for, tables and heads by AdamW
    matrices = [
        p for name, p in model.named_parameters()
        if p.ndim == 2 and name.startswith(("encoder.layers", "layers", "prior.layers", "code", "feature"))
    ] if args.muon else []  # fmt: skip
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": 0.02},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=args.rate, betas=(0.9, 0.98), fused=device.type == "cuda",
    )  # fmt: skip
    muon = Muon(matrices) if matrices else None
    precision = torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bf16(device))
    batches, plain = Batches(bars, model.config, True), Batches(bars, model.config, False)
    sizes = np.diff(bars.song)
    enough = sizes >= 4

    def songs_of(split: int) -> np.ndarray:
        return np.flatnonzero((bars.split == split) & enough)

    chosen = songs_of(0)
    weights = np.sqrt(np.minimum(sizes[chosen], 150).astype(float))
    weights /= weights.sum()
    rng = np.random.default_rng(args.seed)
    fixed = np.random.default_rng(1)
    held = [windows(bars, fixed.choice(songs_of(1), min(64, args.songs), replace=False), fixed) for _ in range(4)]

    def validate() -> str:
        model.eval()
        out = []
        with torch.no_grad(), precision:
            for name, options in (
                ("sample", {"history": 0.0}), ("history", {"history": 1.0}), ("mean", {"sample": False, "history": 0.0}),
                ("other song", {"history": 0.0, "swap": True}),
            ):  # fmt: skip
                steps = [pass_over(model, plain, i, v, args.groups, **options) for i, v in held]
                n = sum(step.bars for step in steps)
                out.append(
                    f"{name}: {float(sum(step.nats for step in steps)) / n:.2f} nats, "
                    f"{float(sum(step.kl_bar for step in steps)) / n / math.log(2):.0f} bits a bar, "
                    f"{float(sum(step.kl_song for step in steps)) / sum(step.windows for step in steps) / math.log(2):.0f}"
                    f" a song, right {float(sum(step.right for step in steps)) / sum(step.tokens for step in steps):.4f}"
                )
        model.train()
        return "; ".join(out)

    # linalg of a warm-up: shapes, kernels and compilation are not counted
    start = time.time()
    limit = 60.0 * args.minutes - (start - begin)
    step, seen, told, saved = 0, 0, start, start
    mark, beta, right = (start, 0), 0.005, 0.0
    while (used := time.time() - start) < limit:
        share = used / limit
        rate = min(1.0, (step + 1) / 300) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = args.rate * rate
        # beta rises while samples of the posterior decode, and not below a line that rises with time (GECO: Rezende
        # and Viola 2018)
        ramp = min(1.0, max(0.0, (share - 0.08) / 0.52))
        floor = 0.005 + (args.least - 0.005) * ramp
        if share < 0.8:
            beta *= 1.005 if right > args.target else 0.995
        beta = min(args.beta, max(floor, beta))
        beta_song = floor
        index, valid = windows(bars, rng.choice(chosen, args.songs, p=weights), rng)
        with precision:
            found = pass_over(model, batches, index, valid, args.groups)
        loss = (found.nats + beta * found.kl_bar + beta_song * found.kl_song) / found.tokens
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if math.isfinite(float(norm)):
            optimizer.step()
            if muon is not None:
                muon.step(args.muon * rate, 0.02)
        step, seen = step + 1, seen + found.tokens
        right += 0.05 * (float(found.right) / found.tokens - right)
        now = time.time()
        if now - told > 10 or step == 1:
            fast = (seen - mark[1]) / max(1e-3, now - mark[0])
            print(
                f"{now - start:5.0f} s, step {step}, {fast:,.0f} tokens/s, loss {float(loss.detach()):.4f}, "
                f"{float(found.nats.detach()) / found.bars:.2f} nats, {float(found.kl_bar.detach()) / found.bars / math.log(2):.0f} bits a bar, "
                f"{float(found.kl_song.detach()) / found.windows / math.log(2):.0f} a song, "
                f"right {float(found.right) / found.tokens:.3f}, norm {float(norm):.2f}, beta {beta:.3f}", flush=True,
            )  # fmt: skip
            told, mark = now, (now, seen)
        if now - saved > 120:
            save(model, args.out, {"step": step, "tokens": seen})
            print("valid " + validate(), flush=True)
            saved = time.time()
    print("valid " + validate(), flush=True)
    save(model, args.out, {"step": step, "tokens": seen, "seconds": time.time() - start, "beta": beta})
    if args.vectors:
        with precision:
            save_file({"songs": song_vectors(model, bars).half()}, args.out / "vectors.safetensors")
    if device.type == "cuda":
        print(f"memory {torch.cuda.max_memory_allocated() >> 20} MiB")
    print(f"saved after {step} steps, {seen:,} tokens", flush=True)


if __name__ == "__main__":
    main()
