"""Which tokens of a piece are surprising, and how they are written.

Scope: the least likely tokens of a piece's evidence, and the text of tokens at some places. Out of scope: whether the
piece is anomalous, and the terminal or page that shows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from seqvae.anomaly.scores import Evidence
from seqvae.events.tokenizer import UNKNOWN
from seqvae.protocols import EOS, Tokenizer
from seqvae.text.lines import safe
from seqvae.text.tokenizer import TextTokenizer

POINTED = 5
"""Tokens of a piece that are marked."""
DIGITS = 4
"""Of log-probabilities: the last ones depend on the other pieces of the batch."""


def pointed(evidence: Evidence) -> set[int]:
    """The places of the tokens that surprise most."""
    return set(evidence.log_prob.round(DIGITS).argsort(kind="stable")[:POINTED].tolist())


def spelled(
    tokenizer: Tokenizer, ids: Sequence[int], places: Sequence[int], words: Sequence[str]
) -> Iterator[tuple[list[int], str]]:
    """Tokens at some places, each with the space before it.

    The bytes of a letter go together, and a space of its own with what follows. An event without a token is shown as it
    stands in `words`.
    """
    if not isinstance(tokenizer, TextTokenizer):
        for i in places:
            unknown = i < len(words) and ids[i] == UNKNOWN
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
