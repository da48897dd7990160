"""`Detector`: a model and its calibration as a scikit-learn outlier detector.

Scope: `fit`, `score_samples`, `decision_function`, `predict` and their conventions; data frames in, data frames of
verdicts out. Out of scope: computing evidence (anomaly/evidence.py), calibration and storage (anomaly/calibration.py),
learning from logs (anomaly/log_detector.py), the command line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted

from seqvae import codec
from seqvae.anomaly import calibration, conformal, faults
from seqvae.anomaly import evidence as anomaly
from seqvae.anomaly.calibration import Calibration, Settings
from seqvae.anomaly.explain import pointed
from seqvae.anomaly.score_names import Score
from seqvae.errors import SeqVAEError
from seqvae.events import frames
from seqvae.events.lines import LogReader
from seqvae.events.sessions import Grouping, Session

if TYPE_CHECKING:  # they need the extra `logs`
    from seqvae.anomaly.log_detector import Learned, LogDetector

Doubles = NDArray[np.float64]


class Detector(OutlierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Detects anomalous pieces with a guaranteed rate of false alarms.

    The model was trained before, on normal pieces; `fit` calibrates it on others. Pieces are the model's inputs:
    sentences or sessions, each a `str`, or music. X is a sequence of pieces, not a table.

    >>> detector = Detector("hdfs").fit(normal_sessions)  # doctest: +SKIP
    >>> detector.predict(new_sessions)  # -1 is anomalous, 1 is not  # doctest: +SKIP

    A detector of a log, by `learn` or from the folder of `seqvae detect learn`, takes `Session`s as pieces, which
    `sessions` makes from a data frame. `verdicts` takes the frame itself.

    >>> detector = Detector.learn(normal, "ssh.detector", session="pid")  # doctest: +SKIP
    >>> detector.verdicts(new)  # a frame with one row for each session  # doctest: +SKIP
    """

    log_: LogDetector | None = None
    """Templates and grouping of a detector of a log."""
    learned_: Learned
    """The result of `learn`."""

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
        faulty = faults.source(self.codec_, self._texts(X), known, self.samples, self.seed)
        self.calibration_: Calibration = calibration.fit(
            self._evidence(X), self.statistic, near, self.seed, tokens, faulty=faulty
        )
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
        return anomaly.examine(self.codec_, self._texts(X), self.samples, self.seed)

    def _texts(self, X: Sequence[Any]) -> Sequence[Any]:
        """Pieces for the model: the sessions of a log as text, others unchanged."""
        pieces = _pieces(X)
        if self.log_ is not None:
            from seqvae.anomaly import log_detector

            pieces = [log_detector.piece(one, self.log_.templates) for one in pieces]
        return pieces

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
        """Write the folder that `seqvae detect score --detector` and `load` read; no pickle in it.

        Raises SeqVAEError for a detector of a log, whose folder `learn` wrote.
        """
        check_is_fitted(self, "calibration_")
        if self.log_ is not None:
            raise SeqVAEError(f"{folder}: a detector of a log is the folder {self.model}; copy that")
        calibration.save(self.calibration_, self._settings(about), Path(folder))

    def _settings(self, about: str) -> Settings:
        p_value, confidence = (self.p_value, self.confidence) if self.contamination == "auto" else (None, None)
        model = calibration.named(self.model)
        return Settings(model, self.offset_, p_value, self.samples, self.seed, about, confidence)

    @classmethod
    def load(cls, folder: str | Path, model: str | Path | None = None, *, exact: bool = False) -> Detector:
        """A fitted detector from its folder, also that of `seqvae detect learn`.

        Raises CheckpointError if it is missing or its model has other weights.
        """
        if (Path(folder) / "templates.json").is_file():
            from seqvae.anomaly import log_detector

            detector = cls.load(Path(folder) / "detector", model, exact=exact)
            detector.log_ = log_detector.load(Path(folder))
            return detector
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

    # --- data frames --------------------------------------------------------------------------------------------------

    @classmethod
    def learn(
        cls,
        frame: Any,
        folder: str | Path,
        *,
        message: str = "message",
        time: str | None = None,
        session: str | None = None,
        key: str | None = None,
        window: str | None = None,
        p_value: float = 0.01,
        confidence: float | None = None,
        minutes: float = 1.0,
        seed: int = 0,
    ) -> Detector:
        """Learn a detector from a data frame of normal log records, as `seqvae detect learn` does from lines.

        Columns are named by `message`, `time` and `session`. Instead of a session column, a `key` or a `window` groups
        the records, as `Grouping` says. Writes `folder`; see `log_detector.learn` for the rest and for the errors.
        """
        from seqvae.anomaly import log_detector

        reader, grouping = LogReader(), Grouping(key, window, session)
        found = frames.sessions(frame, reader, grouping, message, time)
        learned = log_detector.learn(
            found, reader, grouping, Path(folder), p_value=p_value, confidence=confidence, minutes=minutes, seed=seed,
            report=lambda _: None,
        )  # fmt: skip
        detector = cls.load(folder)
        detector.learned_ = learned
        return detector

    def sessions(
        self, frame: Any, *, message: str = "message", time: str | None = None, session: str | None = None
    ) -> list[Session]:
        """The sessions of a data frame of log records, grouped as when the detector was learned.

        A `session` column can have another name than then, or take the place of a key. Raises SeqVAEError for a missing
        column and for a detector that was not learned from a log.
        """
        if self.log_ is None:
            raise SeqVAEError(f"{self.model}: was not learned from a log; give pieces, or a frame to `verdicts`")
        grouping = self.log_.grouping if session is None else Grouping(column=session)
        return frames.sessions(frame, self.log_.reader(), grouping, message, time)

    def verdicts(
        self, frame: Any, *, message: str = "message", time: str | None = None, session: str | None = None
    ) -> Any:
        """Verdicts on a data frame, as a frame of the same library (pandas, polars and others that narwhals knows).

        A detector of a log gives one row for each session: `session`, `start` (the first time, if there are times),
        `records`, `score`, `p_value`, `anomalous`, and its least likely records by `rows` (positions from 0) and
        `messages`. Other detectors take each message for a piece, and add `score`, `p_value` and `anomalous` to the
        frame. Raises SeqVAEError for a missing column, and ReadError for a missing message.
        """
        check_is_fitted(self, "calibration_")
        if self.log_ is None:
            return frames.extended(frame, self._judged(self._evidence(frames.column(frame, message))))
        found = self.sessions(frame, message=message, time=time, session=session)
        evidence = list(self._evidence(found))
        firsts = [one.records[0].number - 1 for one in found]
        columns: dict[str, list[Any]] = {"session": [one.name for one in found]}
        if time is not None:
            times = frames.column(frame, time)
            columns["start"] = [times[first] for first in firsts]
        columns |= {"records": [len(one.records) for one in found], **self._judged(evidence)}
        marked = [
            [one.records[place] for place in sorted(pointed(told)) if place < len(one.records)]
            for one, told in zip(found, evidence, strict=True)
        ]
        columns["rows"] = [[record.number - 1 for record in some] for some in marked]
        columns["messages"] = [[record.text for record in some] for some in marked]
        return frames.like(frame, columns)

    def _judged(self, evidence: Iterable[anomaly.Evidence]) -> dict[str, list[Any]]:
        """Columns with the verdict on each piece."""
        scores = [self.calibration_.scores(one)[self.statistic] for one in evidence]
        p_values = [self.calibration_.p_value(score) for score in scores]
        return {"score": scores, "p_value": p_values, "anomalous": [score < self.offset_ for score in scores]}

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
