"""MusicXML rewritten so that music21 reads it without loss.

Scope: elements that music21 does not read as in the standard: measures in time order, transpositions, tempos in words,
rests of a whole measure, gaps at the end of a measure, and instruments of single notes. Out of scope: sounding notes,
repeats and ties (music/readers.py).
"""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import dataclass, field
from fractions import Fraction
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_SPELLINGS = ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"]
_LARGEST = 255  # limit of beats in a bar, of the unit of a beat, and of the passes of a repeat
_MARK = re.compile(r"seqvae-(drum|program)-(\d+)")


def plain(content: bytes) -> Element:
    """The root of a score, compressed or not and in any encoding, in a form that music21 reads without loss.

    Pitches and keys are at sounding pitch. A note with a listed instrument has a colour that `instrument` reads.

    Raises:
        ParseError, BadZipFile: the content is damaged.
        ValueError: there is no score in it, or an invalid number.
    """
    root = ElementTree.fromstring(_decoded(_unpacked(content)))
    for element in root.iter():
        if isinstance(element.tag, str):
            element.tag = element.tag.rpartition("}")[2]
    if root.tag == "score-timewise":
        _order_by_parts(root)
    for ending in root.iter("ending"):
        if _too_large(ending.get("number", "")):  # music21 holds every pass of "1-2147483648"
            ending.set("number", "1")
    instruments = {part.get("id"): _instruments(part) for part in root.iter("score-part")}
    for part in root.findall("part"):
        _Part(instruments.get(part.get("id"), {})).tidy(part)
    return root


def instrument(colour: str) -> tuple[str, int] | None:
    """("drum", MIDI pitch) or ("program", number) encoded in the colour of a note; None for other colours.

    music21 keeps the colour of a note, but not its instrument.
    """
    found = _MARK.fullmatch(colour)
    return None if found is None else (found[1], int(found[2]))


def _unpacked(content: bytes) -> bytes:
    """The score in a compressed file: the one named by its container, else the first."""
    if content[:2] != b"PK":
        return content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        scores = [name for name in names if name.endswith((".xml", ".musicxml")) and not name.startswith("META-INF")]
        if "META-INF/container.xml" in names:
            container = ElementTree.fromstring(_decoded(archive.read("META-INF/container.xml")))
            roots = [each.get("full-path") for each in container.iter() if each.tag.endswith("rootfile")]
            scores = [name for name in roots if name is not None and name in names] + scores
        if not scores:
            raise ValueError("the archive holds no score")
        return archive.read(scores[0])


def _decoded(content: bytes) -> bytes:
    """Convert UTF-16 with a byte order mark to UTF-8, whatever the XML declaration says."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = content.decode("utf-16", errors="replace")
        return re.sub(r"^\s*<\?xml[^>]*\?>", "", text).encode()
    return content.lstrip()


def _order_by_parts(root: Element) -> None:
    """Turn measures that contain parts into parts that contain measures."""
    parts: dict[str, Element] = {}
    for measure in root.findall("measure"):
        for part in measure.findall("part"):
            name = part.get("id", "")
            if name not in parts:
                parts[name] = Element("part", {"id": name})
            own = SubElement(parts[name], "measure", measure.attrib)
            own.extend(list(part))
        root.remove(measure)
    root.tag = "score-partwise"
    root.extend(parts.values())


def _instruments(part: Element) -> dict[str, str]:
    """Colour marks of a part's instruments by id: the drum of each, and the program if there are several."""
    marks: dict[str, str] = {}
    programs: dict[str, str] = {}
    for each in part.findall("midi-instrument"):
        name, drum, program = each.get("id", ""), each.findtext("midi-unpitched"), each.findtext("midi-program")
        if drum is not None and 1 <= _whole(drum) <= 128:
            marks[name] = f"seqvae-drum-{_whole(drum) - 1}"
        elif program is not None and 1 <= _whole(program) <= 128 and each.findtext("midi-channel") != "10":
            programs[name] = f"seqvae-program-{_whole(program) - 1}"
    return marks | (programs if len(set(programs.values())) > 1 else {})


def _too_large(text: str) -> bool:
    return any(int(number) > _LARGEST for number in re.findall(r"\d+", text))


def _whole(text: str | None) -> int:
    return round(float(text or 0))


@dataclass
class _Part:
    """Reading state in a part; times in divisions."""

    instruments: dict[str, str]
    transpositions: dict[str | None, tuple[int, int | None]] = field(default_factory=dict)  # by staff
    divisions: Fraction = Fraction(1)
    quarters: Fraction = Fraction(4)  # length of a measure

    def tidy(self, part: Element) -> None:
        for measure in part.findall("measure"):
            now = reached = sounded = Fraction(0)
            for element in list(measure):
                length = Fraction(element.findtext("duration") or 0)
                if element.tag == "attributes":
                    self._attributes(element)
                elif element.tag == "note":
                    self._note(element)
                    if element.find("grace") is None and element.find("chord") is None:
                        now += length
                        sounded = max(sounded, now)
                elif element.tag in ("backup", "forward"):
                    now += length if element.tag == "forward" else -length
                elif element.tag == "direction":
                    _direction(element)
                reached = max(reached, now)
            whole = min(reached, self.quarters * self.divisions)
            if whole > sounded:
                _fill(measure, now, whole)

    def _attributes(self, element: Element) -> None:
        self.divisions = Fraction(element.findtext("divisions") or self.divisions) or Fraction(1)
        for time in element.findall("time"):  # music21 holds every beat of a bar
            if _too_large("".join(time.itertext())):
                element.remove(time)
        beats, unit = element.findtext("time/beats"), element.findtext("time/beat-type")
        if beats and unit and unit.strip().isdigit() and int(unit):
            self.quarters = Fraction(4 * sum(int(each) for each in re.findall(r"\d+", beats)), int(unit))
        for change in element.findall("transpose"):
            diatonic = change.findtext("diatonic")
            octaves = _whole(change.findtext("octave-change"))
            shift = _whole(change.findtext("chromatic")) + 12 * octaves
            steps = None if diatonic is None else _whole(diatonic) + 7 * octaves
            if change.get("number") is None:
                self.transpositions = {}
            self.transpositions[change.get("number")] = (shift, steps)
            element.remove(change)
        for key in element.findall("key"):
            fifths = key.find("fifths")
            semitones, steps = self._transposition(key.get("number"))
            if fifths is not None and semitones:
                fifths.text = str(_sounding_key(_whole(fifths.text), semitones, steps))

    def _transposition(self, staff: str | None) -> tuple[int, int | None]:
        return self.transpositions.get(staff, self.transpositions.get(None, (0, 0)))

    def _note(self, note: Element) -> None:
        rest, pitch, player = note.find("rest"), note.find("pitch"), note.find("instrument")
        if rest is not None and note.find("duration") is not None:
            rest.attrib.pop("measure", None)  # music21 would make it a whole measure, even in a pickup
        mark = self.instruments.get(player.get("id", "")) if player is not None else None
        note.attrib.pop("color", None)
        if mark is not None and rest is None:
            note.set("color", mark)
        semitones = self._transposition(note.findtext("staff"))[0]
        if pitch is not None and semitones:
            _transpose(pitch, semitones)


def _sounding_key(fifths: int, semitones: int, steps: int | None) -> int:
    """The sounding key for the written `fifths`; without `steps` the spelling with fewer accidentals."""
    moved = fifths + (7 * semitones - 12 * steps if steps is not None else 7 * semitones)
    return moved if abs(moved) <= 7 and steps is not None else (moved + 5) % 12 - 5


def _transpose(pitch: Element, semitones: int) -> None:
    """Transpose and respell `pitch`; a fraction of a semitone is kept."""
    alter = float(pitch.findtext("alter") or 0)
    place = 12 * _whole(pitch.findtext("octave")) + STEPS.get((pitch.findtext("step") or "C").strip(), 0) + semitones
    place += round(alter)
    name, octave = _SPELLINGS[place % 12], place // 12
    for child in list(pitch):
        pitch.remove(child)
    SubElement(pitch, "step").text = name[0]
    SubElement(pitch, "alter").text = f"{len(name) - 1 + alter - round(alter):g}"
    SubElement(pitch, "octave").text = str(octave)


def _direction(direction: Element) -> None:
    """Replace a tempo in words ("c. 108", "120-126") by the number in its sound element, or by the mean."""
    sound = next((each.get("tempo") for each in direction.findall("sound") if each.get("tempo")), None)
    for mark in direction.findall("direction-type/metronome"):
        speed = mark.find("per-minute")
        if speed is None or re.fullmatch(r"\s*\d+(\.\d*)?\s*", speed.text or ""):
            continue
        numbers = [float(each) for each in re.findall(r"\d+(?:\.\d+)?", speed.text or "")][:2]
        if sound is not None:
            for child in list(mark):
                mark.remove(child)
            SubElement(mark, "beat-unit").text = "quarter"
            SubElement(mark, "per-minute").text = sound
        elif numbers:
            speed.text = f"{sum(numbers) / len(numbers):g}"


def _fill(measure: Element, now: Fraction, length: Fraction) -> None:
    """Add a rest of `length` from the beginning of `measure`, in a voice of its own, after position `now`."""
    for tag, duration in (("backup", now), ("note", length)):
        if not duration:
            continue
        element = SubElement(measure, tag)
        if tag == "note":
            SubElement(element, "rest")
        SubElement(element, "duration").text = f"{float(duration):g}"
        if tag == "note":
            SubElement(element, "voice").text = "gap"
