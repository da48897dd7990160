"""Protocols of a kind of sequence: tokenizer, grammar and adapter; and the ids of special tokens.

Scope: what data, training, decoding and the codec ask of any kind. Out of scope: the kinds themselves (modality.py has
them), files and torch. Everything here is numpy.

A *cue* is what the tokens so far say about where the next token stands: for music the program, the position in the bar
and the pitch that waits for its duration. Cues let the model bind a token to its place without recurrence, and let the
decoder ask the latent code a question ("which pitches does program 33 play at step 24?"). Sentences have none.
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

Lean = Callable[[NDArray[np.int64], Ints], tuple[Ints, NDArray[np.float32]]]
"""For decoding: (numbers of rows (N,), their states (N, S)) -> some tokens (P,), and what each weighs, log (N, P).

Probability moves among these tokens alone: how likely they are together stays as the model has it.
"""
Guide = Callable[[slice], list[Lean]]
"""(some rows of all that are decoded, in their order) -> the leans of these rows, numbered from 0."""

PAD, BOS, EOS, MASK = range(4)  # the first ids of every vocabulary


class Grammar(Protocol):
    """Which tokens may follow, for a batch of N rows that are decoded side by side."""

    def start(self, rows: int, lengths: Ints | None = None) -> Ints:
        """States `(N, S)` before the first token; `lengths (N,)` limits each chunk where the kind has a length."""

    def allowed(self, state: Ints) -> Bools:
        """`(N, V)`: True where a token may come next. Every row allows at least one."""

    def advance(self, state: Ints, tokens: Ints) -> Ints:
        """States `(N, S)` after `tokens (N,)`."""

    def cues(self, state: Ints) -> Ints:
        """Cues `(N, K)` of the next token."""


class Tokenizer(Protocol):
    """What data/dataset.py, codec.py and train/loop.py need of a tokenizer."""

    kind: str
    vocab_size: int
    cue_sizes: tuple[int, ...]
    """Values of each field of a cue, from the general to the special; 0 always says nothing."""
    max_tokens: int
    """Tokens that a decoded chunk may have, EOS included."""
    overlap: int
    """Tokens that a chunk repeats of the one before it; 0 but for windows of long sessions."""
    scope: Ints
    """`(V,)`: how many fields of the cue say where a token stands, whatever the rest say."""

    def encode(self, piece: Any) -> list[Ints]:
        """Token ids of every chunk of a piece, each ending in EOS."""

    def token_text(self, token: int) -> str:
        """One token to be shown: what it stands for, a special one by its name, such as `<eos>`."""

    def cues(self, tokens: Ints) -> Ints:
        """Cues `(..., T, K)` of every token of `tokens (..., T)`: the state just before it."""

    def allowed(self, tokens: Ints) -> Bools | None:
        """`(..., T, V)`: what the grammar allows at each step of `tokens (..., T)`.

        None where the rules leave next to nothing out: probabilities are then taken among all tokens.
        """

    def augment(self, chunks: Ints, amount: int) -> Ints:
        """The same music or text said otherwise (a transposition); kinds without one return `chunks`."""

    def mix(self, tokens: Ints, others: Ints, rng: np.random.Generator) -> Ints:
        """Segments `(B, C, T)` with some of the parts of `others (B, C, T)`; kinds without parts return `tokens`."""

    def grammar(self) -> Grammar:
        """The rules of decoding."""

    def save(self, folder: Path) -> None:
        """Write what `load_tokenizer` needs."""


class Form(Protocol):
    """What the codec needs to know of one kind of piece."""

    def read(self, source: Any) -> Any:
        """Any accepted source as a piece; raises ReadError in one line."""

    def limits(self, piece: Any) -> Ints | None:
        """Length of each chunk where the grammar wants one, `(C,)`."""

    def blank(self, chunks: int) -> Any:
        """A piece without content to decode into: what a new piece looks like."""

    def frame(self, chunks: list[Ints]) -> Any:
        """The piece without content that decoded chunks fit into best."""

    def parts(self, names: Sequence[str | int] | None, moved: bool = True) -> frozenset[int]:
        """The parts of a piece that can be kept as they are; raises UsageError for what is none.

        None stands for what is kept unasked: nothing of a piece that has not `moved`.
        """

    def harmony(self, piece: Any) -> Floats | None:
        """What sounds around each beat of each chunk, `(C, B, 12)`; None for a kind that does not sound."""

    def lean(self, harmony: Floats, strength: float) -> Lean | None:
        """For decoding, what makes notes of rows lean to their `harmony (N, B, 12)`; see `Lean`."""

    def ensemble(self, pieces: Iterable[list[Ints]]) -> Any:
        """Who plays in pieces, given the tokens of their chunks: a `music.band.Ensemble`, or None of other kinds."""

    def apart(self, a: list[Ints], b: list[Ints]) -> list[float]:
        """How unlike two decoded pieces are, by one or more distances from 0 to 1."""

    def join(self, chunks: list[Ints], like: Any, keep: frozenset[int] = frozenset(), again: bool = False) -> Any:
        """The user's kind of object from decoded chunks, with everything tokens do not hold taken from `like`.

        Some `parts` may be kept as they are in `like`. The chunks may be those of `like` itself `again`, not moved.
        """


def spelling(tokenizer: Tokenizer) -> str:
    """A digest of what every token stands for: the same for those that spell alike."""
    tokens = [tokenizer.token_text(token) for token in range(tokenizer.vocab_size)]
    return hashlib.sha256(json.dumps([tokenizer.kind, tokens]).encode()).hexdigest()


class Uncued:
    """What is the same for all kinds whose tokens have no cues, such as sentences and logs."""

    cue_sizes: tuple[int, ...] = ()

    def cues(self, tokens: Ints) -> Ints:
        """Cues `(..., T, 0)`: none."""
        return np.zeros((*tokens.shape, 0), np.int32)

    def allowed(self, tokens: Ints) -> Bools | None:
        """None: nearly any token may follow any other."""
        return None

    def augment(self, chunks: Ints, amount: int) -> Ints:
        """The same chunks: a line has no second spelling."""
        return chunks

    def mix(self, tokens: Ints, others: Ints, rng: np.random.Generator) -> Ints:
        """The same tokens: a line has no parts that sound together."""
        return tokens
