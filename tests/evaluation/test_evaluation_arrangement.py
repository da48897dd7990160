"""Evaluation of arrangements: figures by hand, and moves of known quality that must be distinguished."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakePiece, Trained, groove

import seqvae
from seqvae.codec import CHROMA_GUIDANCE, Codec
from seqvae.data.dataset import SONG_MODELS, Half, half_of
from seqvae.errors import SeqVAEError, StyleError
from seqvae.evaluation import arrangement as ruler
from seqvae.evaluation import arrangement_report
from seqvae.evaluation.arrangement import FIGURES, Excerpts
from seqvae.music import piece as midi
from seqvae.music import titles
from seqvae.music.piece import Piece
from seqvae.nn.inference import BatchInference
from seqvae.style.arranger import Goal


def alone(number: int) -> Piece:
    """A groove without drums and bass."""
    piece = groove(number, bars=16)
    return Piece(piece.notes[piece.notes[:, midi.PROGRAM] == 0], piece.bounds, piece.frame, piece.name)


def banded(number: int) -> Piece:
    return groove(number, bars=16)


@pytest.fixture(scope="module")
def found() -> Excerpts:
    real = {"bare": [alone(i) for i in range(12)], "band": [banded(i) for i in range(12)]}
    return Excerpts(real, {"bare": [alone(i) for i in (12, 13, 14)], "band": [banded(i) for i in (15, 16)]})


def test_ranks_by_hand() -> None:
    assert ruler.rank_correlation([0, 1, 2], [5, 7, 6]) == pytest.approx(1 - 6 * 2 / (3 * 8))
    assert ruler.rank_correlation([0, 1, 2], [0, 0, 1]) == pytest.approx(1.5 / math.sqrt(2 * 1.5))  # ranks 1.5 1.5 3
    assert ruler.rank_correlation([0, 1, 2], [3, 2, 1]) == -1
    assert ruler.rank_correlation([0, 1, 2], [1, 1, 1]) == 0, "a constant has rank correlation 0"


def test_a_song_is_weighted_by_its_number_of_values() -> None:
    nan = math.nan
    values = np.array([[1.0, 2.0], [6.0, nan], [nan, nan]])
    mean, low, high = ruler.summary(values)
    assert mean == pytest.approx((1 + 2 + 6) / 3)
    assert (low, high) == (1.5, 6), "either song drawn twice"
    assert ruler.summary(values, np.array([[3.0, 1.0]] * 3))[0] == pytest.approx((3 + 2 + 18) / 7)
    assert all(map(math.isnan, ruler.summary(values[2:])))


def test_an_excerpt_is_sixteen_bars_of_four_four(make_piece: MakePiece) -> None:
    # a bar of 3/4, then 17 bars of 4/4, the first one empty, then 3/4 again
    bounds = [0, *range(36, 36 + 17 * 48 + 1, 48), 36 + 17 * 48 + 36]
    notes = [[at, 12, 60 + i % 12, 0, 80] for i, at in enumerate(bounds[:1] + bounds[2:-1])]
    piece = make_piece(
        notes, bounds, metres=[(0, 3, 4), (36, 4, 4), (36 + 17 * 48, 3, 4)], tempos=[(0, 500_000), (84, 400_000)],
        keys=[(0, 1, 0), (132, 2, 0), (852, 3, 0)],
    )  # fmt: skip
    starts = set()
    for seed in range(8):
        part = ruler.excerpt(piece, np.random.default_rng(seed))
        assert part is not None
        assert part.bounds.tolist() == list(range(0, 769, 48))
        starts.add(first := int(part.notes[0, midi.ONSET]))
        tempos, metres, keys = midi.frame_rows(part.frame)
        assert metres == [(0, 4, 4)]
        if first == 0:  # from the second bar of 4/4
            assert part.notes[:, midi.ONSET].tolist() == list(range(0, 768, 48))
            assert (tempos, keys) == ([(0, 400_000)], [(0, 1, 0), (48, 2, 0)])
        else:
            assert (tempos, keys) == ([(0, 500_000), (48, 400_000)], [(0, 1, 0), (96, 2, 0)])
    assert starts == {0, 48}, "from either of the two places"
    sparse = make_piece(notes[:12], bounds)
    assert ruler.excerpt(sparse, np.random.default_rng(0)) is None, "eleven bars with notes"
    assert ruler.excerpt(groove(0, bars=15), np.random.default_rng(0)) is None


def test_different_distributions_are_distinguished_and_equal_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    real, same, moved = rng.normal(size=(60, 4)), rng.normal(size=(30, 4)), rng.normal(size=(30, 4))
    moved[:, 1] *= 0.01  # equal to real songs in the mean, but without variance: the square reveals it
    some = np.where(np.arange(30)[:, None] % 2 == np.arange(4), np.nan, rng.normal(size=(30, 4)))

    def area(other: Any) -> float:
        a, b = ruler.separation(real, other)
        return float((b[:, None] > a).mean())

    assert area(same) < 0.65
    assert area(moved) > 0.75
    assert area(some) > 0.9, "an undefined statistic"


def test_the_area_is_over_targets_and_draws_are_shared() -> None:
    rng = np.random.default_rng(0)

    class Fixed:
        statistics = {"a": rng.normal(size=(40, 3)), "b": rng.normal(size=(40, 3))}  # noqa: RUF012

    rows = np.full((20, 2, 3), np.nan)
    rows[:10, 0], rows[10:, 1] = rng.normal(size=(10, 3)) + 50, rng.normal(size=(10, 3)) - 50
    areas = ruler._real_or_blend(Fixed, {"blend": rows, "again": rows}, ["a", "b"], "blend", 0)  # type: ignore[arg-type]
    assert areas["blend"] == [1, 1, 1]
    assert areas["blend less again"] == [0, 0, 0]


@pytest.fixture(scope="module")
def result(found: Excerpts) -> dict[str, Any]:
    def half(piece: Piece, source: str, target: str, amount: float) -> Piece:
        """Drums and bass come in with the amount; the rest stays."""
        full = banded(int(piece.name.split()[1]))
        new = full.notes[full.notes[:, midi.PROGRAM] != 0]
        new = new[: round(amount * len(new))]
        return Piece(np.concatenate([piece.notes, new]), piece.bounds, piece.frame, piece.name)

    def other(piece: Piece, source: str, target: str, amount: float) -> Piece:
        return alone(int(piece.name.split()[1]) + 1)

    return ruler.arrangements(half, {"another song": other}, found, [("bare", "band")], (0.5, 1.0))


def test_an_output_equal_to_a_real_song_has_its_figures(result: dict[str, Any]) -> None:
    everything = result["all"]
    assert set(everything) == {
        "source songs", "target songs", "rule", "programs swapped", "amount 0.5", "amount 1", "another song",
    }  # fmt: skip
    assert set(everything["rule"]) == set(FIGURES)
    full, whole, song = everything["amount 1"], everything["target songs"], everything["source songs"]
    assert full["instruments"] == whole["instruments"] == [3, 3, 3]
    assert song["instruments"] == [1, 1, 1]
    assert full["inside the target's range"][0] > 0.9 > song["inside the target's range"][0]
    assert full["target probability"][0] > 0.8 > 0.2 > song["target probability"][0]
    assert full["new notes"] == pytest.approx([8 / 20] * 3), "8 of 20 notes of a bar"
    assert full["30 to 70 % new"] == [1, 1, 1]
    assert [full[name][0] for name in ("top line there", "top line heard", "notes kept")] == [1, 1, 1]
    # below the tune root and third sound for 24 steps per bar, and the bass adds 48 steps of the root
    assert full["chroma kept"][0] == pytest.approx(
        (24 * 72 + 24 * 24) / (math.hypot(24, 24) * math.hypot(72, 24)), abs=1e-4
    )
    assert everything["amount 0.5"]["drum switches"][0] == pytest.approx(1 / 15, abs=1e-4), "they stop half-way"
    assert "top line there" not in whole, "they have no original"


def test_moves_are_compared_song_by_song(result: dict[str, Any]) -> None:
    difference = result["differences"]["amount 1 less another song"]["chroma kept"]
    expected = result["all"]["amount 1"]["chroma kept"][0] - result["all"]["another song"]["chroma kept"][0]
    assert difference[0] == pytest.approx(expected, abs=2e-4)
    assert difference[1] > 0
    assert result["dose"] == {"new notes": [1, 1, 1], "target probability": [1, 1, 1]}
    assert result["pairs"]["bare to band"]["amount 1"] == result["all"]["amount 1"]
    assert set(result["real_or_blend"]) >= {"amount 1", "rule", "target songs", "amount 1 less rule"}


def test_drum_figures_are_reported_if_the_target_has_drums(found: Excerpts) -> None:
    back = ruler.arrangements(lambda piece, *_: piece, {}, found, [("band", "bare")], (0.5, 1.0))
    assert not any(name in back["all"][c] for c in ("amount 1", "rule") for name in ruler.KIT)
    assert back["all"]["rule"]["bars with drums"][0] == 0


def test_the_table_has_every_figure_once(result: dict[str, Any]) -> None:
    text = arrangement_report.table(result)
    json.dumps(result, allow_nan=False)
    for name in arrangement_report.TABLE:
        assert text.count(f"\n| {name} | ") >= 1
    assert "| kept of the song | amount 1 | another song | less another song |" in text
    assert len({line.count("|") for line in text.split("\n\n")[1].splitlines()}) == 1


# --- a codec, and songs in files --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Songs of two styles with 16 bars: six for training, two in either half of the held-out songs."""
    data = tmp_path_factory.mktemp("songs")
    for parity, name in enumerate(("even", "odd")):
        missing = {None: 6, "choose": 2, "final": 2}
        for i in range(2000):
            title = f"{name}{i:04d}"
            half = half_of(titles.title(f"{title}.mid"))
            if missing[half]:
                missing[half] -= 1
                piece = groove(2 * i + parity, bars=16)
                midi.write(midi.to_score(piece.notes, piece.frame), data / name / f"{title}.mid")
    return data


@pytest.mark.usefixtures("cache")
def test_song_models_have_held_out_songs_of_their_own(tmp_path: Path) -> None:
    missing: dict[tuple[Half | None, Half | None], int] = {(None, "final"): 2, ("final", None): 2}
    for i in range(2000):
        title = f"tune{i:04d}"
        group = titles.title(f"{title}.mid")
        both = half_of(group), half_of(SONG_MODELS + group)
        if missing.get(both):
            missing[both] -= 1
            piece = groove(i, bars=16)
            midi.write(midi.to_score(piece.notes, piece.frame), tmp_path / "songs" / f"{title}.mid")
    for group in ("", SONG_MODELS):
        found = ruler.excerpts(tmp_path, ["songs"], 5, group=group)
        assert {half_of(group + titles.title(piece.name)) for piece in found.test["songs"]} == {"final"}
        assert {half_of(group + titles.title(piece.name)) for piece in found.real["songs"]} == {None}


@pytest.fixture(scope="module")
def codec(trained: Trained) -> Codec:
    model = seqvae.load(trained.best)
    model.styles = {name: model.fit_style([groove(i) for i in (at, at + 2)]) for name, at in (("even", 0), ("odd", 1))}
    return model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.usefixtures("cache")
def test_songs_of_the_requested_half(folder: Path) -> None:
    halves: tuple[Half, ...] = ("choose", "final")
    for half in halves:
        found = ruler.excerpts(folder, ["even", "odd"], 5, half=half)
        assert {half_of(titles.title(piece.name)) for piece in found.test["odd"]} == {half}
        assert {half_of(titles.title(piece.name)) for piece in found.real["odd"]} == {None}
        assert (len(found.real["even"]), len(found.test["even"])) == (6, 2)
    few = ruler.excerpts(folder, ["even"], 1, real=3)
    assert (len(few.real["even"]), len(few.test["even"])) == (3, 1)
    short = folder.parent / "short"
    for file in folder.rglob("*.mid"):
        piece = midi.read(file)
        midi.write(
            midi.to_score(piece.notes[piece.notes[:, 0] < 15 * 48], piece.frame), short / file.relative_to(folder)
        )
    with pytest.raises(SeqVAEError, match="no song of style 'even' has 16 bars of 4/4; add songs or drop the style"):
        ruler.excerpts(short, ["even"], 5)


def test_a_codec_blends_as_for_users_and_controls_are_independent_of_the_song(codec: Codec) -> None:
    songs = [groove(3, bars=6), groove(5, bars=4)]
    move, controls = ruler.codec_moves(codec, {"odd": songs})
    blend = midi.read(codec.blend(songs[0], source="odd", target="even", amount=0.5))
    assert move(songs[0], "odd", "even", 0.5).notes.tolist() == blend.notes.tolist()
    # the same bars, harmony and melody, decoded from the other song's latents, repeated to its length
    z = codec.encode([songs[1]])[0]
    goal = codec.goal("even", 1.0)
    assert isinstance(goal, Goal)
    settings: dict[str, Any] = {
        "keep": None,
        "chroma_guidance": CHROMA_GUIDANCE,
        "goal": replace(goal, calibrated=False),
    }
    repeated = torch.cat([z, z])[:3] + codec.styles["even"].mean - codec.styles["odd"].mean
    expected = midi.read(codec.transform([songs[0]], lambda own: repeated, **settings)[0])
    assert controls["another song"](songs[0], "odd", "even", 1.0).notes.tolist() == expected.notes.tolist()
    mean = codec.styles["even"].mean.expand(3, -1)
    expected = midi.read(codec.transform([songs[0]], lambda own: mean, **settings)[0])
    assert controls["target mean"](songs[0], "odd", "even", 1.0).notes.tolist() == expected.notes.tolist()


def test_latents_are_computed_once(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []
    search = BatchInference.posteriors

    def counted(self: BatchInference, segments: Any, refined: bool = False) -> Any:
        searched.append(refined)
        return search(self, segments, refined)

    monkeypatch.setattr(BatchInference, "posteriors", counted)
    songs = [groove(3), groove(5)]
    move, controls = ruler.codec_moves(codec, {"odd": songs})
    for amount in (0.5, 1.0):
        move(songs[0], "odd", "even", amount)
    controls["another song"](songs[0], "odd", "even", 1.0)
    assert searched == [True, True], "the song's and the other's"


@pytest.mark.usefixtures("cache")
def test_a_codec_is_measured_from_files(codec: Codec, folder: Path) -> None:
    reports: list[str] = []
    found = ruler.evaluate(codec, folder, songs=1, pairs=[("even", "odd")], amounts=(0.5, 1.0), report=reports.append)
    assert found["protocol"]["songs"] == {"even": 1, "odd": 1}
    assert reports == ["moved even to odd: 1 songs"]
    assert list(found["all"])[3:7] == ["amount 0.5", "amount 1", "another song", "target mean"]
    with pytest.raises(StyleError, match="no style 'waltz'"):
        ruler.evaluate(codec, folder, pairs=[("even", "waltz")])
    for pairs in ([], [("even", "even")]):
        with pytest.raises(SeqVAEError, match="no two styles to move between"):
            ruler.evaluate(codec, folder, pairs=pairs)


def test_other_styles_are_evaluated_in_all_pairs(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ruler.pairs_of(codec) == [("even", "odd"), ("odd", "even")]
    monkeypatch.setattr(codec, "styles", dict.fromkeys([*(s for pair in ruler.PAIRS for s in pair), "all"]))
    assert ruler.pairs_of(codec) == list(ruler.PAIRS)
    assert len(ruler.pairs_of(codec, every=True)) == 5 * 4
