"""Tracks of a piece: its melody, drums and single instruments, and keeping some of them unchanged in a blend.

Scope: notes as in `Piece`, where an instrument is a program, and General MIDI names.
Out of scope: tokens, models, files, and the events of a track beside notes (music/track_events.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from seqvae.errors import UsageError
from seqvae.music import band, track_events
from seqvae.music import piece as midi
from seqvae.music.notes import DRUMS, DURATION, ONSET, PITCH, PROGRAM, instrument_line, skyline
from seqvae.music.piece import Notes, Piece
from seqvae.music.track_events import Tracks

MELODY = -1
"""Pseudo-program of the melody."""
_SILENT = 128  # above every pitch


def named(parts: Iterable[str | int]) -> frozenset[int]:
    """Programs of `melody`, `drums`, General MIDI names and numbers (0 to 127); with `MELODY` and `DRUMS`.

    `none` alone gives the empty set. Raises UsageError for an unknown name, with the names that contain it.
    """
    names = [str(part) for part in parts]
    return frozenset() if names == ["none"] else frozenset(map(_named, names))


def _named(part: str) -> int:
    wanted = part.strip().lower()
    if wanted in ("melody", "drums"):
        return MELODY if wanted == "melody" else DRUMS
    if wanted.isdecimal() and int(wanted) < DRUMS:
        return int(wanted)
    names = [name.lower() for name in midi.general_midi()]
    if wanted in names:
        return names.index(wanted)
    near = [name for name in midi.general_midi() if wanted and wanted in name.lower()]
    choices = (
        ", ".join(near) if near else "melody, drums, a program from 0 to 127 or a General MIDI name such as Violin"
    )
    raise UsageError(f"no track '{part}'; choose {choices}")


def named_melody(piece: Piece) -> Notes | None:
    """The top line of the track whose name marks it as the melody (`track_events.is_melody`).

    None if no such track has pitched notes in the piece, or if several such tracks with different names do.
    """
    if piece.tracks is None or not (mine := _melodies(piece, piece.tracks)):
        return None
    line: Notes = skyline(piece.notes[np.isin(piece.tracks.home, mine)])
    return line


def _melodies(piece: Piece, tracks: Tracks) -> list[int]:
    """Indices of the tracks named as the melody; empty if they have several different names."""
    names = [track.name for track in tracks.events.tracks]
    pitched = np.unique(tracks.home[piece.notes[:, PROGRAM] != DRUMS]).tolist()
    mine = [i for i in pitched if i >= 0 and track_events.is_melody(names[i])]
    return mine if len({names[i].strip().lower() for i in mine}) == 1 else []


def tune(piece: Piece) -> Notes:
    """The melody that an arrangement keeps on top: the named one, else the top line that is heard (`band.tune`)."""
    line = named_melody(piece)
    return band.tune(piece.notes) if line is None else line


def melody(piece: Piece) -> tuple[Notes, int]:
    """The melody of a piece and the program that plays it; no notes and -1 for a piece without pitched notes.

    The melody is the named track's. In a piece without one it is the top line of the instrument that most often has
    the highest note of an onset, as in `measures.part_f1`. On 114 files with a track named melody, voice or lead, this
    finds the onsets and pitches of that track with F1 .45 (pop .54, jazz .47, rock .36). The highest note of all
    instruments, and the highest instrument, do no better.
    """
    line = named_melody(piece)
    if line is not None:
        programs, counts = np.unique(line[:, PROGRAM], return_counts=True)
        return line, int(programs[counts.argmax()])
    top = skyline(piece.notes)
    if not len(top):
        return top, -1
    programs, counts = np.unique(top[:, PROGRAM], return_counts=True)
    program = int(programs[counts.argmax()])
    return instrument_line(piece.notes, program, highest=True), program


def keep(new: Notes, piece: Piece, parts: frozenset[int]) -> Notes:
    """`new` notes `(M, 5)` in which some parts are replaced by those of the original `piece`: `(K, 5)`.

    For a kept instrument, and for drums, the result has all original notes and no new ones, even if the original has
    none. For the melody, the result has the original notes. The new notes lose the top line of the melody's
    instrument, or the whole instrument if it mostly played the melody in the original. Notes of any instrument that
    are as high as the melody while it sounds are removed as well, so that the melody stays on top.
    """
    old = piece.notes
    programs = sorted(parts - {MELODY})
    stands = old[np.isin(old[:, PROGRAM], programs)]
    stays = new[~np.isin(new[:, PROGRAM], programs)]
    if MELODY not in parts:
        return np.concatenate([stands, stays])
    line, program = melody(piece)
    if not len(line):
        return np.concatenate([stands, stays])
    ends = [int((notes[:, ONSET] + notes[:, DURATION]).max(initial=0)) for notes in (line, stays)]
    sounding = np.full(max(ends) + 1, _SILENT)
    for onset, duration, pitch in line[:, : PITCH + 1].tolist():  # where two notes overlap, the later is the melody
        sounding[onset : onset + duration] = pitch
    lowest = np.array([sounding[a : a + d].min() for a, d in stays[:, [ONSET, DURATION]].tolist()], int)
    own = stays[:, PROGRAM] == program
    if 2 * len(line) <= np.count_nonzero(old[:, PROGRAM] == program):
        own &= np.isin(_key(stays), _key(instrument_line(stays, program, highest=True)))
    above = (stays[:, PITCH] >= lowest) & (stays[:, PROGRAM] != DRUMS)
    stays = stays[~(own | above)]
    stands = np.concatenate([stands, line[~np.isin(_key(line), _key(stands))]])
    return np.concatenate([stands, stays])


def homes(notes: Notes, piece: Piece, parts: frozenset[int], line: Notes | None = None) -> Tracks | None:
    """Assign `notes (M, 5)` to the tracks of a piece; None if the piece has no tracks or no part is kept.

    Notes of the piece that belong to `parts` keep their track, and so does the melody `line` as played in `notes`, if
    its track is named. Other notes of a kept instrument go to the track with most of its notes.
    """
    if piece.tracks is None or not parts or not len(piece.notes):
        return None
    own, keys, old = piece.tracks.home, _key(notes), _key(piece.notes)  # `old` is sorted, as notes of a piece are
    place = np.minimum(np.searchsorted(old, keys), len(old) - 1)
    found = np.where(old[place] == keys, own[place], -1)
    for program in np.unique(notes[:, PROGRAM]).tolist():
        mine, there = notes[:, PROGRAM] == program, own[piece.notes[:, PROGRAM] == program]
        if program not in parts or not len(there):
            found[mine] = -1
        else:
            found[mine & (found < 0)] = np.bincount(np.maximum(there, 0)).argmax()
    if line is not None and (melodies := _melodies(piece, piece.tracks)):
        found[np.isin(keys, _key(line))] = melodies[0]
    return replace(piece.tracks, home=found.astype(np.int32))


def _key(notes: Notes) -> NDArray[np.int64]:
    """One integer per note that encodes onset, program and pitch, `(N,)`."""
    onset, program, pitch = (notes[:, column].astype(np.int64) for column in (ONSET, PROGRAM, PITCH))
    return (onset * (DRUMS + 1) + program) * 128 + pitch
