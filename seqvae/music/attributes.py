"""Attributes of music that a folder can be divided by: with and without drums, minor and major, dense and sparse.

Knows: what is measured of a piece, and which pieces have much of it and which little. Refuses to know: models, files,
and what a difference of the two sets is good for (Larsen et al. 2016 add it to a latent vector: "glasses").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqvae.errors import StyleError
from seqvae.music import key as tonality
from seqvae.music.piece import DRUMS, ONSET, PROGRAM, STEPS_PER_BEAT, Piece

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Attribute:
    """A number that pieces have, and the names of those with little and with much of it."""

    value: Callable[[Piece], float]
    little: str
    much: str
    between: tuple[float, float] | None
    """Up to the first is little, from the second on is much; None for the lowest and the highest third of a folder."""


def drums(piece: Piece) -> float:
    """The share of bars with drums among those with notes."""
    home = np.searchsorted(piece.bounds, piece.notes[:, ONSET], side="right")
    return len(np.unique(home[piece.notes[:, PROGRAM] == DRUMS])) / max(1, len(np.unique(home)))


def mode(piece: Piece) -> float:
    """As `tonality.minority`: above 0 in minor."""
    return tonality.minority(piece.notes)


def density(piece: Piece) -> float:
    """Notes a beat, drums included."""
    return len(piece.notes) / max(1.0, float(piece.bounds[-1] - piece.bounds[0]) / STEPS_PER_BEAT)


ATTRIBUTES = {
    "drums": Attribute(drums, "without-drums", "with-drums", (0.0, 0.5)),
    "mode": Attribute(mode, "major", "minor", (-0.5, 0.5)),
    "density": Attribute(density, "sparse", "dense", None),
}


def divide(attribute: Attribute, pieces: Sequence[Piece]) -> dict[str, list[Piece]]:
    """The pieces with little of an attribute and those with much of it; what lies between is in neither.

    Raises StyleError where one of the two would be empty.
    """
    values = np.array([attribute.value(piece) for piece in pieces])
    low, high = attribute.between or np.quantile(values if len(values) else [0.0], [1 / 3, 2 / 3]).tolist()
    little, much = values <= low, (values >= high) & (values > low)
    for name, chosen in ((attribute.little, little), (attribute.much, much)):
        if not chosen.any():
            raise StyleError(f"none of {len(pieces)} pieces is {name}; name a folder with both kinds")
    return {
        attribute.little: [piece for piece, chosen in zip(pieces, little, strict=True) if chosen],
        attribute.much: [piece for piece, chosen in zip(pieces, much, strict=True) if chosen],
    }
