"""Attributes that divide a folder of music: with and without drums, minor and major, dense and sparse.

Scope: measuring a piece, and choosing the pieces with a low and a high value. Out of scope: models, files, and use of
the difference of the two sets (Larsen et al. 2016 add it to a latent vector: "glasses").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from seqvae.errors import StyleError
from seqvae.music import key as tonality
from seqvae.music.notes import DRUMS, ONSET, PROGRAM, STEPS_PER_BEAT
from seqvae.music.piece import Piece

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Attribute:
    """A number measured of a piece, with names for pieces with a low and with a high value."""

    value: Callable[[Piece], float]
    little: str
    much: str
    between: tuple[float, float] | None
    """Low is at most the first, high at least the second; None for the lowest and highest third of a folder."""
    stays: Literal["melody", "instruments", "nothing"] = "melody"
    """The part of a song that a move leaves alone by default; with nothing, the harmony changes too."""


def drums(piece: Piece) -> float:
    """Share of bars with drums among bars with notes."""
    home = np.searchsorted(piece.bounds, piece.notes[:, ONSET], side="right")
    return len(np.unique(home[piece.notes[:, PROGRAM] == DRUMS])) / max(1, len(np.unique(home)))


def mode(piece: Piece) -> float:
    """As `tonality.minority`: above 0 in minor."""
    return tonality.minority(piece.notes)


def density(piece: Piece) -> float:
    """Notes per beat, with drums."""
    return len(piece.notes) / max(1.0, float(piece.bounds[-1] - piece.bounds[0]) / STEPS_PER_BEAT)


ATTRIBUTES = {
    "drums": Attribute(drums, "without-drums", "with-drums", (0.0, 0.5), "instruments"),
    "mode": Attribute(mode, "major", "minor", (-0.5, 0.5), "nothing"),
    "density": Attribute(density, "sparse", "dense", None),
}


def divide(attribute: Attribute, pieces: Sequence[Piece]) -> dict[str, list[Piece]]:
    """The pieces with a low and with a high value of an attribute; values in between are in neither.

    Raises StyleError if one of the two would be empty.
    """
    values = np.array([attribute.value(piece) for piece in pieces])
    low, high = attribute.between or np.quantile(values if len(values) else [0.0], [1 / 3, 2 / 3]).tolist()
    little, much = values <= low, (values >= high) & (values > low)
    for name, chosen in ((attribute.little, little), (attribute.much, much)):
        if not chosen.any():
            raise StyleError(f"none of {len(pieces)} songs is {name}; name a folder with both kinds")
    return {
        attribute.little: [piece for piece, chosen in zip(pieces, little, strict=True) if chosen],
        attribute.much: [piece for piece, chosen in zip(pieces, much, strict=True) if chosen],
    }
