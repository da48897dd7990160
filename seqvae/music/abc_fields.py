"""Fields of ABC notation as numbers: keys, metres, lengths, tempos, the order of parts, transpositions.

Scope: the standard 2.1 and older conventions of tune books. Out of scope: notes and bars (`abc`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction
from functools import reduce

from seqvae.music.bars import Metre

STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
"""Semitones of the letters above C."""
ALTERATIONS = {"^^": 2, "^": 1, "=": 0, "_": -1, "__": -2}

_FIFTHS = "FCGDAEB"
_MODES = {"maj": 0, "ion": 0, "mix": -1, "dor": -2, "m": -3, "min": -3, "aeo": -3, "phr": -4, "loc": -5, "lyd": 1}
_WORDS = {  # quarters per minute, as in abc2midi
    **{"larghissimo": 40, "lentissimo": 48, "largo": 56, "adagio": 59, "lento": 62, "larghetto": 66, "adagietto": 76},
    **{"andante": 88, "andantino": 96, "moderato": 104, "allegretto": 112, "allegro": 120, "vivace": 168, "vivo": 180},
    **{"presto": 192, "prestissimo": 240},
}
_LONGEST = 10_000  # limit of parts, and of any number


@dataclass(frozen=True)
class Key:
    """Sharps (negative for flats), 1 if minor, and the alteration of each letter in semitones."""

    sharps: int = 0
    minor: int = 0
    alterations: dict[str, int] = field(default_factory=dict)


def number(text: str) -> int:
    """A whole number; raises ValueError for five digits, which no length, metre or tempo needs."""
    if len(text) > 4:
        raise ValueError("a number of five digits as length, metre or tempo")
    return int(text)


def key(text: str) -> Key | None:
    """The key of a K: field; None if the field has only a clef or other properties."""
    words = re.sub(r"\w+=\S*|\"[^\"]*\"", " ", text)
    found = re.match(r"\s*(?:(?P<pipes>H[Pp])|(?P<none>none\b)|(?P<tonic>[A-G])(?P<sign>[#b]?)(?P<mode>.*))", words)
    if found is None:
        return Key(alterations=_explicit(text)) if _explicit(text) else None
    if found["none"]:
        return Key(alterations=_explicit(text))
    if found["pipes"]:
        return Key(2, 0, {"F": 1, "C": 1})
    mode = re.match(r"[\s_-]*([A-Za-z]*)", found["mode"])
    name = mode[1] if mode is not None else ""
    kind = name if name in ("m", "M") else name.lower()[:3]  # "Am" is minor, "AM" is major
    shift = _MODES.get(kind, 0)
    sharps = _FIFTHS.index(found["tonic"]) - 1 + 7 * {"": 0, "#": 1, "b": -1}[found["sign"]] + shift
    alterations: dict[str, int] = {}
    if "exp" not in found["mode"].split():
        letters = _FIFTHS if sharps > 0 else _FIFTHS[::-1]
        for index in range(min(abs(sharps), 14)):
            letter = letters[index % 7]
            alterations[letter] = alterations.get(letter, 0) + (1 if sharps > 0 else -1)
    return Key(sharps, int(kind in ("m", "min", "aeo")), alterations | _explicit(text))


def _explicit(text: str) -> dict[str, int]:
    """Accidentals that a K: field adds to its key: "D exp _b", "D ^g"."""
    found = re.findall(r"(?:^|\s)((?:(?:\^\^?|__?|=)[A-Ga-g]\s*)+)(?=\s|$)", text)
    return {
        letter.upper(): ALTERATIONS[sign] for each in found for sign, letter in re.findall(r"(\^\^?|__?|=)(.)", each)
    }


def metre(text: str) -> Metre | None:
    """The metre of an M: field; None for free or impossible metre."""
    text = text.split('"')[0].strip()
    if text.startswith("C|"):
        return 2, 2
    if text.startswith("C"):
        return 4, 4
    found = re.match(r"\(?\s*(\d+(?:\s*[+ ]\s*\d+)*)\s*\)?\s*/\s*(\d+)", text)
    if found is None:
        return None
    beats, unit = sum(number(each) for each in re.findall(r"\d+", found[1])), number(found[2])
    return (beats, unit) if 0 < beats < 256 and unit in (1, 2, 4, 8, 16, 32, 64) else None


def fraction(text: str) -> Fraction | None:
    """The length of an L: field in quarters, "1/8"; None without a length."""
    found = re.match(r"\s*(\d+)\s*(?:/\s*(\d+))?", text)
    if found is None or number(found[2] or "1") == 0:
        return None
    return Fraction(4 * number(found[1]), number(found[2] or "1")) or None


def tempo(text: str, unit: Fraction) -> float | None:
    """Quarters per minute of a Q: field, where a note lasts `unit` quarters; None without a tempo."""
    plain = re.sub(r'"[^"]*"', " ", text)
    left, sign, right = plain.partition("=")
    speeds = re.findall(r"\d+", re.sub(r"\.\d+", "", right if sign else left))  # two numbers are a range
    if speeds and (sign or "/" not in left):
        lengths = re.findall(r"(\d+)\s*/\s*(\d+)", left) if sign else []
        beat = sum((Fraction(4 * number(top), max(1, number(low))) for top, low in lengths), Fraction(0))
        times = re.match(r"\s*C(\d*)", left)
        if not beat:
            beat = unit * number(times[1] or "1") if times is not None else unit
        return float(beat * sum(number(each) for each in speeds[:2]) / len(speeds[:2])) or None
    word = re.search(r"[a-z]+", text.lower())
    return None if word is None or '"' not in text else _WORDS.get(word[0])


def part_order(text: str) -> list[str]:
    """The parts of a P: field in playing order: "A(BC)2D" is A B C B C D."""
    stack: list[list[str]] = [[]]
    last: list[str] = []
    for token in re.findall(r"[A-Za-z]|[()]|\d+", text):
        if token == "(":
            stack.append([])
        elif token == ")":
            last = stack.pop() if len(stack) > 1 else []
            stack[-1] += last
        elif token.isdigit():
            stack[-1] += last * (min(number(token), _LONGEST) - 1)
            last = []
        else:
            last = [token]
            stack[-1] += last
        if sum(len(each) for each in stack) > _LONGEST:
            raise ValueError(f"more than {_LONGEST:,} parts in the order of playing")
    return reduce(lambda before, after: before + after, stack)


def voice_name(text: str) -> str:
    """The name of a V: field, `name="Second Violin"` or `nm=...`; empty without one."""
    found = re.search(r'\b(?:name|nm)\s*=\s*(?:"([^"]*)"|(\S+))', text)
    return "" if found is None else " ".join((found[1] or found[2] or "").split())


def properties(text: str) -> dict[str, int]:
    """Transposition in semitones by each property of a K: or V: field: clef, octave, transpose.

    A clef transposes only with an octave sign ("treble-8").
    """
    found: dict[str, int] = {}
    clef = re.search(r"(?:treble|alto|tenor|bass|perc)\d?([+-]8)?|clef=[A-Za-z]+\d?([+-]8)?", text)
    if clef is not None:
        sign = clef[1] or clef[2]
        found["clef"] = 12 * int(f"{sign[0]}1") if sign else 0
    octave = re.search(r"\boctave\s*=\s*([+-]?\d)\b", text)
    if octave is not None:
        found["octave"] = 12 * int(octave[1])
    transpose = re.search(r"\b(?:transpose|t)\s*=\s*([+-]?\d\d?)\b", text)
    if transpose is not None:
        found["transpose"] = int(transpose[1])
    return found
