"""Data frames of pandas and polars as logs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from seqvae.errors import SeqVAEError
from seqvae.events import frames
from seqvae.events.lines import LogReader, Record
from seqvae.events.sessions import Grouping

ROWS = {
    "message": ["start", None, "read 3 bytes", "  ", "stop\n  at once"],
    "when": [datetime(2024, 5, 1, 10, 0, second) for second in range(5)],
    "pid": [7, 8, 8, 7, None],
}


@pytest.fixture(params=["pandas", "polars"])
def library(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param)


def test_rows_are_records_with_their_positions_and_times(library: Any) -> None:
    found = LogReader().frame(library.DataFrame(ROWS), time="when")
    assert [(one.number, one.content) for one in found] == [(1, "start"), (3, "read 3 bytes"), (5, "stop")]
    assert found[2].text == "stop\n  at once"
    assert [one.seconds for one in found] == [1714557600.0, 1714557602.0, 1714557604.0]
    assert LogReader().frame(library.DataFrame(ROWS))[0].seconds is None


@pytest.mark.parametrize("when", [1714557600, "2024-05-01 10:00:00", "Wed, 2024-05-01T12:00:00+02:00"])
def test_times_may_be_numbers_or_text(library: Any, when: object) -> None:
    [record] = LogReader().frame(library.DataFrame({"message": ["a"], "when": [when]}), time="when")
    assert record.seconds == 1714557600.0


def test_headers_in_messages_are_split_off_as_in_lines(library: Any) -> None:
    lines = [f"May  1 10:00:0{i} box sshd[{i}]: closed by {i}" for i in range(5)]
    [*found] = LogReader().frame(library.DataFrame({"line": lines}), "line")
    [*read] = LogReader().records(lines, frames.SOURCE)
    assert found == read == [Record("row", i + 1, line, f"closed by {i}", line[:-11]) for i, line in enumerate(lines)]


def test_a_column_divides_records_into_sessions(library: Any) -> None:
    frame = library.DataFrame({"message": list("abcde"), "pid": ["7", "8", None, "8", "7"]})
    found = frames.sessions(frame, LogReader("plain"), Grouping(column="pid"))
    assert [(one.name, [record.content for record in one.records]) for one in found] == [
        ("7", ["a", "e"]),
        ("8", ["b", "d"]),
    ]
    windows = frames.sessions(frame, LogReader("plain"), Grouping(window="2"))
    assert [len(one.records) for one in windows] == [2, 2, 1]


def test_records_have_no_session_column() -> None:
    with pytest.raises(SeqVAEError, match="the column 'pid' of a data frame; give such a frame to"):
        Grouping(column="pid").sessions([])
    with pytest.raises(SeqVAEError, match="exclude each other"):
        Grouping(window="20", column="pid")


def test_the_result_is_a_frame_of_the_same_library(library: Any) -> None:
    frame = library.DataFrame({"message": ["a", "b"]})
    new = frames.like(frame, {"name": ["x"], "rows": [[1, 2]]})
    assert isinstance(new, library.DataFrame)
    assert list(new["rows"][0]) == [1, 2]
    longer = frames.extended(frame, {"score": [1.0, 2.0]})
    assert isinstance(longer, library.DataFrame)
    assert list(longer.columns) == ["message", "score"]
    assert list(frame.columns) == ["message"]


def test_rows_of_pandas_keep_their_index() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"message": ["a", "b"]}, index=[7, 3])
    assert frames.extended(frame, {"score": [1.0, 2.0]})["score"].to_dict() == {7: 1.0, 3: 2.0}


def test_other_objects_and_columns_are_refused(library: Any) -> None:
    with pytest.raises(SeqVAEError, match="a frame without a column 'text'; choose one of message, when, pid"):
        LogReader().frame(library.DataFrame(ROWS), "text")
    with pytest.raises(SeqVAEError, match="a list is no data frame"):
        LogReader().frame(["a line"])


def test_a_lazy_frame_is_not_collected_silently() -> None:
    polars = pytest.importorskip("polars")
    with pytest.raises(SeqVAEError, match="a LazyFrame is no data frame in memory"):
        LogReader().frame(polars.LazyFrame(ROWS))
