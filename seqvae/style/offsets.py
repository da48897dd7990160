"""Offsets of styles of lines: in which direction a move between them goes, and how far at amount 1.

Scope: Fisher's discriminant directions of styles that are fitted together, and their length, measured by decoding
validation lines. Out of scope: the classifier (style/line_classifier.py) and the moves (style/translation.py).

The means of two styles of lines lie close together beside two lines, so their difference hardly moves a line. And it
has much of the directions in which lines of one style differ among themselves, which the discriminant leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from seqvae.style import choice, line_classifier
from seqvae.style.gaussian import Style

LINES = 200  # validation lines of all styles together
FEWEST = 10  # lines of a style for each of its validation lines
SHARE = 0.8  # of the validation lines, accepted after a move by amount 1
LENGTHS = 2.0 ** np.arange(-4, 1.5, 0.5)  # of an offset, in standard deviations of lines; the first that reaches SHARE


class LineCodec(Protocol):
    """The part of a codec that offsets need, as in `Codec`."""

    def encode(self, pieces: Sequence[Any]) -> list[Tensor]:
        """Refined posterior means `(S, D)` of each line."""

    def decode(self, z: Sequence[Tensor]) -> list[Any]:
        """Lines from latents `(S, D)` of each."""


@dataclass(frozen=True)
class _Move:
    """A validation line and the style that it moves to."""

    line: str
    source: str
    target: str


def fitted_together(
    codec: LineCodec, styles: Mapping[str, Style], pieces: Mapping[str, Sequence[Any]]
) -> dict[str, Style]:
    """Styles with a classifier of one another, and with offsets; the same styles if their pieces are not lines.

    One line in FEWEST of each style, or fewer, is kept from the classifier and used to measure the offsets.
    """
    if len(pieces) < 2 or not all(isinstance(piece, str) for members in pieces.values() for piece in members):
        return dict(styles)
    steps = {name: max(FEWEST, -(-len(pieces) * len(lines) // LINES)) for name, lines in pieces.items()}
    others = {
        name: [line for i, line in enumerate(lines) if i % steps[name]] or list(lines) for name, lines in pieces.items()
    }
    known = choice.with_classifiers(styles, others)
    return with_offsets(codec, known, {name: lines[:: steps[name]] for name, lines in pieces.items()})


def with_offsets(codec: LineCodec, styles: Mapping[str, Style], lines: Mapping[str, Sequence[str]]) -> dict[str, Style]:
    """Styles with offsets of one length, at which the classifier accepts SHARE of the moved validation lines.

    A line of each style moves to each of the others in turn. If no length in LENGTHS reaches SHARE, the one with the
    most accepted lines is taken. Styles without a direction, which have the same mean, keep their means alone.
    """
    found = directions(list(styles.values()))
    if found is None:
        return dict(styles)
    offsets = dict(zip(styles, found, strict=True))
    moves = _moves(lines)
    latents = codec.encode([one.line for one in moves])
    before, length = _accepted(styles, moves, [one.line for one in moves]), 0.0
    shares = {length: before}
    for longer in LENGTHS.tolist():
        ways = [longer * (offsets[one.target] - offsets[one.source]) for one in moves]
        after = _accepted(styles, moves, codec.decode([z + way for z, way in zip(latents, ways, strict=True)]))
        shares[longer] = after
        if after >= SHARE:
            length += (longer - length) * max(0.0, SHARE - before) / max(after - before, 1e-9)
            break
        before, length = after, longer
    else:
        length = max(shares, key=lambda one: shares[one])
    return {name: replace(style, offset=length * offsets[name]) for name, style in styles.items()}


def directions(styles: Sequence[Style]) -> Tensor | None:
    """S^-1 (mean - mean of the means) of each style, `(K, D)`, all as long as the lines' standard deviation.

    S is the mean of the covariances plus a ridge of D / N times their mean variance, N being the number of lines: with
    few lines the direction is that of the difference of means. None if a direction has no length.
    """
    means = torch.stack([style.mean for style in styles]).double()
    pooled = torch.stack([style.covariance for style in styles]).double().mean(0)
    ridge = len(pooled) / sum(style.count for style in styles) * pooled.diagonal().mean().clamp(min=1e-12)
    apart = torch.linalg.solve(pooled + ridge * torch.eye(len(pooled)), (means - means.mean(0)).T).T
    sizes = apart.norm(dim=1, keepdim=True)
    if not sizes.min() > 0:
        return None
    found: Tensor = (apart / sizes * pooled.trace().sqrt()).float()
    return found


def centre(everything: Style, styles: Mapping[str, Style]) -> Style:
    """The style of all lines, with an offset of 0 if the others have offsets: they start there."""
    if all(style.offset is None for style in styles.values()):
        return everything
    return replace(everything, offset=torch.zeros_like(everything.mean))


def _moves(lines: Mapping[str, Sequence[str]]) -> list[_Move]:
    """The lines of each style, with the other styles in turn as targets."""
    names = list(lines)
    return [
        _Move(line, source, names[(k + 1 + i % (len(names) - 1)) % len(names)])
        for k, source in enumerate(names)
        for i, line in enumerate(lines[source])
    ]


def _accepted(styles: Mapping[str, Style], moves: Sequence[_Move], texts: Sequence[str]) -> float:
    """Share of texts whose target is more probable than their source."""
    right = []
    for one, text in zip(moves, texts, strict=True):
        source, target = styles[one.source].classifier, styles[one.target].classifier
        assert source is not None
        assert target is not None
        right.append(line_classifier.probability([text], source, target)[0] > 0.5)
    return float(np.mean(right))
