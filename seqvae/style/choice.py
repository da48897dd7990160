"""Moves of lines by as much as each line needs: candidates along the way, and the choice among them.

Scope: candidates by amount, with words of the original favoured or put back, and their ranking by style, content and
fluency. Out of scope: the classifier of lines (style/line_classifier.py), the moves (style/translation.py), encoding
and decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import product
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.errors import StyleError
from seqvae.nn.sampling import Sampling
from seqvae.nn.segments import Segment
from seqvae.protocols import Guidance, Guide
from seqvae.style import line_classifier, translation
from seqvae.style.gaussian import Style
from seqvae.style.line_classifier import LineWeights

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Step = tuple[str, str, float]
"""Source, target, and the farthest amount tried."""
FARTHEST = 2.5
"""Default farthest amount."""
SHORT = 8  # candidates of a line whose fluency is computed
FLOOR = 0.01  # added to the overlap before its logarithm
SPANS = 6  # changed spans of a candidate, at most, for every subset of them to be put back


@dataclass(frozen=True)
class Choice:
    """Settings of a choice. The score of a candidate is style^a content^b fluency^c, with the three weights."""

    until: float = 0.9
    """Probability of the target style that the classifier has to give."""
    style: float = 0.0
    """Weight of that probability, among candidates that reach `until`."""
    content: float = 1.0
    """Weight of the overlap with the original; see `line_classifier.overlap`."""
    fluency: float = 1.0
    """Weight of the mean probability per token; see `Candidates.fluency`."""
    steps: int = 10
    """Amounts tried, evenly spaced up to the farthest."""
    bias: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0)
    """Each amount is decoded once with each of these added to the logits of the original's tokens."""
    words: float = 0.3
    """Factor of the classifier's weights of words, which are added to the logits; see `favoured`."""
    restore: bool = True
    """Whether to put changed words back where the classifier still accepts the line."""
    beam: int = 0
    """Hypotheses of beam search; 0 or 1 for none."""

    def __post_init__(self) -> None:
        if not (0 < self.until < 1 and self.steps > 0 and self.bias):
            raise ValueError("until must be between 0 and 1, steps above 0, and at least one bias given")


@dataclass(frozen=True)
class Chosen:
    """The choice for one line."""

    line: str
    share: float
    """Share of the farthest amounts by which it was moved, from 0 to 1."""
    probability: float
    """Probability of the target style by the classifier; the least of several moves."""


class LineCodec(Protocol):
    """The part of a codec that a choice needs, as in `Codec`."""

    tokenizer: Any
    chunks: int

    def style(self, name: str | Style) -> Style:
        """A style by name."""

    def segments(self, piece: Any) -> list[Segment]:
        """Token ids of a line by segment and chunk."""

    def encode(self, pieces: Sequence[Any]) -> list[Tensor]:
        """Refined posterior means `(S, D)` of each line."""

    def decode(self, z: Sequence[Tensor], *, sampling: Sampling | None = None, guide: Guide | None = None) -> list[Any]:
        """Lines from latents `(S, D)` of each."""

    def token_log_probs(self, z: Tensor, segments: Sequence[Segment]) -> Tensor:
        """Log-probability of every token, `(L, S, C, T)` in nats, given `z (L, S, D)`."""


def with_classifiers(styles: Mapping[str, Style], pieces: Mapping[str, Sequence[Any]]) -> dict[str, Style]:
    """Styles with a classifier of one another, fitted on their pieces; the same styles if pieces are not lines."""
    if len(pieces) < 2 or not all(isinstance(piece, str) for members in pieces.values() for piece in members):
        return dict(styles)
    weights = line_classifier.fit(pieces)
    return {name: replace(style, classifier=weights[name]) for name, style in styles.items()}


def choose(
    codec: LineCodec,
    lines: Sequence[str],
    path: Sequence[Step],
    choice: Choice,
    method: translation.Method = "mean",
    known: Sequence[Tensor] | None = None,
) -> list[Chosen]:
    """For each line the best candidate along the way whose style the classifier accepts.

    Candidates are decoded at `choice.steps` amounts up to the farthest, without and with a bias toward the tokens of
    the line, and all with one toward words of the target style. Beside each stand those with some of its changed words
    put back. Of the candidates that reach `choice.until` and have no loop, the one with the best score is chosen
    (`Choice`); if none reaches it, the one with the highest probability. A line that reaches it already, and a line
    without words, stay as they are. `known` are the latents `(S, D)` of the lines, if they are computed already.

    Raises StyleError for styles without a classifier that tells the two apart.
    """
    pairs = [_weights(codec, source, target) for source, target, _ in path]

    def accepted(texts: Sequence[str]) -> Floats:
        least: Floats = np.min([line_classifier.probability(texts, a, b) for a, b in pairs], axis=0)
        return least

    out = [Chosen(line, 0.0, p) for line, p in zip(lines, accepted(lines).tolist(), strict=True)]
    todo = [i for i, one in enumerate(out) if one.line.strip() and one.probability < choice.until]
    if not todo:
        return out
    moved = [lines[i] for i in todo]
    latents = codec.encode(moved) if known is None else [known[i] for i in todo]
    found = [
        _shortlist(line, texts, accepted, choice)
        for line, texts in zip(moved, candidates(codec, moved, latents, path, choice, method), strict=True)
    ]
    nats = fluency(codec, latents, found, path, method) if choice.fluency else [np.zeros(len(one)) for one in found]
    for i, line, kept, fluent in zip(todo, moved, found, nats, strict=True):
        out[i] = kept[int(np.argmax([_score(line, one, choice) + choice.fluency * f
                                     for one, f in zip(kept, fluent, strict=True)]))]  # fmt: skip
    return out


def candidates(
    codec: LineCodec,
    lines: Sequence[str],
    latents: Sequence[Tensor],
    path: Sequence[Step],
    choice: Choice,
    method: translation.Method = "mean",
) -> list[dict[str, float]]:
    """The different lines decoded along the way of each line, each with the smallest share of the way."""
    found: list[dict[str, float]] = [{} for _ in lines]
    tokens = [codec.tokenizer.token_text(token) for token in range(codec.tokenizer.vocab_size)]
    pairs = [_weights(codec, source, target) for source, target, _ in path]
    words: Floats = choice.words * np.sum([line_classifier.token_weights(tokens, a, b) for a, b in pairs], axis=0)
    guides = [favoured(codec, lines, bias, words) for bias in choice.bias]
    for step in range(1, choice.steps + 1):
        share = step / choice.steps
        z = [*map(translated(codec, path, share, method), latents)]
        for guide in guides:
            for texts, text in zip(
                found, codec.decode(z, sampling=Sampling(beam=choice.beam), guide=guide), strict=True
            ):
                texts.setdefault(text, share)
    return found


def translated(
    codec: LineCodec, path: Sequence[Step], share: float, method: translation.Method
) -> Callable[[Tensor], Tensor]:
    """The map of latents `(S, D)` by a share of the farthest amounts."""
    styles = [(codec.style(source), codec.style(target), share * far) for source, target, far in path]
    return translation.compose([translation.translate(a, b, amount, method) for a, b, amount in styles])


def favoured(codec: LineCodec, lines: Sequence[str], bias: float, words: Floats | float = 0.0) -> Guide:
    """A guide that adds `words (V,)` to the logits of all tokens, and `bias` to those of each line, its end included.

    Tokens of the line get only negative `words`: those of the target style that it has already need not come again.
    """
    split = [codec.segments(line) for line in lines]
    weights = np.empty((sum(map(len, split)) * codec.chunks, codec.tokenizer.vocab_size), np.float32)
    weights[:] = words
    at = 0
    for segments in split:
        rows = len(segments) * codec.chunks
        tokens = np.unique(np.concatenate([chunk for segment in segments for chunk in segment]))
        weights[at : at + rows, tokens] = bias + np.minimum(0, weights[at : at + rows, tokens])
        at += rows
    columns = np.arange(weights.shape[1], dtype=np.int32)

    def guide(rows: slice) -> list[Guidance]:
        own = weights[rows]
        return [lambda numbers, state: (columns, own[numbers])]

    return guide


def restored(line: str, text: str) -> Iterator[str]:
    """A candidate, and the same with some of the stretches in which it differs from the line put back.

    All subsets of at most SPANS stretches; with more, each one alone.
    """
    yield text
    old, new = line.split(), text.split()
    spans = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    changed = [i for i, span in enumerate(spans) if span[0] != "equal"]
    if len(changed) > SPANS:
        subsets = [{i} for i in changed]
    else:
        subsets = [
            {i for i, back in zip(changed, one, strict=True) if back} for one in product((0, 1), repeat=len(changed))
        ]
    for subset in subsets:
        if 0 < len(subset) < len(changed):
            parts = [old[a:b] if i in subset else new[c:d] for i, (_, a, b, c, d) in enumerate(spans)]
            yield " ".join(word for part in parts for word in part)


def _shortlist(
    line: str, texts: Mapping[str, float], accepted: Callable[[Sequence[str]], Floats], choice: Choice
) -> list[Chosen]:
    """The candidates with the best scores before fluency, at most SHORT; the most probable one if none is accepted."""
    shares: dict[str, float] = {}
    for text, share in texts.items():
        for one in restored(line, text) if choice.restore else (text,):
            shares.setdefault(one, share)
    every = [Chosen(one, shares[one], p) for one, p in zip(shares, accepted([*shares]).tolist(), strict=True)]
    sound = [one for one in every if not line_classifier.loops(one.line, line)] or every
    reached = [one for one in sound if one.probability >= choice.until]
    if not reached:
        return [max(sound, key=lambda one: one.probability)]
    return sorted(reached, key=lambda one: -_score(line, one, choice))[:SHORT]


def _score(line: str, one: Chosen, choice: Choice) -> float:
    """Logarithm of style^a content^b, in nats."""
    content = line_classifier.overlap(line, one.line)
    return choice.style * float(np.log(one.probability)) + choice.content * float(np.log(content + FLOOR))


def fluency(
    codec: LineCodec,
    latents: Sequence[Tensor],
    found: Sequence[Sequence[Chosen]],
    path: Sequence[Step],
    method: translation.Method = "mean",
) -> list[Floats]:
    """Mean log-probability per token of the candidates of each line, in nats.

    The probability of a token is the mean of two: given the latents of the line, and given those moved to the
    candidate's amount. So words that were put back are as fluent as those of the move.
    """
    shares = sorted({one.share for kept in found for one in kept})
    moves = {share: translated(codec, path, share, method) for share in shares}
    segments: list[Segment] = []
    ends: list[Tensor] = []
    sizes: list[int] = []
    for z, kept in zip(latents, found, strict=True):
        for one in kept:
            own = codec.segments(one.line)
            rows = torch.arange(len(own)).clamp(max=len(z) - 1)
            ends.append(torch.stack([z, moves[one.share](z)])[:, rows])
            segments += own
            sizes.append(len(own))
    log_p = codec.token_log_probs(torch.cat(ends, 1), segments).double()  # (2, S, C, T)
    nats = (log_p.logsumexp(0) - np.log(2)).sum((1, 2))  # padding has log-probability 0 given both
    tokens = torch.tensor([sum(map(len, segment)) for segment in segments])
    owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    total, count = (torch.zeros(len(sizes), dtype=torch.double).index_add(0, owner, x.double()) for x in (nats, tokens))
    parts = torch.split(total / count, [len(kept) for kept in found])
    return [part.numpy() for part in parts]


def _weights(codec: LineCodec, source: str, target: str) -> tuple[LineWeights, LineWeights]:
    """The classifiers of two styles; raises StyleError if they were not fitted together."""
    a, b = codec.style(source).classifier, codec.style(target).classifier
    if a is None or b is None or a.among != b.among or source not in a.among or target not in a.among:
        raise StyleError(
            f"no classifier tells '{source}' from '{target}'; fit both in one `seqvae style fit`, or move by an amount"
        )
    return a, b
