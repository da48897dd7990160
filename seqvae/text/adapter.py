"""The adapter of lines, for sentences and for sessions of events.

Scope: a line as the codec's piece, and the line of decoded tokens. Out of scope: models, latent vectors, files.
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
    """The method of a line tokenizer that the adapter uses."""

    def decode_text(self, chunks: Sequence[Ints]) -> str:
        """The line of some chunks."""


class LineAdapter:
    """Adapter of sentences and sessions, which tokens represent completely."""

    def __init__(self, tokenizer: Spelling) -> None:
        self.tokenizer = tokenizer

    def read(self, source: Any) -> str:
        """A line itself; raises ReadError for anything else, such as a path."""
        if not isinstance(source, str):
            kind = "a path" if isinstance(source, Path) else f"a {type(source).__name__}"
            raise ReadError(str(source)[:80], f"{kind} is not a line", "give each line as a str")
        return source

    def limits(self, piece: str) -> None:
        """None: a line may have any length."""

    def conditions(self, piece: str) -> None:
        """None: no model of lines has conditions."""

    def blank(self, chunks: int) -> str:
        """The empty line."""
        return ""

    def template(self, chunks: list[Ints]) -> str:
        """The empty line."""
        return ""

    def parts(self, names: Sequence[str | int] | None, moved: bool = True) -> frozenset[int]:
        """No parts: raises UsageError if one is named, since a line has no tracks."""
        if names:
            raise UsageError(f"a line has no track '{names[0]}' to keep; leave it out, it is for music")
        return frozenset()

    def harmony(self, piece: str) -> None:
        """None: a line has no pitch."""

    def chroma_guidance(self, harmony: Floats, strength: float) -> None:
        """None: a line has no pitch."""

    def ensemble(self, pieces: Iterable[list[Ints]], read: Iterable[str] = ()) -> None:
        """None: a line has no ensemble."""

    def apart(self, a: list[Ints], b: list[Ints]) -> list[float]:
        """Word edit distance as a share of the longer line."""
        return [edit_distance.edit_distance(*(self.tokenizer.decode_text(chunks) for chunks in (a, b)))]

    def assemble(self, chunks: list[Ints], like: str, keep: frozenset[int] = frozenset(), again: bool = False) -> str:
        """The line of the chunks."""
        return self.tokenizer.decode_text(chunks)
