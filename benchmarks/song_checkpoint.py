"""A checkpoint of the song model from the weights of `train_songs.py`, with styles fitted on training songs.

    python benchmarks/song_checkpoint.py runs/songs MUSIC data.txt checkpoints/music

MUSIC is the folder of music with one folder per style, and data.txt the list of songs that `song_data.py` wrote beside
its file: style, split and name. A style is the Gaussian over the song vectors of its training songs, with ensembles,
accents and chord transitions of the same songs, and has no vector of a song.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from seqvae import config
from seqvae.checkpoint import folder as checkpoint
from seqvae.checkpoint.folder import Checkpoint
from seqvae.codec import Codec, from_checkpoint
from seqvae.config import ModelConfig, Recipe, RefineConfig, SongConfig, TokenizerConfig
from seqvae.errors import ReadError
from seqvae.evaluation.test_songs import stretch
from seqvae.music import library
from seqvae.music.piece import Piece
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.nn.song_vae import SongVAE
from seqvae.style import gaussian, styles_file
from seqvae.style.gaussian import Style

UNLABELLED = "mixed"  # songs of all kinds, for training alone
FEWEST = 30  # training songs of a style at least
NOTES = 16  # songs encoded at a time


CARD = """---
license: other
license_name: mixed-sources-non-commercial
library_name: seqvae
tags:
- music
- midi
- variational-autoencoder
- style-transfer
---

# {name}

A song model of music with all instruments and drums: a vector for the song, and one for each bar, with harmony and
melody as inputs. It blends songs between genres, interpolates, samples and reconstructs. Styles: {styles}.

```bash
seqvae blend corpus:bach/bwv66.6 -m {name} --from classical --to rock --amount 0.5 -o blend.mid
```
"""


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder with song.json and song-*.safetensors")
    parser.add_argument("music", type=Path, help="folder of music with one folder per style")
    parser.add_argument("songs", type=Path, help="list of songs: style, split and name, separated by tabs")
    parser.add_argument("out", type=Path, help="folder of the checkpoint")
    parser.add_argument("--mean-with", type=Path, metavar="RUN", help="another run, begun with the weights of this one")
    parser.add_argument("--name", default="music", help="name of the model")
    parser.add_argument("--most", type=int, default=400, help="songs of a style at most")
    parser.add_argument("--bars", type=int, default=64, help="bars of a song at most")
    parser.add_argument("--card", type=Path, help="model card; by default a short one")
    parser.add_argument("--search", type=int, default=0, help="steps of the search before decoding")
    return parser


def weights(run: Path) -> dict[str, Tensor]:
    """The weights of a run of `train_songs.py` in single precision."""
    parts = [checkpoint.load_tensors(part)[0] for part in sorted(run.glob("song-*.safetensors"))]
    return {name: x.float() for part in parts for name, x in part.items()}


def without_styles(run: Path, name: str = "music", search: int = 0, other: Path | None = None) -> Checkpoint:
    """The model of a run of `train_songs.py` as a checkpoint without styles.

    With an `other` run that began with these weights, the model has the mean of both (Wortsman et al. 2022).
    """
    about = config.read(run / "song.json")
    known = {key: value for key, value in about["config"].items() if key != "vocab"}
    song = SongConfig(**known)
    model_config = ModelConfig(chunks=1, latent=song.song + song.bar, width=song.bar, song=song)
    tokens = TokenizerConfig(max_steps=song.steps, common_key=True)
    recipe = Recipe(name, tokens, model_config, refine=RefineConfig(steps=search))
    tokenizer = MidiTokenizer(song.steps, common_key=True)
    model = checkpoint.restored(model_config, tokenizer)
    assert isinstance(model, SongVAE)
    found = weights(run)
    if other is not None:
        found = {key: (x + y) / 2 for (key, x), y in zip(found.items(), weights(other).values(), strict=True)}
    model.net.load_state_dict(found)
    return Checkpoint(recipe, model.eval(), tokenizer)


def training_songs(listed: Path, most: int) -> dict[str, list[str]]:
    """Names of at most `most` random training songs of each style with enough of them."""
    names: dict[str, list[str]] = {}
    for line in listed.read_text().splitlines():
        style, split, name = line.split("\t")
        if split == "train" and style != UNLABELLED:
            names.setdefault(style, []).append(name)
    rng = np.random.default_rng(0)
    return {
        style: [found[i] for i in sorted(rng.permutation(len(found))[:most])]
        for style, found in sorted(names.items())
        if len(found) >= FEWEST
    }


def fitted(codec: Codec, pieces: list[Piece], about: str) -> tuple[Style, list[Tensor]]:
    """The style of some songs, and the latents `(1, D)` of each."""
    split = [codec.segments(piece) for piece in pieces]
    latents = [z[:1] for at in range(0, len(split), NOTES) for z in codec.means(split[at : at + NOTES], refined=False)]
    style = gaussian.fit(latents, about, codec.model.shared)
    chunks = ([chunk for segment in song for chunk in segment] for song in split)
    return replace(style, ensemble=codec.adapter.ensemble(chunks, pieces)), latents


def main() -> None:
    args = options().parse_args()
    kept = without_styles(args.run, args.name, args.search, args.mean_with)
    codec = from_checkpoint(kept)
    rng = np.random.default_rng(0)
    styles: dict[str, Style] = {}
    everything: list[Tensor] = []
    for style, names in training_songs(args.songs, args.most).items():
        files = [args.music / name for name in names]
        read = [piece for _, piece in library.read_all(files, cache=library.default_cache())]
        pieces = [stretch(one, args.bars, rng) for one in read if not isinstance(one, ReadError)]
        known = [piece for piece in pieces if piece is not None]
        styles[style], latents = fitted(codec, known, f"{style}: {len(known)} songs of the training split")
        everything += latents
        print(f"{style}: {len(known)} songs", flush=True)
    about = f"all styles: {len(everything)} songs of the training split"
    styles["all"] = gaussian.fit(everything, about, codec.model.shared)
    kept.styles, kept.about_styles = styles_file.pack(styles)
    names = ", ".join(name for name in styles if name != "all")
    kept.card = CARD.format(name=args.name, styles=names) if args.card is None else args.card.read_text()
    checkpoint.save(kept, args.out)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {len(styles) - 1} styles, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
