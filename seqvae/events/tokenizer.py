"""Event logs to token ids and back: one session a line, one token for each symbol, long sessions in windows.

Knows: which symbols have a token, what a session is cut into, and how the parts go together again. Refuses to know:
files (text/lines.py reads lines), models and torch. Everything here is numpy.

A session that is too long for one latent vector becomes overlapping windows. What a window repeats of the one before it
is there to be read, not to be counted twice: joined, whether scores or symbols, each event is taken from the first
window that holds it, where no fewer events stand before it. A window that is not the last of its session has no EOS.
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
from seqvae.protocols import BOS, EOS, MASK, PAD, Bools, Ints, Uncued

SPECIAL = ("<pad>", "<bos>", "<eos>", "<mask>", "<unk>")
UNKNOWN = len(SPECIAL) - 1


class EventTokenizer(Uncued):
    """One token a symbol; symbols are what white space divides: event ids, numbers of system calls, codes.

    A piece is one line, a `str`. Symbols without a token of their own are `UNKNOWN`, which is learned as well: those
    that were seen only once are taken for it.
    """

    kind = "events"

    def __init__(self, symbols: Sequence[str], max_tokens: int = 128, overlap: int = 0) -> None:
        """`symbols` in the order of their ids. A window has `max_tokens` tokens at most, and repeats `overlap`.

        Raises TokenizerError for symbols that no line could hold and for windows that would not get ahead.
        """
        if type(max_tokens) is not int or type(overlap) is not int or not 0 <= overlap < max_tokens - 1:
            raise TokenizerError(f"windows of {max_tokens!r} tokens cannot repeat {overlap!r} of the one before")
        if isinstance(symbols, str) or not all(type(x) is str and x.split() == [x] for x in symbols):
            raise TokenizerError("a symbol is a word without white space")
        self.symbols = list(symbols)
        self._ids = {symbol: i for i, symbol in enumerate(self.symbols, len(SPECIAL))}
        if len(self._ids) != len(self.symbols):
            raise TokenizerError("a symbol stands twice in the vocabulary")
        self.window, self.overlap = max_tokens, overlap
        self.max_tokens = max_tokens + 1  # decoded: every window ends in EOS then, a full one too
        self.vocab_size = len(SPECIAL) + len(self.symbols)
        self.scope: Ints = np.zeros(self.vocab_size, np.int32)

    @classmethod
    def make(cls, config: TokenizerConfig, pieces: Callable[[], Iterable[Any]]) -> EventTokenizer:
        """As `modality.make`."""
        return cls.train(pieces(), config.vocab_size, config.max_tokens, config.overlap)

    @classmethod
    def load(cls, folder: Path, **settings: Any) -> EventTokenizer:
        """The tokenizer with the settings that `save` wrote."""
        return cls(**settings)

    @classmethod
    def train(
        cls, lines: Iterable[str], vocab_size: int = 4000, max_tokens: int = 128, overlap: int = 0
    ) -> EventTokenizer:
        """Take the most frequent symbols of lines, `vocab_size` tokens at most, special ones included.

        Raises TokenizerError where no symbol is seen twice.
        """
        counts: Counter[str] = Counter()
        for line in lines:
            counts.update(line.split())
        ranked = sorted((symbol for symbol, count in counts.items() if count > 1), key=lambda x: (-counts[x], x))
        if not ranked or vocab_size <= len(SPECIAL):
            raise TokenizerError(
                f"no symbol for a vocabulary of {vocab_size}: none is seen twice, or there is no room beside the "
                f"{len(SPECIAL)} special ones; give more sessions, one a line, their symbols divided by spaces"
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
        """The session that windows spell, its symbols with one space between them."""
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
        """One token to be shown: its symbol, or a special one by its name."""
        return SPECIAL[token] if token < len(SPECIAL) else self.symbols[token - len(SPECIAL)]

    def grammar(self) -> EventGrammar:
        """The rules of decoding."""
        return EventGrammar(self.vocab_size)


class EventGrammar:
    """Any known symbol may follow any other, until the end."""

    def __init__(self, vocab_size: int) -> None:
        open_ = np.ones(vocab_size, np.bool_)
        open_[[PAD, BOS, MASK, UNKNOWN]] = False  # what is not known cannot be written
        ended = np.zeros(vocab_size, np.bool_)
        ended[PAD] = True
        self._allowed = np.stack([open_, ended])

    def start(self, rows: int, lengths: Ints | None = None) -> Ints:
        """States `(N, 1)`: 0, not ended."""
        return np.zeros((rows, 1), np.int32)

    def allowed(self, state: Ints) -> Bools:
        """`(N, V)`."""
        return self._allowed[state[:, 0]]

    def advance(self, state: Ints, tokens: Ints) -> Ints:
        """States `(N, 1)` after `tokens (N,)`."""
        ended: Ints = (state[:, 0] | (tokens == EOS))[:, None].astype(np.int32)
        return ended

    def cues(self, state: Ints) -> Ints:
        """Cues `(N, 0)`: none."""
        return np.zeros((len(state), 0), np.int32)
