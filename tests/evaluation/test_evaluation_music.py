"""The protocol of a music model's card, on a small model and generated songs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Trained, groove

import seqvae
from seqvae.codec import Codec
from seqvae.data.dataset import half_of, split_of
from seqvae.errors import SeqVAEError
from seqvae.evaluation import blend as evaluate_blend
from seqvae.evaluation import generation as evaluate_samples
from seqvae.evaluation import music as evaluate
from seqvae.evaluation import music_report, style_classifier, test_songs
from seqvae.music import piece as midi
from seqvae.music import titles
from seqvae.style import gaussian

STYLES = ("odd", "even")


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of two styles, with training songs and held-out songs of both halves."""
    folder = tmp_path_factory.mktemp("songs")
    for parity, name in enumerate(("even", "odd")):
        found = {None: 0, "final": 0, "choose": 0}
        for i in range(2000):
            title = f"{name}{i:04d}"
            half = half_of(titles.title(f"{title}.mid"))
            if found[half] < {None: 8, "final": 3, "choose": 1}[half]:
                found[half] += 1
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
        return evaluate.evaluate(codec, songs, pieces=3, samples=6, pairs=5)


def test_every_style_amount_and_baseline_is_there(result: dict[str, Any]) -> None:
    assert result["protocol"]["test_songs"] == {"even": 3, "odd": 3}
    assert set(result["reconstruction"]) == {"dropped_by_tokenizer", "even", "odd", "all"}
    amounts = [f"amount {a:g}" for a in (0, 0.25, 0.5, 0.75, 1)]
    moves = [f"{kind} {a}" for kind in ("amount", "own") for a in ("0.5", "1")]
    moves += [f"{move}, harmony 0" for move in moves]
    controls = ["programs swapped", "random 0.5", "random 1", "target mean", "target mean, harmony 0"]
    controls += [f"another song, {move}" for move in moves]
    assert set(result["blend"]["all"]) == {*amounts, *moves, *controls}
    assert set(result["blend"]["beyond"]) == set(moves)
    assert set(result["blend"]["pairs"]) == {"odd to even", "even to odd"}
    json.dumps(result)  # as printed by --json


def test_figures_are_means_inside_their_intervals(result: dict[str, Any]) -> None:
    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            mean, low, high = value
            assert low - 1e-6 <= mean <= high + 1e-6

    walk(result["reconstruction"])
    walk({name: part for name, part in result["blend"].items() if name != "p_values"})
    assert result["protocol"]["split"] == "final"
    for name in ("pitch-class entropy, 1 bar", "grooving similarity"):
        walk(result["samples"][name])
    walk(result["interpolation"]["slerp"])
    walk(result["strength"]["pairs"])


def test_parts_present_in_every_song_are_measured(result: dict[str, Any]) -> None:
    # every generated song has a piano on top, a bass below and drums; eight bars, half of the requested length
    row = result["reconstruction"]["all"]
    assert all(0 <= row[part][0] <= 1 for part in ("melody", "bass", "drums", "note_f1_segment"))
    assert row["full_length"][0] == 0
    assert row["kl_bits_whole"][0] == pytest.approx(4 * row["kl_bits"][0], rel=1e-3), "four segments of two bars"


def test_samples_follow_the_style_shares_of_the_songs(result: dict[str, Any]) -> None:
    drawn = result["samples"]
    assert drawn["shares"] == {"even": 3, "odd": 3}
    assert (drawn["samples"], drawn["test_songs"], drawn["training"]) == (6, 6, 6)
    assert drawn["copying"]["training_songs"] == 16
    # training songs of one kind repeat the same bars, so a held-out song shares long runs with them
    assert drawn["copying"]["test_songs"][0] > 8
    # real songs of one kind overlap more than samples of a barely trained model
    area = drawn["overlapped_area"]["mean"]
    assert area["training"][0] > area["samples"][0]


def test_every_style_and_pair_has_a_p_value(result: dict[str, Any]) -> None:
    chance = result["blend"]["p_values"]
    for amount in ("amount 0.5", "amount 1", "own 0.5", "own 1"):
        over = [chance[f"{amount} over {x}"] for x in ("programs swapped", f"random {amount.split()[1]}", "both")]
        assert set(over[2]) == {"all", "even", "odd", "odd to even", "even to odd"}
        for key, p in over[2].items():
            assert 0 < p <= 1
            assert p == max(over[0][key], over[1][key])


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
            assert margin == pytest.approx(
                everything[moved]["classifier"][0] - everything[baseline]["classifier"][0], abs=1e-3
            )


def test_the_classifiers_distinguish_straight_from_swung(result: dict[str, Any]) -> None:
    # the two styles differ in the position of their chords, which both classifiers use
    assert (
        result["classifier_accuracy"]["classifier"][0]
        == result["classifier_accuracy"]["classifier_without_instruments"][0]
        == 1
    )


def test_the_classifier_is_trained_on_training_songs_only(
    codec: Codec, songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on: list[str] = []

    class Listener(style_classifier.StyleClassifier):
        def __init__(self, stretches: Any, chunks: int, instruments: bool, seed: int) -> None:
            trained_on.extend(piece.name for _, piece in stretches)
            super().__init__(stretches, chunks, instruments, seed)

    monkeypatch.setattr(evaluate, "StyleClassifier", Listener)
    for part, name in ((evaluate_blend, "blends"), (evaluate_blend, "strength"), (evaluate_samples, "samples")):
        monkeypatch.setattr(part, name, lambda *_: {})
    evaluate.evaluate(codec, songs, pieces=1, samples=6, pairs=5)
    assert trained_on
    assert {split_of(titles.title(name)) for name in trained_on} == {"train"}


def test_choosing_and_final_songs_are_disjoint(songs: Path) -> None:
    names: dict[Any, set[str]] = {}
    for half in ("choose", "final"):
        found = test_songs.gather(
            songs, STYLES, train=8, test=9, train_chunks=4, test_chunks=4, rng=np.random.default_rng(0), half=half
        )
        names[half] = {titles.title(piece.name) for pieces in found.test.values() for piece in pieces}
        assert {half_of(name) for name in names[half]} == {half}
        assert {half_of(titles.title(path)) for path in found.trained} == {None}
    assert (len(names["choose"]), len(names["final"])) == (2, 6)


def test_the_tables_have_every_pair(result: dict[str, Any]) -> None:
    text = music_report.table(result)
    for words in (
        "odd to even",
        "even to odd",
        "programs swapped",
        "own 0.5",
        "note F1",
        "its KL, bits per segment",
        "sample of the encoder's posterior",
        "another song, own 1",
        "target mean, harmony 0",
        "Figures of the song that are above both controls",
        "p over both",
        "Transfer strength",
        "overlapped area",
        "Fréchet",
        "Longest run",
        "monotone",
    ):
        assert words in text  # fmt: skip


def test_figures_of_an_older_model_are_still_reported(result: dict[str, Any]) -> None:
    old = {name: result[name] for name in ("protocol", "classifier_accuracy", "blend")}
    old["blend"] = {name: part for name, part in old["blend"].items() if name != "p_values"}
    older = {"classifier": "judge", "classifier_without_instruments": "blind"}
    old["judge_accuracy"] = {older[name]: x for name, x in old.pop("classifier_accuracy").items()}
    old["blend"]["pairs"] = {
        pair: {c: {older.get(name, name): x for name, x in row.items()} for c, row in rows.items()}
        for pair, rows in old["blend"]["pairs"].items()
    }
    names = ("note_f1", "chroma", "groove", "kl_bits", "random_chroma", "random_groove")
    old["reconstruction"] = {
        style: {name: row[name] for name in names} if isinstance(row, dict) else row
        for style, row in result["reconstruction"].items()
    }
    text = music_report.table(old)
    assert "programs swapped" in text
    assert "KL" not in text, "only samples have a KL"
    without = ("another song", "target mean")
    old["blend"]["all"] = {name: row for name, row in old["blend"]["all"].items() if not name.startswith(without)}
    assert "chroma kept" in text
    text = music_report.table(old)
    assert music_report.OLDER in text
    assert "chroma kept" not in text, "preservation needs a control"


def test_a_collection_without_test_songs_is_an_error_in_one_line(codec: Codec, songs: Path, tmp_path: Path) -> None:
    for name in STYLES:
        (tmp_path / name).mkdir()
    source = next(p for p in sorted((songs / "odd").iterdir()) if split_of(titles.title(p)) == "train")
    (tmp_path / "odd" / source.name).write_bytes(source.read_bytes())
    with pytest.raises(SeqVAEError, match="held out"):
        evaluate.evaluate(codec, tmp_path)


def test_a_model_with_one_style_cannot_be_evaluated(trained: Trained, songs: Path) -> None:
    model = seqvae.load(trained.best)
    model.styles = {"odd": gaussian.fit([torch.zeros(2, 16)])}
    with pytest.raises(SeqVAEError, match="two styles"):
        evaluate.evaluate(model, songs)
