"""Names of the anomaly scores.

Scope: the names, for command lines that answer before torch is imported. Out of scope: computing scores
(anomaly/evidence.py, anomaly/calibration.py).
"""

from __future__ import annotations

from typing import Literal

Score = Literal[
    "combined", "probability", "error", "elbo", "importance", "worst", "familiar", "sum", "quantile", "novelty",
    "latent", "fisher",
]  # fmt: skip
