"""Scores that music21 can read or show: MusicXML, Humdrum, ABC and the corpus inside it, as a `symusic` score and back.

Knows music21: where a score keeps its repeats, ties, voices, transpositions and percussion, and how it names
instruments. Refuses to know the grid, `Piece` and what becomes of a file that cannot be read (`midi` does): what
music21 raises goes through as it is. music21's own MIDI export is not used, because it took minutes for some scores and
refuses one in four with repeats; the notes are collected measure by measure instead.

Importing this module imports music21, which takes half a second: `midi` does so only when it needs it.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import io
import re
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import music21
from symusic.core import KeySignatureTick, NoteTick, ScoreTick, TempoTick, TimeSignatureTick, TrackTick

m21: Any = music21  # typed in parts only: strict checking ends at this border

TICKS = 10_080
"""Ticks in a quarter note: music21's own figure, in which thirds, fifths, sevenths and ninths are whole."""

FORMATS = {".mxl": "musicxml", ".musicxml": "musicxml", ".xml": "musicxml", ".krn": "humdrum", ".abc": "abc"}
"""Suffixes read here, with music21's name of the format."""

_DRUMS = 128
_SNARE = 38
# General MIDI's drum for the usual lines and spaces of a drum kit's staff: music21 loses which instrument of a kit a
# note belongs to.
_KIT = {"D4": 44, "E4": 35, "F4": 36, "G4": 41, "A4": 43, "B4": 45, "C5": 38, "D5": 47, "E5": 48, "F5": 51, "G5": 42}
_KIT |= {"A5": 49, "B5": 57}
_VELOCITY = 80  # of notes whose score does not say, mezzo-forte
_TEMPO = 100.0  # of scores that say none
_SLOWEST, _FASTEST = 4.0, 1000.0  # quarters a minute that a MIDI file can say and a listener can follow


SECONDS = 60.0
"""How long music21 may work on a score, twice: some go on without an end, as with a metre of 65536/8."""

P = ParamSpec("P")
T = TypeVar("T")


class _LateError(BaseException):
    """No `Exception`, of which music21 lets many pass."""


def _limited(work: Callable[P, T]) -> Callable[P, T]:
    """The same, but TimeoutError after SECONDS; music21 is Python throughout, so that it can be stopped anywhere."""

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
            if coming:  # it has no use any more. To ask so in vain would leave Python looking for one at every step
                stop(thread, None)

    return limited


@_limited
def parse(path: Path) -> Any:
    """A file as a music21 stream; raises whatever music21 raises, and TimeoutError where that takes SECONDS."""
    if path.suffix.lower() == ".abc":
        _refuse_long_numbers(path.read_text(encoding="utf-8", errors="replace"))
    if path.suffix != path.suffix.lower():  # music21 knows an archive by its name, and only in small letters
        return parse_bytes(path.read_bytes(), path.suffix.lower())
    reader = m21.converter.Converter()
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # what music21 can live with is no news to the user of a folder of scores
        # `converter.parse` would leave a pickle in the temporary folder
        reader.parseFileNoPickle(path, format=FORMATS.get(path.suffix))
    return reader.stream


def unpacked_size(file: Path | bytes) -> int:
    """Bytes of a compressed score when unpacked, as its table of contents has it, which unpacking holds to; else 0."""
    opened = io.BytesIO(file) if isinstance(file, bytes) else file
    if not zipfile.is_zipfile(opened):
        return 0
    with zipfile.ZipFile(opened) as archive:
        return sum(one.file_size for one in archive.infolist())


def parse_bytes(data: bytes, suffix: str) -> Any:
    """The content of a file of the format that `suffix` names as a music21 stream; raises whatever music21 raises."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "score" + suffix)
        path.write_bytes(data)
        return parse(path)


def _refuse_long_numbers(abc: str) -> None:
    """ValueError for a length, metre or tempo of five digits, of which music21 would make as many bars as memory holds.

    Words are looked over: quoted, in comments, and in fields such as titles and lyrics.
    """
    music = re.sub(r'"[^"\n]*"|%.*', "", abc)
    if re.search(r"^(?:[MLQ]:|(?![A-Za-z]:)).*\d{5}", music, re.MULTILINE):
        raise ValueError("a number of five digits where lengths, metres and tempos are")


def corpus_path(name: str) -> Path:
    """Where music21 keeps the work `name` ("bach/bwv66.6") of its corpus; LookupError if there is none."""
    try:
        found: Any = m21.corpus.getWork(name)
    except Exception as error:  # CorpusException, but also IndexError and others on odd names
        raise LookupError(name) from error
    return Path(found[0] if isinstance(found, list) else found)


class _Sound(NamedTuple):
    """One note as it sounds; times in quarters."""

    start: Fraction
    length: Fraction
    pitch: int
    program: int
    velocity: int


@dataclass(frozen=True)
class _Timeline:
    """When each measure sounds, repeats expanded: measure `order[k]` from quarter `starts[k]` for `lengths[k]`.

    A score without measures has an empty order: its parts sound as they stand.
    """

    order: list[int]
    starts: list[Fraction]
    lengths: list[Fraction]
    end: Fraction

    def blocks(self, part: Any) -> Iterator[tuple[Fraction, Any]]:
        """The stretches of `part` in the order they sound, each with the quarter at which it starts."""
        measures = _measures(part)
        if not self.order or not measures:
            yield Fraction(0), part.flatten()
        for start, index in zip(self.starts, self.order, strict=True):
            if index < len(measures):
                yield start, measures[index]


@_limited
def to_symusic(source: Any) -> ScoreTick:
    """A music21 stream of any kind as a score at `TICKS` a quarter: one track a program, drums on 128's own track.

    Repeats are expanded where music21 can and left as written where it refuses. Transposing instruments sound as heard,
    ties become one note, grace notes and chord symbols are left out. The tunes of an `Opus` follow one another.
    """
    score = ScoreTick(TICKS)
    tracks: dict[int, TrackTick] = {}
    start = Fraction(0)
    for tune in source.scores if isinstance(source, m21.stream.Opus) else [source]:
        parts = list(tune.parts) if isinstance(tune, m21.stream.Score) else []
        parts = parts or [tune]
        lead = max(parts, key=lambda part: len(_measures(part)))  # of equals the first
        timeline = _timeline(parts, lead)
        _add_frame(score, parts, lead, timeline, start)
        for part in parts:
            for sound in _sounds(part, timeline):
                if sound.program not in tracks:
                    drums = sound.program == _DRUMS
                    tracks[sound.program] = TrackTick("", 0 if drums else sound.program, drums)
                at, length = _tick(start + sound.start), max(1, _tick(sound.length))
                tracks[sound.program].notes.append(NoteTick(at, length, sound.pitch, sound.velocity))
        start += timeline.end
    for program in sorted(tracks):
        score.tracks.append(tracks[program])
    return score


def _tick(quarters: Fraction) -> int:
    return round(quarters * TICKS)


def _quarters(value: Any) -> Fraction:
    """music21's offset or length: a float when it is a multiple of a power of two, else a Fraction."""
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
    """Indices of `measures` in the order they sound: each movement with its repeats where music21 can expand them."""
    order: list[int] = []
    brackets = list(part.getElementsByClass(m21.spanner.RepeatBracket))
    for first, stop in _movements(measures):
        plain = list(range(first, stop))
        movement = measures[first:stop]
        repeats = any(_is_repeat(m.leftBarline) or _is_repeat(m.rightBarline) for m in movement)
        if repeats or any(m[m21.repeat.RepeatMark] for m in movement):
            try:
                expanded = [first + index for index in _expand(movement, brackets)]
            except Exception:  # music21 raises many kinds on badly formed repeats: take the movement as written
                expanded = plain
            # hardly any music sounds more than a few times as long as written; a misread mark soon does
            order += expanded if len(expanded) <= 8 * len(plain) + 20 else plain
        else:
            order += plain
    return order


def _movements(measures: list[Any]) -> Iterator[tuple[int, int]]:
    """Index ranges of `measures` that a da capo stays inside.

    A movement ends where numbering starts again, and at a final barline unless that says "Fine": then a trio follows.
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


def _expand(movement: list[Any], brackets: list[Any]) -> list[int]:
    """Indices of the measures of `movement` as they sound; music21 finds them on a skeleton without notes, fast."""
    hollow = [_hollow(index, measure) for index, measure in enumerate(movement)]
    skeleton = m21.stream.Part()
    skeleton.append(hollow)
    place = {id(measure): index for index, measure in enumerate(movement)}
    for bracket in brackets:
        members = [hollow[place[id(m)]] for m in bracket.getSpannedElements() if id(m) in place]
        if members:
            skeleton.insert(0, m21.spanner.RepeatBracket(members, number=bracket.number))
    expanded = m21.repeat.Expander(skeleton).process()
    return [int(measure.id) for measure in expanded.getElementsByClass(m21.stream.Measure)]


def _is_repeat(barline: Any) -> bool:
    return barline is not None and "Repeat" in barline.classes


def _hollow(index: int, measure: Any) -> Any:
    """`measure` as a rest with its repeat marks; `index` is its id, for music21 changes its number."""
    result = m21.stream.Measure(number=index)
    result.id = str(index)
    result.append(m21.note.Rest(quarterLength=max(measure.duration.quarterLength, 1)))
    if measure.leftBarline is not None:
        result.leftBarline = copy.deepcopy(measure.leftBarline)
    if measure.rightBarline is not None:
        result.rightBarline = copy.deepcopy(measure.rightBarline)
    for mark in measure.getElementsByClass(m21.repeat.RepeatExpression):
        result.insert(0, copy.deepcopy(mark))
    return result


def _add_frame(score: ScoreTick, parts: list[Any], lead: Any, timeline: _Timeline, start: Fraction) -> None:
    """Metre and keys of `lead`, and tempos of the first part that has any, added to `score` from quarter `start`."""
    for at, numerator, denominator in _metres(lead, timeline):
        score.time_signatures.append(TimeSignatureTick(_tick(start + at), numerator, denominator))
    for at, block in timeline.blocks(lead):
        for signature in block.getElementsByClass(m21.key.KeySignature):
            minor = int(getattr(signature, "mode", "") == "minor")
            sharps = max(-7, min(7, signature.sharps or 0))
            score.key_signatures.append(
                KeySignatureTick(_tick(start + at + _quarters(signature.offset)), sharps, minor)
            )
    for part in [lead, *parts]:
        marks = [
            (at + _quarters(mark.offset), mark.getQuarterBPM())
            for at, block in timeline.blocks(part)
            for mark in block.getElementsByClass(m21.tempo.MetronomeMark)
        ]
        marks = [(at, speed) for at, speed in marks if speed]
        for at, speed in marks:
            score.tempos.append(TempoTick(_tick(start + at), qpm=max(_SLOWEST, min(_FASTEST, float(speed)))))
        if marks:
            break
    else:
        score.tempos.append(TempoTick(_tick(start), qpm=_TEMPO))


def _metres(lead: Any, timeline: _Timeline) -> Iterator[tuple[Fraction, int, int]]:
    """(quarter, numerator, denominator) where the metre changes; a pickup or a split bar is a metre of its own."""
    current: Any = None
    last: tuple[int, int] | None = None
    if not timeline.order:
        for mark in lead.flatten().getElementsByClass(m21.meter.TimeSignature):
            yield _quarters(mark.offset), mark.numerator, mark.denominator
    for (start, measure), length in zip(timeline.blocks(lead), timeline.lengths, strict=False):
        current = measure.timeSignature or current
        written = (current.numerator, current.denominator) if current is not None else (4, 4)
        sounding = _as_metre(length, written)
        if (sounding or written) != last:
            yield start, *(sounding or written)
        # where no metre says this length, the grid restarts at the next bar line
        last = sounding


def _as_metre(length: Fraction, written: tuple[int, int]) -> tuple[int, int] | None:
    """The metre in which a bar has `length` quarters: the written one if it does; None if no usual one does."""
    if length in (0, Fraction(4 * written[0], written[1])):
        return written
    for denominator in (4, 8, 16, 32):
        beats = length * denominator / 4
        if beats.denominator == 1 and beats < 256:
            return int(beats), denominator
    return None


def _sounds(part: Any, timeline: _Timeline) -> list[_Sound]:
    """Every note of `part` as it sounds, tied notes joined."""
    found: list[_Sound] = []
    held: dict[int, int] = {}  # pitch -> index in `found` of the note that a tie keeps open
    voicing = _Voicing(part)
    written: dict[int, list[tuple[Fraction, _Sound, str]]] = {}  # a repeated measure is looked at once
    for start, block in timeline.blocks(part):
        if id(block) not in written:
            written[id(block)] = list(voicing.notes(block))
        for offset, sound, tie in written[id(block)]:
            at = start + offset
            before = held.pop(sound.pitch, None)
            joins = before is not None and tie in ("stop", "continue")
            if before is not None and joins and abs(found[before].start + found[before].length - at) < Fraction(1, 999):
                found[before] = found[before]._replace(length=found[before].length + sound.length)
            else:
                before = len(found)
                found.append(sound._replace(start=at))
            if tie in ("start", "continue"):
                held[sound.pitch] = before
    return [sound for sound in found if 0 <= sound.pitch < 128]


class _Voicing:
    """Which program, and which transposition, the notes of a part have at the place reached so far."""

    def __init__(self, part: Any) -> None:
        self.sounding = part.atSoundingPitch is not False  # "unknown" is what formats without transposition say
        self.program, self.semitones, self.drum = 0, 0, _SNARE
        self.part, self.places = part, set[str]()  # of unpitched notes, once there is one
        # Humdrum's names that music21 does not know ("*I:Violino 1") stay in the part as ":Violino 1"
        unknown = (mark.tandem for mark in part.getElementsByClass("MiscTandem"))
        named = next((text[1:] for text in unknown if text[:1] in (":", '"')), "")
        self.name = getattr(part, "partName", None) or named
        self.change(part.getInstrument(returnDefault=True))

    def change(self, player: Any) -> None:
        """The notes that follow are played by `player`, a music21 instrument."""
        if player.midiChannel == 9 or isinstance(player, m21.instrument.UnpitchedPercussion):
            self.program = _DRUMS
        elif player.midiProgram is not None:
            self.program = int(player.midiProgram) % 128
        else:
            self.program = _program_of(player.instrumentName or player.partName or self.name) or _program_of(self.name)
        drum = getattr(player, "percMapPitch", None)
        self.drum = _SNARE if drum is None else int(drum)
        interval = None if self.sounding else player.transposition
        self.semitones = 0 if interval is None else round(interval.semitones)

    def notes(self, block: Any) -> Iterator[tuple[Fraction, _Sound, str]]:
        """(offset in `block`, note, kind of tie or "") of every note in `block`, its voices included."""
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
                    tie = member.tie or item.tie
                    sound = _Sound(Fraction(0), length, pitch, program, _velocity(member, item))
                    yield shift + _quarters(item.offset), sound, tie.type if tie is not None else ""

    def pitch(self, member: Any) -> tuple[int, int]:
        """MIDI pitch and program of one note; an unpitched one is a drum, whoever plays it."""
        if isinstance(member, m21.note.Unpitched):
            return self._drum(member), _DRUMS
        return member.pitch.midi + (0 if self.program == _DRUMS else self.semitones), self.program

    def _drum(self, member: Any) -> int:
        """MIDI pitch of an unpitched note: its own, that of its place in a kit, or that of the part's instrument."""
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
    """The General MIDI program of an instrument's name, "Violino 2" or "Soprano"; 0, a piano, when it says nothing."""
    try:
        program = int(m21.instrument.fromString(name).midiProgram or 0)
    except Exception:  # InstrumentException on unknown names, others on odd ones
        return 0
    return program % 128


def _velocity(member: Any, item: Any) -> int:
    for owner in (member, item):
        if owner.hasVolumeInformation() and owner.volume.velocity is not None:
            return max(1, min(127, int(owner.volume.velocity)))
    return _VELOCITY


def from_symusic(score: ScoreTick) -> Any:
    """`score` as a music21 `stream.Score`: a flat part a track with its instrument; metre, keys, tempos in the first.

    Times are exact fractions of a quarter, and nothing is quantized. Call `makeNotation()` on the result for bars.
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
    player.midiProgram = program  # several programs share one music21 instrument
    player.transposition = None
    return player
