"""Evaluation of a music model: all figures of its model card, on held-out songs.

Scope: the protocol: songs, length of stretches, order of measurements. Out of scope: training, sampling, tables
(evaluation/music_report.py), and the parts: blends (evaluation/blend.py), reconstruction
(evaluation/reconstruction.py), samples (evaluation/generation.py), interpolation (evaluation/interpolation.py). Songs
are split by a hash of the title (`dataset.half_of`). The style classifier is fitted on real notes of training songs
alone. Figures are measured on one half of the other songs; the other half is for choices. Formulas: docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqvae.codec import Codec
from seqvae.data.dataset import Half
from seqvae.errors import SeqVAEError
from seqvae.evaluation import blend as evaluate_blend
from seqvae.evaluation import generation as evaluate_samples
from seqvae.evaluation import interpolation as evaluate_paths
from seqvae.evaluation import reconstruction as evaluate_reconstruction
from seqvae.evaluation import test_songs
from seqvae.evaluation.style_classifier import StyleClassifier
from seqvae.evaluation.test_songs import Song
from seqvae.music import note_metrics as measures
from seqvae.music.piece import Piece

Report = Callable[[str], None]
SEGMENTS = 4  # first segments of each song that are blended, and segments of each sample
CLASSIFIERS = ("classifier", "classifier_without_instruments")
LONG = 8  # segments of each song that are reconstructed, consecutive, from a place drawn once
CLASSIFIER_SONGS = 150  # training songs per style for the style classifier
COMPARED = 10  # limit of test songs per style that samples are compared with, in multiples of `pieces`


def evaluate(
    codec: Codec,
    data: Path,
    *,
    pieces: int = 20,
    samples: int = 200,
    pairs: int = 200,
    seed: int = 0,
    split: Half = "final",
    report: Report = lambda _: None,
) -> dict[str, Any]:
    """All figures of a music model on the test songs of `data` (one folder per style).

    `pieces` limits the test songs per style that are reconstructed and blended, `samples` is the number of samples,
    `pairs` the number of paths between songs. `split` is the half of the held-out songs: "final" for figures, "choose"
    for choices. Raises SeqVAEError for fewer than two styles, and for a style without a test song or training song.
    """
    rng = np.random.default_rng(seed)
    styles = sorted(set(codec.styles) - {"all"})
    if len(styles) < 2:
        raise SeqVAEError(f"{codec.name or 'the model'}: it has fewer than two styles to compare; train or fit them")
    short = SEGMENTS * codec.chunks
    found = test_songs.gather(
        data,
        styles,
        train=CLASSIFIER_SONGS,
        test=COMPARED * pieces,
        train_chunks=short,
        test_chunks=LONG * codec.chunks,
        rng=rng,
        half=split,
        group=test_songs.groups(codec),
    )
    real = [(style, piece) for style in styles for piece in found.train[style]]
    classifiers = {name: StyleClassifier(real, codec.chunks, name == "classifier", seed) for name in CLASSIFIERS}
    rankings = {style: measures.program_ranking([p.notes for p in found.train[style]]) for style in styles}
    chosen = {style: found.test[style][:pieces] for style in styles}
    report(f"{sum(map(len, chosen.values()))} test songs, style classifiers fitted on {len(real)} training songs")
    songs = _encoded(codec, chosen, report)
    fronts = [song.front(SEGMENTS, codec.chunks) for song in songs]
    result: dict[str, Any] = {
        "protocol": {"test_songs": {s: len(x) for s, x in chosen.items()}, "split": split, "segments": LONG,
                     "seed": seed, "bars": LONG * codec.chunks, "blended_bars": short,
                     "intervals": "95 %, bootstrap over songs", "decoding": "greedy, free"},
        "classifier_accuracy": {name: _accuracy(classifier, fronts) for name, classifier in classifiers.items()},
    }  # fmt: skip
    result["reconstruction"] = evaluate_reconstruction.reconstruction(codec, songs, LONG, rng, report)
    result["interpolation"] = evaluate_paths.paths(codec, songs, pairs, rng, report)
    result["samples"] = evaluate_samples.samples(
        codec, {s: [test_songs.front(p, short) for p in x] for s, x in found.test.items()}, found.train, found.trained,
        samples, SEGMENTS, seed, report,
    )  # fmt: skip
    result["blend"] = evaluate_blend.blends(codec, fronts, classifiers, rankings, rng, report)
    result["strength"] = evaluate_blend.strength(codec, fronts, classifiers["classifier"], rng, report)
    return result


def _encoded(codec: Codec, chosen: Mapping[str, Sequence[Piece]], report: Report) -> list[Song]:
    """The test songs with their latents."""
    songs: list[Song] = []
    for style, pieces in chosen.items():
        songs += test_songs.encode(codec, style, pieces)
        report(f"encoded {style}: {len(songs)} of {sum(map(len, chosen.values()))} songs")
    return songs


def _accuracy(classifier: StyleClassifier, songs: Sequence[Song]) -> list[float]:
    """Share of test songs whose real notes the classifier assigns to their own style, with interval."""
    rows = [classifier.probability(song.piece.notes, song.piece.bounds) for song in songs]
    right = np.array([max(p, key=lambda s: p[s]) == song.style for p, song in zip(rows, songs, strict=True)], float)
    return list(measures.interval(right))
