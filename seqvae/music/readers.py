"""MusicXML, Humdrum and music21's corpus as `symusic` scores, and scores as music21 streams.

Scope: music21, with repeats, ties, voices, transpositions, percussion and names of instruments.
Out of scope: the grid, `Piece`, and errors for users (music/piece.py); exceptions of music21 pass through unchanged.

The notes are collected measure by measure. music21's own MIDI export takes minutes for some scores and refuses one in
four with repeats. Importing this module imports music21, which takes half a second, so music/piece.py imports it late.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import music21
from symusic.core import KeySignatureTick, ScoreTick, TempoTick, TimeSignatureTick

from seqvae.music import humdrum, musicxml
from seqvae.music.bars import (
    FASTEST,
    SLOWEST,
    TEMPO,
    TICKS,
    VELOCITY,
    Marks,
    PartTracks,
    Sound,
    add_sounds,
    add_tracks,
    metres,
    to_ticks,
    unfold,
)
from seqvae.music.notes import DRUMS

m21: Any = music21  # only partly typed, so not checked strictly

FORMATS = {".mxl": "musicxml", ".musicxml": "musicxml", ".xml": "musicxml", ".krn": "humdrum"}
"""music21's format name for each suffix read here."""

_SNARE = 38
# General MIDI drum for the usual lines and spaces of a drum kit's staff, because music21 does not keep which
# instrument of a kit plays a note.
_KIT = {"D4": 44, "E4": 35, "F4": 36, "G4": 41, "A4": 43, "B4": 45, "C5": 38, "D5": 47, "E5": 48, "F5": 51, "G5": 42}
_KIT |= {"A5": 49, "B5": 57}

SECONDS = 60.0
"""Time limit of music21 for parsing a score, and again for converting it; a metre of 65536/8 never ends."""

P = ParamSpec("P")
T = TypeVar("T")


class _LateError(BaseException):
    """Not an `Exception`, because music21 catches many of those."""


def _limited(work: Callable[P, T]) -> Callable[P, T]:
    """`work` with TimeoutError after SECONDS; music21 is pure Python, so an exception can stop it anywhere."""

    @functools.wraps(work)
    def limited(*args: P.args, **kwargs: P.kwargs) -> T:
        thread, stop = ctypes.c_ulong(threading.get_ident()), ctypes.pythonapi.PyThreadState_SetAsyncExc
        coming = False

        def late() -> None:
            nonlocal coming
            coming = True
            stop(thread, ctypes.py_object(_LateError))

        timer = threading.Timer(SECONDS, late)
        timer.daemon = True
        timer.start()
        try:
            return work(*args, **kwargs)
        except _LateError:
            coming = False
            raise TimeoutError(f"it takes longer than {SECONDS:g} s") from None
        finally:
            timer.cancel()
            timer.join()
            if coming:  # withdraw the exception; doing so without one pending would make Python check at every step
                stop(thread, None)

    return limited


@_limited
def parse(path: Path) -> Any:
    """Read a file as a music21 stream; raises music21's exceptions, and TimeoutError after SECONDS."""
    kind = FORMATS.get(path.suffix.lower())
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # music21's warnings do not help the user of a folder of scores
        if kind == "musicxml":
            return _from_musicxml(path.read_bytes())
        reader = m21.converter.Converter()
        if kind == "humdrum":
            reader.parseData(humdrum.plain(path.read_text(encoding="utf-8", errors="replace")), format=kind)
            return reader.stream
        # `converter.parse` would leave a pickle in the temporary folder
        reader.parseFileNoPickle(path, format=kind)
    return reader.stream


@_limited
def parse_bytes(data: bytes) -> Any:
    """Read the content of a MusicXML file as a music21 stream; raises music21's exceptions."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        return _from_musicxml(data)


def _from_musicxml(data: bytes) -> Any:
    reader = m21.musicxml.xmlToM21.MusicXMLImporter()
    reader.xmlRoot = musicxml.plain(data)
    if reader.xmlRoot.tag != "score-partwise":
        raise ValueError(f"its root element is not a score but <{reader.xmlRoot.tag}>")
    reader.xmlRootToScore(reader.xmlRoot, reader.stream)  # without a stream it loses parts with two staves
    return reader.stream


def unpacked_size(file: Path | bytes) -> int:
    """Bytes of a compressed score when unpacked, from its directory, which unpacking enforces; 0 if not compressed."""
    opened = io.BytesIO(file) if isinstance(file, bytes) else file
    if not zipfile.is_zipfile(opened):
        return 0
    with zipfile.ZipFile(opened) as archive:
        return sum(one.file_size for one in archive.infolist())


def corpus_path(name: str) -> Path:
    """Path of the work `name` ("bach/bwv66.6") in music21's corpus; raises LookupError if there is none."""
    try:
        found: Any = m21.corpus.getWork(name)
    except Exception as error:  # CorpusException, but also IndexError and others for odd names
        raise LookupError(name) from error
    return Path(found[0] if isinstance(found, list) else found)


@dataclass(frozen=True)
class _Timeline:
    """Times of the measures with repeats expanded: measure `order[k]` from quarter `starts[k]` for `lengths[k]`.

    A score without measures has an empty order, and its parts are read as they are.
    """

    order: list[int]
    starts: list[Fraction]
    lengths: list[Fraction]
    end: Fraction

    def blocks(self, part: Any) -> Iterator[tuple[Fraction, Any]]:
        """The measures of `part` in playing order, each with the quarter at which it starts."""
        measures = _measures(part)
        if not self.order or not measures:
            yield Fraction(0), part.flatten()
        for start, index in zip(self.starts, self.order, strict=True):
            if index < len(measures):
                yield start, measures[index]


@_limited
def to_symusic(source: Any) -> ScoreTick:
    """Convert a music21 stream of any kind to a score at `TICKS` per quarter: one track per program and name of a part.

    Repeats are expanded, transposing instruments are written at sounding pitch, and tied notes are joined. Grace notes
    and chord symbols are left out. The tunes of an `Opus` follow one another.
    """
    score = ScoreTick(TICKS)
    tracks: PartTracks = {}
    start = Fraction(0)
    for tune in source.scores if isinstance(source, m21.stream.Opus) else [source]:
        parts = list(tune.parts) if isinstance(tune, m21.stream.Score) else []
        parts = parts or [tune]
        lead = max(parts, key=lambda part: len(_measures(part)))  # the first of equals
        timeline = _timeline(parts, lead)
        _add_frame(score, parts, lead, timeline, start)
        add_sounds(tracks, [sound for part in parts for sound in _sounds(part, timeline)], start)
        start += timeline.end
    add_tracks(score, tracks)
    return score


def _quarters(value: Any) -> Fraction:
    """An offset or length of music21 as a Fraction; music21 has floats for multiples of a power of two."""
    return Fraction(value)


def _measures(part: Any) -> list[Any]:
    return list(part.getElementsByClass(m21.stream.Measure))


def _timeline(parts: list[Any], lead: Any) -> _Timeline:
    measures = _measures(lead)
    lengths = [Fraction(0)] * len(measures)
    for part in parts:
        for index, measure in enumerate(_measures(part)[: len(lengths)]):
            lengths[index] = max(lengths[index], _quarters(measure.duration.quarterLength))
    order = _measure_order(lead, measures)
    starts, now = [], Fraction(0)
    for index in order:
        starts.append(now)
        now += lengths[index]
    if not measures:
        now = max(_quarters(part.highestTime) for part in parts)
    return _Timeline(order, starts, [lengths[index] for index in order], now)


def _measure_order(part: Any, measures: list[Any]) -> list[int]:
    """Indices of `measures` in playing order: each movement with its repeats."""
    marks = [_marks(measure) for measure in measures]
    for bracket in part.getElementsByClass(m21.spanner.RepeatBracket):
        members = {id(measure) for measure in bracket.getSpannedElements()}
        for index, measure in enumerate(measures):
            if id(measure) in members:
                marks[index].endings |= frozenset(bracket.numberRange)
    order: list[int] = []
    for first, stop in _movements(measures):
        order += [first + index for index in unfold(marks[first:stop])]
    return order


def _marks(measure: Any) -> Marks:
    """Repeats and jumps of `measure`; music21 uses "Coda" also for the place from which a jump leaves."""
    repeat = m21.repeat
    marks = Marks(forward=_is_repeat(measure.leftBarline) and measure.leftBarline.direction == "start")
    if _is_repeat(measure.rightBarline) and measure.rightBarline.direction == "end":
        marks.times = int(measure.rightBarline.times or 2)
    for mark in measure.getElementsByClass(repeat.RepeatExpression):
        if isinstance(mark, repeat.RepeatExpressionMarker):
            marks.signs |= {type(mark).__name__.lower()}
        else:
            name = type(mark).__name__
            marks.jump = "capo" if "Capo" in name else "segno"
            marks.until = next((end for end in ("fine", "coda") if end in name.lower()), "")
    return marks


def _movements(measures: list[Any]) -> Iterator[tuple[int, int]]:
    """Index ranges of the movements in `measures`; a da capo stays inside its movement.

    A movement ends where the numbering restarts, and at a final barline unless marked "Fine", after which a trio comes.
    """
    first, fine = 0, False
    for index, measure in enumerate(measures):
        fine = fine or bool(measure[m21.repeat.Fine])
        after = measures[index + 1] if index + 1 < len(measures) else None
        bar = measure.rightBarline
        final = bar is not None and bar.type == "final" and not _is_repeat(bar) and not fine
        if after is None or final or (after.number <= 1 < measure.number):
            yield first, index + 1
            first, fine = index + 1, False


def _is_repeat(barline: Any) -> bool:
    return barline is not None and "Repeat" in barline.classes


def _add_frame(score: ScoreTick, parts: list[Any], lead: Any, timeline: _Timeline, start: Fraction) -> None:
    """Add to `score`, from quarter `start`, the metre of `lead` and the keys and tempos of the first part with any."""
    for at, numerator, denominator in _metres(lead, timeline):
        score.time_signatures.append(TimeSignatureTick(to_ticks(start + at), numerator, denominator))
    for part in [lead, *parts]:
        keys = [
            (at + _quarters(signature.offset), signature)
            for at, block in timeline.blocks(part)
            for signature in block.getElementsByClass(m21.key.KeySignature)
        ]
        for at, signature in keys:
            minor = int(getattr(signature, "mode", "") == "minor")
            sharps = max(-7, min(7, signature.sharps or 0))
            score.key_signatures.append(KeySignatureTick(to_ticks(start + at), sharps, minor))
        if keys:
            break
    for part in [lead, *parts]:
        marks = [
            (at + _quarters(mark.offset), mark.getQuarterBPM())
            for at, block in timeline.blocks(part)
            for mark in block.getElementsByClass(m21.tempo.MetronomeMark)
        ]
        marks = [(at, speed) for at, speed in marks if speed]
        for at, speed in marks:
            score.tempos.append(TempoTick(to_ticks(start + at), qpm=max(SLOWEST, min(FASTEST, float(speed)))))
        if marks:
            break
    else:
        score.tempos.append(TempoTick(to_ticks(start), qpm=TEMPO))


def _metres(lead: Any, timeline: _Timeline) -> Iterator[tuple[Fraction, int, int]]:
    """(quarter, numerator, denominator) at each change of metre; a pickup or split bar has a metre of its own."""
    if not timeline.order:
        for mark in lead.flatten().getElementsByClass(m21.meter.TimeSignature):
            yield _quarters(mark.offset), mark.numerator, mark.denominator
    written: tuple[int, int] | None = None
    found = []
    for (start, measure), length in zip(timeline.blocks(lead), timeline.lengths, strict=False):
        current = measure.timeSignature
        written = (current.numerator, current.denominator) if current is not None else written
        found.append((start, length, written))
    yield from metres(found)


def _sounds(part: Any, timeline: _Timeline) -> Iterator[Sound]:
    """Every note of `part` at the times at which it sounds."""
    voicing = _Voicing(part)
    written: dict[int, list[Sound]] = {}  # a repeated measure is read once
    for start, block in timeline.blocks(part):
        if id(block) not in written:
            written[id(block)] = list(voicing.notes(block))
        yield from (sound._replace(start=start + sound.start) for sound in written[id(block)])


class _Voicing:
    """Program and transposition of a part's notes, updated as the part is read."""

    def __init__(self, part: Any) -> None:
        self.sounding = part.atSoundingPitch is not False  # "unknown" for formats without transposition
        self.program, self.semitones, self.drum = 0, 0, _SNARE
        self.part, self.places = part, set[str]()  # places: of unpitched notes, filled at the first of them
        # names in Humdrum that music21 does not know ("*I:Violino 1") stay in the part as ":Violino 1"
        unknown = (mark.tandem for mark in part.getElementsByClass("MiscTandem"))
        named = next((text[1:] for text in unknown if text[:1] in (":", '"')), "")
        self.name = " ".join((getattr(part, "partName", None) or named).split())
        self.change(part.getInstrument(returnDefault=True))

    def change(self, player: Any) -> None:
        """Set the instrument of the following notes to `player`, a music21 instrument."""
        if player.midiChannel == 9 or isinstance(player, m21.instrument.UnpitchedPercussion):
            self.program = DRUMS
        elif player.midiProgram is not None:
            self.program = int(player.midiProgram) % 128
        else:
            self.program = _program_of(player.instrumentName or player.partName or self.name) or _program_of(self.name)
        drum = getattr(player, "percMapPitch", None)
        self.drum = _SNARE if drum is None else int(drum)
        interval = None if self.sounding else player.transposition
        self.semitones = 0 if interval is None else round(interval.semitones)

    def notes(self, block: Any) -> Iterator[Sound]:
        """Every note in `block` and its voices; starts count from the beginning of the block."""
        for player in block.getElementsByClass(m21.instrument.Instrument):
            self.change(player)
        for voice in [block, *block.voices]:
            shift = Fraction(0) if voice is block else _quarters(block.elementOffset(voice))
            for item in voice.notes:
                if isinstance(item, m21.harmony.ChordSymbol) or item.duration.isGrace:
                    continue
                length = _quarters(item.duration.quarterLength)
                members = item.notes if isinstance(item, m21.chord.ChordBase) else [item]
                for member in members:
                    pitch, program = self.pitch(member)
                    kind = member.tie.type if member.tie is not None else ""
                    at, loud = shift + _quarters(item.offset), _velocity(member, item)
                    yield Sound(at, length, pitch, program, loud, kind, self.name)

    def pitch(self, member: Any) -> tuple[int, int]:
        """MIDI pitch and program of a note; an unpitched note is a drum on any instrument."""
        own = musicxml.instrument(str(member.style.color)) if member.hasStyleInformation else None
        if own is not None and own[0] == "drum":
            return own[1], DRUMS
        if isinstance(member, m21.note.Unpitched):
            return self._drum(member), DRUMS
        program = self.program if own is None or self.program == DRUMS else own[1]
        return member.pitch.midi + (0 if program == DRUMS else self.semitones), program

    def _drum(self, member: Any) -> int:
        """MIDI pitch of an unpitched note: its own, else its place's in a kit, else the part's instrument's."""
        own = getattr(member.storedInstrument, "percMapPitch", None)
        if own is not None:
            return int(own)
        if not self.places:
            unpitched = self.part.recurse().getElementsByClass(m21.note.Unpitched)
            self.places = {f"{each.displayStep}{each.displayOctave}" for each in unpitched}
        place = f"{member.displayStep}{member.displayOctave}"
        return _KIT.get(place, _SNARE) if len(self.places) > 1 else self.drum


@cache
def _program_of(name: str) -> int:
    """General MIDI program of an instrument's name ("Violino 2", "Soprano"); 0, a piano, for an unknown name."""
    try:
        program = int(m21.instrument.fromString(name).midiProgram or 0)
    except Exception:  # InstrumentException for unknown names, others for odd ones
        return 0
    return program % 128


def _velocity(member: Any, item: Any) -> int:
    for owner in (member, item):
        if owner.hasVolumeInformation() and owner.volume.velocity is not None:
            return max(1, min(127, int(owner.volume.velocity)))
    return VELOCITY


def from_symusic(score: ScoreTick) -> Any:
    """`score` as a music21 `stream.Score`: one flat part per track with its instrument.

    The first part has metre, keys and tempos. Times are exact fractions of a quarter. The parts have no bars; call
    `makeNotation()` for them.
    """
    quarter = score.ticks_per_quarter
    result = m21.stream.Score()
    for index, track in enumerate(score.tracks):
        part = m21.stream.Part(id=f"{index}: {track.name}")
        part.partName = track.name
        player: Any = m21.instrument.UnpitchedPercussion() if track.is_drum else _player(track.program)
        player.midiChannel = 9 if track.is_drum else None
        part.insert(0, player)
        for sound in track.notes:
            item = m21.note.Note(sound.pitch)
            item.duration = m21.duration.Duration(Fraction(max(1, sound.duration), quarter))
            item.volume.velocity = sound.velocity
            part.insert(Fraction(sound.time, quarter), item)
        result.insert(0, part)
    lead: Any = next(iter(result.parts), None)
    if lead is None:
        lead = m21.stream.Part()
        result.insert(0, lead)
    for metre in score.time_signatures:
        lead.insert(Fraction(metre.time, quarter), m21.meter.TimeSignature(f"{metre.numerator}/{metre.denominator}"))
    for signature in score.key_signatures:
        mode = "minor" if signature.tonality == 1 else "major"
        lead.insert(Fraction(signature.time, quarter), m21.key.KeySignature(signature.key).asKey(mode))
    for mark in score.tempos:
        lead.insert(Fraction(mark.time, quarter), m21.tempo.MetronomeMark(number=mark.qpm))
    return result


def _player(program: int) -> Any:
    player = m21.instrument.instrumentFromMidiProgram(program)
    player.midiProgram = program  # several programs share a music21 instrument
    player.transposition = None
    return player
