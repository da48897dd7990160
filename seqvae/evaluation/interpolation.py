"""Smoothness of the path between two pieces: along it, the distance from each end should only grow.

Scope: the protocol, and three distances: latent, notes, chroma. Out of scope: the choice of songs, and the construction
of paths (style/interpolation.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seqvae.codec import Codec
from seqvae.evaluation.test_songs import Song
from seqvae.music import note_metrics as measures
from seqvae.music.piece import MAX_CHUNK_STEPS
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.nn.sampling import Sampling
from seqvae.style import interpolation as interpolate

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
Report = Callable[[str], None]
STEPS = 7
DISTANCES = ("latent", "notes", "chroma")


def paths(codec: Codec, songs: Sequence[Song], pairs: int, rng: np.random.Generator, report: Report) -> dict[str, Any]:
    """Measure paths of STEPS segments between the first segments of two songs, from `Codec.walk` and from slerp.

    `walk` is `Codec.walk`, which chooses its steps by these distances on the arc; `slerp` has equal steps on the arc.
    Every point is decoded greedily and encoded again without refinement. Distances are from the decoded ends: `latent`
    between posterior means, `notes` 1 - note F1, `chroma` 1 - cosine. monotone: share of pairs where the distance from
    one end never falls and that from the other never rises along the path. rising_steps: share of single steps with
    this property. largest_step: the largest step of a distance over the distance of the ends (1 / 6 is even, 1 a jump).
    """
    full = [song for song in songs if len(song.piece.notes)]
    chosen = [rng.choice(len(full), 2, replace=False) for _ in range(pairs if len(full) > 1 else 0)]
    out: dict[str, Any] = {"pairs": len(chosen), "steps": STEPS}
    if not chosen:
        return out
    a, b = (torch.stack([full[pair[end]].z[0] for pair in chosen]) for end in (0, 1))
    walks = [codec.walk(x[None], y[None], STEPS)[1] for x, y in zip(a, b, strict=True)]
    z = interpolate.path(a, b, STEPS, "slerp", codec.model.shared)
    z = z.transpose(0, 1).flatten(0, 1)  # all steps of a pair in a row
    # bars of full length for both ends, because they may have different metres
    limits = np.full(len(z) * codec.chunks, MAX_CHUNK_STEPS, np.int32)
    chunks = codec.generate_tokens(z, limits, Sampling())
    arcs = [chunks[i : i + codec.chunks] for i in range(0, len(chunks), codec.chunks)]
    for kind, segments in {"walk": [one for way in walks for one, _ in way], "slerp": arcs}.items():
        latents = codec.posteriors(segments).mean.double().numpy()
        notes = [_notes(codec, segment) for segment in segments]
        rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in DISTANCES}
        for at in range(0, len(segments), STEPS):
            there = distances(latents[at : at + STEPS], notes[at : at + STEPS], 0)
            back = distances(latents[at : at + STEPS], notes[at : at + STEPS], -1)
            for name in DISTANCES:
                rows[name].append(walk(there[name], back[name]))
        out[kind] = {
            name: {
                figure: list(measures.interval(column[~np.isnan(column)]))
                for figure, column in zip(("monotone", "rising_steps", "largest_step"), np.array(x).T, strict=True)
            }
            for name, x in rows.items()
        }
        shares = ", ".join(f"{name} {out[kind][name]['monotone'][0]:.2f}" for name in DISTANCES)
        report(f"interpolation ({kind}): monotone for {shares} of {len(chosen)} pairs")
    return out


def _notes(codec: Codec, segment: Sequence[Ints]) -> Ints:
    assert isinstance(codec.tokenizer, MidiTokenizer)
    return codec.tokenizer.decode_notes(segment, np.arange(codec.chunks + 1, dtype=np.int32) * MAX_CHUNK_STEPS)


def distances(latents: Floats, notes: Sequence[Ints], end: int) -> dict[str, Floats]:
    """Distances of the points of a path, `latents (STEPS, D)` and their notes, from the point `end`: `(STEPS,)`."""
    by_notes, by_chroma = np.array([measures.distances(notes[end], one) for one in notes]).T
    return {"latent": np.linalg.norm(latents - latents[end], axis=1), "notes": by_notes, "chroma": by_chroma}


def walk(there: Floats, back: Floats) -> tuple[float, float, float]:
    """(monotone, share of rising steps, largest step) of the distances from the first and the last end, `(STEPS,)`.

    A fall below 1e-9 is rounding. The largest step is nan if both ends are equal.
    """
    steps = np.concatenate([np.diff(there), -np.diff(back)])
    rises = steps >= -1e-9
    whole = there[-1] - there[0]
    largest = max(abs(y - x) for x, y in pairwise(there)) / whole if whole > 0 else float("nan")
    return float(rises.all()), float(rises.mean()), float(largest)
