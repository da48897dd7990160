"""Markdown tables of figures with their intervals.

Scope: cells and rows as text. Out of scope: the meaning of figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

OLD_KEYS = {
    "judge": "classifier",
    "judge_accuracy": "classifier_accuracy",
    "blind": "classifier_without_instruments",
    "held_out": "test_songs",
    "held_out_longest": "test_songs_longest",
    "held_out_95_percent": "test_songs_95_percent",
}
"""Keys of results by their names in earlier versions, whose files are still read."""


def with_new_keys(result: Any) -> Any:
    """A result with new keys in the place of OLD_KEYS, at any depth."""
    if isinstance(result, Mapping):
        return {OLD_KEYS.get(key, key): with_new_keys(value) for key, value in result.items()}
    return result


def cell(x: Any, digits: int = 2) -> str:
    """A figure (value, low, high) with its interval, a number alone, or "-" for None.

    >>> cell([0.5, 0.25, 0.75])
    '0.50 [0.25, 0.75]'
    """
    if x is None:
        return "-"
    return f"{x[0]:.{digits}f} [{x[1]:.{digits}f}, {x[2]:.{digits}f}]" if isinstance(x, Sequence) else f"{x:g}"


def rows(first: str, columns: Iterable[str], body: Mapping[str, Sequence[str]], sideways: bool = False) -> list[str]:
    """The lines of a table, none without rows; `sideways` transposes it."""
    if not body:
        return []
    head = list(columns)
    if sideways:
        head, body = list(body), {name: [cells[i] for cells in body.values()] for i, name in enumerate(head)}
    lines = [f"| {first} | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    return [*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in body.items()), ""]


def spaced(name: str) -> str:
    """A key of JSON as words."""
    return name.replace("_", " ")
