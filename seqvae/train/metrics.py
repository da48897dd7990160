"""Validation metrics on held-out segments.

Scope: the metrics, and the detection of posterior collapse. Out of scope: the choice and encoding of segments, and the
reaction to a collapse (train/loop.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from seqvae.config import ObjectiveConfig
from seqvae.data.dataset import Ints
from seqvae.nn.model import SequenceVAE
from seqvae.nn.posterior import Posterior, active_units, mutual_information
from seqvae.nn.sampling import Sampling
from seqvae.protocols import PAD, Tokenizer


def validation_metrics(
    model: SequenceVAE,
    tokenizer: Tokenizer,
    objective: ObjectiveConfig,
    averages: Sequence[float],
    posteriors: Sequence[tuple[Tensor, ...]],
    shown: Mapping[int, Ints],
) -> dict[str, float]:
    """The metrics of a validation.

    `averages` are reconstruction and KL in nats a segment, and accuracy; `posteriors` are the means, log-variances and
    draws `(B, D)` of consecutive batches; `shown` has some of the tokens `(B, C, T)` by the index of their first
    segment.
    """
    reconstruction, kl, accuracy = averages
    mean, logvar, draws = map(torch.cat, zip(*posteriors, strict=True))
    free = [free_running(model, tokenizer, tokens, mean[at : at + len(tokens)]) for at, tokens in shown.items()]
    return {
        "loss": reconstruction + (0.0 if objective.autoencoder else objective.beta * kl),
        "elbo": -(reconstruction + kl),
        "kl_bits": kl / math.log(2),
        "active_units": float(active_units(mean)),
        "mutual_information": mutual_information(Posterior(mean[:512], logvar[:512]), draws[:512]),
        "accuracy": accuracy,
        "free_running": float(np.mean(free)),
    }


def free_running(model: SequenceVAE, tokenizer: Tokenizer, tokens: Ints, z: Tensor) -> float:
    """F1 between segments `tokens (B, C, T)` and the greedy decoding of their `z (B, D)`, without teacher forcing.

    It counts pairs of a token and its position fields. So for music a note counts if program, position and pitch are
    right, whatever was decoded before it.
    """
    grammar = tokenizer.grammar()
    rows = tokens.reshape(-1, tokens.shape[-1])
    written = model.generate(z, grammar, grammar.start(len(rows)), Sampling(max_tokens=2 * tokens.shape[-1]))

    def pairs(row: Ints) -> Counter[tuple[int, ...]]:
        row = row[row != PAD]
        return Counter(map(tuple, np.column_stack([row, tokenizer.position_fields(row)]).tolist()))

    common = total = 0
    for a, b in zip(rows, (chunk for segment in written for chunk in segment), strict=True):
        x, y = pairs(a), pairs(b)
        common += (x & y).total()
        total += x.total() + y.total()
    return 2 * common / total


def collapsed(figures: dict[str, float], latent: int, alike: bool = False) -> str | None:
    """A warning as text if the posterior carries next to no information, else None.

    If all segments are equal (`alike`) no unit can be active, and only the KL is tested.
    """
    if figures["kl_bits"] > 1.0 and (alike or figures["active_units"] > 0.05 * latent):
        return None
    return (
        f"warning: the posterior is collapsing (KL {figures['kl_bits']:.2f} bits, "
        f"{figures['active_units']:.0f} of {latent} units active): lower objective.beta, raise objective.free_bits, "
        "objective.bag or objective.word_dropout, or lengthen objective.anneal_steps"
    )
