"""The most surprising tokens of a piece, and their text.

Scope: the least likely tokens in a piece's evidence, and the text of tokens at given positions. Out of scope: whether
the piece is anomalous, and the terminal or page that displays it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from seqvae.anomaly.scores import Evidence
from seqvae.protocols import EOS, Tokenizer
from seqvae.text.lines import safe
from seqvae.text.tokenizer import TextTokenizer

POINTED = 5
"""Number of tokens that are marked."""
DIGITS = 4
"""Decimals of log-probabilities: the last digits depend on the other pieces of the batch."""


def pointed(evidence: Evidence) -> set[int]:
    """The positions of the least likely tokens."""
    return set(evidence.log_prob.round(DIGITS).argsort(kind="stable")[:POINTED].tolist())


def spelled(
    tokenizer: Tokenizer, ids: Sequence[int], places: Sequence[int], piece: Any
) -> Iterator[tuple[list[int], str]]:
    """The text of tokens at some positions, each with the space before it.

    The bytes of one letter are joined, and a separate space is joined with the token after it. A word outside of the
    vocabulary is shown as in the `piece`.
    """
    if not isinstance(tokenizer, TextTokenizer):
        words = [] if tokenizer.unknown is None else piece.split()
        for i in places:
            unknown = i < len(words) and ids[i] == tokenizer.unknown
            yield [i], " " + safe(words[i] if unknown else tokenizer.token_text(ids[i]))
        return
    value = tokenizer.byte_of
    groups: list[list[int]] = []
    for i in places:
        before = ids[i - 1]
        letter = value[before] >= 0 and 0x80 <= value[ids[i]] < 0xC0
        blank = not tokenizer.token_text(before).strip(" ")
        if groups and groups[-1][-1] == i - 1 and ids[i] != EOS and (letter or blank):
            groups[-1].append(i)
        else:
            groups.append([i])
    for group in groups:
        parts = [(ids[i], int(value[ids[i]])) for i in group]
        content = b"".join(bytes([n]) if n >= 0 else tokenizer.token_text(token).encode() for token, n in parts)
        yield group, " <eos>" if ids[group[0]] == EOS else safe(content.decode(errors="replace"))
