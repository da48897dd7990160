"""Training speed on music, beside an earlier revision of this repository and beside the machine's bf16 rate.

    git worktree add --detach /tmp/before REVISION
    python benchmarks/training.py --data ../shared/data/music --before /tmp/before --threads 2
    python benchmarks/training.py --data ../shared/data/music --share

The first trains the recipe of each tree in turns, from random weights, with `seqvae train` in its own process until
step 100 is logged. The logged speed counts, and the median of the turns' ratios. Reading songs and start-up are
excluded.

The second times training steps on different batches, after warm-up steps. It then repeats these steps to count their
matrix products, forward and backward, and times each size of product alone in bf16, in the same process with the same
threads. The time of the products alone, as a share of the steps' time, is the share of the machine's bf16 rate that
training reaches. Batches differ in size, and oneDNN generates code when it first meets a size, so a repeated step is
faster than a training step.

Training on text: text_training.py.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import processor
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seqvae.config import load_recipe
from seqvae.data.prepare import prepare
from seqvae.train.loop import keep_memory
from seqvae.train.trainer import Run

LOGGED = 100  # step of the first line of a run's log
WARM, TIMED = 10, 20  # steps on different batches
Size = tuple[int, int, int]  # rows, inner dimension, columns


def tokens_per_second(tree: Path, recipe: str, changes: list[str], data: Path, threads: int) -> float:
    """The logged speed of a short run of the code in `tree`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "seqvae", "train", recipe, "--data", str(data), "--out", folder]
        for change in [*changes, f"train.steps={10 * LOGGED}", f"train.evaluate_every={10 * LOGGED}"]:
            command += ["--set", change]
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(threads)}
        log = Path(folder) / "log.jsonl"
        with (Path(folder) / "output").open("w+") as output:
            process = subprocess.Popen(command, cwd=tree, env=environment, stdout=output, stderr=output)
            try:
                while process.poll() is None:
                    for line in log.read_text().splitlines() if log.exists() else ():
                        figures = json.loads(line)
                        if figures["kind"] == "train" and figures["step"] == LOGGED:
                            return float(figures["tokens_per_second"])
                    time.sleep(1)
                output.seek(0)
                raise SystemExit(f"{tree}: training ended with {process.returncode}: {output.read()[-500:]}")
            finally:
                process.kill()
                process.wait()


class Products(TorchDispatchMode):
    """Counts the matrix products executed in its context, by size."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: Counter[Size] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            a, b = (args[1], args[2]) if name in ("addmm", "baddbmm") else (args[0], args[1])
            self.sizes[(a.shape[-2], a.shape[-1], b.shape[-1])] += a.shape[0] if a.dim() == 3 else 1
        elif name in ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math"):
            q, k = args[0], args[1]
            heads = q.shape[0] * q.shape[1]
            self.sizes[(q.shape[2], q.shape[3], k.shape[2])] += heads
            self.sizes[(q.shape[2], k.shape[2], q.shape[3])] += heads
        elif name == "_scaled_dot_product_flash_attention_for_cpu_backward":
            q, k = args[1], args[2]
            heads = q.shape[0] * q.shape[1]
            self.sizes[(q.shape[2], q.shape[3], k.shape[2])] += 3 * heads
            self.sizes[(q.shape[2], k.shape[2], q.shape[3])] += 2 * heads
        elif name == "mkldnn_rnn_layer":
            self._recurrent(args[0], args[1], args[2], 1)
        elif name == "mkldnn_rnn_layer_backward":
            self._recurrent(args[0], args[1], args[2], 2)
        elif "lstm" in name or "conv" in name:
            raise SystemExit(f"{name} has matrix products that this benchmark does not count; choose another recipe")
        return out

    def _recurrent(self, x: Tensor, inwards: Tensor, onwards: Tensor, times: int) -> None:
        """Count an LSTM layer: one product for the inputs of all steps, and one per step for the states."""
        steps, rows, width = x.shape
        self.sizes[(steps * rows, width, inwards.shape[0])] += times
        self.sizes[(rows, onwards.shape[1], onwards.shape[0])] += times * steps


@cache
def fastest(size: Size) -> float:
    """Seconds of a product of this size in bf16, the median of several runs."""
    rows, inner, columns = size
    a, b = torch.randn(rows, inner).bfloat16(), torch.randn(columns, inner).bfloat16()
    repeat = max(3, math.ceil(1e8 / (2 * rows * inner * columns)))
    seconds = []
    for _ in range(7):
        begin = time.perf_counter()
        for _ in range(repeat):
            a @ b.T
        seconds.append((time.perf_counter() - begin) / repeat)
    return statistics.median(seconds[1:])


def share(recipe_name: str, changes: list[str], data: Path, folder: Path) -> None:
    """Print the speed of training steps, of their products alone, and the share of the products' time."""
    keep_memory()
    recipe = load_recipe(recipe_name, changes)
    tokens, tokenizer, _ = prepare(recipe, [data], folder / "data")
    run = Run(recipe, tokens, tokenizer, folder, print)
    run.model.train()
    run.compile()
    timed = []
    for position, (pieces, firsts) in enumerate(islice(run.batches.epoch(0), WARM + TIMED), 1):
        run.progress.position = position
        batch = tokens.gather(pieces, firsts, recipe.model.chunks)
        count = int((batch != 0).sum())
        begin = time.perf_counter()
        run.step(batch)
        timed.append((position, batch, count, time.perf_counter() - begin))
    if len(timed) < WARM + TIMED:
        raise SystemExit(f"{data}: an epoch has {len(timed)} batches, {WARM + TIMED} are needed; give more songs")
    before = processor.described(torch.get_num_threads())
    rows = []
    for position, batch, count, taken in timed[WARM:]:
        run.progress.position = position  # the position determines a step's randomness
        with Products() as products:
            run.step(batch)
        operations = sum(2 * math.prod(size) * times for size, times in products.sizes.items())
        alone = sum(fastest(size) * times for size, times in products.sizes.items())
        rows.append((operations, taken, alone, count))
    operations, taken, alone, count = (sum(row[i] for row in rows) for i in range(4))
    print(f"\n{TIMED} steps of {recipe.name} on {len(tokens)} songs, {before}\n")
    print("| figure | |")
    print("|---|---|")
    print(f"| tokens per second | {count / taken:.0f} |")
    print(f"| products of a step, 10^9 operations | {operations / TIMED / 1e9:.1f} |")
    print(f"| 10^9 operations per second, in training | {operations / taken / 1e9:.0f} |")
    print(f"| 10^9 operations per second, the same products alone in bf16 | {operations / alone / 1e9:.0f} |")
    print(f"| share | {alone / taken:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of songs, or of prepared shards")
    parser.add_argument("--recipe", default="music")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change the recipe, in both trees"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--before", type=Path, help="tree of an earlier revision to compare with")
    parser.add_argument("--share", action="store_true", help="measure the share of the bf16 rate instead")
    options = parser.parse_args()
    data = options.data.resolve()
    if options.share:
        torch.set_num_threads(options.threads)
        with tempfile.TemporaryDirectory() as name:
            share(options.recipe, options.set, data, Path(name))
        return
    if options.before is None:
        parser.error("--before TREE or --share is needed")
    trees = {"before": options.before.resolve(), "now": Path(__file__).resolve().parents[1]}
    found: dict[str, list[float]] = {label: [] for label in trees}
    for turn in range(1, options.turns + 1):
        for label, tree in trees.items():
            found[label].append(tokens_per_second(tree, options.recipe, options.set, data, options.threads))
            print(f"turn {turn}, {label}: {found[label][-1]:.0f} tokens/s", flush=True)
    ratios = [now / before for now, before in zip(found["now"], found["before"], strict=True)]
    print(f"\n{options.recipe}, {processor.described(options.threads)}")
    print(f"{statistics.median(ratios):.2f} times the tokens per second ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
