"""Detectors of data frames: the counterpart of the commands for raw files."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from commands import last_error_line, seqvae
from conftest import session

pytest.importorskip("sklearn", "1.6")
pytest.importorskip("drain3", reason="pip install 'seqvae[logs]'")

from seqvae import Detector
from seqvae.anomaly import log_detector
from seqvae.errors import SeqVAEError
from seqvae.train import clock

SAYS = {
    "open": "opened file {0}",
    "read": "read {0} bytes",
    "write": "wrote {0} bytes",
    "check": "checksum {0} is right",
}


def rows(numbers: range, changed: dict[int, list[str]] | None = None) -> dict[str, list[Any]]:
    """Columns of interleaved sessions in the order of their events' times."""
    found = []
    for number in numbers:
        for i, event in enumerate((changed or {}).get(number, session(number).split())):
            when = datetime(2024, 5, 1) + timedelta(seconds=60 * number + 25 * i)
            found.append((when, f"s{number}", SAYS.get(event, f"{event} {{0}}").format(number + i)))
    found.sort(key=lambda row: row[0])
    return dict(zip(("when", "pid", "text"), map(list, zip(*found, strict=True)), strict=True))


COLUMNS: dict[str, Any] = {"message": "text", "time": "when", "session": "pid"}


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    pandas = pytest.importorskip("pandas")
    folder = tmp_path_factory.mktemp("frames") / "x.detector"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "now", time.process_time)
        return Detector.learn(pandas.DataFrame(rows(range(300))), folder, p_value=0.02, minutes=0.1, **COLUMNS)


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_sessions_of_a_frame_get_verdicts_in_a_frame(name: str, learned: Detector) -> None:
    library = pytest.importorskip(name)
    assert learned.learned_.sessions == 300
    given = rows(range(400, 420), {405: ["open", "melt down", "close"]})
    found = learned.verdicts(library.DataFrame(given), **COLUMNS)
    assert isinstance(found, library.DataFrame)
    columns = ["session", "start", "records", "score", "p_value", "anomalous", "rows", "messages"]
    assert list(found.columns) == columns
    assert list(found["session"]) == [f"s{number}" for number in range(400, 420)]
    melted = {column: list(found[column])[5] for column in columns}
    assert melted["anomalous"]
    assert melted["start"] == datetime(2024, 5, 1) + timedelta(seconds=60 * 405)
    at = given["text"].index("melt down 406")
    assert at in list(melted["rows"])
    assert list(melted["messages"]) == [given["text"][i] for i in melted["rows"]]
    assert sum(found["anomalous"]) <= 4
    for p_value, anomalous in zip(found["p_value"], found["anomalous"], strict=True):
        assert anomalous == (p_value <= 0.02)


def test_the_folder_is_loaded_with_the_same_verdicts(learned: Detector, capsys: pytest.CaptureFixture[str]) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows(range(500, 510)))
    again = Detector.load(learned.model)
    assert again.verdicts(frame, message="text").equals(learned.verdicts(frame, message="text"))
    renamed = frame.rename(columns={"pid": "process"})
    expected = list(learned.verdicts(frame, message="text")["p_value"])
    assert list(again.verdicts(renamed, message="text", session="process")["p_value"]) == expected
    with pytest.raises(SeqVAEError, match="a frame without a column 'pid'; choose one of when, process, text"):
        again.verdicts(renamed, message="text")
    scores = again.score_samples(again.sessions(frame, message="text"))
    assert scores.tolist() == list(learned.verdicts(frame, message="text")["score"])


def test_a_frame_and_raw_lines_give_the_same_verdicts(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    lines = [
        f"2024-05-01 10:00:00 INFO [{pid}] {text}"
        for pid, text in zip(*[rows(range(60))[c] for c in ("pid", "text")], strict=True)
    ]
    from seqvae.events.lines import LogReader
    from seqvae.events.sessions import Grouping

    reader, grouping = LogReader(), Grouping(r"\[(s\d+)\]")
    sessions = list(grouping.sessions(reader.records(lines)))
    log_detector.learn(sessions, reader, grouping, tmp_path / "x", p_value=0.2, minutes=0.01, report=lambda _: None)
    detector = Detector.load(tmp_path / "x")
    found = detector.verdicts(pandas.DataFrame({"message": lines}))
    assert list(found["session"]) == [one.name for one in sessions]
    assert list(found["score"]) == detector.score_samples(sessions).tolist()
    assert "start" not in found.columns


def test_a_detector_of_pieces_adds_columns(tiny_events: Path) -> None:
    pandas = pytest.importorskip("pandas")
    normal = [session(number) for number in range(1000, 1100)]
    detector = Detector(tiny_events, p_value=0.1, samples=2).fit(normal)
    frame = pandas.DataFrame({"line": normal[:5], "host": list("abcde")}, index=list("vwxyz"))
    found = detector.verdicts(frame, message="line")
    assert list(found.columns) == ["line", "host", "score", "p_value", "anomalous"]
    assert list(found.index) == list("vwxyz")
    assert list(found["p_value"]) == detector.p_values(normal[:5]).tolist()
    with pytest.raises(SeqVAEError, match="was not learned from a log"):
        detector.sessions(frame)


def test_sessions_by_a_column_need_a_frame(learned: Detector, tmp_path: Path) -> None:
    (tmp_path / "raw.log").write_text("a line\n")
    line = last_error_line(seqvae("detect", "score", tmp_path / "raw.log", "--detector", learned.model))
    assert "the column 'pid' of a data frame" in line


def test_the_folder_of_a_log_is_not_written_by_save(learned: Detector, tmp_path: Path) -> None:
    with pytest.raises(SeqVAEError, match=r"a detector of a log is the folder .*; copy that"):
        learned.save(tmp_path / "y")
