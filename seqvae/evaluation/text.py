"""Evaluation of a text model: all figures of its model card, on held-out lines.

Scope: the protocol: lines, amounts, baselines, intervals. Out of scope: training, and files. Language models are fitted
on real training lines, except the one that measures reverse perplexity; figures are measured on held-out lines.

Perplexity is exp(total nats / total words), where the words of a line are split at white space and its end counts as
one more word, as in He et al. (2019) and Li et al. (2019). A model over subwords gives the probability of one
segmentation of each line, so its perplexity over words is an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.codec import Codec, Ints
from seqvae.errors import SeqVAEError
from seqvae.evaluation import ngram, sentence_walks
from seqvae.evaluation import text_metrics as text
from seqvae.evaluation.statistics import Figure, corpus_interval
from seqvae.evaluation.style_classifier import LineClassifier, chooser
from seqvae.evaluation.text_transfer import AMOUNTS, Task, transfer
from seqvae.music import note_metrics as measures
from seqvae.nn import posterior as latent
from seqvae.nn.posterior import Posterior
from seqvae.nn.sampling import Sampling
from seqvae.text import edit_distance

Floats = NDArray[np.float64]
Report = Callable[[str], None]
Pair = tuple[str, str]
ELBO_DRAWS = 8  # samples of each posterior for the mean of log p(x|z)
DRAWN_TOKENS = 4_000_000  # log-probabilities of tokens in memory at once
MI_LINES = 4000  # posteriors compared pairwise for mutual information, which is at most the log of this number
LENGTHS = (15, 20, 40)  # most words of the lines whose reconstruction is also reported apart


@dataclass(frozen=True)
class Lines:
    """Held-out lines as segments."""

    lines: list[str]
    segments: list[list[Ints]]
    """Segments of all lines, concatenated."""
    sizes: list[int]
    """Number of segments of each line."""

    def by_line(self, values: Tensor) -> Floats:
        """Sums over the segments of each line: `(S,)` to `(N,)`."""
        home = np.repeat(np.arange(len(self.sizes)), self.sizes)
        return np.bincount(home, values.double().numpy(), minlength=len(self.sizes)).astype(float)

    def pick(self, chosen: Sequence[int]) -> Lines:
        """A subset of the lines."""
        ends = np.cumsum(self.sizes)
        segments = [s for i in chosen for s in self.segments[ends[i] - self.sizes[i] : ends[i]]]
        return Lines([self.lines[i] for i in chosen], segments, [self.sizes[i] for i in chosen])


def split(codec: Codec, lines: Sequence[str]) -> Lines:
    """Split lines into segments."""
    segments = [codec.segments(line) for line in lines]
    return Lines(list(lines), [s for one in segments for s in one], [len(one) for one in segments])


def evaluate_text(
    codec: Codec,
    lines: Sequence[str],
    *,
    styles: Mapping[str, Sequence[str]] | None = None,
    train: Mapping[str, Sequence[str]] | None = None,
    corpus: Sequence[str] | None = None,
    pairs: Sequence[Pair] | None = None,
    opposites: Sequence[Pair] | None = None,
    seed: int = 0,
    samples: int = 500,
    iw_lines: int | None = 500,
    generated: int = 10_000,
    transfer_lines: int = 1000,
    amounts: Sequence[float] = AMOUNTS,
    report: Report = lambda _: None,
) -> dict[str, Any]:
    """All figures of a text model on held-out `lines`; blank lines are left out.

    `styles` are held-out lines by style; at most `transfer_lines` of each are moved. `train` are training lines by
    style, for the classifiers. `corpus` are training lines for the language models, by default all of `train`. `pairs`
    are the ends of interpolations, by default 100 random pairs of `lines`. `opposites` are the pairs of styles to move
    between, both ways, by default all pairs of `styles`. `samples` latents are drawn for importance weighting of
    `iw_lines` lines (None for all). `generated` is the number of sampled sentences.

    "skipped" lists figures that cannot be measured, with the reason. A figure is [value, low, high] with a 95 %
    bootstrap interval over sentences (over pairs for interpolations). Raises SeqVAEError without lines.
    """
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise SeqVAEError("no line to evaluate on; give a file with one held-out sentence per line")
    styles, train = styles or {}, train or {}
    corpus = list(corpus if corpus is not None else (line for members in train.values() for line in members))
    rng = np.random.default_rng(seed)
    test = split(codec, lines)
    model = ngram.NGram().fit(corpus) if corpus else None
    skipped: dict[str, str] = {}
    result = {"protocol": _protocol(lines, corpus, seed), "skipped": skipped}
    result["likelihood"] = _likelihood(codec, test, samples, iw_lines, rng, report)
    result["reconstruction"], result["reconstruction_by_length"] = _reconstruction(codec, test, rng, report)
    result["interpolation"] = sentence_walks.walks(codec, lines, pairs, model, rng, report)
    if model is None:
        skipped["samples"] = skipped["transfer"] = "no training lines for a language model"
    else:
        result["samples"] = _samples(codec, lines, corpus, model, generated, seed, report)
        labelled = Labelled(styles, train, list(opposites if opposites is not None else combinations(styles, 2)))
        result["transfer"] = _transfers(codec, labelled, model, amounts, transfer_lines, seed, rng, report, skipped)
    rounded: dict[str, Any] = plain(result)
    return rounded


def _protocol(lines: Sequence[str], corpus: Sequence[str], seed: int) -> dict[str, Any]:
    return {
        "lines": len(lines), "words": sum(map(ngram.count_words, lines)), "training_lines": len(corpus),
        "seed": seed, "bleu": text.bleu_signature(), "decoding": "greedy, except for samples",
        "words_counted": "split at white space, and the line's end", "intervals": "95 %, bootstrap over sentences",
        "language_model": "4-grams, interpolated Kneser-Ney, words seen once are <unk>",
        "mutual_information": "mean of log q(z|x) - log mean over lines of q(z|x'), one draw per line, at least 0",
    }  # fmt: skip


@dataclass(frozen=True)
class Labelled:
    """Lines by style, and the pairs of styles to move between."""

    styles: Mapping[str, Sequence[str]]
    """Held-out lines, which are moved."""
    train: Mapping[str, Sequence[str]]
    """Training lines, for the classifiers."""
    pairs: Sequence[Pair]


def _transfers(
    codec: Codec, labelled: Labelled, model: ngram.NGram, amounts: Sequence[float], most: int, seed: int,
    rng: np.random.Generator, report: Report, skipped: dict[str, str],
) -> dict[str, Any]:  # fmt: skip
    """`transfer` of at most `most` lines of each style, by pair; `skipped` gets the pairs that cannot be measured."""
    out: dict[str, Any] = {}
    if not labelled.styles:
        skipped["transfer"] = "no labelled held-out lines"
    for a, b in labelled.pairs:
        if reason := _missing({a, b}, codec, labelled):
            skipped[f"transfer {a}/{b}"] = reason
            continue
        real = {a: labelled.train[a], b: labelled.train[b]}
        moved = {name: subset([x for x in labelled.styles[name] if x.strip()], most, rng) for name in (a, b)}
        task = Task(moved, LineClassifier(real, seed), chooser(real, seed), model)
        out[f"{a}/{b}"] = transfer(codec, task, amounts, rng, report)
    return out


def _missing(pair: set[str], codec: Codec, labelled: Labelled) -> str:
    """The reason why lines cannot be moved between two styles; empty if they can."""
    found = {
        "styles of the model": set(codec.styles),
        "labelled held-out lines": {name for name, lines in labelled.styles.items() if any(x.strip() for x in lines)},
        "training lines": {name for name, lines in labelled.train.items() if any(x.strip() for x in lines)},
    }
    missing = {group: ", ".join(sorted(pair - names)) for group, names in found.items() if pair - names}
    return "; ".join(f"{names} not among the {group}" for group, names in missing.items())


def subset(lines: Sequence[str], most: int, rng: np.random.Generator) -> list[str]:
    """At most `most` lines, drawn without replacement, in their order."""
    return [lines[i] for i in np.sort(rng.permutation(len(lines))[:most])]


def _mean(values: Sequence[float] | Floats) -> Figure:
    return measures.interval(np.asarray(values, float))


def plain(value: Any) -> Any:
    """Figures for JSON: lists, numbers rounded to four digits after the point, and None for nan and infinity."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value


# --- likelihood -------------------------------------------------------------------------------------------------------


def _draws(
    codec: Codec, q: Posterior, test: Lines, draws: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Latents `z (L, S, D)` drawn from q and log p(x|z) `(L, S)` in nats, in blocks of L until `draws` are drawn."""
    longest = max(len(chunk) for segment in test.segments for chunk in segment)
    each = max(1, DRAWN_TOKENS // (len(test.segments) * len(test.segments[0]) * longest))
    for first in range(0, draws, each):
        z = torch.stack([q.sample(generator) for _ in range(min(each, draws - first))])
        yield z, codec.token_log_probs(z, test.segments).double().sum((2, 3))


def log_weights(codec: Codec, test: Lines, draws: int, generator: torch.Generator) -> Floats:
    """log p(x|z) + log p(z) - log q(z|x) in nats for z drawn from q: `(draws, N)`, one column per line.

    The mean over draws is an ELBO. The log of the mean of the exponentials is the importance-weighted bound of Burda et
    al. (2016), which is never below it. q is the encoder's posterior, unrefined, as in the literature.
    """
    q = codec.posteriors(test.segments, refined=False)
    rows: list[Floats] = []
    for z, log_p in _draws(codec, q, test, draws, generator):
        weights = log_p + (latent.log_prior(z) - q.log_prob(z)).double()
        rows += [test.by_line(row) for row in weights]
    return np.array(rows)


def _likelihood(
    codec: Codec, test: Lines, samples: int, iw_lines: int | None, rng: np.random.Generator, report: Report
) -> dict[str, Any]:
    """Negative log-likelihood in nats per sentence, perplexity over words by both bounds, and information in z."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    q = codec.posteriors(test.segments, refined=False)
    log_p = torch.stack([x.sum(0) for _, x in _draws(codec, q, test, ELBO_DRAWS, generator)]).sum(0) / ELBO_DRAWS
    kl = test.by_line(q.kl().sum(1))
    rows = rng.permutation(len(q.mean))[:MI_LINES]
    compared = Posterior(q.mean[rows], q.logvar[rows])
    part = test.pick(np.sort(rng.permutation(len(test.lines))[:iw_lines]).tolist())
    weights = log_weights(codec, part, samples, generator)
    tightened = np.logaddexp.reduce(weights, 0) - math.log(samples)
    out: dict[str, Any] = {
        "elbo": {**_bound(test.lines, test.by_line(log_p) - kl), "draws": ELBO_DRAWS},
        "importance": {**_bound(part.lines, tightened), "draws": samples},
        "elbo_of_the_same": {**_bound(part.lines, weights.mean(0)), "draws": samples},
        "reconstruction": _mean(-test.by_line(log_p)),
        "kl": _mean(kl),
        "mutual_information": latent.mutual_information(compared, compared.sample(generator)),
        "mutual_information_at_most": math.log(len(rows)),
        "active_units": latent.active_units(q.mean),
        "latent": q.mean.shape[1],
    }
    report(f"perplexity {out['importance']['perplexity'][0]:.2f} by {samples} samples, KL {out['kl'][0]:.2f} nats")
    return out


def _bound(lines: Sequence[str], log_prob: Floats) -> dict[str, Any]:
    words = [ngram.count_words(line) for line in lines]
    perplexity = corpus_interval(np.column_stack([-log_prob, words]), ngram.perplexity_of)
    return {"nll": _mean(-log_prob), "perplexity": perplexity, "lines": len(lines)}


# --- reconstruction ---------------------------------------------------------------------------------------------------


Rows = dict[str, dict[str, Any]]


def _reconstruction(
    codec: Codec, test: Lines, rng: np.random.Generator, report: Report
) -> tuple[Rows, dict[str, dict[str, Any]]]:
    """BLEU and exact matches of lines decoded from means and from samples of the searched and the encoder's posterior.

    A mean decoded without noise is a point estimate. The KL in bits per line is the rate of the samples and is reported
    only with them. A model without a search has only the encoder's posterior. Second come the same figures of the lines
    of at most LENGTHS words, with the number of these lines.
    """
    out: Rows = {}
    words = np.array([len(line.split()) for line in test.lines])
    short: dict[str, dict[str, Any]] = {str(most): {"lines": int((words <= most).sum())} for most in LENGTHS}
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    for name, refined in {**({"searched": True} if codec.refinement.steps else {}), "encoder's": False}.items():
        q = codec.posteriors(test.segments, refined=refined)
        bits = test.by_line(q.kl().sum(1)) / math.log(2)
        for kind, z in (("mean", q.mean), ("sample", q.sample(generator))):
            written = codec.decode(torch.split(z, test.sizes))
            pairs = list(zip(written, test.lines, strict=True))
            columns = {
                "exact": np.array([a == b for a, b in pairs], float),
                "edit_distance": np.array([edit_distance.edit_distance(a, b) for a, b in pairs]),
                "kl_bits": bits if kind == "sample" else None,
            }
            counts = text.bleu_statistics(written, test.lines)
            row = f"{name} {kind}"
            out[row] = _reconstructed(counts, columns, words >= 0)
            for most in LENGTHS:
                if (words <= most).any():
                    short[str(most)][row] = _reconstructed(counts, columns, words <= most)
            report(f"reconstruction ({row}): BLEU {text.bleu_of(counts.sum(0)):.1f}, exact {out[row]['exact'][0]:.3f}")
    return out, short


def _reconstructed(counts: Floats, columns: Mapping[str, Floats | None], chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """Figures of the `chosen` lines from BLEU statistics `(N, 10)` and numbers by line `(N,)`."""
    means = {name: None if x is None else _mean(x[chosen]) for name, x in columns.items()}
    return {"bleu": corpus_interval(counts[chosen], text.bleu_of), **means}


def _samples(
    codec: Codec, lines: list[str], corpus: list[str], model: ngram.NGram, count: int, seed: int, report: Report
) -> dict[str, Any]:
    """Forward perplexity (of samples, under real text) and reverse (of held-out text, under samples; Zhao et al. 2018).

    Samples are drawn at temperature 1 from the standard normal prior and from the distribution that `generate` uses
    without a style: the mixture or else the Gaussian of all styles, fitted to the training lines. All language models
    share one vocabulary, because a smaller one raises the probability of any text.
    """
    count = min(count, len(corpus))  # equal numbers, because a language model fitted on more lines predicts better
    known, draws = set(corpus), Sampling(temperature=1.0, seed=seed)
    rng = np.random.default_rng(seed)
    z = torch.from_numpy(rng.standard_normal((count, codec.model.config.latent))).float()
    sources: dict[str, list[str]] = {"prior": codec.decode(list(z[:, None]), sampling=draws)}
    if "all" in codec.styles:
        sources["fitted"] = codec.sample(count, temperature=1.0, segments=1, seed=seed, sampling=draws, best_of=1)
    sources["training lines"] = subset(corpus, count, rng)
    sources["held-out lines"] = lines
    out: dict[str, Any] = {"sentences": count}
    for name, written in sources.items():
        real = name.endswith("lines")
        out[name] = {
            # no forward figure for the training lines, because the model was fitted on them
            "forward": None
            if name == "training lines"
            else corpus_interval(model.statistics(written), ngram.perplexity_of),
            "reverse": None if name == "held-out lines" else _reverse(written, lines, model),
            "copies": None if name == "training lines" else _mean([line in known for line in written]),
            "distinct": round(len(set(written)) / len(written), 4),
            "words": _mean([len(line.split()) for line in written]),
            "unknown": round(model.unknown(written), 4),
        }
        if not real:
            report(f"samples ({name}): perplexity {out[name]['forward'][0]:.1f}, reverse {out[name]['reverse'][0]:.1f}")
    return out


def _reverse(written: list[str], lines: list[str], model: ngram.NGram) -> Figure:
    learned = ngram.NGram(model.order, model.vocabulary).fit(written)
    return corpus_interval(learned.statistics(lines), ngram.perplexity_of)
