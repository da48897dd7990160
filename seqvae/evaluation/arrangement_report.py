"""Figures of arrangements as Markdown tables, for reports and model cards.

Scope: the result of evaluation/arrangement.py. Out of scope: measuring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seqvae.evaluation.arrangement import KEPT
from seqvae.evaluation.tables import cell, rows, with_new_keys

BY_PAIR = ("band", "inside the target's range", "target probability", "new notes", "notes a bar")
TABLE = (
    "band", "instruments", "kit repeated", "drum switches", "top line there", "top line heard",
    "inside the target's range", "30 to 70 % new", "notes a bar", "notes a bar inside", "bass agrees",
    "target probability", "new notes", "chroma kept", "notes kept",
)  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """The figures as Markdown tables."""
    result = with_new_keys(result)
    protocol, conditions, differences = result["protocol"], result["all"], result["differences"]
    last = f"amount {protocol['amounts'][-1]:g}"
    shown = [c for c in dict.fromkeys(("amount 0.5", last)) if c in conditions]
    columns = ["source songs", *shown, "target songs", "rule", "programs swapped"]
    controls = [key.split(" less ")[1] for key in differences if not key.endswith(" less rule")]
    lines = [
        f"Excerpts of {protocol['bars']} bars, {'; '.join(protocol['pairs'])}; held-out songs: "
        + ", ".join(f"{n} {style}" for style, n in protocol["songs"].items())
        + ". Means with 95 % intervals over songs. The style classifier has accuracy "
        + f"{cell(protocol['classifier_accuracy'])}.",
        "",
    ]

    def body(of: Sequence[str], less: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
        parts = [*(conditions[c] for c in of), *(differences[d] for d in less)]
        return {name: [cell(part.get(name)) for part in parts] for name in names}

    less = [f"{c} less rule" for c in shown]
    lines += rows("", [*columns, *less], body(columns, less, TABLE))
    if controls:
        less = [f"{last} less {c}" for c in controls]
        head = [last, *controls, *(f"less {c}" for c in controls)]
        lines += rows("kept of the song", head, body([last, *controls], less, KEPT))
    return "\n".join([*lines, *_single_figures(result), *_pair_tables(result, columns[:-1])]).rstrip()


def _single_figures(result: Mapping[str, Any]) -> list[str]:
    figures = {f"{name} with the amount, Spearman's rank": x for name, x in result["dose"].items()}
    figures |= {f"real or not, AUC: {name}": x for name, x in result["real_or_blend"].items()}
    return rows("", ["figure"], {name: [cell(x)] for name, x in figures.items()})


def _pair_tables(result: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """Means of BY_PAIR, a table each with a row for each pair of styles."""
    lines = []
    for name in BY_PAIR:
        means = {
            pair: [cell(row[c].get(name)).partition(" ")[0] for c in columns] for pair, row in result["pairs"].items()
        }
        lines += rows(name, columns, means)
    return lines
