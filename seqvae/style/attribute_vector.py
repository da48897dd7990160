"""Attribute vectors: songs moved until an attribute, such as their density, has the value of an amount.

Scope: fitting the two styles of an attribute, the value that a move aims at, and the search for the multiple of the
vector that reaches it. Out of scope: the attributes themselves (music/attributes.py), encoding and decoding
(style/moves.py), measured effects (evaluation/attribute_effect.py).

The vector is the difference of the means of two styles. The decoder responds to it by thresholds, by more in one song
than in another. So a song is decoded at several multiples, its attribute is measured, and the nearest result is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from seqvae.errors import StyleError
from seqvae.protocols import Adapter
from seqvae.style.gaussian import Level, Style

if TYPE_CHECKING:
    from seqvae.music.attributes import Attribute
    from seqvae.music.piece import Piece

T = TypeVar("T")
RANGE = (5, 95)  # percentiles of real songs
TRIES = (1.0, 1.6, 2.56, 0.5, 0.25, 0.75)  # multiples of the first try, while none goes too far
NEAR = 0.1  # error, as a share of the way, that ends the search
UNITS = (0.02, 1.0)  # multiples of the difference of means that one unit of amount may be


class Fitter(Protocol):
    """The part of a codec that fits styles."""

    def fit_styles(self, sets: Mapping[str, tuple[Sequence[Any], str]]) -> dict[str, Style]:
        """As `Codec.fit_styles`."""


def fit(codec: Fitter, name: str, pieces: Sequence[Piece], source: str = "") -> dict[str, Style]:
    """The two styles of an attribute: pieces with a low and with a high value, each with its `Level`.

    Raises StyleError for an unknown attribute, and where one of the two would be empty.
    """
    from seqvae.music.attributes import density, divide

    attribute = _attribute(name)
    divided = divide(attribute, pieces)
    low, high = np.percentile([attribute.value(piece) for piece in pieces], RANGE).tolist()
    crowded = float(np.percentile([density(piece) for piece in pieces], RANGE[1]))
    fitted = codec.fit_styles({side: (mine, f"{source}: {side}") for side, mine in divided.items()})
    means = {side: float(np.mean([attribute.value(piece) for piece in mine])) for side, mine in divided.items()}
    return {side: replace(one, level=Level(name, means[side], low, high, crowded)) for side, one in fitted.items()}


def _attribute(name: str) -> Attribute:
    """An attribute by name; StyleError for an unknown one."""
    from seqvae.music.attributes import ATTRIBUTES

    if name not in ATTRIBUTES:
        raise StyleError(f"no attribute '{name}'; there are: {', '.join(ATTRIBUTES)}")
    return ATTRIBUTES[name]


def pair(styles: Mapping[str, Style], name: str) -> tuple[Style, Style]:
    """The styles with little and with much of an attribute; StyleError if they are not there."""
    found = sorted(
        {one.level.mean: one for one in styles.values() if one.level and one.level.attribute == name}.items()
    )
    if len(found) < 2:
        raise StyleError(f"no vector of '{name}'; fit one with `seqvae style fit songs/ --attribute {name}`")
    return found[0][1], found[-1][1]


def partner(styles: Mapping[str, Style], target: Style) -> Style | None:
    """The style at the other end of the target's attribute; None for a target without one."""
    ends = [one for one in styles.values() if target.level and one is not target and alike(one, target)]
    return ends[0] if ends else None


def alike(source: Style, target: Style) -> bool:
    """Whether two styles are the two ends of one attribute."""
    one, other = source.level, target.level
    return one is not None and other is not None and one.attribute == other.attribute and one.mean != other.mean


def unit(source: Style, target: Style) -> float:
    """The multiple of the difference of means that changes the attribute by its own difference; see `calibrated`."""
    one, other = source.level, target.level
    if one is None or other is None or not alike(source, target):
        return 1.0
    slopes = [effect.slope for effect in target.effects.values() if effect.attribute == other.attribute]
    return calibrated(other.mean - one.mean, slopes[0] if slopes else 0.0)


def calibrated(way: float, slope: float) -> float:
    """The multiple of a vector with a measured slope that changes its attribute by `way`, within UNITS.

    1 for a slope that was not measured (0) or has the wrong sign.
    """
    return float(np.clip(way / slope, *UNITS)) if way * slope > 0 else 1.0


@dataclass(frozen=True)
class AttributeGoal:
    """The value of an attribute that a move aims at."""

    attribute: Attribute
    source: Level
    target: Level
    amount: float

    @property
    def way(self) -> float:
        """The difference of the attribute between the two styles."""
        return self.target.mean - self.source.mean

    def unclipped(self, value: float) -> float:
        """The value at which a song with `value` aims: value + amount (mean_t - value).

        A song beyond the target's mean stays where it is.
        """
        to = value + self.amount * (self.target.mean - value)
        return to if (to - value) * self.amount * self.way > 0 else value

    def wanted(self, value: float) -> float:
        """The same within the range of real songs; a song outside of the range goes no farther out."""
        low, high = min(self.target.low, value), max(self.target.high, value)
        return min(high, max(low, self.unclipped(value)))

    def parts(self, piece: Piece) -> list[str | int]:
        """The parts of a song that stay by default, as in `Codec.blend`."""
        from seqvae.music.notes import PROGRAM, without_drums

        if self.attribute.stays == "instruments":
            return sorted({*without_drums(piece.notes)[:, PROGRAM].tolist()})
        return ["melody"] if self.attribute.stays == "melody" else []

    def inside(self, value: float) -> bool:
        """Whether real songs have such a value."""
        return self.target.low <= value <= self.target.high

    def crowded(self, moved: Piece, piece: Piece) -> bool:
        """Whether a moved song has more notes than real songs and the original; drums often come with too many."""
        from seqvae.music.attributes import density

        return density(moved) > max(self.target.crowded, density(piece))

    def facts(self, piece: Piece, moved: Piece) -> dict[str, Any]:
        """The attribute before and after a move, for --json."""
        values = self.attribute.value(piece), self.attribute.value(moved)
        return {"attribute": self.target.attribute, "before": values[0], "after": values[1]}

    def notice(self, piece: Piece, moved: Piece) -> str | None:
        """One line for the user where the amount was clipped, or the song did not reach it; None else."""
        before, after = self.attribute.value(piece), self.attribute.value(moved)
        name, unclipped, wanted = self.target.attribute, self.unclipped(before), self.wanted(before)
        if unclipped != wanted:
            real = f"the range of real songs, {self.target.low:.2f} to {self.target.high:.2f}"
            return f"{name} {unclipped:.2f} is outside of {real}; moved from {before:.2f} to {after:.2f}"
        if abs(after - wanted) > max(0.25 * abs(wanted - before), NEAR * abs(self.way)):
            return f"{name} moved from {before:.2f} to {after:.2f}; it did not reach {wanted:.2f}"
        return None


def goal(source: Style | None, target: Style, amount: float) -> AttributeGoal | None:
    """The goal of a move between the two ends of an attribute; None for other styles, and for amount 0."""
    if source is None or not amount or not alike(source, target):
        return None
    assert source.level is not None
    assert target.level is not None
    return AttributeGoal(_attribute(target.level.attribute), source.level, target.level, amount)


def written(adapter: Adapter, score: Any, like: Piece) -> Piece:
    """A decoded score as a piece; one without notes has the bars of the original."""
    from seqvae.music.piece import Piece

    if not score.note_num():
        return Piece(like.notes[:0], like.bounds, like.frame)
    piece: Piece = adapter.read(score)
    return piece


def reach(
    goal: AttributeGoal, own: float, decode: Callable[[float], T], measure: Callable[[T], tuple[float, bool]]
) -> T:
    """The decoded song whose attribute is nearest to the goal, among those that are like real songs.

    `own` is the value of the song, `decode` decodes it at a multiple of the vector, `measure` has the value of the
    result, and whether it is crowded: such results, and values outside of the range of real songs, come last. The first
    try is the multiple that a linear decoder would need; then come longer ones until one goes too far, and halves of
    the interval. Where none goes too far, the attribute may have turned back on the way, so shorter ones follow. The
    song stays if no try comes nearer than it is.
    """
    wanted = goal.wanted(own)
    first, short, beyond = (wanted - own) / goal.way, 0.0, None
    best: tuple[tuple[bool, float], T] | None = None
    for multiple in TRIES if wanted != own else ():
        share = multiple * first if beyond is None else (short + beyond) / 2
        made = decode(share)
        reached, crowded = measure(made)
        key = (crowded or not goal.inside(reached), abs(reached - wanted))
        if best is None or key < best[0]:
            best = key, made
        if key <= (False, NEAR * abs(wanted - own)):
            break
        if crowded or (reached - wanted) * (wanted - own) > 0:
            beyond = share
        else:
            short = max(short, share, key=abs)
    stays = (not goal.inside(own), abs(own - wanted))
    return decode(0.0) if best is None or stays <= best[0] else best[1]
