"""A classifier of lines by style: multinomial logistic regression on hashed words and pairs of words.

Scope: features, fitting, probabilities, and words that two lines share. Out of scope: files (style/styles_file.py),
the choice of a move by it (style/choice.py), and evaluation, whose classifiers have other features
(evaluation/style_classifier.py).
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BUCKETS = 1 << 15
MOST = 80000  # lines that a classifier is fitted on, shared equally by its styles
PENALTY = 1 / 8  # of the squared weights, beside the summed cross-entropy in nats
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class LineWeights:
    """The weights of one style. Those of styles that were fitted together give a probability."""

    weights: Tensor
    """`(BUCKETS + 1,)`: of each bucket, and the intercept."""
    among: tuple[str, ...]
    """Names of the styles that were fitted together."""


def words(line: str) -> list[str]:
    """Words and signs of a line in lower case."""
    return _WORD.findall(line.lower())


def buckets(line: str) -> list[int]:
    """The buckets of the different words and pairs of neighbours of a line, its ends included."""
    found = ["", *words(line), ""]
    grams = {*found[1:-1], *(f"{a} {b}" for a, b in pairwise(found))}
    return sorted({_bucket(gram) for gram in grams})


def _bucket(gram: str) -> int:
    return zlib.crc32(gram.encode(errors="replace")) % BUCKETS


def fit(lines: Mapping[str, Sequence[str]], steps: int = 60) -> dict[str, LineWeights]:
    """Weights of two or more styles from lines of each; every style has the same total weight.

    At most MOST lines in all, evenly spaced. L-BFGS with `steps` iterations. Deterministic.
    """
    each = MOST // len(lines)
    kept = {name: members[:: max(1, -(-len(members) // each))] for name, members in lines.items()}
    index, offsets, values = _bags([line for members in kept.values() for line in members])
    counts = torch.tensor([len(members) for members in kept.values()])
    labels = torch.arange(len(kept)).repeat_interleave(counts)
    weights = (len(labels) / (len(kept) * counts.float()))[labels]
    table = torch.zeros(BUCKETS, len(kept), requires_grad=True)
    intercept = torch.zeros(len(kept), requires_grad=True)
    optimizer = torch.optim.LBFGS([table, intercept], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        bag = torch.nn.functional.embedding_bag
        logits = bag(index, table, offsets, mode="sum", per_sample_weights=values) + intercept
        errors = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        loss: Tensor = ((weights * errors).sum() + PENALTY * table.square().sum()) / len(labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    whole = torch.cat([table.detach(), intercept.detach()[None]]).T.half().float()
    return {name: LineWeights(one.clone(), tuple(kept)) for name, one in zip(kept, whole, strict=True)}


def token_weights(texts: Sequence[str], source: LineWeights, target: LineWeights) -> NDArray[np.float64]:
    """Weight `(V,)` of each token for the target against the source, by its text; 0 if it is not a word and its space.

    The weight is that of the word's bucket, in nats for a line that has no other.
    """
    difference = (target.weights - source.weights).double().numpy()
    found = [text[1:] if text[:1].isspace() and words(text) == [text[1:].lower()] else "" for text in texts]
    return np.array([difference[_bucket(word.lower())] if word else 0.0 for word in found])


def probability(lines: Sequence[str], source: LineWeights, target: LineWeights) -> NDArray[np.float64]:
    """Probability `(N,)` of the target style, given that a line has one of the two; 0 for a line without words."""
    index, offsets, values = _bags(lines)
    difference = (target.weights - source.weights)[:, None]
    logits = torch.nn.functional.embedding_bag(index, difference[:-1], offsets, mode="sum", per_sample_weights=values)[
        :, 0
    ]
    found = torch.sigmoid(logits + difference[-1]).double().numpy()
    return np.where([bool(line.strip()) for line in lines], found, 0.0)


def _bags(lines: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Buckets of all lines in a row, where each line begins, and values that give each line the norm 1."""
    rows = [buckets(line) for line in lines]
    sizes = np.array([len(row) for row in rows], np.int64)
    index = torch.tensor([bucket for row in rows for bucket in row], dtype=torch.long)
    values = torch.from_numpy(np.repeat(sizes.clip(1) ** -0.5, sizes)).float()
    return index, torch.from_numpy(np.cumsum(sizes) - sizes), values


def overlap(one: str, other: str) -> float:
    """Share of words and of pairs of words that two lines have in common: the mean of both F1, from 0 to 1."""
    a, b = words(one), words(other)
    found = []
    for x, y in ((a, b), ([*pairwise(a)], [*pairwise(b)])):
        both = (Counter[object](x) & Counter[object](y)).total()
        found.append(2 * both / (len(x) + len(y)) if x or y else 1.0)
    return sum(found) / 2


def loops(line: str, source: str) -> bool:
    """Whether a line repeats a word at once, or a pair of words, more often than its source does."""
    own, before = words(line), words(source)
    twice = Counter[tuple[str, str]](pairwise(own)) - Counter[tuple[str, str]](pairwise(before))
    pairs = Counter[tuple[str, str]](pairwise(own))
    return any(pairs[pair] > 1 or (pair[0] == pair[1]) for pair in twice)
