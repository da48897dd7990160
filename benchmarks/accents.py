"""Accents of the styles of a released music model, from the velocities of its training songs.

    python benchmarks/accents.py MUSIC checkpoints/music          # MUSIC has one folder per style

Training reads shards of tokens, which have no velocities, so the tables of `seqvae.music.accents` are added here.
Prints the correlation of a style's table with validation songs: between mean velocities at the positions of a bar,
averaged over their drums and over their other instruments.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqvae.checkpoint import folder as checkpoint
from seqvae.data.dataset import split_of
from seqvae.errors import ReadError
from seqvae.music import accents, library
from seqvae.music.piece import Piece
from seqvae.style import styles_file

FEWEST_NOTES, FEWEST_PLACES, LEAST_SPREAD = 32, 4, 2.0  # limits for an instrument of a song to be compared


def songs(folder: Path, split: str) -> list[Piece]:
    """The songs of a style in a split."""
    files = [path for path in library.find([folder]) if split_of(library.title(path)) == split]
    read = library.read_all(files, cache=library.default_cache())
    return [piece for _, piece in read if not isinstance(piece, ReadError)]


def correlations(table: NDArray[np.float64], pieces: Sequence[Piece]) -> tuple[list[float], list[float]]:
    """Correlation of the table with each instrument of each song that has accents: drums, and others."""
    found: tuple[list[float], list[float]] = ([], [])
    for piece in pieces:
        row, place = accents.cells(piece.notes, piece.bounds)
        for one in np.unique(row):
            mine = row == one
            loud, at = piece.notes[mine, 4].astype(float), place[mine]
            count = np.bincount(at, minlength=accents.PLACES)
            known = count >= 2
            if len(loud) < FEWEST_NOTES or loud.std() < LEAST_SPREAD or known.sum() < FEWEST_PLACES:
                continue
            mean = np.bincount(at, weights=loud, minlength=accents.PLACES)[known] / count[known]
            if mean.std() > 0 and table[one, known].std() > 0:
                found[int(one < 128)].append(float(np.corrcoef(mean, table[one, known])[0, 1]))
    return found


def main() -> None:
    """Fit, compare and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("music", type=Path, help="folder with one folder per style")
    parser.add_argument("model", type=Path, help="folder of a checkpoint")
    args = parser.parse_args()
    kept = checkpoint.load(args.model)
    styles = styles_file.unpack(kept.styles, kept.about_styles)
    everything: list[Piece] = []
    for name, style in styles.items():
        if name == "all" or style.ensemble is None:
            continue
        trained = songs(args.music / name, "train")
        everything += trained
        table = accents.accents((piece.notes, piece.bounds) for piece in trained)
        styles[name] = replace(style, ensemble=replace(style.ensemble, accents=table))
        drums, others = correlations(table, songs(args.music / name, "valid"))
        figures = [f"{np.mean(x):.2f} ({len(x)})" if x else "-" for x in (drums, others)]
        print(f"{name}: {len(trained)} songs; correlation of drums {figures[0]}, of other instruments {figures[1]}")
    if "all" in styles and styles["all"].ensemble is not None:
        table = accents.accents((piece.notes, piece.bounds) for piece in everything)
        styles["all"] = replace(styles["all"], ensemble=replace(styles["all"].ensemble, accents=table))
    packed, about = styles_file.pack(styles)
    kept.styles = {**kept.styles, **{name: x for name, x in packed.items() if name.endswith(".accents")}}
    kept.about_styles = about
    checkpoint.save(kept, args.model)


if __name__ == "__main__":
    main()
