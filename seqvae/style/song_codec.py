"""Encoding, moving and decoding songs with the song model.

Scope: `midi.Piece` to song and bar vectors, the move of a song vector together with its bars, decoding to notes. Out of
scope: fitting of styles, music files, training.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae import config
from seqvae.checkpoint.folder import load_tensors, save_tensors
from seqvae.music import piece as midi
from seqvae.music.piece import Notes, Piece
from seqvae.music.song_bars import CHROMA_LEVELS, SongBars, song_bars
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.nn.posterior import Posterior
from seqvae.nn.sampling import Sampling, decode
from seqvae.nn.song_model import Conditions, SongConfig, SongModel
from seqvae.protocols import PAD

Ints = NDArray[np.int32]
GROUP = 64
"""Bars encoded side by side, of similar lengths."""


@dataclass(frozen=True)
class Song:
    """A song of C bars with the model's inputs and posteriors."""

    piece: Piece
    bars: SongBars
    given: Conditions
    bar: Posterior
    """q(z_b | x_b), `(C, D)`."""
    song: Posterior
    """q(s | all bars), `(1, E)`."""


class SongCodec:
    """A tokenizer and a song model."""

    def __init__(self, model: SongModel, tokenizer: MidiTokenizer) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @staticmethod
    def load(folder: Path) -> SongCodec:
        """The model in `folder`: `song.json` and its files of weights.

        Raises OSError and ValueError if there is no such file, and CheckpointError for invalid weights.
        """
        about = config.read(folder / "song.json")
        tokenizer = MidiTokenizer(max_steps=about["config"]["steps"], common_key=True)
        model = SongModel(
            SongConfig(**about["config"]),
            torch.from_numpy(tokenizer.token_types),
            torch.from_numpy(tokenizer.token_values),
        )
        weights: dict[str, Tensor] = {}
        for part in sorted(folder.glob("song-*.safetensors")):
            weights |= load_tensors(part)[0]
        model.load_state_dict({name: x.float() for name, x in weights.items()})
        return SongCodec(model, tokenizer)

    def save(self, folder: Path) -> None:
        """Write `song.json` and the weights in bf16, for `load`."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: x.detach().bfloat16().contiguous() for name, x in self.model.state_dict().items()}
        save_tensors(weights, {}, folder / "song-0.safetensors")
        (folder / "song.json").write_text(json.dumps({"config": asdict(self.model.config)}) + "\n")

    # --- encoding -----------------------------------------------------------------------------------------------------

    def conditions(self, bars: SongBars, harmony: bool = True, melody: bool = True) -> Conditions:
        """Conditions of all bars; harmony or melody can be omitted."""
        chroma = torch.from_numpy(bars.chroma).float() / CHROMA_LEVELS
        bass = torch.nn.functional.one_hot(torch.from_numpy(bars.bass).long(), 13)[..., 1:].float()
        count = len(bars.lengths)
        line = torch.from_numpy(bars.melody).long()
        has_line = float(melody and bool(bars.melody.any()))
        return Conditions(
            torch.from_numpy(bars.lengths).long(),
            torch.cat([chroma, bass], -1) * float(harmony),
            torch.full((count,), float(harmony)),
            line * int(melody),
            torch.full((count,), has_line),
        )

    @torch.no_grad()
    def features(self, tokens: list[Ints]) -> Tensor:
        """Features `(C, F)` of bars, encoded in groups of similar lengths."""
        order = np.argsort([len(bar) for bar in tokens], kind="stable")
        out = torch.zeros(len(tokens), self.model.encoder.size)
        for at in range(0, len(order), GROUP):
            rows = order[at : at + GROUP]
            longest = max(len(tokens[i]) for i in rows)
            padded = np.full((len(rows), longest), PAD, np.int64)
            for row, i in enumerate(rows):
                padded[row, : len(tokens[i])] = tokens[i]
            out[torch.from_numpy(rows)] = self.model.bar_features(torch.from_numpy(padded)).float()
        return out

    @torch.no_grad()
    def encode(self, piece: midi.Source, harmony: bool = True, melody: bool = True) -> Song:
        """A song with its posteriors; the song vector is inferred from all bars that have notes."""
        read = midi.read(piece)
        bars = song_bars(read, self.tokenizer)
        features = self.features(bars.tokens)
        counts = torch.tensor([float(len(bar) > 1) for bar in bars.tokens])
        return Song(
            read,
            bars,
            self.conditions(bars, harmony, melody),
            self.model.bar_posterior(features),
            self.model.song_posterior(features[None], counts[None]),
        )

    # --- moving -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prior(self, song: Tensor, given: Conditions) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `(C, D)` of p(z_b | s, h_b, m_b), each bar on its own; `song (1, E)`."""
        condition = torch.cat([song.expand(len(given.length), -1), self.model.condition(given)], -1)[:, None]
        nothing = torch.zeros(len(condition))
        mean, logvar = self.model.prior(condition, torch.zeros(len(condition), 1, self.model.config.bar), nothing)
        return mean[:, 0], (0.5 * logvar[:, 0]).exp()

    def move(self, song: Song, to: Tensor, kept: float = 1.0) -> Tensor:
        """Bar vectors `(C, D)` of a song after its song vector changes to `to (1, E)`.

        The residual of a bar from its prior's mean, in units of the prior's standard deviation, stays the same
        (abduction, action, prediction: Pearl 2009): z' = m' + k v' (z - m) / v, with k = `kept`.
        """
        mean, spread = self.prior(song.song.mean, song.given)
        moved_mean, moved_spread = self.prior(to, song.given)
        return moved_mean + kept * moved_spread * (song.bar.mean - mean) / spread

    # --- decoding -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate_tokens(
        self, z: Tensor, song: Tensor, given: Conditions, sampling: Sampling | None = None
    ) -> list[Ints]:
        """Token ids of each bar from `z (C, D)` and `song (1, E)`."""
        model, grammar = self.model, self.tokenizer.grammar()
        rest, prefix, tables = model.start(z, song.expand(len(z), -1), given, model.condition(given))
        harmony, caches = given.harmony, model.prefill(prefix)
        place = torch.zeros(len(z), 1, 3, dtype=torch.long)  # fields of the token before

        def step(tokens: Tensor, fields: Tensor, keep: Tensor | None) -> Tensor:
            nonlocal rest, harmony, tables, caches, place
            if keep is not None:
                rest, harmony, tables, place = rest[keep], harmony[keep], tables[keep], place[keep]
                caches = [[x[keep] for x in cache] for cache in caches]
            rest = rest - model.written_part(tokens, place)[:, 0]
            place = fields
            logits, caches = model.step(tokens, fields, rest, harmony, tables, caches)
            return logits

        state = grammar.start(len(z), given.length.numpy().astype(np.int32))
        return decode(step, grammar, state, sampling or Sampling(max_tokens=512), z.device)

    def notes(self, song: Song, tokens: list[Ints]) -> Notes:
        """Notes `(N, 5)` of decoded bars, in the song's own key, with a velocity of 80."""
        rows = self.tokenizer.decode_notes(tokens, song.piece.bounds, song.bars.shift)
        return np.concatenate([rows, np.full((len(rows), 1), 80, np.int32)], 1)
