"""Humdrum files rewritten for music21: split spines become parallel spines filled with rests.

music21 loses notes where a split spine splits again and where more than two spines are joined. Scope: spine paths and
the time of each line. Out of scope: the content of a token except its length.
"""

from __future__ import annotations

import re
from fractions import Fraction

_MOST_TOKENS = 10_000_000

Column = tuple[int, int]
"""Number of a spine, and of one of its parallel columns."""


def plain(text: str) -> str:
    """The same music without `*^` and `*v`; a file without splits is returned unchanged.

    Each column of a spine has the barlines and interpretations, and rests where the spine is not split. Raises
    ValueError for more than ten million tokens.
    """
    lines = text.splitlines()
    if not any("*^" in line.split("\t") for line in lines):
        return text
    rows = _rows(lines)
    times = _times(rows)
    kinds = {spine: token for row in rows for (spine, _), token in reversed(row.items()) if token.startswith("**")}
    widths: dict[int, int] = {}
    for row in rows:
        for spine, column in row:
            widths[spine] = max(widths.get(spine, 0), column + 1)
    columns = [(spine, column) for spine in sorted(widths) for column in range(widths[spine])]
    if len(columns) * len(lines) > _MOST_TOKENS:
        raise ValueError("spines split into too many columns")
    result: list[str] = []
    for line, row, (now, end) in zip(lines, rows, times, strict=True):
        if not row:
            result.append(line)
        elif not any(token in ("*^", "*v", "*x", "*+") for token in row.values()):
            rest = _rest(end - now)
            filled = [_token(row, column, kinds.get(column[0], ""), rest) for column in columns]
            result.append("\t".join(filled))
    return "\n".join(result) + "\n"


def _token(row: dict[Column, str], column: Column, kind: str, rest: str) -> str:
    if column in row:
        return row[column]
    first = row.get((column[0], 0), "*")
    if first.startswith(("*", "=")):
        return first
    return "!" if first.startswith("!") else rest if kind == "**kern" else "."


def _rows(lines: list[str]) -> list[dict[Column, str]]:
    """The tokens of each line by column; empty for global comments and blank lines."""
    rows: list[dict[Column, str]] = []
    places: list[Column] = []
    spines = 0
    for line in lines:
        if not line or line.startswith("!!"):
            rows.append({})
            continue
        tokens = line.split("\t")
        while len(places) < len(tokens):
            places.append((spines, 0))
            spines += 1
        row = dict(zip(places, tokens, strict=False))
        rows.append(row)
        places, spines = _next(places, tokens, spines)
    return rows


def _next(places: list[Column], tokens: list[str], spines: int) -> tuple[list[Column], int]:
    """The columns of the next line, after splits, joins, additions and ends in this one."""
    used, result = set(places), list[Column]()
    joining: Column | None = None
    exchanged: int | None = None
    for place, token in zip(places, tokens, strict=False):
        if token != "*v":
            joining = None
        if token == "*^":
            column = next(column for column in range(len(places) + 1) if (place[0], column) not in used)
            used.add((place[0], column))
            result += [place, (place[0], column)]
        elif token == "*v" and joining is not None and joining[0] == place[0]:
            result[-1] = joining = min(joining, place)
        elif token == "*+":
            result += [place, (spines, 0)]
            spines += 1
        elif token != "*-":
            result.append(place)
            joining = place if token == "*v" else None
            if token == "*x" and exchanged is None:
                exchanged = len(result) - 1
            elif token == "*x" and exchanged is not None:
                result[-1], result[exchanged] = result[exchanged], result[-1]
                exchanged = None
    return result, spines


def _times(rows: list[dict[Column, str]]) -> list[tuple[Fraction, Fraction]]:
    """Start and end of each line in whole notes."""
    times: list[tuple[Fraction, Fraction]] = []
    now = Fraction(0)
    ends: dict[Column, Fraction] = {}
    kern: set[int] = set()
    for row in rows:
        kern |= {spine for (spine, _), token in row.items() if token == "**kern"}
        end = now
        if row and not next(iter(row.values())).startswith(("*", "!", "=")):
            ends = {column: ends[column] for column in ends if column in row}
            begun = {column: _length(row[column]) for column in row if column[0] in kern and row[column] != "."}
            ends |= {column: now + length for column, length in begun.items()}
            if any(begun.values()):  # grace notes take no time
                end = min((each for each in ends.values() if each > now), default=now)
        times.append((now, end))
        now = end
    return times


def _length(token: str) -> Fraction:
    """The length of a note, chord or rest in whole notes; 0 for a grace note."""
    found = re.search(r"(\d{1,6})(?:%(\d{1,6}))?(\.{0,4})", token)
    if found is None or "q" in token.lower():
        return Fraction(0)
    breve = set(found[1]) == {"0"}  # 0 is a breve, 00 a long
    length = Fraction(2 ** len(found[1])) if breve else Fraction(int(found[2] or 1), int(found[1]))
    return length * (2 - Fraction(1, 2 ** len(found[3])))


def _rest(length: Fraction) -> str:
    if not length:
        return "."
    return f"{length.denominator}%{length.numerator}ryy" if length.numerator > 1 else f"{length.denominator}ryy"
