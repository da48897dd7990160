"""Similarity of generated songs to real songs and to each other, by style.

    python benchmarks/draws.py DIR --model music [--draws 60] [--pairs 96 --directions 64] [--split choose] [--write]

DIR has one folder of songs per style. Songs of eight bars are drawn from each style as `seqvae generate` draws them.
A line of JSON has means over styles (`kit repeated`: over rock and jazz):

    overlap       overlapped area of eight statistics with held-out songs, pooled over styles, with its interval
    inside        share of the 13 arrangement statistics within the middle 80 % of 100 training songs of the style
    band, kit repeated   instruments shared by adjacent two-bar windows; drum hits of a bar repeated in the next bar
    nearest of N  note F1 with the nearest other of N songs of the style (N: ten, and all), bars compared in order

and further lines have the same for held-out and for training songs. With --pairs the exemplars of the styles (sums of
two songs) are recomputed from the training songs in DIR with the args --directions. For them the note F1 with the
nearer of the two songs is printed, and as a control with the nearer of the two songs of another exemplar. --write saves
the new exemplars in the model's folder and leaves all other tensors unchanged.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqvae.checkpoint import folder as checkpoint
from seqvae.codec import Codec, Ints, load
from seqvae.data.dataset import half_of
from seqvae.errors import ReadError
from seqvae.evaluation import generation as evaluate_samples
from seqvae.evaluation import statistics as distributions
from seqvae.evaluation import test_songs
from seqvae.music import arrangement, titles
from seqvae.music import library as collection
from seqvae.music import note_metrics as measures
from seqvae.music.note_statistics import statistics
from seqvae.music.piece import Piece, read
from seqvae.style import exemplars, styles_file

SEGMENTS = 4  # segments of a song
REAL = 100  # training songs of each style that define the ranges
KITS = ("rock", "jazz")
READ = 24  # exemplars of each style that are decoded


def latents(codec: Codec, folder: Path, rng: np.random.Generator) -> list[Tensor]:
    """Latents `(S, D)` of each training song of a folder: consecutive segments from a random place, as in training."""
    files = [path for path in collection.find([folder]) if half_of(titles.title(path)) is None]
    stretches = []
    for _, piece in collection.read_all(files, cache=collection.default_cache()):
        if isinstance(piece, Piece):
            segments = codec.segments(piece)
            first = int(rng.random() * max(1, len(segments) - exemplars.ROW + 1))
            stretches.append(segments[first : first + exemplars.ROW])
    return codec.means(stretches, refined=False)


def refit(codec: Codec, data: Path, most: int, rank: int) -> dict[str, Tensor]:
    """New exemplars `(K, S, D)` of every style of a codec, from songs in one folder per style."""
    rng = np.random.default_rng(0)
    found = {name: latents(codec, data / name, rng) for name in sorted(codec.styles) if name != "all"}
    for name, songs in found.items():
        own, other = pair_scores(codec, songs, codec.styles[name].mean, most, rank)
        print(json.dumps({"exemplars": name, "F1 with its songs": round(own, 3), "with another's": round(other, 3)}))
    found["all"] = [z for members in found.values() for z in members]
    fitted = {name: exemplars.pair(z, codec.styles[name].mean, most, rank) for name, z in found.items()}
    return {name: x for name, x in fitted.items() if x is not None}


def pair_scores(codec: Codec, songs: Sequence[Tensor], mean: Tensor, most: int, rank: int) -> tuple[float, float]:
    """Note F1 of the first READ decoded exemplars with the nearer of their two songs, and of the next exemplar's.

    The two songs of an exemplar are those with the most similar latents.
    """
    fitted = exemplars.pair(songs, mean, most, rank)
    assert fitted is not None
    row = torch.arange(exemplars.ROW)
    whole = torch.stack([z[row % len(z)] - mean for z in songs])
    likeness = (
        torch.nn.functional.normalize(fitted[:READ].flatten(1)) @ torch.nn.functional.normalize(whole.flatten(1)).T
    )
    pairs = likeness.topk(2).indices.tolist()
    decoded, *parents = (
        [decoded_notes(score) for score in codec.decode(list(mean + z))]
        for z in (fitted[:READ], *(whole[[pair[side] for pair in pairs]] for side in (0, 1)))
    )
    near = [[max(measures.note_f1(x, side[i]) for side in parents) for i in range(len(pairs))] for x in decoded]
    count = len(pairs)
    own, other = ([near[i][(i + step) % count] for i in range(count)] for step in (0, 1))
    return float(np.mean(own)), float(np.mean(other))


def decoded_notes(score: Any) -> Ints:
    """The notes `(N, 5)` of a decoded score, which may be empty."""
    try:
        return read(score).notes
    except ReadError:
        return np.zeros((0, 5), np.int32)


def keep(fitted: Mapping[str, Tensor], codec: Codec, folder: Path) -> None:
    """Replace the exemplars of a checkpoint, and leave everything else unchanged."""
    kept = checkpoint.load(folder)
    for name, x in fitted.items():
        packed, _ = styles_file.pack({name: replace(codec.styles[name], exemplars=x)})
        kept.styles.pop(f"{name}.sums", None)
        kept.styles |= {key: packed[key] for key in (f"{name}.coefficients", f"{name}.directions")}
    checkpoint.save(kept, folder)


def nearest(pieces: Sequence[Ints]) -> float:
    """Mean over songs of the note F1 with the nearest other song; nan for a single song."""
    rows = [[measures.note_f1(a, b) for j, b in enumerate(pieces) if i != j] for i, a in enumerate(pieces)]
    return float(np.mean([max(row, default=float("nan")) for row in rows]))


def figures(
    pieces: Mapping[str, Sequence[Piece]], held: Mapping[str, Sequence[Piece]],
    ranges: Mapping[str, arrangement.Range],
) -> dict[str, Any]:  # fmt: skip
    """Metrics of the songs of each style against held-out songs and the ranges of real songs."""
    rows = {
        name: np.array([arrangement.statistics(p.notes, p.bounds) for p in members]) for name, members in pieces.items()
    }
    band, kit = (list(arrangement.STATISTICS).index(name) for name in ("band", "kit repeated"))
    ours, theirs = (
        np.array([statistics(p.notes, p.bounds) for members in of.values() for p in members]) for of in (pieces, held)
    )
    least = min(map(len, pieces.values()))
    with_kits = [np.nanmean(rows[name][:, kit]) for name in KITS if name in rows]
    return {
        "overlap": [round(x, 3) for x in distributions.overlaps(ours, theirs)[1]],
        "inside": np.mean([np.mean([ranges[name].inside(x).mean() for x in rows[name]]) for name in rows]),
        "band": np.mean([np.nanmean(x[:, band]) for x in rows.values()]),
        "kit repeated": np.mean(with_kits) if with_kits else float("nan"),
        **{
            f"nearest of {count}": np.mean([nearest([p.notes for p in members[:count]]) for members in pieces.values()])
            for count in sorted({10, least})
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="music")
    parser.add_argument("--draws", type=int, default=60)
    parser.add_argument("--pairs", type=int, help="number of exemplars per style to recompute; default: the model's")
    parser.add_argument("--directions", type=int, default=exemplars.DIRECTIONS)
    parser.add_argument("--split", choices=["choose", "final"], default="choose")
    parser.add_argument("--write", action="store_true", help="save the new exemplars in the model's folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    codec = load(args.model)
    if args.pairs is not None:
        fitted = refit(codec, args.data, args.pairs, args.directions)
        codec.styles |= {name: replace(codec.styles[name], exemplars=x) for name, x in fitted.items()}
        if args.write:
            keep(fitted, codec, checkpoint.find(args.model))
    names = sorted(set(codec.styles) - {"all"})
    bars = SEGMENTS * codec.chunks
    found = test_songs.gather(
        args.data, names, train=REAL, test=args.draws, train_chunks=bars, test_chunks=bars,
        rng=np.random.default_rng(0), half=args.split,
    )  # fmt: skip
    ranges = {
        name: arrangement.Range.of(np.array([arrangement.statistics(p.notes, p.bounds) for p in members]))
        for name, members in found.train.items()
    }
    drawn = {name: evaluate_samples.draw(codec, name, args.draws, SEGMENTS, 0) for name in names}
    several = {
        "drawn": drawn,
        "held out": found.test,
        "training": {n: x[: args.draws] for n, x in found.train.items()},
    }
    for name, pieces in several.items():
        row = figures(pieces, found.test, ranges)
        print(json.dumps({"pieces": name} | {k: x if isinstance(x, list) else round(x, 3) for k, x in row.items()}))


if __name__ == "__main__":
    main()
