"""Styles in files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from styles import D, noise, random_style, seeds
from torch import Tensor

from seqvae.checkpoint.folder import save_tensors
from seqvae.errors import CheckpointError, StyleError
from seqvae.music.band import Ensemble
from seqvae.music.progressions import START
from seqvae.style import exemplars, gaussian, styles_file
from seqvae.style.gaussian import Style, fit
from seqvae.style.styles_file import pack, unpack


def check_same(a: Style, b: Style) -> None:
    assert torch.equal(a.mean, b.mean)
    scale = float(b.covariance.abs().max())
    assert (a.covariance - b.covariance).abs().max() <= 1e-3 * scale
    assert (a.count, a.source, a.persistence, a.effects) == (b.count, b.source, b.persistence, b.effects)


@given(seeds, st.sampled_from([1e-6, 1.0, 1e6]))
def test_packing_keeps_a_style_of_any_scale(seed: int, scale: float) -> None:
    s = random_style(seed, persistence=0.25)
    s = replace(s, covariance=scale * s.covariance)
    again = unpack(*pack({"a": s, "b.c": s}))
    assert list(again) == ["a", "b.c"]
    for kept in again.values():
        check_same(kept, s)


@given(seeds)
def test_variances_and_the_largest_directions_of_many_dimensions_are_stored(seed: int) -> None:
    few = noise(200, 100, seed=seed)  # as many directions as are stored, and more
    low = Style(torch.zeros(200), few @ few.T + torch.eye(200), 9)
    all_at_once = unpack(*pack({"low": low, "full": random_style(seed, 200)}))
    for name, s in (("low", low), ("full", random_style(seed, 200))):
        kept = all_at_once[name].covariance
        torch.testing.assert_close(kept.diagonal(), s.covariance.diagonal(), rtol=1e-3, atol=1e-3)
        assert torch.linalg.eigvalsh(kept.double()).min() > 0, "it can be drawn from"
    error = (all_at_once["low"].covariance - low.covariance).norm() / low.covariance.norm()
    assert error < 0.02


def test_a_file_stores_the_effect_of_vectors(tmp_path: Path) -> None:
    found = gaussian.Effect(
        0.5, 8, (0.1, 0.0, 0.2), (0.7, 0.6, 0.8), (0.1, 0.0, 0.2), {"chroma": (0.9, 0.8, 1.0)}, 0.004
    )
    beside = replace(found, kept_of_another={"chroma": (0.8, 0.7, 0.9)}, kept_of_none={"chroma": (0.7, 0.6, 0.8)})
    styles = {"rock": replace(random_style(0), effects={"jazz": found, "folk": beside}), "jazz": random_style(1)}
    styles_file.save(styles, tmp_path / "my.styles")
    again = styles_file.load(tmp_path / "my.styles")
    assert again["rock"].effects == {"jazz": found, "folk": beside}
    assert again["jazz"].effects == {}


def test_a_file_stores_shared_dimensions_and_chords_in_few_bytes() -> None:
    few, whole = random_style(0), gaussian.standard(64, D)
    whole.mean[:D], whole.covariance[:D, :D] = few.mean, few.covariance
    chords = np.random.default_rng(0).dirichlet(np.full(START, 0.1), START + 1)
    ensemble = Ensemble(np.ones(129), np.ones((48, 128)), np.ones(3), np.ones(3), chords=chords)
    tensors, about = pack({"rock": replace(whole, ensemble=ensemble)})
    assert tensors["rock.mean"].shape == tensors["rock.variances"].shape == (D,)
    again = unpack(tensors, about, 64)["rock"]
    check_same(again, whole)
    assert again.ensemble is not None
    assert np.abs(again.ensemble.chords - chords).max() < 0.005
    variances = torch.cat([tensors["rock.variances"], torch.ones(64 - D)])
    check_same(unpack(tensors | {"rock.mean": whole.mean, "rock.variances": variances}, about, 64)["rock"], whole)
    huge = {"rock": about["rock"].replace('"dimensions": 64', '"dimensions": 60000')}
    with pytest.raises(StyleError, match="too large"):
        unpack(tensors, huge)


def test_a_file_stores_the_level_of_an_attribute() -> None:
    level = gaussian.Level("density", 3.0, 1.0, 9.0, 9.0)
    assert unpack(*pack({"dense": replace(random_style(0), level=level)}))["dense"].level == level
    with pytest.raises(StyleError, match="'dense': its density is not finite"):
        unpack(*pack({"dense": replace(random_style(0), level=replace(level, high=float("nan")))}))


def test_a_file_stores_styles(tmp_path: Path) -> None:
    styles = {"rock": random_style(0), "jazz": random_style(1)}
    styles["swing"] = styles["jazz"]  # one style under two names
    path = tmp_path / "my.styles"
    styles_file.save(styles, path)
    again = styles_file.load(path, D)
    assert again.keys() == styles.keys()
    for name, kept in again.items():
        check_same(kept, styles[name])


def test_styles_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "my.styles"
    styles_file.save({"rock": random_style(0)}, path)
    with pytest.raises(StyleError, match=f"'rock' has {D} dimensions, the model 99"):
        styles_file.load(path, 99)


def test_a_file_of_other_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "my.styles"
    tensors, about = pack({"rock": random_style(0)})
    for bad_tensors, bad_about in [
        ({"rock.mean": tensors["rock.mean"]}, about),
        (tensors, {"rock": "{"}),
        (tensors, {"rock": "3"}),
        (tensors, {"rock": "{}"}),
        (tensors, {"rock": about["rock"][:-1] + ', "effects": {"jazz": {"p": 1}}}'}),
        ({**tensors, "rock.mean": torch.zeros(D + 1)}, about),
    ]:
        save_tensors(bad_tensors, bad_about, path)
        with pytest.raises(StyleError):
            styles_file.load(path)


@pytest.mark.parametrize(("wrong", "what"), [
    ({"rock.factors": noise(D + 1, D)}, "differ in size"),
    ({"rock.factors": noise(D, 2, 3)}, "differ in size"),
    ({"rock.variances": torch.ones(D + 1)}, "differ in size"),
    ({"rock.mean": noise(D, 2), "rock.factors": noise(D, 2, 3), "rock.variances": torch.ones(D, 2)}, "differ in size"),
    ({"rock.mean": torch.full((D,), float("nan"))}, "NaN, infinity or a negative variance"),
    ({"rock.variances": -torch.ones(D)}, "a negative variance"),
    ({"rock.sums": torch.zeros(3, 0, D)}, "sums of pieces"),
    ({"rock.coefficients": torch.zeros(3, 0, 2), "rock.directions": torch.zeros(2, D)}, "sums of pieces"),
])  # fmt: skip
def test_tensors_that_do_not_fit_together_are_refused(wrong: dict[str, Tensor], what: str) -> None:
    tensors, about = pack({"rock": random_style(0)})
    with pytest.raises(StyleError, match=f"style 'rock'.*{what}"):
        unpack(tensors | wrong, about)
    with pytest.raises(StyleError, match="not a styles file"):
        unpack(tensors, {"jazz": about["rock"]})


def test_covariances_beyond_memory_are_refused_before_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack({"a": random_style(0), "b": random_style(1)})  # covariances of 6 x 6 each
    monkeypatch.setattr(styles_file, "MOST", 72)
    assert unpack(*packed).keys() == {"a", "b"}
    monkeypatch.setattr(styles_file, "MOST", 71)
    with pytest.raises(StyleError, match="2 styles of 6 dimensions are too large"):
        unpack(*packed)


def test_a_missing_or_invalid_file_is_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none"):
        styles_file.load(tmp_path / "none")
    (tmp_path / "text").write_text("rock")
    with pytest.raises(CheckpointError, match="text"):
        styles_file.load(tmp_path / "text")


def test_exemplars_are_stored_in_files_and_wrong_ones_refused(tmp_path: Path) -> None:
    s = fit([noise(4, 200, seed=i) for i in range(80)])
    assert s.exemplars is not None
    styles_file.save({"a": s}, tmp_path / "one.styles")
    again = styles_file.load(tmp_path / "one.styles")["a"]
    assert again.exemplars is not None
    torch.testing.assert_close(again.exemplars, s.exemplars, rtol=1e-3, atol=5e-3)
    tensors, about = pack({"a": s})
    weights, directions = tensors["a.coefficients"], tensors["a.directions"]
    assert weights.shape == (40, exemplars.ROW, exemplars.DIRECTIONS)
    for wrong in (
        {"a.coefficients": weights[:, :, 1:]}, {"a.coefficients": weights[:1]}, {"a.coefficients": weights[0]},
        {"a.coefficients": weights * float("nan")}, {"a.directions": directions[:, 1:]},
        {"a.directions": directions[0]}, {"a.directions": directions * float("inf")},
    ):  # fmt: skip
        with pytest.raises(StyleError, match="sums of pieces"):
            unpack(tensors | wrong, about)
    assert unpack(tensors | {"a.coefficients": weights[:2]}, about)["a"].exemplars is not None, "two are enough"
    with pytest.raises(StyleError, match=r"a\.directions"):
        unpack({name: x for name, x in tensors.items() if name != "a.directions"}, about)


def test_exemplars_of_older_files_are_read_unchanged() -> None:
    tensors, about = pack({"a": random_style(6)})
    old = noise(24, exemplars.ROW, D).half()
    found = unpack(tensors | {"a.sums": old}, about)["a"]
    assert found.exemplars is not None
    assert torch.equal(found.exemplars, old.float())
    for wrong in (old[:, :, 1:], old[:1], old * float("nan")):
        with pytest.raises(StyleError, match="sums of pieces"):
            unpack(tensors | {"a.sums": wrong}, about)


def test_exemplars_beyond_memory_are_refused_before_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack({"a": fit([noise(4, D, seed=i) for i in range(20)])})  # 10 exemplars of 4 segments of 6 numbers
    monkeypatch.setattr(styles_file, "MOST", 240)
    assert unpack(*packed).keys() == {"a"}
    monkeypatch.setattr(styles_file, "MOST", 239)
    with pytest.raises(StyleError, match="sums of pieces are too large"):
        unpack(*packed)
