"""Evaluation of a text model on the public sets of a folder, beside published figures, in one report.

Scope: the protocol. Out of scope: the files (text_sets.py), and the figures (text.py, text_transfer.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from seqvae.codec import Codec
from seqvae.errors import StyleError
from seqvae.evaluation import text, text_sets
from seqvae.evaluation.ngram import NGram
from seqvae.evaluation.style_classifier import LineClassifier, chooser
from seqvae.evaluation.text_sets import Corpus, TransferSet
from seqvae.evaluation.text_transfer import Mover, Task, transfer
from seqvae.evaluation.word_table import WordTable
from seqvae.style.choice import FARTHEST, Choice

AMOUNTS = (0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
UNTIL = (0.3, 0.5, 0.7, 0.9)  # probabilities of the target for moves that choose line by line
GENERATED = 10  # sampled sentences per line, at most 10,000


def evaluate(
    codec: Codec,
    folder: Path,
    *,
    lines: int = 1000,
    samples: int = 500,
    iw_lines: int | None = 500,
    pairs: Collection[tuple[str, str]] | None = None,
    seed: int = 0,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The figures of `text.evaluate_text` on held-out lines, and of `text_transfer.transfer` on each set of the folder.

    The styles of the model decide which lines of the folder are its own; see text_sets.py. At most `lines` held-out
    lines are measured, and at most as many of each style of a set are moved. `pairs` leaves the sets of these pairs of
    styles alone; without `pairs` all are measured. Raises SeqVAEError for a folder without lines for the model.
    """
    corpus = text_sets.read(folder, codec.styles)
    rng = np.random.default_rng(seed)
    held_out = text.subset(corpus.held_out, lines, rng)
    result = text.evaluate_text(
        codec, held_out, corpus=corpus.train, seed=seed, samples=samples, iw_lines=iw_lines,
        generated=min(10_000, GENERATED * lines), report=report,
    )  # fmt: skip
    del result["skipped"]["transfer"]
    result["skipped"] |= corpus.skipped
    model = NGram().fit([corpus.tokenize(line) for line in corpus.train])
    classifiers: dict[tuple[str, ...], LineClassifier] = {}
    for name, one in corpus.sets.items():
        if pairs is not None and tuple(one.lines) not in pairs:
            continue
        if reason := _missing(one):
            result["skipped"][name] = reason
            continue
        known = tuple(sorted(one.train))
        if known not in classifiers:
            classifiers[known] = LineClassifier(_tokenized(corpus, one.train), seed)
        part = one.part(lines, rng)
        task = _task(corpus, part, classifiers[known], model, seed)
        moved = transfer(codec, task, AMOUNTS, rng, report, _choosers(codec, *one.lines))
        result["transfer"][name] = {**text.plain(moved), "published": one.published}
    return result


def _choosers(codec: Codec, first: str, second: str) -> dict[str, Mover]:
    """`Codec.blend_until` at the limits UNTIL; none if no classifier tells the two styles apart."""
    try:
        codec.blend_until([], [(first, second, FARTHEST)])
    except StyleError:
        return {}

    def mover(limit: float) -> Mover:
        return lambda lines, source, target: [
            one.line for one in codec.blend_until(lines, [(source, target, FARTHEST)], Choice(until=limit))
        ]

    return {f"until {limit}": mover(limit) for limit in UNTIL}


def _missing(one: TransferSet) -> str:
    """The reason why a set cannot be measured; empty if it can."""
    if untrained := [name for name in one.lines if not one.train.get(name)]:
        return f"no training lines of {', '.join(untrained)}"
    return "" if any(one.lines.values()) else "no held-out lines"


def _tokenized(corpus: Corpus, lines: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: [corpus.tokenize(line) for line in members] for name, members in lines.items()}


def _task(corpus: Corpus, one: TransferSet, classifier: LineClassifier, model: NGram, seed: int) -> Task:
    real = _tokenized(corpus, {name: one.train[name] for name in one.lines})
    baselines = {}
    if one.pairs:
        table = WordTable((corpus.tokenize(a), corpus.tokenize(b)) for a, b in one.pairs)
        baselines["a table of word substitutions"] = {
            name: [table.substitute(corpus.tokenize(line)) for line in lines] for name, lines in one.lines.items()
        }
    return Task(one.lines, classifier, chooser(real, seed), model, one.references or None, baselines, corpus.tokenize)
