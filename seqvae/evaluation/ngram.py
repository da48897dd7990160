"""N-gram language models of sentences, and their perplexity.

Scope: lines of words split at white space, nats. Out of scope: models, latents, files, and tokenization other than at
white space.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
END, UNKNOWN = "</s>", "<unk>"


class NGram:
    """An n-gram language model over words, interpolated Kneser-Ney (Kneser and Ney 1995; Chen and Goodman 1999).

    p_n(w|h) = max(a(hw) - D_n, 0) / a(h.) + D_n N(h) / a(h.) p_(n-1)(w|h'), with h' the context without its first word,
    a(h.) the sum of a(hw) over w, and N(h) the number of different words after h. a(g) is the count of g at the highest
    order and for g that begins a line, otherwise the number of different words before g. p_0 is uniform over the
    vocabulary. The discount of each order is D = n1 / (n1 + 2 n2), for n1 n-grams with a = 1 and n2 with a = 2, and
    0.75 if n1 or n2 is 0.

    The vocabulary is closed: words seen at least twice, the end of a line, and <unk> for every other word. Two models
    are comparable only over one vocabulary, so that of another model can be given.
    """

    def __init__(self, order: int = 4, vocabulary: Iterable[str] | None = None) -> None:
        if order < 1:
            raise ValueError(f"an n-gram model of order {order} has no words to count; take at least 1")
        self.order = order
        self.words: dict[str, int] = {} if vocabulary is None else _numbered(vocabulary)

    @property
    def vocabulary(self) -> list[str]:
        """All words with a probability, END and UNKNOWN included."""
        return list(self.words)

    def fit(self, lines: Sequence[str]) -> NGram:
        """Count the n-grams of lines and return the model. Raises ValueError without lines."""
        if not len(lines):
            raise ValueError("no line to fit a language model on; give at least one")
        if not self.words:
            counts: dict[str, int] = {}
            for word in chain.from_iterable(line.split() for line in lines):
                counts[word] = counts.get(word, 0) + 1
            self.words = _numbered(word for word, count in counts.items() if count > 1)
        counts_of, suffixes, starts = self._count(lines)
        self._terms = [
            self._probabilities(n, self._weights(n, counts_of, suffixes, starts)) for n in range(1, self.order + 1)
        ]
        return self

    def _count(self, lines: Sequence[str]) -> tuple[list[Ints], list[Ints], list[Ints]]:
        """Counts of the n-grams of each order; of order 2 and higher, rows without the first word and at line starts.

        The id of an n-gram is its row in the sorted table of its order: (row of all but its last word) * size + word.
        """
        tokens, place = self._read(lines)
        size = len(self.words) + 1  # the last number is the start of a line, which is never predicted
        self._keys: list[Ints] = []
        row = tokens  # of the n-gram that ends at each token, -1 if the line is shorter up to there
        counts_of: list[Ints] = [np.bincount(tokens, minlength=size)]
        suffixes: list[Ints] = []
        starts: list[Ints] = []
        for n in range(2, self.order + 1):
            inside = np.flatnonzero(place >= n - 1)
            keys, first, inverse, count = np.unique(
                row[inside - 1] * size + tokens[inside], return_index=True, return_inverse=True, return_counts=True
            )
            suffixes.append(row[inside[first]])
            starts.append(np.flatnonzero(place[inside[first]] == n - 1))
            self._keys.append(keys)
            counts_of.append(count)
            row = np.full(len(tokens), -1, np.int64)
            row[inside] = inverse
        return counts_of, suffixes, starts

    def _weights(self, n: int, counts_of: list[Ints], suffixes: list[Ints], starts: list[Ints]) -> Floats:
        """a(g) of the n-grams of one order."""
        a = counts_of[n - 1].astype(float)
        if n < self.order:
            before = np.bincount(suffixes[n - 1], minlength=len(a)).astype(float)
            if n > 1:
                before[starts[n - 2]] = a[starts[n - 2]]
            a = before
        if n == 1:
            a[-1] = 0  # the start of a line has no predecessor
        return a

    def _probabilities(self, n: int, a: Floats) -> tuple[Floats, Floats]:
        """Discounted share of each n-gram in its context, and the weight of the lower order by context."""
        size = len(self.words) + 1
        contexts = np.zeros(len(a), np.int64) if n == 1 else self._keys[n - 2] // size
        many = 1 if n == 1 else size if n == 2 else len(self._keys[n - 3])
        total = np.bincount(contexts, a, minlength=many)
        kinds = np.bincount(contexts, a > 0, minlength=many)
        discount = _discount(a)
        with np.errstate(divide="ignore", invalid="ignore"):
            # after an unseen context the lower order has all the weight
            left = np.where(total > 0, discount * kinds / total, 1.0)
            return np.where(a > 0, np.maximum(a - discount, 0) / total[contexts], 0.0), left

    def log_probs(self, lines: Sequence[str]) -> Floats:
        """log p(line) with its end, in nats: `(N,)`."""
        log_p, line = self._word_log_probs(lines)
        return np.bincount(line, log_p, minlength=len(lines)).astype(float)

    def log_prob(self, line: str) -> float:
        """log p(line) with its end, in nats."""
        return float(self.log_probs([line])[0])

    def word_log_probs(self, line: str) -> Floats:
        """log p of each word of a line given the words before it, then of its end, in nats: `(words + 1,)`."""
        return self._word_log_probs([line])[0]

    def _word_log_probs(self, lines: Sequence[str]) -> tuple[Floats, Ints]:
        """log p of every word and line end given the words before it in its line, and the index of its line."""
        tokens, place = self._read(lines)
        size, line = len(self.words) + 1, np.cumsum(place == 0) - 1
        alone, left = self._terms[0]
        p = alone[tokens] + left[0] / len(self.words)
        row = tokens
        for n in range(2, self.order + 1):
            keys, (share, left) = self._keys[n - 2], self._terms[n - 1]
            if not len(keys):
                break  # no training line was long enough
            inside = np.flatnonzero(place >= n - 1)
            context = row[inside - 1]
            ngram = context * size + tokens[inside]
            found = np.minimum(np.searchsorted(keys, ngram), len(keys) - 1)
            seen = (context >= 0) & (keys[found] == ngram)
            p[inside] = np.where(seen, share[found], 0.0) + np.where(context >= 0, left[context], 1.0) * p[inside]
            row = np.full(len(tokens), -1, np.int64)
            row[inside] = np.where(seen, found, -1)
        predicted = place > 0  # not the start of a line
        return np.log(p[predicted]), line[predicted]

    def perplexity(self, lines: Sequence[str]) -> float:
        """exp(- sum log p(line) / sum words); the end of a line counts as a word."""
        return float(perplexity_of(self.statistics(lines).sum(0)))

    def statistics(self, lines: Sequence[str]) -> Floats:
        """Nats and words of each line, `(N, 2)`; `perplexity_of` their sum is the perplexity."""
        return np.column_stack([-self.log_probs(lines), [count_words(line) for line in lines]])

    def unknown(self, lines: Sequence[str]) -> float:
        """Share of the words of lines, without ends, that are not in the vocabulary."""
        words = [word in self.words for line in lines for word in line.split()]
        return 1 - sum(words) / max(1, len(words))

    def _read(self, lines: Sequence[str]) -> tuple[Ints, Ints]:
        """Word ids of all lines, concatenated, with start and end of each, and their positions in their line."""
        end, unknown, start = self.words[END], self.words[UNKNOWN], len(self.words)
        split = [line.split() for line in lines]
        get = self.words.get
        tokens = [t for words in split for t in (start, *(get(word, unknown) for word in words), end)]
        place = [i for words in split for i in range(len(words) + 2)]
        return np.array(tokens, np.int64), np.array(place, np.int64)


def _numbered(words: Iterable[str]) -> dict[str, int]:
    return {word: i for i, word in enumerate(dict.fromkeys([UNKNOWN, END, *words]))}


def _discount(counts: Floats) -> float:
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once and twice else 0.75


def count_words(line: str) -> int:
    """Words of a line for perplexity: split at white space, plus the end of the line."""
    return len(line.split()) + 1


def perplexity_of(sums: Floats) -> Floats:
    """exp(nats / words) of summed statistics `(..., 2)`: `(...)`."""
    return np.exp(sums[..., 0] / sums[..., 1])
