"""Comparison of base tokens with binding, base tokens without binding, and byte-pair tokens.

    python benchmarks/search_tokens.py --data ../shared/data/music --out runs/search [--steps 500] [--only base ...]

As `search.py`, with the same rows and folders. A byte-pair token (Gage 1994; Sennrich et al. 2016) covers several
positions and cannot be bound to one, so merging is compared with base tokens without binding. Without binding only the
order of the tokens is left: the encoder is a BiLSTM, and the decoder is the same LSTM ("in pairs": each token is bound
to the previous one, as for sentences). All rows decode with the same grammar.

Merges are learned from bars of training songs. Batches have the same number of tokens in every row, hence more bars
with fewer tokens per bar; the table has both. Nats are those of the canonical token sequence, on the same bars for all
rows, with one sample of z.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from search import BARS, arguments, row, short, two_sided, validation
from torch import Tensor

import tokenizers
from seqvae import codec
from seqvae.checkpoint import folder as checkpoint
from seqvae.codec import Codec
from seqvae.config import ObjectiveConfig, Recipe
from seqvae.data import prepare as shards
from seqvae.data.dataset import TokenData, split_of
from seqvae.data.sampler import Batches
from seqvae.modality import load_tokenizer
from seqvae.music import library as collection
from seqvae.music import note_metrics as measures
from seqvae.music import titles
from seqvae.music.grammar import (
    DONE,
    DRUM,
    DURATION,
    LAST_PITCH,
    LAST_POSITION,
    LAST_PROGRAM,
    LENGTH,
    PHASE,
    PHASES,
    PITCH,
    POSITION,
    PROGRAM,
    MidiGrammar,
)
from seqvae.music.piece import Piece
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.nn import encoder
from seqvae.nn.encoder import RecurrentEncoder
from seqvae.nn.loss import loss
from seqvae.protocols import EOS, PAD, Bools, Ints, Tokenizer

LEARNED = 60_000  # bars to learn merges from
FIRST = 0x4E00  # the character of token 0: tokens are characters, a bar is a word
KEEP = -2  # marks a token that does not change a field of the state
ANY = 1 << 20  # above any value

ROWS: dict[str, tuple[int | None, list[str]]] = {
    "base": (None, []),
    "base, BiLSTM": (None, ["model.encoder=recurrent"]),
    "not bound": (0, ["model.encoder=recurrent"]),
    "BPE 1,000": (1000, ["model.encoder=recurrent"]),
    "BPE 4,000": (4000, ["model.encoder=recurrent"]),
    "not bound, in pairs": (0, ["model.previous=true"]),
    "BPE 1,000, in pairs": (1000, ["model.previous=true"]),
}
"""Size of the vocabulary (0: base tokens; None: base tokens with binding), and changes to the recipe."""


def _padded(rows: list[list[Ints]]) -> Ints:
    """Chunks of segments as one array `(B, C, T)`."""
    out = np.full((len(rows), len(rows[0]), max(len(chunk) for segment in rows for chunk in segment)), PAD, np.int32)
    for i, segment in enumerate(rows):
        for c, chunk in enumerate(segment):
            out[i, c, : len(chunk)] = chunk
    return out


class MergedTokenizer(MidiTokenizer):
    """`MidiTokenizer` with ids merged by byte pairs within a bar, or unmerged; tokens have no position fields."""

    def __init__(self, bpe: str = "", **settings: Any) -> None:
        """`bpe` is a byte-pair tokenizer as JSON; `settings` are those of MidiTokenizer."""
        super().__init__(**settings)
        base = self.vocab_size
        self._bpe = tokenizers.Tokenizer.from_str(bpe) if bpe else None
        self.parts = [[i] for i in range(base)]
        if self._bpe is not None:
            names = [str(self._bpe.id_to_token(i)) for i in range(self._bpe.get_vocab_size())]
            self.parts = [[ord(letter) - FIRST for letter in name] for name in names]
            assert self.parts[:base] == [[i] for i in range(base)]
        self.vocab_size, self.field_sizes = len(self.parts), ()
        self.binding_depth = np.zeros(self.vocab_size, np.int32)
        self._counts = np.array([len(part) for part in self.parts])
        self._flat = np.concatenate(self.parts).astype(np.int32)
        self._starts = self._counts.cumsum() - self._counts
        self.tables = Tables(self)

    @classmethod
    def learn(cls, bars: Sequence[Ints], size: int, **settings: Any) -> MergedTokenizer:
        """Learn merges for a vocabulary of `size` from bars of base ids; 0 for no merges."""
        if not size:
            return cls(**settings)
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
        letters = [chr(FIRST + i) for i in range(MidiTokenizer(**settings).vocab_size)]
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, initial_alphabet=letters, show_progress=False)
        bpe.train_from_iterator(map(_word, bars), trainer)
        return cls(bpe.to_str(), **settings)

    def merged(self, chunk: Ints) -> Ints:
        """Ids of this vocabulary from base ids of a chunk with EOS."""
        if self._bpe is None:
            return chunk
        return np.array([*self._bpe.encode(_word(chunk)).ids, EOS], np.int32)

    def base(self, chunk: Ints) -> Ints:
        """Base ids from ids of this vocabulary."""
        counts = self._counts[chunk]
        within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        found: Ints = self._flat[np.repeat(self._starts[chunk], counts) + within]
        return found

    def encode_notes(self, notes: Ints, bounds: Ints) -> list[Ints]:
        """As MidiTokenizer, merged."""
        return [self.merged(chunk) for chunk in super().encode_notes(notes, bounds)]

    def decode_notes(self, chunks: Sequence[Ints], bounds: Ints, shift: int = 0) -> Ints:
        """As MidiTokenizer, from merged ids."""
        return super().decode_notes([self.base(chunk) for chunk in chunks], bounds, shift)

    def mix(self, tokens: Ints, others: Ints, rng: np.random.Generator) -> Ints:
        """As MidiTokenizer; the mixed tokens are merged again."""
        if self._bpe is None:
            return super().mix(tokens, others, rng)
        bases = (
            _padded([[self.base(chunk[chunk != PAD]) for chunk in segment] for segment in x]) for x in (tokens, others)
        )
        both = super().mix(*bases, rng)
        return _padded([[self.merged(chunk[chunk != PAD]) for chunk in segment] for segment in both])

    def token_text(self, token: int) -> str:
        """The names of its base tokens."""
        return " ".join(super(MergedTokenizer, self).token_text(part) for part in self.parts[token])

    def position_fields(self, tokens: Ints) -> Ints:
        """No fields: `(..., T, 0)`."""
        return np.zeros((*tokens.shape, 0), np.int32)

    def grammar(self) -> MidiGrammar:
        """The rules of decoding."""
        return MergedGrammar(self)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `merges.json`."""
        super().save(folder)
        (folder / "merges.json").write_text(self._bpe.to_str() if self._bpe is not None else "")

    @classmethod
    def load(cls, folder: Path) -> MidiTokenizer:
        """Load a folder of `save`; a MidiTokenizer if it has no merges."""
        if not (folder / "merges.json").exists():
            plain = load_tokenizer(folder)
            assert isinstance(plain, MidiTokenizer)
            return plain
        settings = json.loads((folder / "tokenizer.json").read_text())
        del settings["kind"]
        return cls((folder / "merges.json").read_text(), **settings)


def _word(chunk: Ints) -> str:
    """Base ids of a chunk without EOS, as one character each."""
    return "".join(chr(FIRST + token) for token in chunk[chunk != EOS].tolist())


class Tables:
    """Preconditions and effects of merged tokens on the grammar's state, as tables by field of the state."""

    def __init__(self, tokenizer: MergedTokenizer) -> None:
        kinds, values = tokenizer.token_types, tokenizer.token_values
        size = tokenizer.vocab_size
        begins = np.array([kinds[part[0]] for part in tokenizer.parts])
        least = np.full((3, size), ANY)  # first program, position and pitch, if it has to ascend
        highest = np.full(size, -1)  # position
        drum = np.full(size, -1)  # for notes of the program before the token: 1 drums, 0 pitched
        self.after = {c: np.full(size, KEEP, np.int32) for c in (LAST_PROGRAM, LAST_POSITION, LAST_PITCH)}
        program, position, pitch = self.after.values()
        self.phase = np.array([PHASES[kinds[part[-1]]] for part in tokenizer.parts], np.int32)
        for token, part in enumerate(tokenizer.parts):
            for kind, value in zip(kinds[part].tolist(), values[part].tolist(), strict=True):
                if kind == PROGRAM:
                    if program[token] == KEEP:
                        least[0, token] = value
                    program[token], position[token], pitch[token] = value, -1, -1
                elif kind == POSITION:
                    if position[token] == KEEP:
                        least[1, token] = value
                    position[token], pitch[token] = value, -1
                    highest[token] = max(highest[token], value)
                elif kind in (PITCH, DRUM):
                    if pitch[token] == KEEP:
                        least[2, token] = value
                    if program[token] == KEEP:
                        drum[token] = int(kind == DRUM)
                    pitch[token] = value
        opens = {  # by phase, the types that a token may begin with, as in MidiGrammar.allowed
            0: (PROGRAM,), 1: (POSITION,), 2: (PITCH, DRUM), 3: (DURATION,),
            4: (PROGRAM, POSITION, PITCH, DRUM), DONE: (),
        }  # fmt: skip
        self.by_phase = np.stack([np.isin(begins, opens[phase]) for phase in range(6)])
        self.by_phase[[0, 4], EOS] = True
        self.by_phase[DONE, PAD] = True
        last = np.arange(-1, 129)[:, None]
        self.by_program = (least[0] > last) & ((drum == -1) | (drum == (last == 128)))
        self.by_position = least[1] > np.arange(-1, tokenizer.max_steps)[:, None]
        self.by_pitch = least[2] > np.arange(-1, 128)[:, None]
        self.by_length = highest < np.arange(tokenizer.max_steps + 1)[:, None]


class MergedGrammar(MidiGrammar):
    """The grammar of MidiTokenizer for merged tokens: one is allowed if its base tokens are, one after the other."""

    def __init__(self, tokenizer: MergedTokenizer) -> None:
        super().__init__(tokenizer.token_types, tokenizer.token_values, tokenizer.max_steps)
        self.rules = tokenizer.tables

    def states(self, tokens: Ints) -> Ints:
        """States `(..., T, 5)` before each token of full chunks."""
        index = np.arange(tokens.shape[-1])
        state = np.empty((*tokens.shape, 5), np.int32)
        state[..., 0, :] = self.start(1)[0]
        state[..., LENGTH] = self._max_steps
        state[..., 1:, PHASE] = self.rules.phase[tokens[..., :-1]]
        for column, table in self.rules.after.items():
            written = table[tokens]
            last = np.maximum.accumulate(np.where(written != KEEP, index, -1), axis=-1)
            value = np.where(last >= 0, np.take_along_axis(written, np.maximum(last, 0), -1), -1)
            state[..., 1:, column] = value[..., :-1]
        return state

    def allowed(self, state: Ints) -> Bools:
        """Mask `(N, V)` of the tokens allowed in each state."""
        phase, program, position, pitch, length = state.T
        ok: Bools = self.rules.by_phase[phase]
        ok &= self.rules.by_program[program + 1]
        ok &= self.rules.by_position[position + 1]
        ok &= self.rules.by_pitch[pitch + 1]
        ok &= self.rules.by_length[np.minimum(length, self._max_steps)]
        return ok

    def advance(self, state: Ints, tokens: Ints) -> Ints:
        """States `(N, 5)` after `tokens (N,)`."""
        state = state.copy()
        state[:, PHASE] = self.rules.phase[tokens]
        for column, table in self.rules.after.items():
            value = table[tokens]
            state[:, column] = np.where(value == KEEP, state[:, column], value)
        return state

    def position_fields(self, state: Ints) -> Ints:
        """No fields: `(N, 0)`."""
        return np.zeros((len(state), 0), np.int32)


class PaddedReader(RecurrentEncoder):
    """The package's BiLSTM with equal weights and results, but without packed sequences: several times as fast here."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Outputs `(N, T, W)` of `x (N, T, W)`, `mask (N, T)`; each row is reversed by itself for the backward half."""
        steps = torch.arange(x.shape[1], device=x.device)
        back = mask.sum(1, keepdim=True) - 1 - steps
        back = torch.where(back >= 0, back, steps)[..., None]
        state = x.new_zeros(1, len(x), self.lstm.hidden_size)

        def read(x: Tensor, weights: list[Tensor]) -> Tensor:
            out: Tensor = torch.lstm(x, (state, state), weights, True, 1, 0.0, self.training, False, True)[0]
            return out

        weights = [weight for weight in self.lstm._flat_weights if weight is not None]
        turned = read(x.gather(1, back.expand_as(x)), weights[4:])
        return torch.cat([read(x, weights[:4]), turned.gather(1, back.expand_as(turned))], -1)


@contextlib.contextmanager
def known() -> Iterator[None]:
    """Patch the package so that it loads folders of MergedTokenizer."""
    with (
        mock.patch.object(checkpoint, "load_tokenizer", MergedTokenizer.load),
        mock.patch.object(shards, "load_tokenizer", MergedTokenizer.load),
        mock.patch.object(encoder, "RecurrentEncoder", PaddedReader),
    ):
        yield


def training_bars(data: Path, base: MidiTokenizer) -> list[Ints]:
    """LEARNED random bars with notes of training songs."""
    files = [path for path in collection.find([data]) if split_of(titles.title(path)) == "train"]
    found = collection.read_all(files, cache=collection.default_cache())
    bars = [bar for _, piece in found if isinstance(piece, Piece) for bar in base.encode(piece) if len(bar) > 1]
    chosen = np.random.default_rng(0).permutation(len(bars))[:LEARNED]
    return [bars[i] for i in chosen]


def bars_seen(recipe: Recipe, data: TokenData, tokenizer: Tokenizer) -> int:
    """Number of bars with notes in all batches of a training, drawn as in `Run.step`."""
    config, chunks = recipe.train, recipe.model.chunks
    batches = Batches(data, "train", chunks, config.batch_tokens, config.max_windows, config.seed)
    total = 0
    for step, (epoch, position, tokens) in enumerate(batches):
        if step == config.steps:
            break
        rng = np.random.default_rng([config.seed, epoch, position])
        if rng.random() < config.mix:
            tokens = tokenizer.mix(tokens, batches.random_segments(len(tokens), rng), rng)
            tokens = tokens[: max(1, config.batch_tokens // (tokens.shape[1] * tokens.shape[2]))]
        total += int(((tokens != PAD).sum(-1) > 1).sum())
    return total


@torch.no_grad()
def nats(model: Codec, songs: Sequence[Piece]) -> list[float]:
    """Sum of reconstruction and KL of each song in nats per bar, with one sample of z."""
    torch.manual_seed(0)
    out = []
    for song in songs:
        tokens, fields = model.tensors(model.segments(song))
        found = loss(model.model, tokens, fields, ObjectiveConfig(), 1 << 30, False, model._batched.allowed(tokens))
        out.append((found.reconstruction + found.kl) * len(tokens) / (len(song.bounds) - 1))
    return out


def main() -> None:
    options = arguments(__doc__, ROWS)
    data, songs = options.data.resolve(), validation(options.data.resolve(), options.songs, BARS)
    found: dict[str, dict[str, Any]] = {}
    for name in options.only:
        size, changes = ROWS[name]
        recipe = short(options.recipe, options.steps, changes)
        folder = options.out / name.replace(" ", "-").replace(",", "")
        room = options.out / ("data" if size is None else f"data-merged-{size}")
        spelled = None
        if size is not None:
            spelled = room / "tokenizer"
            if not spelled.exists():
                base = MidiTokenizer(**_settings(recipe))
                bars = training_bars(data, base) if size else []
                MergedTokenizer.learn(bars, size, **_settings(recipe)).save(spelled)

        def prepared(recipe: Recipe, room: Path = room, spelled: Path | None = spelled) -> tuple[TokenData, Tokenizer]:
            return shards.prepare(recipe, [data], room, tokenizer=spelled, report=print)[:2]

        with known():
            found[name] = row(folder, recipe, prepared, songs)
            kept = folder / "bars.json"
            if not kept.exists():
                tokens, tokenizer = prepared(recipe)
                model = codec.load(folder / "best")
                lengths = [len(bar) - 1 for song in songs for bar in tokenizer.encode(song) if len(bar) > 1]
                more = {"seen": bars_seen(recipe, tokens, tokenizer), "nats": nats(model, songs)}
                kept.write_text(json.dumps({**more, "tokens": float(np.mean(lengths))}))
            found[name]["bars"] = json.loads(kept.read_text())
        print(f"{name}: done", flush=True)
    print(f"\n{options.steps} steps, {len(songs)} validation songs of {BARS} bars\n")
    print("| | tokens per bar | bars seen | minutes | nats per bar | p | note F1, encoder alone | p | after refinement "
          "| p | KL, bits per bar |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, one in found.items():
        print(f"| {name} | {one['bars']['tokens']:.0f} | {one['bars']['seen']:,} | {one['minutes']:.1f} | "
              + " | ".join(cells(one, found.get("base"))) + " |")  # fmt: skip


def cells(one: dict[str, Any], base: dict[str, Any] | None) -> list[str]:
    """Nats per bar and note F1 of a row, each with p of the difference to `base`, and KL in bits per bar."""
    out = []
    for now, before, digits in (
        (one["bars"]["nats"], base and base["bars"]["nats"], 0),
        (one["rough"], base and base["rough"], 3),
        (one["refined"], base and base["refined"], 3),
    ):
        mean, low, high = measures.interval(np.array(now))
        out.append(f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")
        out.append(f"{two_sided(np.array(now) - np.array(before)):.3f}" if base and base is not one else "")
    return [*out, f"{np.mean(one['refined_bits']):.0f}"]


def _settings(recipe: Recipe) -> dict[str, Any]:
    """The settings of MidiTokenizer in a recipe."""
    config = recipe.tokenizer
    return {"max_steps": config.max_steps, "common_key": config.common_key}


if __name__ == "__main__":
    main()
