"""Edit distance between two lines, in words split at white space."""

from __future__ import annotations


def edits(a: str, b: str) -> int:
    """Words to insert, delete or replace to make one line the other (Levenshtein 1966)."""
    x, y = a.split(), b.split()
    row = list(range(len(y) + 1))
    for i, word in enumerate(x, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(y, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def edit_distance(a: str, b: str) -> float:
    """`edits` divided by the words of the longer line: 0 for equal or empty lines, 1 if no word is kept."""
    return edits(a, b) / max(1, len(a.split()), len(b.split()))
