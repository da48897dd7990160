"""Speed-up by a second process: training, encoding and scoring with one process and with two, one thread each.

    python benchmarks/processes.py --out /tmp/processes

Lines are made as in growth.py, songs as in importing.py. Runs with one and with two processes take turns, each under
torchrun, and the median of the turns' ratios counts. Start-up and the first steps are not timed. The models are the
package's recipes and checkpoints. Two cores must be free: other load slows two processes more than one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import growth
import importing
import processor

import seqvae
from seqvae import parallel as distributed
from seqvae.anomaly import evidence as anomaly
from seqvae.cli import text_io as lines
from seqvae.config import load_recipe
from seqvae.data import prepare as shards
from seqvae.text import lines as text
from seqvae.train.trainer import Run

WARM, STEPS = 3, 10


def train(name: str, data: Path, folder: Path, wide: bool) -> float:
    """Seconds of training on the tokens of STEPS steps of a recipe.

    With `wide`, each process has a batch of the recipe's size instead of a part of it.
    """
    recipe = load_recipe(name, [])
    factor = distributed.join().count if wide else 1
    recipe = replace(recipe, train=replace(recipe.train, batch_tokens=factor * recipe.train.batch_tokens))
    tokens, tokenizer, _ = distributed.join().by_turns(
        lambda: shards.prepare(recipe, [data], folder / name, report=lambda _: None)
    )
    run = Run(recipe, tokens, tokenizer, folder / name, lambda _: None)
    started = 0.0
    for step, (_, _, batch) in enumerate(islice(run.batches.resume(0, 0), WARM + STEPS)):
        if step == WARM:
            started = time.perf_counter()
        run.step(batch)
    return (time.perf_counter() - started) / factor


def reviews(folder: Path, wide: bool = False) -> float:
    """Training on sentences."""
    return train("reviews", folder / "lines.txt", folder, wide)


def music(folder: Path, wide: bool = False) -> float:
    """Training on songs."""
    return train("music", folder / "songs", folder, wide)


def divided(folder: Path, count: int, size: int, work: Callable[[list[str]], list[object]]) -> float:
    """Seconds of `work` on `count` lines in batches of `size`, in rounds as in the commands, after a warm-up round."""
    ranks = distributed.join()
    found = list(islice(text.read_lines(folder / "lines.txt"), count))
    batches = [found[i : i + size] for i in range(0, len(found), size)]
    list(ranks.in_rounds(batches[: ranks.count], work))
    started = time.perf_counter()
    list(ranks.in_rounds(batches, work))
    return time.perf_counter() - started


def encode(folder: Path) -> float:
    """Encoding of sentences, with refinement."""
    codec = seqvae.load("reviews")
    return divided(folder, 256, 64, lambda batch: list(codec.encode(batch)))


def score(folder: Path) -> float:
    """Scoring of sentences, as in `detect score`."""
    codec = seqvae.load("reviews")
    return divided(folder, 2048, lines.BATCH, lambda batch: list(anomaly.examine(codec, batch, samples=4)))


WORK: dict[str, tuple[str, Callable[[Path], float]]] = {
    "reviews": ("training, reviews, one batch divided", reviews),
    "reviews-wide": ("training, reviews, each process with a batch of the recipe's size", partial(reviews, wide=True)),
    "music": ("training, music, one batch divided", music),
    "music-wide": ("training, music, each process with a batch of the recipe's size", partial(music, wide=True)),
    "encode": ("encoding sentences", encode),
    "score": ("scoring sentences", score),
}


def measured(work: str, folder: Path, count: int) -> float:
    """Seconds of a job with `count` processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command += [__file__, "--out", str(folder), "--worker", work]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    seconds: float = json.loads(done.stdout.splitlines()[-1])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for lines, songs and shards")
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--worker", choices=WORK, help="run as one of the processes; for internal use")
    args = parser.parse_args()
    if args.worker:
        seconds = WORK[args.worker][1](args.out)
        if distributed.join().rank == 0:
            print(json.dumps(seconds))
        distributed.join().leave()
        return
    args.out.mkdir(parents=True, exist_ok=True)
    growth.write(args.out / "lines.txt", 20000)
    importing.make(args.out / "songs" / "all", 100)
    print(f"{processor.described(1)}, turns: {args.turns}\n", flush=True)
    print("| | one process, s | two, s | times as fast |\n|---|---|---|---|", flush=True)
    for work in args.work:
        measured(work, args.out, 1)  # makes the shards
        took = [(measured(work, args.out, 1), measured(work, args.out, 2)) for _ in range(args.turns)]
        one, two = (statistics.median(column) for column in zip(*took, strict=True))
        ratio = statistics.median(a / b for a, b in took)
        print(f"| {WORK[work][0]} | {one:.1f} | {two:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
