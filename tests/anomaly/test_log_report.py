"""The report of a scored log."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from seqvae.anomaly.log_report import LINES, SESSIONS, Line, ScoredSession, page

VOID = {"meta", "circle", "line", "br"}


class Reader(HTMLParser):
    """Asserts that every element is closed in order; collects text by class."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.circles: list[dict[str, str | None]] = []
        self.feed(content)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "circle":
            self.circles.append(given)
        if tag not in {"meta", "line"}:
            self.open.append((tag, given.get("class") or f"<{tag}>"))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "line"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, name in self.open:
            self.texts.setdefault(name, []).append(data)


def session(name: str, p: float, seconds: float | None = None, lines: list[Line] | None = None) -> ScoredSession:
    return ScoredSession(name, p, p <= 0.01, seconds, 3, lines or [])


def test_the_lowest_scored_session_is_first_with_its_lines_and_the_expected_events() -> None:
    lines = [
        Line("a.log:1", "open <b>", 0.9, False),
        Line("a.log:2", "panic & run", 0.001, True, [("sync <*>", 0.8), ("close", 0.15)]),
        Line("", "", 0.002, True, [("close", 0.97)]),
    ]
    found = Reader(page("A log", "its <detector>", [session("7", 0.5), session("<9>", 0.001, lines=lines)], 0.01))
    assert found.texts["name"] == ["<9>", "7"]
    assert found.texts["<h1>"] == ["A log"] and "its <detector>" in found.texts["soft"]
    assert "".join(found.texts["mark"]).startswith("a.log:2panic & run0.001")
    assert "".join(found.texts["instead"]) == "80% sync <*>15% close97% close"
    assert "the session ends" in "".join(found.texts["mark"]) and "open <b>" in found.texts["text"]
    figures = "".join(found.texts["figures"])
    assert figures == "2sessions6records1anomalous at p ≤ 0.010.0false alarms expected, were all normal"


def test_the_time_line_has_a_dot_for_each_session_at_its_time() -> None:
    found = Reader(
        page("x", "", [session("a", 0.5, 1e6), session("b", 0.001, 1e6 + 50), session("c", 1, 1e6 + 100)], 0.01)
    )
    assert [float(one["cx"] or 0) for one in found.circles] == [40, 510, 980]
    assert [one["class"] for one in found.circles] == ["normal", "anomalous", "normal"]
    heights = [float(one["cy"] or 0) for one in found.circles]
    assert heights[1] < heights[0] < heights[2]  # lower scores are drawn higher


@pytest.mark.parametrize("times", [[None, None], [5.0, None], [7.0, 7.0]])
def test_sessions_without_times_are_drawn_in_order(times: list[float | None]) -> None:
    found = Reader(page("x", "", [session(str(i), 0.5, at) for i, at in enumerate(times)], 0.01))
    x = [float(one["cx"] or 0) for one in found.circles]
    assert x == ([510, 510] if times == [7.0, 7.0] else [40, 980])


def test_long_sessions_and_long_lists_are_shortened_with_a_note() -> None:
    lines = [Line(f"a:{i}", f"line {i}", 0.5, i == 50) for i in range(LINES + 40)]
    many = [session(str(i), 0.5) for i in range(SESSIONS + 20)]
    found = Reader(page("x", "", [session("long", 0.001, lines=lines), *many], 0.01))
    assert found.texts["text"] == [f"line {i}" for i in range(46, 55)]
    assert found.texts["gap"] == ["46 more lines", "45 more lines"]
    assert len(found.texts["name"]) == SESSIONS
    assert "and 21 sessions with larger p-values" in found.texts["soft"]


def test_a_log_without_sessions_is_a_valid_page() -> None:
    assert Reader(page("x", "", [], 0.01)).texts["figures"][0] == "0"
