"""`Detector`: a model and its calibration as a scikit-learn outlier detector.

Scope: `fit`, `score_samples`, `decision_function`, `predict` and their conventions. Out of scope: computing evidence
(anomaly/scores.py), calibration and storage (anomaly/calibration.py), the command line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted

from seqvae import codec
from seqvae.anomaly import calibration, conformal
from seqvae.anomaly import scores as anomaly
from seqvae.anomaly.calibration import Calibration, Settings
from seqvae.anomaly.score import Score
from seqvae.errors import SeqVAEError

Doubles = NDArray[np.float64]


class Detector(OutlierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Detects anomalous pieces with a guaranteed rate of false alarms.

    The model was trained before, on normal pieces; `fit` calibrates it on others. Pieces are the model's inputs:
    sentences or sessions, each a `str`, or music. X is a sequence of pieces, not a table.

    >>> detector = Detector("hdfs").fit(normal_sessions)  # doctest: +SKIP
    >>> detector.predict(new_sessions)  # -1 is anomalous, 1 is not  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | Path = "hdfs",
        *,
        statistic: Score = "combined",
        p_value: float = 0.01,
        confidence: float | None = None,
        contamination: float | Literal["auto"] = "auto",
        samples: int = 16,
        seed: int = 0,
        exact: bool = False,
    ) -> None:
        """`model` is a released name, a folder or a Hub id; `statistic` one of `calibration.Score`.

        With `contamination="auto"` a piece is anomalous if its p-value is at most `p_value`. At most this share of new
        normal pieces is anomalous: on average over calibrations, or, with a `confidence` such as 0.95, in that share of
        calibrations. Otherwise `contamination` is the share of the calibration scores below the threshold. `exact` is
        that of `seqvae.load`.
        """
        self.model = model
        self.statistic = statistic
        self.p_value = p_value
        self.confidence = confidence
        self.contamination = contamination
        self.samples = samples
        self.seed = seed
        self.exact = exact

    def fit(self, X: Sequence[Any], y: Any = None, *, known: Sequence[Any] = ()) -> Self:
        """Calibrate on normal pieces that the model was not trained on; `y` is ignored.

        `known` are pieces from which latent distances and novelty are measured, ideally the training set. Raises
        ReadError for a piece that cannot be read, SeqVAEError for too few pieces or invalid settings, CheckpointError
        if there is no such model.
        """
        del y
        share = self.p_value if self.contamination == "auto" else self.contamination
        if not (0 <= share <= 1 and self.samples >= 1):
            raise SeqVAEError(f"a share of {share} with {self.samples} samples; choose 0 to 1, and one sample or more")
        if self.confidence is not None and not (0 < share < 1 and 0 < self.confidence < 1):
            raise SeqVAEError(f"a share of {share} with {self.confidence} confidence; choose both between 0 and 1")
        self.codec_ = codec.load(self.model, exact=self.exact)
        near, tokens = anomaly.reference(self.codec_, _pieces(known))
        self.calibration_: Calibration = calibration.fit(self._evidence(X), self.statistic, near, self.seed, tokens)
        if self.contamination == "auto":
            self.offset_ = self.calibration_.threshold(self.p_value, self.confidence)
            if self.confidence is not None and self.offset_ == -math.inf:
                compared = len(self.calibration_.normal)
                raise SeqVAEError(calibration.too_few(compared, self.p_value, self.confidence))
        else:
            self.offset_ = self.calibration_.quantile(self.contamination)
        return self

    def update(self, X: Sequence[Any], *, replace: bool = False) -> Self:
        """Add new normal pieces to the calibration, without training; with `replace`, instead of the old ones.

        See `calibration.recalibrated`.
        """
        scores = self.score_samples(X)
        self.calibration_, settings = calibration.recalibrated(
            self.calibration_, self._settings(""), scores.tolist(), "", alone=replace
        )
        self.offset_ = settings.threshold
        return self

    def bound(self) -> float:
        """Upper bound on the rate of false alarms, with `confidence` or else 95 %."""
        check_is_fitted(self, "calibration_")
        if self.contamination == "auto":
            return self.calibration_.bound(self.offset_, self.p_value, self.confidence)
        return self.calibration_.bound(self.offset_, None)

    def _evidence(self, X: Sequence[Any]) -> Iterable[anomaly.Evidence]:
        return anomaly.examine(self.codec_, _pieces(X), self.samples, self.seed)

    def score_samples(self, X: Sequence[Any]) -> Doubles:
        """`(n,)`: the score of each piece; low is anomalous."""
        check_is_fitted(self, "calibration_")
        return np.array([self.calibration_.scores(one)[self.statistic] for one in self._evidence(X)], np.float64)

    def p_values(self, X: Sequence[Any], *, random_ties: bool = False) -> Doubles:
        """`(n,)`: split-conformal p-values; at most a share p of new normal pieces has a p-value of p or less.

        With `random_ties` the share is exactly p; see `conformal.smoothed`.
        """
        scores = self.score_samples(X).tolist()
        drawn = [conformal.uniform(self.seed, i) if random_ties else None for i in range(len(scores))]
        return np.array([self.calibration_.p_value(one, u) for one, u in zip(scores, drawn, strict=True)], np.float64)

    def discoveries(self, X: Sequence[Any], rate: float) -> NDArray[np.bool_]:
        """`(n,)`: True for anomalous pieces at this false discovery rate; see `conformal.discoveries`."""
        return conformal.discoveries(self.p_values(X), rate)

    def decision_function(self, X: Sequence[Any]) -> Doubles:
        """`(n,)`: `score_samples` less `offset_`; below 0 is anomalous."""
        out: Doubles = self.score_samples(X) - self.offset_
        return out

    def predict(self, X: Sequence[Any]) -> NDArray[np.int64]:
        """`(n,)`: -1 for anomalous pieces, 1 for the others."""
        return np.where(self.score_samples(X) < self.offset_, -1, 1)

    def save(self, folder: str | Path, about: str = "") -> None:
        """Write the folder that `seqvae detect score --detector` and `load` read; no pickle in it."""
        check_is_fitted(self, "calibration_")
        calibration.save(self.calibration_, self._settings(about), Path(folder))

    def _settings(self, about: str) -> Settings:
        p_value, confidence = (self.p_value, self.confidence) if self.contamination == "auto" else (None, None)
        model = calibration.named(self.model)
        return Settings(model, self.offset_, p_value, self.samples, self.seed, about, confidence)

    @classmethod
    def load(cls, folder: str | Path, model: str | Path | None = None, *, exact: bool = False) -> Detector:
        """A fitted detector from its folder; raises CheckpointError if it is missing or its model has other weights."""
        found, settings = calibration.load(Path(folder), None if model is None else str(model))
        share: float | Literal["auto"] = "auto"
        if settings.p_value is None:
            share = float(np.mean(found.normal < settings.threshold))
        detector = cls(
            settings.model,
            statistic=found.score,
            p_value=0.01 if settings.p_value is None else settings.p_value,
            confidence=settings.confidence,
            contamination=share,
            samples=settings.samples,
            seed=settings.seed,
            exact=exact,
        )
        detector.codec_ = codec.load(settings.model, exact=exact)
        detector.calibration_, detector.offset_ = found, settings.threshold
        return detector

    def __sklearn_tags__(self) -> Any:
        """X is a sequence of pieces, not a table of numbers."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True
        return tags


def _pieces(X: Sequence[Any]) -> Sequence[Any]:
    if isinstance(X, (str, bytes, Path)):
        raise SeqVAEError(f"{str(X)[:60]!r}: is one piece; give a list of pieces")
    if getattr(X, "ndim", 1) != 1:  # iterating over a data frame gives its column names
        raise SeqVAEError(f"a table of {X.ndim} dimensions; give a list of pieces, such as one column")  # type: ignore[attr-defined]
    return X
