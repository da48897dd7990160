"""Figures: piano rolls, the map of a model's styles, effect against amount, training curves.

Scope: matplotlib, and the content of a model's `metrics.json` and a run's `log.jsonl`. Out of scope: the source of
songs, models and metrics, instrument colours (music/pianoroll.py), files. There is no state: every function makes a new
figure, and none opens a window.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from seqvae.errors import SeqVAEError
from seqvae.music import piece as midi
from seqvae.music.pianoroll import DRUM_COLOUR, colours, shade
from seqvae.music.piece import DRUMS, DURATION, ONSET, PITCH, PROGRAM, Piece

if TYPE_CHECKING:
    from torch import Tensor

    from seqvae.style.lda import Plane

INK, SOFT, LINE, KEYS = "#22262b", "#62676f", "#d8d4cc", "#f4f2ed"
DPI = 150
NAMED = 12
"""Maps with more points have no names, which would overlap."""
_BLACK_KEYS = (1, 3, 6, 8, 10)
_HALF = 2 * np.log(2)  # squared radius, in standard deviations, that contains half of a two-dimensional Gaussian


def png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    # few colours: a palette reduces files to a third
    Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        small, format="png", optimize=True, dpi=(DPI, DPI)
    )
    return small.getvalue()


# --- piano rolls ------------------------------------------------------------------------------------------------------


def roll(pieces: Sequence[tuple[str, Piece]], *, stacked: bool = False) -> Figure:
    """Piano rolls of songs with titles, side by side or stacked, with common scales of time, pitch and colour.

    Drums have a lane below the pitches, with one row for each sound.
    """
    notes = np.concatenate([piece.notes for _, piece in pieces])
    drums = sorted(set(notes[notes[:, PROGRAM] == DRUMS, PITCH].tolist()))
    pitched = notes[notes[:, PROGRAM] != DRUMS, PITCH]
    low, high = (int(pitched.min()), int(pitched.max())) if len(pitched) else (48, 72)
    bars = max(len(piece.bounds) - 1 for _, piece in pieces)
    across = 1 if stacked else len(pieces)
    down = len(pieces) if stacked else 1
    width = min(24.0, max(7.0, across * min(12.0, max(4.0, 0.55 * bars))))
    lane = 0.25 + 0.06 * len(drums)
    figure = Figure((width, 0.8 + down * (3.4 + (lane if drums else 0))), layout="constrained", facecolor="white")
    panels = [(1.0, "pitch"), *([(lane / 3.4, "drums")] if drums else [])]
    grid = figure.add_gridspec(down * len(panels), across, height_ratios=[share for share, _ in panels] * down)
    tints = colours(notes[:, PROGRAM].tolist())
    end = max(int(piece.bounds[-1]) for _, piece in pieces)
    for number, (title, piece) in enumerate(pieces):
        column, row = (0, number) if stacked else (number, 0)
        for lane_number, (_, kind) in enumerate(panels):
            axes = figure.add_subplot(grid[row * len(panels) + lane_number, column])
            _bar_lines(axes, piece, labelled=lane_number == len(panels) - 1 and (not stacked or row == down - 1))
            axes.set_xlim(0, end)
            if kind == "pitch":
                _pitches(axes, piece, tints, low, high)
                axes.set_title(title, fontsize=11, color=INK, loc="left")
            else:
                _drums(axes, piece, drums)
            if column == 0:
                axes.set_ylabel(kind, fontsize=9, color=SOFT)
            else:
                axes.set_yticklabels([])
    _legend(figure, tints)
    return figure


def _bar_lines(axes: Axes, piece: Piece, labelled: bool) -> None:
    """Draw lines at the starts of bars, with numbers at some of them."""
    bars = len(piece.bounds) - 1
    each = next(n for n in (1, 2, 4, 8, 16, 32, 64, 128, 10**6) if bars <= 24 * n or n == 10**6)
    for bound in piece.bounds[::each]:
        axes.axvline(bound, color=LINE, linewidth=0.7, zorder=0.5)
    numbered = 1 if bars <= 8 else next(n for n in (2, 4, 8, 16, 32, 64, 128, 10**6) if bars <= 12 * n or n == 10**6)
    at = list(range(0, bars, numbered))
    axes.set_xticks(piece.bounds[at].tolist(), [str(i + 1) for i in at] if labelled else [])
    if labelled:
        axes.set_xlabel("bar", fontsize=9, color=SOFT)
    axes.tick_params(length=0, labelsize=8.5, labelcolor=SOFT)
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)


def _pitches(axes: Axes, piece: Piece, tints: Mapping[int, str], low: int, high: int) -> None:
    """Draw all notes except drums, one collection a program, lower programs on top."""
    for pitch in range(low - 2, high + 3):
        if pitch % 12 in _BLACK_KEYS:
            axes.axhspan(pitch - 0.5, pitch + 0.5, color=KEYS, linewidth=0, zorder=0)
    programs = sorted(set(piece.notes[:, PROGRAM].tolist()) - {DRUMS}, reverse=True)
    for program in programs:
        part = piece.notes[piece.notes[:, PROGRAM] == program]
        gap = np.minimum(0.6, 0.2 * part[:, DURATION])  # separates repeated notes
        boxes = _boxes(part[:, ONSET], part[:, ONSET] + part[:, DURATION] - gap, part[:, PITCH], 0.42)
        axes.add_collection(
            PolyCollection(
                boxes, facecolor=tints[program], edgecolor="none", snap=False, alpha=0.9, zorder=2, gid=str(program)
            )
        )
    axes.set_ylim(low - 2.5, high + 2.5)
    octaves = [pitch for pitch in range(low - 2, high + 3) if pitch % 12 == 0]
    axes.set_yticks(octaves, [f"C{pitch // 12 - 1}" for pitch in octaves])


def _drums(axes: Axes, piece: Piece, sounds: Sequence[int]) -> None:
    """Draw the onsets of drums, one row for each sound."""
    part = piece.notes[piece.notes[:, PROGRAM] == DRUMS]
    rows = np.searchsorted(sounds, part[:, PITCH])
    boxes = _boxes(part[:, ONSET], part[:, ONSET] + 1.6, rows, 0.38)
    axes.add_collection(PolyCollection(boxes, color=DRUM_COLOUR, linewidth=0.4, snap=False, zorder=2, gid=str(DRUMS)))
    axes.set_ylim(-0.8, len(sounds) - 0.2)
    axes.set_yticks([])


def _boxes(left: NDArray[Any], right: NDArray[Any], middle: NDArray[Any], half: float) -> Any:
    """Rectangles `(N, 4, 2)`; `Any`, since matplotlib's types have no arrays."""
    x = np.stack([left, right, right, left], 1).astype(float)
    y = np.stack([middle - half, middle - half, middle + half, middle + half], 1).astype(float)
    return np.stack([x, y], 2)


def _legend(figure: Figure, tints: Mapping[int, str]) -> None:
    names = {program: "Drums" if program == DRUMS else midi.general_midi()[program] for program in tints}
    patches = [Patch(color=tints[program], label=name) for program, name in names.items()]
    columns = max(1, int(figure.get_figwidth() // 2.2))
    figure.legend(
        handles=patches, loc="outside lower center", ncols=columns, fontsize=9, frameon=False, labelcolor=INK,
        handlelength=1.2, columnspacing=1.5,
    )  # fmt: skip


# --- maps -------------------------------------------------------------------------------------------------------------


def latent_map(plane: Plane, points: Mapping[str, Tensor] | None = None) -> Figure:
    """Styles in a plane: their means, the ellipses that contain half of their segments, and points.

    Args:
        plane: The plane of a model's styles.
        points: Latent vectors `(S, D)` of pieces by name; their means are drawn, with names if there are few.
    """
    figure = Figure((7.2, 5.6), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for i, (name, style) in enumerate(plane.styles.items()):
        colour = shade(i)
        mean, covariance = (x.numpy() for x in plane.place(style))
        values, vectors = np.linalg.eigh(covariance)
        wide, high = 2 * np.sqrt(np.maximum(values, 0) * _HALF)
        tilt = float(np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0])))
        axes.add_patch(Ellipse(tuple(mean), wide, high, angle=tilt, facecolor=colour, alpha=0.16, zorder=1))
        axes.add_patch(Ellipse(tuple(mean), wide, high, angle=tilt, fill=False, edgecolor=colour, linewidth=1.6))
        axes.plot(*mean, "o", color=colour, markersize=7, zorder=3)
        _label(axes, mean, name, bold=True)
    for name, z in (points or {}).items():
        place = (z.double() @ plane.axes).numpy()
        axes.plot(*place.T, ".", color=SOFT, alpha=0.5, markersize=4, zorder=2)
        axes.plot(*place.mean(0), "D", color=INK, markersize=6, zorder=4)
        if points and len(points) <= NAMED:
            _label(axes, place.mean(0), name)
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.08)
    axes.autoscale_view()
    _plain(axes)
    axes.set_xlabel("standard deviations within a style", fontsize=10, color=SOFT)
    axes.set_ylabel("standard deviations within a style", fontsize=10, color=SOFT)
    axes.set_title("Half of each style's Gaussian lies within its ellipse", fontsize=11, color=INK, loc="left")
    return figure


def _label(axes: Axes, at: NDArray[Any], text: str, bold: bool = False) -> None:
    axes.annotate(
        text, tuple(at), xytext=(7, 5), textcoords="offset points", fontsize=10.5, color=INK, zorder=5,
        fontweight="bold" if bold else "normal",
    )  # fmt: skip


# --- curves -----------------------------------------------------------------------------------------------------------


def effect(metrics: Mapping[str, Any]) -> Figure:
    """Effect of a move against its amount, from a model's `metrics.json`, with 95 % intervals as bands.

    For music: the target style's probability by a style classifier, and the preserved chroma, groove and melody, beside
    those with another song's latents. For text: the share of sentences classified as the target style, and BLEU against
    the original sentences. Raises SeqVAEError if none of these was measured.
    """
    panels = _music_effect(metrics) if "blend" in metrics else _text_effect(metrics)
    if not panels:
        raise SeqVAEError("the model's metrics.json has no results by amount; measure them with `seqvae evaluate`")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure((4.6 * columns, 3.5 * rows), layout="constrained", facecolor="white")
    for number, (title, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        for i, (name, curve) in enumerate(curves.items()):
            amount, value, low, high = np.array(sorted(curve)).T
            colour = shade(i)
            axes.fill_between(amount, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(amount, value, color=colour, marker="o", markersize=4, linewidth=1.8, label=name)
        axes.set_title(title, fontsize=11, color=INK, loc="left")
        axes.set_xlabel("amount", fontsize=10, color=SOFT)
        axes.set_ylim(0, 1.02)
        _plain(axes)
        if len(curves) > 1:
            axes.legend(fontsize=9, frameon=False, labelcolor=INK)
    return figure


Curve = list[tuple[float, float, float, float]]
"""Amount, value, and the ends of its 95 % interval."""


_OLD_KEYS = {"classifier": "judge", "classifier_without_instruments": "blind"}  # of earlier versions


def _music_effect(metrics: Mapping[str, Any]) -> dict[str, dict[str, Curve]]:
    measured = metrics["blend"]["all"]

    def curves(keys: Mapping[str, str], begin: str, who: str = "") -> dict[str, Curve]:
        amounts = {name.removeprefix(begin): x for name, x in measured.items() if name.startswith(begin)}
        rows = {float(amount): x for amount, x in amounts.items() if "," not in amount}
        found: dict[str, Curve] = {}
        for name, key in keys.items():
            named = ((a, x.get(key, x.get(_OLD_KEYS.get(key, "")))) for a, x in rows.items())
            found[f"{name}{who}"] = [(a, *figure) for a, figure in named if figure is not None]
        return {name: curve for name, curve in found.items() if curve}

    classifiers = {
        "classifier with instruments": "classifier",
        "classifier without": "classifier_without_instruments",
    }
    kept = {name: name for name in ("chroma", "groove", "melody")}
    another = curves(kept, "another song, amount ", ", another song's")
    return {
        "Probability of the target style": curves(classifiers, "amount "),
        "Kept of the original": curves(kept, "amount ") | another,
    }


def _text_effect(metrics: Mapping[str, Any]) -> dict[str, dict[str, Curve]]:
    panels: dict[str, dict[str, Curve]] = {}
    for pair, measured in metrics.get("transfer", {}).items():
        methods = {name: x["both"] for name, x in measured.get("methods", {}).items() if "both" in x}
        for title, key, unit in (
            ("classified as the target style", "accuracy", 1.0),
            ("BLEU to the original sentence", "bleu", 100.0),
        ):
            curves = {
                name: [(float(amount), *(value / unit for value in x[key])) for amount, x in by_amount.items()]
                for name, by_amount in methods.items()
            }
            if curves:
                panels[f"{pair}: {title}"] = curves
    return panels


# Metrics of a validation and their units; see train/metrics.py.
_TRAINING = {
    "loss": "loss, nats a segment",
    "kl_bits": "KL, bits a segment",
    "accuracy": "accuracy of the next token",
    "free_running": "F1 of free-running decoding",
}


def training(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Training curves of runs by name, from the lines of each `log.jsonl`; validation is drawn strong, training faint.

    Raises SeqVAEError for a run without any line.
    """
    figure = Figure((9.2, 6.4), layout="constrained", facecolor="white")
    for number, (key, title) in enumerate(_TRAINING.items()):
        axes = figure.add_subplot(2, 2, number + 1)
        for i, (name, rows) in enumerate(runs.items()):
            if not rows:
                raise SeqVAEError(f"{name}: its log.jsonl has no line yet; wait for the first report")
            for kind, alpha, width in (("train", 0.35, 1.0), ("valid", 1.0, 2.0)):
                known = _last_said(rows, kind, key)
                if known:
                    label = name if kind == "valid" else None
                    axes.plot(*zip(*known, strict=True), color=shade(i), alpha=alpha, linewidth=width, label=label)
        values = [row[key] for rows in runs.values() for row in rows[len(rows) // 20 :] if key in row]
        if key == "loss" and values:  # the loss of the first steps is far higher
            axes.set_ylim(0, 1.05 * max(values))
        axes.set_title(title, fontsize=11, color=INK, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _plain(axes)
        if number > 1:
            axes.set_xlabel("step", fontsize=10, color=SOFT)
        if number == 0 and axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=9, frameon=False, labelcolor=INK)
    return figure


def _last_said(rows: Sequence[Mapping[str, Any]], kind: str, key: str) -> list[tuple[float, float]]:
    """Steps and values; later lines replace those of the same steps, which a resumed run repeats."""
    known: list[tuple[float, float]] = []
    for row in rows:
        if row.get("kind") == kind and key in row:
            while known and known[-1][0] >= row["step"]:
                known.pop()
            known.append((row["step"], row[key]))
    return known


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(labelsize=9, labelcolor=SOFT, color=LINE)
    axes.grid(color=LINE, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)
