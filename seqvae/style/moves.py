"""Pieces encoded, moved in the latent space and decoded together.

Scope: the map and the goal of a blend, the segments that move, the parts that stay, the harmony of the original, and
the choice between an arrangement and a plain decode. Out of scope: the arithmetic (style/translation.py), the search
for an attribute's value (style/attribute_vector.py), arranging (style/arranger.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.nn import batches
from seqvae.nn.sampling import Sampling
from seqvae.nn.segments import conditions
from seqvae.protocols import Adapter, Guidance
from seqvae.style import arranger, attribute_vector, translation
from seqvae.style.arranger import Goal, Stretch, TokenGenerator
from seqvae.style.attribute_vector import AttributeGoal
from seqvae.style.gaussian import Style

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]


class Mover(TokenGenerator, Protocol):
    """The part of a codec that moves pieces."""

    chunks: int
    styles: dict[str, Style]

    def style(self, name: str | Style) -> Style:
        """As `Codec.style`."""

    def segments(self, piece: Any) -> list[list[Ints]]:
        """As `Codec.segments`."""

    def means(self, split: Sequence[Sequence[list[Ints]]], refined: bool = True) -> list[Tensor]:
        """As `Codec.means`."""


@dataclass(frozen=True, eq=False)
class ChromaGuide:
    """The guide of decoded notes toward a harmony; see `Adapter.chroma_guidance`."""

    adapter: Adapter
    harmony: Floats
    """`(N, B, 12)`: chroma of every decoded row."""
    strength: float

    def __call__(self, rows: slice) -> list[Guidance]:
        """The guidance of some rows; none for a kind without pitch."""
        guidance = self.adapter.chroma_guidance(self.harmony[rows], self.strength)
        return [] if guidance is None else [guidance]


@dataclass(frozen=True, eq=False)
class MovedPiece:
    """A piece whose S segments with content have moved."""

    stretch: Stretch
    """The piece, and the numbers of these segments."""
    segments: Sequence[list[Ints]]
    """All segments of the piece."""
    z: Tensor
    """`(S, D)`: latent vectors before the move."""
    moved: Tensor
    """`(S, D)`: latent vectors after it."""

    @cached_property
    def changed(self) -> bool:
        """Whether the move changes the piece; if not, the result is its reconstruction, without guidance or band."""
        return not torch.equal(self.z, self.moved)

    def chunks(self, decoded: Sequence[Ints]) -> list[Ints]:
        """All chunks of the piece, with the `decoded` S * C ones in place of those that have content."""
        new, full = iter(decoded), set(self.stretch.segments)
        out: list[Ints] = []
        for number, segment in enumerate(self.segments):
            inside = number in full
            for chunk in segment:
                made = next(new) if inside else chunk
                out.append(made if len(chunk) > 1 else chunk)
        return out


def translate(
    codec: Mover,
    target: str | Style | Mapping[str, float],
    source: str | Style | None,
    amount: float | None,
    method: translation.Method,
) -> Callable[[Tensor], Tensor]:
    """As `Codec.translate`."""
    if isinstance(target, Mapping):
        far = 1.0 if amount is None else amount
        return translation.compose(
            [translate(codec, one, source, far * weight, method) for one, weight in target.items()]
        )
    amount = 0.5 if amount is None else amount
    end = codec.style(target)
    start = _start(codec, end, source)
    if start is None:
        return lambda z: translation.blend(z, z.mean(0), end, amount, method)
    amount *= attribute_vector.unit(start, end)
    return translation.translate(start, end, amount, method)  # computed once for all pieces


def goal(
    codec: Mover, target: str | Style | Mapping[str, float], amount: float | None, source: str | Style | None
) -> Goal | AttributeGoal | None:
    """As `Codec.goal`."""
    if not isinstance(target, Mapping):
        amount, end = 0.5 if amount is None else amount, codec.style(target)
        found = attribute_vector.goal(_start(codec, end, source), end, amount)
        parts = [(end.ensemble, amount)]
    else:
        far, found = 1.0 if amount is None else amount, None
        parts = [(codec.style(name).ensemble, far * weight) for name, weight in target.items()]
    return found or (arranger.goal(parts) if codec.model.band else None)


def _start(codec: Mover, target: Style, source: str | Style | None) -> Style | None:
    """The style that a move starts from: by default the other end of the target's attribute, if it has one."""
    return attribute_vector.partner(codec.styles, target) if source is None else codec.style(source)


def encode_and_move(
    codec: Mover,
    pieces: Sequence[Any],
    move: Callable[[Tensor], Tensor],
    segments: Sequence[Sequence[list[Ints]]] | None = None,
    latents: Sequence[Tensor] | None = None,
) -> list[MovedPiece]:
    """The pieces with their segments and latent vectors before and after a move; known ones can be given."""
    split = segments or [codec.segments(piece) for piece in pieces]
    full = [[i for i, segment in enumerate(one) if max(map(len, segment)) > 1] for one in split]
    if latents is None:
        parts = codec.means([[one[i] for i in rows] for one, rows in zip(split, full, strict=True)])
    else:
        parts = [z[rows] for z, rows in zip(latents, full, strict=True)]
    out = []
    for piece, one, rows, z in zip(pieces, split, full, parts, strict=True):
        known = conditions(one)
        known = batches.filled(codec.adapter.limits(piece) if known is None else known, len(one) * codec.chunks)
        out.append(MovedPiece(Stretch(piece, rows, codec.chunks, known), one, z, move(z) if len(z) else z))
    return out


def decode(
    codec: Mover,
    pieces: Sequence[MovedPiece],
    sampling: Sampling,
    keep: Sequence[str | int] | None = (),
    chroma_guidance: float = 0.0,
    goal: Goal | AttributeGoal | None = None,
) -> list[Any]:
    """Moved pieces as the user's objects, in their order: arranged one by one with a `goal`, else decoded together.

    With the goal of an attribute, each is decoded until the attribute has its value (`attribute_vector.reach`), and
    where `keep` is None, the attribute says which parts stay. `keep`, `chroma_guidance` and `goal` are as in
    `Codec.transform`.
    """
    kept = [codec.adapter.parts(_parts(keep, one, goal), one.changed) for one in pieces]
    made: dict[int, Any] = {}
    row = sampling.first_row
    for i, one in enumerate(pieces):
        if goal is not None and one.changed:
            numbered = replace(sampling, first_row=row)
            if isinstance(goal, AttributeGoal):
                made[i] = _reached(codec, one, goal, numbered, chroma_guidance, kept[i])
            else:
                made[i] = arranger.arrange(
                    codec, one.stretch, one.z, one.moved, goal, numbered, chroma_guidance, kept[i]
                )
        row += len(one.stretch.bars)
    rest = [i for i in range(len(pieces)) if i not in made]
    chunks = _together(codec, [pieces[i] for i in rest], sampling, chroma_guidance)
    for i, mine in zip(rest, chunks, strict=True):
        made[i] = _assembled(codec, pieces[i], mine, kept[i])
    return [made[i] for i in range(len(pieces))]


def _parts(
    keep: Sequence[str | int] | None, one: MovedPiece, goal: Goal | AttributeGoal | None
) -> Sequence[str | int] | None:
    """The parts of a piece that stay, as in `keep`."""
    if keep is not None or not one.changed or not isinstance(goal, AttributeGoal):
        return keep
    return goal.parts(one.stretch.piece)


def _assembled(codec: Mover, one: MovedPiece, chunks: list[Ints], kept: frozenset[int]) -> Any:
    """A piece from its decoded chunks without padding."""
    piece = one.stretch.piece
    mine = chunks[: batches.unpadded(codec.adapter.limits(piece), len(chunks))]
    return codec.adapter.assemble(mine, piece, kept, not one.changed)


def _reached(
    codec: Mover, one: MovedPiece, goal: AttributeGoal, sampling: Sampling, chroma_guidance: float,
    kept: frozenset[int],
) -> Any:  # fmt: skip
    """A piece moved in its own direction as far as the goal needs."""
    way, piece = (one.moved - one.z) / goal.amount, one.stretch.piece
    strength = 0.0 if goal.attribute.stays == "nothing" else chroma_guidance

    def decoded(share: float) -> Any:
        there = replace(one, moved=one.z + share * way)
        [chunks] = _together(codec, [there], sampling, strength)
        return _assembled(codec, there, chunks, kept)

    def measure(made: Any) -> tuple[float, bool]:
        moved = attribute_vector.written(codec.adapter, made, piece)
        return goal.attribute.value(moved), goal.crowded(moved, piece)

    return attribute_vector.reach(goal, goal.attribute.value(piece), decoded, measure)


def _together(
    codec: Mover, pieces: Sequence[MovedPiece], sampling: Sampling, chroma_guidance: float
) -> list[list[Ints]]:
    """The chunks of each piece, decoded in one call."""
    new: list[Ints] = []
    if any(one.stretch.segments for one in pieces):
        harmony = None
        if chroma_guidance and any(one.changed for one in pieces):
            harmony = batches.joined([one.stretch.harmony(codec.adapter, one.changed) for one in pieces])
        there = [codec.model.after_move(one.z, one.moved, one.stretch.known) for one in pieces]
        z, given = torch.cat([rows for rows, _ in there]), batches.joined([known for _, known in there])
        new = codec.generate_tokens(z, given, sampling, harmony, chroma_guidance)
    sizes = [len(one.stretch.bars) for one in pieces]
    starts = np.cumsum([0, *sizes])
    return [one.chunks(new[at : at + size]) for one, at, size in zip(pieces, starts, sizes, strict=False)]
