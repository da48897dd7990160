"""The folder of a detector: loading returns the saved state; broken or foreign folders are one-line errors."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evidences import D, compared, evidence, pieces
from torch import Tensor

from seqvae.anomaly import calibration
from seqvae.anomaly.calibration import (
    COLUMNS,
    Calibration,
    Settings,
    fit,
    from_tensors,
    load,
    named,
    recalibrated,
    save,
)
from seqvae.checkpoint.folder import load_tensors, save_tensors
from seqvae.errors import CheckpointError, SeqVAEError


@pytest.fixture(scope="module")
def fitted() -> Calibration:
    return fit(pieces(300))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A stand-in model with the weights that a detector fingerprints."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def saved(tmp_path: Path, model: Path, fitted: Calibration) -> Path:
    settings = Settings(str(model), fitted.threshold(0.05), 0.05, 8, 3, "300 pieces")
    save(fitted, settings, tmp_path / "detectors" / "one")
    return tmp_path / "detectors" / "one"


def changed(folder: Path, **facts: Any) -> None:
    path = folder / "detector.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def refusal(folder: Path, model: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder, model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_loading_returns_the_saved_state(saved: Path, model: Path, fitted: Calibration) -> None:
    found, settings = load(saved)
    assert settings == Settings(str(model), fitted.threshold(0.05), 0.05, 8, 3, "300 pieces")
    assert found.score == fitted.score
    for name, tensor in fitted.tensors().items():
        assert torch.equal(found.tensors()[name], tensor)
        assert found.tensors()[name].dtype == tensor.dtype
    for piece in pieces(20, seed=1):
        assert found.scores(piece) == fitted.scores(piece)


def test_the_folder_holds_json_and_tensors_and_no_pickle(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["calibration.safetensors", "detector.json"]
    facts = json.loads((saved / "detector.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert {"format", "weights", "score", "model", "threshold", "p_value", "samples", "seed", "about"} == facts.keys()
    tensors, _ = load_tensors(saved / "calibration.safetensors")
    assert tensors.keys() == {"centre", "axes", "latents", "grams", "tails", "normal"}
    assert [path.name for path in saved.parent.iterdir()] == ["one"], "no other file is left"


@pytest.mark.parametrize(("p_value", "threshold"), [(1e-6, -math.inf), (0.0, -math.inf), (1.0, math.inf)])
def test_thresholds_without_a_number_are_kept(
    tmp_path: Path, model: Path, fitted: Calibration, p_value: float, threshold: float
) -> None:
    settings = Settings(str(model), fitted.threshold(p_value), p_value, 8, 3)
    assert settings.threshold == threshold
    save(fitted, settings, tmp_path / "it")
    assert load(tmp_path / "it")[1] == settings
    json.loads((tmp_path / "it" / "detector.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_a_confidence_is_kept(tmp_path: Path, model: Path, fitted: Calibration) -> None:
    for p_value in (0.1, 1e-6):
        settings = Settings(str(model), fitted.threshold(p_value, 0.95), p_value, 8, 3, "some", 0.95)
        assert settings.threshold < fitted.threshold(0.1)
        save(fitted, settings, tmp_path / "it")
        assert load(tmp_path / "it")[1] == settings
    for confidence in (0, 1, 2, "much"):
        changed(tmp_path / "it", confidence=confidence)
        refusal(tmp_path / "it")


def test_recalibration_extends_or_replaces_the_old_scores(fitted: Calibration) -> None:
    settings = Settings("m", fitted.threshold(0.05), 0.05, 8, 3, "old")
    scores = [-50.0, *range(-20, 0)]
    new, beside = recalibrated(fitted, settings, scores, "new")
    assert sorted([*fitted.normal, *scores]) == new.normal.tolist()
    assert (beside.threshold, beside.about) == (new.threshold(0.05), "old; new")
    new, alone = recalibrated(fitted, settings, scores, "new", alone=True)
    assert new.normal.tolist() == scores
    assert (alone.threshold, alone.about) == (-50, "new")
    with pytest.raises(SeqVAEError, match="needs 59 calibration scores and there are 21, for which"):
        recalibrated(fitted, replace(settings, confidence=0.95), scores, "new", alone=True)
    share = Settings("m", fitted.quantile(0.25), None, 8, 3)
    assert recalibrated(fitted, share, scores, "", alone=True)[1].threshold == pytest.approx(-15.5, abs=1)


def test_saving_replaces_an_older_detector(saved: Path, model: Path) -> None:
    other = fit(pieces(30, seed=9), "elbo")
    save(other, Settings(str(model), -1.5, None, 2, 0), saved)
    found, settings = load(saved)
    assert (found.score, settings.threshold, settings.p_value) == ("elbo", -1.5, None)


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path, model: Path, fitted: Calibration) -> None:
    settings = Settings(str(model), -1.0, None, 2, 0)
    (tmp_path / "file").write_text("mine")
    for place in (model, tmp_path, tmp_path / "file"):
        with pytest.raises(SeqVAEError, match="choose another"):
            save(fitted, settings, place)
    assert (model / "model.safetensors").read_bytes() == b"weights"
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    save(fitted, settings, tmp_path / "empty")
    assert load(tmp_path / "empty")[1] == settings


def test_a_detector_inside_a_checkpoint_moves_with_it(tmp_path: Path, model: Path, fitted: Calibration) -> None:
    save(fitted, Settings(str(model), -1.0, None, 2, 0), model / "detector")
    model.rename(tmp_path / "elsewhere")
    _, settings = load(tmp_path / "elsewhere" / "detector")
    assert settings.model == str(tmp_path / "elsewhere")


def test_a_moved_model_can_be_passed_by_name(tmp_path: Path, saved: Path, model: Path) -> None:
    model.rename(tmp_path / "moved")
    assert str(model) in refusal(saved)
    assert load(saved, str(tmp_path / "moved"))[1].model == str(tmp_path / "moved")


def test_another_model_is_refused(tmp_path: Path, saved: Path, model: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    assert "model.safetensors" in refusal(saved, str(other)), "a model without weights"
    (other / "model.safetensors").write_bytes(b"Weights")
    assert "another model" in refusal(saved, str(other))
    (model / "model.safetensors").write_bytes(b"trained on")
    assert "another model" in refusal(saved)
    assert "no such" in refusal(saved, str(tmp_path / "none"))


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3", "null", "{}", '{"format": 1}'])
def test_a_folder_without_a_detector_is_an_error(saved: Path, text: str | None) -> None:
    path = saved / "detector.json"
    path.unlink() if text is None else path.write_text(text)
    assert refusal(saved).startswith(f"{saved}: no detector can be read here")


@pytest.mark.parametrize(("name", "value"), [
    ("threshold", "low"), ("threshold", [1]), ("samples", None), ("samples", "8"), ("seed", "x"), ("p_value", "0.05"),
    ("score", "best"), ("score", 3), ("colour", "red"),
])  # fmt: skip
def test_an_impossible_setting_is_an_error(saved: Path, name: str, value: Any) -> None:
    changed(saved, **{name: value})
    assert refusal(saved).startswith(str(saved))


def test_another_version_is_refused(saved: Path) -> None:
    changed(saved, format=calibration.FORMAT + 1)
    assert "another version" in refusal(saved)


def test_a_detector_of_format_1_gives_the_same_scores_as_before(saved: Path, fitted: Calibration) -> None:
    tensors, _ = load_tensors(saved / "calibration.safetensors")
    kept = [i for i, name in enumerate(COLUMNS) if name not in calibration.ADDED]
    old = {name: part for name, part in tensors.items() if name != "grams"} | {"tails": tensors["tails"][:, kept]}
    save_tensors(old, {}, saved / "calibration.safetensors")
    changed(saved, format=1)
    found, settings = load(saved)
    assert (found.score, settings.threshold) == ("fisher", fitted.threshold(0.05))
    for piece in pieces(20, seed=1):
        assert found.scores(piece)["fisher"] == fitted.scores(piece)["fisher"]
    changed(saved, score="worst")
    assert load(saved)[0].score == "worst"


@pytest.mark.parametrize("content", [None, b"", b"not tensors"])
def test_broken_tensors_are_an_error(saved: Path, content: bytes | None) -> None:
    path = saved / "calibration.safetensors"
    path.unlink() if content is None else path.write_bytes(content)
    assert "calibration.safetensors" in refusal(saved)


def wrong(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Calibrations with a missing part or a part of the wrong shape, by the name of the part."""
    cut = {f"without {name}": {k: v for k, v in tensors.items() if k != name} for name in tensors}
    bent = {
        "axes": torch.eye(D + 1), "centre": torch.zeros(()), "latents": torch.zeros(4, D + 1),
        "tails": torch.zeros(9, 2), "normal": torch.zeros(3, 3),
    }  # fmt: skip
    none = {"latents": torch.zeros(0, D), "tails": torch.zeros(0, len(COLUMNS))}
    return (
        cut
        | {f"bent {name}": {**tensors, name: part} for name, part in bent.items()}
        | {f"no {name}": {**tensors, name: part} for name, part in none.items()}
    )


@pytest.mark.parametrize("what", [*wrong(compared([0]).tensors())])
def test_missing_or_misshapen_parts_are_an_error(saved: Path, fitted: Calibration, what: str) -> None:
    save_tensors(wrong(fitted.tensors())[what], {}, saved / "calibration.safetensors")
    assert refusal(saved).startswith(str(saved))


def test_missing_parts_are_named(fitted: Calibration) -> None:
    for name in fitted.tensors():
        with pytest.raises(SeqVAEError, match=name):
            from_tensors("worst", {k: v for k, v in fitted.tensors().items() if k != name})


def test_models_are_stored_by_full_path_or_by_the_given_name(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert named(Path("model")) == named("model") == named("./model") == str(model)
    assert named("music") == "music", "a released name is known everywhere"
    with pytest.raises(CheckpointError):
        named("nothing")


def test_distances_use_the_directions_of_largest_variance(tmp_path: Path, model: Path) -> None:
    rank = calibration.RANK
    wide = torch.full((rank + 40,), 0.1)
    wide[:rank] = 5
    known = torch.randn(2000, rank + 40, generator=torch.Generator().manual_seed(0)) * wide
    found = fit([evidence([-1.0], known[0].numpy())] * 20, known=[known])
    assert found.axes.shape == (rank + 40, rank)
    middle = found.centre.clone()[None]
    along, across = middle.clone(), middle.clone()
    along[0, 0], across[0, -1] = 1000, 20
    here = found.distance(middle.numpy())
    assert found.distance(along.numpy()) > 10 * here
    assert found.distance(across.numpy()) < 2 * here
    save(found, Settings(str(model), -1.0, None, 2, 0), tmp_path / "it")
    assert load(tmp_path / "it")[0].distance(along.numpy()) == found.distance(along.numpy())
