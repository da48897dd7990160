"""Data frames as logs: rows to records and sessions, and frames of the same library as a given one.

Scope: columns with messages, times and sessions, in frames of pandas, polars and others. Out of scope: files
(events/lines.py), models and verdicts.

Frames are read through narwhals, which depends on no library of frames and is installed with scikit-learn. The
interchange protocols of frames and of Arrow can be read without it, but neither makes a frame of the user's library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import narwhals as nw

from seqvae.errors import SeqVAEError
from seqvae.events.lines import LogReader, Record
from seqvae.events.sessions import Grouping, Session

SOURCE = "row"
"""The source of records from a frame; their number is the position of the row, from 1."""


def column(frame: Any, name: str) -> list[Any]:
    """The values of a column, None where they are missing.

    Raises SeqVAEError for an object that is no frame in memory, and for a missing column.
    """
    rows = _rows(frame)
    if name not in rows.columns:
        raise SeqVAEError(f"a frame without a column '{name}'; choose one of {', '.join(map(str, rows.columns))}")
    values = rows[name]
    return [None if missing else value for value, missing in zip(values, values.is_null(), strict=True)]


def _rows(frame: Any) -> nw.DataFrame[Any]:
    try:
        return nw.from_native(frame, eager_only=True)
    except TypeError as error:
        kind = type(frame).__name__
        raise SeqVAEError(f"a {kind} is no data frame in memory; give one of pandas or polars (collected)") from error


def records(frame: Any, reader: LogReader, message: str = "message", time: str | None = None) -> list[Record]:
    """The records of a frame, one for each row with a message; blank messages are skipped as blank lines are.

    The reader splits the header from each message, as from a line. `time` is a column with times: datetimes, text in
    a known format, or seconds since 1970.
    """
    texts = ["" if value is None else str(value) for value in column(frame, message)]
    times = [None] * len(texts) if time is None else column(frame, time)
    split = reader.splitter(texts)
    found = []
    for number, (text, when) in enumerate(zip(texts, times, strict=True), 1):
        if text.strip():
            first = text.split("\n", 1)[0]
            begin, end = split(first) or (0, len(first))
            header = " ".join(part for part in (_stamp(when), first[:begin]) if part)
            found.append(Record(SOURCE, number, text, first[begin:end].strip(), header))
    return found


def _stamp(when: Any) -> str:
    """A time as text that `lines.seconds` reads."""
    if when is None:
        return ""
    return str(when.isoformat()) if hasattr(when, "isoformat") else str(when)


def sessions(
    frame: Any, reader: LogReader, grouping: Grouping, message: str = "message", time: str | None = None
) -> list[Session]:
    """The sessions of a frame's records; by the grouping's column they are in the order of their first record.

    Rows without a value in that column are in no session.
    """
    found = records(frame, reader, message, time)
    if grouping.column is None:
        return list(grouping.sessions(found))
    names = column(frame, grouping.column)
    out: dict[str, Session] = {}
    for record in found:
        name = names[record.number - 1]
        if name is not None:
            out.setdefault(str(name), Session(str(name))).records.append(record)
    return list(out.values())


def like(frame: Any, columns: Mapping[str, Sequence[Any]]) -> Any:
    """A new frame of the same library, with these columns."""
    return nw.from_dict(dict(columns), backend=_rows(frame).implementation).to_native()


def extended(frame: Any, columns: Mapping[str, Sequence[Any]]) -> Any:
    """The frame with more columns, one value for each row; a column of the same name is replaced."""
    rows = _rows(frame)
    new = [nw.new_series(name, values, backend=rows.implementation) for name, values in columns.items()]
    return rows.with_columns(*new).to_native()
