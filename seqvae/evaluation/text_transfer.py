"""Sentences moved between styles: accuracy of the target style, similarity to the original and to references.

Scope: the sweep of amounts, controls, baselines, and BLEU at a given accuracy. Out of scope: training, and files. The
classifiers are fitted on real training lines alone: one measures accuracy, another one chooses a setting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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


Columns = slice | list[int]
ACCURACY, SELF, REFERENCE = [0, 1], [*range(2, 12)], [*range(20, 30)]
CHOSEN_BY = slice(16, 18)
Mover = Callable[[Sequence[str], str, str], Sequence[str]]
"""Lines, source and target to the moved lines."""


def _root(sums: Floats) -> Floats:
    """Geometric mean in percent of an accuracy and a BLEU, from their summed statistics `(..., 12)`."""
    score: Floats = np.sqrt(100 * text.share_of(sums[..., :2]) * text.bleu_of(sums[..., 2:]))
    return score


# Columns of the statistics of one output, and the figure computed from their sum over sentences.
FIGURES: dict[str, tuple[Columns, Callable[[Floats], Floats]]] = {
    "accuracy": (ACCURACY, text.share_of),
    "bleu": (SELF, text.bleu_of),
    "perplexity": (slice(12, 14), ngram.perplexity_of),
    "content_kept": (slice(14, 16), text.share_of),
    "geometric_mean": (ACCURACY + SELF, _root),
    "accuracy_by_characters": (CHOSEN_BY, text.share_of),
}
# Figures with more than two styles for the classifier, and with references.
FIRST: dict[str, tuple[Columns, Callable[[Floats], Floats]]] = {"accuracy_of_all": (slice(18, 20), text.share_of)}
REFERENCED: dict[str, tuple[Columns, Callable[[Floats], Floats]]] = {
    "reference_bleu": (REFERENCE, text.bleu_of),
    "reference_geometric_mean": (ACCURACY + REFERENCE, _root),
}


@dataclass(frozen=True)
class Task:
    """Lines of two styles to move to each other, and what their outputs are measured by."""

    moved: Mapping[str, Sequence[str]]
    """Lines of each of two styles; those of the second may be none, to move in one direction."""
    classifier: LineClassifier
    """Measures the accuracy; it may know more styles than the two."""
    chooser: LineClassifier
    """Chooses a setting."""
    model: ngram.NGram
    references: Mapping[str, Sequence[str]] | None = None
    """The right output of each of the lines."""
    baselines: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    """Outputs without the model of each of the lines, by the name of the baseline."""
    tokenize: Callable[[str], str] = str
    """Puts spaces between words and punctuation, for every metric."""

    @property
    def figures(self) -> dict[str, tuple[Columns, Callable[[Floats], Floats]]]:
        """The figures that can be measured."""
        first = FIRST if len(self.classifier.styles) > 2 else {}
        return {**FIGURES, **first, **(REFERENCED if self.references else {})}

    def joined(self, lines: Mapping[str, Sequence[str]]) -> list[str]:
        """Lines of the first style, then those of the second, with spaces between all words."""
        return [self.tokenize(line) for name in self.moved for line in lines[name]]

    def statistics(self, written: Sequence[str]) -> Floats:
        """The statistics behind the figures of each output, `(N, 30)`; the last ten are 0 without references."""
        a, b = self.moved
        sources = [a] * len(self.moved[a]) + [b] * len(self.moved[b])
        targets = [b] * len(self.moved[a]) + [a] * len(self.moved[b])
        outputs, lines = [self.tokenize(x) for x in written], self.joined(self.moved)
        one = np.ones(len(outputs))
        if self.references:
            right = text.bleu_statistics(outputs, self.joined(self.references))
        else:
            right = np.zeros((len(outputs), 10))
        return np.column_stack(
            [
                self.classifier.prefers(outputs, targets, sources), one, text.bleu_statistics(outputs, lines),
                self.model.statistics(outputs), text.content_statistics(outputs, lines),
                self.chooser.prefers(outputs, targets, sources), one, self.classifier.puts_in(outputs, targets), one,
                right,
            ]
        )  # fmt: skip

    def measure(self, x: Floats) -> dict[str, Figure]:
        """Figures of outputs with statistics `x (N, 30)`, all over the same resamples of sentences."""
        if not len(x):
            return dict.fromkeys(self.figures, (math.nan,) * 3)
        total, drawn = x.sum(0), resampled(x)
        return {
            name: with_interval(float(figure(total[columns])), figure(drawn[:, columns]))
            for name, (columns, figure) in self.figures.items()
        }

    def score(self, x: Floats) -> float:
        """Geometric mean of the chooser's accuracy, BLEU, and BLEU to references if there are any, of `x (N, 30)`."""
        total = x.sum(0)
        parts = [100 * text.share_of(total[CHOSEN_BY]), text.bleu_of(total[SELF])]
        parts += [text.bleu_of(total[REFERENCE])] if self.references else []
        score: float = float(np.prod(parts)) ** (1 / len(parts))
        return score


def transfer(
    codec: Codec, task: Task, amounts: Sequence[float], rng: np.random.Generator, report: Report,
    movers: Mapping[str, Mover] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Move lines of two styles to the other style by every amount and every method of style/translation.py.

    Accuracy is the share whose target is more probable than the source, BLEU compares with the original lines,
    perplexity is from the language model. "controls" compares a move by amount 1 with the lines themselves,
    another line moved alike, the target's mean alone, a random vector of equal length, and the baselines. "chosen" is
    the setting with the best geometric mean of accuracy and BLEU on one half of the lines, by another classifier than
    the one that measures, with its figures on the other half. "movers" has the figures of the lines moved by each of
    `movers`.
    """
    sentences = Sentences.of(codec, task.moved)
    first = sentences.half(rng)
    own = [task.tokenize(line) for line in sentences.lines]
    out: dict[str, Any] = {
        "lines": {name: len(members) for name, members in task.moved.items()},
        "classifier": measures.interval(task.classifier.prefers(own, sentences.sources, sentences.targets)),
        "perplexity": corpus_interval(task.model.statistics(own), ngram.perplexity_of),
        "methods": {},
    }

    def measure(z: Sequence[Tensor]) -> Floats:
        return task.statistics(codec.decode(z))

    sweeps: dict[tuple[str, float], Floats] = {}
    pair = "/".join(task.moved)
    for method in get_args(translation.Method):
        try:
            sweep = {amount: measure(_blended(codec, sentences, amount, method)) for amount in amounts}
        except StyleError as error:
            out["methods"][method] = {"skipped": str(error)}
            continue
        figures = out["methods"][method] = _method_figures(task, sentences, sweep)
        sweeps |= {(method, amount): x for amount, x in sweep.items()}
        anchors = ", ".join(f"{v[0]:.1f} at {k} %" for k, v in figures["bleu_at_accuracy"].items() if v)
        report(f"{pair} by {method}: self-BLEU {anchors or 'not measured: no amount reaches the accuracy'}")
    out["controls"] = _controls(codec, task, sentences, rng, measure)
    if sweeps:
        method, amount = max(sweeps, key=lambda setting: task.score(sweeps[setting][first]))
        rest = sweeps[method, amount][~first]
        out["chosen"] = {"method": method, "amount": amount, "lines": len(rest), **task.measure(rest)}
    a, b = task.moved
    out["movers"] = {
        name: task.measure(task.statistics([*move(task.moved[a], a, b), *move(task.moved[b], b, a)]))
        for name, move in (movers or {}).items()
    }
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


def _method_figures(task: Task, sentences: Sentences, sweep: Mapping[float, Floats]) -> dict[str, Any]:
    """Figures of one method by direction and amount, and BLEU at ANCHORS."""
    a, b = task.moved
    rows = {
        f"{a} to {b}": sentences.forth,
        f"{b} to {a}": ~sentences.forth,
        "both": np.ones(len(sentences.lines), bool),
    }
    figures: dict[str, Any] = {
        name: {f"{amount:g}": task.measure(x[chosen]) for amount, x in sweep.items()} for name, chosen in rows.items()
    }
    every = np.stack(list(sweep.values()), 1)
    return {**figures, "bleu_at_accuracy": {f"{at:g}": _anchored(every, at) for at in ANCHORS}}


def _controls(
    codec: Codec, task: Task, sentences: Sentences, rng: np.random.Generator,
    measure: Callable[[Sequence[Tensor]], Floats],
) -> dict[str, dict[str, Figure]]:  # fmt: skip
    """Figures of lines moved by the difference of means, of controls without line, style or move, and of baselines.

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
    out = {"the line itself": task.measure(own)}
    for name, moved in without.items():
        found = measure(moved)
        both = np.stack([own, found], 1)[..., SELF]  # (N, 2, 10)
        sums, drawn = text.bleu_of(both.sum(0)), text.bleu_of(resampled(both))
        more = with_interval(float(sums[0] - sums[1]), drawn[:, 0] - drawn[:, 1])
        out[name] = {**task.measure(found), "beyond": more}
    copies = {
        "copying": task.moved,
        **task.baselines,
        **({"the reference": task.references} if task.references else {}),
    }
    for name, lines in copies.items():
        out[name] = task.measure(task.statistics([line for style in task.moved for line in lines[style]]))
    return out


def _blended(codec: Codec, sentences: Sentences, amount: float, method: translation.Method) -> list[Tensor]:
    """Moved latents `(S, D)` of each line; those of one style together, so that a transport is computed once."""
    a, b = sentences.sources[0], sentences.targets[0]
    count = int(sentences.forth.sum())
    moved: list[Tensor] = []
    for source, target, latents in ((a, b, sentences.latents[:count]), (b, a, sentences.latents[count:])):
        if not latents:
            continue
        z = translation.blend(torch.cat(list(latents)), codec.styles[source], codec.styles[target], amount, method)
        moved += torch.split(z, [len(one) for one in latents])
    return moved


def _anchored(sweep: Floats, percent: float) -> Figure | None:
    """BLEU at a classifier accuracy in percent, of `sweep (N, A, 30)`; None if no amount reaches it.

    The interval is over resamples in which the accuracy is reached.
    """

    def at(sums: Floats) -> float:
        accuracy, bleu = (figure(sums[:, columns]) for columns, figure in list(FIGURES.values())[:2])
        return text.crossing(100 * accuracy, bleu, percent)

    value = at(sweep.sum(0))
    if math.isnan(value):
        return None
    return with_interval(value, np.array([at(sums) for sums in resampled(sweep)]))
