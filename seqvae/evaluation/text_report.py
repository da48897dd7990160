"""Figures of a text model as Markdown tables, for reports and model cards.

Scope: the result of evaluation/text.py, also of older versions. Out of scope: measuring.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seqvae.evaluation.tables import cell, rows, spaced, with_new_keys

OLDER = {"released": "searched mean", "encoder": "encoder's mean"}  # names in results of older versions


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
            ["BLEU", "exact", "share of words to edit", "KL, bits per line"],
            {OLDER.get(n, n): [cell(r["bleu"], 1), *(cell(r[k]) for k in ("exact", "edit_distance")),
                               cell(r.get("kl_bits"), 0)]
             for n, r in result["reconstruction"].items()},
        ),
    ]  # fmt: skip
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
    for pair, figures in result.get("transfer", {}).items():
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


def _transfer_tables(pair: str, figures: Mapping[str, Any]) -> list[str]:
    """Sentences moved between two styles: each method by amount, the controls, and the chosen setting."""
    columns = ["accuracy", "self-BLEU", "perplexity"]

    def cells(x: Mapping[str, Any]) -> list[str]:
        return [cell(x["accuracy"]), cell(x["bleu"], 1), cell(x["perplexity"], 1)]

    lines = [
        f"{pair}: the style classifier assigns {cell(figures['classifier'])} of the real lines to their own style; "
        f"their perplexity is {cell(figures['perplexity'], 1)}.",
        "",
    ]
    for method, by in figures["methods"].items():
        if "skipped" in by:
            lines += [f"{method}: {by['skipped']}", ""]
            continue
        lines += rows(f"{pair} by {method}, amount", columns, {k: cells(x) for k, x in by["both"].items()})
        anchors = (f"{cell(x, 1)} at {at} %" for at, x in by["bleu_at_accuracy"].items())
        lines += [f"Self-BLEU at the classifier's accuracy: {', '.join(anchors)}.", ""]
    if controls := figures.get("controls"):
        lines += rows(f"{pair}, difference of means by 1", columns, {k: cells(x) for k, x in controls.items()})
        gains = ", ".join(f"{k} {cell(x['beyond'], 1)}" for k, x in controls.items() if "beyond" in x)
        lines += [f"Gain of self-BLEU over {gains}.", ""]
    if chosen := figures.get("chosen"):
        lines += [
            f"Chosen on one half, measured on the other: {chosen['method']} by {chosen['amount']:g}, accuracy "
            f"{cell(chosen['accuracy'])}, self-BLEU {cell(chosen['bleu'], 1)}.",
            "",
        ]
    return lines
