"""Explanation of anomalies: the tokens that a model expects at surprising positions.

Scope: the most probable tokens at given positions of one piece. Out of scope: the choice of positions (scores.py), the
meaning of tokens, display.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from seqvae.codec import Codec
from seqvae.nn.binding import shifted
from seqvae.nn.segments import conditions


@torch.no_grad()
def expected(
    codec: Codec, piece: Any, places: Sequence[int], most: int = 3, samples: int = 16, seed: int = 0
) -> list[list[tuple[int, float]]]:
    """The `most` most probable tokens at each of some positions of a piece, with probabilities, in falling order.

    A position is an index into `Evidence.tokens`. Probabilities are conditional on the tokens before, and averaged over
    `samples` draws from the posterior as in `scores.examine`. Raises ReadError for a piece that cannot be read.
    """
    tokenizer = codec.tokenizer
    noise = torch.randn(samples, codec.model.config.latent, generator=torch.Generator().manual_seed(seed))
    wanted = {place: i for i, place in enumerate(places)}
    out: list[list[tuple[int, float]]] = [[] for _ in places]
    at = 0  # index of the next chunk's first token in `Evidence.tokens`
    for number, segment in enumerate(codec.segments(codec.adapter.read(piece))):
        skip = [tokenizer.overlap if number or c else 0 for c in range(len(segment))]
        counts = [len(chunk) - first for chunk, first in zip(segment, skip, strict=True)]
        if not any(at <= place < at + sum(counts) for place in places):
            at += sum(counts)
            continue
        probability = _probabilities(codec, segment, noise)
        for c, (first, count) in enumerate(zip(skip, counts, strict=True)):
            for place in range(at, at + count):
                if place in wanted:
                    value, token = probability[c, place - at + first].topk(min(most, tokenizer.vocab_size))
                    out[wanted[place]] = list(zip(token.tolist(), value.tolist(), strict=True))
            at += count
    return out


def _probabilities(codec: Codec, segment: list[Any], noise: torch.Tensor) -> torch.Tensor:
    """`(C, T, V)`: the probability of each token at each position of a segment, averaged over `noise (L, D)`."""
    posterior = codec.posteriors([segment])
    tokens, fields = codec.tensors([segment])
    z = (posterior.mean + (0.5 * posterior.logvar).exp() * noise).to(tokens.device)
    inputs, fields = (x.repeat(len(z), *(1,) * (x.ndim - 1)) for x in (shifted(tokens), fields))
    given = conditions([segment] * len(z))
    logits = codec.model.under(given).decode_logits(z, inputs, fields)[0].float()
    allowed = codec.tokenizer.allowed(tokens.cpu().numpy())
    if allowed is not None:
        logits.masked_fill_(~torch.from_numpy(allowed).to(logits.device), -torch.inf)
    probability: torch.Tensor = logits.softmax(-1).mean(0).cpu()
    return probability
