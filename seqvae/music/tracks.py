"""Tracks: which notes of a piece are its melody, its drums or one instrument, and how some of them stay as they were.

Knows notes as `midi.Piece` has them, where an instrument is a program, and General MIDI's names. Refuses to know
tokens, models and files, and what a track holds beside notes (music/track_events.py).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from seqvae.errors import UsageError
from seqvae.music import band, track_events
from seqvae.music import note_metrics as measures
from seqvae.music import piece as midi
from seqvae.music.piece import DRUMS, DURATION, ONSET, PITCH, PROGRAM, Notes, Piece
from seqvae.music.track_events import Tracks

MELODY = -1
"""Stands for the melody among programs."""
_SILENT = 128  # above every pitch


def named(parts: Iterable[str | int]) -> frozenset[int]:
    """`melody`, `drums`, General MIDI names and program numbers (0 to 127) as programs, `DRUMS` and `MELODY`.

    `none` alone is no part. Raises UsageError for another word, with the names that it is a part of.
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
    """The top line of the track that is named as the melody (`track_events.is_melody`).

    None where no such track has pitched notes in the piece, or several with different names have.
    """
    if piece.tracks is None or not (mine := _melodies(piece, piece.tracks)):
        return None
    line: Notes = measures.skyline(piece.notes[np.isin(piece.tracks.home, mine)])
    return line


def _melodies(piece: Piece, tracks: Tracks) -> list[int]:
    """The tracks of one name that is the melody's; none where several have such names."""
    names = [track.name for track in tracks.events.tracks]
    pitched = np.unique(tracks.home[piece.notes[:, PROGRAM] != DRUMS]).tolist()
    mine = [i for i in pitched if i >= 0 and track_events.is_melody(names[i])]
    return mine if len({names[i].strip().lower() for i in mine}) == 1 else []


def tune(piece: Piece) -> Notes:
    """The melody that an arrangement keeps on top: the named one, else what is heard on top (`band.tune`)."""
    line = named_melody(piece)
    return band.tune(piece.notes) if line is None else line


def melody(piece: Piece) -> tuple[Notes, int]:
    """The melody of a piece, and the program that plays it; without pitched notes there is none, and -1.

    That of a named track; of a piece without one the top line of the instrument that most often has the highest note of
    an onset, as `measures.part_f1` has it. In 114 files with a track called melody, voice or lead, this finds that
    track's onsets and pitches with an F1 of .45 (pop .54, jazz .47, rock .36); the highest note of all instruments, or
    the highest instrument, does no better.
    """
    line = named_melody(piece)
    if line is not None:
        programs, counts = np.unique(line[:, PROGRAM], return_counts=True)
        return line, int(programs[counts.argmax()])
    top = measures.skyline(piece.notes)
    if not len(top):
        return top, -1
    programs, counts = np.unique(top[:, PROGRAM], return_counts=True)
    program = int(programs[counts.argmax()])
    return measures.line(piece.notes, program, highest=True), program


def keep(new: Notes, piece: Piece, parts: frozenset[int]) -> Notes:
    """`new` notes `(M, 5)` with some parts of the old ones, those of the `piece`, in the place of its own: `(K, 5)`.

    Of an instrument that is kept, and of drums, all old notes stand and none of the new ones does: if the old piece had
    none, neither has the result. Of the melody the old notes stand. The top line of its instrument is left out of the
    new notes, or the whole instrument where that played mostly the melody; and so is whatever is as high as the melody
    while it sounds, on any instrument, so that it stays on top.
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
    for onset, duration, pitch in line[:, : PITCH + 1].tolist():  # where two overlap, the later one is the melody
        sounding[onset : onset + duration] = pitch
    lowest = np.array([sounding[a : a + d].min() for a, d in stays[:, [ONSET, DURATION]].tolist()], int)
    own = stays[:, PROGRAM] == program
    if 2 * len(line) <= np.count_nonzero(old[:, PROGRAM] == program):
        own &= np.isin(_key(stays), _key(measures.line(stays, program, highest=True)))
    above = (stays[:, PITCH] >= lowest) & (stays[:, PROGRAM] != DRUMS)
    stays = stays[~(own | above)]
    stands = np.concatenate([stands, line[~np.isin(_key(line), _key(stands))]])
    return np.concatenate([stands, stays])


def homes(notes: Notes, piece: Piece, parts: frozenset[int], line: Notes | None = None) -> Tracks | None:
    """Which tracks of a piece have which `notes (M, 5)`; None where the piece has no tracks, or nothing is kept.

    Notes of the piece's that belong to `parts` have the track that they have there, and so have those of the melody
    `line` as it is played in `notes`, if its track is named. Other notes of an instrument among the parts are in the
    track with most of its notes.
    """
    if piece.tracks is None or not parts or not len(piece.notes):
        return None
    own, keys, old = piece.tracks.home, _key(notes), _key(piece.notes)  # these are in order, as notes of a piece are
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
    return Tracks(piece.tracks.events, found.astype(np.int32))


def _key(notes: Notes) -> NDArray[np.int64]:
    """A number for each note, which onset, program and pitch make."""
    onset, program, pitch = (notes[:, column].astype(np.int64) for column in (ONSET, PROGRAM, PITCH))
    return (onset * (DRUMS + 1) + program) * 128 + pitch
