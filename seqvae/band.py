"""One band a song: which instruments play, and what the kit does in every bar, chosen once for the whole song.

Scope: notes `(N, >= 4)` and bars `(C + 1,)` as `midi.Piece` has them, and aggregates over the songs of a style. Out of
scope: tokens, models and files. Plain numpy.

A segment is decoded from its own latent vector and knows nothing of its neighbours. The band is what the song says as a
whole; a blend is the product of both (Hinton 2002).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from seqvae import arrangement, measures
from seqvae.measures import BEAT, DRUMS, DURATION, ONSET, PITCH, PROGRAM

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
STEPS = 4 * BEAT  # of a bar of 4/4
MOST = 7  # instruments of a band
FAMILY = 8  # General MIDI's programs come in families of eight
BASS = 4  # the family of basses
A_FAMILY = 2  # instruments of one family at most
KIN = 0.5  # of what is said of a family counts for each of its instruments
DRUMS_STAY = 0.75
MANY = 4.0  # times the share of a program among those that the decoder tells of: as if it played in all bars
PERCENTILES = (10, 50, 90)
FEW = 8  # songs with drums: of fewer the hits are not kept, for they would be those of single songs
LOWEST = 28  # E1: no instrument of a band is pushed lower


@dataclass(frozen=True)
class Ensemble:
    """Who plays in the songs of a style: means and percentiles over songs, nothing of a single one."""

    programs: Floats
    """`(129,)`: share of the bars with notes in which a program plays, drums last."""
    hits: Floats
    """`(48, 128)`: share of the bars with drums that have a hit at a step, on a pitch; songs with drums alone."""
    size: Floats
    """`(3,)`: PERCENTILES of the number of instruments."""
    notes: Floats
    """`(3,)`: PERCENTILES of `density`."""


def mixed(parts: Sequence[tuple[Ensemble, float]]) -> Ensemble:
    """A mean of ensembles with weights that add up to 1."""
    names = [part.name for part in fields(Ensemble)]
    return Ensemble(**{name: np.sum([weight * getattr(one, name) for one, weight in parts], axis=0) for name in names})


def presence(notes: Ints, bounds: Ints) -> Floats:
    """`(129,)`: share of the bars with notes in which a program plays; 0 without notes."""
    playing = arrangement.playing(notes, bounds)
    filled = playing.any(1)
    return playing[filled].mean(0) if filled.any() else np.zeros(DRUMS + 1)


def sounding_bars(notes: Ints, bounds: Ints) -> float:
    """How long the bars with notes are together, in bars of 4/4."""
    return float(np.diff(bounds)[arrangement.playing(notes, bounds).any(1)].sum()) / STEPS


def density(notes: Ints, bounds: Ints) -> float:
    """Notes in four beats, over the bars with notes; 0 without notes."""
    return len(notes) / sounding_bars(notes, bounds) if len(notes) else 0.0


def hits(notes: Ints, bounds: Ints) -> Floats:
    """`(48, 128)`: share of the bars with drums that have a hit at a step, on a pitch; 0 without drums."""
    drums = notes[notes[:, PROGRAM] == DRUMS]
    bar = np.searchsorted(bounds, drums[:, ONSET], side="right") - 1
    inside = (bar >= 0) & (bar < len(bounds) - 1)
    drums, bar = drums[inside], bar[inside]
    step = drums[:, ONSET] - bounds[bar]
    found = np.unique(np.stack([bar, step, drums[:, PITCH]], 1)[step < STEPS], axis=0)
    out = np.zeros((STEPS, 128))
    np.add.at(out, (found[:, 1], found[:, 2]), 1.0)
    return out / max(1, len(np.unique(bar)))


def ensemble(songs: Iterable[tuple[Ints, Ints]]) -> Ensemble:
    """The ensemble of songs (notes, bounds) without those that have no notes."""
    rows = [(notes, bounds) for notes, bounds in songs if len(notes)]
    if not rows:
        return Ensemble(np.zeros(DRUMS + 1), np.zeros((STEPS, 128)), np.zeros(3), np.zeros(3))
    shares = np.stack([presence(*row) for row in rows])
    kits = [hits(*row) for row in rows if (row[0][:, PROGRAM] == DRUMS).any()]
    return Ensemble(
        shares.mean(0),
        np.mean(kits, axis=0) if len(kits) >= FEW else np.zeros((STEPS, 128)),
        np.percentile((shares > 0).sum(1), PERCENTILES),
        np.percentile([density(*row) for row in rows], PERCENTILES),
    )


def choose(song: Floats, style: Ensemble, amount: float, told: Floats | None = None) -> list[int]:
    """The programs of the band between a song's `presence (129,)` and a style: instruments leave and enter by amount.

    An instrument counts as present as (1 - amount) of the song and amount of the style say; for the style speak its
    songs and, where it is given, the decoder, with the shares of programs `told (129,)`: a geometric mean. Drums and
    bass are those of the nearer of the two, and half-way those of the style. At most MOST, A_FAMILY of a family and one
    bass.
    """
    near = min(1.0, max(0.0, amount))
    families = np.add.reduceat(style.programs[:DRUMS], np.arange(0, DRUMS, FAMILY))
    likely = style.programs[:DRUMS] + KIN * (families.repeat(FAMILY) - style.programs[:DRUMS])
    likely = np.where(style.programs[:DRUMS] > 0, likely, 0.0)
    if told is not None:
        likely = np.sqrt(likely * np.minimum(1.0, MANY * told[:DRUMS]))
    score = (1 - near) * song[:DRUMS] + near * likely
    basses = np.arange(DRUMS) // FAMILY == BASS
    drums, bass = (
        (style.programs[DRUMS] >= 0.5, families[BASS] >= 0.5) if near >= 0.5
        else (song[DRUMS] > 0, bool((song[:DRUMS] * basses).any()))
    )  # fmt: skip
    size = round((1 - near) * (song > 0).sum() + near * style.size[1])
    left = int(np.clip(size - drums, 1, MOST - drums))
    chosen = [int((score * basses).argmax())] if bass and left > 1 and (score * basses).any() else []
    for program in np.argsort(-score, kind="stable").tolist():
        if score[program] <= 0 or len(chosen) == left:
            break
        kin = [p for p in chosen if p // FAMILY == program // FAMILY]
        if program not in chosen and len(kin) < (1 if basses[program] else A_FAMILY):
            chosen.append(program)
    return sorted(chosen) + [DRUMS] * bool(drums)


# --- notes ------------------------------------------------------------------------------------------------------------


def tune(notes: Ints) -> Ints:
    """What is heard as the top of `notes (N, >= 4)`: of each onset the highest note, where nothing higher sounds."""
    top = measures.skyline(notes)
    sounds = arrangement.sounding(notes, top[:, ONSET])
    highest = 127 - sounds[:, ::-1].argmax(1)
    found: Ints = top[highest == top[:, PITCH]]
    return found


def players(line: Ints, programs: Sequence[int], song: Floats) -> Ints:
    """The `line (N, >= 4)` with instruments of the band `programs`: its own where they are in it, else the nearest.

    The nearest is of the same family, or what plays most of the `song (129,)`, or the first that is no bass.
    """
    pitched = [p for p in programs if p != DRUMS]
    played = line.copy()
    for program in np.unique(line[:, PROGRAM]).tolist():
        if program in pitched or not pitched:
            continue
        kin = [p for p in pitched if p // FAMILY == program // FAMILY]
        free = [p for p in pitched if p // FAMILY != BASS] or pitched
        played[line[:, PROGRAM] == program, PROGRAM] = (kin or sorted(free, key=lambda p: -song[p]))[0]
    return played


def under(notes: Ints, line: Ints) -> Ints:
    """`notes (N, >= 4)` that leave the `line` on top: by octaves lower while it sounds, and ended where it begins.

    Drums stay. What would come below LOWEST is left out.
    """
    if not len(line):
        return notes
    order = line[np.argsort(line[:, ONSET], kind="stable")]
    starts = order[:, ONSET]
    last = np.searchsorted(starts, notes[:, ONSET], side="right") - 1
    held = (last >= 0) & (order[last, ONSET] + order[last, DURATION] > notes[:, ONSET])
    roof = np.where(held, order[last, PITCH], 128)
    drums = notes[:, PROGRAM] == DRUMS
    above = np.where(drums, 0, np.maximum(0, -(-(notes[:, PITCH] - roof + 1) // 12)))
    out = notes.copy()
    out[:, PITCH] -= (12 * above).astype(np.int32)
    for i in np.flatnonzero(~drums).tolist():  # a note of the line that begins under one that sounds ends it
        begin = int(notes[i, ONSET])
        some = slice(last[i] + 1, np.searchsorted(starts, begin + notes[i, DURATION]))
        lower = np.flatnonzero(order[some, PITCH] <= out[i, PITCH])
        if len(lower):
            out[i, DURATION] = starts[some][lower[0]] - begin
    found: Ints = out[(out[:, PITCH] >= LOWEST) | drums]
    return found


def thinned(notes: Ints, bounds: Ints, most: float) -> Ints:
    """About `most` of `notes (N, >= 4)`: of every instrument the same share, what is rarest in its bars leaving first.

    What counts is how often an instrument begins something at a step of the bar, and of drums on a pitch there. Of what
    is as often, beats stay before half beats, and these before the rest.
    """
    if len(notes) <= max(0.0, most):
        return notes
    share = max(0.0, most) / len(notes)
    step = notes[:, ONSET] - bounds[np.searchsorted(bounds, notes[:, ONSET], side="right") - 1]
    pitch = np.where(notes[:, PROGRAM] == DRUMS, notes[:, PITCH], 0)
    stays = np.zeros(len(notes), bool)
    for program in np.unique(notes[:, PROGRAM]).tolist():
        mine = np.flatnonzero(notes[:, PROGRAM] == program)
        _, at, count = np.unique(step[mine] * 128 + pitch[mine], return_inverse=True, return_counts=True)
        here = step[mine]
        order = np.lexsort((at, here % (BEAT // 2) != 0, here % BEAT != 0, -count[at]))
        part = share**DRUMS_STAY if program == DRUMS else share
        stays[mine[order[: round(part * len(mine))]]] = True
    return notes[stays]


def arranged(
    written: Ints, song: Ints, bounds: Ints, programs: Sequence[int], most: float, fresh: float, line: Ints
) -> Ints:  # fmt: skip
    """What the decoder has `written (N, 5)`, with the `line (L, 5)` on top and at most so many notes a bar."""
    rest = under(written, line)
    rest = rest[~np.isin(_key(rest), _key(line))]
    known = np.isin(_place(rest), _place(song))
    own = players(song[song[:, PROGRAM] != DRUMS], programs, presence(song, bounds))
    own = own[~np.isin(_place(own), _place(line))]
    low = own[:, PITCH] < LOWEST
    own = np.concatenate([own[low], under(own[~low], line)])  # a melody that is named may lie below the song's top
    own = own[~np.isin(_place(own), _place(np.concatenate([line, rest[known]])))]
    total = most * sounding_bars(song, bounds)
    old, new = rest[known], rest[~known]
    part = (1 - fresh) * total - len(line)  # of the song, beside its tune
    old = thinned(old, bounds, max(part, len(old) * total / max(1, len(line) + len(rest))))
    back = thinned(own, bounds, part - len(old))  # more of the song than the decoder has of it
    room = total - len(line) - len(old) - len(back)
    notes = np.concatenate([line, old, back, thinned(new, bounds, max(room, min(fresh, 0.5) * total))])
    _, first = np.unique(_key(notes), return_index=True)
    found: Ints = notes[np.sort(first)]
    return found


def _place(notes: Ints) -> NDArray[np.int64]:
    """A number for onset, pitch, and whether it is a drum."""
    at: NDArray[np.int64] = notes[:, ONSET].astype(np.int64) * 128 + notes[:, PITCH]
    found: NDArray[np.int64] = at * 2 + (notes[:, PROGRAM] == DRUMS)
    return found


def _key(notes: Ints) -> NDArray[np.int64]:
    """A number for onset, pitch and program."""
    at: NDArray[np.int64] = notes[:, ONSET].astype(np.int64) * 128 + notes[:, PITCH]
    found: NDArray[np.int64] = at * (DRUMS + 1) + notes[:, PROGRAM]
    return found


def between(song: Ints, bounds: Ints, style: Ensemble, amount: float) -> float:
    """The density between a song and a style: their geometric mean, weighed by the amount from 0 to 1."""
    return float(density(song, bounds) ** (1 - amount) * style.notes[1] ** amount)
