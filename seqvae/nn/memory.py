"""The encoder and decoder for sentences: attention pooling into a posterior, and z as a memory read at every layer.

Scope: a transformer over tokens without position fields, pooled by learned queries; a causal transformer that reads z
at each step by multiplication with its hidden state (position, words so far). Out of scope: tokens with position
fields, segments of several chunks, losses, sampling. The encoder needs no search for z.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from seqvae.config import ModelConfig
from seqvae.nn.binding import Binding
from seqvae.nn.blocks import Cache, TransformerLayer
from seqvae.nn.decoder import DecoderOutput
from seqvae.nn.kernels import Packing
from seqvae.nn.posterior import Posterior, first_logvar, posterior_from

QUERIES = 64  # pooling queries; each pools an equal share of the value dimensions
VALUES = 2  # dimensions of pooled values and of queries to z, in widths
LOUDNESS = 0.1  # scale of positions; embeddings begin at 0.25
FAINT = 0.1  # factor on initial weights of layers that start near the identity
GAIN = 4.0  # factor on initial retrieval, to matter beside the previous word


def positions(first: int, count: int, width: int, device: torch.device) -> Tensor:
    """cos(w_d t + p_d) for t from `first` on: `(count, width)`.

    Frequencies w_d lie between 0 and pi, more of them low; phases p_d cover the circle. A product of two such cosines
    is a sum of two more, so positions can be bound by multiplication (fractional power encoding, Plate 1995).
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
        first_logvar(self.logvar)

    def forward(self, x: Tensor, mask: Tensor) -> Posterior:
        """Embedded tokens `x (M, W)` at the positions where `mask (B, 1, T)` is True, to a posterior `(B, D)`."""
        mask = mask.flatten(0, 1)
        return self.read(Packing.of(mask, mask, (), mask).unpack(x), mask)

    def read(self, x: Tensor, mask: Tensor) -> Posterior:
        """The same for `x (B, T, W)` with `mask (B, T)`; an empty row is pooled from its first position."""
        n, t, width = x.shape
        mask = mask | (torch.arange(t, device=x.device) == 0)
        x = x + LOUDNESS * positions(0, t, width, x.device).to(x.dtype)
        for layer in self.layers:
            x, _ = layer(x, mask[:, None])
        x = self.norm(x)
        weights = self.query(x).float().masked_fill(~mask[..., None], float("-inf")).softmax(1)
        value = self.value(x)
        # values are bound to positions, so that queries with equal weights still encode word order
        value = value * positions(0, t, value.shape[-1], x.device).to(value.dtype)
        pooled = (weights.to(value.dtype)[..., None] * value.view(n, t, QUERIES, -1)).sum(1).flatten(1)
        return posterior_from(self.pooled_norm(pooled), self.mean, self.logvar)


class Retrieval(nn.Module):
    """Retrieval from z by elementwise product with a query: a bilinear map of low rank."""

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, VALUES * width)
        self.value = nn.Linear(latent, VALUES * width)
        self.out = nn.Linear(VALUES * width, width)
        with torch.no_grad():
            self.out.weight.mul_(FAINT)

    def forward(self, x: Tensor, z: Tensor, keys: Tensor | None = None) -> Tensor:
        """`x (N, T, W)` plus values retrieved from `z (N, D)` at each step; `keys (T, V)` are added to the query."""
        query = self.query(self.norm(x))
        query = query if keys is None else query + keys.to(query.dtype)
        out: Tensor = x + self.out(query * self.value(z).unsqueeze(1))
        return out


class MemoryDecoder(nn.Module):
    """A causal transformer that reads z before every layer; same interface as `decoder.Decoder`."""

    batch_axis = 0  # batch dimension of the tensors in the cache
    levels = ()  # tokens without position fields have no outer depths

    def __init__(self, config: ModelConfig, binding: Binding) -> None:
        super().__init__()
        if binding.field_sizes or config.previous or config.chunks != 1:
            raise ValueError("decoder 'memory' needs one chunk, tokens without position fields, and previous = false")
        self.binding, self.width = binding, config.width
        self.retrievals = nn.ModuleList(Retrieval(config.width, config.latent) for _ in range(config.layers))
        self.layers = nn.ModuleList(_layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        first = self.retrievals[0]
        assert isinstance(first, Retrieval)
        with torch.no_grad():
            first.query.weight.mul_(FAINT)

    def begin_as(self, encoder: PooledEncoder) -> None:
        """Initial weights that retrieve the words that the encoder bound to a position, so copying works at once."""
        first = self.retrievals[0]
        assert isinstance(first, Retrieval)
        with torch.no_grad():
            first.value.weight.copy_(encoder.mean.weight.T)
            first.out.weight.copy_(GAIN * encoder.value.weight.T)

    def codes(self, z: Tensor) -> Tensor:
        """`z (B, D)` unchanged, for the only chunk: `(B, 1, D)`."""
        return z.unsqueeze(1)

    def start(self, code: Tensor) -> Cache:
        """An empty cache: no keys and values yet."""
        del code
        return []

    def select(self, cache: Cache, rows: Tensor) -> Cache:
        """The cache for the given rows only; used to drop rows that have ended."""
        return [part.index_select(0, rows) for part in cache]

    def forward(
        self, code: Tensor, inputs: Tensor, fields: Tensor, cache: Cache, packing: Packing | None = None
    ) -> tuple[DecoderOutput, DecoderOutput, Cache]:
        """`code (N, D)` and the tokens before each step, `inputs (N, T)`; as `Decoder.forward`.

        The prediction without history is retrieved from z by the position alone.
        """
        packing = packing or self.packing(inputs, fields)
        hidden, after = self.hidden(code, inputs, cache)
        past, steps = _past(cache), inputs.shape[1]
        place = self._positions(past, steps, inputs.device).expand(len(code), -1, -1).to(code.dtype)
        alone = self.norm(self.retrievals[0](place, code, self._keys(past, steps, inputs.device)))
        output = (DecoderOutput(self.binding, packing.pack(x), None, []) for x in (hidden, alone))
        return next(output), next(output), after

    def step(self, code: Tensor, inputs: Tensor, fields: Tensor, cache: Cache) -> tuple[DecoderOutput, Cache]:
        """As `forward`, without the prediction from the code alone."""
        hidden, after = self.hidden(code, inputs, cache)
        return DecoderOutput(self.binding, hidden.flatten(0, 1), None, []), after

    def hidden(self, code: Tensor, inputs: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Hidden vectors `(N, T, W)` before the projection to the vocabulary, and the cache for the next step."""
        x = self.binding.tokens(inputs)
        past, steps = _past(cache), inputs.shape[1]
        x = x + self._positions(past, steps, inputs.device).to(x.dtype)
        after: Cache = []
        for i, (retrieval, layer) in enumerate(zip(self.retrievals, self.layers, strict=True)):
            x = retrieval(x, code, None if i else self._keys(past, steps, inputs.device))
            x, kept = layer(x, None, cache[2 * i : 2 * i + 2] or None)
            after += kept
        return self.norm(x), after

    def packing(self, tokens: Tensor, fields: Tensor, weight: Tensor | None = None) -> Packing:
        """As `Decoder.packing`."""
        return Packing.of(tokens, fields, (), weight)

    def _positions(self, past: int, steps: int, device: torch.device) -> Tensor:
        """Scaled positions of the next steps: `(T, W)`."""
        return LOUDNESS * positions(past, steps, self.width, device)

    def _keys(self, past: int, steps: int, device: torch.device) -> Tensor:
        """Positions that the encoder binds values to, for the next steps: `(T, V)`."""
        return positions(past, steps, VALUES * self.width, device)


def _past(cache: Cache) -> int:
    """Number of steps in a cache."""
    return cache[0].shape[2] if cache else 0


def _layer(config: ModelConfig) -> TransformerLayer:
    """A transformer layer without rotary positions (its input contains positions)."""
    layer = TransformerLayer(config.width, config.heads, config.dropout, config.hidden, rotary=False)
    with torch.no_grad():
        layer.attention.out.weight.mul_(FAINT)
    return layer
