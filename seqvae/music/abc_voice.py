"""A voice of a tune in ABC notation: its notes, rests and bar lines, bar by bar.

Scope: the music code of the standard 2.1 as abc2midi reads it. Out of scope: the content of fields (`abc_fields`),
tunes and simultaneous voices (`abc`), and chord symbols, grace notes and lyrics, which are left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction

from seqvae.music import abc_fields, bars
from seqvae.music.bars import Metre, Sound
from seqvae.music.notes import DRUMS

MOST_BARS = 100_000
"""Limit of bars in a voice."""

_LENGTH = r"(?:\d*/{0,6}\d*)"
_NUMBERS = r"\d[\d,.\-]*"
_TOKEN = re.compile(
    r"\[(?P<field>[A-Za-z]):(?P<text>[^\]]*)\]"
    r"|\((?P<tuplet>\d)(?::(?P<time>\d?))?(?::(?P<count>\d{0,2}))?"
    rf"|(?P<bar>\[?[|:]*\|[|:]*\]?|::+)(?:\s*\[?\s*(?P<ending>{_NUMBERS}))?"
    rf'|\[\s*(?P<bracket>{_NUMBERS}|(?="))'
    r'|"[^"]*"?|\{[^}]*\}?|y\d*'
    r"|!(?P<mark>[^!\s|]{1,30})!|\+(?P<old>[^+\s|]{1,30})\+"
    rf"|(?P<sign>\^\^?/?|__?/?|=)?(?P<letter>[A-Ga-g])(?P<octave>[,']*)(?P<length>{_LENGTH})"
    rf"|[zx](?P<rest>{_LENGTH})|[ZX](?P<rests>\d*)"
    rf"|(?P<open>\[)|(?P<close>\])(?P<chord>{_LENGTH})"
    r"|(?P<broken><{1,3}|>{1,3})|(?P<tie>-)|(?P<overlay>&)"
)
_DYNAMICS = {"pppp": 20, "ppp": 32, "pp": 44, "p": 56, "mp": 68, "mf": 80, "f": 92, "ff": 104, "fff": 116, "ffff": 124}
_TUPLET_TIME = {2: 3, 3: 2, 4: 3, 6: 2, 8: 3}
_JUMP = re.compile(r"(?:D\.|da)(C\.?|S\.?|capo|segno)(?:al)?(fine|coda)?$", re.IGNORECASE)


@dataclass
class Bar:
    """A bar as written: notes with their offset in it, and its changes of key and tempo."""

    metre: Metre | None
    part: str
    marks: bars.Marks = field(default_factory=bars.Marks)
    length: Fraction = Fraction(0)
    sounds: list[Sound] = field(default_factory=list)
    keys: list[tuple[Fraction, abc_fields.Key]] = field(default_factory=list)
    tempos: list[tuple[Fraction, float]] = field(default_factory=list)


@dataclass
class _Event:
    """A note, chord or rest: start in the bar, length, and the staff place and pitch of each of its notes."""

    start: Fraction
    length: Fraction
    first: int  # index of its first sound in the bar
    places: list[tuple[tuple[str, int], int]] = field(default_factory=list)


@dataclass
class Voice:
    """A voice, and the state of reading it."""

    key: abc_fields.Key = field(default_factory=abc_fields.Key)
    metre: Metre | None = (4, 4)
    unit: Fraction = Fraction(1, 2)
    program: int = 0
    name: str = ""
    velocity: int = bars.VELOCITY
    shifts: dict[str, int] = field(default_factory=dict)  # transpositions in semitones, by property
    part: str = ""
    bars: list[Bar] = field(default_factory=list)

    _at: Fraction = Fraction(0)  # quarters from the start of the bar
    _accidentals: dict[str, int] = field(default_factory=dict)  # by letter, for the bar and all octaves
    _endings: frozenset[int] = frozenset()
    _ties: dict[tuple[str, int], int] = field(default_factory=dict)  # pitches tied from the previous event
    _held: dict[tuple[str, int], int] = field(default_factory=dict)  # pitches tied from the event before that
    _last: _Event | None = None
    _chord: bool = False  # whether a chord is open
    _chord_factor: Fraction = Fraction(1)  # scale of the chord's length by tuplets and broken rhythm
    _broken: Fraction = Fraction(1)
    _ratio: Fraction = Fraction(1)
    _ratio_left: int = 0

    @property
    def bar(self) -> Bar:
        """The current bar."""
        if not self.bars:
            self.bars.append(Bar(self.metre, self.part))
        return self.bars[-1]

    @property
    def at(self) -> Fraction:
        """The current position in the bar, in quarters."""
        return self._at

    def next_bar(self) -> Bar:
        """Begin a new bar, or keep the current one if it is empty."""
        self._accidentals, self._at, self._last = {}, Fraction(0), None
        if self.bar.length:
            if len(self.bars) >= MOST_BARS:
                raise ValueError(f"more than {MOST_BARS:,} bars")
            self.bars.append(Bar(self.metre, self.part))
            self.bar.marks.endings = self._endings
        return self.bar

    def read(self, line: str) -> list[tuple[str, str, str]]:
        """Read `line` up to its first inline field; returns the field's letter, its text and the rest, if any."""
        for token in _TOKEN.finditer(line):
            if token["field"]:
                return [(token["field"], token["text"], line[token.end() :])]
            self._read_token(token)
        return []

    def _read_token(self, token: re.Match[str]) -> None:
        if token["letter"]:
            self._note(token)
        elif token["rest"] is not None:
            self._forward(self._event(_length(token["rest"])).length)
        elif token["rests"] is not None:
            self._rests(abc_fields.number(token["rests"] or "1"))
        elif token["bar"]:
            self._bar_line(token["bar"], token["ending"] or "")
        elif token["bracket"] is not None:
            self._ending(token["bracket"])
        elif token["open"]:
            self._chord_factor = self._event(Fraction(1)).length / self.unit
            self._chord = True
        elif token["close"]:
            self._close(_length(token["chord"]))
        elif token["broken"]:
            self._break(token["broken"])
        elif token["tie"]:
            self._tie()
        elif token["overlay"]:
            self._at, self._last, self._ties = Fraction(0), None, {}
        elif token["tuplet"]:
            self._tuplet(int(token["tuplet"]), token["time"], token["count"])
        elif token["mark"] or token["old"]:
            self._mark(token["mark"] or token["old"])

    def _bar_line(self, line: str, ending: str) -> None:
        before, after = len(line) - len(line.lstrip(":")), len(line) - len(line.rstrip(":"))
        if not line.strip(":"):  # "::"
            before = after = 1
        written = next((bar for bar in reversed(self.bars) if bar.length), None)
        if before and written is not None:
            written.marks.times = 1 + min(before, 8)
        if before or after or "||" in line or "]" in line or "[" in line:
            self._endings = frozenset()
        bar = self.next_bar()
        bar.marks.forward = bar.marks.forward or bool(after)
        bar.marks.endings = self._endings
        if ending:
            self._ending(ending)

    def _ending(self, numbers: str) -> None:
        """Begin an ending with these numbers: "1", "1,3", "1-3"; other text counts as none."""
        found: set[int] = set()
        for first, last in re.findall(r"(\d+)(?:-(\d+))?", numbers):
            found |= set(range(int(first[:2]), int((last or first)[:2]) + 1))
        self.next_bar()
        self._endings = self.bar.marks.endings = frozenset(found)

    def _event(self, length: Fraction) -> _Event:
        """Begin the next note, chord or rest, of `length` units."""
        length *= self.unit * self._broken
        self._broken = Fraction(1)
        if self._ratio_left:
            length *= self._ratio
            self._ratio_left -= 1
        else:
            self._ratio = Fraction(1)
        self._last = _Event(self._at, length, len(self.bar.sounds))
        self._held, self._ties = self._ties, {}
        return self._last

    def _forward(self, length: Fraction) -> None:
        self._at += length
        self.bar.length = max(self.bar.length, self._at)

    def _note(self, token: re.Match[str]) -> None:
        length = _length(token["length"])
        if self._chord and self._last is not None:
            event = self._last
        else:
            event = self._event(length)
            self._forward(event.length)
        marks = token["octave"]
        octave = int(token["letter"].islower()) + marks.count("'") - marks.count(",")
        letter, sign = token["letter"].upper(), token["sign"]
        place = (letter, octave)
        if sign is not None:
            self._accidentals[letter] = 0 if sign.endswith("/") else abc_fields.ALTERATIONS[sign]
        altered = self._accidentals.get(letter, self.key.alterations.get(letter, 0))
        pitch = 60 + 12 * octave + abc_fields.STEPS[letter] + altered
        pitch += 0 if self.program == DRUMS else sum(self.shifts.values())
        stops = place in self._held and (sign is None or self._held[place] == pitch)
        if stops:  # it has the accidental of the tied note, which holds for no other note of this bar
            pitch = self._held[place]
        event.places.append((place, pitch))
        quarters = length * self.unit if self._chord else event.length
        tie = "stop" if stops else ""
        self.bar.sounds.append(Sound(event.start, quarters, pitch, self.program, self.velocity, tie, self.name))

    def _close(self, length: Fraction) -> None:
        """End a chord, which lasts as long as its first note, times `length`."""
        if not self._chord or self._last is None:
            return
        self._chord = False
        event, sounds = self._last, self.bar.sounds
        factor = length * self._chord_factor
        for index in range(event.first, len(sounds)):
            sounds[index] = sounds[index]._replace(length=sounds[index].length * factor)
        event.length = sounds[event.first].length if event.first < len(sounds) else Fraction(0)
        self._forward(event.length)

    def _break(self, signs: str) -> None:
        """Apply broken rhythm: ">" lengthens the previous event and shortens the next, "<" the reverse."""
        short = Fraction(1, 2 ** len(signs))
        before, self._broken = (2 - short, short) if signs[0] == ">" else (short, 2 - short)
        event, sounds = self._last, self.bar.sounds
        if event is None or self._chord:
            self._broken = Fraction(1)
            return
        for index in range(event.first, len(sounds)):
            sounds[index] = sounds[index]._replace(length=sounds[index].length * before)
        grown = self.bar.length == self._at
        self._at = event.start + event.length * before
        self.bar.length = self._at if grown else max(self.bar.length, self._at)
        event.length *= before

    def _tie(self) -> None:
        """Tie the previous event, or in an open chord the previous note."""
        event, sounds = self._last, self.bar.sounds
        if event is None or not event.places:
            return
        count = 1 if self._chord else len(event.places)
        for index in range(len(sounds) - count, len(sounds)):
            sounds[index] = sounds[index]._replace(
                tie="continue" if sounds[index].tie in ("stop", "continue") else "start"
            )
        self._ties |= dict(event.places[-count:])

    def _tuplet(self, notes: int, time: str | None, count: str | None) -> None:
        compound = self.metre is not None and self.metre[0] in (6, 9, 12)
        beats = int(time or 0) or _TUPLET_TIME.get(notes, 3 if compound else 2)
        self._ratio, self._ratio_left = Fraction(beats, max(1, notes)), int(count or 0) or notes

    def _rests(self, count: int) -> None:
        """Add `count` bars of rest."""
        length = Fraction(4 * self.metre[0], self.metre[1]) if self.metre is not None else Fraction(4)
        self._last, self._ties = None, {}
        for index in range(count):
            if index:
                self.next_bar()
            self._forward(length)

    def _mark(self, mark: str) -> None:
        """Apply a decoration that changes the sound: a dynamic, or a sign of a jump."""
        self.velocity = _DYNAMICS.get(mark, self.velocity)
        marks, name = self.bar.marks, mark.lower()
        jump = _JUMP.match(mark)
        if name in ("segno", "fine"):
            marks.signs |= {name}
        elif name in ("coda", "dacoda"):
            coda = name == "coda" and any("to coda" in bar.marks.signs for bar in self.bars)
            before = self.bars[-2].marks if not coda and not self._at and len(self.bars) > 1 else marks
            before.signs |= {"coda" if coda else "to coda"}
        elif jump is not None:
            marks.jump = "capo" if jump[1].lower().startswith("c") else "segno"
            marks.until = (jump[2] or "").lower()


def _length(text: str) -> Fraction:
    """The length of a note in units: "3", "3/2", "/", "//"."""
    top, slashes, low = text.rstrip("0123456789") if "/" in text else text, text.count("/"), ""
    if slashes:
        top, low = top.rstrip("/"), text[text.rindex("/") + 1 :]
    below = abc_fields.number(low) if low else 2**slashes
    return Fraction(abc_fields.number(top or "1"), max(1, below))
