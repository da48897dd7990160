"""Records divided into sessions: by a key, by lines and by time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from seqvae.errors import SeqVAEError
from seqvae.events.lines import LogReader, Record
from seqvae.events.sessions import LINES, Grouping


def records(*texts: str, source: str = "x.log") -> list[Record]:
    return list(LogReader("plain").records(texts, source))


def texts(grouping: Grouping, given: list[Record]) -> dict[str, str]:
    return {one.name: " ".join(r.content for r in one.records) for one in grouping.sessions(given)}


def test_a_key_collects_its_records_from_anywhere() -> None:
    given = [*records("a[2] x", "a[1] y", "none", "a[2] z"), *records("a[1] q", source="y.log")]
    grouping = Grouping(r"a\[(\d+)\]")
    assert texts(grouping, given) == {"2": "a[2] x a[2] z", "1": "a[1] y a[1] q"}
    assert grouping.lasting


def test_windows_of_lines_do_not_cross_files() -> None:
    given = [*records("a", "b", "c"), *records("d", "e", source="y.log")]
    assert texts(Grouping(window="2"), given) == {"x.log:1": "a b", "x.log:3": "c", "y.log:1": "d e"}
    many = records(*map(str, range(LINES + 1)))
    assert [len(one.records) for one in Grouping().sessions(many)] == [LINES, 1]


def test_a_window_of_lines_is_complete_with_its_last_line() -> None:
    def stream() -> Iterator[Record]:
        yield from records("a", "b")
        raise AssertionError("nobody waits for a third line")

    assert next(Grouping(window="2").sessions(stream())).records[1].content == "b"


def test_windows_of_time_follow_the_clock() -> None:
    lines = [f"2024-01-01 00:{at} {at}" for at in ("00:01", "00:29", "00:30", "02:00", "01:59", "01:59")]
    given = list(LogReader().records(lines, "x.log"))
    found = [[r.content for r in one.records] for one in Grouping(window="30s").sessions(given)]
    assert found == [["00:01", "00:29"], ["00:30"], ["02:00"], ["01:59", "01:59"]]
    assert len(list(Grouping(window="1m").sessions(given))) == 3
    with pytest.raises(SeqVAEError, match=r"x.log, line 1: has no time stamp"):
        list(Grouping(window="1h").sessions(records("a")))


@pytest.mark.parametrize(
    ("key", "window", "why"),
    [
        ("(a)", "2", "give one of them"),
        ("(a", None, "not a regular expression"),
        ("a", None, "has no group"),
        (None, "0", "give lines"),
        (None, "3 days", "give lines"),
    ],
)
def test_a_key_that_divides_nothing_is_refused(key: str | None, window: str | None, why: str) -> None:
    with pytest.raises(SeqVAEError, match=why):
        Grouping(key, window)
