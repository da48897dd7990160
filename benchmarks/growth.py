"""How time and memory grow with a corpus: 1, 10 and 100 times as many lines, or files of music, each in a process.

    python benchmarks/growth.py --out /tmp/growth

The lines are stretches of this repository's documentation, some words of each changed at random. Shards are small here
(65,536 tokens, 1,024 times smaller than they are), and so are the lines that a vocabulary is learned from and the
blocks that are scored, so that there are several shards at 1x already and whatever is bounded has reached its bound.
The music is made as in importing.py. Peak memory is what the process ever held, pages of mapped files included, and the
largest of those that read music for it.
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

# What is heavy is imported where it is needed: a process is told the memory of the one that started it as its own.

ROOT = Path(__file__).parent.parent
GROWTH = (1, 10, 100)
STEPS = 50
MAKE = "import sys; from pathlib import Path; import importing; importing.make(Path(sys.argv[1]), int(sys.argv[2]))"


def write(path: Path, lines: int) -> None:
    """A corpus of so many lines of 5 to 20 words, of which one in five is another."""
    words = " ".join(file.read_text() for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]).split()
    rng = random.Random(0)
    with path.open("w") as file:
        for _ in range(lines):
            begin = rng.randrange(len(words))
            chosen = words[begin : begin + rng.randint(5, 20)]
            file.write(" ".join(rng.choice(words) if rng.random() < 0.2 else word for word in chosen) + "\n")


def recipe() -> Recipe:
    """A model so small that what is around it shows."""
    from seqvae.config import ModelConfig, ObjectiveConfig, Recipe, TokenizerConfig, TrainConfig

    return Recipe(
        tokenizer=TokenizerConfig(kind="text", vocab_size=1000, max_tokens=64),
        model=ModelConfig(chunks=1, latent=16, width=32, hidden=32, decoder="recurrent"),
        objective=ObjectiveConfig(),
        train=TrainConfig(batch_tokens=4096, max_windows=4, precision="fp32"),
    )


def run(folder: Path) -> Run:
    """A run on the shards that were prepared."""
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
    """Learn a vocabulary alone, by the command for it."""
    from seqvae.cli import training as workshop
    from seqvae.data import prepare as shards

    shards.LEARNED = 1 << 20
    workshop.train_([str(folder / "lines.txt")], folder / "tokenizer", vocab_size=1000)
    return sum(1 for _ in (folder / "lines.txt").open())


def read(folder: Path) -> int:
    """Read all files of music, those that were read before from the cache."""
    from seqvae.music import library as collection

    found = collection.read_all(collection.find([folder / "songs"]), cache=folder / "seqvae", progress=False)
    return sum(1 for _ in found)


def spell(folder: Path) -> int:
    """Read all files of music from the cache, and write shards."""
    from seqvae.config import load_recipe
    from seqvae.data import dataset
    from seqvae.data import prepare as shards

    dataset.SHARD_TOKENS = 1 << 16
    os.environ["XDG_CACHE_HOME"] = str(folder)
    data, _, _ = shards.prepare(load_recipe("music", []), [folder / "songs"], folder / "music")
    return len(data)


def gather(folder: Path) -> int:
    """Draw all batches of an epoch, and do nothing with them."""
    from seqvae.data.dataset import TokenData
    from seqvae.data.sampler import Batches

    data, train = TokenData(folder / "data"), recipe().train
    batches = Batches(data, "train", 1, train.batch_tokens, train.max_windows, train.seed)
    return sum(len(data.gather(*batch, 1)) for batch in batches.epoch(0))


def train(folder: Path) -> int:
    """Some steps of training, as many whatever the corpus, from the start of the run on."""
    one = run(folder)
    for _, _, tokens in islice(one.batches, STEPS):
        one.step(tokens)
    one.save("best")
    return STEPS


def score(folder: Path) -> int:
    """Score some of the lines: a twentieth."""
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
    "spell": ("shards of music prepared, files", spell),
}


def measured(work: str, folder: Path) -> dict[str, float]:
    """Seconds, peak MiB and items of some work, in a process of its own."""
    command = [sys.executable, __file__, "--out", str(folder), "--work", work]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table_lines(found: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """The table."""
    heads = ["", "items at 1x", *(f"{n}x: s, MiB" for n in GROWTH), "time 100x / 10x", "peak 100x / 1x"]
    yield "| " + " | ".join(heads) + " |"
    yield "|---" * len(heads) + "|"
    for work, (name, _) in WORK.items():
        first, middle, last = found[work]
        cells = [f"{one['seconds']:.1f}, {one['peak']:.0f}" for one in found[work]]
        ratios = [f"{last['seconds'] / middle['seconds']:.1f}", f"{last['peak'] / first['peak']:.3f}"]
        yield "| " + " | ".join([name, f"{first['items']:,.0f}", *cells, *ratios]) + " |"


def main() -> None:
    """Measure one kind of work, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for corpora and shards, some 700 MB")
    parser.add_argument("--lines", type=int, default=20000, help="lines at 1x")
    parser.add_argument("--songs", type=int, default=100, help="files of music at 1x")
    parser.add_argument("--work", choices=list(WORK), help="one kind of work on a corpus that is there: for this file")
    given = parser.parse_args()
    if given.work:
        started = time.monotonic()
        items = WORK[given.work][1](given.out)
        seconds = time.monotonic() - started
        peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
        print(json.dumps({"seconds": seconds, "peak": peak, "items": items}))
        return
    found: dict[str, list[dict[str, float]]] = {work: [] for work in WORK}
    for times in GROWTH:
        folder = given.out / f"{times}x"
        folder.mkdir(parents=True)
        write(folder / "lines.txt", times * given.lines)
        make = [sys.executable, "-c", MAKE, str((folder / "songs").resolve()), str(times * given.songs)]
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
