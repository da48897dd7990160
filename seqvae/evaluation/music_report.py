"""Figures of a music model as Markdown tables, for reports and model cards.

Scope: the result of evaluation/music.py, also of older versions. Out of scope: measuring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seqvae.evaluation import blend as evaluate_blend
from seqvae.evaluation import controls
from seqvae.evaluation import generation as evaluate_samples
from seqvae.evaluation import interpolation as evaluate_paths
from seqvae.evaluation import reconstruction as evaluate_reconstruction
from seqvae.evaluation.tables import cell, rows, spaced, with_new_keys

SAMPLE = {"kl_bits": "note_f1_sample", "kl_bits_encoder": "note_f1_encoder"}  # figure whose rate is this KL
OLDER = (
    "These songs were measured before there were controls, and amounts, strengths and methods had been chosen on part "
    "of them. Samples of the posterior were not decoded, so the KL is left out. Chroma and groove of blends are left "
    "out, because neither another song's latents nor the target's mean was measured. Random vectors are from a sphere "
    "and have little effect on the decoder, so the gains over them, and p over both baselines, are too favourable."
)


def table(result: Mapping[str, Any]) -> str:
    """The figures as Markdown tables, for reports and model cards."""
    result = with_new_keys(result)
    blend, protocol, reconstruction = result["blend"], result["protocol"], result["reconstruction"]
    songs = ", ".join(f"{n} {style}" for style, n in protocol["test_songs"].items())
    accuracy = {name: cell(x) for name, x in result["classifier_accuracy"].items()}
    controlled = "target mean" in blend["all"]  # results of older versions have no controls
    lines = [
        f"Test songs ({protocol.get('split', 'an older split')}): {songs}; {protocol['bars']} bars of each at most, "
        "means with 95 % intervals over songs. The tokenizer drops "
        f"{100 * reconstruction['dropped_by_tokenizer']:.2f} % of the notes.",
        "",
        *([] if controlled else [OLDER, ""]),
        *_reconstruction_tables({k: v for k, v in reconstruction.items() if isinstance(v, dict)}),
        f"The style classifier uses instruments and drums (accuracy on real test songs {accuracy['classifier']}); the "
        f"blind classifier uses neither ({accuracy['classifier_without_instruments']}).",
        "",
        *_blend_tables(blend, controlled),
    ]
    if strength := result.get("strength"):
        lines += _strength_lines(strength)
    if drawn := result.get("samples"):
        lines += _samples_table(drawn)
    if between := result.get("interpolation"):
        lines += _paths_table(between)
    return "\n".join(lines).rstrip()


def _blend_tables(blend: Mapping[str, Any], controlled: bool) -> list[str]:
    """Blends by condition and by pair, and gains over baselines; without controls no kept content is shown."""
    kept = [k for k in evaluate_blend.KEPT if controlled and all(k in row for row in blend["all"].values())]
    guided = [c for c in blend["all"] if "harmony 0" not in c]
    lines = [
        *rows(
            "blend, all pairs",
            ["target probability", "target probability, blind", *(f"{k} kept" for k in map(spaced, kept))],
            {c: [cell(r[k]) for k in ("classifier", "classifier_without_instruments", *kept)]
             for c, r in blend["all"].items()},
        ),
        *_beyond_tables(blend.get("beyond", {})),
        *rows(
            "target probability", guided,
            {pair: [f"{by[c]['classifier'][0]:.2f}" for c in guided] for pair, by in blend["pairs"].items()},
        ),
        *rows(
            "chroma kept", guided,
            {pair: [f"{by[c]['chroma'][0]:.2f}" for c in guided] for pair, by in blend["pairs"].items() if controlled},
        ),
        *rows(
            "gain of target probability, by source style", list(next(iter(blend["margin"].values()))),
            {name: [cell(x) for x in by.values()] for name, by in blend["margin"].items()},
        ),
    ]  # fmt: skip
    if p_values := blend.get("p_values"):
        both = {name: by for name, by in p_values.items() if name.endswith("over both")}
        lines += rows(
            "p over both baselines", list(next(iter(both.values()))),
            {name: [f"{p:.1g}" for p in by.values()] for name, by in both.items()}, sideways=True,
        )  # fmt: skip
    return lines


def _strength_lines(strength: Mapping[str, Any]) -> list[str]:
    return [
        f"Transfer strength at amount {strength['amount']:g}, there and back (Brunner et al. 2018; without a "
        f"random vector as control), all pairs: {cell(strength['all'])}; "
        + ", ".join(f"{pair} {cell(x)}" for pair, x in strength["pairs"].items())
        + ".",
        "",
    ]


def _reconstruction_tables(by_style: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
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
    for first, figures in (("note F1", columns), ("from the searched mean", rest)):
        there = {
            head: x
            for head, x in figures.items()
            if all({x[0], SAMPLE.get(x[0], x[0])} <= row.keys() for row in by_style.values())
        }
        body = {style: [cell(row[k], digits) for k, digits in there.values()] for style, row in by_style.items()}
        out += rows(first, there, body)
    return out


def _beyond_tables(beyond: Mapping[str, Any]) -> list[str]:
    """Content that a move keeps beyond its controls, and the figures that prove it."""
    if not beyond:
        return []
    body = {
        f"{move}, minus {'another song' if control == 'another song' else 'the target mean'}": [
            cell(x) for x in figures.values()
        ]
        for move, by_control in beyond.items()
        for control, figures in by_control.items()
    }
    shown = {move: [spaced(name) for name in controls.shown(x)] for move, x in beyond.items()}
    return [
        *rows("kept, minus a control", map(spaced, evaluate_blend.KEPT), body),
        "Figures of the song that are above both controls with the whole interval: "
        + "; ".join(f"{move}: {', '.join(names) or 'none'}" for move, names in shown.items())
        + ".",
        "",
    ]


def _samples_table(drawn: Mapping[str, Any]) -> list[str]:
    area, copies, far = drawn["overlapped_area"], drawn["copying"], drawn["frechet"]
    inside = {name: [cell(x) for x in drawn[name].values()] for name in evaluate_samples.WITHIN}
    return [
        f"{drawn['samples']} samples at temperature {drawn['temperature']:g}, compared with {drawn['test_songs']} "
        f"held-out songs in the same shares of styles; {100 * drawn['silent']:.1f} % are silent.",
        "",
        *rows(
            "overlapped area with held-out songs", ["samples", "training songs"],
            {name: [cell(by["samples"]), cell(by["training"])] for name, by in area.items()},
        ),
        *rows("mean over songs", ["samples", "held-out songs"], inside),
        f"Fréchet distance in the latent space, {far['pieces']} songs each: samples {cell(far['samples'], 0)}, other "
        f"held-out songs {cell(far['test_songs'], 0)}.",
        "",
        f"Longest run of notes shared with any of {copies['training_songs']} training songs, transposed or not: "
        f"samples {cell(copies['samples'], 1)}, held-out songs {cell(copies['test_songs'], 1)}; at most "
        f"{copies['samples_longest']} and {copies['test_songs_longest']}. {cell(copies['beyond'])} of the samples have "
        f"a longer one than 95 % of the held-out songs ({copies['test_songs_95_percent']:.0f} notes).",
        "",
    ]  # fmt: skip


def _paths_table(between: Mapping[str, Any]) -> list[str]:
    columns = ["monotone", "rising_steps", "largest_step"]
    body = {
        f"{kind}, {name}": [cell(by[name][c]) for c in columns]
        for kind, by in between.items()
        if isinstance(by, dict)
        for name in evaluate_paths.DISTANCES
    }
    return rows(f"{between['pairs']} paths of {between['steps']} steps", [c.replace("_", " ") for c in columns], body)
