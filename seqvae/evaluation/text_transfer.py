"""Sentences moved between styles: accuracy of the target style, and similarity to the original.

Scope: the sweep of amounts, the style classifier, and BLEU at a given accuracy. Out of scope: training, and files. The
classifier is fitted on real training lines alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.codec import Codec
from seqvae.errors import StyleError
from seqvae.evaluation import controls
from seqvae.evaluation import text_metrics as text
from seqvae.evaluation.statistics import Figure, corpus_interval, resampled, with_interval
from seqvae.music import note_metrics as measures
from seqvae.style import gaussian, moves

Floats = NDArray[np.float64]
Report = Callable[[str], None]
AMOUNTS = (*np.arange(0, 3.25, 0.25).tolist(), 3.5, 4.0)
ANCHORS = (73.6, 91.8)
"""Accuracies in percent at which Shen et al. (2020) report self-BLEU: 18.2 and 7.3 for DAAE."""


# Columns of the statistics of one output, and the figure computed from their sum over sentences.
FIGURES: dict[str, tuple[slice, Callable[[Floats], Floats]]] = {
    "accuracy": (slice(0, 2), text.share_of),
    "bleu": (slice(2, 12), text.bleu_of),
    "perplexity": (slice(12, 14), text.perplexity_of),
}


class LineClassifier:
    """Style classifier: logistic regression on TF-IDF of one to three words, fitted on real lines of two styles."""

    def __init__(self, real: Mapping[str, Sequence[str]], seed: int) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        # character n-grams took three times as long, without a significant difference on reviews
        counts = TfidfVectorizer(token_pattern=r"\S+", ngram_range=(1, 3), min_df=2, sublinear_tf=True)
        choice = LogisticRegression(C=4.0, max_iter=300, class_weight="balanced", random_state=seed)
        self.model = make_pipeline(counts, choice)
        lines = [(line, name) for name, members in real.items() for line in members]
        self.model.fit([line for line, _ in lines], [name for _, name in lines])

    def puts_in(self, lines: Sequence[str], targets: Sequence[str]) -> Floats:
        """1 for each line that is classified as its target, else 0, `(N,)`; an empty line gets 0."""
        said = self.model.predict(list(lines))
        return np.array([bool(x.strip()) and s == t for x, s, t in zip(lines, said, targets, strict=True)], float)


def transfer(
    codec: Codec, moved: dict[str, list[str]], classifier: LineClassifier, model: text.NGram, amounts: Sequence[float],
    rng: np.random.Generator, report: Report,
) -> dict[str, Any]:  # fmt: skip
    """Move lines of two styles to the other style by every amount and every method of style/moves.py.

    Accuracy is the share classified as the target, BLEU compares with the original lines, perplexity is from the
    language model. "controls" compares the full difference of means with another line moved alike, the target's mean
    alone, and a random vector of equal length. "chosen" is the setting with the best geometric mean of accuracy and
    BLEU on one half of the lines, with its figures on the other half.
    """
    (a, of_a), (b, of_b) = moved.items()
    sources, targets = [a] * len(of_a) + [b] * len(of_b), [b] * len(of_a) + [a] * len(of_b)
    lines = [*of_a, *of_b]
    latents = codec.encode(lines)
    forth = np.array([s == a for s in sources])
    first = np.zeros(len(lines), bool)  # the half on which a setting is chosen, balanced in direction
    for side in (forth, ~forth):
        first[rng.permutation(np.flatnonzero(side))[: side.sum() // 2]] = True
    out: dict[str, Any] = {
        "lines": {name: len(members) for name, members in moved.items()},
        "judge": measures.interval(classifier.puts_in(lines, sources)),
        "perplexity": corpus_interval(model.statistics(lines), text.perplexity_of),
        "methods": {},
    }
    best: tuple[float, str, float, Floats] | None = None
    for method in get_args(moves.Method):
        sweep = []
        for amount in amounts:
            try:
                z = [
                    *_blended(latents[: len(of_a)], codec.styles[a], codec.styles[b], amount, method),
                    *_blended(latents[len(of_a) :], codec.styles[b], codec.styles[a], amount, method),
                ]
            except StyleError as error:
                out["methods"][method] = {"skipped": str(error)}
                break
            sweep.append(statistics(codec.decode(z), lines, targets, classifier, model))
        if len(sweep) < len(amounts):
            continue
        by_amount = {f"{amount:g}": x for amount, x in zip(amounts, sweep, strict=True)}
        figures = {
            f"{a} to {b}": {amount: _figures(x[forth]) for amount, x in by_amount.items()},
            f"{b} to {a}": {amount: _figures(x[~forth]) for amount, x in by_amount.items()},
            "both": {amount: _figures(x) for amount, x in by_amount.items()},
        }
        every = np.stack(sweep, 1)
        out["methods"][method] = {**figures, "bleu_at_accuracy": {f"{at:g}": _anchored(every, at) for at in ANCHORS}}
        for amount, x in zip(amounts, sweep, strict=True):
            sums = x[first].sum(0)
            score = float(np.prod([f(sums[columns]) for columns, f in list(FIGURES.values())[:2]])) ** 0.5
            if best is None or score > best[0]:
                best = score, method, amount, x[~first]
        anchors = ", ".join(f"{v[0]:.1f} at {k} %" for k, v in out["methods"][method]["bleu_at_accuracy"].items() if v)
        report(f"{a}/{b} by {method}: self-BLEU {anchors or 'not measured: no amount reaches the accuracy'}")
    out["controls"] = _controls(
        codec, latents, sources, targets, rng, lambda z: statistics(codec.decode(z), lines, targets, classifier, model)
    )
    if best is not None:
        _, method, amount, rest = best
        out["chosen"] = {"method": method, "amount": amount, "lines": len(rest), **_figures(rest)}
    return out


def _controls(
    codec: Codec, latents: Sequence[Tensor], sources: Sequence[str], targets: Sequence[str], rng: np.random.Generator,
    measure: Callable[[list[Tensor]], Floats],
) -> dict[str, dict[str, Figure]]:  # fmt: skip
    """FIGURES of lines moved by the difference of means, and of controls without the line or without the style.

    "beyond" is the BLEU of the moved lines minus that of a control, paired over sentences.
    """
    ways = [moves.vector(codec.styles[s], codec.styles[t]) for s, t in zip(sources, targets, strict=True)]
    another = [
        controls.as_long(latents[i], len(z)) for i, z in zip(controls.others(sources, rng), latents, strict=True)
    ]
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    pair = [codec.styles[name] for name in sorted(set(sources) | set(targets))]
    random = controls.random_vectors(pair, [float(way.norm()) for way in ways], generator)
    own = measure([z + way for z, way in zip(latents, ways, strict=True)])
    without = {
        "another line": [z + way for z, way in zip(another, ways, strict=True)],
        "the target mean": [codec.styles[t].mean.expand(len(z), -1) for z, t in zip(latents, targets, strict=True)],
        "a random vector": [z + way for z, way in zip(latents, random, strict=True)],
    }
    out = {"the line itself": _figures(own)}
    bleu = FIGURES["bleu"][0]
    for name, moved in without.items():
        found = measure(moved)
        both = np.stack([own, found], 1)[..., bleu]  # (N, 2, 10)
        sums, drawn = text.bleu_of(both.sum(0)), text.bleu_of(resampled(both))
        more = with_interval(float(sums[0] - sums[1]), drawn[:, 0] - drawn[:, 1])
        out[name] = {**_figures(found), "beyond": more}
    return out


def _blended(
    latents: Sequence[Tensor], source: gaussian.Style, target: gaussian.Style, amount: float, method: moves.Method
) -> Sequence[Tensor]:
    """Moved latents `(S, D)` of each line, moved together so that a transport is computed once."""
    moved = moves.blend(torch.cat(list(latents)), source, target, amount, method)
    return torch.split(moved, [len(z) for z in latents])


def statistics(
    written: Sequence[str], lines: Sequence[str], targets: Sequence[str], classifier: LineClassifier, model: text.NGram
) -> Floats:
    """The statistics behind FIGURES of each output, `(N, 14)`."""
    hits = classifier.puts_in(written, targets)
    return np.column_stack([hits, np.ones(len(hits)), text.bleu_statistics(written, lines), model.statistics(written)])


def _figures(x: Floats) -> dict[str, Figure]:
    """FIGURES of outputs `(N, 14)`, all over the same resamples of sentences."""
    if not len(x):
        return dict.fromkeys(FIGURES, (math.nan,) * 3)
    total, drawn = x.sum(0), resampled(x)
    return {
        name: with_interval(float(figure(total[columns])), figure(drawn[:, columns]))
        for name, (columns, figure) in FIGURES.items()
    }


def _anchored(sweep: Floats, percent: float) -> Figure | None:
    """BLEU at a classifier accuracy in percent, of `sweep (N, A, 14)`; None if no amount reaches it.

    The interval is over resamples in which the accuracy is reached.
    """

    def at(sums: Floats) -> float:
        accuracy, bleu = (figure(sums[:, columns]) for columns, figure in list(FIGURES.values())[:2])
        return text.crossing(100 * accuracy, bleu, percent)

    value = at(sweep.sum(0))
    if math.isnan(value):
        return None
    return with_interval(value, np.array([at(sums) for sums in resampled(sweep)]))
