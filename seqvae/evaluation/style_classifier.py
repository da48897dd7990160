"""Style classifiers of notes and of sentences, fitted on real songs and lines alone.

Scope: features, and averaging probabilities of stretches over a song. Out of scope: models, latents, and the choice of
songs and lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from seqvae.music import note_metrics as measures
from seqvae.music.piece import Piece

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
CHOOSER_LINES = 10_000


class StyleClassifier:
    """A logistic regression on `measures.features` of stretches of `chunks` bars of real training songs."""

    def __init__(self, stretches: Sequence[tuple[str, Piece]], chunks: int, instruments: bool, seed: int) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self.chunks, self.instruments = chunks, instruments
        x, y = [], []
        for style, piece in stretches:
            rows = self._features(piece.notes, piece.bounds)
            x += rows
            y += [style] * len(rows)
        self.model = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.1, max_iter=500, class_weight="balanced", random_state=seed)
        )
        self.model.fit(np.array(x), np.array(y))
        self.styles: list[str] = list(self.model.classes_)

    def _features(self, notes: Ints, bounds: Ints) -> list[Floats]:
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
        rows = self._features(notes, bounds)
        if not rows:
            return dict.fromkeys(self.styles, 1 / len(self.styles))
        return dict(zip(self.styles, self.model.predict_proba(np.array(rows)).mean(0), strict=True))

    def between(self, notes: Ints, bounds: Ints, one: str, other: str) -> float:
        """Probability of style `one`, given that the style is `one` or `other`."""
        p = self.probability(notes, bounds)
        return p[one] / max(1e-12, p[one] + p[other])


class LineClassifier:
    """Style classifier: logistic regression on TF-IDF of n-grams, fitted on real lines of two or more styles.

    The n-grams are of one to three words, or with `characters` of two to four characters within words.
    """

    def __init__(self, real: Mapping[str, Sequence[str]], seed: int, *, characters: bool = False) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        if characters:
            counts = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), min_df=2, sublinear_tf=True)
        else:
            counts = TfidfVectorizer(token_pattern=r"\S+", ngram_range=(1, 3), min_df=2, sublinear_tf=True)
        choice = LogisticRegression(C=4.0, max_iter=300, class_weight="balanced", random_state=seed)
        self.model = make_pipeline(counts, choice)
        lines = [(line, name) for name, members in real.items() for line in members]
        self.model.fit([line for line, _ in lines], [name for _, name in lines])
        self.styles: list[str] = list(self.model.classes_)

    def puts_in(self, lines: Sequence[str], targets: Sequence[str]) -> Floats:
        """1 for each line that is classified as its target, else 0, `(N,)`; an empty line gets 0."""
        predicted = self.model.predict(list(lines))
        return np.array([bool(x.strip()) and s == t for x, s, t in zip(lines, predicted, targets, strict=True)], float)

    def prefers(self, lines: Sequence[str], targets: Sequence[str], sources: Sequence[str]) -> Floats:
        """1 for each line whose target is more probable than its source, else 0, `(N,)`; an empty line gets 0."""
        p = self.model.predict_log_proba(list(lines))
        row, place = np.arange(len(lines)), {style: k for k, style in enumerate(self.styles)}
        more = p[row, [place[x] for x in targets]] > p[row, [place[x] for x in sources]]
        return np.array([bool(line.strip()) and found for line, found in zip(lines, more, strict=True)], float)


def chooser(real: Mapping[str, Sequence[str]], seed: int) -> LineClassifier:
    """A classifier by which settings are chosen: of characters, on at most CHOOSER_LINES random lines of each style.

    The classifier that measures accuracy has other features, so that no setting is chosen by it.
    """
    rng = np.random.default_rng(seed)
    few = {name: [lines[i] for i in rng.permutation(len(lines))[:CHOOSER_LINES]] for name, lines in real.items()}
    return LineClassifier(few, seed, characters=True)
