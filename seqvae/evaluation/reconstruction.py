"""Reconstruction of songs: from the searched mean, and from samples of the posterior, whose rate is the KL.

Scope: the figures of a song. Out of scope: the choice of test songs. A searched mean decoded without noise is a point
estimate, and no KL is its rate. The accuracy at a KL is that of samples from the posterior with this KL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seqvae.codec import Codec
from seqvae.evaluation import blend as evaluate_blend
from seqvae.evaluation import controls, test_songs
from seqvae.evaluation.test_songs import Song
from seqvae.music import note_metrics as measures
from seqvae.music.notes import by_bar
from seqvae.music.piece import Piece
from seqvae.nn.posterior import Posterior

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
Report = Callable[[str], None]
PARTS = ("melody", "bass", "drums")
KEPT = ("chroma", "groove", "chroma_fidelity", "groove_fidelity")
FIGURES = (
    "note_f1", "note_f1_sample", "note_f1_encoder", "note_f1_segment", *KEPT, "kl_bits", "kl_bits_encoder",
    "kl_bits_whole", "random_chroma", "random_groove", *PARTS, "full_length",
)  # fmt: skip


def reconstruction(
    codec: Codec, songs: Sequence[Song], full: int, rng: np.random.Generator, report: Report
) -> dict[str, Any]:
    """Figures of songs at amount 0 by style: notes, parts, chroma, groove, KL, and a random pair for reference.

    Every segment is decoded from its own z without context. note_f1 and the parts are measured on the whole stretch
    from the searched mean; note_f1_segment is a mean over segments. note_f1_sample is from one sample per segment of
    the searched posterior, whose KL is kl_bits; note_f1_encoder is from one sample of the encoder's posterior, whose KL
    is kl_bits_encoder. `full` is the number of segments of a whole stretch.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    encoded = _encoded(codec, songs)
    drawn = [Posterior(song.z, song.logvar).sample(generator) for song in songs]
    decoded = [
        test_songs.decode(codec, songs, z)
        for z in ([song.z for song in songs], drawn, [q.sample(generator) for q in encoded])
    ]
    others = controls.others([""] * len(songs), rng)
    rows: dict[str, list[dict[str, float]]] = {}
    dropped = total = 0
    for i, (song, notes, sample, rough) in enumerate(zip(songs, *decoded, strict=True)):
        spelled = test_songs.spell(codec, codec.tokenizer.encode(song.piece), song)
        total += len(song.piece.notes)
        dropped += len(song.piece.notes) - len(spelled)
        random = evaluate_blend.kept(spelled, refit(songs[others[i]].piece, song.piece.bounds), song.piece.bounds)
        row = _figures(spelled, notes, song.piece.bounds, codec.chunks)
        row |= {
            "note_f1_sample": measures.note_f1(spelled, sample),
            "note_f1_encoder": measures.note_f1(spelled, rough),
            "kl_bits": float(song.kl.mean() / np.log(2)),
            "kl_bits_encoder": float(encoded[i].kl_of_segments(codec.model.shared).mean() / np.log(2)),
            "kl_bits_whole": float(song.kl.sum() / np.log(2)),
            "random_chroma": random["chroma"],
            "random_groove": random["groove"],
            "full_length": float(len(song.z) == full),
        }
        rows.setdefault(song.style, []).append({name: row[name] for name in FIGURES})
    out: dict[str, Any] = {"dropped_by_tokenizer": dropped / max(1, total)}
    for style in [*sorted(rows), "all"]:
        chosen = rows[style] if style != "all" else [row for one in rows.values() for row in one]
        columns = {name: np.array([row[name] for row in chosen]) for name in FIGURES}
        out[style] = {name: list(measures.interval(x[~np.isnan(x)])) for name, x in columns.items()}
        means = ", ".join(f"{name} {out[style][name][0]:.3f}" for name in ("note_f1", "note_f1_sample", *PARTS))
        report(f"{style}: {means}")
    return out


def _figures(spelled: Ints, notes: Ints, bounds: Ints, chunks: int) -> dict[str, float]:
    """Figures of decoded notes against those that the tokenizer can spell; segments have `chunks` bars each."""
    kept = evaluate_blend.kept(spelled, notes, bounds)
    parts = measures.part_f1(spelled, notes)
    cuts = bounds[::chunks]
    cuts = cuts if cuts[-1] == bounds[-1] else np.append(cuts, bounds[-1])
    by_segment = zip(by_bar(spelled, cuts), by_bar(notes, cuts), strict=True)
    return {
        "note_f1": measures.note_f1(spelled, notes),
        "note_f1_segment": float(np.mean([measures.note_f1(a, b) for a, b in by_segment if len(a)])),
        **{name: kept[name] for name in KEPT},
        **{name: np.nan if (x := parts[name]) is None else x for name in PARTS},
    }


def _encoded(codec: Codec, songs: Sequence[Song]) -> list[Posterior]:
    """The encoder's posteriors `(S, D)` of each song, without a search."""
    segments = [segment for song in songs for segment in codec.segments(song.piece)]
    found = codec.posteriors(segments)
    sizes = [len(song.z) for song in songs]
    parts = zip(torch.split(found.mean, sizes), torch.split(found.logvar, sizes), strict=True)
    return [Posterior(*part) for part in parts]


def refit(piece: Piece, bounds: Ints) -> Ints:
    """The notes of a piece, bar by bar, inside other bounds; the second song of a random pair."""
    out = []
    for c, notes in enumerate(by_bar(piece.notes, piece.bounds)[: len(bounds) - 1]):
        moved = notes[:, :4].copy()
        moved[:, 0] += bounds[c] - piece.bounds[c]
        out.append(moved[moved[:, 0] < bounds[c + 1]])
    return np.concatenate(out) if out else np.zeros((0, 4), np.int32)
