"""`Piece`: notes on a grid of twelve steps a beat, read from any music source and written as MIDI.

Scope: size limits, notes on the grid, conversion to and from other libraries' scores, and atomic writes. Out of scope:
tempos, metres and bars (music/frame.py), folders and caches (music/library.py), music21 streams (music/readers.py),
tokens, models.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from symusic.core import (
    NoteTickList,
    ScoreQuarter,
    ScoreSecond,
    ScoreTick,
    TrackTick,
)

from seqvae.errors import ReadError, SeqVAEError
from seqvae.io import files
from seqvae.music import losses, midi_bytes, track_events, tune_books
from seqvae.music.frame import MAX_CHUNK_STEPS as MAX_CHUNK_STEPS
from seqvae.music.frame import chunk_bounds as chunk_bounds
from seqvae.music.frame import clean_frame, seconds
from seqvae.music.frame import frame_rows as frame_rows
from seqvae.music.frame import make_frame as make_frame
from seqvae.music.notes import DRUMS as DRUMS
from seqvae.music.notes import DURATION as DURATION
from seqvae.music.notes import ONSET as ONSET
from seqvae.music.notes import PITCH as PITCH
from seqvae.music.notes import PROGRAM as PROGRAM
from seqvae.music.notes import STEPS_PER_BEAT as STEPS_PER_BEAT
from seqvae.music.notes import VELOCITY as VELOCITY
from seqvae.music.track_events import Tracks

_HOME = 5  # a sixth column during sorting: the track of each note
TICKS_PER_BEAT = 480
"""Ticks in a quarter note of written files."""

MAX_NOTES = 1_000_000
"""Limit of notes in a piece; the finale of Beethoven's Ninth has 42,000."""
MAX_BYTES = 32 << 20
"""Size limit of a file, or of an archive's content, in bytes; a million notes take less."""
MAX_BEATS = 100_000
"""Limit of quarter notes in a piece."""
MAX_HOURS = 5.0
"""Limit of a piece's duration in hours; a longer file is a recording session, not a piece."""

WRITTEN_SUFFIXES = (".mid", ".midi")
"""Suffixes of written MIDI files."""
MIDI_SUFFIXES = (*WRITTEN_SUFFIXES, ".kar", ".rmi", ".smf")
SCORE_SUFFIXES = (".mxl", ".musicxml", ".xml", ".krn", ".abc")
SUFFIXES = MIDI_SUFFIXES + SCORE_SUFFIXES
CORPUS = "corpus:"
"""Prefix of a work in music21's corpus, as in `corpus:bach/bwv66.6`."""

_ANOTHER_COPY = "get another copy of the file, or leave it out"

Notes = NDArray[np.int32]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Piece:
    """A piece of music on the grid.

    Attributes:
        notes: (N, 5) int32, columns `ONSET` and `DURATION` (at least 1) in steps, `PITCH` 0..127, `PROGRAM` 0..128
            (`DRUMS`), `VELOCITY` 1..127; sorted by onset, program and pitch, without duplicates in these three.
        bounds: (C + 1,) int32, strictly rising from 0: chunk c lasts from step `bounds[c]` to `bounds[c + 1]`. A chunk
            is a bar, or part of a bar longer than `MAX_CHUNK_STEPS`. The last chunk holds the last onset.
        frame: tempos, time and key signatures at `STEPS_PER_BEAT` ticks per quarter note, without tracks.
        name: the name of the piece, by default the stem of its file.
        tracks: the tracks of its file, or None if unknown.
        rounding: shares of its file's notes that the grid moved, and joined with another (`losses.rounding`).
    """

    notes: Notes
    bounds: NDArray[np.int32]
    frame: ScoreTick
    name: str = ""
    tracks: Tracks | None = None
    rounding: tuple[float, float] = (0.0, 0.0)

    def part(self, first: int, last: int) -> tuple[Notes, Tracks | None]:
        """Notes that begin in chunks `first` to `last - 1`, and their tracks; times count from the start of `first`."""
        start, end = self.bounds[[first, last]].tolist()
        rows = (self.notes[:, ONSET] >= start) & (self.notes[:, ONSET] < end)
        notes, scale = self.notes[rows], TICKS_PER_BEAT // STEPS_PER_BEAT
        notes[:, ONSET] -= start
        return notes, None if self.tracks is None else self.tracks.part(rows, scale * start, scale * end)


Source = str | Path | bytes | ScoreTick | ScoreQuarter | ScoreSecond | Piece | Any
"""Path, `corpus:` name, MIDI or MusicXML bytes, symusic Score, PrettyMIDI, music21 stream or `Piece`."""


def read(source: Source, *, name: str = "") -> Piece:
    """Read music from any source.

    Args:
        source: a path with one of `SUFFIXES`, a name in music21's corpus (`corpus:bach/bwv66.6`), the bytes of a MIDI
            or MusicXML file, a `symusic.Score`, a `pretty_midi.PrettyMIDI`, a music21 stream, or a `Piece`, which is
            returned unchanged. `book.abc#3` is the third tune of an ABC file, `book.abc` all tunes in a row.
        name: the name of the piece, and of the source in messages; by default the stem of the file, or a tune's title.

    Raises:
        ReadError: the source is missing, is not music, is damaged, has no notes, or exceeds `MAX_NOTES`, `MAX_BEATS`
            or `MAX_HOURS`. The message is one line that says what to do.
        TypeError: the source is of another type.
    """
    if isinstance(source, Piece):
        return source
    if isinstance(source, str | Path):
        return _read_file(source, name)
    if isinstance(source, bytes | bytearray | memoryview):
        return _read_content(bytes(source), name or "bytes", name)
    if isinstance(source, ScoreTick | ScoreQuarter | ScoreSecond):
        return _from_score(source, name or "score", name)
    library = _library(source)
    if library == "pretty_midi":
        buffer = io.BytesIO()
        _guarded(name or "PrettyMIDI", "pretty_midi cannot write it", lambda: source.write(buffer))
        return _read_content(buffer.getvalue(), name or "PrettyMIDI", name)
    if library == "music21":
        return _from_stream(source, name or "stream", name)
    raise TypeError(f"music is read from a path, bytes, a Score, PrettyMIDI or music21 stream, not {type(source)}")


def _library(source: object) -> str:
    """`pretty_midi` or `music21` if `source` is an object of that library, found without importing it; else empty."""
    homes = {kind.__module__.partition(".")[0] for kind in type(source).__mro__}
    return next((library for library in ("pretty_midi", "music21") if library in homes), "")


def resolve(source: str | Path) -> Path:
    """The file of `source`, a path, a tune's path or a work in music21's corpus; raises ReadError if there is none."""
    text = source if isinstance(source, str) else source.as_posix()
    if text.startswith(CORPUS):
        from seqvae.music import readers

        try:
            return readers.corpus_path(text.removeprefix(CORPUS))
        except LookupError:
            advice = "try corpus:bach/bwv66.6, or list the works with music21.corpus.getPaths()"
            raise ReadError(text, "music21's corpus has no such work", advice) from None
    path, _ = tune_books.divided(source)
    if path.is_dir():
        raise ReadError(path, "it is a folder", "name a file in it")
    if not path.exists():
        raise ReadError(path, "there is no such file", "check the name and the folder")
    return path


def _read_file(source: str | Path, name: str) -> Piece:
    path = resolve(source)
    inside, number = str(source).startswith(CORPUS), tune_books.divided(source)[1]
    name = name or (tune_books.title(source) if number else path.stem)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES and not inside:
        kind = f"'{path.suffix}' is not a kind of music file known here" if suffix else "its name has no suffix"
        raise ReadError(path, kind, f"convert it to one of {' '.join(SUFFIXES)}")
    if not path.is_file():
        raise ReadError(source, "it is no plain file", "copy its content into one")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ReadError(source, f"{error.strerror or error}".lower(), "check the file's permissions") from error
    if not content:
        raise ReadError(source, "the file is empty", _ANOTHER_COPY)
    _check_size(len(content), source)
    if suffix in MIDI_SUFFIXES:
        return _from_midi(content, source, name)
    if suffix == ".abc":
        return _from_abc(content, source, name, number)
    return _from_notation(path, source, name)


def _read_content(content: bytes, label: str, name: str) -> Piece:
    if not content:
        raise ReadError(label, "it is empty", "give the content of a MIDI or MusicXML file")
    _check_size(len(content), label)
    head = content.lstrip()[:400]
    if content[:2] == b"PK" or head.removeprefix(b"\xef\xbb\xbf").startswith((b"<?xml", b"<score-", b"<!DOCTYPE")):
        return _from_notation(content, label, name)
    return _from_midi(content, label, name)


def _check_size(size: int, label: str | Path) -> None:
    """Raise ReadError if `size` in bytes exceeds `MAX_BYTES`."""
    if size > MAX_BYTES:
        raise ReadError(label, f"it has more than {MAX_BYTES >> 20} MB", "give one piece of music, not a recording")


def _from_midi(content: bytes, label: str | Path, name: str) -> Piece:
    tidy = midi_bytes.tidy(content, label, MAX_BEATS)
    score = _guarded(label, "the MIDI data is damaged", lambda: ScoreTick.from_midi(tidy, sanitize_data=True))
    if title := midi_bytes.title(tidy):  # symusic leaves out tracks without notes
        score.tracks.insert(0, TrackTick(title))
    return _from_score(score, label, name)


def _from_abc(content: bytes, label: str | Path, name: str, number: int) -> Piece:
    from seqvae.music import abc

    try:
        score = abc.to_symusic(content, number)
    except LookupError as error:
        raise ReadError(label, f"the file has {error}", "name one of them, from #1 on") from error
    except ValueError as error:
        raise ReadError(label, f"its ABC cannot be read ({_plain(error)})", "correct it, or leave it out") from error
    return _from_score(score, label, name)


def _from_notation(file: Path | bytes, label: str | Path, name: str) -> Piece:
    from seqvae.music import readers

    def parse() -> Any:
        _check_size(readers.unpacked_size(file), label)
        return readers.parse_bytes(file) if isinstance(file, bytes) else readers.parse(file)

    return _from_stream(_guarded(label, "music21 cannot read it", parse), label, name)


def _from_stream(stream: Any, label: str | Path, name: str) -> Piece:
    from seqvae.music import readers

    score = _guarded(label, "music21's stream cannot be read", lambda: readers.to_symusic(stream))
    return _from_score(score, label, name)


def _guarded(label: str | Path, reason: str, call: Callable[[], T]) -> T:
    """The result of `call`; any exception of a library becomes a ReadError with `reason`."""
    try:
        return call()
    except ReadError:
        raise
    except Exception as error:
        raise ReadError(label, f"{reason} ({_plain(error)})", _ANOTHER_COPY) from error


def _plain(error: Exception) -> str:
    """The message of a library's exception, without its own prefix, cut to 120 characters."""
    text = str(error).removeprefix("MiniMidi: ").removesuffix(": iostream error").strip() or type(error).__name__
    text = " ".join(text.split())
    return text if len(text) <= 120 else text[:119] + "…"


def _from_score(score: Any, label: str | Path, name: str) -> Piece:
    """Convert a symusic score in any time unit: notes and frame are rounded to the grid."""
    ticks = _guarded(label, "its times are damaged", lambda: score.to("tick"))
    frame = _guarded(label, "its times are damaged", lambda: clean_frame(ticks, MAX_BEATS))
    events, homes = _guarded(
        label, "its tracks are damaged", lambda: track_events.read(ticks, TICKS_PER_BEAT, MAX_BEATS)
    )
    rows = []
    for track, home in zip(ticks.tracks, homes, strict=True):
        a = track.notes.numpy()
        program = np.full_like(a["time"], DRUMS if track.is_drum else track.program)
        place = np.full_like(a["time"], home)
        columns = (a["time"], a["duration"], a["pitch"], program, a["velocity"], place)
        rows.append(np.stack([column.astype(np.int64) for column in columns], axis=1))
    notes = np.concatenate([np.zeros((0, 6), np.int64), *rows])
    if not len(notes):
        raise ReadError(label, "there is not a single note in it", "give a file with notes")
    per_quarter = ticks.ticks_per_quarter
    exact = notes[:, ONSET] * (STEPS_PER_BEAT / per_quarter)
    notes[:, :2] = (notes[:, :2] * (2 * STEPS_PER_BEAT) + per_quarter) // (2 * per_quarter)  # to the nearest step
    _check_limits(notes, frame, label)
    notes[:, DURATION] = np.maximum(notes[:, DURATION], 1)
    notes[:, PITCH:_HOME] = np.clip(notes[:, PITCH:_HOME], [0, 0, 1], [127, DRUMS, 127])
    bounds = chunk_bounds(frame_rows(frame)[1], int(notes[:, ONSET].max()) + 1)
    found = _distinct(notes)
    tracks = Tracks(events, found[:, _HOME], track_events.title(ticks))
    rounding = losses.rounding(exact - notes[:, ONSET], len(found))
    return Piece(np.ascontiguousarray(found[:, :_HOME]), bounds, frame, name, tracks, rounding)


def _distinct(notes: NDArray[Any]) -> Notes:
    """(N, 6) sorted by onset, program and pitch; of duplicates the longest note is kept, in the first track."""
    notes = notes[np.lexsort((-notes[:, DURATION], notes[:, PITCH], notes[:, PROGRAM], notes[:, ONSET]))]
    place = notes[:, [ONSET, PROGRAM, PITCH]]
    first = np.ones(len(notes), bool)
    first[1:] = (place[1:] != place[:-1]).any(axis=1)
    found: Notes = notes[first].astype(np.int32)
    if len(found) < len(notes):
        found[:, _HOME] = np.minimum.reduceat(notes[:, _HOME], np.flatnonzero(first))
    return found


def _check_limits(notes: NDArray[np.int64], frame: ScoreTick, label: str | Path) -> None:
    """Raise ReadError if the piece exceeds a limit, which suggests a damaged file; times of `notes` in steps."""
    advice = "cut it into pieces first"
    if len(notes) > MAX_NOTES:
        raise ReadError(label, f"it has {len(notes):,} notes, and the limit is {MAX_NOTES:,}", advice)
    end = int((notes[:, ONSET] + notes[:, DURATION]).max())
    if end > MAX_BEATS * STEPS_PER_BEAT or int(notes[:, :2].min()) < 0:  # symusic's times wrap around below zero
        raise ReadError(label, f"it is longer than {MAX_BEATS:,} quarter notes", advice)
    hours = seconds(frame, end) / 3600
    if hours > MAX_HOURS:
        raise ReadError(label, f"it lasts {hours:.1f} hours, and the limit is {MAX_HOURS:g}", advice)


def to_score(
    notes: Notes, frame: ScoreTick, *, velocity: int | None = None, tracks: Tracks | None = None
) -> ScoreTick:  # fmt: skip
    """Convert notes to a score: one track per program, drums on a drum track, tempos, metres and keys from the frame.

    A note is cut where the next note of its pitch and program begins, because readers disagree on which of two
    overlapping notes a note-off ends.

    Args:
        notes: (N, 5) as in `Piece`, in any order.
        frame: the frame of a piece, or any score without tracks.
        velocity: 1..127 for every note, instead of the notes' own.
        tracks: events of the tracks beside notes; notes without a home there get one track per program with its pedal.

    Returns:
        A score at `TICKS_PER_BEAT` ticks per quarter; its tracks have General MIDI names and are sorted by program. A
        title is the name of a first track without notes.
    """
    score = frame.resample(TICKS_PER_BEAT)
    if tracks is not None and tracks.title:
        score.tracks.append(TrackTick(tracks.title))
    scale = TICKS_PER_BEAT // STEPS_PER_BEAT
    home = np.full(len(notes), -1) if tracks is None else tracks.home
    notes = _distinct(np.column_stack([notes, home]))
    notes[:, _HOME] = track_events.joined(notes[:, PROGRAM], notes[:, _HOME])
    notes = notes[np.lexsort((notes[:, ONSET], notes[:, PITCH], notes[:, PROGRAM]))]
    same = (notes[1:, [PITCH, PROGRAM]] == notes[:-1, [PITCH, PROGRAM]]).all(1)
    room = np.where(same, notes[1:, ONSET] - notes[:-1, ONSET], MAX_BEATS * STEPS_PER_BEAT)
    notes[:-1, DURATION] = np.minimum(notes[:-1, DURATION], room)
    for program, place in np.unique(notes[:, [PROGRAM, _HOME]], axis=0).tolist():
        part = notes[(notes[:, PROGRAM] == program) & (notes[:, _HOME] == place)]
        part = part[np.lexsort((part[:, PITCH], part[:, ONSET]))]
        loud = np.full(len(part), velocity) if velocity is not None else part[:, VELOCITY]
        drums = program == DRUMS
        track = TrackTick("Drums" if drums else general_midi()[program], 0 if drums else program, drums)
        track.notes = NoteTickList.from_numpy(
            np.ascontiguousarray(part[:, ONSET] * scale, np.int32),
            np.ascontiguousarray(np.maximum(part[:, DURATION], 1) * scale, np.int32),
            np.ascontiguousarray(part[:, PITCH], np.int8),
            np.ascontiguousarray(np.clip(loud, 1, 127), np.int8),
        )
        if tracks is not None and place >= 0:
            track_events.dress(track, tracks.events.tracks[place])
        elif tracks is not None:
            track_events.sustain(track, tracks.events)
        score.tracks.append(track)
    if tracks is not None:
        score.markers = tracks.events.markers.copy()
    return score


@cache
def general_midi() -> list[str]:
    """The 128 names of the General MIDI programs."""
    from pretty_midi import program_to_instrument_name  # takes 0.2 s to import, which reading does not need

    return [program_to_instrument_name(program) for program in range(128)]


def to_bytes(score: ScoreTick) -> bytes:
    """The content of a MIDI file (type 1) for `score`."""
    if not score.tracks:  # symusic writes tempos and signatures into a track; without any track they are garbled
        score = score.copy()
        score.tracks.append(TrackTick(""))
    return score.dumps_midi()


def write(score: ScoreTick, path: str | Path) -> Path:
    """Write a MIDI file atomically and return its path; missing folders are created.

    Raises:
        SeqVAEError: the file cannot be written (disk full, folder read-only); no partial file is left.
    """
    path = Path(path)
    try:
        write_whole(path, to_bytes(score))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        advice = "choose another name or folder, or free some space"
        raise SeqVAEError(f"cannot write {path}: {reason}; {advice}") from error
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to a file atomically; raises OSError on failure and leaves no partial file."""
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(content)  # a device or pipe must not be replaced by a file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as part:
        part.write_bytes(content)


def to_pretty_midi(score: ScoreTick) -> Any:
    """`score` as a `pretty_midi.PrettyMIDI`."""
    from pretty_midi import PrettyMIDI

    return PrettyMIDI(io.BytesIO(to_bytes(score)))


def to_music21(score: ScoreTick) -> Any:
    """`score` as a `music21.stream.Score`: one part per track, exact times, no bars (call `makeNotation()`)."""
    from seqvae.music import readers

    return readers.from_symusic(score)
