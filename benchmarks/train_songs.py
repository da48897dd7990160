"""Training of the song model on the bars of song_data.py for a number of minutes, on a GPU or a CPU.

python benchmarks/train_songs.py data.npz OUT --minutes 9                             # a GPU, in one run
python benchmarks/train_songs.py data.npz OUT --minutes 110 --whole 60 --songs 8      # a CPU, in runs of 110 minutes
                                                                     # until 60 million tokens are seen in total

Needs torch, numpy and safetensors alone. Prints a line every ten seconds, saves weights in bf16 every two minutes, and
resumes from `OUT/state.pt` if it exists. `--start RUN` begins with the weights that another run has saved.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from muon import Muon
from safetensors.torch import load_file, save_file
from song_batches import WINDOW, Bars, Batches, windows
from song_pass import pass_over, song_vectors
from torch import Tensor

from seqvae.config import SongConfig
from seqvae.nn.kernels import multiplies_bf16
from seqvae.nn.song_model import SongModel

LN2 = math.log(2)
DECAY = 0.4
"""Final share of the training in which the learning rate decays linearly (Hägele et al. 2024)."""
PART = 14 << 20
"""Bytes of a file of weights at most."""


def save(model: SongModel, folder: Path, about: dict[str, object]) -> None:
    """Write weights in bf16, in files of at most `PART` bytes, and the settings."""
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


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument(
        "--whole", type=float, help="million tokens of the whole training; default: as many as --minutes allows"
    )
    parser.add_argument("--start", type=Path, help="folder of a run whose weights this one begins with")
    parser.add_argument("--songs", type=int, default=64, help="songs per batch, 16 bars each")
    parser.add_argument("--rate", type=float, default=1.2e-3)
    parser.add_argument("--beta", type=float, default=0.3, help="greatest weight of the KL")
    parser.add_argument("--least", type=float, default=0.08, help="least weight of the KL at the end")
    parser.add_argument("--target", type=float, default=0.8, help="accuracy above which beta rises")
    parser.add_argument("--muon", type=float, default=0.0, help="peak rate of Muon for inner matrices; 0: AdamW")
    parser.add_argument("--graph", action="store_true", help="record a step as one graph of kernels")
    parser.add_argument("--profile", action="store_true", help="print a profile of two steps")
    parser.add_argument("--tell", type=float, default=10.0, help="seconds between reports")
    parser.add_argument("--vectors", action="store_true", help="save the song vectors of all songs, to fit styles")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], help="name=value of SongConfig")
    return parser


class Feed:
    """Random windows of training songs, and fixed windows of validation songs."""

    def __init__(self, bars: Bars, songs: int, seed: int) -> None:
        """`songs` is the number of songs per batch."""
        self.bars, self.count, self.seed = bars, songs, seed
        self.sizes = np.diff(bars.song)
        self.chosen = self._songs(0)
        weights = np.sqrt(np.minimum(self.sizes[self.chosen], 150).astype(float))
        self.weights = weights / weights.sum()
        self.rng = np.random.default_rng(seed)
        fixed, valid = np.random.default_rng(1), self._songs(1)
        device = bars.tokens.device
        held = [windows(bars, fixed.choice(valid, min(64, songs), replace=False), fixed) for _ in range(4)]
        self.validation = [(torch.from_numpy(a).to(device), torch.from_numpy(b).to(device)) for a, b in held]
        self.ready = self._windows()

    def _songs(self, split: int) -> np.ndarray:
        return np.flatnonzero((self.bars.split == split) & (self.sizes >= 4))

    def _windows(self) -> tuple[np.ndarray, np.ndarray]:
        return windows(self.bars, self.rng.choice(self.chosen, self.count, p=self.weights), self.rng)

    def fill(self, index: Tensor, valid: Tensor) -> None:
        """Copy the prepared windows into `index` and `valid (R, 2, W)`."""
        index.copy_(torch.from_numpy(self.ready[0]), non_blocking=True)
        valid.copy_(torch.from_numpy(self.ready[1]), non_blocking=True)

    def prepare(self) -> None:
        """Draw the next windows while the device computes."""
        self.ready = self._windows()

    def resume(self, step: int) -> None:
        """Continue with windows different from those of earlier steps."""
        self.rng = np.random.default_rng((self.seed, step))


class Training:
    """The song model, its optimizers, and the progress that `state.pt` keeps."""

    def __init__(self, args: argparse.Namespace, bars: Bars) -> None:
        self.args, self.bars, self.device = args, bars, bars.tokens.device
        cuda = self.device.type == "cuda"
        changes = {name: int(value) for name, value in (change.split("=") for change in args.set)}
        before = json.loads((args.start / "song.json").read_text())["config"] if args.start else {}
        config = SongConfig(**(before | changes))
        self.model = SongModel(config, bars.kind.cpu(), bars.value.cpu()).to(self.device)
        if args.start:
            parts = [load_file(part) for part in sorted(args.start.glob("song-*.safetensors"))]
            self.model.load_state_dict({name: x for part in parts for name, x in part.items()})
        # Muon updates the inner matrices, AdamW embeddings and output layers
        inner = ("encoder.layers", "layers", "prior.layers", "code", "feature")
        named = self.model.named_parameters()
        matrices = [p for name, p in named if p.ndim == 2 and name.startswith(inner) and args.muon]
        inside = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in inside]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in others if p.ndim > 1], "weight_decay": 0.02},
                {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=torch.zeros((), device=self.device), betas=(0.9, 0.98), fused=cuda, capturable=cuda,
        )  # fmt: skip
        self.muon = Muon(matrices)
        low = multiplies_bf16(self.device)
        self.precision = torch.autocast(self.device.type, torch.bfloat16, enabled=low, cache_enabled=not args.graph)
        self.batches, self.plain = Batches(bars, config, True), Batches(bars, config, False)
        self.feed = Feed(bars, args.songs, args.seed)
        self.step, self.tokens, self.beta, self.right = 0, 0.0, 0.005, 0.0
        # inputs and results of a step, at addresses that a graph of kernels keeps
        self.index = torch.zeros(args.songs, 2, WINDOW, dtype=torch.long, device=self.device)
        self.valid = torch.zeros(args.songs, 2, WINDOW, dtype=torch.bool, device=self.device)
        self.rate, self.weigh, self.weigh_song = (torch.zeros((), device=self.device) for _ in range(3))
        self.stats = torch.zeros(8, device=self.device)
        self.run: Callable[[], None] = self.eager

    # --- steps --------------------------------------------------------------------------------------------------------

    def fill(self, share: float, beta: float, floor: float) -> None:
        """Set the inputs of a step after a `share` of the training: windows, rates, and weights of the KL terms."""
        self.feed.fill(self.index, self.valid)
        scale = min(1.0, (self.step + 1) / 200) * min(1.0, 0.02 + 0.98 * (1 - share) / DECAY)
        self.rate.fill_(self.args.muon * scale)
        for group in self.optimizer.param_groups:
            group["lr"].fill_(self.args.rate * scale)
        self.weigh.fill_(beta)
        self.weigh_song.fill_(floor)

    def train(self) -> None:
        """Compute a step from its inputs."""
        with self.precision:
            found = pass_over(self.model, self.batches, self.index, self.valid)
        loss = (found.nats + self.weigh * found.kl_bar + self.weigh_song * found.kl_song) / found.tokens
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        self.muon.step(self.rate, 0.02)
        parts = (loss, found.nats, found.kl_bar, found.kl_song, found.right, found.tokens, found.bars, norm)
        self.stats.copy_(torch.stack([x.detach().float() for x in parts]))

    def eager(self) -> None:
        """A step without a recorded graph."""
        self.optimizer.zero_grad(set_to_none=True)
        self.train()

    def record(self) -> None:
        """Record a step as one graph of kernels, after three steps on a separate stream."""
        start = time.time()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for self.step in range(3):
                self.fill(0.0, 0.005, 0.005)
                self.feed.prepare()
                self.eager()
        torch.cuda.current_stream().wait_stream(side)
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.train()
        self.run = graph.replay
        print(f"recorded after {time.time() - start:.1f} s", flush=True)

    def floor(self, share: float) -> float:
        """The lower bound of beta after a `share` of the training; it rises with the share, except after `--start`."""
        if self.args.start:
            return float(self.args.least)
        return 0.005 + (self.args.least - 0.005) * min(1.0, max(0.0, (share - 0.08) / 0.52))

    def advance(self, share: float) -> None:
        """One step after a `share` of the training.

        beta rises while accuracy from posterior samples is above the target, and stays above `floor` (GECO: Rezende and
        Viola 2018).
        """
        floor = self.floor(share)
        self.beta = min(self.args.beta, max(floor, self.beta))
        self.fill(share, self.beta, floor)
        self.run()
        self.feed.prepare()
        self.step += 1

    def profile(self, share: float) -> None:
        """Print a profile of two steps."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            for _ in range(2):
                self.fill(share, self.beta, self.floor(share))
                self.feed.prepare()
                self.run()
            torch.cuda.synchronize()
        table = seen.key_averages()
        print(table.table(sort_by="self_cuda_time_total", row_limit=22, max_name_column_width=50))
        print(table.table(sort_by="self_cpu_time_total", row_limit=10, max_name_column_width=50))

    def measure(self, share: float) -> list[float]:
        """The results of the last step; counts its tokens for all ten steps since the last call, and adapts beta."""
        stats: list[float] = self.stats.tolist()
        if not math.isfinite(stats[0]):
            raise SystemExit("the loss is not finite; state.pt has the state before, and the same command continues")
        hits, tokens = stats[4:6]
        self.tokens += 10 * tokens if self.step > 3 else tokens
        self.right += 0.3 * (hits / tokens - self.right)
        if share < 0.8:
            self.beta *= 1.05 if self.right > self.args.target else 0.95
        return stats

    # --- validation ---------------------------------------------------------------------------------------------------

    def validate(self) -> str:
        """Metrics of the validation windows, as a line."""
        self.model.eval()
        out = []
        with torch.no_grad(), self.precision:
            for name, options in (
                ("sample", {"history": 0.0}), ("history", {"history": 1.0}),
                ("mean", {"sample": False, "history": 0.0}), ("other song", {"history": 0.0, "swap": True}),
                ("expected", {"history": 1.0, "expected": 1.0}),
            ):  # fmt: skip
                steps = [pass_over(self.model, self.plain, *pair, **options) for pair in self.feed.validation]
                bars, tokens = sum(float(x.bars) for x in steps), sum(float(x.tokens) for x in steps)
                nats = sum(float(x.nats) for x in steps) / bars
                bits = sum(float(x.kl_bar) for x in steps) / bars / LN2
                song = sum(float(x.kl_song) for x in steps) / sum(x.windows for x in steps) / LN2
                right = sum(float(x.right) for x in steps) / tokens
                out.append(
                    f"{name}: {nats:.2f} nats, {bits:.0f} bits per bar, {song:.0f} per song, accuracy {right:.4f}"
                )
        self.model.train()
        return "; ".join(out)

    # --- files --------------------------------------------------------------------------------------------------------

    def keep(self, **about: object) -> None:
        """Write the weights, and the state to resume from."""
        save(self.model, self.args.out, {"step": self.step, "tokens": self.tokens, **about})
        torch.save(
            {
                "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step,
                "tokens": self.tokens, "muon": [moment for _, moment in self.muon.groups], "beta": self.beta,
                "right": self.right,
            },
            self.args.out / "state.tmp",
        )  # fmt: skip
        (self.args.out / "state.tmp").replace(self.args.out / "state.pt")

    def resume(self) -> None:
        """Continue from `state.pt`, if there is one."""
        path = self.args.out / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        for mine, theirs in zip((moment for _, moment in self.muon.groups), state["muon"], strict=True):
            mine.copy_(theirs)
        self.step, self.tokens, self.beta, self.right = (state[name] for name in ("step", "tokens", "beta", "right"))
        self.feed.resume(self.step)
        torch.manual_seed(self.args.seed + self.step)
        print(f"resumed at step {self.step}, {self.tokens / 1e6:.1f} million tokens", flush=True)


def loop(training: Training, start: float, limit: float) -> None:
    """Train from the time `start` for `limit` seconds, or until all tokens of the training are seen."""
    args = training.args
    whole = args.whole * 1e6 if args.whole else math.inf
    reported = saved = validated = start
    mark = time.time(), training.step
    while (used := time.time() - start) < limit and training.tokens < whole:
        share = training.tokens / whole if args.whole else used / limit
        training.advance(share)
        step = training.step
        if args.profile and step == 20 + 3:
            training.profile(share)
        if step % 10 and step > 3:
            continue
        stats = training.measure(share)
        now = time.time()
        if now - reported > args.tell or step == 1:
            each = (now - mark[0]) / max(1, step - mark[1])
            print(line(stats, step, now - start, each, args.songs, training.beta), flush=True)
            reported, mark = now, (now, step)
        if now - saved > 120:
            training.keep()
            if training.device.type == "cuda" or now - validated > 900:
                print("valid " + training.validate(), flush=True)
                validated = now
            saved = time.time()


def line(stats: list[float], step: int, passed: float, each: float, songs: int, beta: float) -> str:
    """A report of a step, from the `stats` of `Training.train`, seconds `passed` and seconds per step `each`."""
    loss, nats, kl_bar, kl_song, hits, tokens, count, norm = stats
    return (
        f"{passed:5.0f} s, step {step}, {each * 1e3:.0f} ms each, {tokens:,.0f} tokens, loss {loss:.4f}, "
        f"{nats / count:.2f} nats, {kl_bar / count / LN2:.0f} bits per bar, "
        f"{kl_song / (2 * songs) / LN2:.0f} per song, accuracy {hits / tokens:.3f}, norm {norm:.2f}, beta {beta:.3f}"
    )


def main() -> None:
    args = options().parse_args()
    begin = time.time()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    bars = Bars.load(args.data, device)
    training = Training(args, bars)
    numbers = sum(p.numel() for p in training.model.parameters())
    print(f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}: {numbers / 1e6:.2f} M weights, "
          f"{len(bars.counts):,} bars, read in {time.time() - begin:.0f} s", flush=True)  # fmt: skip
    start = time.time()
    if device.type == "cuda" and args.graph:
        training.record()
    training.resume()
    loop(training, start, 60.0 * args.minutes - (start - begin))
    print("valid " + training.validate(), flush=True)
    training.keep(seconds=time.time() - start, beta=training.beta)
    if args.vectors:
        with training.precision:
            save_file({"songs": song_vectors(training.model, bars).half()}, args.out / "vectors.safetensors")
    if device.type == "cuda":
        print(f"memory {torch.cuda.max_memory_allocated() >> 20} MiB")
    print(f"saved after {training.step} steps, {training.tokens:,} tokens", flush=True)


if __name__ == "__main__":
    main()
