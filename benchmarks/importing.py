"""Speed of tokenizing MIDI files, beside symusic and MidiTok alone.

    python benchmarks/importing.py songs/ --files 200

Without a folder, files are made from works of music21's corpus: excerpts, transposed, for other instruments. Everything
runs on one core, reader processes included. The two sides take turns, after each file where files are read one by one.
The peer is MidiTok's REMI with the settings of our vocabulary. Both sides count the notes that we read, so the ratio of
speeds is that of the times. Growth with the number of files: growth.py.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import processor
import symusic
from miditok import REMI, TokenizerConfig

from seqvae.config import load_recipe
from seqvae.data import prepare as shards
from seqvae.errors import ReadError
from seqvae.music import piece as midi
from seqvae.music.tokenizer import MidiTokenizer

WORKS = ("bach/bwv66.6", "corelli/opus3no1/1grave", "joplin/maple_leaf_rag", "mozart/k155/movement1")
ROUNDS = 5
SETTINGS = {  # those of MidiTokenizer
    "pitch_range": (0, 127),
    "drums_pitch_range": (0, 127),
    "beat_res": {(0, 4): 12, (4, 16): 2},
    "special_tokens": ["PAD", "BOS", "EOS", "MASK"],
    "use_velocities": False,
    "use_time_signatures": False,
    "use_programs": True,
    "use_pitchdrum_tokens": True,
    "use_note_duration_programs": list(range(128)),
}


def make(folder: Path, count: int) -> None:
    """Write `count` MIDI files: beginnings of a few works, transposed, with other instruments."""
    works = [midi.read(f"corpus:{name}") for name in WORKS]
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        piece = rng.choice(works)
        end = piece.bounds[rng.randint(len(piece.bounds) // 2, len(piece.bounds) - 1)]
        notes = piece.notes[piece.notes[:, midi.ONSET] < end]
        notes[:, midi.PITCH] += rng.randint(-6, 6)
        notes[:, midi.PROGRAM] = (notes[:, midi.PROGRAM] + rng.randrange(128)) % 128
        midi.write(midi.to_score(notes, piece.frame), folder / f"{number}.mid")


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turns(ours: Callable[[Path], object], theirs: Callable[[Path], object], files: Iterable[Path]) -> list[float]:
    """Seconds of both sides over all files, alternating after each file."""
    total = [0.0, 0.0]
    for path in files:
        for side, work in enumerate((ours, theirs)):
            total[side] += timed(lambda work=work, path=path: work(path))
    return total


def compare(files: list[Path]) -> None:
    """Print the table."""
    tokenizer, remi = MidiTokenizer(), REMI(TokenizerConfig(**SETTINGS))
    assert remi.vocab == tokenizer.vocabulary

    def theirs(path: Path) -> object:
        return remi(symusic.Score(path))

    notes, good = 0, []
    for path in files:  # also the warm-up
        try:
            theirs(path)
            piece = midi.read(path)
        except (ReadError, RuntimeError) as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        good.append(path)
        notes += len(piece.notes)
    print(f"{len(good)} files, {notes:,} notes, medians of {ROUNDS} turns on one core: {processor.described(1)}\n")

    def prepared(cache: str) -> Callable[[], object]:
        def work() -> None:
            with tempfile.TemporaryDirectory() as folder:
                os.environ["XDG_CACHE_HOME"] = cache
                shards.prepare(load_recipe("music", []), good, Path(folder), report=lambda _: None)

        return work

    def all_theirs() -> None:
        for path in good:
            theirs(path)

    found: dict[str, list[list[float]]] = {}
    for _ in range(ROUNDS):
        rows = {
            "files read | symusic": in_turns(midi.read, symusic.Score, good),
            "files to tokens | symusic, MidiTok": in_turns(lambda p: tokenizer.encode(midi.read(p)), theirs, good),
        }
        with tempfile.TemporaryDirectory() as cache:
            work = prepared(cache)
            rows["files to shards | symusic, MidiTok"] = [timed(work), timed(all_theirs)]
            rows["files read before to shards | symusic, MidiTok"] = [timed(work), timed(all_theirs)]
        for name, row in rows.items():
            found.setdefault(name, []).append(row)
    print("| ours | peer | notes/s | peer's | times as fast |\n|---|---|---|---|---|")
    for name, rounds in found.items():
        speeds = [statistics.median(notes / seconds[side] for seconds in rounds) for side in (0, 1)]
        ratio = statistics.median(theirs / ours for ours, theirs in rounds)
        print(f"| {name} | {speeds[0]:,.0f} | {speeds[1]:,.0f} | {ratio:.2f} |")


def main() -> None:
    """Compare on the files of a folder, or on made files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="folder with .mid files; default: made files")
    parser.add_argument("--files", type=int, default=200, help="number of files, drawn at random")
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as made:
        if args.folder is None:
            make(Path(made), args.files)
        files = sorted((args.folder or Path(made)).rglob("*.mid"))
        compare(random.Random(0).sample(files, min(len(files), args.files)))


if __name__ == "__main__":
    main()
