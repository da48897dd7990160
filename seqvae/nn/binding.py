"""Binding of tokens to their positions, and unbinding of codes by positions.

Scope: embeddings, keys of position fields, logits by similarity to embeddings. Out of scope: the meaning of tokens and
fields, latents, training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqvae.nn.kernels import Packing, cast, fused_cross_entropy, take
from seqvae.protocols import BOS


class Binding(nn.Module):
    """Tokens bound to their positions by multiplication, and codes unbound by a position.

    A position has fields from the general to the special, and each value of a field has a key. A token's
    embedding times the keys of its position binds the two. A sum of bound vectors, multiplied by the same keys, returns
    the tokens of that position. With keys of +1 and -1 this holds from the first random weights on
    (multiply-add-permute memories, Gayler 1998; Plate 1995), so tokens are copied through one latent vector long before
    a recurrence would learn to do it. The depth of a token (`binding_depth`) is the number of fields it is bound to: an
    outer token to none, one inside it to the outer token, and so on. So each can be retrieved whatever token came
    before it.
    """

    binding_depth: Tensor

    def __init__(self, binding_depth: Tensor, field_sizes: Sequence[int], width: int, previous: bool = False) -> None:
        """`binding_depth (V,)`: number of fields each token is bound to, 0..K.

        `previous` binds to the token before, too.
        """
        super().__init__()
        self.field_sizes = tuple(field_sizes)
        self.embed = nn.Embedding(len(binding_depth), width)
        self.before = nn.Embedding(len(binding_depth), width) if previous else None
        self.keys = nn.ModuleList(nn.Embedding(size, width) for size in field_sizes)
        self.scale = nn.Parameter(torch.tensor(1.0 / math.sqrt(width)))
        self.bias = nn.Parameter(torch.zeros(len(binding_depth)))
        if not field_sizes:
            # A vocabulary of thousands of mostly rare words: from small initial values embeddings arrange by meaning
            # several times sooner, because gradients soon outweigh the random start.
            with torch.no_grad():
                self.embed.weight.mul_(0.25)
                self.scale.mul_(2.0)
        self.register_buffer("binding_depth", binding_depth, persistent=False)
        for table in [*self.keys, *([self.before] if self.before is not None else [])]:
            assert isinstance(table, nn.Embedding)
            with torch.no_grad():
                table.weight.copy_(torch.randint(0, 2, table.weight.shape) * 2.0 - 1.0)
                table.weight[0] = 1.0  # an absent field changes nothing; `key` gives this row no gradient

    def key(self, field: int, values: Tensor) -> Tensor:
        """Keys `(..., W)` of one field's `values (...)`."""
        table = self.keys[field]
        assert isinstance(table, nn.Embedding)
        return take(cast(table.weight), values, frozen=True)

    def bind(self, tokens: Tensor, fields: Tensor, weight: Tensor | None = None) -> Tensor:
        """Bound vectors `(..., T, W)` of `tokens (..., T)` with `fields (..., T, K)`.

        With a `weight (..., T)`, those of the M positions where it is True: `(M, W)`.
        """
        if weight is None:
            return self.bind(tokens, fields, torch.ones_like(tokens, dtype=torch.bool)).view(*tokens.shape, -1)
        n, t = tokens.numel() // tokens.shape[-1], tokens.shape[-1]
        counted = self.binding_depth[tokens].unsqueeze(-1) > torch.arange(len(self.field_sizes), device=tokens.device)
        flat = tokens.reshape(n, t)
        fields = (fields * counted).reshape(n, t, len(self.field_sizes))
        packing = Packing.of(flat, fields, self.field_sizes, weight.reshape(n, t))
        x = self.tokens(packing.pack(flat))
        keys: Tensor | None = None
        for i, (parent, values) in enumerate(packing.tree):
            key = self.key(i, values)
            keys = key if keys is None else take(keys, parent) * key
        if keys is not None:
            x = x * take(keys, packing.indices[-1])
        return x if self.before is None else x * self.after(packing.pack(shifted(tokens).reshape(n, t)))

    def after(self, previous: Tensor) -> Tensor:
        """Keys `(..., W)` of the position after each of `previous (...)`."""
        assert self.before is not None
        return take(cast(self.before.weight), previous)

    def tokens(self, tokens: Tensor) -> Tensor:
        """Embeddings of `tokens (...)`: `(..., W)`."""
        return take(cast(self.embed.weight), tokens)

    def logits(self, x: Tensor, columns: Tensor | None = None) -> Tensor:
        """Similarity of `x (..., W)` to each token's embedding, or to those of `columns`: `(..., V)`."""
        weight: Tensor = self.embed.weight
        bias: Tensor = self.bias
        if columns is not None:
            weight, bias = weight[columns], bias[columns]
        return functional.linear(x * self.scale, weight, bias)

    def cross_entropy(
        self, x: Tensor, targets: Tensor, disallowed: Tensor | None = None, index: Tensor | None = None,
        outer: Tensor | None = None, outer_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Cross-entropy of `targets (M,)` in nats, summed to a scalar, and whether each is the argmax `(M,)`.

        Position m has row `index[m]` of `x (U, W)`, or row m; row `outer_index[m]` of `outer (O, V)` is added to its
        logits. Probabilities are normalised over the tokens that `disallowed (M, V)` permits. The result is that of
        `logits` and a cross-entropy, without an fp32 tensor `(M, V)`.
        """
        x, weight = cast(x), cast(self.embed.weight * self.scale)
        outer = self.bias.unsqueeze(0) if outer is None else self.bias + outer
        return fused_cross_entropy(x, weight, outer, targets, disallowed, index, outer_index)


def shifted(tokens: Tensor) -> Tensor:
    """Decoder inputs: the token before each of `tokens (..., T)`, BOS first."""
    return torch.cat([torch.full_like(tokens[..., :1], BOS), tokens[..., :-1]], -1)
