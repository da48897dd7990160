"""Synthetic evidence, for tests without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seqvae.anomaly.calibration import COLUMNS, Calibration
from seqvae.anomaly.evidence import Evidence

Numbers = Sequence[float] | NDArray[Any]
D = 3


def evidence(log_prob: Numbers, where: Numbers = (0.0,) * D, kl: float = 2.0) -> Evidence:
    """Evidence of a piece with these log-probabilities and this posterior mean."""
    values = np.array(log_prob, np.float32)
    elbo, means = float(values.sum()) - kl, np.atleast_2d(np.array(where, np.float32))
    return Evidence(np.arange(len(values), dtype=np.int32), values, values + 0.1, elbo, elbo + 0.5, len(values), means)


def pieces(count: int, seed: int = 0) -> list[Evidence]:
    """Evidence of pieces of different lengths, with posterior means around the origin."""
    rng = np.random.default_rng(seed)
    return [evidence(-rng.exponential(1, rng.integers(5, 30)), rng.normal(0, 1, D)) for _ in range(count)]


def compared(normal: Sequence[float]) -> Calibration:
    """A calibration that compares scores with these."""
    one, tails = torch.zeros(1, D), np.zeros((1, len(COLUMNS)))
    grams = torch.zeros(0, dtype=torch.long)
    return Calibration("worst", one[0], torch.eye(D), one, grams, tails, np.sort(np.array(normal, float)))
