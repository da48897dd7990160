"""Inference in batches: posteriors, log-probabilities and new tokens of any number of segments.

Scope: token ids of segments as tensors, batches of few shapes, precision, shares of several processes. Out of scope:
pieces, styles, and the networks themselves (nn/model.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.config import RefineConfig
from seqvae.errors import SeqVAEError
from seqvae.nn import batches
from seqvae.nn.binding import shifted
from seqvae.nn.blocks import Attention
from seqvae.nn.kernels import DISALLOWED, multiplies_bf16, steady
from seqvae.nn.latent import LatentModel
from seqvae.nn.posterior import Posterior
from seqvae.nn.refine import refine
from seqvae.nn.sampling import Sampling
from seqvae.nn.segments import Segment, conditions, in_context
from seqvae.parallel import Ranks
from seqvae.protocols import PAD, Given, Guide, Tokenizer

Ints = NDArray[np.int32]
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
        self, z: Tensor, given: Given | None, sampling: Sampling, guides: Sequence[Guide] = ()
    ) -> list[Ints]:
        """Token ids of the S * C chunks of `z (S, D)` under the conditions `given (S * C,)`; see `protocols.Given`.

        Raises SeqVAEError for a vector with NaN or infinity in it.
        """


@dataclass(frozen=True)
class BatchInference:
    """Inference by a model, batch by batch."""

    model: LatentModel
    tokenizer: Tokenizer
    refinement: RefineConfig
    """How posterior means are refined."""
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

    @property
    def _equal(self) -> bool:
        """Whether a batch has rows of one length alone: sums of attention are as long as the longest row."""
        return self.exact and any(isinstance(module, Attention) for module in self.model.modules())

    @torch.no_grad()
    def posteriors(self, segments: Sequence[Segment], refined: bool = False) -> Posterior:
        """As `Inference.posteriors`, in batches of similar length."""
        found = self._in_songs(segments) if self.model.conditioned else None
        if found is not None and not (refined and self.refinement.steps):
            return found
        given = conditions(segments)

        def encoded(tokens: Tensor, fields: Tensor, rows: list[int]) -> Posterior:
            if found is None:
                posterior = self.model.encode(tokens, fields)
            else:
                posterior = Posterior(found.mean[rows].to(self.device), found.logvar[rows].to(self.device))
            if not (refined and self.refinement.steps):
                return posterior
            allowed, low = self.allowed(tokens), multiplies_bf16(tokens.device)
            known = None if given is None else given[rows]
            return refine(self.model, tokens, fields, allowed, posterior, self.refinement, low, known)

        return self._by_batch(segments, encoded, even=not refined)

    def _in_songs(self, segments: Sequence[Segment]) -> Posterior:
        """Posteriors `(S, D)` of segments, each together with all segments of its song."""
        every, song, given, at = in_context(segments)
        alone = self._by_batch(every, lambda tokens, fields, _: self.model.encode(tokens, fields), even=True)
        sounding = torch.tensor([float(max(map(len, segment)) > 1) for segment in every])
        number = torch.tensor(song, dtype=torch.long)
        mean, logvar, number, sounding = (x.to(self.device) for x in (alone.mean, alone.logvar, number, sounding))
        with steady(self.exact):
            pooled = self.model.pooled(Posterior(mean, logvar), number, sounding, given)
        return Posterior(pooled.mean[at].cpu(), pooled.logvar[at].cpu())

    def _by_batch(
        self, segments: Sequence[Segment], encode: Callable[[Tensor, Tensor, list[int]], Posterior], even: bool
    ) -> Posterior:
        """Posteriors `(S, D)` of segments by `encode`, from tokens, fields and the rows of a batch."""
        longest = np.array([max(map(len, segment)) for segment in segments], np.int64)
        mean = torch.zeros(len(segments), self.model.config.latent)
        logvar = torch.zeros_like(mean)
        for rows in self.ranks.shard(batches.batches(longest, BATCH_TOKENS // self.chunks, self._equal)):
            tokens, fields = self.tensors([segments[i] for i in rows], even)
            with steady(self.exact):
                posterior = encode(tokens, fields, rows)
            mean[rows], logvar[rows] = posterior.mean[: len(rows)].cpu(), posterior.logvar[: len(rows)].cpu()
        self.ranks.add([mean, logvar])
        return Posterior(mean, logvar)

    @torch.no_grad()
    def token_log_probs(self, z: Tensor, segments: Sequence[Segment]) -> Tensor:
        """As `Inference.token_log_probs`."""
        longest = np.array([max(map(len, segment)) for segment in segments])
        total = torch.zeros(len(z), len(segments), self.chunks, int(longest.max(initial=0)))
        given = conditions(segments)
        budget = max(1, SCORE_NUMBERS // self.tokenizer.vocab_size)
        for rows in self.ranks.shard(batches.batches(longest, max(1, budget // self.chunks), self._equal)):
            tokens, fields = self.tensors([segments[i] for i in rows], even=True)
            allowed = self.allowed(tokens)
            disallowed = None if allowed is None else ~allowed
            each = max(1, budget // tokens.numel())  # vectors at once
            width = int(longest[rows[-1]])
            padded_rows = rows + rows[-1:] * (len(tokens) - len(rows))
            for at in range(0, len(z), each):
                part = z[at : at + each, padded_rows].to(tokens.device)
                log_p = self._log_probs(part, tokens, fields, disallowed, None if given is None else given[padded_rows])
                total[at : at + each, rows, :, :width] = log_p[:, : len(rows), :, :width].cpu()
        self.ranks.add([total])
        return total

    def _log_probs(
        self, z: Tensor, tokens: Tensor, fields: Tensor, disallowed: Tensor | None, given: Given | None
    ) -> Tensor:
        """Log-probability `(L, B, C, T)` of `tokens (B, C, T)` given `z (L, B, D)`."""
        decoder = self.model.under(None if given is None else np.concatenate([given] * len(z)))
        inputs, repeated = (x.repeat(len(z), *(1,) * (x.ndim - 1)) for x in (shifted(tokens), fields))
        low = torch.autocast(tokens.device.type, torch.bfloat16, enabled=multiplies_bf16(tokens.device))
        with steady(self.exact), low:
            logits = decoder.decode_logits(z.flatten(0, 1), inputs, repeated)[0].float()
        logits = logits.view(len(z), *tokens.shape, -1)
        if disallowed is not None:
            logits.masked_fill_(disallowed, DISALLOWED)
        index = tokens.expand(len(z), *tokens.shape)[..., None]
        return logits.log_softmax(-1).gather(-1, index)[..., 0].masked_fill(tokens == PAD, 0.0)

    def generate_tokens(
        self, z: Tensor, given: Given | None, sampling: Sampling, guides: Sequence[Guide] = ()
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
            known = None if given is None else given[rows]
            state = grammar.start(rows.stop - rows.start, batches.lengths_of(known))
            numbered = replace(sampling, first_row=sampling.first_row + rows.start)
            with steady(self.exact):
                segments = self.model.under(known).generate(part, grammar, state, numbered, guidances)
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
