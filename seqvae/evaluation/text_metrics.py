"""Metrics of sentences: BLEU, BLEU at a given accuracy, and content words kept.

Scope: lines of words split at white space, and the tokenizer that splits natural text so. Out of scope: models,
latents, files, and language models (evaluation/ngram.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

Floats = NDArray[np.float64]
BLEU_ORDER = 4
_STRAIGHT = str.maketrans({"\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'"})


@cache
def _scorer() -> BLEU:
    # Lines are already tokenized, and `force` silences the warning about it. Exponential smoothing, the default,
    # matters only if a whole corpus shares no n-gram of some order.
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize="none", force=True)


def bleu_signature() -> str:
    """Signature of the BLEU settings in sacrebleu's format (Post 2018)."""
    scorer = _scorer()
    scorer.corpus_score(["a"], [["a"]])  # the signature has the number of references, known after the first call
    return str(scorer.get_signature())


def bleu_statistics(hypotheses: Sequence[str], references: Sequence[str]) -> Floats:
    """Statistics that corpus BLEU sums, `(N, 10)`: words of hypothesis and reference, 4 match and 4 n-gram counts."""
    rows = []
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        # a corpus of one sentence has the same counts, without sacrebleu's warning about smoothing per sentence
        score = _scorer().corpus_score([hypothesis], [[reference]])
        rows.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
    return np.array(rows, float).reshape(-1, 2 + 2 * BLEU_ORDER)


def bleu_of(sums: Floats) -> Floats:
    """Corpus BLEU in percent (Papineni et al. 2002) of summed statistics `(..., 10)`: `(...)`.

    100 min(1, e^(1 - reference / hypothesis words)) (prod_n matches_n / ngrams_n)^(1/4). N-gram orders without a match
    are smoothed as in sacrebleu: the k-th of them counts 2^-k matches (NIST; Chen and Cherry 2014, method 3).
    """
    written, reference = sums[..., 0], sums[..., 1]
    matches, totals = sums[..., 2 : 2 + BLEU_ORDER], sums[..., 2 + BLEU_ORDER :]
    smooth = 0.5 ** np.cumsum((matches == 0) & (totals > 0), -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(matches > 0, matches, smooth) / totals
        brevity = np.minimum(1.0, np.exp(1 - reference / written))
        score = 100 * brevity * np.exp(np.log(precision).mean(-1))
    # 0 if too short for n-grams of every order, or without a common word
    return np.where((matches.sum(-1) > 0) & (totals > 0).all(-1), score, 0.0)


def sentence_bleu(hypothesis: str, reference: str) -> float:
    """BLEU of one sentence in percent, for neighbours on a path; 100 for equal sentences, 0 without a common word.

    N-grams up to order 4, or up to the length of a shorter hypothesis; smoothed as in `bleu_of`.
    """
    from sacrebleu.metrics.bleu import BLEU

    if hypothesis.split() == reference.split():
        return 100.0
    scorer = BLEU(tokenize="none", force=True, effective_order=True)
    return float(scorer.sentence_score(hypothesis, [reference]).score)


def tokenized(line: str) -> str:
    """A line of natural text with spaces between words and punctuation: sacrebleu's 13a, after straightening quotes."""
    return " ".join(_tokenizer()(line.translate(_STRAIGHT)).split())


@cache
def _tokenizer() -> Callable[[str], str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()  # type: ignore[no-untyped-call]


@cache
def _stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)


def content_words(line: str) -> set[str]:
    """Words of three or more letters in lower case, without scikit-learn's English stop words and without "n't"."""
    return set(re.findall(r"[^\W\d_]{3,}", re.sub("n['\u2019]t", " ", line.lower()))) - _stop_words()


def content_statistics(hypotheses: Sequence[str], lines: Sequence[str]) -> Floats:
    """Content words of each line that are in the hypothesis, and all, `(N, 2)`; `share_of` their sum is a recall."""
    rows = [(content_words(a), content_words(b)) for a, b in zip(hypotheses, lines, strict=True)]
    return np.array([[len(a & b), len(b)] for a, b in rows], float).reshape(-1, 2)


def share_of(sums: Floats) -> Floats:
    """Hits over trials of summed statistics `(..., 2)`: `(...)`."""
    return sums[..., 0] / sums[..., 1]


def crossing(accuracy: Floats, bleu: Floats, level: float) -> float:
    """BLEU where a sweep first reaches an accuracy, interpolated linearly between two amounts; nan if it never does.

    `accuracy (A,)` and `bleu (A,)` are ordered from small to large amounts. If the first amount reaches the accuracy,
    the result is the first BLEU.
    """
    reached = np.flatnonzero(accuracy >= level)
    if not len(reached):
        return math.nan
    i = int(reached[0])
    if i == 0:
        return float(bleu[0])
    share = (level - accuracy[i - 1]) / (accuracy[i] - accuracy[i - 1])
    return float((1 - share) * bleu[i - 1] + share * bleu[i])
