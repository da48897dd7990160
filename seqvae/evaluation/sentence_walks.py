"""Walks of sentences between two: distinct and even steps, and the perplexity of the middle beside real lines.

Scope: the protocol, the plain paths and the control that walks are compared with. Out of scope: the choice of steps
(style/sentences.py), language models (evaluation/ngram.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from seqvae.codec import Codec
from seqvae.evaluation import ngram
from seqvae.evaluation import text_metrics as text
from seqvae.evaluation.statistics import corpus_interval
from seqvae.music import note_metrics as measures
from seqvae.style import interpolation as interpolate
from seqvae.style import sentences
from seqvae.text import edit_distance

Floats = NDArray[np.float64]
Report = Callable[[str], None]
Pair = tuple[str, str]
STEPS = 7  # steps of a walk, both ends included


def walks(
    codec: Codec, lines: Sequence[str], pairs: Sequence[Pair] | None,
    model: ngram.NGram | None, rng: np.random.Generator, report: Report,
) -> dict[str, Any]:  # fmt: skip
    """STEPS sentences between each pair; `pairs` by default are 100 random ones of `lines`.

    `chosen` are those of `sentences.between`, whose choice uses the codec alone; `slerp` and `line` have equal steps of
    z. `random lines` is the control: random ones of `lines` between the two ends. `model` measures perplexity, and must
    not be fitted on `lines`; perplexity_ratio is that of the middle over that of the ends, which are real lines.
    """
    if pairs is None:
        order = rng.permutation(len(lines))[:200]
        pairs = [(lines[i], lines[j]) for i, j in zip(order[::2], order[1::2], strict=False)]
    out: dict[str, Any] = {"pairs": len(pairs), "steps": STEPS}
    if not pairs:
        return out
    z = codec.encode([end for pair in pairs for end in pair])
    latents = list(zip(z[::2], z[1::2], strict=True))
    paths = {
        "chosen": [sentences.between(codec, *pair, ends, STEPS) for pair, ends in zip(pairs, latents, strict=True)],
        "slerp": _equal_steps(codec, latents, "slerp"),
        "line": _equal_steps(codec, latents, "line"),
    }
    if len(lines) >= STEPS:
        middles = [[lines[i] for i in rng.choice(len(lines), STEPS - 2, replace=False)] for _ in pairs]
        paths["random lines"] = [[a, *middle, b] for (a, b), middle in zip(pairs, middles, strict=True)]
    real = None if model is None else np.array([model.statistics(pair).sum(0) for pair in pairs])
    for kind, found in paths.items():
        rows = [walk(path, *pair) for path, pair in zip(found, pairs, strict=True)]
        columns = ([x for row in rows if not math.isnan(x := row[name])] for name in rows[0])
        out[kind] = {name: measures.interval(np.array(column)) for name, column in zip(rows[0], columns, strict=True)}
        if model is not None and real is not None:
            between = np.array([model.statistics(path[1:-1]).sum(0) for path in found])
            out[kind]["perplexity_between"] = corpus_interval(between, ngram.perplexity_of)
            out[kind]["perplexity_ratio"] = corpus_interval(np.hstack([between, real]), _ratio)
        report(f"interpolation ({kind}): {out[kind]['distinct_steps'][0]:.2f} of {STEPS} sentences are distinct")
    if real is not None:
        out["perplexity_of_ends"] = corpus_interval(real, ngram.perplexity_of)
    return out


def _equal_steps(codec: Codec, latents: Sequence[tuple[Tensor, Tensor]], kind: str) -> list[list[str]]:
    """The sentences decoded at STEPS equal steps between two latents `(S, D)`."""
    points: list[Tensor] = []
    for a, b in latents:
        ends = interpolate.aligned([a, b])
        # each end keeps its own number of segments, so that it can be met exactly
        points += [a, *interpolate.path(ends[0], ends[1], STEPS, kind)[1:-1], b]
    written = codec.decode(points)
    return [written[i : i + STEPS] for i in range(0, len(written), STEPS)]


def _ratio(sums: Floats) -> Floats:
    return ngram.perplexity_of(sums[..., :2]) / ngram.perplexity_of(sums[..., 2:])


def walk(path: Sequence[str], a: str, b: str) -> dict[str, float]:
    """Figures of a path of sentences from `a` to `b`.

    ends_met: both ends are `a` and `b`. monotone: the edits from `a` never fall and those from `b` never rise along the
    path. largest_step: the largest edits between neighbours over the edits between the ends (1 / 6 is even, 1 a jump;
    nan for equal ends). unevenness: the standard deviation of the edits between neighbours over their mean (0 is even;
    nan if all are equal sentences). length: the edits along the path over those between the ends. neighbours_bleu: mean
    BLEU of neighbours. distinct_steps: number of distinct sentences. repeats: share of steps that change nothing.
    """
    away, near = [edit_distance.edits(a, x) for x in path], [edit_distance.edits(b, x) for x in path]
    whole = edit_distance.edits(path[0], path[-1])
    steps = np.array([edit_distance.edits(x, y) for x, y in pairwise(path)])
    return {
        "ends_met": float(path[0] == a and path[-1] == b),
        "monotone": float(all(x <= y for x, y in pairwise(away)) and all(x >= y for x, y in pairwise(near))),
        "largest_step": float(steps.max() / whole) if whole else math.nan,
        "unevenness": float(steps.std() / steps.mean()) if steps.any() else math.nan,
        "length": float(steps.sum() / whole) if whole else math.nan,
        "neighbours_bleu": float(np.mean([text.sentence_bleu(y, x) for x, y in pairwise(path)])),
        "distinct_steps": float(len(set(path))),
        "repeats": float((steps == 0).mean()),
    }
