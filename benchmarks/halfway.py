"""Metrics of incomplete parts in arrangements: the faults that readers of piano rolls reported.

    python benchmarks/halfway.py DIR --model music --songs 6 --split choose

DIR has one folder per style. Held-out excerpts are translated by the model and by the rule, as in `seqvae evaluate
--arrangement` (seqvae/evaluation/arrangement.py). The tables have means over songs with 95 % intervals, for the metrics
here and for some of that module's, beside real songs of source and target. A metric is nan for an excerpt where it is
undefined.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqvae import codec as codecs
from seqvae.evaluation import arrangement as ruler
from seqvae.evaluation import test_songs
from seqvae.music import arrangement
from seqvae.music import note_metrics as measures
from seqvae.music.band import BASS, FAMILY
from seqvae.music.notes import DRUMS, ONSET, PITCH, PROGRAM, STEPS_PER_BEAT, by_bar, skyline
from seqvae.music.piece import Piece

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
NAN = float("nan")
OCTAVE = 12
WHOLE = 0.9  # share of its notes from which a part is whole; below 1 - WHOLE it is gone
RULER = (
    "inside the target's range", "band", "kit repeated", "top line heard", "new notes", "30 to 70 % new",
    "target probability", "bass agrees", "notes a bar",
)  # fmt: skip


def splinters(notes: Ints, bounds: Ints) -> float:
    """Share of (instrument, bar) pairs with a note whose instrument has no onset in the adjacent bars."""
    playing = np.pad(arrangement.playing(notes, bounds), ((1, 1), (0, 0)))
    alone = playing[1:-1] & ~playing[:-2] & ~playing[2:]
    return float(alone.sum() / playing.sum()) if playing.any() else NAN


def _bass(notes: Ints) -> Ints:
    """The notes of basses: General MIDI programs 32 to 39."""
    found: Ints = notes[notes[:, PROGRAM] // FAMILY == BASS]
    return found


def bass_holes(notes: Ints, bounds: Ints) -> float:
    """Share of beats with pitched notes but without a bass; nan if there is no bass at all."""
    bass = _bass(notes)
    beats = np.arange(bounds[0], bounds[-1], STEPS_PER_BEAT, dtype=np.int32)
    sounds = arrangement.sounding(notes, beats).sum(1) > 0
    if not len(bass) or not sounds.any():
        return NAN
    return float((arrangement.sounding(bass, beats[sounds]).sum(1) == 0).mean())


def bass_leaps(notes: Ints, bounds: Ints) -> float:
    """Share of intervals of an octave or more in the bass line (the lowest note of each onset).

    nan for fewer than two onsets.
    """
    line = skyline(_bass(notes), highest=False)[:, PITCH]
    return float((np.abs(np.diff(line)) >= OCTAVE).mean()) if len(line) > 1 else NAN


def short_drums(notes: Ints, bounds: Ints) -> float:
    """Share of bars with drums without a hit in the last beat; nan without drums."""
    drums = by_bar(notes[notes[:, PROGRAM] == DRUMS], bounds)
    short = [bar[:, ONSET].max() < end - STEPS_PER_BEAT for bar, end in zip(drums, bounds[1:], strict=True) if len(bar)]
    return float(np.mean(short)) if short else NAN


def broken_parts(original: Ints, other: Ints) -> float:
    """Share of the original's pitched instruments that are neither whole nor gone.

    An instrument is whole if a share WHOLE of its notes is in `other` by onset and pitch, on any instrument but drums.
    """
    there = {tuple(row) for row in other[other[:, PROGRAM] != DRUMS][:, [ONSET, PITCH]].tolist()}
    shares = []
    for program in np.unique(original[original[:, PROGRAM] != DRUMS, PROGRAM]):
        rows = original[original[:, PROGRAM] == program][:, [ONSET, PITCH]].tolist()
        shares.append(np.mean([tuple(row) in there for row in rows]))
    return float(np.mean([1 - WHOLE < share < WHOLE for share in shares])) if shares else NAN


FIGURES = {"splinters": splinters, "bass holes": bass_holes, "bass leaps": bass_leaps, "short drums": short_drums}


def measure(piece: Piece, ground: ruler.Ruler, target: str, original: Piece | None) -> dict[str, float]:
    """All metrics of a song as an arrangement in the target style."""
    found = {name: figure(piece.notes, piece.bounds) for name, figure in FIGURES.items()}
    if original is not None:
        found["broken parts"] = broken_parts(original.notes, piece.notes)
    figures = ground.measure(piece, target, original)
    return found | {name: float(figures[ruler.FIGURES.index(name)]) for name in RULER}


def table(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Means and 95 % intervals of metrics (rows) by condition (columns), as Markdown."""
    names = list(dict.fromkeys(name for members in rows.values() for row in members for name in row))
    lines = [f"| | {' | '.join(rows)} |", "|---" * (len(rows) + 1) + "|"]
    for name in names:
        cells = []
        for members in rows.values():
            x = np.array([row.get(name, NAN) for row in members])
            x = x[~np.isnan(x)]
            mean, low, high = measures.interval(x) if len(x) else (NAN, NAN, NAN)
            cells.append(f"{mean:.2f} [{low:.2f}, {high:.2f}]" if len(x) else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="music")
    parser.add_argument("--songs", type=int, default=6, help="songs of each style")
    parser.add_argument("--split", choices=("choose", "final"), default="choose")
    parser.add_argument("--amounts", type=float, nargs="+", default=[0.5, 1.0])
    options = parser.parse_args()
    codec = codecs.load(options.model)
    ways = ruler.pairs_of(codec)
    found = ruler.excerpts(
        options.data, sorted({style for way in ways for style in way}), options.songs, half=options.split,
        group=test_songs.groups(codec),
    )  # fmt: skip
    ground, (blend, _) = ruler.Ruler(found.real), ruler.codec_moves(codec, found.test)
    rows: dict[str, list[dict[str, float]]] = {}
    started = time.process_time()
    for source, target in ways:
        pair = f"{source} to {target}"
        for piece in found.test[source]:
            made = {"source songs": piece, "rule": ground.rule(piece, source, target, 1.0)}
            made |= {f"amount {amount:g}": blend(piece, source, target, amount) for amount in options.amounts}
            for name, one in made.items():
                row = measure(one, ground, target, piece)
                rows.setdefault(name, []).append(row)
                rows.setdefault(f"{pair}, {name}", []).append(row)
        for piece in found.test[target]:
            rows.setdefault("target songs", []).append(measure(piece, ground, target, None))
    print(table({name: members for name, members in rows.items() if " to " not in name}))
    for source, target in ways:
        pair = f"{source} to {target}, "
        print(f"\n{pair[:-2]}\n")
        print(table({name.removeprefix(pair): members for name, members in rows.items() if name.startswith(pair)}))
    print(f"\n{time.process_time() - started:.0f} s of processor time")


if __name__ == "__main__":
    main()
