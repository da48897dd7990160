"""Style classifier of notes, fitted on real music alone.

Scope: features (`measures.features`), and averaging probabilities of stretches over a piece. Out of scope: models,
latents, and the choice of songs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from seqvae.music import note_metrics as measures
from seqvae.music.piece import Piece

Ints = NDArray[np.int32]


class StyleClassifier:
    """A logistic regression on `measures.features` of stretches of `chunks` bars of real training songs."""

    def __init__(self, stretches: Sequence[tuple[str, Piece]], chunks: int, instruments: bool, seed: int) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self.chunks, self.instruments = chunks, instruments
        x, y = [], []
        for style, piece in stretches:
            heard = self._hear(piece.notes, piece.bounds)
            x += heard
            y += [style] * len(heard)
        self.model = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.1, max_iter=500, class_weight="balanced", random_state=seed)
        )
        self.model.fit(np.array(x), np.array(y))
        self.styles: list[str] = list(self.model.classes_)

    def _hear(self, notes: Ints, bounds: Ints) -> list[NDArray[np.float64]]:
        cuts = [*range(0, len(bounds) - 1, self.chunks), len(bounds) - 1]
        out = []
        for a, b in pairwise(cuts):
            inside = notes[(notes[:, 0] >= bounds[a]) & (notes[:, 0] < bounds[b])].copy()
            if len(inside):
                inside[:, 0] -= bounds[a]
                out.append(measures.features(inside, int(bounds[b] - bounds[a]), self.instruments))
        return out

    def probability(self, notes: Ints, bounds: Ints) -> dict[str, float]:
        """Probability of each style, averaged over the stretches; uniform for silence."""
        heard = self._hear(notes, bounds)
        if not heard:
            return dict.fromkeys(self.styles, 1 / len(self.styles))
        return dict(zip(self.styles, self.model.predict_proba(np.array(heard)).mean(0), strict=True))

    def between(self, notes: Ints, bounds: Ints, one: str, other: str) -> float:
        """Probability of style `one`, given that the style is `one` or `other`."""
        said = self.probability(notes, bounds)
        return said[one] / max(1e-12, said[one] + said[other])
