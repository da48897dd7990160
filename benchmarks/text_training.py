"""Training speed on sentences in words per second, beside the text autoencoders of Shen et al. (2020).

    git clone https://github.com/shentianxiao/text-autoencoders PEER
    python benchmarks/text_training.py --peer PEER --data FILE [FILE ...] --threads 2

Trains the peer's VAE with its defaults, ours with the same number of parameters, and ours with the recipe's sizes, on
the same lines and machine. Each model runs in its own process; they take turns in short spells, so that other load
affects all of them, and the median of the spells counts. Whole optimizer steps are timed, with the making of batches
but without vocabularies, validation and saving. Words are separated by spaces, and the end of a sentence counts as one
word, so speeds are comparable between vocabularies. The peer has no bf16: `--peer-bf16` adds a run under autocast, and
`--set train.precision=fp32` switches bf16 off in ours.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import processor
import torch

from seqvae.checkpoint import folder as checkpoint
from seqvae.config import Recipe, load_recipe
from seqvae.data.prepare import prepare
from seqvae.protocols import Tokenizer
from seqvae.text import lines as text
from seqvae.train.loop import keep_memory
from seqvae.train.trainer import Run

LINES = "lines.txt"
Steps = Iterator[tuple[float, int]]  # each item is a training step: its words and tokens


@dataclass(frozen=True)
class Spell:
    """Rates of a spell of training."""

    words: float
    """Words per second."""
    tokens: float
    """Tokens per second."""
    cores: float
    """Seconds of processor time per second."""


def theirs(peer: Path, folder: Path, bf16: bool) -> tuple[int, str, Steps]:
    """The peer's VAE with its defaults: parameters, precision and its training loop."""
    sys.path.insert(0, str(peer))
    from batchify import get_batches
    from model import VAE
    from train import parser
    from utils import load_sent, set_seed
    from vocab import Vocab

    options = parser.parse_args(["--train", LINES, "--valid", LINES, "--model_type", "vae"])
    options.noise = [float(share) for share in options.noise.split(",")]
    sentences = load_sent(folder / LINES)
    Vocab.build(sentences, folder / "vocabulary.txt", options.vocab_size)
    vocabulary = Vocab(folder / "vocabulary.txt")
    set_seed(options.seed)
    model = VAE(vocabulary, options)

    def steps() -> Steps:
        batches, _ = get_batches(sentences, vocabulary, options.batch_size, "cpu")
        model.train()
        while True:
            random.shuffle(batches)
            for inputs, targets in batches:
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    losses = model.autoenc(inputs, targets, is_train=True)
                    losses["loss"] = model.loss(losses)
                model.step(losses)
                for value in losses.values():
                    value.item()
                yield targets.numel(), targets.numel()  # equal lengths without padding, and EOS counted

    return sum(p.numel() for p in model.parameters()), "bf16" if bf16 else "fp32", steps()


def ours(recipe: Recipe, folder: Path) -> tuple[int, str, Steps]:
    """Our model as `seqvae train` trains it: parameters, precision and its training loop."""
    keep_memory()
    data, tokenizer, _ = prepare(recipe, [folder / LINES], folder / "data")
    run = Run(recipe, data, tokenizer, folder, print)
    run.model.train()
    if recipe.train.compile:
        run.model.compile()
    lines = text.read_lines(folder / LINES)
    words = np.array([len(line.split()) + 1 for line in lines])
    words = words / data.counts(np.arange(len(words)))

    def steps() -> Steps:
        while True:
            for position, (rows, firsts) in enumerate(run.batches.epoch(run.progress.epoch), 1):
                run.progress.position = position
                tokens = data.gather(rows, firsts, recipe.model.chunks)
                count = int((tokens != 0).sum())
                run.step(tokens)
                yield words[rows].sum(), count
            run.progress.epoch += 1

    return sum(p.numel() for p in run.model.parameters()), "bf16" if run.bf16 else "fp32", steps()


def work(make: Callable[[], tuple[int, str, Steps]], threads: int, pipe: Connection) -> None:
    """Worker process: send parameters and precision, then train for each received number of seconds."""
    torch.set_num_threads(threads)
    parameters, precision, steps = make()
    for _ in range(3):
        next(steps)
    pipe.send((parameters, precision))
    for seconds in iter(pipe.recv, None):
        next(steps)  # not timed: other processes have used the caches
        begin, busy = time.perf_counter(), time.process_time()
        words = tokens = elapsed = 0.0
        while elapsed < seconds:
            more_words, more_tokens = next(steps)
            words, tokens, elapsed = words + more_words, tokens + more_tokens, time.perf_counter() - begin
        pipe.send(Spell(words / elapsed, tokens / elapsed, (time.process_time() - busy) / elapsed))


def size(recipe: Recipe, tokenizer: Tokenizer) -> int:
    """Number of parameters of a recipe's model, on the meta device."""
    with torch.device("meta"):
        return sum(p.numel() for p in checkpoint.build(recipe.model, tokenizer).parameters())


def scaled(recipe: Recipe, tokenizer: Tokenizer, target: int, load: Callable[[list[str]], Recipe]) -> list[str]:
    """Changes of the recipe (`width` and `hidden` by a common factor) for the model nearest to `target` parameters."""
    low, high = 0.1, 20.0
    best: tuple[float, list[str]] = (float("inf"), [])
    for _ in range(20):
        factor = (low * high) ** 0.5
        width, hidden = (max(16, round(factor * n / 16) * 16) for n in (recipe.model.width, recipe.model.hidden))
        changes = [f"model.width={width}", f"model.hidden={hidden}"]
        found = size(load(changes), tokenizer)
        best = min(best, (abs(found / target - 1), changes))
        low, high = (factor, high) if found < target else (low, factor)
    if best[0] > 0.05:
        raise SystemExit(f"no width gives {target} parameters within 5 %; change the recipe with --set")
    return best[1]


@contextlib.contextmanager
def worker(make: Callable[[], tuple[int, str, Steps]], threads: int) -> Iterator[Connection]:
    """The pipe to a process that runs `work` until the block ends."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=work, args=(make, threads, other), daemon=True)
    process.start()
    other.close()
    try:
        yield pipe
    finally:
        process.terminate()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="a clone of shentianxiao/text-autoencoders")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        help="files with one sentence per line, words separated by spaces",
    )
    parser.add_argument("--recipe", default="reviews")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change both of our models")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15, help="duration of a spell")
    parser.add_argument("--spells", type=int, default=3)
    parser.add_argument("--peer-bf16", action="store_true", help="also the peer under bf16 autocast")
    options = parser.parse_args()

    def load(changes: list[str]) -> Recipe:
        return load_recipe(options.recipe, [*options.set, *changes])

    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        lines = (line for path in options.data for line in text.read_lines(path) if line.split())
        (folder / LINES).write_text("".join(f"{line}\n" for line in lines))
        _, tokenizer, _ = prepare(load([]), [folder / LINES], folder / "data")
        pipes: dict[str, Connection] = {}
        about: dict[str, tuple[int, str]] = {}

        def enter(label: str, make: Callable[[], tuple[int, str, Steps]]) -> None:
            pipes[label] = stack.enter_context(worker(make, options.threads))
            try:
                about[label] = pipes[label].recv()  # waits, so that no model is prepared while another trains
            except EOFError:
                raise SystemExit(f"{label}: its process failed; see the error above") from None
            print(f"{label}: {about[label][0]} parameters, {about[label][1]}", flush=True)

        enter("peer", partial(theirs, options.peer.resolve(), folder, False))
        if options.peer_bf16:
            enter("peer, autocast", partial(theirs, options.peer.resolve(), folder, True))
        changes = scaled(load([]), tokenizer, about["peer"][0], load)
        print("as large as the peer: " + " ".join(f"--set {change}" for change in changes))
        enter("seqvae, as large", partial(ours, load(changes), folder))
        enter(f"seqvae, {load([]).name}", partial(ours, load([]), folder))
        spells: dict[str, list[Spell]] = {label: [] for label in pipes}
        for number in range(options.spells):
            for label, pipe in pipes.items():
                pipe.send(options.seconds)
                spells[label].append(pipe.recv())
                print(f"spell {number + 1}, {label}: {spells[label][-1].words:.0f} words/s", flush=True)

    def median(label: str, field: str) -> float:
        return float(statistics.median(getattr(spell, field) for spell in spells[label]))

    print(f"\n{processor.described(options.threads)}, {options.spells} spells of {options.seconds:g} s\n")
    print("| model | parameters | precision | words/s | tokens/s | words/s beside the peer | cores busy |")
    print("|---|---|---|---|---|---|---|")
    for label, (parameters, precision) in about.items():
        words, tokens, cores = (median(label, field) for field in ("words", "tokens", "cores"))
        ratio = statistics.median(a.words / b.words for a, b in zip(spells[label], spells["peer"], strict=True))
        print(f"| {label} | {parameters / 1e6:.1f} M | {precision} | {words:.0f} | {tokens:.0f} | {ratio:.2f} "
              f"| {cores:.2f} |")  # fmt: skip
    if any(median(label, "cores") < 0.8 * options.threads for label in spells):
        print("\nthe processors had other load, which slows some models more than others; run again on an idle machine")


if __name__ == "__main__":
    main()
