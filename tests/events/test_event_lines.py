"""Raw lines as records: recognised headers, given formats, records of several lines, time stamps."""

from __future__ import annotations

import json

import pytest

from seqvae.errors import SeqVAEError
from seqvae.events.lines import HEADERS, LogReader, Record, recognise, seconds


def records(lines: list[str], *settings: str) -> list[Record]:
    return list(LogReader(*settings).records(lines, "x.log"))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("syslog", "Dec  1 06:55:46 box sshd[24200]: disk full"),
        ("syslog", "<34>Dec 10 06:55:46 box su: disk full"),
        ("syslog-iso", "2024-03-01T10:00:00.123+01:00 box app[17]: disk full"),
        ("syslog-5424", '<34>1 2024-03-01T10:00:00Z box app 17 ID4 [a@1 b="c"] disk full'),
        ("apache-error", "[Sun Dec 04 04:47:44 2005] [notice] disk full"),
        ("apache-access", "10.0.0.7 - - [10/Oct/2000:13:55:36 -0700] disk full"),
        ("log4j", "2015-10-18 18:01:47,978 INFO [main] org.apache.Master: disk full"),
        ("log4j", "2015-07-29 17:41:44,747 - WARN  [Worker:1@774] - disk full"),
        ("log4j-thread", "2015-07-29 17:41:44,747 [main] ERROR org.x.Y - disk full"),
        ("python", "2015-07-29 17:41:44,747 - root - ERROR - disk full"),
        ("hadoop", "081109 203615 148 INFO dfs.DataNode$PacketResponder: disk full"),
        ("android", "03-17 16:13:38.811  1702  2395 D WindowManager: disk full"),
        ("bluegene", "- 1131566461 2005.11.09 dn228 Nov 9 12:01:01 dn228/dn228 crond[2915]: disk full"),
        ("openstack", "nova.log 2017-05-16 00:00:00.008 25746 INFO nova.wsgi [req-38 - -] disk full"),
        ("iso", "2024-01-01 10:00:00 disk full"),
        ("time", "[10.30 16:49:06] disk full"),
        ("kernel", "[   12.345678] disk full"),
        ("epoch", "134681 node-246 unix.hw up 1077804742 1 disk full"),
        ("plain", "disk full"),
    ],
)
def test_a_header_is_recognised_and_split_off(name: str, line: str) -> None:
    assert recognise([line]) == name
    [record] = records([line])
    assert record.content == "disk full"
    assert record.header + record.content == record.text == line
    assert (record.seconds is None) == (name == "plain")


def test_every_known_header_has_an_example() -> None:
    [mark] = test_a_header_is_recognised_and_split_off.pytestmark  # type: ignore[attr-defined]
    assert {name for name, _ in mark.args[1]} == {*HEADERS, "plain"}


def test_the_most_frequent_header_is_used_for_all_lines() -> None:
    reader = LogReader()
    lines = ["hello", *["2024-01-01 10:00:00 ready"] * 3]
    assert [one.content for one in reader.records(lines)] == ["hello", *["ready"] * 3]
    assert reader.header == "iso"
    assert next(iter(reader.records(["no stamp here"]))).content == "no stamp here"
    assert recognise(["a", "b", "2024-01-01 10:00:00 ready"]) == "plain"


def test_a_format_in_the_syntax_of_logparser() -> None:
    [record] = records(["[10.30 16:49:06] chrome.exe -  closed, 3 bytes"], r"[<Time>] <Program> - <Content>")
    assert record.content == "closed, 3 bytes"
    [record] = records(["a (b)   c d"], "<One> (<Two>) <Content>")
    assert record.content == "c d", "literal text matches itself, and a space any number of spaces"
    for wrong in ("<Date> <Time>", "sylog"):
        with pytest.raises(SeqVAEError, match=r"has no <Content>.*syslog"):
            LogReader(wrong)
    with pytest.raises(SeqVAEError, match="name of its own"):
        LogReader("<A> <A> <Content>")


def test_a_stack_trace_belongs_to_its_record() -> None:
    trace = ["java.io.IOException: broken", "\tat a.b.C(D.java:1)", "Caused by: x", "    ... 3 more"]
    for before in ("", "2015-10-18 18:01:47,978 ERROR [main] org.x.Y: "):
        lines = [f"{before}it failed", *trace, "", f"{before}it goes on"]
        first, second = records(lines)
        assert first.text.split("\n") == lines[:5]
        assert (first.content, first.number) == ("it failed", 1)
        assert (second.content, second.number) == ("it goes on", 7), "numbers count every line"


def test_a_line_without_a_header_continues_the_record_before_it() -> None:
    stamped = "2024-01-01 10:00:00 query"
    assert [one.text for one in records([stamped, "select *", stamped])] == [f"{stamped}\nselect *", stamped]
    assert len(records(["query", "select *", "query"])) == 3


def test_lines_of_json_have_their_message_in_a_field() -> None:
    lines = [json.dumps({"log": {"message": f"a {i}\nmore"}, "time": "2024-01-01T00:00:01Z"}) for i in range(2)]
    reader = LogReader(field="log.message")
    found = list(reader.records([*lines, "no json", "{}", "[1]"]))
    assert [one.content for one in found] == ["a 0", "a 1", "no json", "{}", "[1]"]
    assert found[0].text == lines[0]
    assert found[0].seconds == 1704067201


def test_time_stamps() -> None:
    day = 24 * 3600
    assert seconds("2024-01-01 00:00:01.5 x") == 1704067201.5
    assert seconds("2024-01-01T02:00:01+02:00") == seconds("2023-12-31T19:00:01-05:00") == 1704067201
    assert seconds("[01/Jan/2024:02:00:01 +0200]") == 1704067201
    assert seconds("[Mon Jan 01 00:00:01 2024]") == 1704067201
    assert seconds("240101 000001 148 INFO") == 1704067201
    assert seconds("1704067201 up") == 1704067201
    assert seconds("Jan  2 00:00:01 box") == seconds("01-02 00:00:01.000") == day + 1
    assert seconds("00:01:00,250") == 60.25
    assert seconds("Xyz  2 of no time") is None
