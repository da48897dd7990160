"""Test songs of a folder, and their latents and notes under a model.

Scope: the two halves of the held-out songs (`dataset.half_of` of the title), stretches of songs, batched encoding and
decoding. Out of scope: figures.
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
from seqvae.data.dataset import SONG_MODELS, Half, half_of
from seqvae.errors import SeqVAEError
from seqvae.music import library, titles
from seqvae.music.piece import Piece
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.nn import batches
from seqvae.nn.posterior import Posterior
from seqvae.nn.sampling import Sampling

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
Report = Callable[[str], None]


@dataclass
class Song:
    """A stretch of a held-out song, with onsets from 0, and its posterior."""

    style: str
    piece: Piece
    z: Tensor
    """Refined posterior means `(S, D)`."""
    logvar: Tensor
    """Log-variances `(S, D)` of the same posteriors."""
    kl: Floats
    """KL divergence of each segment in nats, `(S,)`."""
    shift: int
    """Semitones by which the tokenizer transposed the whole stretch before encoding."""
    harmony: Floats
    """Chroma around each beat of each chunk, transposed alike, `(S * C, B, 12)`; see `Codec.blend`."""

    def front(self, segments: int, chunks: int) -> Song:
        """The first `segments` segments of `chunks` chunks each."""
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
    """The songs of a folder, by style."""

    train: dict[str, list[Piece]]
    """Stretches of training songs, for classifiers and baselines."""
    test: dict[str, list[Piece]]
    """Stretches of held-out songs of one half; no model was trained on them."""
    trained: list[Path]
    """The files of all training songs."""


def stretch(piece: Piece, chunks: int, rng: np.random.Generator) -> Piece | None:
    """`chunks` consecutive chunks of a piece from a random place; None if they hold fewer than four notes."""
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


def groups(codec: Codec) -> str:
    """What precedes the titles by which the training data of a model are split."""
    return SONG_MODELS if codec.model.shared else ""


def gather(
    data: Path, styles: Sequence[str], *, train: int, test: int, train_chunks: int, test_chunks: int,
    rng: np.random.Generator, half: Half = "final", group: str = "",
) -> Songs:  # fmt: skip
    """Stretches of at most `train` training and `test` test songs per style in `data`, one folder per style.

    Test songs are of one `half` of the held-out tenth: "choose" for choices, "final" for figures. `group` is the
    `groups` of the model. Raises SeqVAEError for a style without a test song or without a training song.
    """
    files = library.find([data])
    songs = Songs({style: [] for style in styles}, {style: [] for style in styles}, [])
    chosen: list[tuple[Path, str, bool]] = []
    tested: set[str] = set()
    count: dict[tuple[str, bool], int] = {}
    for i in rng.permutation(len(files)):
        style, title = files[i].relative_to(data).parts[0], titles.title(files[i])
        mine = half_of(group + title)
        if style not in styles or mine not in (None, half) or title in tested:
            continue  # one version of a test song is enough
        is_test = mine == half
        if not is_test:
            songs.trained.append(files[i])
        taken = count.get((style, is_test), 0)
        if taken < (2 * test if is_test else train):  # twice as many, because some cannot be read
            count[style, is_test] = taken + 1
            chosen.append((files[i], style, is_test))
            if is_test:
                tested.add(title)
    found = library.read_all([path for path, _, _ in chosen], cache=library.default_cache())
    for (_, style, is_test), (_, piece) in zip(chosen, found, strict=True):
        part = stretch(piece, test_chunks if is_test else train_chunks, rng) if isinstance(piece, Piece) else None
        if part is not None and (not is_test or len(songs.test[style]) < test):
            (songs.test if is_test else songs.train)[style].append(part)
    for style in styles:
        if not songs.test[style] or not songs.train[style]:
            raise SeqVAEError(f"{data}: no song of style '{style}' is held out there; add more songs or drop the style")
    return songs


def encode(codec: Codec, style: str, pieces: Sequence[Piece]) -> list[Song]:
    """Encode songs with refined posteriors."""
    split = [codec.segments(piece) for piece in pieces]
    found = codec.posteriors([segment for piece in split for segment in piece], refined=True)
    sizes = list(map(len, split))
    parts = zip(torch.split(found.mean, sizes), torch.split(found.logvar, sizes), strict=True)
    return [_song(codec, style, piece, Posterior(*part)) for piece, part in zip(pieces, parts, strict=True)]


def _song(codec: Codec, style: str, piece: Piece, posterior: Posterior) -> Song:
    harmony = codec.adapter.harmony(piece)
    assert harmony is not None
    assert isinstance(codec.tokenizer, MidiTokenizer)
    silent = np.zeros((len(posterior.mean) * codec.chunks - len(harmony), *harmony.shape[1:]))  # padding chunks
    kl, shift = posterior.kl_of_segments(codec.model.shared).double().numpy(), codec.tokenizer.shift(piece)
    return Song(style, piece, posterior.mean, posterior.logvar, kl, shift, np.concatenate([harmony, silent]))


def decode(codec: Codec, songs: Sequence[Song], z: Sequence[Tensor], chroma_guidance: float = 0.0) -> list[Ints]:
    """Decode latents `(S, D)` of each song greedily to notes `(N, 4)` in its bars, all songs in one batch.

    Chroma guidance towards each song's own harmony has the strength `chroma_guidance`, as in `Codec.blend`; 0 for none.
    """
    if not songs:
        return []
    given = batches.joined(
        [batches.filled(codec.given(song.piece), len(x) * codec.chunks) for song, x in zip(songs, z, strict=True)]
    )
    sounding = np.concatenate([song.harmony for song in songs]) if chroma_guidance else None
    chunks = codec.generate_tokens(torch.cat(list(z)), given, Sampling(), sounding, chroma_guidance)
    out, at = [], 0
    for song, latent in zip(songs, z, strict=True):
        out.append(spell(codec, chunks[at : at + len(latent) * codec.chunks], song))
        at += len(latent) * codec.chunks
    return out


def spell(codec: Codec, chunks: Sequence[Ints], song: Song) -> Ints:
    """Notes `(N, 4)` of token ids by chunk, in the song's bars and key."""
    assert isinstance(codec.tokenizer, MidiTokenizer)
    return codec.tokenizer.decode_notes(chunks, song.piece.bounds, song.shift)
