"""The tokens of a scored session, sentence or song: with the surprising ones marked, and as JSON.

Scope: text for the terminal. Out of scope: which tokens are surprising (anomaly/explain.py), and lines of raw logs
(cli/raw_logs.py).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from seqvae.cli import console

if TYPE_CHECKING:
    from seqvae.anomaly.evidence import Evidence
    from seqvae.protocols import Tokenizer

WHOLE = 40  # tokens of the longest piece printed in full
AROUND = 3  # tokens printed on either side of a marked token in a longer piece
CHARACTERS = 30  # the same where tokens are characters
PART = 4096  # tokens in one part of a JSON line: a session may have a million


def shown(tokenizer: Tokenizer, piece: Any, evidence: Evidence) -> str:
    """The tokens of a piece with the most surprising ones marked; of a long piece only the tokens around them.

    The end of a chunk, `<eos>`, is left out unless it is marked. Tokens of music follow the number of their bar
    (`Modality.chunk`). Neighbouring characters are marked together.
    """
    from seqvae.anomaly import explain
    from seqvae.modality import modality
    from seqvae.protocols import EOS

    ids = evidence.tokens
    marks = explain.marked(tokenizer, evidence)
    characters = explain.by_character(tokenizer)
    around = CHARACTERS if characters else AROUND
    places: Sequence[int] = range(len(ids))
    if len(ids) > WHOLE:
        near = {at for i in marks for at in range(i - around, i + around + 1)}
        places = sorted(near.intersection(places))
    ends = ids == EOS
    chunk = modality(tokenizer.kind).chunk
    numbers = (ends.cumsum() - ends + 1).tolist() if chunk else []
    out: list[tuple[str, bool]] = []  # text, and whether it is marked
    number, last = 0, -1
    for group, text in explain.spelled(tokenizer, ids.tolist(), places, piece):
        if group[0] > last + 1:
            out.append((" …", False))
        last = group[-1]
        marked = not marks.isdisjoint(group)
        if ends[last] and not marked:
            continue
        if numbers and numbers[last] != number:
            number = numbers[last]
            out.append((f" {chunk} {number}:", False))
        body = text.lstrip(" ") or text
        out += [(text.removesuffix(body), marked and characters), (body, marked)]
    if not ends[last + 1 :].all():
        out.append((" …", False))
    if characters:
        runs = itertools.groupby(out, key=lambda part: part[1])
        out = [("".join(text for text, _ in run), marked) for marked, run in runs]
    return "".join(console.marked(text) if marked and text else text for text, marked in out).removeprefix(" ")


def rest_of_json(tokenizer: Tokenizer, evidence: Evidence) -> Iterator[str]:
    """The rest of a JSON line after its facts, in parts, as a long session would need much memory."""
    from seqvae.anomaly import explain

    total = round(float(evidence.log_prob.sum(dtype="float64")), explain.DIGITS)
    yield f', "log_prob": {json.dumps(total)}, '
    if explain.by_character(tokenizer):
        spans = [asdict(span) for span in explain.unlikely(tokenizer, evidence)]
        yield f'"spans": {json.dumps(spans)}, '
    yield '"tokens": ['
    for at in range(0, len(evidence.tokens), PART):
        part = zip(evidence.tokens[at : at + PART].tolist(), evidence.log_prob[at : at + PART].tolist(), strict=True)
        rows = [{"token": tokenizer.token_text(token), "log_prob": round(nats, explain.DIGITS)} for token, nats in part]
        yield (", " if at else "") + json.dumps(rows)[1:-1]
    yield "]}"
