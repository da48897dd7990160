"""`SongVAE`: the song model as a model of one latent vector a segment, in coordinates in which the prior is N(0, I).

Scope: song and bar vectors as rows, conditions of bars as tensors, decoding of rows. Out of scope: the song model's
equations (nn/song_model.py), files, styles.

A segment is one bar, and its row is [s, e_b]: the song vector s, equal in all rows of a song, and the bar's residual

    e_b = (z_b - m(s, h_b, m_b)) / v(s, h_b, m_b)

from the mean m of the learned prior without history, in units of its standard deviation v (a non-centred
parametrisation, Papaspiliopoulos et al. 2007). So the prior of a row is N(0, I), and a song whose rows move by a
difference of song vectors keeps its residuals: z_b' = m(s', h_b, m_b) + v(s', h_b, m_b) e_b (abduction, action and
prediction, Pearl 2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from seqvae.config import ModelConfig
from seqvae.nn.beam import search
from seqvae.nn.kernels import multiplies_bf16
from seqvae.nn.latent import LatentModel
from seqvae.nn.posterior import LOGVAR_RANGE, Posterior
from seqvae.nn.sampling import Sampling, decode
from seqvae.nn.song_model import PROGRAM, Conditions, SongModel
from seqvae.protocols import BOS, PAD, Given, Grammar, Guidance

KEPT = 0.65  # part of the residuals that is kept where song vectors move by a distance of 1


class SongVAE(LatentModel):
    """A song model whose latent vectors are rows [s, e_b]; see the module."""

    conditioned = True

    def __init__(self, config: ModelConfig, kind: Tensor, value: Tensor) -> None:
        """`kind (V,)` and `value (V,)`: type and value of every token. Raises ValueError for sizes that do not fit."""
        super().__init__()
        song = config.song
        if song is None or (config.chunks, config.latent) != (1, song.song + song.bar):
            raise ValueError("a song model has chunks = 1 and latent = song.song + song.bar")
        if config.without:
            raise ValueError("a song model has has_bar in place of model.without; leave it at 0")
        self.config, self.vocab_size, self.field_sizes = config, len(kind), (130, song.steps + 1, 129)
        self.shared, self.band, self.guidance = song.song, song.band, song.guidance
        self.net = SongModel(song, kind, value)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.net.no_song.device

    # --- encoding -----------------------------------------------------------------------------------------------------

    def encode(self, tokens: Tensor, fields: Tensor) -> Posterior:
        """A bar's evidence of the song vector, not yet pooled over bars, and q(z_b | x_b): `(B, D)`.

        `song_posterior` is linear in the mean over bars, so it is the mean of this evidence.
        """
        features = self.net.bar_features(tokens[:, 0])
        bar, vote = self.net.bar_posterior(features), self.net.feature(features)
        mean, logvar = self.net.song_mean(vote), self.net.song_logvar(vote)
        return Posterior(torch.cat([mean.float(), bar.mean], -1), torch.cat([logvar.float(), bar.logvar], -1))

    def pooled(self, alone: Posterior, piece: Tensor, sounding: Tensor, given: Given | None) -> Posterior:
        """Rows [s, e_b] `(S, D)`: the evidence averaged over the bars with notes, and the bars' residuals.

        q(e_b) is that of z_b in the prior's units under the mean of s.
        """
        count = int(piece.max()) + 1
        weight = torch.where(alone.mean.new_zeros(count).index_add(0, piece, sounding)[piece] > 0, sounding, 1.0)
        total = weight.new_zeros(count).index_add(0, piece, weight)

        def average(x: Tensor) -> Tensor:
            sums = x.new_zeros(count, x.shape[1]).index_add(0, piece, x * weight[:, None])
            return (sums / total[:, None])[piece]

        song = average(alone.mean[:, : self.shared])
        song_logvar = average(alone.logvar[:, : self.shared]).clamp(*LOGVAR_RANGE)
        rows, spread = self.rows(song, alone.mean[:, self.shared :], given)
        logvar = alone.logvar[:, self.shared :] - 2 * spread.log()
        return Posterior(rows, torch.cat([song_logvar, logvar], -1))

    def rows(self, song: Tensor, bars: Tensor, given: Given | None) -> tuple[Tensor, Tensor]:
        """Rows [s, e_b] `(S, D)` of song vectors `song (S, E)` and bar vectors `bars`, and the prior's spread."""
        mean, spread = self.prior(song, self.conditions(given, len(song)))
        return torch.cat([song, (bars - mean) / spread], -1), spread

    # --- conditions and prior -----------------------------------------------------------------------------------------

    def conditions(self, given: Given | None, count: int) -> Conditions:
        """The conditions of `count` bars as tensors; lengths alone, or none at all, leave the rest absent."""
        net = self.net.config
        known = given.dtype.names if given is not None else None

        def column(name: str, shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
            if known is None or given is None:
                return torch.zeros(count, *shape, dtype=kind, device=self.device)
            return torch.from_numpy(np.ascontiguousarray(given[name])).to(self.device, kind)

        if given is not None and known is None:
            length = torch.from_numpy(given.astype(np.int64)).to(self.device)
        else:
            length = column("length", (), torch.long) if known else torch.full((count,), net.steps, device=self.device)
        return Conditions(
            length,
            column("harmony", (net.beats, 24), torch.float32),
            column("has_harmony", (), torch.float32),
            column("melody", (net.steps, 2), torch.long),
            column("has_melody", (), torch.float32),
            column("has_bar", (), torch.float32) if known else torch.ones(count, device=self.device),
        )

    def prior(self, song: Tensor, given: Conditions) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `(N, D)` of p(z_b | s, h_b, m_b), each bar alone; `song (N, E)`."""
        condition = torch.cat([song, self.net.condition(given)], -1)[:, None]
        none = song.new_zeros(len(song), 1, self.net.config.bar)
        mean, logvar = self.net.prior(condition, none, song.new_zeros(len(song)))
        return mean[:, 0], (0.5 * logvar[:, 0]).exp()

    @torch.no_grad()
    def read(self, tokens: Tensor, fields: Tensor, z: Tensor, given: Given | None) -> Tensor:
        """Rows `(S, D)` of bars `tokens (S, 1, T)` of a song whose vectors are those of the rows `z (S, D)`."""
        song, bars = z[:, : self.shared].to(self.device), self.encode(tokens, fields).mean[:, self.shared :]
        return self.rows(song, bars, given)[0].cpu()

    def after_move(self, z: Tensor, moved: Tensor, given: Given | None) -> tuple[Tensor, Given | None]:
        """As `LatentModel.after_move`: residuals are multiplied by KEPT^sqrt(d), d the distance of the song vectors.

        A bar decoded with all of its residual is the song's own bar, whatever the song vector. The part r is an input
        of the decoder (`has_bar`), which fills in the rest from the song vector.
        """
        part = KEPT ** (moved - z)[:, : self.shared].norm(dim=1).sqrt()
        if given is None or given.dtype.names is None or bool((part == 1).all()):
            return moved, given
        known = given.copy()
        known["has_bar"] *= part.cpu().numpy()
        return torch.cat([moved[:, : self.shared], part[:, None] * moved[:, self.shared :]], 1), known

    @torch.no_grad()
    def outline(self, z: Tensor, given: Given | None) -> tuple[Tensor, Tensor]:
        """As `LatentModel.outline`: log-probabilities that a bar has a program, each as if no other were there.

        They depend on the song vector and the conditions alone, not on the bars' residuals.
        """
        z = functional.pad(z[:, : self.shared], (0, self.net.config.bar))
        if given is not None and given.dtype.names is not None:
            given = given.copy()
            given["has_bar"] = 0.0
        first = torch.full((len(z), 1, 1), BOS, device=self.device)
        fields = torch.zeros(len(z), 1, 1, 3, dtype=torch.long, device=self.device)
        out, _ = self.under(given).decoder_outputs(z.to(self.device), first, fields)
        programs = self.net.order[self.net.kind[self.net.order] == PROGRAM]
        hazards = self.net.binding.logits(out.hidden, programs)
        return programs.cpu(), functional.logsigmoid(hazards.float()).cpu()

    # --- decoding -----------------------------------------------------------------------------------------------------

    def under(self, given: Given | None) -> BarDecoder:
        """The decoder of bars under their conditions; None and lengths alone stand for no harmony and no melody."""
        return BarDecoder(self, given)


@dataclass(frozen=True, eq=False)
class OrderedOutput:
    """The decoder's output at M positions, before the projection to the vocabulary."""

    net: SongModel
    hidden: Tensor
    """Hidden vectors `(M, K)`."""
    allowed: Tensor
    """Tokens that may follow `(M, V)`, in the model's order."""

    def logits(self) -> Tensor:
        """Log-probabilities `(M, V)`, up to a constant."""
        return self.net.logits(self.hidden, self.allowed)

    def cross_entropy(self, targets: Tensor, disallowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `DecoderOutput.cross_entropy`; the model has its own `disallowed` tokens."""
        nats, right = self.net.nats(self.hidden, targets, self.allowed)
        return nats.sum(), right


@dataclass(frozen=True, eq=False)
class BarDecoder:
    """The decoder of rows [s, e_b] `z (B, D)` under the conditions of these B bars, as a `LatentDecoder`."""

    model: SongVAE
    given: Given | None

    def bars(self, z: Tensor) -> tuple[Tensor, Tensor, Conditions]:
        """Bar vectors `(B, D)` and song vectors `(B, E)` of rows `z`, and the conditions."""
        conditions = self.model.conditions(self.given, len(z))
        song, residual = z[:, : self.model.shared], z[:, self.model.shared :]
        mean, spread = self.model.prior(song, conditions)
        return mean + spread * residual, song, conditions

    def packing(self, tokens: Tensor, fields: Tensor) -> Tensor:
        """Mask `(B, T)` of the tokens that are not PAD."""
        return tokens[:, 0] != PAD

    def decoder_outputs(
        self, z: Tensor, inputs: Tensor, fields: Tensor, packing: Tensor | None = None, low: bool = False
    ) -> tuple[OrderedOutput, OrderedOutput]:
        """As `LatentDecoder.decoder_outputs`; the prediction without history is that with history."""
        net = self.model.net
        bar, song, conditions = self.bars(z)
        before, fields = inputs[:, 0], fields[:, 0]
        with self._precision(low):
            keys = net.keys(fields)
            written = net.written_part(before, net.bound(before, keys.before()))
            x = net.teacher_forced(before, fields, keys, written, bar, song, conditions)
        place = functional.pad(fields[:, :-1], (0, 0, 1, 0))
        parts = (x.float(), net.allowed(before, place, fields, conditions.length))
        out = OrderedOutput(net, *(part.flatten(0, 1) if packing is None else part[packing] for part in parts))
        return out, out

    def decode_logits(self, z: Tensor, inputs: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
        """As `LatentDecoder.decode_logits`."""
        logits = self.decoder_outputs(z, inputs, fields)[0].logits().view(*inputs.shape, -1)
        return logits, logits

    @torch.no_grad()
    def generate(
        self, z: Tensor, grammar: Grammar, state: NDArray[np.int32], settings: Sampling,
        guidances: Sequence[Guidance] = (),
    ) -> list[list[NDArray[np.int32]]]:  # fmt: skip
        """As `LatentDecoder.generate`; logits are l_0 + g (l - l_0) for a guidance g other than 1.

        l_0 are the logits without harmony and melody.
        """
        net, strength = self.model.net, self.model.guidance
        bar, song, given = self.bars(z)
        copies = 1 if strength == 1 else 2
        if copies == 2:
            bar, song, given = bar.repeat(2, 1), song.repeat(2, 1), given.joined(given.absent())
        rest, prefix, tables = net.start(bar, song, given, net.condition(given))
        harmony, length, part, caches = given.harmony, given.length, given.has_bar, net.prefill(prefix)
        place = torch.zeros(len(bar), 1, 3, dtype=torch.long, device=z.device)  # fields of the token before

        def step(tokens: Tensor, fields: Tensor, keep: Tensor | None) -> Tensor:
            nonlocal rest, harmony, tables, caches, place, length, part
            if keep is not None:
                kept = torch.cat([keep + i * (len(rest) // copies) for i in range(copies)])
                rest, harmony, tables = rest[kept], harmony[kept], tables[kept]
                place, length, part = place[kept], length[kept], part[kept]
                caches = [[x[kept] for x in cache] for cache in caches]
            tokens, fields = tokens.repeat(copies, 1), fields.repeat(copies, 1, 1)
            logits, rest, caches = net.step(tokens, place, fields, length, rest, part, harmony, tables, caches)
            place = fields
            if copies == 1:
                return logits
            full, alone = logits.float().chunk(2)
            return alone + strength * (full - alone)

        chosen = search if settings.beam > 1 else decode
        return [[row] for row in chosen(step, grammar, state, settings, z.device, guidances)]

    def _precision(self, low: bool) -> AbstractContextManager[object]:
        device = self.model.device
        return torch.autocast(device.type, torch.bfloat16, enabled=low and multiplies_bf16(device))
