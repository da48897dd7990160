"""Similarity of sampled music to real music, and copies of training songs.

Scope: the protocol: the number of samples per style, and the sets that they are compared with. Out of scope: the
figures (music/note_statistics.py, evaluation/statistics.py, evaluation/memorization.py), and the choice of test songs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqvae.codec import Codec
from seqvae.errors import ReadError
from seqvae.evaluation import memorization, statistics
from seqvae.music import library, note_statistics
from seqvae.music import note_metrics as measures
from seqvae.music.piece import MAX_CHUNK_STEPS, Piece, read

Floats = NDArray[np.float64]
Report = Callable[[str], None]
TEMPERATURE = 0.9  # as in `Codec.sample`
FRECHET_DRAWS = 30
WITHIN = ("pitch-class entropy, 1 bar", "pitch-class entropy, 4 bars", "grooving similarity")


def samples(
    codec: Codec,
    test_songs: Mapping[str, Sequence[Piece]],
    real: Mapping[str, Sequence[Piece]],
    trained: Sequence[Path],
    count: int,
    segments: int,
    seed: int,
    report: Report,
) -> dict[str, Any]:
    """Compare samples from the styles' Gaussians with held-out songs, in the same shares of styles.

    `test_songs` and `real` are stretches of test and of training songs, of at most `segments` segments each; `trained`
    are the files of all training songs. The floor of a comparison is an equal number of real training songs.
    """
    shares = shared(count, {style: len(pieces) for style, pieces in test_songs.items()})
    drawn = [piece for style, n in shares.items() for piece in draw(codec, style, n, segments, seed)]
    others = [piece for pieces in test_songs.values() for piece in pieces]
    floor = [piece for style, n in shares.items() for piece in real[style][:n]]
    report(f"{len(drawn)} samples drawn, compared with {len(others)} held-out songs")
    out: dict[str, Any] = {
        "samples": len(drawn), "test_songs": len(others), "training": len(floor), "shares": shares,
        "temperature": TEMPERATURE, "silent": float(np.mean([not len(piece.notes) for piece in drawn])),
    }  # fmt: skip
    out["overlapped_area"] = _overlaps(drawn, floor, others, seed)
    report(f"overlapped area {out['overlapped_area']['mean']['samples'][0]:.3f}")
    sets = {"samples": drawn, "test_songs": others}
    for name, column in zip(WITHIN, range(len(WITHIN)), strict=True):
        values = {of: np.array([within(piece)[column] for piece in pieces]) for of, pieces in sets.items()}
        out[name] = {of: list(measures.interval(x[~np.isnan(x)], seed)) for of, x in values.items()}
    out["frechet"] = frechet(_latents(codec, drawn), _latents(codec, others), seed)
    distance = out["frechet"]
    report(f"Fréchet distance {distance['samples'][0]:.1f}, of held-out halves {distance['test_songs'][0]:.1f}")
    out["copying"] = _copying(drawn, others, trained, seed, report)
    return out


def shared(count: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Divide `count` in proportion to `sizes`, by largest remainders."""
    total = max(1, sum(sizes.values()))
    exact = {name: count * size / total for name, size in sizes.items()}
    out = {name: int(x) for name, x in exact.items()}
    for name in sorted(exact, key=lambda name: out[name] - exact[name])[: count - sum(out.values())]:
        out[name] += 1
    return out


def draw(codec: Codec, style: str, count: int, segments: int, seed: int) -> list[Piece]:
    """New pieces of a style; each keeps all its bars, also silent ones."""
    longest = np.array([0, MAX_CHUNK_STEPS], np.int32)
    pieces = []
    for score in codec.sample(count, style, TEMPERATURE, segments, seed) if count else []:
        notes, bounds = np.zeros((0, 5), np.int32), longest
        with contextlib.suppress(ReadError):  # a sample without notes
            found = read(score)
            notes, bounds = found.notes, found.bounds
        bar = int(bounds[1] - bounds[0])  # all bars have one metre
        pieces.append(Piece(notes, np.arange(segments * codec.chunks + 1, dtype=np.int32) * bar, score, style))
    return pieces


def within(piece: Piece) -> tuple[float, float, float]:
    """The figures of WITHIN (Wu and Yang 2020) of a stretch."""
    entropy = note_statistics.pitch_class_entropy
    return (
        entropy(piece.notes, piece.bounds, 1),
        entropy(piece.notes, piece.bounds, 4),
        note_statistics.grooving_similarity(piece.notes, piece.bounds),
    )


def _overlaps(drawn: Sequence[Piece], floor: Sequence[Piece], others: Sequence[Piece], seed: int) -> dict[str, Any]:
    """Overlapped area of samples and of training songs with held-out songs, for eight statistics and their mean."""
    x, y, z = (
        np.array([note_statistics.statistics(piece.notes, piece.bounds) for piece in pieces])
        for pieces in (drawn, floor, others)
    )
    (of_samples, mean), (of_training, floor_mean) = (
        statistics.overlaps(x, z, seed),
        statistics.overlaps(y, z, seed),
    )
    out = {
        name: {"samples": list(a), "training": list(b), "means": [float(np.nanmean(one[:, k])) for one in (x, y, z)]}
        for k, (name, a, b) in enumerate(zip(note_statistics.STATISTICS, of_samples, of_training, strict=True))
    }
    out["mean"] = {"samples": list(mean), "training": list(floor_mean)}
    return out


def _latents(codec: Codec, pieces: Sequence[Piece]) -> list[Floats]:
    """Posterior means `(S, D)` of each piece from the encoder, without refinement."""
    split = [codec.segments(piece) for piece in pieces]
    means = codec.posteriors([segment for one in split for segment in one]).mean.double().numpy()
    return np.split(means, np.cumsum([len(one) for one in split])[:-1])


def frechet(drawn: Sequence[Floats], others: Sequence[Floats], seed: int) -> dict[str, Any]:
    """Fréchet distance of sampled segments to held-out ones, and of held-out ones to other held-out ones.

    The distance depends on the number of rows, so all sets are random halves of equal size, drawn FRECHET_DRAWS times:
    samples against one half of the held-out pieces, and the other half against the first. The intervals are 1.96
    standard deviations over the draws. The ratio is that of the means.
    """
    rng = np.random.default_rng(seed)
    size = min(len(drawn), len(others)) // 2
    if not size:
        return {"samples": [float("nan")] * 3, "test_songs": [float("nan")] * 3, "pieces": 0, "ratio": float("nan")}
    far, near = [], []
    for _ in range(FRECHET_DRAWS):
        order = rng.permutation(len(others))
        mine = np.concatenate([drawn[i] for i in rng.permutation(len(drawn))[:size]])
        one, two = (np.concatenate([others[i] for i in half]) for half in (order[:size], order[size : 2 * size]))
        far.append(statistics.frechet_distance(mine, one))
        near.append(statistics.frechet_distance(two, one))
    figures = [list(statistics.spread(float(np.mean(x)), np.array(x), 0.0)) for x in (far, near)]
    ratio = figures[0][0] / figures[1][0] if figures[1][0] > 0 else float("nan")
    return {"samples": figures[0], "test_songs": figures[1], "pieces": size, "ratio": ratio}


def _copying(
    drawn: Sequence[Piece], others: Sequence[Piece], trained: Sequence[Path], seed: int, report: Report
) -> dict[str, Any]:
    """Notes in the longest run that each sample shares with any training song, and the same for held-out songs.

    beyond: share of samples whose run is longer than in 95 % of the held-out songs; 5 % is the rate of real music.
    """
    report(f"reading {len(trained)} training songs to look for copies")
    found = library.read_all(trained, cache=library.default_cache())
    known = memorization.runs((piece.notes for _, piece in found if isinstance(piece, Piece)), seed)
    runs = {
        name: np.array(memorization.longest_shared([piece.notes for piece in pieces], known), float)
        for name, pieces in (("samples", drawn), ("test_songs", others))
    }
    usual = float(np.percentile(runs["test_songs"], 95))
    out: dict[str, Any] = {name: list(measures.interval(x, seed)) for name, x in runs.items()}
    out |= {f"{name}_longest": int(x.max(initial=0)) for name, x in runs.items()}
    out |= {
        "test_songs_95_percent": usual,
        "beyond": list(measures.interval((runs["samples"] > usual).astype(float), seed)),
    }
    out["training_songs"] = len(known.ends)
    report(
        f"longest shared run: {out['samples'][0]:.1f} notes of samples, {out['test_songs'][0]:.1f} of held-out songs"
    )
    return out
