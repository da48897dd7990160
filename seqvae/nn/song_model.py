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
from seqvae.nn.binding import Binding
from seqvae.nn.blocks import Cache, Residual, TransformerLayer
from seqvae.nn.kernels import DISALLOWED
from seqvae.nn.posterior import LOGVAR_RANGE, Posterior, first_logvar, posterior_from
from seqvae.protocols import BOS, EOS, PAD

PROGRAM, POSITION, PITCH, DRUM, DURATION = range(1, 6)
"""Token types, as `MidiTokenizer` numbers them."""
SHARE = 8.0  # divisor of the sum of a bar's bound tokens
ROOM = 3 / 64  # share of the dimensions of bound tokens that is the programs'
ABSENT = -4.0  # hazard of a token at first, in logits
FORGOTTEN = 0.15  # share of the written tokens that stay in the sum in training, as after an error
ORDER = (DURATION, PITCH, DRUM, POSITION, PROGRAM, 0)  # types in the order in which tokens that may follow are tried
MEMORY = 2  # vectors of the code that the decoder attends to, beside its beats
PRIOR_RANGE = (-7.0, 2.0)  # log-variances of the learned prior
CHORD_SYMBOLS = 0.5  # presence of a harmony of chord symbols, whose bars have other notes too


@dataclass(frozen=True)
class Conditions:
    """Inputs of N bars besides latents: lengths in steps, harmony and melody, and the presence of these two."""

    length: Tensor
    """`(N,)` steps."""
    harmony: Tensor
    """`(N, B, 24)`: shares of the pitch classes by beat, and the bass pitch class as one-hot; 0 where absent."""
    has_harmony: Tensor
    """`(N,)`: 1.0 for the harmony of the bars' notes, CHORD_SYMBOLS for that of chords alone, 0.0 without."""
    melody: Tensor
    """`(N, S, 2)`: pitch + 1 and duration in steps of the note that begins at each step; 0 where absent."""
    has_melody: Tensor
    """`(N,)`: 1.0 where the melody is given."""
    has_bar: Tensor
    """`(N,)`: the part of the bar's residual in its vector: 1.0 for a bar, 0.0 for what the prior expects."""

    def rows(self, index: Tensor) -> Conditions:
        """The conditions of the bars `index`."""
        return Conditions(
            self.length[index], self.harmony[index], self.has_harmony[index], self.melody[index],
            self.has_melody[index], self.has_bar[index],
        )  # fmt: skip

    def absent(self) -> Conditions:
        """The same lengths without harmony and melody."""
        harmony, has_harmony, melody, has_melody = (
            torch.zeros_like(x) for x in (self.harmony, self.has_harmony, self.melody, self.has_melody)
        )
        return Conditions(self.length, harmony, has_harmony, melody, has_melody, self.has_bar)

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


def may_follow(
    before: Tensor, place: Tensor, fields: Tensor, length: Tensor, kind: Tensor, value: Tensor, order: Tensor
) -> Tensor:
    """Mask `(N, T, V)` of the tokens that may follow `before (N, T)` in bars of `length (N,)`, as in music/grammar.py.

    `place (N, T, 3)` are the position fields of `before`, and `fields (N, T, 3)` those of the next token; `kind (V,)`
    and `value (V,)` are the tokens' types and values, and `order (V,)` the tokens of the columns.
    """
    last, own, drums = kind[before][..., None], value[before][..., None], fields[..., :1] == 129
    kind, value = kind[order], value[order]
    note = (last == DURATION) | (last == DRUM)
    begins = before[..., None] == BOS
    # the value above which each type may follow; 1000 where it may not
    no = torch.full_like(own, 1000)
    pitch = torch.where(last == DURATION, place[..., 2:] - 1, torch.where((last == POSITION) & ~drums, -1, no))
    drum = torch.where(last == DRUM, own, torch.where((last == POSITION) & drums, -1, no))
    position = torch.where(note, fields[..., 1:2] - 1, torch.where(last == PROGRAM, -1, no))
    program = torch.where(note, fields[..., :1] - 1, torch.where(begins, -1, no))
    duration = torch.where(last == PITCH, -1, no)
    end = torch.where(note | begins, -1, no)
    above = torch.cat([end, program, position, pitch, drum, duration], -1)[..., kind]
    inside = (kind != POSITION) | (value < length[:, None, None])
    return (value > above) & inside & ((kind > 0) | (order == EOS))


def in_order(logits: Tensor, allowed: Tensor) -> Tensor:
    """Log-probabilities `(..., V)` of hazards `logits (..., V)` of the `allowed` tokens, up to a constant.

    Tokens that may follow come in one order, and the next token is the first that is present: p(v) = h_v prod_{u before
    v} (1 - h_u), as in discrete survival analysis.
    """
    logits = logits.float()
    rejected = functional.softplus(logits)
    passed = rejected * allowed
    return (logits - rejected - passed.cumsum(-1) + passed).masked_fill(~allowed, DISALLOWED)


@dataclass(frozen=True)
class Keys:
    """Keys of the position fields of N bars at T tokens, both `(N, T, K)`."""

    program: Tensor
    """Of the program."""
    within: Tensor
    """Of position and pitch."""

    def before(self) -> Keys:
        """The keys of the tokens before; 1 before the first."""
        return Keys(*(functional.pad(x[:, :-1], (0, 0, 1, 0), value=1.0) for x in (self.program, self.within)))


class BarEncoder(nn.Module):
    """A bar's tokens to a feature vector: a transformer over bound tokens, pooled by attention."""

    def __init__(self, config: SongConfig) -> None:
        super().__init__()
        self.enter = nn.Linear(config.bar, config.width)
        self.layers = nn.ModuleList(
            TransformerLayer(config.width, config.heads, 0.0) for _ in range(config.encoder_layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.weigh = nn.Linear(config.width, config.queries)
        self.size = config.bar + config.queries * config.width

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
    """p(z_b | s, h_b, m_b, z_<b): a causal transformer over bars, from earlier bar vectors and the conditions.

    Music repeats, so the mean has a copy of earlier bar vectors, weighted by attention (pointer networks, Vinyals et
    al. 2015), beside what the transformer predicts.
    """

    def __init__(self, config: SongConfig) -> None:
        super().__init__()
        width = config.prior_width
        self.before = nn.Linear(config.bar, width)
        self.first = nn.Parameter(torch.zeros(width))
        self.condition = nn.Linear(config.song + config.bar + config.beats * 24, width)
        self.layers = nn.ModuleList(TransformerLayer(width, config.heads, 0.0) for _ in range(config.prior_layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 2 * config.bar)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.copied, self.copy = nn.Linear(width, width), nn.Linear(width, width)
        self.alone = nn.Parameter(torch.tensor(2.0))  # score of copying nothing

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
        x = self.norm(x)
        mean, logvar = self.out(x).float().chunk(2, -1)
        # bar b may copy the bars before it; column 0 of the scores stands for no copy
        scores = self.copy(x) @ self.copied(before).transpose(-1, -2) / x.shape[-1] ** 0.5
        scores = scores.float().masked_fill(~(causal & (history[:, None, None] > 0)), DISALLOWED)
        scores[..., 0] = self.alone
        weights = scores.softmax(-1)[..., 1:]
        return mean + weights @ z[:, :-1].float(), logvar.clamp(*PRIOR_RANGE)


class SongModel(nn.Module):
    """Song vector, bar vectors, their prior, and the decoder; the module docstring has the equations."""

    kind: Tensor
    value: Tensor
    order: Tensor
    """The tokens in the order in which they are tried, `(V,)`."""
    rank: Tensor
    """The place of each token in that order, `(V,)`."""

    def __init__(self, config: SongConfig, kind: Tensor, value: Tensor) -> None:
        """`kind (V,)` and `value (V,)`: type and value of every token."""
        super().__init__()
        self.config = c = config
        self.register_buffer("kind", kind.long(), persistent=False)
        self.register_buffer("value", value.long(), persistent=False)
        rank = torch.tensor([ORDER.index(i) for i in range(6)])[kind.long()]
        order = (rank * (1 + value.max()) + value.long()).argsort(stable=True)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("rank", order.argsort(), persistent=False)
        depth = torch.tensor([0, 0, 1, 3, 3, 3])[kind.long()]  # number of position fields of each token type
        self.binding = Binding(depth, (130, c.steps + 1, 129), c.bar)
        self.encoder = BarEncoder(c)
        size = self.encoder.size
        self.mean = nn.Linear(size - c.bar, c.bar)
        self.feature = nn.Sequential(nn.Linear(size, c.width), nn.GELU(), Residual(c.width, 1))
        self.logvar = nn.Linear(c.width, c.bar)
        self.song_mean, self.song_logvar = nn.Linear(c.width, c.song), nn.Linear(c.width, c.song)
        self.no_song = nn.Parameter(torch.zeros(c.song))
        # conditions of a bar as vectors
        self.length = nn.Embedding(c.steps + 1, c.bar)
        self.line = nn.Embedding(130, c.bar)  # melody pitches, bound to positions by the tokens' keys
        self.absent = nn.Parameter(torch.zeros(3, c.bar))  # harmony, melody, bar vector
        self.prior = BarPrior(c)
        # the decoder
        self.written = nn.Parameter(torch.ones(3))
        memory = MEMORY * c.width
        self.code = nn.Sequential(
            nn.Linear(2 * c.bar + c.song + c.beats * 24, memory), Residual(memory, 1), nn.LayerNorm(memory)
        )
        self.prefix = MEMORY + c.beats
        self.beat = nn.Linear(24, c.width)
        self.beat_place = nn.Parameter(torch.randn(c.beats, c.width) * 0.02)
        self.chord = nn.Linear(24, c.width, bias=False)
        self.sounding, self.upcoming, self.next_pitch = (nn.Embedding(n, c.width) for n in (130, c.steps + 2, 130))
        self.enter = nn.Linear(c.bar, c.width)
        self.answer, self.note = nn.Linear(c.bar, c.width, bias=False), nn.Linear(c.bar, c.width, bias=False)
        self.layers = nn.ModuleList(TransformerLayer(c.width, c.heads, 0.0) for _ in range(c.decoder_layers))
        self.norm = nn.LayerNorm(c.width)
        self.leave = nn.Linear(c.width, c.bar)
        self.depth = nn.Parameter(torch.ones(3))
        nn.init.constant_(self.binding.bias, ABSENT)
        # programs are bound to nothing, so all other tokens of a dense bar would hide them in the sum
        programs = (kind == PROGRAM)[:, None]
        self.room = max(1, int(c.bar * ROOM))
        inside = torch.arange(c.bar) < self.room
        with torch.no_grad():
            embed = self.binding.embed.weight
            embed.copy_(torch.where(programs == inside, embed, 0.0))
            embed.mul_(torch.where(programs, (c.bar / self.room) ** 0.5, 1.0))
            for table in self.binding.keys:
                assert isinstance(table, nn.Embedding)
                table.weight[:, inside] = 1.0
        # z begins as the sum of bound tokens, so that notes can be retrieved from the first step on
        nn.init.zeros_(self.mean.weight)
        nn.init.zeros_(self.mean.bias)
        for layer in (self.logvar, self.song_logvar):
            first_logvar(layer)
        for table in (self.length, self.line, self.sounding, self.upcoming, self.next_pitch):
            nn.init.normal_(table.weight, std=0.1 if table.weight.shape[1] == c.width else 0.3)

    # --- encoder ------------------------------------------------------------------------------------------------------

    def keys(self, fields: Tensor) -> Keys:
        """Keys of `fields (N, T, 3)`."""
        program, position, pitch = (self.binding.key(i, fields[..., i]) for i in range(3))
        return Keys(program, position * pitch)

    def bound(self, tokens: Tensor, keys: Keys) -> Tensor:
        """Tokens `(N, T)` bound to their keys: `(N, T, K)`; programs to none, positions to their program."""
        depth = self.binding.binding_depth[tokens][..., None]
        x = self.binding.tokens(tokens) * torch.where(depth > 0, keys.program, 1.0)
        return x * torch.where(depth > 1, keys.within, 1.0)

    def bar_features(self, tokens: Tensor) -> Tensor:
        """Features `(N, F)` of bars `tokens (N, T)`, for `bar_posterior` and `song_posterior`."""
        keys = self.keys(place_fields(tokens, self.kind, self.value))
        out: Tensor = self.encoder(self.bound(tokens, keys), tokens != PAD)
        return out

    def bar_posterior(self, features: Tensor) -> Posterior:
        """q(z_b | x_b) of `features (N, F)`: its mean is the sum of bound tokens and a correction."""
        total, pooled = features[:, : self.config.bar], features[:, self.config.bar :]
        mean, logvar = self.mean(pooled).float(), self.logvar(self.feature(features)).float()
        return Posterior(total + mean, logvar.clamp(*LOGVAR_RANGE))

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
        given_not = 1 - torch.stack([given.has_harmony, given.has_melody, given.has_bar], 1)
        whole = whole + given_not @ self.absent
        return torch.cat([whole, given.harmony.flatten(1)], -1)

    # --- decoder ------------------------------------------------------------------------------------------------------

    def start(self, z: Tensor, song: Tensor, given: Conditions, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Per-bar inputs of decoding: sum to write `(N, K)`, prefix `(N, P, W)`, melody tables `(N, S + 1, 3)`."""
        code = self.code(torch.cat([z, song, condition.to(z.dtype)], -1))
        beats = self.beat(given.harmony.to(code.dtype)) + self.beat_place
        prefix = torch.cat([code.view(len(z), MEMORY, -1), beats], 1)
        return z, prefix, melody_tables(given.melody)

    def written_part(self, tokens: Tensor, bound: Tensor) -> Tensor:
        """What each of `tokens (N, T)`, `bound (N, T, K)`, takes from the sum to write: `(N, T, K)`.

        PAD and BOS take nothing.
        """
        depth = self.binding.binding_depth[tokens].clamp(max=2)
        weight = self.written[depth] * ((tokens != PAD) & (tokens != BOS)) / SHARE
        if self.training:
            weight = weight * (torch.rand(tokens.shape, device=tokens.device) >= FORGOTTEN)
        return bound * weight[..., None].to(bound.dtype)

    def steps(
        self, inputs: Tensor, fields: Tensor, keys: Keys, rest: Tensor, harmony: Tensor, tables: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Transformer inputs `(N, T, W)` and the rest of the sum unbound for the direct head `(N, T, K)`.

        `inputs (N, T)` are the tokens before, `fields (N, T, 3)` with their `keys` those of the next token, and
        `rest (N, T, K)` is the sum without the tokens before.
        """
        place = fields[..., 1]
        row = torch.arange(len(inputs), device=inputs.device)[:, None]
        beat = ((place - 1).clamp(min=0) // (self.config.steps // self.config.beats)).clamp(max=self.config.beats - 1)
        sounding, upcoming, pitch = tables[row, place].unbind(-1)
        rest = rest.to(keys.program.dtype)  # products in fp32 would be slower under autocast
        # programs are bound to nothing, positions to their program, notes to both
        of_program = rest * keys.program
        of_note = of_program * keys.within
        x = self.enter(self.binding.tokens(inputs)) + self.answer(of_program) + self.note(of_note)
        x = x + self.chord(harmony)[row, beat]
        x = x + self.sounding(sounding) + self.upcoming(upcoming) + self.next_pitch(pitch)
        notes = (self.depth[1] * of_program + self.depth[2] * of_note)[..., self.room :]
        return x, torch.cat([self.depth[0] * rest[..., : self.room], notes], -1)

    def hidden(self, x: Tensor, direct: Tensor) -> Tensor:
        """The sum of both heads `(N, T, K)`, whose similarity to each token's embedding is its hazard in logits."""
        sums: Tensor = self.leave(self.norm(x)) + direct
        return sums

    def nats(self, hidden: Tensor, targets: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """-log p of `targets (...)` in nats, and whether each is the most probable token, both `(...)`.

        `hidden (..., K)` and the `allowed (..., V)` tokens in the model's order. PAD has 0 nats and is never right.
        """
        hazards = self.binding.logits(hidden, self.order)
        target = self.rank[targets][..., None]
        index = torch.arange(len(self.order), device=targets.device)
        # -log(1 - h) of each token passed over, and -log h = -log(1 - h) - logit of the token itself
        passed = functional.softplus(hazards.float()) * (allowed & (index <= target))
        nats = (passed.sum(-1) - hazards.gather(-1, target)[..., 0]) * (targets != PAD)
        with torch.no_grad():
            right = in_order(hazards, allowed).argmax(-1) == target[..., 0]
        return nats, right & (targets != PAD)

    def logits(self, hidden: Tensor, allowed: Tensor) -> Tensor:
        """Log-probabilities `(..., V)` by token, up to a constant; arguments as in `nats`."""
        return in_order(self.binding.logits(hidden, self.order), allowed)[..., self.rank]

    def allowed(self, before: Tensor, place: Tensor, fields: Tensor, length: Tensor) -> Tensor:
        """`may_follow` in the model's order: `(N, T, V)`."""
        return may_follow(before, place, fields, length, self.kind, self.value, self.order)

    def teacher_forced(
        self, inputs: Tensor, fields: Tensor, keys: Keys, written: Tensor, z: Tensor, song: Tensor, given: Conditions
    ) -> Tensor:
        """Hidden vectors `(N, T, K)` of bars whose tokens before are `inputs (N, T)`, some masked.

        `written (N, T, K)` is what the tokens before take from the sum of a whole bar. From one with a part of the bar
        they take this part, so that what the prior expects stays; taken whole, dozens of tokens would hide the rest.
        """
        total, prefix, tables = self.start(z, song, given, self.condition(given))
        # sums as a product: faster than a cumulative sum, which would be in fp32
        earlier = torch.ones(written.shape[1], written.shape[1], dtype=written.dtype, device=written.device).tril()
        rest = total[:, None] - given.has_bar[:, None, None].to(written.dtype) * (earlier @ written)
        x, direct = self.steps(inputs, fields, keys, rest, given.harmony.to(prefix.dtype), tables)
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
        self, tokens: Tensor, place: Tensor, fields: Tensor, length: Tensor, rest: Tensor, part: Tensor,
        harmony: Tensor, tables: Tensor, caches: list[Cache],
    ) -> tuple[Tensor, Tensor, list[Cache]]:  # fmt: skip
        """Log-probabilities `(N, V)` after `tokens (N, 1)`, up to a constant, the rest after them, and the caches.

        `place (N, 1, 3)` are the fields of `tokens`, `fields (N, 1, 3)` those of the next token, `length (N,)` the
        steps of the bars, `part (N,)` their `has_bar`, and `rest (N, K)` is the sum to write without the tokens before
        `tokens`.
        """
        rest = rest - part[:, None] * self.written_part(tokens, self.bound(tokens, self.keys(place)))[:, 0]
        x, direct = self.steps(tokens, fields, self.keys(fields), rest[:, None], harmony, tables)
        after = []
        for layer, cache in zip(self.layers, caches, strict=True):
            x, cache = layer(x, None, cache)
            after.append(cache)
        logits = self.logits(self.hidden(x, direct), self.allowed(tokens, place, fields, length))
        return logits[:, 0], rest, after


def gaussian_kl(posterior: Posterior, mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(m_q, v_q) || N(m, v)) of each dimension in nats, for any leading shape."""
    squares = (posterior.mean - mean).square() + posterior.logvar.exp()
    return 0.5 * (squares * (-logvar).exp() - 1.0 + logvar - posterior.logvar)
