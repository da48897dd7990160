"""The detector follows scikit-learn's conventions, and its verdicts keep the guarantees of its p-values."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import pytest
from conftest import SENTENCES, SESSIONS, groove, session
from numpy.typing import NDArray

pytest.importorskip("sklearn", "1.6")  # the first version with tags as objects and with countable checks

from sklearn.base import clone, is_outlier_detector
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

import seqvae
from seqvae import codec
from seqvae.anomaly import conformal
from seqvae.anomaly.calibration import Score
from seqvae.anomaly.detector import Detector
from seqvae.anomaly.evidence import examine
from seqvae.errors import CheckpointError, ReadError, SeqVAEError
from seqvae.music import piece as midi
from seqvae.nn import inference

NORMAL = [session(number) for number in range(1000, 1150)]
NEW = [session(number) for number in range(2000, 2060)]
ODD = [
    "open read check write check close",  # a write without the sync that follows it
    "close sync read open",
    "open panic close",
    "open read check panic panic panic read check close",
    "",
]
METHODS = ("score_samples", "decision_function", "predict", "p_values")


@pytest.fixture(scope="module", autouse=True)
def full_precision() -> Iterator[None]:
    """In bf16 a number can round differently in another batch, by up to a hundredth of itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "multiplies_bf16", lambda device: False)
        yield


@pytest.fixture(scope="module")
def fitted(tiny_events: Path) -> Detector:
    return Detector(tiny_events, p_value=0.1, samples=4, exact=True).fit(NORMAL)


def outputs(detector: Detector, X: Sequence[Any]) -> list[list[float]]:
    return [getattr(detector, method)(X).tolist() for method in METHODS]


# --- scikit-learn's own checks ----------------------------------------------------------------------------------------


class Tabular(Detector):
    """A detector whose pieces are rows of numbers spelled as sessions, because scikit-learn's checks use tables only.

    `check_estimator` passes over whatever does not take tables; so that it checks the rest of a `Detector`, this takes
    them.
    """

    def fit(self, X: Any, y: Any = None, *, known: Sequence[Any] = ()) -> Self:
        return super().fit(_spelled(X), y, known=known)

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        return super().score_samples(_spelled(X))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


def _spelled(X: Any) -> list[str]:
    events = ("open", "read", "write", "check", "sync", "close")
    return [" ".join(events[int(abs(7 * number)) % 6] for number in row) for row in np.asarray(X)]


DO_NOT_APPLY = {
    # scikit-learn 1.6 does not check this
    "check_estimator_sparse_tag": "a sequence of pieces is never sparse; what fails is `_spelled`",
    "check_estimator_sparse_array": "the same",
    "check_estimator_sparse_matrix": "the same",
    "check_fit2d_1sample": "one piece is refused in one line, by a SeqVAEError and not a ValueError; tested below",
    "check_outliers_train": "wants rows of another length refused: pieces have any length. The rest of it is below",
    "check_outliers_fit_predict": "wants `contamination` to be the share of all that `fit` is given: it is that of the "
    "pieces that scores are compared with, tested below, and the other parts are no fair sample",
}
# whether these fail depends on the version of scikit-learn, and on the random division of its table
NEED_NOT_FAIL = {"check_estimator_sparse_tag", "check_outliers_fit_predict"}
# Checks of numeric tables (`check_n_features_in`, `check_dtype_object`, `check_complex_data`, `check_fit1d`,
# `check_estimators_nan_inf` and others) are not run: the tag `no_validation` says that X is no such table.
CANNOT_RUN = {"check_array_api_input", "check_classifier_data_not_an_array"}  # without SCIPY_ARRAY_API, without pandas


def test_it_passes_the_checks_of_scikit_learn_that_apply(tiny_events: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(Tabular(tiny_events, p_value=0.1, samples=1), legacy=True, on_skip=None, on_fail=None)
    failed = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    assert failed.keys() <= DO_NOT_APPLY.keys() <= failed.keys() | NEED_NOT_FAIL, failed
    passed = {result["check_name"] for result in results if result["status"] == "passed"}
    assert {result["check_name"] for result in results} - passed - failed.keys() <= CANNOT_RUN
    assert passed >= {
        "check_parameters_default_constructible",
        "check_get_params_invariance",
        "check_set_params",
        "check_dict_unchanged",
        "check_fit_idempotent",
        "check_methods_subset_invariance",
        "check_estimators_pickle",
    }


# --- conventions ------------------------------------------------------------------------------------------------------


def test_it_is_tagged_as_an_outlier_detector_of_sequences() -> None:
    assert is_outlier_detector(Detector())
    tags = Detector().__sklearn_tags__()
    assert (tags.input_tags.two_d_array, tags.input_tags.string, tags.no_validation) == (False, True, True)
    assert seqvae.Detector is Detector


def test_settings_are_kept_as_given_and_no_model_is_loaded_before_fit() -> None:
    given = {
        "model": Path("no/such"),
        "statistic": "worst",
        "p_value": 0.2,
        "confidence": 0.9,
        "contamination": 0.3,
        "samples": 2,
        "seed": 7,
        "exact": True,
    }
    detector = Detector(**given)  # type: ignore[arg-type]
    assert detector.get_params() == given
    assert vars(detector) == given
    assert detector.set_params(statistic="best", samples=-1).get_params() == {
        **given,
        "statistic": "best",
        "samples": -1,
    }
    with pytest.raises(ValueError, match="colour"):
        detector.set_params(colour="red")


def test_a_clone_has_the_settings_without_the_fitted_state(fitted: Detector) -> None:
    twin = clone(fitted)
    assert twin.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        twin.predict(NEW)
    assert outputs(twin.fit(NORMAL), NEW) == outputs(fitted, NEW)


@pytest.mark.parametrize("method", [*METHODS, "save"])
def test_an_unfitted_detector_raises_not_fitted(method: str, tmp_path: Path) -> None:
    with pytest.raises(NotFittedError, match="Detector"):
        getattr(Detector("no/such"), method)(tmp_path / "it" if method == "save" else NEW)
    assert not (tmp_path / "it").exists()


def test_outputs_have_the_usual_shapes_and_types(fitted: Detector) -> None:
    for X in (NEW, NEW[:1], []):
        scores, decision, labels, p_values = (getattr(fitted, method)(X) for method in METHODS)
        for output in (scores, decision, p_values):
            assert output.shape == (len(X),)
            assert output.dtype == np.float64
        assert labels.shape == (len(X),)
        assert labels.dtype.kind == "i"
        assert set(labels.tolist()) <= {-1, 1}
    assert fitted.fit(NORMAL, [0] * len(NORMAL)) is fitted, "a y is ignored"


@pytest.mark.parametrize("p_value", [0.0, 0.001, 0.02, 0.1, 0.35, 1.0])
def test_prediction_decision_and_p_values_agree(tiny_events: Path, p_value: float) -> None:
    detector = Detector(tiny_events, p_value=p_value, samples=2).fit(NORMAL)
    X = [*NORMAL, *NEW, *ODD]
    scores, decision, labels, p_values = (getattr(detector, method)(X) for method in METHODS)
    np.testing.assert_array_equal(decision, scores - detector.offset_)
    np.testing.assert_array_equal(labels == -1, decision < 0)
    np.testing.assert_array_equal(labels == -1, p_values <= p_value)
    assert (labels == -1).any() == (p_value > 0.01), "51 pieces can guarantee no rate below 1 in 51"
    assert (labels == 1).any() == (p_value < 1)


def test_fit_predict_equals_fit_then_predict(tiny_events: Path, fitted: Detector) -> None:
    labels = Detector(tiny_events, p_value=0.1, samples=4).fit_predict(NORMAL)
    assert labels.tolist() == fitted.predict(NORMAL).tolist()
    assert 0 < (labels == -1).mean() < 0.2


@pytest.mark.parametrize("share", [0.0, 0.05, 0.1, 0.31, 0.5])
@pytest.mark.parametrize("score", ["combined", "latent"])  # many have the same latent distance
def test_contamination_is_a_share_of_the_calibration_pieces(tiny_events: Path, score: Score, share: float) -> None:
    detector = Detector(tiny_events, statistic=score, contamination=share, samples=2).fit(NORMAL)
    normal = detector.calibration_.normal
    below, not_above = (normal < detector.offset_).sum(), (normal <= detector.offset_).sum()
    assert below <= share * len(normal) + 1
    assert not_above >= share * len(normal), "more, except for ties"
    labels, scores = detector.predict(NORMAL), detector.score_samples(NORMAL)
    np.testing.assert_array_equal(labels == -1, scores < detector.offset_)


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_anomalies_are_found_with_false_alarms_at_the_stated_rate(fitted: Detector) -> None:
    assert fitted.predict(ODD).tolist() == [-1] * len(ODD)
    false = (fitted.predict([session(number) for number in range(3000, 3400)]) == -1).mean()
    # 3 standard errors for 400 new pieces and 50 calibration pieces
    assert false <= 0.1 + 3 * math.sqrt(0.1 * 0.9 * (1 / 400 + 1 / 50))
    assert false > 0


def test_scores_do_not_depend_on_other_pieces_to_the_last_digit(fitted: Detector) -> None:
    X = [*NEW, *ODD]
    together = fitted.score_samples(X)
    assert [fitted.score_samples([piece])[0] for piece in X] == together.tolist()
    order = np.random.default_rng(0).permutation(len(X))
    assert fitted.score_samples([X[i] for i in order]).tolist() == together[order].tolist()
    assert fitted.score_samples(X * 2).tolist() == together.tolist() * 2


def test_a_calibration_piece_keeps_its_score(fitted: Detector) -> None:
    again = [fitted.score_samples([piece])[0] for piece in NORMAL]
    assert set(fitted.calibration_.normal) <= set(again), "so that equal pieces are ties, and p-values hold"


def test_a_copy_of_identical_normal_pieces_is_normal(tiny_events: Path) -> None:
    one = "open read check close"
    detector = Detector(tiny_events, p_value=0.1, samples=2).fit([one] * 60)
    assert detector.predict([one]).tolist() == [1]
    assert detector.predict([*NEW, one])[-1] == 1
    assert detector.p_values([f"{one} {one}", one]).tolist() == [1 / 21, 1]


@pytest.mark.parametrize("score", get_args(Score))
def test_every_score_detects_a_session_of_unknown_events(tiny_events: Path, score: Score) -> None:
    detector = Detector(tiny_events, statistic=score, p_value=0.05, samples=4).fit(NORMAL)
    assert detector.predict(["open panic panic close"]).tolist() == [-1]
    found = [detector.calibration_.scores(one)[score] for one in examine(codec.load(tiny_events), NEW, 4)]
    assert detector.score_samples(NEW).tolist() == found


def test_distances_are_measured_from_the_known_pieces(tiny_events: Path) -> None:
    detector = Detector(tiny_events, statistic="latent", samples=1).fit(NORMAL, known=SESSIONS)
    assert (detector.score_samples(SESSIONS) == 0).all()
    assert detector.score_samples(["panic panic close"])[0] < -1
    assert len(detector.calibration_.normal) == 100, "without pieces of their own: a third is for the tails"
    assert len(detector.fit(NORMAL).calibration_.normal) == 50


def test_the_seed_decides_the_split_and_the_draws(tiny_events: Path) -> None:
    one, again, other = (Detector(tiny_events, samples=2, seed=seed).fit(NORMAL) for seed in (1, 1, 2))
    assert outputs(one, NEW) == outputs(again, NEW)
    assert one.score_samples(NEW).tolist() != other.score_samples(NEW).tolist()
    few, others, many = (
        Detector(tiny_events, statistic="probability", samples=samples, seed=seed).fit(NORMAL).score_samples(NEW)
        for samples, seed in ((2, 1), (2, 2), (64, 1))
    )
    assert 0 < np.abs(few - many).mean() < 0.2
    assert 0 < np.abs(few - others).mean() < 0.3, "this score depends only on the draws"


# --- inside of scikit-learn -------------------------------------------------------------------------------------------


def _without_time(lines: Sequence[str]) -> list[str]:
    return [line.partition("| ")[2] for line in lines]


def test_it_is_the_last_step_of_a_pipeline(fitted: Detector, tiny_events: Path) -> None:
    stamped = [f"12:{i % 60:02d} | {line}" for i, line in enumerate(NORMAL)]
    new = [f"13:{i % 60:02d} | {line}" for i, line in enumerate([*NEW, *ODD])]
    steps = [("clean", FunctionTransformer(_without_time)), ("odd", Detector(tiny_events, p_value=0.1, samples=4))]
    pipeline = Pipeline(steps).fit(stamped)
    for method in ("score_samples", "decision_function", "predict"):
        assert getattr(pipeline, method)(new).tolist() == getattr(fitted, method)([*NEW, *ODD]).tolist()
    assert is_outlier_detector(pipeline)
    assert pipeline.fit_predict(stamped).tolist() == fitted.predict(NORMAL).tolist()
    twin = clone(pipeline).set_params(odd__statistic="worst")
    assert twin.get_params()["odd__statistic"] == "worst"
    assert twin.fit(stamped)[-1].calibration_.score == "worst"
    known = make_pipeline(FunctionTransformer(_without_time), Detector(tiny_events, samples=1))
    assert len(known.fit(stamped, detector__known=SESSIONS)[-1].calibration_.normal) == 100


def test_cross_validation_scores_each_piece_by_a_detector_that_has_not_seen_it(tiny_events: Path) -> None:
    detector = Detector(tiny_events, p_value=0.1, samples=2)
    X = [*NORMAL, *ODD]
    labels = cross_val_predict(detector, X, cv=3)
    decision = cross_val_predict(detector, np.array(X, object), cv=3, method="decision_function")
    np.testing.assert_array_equal(labels == -1, decision < 0)
    assert (labels[-len(ODD) :] == -1).all()
    assert (labels == -1).mean() < 0.3
    last = detector.fit(X[:104])  # training part of the last of the three folds
    assert labels[104:].tolist() == last.predict(X[104:]).tolist()


@pytest.mark.parametrize("kind", [tuple, np.array, lambda x: np.array(x, object)])
def test_any_sequence_of_pieces_is_accepted(
    fitted: Detector, tiny_events: Path, kind: Callable[[list[str]], Sequence[str]]
) -> None:
    detector = Detector(tiny_events, p_value=0.1, samples=4).fit(kind(NORMAL))
    assert outputs(detector, kind(NEW)) == outputs(fitted, NEW)


# --- saving and loading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [
    {"p_value": 0.1}, {"p_value": 0.0}, {"p_value": 1e-6}, {"statistic": "latent", "seed": 3}, {"contamination": 0.2},
])  # fmt: skip
def test_loading_returns_the_saved_state(tiny_events: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    detector = Detector(tiny_events, samples=2, **settings).fit(NORMAL)
    detector.save(tmp_path / "it", "150 sessions")
    again = Detector.load(tmp_path / "it")
    assert outputs(again, [*NEW, *ODD]) == outputs(detector, [*NEW, *ODD])
    assert again.offset_ == detector.offset_
    same = {"statistic", "samples", "seed"} | ({"p_value"} if "contamination" not in settings else set())
    assert {name: again.get_params()[name] for name in same} == {name: detector.get_params()[name] for name in same}
    assert Path(again.model) == tiny_events.resolve()
    if "contamination" in settings:
        assert again.contamination == pytest.approx(0.2, abs=1 / 50), "as a share of the calibration pieces"
    else:
        assert again.contamination == "auto"
    again.save(tmp_path / "twice")
    assert outputs(Detector.load(tmp_path / "twice"), NEW) == outputs(detector, NEW)


def test_a_saved_detector_follows_its_model_and_refuses_another(
    fitted: Detector, tiny_text: Path, tiny_events: Path, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "it")
    assert Detector.load(tmp_path / "it", tiny_events).predict(ODD).tolist() == [-1] * len(ODD)
    with pytest.raises(CheckpointError, match="another model"):
        Detector.load(tmp_path / "it", tiny_text)
    with pytest.raises(CheckpointError, match="no detector"):
        Detector.load(tiny_events)


# --- bounds, batches, updates -----------------------------------------------------------------------------------------


def test_a_confidence_bounds_false_alarms(fitted: Detector, tiny_events: Path, tmp_path: Path) -> None:
    sure = Detector(tiny_events, p_value=0.2, confidence=0.9, samples=4, exact=True).fit(NORMAL)
    assert sure.offset_ == fitted.calibration_.threshold(0.2, 0.9) < fitted.calibration_.threshold(0.2)
    assert sure.bound() <= 0.2
    assert fitted.bound() == fitted.calibration_.bound(fitted.offset_, 0.1) > 0.1
    sure.save(tmp_path / "it")
    again = Detector.load(tmp_path / "it", exact=True)
    assert (again.confidence, again.offset_, again.bound()) == (0.9, sure.offset_, sure.bound())
    with pytest.raises(SeqVAEError, match="needs 299 calibration scores and there are 50"):
        clone(sure).set_params(p_value=0.01, confidence=0.95).fit(NORMAL)
    with pytest.raises(SeqVAEError, match="between 0 and 1"):
        clone(sure).set_params(confidence=1.0).fit(NORMAL)


def test_ties_and_discoveries(fitted: Detector) -> None:
    drawn, plain = fitted.p_values([*NEW, *ODD], random_ties=True), fitted.p_values([*NEW, *ODD])
    assert (drawn < plain).all()
    assert len(set(drawn[-len(ODD) :])) == len(ODD)
    found = fitted.discoveries([*NEW[:10], *ODD], 0.2)
    assert found[10:].all()
    assert found.tolist() == conformal.discoveries(fitted.p_values([*NEW[:10], *ODD]), 0.2).tolist()


def test_new_pieces_are_added_to_the_calibration(fitted: Detector) -> None:
    beside, alone = copy.copy(fitted), copy.copy(fitted)
    assert beside.update(NEW) is beside
    alone.update(NEW, replace=True)
    scores = fitted.score_samples(NEW)
    assert alone.calibration_.normal.tolist() == sorted(scores)
    assert beside.calibration_.normal.tolist() == sorted([*fitted.calibration_.normal, *scores])
    for one in (beside, alone):
        assert one.offset_ == one.calibration_.threshold(0.1)
    assert (alone.predict(NEW) == -1).sum() <= 6
    assert outputs(fitted, NEW[:3]) != outputs(alone, NEW[:3])


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", ["open read check close", b"MThd", Path("sessions.txt")])
def test_a_single_string_is_not_a_sequence_of_letters(fitted: Detector, one: Any) -> None:
    for call in (*(getattr(fitted, method) for method in METHODS), clone(fitted).fit):
        with pytest.raises(SeqVAEError, match="one piece"):
            call(one)


def test_a_table_is_refused(fitted: Detector) -> None:
    tables: list[Any] = [np.array([NEW, NEW]), np.array([NEW]), np.array(NEW[0]), np.zeros((20, 2))]
    for table in tables:
        for call in (fitted.predict, clone(fitted).fit):
            with pytest.raises(SeqVAEError, match=f"table of {table.ndim} dimensions"):
                call(table)


@pytest.mark.parametrize("count", range(6))
def test_few_pieces_are_refused_in_one_line(tiny_events: Path, count: int) -> None:
    with pytest.raises(SeqVAEError, match=f"^{count} normal pieces are too few") as caught:
        Detector(tiny_events, samples=1).fit(NORMAL[:count])
    assert "\n" not in str(caught.value)
    Detector(tiny_events, samples=1).fit(NORMAL[:6])


@pytest.mark.parametrize("settings", [
    {"p_value": -0.1}, {"p_value": 1.5}, {"p_value": math.nan}, {"contamination": -0.1}, {"contamination": 2.0},
    {"samples": 0}, {"statistic": "best"},
])  # fmt: skip
def test_impossible_settings_are_refused_by_fit(tiny_events: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(SeqVAEError, match="choose"):
        Detector(tiny_events, **settings).fit(NORMAL)


def test_an_invalid_piece_or_model_is_an_error(fitted: Detector, tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="is not a line"):
        fitted.predict([NEW[0], 7])
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        Detector(tmp_path / "none").fit(NORMAL)


# --- other modalities -------------------------------------------------------------------------------------------------


def test_sentences_are_scored_too(tiny_text: Path) -> None:
    detector = Detector(tiny_text, p_value=0.1, samples=4).fit(SENTENCES)
    salad = [" ".join(sorted(line.split())) for line in SENTENCES[::9]]
    assert detector.predict(salad).tolist() == [-1] * len(salad)
    assert (detector.predict(SENTENCES) == -1).mean() < 0.2
    assert detector.predict([""]).tolist() == [-1]


def test_music_is_scored_too_from_any_source(tiny_music: Path, tmp_path: Path) -> None:
    pieces = [groove(number, bars=4) for number in range(12)]
    detector = Detector(tiny_music, statistic="latent", p_value=0.4, samples=2).fit(pieces)
    score = midi.to_score(pieces[0].notes, pieces[0].frame)
    path = midi.write(score, tmp_path / "song.mid")
    one, two, three = detector.score_samples([path, score, midi.read(path)])
    assert one == two == three
    assert detector.score_samples(pieces).shape == (12,)
    noise = np.random.default_rng(0).integers([0, 1, 20, 0, 1], [180, 12, 100, 100, 127], (200, 5))
    wild = midi.to_score(noise.astype(np.int32), pieces[0].frame)
    assert detector.score_samples([wild])[0] < detector.score_samples(pieces).min()
    with pytest.raises(ReadError, match=r"none\.mid"):
        detector.predict([tmp_path / "none.mid"])
