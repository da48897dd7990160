"""A table of word substitutions, learned from sentences and their counterparts: a baseline without a model.

Scope: counts over aligned words, and substitution word by word. Out of scope: deletions, insertions, and context.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher


class WordTable:
    """For each word its most frequent counterpart in the training pairs, itself included.

    Two lines are aligned by the longest common blocks of words (Ratcliff and Metzener 1988). Equal words are
    counterparts, and so are the words, one by one, of a replaced stretch with equally many words on both sides.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for one, other in pairs:
            for word, counterpart in _aligned(one.split(), other.split()):
                counts[word][counterpart] += 1
        self.words = {word: found.most_common(1)[0][0] for word, found in counts.items()}

    def substitute(self, line: str) -> str:
        """The line with every word of the table replaced; words are split at white space."""
        return " ".join(self.words.get(word, word) for word in line.split())


def _aligned(one: list[str], other: list[str]) -> Iterator[tuple[str, str]]:
    for tag, a, b, c, d in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        if tag in ("equal", "replace") and b - a == d - c:
            yield from zip(one[a:b], other[c:d], strict=True)
