"""Content preservation of blends, with chord charts rendered in several styles as the ground truth.

    python benchmarks/pairs.py DIR --model music [--charts 37] [--json FILE]

DIR has one folder per style (rock, jazz, hymn) with files `CHART-GROOVE.mid`: each chart in several grooves. One groove
of each style, named by --source, is translated to every other style, with style vectors fitted on other charts
(--folds) and with the model's own styles (--called maps folders to the model's style names). The similarity of the
result to the same chart's renderings in the target style is compared with its similarity to other charts':

    chroma   cosine similarity of the pitch-class histograms of the whole song: roughly the key
    harmony  cosine similarity of the pitch-class histograms by bar, averaged: the chords
    latent   minus the distance between the encoder's means of result and rendering, averaged over segments

each averaged over the grooves of the target. `lead` is the share of other charts with less similarity, .5 by chance. p
comes from 20,000 permutations of targets (`statistics.matched`). Intervals are 95 % over charts. `moved` is the
probability of the target style by a classifier trained on the other charts' renderings. Decoding is guided by the
chroma of the source as in `seqvae blend`, and without guidance in rows "harmony 0".

Controls: the source itself, and its reconstruction (amount 0). As a ceiling, one groove of the target against its
others. Without the song: the target's mean alone, and the translated latents of another chart, both in the bars of the
source and guided by its chroma. "beyond" is the lead of a blend minus that of each of these two, paired over charts:
the latent vector preserves the chart only as far as it is above 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae import codec as codecs
from seqvae.codec import CHROMA_GUIDANCE, Codec
from seqvae.evaluation import controls, test_songs
from seqvae.evaluation import statistics as distributions
from seqvae.evaluation.style_classifier import StyleClassifier
from seqvae.music import note_metrics as measures
from seqvae.music import piece as midi
from seqvae.music.notes import by_bar, chroma
from seqvae.style import gaussian

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
AMOUNTS = (0.5, 1.0)
GUIDANCE = {"": CHROMA_GUIDANCE, ", harmony 0": 0.0}
MEASURES = ("chroma", "harmony", "latent")


@dataclass
class Rendering:
    """A file: a chart in a groove of a style."""

    chart: str
    style: str
    groove: str
    piece: midi.Piece
    z: Tensor
    """Posterior means `(S, D)`, not refined."""
    chords: Floats
    """Sounding time by bar and pitch class `(C, 12)`."""


def chords(notes: Ints, bounds: Ints) -> Floats:
    """Sounding time by bar and pitch class `(C, 12)`."""
    return np.array([chroma(bar) for bar in by_bar(notes, bounds)])


def read(codec: Codec, folder: Path, charts: int) -> list[Rendering]:
    """All renderings of the first `charts` charts."""
    files = [(path.stem.split("-", 1), path) for path in sorted(folder.glob("*/*.mid"))]
    names = sorted({chart for (chart, _), _ in files})[:charts]
    chosen = [((chart, groove), path) for (chart, groove), path in files if chart in names]
    pieces = [midi.read(path) for _, path in chosen]
    split = [codec.segments(piece) for piece in pieces]
    z = torch.split(codec.posteriors([x for one in split for x in one]).mean, [len(one) for one in split])
    return [
        Rendering(chart, path.parent.name, groove, piece, latent, chords(piece.notes, piece.bounds))
        for ((chart, groove), path), piece, latent in zip(chosen, pieces, z, strict=True)
    ]


def similarity(z: Tensor, mine: Floats, other: Rendering) -> tuple[float, float, float]:
    """MEASURES between a result, with latents `z (S, D)` and chords `mine (C, 12)`, and a rendering."""
    count = min(len(mine), len(other.chords))
    a, b = mine[:count], other.chords[:count]
    sounding = b.any(1)
    bars = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-9)
    x, y = a.sum(0), b.sum(0)
    whole = float(x @ y / max(1e-9, float(np.linalg.norm(x) * np.linalg.norm(y))))
    segments = min(len(z), len(other.z))
    distance = float((z[:segments] - other.z[:segments]).norm(dim=1).mean())
    return whole, float(bars[sounding].mean()), -distance


def table_of(
    results: Sequence[tuple[Tensor, Floats, str]], charts: Sequence[str], targets: Mapping[str, Sequence[Rendering]]
) -> Floats:
    """Similarity `(charts, charts, MEASURES)` of each result to each chart's renderings in other grooves."""
    return np.array(
        [
            [np.mean([similarity(z, mine, r) for r in targets[chart] if r.groove != groove], 0) for chart in charts]
            for z, mine, groove in results
        ]
    )


def figures(scores: Floats) -> dict[str, Any]:
    """Lead, mean similarity to the own chart, difference to others, and p by measure, of `scores (N, N, MEASURES)`."""
    out: dict[str, Any] = {}
    n = len(scores)
    for k, name in enumerate(MEASURES):
        s = scores[..., k]
        own = np.diagonal(s)
        others = (s.sum(1) - own) / max(1, n - 1)
        out[name] = {
            "lead": list(measures.interval(distributions.lead(s))),
            "own": list(measures.interval(own)),
            "difference": list(measures.interval(own - others)),
            "p": distributions.matched(s),
        }
    return out


class Bench:
    """All renderings, and for each fold of charts the styles and the classifier fitted on the other charts."""

    def __init__(self, codec: Codec, renderings: Sequence[Rendering], folds: int, seed: int) -> None:
        self.codec = codec
        self.renderings = renderings
        self.charts = sorted({r.chart for r in renderings})
        self.styles = sorted({r.style for r in renderings})
        order = np.random.default_rng(seed).permutation(len(self.charts))
        self.fold = {self.charts[i]: int(k % folds) for k, i in enumerate(order)}
        self.fitted: list[dict[str, gaussian.Style]] = []
        self.classifiers: list[StyleClassifier] = []
        for k in range(folds):
            others = [r for r in renderings if self.fold[r.chart] != k]
            self.fitted.append({s: gaussian.fit([r.z for r in others if r.style == s]) for s in self.styles})
            self.classifiers.append(StyleClassifier([(r.style, r.piece) for r in others], codec.chunks, True, seed))

    def targets(self, name: str) -> dict[str, list[Rendering]]:
        """The renderings of a style by chart."""
        return {chart: [r for r in self.renderings if (r.style, r.chart) == (name, chart)] for chart in self.charts}

    def ends(self, source: str, target: str, kind: str, called: Mapping[str, str]) -> list[list[Tensor]]:
        """The means `(D,)` of both styles for each chart; empty if the model lacks one of the styles."""
        if kind == "other charts":
            fitted = [self.fitted[self.fold[chart]] for chart in self.charts]
            return [[one[source].mean, one[target].mean] for one in fitted]
        names = [called.get(name, name) for name in (source, target)]
        if not set(names) <= self.codec.styles.keys():
            return []
        return [[self.codec.styles[name].mean for name in names]] * len(self.charts)

    def scores(
        self, frames: Sequence[midi.Piece], notes: Sequence[Ints], target: str, groove: str = ""
    ) -> tuple[Floats, Floats]:
        """`table_of` of results, one per chart in the bars of `frames`, and their target probabilities `(charts,)`."""
        pieces = [
            midi.Piece(np.column_stack([x, np.full(len(x), 80, np.int32)]), piece.bounds, piece.frame)
            for piece, x in zip(frames, notes, strict=True)
        ]
        split = [self.codec.segments(piece) for piece in pieces]
        latents = self.codec.posteriors([x for one in split for x in one]).mean
        z = torch.split(latents, [len(one) for one in split])
        results = [(a, chords(p.notes, p.bounds), groove) for a, p in zip(z, pieces, strict=True)]
        probabilities = [
            self.classifiers[self.fold[chart]].probability(piece.notes, piece.bounds)[target]
            for chart, piece in zip(self.charts, pieces, strict=True)
        ]
        return table_of(results, self.charts, self.targets(target)), np.array(probabilities)

    def measure(
        self, frames: Sequence[midi.Piece], notes: Sequence[Ints], target: str, groove: str = ""
    ) -> dict[str, Any]:
        """All metrics of results, one per chart."""
        scores, probabilities = self.scores(frames, notes, target, groove)
        return {**figures(scores), "moved": list(measures.interval(probabilities))}


def beyond(scores: Floats, control: Floats) -> dict[str, list[float]]:
    """Lead of results minus that of a control, by measure of scores `(N, N, MEASURES)`, paired over charts."""
    return {
        name: list(controls.beyond(distributions.lead(scores[..., k]), distributions.lead(control[..., k])))
        for k, name in enumerate(MEASURES)
    }


def run(bench: Bench, sources: Mapping[str, str], called: Mapping[str, str]) -> dict[str, Any]:
    """Metrics for every direction, amount and kind of style vector."""
    codec = bench.codec
    out: dict[str, Any] = {}
    start = time.time()
    for source, groove in sources.items():
        chosen = {r.chart: r for r in bench.renderings if (r.style, r.groove) == (source, groove)}
        songs = test_songs.encode(codec, source, [chosen[chart].piece for chart in bench.charts])
        frames = [song.piece for song in songs]
        numbers = controls.others([source] * len(songs), np.random.default_rng(0))
        another = [controls.as_long(songs[i].z, len(song.z)) for i, song in zip(numbers, songs, strict=True)]
        print(f"encoded {source} after {time.time() - start:.0f} s", file=sys.stderr)
        for target in bench.styles:
            if target == source:
                continue
            rows = out[f"{source} to {target}"] = {}
            rows["source itself"] = bench.measure(frames, [piece.notes[:, :4] for piece in frames], target)
            rows["amount 0"] = bench.measure(frames, test_songs.decode(codec, songs, [s.z for s in songs]), target)
            for kind in ("other charts", "released"):
                ends = bench.ends(source, target, kind, called)
                for amount, (name, harmony) in product(AMOUNTS if ends else (), GUIDANCE.items()):
                    ways = [amount * (there - here) for here, there in ends]
                    moves = {
                        "": [song.z + way for song, way in zip(songs, ways, strict=True)],
                        ", another chart": [z + way for z, way in zip(another, ways, strict=True)],
                        ", target mean": [end[1].expand(len(s.z), -1) for s, end in zip(songs, ends, strict=True)],
                    }
                    found = {
                        of: bench.scores(frames, test_songs.decode(codec, songs, z, harmony), target)
                        for of, z in moves.items()
                    }
                    for of, (scores, probabilities) in found.items():
                        row = {**figures(scores), "moved": list(measures.interval(probabilities))}
                        rows[f"{kind}, {amount:g}{name}{of}"] = row
                        if of:
                            row["beyond"] = beyond(found[""][0], scores)
            groove_ = sources.get(target) or min(r.groove for r in bench.renderings if r.style == target)
            own = {r.chart: r for r in bench.renderings if (r.style, r.groove) == (target, groove_)}
            real = [own[chart].piece for chart in bench.charts]
            rows["ceiling: another groove"] = bench.measure(
                real, [piece.notes[:, :4] for piece in real], target, groove_
            )
            print(f"{source} to {target} after {time.time() - start:.0f} s", file=sys.stderr)
    return out


def markdown(result: Mapping[str, Any]) -> str:
    """The Markdown table, one row per direction and translation."""

    def cell(x: Sequence[float]) -> str:
        return f"{x[0]:.2f} [{x[1]:.2f}, {x[2]:.2f}]"

    head = ["", *(f"{name}: lead, p" for name in MEASURES), "harmony: own less others", "moved"]
    head += [f"{name}: the blend's lead beyond this" for name in MEASURES]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for direction, rows in result.items():
        for name, row in rows.items():
            cells = [f"{cell(row[m]['lead'])}, {row[m]['p']:.1g}" for m in MEASURES]
            cells += [cell(row["harmony"]["difference"]), cell(row["moved"])]
            cells += [cell(row["beyond"][m]) if "beyond" in row else "" for m in MEASURES]
            lines.append(f"| {direction}: {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="music")
    parser.add_argument("--charts", type=int, default=1000, help="number of charts at most")
    parser.add_argument(
        "--source", nargs="+", default=["hymn=hymn", "rock=8beat", "jazz=swing"], metavar="STYLE=GROOVE"
    )
    parser.add_argument("--called", nargs="+", default=["hymn=classical"], metavar="FOLDER=STYLE")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all figures here")
    args = parser.parse_args()
    sources, called = (dict(one.split("=", 1) for one in x) for x in (args.source, args.called))
    codec = codecs.load(args.model)
    bench = Bench(codec, read(codec, args.folder, args.charts), args.folds, args.seed)
    print(f"{len(bench.renderings)} renderings of {len(bench.charts)} charts", file=sys.stderr)
    result = run(bench, sources, called)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))


if __name__ == "__main__":
    main()
