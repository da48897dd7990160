r"""Comparison of style translation methods at equal chroma similarity, and the effects of attribute vectors.

    python benchmarks/arithmetic.py methods --data DIR [--songs 8] [--pairs classical:rock rock:jazz] [--harmony 0]
    python benchmarks/arithmetic.py attributes --data DIR [--songs 16] [--only mode --orthogonal-to drums density]

Both print Markdown tables. The translated songs are held out, from the half `choose`. Intervals are 95 % bootstrap
intervals over songs. DIR has one folder per style. Decoding is guided by the chroma of the original as in `seqvae
blend`; --harmony 0 switches the guidance off.

`methods`: every method of `style.translation`, and directions S^-p d, with d the difference of the style means and S
the mean of both covariances: whitened for p = 1/2, Fisher's discriminant for p = 1. Their length is such that amount 1
moves the source mean to the target mean's coordinate on Fisher's axis. `mean, own` starts from the song's own mean.
Controls: a random vector of the norm of d, drawn from the covariance of the latents; the same translation of another
song's latents; the target mean alone; the programs swapped without the model. The second table interpolates each
method's sweep over amounts: the probability of the target at args values of chroma similarity.

`attributes`: vectors as `seqvae style fit --attribute` fits them on 16 bars of training songs, and their effect on 8
bars of songs of the half `final` as `seqvae style effect --attribute` measures it, in both directions; on request
orthogonal to the vectors of other attributes.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.cli import inputs as kinds
from seqvae.codec import CHROMA_GUIDANCE, Codec
from seqvae.data.dataset import half_of
from seqvae.evaluation import attribute_effect, controls, style_effect, test_songs
from seqvae.evaluation import blend as evaluate_blend
from seqvae.evaluation import text_metrics as text
from seqvae.evaluation.statistics import Figure, with_interval
from seqvae.evaluation.style_classifier import StyleClassifier
from seqvae.music import attributes, titles
from seqvae.music import library as collection
from seqvae.music import note_metrics as measures
from seqvae.music.piece import Piece
from seqvae.style import attribute_vector
from seqvae.style.gaussian import Style
from seqvae.style.translation import Method, blend, orthogonal, transport, vector

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Move = Callable[[Tensor, float], Tensor]
AMOUNTS = (0.25, 0.5, 0.75, 1.0, 1.5)
CHROMA = (0.95, 0.9, 0.8, 0.7, 0.6)
SEGMENTS = 4  # segments of each song
CLASSIFIER_SONGS, FIT_SONGS, FIT_BARS = 150, 240, 16
NAMES = ("classifier", "chroma", "groove")


def cell(x: Sequence[float]) -> str:
    """A figure and its interval."""
    return "-" if np.isnan(x[0]) else f"{x[0]:.2f} [{x[1]:.2f}, {x[2]:.2f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table."""
    print(f"\n| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


# --- methods ----------------------------------------------------------------------------------------------------------


def along_axis(source: Style, target: Style, power: float) -> Tensor:
    """S^-power (mean_t - mean_s) `(D,)`, scaled so that amount 1 goes from 0 to 1 on Fisher's axis."""
    pooled = (source.covariance + target.covariance).double() / 2
    values, vectors = torch.linalg.eigh(pooled)
    values = values.clamp(min=1e-6 * float(values.max()))
    across = vectors.T @ vector(source, target).double()
    way = across * values**-power
    axis = across / values
    turned: Tensor = vectors @ way * (axis @ across) / (axis @ way)
    return turned.float()


def moves(source: Style, target: Style, styles: Sequence[Style], generator: torch.Generator) -> dict[str, Move]:
    """Translations by method."""
    difference = vector(source, target)
    random = controls.random_vectors(styles, [float(difference.norm())], generator)[0]

    def by(method: Method) -> Move:
        # the expensive part of a transport does not depend on the amount
        if method == "transport":
            carried = transport(source, target)
            return lambda z, amount: (1 - amount) * z + amount * carried(z)
        return lambda z, amount: blend(z, source, target, amount, method)

    def along(way: Tensor) -> Move:
        return lambda z, amount: z + amount * way

    return {
        **{method: by(method) for method in get_args(Method)},
        "whitened": along(along_axis(source, target, 0.5)),
        "Fisher's axis": along(along_axis(source, target, 1.0)),
        "mean, own": lambda z, amount: z + amount * (target.mean - z.mean(0)),
        "random vector": along(random),
    }


def methods(codec: Codec, data: Path, songs: int, pairs: Sequence[str], harmony: float, seed: int) -> None:
    """The tables of `methods`."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    every = [one for name, one in codec.styles.items() if name != "all"]
    moved_pairs = [tuple(pair.split(":")) for pair in pairs]
    names = sorted({name for pair in moved_pairs for name in pair})
    chunks = SEGMENTS * codec.chunks
    found = test_songs.gather(
        data, names, train=CLASSIFIER_SONGS, test=songs, train_chunks=chunks, test_chunks=chunks, rng=rng, half="choose"
    )
    classifier = StyleClassifier(
        [(name, piece) for name in names for piece in found.train[name]], codec.chunks, True, seed
    )
    rankings = {name: measures.program_ranking([piece.notes for piece in found.train[name]]) for name in names}
    encoded = {
        name: test_songs.encode(codec, name, found.test[name][:songs]) for name in {pair[0] for pair in moved_pairs}
    }
    rows: dict[tuple[str, float], list[list[float]]] = {}

    def measure(key: tuple[str, float], mine: Sequence[test_songs.Song], target: str, notes: Sequence[Ints]) -> None:
        for song, one in zip(mine, notes, strict=True):
            kept = evaluate_blend.kept(song.piece.notes[:, :4], one, song.piece.bounds)
            probability = classifier.probability(one, song.piece.bounds)[target]
            rows.setdefault(key, []).append([probability, kept["chroma"], kept["groove"]])

    for source, target in moved_pairs:
        mine = encoded[source]
        numbers = controls.others([source] * len(mine), rng)
        another = [controls.as_long(mine[i].z, len(song.z)) for i, song in zip(numbers, mine, strict=True)]
        for name, move in moves(codec.styles[source], codec.styles[target], every, generator).items():
            for amount in AMOUNTS:
                z = [move(song.z, amount) for song in mine]
                measure((name, amount), mine, target, test_songs.decode(codec, mine, z, harmony))
                if name in (*get_args(Method), "mean, own"):
                    z = [move(x, amount) for x in another]
                    measure((f"{name}, another song", amount), mine, target, test_songs.decode(codec, mine, z, harmony))
        z = [codec.styles[target].mean.expand(len(song.z), -1) for song in mine]
        measure(("target mean alone", 1.0), mine, target, test_songs.decode(codec, mine, z, harmony))
        measure(("unmoved", 0.0), mine, target, test_songs.decode(codec, mine, [song.z for song in mine], harmony))
        swapped = [measures.swap_programs(song.piece.notes[:, :4], rankings[target]) for song in mine]
        measure(("programs swapped", 0.0), mine, target, swapped)
    figures = {key: np.array(x) for key, x in rows.items()}
    print(f"{', '.join(pairs)}: {len(figures['unmoved', 0.0])} moves of {sum(map(len, encoded.values()))} songs, "
          f"harmony {harmony:g}")  # fmt: skip
    table(
        ["move", "amount", "probability of the target", "chroma kept", "groove kept"],
        [[name, f"{amount:g}", *(cell(measures.interval(x[~np.isnan(x)])) for x in values.T)]
         for (name, amount), values in figures.items()],
    )  # fmt: skip
    swept = [name for name, amount in figures if amount == AMOUNTS[0] and "another song" not in name]
    still = figures["unmoved", 0.0]
    lines = []
    for name in swept:
        sweep = np.stack([still, *(figures[name, amount] for amount in AMOUNTS)], 1)  # (moves, amounts, figures)
        sweep = sweep[~np.isnan(sweep).any((1, 2))]
        lines.append([name, *(cell(_at_chroma(sweep, chroma)) for chroma in CHROMA)])
    table(["probability of the target where", *(f"chroma {x:g} is kept" for x in CHROMA)], lines)


def _at_chroma(sweep: Floats, chroma: float) -> Figure:
    """Probability where a sweep `(N, amounts, figures)` first falls to `chroma`, with its interval over songs."""

    def at(means: Floats) -> float:
        return text.crossing(-means[:, 1], means[:, 0], -chroma)

    rng = np.random.default_rng(0)
    drawn = np.array([at(sweep[rng.integers(len(sweep), size=len(sweep))].mean(0)) for _ in range(500)])
    return with_interval(at(sweep.mean(0)), drawn)


# --- attributes -------------------------------------------------------------------------------------------------------


def reached(codec: Codec, data: Path, songs: int, seed: int, only: Sequence[str], orthogonal_to: Sequence[str]) -> None:
    """The tables of `attributes`."""
    rng = np.random.default_rng(seed)
    paths = collection.find([data])
    order = [paths[i] for i in rng.permutation(len(paths))]
    chosen = [path for path in order if half_of(titles.title(path)) is None][:FIT_SONGS]
    chosen += [path for path in order if half_of(titles.title(path)) == "final"][: 6 * songs]
    found = collection.read_all(chosen, cache=collection.default_cache(), progress=False)
    parts = [test_songs.stretch(piece, FIT_BARS, rng) for _, piece in found if isinstance(piece, Piece)]
    pieces = [part for part in parts if part is not None]
    known = [piece for piece in pieces if not style_effect.is_test_piece(piece)]
    for name in [*orthogonal_to, *(x for x in only if x not in orthogonal_to)]:
        fitted = attribute_vector.fit(codec, name, known)
        if name not in orthogonal_to and orthogonal_to:
            fitted = orthogonal(fitted, [vector(*attribute_vector.pair(codec.styles, x)) for x in orthogonal_to])
        codec.styles.update(fitted)
        rows = []
        for amount in (0.5, 1.0):
            for target, sources in attribute_effect.measure(codec, name, pieces, songs, amount, seed).items():
                for source, x in sources.items():
                    rows.append([f"{source} to {target}", f"{amount:g}", f"{x.before[0]:.2f}", f"{x.wanted:.2f}",
                                 cell(x.after), f"{x.control[0]:.2f}", f"{x.p:.2g}", f"{x.inside:.2f}",
                                 cell(x.kept["notes"]), f"{x.kept_of_another['notes'][0]:.2f}"])  # fmt: skip
        level = fitted[attributes.ATTRIBUTES[name].much].level
        print(f"\n{name}: {len(known)} songs for fitting, {songs} moved; real songs: {level}")
        table(["move", "amount", "before", "wanted", "after", "random vector", "p", "in range", "notes kept",
               "of another song"], rows)  # fmt: skip


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["methods", "attributes"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="music")
    parser.add_argument("--songs", type=int, default=8)
    parser.add_argument("--pairs", nargs="+", default=["classical:rock", "rock:jazz", "jazz:rock"])
    parser.add_argument("--only", nargs="+", default=list(attributes.ATTRIBUTES), choices=list(attributes.ATTRIBUTES))
    parser.add_argument("--orthogonal-to", nargs="+", default=[], choices=list(attributes.ATTRIBUTES))
    parser.add_argument("--harmony", type=float, default=CHROMA_GUIDANCE)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    began = time.perf_counter()
    codec = kinds.load(args.model)
    if args.table == "methods":
        methods(codec, args.data, args.songs, args.pairs, args.harmony, args.seed)
    else:
        reached(codec, args.data, args.songs, args.seed, args.only, args.orthogonal_to)
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
