"""The song model: a vector for a whole song, a vector for each bar, and harmony and melody as inputs.

Scope: the one musical model in nn/: networks and their losses for bars of tokens, in torch. Out of scope: files, songs
as notes, styles, optimizers.

For a song with bars x_b, harmony h_b and melody m_b,

    s   ~ q(s | bars elsewhere in the song)     who plays, how densely, in which register and groove
    z_b ~ q(z_b | x_b)                          what this bar is
    p(x, z, s | h, m) = p(s) prod_b p(z_b | s, h_b, m_b, z_<b) p(x_b | z_b, s, h_b, m_b)

s is a group-level latent (ML-VAE, Bouchacourt et al. 2018; Neural Statistician, Edwards and Storkey 2017): it is
inferred from other bars than those it helps to decode, so it can hold only what bars of a song share. The prior of a
bar vector is learned. A bar vector holds the sum of the bar's bound tokens, and the decoder takes each token that it
has written from the sum (matching pursuit, Mallat and Zhang 1993), so that the rest is easier to read. Harmony, melody,
song vector and earlier bars are each left out at random in training, so that the model also knows what to expect
without them, and guidance has a strength (Ho and Salimans 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqvae.config import SongConfig
from seqvae.nn.binding import Binding, shifted
from seqvae.nn.blocks import Cache, Residual, TransformerLayer
from seqvae.nn.kernels import DISALLOWED
from seqvae.nn.posterior import Posterior, first_logvar, posterior_from
from seqvae.protocols import BOS, PAD

PROGRAM, POSITION, PITCH, DRUM, DURATION = range(1, 6)
"""Token types, as `MidiTokenizer` numbers them."""
SHARE = 8.0  # divisor of the sum of a bar's bound tokens
MEMORY = 2  # vectors of the code that the decoder attends to, beside its beats
PRIOR_RANGE = (-7.0, 2.0)  # log-variances of the learned prior


@dataclass(frozen=True)
class Conditions:
    """Inputs of N bars besides latents: lengths in steps, harmony and melody, and the presence of these two."""

    length: Tensor
    """`(N,)` steps."""
    harmony: Tensor
    """`(N, B, 24)`: shares of the pitch classes by beat, and the bass pitch class as one-hot; 0 where absent."""
    has_harmony: Tensor
    """`(N,)`: 1.0 where harmony is given."""
    melody: Tensor
    """`(N, S, 2)`: pitch + 1 and duration in steps of the note that begins at each step; 0 where absent."""
    has_melody: Tensor
    """`(N,)`: 1.0 where the melody is given."""

    def rows(self, index: Tensor) -> Conditions:
        """The conditions of the bars `index`."""
        return Conditions(
            self.length[index], self.harmony[index], self.has_harmony[index], self.melody[index], self.has_melody[index]
        )

    def absent(self) -> Conditions:
        """The same lengths without harmony and melody."""
        empty = (torch.zeros_like(x) for x in (self.harmony, self.has_harmony, self.melody, self.has_melody))
        return Conditions(self.length, *empty)

    def joined(self, other: Conditions) -> Conditions:
        """The conditions of these bars, then of those of `other`."""
        parts = zip(vars(self).values(), vars(other).values(), strict=True)
        return Conditions(*(torch.cat(pair) for pair in parts))


def place_fields(tokens: Tensor, kind: Tensor, value: Tensor) -> Tensor:
    """Position fields `(N, T, 3)` before each token of `tokens (N, T)`: program + 1, position + 1, pitch + 1, else 0.

    They equal `MidiTokenizer.position_fields`; `kind (V,)` and `value (V,)` are the tokens' types and values.
    """
    kinds, values = kind[tokens], value[tokens]
    index = torch.arange(tokens.shape[1], device=tokens.device)

    def last(type_: int) -> Tensor:
        return torch.where(kinds == type_, index, -1).cummax(-1).values

    program, position = last(PROGRAM), last(POSITION)
    fields = torch.stack(
        [
            torch.where(program >= 0, values.gather(1, program.clamp(min=0)) + 1, 0),
            torch.where(position > program, values.gather(1, position.clamp(min=0)) + 1, 0),
            torch.where(kinds == PITCH, values + 1, 0),
        ],
        -1,
    )
    return functional.pad(fields[:, :-1], (0, 0, 1, 0))


def melody_tables(melody: Tensor) -> Tensor:
    """The melody at each position field: `(N, S + 1, 3)` from `melody (N, S, 2)`.

    For field value c (position c - 1 was the last one, 0 for none): the pitch + 1 that sounds at position c - 1, the
    position + 1 of the first onset from position c on, and the pitch + 1 of that onset; 0 where there is none.
    """
    pitch, duration = melody[..., 0].long(), melody[..., 1].long()
    steps = pitch.shape[1]
    index = torch.arange(steps, device=pitch.device)
    begun = torch.where(pitch > 0, index, -1).cummax(-1).values
    at = begun.clamp(min=0)
    sounds = (begun >= 0) & (index < begun + duration.gather(1, at))
    sounding = torch.where(sounds, pitch.gather(1, at), 0)
    upcoming = torch.where(pitch > 0, index, steps).flip(-1).cummin(-1).values.flip(-1)
    comes = upcoming < steps
    next_pitch = torch.where(comes, pitch.gather(1, upcoming.clamp(max=steps - 1)), 0)
    return torch.stack(
        [
            functional.pad(sounding, (1, 0)),
            functional.pad(torch.where(comes, upcoming + 1, 0), (0, 1)),
            functional.pad(next_pitch, (0, 1)),
        ],
        -1,
    )


class BarEncoder(nn.Module):
    """A bar's tokens to a feature vector: a transformer over bound tokens, pooled by attention."""

    def __init__(self, config: SongConfig) -> None:
        super().__init__()
        self.enter = nn.Linear(config.bound, config.width)
        self.layers = nn.ModuleList(
            TransformerLayer(config.width, config.heads, 0.0) for _ in range(config.encoder_layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.weigh = nn.Linear(config.width, config.queries)
        self.size = config.bound + config.queries * config.width

    def forward(self, bound: Tensor, present: Tensor) -> Tensor:
        """`bound (N, T, K)`, `present (N, T)` to `(N, K + Q W)`: the sum divided by SHARE, and the pooled vectors."""
        total = (bound * present[..., None].to(bound.dtype)).sum(1) / SHARE
        x = self.enter(bound)
        mask = present[:, None, :]
        for layer in self.layers:
            x, _ = layer(x, mask)
        x = self.norm(x)
        weights = self.weigh(x).float().masked_fill(~present[..., None], DISALLOWED).softmax(1)  # (N, T, Q)
        pooled = torch.einsum("ntq,ntw->nqw", weights.to(x.dtype), x)
        return torch.cat([total.float(), pooled.flatten(1).float()], -1)


class BarPrior(nn.Module):
    """p(z_b | s, h_b, m_b, z_<b): a causal transformer over bars, from earlier bar vectors and the conditions."""

    def __init__(self, config: SongConfig) -> None:
        super().__init__()
        width = config.prior_width
        self.before = nn.Linear(config.bar, width)
        self.first = nn.Parameter(torch.zeros(width))
        self.condition = nn.Linear(config.song + config.bound + config.beats * 24, width)
        self.layers = nn.ModuleList(TransformerLayer(width, config.heads, 0.0) for _ in range(config.prior_layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 2 * config.bar)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, condition: Tensor, z: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance `(R, C, D)` of the bar vectors of R rows of C bars.

        `condition (R, C, ...)`; `z (R, C, D)` are the bar vectors. Bar b depends on the vectors before it in rows
        where `history (R,)` is 1.0, and on none elsewhere.
        """
        before = torch.cat([self.first.expand(len(z), 1, -1), self.before(z[:, :-1])], 1)
        given = history[:, None, None].to(before.dtype)
        x = self.condition(condition) + given * before + (1 - given) * self.first
        # without history each bar attends to itself alone
        c = z.shape[1]
        causal = torch.ones(c, c, dtype=torch.bool, device=z.device).tril()
        alone = torch.eye(c, dtype=torch.bool, device=z.device)
        mask = torch.where(history[:, None, None] > 0, causal, alone)
        for layer in self.layers:
            x, _ = layer(x, mask)
        mean, logvar = self.out(self.norm(x)).float().chunk(2, -1)
        return mean, logvar.clamp(*PRIOR_RANGE)


class SongModel(nn.Module):
    """Song vector, bar vectors, their prior, and the decoder; the module docstring has the equations."""

    kind: Tensor
    value: Tensor

    def __init__(self, config: SongConfig, kind: Tensor, value: Tensor) -> None:
        """`kind (V,)` and `value (V,)`: type and value of every token."""
        super().__init__()
        self.config = c = config
        self.register_buffer("kind", kind.long(), persistent=False)
        self.register_buffer("value", value.long(), persistent=False)
        depth = torch.tensor([0, 0, 1, 3, 3, 3])[kind.long()]  # number of position fields of each token type
        self.binding = Binding(depth, (130, c.steps + 1, 129), c.bound)
        self.encoder = BarEncoder(c)
        size = self.encoder.size
        self.mean, self.logvar = nn.Linear(size, c.bar), nn.Linear(size, c.bar)
        self.feature = nn.Sequential(nn.Linear(size, c.width), nn.GELU(), Residual(c.width, 1))
        self.song_mean, self.song_logvar = nn.Linear(c.width, c.song), nn.Linear(c.width, c.song)
        self.no_song = nn.Parameter(torch.zeros(c.song))
        # conditions of a bar as vectors
        self.length = nn.Embedding(c.steps + 1, c.bound)
        self.line = nn.Embedding(130, c.bound)  # melody pitches, bound to positions by the tokens' keys
        self.absent = nn.Parameter(torch.zeros(2, c.bound))  # harmony, melody
        self.prior = BarPrior(c)
        # the decoder
        self.sum = nn.Linear(c.bar, c.bound, bias=False)
        self.written = nn.Parameter(torch.ones(3))
        self.code = nn.Sequential(
            nn.Linear(c.bar + c.song + c.bound + c.beats * 24, c.bound), Residual(c.bound, 1), nn.LayerNorm(c.bound)
        )
        self.prefix = MEMORY + c.beats
        self.memory = nn.Linear(c.bound, MEMORY * c.width)
        self.beat = nn.Linear(24, c.width)
        self.beat_place = nn.Parameter(torch.randn(c.beats, c.width) * 0.02)
        self.chord = nn.Linear(24, c.width, bias=False)
        self.sounding, self.upcoming, self.next_pitch = (nn.Embedding(n, c.width) for n in (130, c.steps + 2, 130))
        self.enter = nn.Linear(c.bound, c.width)
        self.answer = nn.Linear(2 * c.bound, c.width)
        self.layers = nn.ModuleList(TransformerLayer(c.width, c.heads, 0.0) for _ in range(c.decoder_layers))
        self.norm = nn.LayerNorm(c.width)
        self.leave = nn.Linear(c.width, c.bound)
        self.depth = nn.Parameter(torch.ones(3))
        # z begins as a projection of the sum of bound tokens, and its transpose leads back, so that notes can be
        # retrieved from the first step on
        nn.init.normal_(self.mean.weight, std=0.2 / size**0.5)
        nn.init.orthogonal_(self.mean.weight[:, : c.bound])
        with torch.no_grad():
            self.sum.weight.copy_(self.mean.weight[:, : c.bound].T)
            first = self.code[0]
            assert isinstance(first, nn.Linear)
            first.weight.mul_(0.3)
            first.weight[:, : c.bar] = self.mean.weight[:, : c.bound].T
        for layer in (self.logvar, self.song_logvar):
            first_logvar(layer)
        for table in (self.length, self.line, self.sounding, self.upcoming, self.next_pitch):
            nn.init.normal_(table.weight, std=0.1 if table.weight.shape[1] == c.width else 0.3)

    # --- encoder ------------------------------------------------------------------------------------------------------

    def keys(self, fields: Tensor) -> Tensor:
        """Keys of `fields (N, T, 3)` at two depths, `(N, T, 2, K)`: the program; program, position and pitch."""
        program, position, pitch = (self.binding.key(i, fields[..., i]) for i in range(3))
        return torch.stack([program, program * position * pitch], -2)

    def bound(self, tokens: Tensor, fields: Tensor) -> Tensor:
        """Tokens `(N, T)` bound to their `fields (N, T, 3)`: `(N, T, K)`."""
        depth = self.binding.binding_depth[tokens]
        counted = fields * (depth[..., None] > torch.arange(3, device=tokens.device))
        return self.binding.tokens(tokens) * self.keys(counted)[..., 1, :]  # a field that does not count has the key 1

    def bar_features(self, tokens: Tensor) -> Tensor:
        """Features `(N, F)` of bars `tokens (N, T)`, for `bar_posterior` and `song_posterior`."""
        fields = place_fields(tokens, self.kind, self.value)
        out: Tensor = self.encoder(self.bound(tokens, fields), tokens != PAD)
        return out

    def bar_posterior(self, features: Tensor) -> Posterior:
        """q(z_b | x_b) of `features (N, F)`."""
        return posterior_from(features, self.mean, self.logvar)

    def song_posterior(self, features: Tensor, counts: Tensor) -> Posterior:
        """q(s | bars) of R songs: `features (R, C, F)`, averaged over bars with `counts (R, C)` as weights."""
        weight = counts[..., None].to(features.dtype)
        pooled = (self.feature(features) * weight).sum(1) / weight.sum(1).clamp(min=1)
        return posterior_from(pooled, self.song_mean, self.song_logvar)

    # --- conditions ---------------------------------------------------------------------------------------------------

    def condition(self, given: Conditions) -> Tensor:
        """Length and melody as one vector, and harmony: `(N, K + 24 B)`."""
        keys = self.binding.key(1, torch.arange(1, self.config.steps + 1, device=given.melody.device))
        pitch, duration = given.melody[..., 0].long(), given.melody[..., 1]
        notes = self.line(pitch) * (pitch > 0)[..., None] * (1 + duration[..., None].float() / 48)
        line = (notes * keys).sum(1) / 3
        whole = line + self.length(given.length.long())
        given_not = 1 - torch.stack([given.has_harmony, given.has_melody], 1)
        whole = whole + given_not @ self.absent
        return torch.cat([whole, given.harmony.flatten(1)], -1)

    # --- decoder ------------------------------------------------------------------------------------------------------

    def start(self, z: Tensor, song: Tensor, given: Conditions, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Per-bar inputs of decoding: sum to write `(N, K)`, prefix `(N, P, W)`, melody tables `(N, S + 1, 3)`."""
        code = self.code(torch.cat([z, song, condition.to(z.dtype)], -1))
        beats = self.beat(given.harmony.to(code.dtype)) + self.beat_place
        prefix = torch.cat([self.memory(code).view(len(z), MEMORY, -1), beats], 1)
        return self.sum(z), prefix, melody_tables(given.melody)

    def written_part(self, tokens: Tensor, fields: Tensor) -> Tensor:
        """What each of `tokens (N, T)` with its `fields (N, T, 3)` takes from the sum to write: `(N, T, K)` in fp32.

        PAD and BOS take nothing.
        """
        depth = self.binding.binding_depth[tokens].clamp(max=2)
        weight = self.written[depth] * ((tokens != PAD) & (tokens != BOS)) / SHARE
        return self.bound(tokens, fields).float() * weight[..., None]

    def steps(
        self, inputs: Tensor, fields: Tensor, rest: Tensor, harmony: Tensor, tables: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Transformer inputs `(N, T, W)` and the rest of the sum unbound for the direct head `(N, T, K)`.

        `inputs (N, T)` are the tokens before, `fields (N, T, 3)` those of the next token, and `rest (N, T, K)` is the
        sum without the tokens before.
        """
        keys = self.keys(fields)
        place = fields[..., 1]
        row = torch.arange(len(inputs), device=inputs.device)[:, None]
        beat = ((place - 1).clamp(min=0) // (self.config.steps // self.config.beats)).clamp(max=self.config.beats - 1)
        sounding, upcoming, pitch = tables[row, place].unbind(-1)
        rest = rest.to(keys.dtype)  # products in fp32 would be slower under autocast
        unbound = rest[:, :, None] * keys
        x = self.enter(self.binding.tokens(inputs)) + self.answer(unbound.flatten(2)) + self.chord(harmony)[row, beat]
        x = x + self.sounding(sounding) + self.upcoming(upcoming) + self.next_pitch(pitch)
        # programs are bound to nothing, positions to their program, notes to both
        direct = self.depth[0] * rest + self.depth[1] * unbound[..., 0, :] + self.depth[2] * unbound[..., 1, :]
        return x, direct

    def hidden(self, x: Tensor, direct: Tensor) -> Tensor:
        """The sum of both heads `(N, T, K)`, whose similarity to each token's embedding is the token's logit."""
        sums: Tensor = self.leave(self.norm(x)) + direct
        return sums

    def decode_logits(self, tokens: Tensor, inputs: Tensor, z: Tensor, song: Tensor, given: Conditions) -> Tensor:
        """Teacher-forced logits `(N, T, V)` of bars `tokens (N, T)`; `inputs (N, T)`: tokens before, some masked."""
        fields = place_fields(tokens, self.kind, self.value)
        logits: Tensor = self.binding.logits(self.teacher_forced(shifted(tokens), inputs, fields, z, song, given))
        return logits

    def teacher_forced(
        self, before: Tensor, inputs: Tensor, fields: Tensor, z: Tensor, song: Tensor, given: Conditions
    ) -> Tensor:
        """Hidden vectors `(N, T, K)`; the sum lacks the tokens `before (N, T)`, some masked in `inputs`."""
        total, prefix, tables = self.start(z, song, given, self.condition(given))
        written = self.written_part(before, functional.pad(fields[:, :-1], (0, 0, 1, 0)))
        rest = total[:, None] - written.cumsum(1)
        x, direct = self.steps(inputs, fields, rest, given.harmony.to(prefix.dtype), tables)
        x = torch.cat([prefix.to(x.dtype), x], 1)
        for layer in self.layers:
            x, _ = layer(x, None)
        return self.hidden(x[:, self.prefix :], direct)

    def prefill(self, prefix: Tensor) -> list[Cache]:
        """Keys and values of the prefix in every layer, before the first token."""
        caches, x = [], prefix
        for layer in self.layers:
            x, cache = layer(x, None)
            caches.append(cache)
        return caches

    def step(
        self, tokens: Tensor, fields: Tensor, rest: Tensor, harmony: Tensor, tables: Tensor, caches: list[Cache]
    ) -> tuple[Tensor, list[Cache]]:
        """Logits `(N, V)` after `tokens (N, 1)` with the next token's `fields (N, 1, 3)`, and the caches after it.

        `rest (N, K)` is the sum to write without all tokens so far.
        """
        x, direct = self.steps(tokens, fields, rest[:, None], harmony, tables)
        after = []
        for layer, cache in zip(self.layers, caches, strict=True):
            x, cache = layer(x, None, cache)
            after.append(cache)
        return self.binding.logits(self.hidden(x, direct))[:, 0], after


def gaussian_kl(posterior: Posterior, mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(m_q, v_q) || N(m, v)) of each dimension in nats, for any leading shape."""
    squares = (posterior.mean - mean).square() + posterior.logvar.exp()
    return 0.5 * (squares * (-logvar).exp() - 1.0 + logvar - posterior.logvar)
