"""Ablations of the music recipe: one change at a time, equal training, metrics on validation songs.

    python benchmarks/search.py --data ../shared/data/music --out runs/search [--steps 500] [--only base latent-256]

Every row is the recipe with one change, trained from random weights on the same songs with the same seed for the same
number of steps; the column `minutes` has its duration on this machine. Excerpts of validation songs (the half `choose`)
are then encoded, and decoded without teacher forcing. A row's folder keeps its training and its metrics, so an
interrupted search resumes. A new row is a new entry of CHOICES.

Note F1 is given for the encoder alone and after the refinement that the released models use. KL is in bits per bar.
Nats are the sum of reconstruction and KL per bar with teacher forcing: the code length of a bar. Intervals are 95 %
over songs; p of the difference to `base` comes from random signs over songs. Each row has one seed, so differences
below the interval are not evidence.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import symusic
import torch
from numpy.typing import NDArray

from seqvae import codec
from seqvae.config import Recipe, load_recipe
from seqvae.data import dataset
from seqvae.data.dataset import TokenData
from seqvae.data.prepare import prepare
from seqvae.evaluation import statistics as distributions
from seqvae.evaluation import test_songs
from seqvae.music import library as collection
from seqvae.music import note_metrics as measures
from seqvae.music import titles
from seqvae.music.piece import Piece
from seqvae.protocols import Tokenizer
from seqvae.train.loop import train

CHOICES: dict[str, list[str]] = {
    "base": [],
    "encoder transformer": ["model.encoder=transformer"],
    "decoder transformer": ["model.decoder=transformer"],
    "one bar": ["model.chunks=1", "model.latent=512"],
    "four bars": ["model.chunks=4", "model.latent=2048"],
    "four bars, latent as of two": ["model.chunks=4"],
    "latent 256": ["model.latent=256"],
    "latent 512": ["model.latent=512"],
    "KL at 0.1": ["objective.beta=0.1"],
    "KL at 0.25": ["objective.beta=0.25"],
    "KL at 1": ["objective.beta=1"],
    "no noise on tokens": ["objective.word_dropout=0"],
    "more noise on tokens": ["objective.word_dropout=0.5"],
    "denoising encoder": ["objective.denoise=0.1"],
    "no bag": ["objective.bag=0"],
    "no track dropout": ["objective.track_dropout=0"],
    "no mixing of tracks": ["train.mix=0"],
    "tracks reversed": [],
}
REVERSED = "tracks reversed"
BARS = 8


def reversed_tracks(files: Sequence[Path], roots: Path, folder: Path) -> Path:
    """The same songs with reversed program numbers, which reverses the order of tracks in a bar (except drums)."""
    if not folder.exists():
        for path in files:
            out = (folder / path.relative_to(roots)).with_suffix(".mid")
            out.parent.mkdir(parents=True, exist_ok=True)
            try:
                score = symusic.Score(path)
            except Exception:  # training leaves the file out as well
                continue
            for track in score.tracks:
                if not track.is_drum:
                    track.program = 127 - track.program
            score.dump_midi(out)
    return folder


def validation(data: Path, songs: int, chunks: int) -> list[Piece]:
    """Excerpts of at most `songs` songs of each style, one per title, from the held-out half `choose`."""
    files = collection.find([data])
    rng = np.random.default_rng(0)
    wanted: dict[str, dict[str, Path]] = {}
    for i in rng.permutation(len(files)):
        style, title = files[i].relative_to(data).parts[0], titles.title(files[i])
        if dataset.half_of(title) == "choose" and len(wanted.setdefault(style, {})) < songs:
            wanted[style].setdefault(title, files[i])
    paths = [path for style in sorted(wanted) for path in wanted[style].values()]
    found = [piece for _, piece in collection.read_all(paths, cache=collection.default_cache())]
    cut = [test_songs.stretch(piece, chunks, rng) for piece in found if isinstance(piece, Piece)]
    return [piece for piece in cut if piece is not None]


@torch.no_grad()
def figures(folder: Path, songs: Sequence[Piece]) -> dict[str, Any]:
    """Note F1 and KL in bits per bar, by song, without and with refinement."""
    model = codec.load(folder)
    out: dict[str, Any] = {}
    for name, steps in (("rough", 0), ("refined", model.refinement.steps)):
        model.refinement = replace(model.refinement, steps=steps)
        with torch.enable_grad():
            encoded = test_songs.encode(model, "", songs)
        notes = test_songs.decode(model, encoded, [song.z for song in encoded])
        out[name] = [
            measures.note_f1(test_songs.spell(model, model.tokenizer.encode(song.piece), song), mine)
            for song, mine in zip(encoded, notes, strict=True)
        ]
        out[f"{name}_bits"] = [
            float(song.kl.sum() / np.log(2) / (len(song.piece.bounds) - 1)) for song in encoded
        ]  # fmt: skip
    return out


def two_sided(differences: NDArray[np.float64]) -> float:
    """The two-sided p-value of a mean difference under random signs."""
    return min(1.0, 2 * min(distributions.flipped(differences), distributions.flipped(-differences)))


def short(name: str, steps: int, changes: Sequence[str]) -> Recipe:
    """A recipe with changes, for a short training of `steps` steps."""
    for_steps = [f"train.steps={steps}", f"train.evaluate_every={steps}", "train.warmup_steps=100",
                 f"objective.anneal_steps={steps // 2}"]  # fmt: skip
    return load_recipe(name, [*for_steps, *changes])


def row(
    folder: Path, recipe: Recipe, prepared: Callable[[Recipe], tuple[TokenData, Tokenizer]], songs: Sequence[Piece],
    measure: Callable[[Path, Sequence[Piece]], dict[str, Any]] = figures,
) -> dict[str, Any]:  # fmt: skip
    """Train a row in its folder on the data of `prepared`, and measure it on `songs`; or load its saved metrics."""
    kept = folder / "figures.json"
    if not kept.exists():
        tokens, tokenizer = prepared(recipe)
        begin = time.monotonic()
        best = train(recipe, tokens, tokenizer, folder, resume=True, report=print)
        minutes = (time.monotonic() - begin) / 60
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        last = next(line for line in reversed(lines) if line["kind"] == "valid")
        nats = -last["elbo"] / recipe.model.chunks
        kept.write_text(json.dumps({"minutes": minutes, "nats": nats, "valid": last, **measure(best, songs)}))
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def arguments(description: str | None, rows: Collection[str]) -> argparse.Namespace:
    """The arguments of a comparison of trainings, a training for each of `rows`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="songs, a folder for each style")
    parser.add_argument("--out", type=Path, required=True, help="folder for trainings and metrics")
    parser.add_argument("--recipe", default="music")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--songs", type=int, default=8, help="validation songs of each style")
    parser.add_argument("--only", nargs="+", choices=rows, default=list(rows), metavar="NAME")
    return parser.parse_args()


def main() -> None:
    options = arguments(__doc__, CHOICES)
    roots = options.data.resolve()
    found: dict[str, dict[str, Any]] = {}
    for name in options.only:
        folder = options.out / name.replace(" ", "-").replace(",", "")
        data, shards = roots, options.out / "data"  # independent of the number of bars in a segment
        if name == REVERSED:
            data = reversed_tracks(collection.find([roots]), roots, options.out / "songs-reversed")
            shards = options.out / "data-reversed"

        def prepared(recipe: Recipe, data: Path = data, shards: Path = shards) -> tuple[TokenData, Tokenizer]:
            return prepare(recipe, [data], shards, report=print)[:2]

        recipe = short(options.recipe, options.steps, CHOICES[name])
        found[name] = row(folder, recipe, prepared, validation(data, options.songs, BARS))
        print(f"{name}: done", flush=True)
    print(f"\n{options.steps} steps, {len(found[options.only[0]]['rough'])} validation songs of {BARS} bars\n")
    print("| | minutes | nats per bar | note F1, encoder alone | p | after refinement | p | KL, bits per bar |")
    print("|---|---|---|---|---|---|---|---|")
    for name, one in found.items():
        cells = [f"{one['minutes']:.1f}", f"{one['nats']:.1f}"]
        for kind in ("rough", "refined"):
            mean, low, high = measures.interval(np.array(one[kind]))
            cells.append(f"{mean:.3f} [{low:.3f}, {high:.3f}]")
            gain = np.array(one[kind]) - np.array(found["base"][kind]) if "base" in found else None
            cells.append("" if name == "base" or gain is None else f"{two_sided(gain):.3f}")
        cells.append(f"{np.mean(one['refined_bits']):.0f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
