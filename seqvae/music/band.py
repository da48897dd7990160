"""The band of a song: its instruments, its drum pattern and its density, chosen once for the whole song.

Scope: notes `(N, >= 4)` and bars `(C + 1,)` as in `Piece`, and aggregates over the songs of a style. Out of scope:
tokens, models and files. Plain numpy.

Each segment is decoded from its own latent vector, without its neighbours. The band adds the choices that hold for the
whole song; a blend is the product of both (Hinton 2002).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from seqvae.music import accents, arrangement, progressions
from seqvae.music.notes import DRUMS, DURATION, ONSET, PITCH, PROGRAM, STEPS_PER_BEAT, skyline

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
STEPS = 4 * STEPS_PER_BEAT  # of a bar of 4/4
MOST = 7  # instruments of a band
FAMILY = 8  # General MIDI's programs come in families of eight
BASS = 4  # the family of basses
A_FAMILY = 2  # instruments of one family at most
KIN = 0.5  # weight of the other instruments of a family in the share of each
DRUMS_STAY = 0.5
MANY = 4.0  # a program's share of the decoder's probability times this is its share of the bars
PERCENTILES = (10, 50, 90)
FEW = 8  # songs with drums needed to store hits; fewer would expose single songs
SOLO = 0.25  # share of the tune with which an instrument beside the lead keeps its notes of it
OFTEN = 0.4  # of the bars with drums
RARELY = 0.5  # of the bars with notes
PART = 0.5  # share of the written notes that must fit into the density, else an instrument leaves
LOWEST = 28  # E1: no instrument of a band is pushed lower
HIGHEST_BASS = 45  # A2, an octave and a half higher: no bass line goes beyond
LOW = 0.75  # semitones of a step that a bass line takes to be a semitone lower
CHORDS = 48  # C3: whoever does not play the bass stays above
FULL = 16.0  # notes in four beats that are written at least
MORE = 0.18  # excess of the share of new notes over the amount, at most
BASSES = range(FAMILY * BASS, FAMILY * (BASS + 1))
LINES = (*range(40, 44), *range(56, 80))  # play one note at a time: violin to contrabass, winds
DEEP = (42, 43, 70, *range(8), 46, *range(16, 32), *range(48, 52))
"""Programs for the bass line in a band without bass: cello, contrabass, bassoon, keyboards, harp, guitars, strings."""


@dataclass(frozen=True)
class Ensemble:
    """Instruments, drum hits and density in the songs of a style: means and percentiles over songs."""

    programs: Floats
    """`(129,)`: share of the bars with notes in which a program plays, drums last."""
    hits: Floats
    """`(48, 128)`: share of the bars with drums that have a hit at a step, on a pitch; songs with drums alone."""
    size: Floats
    """`(3,)`: PERCENTILES of the number of instruments."""
    notes: Floats
    """`(3,)`: PERCENTILES of `density`."""
    accents: Floats = field(default_factory=lambda: np.zeros((accents.ROWS, accents.PLACES)))
    """`(256, 16)`: how much louder an instrument is at a place in the bar; see `accents.accents`. 0 if unknown."""
    chords: Floats = field(default_factory=lambda: np.zeros((len(progressions.SYMBOLS) + 1, len(progressions.SYMBOLS))))
    """`(85, 84)`: probabilities of the next bar's chord; see `progressions.transitions`. 0 if unknown."""


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


def choose(song: Floats, style: Ensemble, amount: float, shares: Floats | None = None) -> list[int]:
    """The programs of the band between a song's `presence (129,)` and a style: instruments leave and enter by amount.

    A share 1 - amount of the band are the most present instruments of the song. The others are the most present ones of
    the style, by the geometric mean of their shares in its songs and, if given, in the decoder's probability
    `shares (129,)`. Drums and bass follow the nearer of the two. Half-way the drums are the style's, with a bass
    if either has one: the style's if half of its bars have one. Below amount 1 entering instruments can play chords; at
    1 a band without bass has one of DEEP. At most MOST instruments, A_FAMILY of a family and one bass.
    """
    near = min(1.0, max(0.0, amount))
    families = np.add.reduceat(style.programs[:DRUMS], np.arange(0, DRUMS, FAMILY))
    likely = style.programs[:DRUMS] + KIN * (families.repeat(FAMILY) - style.programs[:DRUMS])
    likely = np.where(style.programs[:DRUMS] > 0, likely, 0.0)
    if shares is not None:
        likely = np.sqrt(likely * np.minimum(1.0, MANY * shares[:DRUMS]))
    score = (1 - near) * song[:DRUMS] + near * likely
    basses = np.arange(DRUMS) // FAMILY == BASS
    if near < 1:
        likely[list(LINES)] = 0  # who enters beside the song's instruments plays chords
    drums = bool(style.programs[DRUMS] >= 0.5 if near >= 0.5 else song[DRUMS] > 0)
    bass = bool((near >= 0.5 and families[BASS] >= 0.5) or (near <= 0.5 and (song[:DRUMS] * basses).any()))
    size = round((1 - near) * (song > 0).sum() + near * style.size[1])
    left = int(np.clip(size - drums, 1, MOST - drums))
    low = score * basses * bass
    if near >= 0.5 and families[BASS] >= 0.5:
        low = style.programs[:DRUMS] * basses
    elif near == 1:
        low = likely * np.isin(np.arange(DRUMS), DEEP)
    chosen = [int(low.argmax())] if left > 1 and low.any() else []
    seats = len(chosen) + int((1 - near) * (left - len(chosen)) + 0.5)  # of the song's instruments
    alone = A_FAMILY if near == 1 else 1  # who enters beside the song's instruments is of another family
    for ranks, most, family in ((song[:DRUMS], seats, A_FAMILY), (likely, left, alone), (score, left, A_FAMILY)):
        for program in np.argsort(-ranks, kind="stable").tolist():
            if ranks[program] <= 0 or len(chosen) >= most:
                break
            kin = [p for p in chosen if p // FAMILY == program // FAMILY]
            if program not in chosen and len(kin) < (1 if basses[program] else family):
                chosen.append(program)
    return sorted(chosen) + [DRUMS] * bool(drums)


def accompanist(programs: Sequence[int], song: Floats, shares: Floats | None = None) -> int | None:
    """The entering chord player: the likeliest by the decoder's `shares (129,)` not in the `song (129,)`."""
    able = [p for p in programs if not song[p] and p not in (*LINES, *BASSES, DRUMS, lowest_player(programs))]
    return max(able, key=lambda p: 0.0 if shares is None else shares[p], default=None)


def lowest_player(programs: Sequence[int]) -> int | None:
    """The program that plays the bass of a band: its bass, else the first of DEEP, else None."""
    return next((p for p in (*BASSES, *DEEP) if p in programs), None)


# --- notes ------------------------------------------------------------------------------------------------------------


def tune(notes: Ints) -> Ints:
    """The audible top line of `notes (N, >= 4)`: the highest note of each onset at which no higher note sounds."""
    top = skyline(notes)
    sounds = arrangement.sounding(notes, top[:, ONSET])
    highest = 127 - sounds[:, ::-1].argmax(1)
    found: Ints = top[highest == top[:, PITCH]]
    return found


def players(line: Ints, programs: Sequence[int], song: Floats) -> Ints:
    """The `line (N, >= 4)` on instruments of the band `programs`: its own if they are in the band, else the nearest.

    The nearest is one of the same family, else the non-bass instrument that is most present in the `song (129,)`.
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
    """`notes (N, >= 4)` below the `line`: lowered by octaves while it sounds, and cut where it begins.

    While the line rests, notes stay below its highest pitch. Drums stay. Notes below LOWEST are dropped.
    """
    if not len(line):
        return notes
    order = line[np.argsort(line[:, ONSET], kind="stable")]
    starts = order[:, ONSET]
    last = np.searchsorted(starts, notes[:, ONSET], side="right") - 1
    held = (last >= 0) & (order[last, ONSET] + order[last, DURATION] > notes[:, ONSET])
    roof = np.where(held, order[last, PITCH], order[:, PITCH].max() + 1)
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
    """About `most` of `notes (N, >= 4)`, the same share of every instrument; the rarest steps of the bar leave first.

    Notes of an instrument at one step of the bar stay or leave together: steps with onsets in the fewest bars leave
    first, then steps off the beat. Drum hits are grouped by pitch and by beat, half beat or between: hits far from the
    beat leave first, cymbals before snare and kick, so that no bar ends early.
    """
    if len(notes) <= max(0.0, most):
        return notes
    share = max(0.0, most) / len(notes)
    step = notes[:, ONSET] - bounds[np.searchsorted(bounds, notes[:, ONSET], side="right") - 1]
    off = step % STEPS_PER_BEAT
    level = np.where(off == 0, 0, np.where(np.isin(off, (STEPS_PER_BEAT // 2, 2 * STEPS_PER_BEAT // 3)), 1, 2))
    stays = np.zeros(len(notes), bool)
    for program in np.unique(notes[:, PROGRAM]).tolist():
        mine = np.flatnonzero(notes[:, PROGRAM] == program)
        if program == DRUMS:
            keys, wanted = level[mine] * 128 + notes[mine, PITCH], share**DRUMS_STAY
        else:
            often = np.bincount(step[mine])[step[mine]]
            keys, wanted = (-often * 3 + level[mine]) * STEPS + step[mine], share
        _, group, count = np.unique(keys, return_inverse=True, return_counts=True)
        ends = np.append(0, np.cumsum(count))
        stays[mine[group < np.abs(ends - wanted * len(mine)).argmin()]] = True
    return notes[stays]


def grooved(drums: Ints, bounds: Ints) -> Ints:
    """`drums (N, 5)` of one song with one pattern.

    A hit is a step of the bar and a pitch. Hits in at least OFTEN of the bars are in all; rarer ones, as in fills,
    stay.
    """
    if not len(drums):
        return drums
    bar = np.searchsorted(bounds, drums[:, ONSET], side="right") - 1
    bars = np.unique(bar)
    keys = (drums[:, ONSET] - bounds[bar]) * 128 + drums[:, PITCH]
    hit, count = np.unique(keys, return_counts=True)
    always = hit[count >= OFTEN * len(bars)]
    home, step = np.repeat(bars, len(always)), np.tile(always // 128, len(bars))
    filled = np.repeat(drums[:1], len(home), axis=0)
    filled[:, ONSET], filled[:, PITCH] = bounds[home] + step, np.tile(always % 128, len(bars))
    filled = filled[step < np.diff(bounds)[home]]
    found = np.concatenate([drums, filled])
    _, first = np.unique(_key(found), return_index=True)
    return found[np.sort(first)]


def whole_parts(song: Ints, bounds: Ints, programs: Sequence[int], most: float, amount: float) -> list[int]:
    """The instruments of the band `programs` whose parts of the song stay unchanged, the most present first.

    Their number comes nearest to the song's share 1 - amount of `most` notes a bar; up to half-way it is at least one.
    Drums stay below half-way. At least one instrument is left for the decoder.
    """
    near = min(1.0, max(0.0, amount))
    shares, counts = presence(song, bounds), np.bincount(song[:, PROGRAM], minlength=DRUMS + 1)
    budget = (1 - near) * most * sounding_bars(song, bounds)
    stay = [DRUMS] if DRUMS in programs and near < 0.5 and counts[DRUMS] else []
    held = float(counts[stay].sum())
    for program in sorted((p for p in programs if p != DRUMS), key=lambda p: -shares[p]):
        first = near <= 0.5 and not set(stay) - {DRUMS}
        fits = first or held + counts[program] / 2 < budget
        if counts[program] and fits and len(stay) < len(programs) - 1:
            stay.append(program)
            held += float(counts[program])
    return sorted(stay)


def voice(line: Ints, programs: Sequence[int], whole: Sequence[int], song: Floats) -> Ints:
    """The `line (N, >= 4)` on the lead, on instruments with SOLO of it, and on those whose part is `whole`."""
    counts = np.bincount(line[:, PROGRAM], minlength=DRUMS)
    few = ~np.isin(line[:, PROGRAM], whole) & (counts[line[:, PROGRAM]] < SOLO * len(line))
    led = line.copy()
    led[few, PROGRAM] = counts.argmax()
    return players(led, programs, song)


def settled(notes: Ints, bounds: Ints) -> Ints:
    """`notes (N, >= 4)` without isolated bars of an instrument and instruments in less than RARELY of the bars.

    A bar is isolated if the instrument has no onset in the bars before and after.
    """
    playing = np.pad(arrangement.playing(notes, bounds), ((1, 1), (0, 0)))
    stays = playing[1:-1] & (playing[:-2] | playing[2:])
    filled = np.count_nonzero(playing.any(1))
    stays &= stays.sum(0) >= RARELY * filled
    bar = np.searchsorted(bounds, notes[:, ONSET], side="right") - 1
    found: Ints = notes[stays[bar, notes[:, PROGRAM]]]
    return found


def patterned(part: Ints, bounds: Ints, due: Ints) -> Ints:
    """One instrument's `part (N, 5)` in one rhythm: the steps in OFTEN of its bars, and the steps `due (K,)`.

    Other onsets leave. A step without an onset repeats the last notes of its bar.
    """
    bar = np.searchsorted(bounds, part[:, ONSET], side="right") - 1
    bars = np.unique(bar)
    onsets = np.unique(part[:, ONSET])
    home = np.searchsorted(bounds, onsets, side="right") - 1
    step, count = np.unique(onsets - bounds[home], return_counts=True)
    often = bounds[bars][:, None] + step[count >= OFTEN * len(bars)]
    due = due[np.isin(np.searchsorted(bounds, due, side="right") - 1, bars)]
    wanted = np.union1d(often[often < bounds[bars + 1][:, None]], due)
    found = [part[np.isin(part[:, ONSET], wanted)]]
    begun = np.intersect1d(onsets, wanted)
    for at in np.setdiff1d(wanted, begun).tolist():
        last = np.searchsorted(begun, at) - 1
        if last >= 0 and begun[last] >= bounds[np.searchsorted(bounds, at, side="right") - 1]:
            again = part[part[:, ONSET] == begun[last]]
            again[:, ONSET] = at
            found.append(again)
    return np.concatenate(found)


def held(part: Ints, bounds: Ints, most: int = STEPS) -> Ints:
    """One voice's `part (N, 5)` with notes of at least `most` steps, cut at the next onset and the bar's end."""
    onsets = np.append(np.unique(part[:, ONSET]), bounds[-1])
    ends = bounds[np.searchsorted(bounds, part[:, ONSET], side="right")]
    following = onsets[np.searchsorted(onsets, part[:, ONSET], side="right")]
    out = part.copy()
    longest = np.maximum(part[:, DURATION], most)
    out[:, DURATION] = np.minimum(np.minimum(following, ends) - part[:, ONSET], longest)
    return out


def bass_line(part: Ints, bounds: Ints, due: Ints) -> Ints:
    """A bass `part (N, 5)` as one line: one rhythm, one note at a time, no gaps, from LOWEST to HIGHEST_BASS.

    Each note is in the octave with the smallest step from the note before plus LOW times the pitch.
    """
    if not len(part):
        return part
    line = patterned(part, bounds, due)
    line = line[np.lexsort((line[:, PITCH], line[:, ONSET]))]
    line = held(line[np.unique(line[:, ONSET], return_index=True)[1]], bounds)
    last = LOWEST
    for row in line:
        pitches = range(LOWEST + (int(row[PITCH]) - LOWEST) % 12, HIGHEST_BASS + 1, 12)
        row[PITCH] = last = min(pitches, key=lambda pitch: abs(pitch - last) + LOW * pitch)
    return line


def arranged(
    written: Ints, song: Ints, bounds: Ints, programs: Sequence[int], most: float, fresh: float, line: Ints,
    whole: Sequence[int] = (), changes: Ints | None = None, chords: int | None = None,
) -> Ints:  # fmt: skip
    """The arrangement: decoded notes `written (N, 5)` below the `line (L, 5)` and beside the `whole` parts of the song.

    The bass is one line with an onset at each of the `changes (K,)` of the harmony. Entering instruments have one
    rhythm, with an onset at each change at a half bar. Other written notes are thinned to `most` notes a bar, but
    not below FULL or a share `fresh` of all notes, and not above `fresh` + MORE. Notes of the bass and of the program
    `chords` last until the next onset, other notes at least a beat.
    """
    due = bounds[:-1] if changes is None else changes
    halves = due[(due - bounds[np.searchsorted(bounds, due, side="right") - 1]) % (2 * STEPS_PER_BEAT) == 0]
    deep = lowest_player(programs)
    stands = _kept(song, line, whole)
    new = under(written, line)
    new = new[~np.isin(_key(new), _key(stands)) & ~np.isin(new[:, PROGRAM], list(whole))]
    low, drums = new[:, PROGRAM] // FAMILY == BASS, new[:, PROGRAM] == DRUMS
    bass, kit = bass_line(new[low], bounds, due), grooved(new[drums], bounds)
    rest = _accompaniment(new[~low & ~drums], song, bounds, line, halves, deep)
    room = _room(song, bounds, len(stands), most, fresh)
    rest = _reduced(rest, [p for p in programs if p in rest[:, PROGRAM]], room, len(kit) + len(bass))
    rest = np.concatenate([under(bass, line), rest])
    stays = np.isin(rest[:, ONSET], halves) | ((rest[:, PROGRAM] // FAMILY == BASS) & np.isin(rest[:, ONSET], due))
    thin = thinned(np.concatenate([rest[~stays], kit]), bounds, room - np.count_nonzero(stays))
    notes = np.concatenate([stands, _sustained(np.concatenate([rest[stays], thin]), bounds, (chords, deep))])
    _, first = np.unique(_key(notes), return_index=True)
    found = under(notes[np.sort(first)][len(stands) :], line)
    high = np.isin(found[:, PROGRAM], (DRUMS, -1 if deep is None else deep)) | (found[:, PITCH] >= CHORDS)
    return np.concatenate([stands, found[high]])


def _kept(song: Ints, line: Ints, whole: Sequence[int]) -> Ints:
    """The `line` and, below it, the notes of the song's `whole` parts."""
    parts = song[np.isin(song[:, PROGRAM], list(whole))]
    free = np.isin(_place(parts), _place(line)) | (parts[:, PITCH] < LOWEST)
    parts = np.concatenate([parts[free], under(parts[~free], line)])  # a melody that is named may lie below the top
    return np.concatenate([line, parts[~np.isin(_key(parts), _key(line))]])


def _accompaniment(rest: Ints, song: Ints, bounds: Ints, line: Ints, halves: Ints, deep: int | None) -> Ints:
    """Written notes of instruments beside bass and drums, above the bass; entering instruments have one rhythm."""
    above = rest[:, PROGRAM] != deep
    rest[above, PITCH] += 12 * np.maximum(0, -(-(CHORDS - rest[above, PITCH]) // 12))
    rest = under(settled(rest, bounds), line)
    for program in np.setdiff1d(rest[:, PROGRAM], song[:, PROGRAM]):
        mine = rest[:, PROGRAM] == program
        rest = np.concatenate([rest[~mine], patterned(rest[mine], bounds, halves)])
    return rest


def _room(song: Ints, bounds: Ints, kept: int, most: float, fresh: float) -> float:
    """The number of written notes beside `kept` notes of the song, by the density `most` and the share `fresh`."""
    bars, share = sounding_bars(song, bounds), min(1.0, fresh)
    room = max(most * bars - kept, FULL * bars)
    if fresh < 1:
        room = max(room, kept * fresh / (1 - fresh))
    if (song_share := 1 - share - MORE) > 0:
        room = min(room, kept * (1 - song_share) / song_share)
    return room


def _reduced(rest: Ints, programs: Sequence[int], room: float, others: int) -> Ints:
    """Notes without the instruments that play least, until a share PART of them and of `others` has room."""
    order = sorted(programs, key=lambda p: np.count_nonzero(rest[:, PROGRAM] == p))
    while len(order) > 1 and room < PART * (len(rest) + others):
        rest = rest[rest[:, PROGRAM] != order.pop(0)]
    return rest


def _sustained(notes: Ints, bounds: Ints, sustaining: Sequence[int | None]) -> Ints:
    """Notes of each instrument, low and high apart, held a beat at least, or to the next onset in `sustaining`."""
    hand = np.where(notes[:, PROGRAM] == DRUMS, -1, 2 * notes[:, PROGRAM] + (notes[:, PITCH] >= CHORDS))
    voices = [notes[hand == -1]]
    for one in np.unique(hand[hand >= 0]).tolist():
        voices.append(held(notes[hand == one], bounds, STEPS if one // 2 in sustaining else STEPS_PER_BEAT))
    return np.concatenate(voices)


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
    """Density between a song and a style, in notes per four beats: their geometric mean with the amount as weight."""
    return float(density(song, bounds) ** (1 - amount) * style.notes[1] ** amount)
