"""Tune books in ABC notation, as `symusic` scores.

Scope: the text of a book, its tunes, their headers, and simultaneous voices. Out of scope: the content of fields
(`abc_fields`), notes (`abc_voice`), and the order of bars (`bars`).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from fractions import Fraction

from symusic.core import KeySignatureTick, ScoreTick, TempoTick, TimeSignatureTick

from seqvae.music import abc_fields, bars
from seqvae.music.abc_voice import MOST_BARS, Bar, Voice
from seqvae.music.notes import DRUMS

_FIELD = re.compile(r"([A-Za-z+]):(?![|:])(.*)")
_LONGEST_LINE = 100_000  # letters, after macros are replaced


def decode(content: bytes) -> str:
    """The text of a tune book in UTF-8, UTF-16 with a byte order mark, or Latin-1."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def tunes(content: bytes) -> list[ScoreTick]:
    """Each tune of a book as a score at `bars.TICKS` per quarter; tunes without notes are left out.

    Repeats are expanded, parts follow the order in the header, voices sound together, and each voice with a name of
    its own has a track of its own.

    Raises:
        ValueError: a number of five digits, or more than 100,000 bars.
    """
    return [_score([tune]) for tune in _read(content)]


def titles(content: bytes) -> list[str]:
    """The title of each tune with notes in a book, empty for a tune without one."""
    return [_title(lines) for lines in _with_notes(content)]


def to_symusic(content: bytes, number: int = 0) -> ScoreTick:
    """Tune `number`, from 1, of those in `titles`; 0 for all tunes as one score, one after another.

    Raises:
        LookupError: there is no tune of that number.
        ValueError: as for `tunes`.
    """
    if not number:
        return _score(list(_read(content)))
    found = _with_notes(content)
    if number > len(found):
        raise LookupError(f"{len(found)} tunes")
    return _score([_Tune(found[number - 1])])


def _score(book: list[_Tune]) -> ScoreTick:
    result = ScoreTick(bars.TICKS)
    tracks: bars.PartTracks = {}
    start = Fraction(0)
    for tune in book:
        start += tune.add(result, tracks, start)
    bars.add_tracks(result, tracks)
    return result


def _read(content: bytes) -> Iterator[_Tune]:
    for lines in _split(decode(content)):
        tune = _Tune(lines)
        if any(bar.sounds for voice in tune.voices.values() for bar in voice.bars):
            yield tune


def _with_notes(content: bytes) -> list[list[str]]:
    """The lines of each tune that has a letter of a note outside of its fields."""
    return [lines for lines in _split(decode(content)) if any(map(_has_note, lines))]


def _has_note(line: str) -> bool:
    return _FIELD.match(line) is None and re.search("[A-Ga-g]", re.sub(r'"[^"]*"|%.*', "", line)) is not None


def _title(lines: list[str]) -> str:
    written = next((line for line in lines if line.startswith("T:")), "T:")
    return re.sub(r"(?<!\\)%.*", "", written[2:]).strip()


def _split(text: str) -> Iterator[list[str]]:
    """The lines of each tune after the fields that hold for the whole book; text between tunes is left out."""
    lines = re.sub(r"(?ms)^%%begin(\w+).*?(?:^%%end\1[^\n]*$|\Z)", "%", re.sub(r"\r\n?", "\n", text)).split("\n")
    numbered = any(line.startswith("X:") for line in lines)
    everywhere: list[str] = []
    tune: list[str] | None = None if numbered else []
    body = begun = False
    for line in lines:
        if line.startswith("X:"):
            if tune:
                yield tune
            tune, body, begun = [*everywhere, line], False, True
        elif tune is None:
            if not begun and re.match(r"[MLQRUIm]:|%%", line):
                everywhere.append(line)
        elif line.strip() or not (body and numbered):
            tune.append(line)
            body = body or line.startswith("K:")
        else:  # a blank line ends a tune, but not its header
            yield tune
            tune = None
    if tune:
        yield tune


class _Tune:
    """One tune, read from its lines."""

    def __init__(self, lines: list[str]) -> None:
        self.voices: dict[str, Voice] = {}
        self.tempo: float | None = None
        self.order: list[str] = []
        self._start = Voice()  # initial state of a voice
        self._unit: Fraction | None = None
        self._tempo = ""
        self._declared: dict[str, list[tuple[str, str]]] = {"": []}  # fields of the header, by voice
        self._name = ""  # the current voice
        self._body = False
        self._macros: dict[str, str] = {}
        keyless = not any(line.startswith("K:") for line in lines)
        for line in lines:
            self._line(line, keyless)

    def _line(self, line: str, keyless: bool) -> None:
        command = re.match(r"%%\s*(MIDI\s.*)", line)
        if command is not None:
            self._field("I", command[1])
            return
        line = re.sub(r"(?<!\\)%.*", "", line)
        found = _FIELD.match(line)
        if found is not None:
            self._field(found[1], found[2].strip())
            return
        if keyless and not self._body and "|" in line:
            self._begin("")
        if self._body:
            self._music(line)

    def _music(self, line: str) -> None:
        for name, text in self._macros.items():
            line = line.replace(name, text)
            if len(line) > _LONGEST_LINE:
                raise ValueError("a macro makes a line of more than 100,000 letters")
        rest = self._voice.read(line)
        while rest:
            letter, text, line = rest[0]
            self._field(letter, text.strip())
            rest = self._voice.read(line)

    def _field(self, letter: str, text: str) -> None:
        if letter == "m":
            name, _, replaced = text.partition("=")
            if name.strip() and "n" not in name:
                self._macros[name.strip()] = replaced.strip()
        elif self._body:
            self._body_field(letter, text)
        elif letter == "K":
            self._begin(text)
        elif letter == "M":
            self._start.metre = abc_fields.metre(text)
        elif letter == "L":
            self._unit = abc_fields.fraction(text) or self._unit
        elif letter == "Q":
            self._tempo = text
        elif letter == "P":
            self.order = abc_fields.part_order(text)
        elif letter == "V" and text.split():
            self._name = text.split()[0]
            self._declared.setdefault(self._name, []).append((letter, text))
        elif letter == "I":
            self._declared[self._name].append((letter, text))

    def _begin(self, key: str) -> None:
        """Read the K: field, which ends the header."""
        start = self._start
        if self._unit is None:
            short = start.metre is not None and 4 * start.metre[0] < 3 * start.metre[1]
            self._unit = Fraction(1, 4) if short else Fraction(1, 2)
        start.unit = self._unit
        self.tempo = abc_fields.tempo(self._tempo, start.unit)
        self._body = True
        for letter, text in self._declared[""]:
            self._apply(start, letter, text)
        self._apply(start, "K", key)
        self._choose(next((name for name in self._declared if name), "1"))

    @property
    def _voice(self) -> Voice:
        return self.voices[self._name]

    def _choose(self, name: str) -> None:
        """Continue in the voice `name`; a new one starts from the header, or from the first voice before its notes."""
        if name not in self.voices:
            start = self._start
            if len(self.voices) == 1 and not any(bar.length for bar in self._voice.bars):
                start = copy.deepcopy(self._voice) if self._name not in self._declared else start
            self.voices[name] = copy.deepcopy(start)
            self.voices[name].name = "" if name.isdigit() else name
            for letter, text in self._declared.get(name, []):
                self._apply(self.voices[name], letter, text)
        self._name = name

    def _body_field(self, letter: str, text: str) -> None:
        if letter == "V" and text.split():
            self._choose(text.split()[0])
        self._apply(self._voice, letter, text)

    def _apply(self, voice: Voice, letter: str, text: str) -> None:
        """Apply a field to `voice` from here on."""
        if letter in "KV":
            voice.shifts = voice.shifts | abc_fields.properties(text)
        if letter == "V":
            voice.name = abc_fields.voice_name(text) or voice.name
        if letter == "K":
            key = abc_fields.key(text)
            if key is not None:
                voice.key = key
                voice.bar.keys.append((voice.at, key))
        elif letter == "M":
            voice.metre = abc_fields.metre(text)
            if not voice.at:
                voice.bar.metre = voice.metre
        elif letter == "L":
            voice.unit = abc_fields.fraction(text) or voice.unit
        elif letter == "Q":
            speed = abc_fields.tempo(text, voice.unit)
            if speed:
                voice.bar.tempos.append((voice.at, speed))
        elif letter == "P":
            voice.part = text[:1]
            voice.next_bar().part = voice.part
        elif letter == "I" and text.startswith("MIDI"):
            _midi(voice, text.split()[1:])

    def add(self, score: ScoreTick, tracks: bars.PartTracks, start: Fraction) -> Fraction:
        """Add the tune to `score` and `tracks` from quarter `start`; returns its length in quarters."""
        voices = [_written(voice) for voice in self.voices.values()]
        lead = max(voices, key=lambda voice: (len(voice), any(bar.marks != bars.Marks() for bar in voice)))
        together = [voice for voice in voices if len(voice) == len(lead)]
        lengths = [max(bar.length for bar in column) for column in zip(*together, strict=True)]
        end = Fraction(0)
        for voice in voices:
            same = len(voice) == len(lead)  # aligned bar by bar with the leading voice, otherwise independent
            order = self._order(lead if same else voice)
            now, sounds = Fraction(0), []
            for index in order:
                sounds += [sound._replace(start=now + sound.start) for sound in voice[index].sounds]
                now += lengths[index] if same else voice[index].length
            bars.add_sounds(tracks, sounds, start)
            end = max(end, now)
        self._add_frame(score, lead, lengths, start)
        tempos = [(at, speed) for voice in together for at, speed in self._tempos(voice, lengths, lead)]
        if self.tempo is not None or not tempos or min(tempos)[0]:
            tempos.append((Fraction(-1), self.tempo or bars.TEMPO))
        for at, speed in sorted(tempos):
            qpm = max(bars.SLOWEST, min(bars.FASTEST, speed))
            score.tempos.append(TempoTick(bars.to_ticks(start + max(at, Fraction(0))), qpm=qpm))
        return end

    def _order(self, voice: list[Bar]) -> list[int]:
        """Indices of the bars of `voice` in playing order: its parts as in the header, each with its repeats."""
        parts: dict[str, list[int]] = {}
        for index, bar in enumerate(voice):
            parts.setdefault(bar.part, []).append(index)
        if not any(part in parts for part in self.order):
            return bars.unfold([bar.marks for bar in voice])
        order: list[int] = []
        unfolded = {part: bars.unfold([voice[index].marks for index in parts[part]]) for part in parts}
        for part in ["", *self.order]:
            order += [parts[part][index] for index in unfolded.get(part, [])]
            if len(order) > MOST_BARS:
                raise ValueError(f"more than {MOST_BARS:,} bars")
        return order

    def _places(self, voice: list[Bar], lengths: list[Fraction], lead: list[Bar]) -> Iterator[tuple[Fraction, int]]:
        now = Fraction(0)
        for index in self._order(lead):
            yield now, index
            now += lengths[index]

    def _tempos(self, voice: list[Bar], lengths: list[Fraction], lead: list[Bar]) -> Iterator[tuple[Fraction, float]]:
        for now, index in self._places(voice, lengths, lead):
            yield from ((now + at, speed) for at, speed in voice[index].tempos)

    def _add_frame(self, score: ScoreTick, lead: list[Bar], lengths: list[Fraction], start: Fraction) -> None:
        """Add metre and keys of the leading voice to `score` from quarter `start`."""
        places = list(self._places(lead, lengths, lead))
        for at, top, low in bars.metres((now, lengths[index], lead[index].metre) for now, index in places):
            score.time_signatures.append(TimeSignatureTick(bars.to_ticks(start + at), top, low))
        for now, index in places:
            for at, key in lead[index].keys:
                sharps = max(-7, min(7, key.sharps))
                score.key_signatures.append(KeySignatureTick(bars.to_ticks(start + now + at), sharps, key.minor))


def _written(voice: Voice) -> list[Bar]:
    """The bars of a voice, without an empty last bar."""
    return voice.bars if not voice.bars or voice.bars[-1].length else voice.bars[:-1]


def _midi(voice: Voice, words: list[str]) -> None:
    """Apply a %%MIDI command: "program 40", "program 2 40", "channel 10", "transpose -2", "voice 1 instrument=41"."""
    numbers = [int(word) for word in words[1:] if re.fullmatch(r"[+-]?\d{1,3}", word)]
    if not words:
        return
    if words[0] == "program" and numbers and voice.program != DRUMS:
        voice.program = numbers[-1] % 128
    elif words[0] == "channel" and numbers[:1] == [10]:
        voice.program = DRUMS
    elif words[0] in ("transpose", "rtranspose") and numbers:
        voice.shifts = voice.shifts | {words[0]: numbers[0]}
    elif words[0] == "voice":
        instrument = re.search(r"instrument=(\d{1,3})", " ".join(words))
        if instrument is not None:
            voice.program = (int(instrument[1]) - 1) % 128
