"""Notices on lines that a model of sentences does not represent well, and the limit on the length of a line.

Scope: unknown characters, lines that do not come back, new lines, one line on standard error. Out of scope: other kinds
(they get no notice), encoding and decoding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from seqvae.cli import console
from seqvae.cli.text_io import Item
from seqvae.errors import SeqVAEError, UsageError
from seqvae.protocols import Ints
from seqvae.text.lines import safe
from seqvae.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from seqvae.codec import Codec

LONGEST = 100_000
"""Most characters of a line."""
UNKNOWN = 0.5  # share of a line's characters outside of the vocabulary
LOST = 0.25  # share of the words of a line or its reconstruction that are not in the other
SAMPLED = 500
"""Lines that `sampled` chooses."""
_SHOWN = 60  # characters of a line in a message


class Notices:
    """Lines seen by one command, the number that are not represented well, and the first of these.

    A line is not represented well if most of its characters are outside of the vocabulary, or if more than a quarter of
    the words of it or of its reconstruction are not in the other.
    """

    def __init__(self, codec: Codec, strict: bool = False) -> None:
        """Raises UsageError for `strict` with a model of another kind."""
        self.codec, self.strict = codec, strict
        self.tokenizer = codec.tokenizer if isinstance(codec.tokenizer, TextTokenizer) else None
        self.lines = self.found = 0
        self.first = ""
        if strict and self.tokenizer is None:
            raise UsageError(f"--strict: is for sentences, and the model is of {codec.tokenizer.kind}; leave it out")

    @property
    def active(self) -> bool:
        """Whether the model is one of sentences."""
        return self.tokenizer is not None

    def check_length(self, items: Sequence[Any]) -> None:
        """Raises SeqVAEError for a line of more than LONGEST characters."""
        for item in items if self.active else ():
            if len(item.piece) > LONGEST:
                raise SeqVAEError(
                    f"{_named(item)} has {len(item.piece):,} characters, and the limit is {LONGEST:,}; "
                    "write one sentence on each line"
                )

    def look(
        self, items: Sequence[Any], split: Sequence[list[list[Ints]]], latents: Sequence[Tensor] | None = None,
        results: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        """Look at lines with their segments and reconstructions; without `results`, `latents (S, D)` are decoded.

        Raises SeqVAEError for the first line that is not represented well if `strict`.
        """
        if self.tokenizer is None:
            return
        if results is None:
            results = self.codec.transform([item.piece for item in items], lambda z: z, segments=split, latents=latents)
        for item, segments, result in zip(items, split, results, strict=True):
            if not item.piece:
                continue
            self.lines += 1
            tokens = np.concatenate([chunk for segment in segments for chunk in segment])
            values = self.tokenizer.byte_of[tokens]
            unknown = bytes(values[values >= 0].tolist()).decode(errors="replace")
            outside = f" (outside of the vocabulary: {_short(unknown)})" if unknown else ""
            if len(unknown) > UNKNOWN * len("".join(item.piece.split())):
                self._add(f"{_named(item)} is mostly of characters outside of the vocabulary")
            elif _lost(item.piece, result) > LOST:
                self._add(f"{_named(item)} comes back as '{_short(result)}'{outside}")

    def look_at_ends(self, lines: Sequence[str]) -> None:
        """Check the length of the lines that one command names, and look at them.

        Raises SeqVAEError as `check_length` and `look`.
        """
        if self.active:
            items = [Item(line, {"index": i}) for i, line in enumerate(lines)]
            self.check_length(items)
            self.look(items, [self.codec.segments(line) for line in lines])

    def sampled(self, count: int) -> range:
        """The numbers of the lines among `count` to look at: all if `strict`, else at most SAMPLED, evenly spread."""
        return range(0, count if self.active else 0, 1 if self.strict else max(1, -(-count // SAMPLED)))

    def _add(self, text: str) -> None:
        if self.strict:
            raise SeqVAEError(f"{text}; leave it out, or take a model that was trained on such lines")
        self.found += 1
        self.first = self.first or text

    def report(self) -> None:
        """Print the count and the first such line on standard error, if there are any."""
        if self.found:
            lines = "line is" if self.lines == 1 else "lines are"
            console.report(
                f"{self.found} of {self.lines} {lines} not represented well: {self.first}; --strict makes this an error"
            )


def _named(item: Any) -> str:
    return f"line {item.facts['index'] + 1} '{_short(item.piece)}'"


def _lost(line: str, result: str) -> float:
    """The share of the words of the longer one that are not in the other; in time linear in the words."""
    a, b = line.split(), result.split()
    return 1 - (Counter(a) & Counter(b)).total() / max(1, len(a), len(b))


def _short(line: str) -> str:
    return safe(line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…")


def of_draws(codec: Codec) -> str:
    """A notice for models whose draws are hardly sentences; empty for others.

    A model without a search holds the words of a line in hundreds of bits of z, and a random z belongs to no line. One
    whose decoder also learned to write without z draws lines in this way.
    """
    config = codec.model.config
    if not isinstance(codec.tokenizer, TextTokenizer) or config.encoder != "pooled" or config.without:
        return ""
    return "most of these lines are no sentences: this kind of model reconstructs, moves and walks; it cannot draw yet"
