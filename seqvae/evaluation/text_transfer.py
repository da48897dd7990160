"""Sentences moved between styles: accuracy of the target style, and similarity to the original.

Scope: the sweep of amounts, controls, and BLEU at a given accuracy. Out of scope: training, and files. The
classifier is fitted on real training lines alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.codec import Codec
from seqvae.errors import StyleError
from seqvae.evaluation import controls, ngram
from seqvae.evaluation import text_metrics as text
from seqvae.evaluation.statistics import Figure, corpus_interval, resampled, with_interval
from seqvae.evaluation.style_classifier import LineClassifier
from seqvae.music import note_metrics as measures
from seqvae.style import translation

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Report = Callable[[str], None]
AMOUNTS = (*np.arange(0, 3.25, 0.25).tolist(), 3.5, 4.0)
ANCHORS = (73.6, 91.8)
"""Accuracies in percent at which Shen et al. (2020) report self-BLEU: 18.2 and 7.3 for DAAE."""


# Columns of the statistics of one output, and the figure computed from their sum over sentences.
FIGURES: dict[str, tuple[slice, Callable[[Floats], Floats]]] = {
    "accuracy": (slice(0, 2), text.share_of),
    "bleu": (slice(2, 12), text.bleu_of),
    "perplexity": (slice(12, 14), ngram.perplexity_of),
}


def transfer(
    codec: Codec, moved: dict[str, list[str]], classifier: LineClassifier, model: ngram.NGram, amounts: Sequence[float],
    rng: np.random.Generator, report: Report,
) -> dict[str, Any]:  # fmt: skip
    """Move lines of two styles to the other style by every amount and every method of style/translation.py.

    Accuracy is the share classified as the target, BLEU compares with the original lines, perplexity is from the
    language model. "controls" compares the full difference of means with another line moved alike, the target's mean
    alone, and a random vector of equal length. "chosen" is the setting with the best geometric mean of accuracy and
    BLEU on one half of the lines, with its figures on the other half.
    """
    sentences = Sentences.of(codec, moved)
    first = sentences.half(rng)
    out: dict[str, Any] = {
        "lines": {name: len(members) for name, members in moved.items()},
        "classifier": measures.interval(classifier.puts_in(sentences.lines, sentences.sources)),
        "perplexity": corpus_interval(model.statistics(sentences.lines), ngram.perplexity_of),
        "methods": {},
    }

    def measure(z: Sequence[Tensor]) -> Floats:
        return statistics(codec.decode(z), sentences.lines, sentences.targets, classifier, model)

    sweeps: dict[tuple[str, float], Floats] = {}
    for method in get_args(translation.Method):
        try:
            sweep = {amount: measure(_blended(codec, sentences, amount, method)) for amount in amounts}
        except StyleError as error:
            out["methods"][method] = {"skipped": str(error)}
            continue
        figures = out["methods"][method] = _method_figures(sentences, sweep)
        sweeps |= {(method, amount): x for amount, x in sweep.items()}
        anchors = ", ".join(f"{v[0]:.1f} at {k} %" for k, v in figures["bleu_at_accuracy"].items() if v)
        pair = "/".join(moved)
        report(f"{pair} by {method}: self-BLEU {anchors or 'not measured: no amount reaches the accuracy'}")
    out["controls"] = _controls(codec, sentences, rng, measure)
    if sweeps:
        method, amount = max(sweeps, key=lambda setting: _score(sweeps[setting][first]))
        rest = sweeps[method, amount][~first]
        out["chosen"] = {"method": method, "amount": amount, "lines": len(rest), **_figures(rest)}
    return out


@dataclass(frozen=True)
class Sentences:
    """Lines of two styles, each with its own style, its target and its latents."""

    lines: list[str]
    sources: list[str]
    targets: list[str]
    latents: Sequence[Tensor]

    @classmethod
    def of(cls, codec: Codec, moved: Mapping[str, Sequence[str]]) -> Sentences:
        """The lines of the first style, then those of the second."""
        (a, of_a), (b, of_b) = moved.items()
        sources, targets = [a] * len(of_a) + [b] * len(of_b), [b] * len(of_a) + [a] * len(of_b)
        lines = [*of_a, *of_b]
        return cls(lines, sources, targets, codec.encode(lines))

    @property
    def forth(self) -> Bools:
        """The lines of the first style, `(N,)`."""
        return np.array([source == self.sources[0] for source in self.sources])

    def half(self, rng: np.random.Generator) -> Bools:
        """The half on which a setting is chosen, `(N,)`, balanced in direction."""
        chosen = np.zeros(len(self.lines), bool)
        for side in (self.forth, ~self.forth):
            chosen[rng.permutation(np.flatnonzero(side))[: side.sum() // 2]] = True
        return chosen


def _method_figures(sentences: Sentences, sweep: Mapping[float, Floats]) -> dict[str, Any]:
    """Figures of one method by direction and amount, and BLEU at ANCHORS."""
    a, b = sentences.sources[0], sentences.targets[0]
    rows = {
        f"{a} to {b}": sentences.forth,
        f"{b} to {a}": ~sentences.forth,
        "both": np.ones(len(sentences.lines), bool),
    }
    figures: dict[str, Any] = {
        name: {f"{amount:g}": _figures(x[chosen]) for amount, x in sweep.items()} for name, chosen in rows.items()
    }
    every = np.stack(list(sweep.values()), 1)
    return {**figures, "bleu_at_accuracy": {f"{at:g}": _anchored(every, at) for at in ANCHORS}}


def _score(x: Floats) -> float:
    """Geometric mean of accuracy and BLEU of outputs `(N, 14)`."""
    total = x.sum(0)
    score: float = float(np.prod([figure(total[columns]) for columns, figure in list(FIGURES.values())[:2]])) ** 0.5
    return score


def _controls(
    codec: Codec, sentences: Sentences, rng: np.random.Generator, measure: Callable[[Sequence[Tensor]], Floats]
) -> dict[str, dict[str, Figure]]:
    """FIGURES of lines moved by the difference of means, and of controls without the line or without the style.

    "beyond" is the BLEU of the moved lines minus that of a control, paired over sentences.
    """
    latents, sources, targets = sentences.latents, sentences.sources, sentences.targets
    ways = [translation.vector(codec.styles[s], codec.styles[t]) for s, t in zip(sources, targets, strict=True)]
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


def _blended(codec: Codec, sentences: Sentences, amount: float, method: translation.Method) -> list[Tensor]:
    """Moved latents `(S, D)` of each line; those of one style together, so that a transport is computed once."""
    a, b = sentences.sources[0], sentences.targets[0]
    count = int(sentences.forth.sum())
    moved: list[Tensor] = []
    for source, target, latents in ((a, b, sentences.latents[:count]), (b, a, sentences.latents[count:])):
        z = translation.blend(torch.cat(list(latents)), codec.styles[source], codec.styles[target], amount, method)
        moved += torch.split(z, [len(one) for one in latents])
    return moved


def statistics(
    written: Sequence[str], lines: Sequence[str], targets: Sequence[str], classifier: LineClassifier, model: ngram.NGram
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
