"""Effect of attribute vectors on held-out songs: the attribute before and after, and content that is kept.

Scope: the slope that sets the length of a vector, moves by it, and the controls. Out of scope: the search for an
attribute's value (style/attribute_vector.py), files, and storage of the figures (style/styles_file.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.codec import CHROMA_GUIDANCE, Codec
from seqvae.errors import StyleError
from seqvae.evaluation import blend as evaluate_blend
from seqvae.evaluation import controls, statistics, style_effect, test_songs
from seqvae.evaluation.test_songs import Song
from seqvae.music import note_metrics as measures
from seqvae.music.attributes import ATTRIBUTES, Attribute, divide
from seqvae.music.piece import Piece
from seqvae.style import attribute_vector
from seqvae.style.attribute_vector import AttributeGoal
from seqvae.style.gaussian import Effect
from seqvae.style.translation import vector

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
FIGURES = ("notes", "chroma", "groove", "melody")
"""Names of the figures of kept content; notes is their F1 by onset, pitch and program."""
SLOPES = (0.25, 0.5, 1.0)
"""Multiples of the difference of means that the slope is fitted on."""


def measure(
    codec: Codec,
    name: str,
    pieces: Sequence[Piece],
    songs: int = style_effect.SONGS,
    amount: float = 1.0,
    seed: int = 0,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[str, Effect]]:
    """The effect of an attribute's vector in both directions, by target and then by source.

    At most `songs` held-out songs of each end are moved, as in `Codec.blend` without parts that stay. First the
    attribute of songs decoded at SLOPES gives `Effect.slope`, which sets the length of the vector. The control is the
    same search along a random vector of equal length; kept content is also that of another song's latents and of the
    target's mean. Raises StyleError if the codec has no vector of the attribute, and for few held-out songs.
    """
    attribute = ATTRIBUTES[name]
    attribute_vector.pair(codec.styles, name)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    parts = {side: style_effect.divided(side, few, songs, rng)[0] for side, few in divide(attribute, pieces).items()}
    effects: dict[str, dict[str, Effect]] = {}
    for source, target in ((attribute.little, attribute.much), (attribute.much, attribute.little)):
        chunks = style_effect.SEGMENTS * codec.chunks
        stretches = [part for piece in parts[source] if (part := test_songs.stretch(piece, chunks, rng)) is not None]
        if len(stretches) < 2:
            raise StyleError(f"{source}: the held-out songs are almost empty; give more songs")
        own = test_songs.encode(codec, source, stretches)
        report(f"{source}: {len(own)} songs encoded")
        effects[target] = {source: _effect(codec, attribute, source, target, amount, own, rng, generator, seed)}
        report(f"{source} to {target}: {style_effect.tell(effects[target][source])}")
    return effects


def _effect(
    codec: Codec, attribute: Attribute, source: str, target: str, amount: float, own: Sequence[Song],
    rng: np.random.Generator, generator: torch.Generator, seed: int,
) -> Effect:  # fmt: skip
    """The effect of the vector between two ends on encoded songs."""
    start, end = codec.style(source), codec.style(target)
    guidance = 0.0 if attribute.stays == "nothing" else CHROMA_GUIDANCE
    before = np.array([attribute.value(song.piece) for song in own])

    def decoded(z: Sequence[Tensor]) -> list[Ints]:
        return test_songs.decode(codec, own, z, guidance)

    goal = attribute_vector.goal(start, end, amount)
    if goal is None:
        raise StyleError(f"{target}: amount {amount:g} of this vector moves nothing; give another amount")
    slope = _slope(attribute, own, before, vector(start, end), decoded)
    way = amount * attribute_vector.calibrated(goal.way, slope) * vector(start, end)
    moved = [_moved(codec, song, way, goal) for song in own]
    after = np.array([attribute.value(piece) for piece in moved])
    random = controls.random_vectors([start, end], [float(way.norm())] * len(own), generator)
    control = [attribute.value(_moved(codec, song, one, goal)) for song, one in zip(own, random, strict=True)]
    numbers = controls.others([source] * len(own), rng)
    another = [controls.as_long(own[i].z, len(song.z)) + way for i, song in zip(numbers, own, strict=True)]
    of_none = [end.mean.expand(len(song.z), -1) for song in own]
    sign = np.sign(goal.way * amount)
    return Effect(
        amount,
        len(own),
        before=measures.interval(before),
        after=measures.interval(after),
        control=measures.interval(np.array(control)),
        kept=_kept(own, [piece.notes[:, :4] for piece in moved]),
        p=statistics.flipped(sign * (after - np.array(control)), seed),
        kept_of_another=_kept(own, decoded(another)),
        kept_of_none=_kept(own, decoded(of_none)),
        attribute=goal.target.attribute,
        slope=slope,
        wanted=float(np.mean([goal.wanted(x) for x in before])),
        inside=float(np.mean([goal.inside(x) for x in after])),
    )


def _slope(
    attribute: Attribute, own: Sequence[Song], before: Floats, way: Tensor,
    decoded: Callable[[Sequence[Tensor]], list[Ints]],
) -> float:  # fmt: skip
    """Change of the attribute per `way (D,)`: least squares through the unmoved songs, over songs and SLOPES."""
    rises = []
    for x in SLOPES:
        notes = decoded([song.z + x * way for song in own])
        values = [
            attribute.value(Piece(np.column_stack([one, np.full(len(one), 80)]), song.piece.bounds, song.piece.frame))
            for song, one in zip(own, notes, strict=True)
        ]
        rises.append(float(np.mean(values - before)))
    return float(np.dot(SLOPES, rises) / np.dot(SLOPES, SLOPES))


def _moved(codec: Codec, song: Song, way: Tensor, goal: AttributeGoal) -> Piece:
    """A song moved along `way (D,)` to the goal."""
    [score] = codec.transform(
        [song.piece], lambda z: z + way, chroma_guidance=CHROMA_GUIDANCE, latents=[song.z], goal=goal
    )
    return attribute_vector.written(codec.adapter, score, song.piece)


def _kept(own: Sequence[Song], notes: Sequence[Ints]) -> dict[str, tuple[float, float, float]]:
    """Each of FIGURES with its interval over songs."""
    rows = []
    for song, one in zip(own, notes, strict=True):
        original = song.piece.notes[:, :4]
        found = evaluate_blend.kept(original, one, song.piece.bounds)
        rows.append([measures.note_f1(original, one), *(found[name] for name in FIGURES[1:])])
    return style_effect.kept_figures(FIGURES, np.array(rows))
