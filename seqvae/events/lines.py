r"""Reading of raw logs: lines of files and streams as records, with header and content separated.

Scope: common log headers, formats in logparser's notation, JSON lines, records of several lines, time stamps. Out of
scope: templates, sessions and models.

>>> reader = LogReader("<Time> <Level> <Content>")
>>> [record.content for record in reader.records(["10:00:01 INFO disk full", "  at sda1"], "app.log")]
['disk full']
"""

from __future__ import annotations

import calendar
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from seqvae.errors import SeqVAEError

_CLOCK = r"\d\d:\d\d:\d\d(?:[.,]\d+)?"
_ISO = rf"\d{{4}}[-/.]\d\d[-/.]\d\d[ T_]{_CLOCK}(?:Z|[+-]\d\d:?\d\d)?"
_BSD = rf"[A-Z][a-z]{{2}} +\d+ {_CLOCK}"
_TAG = r"(?:[^\s:\[]+(?:\[\d+\])?(?: \([^)]*\))?: )?"  # program[pid]:
_LEVEL = r"(?:TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|FATAL|CRITICAL|SEVERE|[Ii]nfo|[Ww]arning|[Ee]rror)"

HEADERS: dict[str, str] = {
    "apache-error": rf"\[[A-Z][a-z]{{2}} {_BSD} \d{{4}}\] (?:\[[^\]]*\] )+",
    "apache-access": r"\S+ \S+ \S+ \[\d+/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] ",
    "bluegene": rf"\S+ \d{{9,}} \d{{4}}\.\d\d\.\d\d \S+ {_BSD} \S+ {_TAG}",
    "syslog": rf"(?:<\d+>)?{_BSD} \S+ {_TAG}",
    "syslog-5424": rf"<\d+>\d {_ISO} \S+ \S+ \S+ \S+ (?:-|(?:\[[^\]]*\])+) ",
    "syslog-iso": rf"{_ISO} (?!{_LEVEL}\b)\S+ [^\s:\[]+\[\d+\]: ",
    "openstack": rf"\S+ {_ISO} \d+ {_LEVEL} \S+ \[[^\]]*\] ",
    "log4j": rf"{_ISO}(?:,|:| -)? +(?:\d+ )?\[?{_LEVEL}\]?,? +(?:\d+ --- )?(?:\[.*?\] )?(?:- |(?:[\w.$/-]+ *: )?)",
    "log4j-thread": rf"{_ISO} +\[[^\]]*\] +{_LEVEL} +(?:[\w.$/-]+ *(?::|-) )?",
    "python": rf"{_ISO} - \S+ - {_LEVEL} - ",
    "hadoop": rf"\d{{6}} \d{{6}} \d+ {_LEVEL} \S+: ",
    "android": rf"\d\d-\d\d {_CLOCK} +\d+ +\d+ [A-Z] [^:]*: ",
    "iso": rf"\[?{_ISO}\]?:? +",
    "time": rf"\[[^\]]*{_CLOCK}[^\]]*\] +",
    "kernel": r"\[ *\d+\.\d+\] ",
    "epoch": r"(?:\S+ ){0,4}1\d{9}(?:\.\d+)? (?:\d+ )?",
}
"""Patterns of headers by name; earlier ones are more specific."""

SAMPLE = 1000
"""Number of lines from which the header is recognised."""
LEAST = 0.5
"""Share of these lines that a header must match."""
PLAIN = "plain"
"""The name for lines without a header."""

_CONTINUED = re.compile(
    r"\s|at |Caused by|\.\.\. \d+ more|Traceback \(most recent call last\)|[\w.]+(?:Error|Exception)\b"
)
_STAMPED = re.compile(rf"\[?(?:{_ISO}|{_BSD}|{_CLOCK}|\d\d[-.]\d\d {_CLOCK})")


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of a log."""

    source: str
    """The file's name, or `-` for standard input."""
    number: int
    """Number of its first line, from 1."""
    text: str
    """Its lines unchanged, joined by newlines."""
    content: str
    """The first line without its header."""
    header: str
    """The part of the first line before the content."""

    @property
    def seconds(self) -> float | None:
        """The header's time stamp in seconds since 1970; None if there is none.

        A stamp without a year is taken in 1970, without a date on 1 January, without a zone in UTC.
        """
        return seconds(self.header)


class LogReader:
    """Reader of records; equal settings read all logs of a kind in the same way.

    Args:
        header: A name in HEADERS, `plain`, a format such as `<Date> <Time> <Content>`, or "" to recognise it from the
            first lines.
        field: The field with the content, for JSON lines; a nested field is given with dots.

    Raises SeqVAEError for a format without `<Content>` and for an unknown name.
    """

    def __init__(self, header: str = "", field: str | None = None) -> None:
        self.header, self.field = header, field
        self._split = _splitter(header) if header else None

    def records(self, lines: Iterable[str], source: str = "-") -> Iterator[Record]:
        """The records of one source; a record is complete when the next one begins.

        A line belongs to the record before it if it is indented, is part of a stack trace, or lacks the header. Blank
        lines are skipped. With `field`, each line is a record.
        """
        lines = iter(lines)
        if self.field is not None:
            yield from self._fields(lines, source)
            return
        first = [] if self._split is not None else list(islice(lines, SAMPLE))
        split_off = self.splitter(first)
        begun: list[str] = []
        at, split = 0, (0, 0)
        for number, line in enumerate(chain(first, lines), 1):
            if not line.strip():
                continue
            found = split_off(line)
            if found is None and begun and (self.header != PLAIN or _CONTINUED.match(line)):
                begun.append(line)
                continue
            if begun:
                yield _record(source, at, begun, split)
            begun, at, split = [line], number, found or (0, len(line))
        if begun:
            yield _record(source, at, begun, split)

    def frame(self, frame: Any, message: str = "message", time: str | None = None) -> list[Record]:
        """The records of a data frame; see `frames.records`."""
        from seqvae.events import frames

        return frames.records(frame, self, message, time)

    def splitter(self, lines: Iterable[str]) -> Split:
        """A function from a line to the span of its content; the header, if not known, is recognised from `lines`."""
        if self._split is None:
            self.header = recognise(islice(lines, SAMPLE))
            self._split = _splitter(self.header)
        return self._split

    def _fields(self, lines: Iterator[str], source: str) -> Iterator[Record]:
        """Records of JSON lines; a line that is not JSON or lacks the field is content as a whole."""
        assert self.field is not None
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield Record(source, number, line, _value(line, self.field), line)


def _record(source: str, number: int, lines: list[str], content: tuple[int, int]) -> Record:
    begin, end = content
    return Record(source, number, "\n".join(lines), lines[0][begin:end].strip(), lines[0][:begin])


def _value(line: str, field: str) -> str:
    try:
        value: Any = json.loads(line)
        for part in field.split("."):
            value = value[part]
    except (ValueError, LookupError, TypeError, RecursionError):
        return line.strip()
    return " ".join(str(value).split("\n", 1)[0].split())


# --- headers ----------------------------------------------------------------------------------------------------------

Split = Callable[[str], "tuple[int, int] | None"]


def recognise(lines: Iterable[str]) -> str:
    """The name of the header that matches most lines, the more specific of equal ones; `plain` below half."""
    given = [line for line in lines if line.strip() and not line[0].isspace()]
    fits = {name: sum(map(bool, map(re.compile(pattern).match, given))) for name, pattern in HEADERS.items()}
    best = max(fits, key=lambda name: fits[name])
    return best if given and fits[best] >= LEAST * len(given) else PLAIN


def _splitter(header: str) -> Split:
    """A function from a line to the span of its content; None for a line that does not begin a record."""
    if header == PLAIN:
        return lambda line: None if _CONTINUED.match(line) else (0, len(line))
    if header in HEADERS:
        known = re.compile(HEADERS[header])

        def named(line: str) -> tuple[int, int] | None:
            found = known.match(line) or _STAMPED.match(line)
            return (found.end(), len(line)) if found else None

        return named
    if "<Content>" not in header:
        names = ", ".join([*HEADERS, PLAIN])
        raise SeqVAEError(
            f"format '{header}': has no <Content>; write it as '<Date> <Time> <Content>', or choose from {names}"
        )
    written = _pattern(header)

    def split(line: str) -> tuple[int, int] | None:
        found = written.match(line)
        return found.span("Content") if found else None

    return split


def _pattern(written: str) -> re.Pattern[str]:
    """A format of logparser as a regular expression: `<Name>` is a field, other text is literal."""
    parts = re.split(r"<(\w+)>", written)
    try:
        fields = [
            f"(?P<{part}>.*?)" if i % 2 else re.sub(r"(?:\\ )+", lambda _: r"\s+", re.escape(part))
            for i, part in enumerate(parts)
        ]
        return re.compile("".join(fields) + "$")
    except re.error as error:
        raise SeqVAEError(
            f"format '{written}': cannot be read ({error}); give every field a name of its own"
        ) from error


# --- time -------------------------------------------------------------------------------------------------------------

_MONTHS = {name: i for i, name in enumerate(calendar.month_abbr) if name}
_H = r"(?P<h>\d\d):(?P<m>\d\d):(?P<s>\d\d(?:[.,]\d+)?)"
_STAMPS = [
    re.compile(rf"(?P<Y>\d{{4}})[-/.](?P<M>\d\d)[-/.](?P<D>\d\d)[ T_]{_H}(?P<zone>Z|[+-]\d\d:?\d\d)?"),
    re.compile(rf"(?P<D>\d+)/(?P<b>[A-Z][a-z]{{2}})/(?P<Y>\d{{4}}):{_H}(?: (?P<zone>[+-]\d{{4}}))?"),
    re.compile(rf"\b(?P<b>[A-Z][a-z]{{2}}) +(?P<D>\d+) {_H}(?: (?P<Y>\d{{4}}))?"),
    re.compile(r"\b(?P<y>\d\d)(?P<M>\d\d)(?P<D>\d\d) (?P<h>\d\d)(?P<m>\d\d)(?P<s>\d\d)\b"),
    re.compile(rf"\b(?P<M>\d\d)[-.](?P<D>\d\d) {_H}"),
    re.compile(_H),
    re.compile(r"\b(?P<epoch>1\d{9}(?:\.\d+)?)\b"),
    re.compile(r"\[ *(?P<epoch>\d+\.\d+)\]"),
]


def seconds(text: str) -> float | None:
    """The first time stamp of a known format, in seconds since 1970; None if there is none."""
    for stamp in _STAMPS:
        found = stamp.search(text)
        if found is None:
            continue
        part = found.groupdict()
        if part.get("epoch"):
            return float(part["epoch"])
        month = _MONTHS.get(part.get("b") or "", 0) or int(part.get("M") or 1)
        year = int(part.get("Y") or (2000 + int(part["y"]) if part.get("y") else 1970))
        if not 1 <= month <= 12:
            continue
        days = calendar.timegm((year, month, int(part.get("D") or 1), int(part["h"]), int(part["m"]), 0))
        zone = (part.get("zone") or "Z").replace(":", "")
        ahead = 0 if zone == "Z" else int(zone[0] + "1") * (3600 * int(zone[1:3]) + 60 * int(zone[3:5]))
        return days + float(part["s"].replace(",", ".")) - ahead
    return None
