"""Tokenizer of event logs: one session a line, one token for each symbol, long sessions in windows.

Scope: the vocabulary of symbols, cutting sessions into windows, joining windows. Out of scope: files (text/lines.py
reads lines), models and torch. Everything here is numpy.

A session that is too long for one latent vector becomes overlapping windows. The part that a window repeats is context:
when scores or symbols are joined, each event is taken from the first window that holds it, where it has the most events
before it. Only the last window of a session ends in EOS.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqvae.config import TokenizerConfig
from seqvae.errors import TokenizerError
from seqvae.protocols import BOS, EOS, MASK, PAD, Bools, Ints, NoPositionFields

SPECIAL = ("<pad>", "<bos>", "<eos>", "<mask>", "<unk>")
UNKNOWN = len(SPECIAL) - 1


class EventTokenizer(NoPositionFields):
    """One token for each symbol; symbols are separated by white space: event ids, numbers of system calls, codes.

    A piece is one line, a `str`. Symbols without a token become `UNKNOWN`, whose embedding is trained on the symbols
    that occur only once.
    """

    kind = "events"
    unknown: int | None = UNKNOWN

    def __init__(self, symbols: Sequence[str], max_tokens: int = 128, overlap: int = 0) -> None:
        """`symbols` in the order of their ids; windows of at most `max_tokens` tokens that repeat `overlap` of them.

        Raises TokenizerError for symbols with white space, and for windows that would not advance.
        """
        if type(max_tokens) is not int or type(overlap) is not int or not 0 <= overlap < max_tokens - 1:
            raise TokenizerError(f"windows of {max_tokens!r} tokens cannot repeat {overlap!r} of the one before")
        if isinstance(symbols, str) or not all(type(x) is str and x.split() == [x] for x in symbols):
            raise TokenizerError("a symbol is a word without white space")
        self.symbols = list(symbols)
        self._ids = {symbol: i for i, symbol in enumerate(self.symbols, len(SPECIAL))}
        if len(self._ids) != len(self.symbols):
            raise TokenizerError("a symbol occurs twice in the vocabulary")
        self.window, self.overlap = max_tokens, overlap
        self.max_tokens = max_tokens + 1  # decoded windows all end in EOS, full ones too
        self.vocab_size = len(SPECIAL) + len(self.symbols)
        self.binding_depth: Ints = np.zeros(self.vocab_size, np.int32)

    @classmethod
    def make(cls, config: TokenizerConfig, pieces: Callable[[], Iterable[Any]]) -> EventTokenizer:
        """As `modality.make`."""
        return cls.train(pieces(), config.vocab_size, config.max_tokens, config.overlap)

    @classmethod
    def load(cls, folder: Path, **settings: Any) -> EventTokenizer:
        """The tokenizer with the settings written by `save`."""
        return cls(**settings)

    @classmethod
    def train(
        cls, lines: Iterable[str], vocab_size: int = 4000, max_tokens: int = 128, overlap: int = 0
    ) -> EventTokenizer:
        """A tokenizer of the most frequent symbols in lines, at most `vocab_size` tokens including special ones.

        Raises TokenizerError if no symbol occurs twice.
        """
        counts: Counter[str] = Counter()
        for line in lines:
            counts.update(line.split())
        ranked = sorted((symbol for symbol, count in counts.items() if count > 1), key=lambda x: (-counts[x], x))
        if not ranked or vocab_size <= len(SPECIAL):
            raise TokenizerError(
                f"no symbol for a vocabulary of {vocab_size}: none occurs twice, or there is no room beside the "
                f"{len(SPECIAL)} special ones; give more sessions, one a line, with symbols separated by spaces"
            )
        return cls(ranked[: vocab_size - len(SPECIAL)], max_tokens, overlap)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"kind": self.kind, "max_tokens": self.window, "overlap": self.overlap, "symbols": self.symbols}
        (folder / "tokenizer.json").write_text(json.dumps(settings) + "\n")

    def encode(self, piece: Any) -> list[Ints]:
        """Token ids of every window of a session; the last ends in EOS."""
        ids = self._ids
        tokens = np.array([*(ids.get(symbol, UNKNOWN) for symbol in piece.split()), EOS], np.int32)
        ahead = self.window - self.overlap
        last = max(0, -(-(len(tokens) - self.window) // ahead))
        return [tokens[i * ahead : i * ahead + self.window] for i in range(last + 1)]

    def encode_all(self, lines: Sequence[str]) -> list[list[Ints]]:
        """As `encode`, for many lines."""
        return [self.encode(line) for line in lines]

    def decode_text(self, chunks: Sequence[Ints]) -> str:
        """The session of some windows, its symbols separated by single spaces."""
        out: list[str] = []
        for i, chunk in enumerate(chunks):
            ids: list[int] = np.asarray(chunk).tolist()
            ids = ids[: ids.index(EOS)] if EOS in ids else ids
            if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
                raise TokenizerError(
                    f"tokens outside of the vocabulary of {self.vocab_size}: {min(ids)} to {max(ids)}; "
                    "decode with the tokenizer that encoded them"
                )
            out += [self.token_text(token) for token in ids[self.overlap if i else 0 :]]
        return " ".join(out)

    def token_text(self, token: int) -> str:
        """A token as text for display: its symbol, or the name of a special token."""
        return SPECIAL[token] if token < len(SPECIAL) else self.symbols[token - len(SPECIAL)]

    def grammar(self) -> EventGrammar:
        """The rules of decoding."""
        return EventGrammar(self.vocab_size)


class EventGrammar:
    """Grammar of sessions: any known symbol may follow any other, until the end."""

    def __init__(self, vocab_size: int) -> None:
        open_ = np.ones(vocab_size, np.bool_)
        open_[[PAD, BOS, MASK, UNKNOWN]] = False  # an unknown symbol has no text
        ended = np.zeros(vocab_size, np.bool_)
        ended[PAD] = True
        self._allowed = np.stack([open_, ended])

    def start(self, rows: int, lengths: Ints | None = None) -> Ints:
        """States `(N, 1)`: 0, not ended."""
        return np.zeros((rows, 1), np.int32)

    def allowed(self, state: Ints) -> Bools:
        """Allowed tokens `(N, V)`."""
        return self._allowed[state[:, 0]]

    def advance(self, state: Ints, tokens: Ints) -> Ints:
        """States `(N, 1)` after `tokens (N,)`."""
        ended: Ints = (state[:, 0] | (tokens == EOS))[:, None].astype(np.int32)
        return ended

    def position_fields(self, state: Ints) -> Ints:
        """Position fields `(N, 0)`: none."""
        return np.zeros((len(state), 0), np.int32)
