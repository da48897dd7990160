"""The adapter of lines, for sentences and for sessions of events.

Scope: a line as the codec's piece, and the line that decoded tokens spell. Out of scope: models, latent vectors, files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from seqvae.errors import ReadError, UsageError
from seqvae.text import edit_distance

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]


class Spelling(Protocol):
    """The part of a tokenizer of lines that the adapter needs."""

    def decode_text(self, chunks: Sequence[Ints]) -> str:
        """The line that chunks spell."""


class LineForm:
    """Sentences and sessions: all there is to say is in the tokens."""

    def __init__(self, tokenizer: Spelling) -> None:
        self.tokenizer = tokenizer

    def read(self, source: Any) -> str:
        """A line itself; raises ReadError for anything else, above all for a path, which is no line."""
        if not isinstance(source, str):
            kind = "a path" if isinstance(source, Path) else f"a {type(source).__name__}"
            raise ReadError(str(source)[:80], f"{kind} is no line", "give each line as a str")
        return source

    def limits(self, piece: str) -> None:
        """A line may have any length."""

    def blank(self, chunks: int) -> str:
        """The empty line."""
        return ""

    def frame(self, chunks: list[Ints]) -> str:
        """The empty line too."""
        return ""

    def parts(self, names: Sequence[str | int] | None, moved: bool = True) -> frozenset[int]:
        """A line has no tracks: raises UsageError where one is named."""
        if names:
            raise UsageError(f"a line has no track '{names[0]}' to keep; leave it out, it is for music")
        return frozenset()

    def harmony(self, piece: str) -> None:
        """A line does not sound."""

    def lean(self, harmony: Floats, strength: float) -> None:
        """A line does not sound."""

    def ensemble(self, pieces: Iterable[list[Ints]]) -> None:
        """Nobody plays a line."""

    def apart(self, a: list[Ints], b: list[Ints]) -> list[float]:
        """Words to put in, take out or change, as a share of the longer line."""
        return [edit_distance.edit_distance(*(self.tokenizer.decode_text(chunks) for chunks in (a, b)))]

    def join(self, chunks: list[Ints], like: str, keep: frozenset[int] = frozenset(), again: bool = False) -> str:
        """The line that the chunks spell."""
        return self.tokenizer.decode_text(chunks)
