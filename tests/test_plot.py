"""Pictures: complete drawings, on one scale and in one set of colours, in small files."""

from __future__ import annotations

import io
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from PIL import Image

from seqvae import plot
from seqvae.errors import SeqVAEError
from seqvae.music import pianoroll as roll
from seqvae.music import piece as midi
from seqvae.music.piece import DRUMS, Piece
from seqvae.style import gaussian
from seqvae.style import lda as plane

PIANO, BASS, FLUTE = 0, 33, 73


def piece(rows: list[tuple[int, int, int, int]], bars: int = 4) -> Piece:
    """Notes (onset, duration, pitch, program) in bars of 4/4."""
    notes = np.array([(*row, 80) for row in rows], np.int32).reshape(-1, 5)
    return Piece(notes, np.arange(bars + 1, dtype=np.int32) * 48, midi.make_frame(([], [], [])))


CALM = piece([(i * 12, 12, 60 + i % 5, PIANO) for i in range(16)] + [(0, 48, 40, BASS)])
WILD = piece([(i * 6, 3, 72 + i % 7, FLUTE) for i in range(30)] + [(i * 12, 1, 36 + i % 2, DRUMS) for i in range(16)])


def drawn(axes: Axes) -> dict[int, PolyCollection]:
    """The notes of a panel by program."""
    found = [c for c in axes.collections if isinstance(c, PolyCollection) and c.get_gid()]
    return {int(c.get_gid() or ""): c for c in found}


def notes_of(collection: PolyCollection) -> list[tuple[float, float]]:
    """Onset and vertical centre of every note of a collection."""
    boxes = [path.vertices for path in collection.get_paths()]
    return sorted((float(box[:, 0].min()), float(box[:4, 1].mean())) for box in map(np.asarray, boxes))


def picture(figure: Figure) -> Image.Image:
    content = plot.png(figure)
    assert len(content) < 200_000
    return Image.open(io.BytesIO(content), formats=["PNG"])


@pytest.mark.parametrize("stacked", [False, True])
def test_every_note_is_drawn_at_its_position(stacked: bool) -> None:
    panels = [drawn(axes) for axes in plot.roll([("calm", CALM), ("wild", WILD)], stacked=stacked).axes]
    pitches, beats = panels[0::2], panels[1::2]
    for given, shown, drums in zip((CALM, WILD), pitches, beats, strict=True):
        for program in set(given.notes[:, midi.PROGRAM].tolist()) - {DRUMS}:
            part = given.notes[given.notes[:, midi.PROGRAM] == program]
            expected = sorted(zip(part[:, midi.ONSET].tolist(), part[:, midi.PITCH].tolist(), strict=True))
            assert notes_of(shown[program]) == pytest.approx(np.array(expected, float))
        count = int((given.notes[:, midi.PROGRAM] == DRUMS).sum())
        assert sum(len(c.get_paths()) for c in drums.values()) == count
        assert DRUMS not in shown


def test_an_instrument_has_one_colour_in_all_rolls_and_in_the_legend() -> None:
    both = piece([(0, 12, 60, PIANO), (12, 12, 60, FLUTE)])
    figure = plot.roll([("calm", CALM), ("both", both), ("wild", WILD)])
    seen: dict[int, set[str]] = {}
    for axes in figure.axes:
        for program, collection in drawn(axes).items():
            seen.setdefault(program, set()).add(to_hex(tuple(np.asarray(collection.get_facecolor())[0].tolist())))
    assert seen.keys() == {PIANO, BASS, FLUTE, DRUMS}
    assert all(len(colours) == 1 for colours in seen.values())
    assert len({colour for colours in seen.values() for colour in colours}) == len(seen)
    [legend] = figure.legends
    shown_colours = {
        text.get_text(): to_hex(patch.get_facecolor())
        for text, patch in zip(legend.get_texts(), legend.get_patches(), strict=True)
    }
    names = {PIANO: "Acoustic Grand Piano", BASS: "Electric Bass (finger)", FLUTE: "Flute", DRUMS: "Drums"}
    assert shown_colours == {names[program]: colours.pop() for program, colours in seen.items()}


def test_colours_are_the_same_in_the_file() -> None:
    """A file has a palette of 256 colours, which contains those of all instruments."""
    rows = [(i * 4, 4, 40 + i, program) for i, program in enumerate((*range(0, 100, 5), DRUMS))]
    pixels = np.asarray(picture(plot.roll([("many", piece(rows))])).convert("RGB")).reshape(-1, 3)
    for colour in roll.colours(program for *_, program in rows).values():
        assert np.abs(pixels - 255 * np.array(to_rgb(colour))).max(1).min() < 3


def test_rolls_share_time_and_pitches() -> None:
    long = piece([(0, 12, 100, PIANO)], bars=9)
    figure = plot.roll([("calm", CALM), ("long", long)])
    assert len({axes.get_xlim() for axes in figure.axes}) == len({axes.get_ylim() for axes in figure.axes}) == 1
    assert figure.axes[0].get_xlim() == (0, 9 * 48)


def test_bar_lines_are_at_bars() -> None:
    axes = plot.roll([("calm", CALM)]).axes[0]
    lines = [np.asarray(line.get_xdata())[0] for line in axes.lines]
    assert lines == CALM.bounds.tolist()


def test_a_piece_without_notes_has_a_picture() -> None:
    assert picture(plot.roll([("silence", piece([]))])).format == "PNG"


@pytest.mark.parametrize("bars", [1, 7, 300, 5000])
def test_pictures_of_any_length_are_of_bounded_size(bars: int) -> None:
    rows = [(i * 24, 12, 40 + i * 7 % 50, i % 12) for i in range(2 * bars)]
    image = picture(plot.roll([("a", piece(rows, bars)), ("b", piece(rows, bars))]))
    assert image.width <= 24 * plot.DPI
    assert round(image.info["dpi"][0]) == plot.DPI


def test_colours_are_distinguishable_with_two_primaries() -> None:
    """Machado et al. (2009), full protanopia and deuteranopia, distances in CIELAB: 2.3 is just noticeable."""
    lacking = {
        "none": np.eye(3),
        "protanopia": [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        "deuteranopia": [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
    }
    for matrix in lacking.values():
        seen = [_lab(np.clip(np.array(matrix) @ _linear(colour), 0, 1)) for colour in (*roll.COLOURS, roll.DRUM_COLOUR)]
        assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 15


def _linear(colour: str) -> Any:
    x = np.array(to_rgb(colour))
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def _lab(linear: Any) -> Any:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ linear / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_more_programs_than_colours_get_other_shades() -> None:
    found = roll.colours(range(24))
    assert len(set(found.values())) == 24


# --- maps -------------------------------------------------------------------------------------------------------------


def styles(*means: float) -> dict[str, gaussian.Style]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"style {i}": gaussian.fit([mean + torch.randn(8, 6, generator=generator) for _ in range(30)])
        for i, mean in enumerate(means)
    }


def test_half_of_a_style_is_inside_its_ellipse() -> None:
    found = plane.plane(styles(0.0, 2.0, -3.0))
    ellipses = [
        patch for patch in plot.latent_map(found).axes[0].patches if isinstance(patch, Ellipse) and patch.get_fill()
    ]
    assert len(ellipses) == 3
    for ellipse, one in zip(ellipses, found.styles.values(), strict=True):
        draws = torch.distributions.MultivariateNormal(one.mean.double(), one.covariance.double()).sample((4000,))
        places = (draws @ found.axes).numpy()
        inside = ellipse.get_patch_transform().inverted().transform(places)
        assert (np.linalg.norm(inside, axis=1) < 1).mean() == pytest.approx(0.5, abs=0.05)


def test_points_are_drawn_at_their_position_and_named_if_few() -> None:
    found = plane.plane(styles(0.0, 2.0))
    z = torch.ones(3, 6)
    axes = plot.latent_map(found, {"song": z}).axes[0]
    expected = (z.double() @ found.axes).mean(0).tolist()
    marks = [np.array(line.get_xydata())[0].tolist() for line in axes.lines if line.get_marker() == "D"]
    assert marks == [pytest.approx(expected)]
    assert "song" in [text.get_text() for text in axes.texts]
    many = plot.latent_map(found, {f"song {i}": z for i in range(plot.NAMED + 1)}).axes[0]
    assert not any("song" in text.get_text() for text in many.texts)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_styles_makes_a_map(count: int) -> None:
    figure = plot.latent_map(plane.plane(styles(*(float(i * i) for i in range(count)))))
    assert {text.get_text() for text in figure.axes[0].texts} == {f"style {i}" for i in range(count)}
    assert picture(figure).size == (round(7.2 * plot.DPI), round(5.6 * plot.DPI))


# --- curves -----------------------------------------------------------------------------------------------------------


def curves(axes: Axes) -> dict[str, list[list[float]]]:
    return {str(line.get_label()): np.asarray(line.get_xydata()).tolist() for line in axes.lines}


@pytest.mark.parametrize("keys", [("classifier", "classifier_without_instruments"), ("judge", "blind")])
def test_an_effect_of_music_has_the_measured_values_and_bands(keys: tuple[str, str]) -> None:
    same = {keys[1]: [0.1, 0.0, 0.2], "groove": [0.9, 0.8, 1.0]}
    labels = {
        f"amount {a:g}": {keys[0]: [a / 2, a / 2 - 0.1, a / 2 + 0.1], "chroma": [1 - a / 3, 0.3, 1.0], **same}
        for a in (1.0, 0.0, 0.5)
    }
    others: dict[str, Any] = {"own 1": {}, "programs swapped": {}, "amount 1, harmony 0": {}}
    others |= {"another song, amount 1": {"chroma": [0.5, 0.4, 0.6]}, "another song, amount 1, harmony 0": {}}
    arrival, keeping = plot.effect({"blend": {"all": {**labels, **others}}}).axes
    first, second = curves(arrival).values()
    assert first == [[0.0, 0.0], [0.5, 0.25], [1.0, 0.5]]
    assert second == [[0.0, 0.1], [0.5, 0.1], [1.0, 0.1]]
    assert curves(keeping)["chroma"] == [[0.0, 1.0], [0.5, pytest.approx(5 / 6)], [1.0, pytest.approx(2 / 3)]]
    assert curves(keeping)["chroma, another song's"] == [[1.0, 0.5]]
    band = np.asarray(arrival.collections[0].get_paths()[0].vertices)
    assert band[:, 1].min() == pytest.approx(-0.1) and band[:, 1].max() == pytest.approx(0.6)


def test_an_effect_of_text_has_a_curve_per_method() -> None:
    both = {"0": {"accuracy": [0.1, 0.0, 0.2], "bleu": [90.0, 80.0, 95.0]},
            "1": {"accuracy": [0.8, 0.7, 0.9], "bleu": [20.0, 10.0, 30.0]}}  # fmt: skip
    metrics = {"transfer": {"bad/good": {"methods": {"mean": {"both": both}, "transport": {"skipped": "too few"}}}}}
    arrival, keeping = plot.effect(metrics).axes
    assert curves(arrival) == {"mean": [[0.0, 0.1], [1.0, 0.8]]}
    assert curves(keeping) == {"mean": [[0.0, 0.9], [1.0, 0.2]]}


def test_figures_without_an_effect_are_refused() -> None:
    with pytest.raises(SeqVAEError, match="seqvae evaluate"):
        plot.effect({"likelihood": {}})


def test_a_resumed_run_is_drawn_without_its_discarded_steps() -> None:
    """Resumed at 200 after reaching step 300: the later lines of the first try are not part of the run."""
    rows = [{"kind": "train", "step": step, "loss": loss, "kl_bits": 1.0, "accuracy": 0.5}
            for step, loss in ((100, 9.0), (200, 8.0), (300, 99.0), (200, 7.0), (300, 6.0))]  # fmt: skip
    rows += [{"kind": "valid", "step": 300, "loss": 5.0, "kl_bits": 1.0, "accuracy": 0.5, "free_running": 0.2}]
    loss, *_, free = plot.training({"mine": rows}).axes
    train, valid = (np.asarray(line.get_xydata()).tolist() for line in loss.lines)
    assert train == [[100, 9], [200, 7], [300, 6]]
    assert valid == [[300, 5]]
    assert curves(free) == {"mine": [[300, 0.2]]}


def test_a_run_without_a_line_is_refused() -> None:
    with pytest.raises(SeqVAEError, match="no line yet"):
        plot.training({"mine": []})


def test_drums_of_a_long_song_are_drawn_throughout() -> None:
    """Hits narrower than a pixel do not vanish, even where none reaches the middle of a pixel."""
    long = piece([(onset, 6, 38, DRUMS) for onset in range(0, 150 * 48, 24)], bars=150)
    file = io.BytesIO()
    plot.roll([("a", long), ("b", long), ("c", long)]).savefig(file, format="png", dpi=plot.DPI)
    dark = np.flatnonzero((np.asarray(Image.open(file).convert("L")) < 150).sum(0) > 8)
    assert len(dark) > 300 and np.sort(np.diff(dark))[-3] < 20, "only the two gaps between the rolls are wide"
