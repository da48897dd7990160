"""Arrangement: a moved song decoded by one band, with its tune on top and a given share of new notes.

Scope: guidance of the decoder by the whole song, the length of the move, and the notes of the arrangement. Out of
scope: latent vectors before the move, the choice of a band (music/band.py), token weights (music/band_guidance.py).

The decoder sees one segment, and half a difference of style means lies between its thresholds. Without guidance each
segment would have its own band. So the probability given a segment is multiplied by weights of the whole song (a
product of experts, Hinton 2002): its band, the style's drum pattern, the harmony and the bass of the original.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.music import accents, arrangement, band, band_guidance
from seqvae.music.adapter import MusicAdapter
from seqvae.music.band import Ensemble
from seqvae.music.notes import DRUMS, ONSET, PITCH, PROGRAM, STEPS_PER_BEAT, VELOCITY, skyline
from seqvae.nn import batches
from seqvae.nn.latent import LatentModel
from seqvae.nn.sampling import Sampling
from seqvae.nn.segments import no_melody
from seqvae.protocols import Adapter, Given, Guide
from seqvae.style import form

if TYPE_CHECKING:
    from seqvae.music.piece import Piece

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
Longs = NDArray[np.int64]
Bools = NDArray[np.bool_]
FARTHER = (1.0, 1.6, 2.56)  # multiples of the move, for songs with few new notes
ENOUGH = 0.6  # share of new notes among the decoded ones that stops longer moves
DUE_SHARE = 0.1  # probability of a program under the codes that makes it play in every full bar
MIDDLE = 38.0  # D2, the centre of a bass's register
BELOW = 48  # C3: in a band without bass, lower notes of other instruments are the bass


class TokenGenerator(Protocol):
    """The part of a codec that decodes."""

    adapter: Any
    model: LatentModel

    def generate_tokens(
        self, z: Tensor, given: Given | None, sampling: Sampling, harmony: Floats | None = None, strength: float = 0.0,
        guide: Guide | None = None,
    ) -> list[Ints]:  # fmt: skip
        """As `Codec.generate_tokens`."""

    def tensors(self, segments: Sequence[list[Ints]]) -> tuple[Tensor, Tensor]:
        """As `Codec.tensors`."""

    def given(self, piece: Any) -> Given | None:
        """As `Codec.given`."""


@dataclass(frozen=True)
class Goal:
    """The target of an arrangement."""

    ensemble: Ensemble
    """The ensemble of the target's songs."""
    amount: float
    """Sets the band, the density and the share of new notes."""
    calibrated: bool = True
    """Whether a song with few new notes is moved farther; see FARTHER."""


def goal(parts: Sequence[tuple[Ensemble | None, float]]) -> Goal | None:
    """The goal of a move toward styles with these ensembles by these amounts.

    None where one has no ensemble, where a move leads away from a style, and where all amounts are 0.
    """
    known = [(one, amount) for one, amount in parts if one is not None]
    total = sum(amount for _, amount in known)
    if len(known) < len(parts) or not 0 < total < float("inf") or any(amount < 0 for _, amount in known):
        return None
    return Goal(band.mixed([(one, amount / total) for one, amount in known]), total)


@dataclass(frozen=True)
class Stretch:
    """The segments of a piece that are decoded."""

    piece: Any
    segments: list[int]
    """Their numbers."""
    chunks: int
    """Bars in each."""
    given: Given | None
    """Known of all bars of the piece (`protocols.Given`), with padding of the last segment."""
    bars: NDArray[np.int64] = field(init=False)
    """`(N,)`: the bar of the piece of each decoded bar; beyond the last for padding."""

    def __post_init__(self) -> None:
        bars = [i * self.chunks + c for i in self.segments for c in range(self.chunks)]
        object.__setattr__(self, "bars", np.array(bars, np.int64))

    @property
    def known(self) -> Given | None:
        """`(N,)`: known of the decoded bars."""
        return None if self.given is None else self.given[self.bars]

    def harmony(self, adapter: Adapter, guided: bool = True) -> Floats | None:
        """The harmony `(N, B, 12)` of the decoded bars, 0 without guidance."""
        chroma = adapter.harmony(self.piece)
        return None if chroma is None else self.of(chroma) * guided

    def of(self, values: NDArray[Any]) -> NDArray[Any]:
        """Rows `(N, ...)` of the decoded bars out of `values (C, ...)` of all bars; 0 for padding."""
        inside = (self.bars < len(values)).reshape(-1, *[1] * (values.ndim - 1))
        found: NDArray[Any] = np.where(inside, values[np.minimum(self.bars, len(values) - 1)], 0)
        return found


def arrange(
    codec: TokenGenerator,
    stretch: Stretch,
    z: Tensor,
    moved: Tensor,
    goal: Goal,
    sampling: Sampling,
    chroma_guidance: float,
    parts: frozenset[int],
) -> Any:
    """A `symusic.Score` of the piece, whose segments lie at `z (S, D)` and are `moved (S, D)`; `parts` are kept.

    The decoded parts come from z moved all the way. If less than ENOUGH of the decoded notes are new, the song is moved
    farther (FARTHER).
    """
    from seqvae.music import piece as midi  # which training from shards does without
    from seqvae.music import tracks

    adapter: MusicAdapter = codec.adapter
    piece, near = stretch.piece, min(1.0, goal.amount)
    changed = _changed(piece)
    tune = tracks.tune(piece) if tracks.MELODY in parts else piece.notes[:0]
    own = band.presence(piece.notes, piece.bounds)
    density = band.between(piece.notes, piece.bounds, goal.ensemble, near)
    harmony, roots = adapter.harmony(piece), adapter.roots(piece)
    changes = _changes(roots, piece.bounds)
    best, most, line = piece.notes[:0], -1.0, tune
    for far in FARTHER if goal.calibrated else FARTHER[:1]:
        there, known = codec.model.after_move(z, z + far / near * (moved - z), stretch.known)
        shares = program_shares(codec, there, known)
        programs = band.choose(own, goal.ensemble, near, shares)
        whole = band.whole_parts(piece.notes, piece.bounds, programs, density, near)
        chords = band.accompanist(programs, own, shares)
        guide = _guide(
            adapter, stretch, harmony, roots, goal.ensemble, programs, whole, shares, changed, chroma_guidance, chords
        )
        chunks = codec.generate_tokens(there, known, sampling, guide=guide)
        written = _written(adapter, stretch, chunks, changed)
        played = band.voice(tune, programs, whole, own)
        notes = band.arranged(
            written, piece.notes, piece.bounds, programs, density, near, played, whole, changes, chords
        )
        notes = _left_alone(notes, piece, programs, changed)
        new = arrangement.new_notes(piece.notes, written) if len(written) else 0.0
        if new > most:
            best, most, line = notes, new, played
        if new >= ENOUGH:
            break
    best[:, VELOCITY] = accents.velocities(best, piece.notes, piece.bounds, goal.ensemble.accents)
    kept = parts - {tracks.MELODY}
    notes = tracks.keep(best, piece, kept) if kept else best
    return midi.to_score(notes, piece.frame, tracks=tracks.homes(notes, piece, parts, line))


def improvise(
    codec: TokenGenerator, z: Tensor, chunks: int, ensemble: Ensemble, sampling: Sampling, like: Piece | None = None,
    chroma_guidance: float = 0.0, repeats: Longs | None = None,
) -> Any:  # fmt: skip
    """A new `symusic.Score` from `z (S, D)`, `chunks` bars in each: a band of the style, its drum pattern and accents.

    `like` is a song that gives tempo, metre, key, length and, with a strength of `chroma_guidance`, harmony. In a song
    model bar i repeats the bar `repeats[i]`, as in `form.composed`.
    """
    from seqvae.music import piece as midi

    adapter: MusicAdapter = codec.adapter
    count = len(z) * chunks
    frame = adapter.blank(count) if like is None else like
    stretch = Stretch(frame, list(range(len(z))), chunks, batches.filled(no_melody(codec.given(frame)), count))
    guide = improvised(codec, z, ensemble, stretch, chroma_guidance)
    if codec.model.shared:
        decoded = form.composed(codec, z, stretch.known, sampling, guide, repeats)[1]
    else:
        decoded = codec.generate_tokens(z, stretch.known, sampling, guide=guide)
    decoded = decoded[: batches.unpadded(adapter.limits(frame), count)]
    frame = adapter.template(decoded) if like is None else frame
    notes = adapter.notes(decoded, frame)
    if like is not None and len(like.notes):  # only drums play in bars without a chord
        silent = np.flatnonzero(~arrangement.playing(like.notes, like.bounds).any(1))
        bar = np.searchsorted(like.bounds, notes[:, ONSET], side="right") - 1
        notes = notes[(notes[:, PROGRAM] == DRUMS) | ~np.isin(bar, silent)]
    notes[:, VELOCITY] = accents.velocities(notes, frame.notes[:0], frame.bounds, ensemble.accents)
    return midi.to_score(notes, frame.frame)


def improvised(
    codec: TokenGenerator, z: Tensor, ensemble: Ensemble, stretch: Stretch, chroma_guidance: float = 0.0
) -> Guide:
    """The guide for decoding a new song `z (S, D)`: a band of the style, and the harmony of `stretch.piece` if any."""
    adapter: MusicAdapter = codec.adapter
    shares, nobody = program_shares(codec, z, stretch.known), np.zeros(DRUMS + 1)
    programs = band.choose(nobody, ensemble, 1.0, shares)
    harmony, roots = stretch.of(adapter.harmony(stretch.piece)), stretch.of(adapter.roots(stretch.piece))
    changes = _change(roots)
    chords = band.accompanist(programs, nobody, shares) if changes.any() else None
    plan = _plan(programs, ensemble.hits, shares, chords=chords)

    def guide(rows: slice) -> list[Any]:
        full = np.ones(rows.stop - rows.start, bool)
        guidances = [band_guidance.band_guidance(adapter.tokenizer, plan, full, changes[rows])]
        if chroma_guidance and harmony.any():
            guidances.append(adapter.tokenizer.chroma_guidance(harmony[rows], chroma_guidance, roots[rows]))
        return guidances

    return guide


def program_shares(codec: TokenGenerator, z: Tensor, known: Given | None) -> Floats | None:
    """Probability of each program `(129,)`, a mean over the bars of `z (S, D)` under the conditions `known (N,)`.

    From the model's outline; None for a model without one, and for no bars.
    """
    outline = codec.model.outline(z, known) if len(z) else None
    if outline is None:
        return None
    tokens, logits = outline
    ids = torch.from_numpy(codec.adapter.tokenizer.ids("program")).long()
    row = torch.full((int(max(tokens.max(), ids.max())) + 1,), -1).index_put((tokens,), torch.arange(len(tokens)))
    return np.asarray(logits[:, row[ids]].softmax(-1).mean(0), np.float64)


def _changed(piece: Piece) -> Bools:
    """`(C,)`: the bars to decode: all but empty bars and a pickup, a first bar that sounds only at its end."""
    filled: Bools = np.asarray(arrangement.playing(piece.notes, piece.bounds).any(1))
    if filled.any():
        first = int(filled.argmax())
        start, end = piece.bounds[first : first + 2]
        onset = piece.notes[piece.notes[:, ONSET] >= start, ONSET].min()
        short = end - start < np.diff(piece.bounds).max()
        filled[first] = not (short or 2 * (onset - start) >= end - start) or filled.sum() == 1
    return filled


def _left_alone(notes: Ints, piece: Piece, programs: list[int], changed: Bools) -> Ints:
    """Arranged `notes (N, 5)` with those of the piece in the bars that are not decoded, played by the band."""
    own, new = (changed[np.searchsorted(piece.bounds, x[:, ONSET], "right") - 1] for x in (piece.notes, notes))
    aside = piece.notes[~own & (piece.notes[:, PROGRAM] != DRUMS)]
    return np.concatenate([band.players(aside, programs, band.presence(piece.notes, piece.bounds)), notes[new]])


def _guide(
    adapter: MusicAdapter,
    stretch: Stretch,
    harmony: Floats,
    roots: Floats,
    ensemble: Ensemble,
    programs: list[int],
    whole: list[int],
    shares: Floats | None,
    changed: Bools,
    chroma_guidance: float,
    chords: int | None,
) -> Guide:
    """The guidance of the song for the instruments of the band that are not `whole`.

    `harmony` and `roots (C, B, 12)` are those of all bars of the song.
    """
    piece, tokenizer = stretch.piece, adapter.tokenizer
    bottom = skyline(piece.notes, highest=False)
    entering = [program for program in programs if program not in whole]
    plan = _plan(entering, ensemble.hits, shares, _middle(bottom), chords)
    without = not any(program // band.FAMILY == band.BASS for program in programs)
    if without and len(bottom) and np.bincount(bottom[:, PROGRAM]).argmax() in whole:
        plan = replace(plan, low=None)
    below = BELOW if without and plan.low is not None else 0
    full = stretch.of(changed).astype(bool)
    sounding, roots = stretch.of(harmony), stretch.of(roots)
    changes = _change(roots)
    roots = np.where(roots.any(-1, keepdims=True), roots, sounding)

    def guide(rows: slice) -> list[Any]:
        guidances = [band_guidance.band_guidance(tokenizer, plan, full[rows], changes[rows])]
        if chroma_guidance:
            guidances.append(tokenizer.chroma_guidance(sounding[rows], chroma_guidance, roots[rows], below))
        return guidances

    return guide


def _change(roots: Floats) -> Bools:
    """`(C, B)`: the beats at which the lowest pitch class `roots (C, B, 12)` changes, or a bar begins."""
    changes: Bools = np.asarray(roots.any(-1))
    changes[:, 1:] &= (np.diff(roots, axis=1) != 0).any(-1)
    return changes


def _changes(roots: Floats, bounds: Ints) -> Ints:
    """The same beats in steps of the piece, `(K,)`."""
    bar, beat = np.nonzero(_change(roots))
    found: Ints = (bounds[bar] + STEPS_PER_BEAT * beat).astype(np.int32)
    return found


def _plan(
    programs: list[int], hits: Floats, shares: Floats | None, middle: float = MIDDLE, chords: int | None = None
) -> band_guidance.Plan:
    """Plan of a band: drums, bass, `chords` and programs with DUE_SHARE play in every full bar."""
    kit = hits if DRUMS in programs and hits.any() else None
    deep = band.lowest_player(programs)
    due = [p for p in programs if p in (DRUMS, deep, chords) or (shares is not None and shares[p] >= DUE_SHARE)]
    return band_guidance.Plan(programs, due or programs, kit, middle, deep, chords)


def _middle(bottom: Ints) -> float:
    """Where a bass plays: around the median of the song's lowest notes, in octaves that a bass has."""
    if not len(bottom):
        return MIDDLE
    return float(np.clip(np.median(bottom[:, PITCH]), MIDDLE - 4, MIDDLE + 4)) + 0.5


def _written(adapter: MusicAdapter, stretch: Stretch, chunks: list[Ints], changed: Bools) -> Ints:
    """Notes `(N, 5)` of the decoded bars that are `changed (C,)`."""
    count = len(stretch.piece.bounds) - 1
    by_bar: list[Ints] = [np.zeros(0, np.int32)] * count
    for bar, chunk in zip(stretch.bars.tolist(), chunks, strict=True):
        if bar < count and changed[bar]:
            by_bar[bar] = chunk
    return adapter.notes(by_bar, stretch.piece)
