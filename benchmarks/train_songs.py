"""Trains the song model on prepared bars, for a number of minutes, on a GPU or a CPU.

python benchmarks/train_songs.py data.npz OUT --minutes 9                             # a GPU, in one go
python benchmarks/train_songs.py data.npz OUT --minutes 110 --whole 60 --songs 8      # a CPU, in slices of 110 minutes
                                                                     # until 60 million tokens are seen in all

Needs torch, numpy and safetensors alone. Prints a line every ten seconds, saves weights in bf16 every two minutes, and
goes on from `OUT/state.pt` where it is there.
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
from muon import Muon
from safetensors.torch import save_file
from song_batches import WINDOW, Bars, Batches, windows
from torch import Tensor
from torch.nn import functional

from seqvae.nn.binding import shifted
from seqvae.nn.kernels import multiplies_bf16
from seqvae.nn.loss import masked
from seqvae.nn.song_model import SongConfig, SongModel, gaussian_kl
from seqvae.protocols import EOS, PAD

LN2 = math.log(2)
LONGEST = 384
"""Bars with more tokens are left out."""
DECAY = 0.4
"""Share of the training, at its end, in which the learning rate falls to nothing (Hägele et al. 2024)."""
PART = 14 << 20
"""Bytes of one file of weights."""


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


def slots(sizes: Tensor) -> list[tuple[int, int, int]]:
    """(first, end, tokens) of the places of bars, the longest first; `sizes (N,)` are their tokens, falling."""
    out, first, count = [], 0, len(sizes)
    if sizes.device.type == "cpu":  # no graph to record: groups that follow the batch, with a third less padding
        known = sizes.clamp(min=8).tolist()
        while first < count:
            longest = -(-int(known[first]) // 8) * 8
            end = first + 1
            while end < count and (known[end] > 0.85 * longest - 8 or (end - first) * longest < 800):
                end += 1
            out.append((first, end, longest))
            first = end
        return out
    for i, (share, size) in enumerate(SLOTS):
        end = count if i == len(SLOTS) - 1 else first + round(share * count)
        if end > first:
            out.append((first, end, size))
        first = end
    return out


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
    order = counts.argsort(descending=True, stable=True)
    size = counts[order]
    parts, fits = [], []
    for first, end, longest in slots(size):
        fit = (size[first:end] > 0) & (size[first:end] <= longest)
        tokens = bars.padded(flat[order[first:end]], longest)
        empty = torch.full_like(tokens, PAD)
        empty[:, 0] = EOS
        parts.append((order[first:end], torch.where(fit[:, None], tokens, empty), fit))
        fits.append(fit)
    features = torch.cat([model.bar_features(tokens) for _, tokens, _ in parts]).float()
    features = torch.zeros_like(features).index_copy(0, order, features)
    use = torch.zeros(len(flat), device=device).index_copy(0, order, torch.cat(fits).float())
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
    condition = model.condition(given)
    past = (torch.rand(2 * r, device=device) < history).float()
    joint = torch.cat([song, condition], -1).view(2 * r, WINDOW, -1)
    mean, logvar = model.prior(joint, z.view(2 * r, WINDOW, -1), past)
    kl = gaussian_kl(q, mean.flatten(0, 1), logvar.flatten(0, 1)).sum(-1)
    nats, right, told = (torch.zeros((), device=device) for _ in range(3))
    for rows, tokens, fit in parts:
        inputs = shifted(tokens)
        inputs = masked(inputs, 0.2) if training else inputs
        logits = model.decode_logits(tokens, inputs, z[rows], song[rows], given.rows(rows)).float().flatten(0, 1)
        targets = torch.where(fit[:, None], tokens, PAD).flatten()
        nats = nats + functional.cross_entropy(logits, targets, ignore_index=PAD, reduction="sum")
        right = right + ((logits.detach().argmax(-1) == targets) & (targets != PAD)).sum()
        told = told + (targets != PAD).sum()
    return Step(nats, (kl * use).sum(), qs.kl().sum(), right, told, use.sum(), 2 * r)


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
    parser.add_argument("--whole", type=float, help="million tokens of the whole training; else what --minutes allows")
    parser.add_argument("--songs", type=int, default=64, help="songs of a batch, 16 bars each")
    parser.add_argument("--rate", type=float, default=1.2e-3)
    parser.add_argument("--beta", type=float, default=0.3, help="the KL's weight at most")
    parser.add_argument("--least", type=float, default=0.08, help="its weight at least, in the end")
    parser.add_argument("--target", type=float, default=0.96, help="share of tokens that are to be right")
    parser.add_argument("--muon", type=float, default=0.0, help="peak rate of Muon for inner matrices; 0 for AdamW")
    parser.add_argument("--graph", action="store_true", help="record a step as one graph of kernels")
    parser.add_argument("--profile", action="store_true", help="say where the time of two steps goes")
    parser.add_argument("--tell", type=float, default=10.0, help="seconds between reports")
    parser.add_argument("--vectors", action="store_true", help="keep the song vectors of all songs, to fit styles")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], help="name=value of SongConfig")
    args = parser.parse_args()
    begin = time.time()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    bars = Bars.load(args.data, device)
    state = args.out / "state.pt"
    changes = {name: int(value) for name, value in (change.split("=") for change in args.set)}
    model = SongModel(SongConfig(vocab=len(bars.kind), **changes), bars.kind.cpu(), bars.value.cpu()).to(device)
    numbers = sum(p.numel() for p in model.parameters())
    print(f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}: {numbers / 1e6:.2f} M weights, "
          f"{len(bars.counts):,} bars, read in {time.time() - begin:.0f} s", flush=True)  # fmt: skip
    # matrices inside of the networks are stepped by Muon, tables and heads by AdamW
    matrices = [
        p for name, p in model.named_parameters()
        if p.ndim == 2 and name.startswith(("encoder.layers", "layers", "prior.layers", "code", "feature"))
    ] if args.muon else []  # fmt: skip
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    cuda = device.type == "cuda"
    rate = torch.zeros((), device=device)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": 0.02},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=torch.zeros((), device=device), betas=(0.9, 0.98), fused=cuda, capturable=cuda,
    )  # fmt: skip
    muon = Muon(matrices)
    low = multiplies_bf16(device)
    precision = torch.autocast(device.type, torch.bfloat16, enabled=low, cache_enabled=not args.graph)
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

    def there(pair: tuple[np.ndarray, np.ndarray]) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(pair[0]).to(device), torch.from_numpy(pair[1]).to(device)

    def keep(step: int, seen: float, beta: float, right: float) -> None:
        """Writes what another slice goes on from."""
        torch.save(
            {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "tokens": seen,
                "muon": [moment for _, moment in muon.groups], "beta": beta, "right": right,
            },
            args.out / "state.tmp",
        )  # fmt: skip
        (args.out / "state.tmp").replace(state)

    def validate() -> str:
        model.eval()
        out = []
        with torch.no_grad(), precision:
            for name, options in (
                ("sample", {"history": 0.0}), ("history", {"history": 1.0}),
                ("mean", {"sample": False, "history": 0.0}), ("other song", {"history": 0.0, "swap": True}),
            ):  # fmt: skip
                steps = [pass_over(model, plain, *there(pair), **options) for pair in held]
                n, told = sum(float(x.bars) for x in steps), sum(float(x.tokens) for x in steps)
                nats, bits = sum(float(x.nats) for x in steps) / n, sum(float(x.kl_bar) for x in steps) / n / LN2
                song = sum(float(x.kl_song) for x in steps) / sum(x.windows for x in steps) / LN2
                right = sum(float(x.right) for x in steps) / told
                out.append(f"{name}: {nats:.2f} nats, {bits:.0f} bits a bar, {song:.0f} a song, right {right:.4f}")
        model.train()
        return "; ".join(out)

    index = torch.zeros(args.songs, 2, WINDOW, dtype=torch.long, device=device)
    valid = torch.zeros(args.songs, 2, WINDOW, dtype=torch.bool, device=device)
    weigh, weigh_song = torch.zeros((), device=device), torch.zeros((), device=device)
    stats = torch.zeros(8, device=device)
    ready = [windows(bars, rng.choice(chosen, args.songs, p=weights), rng)]

    def fill(step: int, share: float, beta: float, floor: float) -> None:
        """What one step takes from here."""
        i, v = ready.pop()
        index.copy_(torch.from_numpy(i), non_blocking=True)
        valid.copy_(torch.from_numpy(v), non_blocking=True)
        scale = min(1.0, (step + 1) / 200) * min(1.0, 0.02 + 0.98 * (1 - share) / DECAY)
        rate.fill_(args.muon * scale)
        for group in optimizer.param_groups:
            group["lr"].fill_(args.rate * scale)
        weigh.fill_(beta)
        weigh_song.fill_(floor)

    def train() -> None:
        with precision:
            found = pass_over(model, batches, index, valid)
        loss = (found.nats + weigh * found.kl_bar + weigh_song * found.kl_song) / found.tokens
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        muon.step(rate, 0.02)
        parts = (loss, found.nats, found.kl_bar, found.kl_song, found.right, found.tokens, found.bars, norm)
        stats.copy_(torch.stack([x.detach().float() for x in parts]))

    def eager() -> None:
        optimizer.zero_grad(set_to_none=True)
        train()

    run = eager
    start = time.time()
    limit = 60.0 * args.minutes - (start - begin)
    step = 0
    if cuda and args.graph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for step in range(3):
                fill(step, 0.0, 0.005, 0.005)
                ready.append(windows(bars, rng.choice(chosen, args.songs, p=weights), rng))
                eager()
        torch.cuda.current_stream().wait_stream(side)
        optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            train()
        run = graph.replay
        print(f"recorded after {time.time() - start:.1f} s", flush=True)
    told, saved, mark, checked, beta, right, seen = start, start, (time.time(), step), start, 0.005, 0.0, 0.0
    if state.exists():
        held_state = torch.load(state, map_location=device, weights_only=True)
        model.load_state_dict(held_state["model"], strict=False)
        optimizer.load_state_dict(held_state["optimizer"])
        for mine, theirs in zip((moment for _, moment in muon.groups), held_state["muon"], strict=True):
            mine.copy_(theirs)
        step, seen, beta, right = (held_state[name] for name in ("step", "tokens", "beta", "right"))
        rng = np.random.default_rng((args.seed, step))
        torch.manual_seed(args.seed + step)
        print(f"goes on from step {step}, {seen / 1e6:.1f} million tokens", flush=True)
    while (used := time.time() - start) < limit and not (args.whole and seen >= args.whole * 1e6):
        share = seen / (args.whole * 1e6) if args.whole else used / limit
        # beta rises while samples of the posterior decode, and not below a line that rises with time (GECO: Rezende
        # and Viola 2018)
        floor = 0.005 + (args.least - 0.005) * min(1.0, max(0.0, (share - 0.08) / 0.52))
        beta = min(args.beta, max(floor, beta))
        fill(step, share, beta, floor)
        run()
        ready.append(windows(bars, rng.choice(chosen, args.songs, p=weights), rng))
        step += 1
        if args.profile and step == 20 + 3:
            from torch.profiler import ProfilerActivity, profile

            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen_by:
                for _ in range(2):
                    fill(step, share, beta, floor)
                    ready.append(windows(bars, rng.choice(chosen, args.songs, p=weights), rng))
                    run()
                torch.cuda.synchronize()
            table = seen_by.key_averages()
            print(table.table(sort_by="self_cuda_time_total", row_limit=22, max_name_column_width=50))
            print(table.table(sort_by="self_cpu_time_total", row_limit=10, max_name_column_width=50))
        if step % 10 and step > 3:
            continue
        loss, nats, kl_bar, kl_song, hits, tokens, count, norm = stats.tolist()
        seen += 10 * tokens if step > 3 else tokens
        right += 0.3 * (hits / tokens - right)
        if share < 0.8:
            beta *= 1.05 if right > args.target else 0.95
        now = time.time()
        if now - told > args.tell or step == 1:
            each = (now - mark[0]) / max(1, step - mark[1])
            print(
                f"{now - start:5.0f} s, step {step}, {each * 1e3:.0f} ms each, {tokens:,.0f} tokens, loss {loss:.4f}, "
                f"{nats / count:.2f} nats, {kl_bar / count / LN2:.0f} bits a bar, "
                f"{kl_song / (2 * args.songs) / LN2:.0f} a song, right {hits / tokens:.3f}, norm {norm:.2f}, "
                f"beta {beta:.3f}", flush=True,
            )  # fmt: skip
            told, mark = now, (now, step)
        if now - saved > 120:
            save(model, args.out, {"step": step, "tokens": seen})
            keep(step, seen, beta, right)
            if device.type == "cuda" or now - checked > 900:
                print("valid " + validate(), flush=True)
                checked = now
            saved = time.time()
    print("valid " + validate(), flush=True)
    save(model, args.out, {"step": step, "tokens": seen, "seconds": time.time() - start, "beta": beta})
    keep(step, seen, beta, right)
    if args.vectors:
        with precision:
            save_file({"songs": song_vectors(model, bars).half()}, args.out / "vectors.safetensors")
    if device.type == "cuda":
        print(f"memory {torch.cuda.max_memory_allocated() >> 20} MiB")
    print(f"saved after {step} steps, {seen:,} tokens", flush=True)


if __name__ == "__main__":
    main()
