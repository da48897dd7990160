"""Sessions of a log: records grouped by a key in their text or by windows.

Scope: keys as regular expressions, windows of lines and of time. Out of scope: templates and models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from seqvae.errors import SeqVAEError
from seqvae.events.lines import Record

LINES = 20
"""Records of a session by default."""
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Session:
    """Records that belong together, in the order of the log."""

    name: str
    """The key's match, or the position of the first line."""
    records: list[Record] = field(default_factory=list)


@dataclass(frozen=True)
class Grouping:
    """Settings for the division of records into sessions.

    Raises SeqVAEError if more than one is given, for a key that is not a regular expression with a group, and for an
    invalid window.
    """

    key: str | None = None
    """A regular expression; records whose first group matches the same text form a session."""
    window: str | None = None
    """Lines (`20`) or time (`30s`, `5m`, `1h`) of a session; LINES by default, if there is no key."""

    column: str | None = None
    """A column; rows of a data frame with the same value in it form a session."""

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.key, self.window, self.column)) > 1:
            raise SeqVAEError("a session key, a window and a column exclude each other; give one of them")
        if self.key is not None:
            try:
                groups = re.compile(self.key).groups
            except re.error as error:
                raise SeqVAEError(f"session key '{self.key}': is not a regular expression ({error}); fix it") from error
            if not groups:
                raise SeqVAEError(f"session key '{self.key}': has no group; put the session's name in parentheses")
        elif self.window is not None and not re.fullmatch(r"[1-9]\d{0,8}[smh]?", self.window):
            raise SeqVAEError(f"window '{self.window}': give lines, such as 20, or time, such as 30s, 5m or 1h")

    @property
    def lines(self) -> int:
        """Number of records in a session without a key or a time window."""
        return int(self.window) if self.window is not None and self.window.isdigit() else LINES

    @property
    def lasting(self) -> bool:
        """True if a session may continue until the end of the log, so that none is complete before."""
        return self.key is not None

    def sessions(self, records: Iterable[Record]) -> Iterator[Session]:
        """The sessions of records; sessions by key come after all records, in the order of their first record.

        Records without the key are in no session. Raises SeqVAEError for a window of time and a record without a time
        stamp, and for a column, which records do not have.
        """
        if self.column is not None:
            raise SeqVAEError(
                f"sessions are by the column '{self.column}' of a data frame; give such a frame to "
                "`seqvae.Detector.verdicts`, or learn from raw lines with a session key"
            )
        if self.key is not None:
            return self._keyed(records)
        window = self.window or str(LINES)
        if window.isdigit():
            return _counted(records, int(window))
        return _timed(records, int(window[:-1]) * _UNITS[window[-1]])

    def _keyed(self, records: Iterable[Record]) -> Iterator[Session]:
        search = re.compile(self.key or "").search
        found: dict[str, Session] = {}
        for record in records:
            match = search(record.text)
            if match is not None and match[1] is not None:
                found.setdefault(match[1], Session(match[1])).records.append(record)
        yield from found.values()


def _begin(record: Record) -> Session:
    return Session(f"{record.source}:{record.number}", [record])


def _counted(records: Iterable[Record], most: int) -> Iterator[Session]:
    """Sessions of `most` records of one source; the last session of a source may be shorter."""
    session: Session | None = None
    for record in records:
        if session is not None and session.records[0].source != record.source:
            yield session
            session = None
        if session is None:
            session = _begin(record)
        else:
            session.records.append(record)
        if len(session.records) == most:
            yield session
            session = None
    if session is not None:
        yield session


def _timed(records: Iterable[Record], most: float) -> Iterator[Session]:
    """Sessions of the records in each `most` seconds of the clock; a session also ends if the time goes back."""
    session: Session | None = None
    last = 0.0
    for record in records:
        now = record.seconds
        if now is None:
            where = f"{record.source}, line {record.number}"
            raise SeqVAEError(f"{where}: has no time stamp in a known format; give a window of lines, or a session key")
        if session is not None and now // most == last // most and session.records[0].source == record.source:
            session.records.append(record)
        else:
            if session is not None:
                yield session
            session = _begin(record)
        last = now
    if session is not None:
        yield session


def matchers(patterns: Sequence[str]) -> list[re.Pattern[str]]:
    """Regular expressions of records to exclude; raises SeqVAEError for an invalid one."""
    out = []
    for pattern in patterns:
        try:
            out.append(re.compile(pattern))
        except re.error as error:
            raise SeqVAEError(f"excluded '{pattern}': is not a regular expression ({error}); fix it") from error
    return out


def without(sessions: Sequence[Session], excluded: Sequence[re.Pattern[str]]) -> list[Session]:
    """The sessions without any matching record; raises SeqVAEError if none is left."""
    left = [
        one
        for one in sessions
        if not any(pattern.search(record.text) for record in one.records for pattern in excluded)
    ]
    if sessions and not left:
        named = " ".join(f"'{pattern.pattern}'" for pattern in excluded)
        raise SeqVAEError(f"excluded {named}: leaves no session; choose a narrower pattern")
    return left
