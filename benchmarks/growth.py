"""Growth of time and memory with the corpus: 1, 10 and 100 times as many lines or songs, each in its own process.

    python benchmarks/growth.py --out /tmp/growth

The lines are excerpts of this repository's documentation with some words replaced at random. Shards are small
(65,536 tokens, a factor of 1,024), and so are the sample for the vocabulary and the blocks of scoring. So there are
several shards at 1x, and all bounded buffers have reached their bounds. The songs are made as in importing.py. Peak
memory is the maximum resident size of the process, with pages of mapped files, plus that of its largest child.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import processor

if TYPE_CHECKING:
    from seqvae.config import Recipe
    from seqvae.train.trainer import Run

# Large imports are inside functions: a child's peak memory starts at the resident size of its parent.

ROOT = Path(__file__).parent.parent
GROWTH = (1, 10, 100)
STEPS = 50
MAKE = "import sys; from pathlib import Path; import importing; importing.make(Path(sys.argv[1]), int(sys.argv[2]))"


def write(path: Path, lines: int) -> None:
    """Write a corpus of `lines` lines of 5 to 20 words, with one word in five replaced."""
    words = " ".join(file.read_text() for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]).split()
    rng = random.Random(0)
    with path.open("w") as file:
        for _ in range(lines):
            begin = rng.randrange(len(words))
            chosen = words[begin : begin + rng.randint(5, 20)]
            file.write(" ".join(rng.choice(words) if rng.random() < 0.2 else word for word in chosen) + "\n")


def recipe() -> Recipe:
    """A recipe with a model so small that the rest of the program dominates."""
    from seqvae.config import ModelConfig, ObjectiveConfig, Recipe, TokenizerConfig, TrainConfig

    return Recipe(
        tokenizer=TokenizerConfig(kind="text", vocab_size=1000, max_tokens=64),
        model=ModelConfig(chunks=1, latent=16, width=32, hidden=32, decoder="recurrent"),
        objective=ObjectiveConfig(),
        train=TrainConfig(batch_tokens=4096, max_windows=4, precision="fp32"),
    )


def run(folder: Path) -> Run:
    """A run on prepared shards."""
    from seqvae.data import prepare as shards
    from seqvae.train.trainer import Run

    data, tokenizer, _ = shards.prepare(recipe(), [folder / "data"], folder)
    return Run(recipe(), data, tokenizer, folder, print)


def prepare(folder: Path) -> int:
    """Learn a vocabulary and write shards."""
    from seqvae.data import dataset
    from seqvae.data import prepare as shards

    dataset.SHARD_TOKENS, shards.LEARNED = 1 << 16, 1 << 20
    data, _, _ = shards.prepare(recipe(), [folder / "lines.txt"], folder / "data")
    return len(data)


def learn(folder: Path) -> int:
    """Learn a vocabulary alone, with its command."""
    from seqvae.cli import training
    from seqvae.data import prepare as shards

    shards.LEARNED = 1 << 20
    training.train_([str(folder / "lines.txt")], folder / "tokenizer", vocab_size=1000)
    return sum(1 for _ in (folder / "lines.txt").open())


def read(folder: Path) -> int:
    """Read all songs, from the cache where possible."""
    from seqvae.music import library as collection

    found = collection.read_all(collection.find([folder / "songs"]), cache=folder / "seqvae", progress=False)
    return sum(1 for _ in found)


def tokenize(folder: Path) -> int:
    """Read all songs from the cache, and write shards."""
    from seqvae.config import load_recipe
    from seqvae.data import dataset
    from seqvae.data import prepare as shards

    dataset.SHARD_TOKENS = 1 << 16
    os.environ["XDG_CACHE_HOME"] = str(folder)
    data, _, _ = shards.prepare(load_recipe("music", []), [folder / "songs"], folder / "music")
    return len(data)


def gather(folder: Path) -> int:
    """Draw all batches of an epoch, without training."""
    from seqvae.data.dataset import TokenData
    from seqvae.data.sampler import Batches

    data, train = TokenData(folder / "data"), recipe().train
    batches = Batches(data, "train", 1, train.batch_tokens, train.max_windows, train.seed)
    return sum(len(data.gather(*batch, 1)) for batch in batches.epoch(0))


def train(folder: Path) -> int:
    """Train a fixed number of steps from the start of a run."""
    one = run(folder)
    for _, _, tokens in islice(one.batches, STEPS):
        one.step(tokens)
    one.save("best")
    return STEPS


def score(folder: Path) -> int:
    """Score a twentieth of the lines."""
    from seqvae.anomaly import evidence as anomaly
    from seqvae.codec import load
    from seqvae.text import lines as text

    anomaly.WINDOWS = 256
    count = sum(1 for _ in text.read_lines(folder / "lines.txt")) // 20
    lines = islice(text.read_lines(folder / "lines.txt"), count)
    return sum(1 for _ in anomaly.examine(load(folder / "best"), lines, samples=2))


WORK: dict[str, tuple[str, Callable[[Path], int]]] = {
    "learn": ("a vocabulary learned, lines", learn),
    "prepare": ("shards prepared, lines", prepare),
    "gather": ("an epoch of batches drawn, segments", gather),
    "train": ("training, steps", train),
    "score": ("scoring, lines", score),
    "read": ("music read, files", read),
    "again": ("music read again, files", read),
    "spell": ("shards of music prepared, files", tokenize),
}


def measured(work: str, folder: Path) -> dict[str, float]:
    """Seconds, peak MiB and items of a job in its own process."""
    command = [sys.executable, __file__, "--out", str(folder), "--work", work]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table_lines(found: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """The lines of the table."""
    heads = ["", "items at 1x", *(f"{n}x: s, MiB" for n in GROWTH), "time 100x / 10x", "peak 100x / 1x"]
    yield "| " + " | ".join(heads) + " |"
    yield "|---" * len(heads) + "|"
    for work, (name, _) in WORK.items():
        first, middle, last = found[work]
        cells = [f"{one['seconds']:.1f}, {one['peak']:.0f}" for one in found[work]]
        ratios = [f"{last['seconds'] / middle['seconds']:.1f}", f"{last['peak'] / first['peak']:.3f}"]
        yield "| " + " | ".join([name, f"{first['items']:,.0f}", *cells, *ratios]) + " |"


def main() -> None:
    """Measure one job, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for corpora and shards, about 700 MB")
    parser.add_argument("--lines", type=int, default=20000, help="lines at 1x")
    parser.add_argument("--songs", type=int, default=100, help="songs at 1x")
    parser.add_argument("--work", choices=list(WORK), help="run one job on an existing corpus; for internal use")
    args = parser.parse_args()
    if args.work:
        started = time.monotonic()
        items = WORK[args.work][1](args.out)
        seconds = time.monotonic() - started
        peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
        print(json.dumps({"seconds": seconds, "peak": peak, "items": items}))
        return
    found: dict[str, list[dict[str, float]]] = {work: [] for work in WORK}
    for times in GROWTH:
        folder = args.out / f"{times}x"
        folder.mkdir(parents=True)
        write(folder / "lines.txt", times * args.lines)
        make = [sys.executable, "-c", MAKE, str((folder / "songs").resolve()), str(times * args.songs)]
        subprocess.run(make, check=True, cwd=Path(__file__).parent)
        for work in WORK:
            found[work].append(measured(work, folder))
            print(f"{times}x {work}: {found[work][-1]}", file=sys.stderr)
        bytes_ = sum(file.stat().st_size for file in (folder / "data").glob("shard-*"))
        text = (folder / "lines.txt").stat().st_size
        print(f"{times}x: {text / 2**20:.1f} MiB of text, {bytes_ / 2**20:.1f} MiB of shards", file=sys.stderr)
    print(f"{processor.described(1)}\n")
    print("\n".join(table_lines(found)))


if __name__ == "__main__":
    main()
