"""Figures of a text model as Markdown tables, for reports and model cards.

Scope: the result of evaluation/text.py, also of older versions. Out of scope: measuring.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seqvae.evaluation.tables import cell, rows, spaced, with_new_keys

OLDER = {"released": "searched mean", "encoder": "encoder's mean"}  # names in results of older versions

RECONSTRUCTION = ["BLEU", "exact", "share of words to edit", "KL, bits per line"]
# Columns of moved sentences, and digits after the point; results of older versions have the first three.
TRANSFER = {
    "accuracy": ("accuracy", 2),
    "accuracy_by_characters": ("by characters", 2),
    "accuracy_of_all": ("accuracy among all styles", 2),
    "bleu": ("self-BLEU", 1),
    "geometric_mean": ("geometric mean", 1),
    "reference_bleu": ("BLEU to reference", 1),
    "reference_geometric_mean": ("geometric mean, reference", 1),
    "content_kept": ("content words kept", 2),
    "perplexity": ("perplexity", 1),
}


def table(result: Mapping[str, Any]) -> str:
    """The figures as Markdown tables, for reports and model cards."""
    result = with_new_keys(result)
    protocol = result["protocol"]
    lines = [
        f"{protocol['lines']} held-out lines, {protocol['words']} words counting the end of each; 95 % intervals over "
        "lines.",
        "",
        *_likelihood_table(result["likelihood"]),
        *rows(
            "decoded from (a mean is a point estimate)",
            RECONSTRUCTION,
            {name: _reconstruction_cells(row) for name, row in _by_length(result).items()},
        ),
    ]
    between = result["interpolation"]
    kinds = {k: v for k, v in between.items() if isinstance(v, dict)}
    if kinds:
        columns = list(next(iter(kinds.values())))
        body = {k: [cell(v[c]) for c in columns] for k, v in kinds.items()}
        lines += rows(f"{between['pairs']} pairs", map(spaced, columns), body)
    if "samples" in result:
        columns = ["forward", "reverse", "copies", "distinct", "words", "unknown"]
        body = {k: [cell(v[c]) for c in columns] for k, v in result["samples"].items() if isinstance(v, dict)}
        lines += rows("samples", columns, body)
    moved = result.get("transfer", {})
    if sets := {name: x for name, x in moved.items() if "published" in x and "chosen" in x}:
        shown = {key: about for key, about in TRANSFER.items() if any(key in x["chosen"] for x in sets.values())}
        body = {
            f"{name}, {x['chosen']['method']} by {x['chosen']['amount']:g}": _cells(x["chosen"], shown)
            for name, x in sets.items()
        }
        lines += rows("chosen on one half, measured on the other", [name for name, _ in shown.values()], body)
    for pair, figures in moved.items():
        lines += _transfer_tables(pair, figures)
    lines += [f"Not measured: {figure}: {reason}." for figure, reason in result["skipped"].items()]
    return "\n".join(lines).rstrip()


def _likelihood_table(likelihood: Mapping[str, Any]) -> list[str]:
    names = {"elbo": "ELBO", "importance": "importance weighting", "elbo_of_the_same": "ELBO of the same lines"}
    bounds = {name: likelihood[key] for key, name in names.items()}
    return [
        *rows(
            "bound", ["lines", "draws", "NLL, nats per sentence", "perplexity per word"],
            {name: [f"{x['lines']}", f"{x['draws']}", cell(x["nll"]), cell(x["perplexity"])]
             for name, x in bounds.items()},
        ),
        f"KL {cell(likelihood['kl'])} nats, mutual information {likelihood['mutual_information']:.2f} nats (at most "
        f"{likelihood['mutual_information_at_most']:.2f}, the log of the lines compared), "
        f"{likelihood['active_units']} of {likelihood['latent']} units active.",
        "",
    ]  # fmt: skip


def _reconstruction_cells(row: Mapping[str, Any]) -> list[str]:
    return [cell(row["bleu"], 1), *(cell(row[k]) for k in ("exact", "edit_distance")), cell(row.get("kl_bits"), 0)]


def _by_length(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Reconstruction of all lines, then of short ones where these are not all."""
    out = {OLDER.get(name, name): row for name, row in result["reconstruction"].items()}
    for most, figures in result.get("reconstruction_by_length", {}).items():
        if figures["lines"] < result["protocol"]["lines"]:
            about = f"{figures['lines']} lines of at most {most} words"
            out |= {f"{name}, {about}": row for name, row in figures.items() if name != "lines"}
    return out


def _cells(figures: Mapping[str, Any], shown: Mapping[str, tuple[str, int]]) -> list[str]:
    return [cell(figures.get(key), digits) for key, (_, digits) in shown.items()]


def _transfer_tables(pair: str, figures: Mapping[str, Any]) -> list[str]:
    """Sentences moved between two styles: each method by amount, the controls, and the chosen setting.

    Of a public set the chosen method alone is shown.
    """
    measured: Mapping[str, Any] = next(
        (x for by in figures["methods"].values() for x in by.get("both", {}).values()), {}
    )
    shown = {key: about for key, about in TRANSFER.items() if key in measured}
    columns = [name for name, _ in shown.values()]
    only = figures.get("chosen", {}).get("method") if "published" in figures else None

    lines = [
        f"{pair}: the style classifier assigns {cell(figures['classifier'])} of the real lines to their own style; "
        f"their perplexity is {cell(figures['perplexity'], 1)}.",
        "",
    ]
    for method, by in figures["methods"].items():
        if only not in (None, method):
            continue
        if "skipped" in by:
            lines += [f"{method}: {by['skipped']}", ""]
            continue
        lines += rows(f"{pair} by {method}, amount", columns, {k: _cells(x, shown) for k, x in by["both"].items()})
        anchors = (f"{cell(x, 1)} at {at} %" for at, x in by["bleu_at_accuracy"].items())
        lines += [f"Self-BLEU at the classifier's accuracy: {', '.join(anchors)}.", ""]
    if controls := figures.get("controls"):
        lines += rows(f"{pair}, moved by amount 1", columns, {k: _cells(x, shown) for k, x in controls.items()})
        gains = ", ".join(f"{k} {cell(x['beyond'], 1)}" for k, x in controls.items() if "beyond" in x)
        lines += [f"Gain of self-BLEU over {gains}.", ""]
    lines += rows(f"{pair}, line by line", columns, {k: _cells(x, shown) for k, x in figures.get("movers", {}).items()})
    if chosen := figures.get("chosen"):
        each = ", ".join(f"{name} {cell(chosen[key], digits)}" for key, (name, digits) in shown.items())
        lines += [
            f"Chosen on one half, measured on the other: {chosen['method']} by {chosen['amount']:g}: {each}.",
            "",
        ]
    if published := figures.get("published"):
        lines += [f"Published: {published}", ""]
    return lines
