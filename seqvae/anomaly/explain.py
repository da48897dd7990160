"""The most surprising tokens of a piece, and their text.

Scope: the least likely tokens in a piece's evidence, spans of unlikely characters, and the text of tokens at given
positions. Out of scope: whether the piece is anomalous, and the terminal or page that displays it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from seqvae.anomaly.evidence import Evidence
from seqvae.protocols import EOS, Tokenizer
from seqvae.text.lines import safe
from seqvae.text.tokenizer import TextTokenizer

POINTED = 5
"""Number of tokens that are marked."""
DIGITS = 4
"""Decimals of log-probabilities: the last digits depend on the other pieces of the batch."""
RARE = 0.002
"""Probability below which a character is marked."""
GAP = 2
"""Maximum characters between two marked ones that are marked with them."""


def pointed(evidence: Evidence) -> set[int]:
    """The positions of the least likely tokens."""
    return set(evidence.log_prob.round(DIGITS).argsort(kind="stable")[:POINTED].tolist())


def spans(evidence: Evidence) -> list[range]:
    """Ranges of unlikely tokens, for tokens that are characters; the least likely one is always in a range."""
    nats = evidence.log_prob.round(DIGITS)
    found: list[range] = []
    for i in [i for i, value in enumerate(nats.tolist()) if value < math.log(RARE) or i == nats.argmin()]:
        if found and i - found[-1].stop <= GAP:
            found[-1] = range(found[-1].start, i + 1)
        else:
            found.append(range(i, i + 1))
    return found


@dataclass(frozen=True)
class Span:
    """Unlikely characters of a line."""

    start: int
    end: int
    """Its characters, from `start` up to `end`; none if it is the end of the line that is unlikely."""
    text: str
    log_prob: float
    """Log-probability of these characters, in nats."""


def unlikely(tokenizer: TextTokenizer, evidence: Evidence) -> list[Span]:
    """The `spans` of a line by their places in it."""

    def text(end: int) -> str:
        """The line up to a token."""
        ids = evidence.tokens[:end]
        return tokenizer.decode_text([ids[ids != EOS]])

    found = []
    for span in spans(evidence):
        start, whole = len(text(span.start)), text(span.stop)
        nats = round(float(evidence.log_prob[span.start : span.stop].sum(dtype="float64")), DIGITS)
        found.append(Span(start, len(whole), whole[start:], nats))
    return found


def by_character(tokenizer: Tokenizer) -> TypeGuard[TextTokenizer]:
    """Whether tokens are characters, for which `spans` are marked, not `pointed` tokens."""
    return isinstance(tokenizer, TextTokenizer) and tokenizer.by_character


def marked(tokenizer: Tokenizer, evidence: Evidence) -> set[int]:
    """The positions of the tokens to mark: those of `spans` for characters, else `pointed`."""
    if by_character(tokenizer):
        return {i for span in spans(evidence) for i in span}
    return pointed(evidence)


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
