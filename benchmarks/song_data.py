"""The bars of a music collection as one file, for train_songs.py on a machine without readers or a network.

    python benchmarks/song_data.py MUSIC bars.npz      # MUSIC has one folder per style; 8,000 songs make 30 MB

The split for the song model uses a hash of the title of its own, different from that of earlier models.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from seqvae.data.dataset import SONG_MODELS, split_of
from seqvae.errors import ReadError
from seqvae.music import library as collection
from seqvae.music import titles
from seqvae.music.song_bars import song_bars
from seqvae.music.tokenizer import MidiTokenizer

SPLITS = ("train", "valid", "test")
FEWEST, MOST = 4, 1200  # bars of a song: fewer are too short for two windows, more are collections or cycles


def main() -> None:
    """Read, tokenize and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("music", type=Path, help="folder with one folder per style")
    parser.add_argument("out", type=Path, help="output file (.npz); the songs' names go to a .txt file beside it")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds to read a file at most")
    args = parser.parse_args()
    tokenizer = MidiTokenizer(max_steps=48, common_key=True)
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("tokens", "counts", "lengths", "chroma", "bass", "mel", "mel_counts")
    }
    song, style, split, names, styles = [0], [], [], [], []
    files = collection.find([args.music])
    for path, piece in collection.read_all(files, cache=collection.default_cache(), time_limit=args.limit):
        if isinstance(piece, ReadError) or not FEWEST <= len(piece.bounds) - 1 <= MOST:
            continue
        bars = song_bars(piece, tokenizer)
        columns["tokens"].append(np.concatenate(bars.tokens).astype(np.uint16))
        columns["counts"].append(np.array([len(bar) for bar in bars.tokens], np.uint16))
        columns["lengths"].append(bars.lengths)
        columns["chroma"].append(
            bars.chroma[..., 0::2] | (bars.chroma[..., 1::2] << 4)
        )  # two numbers below 16 per byte
        columns["bass"].append(bars.bass)
        at, step = np.nonzero(bars.melody[..., 0])
        columns["mel"].append(np.concatenate([step[:, None].astype(np.uint8), bars.melody[at, step]], 1))
        columns["mel_counts"].append(np.bincount(at, minlength=len(bars.tokens)).astype(np.uint8))
        name = path.relative_to(args.music)
        if name.parts[0] not in styles:
            styles.append(name.parts[0])
        song.append(song[-1] + len(bars.tokens))
        style.append(styles.index(name.parts[0]))
        split.append(SPLITS.index(split_of(SONG_MODELS + titles.title(path))))
        names.append(name.as_posix())
    np.savez_compressed(
        args.out, **{name: np.concatenate(parts) for name, parts in columns.items()}, song=np.array(song, np.int32),
        style=np.array(style, np.uint8), split=np.array(split, np.uint8), kind=tokenizer.token_types.astype(np.uint8),
        value=tokenizer.token_values.astype(np.uint8),
    )  # fmt: skip
    listed = [f"{styles[s]}\t{SPLITS[p]}\t{name}" for s, p, name in zip(style, split, names, strict=True)]
    args.out.with_suffix(".txt").write_text("\n".join(listed) + "\n")
    print(f"{len(names):,} songs, {song[-1]:,} bars, {sum(map(len, columns['tokens'])):,} tokens")


if __name__ == "__main__":
    main()
