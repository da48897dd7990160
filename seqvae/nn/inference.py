"""Inference in batches: posteriors, log-probabilities and new tokens of any number of segments.

Scope: token ids of segments as tensors, batches of few shapes, precision, shares of several processes. Out of scope:
pieces, styles, and the networks themselves (nn/model.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.config import ObjectiveConfig
from seqvae.errors import SeqVAEError
from seqvae.nn import batches
from seqvae.nn.kernels import steady
from seqvae.nn.layers import DISALLOWED, multiplies_bf16, shifted
from seqvae.nn.loss import refine
from seqvae.nn.model import SequenceVAE
from seqvae.nn.posterior import Posterior
from seqvae.nn.sampling import Sampling
from seqvae.parallel import Ranks
from seqvae.protocols import EOS, PAD, Guide, Tokenizer

Ints = NDArray[np.int32]
Segment = list[Ints]
"""Token ids of the chunks of a segment, each ending in EOS."""
BATCH_TOKENS = 16384  # tokens encoded or scored at once: limits memory and does not change results
SCORE_NUMBERS = 1 << 22  # probabilities held at once when scoring: more would leave the processor's cache
BATCH_CHUNKS = 512  # chunks decoded side by side


class Inference(Protocol):
    """Inference on segments: `BatchInference`, or a wrapper that caches results, reports progress or stops."""

    def posteriors(self, segments: Sequence[Segment], refined: bool = False) -> Posterior:
        """Posteriors `(S, D)` of segments; `refined` means are for decoding."""

    def token_log_probs(self, z: Tensor, segments: Sequence[Segment]) -> Tensor:
        """Log-probability of every token given L vectors a segment, `z (L, S, D)`: `(L, S, C, T)` in nats, 0 at PAD."""

    def generate_tokens(
        self, z: Tensor, limits: Ints | None, sampling: Sampling, guides: Sequence[Guide] = ()
    ) -> list[Ints]:
        """Token ids of the S * C chunks of `z (S, D)`; `limits (S * C,)` are their lengths where the kind has lengths.

        Raises SeqVAEError for a vector with NaN or infinity in it.
        """


@dataclass(frozen=True)
class BatchInference:
    """Inference by a model, batch by batch."""

    model: SequenceVAE
    tokenizer: Tokenizer
    objective: ObjectiveConfig
    """How posteriors are refined; see `ObjectiveConfig.refine`."""
    ranks: Ranks
    """Processes that call the same functions with the same arguments: each does a part, all get all results."""
    exact: bool
    """True for results that are bit-identical in any batch and on any number of threads, at lower speed."""

    @property
    def chunks(self) -> int:
        """Chunks of a segment."""
        return self.model.config.chunks

    @property
    def device(self) -> torch.device:
        """The device of the model's weights."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def posteriors(self, segments: Sequence[Segment], refined: bool = False) -> Posterior:
        """As `Inference.posteriors`, in batches of similar length."""
        longest = np.array([max(map(len, segment)) for segment in segments], np.int64)
        mean = torch.zeros(len(segments), self.model.config.latent)
        logvar = torch.zeros_like(mean)
        for rows in self.ranks.shard(batches.batches(longest, BATCH_TOKENS // self.chunks)):
            tokens, fields = self.tensors([segments[i] for i in rows], even=not refined)
            with steady(self.exact):
                posterior = self.model.encode(tokens, fields)
                if refined and self.objective.refine:
                    allowed, low = self.allowed(tokens), multiplies_bf16(tokens.device)
                    posterior = refine(self.model, tokens, fields, allowed, posterior, self.objective, low)
            mean[rows], logvar[rows] = posterior.mean[: len(rows)].cpu(), posterior.logvar[: len(rows)].cpu()
        self.ranks.add([mean, logvar])
        return Posterior(mean, logvar)

    @torch.no_grad()
    def token_log_probs(self, z: Tensor, segments: Sequence[Segment]) -> Tensor:
        """As `Inference.token_log_probs`."""
        longest = np.array([max(map(len, segment)) for segment in segments])
        total = torch.zeros(len(z), len(segments), self.chunks, int(longest.max(initial=0)))
        budget = max(1, SCORE_NUMBERS // self.tokenizer.vocab_size)
        for rows in self.ranks.shard(batches.batches(longest, max(1, budget // self.chunks))):
            tokens, fields = self.tensors([segments[i] for i in rows], even=True)
            allowed = self.allowed(tokens)
            disallowed = None if allowed is None else ~allowed
            each = max(1, budget // tokens.numel())  # vectors at once
            width = int(longest[rows[-1]])
            for at in range(0, len(z), each):
                part = z[at : at + each, rows + rows[-1:] * (len(tokens) - len(rows))].to(tokens.device)
                log_p = self._log_probs(part, tokens, fields, disallowed)
                total[at : at + each, rows, :, :width] = log_p[:, : len(rows), :, :width].cpu()
        self.ranks.add([total])
        return total

    def _log_probs(self, z: Tensor, tokens: Tensor, fields: Tensor, disallowed: Tensor | None) -> Tensor:
        """Log-probability `(L, B, C, T)` of `tokens (B, C, T)` given `z (L, B, D)`."""
        inputs, repeated = (x.repeat(len(z), *(1,) * (x.ndim - 1)) for x in (shifted(tokens), fields))
        low = torch.autocast(tokens.device.type, torch.bfloat16, enabled=multiplies_bf16(tokens.device))
        with steady(self.exact), low:
            logits = self.model.decode_logits(z.flatten(0, 1), inputs, repeated)[0].float()
        logits = logits.view(len(z), *tokens.shape, -1)
        if disallowed is not None:
            logits.masked_fill_(disallowed, DISALLOWED)
        index = tokens.expand(len(z), *tokens.shape)[..., None]
        return logits.log_softmax(-1).gather(-1, index)[..., 0].masked_fill(tokens == PAD, 0.0)

    def generate_tokens(
        self, z: Tensor, limits: Ints | None, sampling: Sampling, guides: Sequence[Guide] = ()
    ) -> list[Ints]:
        """As `Inference.generate_tokens`, at most BATCH_CHUNKS chunks side by side."""
        z = z.float()
        if not bool(z.isfinite().all()):
            raise SeqVAEError("a latent vector with NaN or infinity cannot be decoded; move less far, or encode again")
        grammar = self.tokenizer.grammar()
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, self.tokenizer.max_tokens))
        each = max(1, BATCH_CHUNKS // self.chunks)

        def generated(first: int) -> list[Ints]:
            part = z[first : first + each].to(self.device)
            rows = slice(first * self.chunks, (first + len(part)) * self.chunks)
            guidances = [guidance for guide in guides for guidance in guide(rows)]
            state = grammar.start(rows.stop - rows.start, None if limits is None else limits[rows])
            numbered = replace(sampling, first_row=sampling.first_row + rows.start)
            with steady(self.exact):
                segments = self.model.generate(part, grammar, state, numbered, guidances)
            return [chunk for segment in segments for chunk in segment]

        parts = self.ranks.map_sharded(range(0, len(z), each), generated)
        return [chunk for part in parts for chunk in part]

    def allowed(self, tokens: Tensor) -> Tensor | None:
        """`(B, C, T, V)`: the tokens that the grammar allows at each step of `tokens (B, C, T)`; None for all."""
        rules = self.tokenizer.allowed(tokens.cpu().numpy())
        return None if rules is None else torch.from_numpy(rules).to(tokens.device)

    def tensors(self, segments: Sequence[Segment], even: bool = False) -> tuple[Tensor, Tensor]:
        """Tokens `(B, C, T)` and position fields `(B, C, T, K)` of segments, padded.

        With `even`, B and T are rounded up to few different sizes, by repeating the last segment: oneDNN caches code
        and the allocator caches memory for every shape, and a million lines have more shapes than a thousand.
        """
        tokens = padded(segments, self.chunks, even)
        fields = self.tokenizer.position_fields(tokens)
        return torch.from_numpy(tokens).long().to(self.device), torch.from_numpy(fields).long().to(self.device)


def padded(segments: Sequence[Segment], chunks: int, even: bool = False) -> Ints:
    """Token ids `(B, C, T)` of segments of `chunks` chunks, padded; `even` as in `BatchInference.tensors`."""
    longest = max((len(chunk) for segment in segments for chunk in segment), default=1)
    if even:
        segments = [*segments, *[segments[-1]] * (batches.even(len(segments)) - len(segments))]
        longest = batches.even(longest)
    tokens = np.full((len(segments), chunks, longest), PAD, np.int32)
    for i, segment in enumerate(segments):
        for c, chunk in enumerate(segment):
            tokens[i, c, : len(chunk)] = chunk
    return tokens


def segmented(chunks: Sequence[Ints], size: int) -> list[Segment]:
    """The chunks of a piece in segments of `size` chunks; the last segment is padded with empty chunks."""
    filled = [*chunks, *[np.array([EOS], np.int32)] * (-len(chunks) % size)]
    return [filled[at : at + size] for at in range(0, len(filled), size)]
