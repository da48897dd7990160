"""Evaluation of a music model: all figures of its model card, on held-out songs.

Scope: the protocol (songs, length of stretches, order of measurements) and the report. Out of scope: training,
sampling, and the parts: blends (evaluation/blend.py), reconstruction (evaluation/reconstruction.py), samples
(evaluation/generation.py), interpolation (evaluation/interpolation.py). Songs are split by a hash of the title
(`dataset.half_of`). The style classifier is fitted on real notes of training songs alone. Figures are measured on one
half of the other songs; the other half is for choices. Formulas: docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqvae.codec import Codec
from seqvae.data.dataset import Half
from seqvae.errors import SeqVAEError
from seqvae.evaluation import blend as evaluate_blend
from seqvae.evaluation import controls, test_songs
from seqvae.evaluation import generation as evaluate_samples
from seqvae.evaluation import interpolation as evaluate_paths
from seqvae.evaluation import reconstruction as evaluate_reconstruction
from seqvae.evaluation.style_classifier import StyleClassifier
from seqvae.evaluation.test_songs import Song
from seqvae.music import note_metrics as measures

Report = Callable[[str], None]
SAMPLE = {"kl_bits": "note_f1_sample", "kl_bits_encoder": "note_f1_encoder"}  # figure whose rate is this KL
SEGMENTS = 4  # first segments of each song that are blended, and segments of each sample
LONG = 8  # segments of each song that are reconstructed, consecutive, from a place drawn once
CLASSIFIER_SONGS = 150  # training songs per style for the style classifier
COMPARED = 10  # limit of test songs per style that samples are compared with, in multiples of `pieces`
OLDER = (
    "These songs were measured before there were controls, and amounts, strengths and methods had been chosen on part "
    "of them. Samples of the posterior were not decoded, so the KL is left out. Chroma and groove of blends are left "
    "out, because neither another song's latents nor the target's mean was measured. Random vectors are from a sphere "
    "and have little effect on the decoder, so the gains over them, and p over both baselines, are too favourable."
)


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
    )
    real = [(style, piece) for style in styles for piece in found.train[style]]
    classifiers = {name: StyleClassifier(real, codec.chunks, name == "judge", seed) for name in ("judge", "blind")}
    rankings = {style: measures.program_ranking([p.notes for p in found.train[style]]) for style in styles}
    measured = {style: found.test[style][:pieces] for style in styles}
    report(f"{sum(map(len, measured.values()))} test songs, style classifiers fitted on {len(real)} training songs")
    songs: list[Song] = []
    for style in styles:
        songs += test_songs.encode(codec, style, measured[style])
        report(f"encoded {style}: {len(songs)} of {sum(map(len, measured.values()))} songs")
    fronts = [song.front(SEGMENTS, codec.chunks) for song in songs]
    result: dict[str, Any] = {
        "protocol": {"test_songs": {s: len(x) for s, x in measured.items()}, "split": split, "segments": LONG,
                     "seed": seed, "bars": LONG * codec.chunks, "blended_bars": short,
                     "intervals": "95 %, bootstrap over songs", "decoding": "greedy, free"},
        "judge_accuracy": {name: _accuracy(classifier, fronts) for name, classifier in classifiers.items()},
    }  # fmt: skip
    result["reconstruction"] = evaluate_reconstruction.reconstruction(codec, songs, LONG, rng, report)
    result["interpolation"] = evaluate_paths.paths(codec, songs, pairs, rng, report)
    result["samples"] = evaluate_samples.samples(
        codec, {s: [test_songs.front(p, short) for p in x] for s, x in found.test.items()}, found.train, found.trained,
        samples, SEGMENTS, seed, report,
    )  # fmt: skip
    result["blend"] = evaluate_blend.blends(codec, fronts, classifiers, rankings, rng, report)
    result["strength"] = evaluate_blend.strength(codec, fronts, classifiers["judge"], rng, report)
    return result


def _accuracy(classifier: StyleClassifier, songs: Sequence[Song]) -> list[float]:
    """Share of test songs whose real notes the classifier assigns to their own style, with interval."""
    said = [classifier.probability(song.piece.notes, song.piece.bounds) for song in songs]
    right = np.array([max(p, key=lambda s: p[s]) == song.style for p, song in zip(said, songs, strict=True)], float)
    return list(measures.interval(right))


# --- report -----------------------------------------------------------------------------------------------------------


def table(result: Mapping[str, Any]) -> str:
    """The figures as Markdown tables, for reports and model cards."""
    blend, seen = result["blend"], result["protocol"]
    songs = ", ".join(f"{n} {style}" for style, n in seen["test_songs"].items())
    accuracy = {name: _cell(x) for name, x in result["judge_accuracy"].items()}
    said = result["reconstruction"]
    # results of older versions have no controls; figures that need them are left out
    controlled = "target mean" in blend["all"]
    kept = [k for k in evaluate_blend.KEPT if controlled and all(k in row for row in blend["all"].values())]
    leaning = [c for c in blend["all"] if "harmony 0" not in c]
    lines = [
        f"Test songs ({seen.get('split', 'an older split')}): {songs}; {seen['bars']} bars of each at most, means with "
        f"95 % intervals over songs. The tokenizer drops {100 * said['dropped_by_tokenizer']:.2f} % of the notes.",
        "",
        *([] if controlled else [OLDER, ""]),
        *_reconstruction_tables({k: v for k, v in said.items() if isinstance(v, dict)}),
        f"The style classifier uses instruments and drums (accuracy on real test songs {accuracy['judge']}); the blind "
        f"classifier uses neither ({accuracy['blind']}).",
        "",
        *_rows(
            "blend, all pairs",
            ["target probability", "target probability, blind", *(f"{k} kept" for k in map(_spaced, kept))],
            {c: [_cell(r[k]) for k in ("judge", "blind", *kept)] for c, r in blend["all"].items()},
        ),
        *_beyond_tables(blend.get("beyond", {})),
        *_rows(
            "target probability", leaning,
            {pair: [f"{by[c]['judge'][0]:.2f}" for c in leaning] for pair, by in blend["pairs"].items()},
        ),
        *_rows(
            "chroma kept", leaning,
            {pair: [f"{by[c]['chroma'][0]:.2f}" for c in leaning] for pair, by in blend["pairs"].items() if controlled},
        ),
        *_rows(
            "gain of target probability, by source style", list(next(iter(blend["margin"].values()))),
            {name: [_cell(x) for x in by.values()] for name, by in blend["margin"].items()},
        ),
    ]  # fmt: skip
    if chance := blend.get("p_values"):
        both = {name: by for name, by in chance.items() if name.endswith("over both")}
        lines += _rows(
            "p over both baselines", list(next(iter(both.values()))),
            {name: [f"{p:.1g}" for p in by.values()] for name, by in both.items()}, sideways=True,
        )  # fmt: skip
    if strength := result.get("strength"):
        lines += [
            f"Transfer strength at amount {strength['amount']:g}, there and back (Brunner et al. 2018; without a "
            f"random vector as control), all pairs: "
            f"{_cell(strength['all'])}; "
            + ", ".join(f"{pair} {_cell(x)}" for pair, x in strength["pairs"].items())
            + ".",
            "",
        ]
    if drawn := result.get("samples"):
        lines += _samples_table(drawn)
    if between := result.get("interpolation"):
        lines += _paths_table(between)
    return "\n".join(lines).rstrip()


def _cell(x: Sequence[float], digits: int = 2) -> str:
    return f"{x[0]:.{digits}f} [{x[1]:.{digits}f}, {x[2]:.{digits}f}]"


def _rows(first: str, columns: Iterable[str], body: Mapping[str, Sequence[str]], sideways: bool = False) -> list[str]:
    """A table, empty without rows; `sideways` transposes it."""
    if not body:
        return []
    head = list(columns)
    if sideways:
        head, body = list(body), {name: [cells[i] for cells in body.values()] for i, name in enumerate(head)}
    lines = [f"| {first} | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    return [*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in body.items()), ""]


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _reconstruction_tables(rows: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """Point estimate and samples, each sample with its KL; then other figures of the searched mean.

    A KL is shown only with its sample, which results of older versions do not have.
    """
    parts = evaluate_reconstruction.PARTS
    columns = {
        "searched mean (a point estimate)": ("note_f1", 2),
        "sample of the searched posterior": ("note_f1_sample", 2),
        "its KL, bits per segment": ("kl_bits", 0),
        "sample of the encoder's posterior": ("note_f1_encoder", 2),
        "its KL, bits": ("kl_bits_encoder", 0),
    }
    rest = {
        "note F1 of a segment": ("note_f1_segment", 2),
        **{part: (part, 2) for part in parts},
        "chroma": ("chroma", 2),
        "chroma of a random pair": ("random_chroma", 2),
        "groove": ("groove", 2),
        "groove of a random pair": ("random_groove", 2),
    }
    out = []
    for first, wanted in (("note F1", columns), ("from the searched mean", rest)):
        there = {
            head: x
            for head, x in wanted.items()
            if all({x[0], SAMPLE.get(x[0], x[0])} <= row.keys() for row in rows.values())
        }
        body = {style: [_cell(row[k], digits) for k, digits in there.values()] for style, row in rows.items()}
        out += _rows(first, there, body)
    return out


def _beyond_tables(beyond: Mapping[str, Any]) -> list[str]:
    """Content that a move keeps beyond its controls, and the figures that prove it."""
    if not beyond:
        return []
    body = {
        f"{move}, minus {'another song' if control == 'another song' else 'the target mean'}": [
            _cell(x) for x in figures.values()
        ]
        for move, by_control in beyond.items()
        for control, figures in by_control.items()
    }
    shown = {move: [_spaced(name) for name in controls.shown(x)] for move, x in beyond.items()}
    return [
        *_rows("kept, minus a control", map(_spaced, evaluate_blend.KEPT), body),
        "Figures of the song that are above both controls with the whole interval: "
        + "; ".join(f"{move}: {', '.join(names) or 'none'}" for move, names in shown.items())
        + ".",
        "",
    ]


def _samples_table(drawn: Mapping[str, Any]) -> list[str]:
    area, copies, far = drawn["overlapped_area"], drawn["copying"], drawn["frechet"]
    inside = {name: [_cell(x) for x in drawn[name].values()] for name in evaluate_samples.WITHIN}
    return [
        f"{drawn['samples']} samples at temperature {drawn['temperature']:g}, compared with {drawn['held_out']} "
        f"held-out songs in the same shares of styles; {100 * drawn['silent']:.1f} % are silent.",
        "",
        *_rows(
            "overlapped area with held-out songs", ["samples", "training songs"],
            {name: [_cell(by["samples"]), _cell(by["training"])] for name, by in area.items()},
        ),
        *_rows("mean over songs", ["samples", "held-out songs"], inside),
        f"Fréchet distance in the latent space, {far['pieces']} songs each: samples {_cell(far['samples'], 0)}, other "
        f"held-out songs {_cell(far['held_out'], 0)}.",
        "",
        f"Longest run of notes shared with any of {copies['training_songs']} training songs, transposed or not: "
        f"samples {_cell(copies['samples'], 1)}, held-out songs {_cell(copies['held_out'], 1)}; at most "
        f"{copies['samples_longest']} and {copies['held_out_longest']}. {_cell(copies['beyond'])} of the samples have "
        f"a longer one than 95 % of the held-out songs ({copies['held_out_95_percent']:.0f} notes).",
        "",
    ]  # fmt: skip


def _paths_table(between: Mapping[str, Any]) -> list[str]:
    columns = ["monotone", "rising_steps", "largest_step"]
    body = {
        f"{kind}, {name}": [_cell(by[name][c]) for c in columns]
        for kind, by in between.items()
        if isinstance(by, dict)
        for name in evaluate_paths.DISTANCES
    }
    return _rows(f"{between['pairs']} paths of {between['steps']} steps", [c.replace("_", " ") for c in columns], body)
