"""Effect of style vectors on held-out pieces: gain of target probability, and content that is kept.

Scope: the choice of held-out pieces, the controls and the test. Out of scope: the classifiers
(evaluation/style_classifier.py), files, and storage of the figures (style/styles_file.py).
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
from seqvae.evaluation.style_classifier import LineClassifier, StyleClassifier
from seqvae.modality import modality
from seqvae.music import note_metrics as measures
from seqvae.music.piece import Piece
from seqvae.music.titles import title
from seqvae.style import translation
from seqvae.style.gaussian import Effect, Style

Floats = NDArray[np.float64]
SONGS = 8
SEGMENTS = 4  # consecutive segments of each song
CLASSIFIER_SONGS = 150  # songs per style for the classifier
CLASSIFIER_LINES = 5000  # lines per style for the classifier


def is_test_piece(piece: Any) -> bool:
    """Whether a song (by its title) or a line is in the final half: one in twenty, never used for training."""
    return half_of(title(piece.name) if isinstance(piece, Piece) else piece) == "final"


class _Meter(Protocol):
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
    styles = {name: codec.style(name) for name in pieces}
    rng = np.random.default_rng(seed)
    moved: dict[str, list[Any]] = {}
    training: dict[str, list[Any]] = {}
    for name, members in pieces.items():
        moved[name], training[name] = divided(name, members, songs, rng)
    songs_moved = modality(codec.tokenizer.kind).content == "songs"
    meters = _music(codec, training, rng, seed) if songs_moved else _lines(codec, training, seed)
    generator = torch.Generator().manual_seed(seed)
    effects: dict[str, dict[str, Effect]] = {name: {} for name in pieces}
    for source, chosen in moved.items():
        latents, meter = meters(source, chosen)
        numbers = controls.others([source] * len(latents), rng)
        another = [controls.as_long(latents[i], len(z)) for i, z in zip(numbers, latents, strict=True)]
        report(f"{source}: {len(latents)} pieces encoded")
        for target in pieces:
            if target != source:
                found = _effect(styles, source, target, amount, latents, another, meter, generator, seed)
                effects[target][source] = found
                report(f"{source} to {target}: {tell(found)}")
    return effects


def divided(name: str, pieces: Sequence[Any], most: int, rng: np.random.Generator) -> tuple[list[Any], list[Any]]:
    """At most `most` held-out pieces of a style, and its other pieces, in random order; raises StyleError for few."""
    order = [pieces[i] for i in rng.permutation(len(pieces))]
    test = [piece for piece in order if is_test_piece(piece)][:most]
    training = [piece for piece in order if not is_test_piece(piece)]
    if len(test) < 2 or not training:
        raise StyleError(
            f"{name}: {len(test)} of {len(pieces)} pieces are held out, and at least two are needed; give "
            "more, because a hash of the title holds out one in twenty"
        )
    return test, training


def _effect(
    styles: Mapping[str, Style], source: str, target: str, amount: float, latents: Sequence[Tensor],
    another: Sequence[Tensor], meter: _Meter, generator: torch.Generator, seed: int,
) -> Effect:  # fmt: skip
    """The effect of one vector on pieces, given by their own latents and those of `another` piece each."""
    way = amount * translation.vector(styles[source], styles[target])
    lengths = [float(way.norm())] * len(latents)
    random = controls.random_vectors(list(styles.values()), lengths, generator)
    before = meter.rows(latents, target)
    after = meter.rows([z + way for z in latents], target)
    control = meter.rows([z + one for z, one in zip(latents, random, strict=True)], target)
    of_another = meter.rows([z + way for z in another], target)
    of_none = meter.rows([styles[target].mean.expand(len(z), -1) for z in latents], target)
    return Effect(
        amount,
        len(latents),
        before=measures.interval(before[:, 0]),
        after=measures.interval(after[:, 0]),
        control=measures.interval(control[:, 0]),
        kept=kept_figures(meter.figures, after[:, 1:]),
        p=statistics.flipped(after[:, 0] - control[:, 0], seed),
        kept_of_another=kept_figures(meter.figures, of_another[:, 1:]),
        kept_of_none=kept_figures(meter.figures, of_none[:, 1:]),
    )


def kept_figures(names: Sequence[str], rows: Floats) -> dict[str, tuple[float, float, float]]:
    """Mean and interval of each figure of kept content in `rows (N, figures)`."""
    return {name: measures.interval(x[~np.isnan(x)]) for name, x in zip(names, rows.T, strict=True)}


def tell(effect: Effect) -> str:
    """An effect as one line of text."""

    def cell(x: tuple[float, float, float]) -> str:
        return f"{x[0]:.2f} [{x[1]:.2f}, {x[2]:.2f}]"

    def beside(name: str) -> str:
        controls_ = {"another's": effect.kept_of_another, "the target mean": effect.kept_of_none}
        of = ", ".join(f"of {who} {x[name][0]:.2f}" for who, x in controls_.items() if name in x)
        return f" ({of})" if of else " (no control measured)"

    kept = ", ".join(f"{name} kept {cell(x)}{beside(name)}" for name, x in effect.kept.items())
    if effect.attribute:
        return (
            f"{effect.attribute} {effect.before[0]:.2f} -> {cell(effect.after)} at amount {effect.amount:g} "
            f"({effect.wanted:.2f} wanted), along a random vector {effect.control[0]:.2f}, p = {effect.p:.2g}; "
            f"{effect.inside:.0%} within the range of real songs; {effect.slope:.2f} per difference of means; {kept}; "
            f"{effect.songs} songs"
        )
    sphere = "" if effect.kept_of_another else " from a sphere"  # in results without controls
    return (
        f"probability {effect.before[0]:.2f} -> {cell(effect.after)} at amount {effect.amount:g}, by a random "
        f"vector{sphere} {effect.control[0]:.2f}, p = {effect.p:.2g}; {kept}; {effect.songs} songs"
    )


class _Music(_Meter):
    figures = ("chroma", "groove", "melody")

    def __init__(self, codec: Codec, classifier: StyleClassifier, songs: Sequence[test_songs.Song]) -> None:
        self.codec, self.classifier, self.songs = codec, classifier, songs

    def rows(self, z: Sequence[Tensor], target: str) -> Floats:
        rows = []
        for song, notes in zip(self.songs, test_songs.decode(self.codec, self.songs, z, CHROMA_GUIDANCE), strict=True):
            kept = evaluate_blend.kept(song.piece.notes[:, :4], notes, song.piece.bounds)
            probability = self.classifier.probability(notes, song.piece.bounds)[target]
            rows.append([probability, *(kept[name] for name in self.figures)])
        return np.array(rows)


Meters = Callable[[str, Sequence[Any]], tuple[list[Tensor], _Meter]]


def _music(codec: Codec, training: Mapping[str, Sequence[Piece]], rng: np.random.Generator, seed: int) -> Meters:
    """A classifier of songs, fitted on a stretch of each."""
    chunks = SEGMENTS * codec.chunks

    def stretches(pieces: Sequence[Piece]) -> list[Piece]:
        return [part for piece in pieces if (part := test_songs.stretch(piece, chunks, rng)) is not None]

    real = [(name, part) for name, pieces in training.items() for part in stretches(pieces[:CLASSIFIER_SONGS])]
    classifier = StyleClassifier(real, codec.chunks, True, seed)

    def meter(source: str, pieces: Sequence[Piece]) -> tuple[list[Tensor], _Meter]:
        songs = test_songs.encode(codec, source, stretches(pieces))
        return [song.z for song in songs], _Music(codec, classifier, songs)

    return meter


class _Lines(_Meter):
    figures = ("bleu",)

    def __init__(self, codec: Codec, classifier: LineClassifier, lines: Sequence[str]) -> None:
        self.codec, self.classifier, self.lines = codec, classifier, lines

    def rows(self, z: Sequence[Tensor], target: str) -> Floats:
        decoded = self.codec.decode(z)
        hits = self.classifier.puts_in(decoded, [target] * len(decoded))
        kept = [text_measures.sentence_bleu(one, line) for one, line in zip(decoded, self.lines, strict=True)]
        return np.column_stack([hits, kept])


def _lines(codec: Codec, training: Mapping[str, Sequence[str]], seed: int) -> Meters:
    """A classifier of lines with hard decisions; their mean over lines is a probability."""
    classifier = LineClassifier({name: lines[:CLASSIFIER_LINES] for name, lines in training.items()}, seed)
    return lambda _, lines: (codec.encode(lines), _Lines(codec, classifier, lines))
