"""Effect of style vectors on held-out pieces: gain of target probability, and content that is kept.

Scope: the choice of held-out pieces, the controls and the test. Out of scope: the classifiers
(evaluation/style_classifier.py, evaluation/text_transfer.py), files, and storage of the figures (style/vectors.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.codec import CHROMA_GUIDANCE, Codec
from seqvae.data.dataset import half_of
from seqvae.errors import StyleError
from seqvae.evaluation import blend as evaluate_blend
from seqvae.evaluation import controls, statistics, test_songs
from seqvae.evaluation import text_metrics as text_measures
from seqvae.evaluation import text_transfer as evaluate_transfer
from seqvae.evaluation.style_classifier import StyleClassifier
from seqvae.modality import modality
from seqvae.music import library
from seqvae.music import note_metrics as measures
from seqvae.music.piece import Piece
from seqvae.style.vectors import Effect

Floats = NDArray[np.float64]
SONGS = 8
SEGMENTS = 4  # consecutive segments of each song
CLASSIFIER_SONGS = 150  # songs per style for the classifier
CLASSIFIER_LINES = 5000  # lines per style for the classifier


def is_test_piece(piece: Any) -> bool:
    """Whether a song (by its title) or a line is in the final half: one in twenty, never used for training."""
    return half_of(library.title(piece.name) if isinstance(piece, Piece) else piece) == "final"


class _Ear(Protocol):
    """The part that differs between music and text."""

    figures: tuple[str, ...]
    """Names of the figures of kept content."""

    def rows(self, z: Sequence[Tensor], target: str) -> Floats:
        """Target probability and kept content of the pieces' latents, `(N, 1 + figures)`."""


def measure(
    codec: Codec,
    pieces: Mapping[str, Sequence[Any]],
    songs: int = SONGS,
    amount: float = 1.0,
    seed: int = 0,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[str, Effect]]:
    """The effect of the vector between every two styles of `pieces`, by target and then by source.

    At most `songs` held-out pieces per style are moved, and a classifier is fitted on the other pieces. Each piece is
    moved by `amount` of the difference of means, as in `Codec.blend` with a source, and for control by a random vector
    of equal length. The kept content is compared with that of another piece's latents and of the target's mean. Raises
    StyleError for a style that the codec does not have, and for one without enough held-out or other pieces.
    """
    vectors = {name: codec.style(name).mean for name in pieces}
    rng = np.random.default_rng(seed)
    moved: dict[str, list[Any]] = {}
    heard: dict[str, list[Any]] = {}
    for name, given in pieces.items():
        order = [given[i] for i in rng.permutation(len(given))]
        moved[name] = [piece for piece in order if is_test_piece(piece)][:songs]
        heard[name] = [piece for piece in order if not is_test_piece(piece)]
        if len(moved[name]) < 2 or not heard[name]:
            raise StyleError(
                f"{name}: {len(moved[name])} of {len(given)} pieces are held out, and at least two are needed; give "
                "more, because a hash of the title holds out one in twenty"
            )
    songs_moved = modality(codec.tokenizer.kind).content == "songs"
    classifier = _music(codec, heard, rng, seed) if songs_moved else _lines(codec, heard, seed)
    generator = torch.Generator().manual_seed(seed)
    effects: dict[str, dict[str, Effect]] = {name: {} for name in pieces}
    for source, chosen in moved.items():
        latents, ear = classifier(source, chosen)
        numbers = controls.others([source] * len(latents), rng)
        another = [controls.as_long(latents[i], len(z)) for i, z in zip(numbers, latents, strict=True)]
        report(f"{source}: {len(latents)} pieces encoded")
        for target in pieces:
            if target == source:
                continue
            way = amount * (vectors[target] - vectors[source])
            lengths = [float(way.norm())] * len(latents)
            random = controls.random_vectors([codec.style(name) for name in pieces], lengths, generator)
            before = ear.rows(latents, target)
            after = ear.rows([z + way for z in latents], target)
            control = ear.rows([z + one for z, one in zip(latents, random, strict=True)], target)
            strangers = ear.rows([z + way for z in another], target)
            none = ear.rows([vectors[target].expand(len(z), -1) for z in latents], target)
            found = Effect(
                amount,
                len(latents),
                before=measures.interval(before[:, 0]),
                after=measures.interval(after[:, 0]),
                control=measures.interval(control[:, 0]),
                kept=_kept(ear, after),
                p=statistics.flipped(after[:, 0] - control[:, 0], seed),
                kept_of_another=_kept(ear, strangers),
                kept_of_none=_kept(ear, none),
            )
            effects[target][source] = found
            report(f"{source} to {target}: {tell(found)}")
    return effects


def _kept(ear: _Ear, rows: Floats) -> dict[str, tuple[float, float, float]]:
    """Mean and interval of each figure of kept content in `rows (N, 1 + figures)`."""
    return {name: measures.interval(x[~np.isnan(x)]) for name, x in zip(ear.figures, rows.T[1:], strict=True)}


def tell(effect: Effect) -> str:
    """An effect as one line of text."""

    def cell(x: tuple[float, float, float]) -> str:
        return f"{x[0]:.2f} [{x[1]:.2f}, {x[2]:.2f}]"

    def beside(name: str) -> str:
        controls_ = {"another's": effect.kept_of_another, "the target mean": effect.kept_of_none}
        of = ", ".join(f"of {who} {x[name][0]:.2f}" for who, x in controls_.items() if name in x)
        return f" ({of})" if of else " (no control measured)"

    kept = ", ".join(f"{name} kept {cell(x)}{beside(name)}" for name, x in effect.kept.items())
    sphere = "" if effect.kept_of_another else " from a sphere"  # in results without controls
    return (
        f"probability {effect.before[0]:.2f} -> {cell(effect.after)} at amount {effect.amount:g}, by a random "
        f"vector{sphere} {effect.control[0]:.2f}, p = {effect.p:.2g}; {kept}; {effect.songs} songs"
    )


class _Music(_Ear):
    figures = ("chroma", "groove", "melody")

    def __init__(self, codec: Codec, classifier: StyleClassifier, songs: Sequence[test_songs.Song]) -> None:
        self.codec, self.classifier, self.songs = codec, classifier, songs

    def rows(self, z: Sequence[Tensor], target: str) -> Floats:
        rows = []
        for song, notes in zip(self.songs, test_songs.decode(self.codec, self.songs, z, CHROMA_GUIDANCE), strict=True):
            kept = evaluate_blend.kept(song.piece.notes[:, :4], notes, song.piece.bounds)
            said = self.classifier.probability(notes, song.piece.bounds)[target]
            rows.append([said, *(kept[name] for name in self.figures)])
        return np.array(rows)


Sitting = Callable[[str, Sequence[Any]], tuple[list[Tensor], _Ear]]


def _music(codec: Codec, heard: Mapping[str, Sequence[Piece]], rng: np.random.Generator, seed: int) -> Sitting:
    """A classifier of songs, fitted on a stretch of each."""
    chunks = SEGMENTS * codec.chunks

    def stretches(pieces: Sequence[Piece]) -> list[Piece]:
        return [part for piece in pieces if (part := test_songs.stretch(piece, chunks, rng)) is not None]

    real = [(name, part) for name, pieces in heard.items() for part in stretches(pieces[:CLASSIFIER_SONGS])]
    classifier = StyleClassifier(real, codec.chunks, True, seed)

    def sit(source: str, pieces: Sequence[Piece]) -> tuple[list[Tensor], _Ear]:
        songs = test_songs.encode(codec, source, stretches(pieces))
        return [song.z for song in songs], _Music(codec, classifier, songs)

    return sit


class _Lines(_Ear):
    figures = ("bleu",)

    def __init__(self, codec: Codec, classifier: evaluate_transfer.LineClassifier, lines: Sequence[str]) -> None:
        self.codec, self.classifier, self.lines = codec, classifier, lines

    def rows(self, z: Sequence[Tensor], target: str) -> Floats:
        said = self.codec.decode(z)
        hits = self.classifier.puts_in(said, [target] * len(said))
        kept = [text_measures.sentence_bleu(one, line) for one, line in zip(said, self.lines, strict=True)]
        return np.column_stack([hits, kept])


def _lines(codec: Codec, heard: Mapping[str, Sequence[str]], seed: int) -> Sitting:
    """A classifier of lines with hard decisions; their mean over lines is a probability."""
    classifier = evaluate_transfer.LineClassifier(
        {name: lines[:CLASSIFIER_LINES] for name, lines in heard.items()}, seed
    )
    return lambda _, lines: (codec.encode(lines), _Lines(codec, classifier, lines))
