"""The protocol of a model card, on a small model and a made-up collection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Trained, groove

import seqvae
from seqvae import collection, evaluate, midi, style
from seqvae.codec import Codec
from seqvae.dataset import split_of
from seqvae.errors import SeqVAEError

STYLES = ("odd", "even")


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of two styles, with songs of the training and of the test split."""
    folder = tmp_path_factory.mktemp("songs")
    for parity, name in enumerate(("even", "odd")):
        found = {"train": 0, "test": 0, "valid": 0}
        for i in range(2000):
            title = f"{name}{i:04d}"
            split = split_of(collection.title(f"{title}.mid"))
            if found[split] < {"train": 8, "test": 3, "valid": 1}[split]:
                found[split] += 1
                piece = groove(2 * i + parity)
                midi.write(midi.to_score(piece.notes, piece.frame), folder / name / f"{title}.mid")
    return folder


@pytest.fixture(scope="module")
def codec(trained: Trained) -> Codec:
    model = seqvae.load(trained.best)
    by_style = {"odd": [groove(i) for i in range(1, 12, 2)], "even": [groove(i) for i in range(0, 12, 2)]}
    model.styles = {name: model.fit_style(pieces) for name, pieces in by_style.items()}
    return model


@pytest.fixture(scope="module")
def result(codec: Codec, songs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return evaluate.evaluate(codec, songs, pieces=3)


def test_every_style_amount_and_baseline_is_there(result: dict[str, Any]) -> None:
    assert result["protocol"]["test_songs"] == {"even": 3, "odd": 3}
    assert set(result["reconstruction"]) == {"dropped_by_tokenizer", "even", "odd", "all"}
    amounts = [f"amount {a:g}" for a in (0, 0.25, 0.5, 0.75, 1)]
    rest = ["own 0.5", "own 1", "programs swapped", "random 0.5", "random 1"]
    assert list(result["blend"]["all"]) == amounts + rest
    assert set(result["blend"]["pairs"]) == {"odd to even", "even to odd"}
    json.dumps(result)  # what --json prints


def test_figures_are_means_inside_their_intervals(result: dict[str, Any]) -> None:
    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            mean, low, high = value
            assert low - 1e-6 <= mean <= high + 1e-6

    walk(result["reconstruction"])
    walk(result["blend"])


def test_swapping_programs_keeps_every_pitch_and_onset(result: dict[str, Any]) -> None:
    swapped = result["blend"]["all"]["programs swapped"]
    assert swapped["chroma"] == swapped["groove"] == [1, 1, 1]


def test_amount_0_is_the_reconstruction(result: dict[str, Any]) -> None:
    still = result["blend"]["all"]["amount 0"]
    for figure in ("chroma", "groove"):
        assert still[figure][0] == pytest.approx(result["reconstruction"]["all"][figure][0], abs=1e-3)


def test_a_margin_is_the_difference_of_the_probabilities(result: dict[str, Any]) -> None:
    everything = result["blend"]["all"]
    for moved in ("amount 0.5", "amount 1", "own 0.5", "own 1"):
        for baseline in ("programs swapped", f"random {moved.split()[1]}"):
            margin = result["blend"]["margin"][f"{moved} over {baseline}"]["all"][0]
            assert margin == pytest.approx(everything[moved]["judge"][0] - everything[baseline]["judge"][0], abs=1e-3)


def test_the_judge_tells_straight_from_swung(result: dict[str, Any]) -> None:
    # the two styles differ in where their chords fall, which both judges hear
    assert result["judge_accuracy"]["judge"][0] == result["judge_accuracy"]["blind"][0] == 1


def test_the_judge_hears_training_songs_alone(codec: Codec, songs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    class Listener(evaluate.Judge):
        def __init__(self, stretches: Any, chunks: int, instruments: bool, seed: int) -> None:
            heard.extend(piece.name for _, piece in stretches)
            super().__init__(stretches, chunks, instruments, seed)

    monkeypatch.setattr(evaluate, "Judge", Listener)
    monkeypatch.setattr(evaluate, "_blends", lambda *_: {})
    evaluate.evaluate(codec, songs, pieces=1)
    assert heard
    assert {split_of(collection.title(name)) for name in heard} == {"train"}


def test_the_tables_quote_every_pair(result: dict[str, Any]) -> None:
    text = evaluate.table(result)
    for words in ("odd to even", "even to odd", "programs swapped", "own 0.5", "note F1", "KL, bits a segment"):
        assert words in text


def test_a_collection_without_test_songs_is_an_error_in_one_line(codec: Codec, songs: Path, tmp_path: Path) -> None:
    for name in STYLES:
        (tmp_path / name).mkdir()
    source = next(p for p in sorted((songs / "odd").iterdir()) if split_of(collection.title(p)) == "train")
    (tmp_path / "odd" / source.name).write_bytes(source.read_bytes())
    with pytest.raises(SeqVAEError, match="held out"):
        evaluate.evaluate(codec, tmp_path)


def test_a_model_with_one_style_cannot_be_judged(trained: Trained, songs: Path) -> None:
    model = seqvae.load(trained.best)
    model.styles = {"odd": style.fit([torch.zeros(2, 16)])}
    with pytest.raises(SeqVAEError, match="two styles"):
        evaluate.evaluate(model, songs)


def test_what_is_kept_of_a_song_is_counted_bar_by_bar() -> None:
    bounds = np.array([0, 48, 96, 144], np.int32)
    song = np.array([[0, 12, 60, 0], [48, 12, 64, 0]], np.int32)
    other = np.array([[0, 12, 60, 0], [96, 12, 64, 0]], np.int32)
    chroma, groove_kept = evaluate.kept(song, other, bounds)
    assert chroma == pytest.approx((1 + 0) / 2), "the third bar, empty in the song, does not count"
    assert groove_kept == pytest.approx((1 + 47 / 48) / 2)
