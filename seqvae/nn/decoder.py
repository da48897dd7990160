"""The decoder: a latent vector and the tokens so far to logits of the next token.

Scope: the conductor (z to one code a chunk), unbinding a code by position fields, the autoregressive head with
its cache. Out of scope: sampling, grammars, losses.

A chunk sees its own code and its own tokens only. So chunks decode in parallel, and the decoder cannot ignore z (the
lesson of MusicVAE, Roberts et al. 2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqvae.config import ModelConfig
from seqvae.nn.binding import Binding
from seqvae.nn.blocks import Cache, LockedDropout, Residual, TransformerLayer
from seqvae.nn.kernels import Packing, take


@dataclass(frozen=True)
class OuterLogits:
    """Additional logits for the tokens of an outer binding depth."""

    columns: Tensor
    """The tokens `(K,)`."""
    part: Tensor
    """Added to their logits `(U, K)`."""
    index: Tensor | None
    """The row of `part` for each position `(M,)`; None where each position has its own row."""


@dataclass(frozen=True)
class DecoderOutput:
    """The decoder's output at M positions, before the projection to the vocabulary."""

    binding: Binding
    x: Tensor
    """Hidden vectors `(U, W)`."""
    index: Tensor | None
    """The row of `x` for each position `(M,)`; None where each position has its own row."""
    outer: list[OuterLogits]

    def logits(self) -> Tensor:
        """Logits `(M, V)`."""
        logits = self.binding.logits(self.x)
        logits = logits if self.index is None else logits[self.index]
        for outer in self.outer:
            part = outer.part if outer.index is None else outer.part[outer.index]
            logits = logits.index_add(-1, outer.columns.to(logits.device), part.to(logits.dtype))
        return logits

    def cross_entropy(self, targets: Tensor, disallowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cross-entropy of `targets (M,)` in nats, summed to a scalar; and whether each target is the argmax `(M,)`.

        Probabilities are normalised over the tokens that `disallowed (M, V)` permits, or over all tokens.
        """
        if self.index is not None and disallowed is None and not self.outer:  # positions share distributions
            log_p = self.binding.logits(self.x).float().log_softmax(-1)
            return -log_p[self.index, targets].sum(), log_p.argmax(-1)[self.index] == targets
        together: Tensor | None = None
        index = torch.zeros_like(targets)
        for outer in self.outer:  # rows of one depth refine those of the depth before
            mine = torch.arange(len(targets), device=targets.device) if outer.index is None else outer.index
            before = torch.zeros(1, len(self.binding.bias), device=targets.device) if together is None else together
            parent = torch.zeros(len(outer.part), dtype=torch.long, device=targets.device).index_copy(0, mine, index)
            part = outer.part.float()
            together, index = before[parent].index_add(-1, outer.columns.to(part.device), part), mine
        return self.binding.cross_entropy(
            self.x, targets, disallowed, self.index, together, None if together is None else index
        )


class Decoder(nn.Module):
    """Codes from a conductor; logits from a direct head (unbound code, no history) and an autoregressive head."""

    def __init__(self, config: ModelConfig, binding: Binding) -> None:
        super().__init__()
        self.binding = binding
        self.chunks, self.width = config.chunks, config.width
        self.conduct = nn.Linear(config.latent, config.chunks * config.width)
        self.code = nn.Sequential(Residual(config.width, 2), Residual(config.width, 2), nn.LayerNorm(config.width))
        self.direct_head = Residual(config.width, 1)
        self.autoregressive_head: RecurrentHead | TransformerHead
        fields = binding.field_sizes
        self.autoregressive_head = RecurrentHead(config) if config.decoder == "recurrent" else TransformerHead(config)
        self.field_embeddings = nn.ModuleList(nn.Embedding(size, config.hidden) for size in fields)
        self.norm = nn.LayerNorm(config.width)
        self.bag_norm = nn.LayerNorm(config.width)
        self.dropout = LockedDropout(config.dropout)
        # outer depths are unbound on their own: (depth, tokens of that depth)
        levels = [(k, (binding.binding_depth == k).nonzero()[:, 0]) for k in range(len(fields))]
        self.levels = [(k, columns) for k, columns in levels if len(columns)]
        self.level_norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in self.levels)

    @property
    def batch_axis(self) -> int:
        """Batch dimension of the tensors in the cache."""
        return self.autoregressive_head.batch_axis

    def codes(self, z: Tensor) -> Tensor:
        """`z (B, D)` to one code a chunk, `(B, C, W)`."""
        out: Tensor = self.code(self.conduct(z).view(-1, self.chunks, self.width))
        return out

    def start(self, code: Tensor) -> Cache:
        """The cache before the first token, for `code (N, W)`."""
        return self.autoregressive_head.start(code)

    def select(self, cache: Cache, rows: Tensor) -> Cache:
        """The cache for the given rows only; used to drop rows that have ended."""
        return [part.index_select(self.batch_axis, rows) for part in cache]

    def forward(
        self, code: Tensor, inputs: Tensor, fields: Tensor, cache: Cache, packing: Packing | None = None
    ) -> tuple[DecoderOutput, DecoderOutput, Cache]:
        """One or many steps for `code (N, W)`.

        `inputs (N, T)` are the tokens before each step (BOS first), `fields (N, T, K)` the position fields of each
        step. Returns the prediction at every step (or at `packing`), the prediction of the direct head alone (no
        history), and the cache for the next step.
        """
        packing = packing or self.packing(inputs, fields)
        unbound, outer = self._unbind(code, packing)
        direct = self.direct_head(unbound)
        everything, cache = self._autoregressive(code, inputs, packing, cache, unbound, direct, outer)
        return everything, DecoderOutput(self.binding, self.bag_norm(direct), packing.indices[-1], outer), cache

    def step(self, code: Tensor, inputs: Tensor, fields: Tensor, cache: Cache) -> tuple[DecoderOutput, Cache]:
        """As `forward`, without the prediction of the direct head alone, which only training needs."""
        packing = self.packing(inputs, fields)
        unbound, outer = self._unbind(code, packing)
        direct = self.direct_head(unbound) if self.binding.before is None else None
        return self._autoregressive(code, inputs, packing, cache, unbound, direct, outer)

    def packing(self, tokens: Tensor, fields: Tensor, weight: Tensor | None = None) -> Packing:
        """Positions of `tokens (N, T)` with `fields (N, T, K)` where `weight (N, T)` is True, or all, for `forward`."""
        return Packing.of(tokens, fields, self.binding.field_sizes, weight)

    def _autoregressive(
        self, code: Tensor, inputs: Tensor, packing: Packing, cache: Cache, unbound: Tensor, direct: Tensor | None,
        outer: list[OuterLogits],
    ) -> tuple[DecoderOutput, Cache]:  # fmt: skip
        """Predictions from the unbound code `unbound` and its direct answer `direct`.

        And the cache for the next step.
        """
        index, before = packing.indices[-1], packing.pack(inputs)
        if self.binding.before is not None:
            direct, index = self.direct_head(take(unbound, index) * self.binding.after(before)), None
        assert direct is not None
        here: Tensor | None = None
        for i, table in enumerate(self.field_embeddings):
            assert isinstance(table, nn.Embedding)
            parent, values = packing.tree[i]
            found = take(table.weight, values)
            here = found if here is None else take(here, parent) + found
        side = HeadInput(direct, here, index)
        written, cache = self.autoregressive_head(self.binding.tokens(before), side, code, cache, packing)
        x = self.dropout(self.norm(take(direct, index) + written), packing.rows, len(code))
        return DecoderOutput(self.binding, x, None, outer), cache

    def _unbind(self, code: Tensor, packing: Packing) -> tuple[Tensor, list[OuterLogits]]:
        """The code unbound by all position fields, `(U, W)`, and the logits of each outer depth."""
        unbound, outer = code, []
        norms = dict(zip((k for k, _ in self.levels), self.level_norms, strict=True))
        columns = dict(self.levels)
        for k, (parent, values) in enumerate(packing.tree):
            if k in columns:
                part = self.binding.logits(norms[k](unbound), columns[k].to(code.device))
                outer.append(OuterLogits(columns[k], part, packing.indices[k]))
            unbound = take(unbound, parent) * self.binding.key(k, values)
        return unbound, outer


@dataclass(frozen=True)
class HeadInput:
    """Inputs of the autoregressive head besides the tokens, computed once for positions with equal fields."""

    direct: Tensor
    """The direct head's output `(U, W)`."""
    here: Tensor | None
    """Embedded position fields `(U, H)`."""
    index: Tensor | None
    """The row for each position `(M,)`; None where each position has its own row."""

    def enter(self, tokens: Tensor, layer: nn.Linear) -> Tensor:
        """One linear layer over embedded `tokens (M, W)` and these inputs together: `(M, H)`."""
        direct = self.direct.to(tokens.dtype)
        if self.index is None:
            x: Tensor = layer(torch.cat([tokens, direct], -1))
            return x if self.here is None else x + self.here
        width = tokens.shape[-1]
        projected = functional.linear(direct, layer.weight[:, width:])
        projected = projected if self.here is None else projected + self.here.to(projected.dtype)
        return functional.linear(tokens, layer.weight[:, :width], layer.bias) + take(projected, self.index)


class RecurrentHead(nn.Module):
    """LSTM with an initial state computed from the code."""

    batch_axis = 1  # batch dimension of the tensors in the cache

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = config.layers
        self.first = nn.Linear(config.width, 2 * config.layers * config.hidden)
        self.enter = nn.Linear(2 * config.width, config.hidden)
        self.lstm = nn.LSTM(config.hidden, config.hidden, config.layers, batch_first=True)
        self.leave = nn.Linear(config.hidden, config.width)
        self.dropout = LockedDropout(config.dropout)
        # with keys of the previous token, the code as a whole enters at every step too
        self.code_input = nn.Linear(config.width, config.hidden) if config.previous else None

    def start(self, code: Tensor) -> Cache:
        """Initial hidden and cell states, each `(L, N, H)`."""
        states = self.first(code).view(-1, 2, self.layers, self.lstm.hidden_size).permute(1, 2, 0, 3)
        return [states[0].tanh().contiguous(), states[1].contiguous()]

    def forward(
        self, tokens: Tensor, side: HeadInput, code: Tensor, cache: Cache, packing: Packing
    ) -> tuple[Tensor, Cache]:
        """Embedded `tokens (M, W)` at `packing` to hidden vectors `(M, W)`, and the states after the last step."""
        x = side.enter(self.dropout(tokens, packing.rows, len(code)), self.enter)
        if self.code_input is not None:
            x = x + take(self.code_input(code), packing.rows)
        if packing.shape[1] == 1 and not torch.is_grad_enabled():
            out, cache = self._step(x, cache)
        else:
            out, (hidden, cell) = self.lstm(packing.unpack(x), (cache[0].to(x.dtype), cache[1].to(x.dtype)))
            out, cache = packing.pack(out), [hidden, cell]
        return self.leave(self.dropout(out, packing.rows, len(code))), cache

    def _step(self, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """One LSTM step, `x (N, H)`: the set-up that `torch.lstm` does for many steps costs more than the step."""
        hidden, cells = [], []
        for h, c, weights in zip(*cache, self.lstm.all_weights, strict=True):
            into, back, into_bias, back_bias = weights
            gates = functional.linear(x, into, into_bias + back_bias)
            gates = gates.addmm_(h.to(gates.dtype), back.to(gates.dtype).T).float()
            # beyond these bounds the gates are saturated, but states become denormal, which a processor multiplies
            # many times slower
            enter, keep, new, leave = gates.clamp_(-40.0, 40.0).chunk(4, -1)
            cells.append((keep.sigmoid_() * c).addcmul_(enter.sigmoid_(), new.tanh_()))  # fp32: sums over steps
            x = cells[-1].tanh().mul_(leave.sigmoid_()).to(x.dtype)
            hidden.append(x)
        return x, [torch.stack(hidden), torch.stack(cells)]


class TransformerHead(nn.Module):
    """Causal transformer; the code is added before every layer (in-attention, Wu and Yang 2023)."""

    batch_axis = 0

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.enter = nn.Linear(2 * config.width, config.hidden)
        self.layers = nn.ModuleList(
            TransformerLayer(config.hidden, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.code_input = nn.ModuleList(nn.Linear(config.width, config.hidden) for _ in range(config.layers))
        self.leave = nn.Linear(config.hidden, config.width)

    def start(self, code: Tensor) -> Cache:
        """An empty cache: no keys and values yet."""
        del code
        return []

    def forward(
        self, tokens: Tensor, side: HeadInput, code: Tensor, cache: Cache, packing: Packing
    ) -> tuple[Tensor, Cache]:
        """As `RecurrentHead.forward`; the cache holds keys and values `(N, heads, T, ...)`, layer by layer."""
        x = packing.unpack(side.enter(tokens, self.enter))
        after: Cache = []
        for i, (layer, project) in enumerate(zip(self.layers, self.code_input, strict=True)):
            x, kept = layer(x + project(code).unsqueeze(1), None, cache[2 * i : 2 * i + 2] or None)
            after += kept
        return self.leave(packing.pack(x)), after
