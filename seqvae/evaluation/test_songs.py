"""Songs to measure a music model on: which of a folder's were held out, and what the model makes of them.

Knows: the two halves of the held-out songs (`dataset.half_of` of the title), stretches of songs, and decoding many side
by side.
Refuses to know: figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.codec import Codec
from seqvae.data.dataset import Half, half_of
from seqvae.errors import SeqVAEError
from seqvae.music import library as collection
from seqvae.music.piece import Piece
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.nn.posterior import Posterior
from seqvae.nn.sampling import Sampling

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
Report = Callable[[str], None]


@dataclass
class Song:
    """A stretch of a held-out song, onsets from 0, and where it lies."""

    style: str
    piece: Piece
    z: Tensor
    """`(S, D)`: refined posterior means."""
    logvar: Tensor
    """`(S, D)`: log-variances of the same posteriors."""
    kl: Floats
    """`(S,)`: nats of each segment, which samples of the posterior cost."""
    shift: int
    """Semitones by which the tokenizer moved the pitches of the whole stretch before z was found."""
    harmony: Floats
    """`(S * C, B, 12)`: what sounds around each beat of each chunk, moved alike; see `Codec.blend`."""

    def front(self, segments: int, chunks: int) -> Song:
        """The first segments of so many chunks."""
        count = segments * chunks
        return replace(
            self,
            piece=front(self.piece, count),
            z=self.z[:segments],
            logvar=self.logvar[:segments],
            kl=self.kl[:segments],
            harmony=self.harmony[:count],
        )


@dataclass
class Songs:
    """The songs of a folder by style."""

    train: dict[str, list[Piece]]
    """Stretches of training songs, for judges and baselines."""
    test: dict[str, list[Piece]]
    """Stretches of songs of one half of those that no model was trained on."""
    trained: list[Path]
    """The files of all training songs."""


def stretch(piece: Piece, chunks: int, rng: np.random.Generator) -> Piece | None:
    """`chunks` chunks in a row of a piece from a random place; None where there are hardly notes."""
    total = len(piece.bounds) - 1
    first = int(rng.integers(max(1, total - chunks + 1)))
    bounds = piece.bounds[first : first + chunks + 1]
    notes, tracks = piece.part(first, first + len(bounds) - 1)
    return Piece(notes, bounds - bounds[0], piece.frame, piece.name, tracks) if len(notes) > 3 else None


def front(piece: Piece, chunks: int) -> Piece:
    """The first `chunks` chunks of a piece."""
    bounds = piece.bounds[: chunks + 1]
    notes, tracks = piece.part(0, len(bounds) - 1)
    return Piece(notes, bounds, piece.frame, piece.name, tracks)


def gather(
    data: Path, styles: Sequence[str], *, train: int, test: int, train_chunks: int, test_chunks: int,
    rng: np.random.Generator, half: Half = "final",
) -> Songs:  # fmt: skip
    """At most `train` and `test` songs a style of `data` (one folder a style), a stretch of each.

    Test songs are of one `half` of the held-out tenth: "choose" for choices, "final" for figures.

    Raises SeqVAEError where a style has no test song or no training song.
    """
    files = collection.find([data])
    songs = Songs({style: [] for style in styles}, {style: [] for style in styles}, [])
    wanted: list[tuple[Path, str, bool]] = []
    tested: set[str] = set()
    count: dict[tuple[str, bool], int] = {}
    for i in rng.permutation(len(files)):
        style, title = files[i].relative_to(data).parts[0], collection.title(files[i])
        mine = half_of(title)
        if style not in styles or mine not in (None, half) or title in tested:
            continue  # of several versions of a test song one is enough
        held_out = mine == half
        if not held_out:
            songs.trained.append(files[i])
        taken = count.get((style, held_out), 0)
        if taken < (2 * test if held_out else train):  # more than asked, for some cannot be read
            count[style, held_out] = taken + 1
            wanted.append((files[i], style, held_out))
            if held_out:
                tested.add(title)
    found = collection.read_all([path for path, _, _ in wanted], cache=collection.default_cache())
    for (_, style, held_out), (_, piece) in zip(wanted, found, strict=True):
        part = stretch(piece, test_chunks if held_out else train_chunks, rng) if isinstance(piece, Piece) else None
        if part is not None and (not held_out or len(songs.test[style]) < test):
            (songs.test if held_out else songs.train)[style].append(part)
    for style in styles:
        if not songs.test[style] or not songs.train[style]:
            raise SeqVAEError(f"{data}: no song of style '{style}' is held out there; add more songs or drop the style")
    return songs


def encode(codec: Codec, style: str, pieces: Sequence[Piece]) -> list[Song]:
    """Songs as the model reads them before it decodes them again: refined."""
    split = [codec.segments(piece) for piece in pieces]
    found = codec.posteriors([segment for piece in split for segment in piece], refined=True)
    sizes = list(map(len, split))
    parts = zip(torch.split(found.mean, sizes), torch.split(found.logvar, sizes), strict=True)
    return [_song(codec, style, piece, Posterior(*part)) for piece, part in zip(pieces, parts, strict=True)]


def _song(codec: Codec, style: str, piece: Piece, posterior: Posterior) -> Song:
    harmony = codec.form.harmony(piece)
    assert harmony is not None
    assert isinstance(codec.tokenizer, MidiTokenizer)
    silent = np.zeros((len(posterior.mean) * codec.chunks - len(harmony), *harmony.shape[1:]))  # the last one's filling
    kl, shift = posterior.kl().sum(1).double().numpy(), codec.tokenizer.shift(piece)
    return Song(style, piece, posterior.mean, posterior.logvar, kl, shift, np.concatenate([harmony, silent]))


def decode(codec: Codec, songs: Sequence[Song], z: Sequence[Tensor], harmony: float = 0.0) -> list[Ints]:
    """Notes `(N, 4)` that latents `(S, D)` decode to in the bars of each song, greedily, all songs side by side.

    They lean to the songs' own `harmony` as in `Codec.blend`; 0 for what the latents say alone.
    """
    if not songs:
        return []
    limits = np.concatenate([_limits(codec, song.piece, len(x)) for song, x in zip(songs, z, strict=True)])
    sounding = np.concatenate([song.harmony for song in songs]) if harmony else None
    chunks = codec.write(torch.cat(list(z)), limits, Sampling(), sounding, harmony)
    out, at = [], 0
    for song, latent in zip(songs, z, strict=True):
        out.append(spell(codec, chunks[at : at + len(latent) * codec.chunks], song))
        at += len(latent) * codec.chunks
    return out


def spell(codec: Codec, chunks: Sequence[Ints], song: Song) -> Ints:
    """Notes `(N, 4)` of token ids by chunk, in the song's bars and key."""
    assert isinstance(codec.tokenizer, MidiTokenizer)
    return codec.tokenizer.decode_notes(chunks, song.piece.bounds, song.shift)


def _limits(codec: Codec, piece: Piece, segments: int) -> Ints:
    """Chunk lengths of a piece, the filling of its last segment included."""
    lengths = codec.form.limits(piece)
    assert lengths is not None
    return np.append(lengths, np.ones(segments * codec.chunks - len(lengths), np.int32)).astype(np.int32)
