"""Protocols of a kind of sequence: tokenizer, grammar and adapter; and the ids of special tokens.

Scope: the interface that data, training, decoding and the codec need from any kind. Out of scope: the kinds themselves
(modality.py has them), files and torch. Everything here is numpy.

The position fields of a token describe its position, as known from the tokens before it: for music the
program, the position in the bar and the pitch whose duration comes next. With them the model binds a token to its
position without recurrence, and the decoder retrieves from the latent code the tokens at a position (the pitches of
program 33 at step 24, say). Sentences have none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

Given = NDArray[Any]
"""The condition of each chunk, `(N,)`: its length in steps, or for a model with conditions a record of its length,
harmony and melody (`music.song_bars.conditions`)."""
Guidance = Callable[[NDArray[np.int64], Ints], tuple[Ints, NDArray[np.float32]]]
"""Guidance of decoding: (row numbers (N,), their states (N, S)) -> P tokens (P,) and their log-weights (N, P).

Probability moves among these tokens alone: their total probability stays that of the model.
"""
Guide = Callable[[slice], list[Guidance]]
"""(a slice of all decoded rows, in order) -> the guidances of these rows, numbered from 0."""

PAD, BOS, EOS, MASK = range(4)  # the first ids of every vocabulary


class Grammar(Protocol):
    """The tokens allowed at each step, for a batch of N rows that are decoded side by side."""

    def start(self, rows: int, lengths: Ints | None = None) -> Ints:
        """States `(N, S)` before the first token; `lengths (N,)` limits each chunk where the kind has lengths."""

    def allowed(self, state: Ints) -> Bools:
        """`(N, V)`: True for tokens allowed next. Every row allows at least one."""

    def advance(self, state: Ints, tokens: Ints) -> Ints:
        """States `(N, S)` after `tokens (N,)`."""

    def position_fields(self, state: Ints) -> Ints:
        """Position fields `(N, K)` of the next token."""


class Tokenizer(Protocol):
    """The interface of a tokenizer for data/dataset.py, codec.py and train/loop.py."""

    kind: str
    vocab_size: int
    field_sizes: tuple[int, ...]
    """Number of values of each position field, from the general to the special; 0 always stands for absent."""
    max_tokens: int
    """Maximum tokens of a decoded chunk, EOS included."""
    overlap: int
    """Tokens that a chunk repeats from the chunk before it; 0 except for windows of long sessions."""
    binding_depth: Ints
    """`(V,)`: number of position fields that each token is bound to (its depth)."""
    unknown: int | None
    """The token of every word outside of the vocabulary, where a token is a word; None for other kinds."""

    def encode(self, piece: Any) -> list[Ints]:
        """Token ids of every chunk of a piece, each ending in EOS."""

    def token_text(self, token: int) -> str:
        """A token as text for display; a special token by its name, such as `<eos>`."""

    def position_fields(self, tokens: Ints) -> Ints:
        """Position fields `(..., T, K)` of every token of `tokens (..., T)`, from the state just before it."""

    def allowed(self, tokens: Ints) -> Bools | None:
        """`(..., T, V)`: the tokens that the grammar allows at each step of `tokens (..., T)`.

        None where the rules exclude next to nothing: probabilities are then normalised over all tokens.
        """

    def mix(self, tokens: Ints, others: Ints, rng: np.random.Generator) -> Ints:
        """Segments `(B, C, T)` changed for training, with tracks of `others (B, C, T)` or new words; or `tokens`."""

    def grammar(self) -> Grammar:
        """The rules of decoding."""

    def save(self, folder: Path) -> None:
        """Write the files that `load_tokenizer` reads."""


class Adapter(Protocol):
    """The adapter between pieces of one kind and tokens, for the codec."""

    def read(self, source: Any) -> Any:
        """Any accepted source as a piece; raises ReadError in one line."""

    def limits(self, piece: Any) -> Ints | None:
        """Length of each chunk, `(C,)`, where the grammar needs it; else None."""

    def conditions(self, piece: Any) -> Given | None:
        """Records of the chunks, `(C,)`, for a model with conditions; None for a kind without such models."""

    def blank(self, chunks: int) -> Any:
        """An empty piece to decode into, for new pieces."""

    def template(self, chunks: list[Ints]) -> Any:
        """The empty piece that fits decoded chunks best."""

    def parts(self, names: Sequence[str | int] | None, moved: bool = True) -> frozenset[int]:
        """The parts of a piece that can be kept unchanged; raises UsageError for an unknown part.

        None stands for the default parts: none if the piece was not `moved`.
        """

    def harmony(self, piece: Any) -> Floats | None:
        """Chroma around each beat of each chunk, `(C, B, 12)`; None for a kind without pitch."""

    def chroma_guidance(self, harmony: Floats, strength: float) -> Guidance | None:
        """Guidance of decoded notes toward the `harmony (N, B, 12)` of their rows; see `Guidance`."""

    def ensemble(self, pieces: Iterable[list[Ints]], read: Iterable[Any] = ()) -> Any:
        """The ensemble of pieces, a `music.band.Ensemble`; None for other kinds.

        `pieces` are the tokens of their chunks, `read` the same pieces as read.
        """

    def apart(self, a: list[Ints], b: list[Ints]) -> list[float]:
        """One or more distances between two decoded pieces, from 0 to 1."""

    def assemble(self, chunks: list[Ints], like: Any, keep: frozenset[int] = frozenset(), again: bool = False) -> Any:
        """The user's kind of object from decoded chunks, with all that tokens do not encode taken from `like`.

        The parts `keep` are those of `like`, unchanged. `again`: the chunks reconstruct `like` itself, unmoved.
        """


def spelling(tokenizer: Tokenizer) -> str:
    """A digest of the text of every token: equal for tokenizers with equal vocabularies."""
    tokens = [tokenizer.token_text(token) for token in range(tokenizer.vocab_size)]
    return hashlib.sha256(json.dumps([tokenizer.kind, tokens]).encode()).hexdigest()


class NoPositionFields:
    """Shared methods of kinds whose tokens have no position fields, such as sentences and logs."""

    field_sizes: tuple[int, ...] = ()
    unknown: int | None = None

    def position_fields(self, tokens: Ints) -> Ints:
        """Position fields `(..., T, 0)`: none."""
        return np.zeros((*tokens.shape, 0), np.int32)

    def allowed(self, tokens: Ints) -> Bools | None:
        """None: nearly any token may follow any other."""
        return None

    def mix(self, tokens: Ints, others: Ints, rng: np.random.Generator) -> Ints:
        """`tokens` unchanged."""
        return tokens
