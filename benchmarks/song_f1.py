"""Note F1 of songs that a run of `train_songs.py` encodes and decodes freely, beside a control.

    python benchmarks/song_f1.py runs/songs MUSIC data.txt --songs 8 --search 20

MUSIC and data.txt are as in song_checkpoint.py. Of each style random validation songs are taken, sixteen bars of each:
decoded from means, from a draw of the posterior, from means after a search if there is one, and as a control from what
the prior expects of each bar given song vector, harmony and melody, without the bar vector.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from song_checkpoint import without_styles
from torch import Tensor

from seqvae.codec import Codec, from_checkpoint
from seqvae.evaluation.arrangement import excerpt
from seqvae.music import library, note_metrics
from seqvae.music.piece import Piece
from seqvae.nn.sampling import Sampling
from seqvae.protocols import Given


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder with song.json and song-*.safetensors")
    parser.add_argument("music", type=Path, help="folder of music with one folder per style")
    parser.add_argument("listed", type=Path, help="list of songs: style, split and name, separated by tabs")
    parser.add_argument("--songs", type=int, default=8, help="songs of each style")
    parser.add_argument("--styles", nargs="+", default=["classical", "rock", "jazz", "folk"])
    parser.add_argument("--search", type=int, default=0, help="steps of the search, 0 for none")
    return parser


def excerpts(args: argparse.Namespace, style: str) -> list[Piece]:
    """Sixteen bars of each of some validation songs of a style."""
    rows = [line.split("\t") for line in args.listed.read_text().splitlines()]
    names = np.array([name for one, split, name in rows if (one, split) == (style, "valid")])
    rng = np.random.default_rng(0)
    rng.shuffle(names)
    files = [args.music / name for name in names[: 4 * args.songs]]
    out: list[Piece] = []
    for _, piece in library.read_all(files, cache=library.default_cache(), workers=1, progress=False):
        found = excerpt(piece, rng) if isinstance(piece, Piece) else None
        if found is not None and len(out) < args.songs:
            out.append(found)
    return out


def decoded(codec: Codec, piece: Piece, z: Tensor, given: Given) -> float:
    """Note F1 of a piece and what its rows `z (S, D)` decode to under the conditions `given (S,)`."""
    tokenizer = codec.tokenizer
    notes = tokenizer.decode_notes(codec.generate_tokens(z, given, Sampling()), piece.bounds, tokenizer.shift(piece))
    return note_metrics.note_f1(notes, piece.notes)


def main() -> None:
    args = options().parse_args()
    torch.manual_seed(0)
    codec = from_checkpoint(without_styles(args.run, search=args.search))
    for style in args.styles:
        found: dict[str, list[float]] = {}
        for piece in excerpts(args, style):
            segments, given = codec.segments(piece), codec.adapter.conditions(piece)
            assert given is not None
            posterior = codec.posteriors(segments)
            song = codec.model.shared
            expected, ahead = posterior.mean.clone(), given.copy()
            expected[:, song:], ahead["has_bar"] = 0.0, 0.0
            rows = {"mean": posterior.mean, "sample": posterior.sample()}
            if args.search:
                rows["search"] = codec.posteriors(segments, refined=True).mean
            for name, z in rows.items():
                found.setdefault(name, []).append(decoded(codec, piece, z, given))
            found.setdefault("expected", []).append(decoded(codec, piece, expected, ahead))
        print(style, ", ".join(f"{name} {np.mean(each):.3f}" for name, each in found.items()), flush=True)


if __name__ == "__main__":
    main()
