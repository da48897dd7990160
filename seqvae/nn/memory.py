"""Sentences as one vector without a search: attention pooling into a posterior, a decoder that asks z at each layer.

Knows: how a line of tokens without cues is read by a transformer and pooled by learned queries, and how a causal
transformer asks a latent vector with all that it has at a place: position, the words so far. Refuses to know: music and
other tokens with cues, segments of several chunks, losses, sampling.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from seqvae.config import ModelConfig
from seqvae.nn.decoder import Told
from seqvae.nn.layers import Binding, Cache, Places, TransformerLayer
from seqvae.nn.posterior import LOGVAR_RANGE, Posterior

FIRST_LOGVAR = -3.0  # a posterior that is sharp at first
QUERIES = 64  # of the pooling, each with its share of the values
VALUES = 2  # numbers that are pooled, and that z is asked with, in widths
LOUDNESS = 0.1  # of positions, beside embeddings that begin with 0.25
FAINT = 0.1  # share of the usual first weights, of what is nearly the identity at first
GAIN = 4.0  # of what the decoder retrieves at first, to be heard beside the word before


def positions(first: int, count: int, width: int, device: torch.device) -> Tensor:
    """cos(w_d t + p_d) for t from `first` on: `(count, width)`.

    Frequencies w_d lie between 0 and pi, more of them low, and phases p_d all around: products of two of them are again
    such, so that positions can be bound by multiplication (fractional power encoding, Plate 1995).
    """
    d = torch.arange(1, width + 1, dtype=torch.float64, device=device)
    frequency = math.pi * (d * (math.sqrt(5) - 1) / 2 % 1).square()
    phase = 2 * math.pi * (d * math.sqrt(2) % 1)
    t = torch.arange(first, first + count, device=device)[:, None]
    return math.sqrt(2) * (frequency.float() * t + phase.float()).cos()


class PooledEncoder(nn.Module):
    """A bidirectional transformer, attention pooling by learned queries, and q(z|x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.chunks != 1:
            raise ValueError(f"a pooled encoder reads segments of one chunk, not {config.chunks}")
        width, pooled = config.width, VALUES * config.width
        self.layers = nn.ModuleList(_layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, QUERIES)
        self.value = nn.Linear(width, pooled)
        self.pooled_norm = nn.LayerNorm(pooled)
        self.mean = nn.Linear(pooled, config.latent)
        self.logvar = nn.Linear(pooled, config.latent)
        nn.init.orthogonal_(self.value.weight)
        nn.init.orthogonal_(self.mean.weight)
        nn.init.zeros_(self.logvar.weight)
        nn.init.constant_(self.logvar.bias, FIRST_LOGVAR)

    def forward(self, x: Tensor, mask: Tensor) -> Posterior:
        """Embedded tokens `x (M, W)` that stand where `mask (B, 1, T)`, to a posterior `(B, D)`."""
        mask = mask.flatten(0, 1)
        return self.read(Places.of(mask, mask, (), mask).laid_out(x), mask)

    def read(self, x: Tensor, mask: Tensor) -> Posterior:
        """The same of `x (B, T, W)` with a `mask (B, T)`; an empty row is pooled as its first place."""
        n, t, width = x.shape
        mask = mask | (torch.arange(t, device=x.device) == 0)
        x = x + LOUDNESS * positions(0, t, width, x.device).to(x.dtype)
        for layer in self.layers:
            x, _ = layer(x, mask[:, None])
        x = self.norm(x)
        weights = self.query(x).float().masked_fill(~mask[..., None], float("-inf")).softmax(1)
        value = self.value(x)
        # where a word stands is bound to it, so that queries which read alike still tell an order
        value = value * positions(0, t, value.shape[-1], x.device).to(value.dtype)
        pooled = (weights.to(value.dtype)[..., None] * value.view(n, t, QUERIES, -1)).sum(1).flatten(1)
        pooled = self.pooled_norm(pooled)
        return Posterior(self.mean(pooled).float(), self.logvar(pooled).float().clamp(*LOGVAR_RANGE))


class Question(nn.Module):
    """z asked by multiplication: what both agree on is the answer, a bilinear map of low rank."""

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.asking = nn.Linear(width, VALUES * width)
        self.asked = nn.Linear(latent, VALUES * width)
        self.answer = nn.Linear(VALUES * width, width)
        with torch.no_grad():
            self.answer.weight.mul_(FAINT)

    def forward(self, x: Tensor, z: Tensor, keys: Tensor | None = None) -> Tensor:
        """`x (N, T, W)` with what `z (N, D)` answers at each place added; `keys (T, V)` are asked with too."""
        asking = self.asking(self.norm(x))
        asking = asking if keys is None else asking + keys.to(asking.dtype)
        out: Tensor = x + self.answer(asking * self.asked(z).unsqueeze(1))
        return out


class MemoryDecoder(nn.Module):
    """A causal transformer that asks z before every layer; the interface of `decoder.Decoder`."""

    batch_axis = 0  # of the tensors in the cache
    levels = ()  # tokens without cues have no outer scopes

    def __init__(self, config: ModelConfig, binding: Binding) -> None:
        super().__init__()
        if binding.cue_sizes or config.previous or config.chunks != 1:
            raise ValueError("decoder 'memory' writes one chunk of tokens without cues, and binds none to those before")
        self.binding, self.width = binding, config.width
        self.questions = nn.ModuleList(Question(config.width, config.latent) for _ in range(config.layers))
        self.layers = nn.ModuleList(_layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        question = self.questions[0]
        assert isinstance(question, Question)
        with torch.no_grad():
            question.asking.weight.mul_(FAINT)

    def begin_as(self, encoder: PooledEncoder) -> None:
        """First weights that retrieve what the encoder has bound to a position, so that words are copied at once."""
        question = self.questions[0]
        assert isinstance(question, Question)
        with torch.no_grad():
            question.asked.weight.copy_(encoder.mean.weight.T)
            question.answer.weight.copy_(GAIN * encoder.value.weight.T)

    def codes(self, z: Tensor) -> Tensor:
        """`z (B, D)` as it is, for the one chunk there is: `(B, 1, D)`."""
        return z.unsqueeze(1)

    def start(self, code: Tensor) -> Cache:
        """No keys and values yet: an empty cache."""
        del code
        return []

    def select(self, cache: Cache, rows: Tensor) -> Cache:
        """The cache of some rows only, for leaving out rows that have ended."""
        return [part.index_select(0, rows) for part in cache]

    def forward(
        self, code: Tensor, inputs: Tensor, cues: Tensor, cache: Cache, places: Places | None = None
    ) -> tuple[Told, Told, Cache]:
        """Rows `code (N, D)` and the tokens before each step, `inputs (N, T)`; as `Decoder.forward`.

        What the code tells without history is the first question's answer to a position alone.
        """
        places = places or self.places(inputs, cues)
        hidden, after = self.hidden(code, inputs, cache)
        past, steps = _past(cache), inputs.shape[1]
        place = self._positions(past, steps, inputs.device).expand(len(code), -1, -1).to(code.dtype)
        alone = self.norm(self.questions[0](place, code, self._keys(past, steps, inputs.device)))
        told = (Told(self.binding, places.of_grid(x), None, []) for x in (hidden, alone))
        return next(told), next(told), after

    def step(self, code: Tensor, inputs: Tensor, cues: Tensor, cache: Cache) -> tuple[Told, Cache]:
        """As `forward`, with history alone."""
        hidden, after = self.hidden(code, inputs, cache)
        return Told(self.binding, hidden.flatten(0, 1), None, []), after

    def hidden(self, code: Tensor, inputs: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """What is told of each place, `(N, T, W)`, before it is spelled out over the vocabulary; and the next cache."""
        x = self.binding.tokens(inputs)
        past, steps = _past(cache), inputs.shape[1]
        x = x + self._positions(past, steps, inputs.device).to(x.dtype)
        after: Cache = []
        for i, (question, layer) in enumerate(zip(self.questions, self.layers, strict=True)):
            x = question(x, code, None if i else self._keys(past, steps, inputs.device))
            x, kept = layer(x, None, cache[2 * i : 2 * i + 2] or None)
            after += kept
        return self.norm(x), after

    def places(self, tokens: Tensor, cues: Tensor, weight: Tensor | None = None) -> Places:
        """As `Decoder.places`."""
        return Places.of(tokens, cues, (), weight)

    def _positions(self, past: int, steps: int, device: torch.device) -> Tensor:
        """Of the next steps, to be read: `(T, W)`."""
        return LOUDNESS * positions(past, steps, self.width, device)

    def _keys(self, past: int, steps: int, device: torch.device) -> Tensor:
        """What the encoder has bound the words of the next steps to: `(T, V)`."""
        return positions(past, steps, VALUES * self.width, device)


def _past(cache: Cache) -> int:
    """Steps that a cache holds."""
    return cache[0].shape[2] if cache else 0


def _layer(config: ModelConfig) -> TransformerLayer:
    """A layer whose positions are in what it reads."""
    layer = TransformerLayer(config.width, config.heads, config.dropout, config.hidden, rotary=False)
    with torch.no_grad():
        layer.attention.out.weight.mul_(FAINT)
    return layer
