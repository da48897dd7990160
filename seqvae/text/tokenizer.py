"""Tokenizer of sentences: SentencePiece, lossless.

Scope: learning a vocabulary from lines, encoding of any line, valid UTF-8 in decoding. Out of scope: files of sentences
(text/lines.py reads them), styles and torch. Everything here is numpy.

A line is encoded with a space before it, so that its first word has the same token as elsewhere; decoding removes that
space. Letters too rare for the vocabulary are encoded as their UTF-8 bytes, one token each.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import sentencepiece as spm

from seqvae.config import TokenizerConfig
from seqvae.errors import TokenizerError
from seqvae.protocols import BOS, EOS, MASK, PAD, Bools, Ints, NoPositionFields
from seqvae.text.augment import augmented

SPACE = "\u2581"  # SentencePiece's symbol for a space; the same character in a line must not become a space
MODEL = "sentencepiece.model"
SPECIAL = ("<pad>", "<bos>", "<eos>", "<mask>")
LEAST = len(SPECIAL) + 256 + 1  # every byte, and the space
_SHORTEST = 5  # minimum tokens of a chunk: the four bytes of one letter, and EOS
_LONG = 1 << 19  # letters: a longer line is encoded in parts
_PART = 1000  # letters: the trainer skips lines of more than 4,192 bytes
# Never part of a learned token: characters that the trainer reserves (it skips lines with some of them), and line ends,
# which the grammar can then forbid without forbidding anything else.
_APART = set("\u2581\u2585\u2047\0\t\n\r")


class TextTokenizer(NoPositionFields):
    """Byte-pair or unigram tokens (Sennrich et al. 2016; Kudo 2018) or characters, with fallback to bytes.

    A piece is one line, a `str`. Encoding is lossless for all of Unicode: ``decode_text(encode(line)) == line``. A line
    is one chunk, unless it has more than `max_tokens` tokens including EOS; then it is cut, before a word if possible.
    """

    kind = "text"
    overlap = 0

    def __init__(self, model: bytes, max_tokens: int = 128) -> None:
        """`model` is the output of SentencePiece's trainer; raises TokenizerError for one not made by `train`.

        `max_tokens` is the maximum number of tokens of a chunk, EOS included.
        """
        if max_tokens < _SHORTEST:
            raise TokenizerError(f"max_tokens {max_tokens} cannot hold a four-byte letter; choose {_SHORTEST} or more")
        try:
            if not model:  # SentencePiece accepts an empty model, to be loaded later
                raise RuntimeError("it is empty")
            self._pieces = spm.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise TokenizerError(f"{MODEL}: cannot be read ({error}); copy it again") from error
        self.model, self.max_tokens = model, max_tokens
        ids = list(range(self._pieces.get_piece_size()))
        names, spelled = self._pieces.id_to_piece(ids), self._pieces.is_byte(ids)
        bytes_ = {int(name[1:-1], 16): i for i, name, byte in zip(ids, names, spelled, strict=True) if byte}
        special = (self._pieces.pad_id(), self._pieces.bos_id(), self._pieces.eos_id(), self._pieces.unk_id())
        if special != (PAD, BOS, EOS, MASK) or len(bytes_) != 256:
            raise TokenizerError(f"{MODEL}: has other special tokens, or no byte tokens; train it with seqvae")
        self.vocab_size = len(ids)
        self.binding_depth: Ints = np.zeros(self.vocab_size, np.int32)
        self._byte_ids = [bytes_[value] for value in range(256)]
        self.byte_of: Ints = np.full(self.vocab_size, -1, np.int32)
        """`(V,)`: the byte of each token, -1 for tokens that are not a byte."""
        self.byte_of[self._byte_ids] = np.arange(256)
        self._surface = [name.replace(SPACE, " ").encode() for name in names]
        for value, i in bytes_.items():
            self._surface[i] = bytes([value])
        self._surface[: len(SPECIAL)] = [b""] * len(SPECIAL)
        learned = [name for name, byte in zip(names, spelled, strict=True) if not byte][len(SPECIAL) :]
        self.by_character = all(len(name) == 1 for name in learned)
        """Whether each token is one character or a byte."""
        self._opens: Bools = np.array([name.startswith(SPACE) for name in names])
        self._inside: Bools = (self.byte_of >= 0x80) & (self.byte_of < 0xC0)
        self._grammar = TextGrammar(self)

    @classmethod
    def make(cls, config: TokenizerConfig, pieces: Callable[[], Iterable[Any]]) -> TextTokenizer:
        """As `modality.make`."""
        return cls.train(pieces(), config.vocab_size, config.algorithm, config.max_tokens)

    @classmethod
    def train(
        cls, lines: Iterable[str], vocab_size: int = 4000, algorithm: str = "bpe", max_tokens: int = 128
    ) -> TextTokenizer:
        """Learn a vocabulary from lines, in memory; equal lines give equal tokenizers.

        `vocab_size` is the maximum number of tokens: few lines give fewer. `algorithm` is `bpe`, `unigram`, or
        `char` for one token a character. Raises TokenizerError if there are no lines, or if `vocab_size` is below 261.
        """
        if vocab_size < LEAST:
            raise TokenizerError(
                f"vocab_size {vocab_size}: the bytes and special tokens alone are {LEAST}; choose more"
            )
        parts = [part for line in lines for part in _parts(line)]
        if not parts:
            raise TokenizerError("there are no lines to learn a vocabulary from; check the files that were given")
        if rare := _rare_letters(parts, (vocab_size - LEAST) // 2):
            # lines are split at rare letters, which the trainer would otherwise add to the vocabulary
            gap = re.compile(f"[{''.join(map(re.escape, sorted(rare)))}]+")
            parts = [between for part in parts for between in gap.split(part) if between]
        return cls(_sentencepiece(parts, vocab_size, algorithm), max_tokens)

    @classmethod
    def load(cls, folder: Path, max_tokens: int) -> TextTokenizer:
        """The tokenizer that `save` wrote; raises OSError or TokenizerError if the model is missing or invalid."""
        if type(max_tokens) is not int:
            raise TokenizerError(f"max_tokens is {max_tokens!r}, not an integer")
        return cls((folder / MODEL).read_bytes(), max_tokens)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and the SentencePiece model."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL).write_bytes(self.model)
        (folder / "tokenizer.json").write_text(json.dumps({"kind": self.kind, "max_tokens": self.max_tokens}) + "\n")

    def encode(self, piece: Any) -> list[Ints]:
        """Token ids of every chunk of a line, each ending in EOS; raises TokenizerError for an unpaired surrogate."""
        return self.encode_all([piece])[0]

    def encode_all(self, lines: Sequence[str]) -> list[list[Ints]]:
        """As `encode`, for many lines at once."""
        if max(map(len, lines), default=0) > _LONG:
            return [self._in_parts(line) if len(line) > _LONG else self.encode(line) for line in lines]
        return self._spelled([f" {line}" if line else "" for line in lines])

    def _in_parts(self, line: str) -> list[Ints]:
        """The chunks of a long line: encoded at once, at a hundred bytes a token, it could fill the memory."""
        return [chunk for part in _parts(line, _LONG) for chunk in self._spelled([part])[0]]

    def _spelled(self, whole: Sequence[str]) -> list[list[Ints]]:
        """The chunks of lines with their space before them, or of parts of a line."""
        wanted = [_utf8(line) for line in whole]
        plain = iter(self._pieces.encode([line for line in whole if SPACE not in line], num_threads=1))
        out: list[list[Ints]] = []
        for line, spelled in zip(whole, wanted, strict=True):
            ids: list[int] = next(plain) if SPACE not in line else self._around_signs(line)
            if b"".join(map(self._surface.__getitem__, ids)) != spelled:
                ids = [self._byte_ids[byte] for byte in spelled]  # never observed, but encoding must be lossless
            out.append(self._chunks(ids))
        return out

    def _around_signs(self, line: str) -> list[int]:
        """Ids of a line that contains SentencePiece's symbol for a space, with that symbol as bytes."""
        first, *rest = self._pieces.encode(line.split(SPACE), num_threads=1)
        sign = [self._byte_ids[byte] for byte in SPACE.encode()]
        return [*first, *(i for part in rest for i in (*sign, *part))]

    def _chunks(self, ids: list[int]) -> list[Ints]:
        """The ids of a line in chunks of at most `max_tokens`, each with its EOS."""
        if len(ids) < self.max_tokens:
            return [np.array([*ids, EOS], np.int32)]
        tokens = np.array(ids, np.int32)
        opens, inside = self._opens[tokens], self._inside[tokens]
        # for every index the latest one up to it before a word, and the latest one between two characters
        places = np.arange(len(tokens))
        words = np.maximum.accumulate(np.where(opens, places, 0))
        letters = np.maximum.accumulate(np.where(inside, 0, places))
        ends = [0]
        while len(tokens) - ends[-1] >= self.max_tokens:
            last = ends[-1] + self.max_tokens - 1
            # before a word if possible, else between two characters (of at most four bytes each)
            ends.append(int(words[last]) if words[last] > ends[-1] else int(letters[last]))
        out: list[Ints] = []
        for start, end in pairwise([*ends, len(tokens)]):
            chunk = np.empty(end - start + 1, np.int32)
            chunk[:-1], chunk[-1] = tokens[start:end], EOS
            out.append(chunk)
        return out

    def decode_text(self, chunks: Sequence[Ints]) -> str:
        """The line of some chunks; invalid UTF-8 becomes U+FFFD.

        Tokens after the EOS of a chunk are ignored. Raises TokenizerError for ids outside the vocabulary.
        """
        spelled = b"".join(self._bytes(_until_the_end(chunk)) for chunk in chunks)
        return spelled.decode(errors="replace").removeprefix(" ")

    def _bytes(self, ids: list[int]) -> bytes:
        """The bytes of tokens; raises TokenizerError for ids outside the vocabulary."""
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise TokenizerError(
                f"tokens outside of the vocabulary of {self.vocab_size}: {min(ids)} to {max(ids)}; "
                "decode with the tokenizer that encoded them"
            )
        return b"".join(map(self._surface.__getitem__, ids))

    def token_text(self, token: int) -> str:
        """A token as text for display: its text, a byte as ``<0xNN>``, a special token by its name."""
        if token < len(SPECIAL):
            return SPECIAL[token]
        byte = int(self.byte_of[token])
        return f"<0x{byte:02X}>" if byte >= 0 else self._surface[token].decode()

    def mix(self, tokens: Ints, others: Ints, rng: np.random.Generator) -> Ints:
        """Segments `(B, C, T)` whose lines have words outside of the vocabulary (text/augment.py); ignores `others`.

        A chunk stays as it is if it is blank or its variant is longer than `max_tokens`.
        """
        draw = Random(int(rng.integers(1 << 62)))
        chunks = [chunk[: int((chunk != PAD).sum())] for chunk in tokens.reshape(-1, tokens.shape[-1])]
        lines = [self.decode_text([chunk]) for chunk in chunks]
        variants = self.encode_all([augmented(line, draw) if line.strip() else "" for line in lines])
        chunks = [
            new[0] if len(new) == 1 and line.strip() else old
            for line, new, old in zip(lines, variants, chunks, strict=True)
        ]
        out = np.full((len(chunks), max(tokens.shape[-1], *map(len, chunks))), PAD, np.int32)
        for row, chunk in zip(out, chunks, strict=True):
            row[: len(chunk)] = chunk
        return out.reshape(*tokens.shape[:-1], -1)

    def grammar(self) -> TextGrammar:
        """The rules of decoding."""
        return self._grammar


def _utf8(line: str) -> bytes:
    """The bytes of a line; raises TokenizerError with the position of an unpaired surrogate."""
    try:
        return line.encode()
    except UnicodeEncodeError as error:
        near = ascii(line[max(0, error.start - 10) : error.start + 10])
        raise TokenizerError(
            f"half of a surrogate pair (U+{ord(line[error.start]):04X}) near {near} is not a character; "
            "read the text with the encoding it was written in"
        ) from error


def _parts(line: str, most: int = _PART) -> Iterator[str]:
    """A line with a space before it, in parts of at most `most` letters, cut before spaces if possible."""
    _utf8(line)
    line = f" {line}"
    start = 0
    while len(line) - start > most:
        end = line.rfind(" ", start + 1, start + most)
        end = end if end > 0 else start + most
        yield line[start:end]
        start = end
    yield line[start:]


def _until_the_end(chunk: Ints) -> list[int]:
    """The ids of a chunk before its EOS."""
    ids: list[int] = np.asarray(chunk).tolist()
    return ids[: ids.index(EOS)] if EOS in ids else ids


# --- grammar ----------------------------------------------------------------------------------------------------------

# States: between two characters, before the last bytes of one, at the end. Four leading bytes are followed by a
# narrower range than the others, which excludes overlong encodings, surrogates and code points beyond U+10FFFF.
_BETWEEN, _ONE, _TWO, _THREE, _E0, _ED, _F0, _F4, _DONE = range(9)
_FOLLOWING = {  # allowed bytes in each state, and the next state
    _ONE: (range(0x80, 0xC0), _BETWEEN),
    _TWO: (range(0x80, 0xC0), _ONE),
    _THREE: (range(0x80, 0xC0), _TWO),
    _E0: (range(0xA0, 0xC0), _ONE),
    _ED: (range(0x80, 0xA0), _ONE),
    _F0: (range(0x90, 0xC0), _TWO),
    _F4: (range(0x80, 0x90), _TWO),
}
_LEADING = (
    (range(0x00, 0x80), _BETWEEN),
    (range(0xC2, 0xE0), _ONE),
    (range(0xE0, 0xF0), _TWO),
    (range(0xF1, 0xF4), _THREE),
    # these override the ranges above
    ((0xE0,), _E0),
    ((0xED,), _ED),
    ((0xF0,), _F0),
    ((0xF4,), _F4),
)


class TextGrammar:
    """Grammar of sentences: every decoded line is valid Unicode without line ends; nothing else is excluded."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        bytes_ = tokenizer.byte_of
        after = np.full(256, -1, np.int32)
        for values, state in _LEADING:
            after[list(values)] = state
        leads = bytes_ >= 0
        leads[leads] = after[bytes_[leads]] >= 0
        # (9, V) tables by state: allowed tokens, and the next state
        self._allowed = np.zeros((9, tokenizer.vocab_size), np.bool_)
        self._next = np.full((9, tokenizer.vocab_size), _BETWEEN, np.int32)
        free = (bytes_ < 0) | leads
        self._next[:, leads] = after[bytes_[leads]]
        for state, (values, then) in _FOLLOWING.items():
            follows = np.isin(bytes_, values)
            self._allowed[state] = follows
            self._next[state, follows] = then
        free[[PAD, BOS, MASK]] = False
        ends = [token for token in range(tokenizer.vocab_size) if {"\n", "\r"} & set(tokenizer.token_text(token))]
        free[[*ends, *np.flatnonzero(np.isin(bytes_, (0x0A, 0x0D)))]] = False
        self._allowed[_BETWEEN] = free
        self._allowed[_DONE, PAD] = True
        self._next[:, EOS] = _DONE
        self._next[_DONE] = _DONE

    def start(self, rows: int, lengths: Ints | None = None) -> Ints:
        """Initial states `(N, 1)`; `lengths` is ignored, since the length of a sentence is not known beforehand."""
        return np.full((rows, 1), _BETWEEN, np.int32)

    def allowed(self, state: Ints) -> Bools:
        """`(N, V)`: between characters all tokens except continuation bytes; within one, the bytes that continue it."""
        return self._allowed[state[:, 0]]

    def advance(self, state: Ints, tokens: Ints) -> Ints:
        """States `(N, 1)` after `tokens (N,)`."""
        return self._next[state[:, 0], tokens][:, None]

    def position_fields(self, state: Ints) -> Ints:
        """Position fields `(N, 0)`: none."""
        return np.zeros((len(state), 0), np.int32)


def _rare_letters(parts: Sequence[str], room: int) -> set[str]:
    """Letters without a token of their own: those in `_APART`, and all but the `room` most frequent of the others.

    Thus at most half of the learned tokens are single letters.
    """
    letters = set().union(*parts) - {" "}
    rare = letters & _APART
    if len(letters - rare) > room:
        counts: Counter[str] = Counter()
        for part in parts:
            counts.update(part)
        rare |= set(sorted(letters - rare, key=lambda letter: (-counts[letter], letter))[room:])
    return rare


def _sentencepiece(parts: Sequence[str], vocab_size: int, algorithm: str) -> bytes:
    """A SentencePiece model learned from parts of lines; raises TokenizerError if none can be learned."""
    written = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(parts),
            model_writer=written,
            model_type=algorithm,
            vocab_size=vocab_size,
            hard_vocab_limit=False,  # few lines give few tokens
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,  # we add the space ourselves: parts of a line must not get one
            split_by_unicode_script=False,
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            unk_id=MASK,  # with byte tokens nothing is unknown
            # the trainer splits lines at these names, and a corpus may contain "<unk>" or "<eos>"
            pad_piece=f"<pad{SPACE}>",
            bos_piece=f"<bos{SPACE}>",
            eos_piece=f"<eos{SPACE}>",
            unk_piece=f"<mask{SPACE}>",
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise TokenizerError(f"no vocabulary of {vocab_size} can be learned here ({error})") from error
    return written.getvalue()
