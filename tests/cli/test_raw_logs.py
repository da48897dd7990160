"""From raw logs to a detector and to verdicts, each in one command."""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import done, error_line, files, last_error_line, seqvae
from conftest import SENTENCES, session

pytest.importorskip("drain3", reason="pip install 'seqvae[logs]'")

from seqvae.anomaly import calibration, log_detector
from seqvae.errors import CheckpointError
from seqvae.events.lines import LogReader
from seqvae.events.sessions import Grouping
from seqvae.train import clock

pytestmark = pytest.mark.usefixtures("here")

KEY = r"app\[(\d+)\]"
SAYS = {
    "open": "opened file /var/lib/x{0} for user {1}",
    "read": "read {0} bytes",
    "write": "wrote {0} bytes to disk {1}",
    "check": "checksum 0x{0:04x} is right",
    "sync": "all is synced after {0} ms",
    "close": "closed by 10.0.0.{0}",
}


def log(numbers: range, changed: dict[int, list[str]] | None = None) -> list[str]:
    """The raw lines of interleaved sessions."""
    rng = np.random.default_rng(0)
    rows = []
    for number in numbers:
        events = (changed or {}).get(number, session(number).split())
        for i, event in enumerate(events):
            says = SAYS.get(event, event).format(int(rng.integers(200)), int(rng.integers(9)))
            rows.append((number + i / 10, f"Dec 10 06:{number % 60:02}:00 box app[{number}]: {says}"))
    return [line for _, line in sorted(rows, key=lambda row: row[0])]


def written(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A detector of 400 sessions, half of them in another file, and its JSON line; trained for processor time.

    With wall time the model's quality would depend on the load of the machine.
    """
    folder = tmp_path_factory.mktemp("learn")
    lines = log(range(400))
    written(folder / "a.log", lines[:1000])
    with gzip.open(folder / "b.log.gz", "wt") as file:
        file.write("\n".join([*lines[1000:], "Dec 10 06:00:00 box cron[1]: of no session"]))
    arguments = [folder / "a.log", folder / "b.log.gz", "--session", KEY, "-o", folder / "x.detector"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "now", time.process_time)
        [line] = done("detect", "learn", *arguments, "--minutes", 0.2, "--p-value", 0.02, "--json")
    return folder / "x.detector", json.loads(line)


def rows(*args: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done("detect", "score", *args, "--json")]


def test_learning_reports_each_part(learned: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = learned
    lines = len(log(range(400)))
    assert (facts["records"], facts["inside"], facts["sessions"]) == (lines + 1, lines, 400)
    assert (facts["trained"], facts["calibrated"], facts["checked"]) == (200, 140, 60)
    assert facts["templates"] == len(SAYS)
    assert (facts["p_value"], facts["needed"]) == (0.02, 0)
    assert facts["false_alarms"] == facts["alarms"] / 60 <= 0.1
    inside = files(folder)
    assert {"templates.json", "config.json", "model.safetensors", "detector/detector.json"} <= set(inside)
    found = log_detector.load(folder)
    assert (found.header, found.field, found.grouping) == ("syslog", None, Grouping(KEY))
    _, settings = calibration.load(folder / "detector")
    assert settings.p_value == 0.02
    assert json.loads((folder / "detector" / "detector.json").read_text())["model"] == "x.detector"


def test_anomalous_sessions_are_found_with_their_lines(learned: tuple[Path, dict[str, Any]], here: Path) -> None:
    changed = {1001: ["open", "melt down of {0} cores", "close"], 1002: ["close", "sync", "open", "sync"]}
    lines = log(range(1000, 1040), changed)
    written(here / "new.log", lines)
    found = {row["session"]: row for row in rows("new.log", "--detector", learned[0])}
    assert list(found) == [str(number) for number in range(1000, 1040)]
    assert {name for name, row in found.items() if row["anomalous"]} >= {"1001", "1002"}
    assert sum(row["anomalous"] for row in found.values()) <= 5
    melted = found["1001"]
    [place] = [i for i, line in enumerate(lines, 1) if "melt" in line]
    assert {"source": "new.log", "line": place, "text": lines[place - 1]}.items() <= min(
        melted["lines"], key=lambda line: float(line["log_prob"])
    ).items()
    assert [token["token"] for token in melted["tokens"]][1:] == ["<new>", melted["tokens"][2]["token"], "<eos>"]
    assert melted["records"] == 3
    shown = done("detect", "score", "new.log", "--detector", learned[0])
    at = next(i for i, line in enumerate(shown) if re.fullmatch(r"\S+ +anomalous +1001", line))
    assert any(line.strip() == f"new.log:{place}: {lines[place - 1]}" for line in shown[at + 1 : at + 5])


def test_the_expected_event_is_named(learned: tuple[Path, dict[str, Any]], here: Path) -> None:
    changed = {1001: ["open", "write", "melt down of {0} cores", "check", "close"]}
    written(here / "new.log", log(range(1000, 1010), changed))
    [melted] = [row for row in rows("new.log", "--detector", learned[0]) if row["session"] == "1001"]
    [marked] = [line for line in melted["lines"] if "melt" in (line["text"] or "")]
    first = marked["expected"][0]
    assert first["message"] == "all is synced after <*> ms" and first["probability"] > 0.5, "it follows every write"
    normal = [row for row in rows("new.log", "--detector", learned[0]) if not row["anomalous"]]
    assert all(not line["expected"] for row in normal for line in row["lines"])
    shown = done("detect", "score", "new.log", "--detector", learned[0], "--html", "new.html")
    assert any(line.strip().startswith("expected here: 'all is synced after <*> ms'") for line in shown)
    page = (here / "new.html").read_text()
    assert "melt down of" in page and "all is synced after &lt;*&gt; ms" in page and page.count("<details") >= 1
    assert ">10</b>sessions" in page


def test_a_report_needs_raw_logs(tiny_events: Path, here: Path) -> None:
    written(here / "normal.txt", [session(number) for number in range(600, 900)])
    done("detect", "fit", "@normal.txt", "-m", tiny_events, "-o", "x.detector")
    result = seqvae("detect", "score", "@normal.txt", "--detector", "x.detector", "--html", "x.html")
    assert result.exit_code == 2 and "--html is for raw logs" in result.stderr


def test_an_unwritable_report_is_refused_before_scoring(learned: tuple[Path, dict[str, Any]], here: Path) -> None:
    written(here / "new.log", log(range(1000, 1003)))
    for place, why in (("none/x.html", "No such file or directory"), (".", "Is a directory")):
        result = seqvae("detect", "score", "new.log", "--detector", learned[0], "--html", place)
        assert result.exit_code == 1 and result.stdout == ""
        assert f"cannot be written ({why}); choose another --html" in result.stderr
    assert sorted(path.name for path in here.iterdir()) == ["new.log"]


def test_learning_suggests_a_key_lists_templates_and_leaves_out_excluded_sessions(here: Path) -> None:
    written(here / "a.log", log(range(400)))
    result = seqvae("detect", "learn", "a.log", "-o", "x.detector", "--minutes", 0.01, "--p-value", 0.5)
    assert result.exit_code == 0
    assert r"20 lines in a row are a session; --session 'app\[(\d+)' is in 100% of the lines" in result.stderr
    read, wrote = "read <*> bytes", "wrote <*> bytes to disk <*>"
    excluding = ("--session", KEY, "--minutes", 0.01, "--p-value", 0.5, "--exclude", "wrote")
    told_lines = seqvae("detect", "learn", "a.log", "-o", "y.detector", *excluding).stderr.splitlines()
    without = sum("write" not in session(number).split() for number in range(400))
    assert f"{400 - without} of 400 sessions are excluded" in told_lines
    kinds = [line for line in told_lines if line.startswith("taken for normal")]
    assert kinds == [f"taken for normal: {without} sessions (100%): {'; '.join(kind_of_read(read))}"]
    assert not any(wrote in line for line in kinds)
    refused = seqvae("detect", "learn", "a.log", "-o", "z.detector", "--session", KEY, "--exclude", "app")
    assert refused.exit_code == 1 and "excluded 'app': leaves no session" in refused.stderr
    assert "not a regular expression" in error_line(
        seqvae("detect", "learn", "a.log", "-o", "z.detector", "--exclude", "(")
    )


def kind_of_read(read: str) -> list[str]:
    """The templates of a session with reads alone, in order."""
    return ["opened file <*> for user <*>", read, "checksum <*> is right", "closed by <*>"]


def test_a_log_of_another_source_gets_a_warning(
    learned: tuple[Path, dict[str, Any]], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, strange = log(range(1000, 1003)), [f"Dec 10 06:00:00 box app[7]: {line}" for line in SENTENCES]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join([*known, *strange]).encode())))
    result = seqvae("detect", "score", "--detector", learned[0])
    assert result.exit_code == 0
    share = len(strange) / (len(strange) + len(known))
    assert f"warning: {share:.0%} of lines match no known template" in result.stderr
    written(here / "good.log", known)
    assert "warning" not in seqvae("detect", "score", "good.log", "--detector", learned[0]).stderr
    written(here / "other.log", SENTENCES)
    assert "no line matches the session key" in error_line(
        seqvae("detect", "score", "other.log", "--detector", learned[0])
    )


def test_a_folder_may_be_moved_and_its_threshold_changed(learned: tuple[Path, dict[str, Any]], here: Path) -> None:
    shutil.copytree(learned[0], here / "moved")
    written(here / "new.log", log(range(1000, 1020)))
    loose = rows("new.log", "--detector", "moved", "--p-value", 0.5)
    assert [row["anomalous"] for row in loose] == [row["p_value"] <= 0.5 for row in loose]
    assert "choose that, or" in error_line(
        seqvae("detect", "score", "new.log", "--detector", "moved", "--p-value", 0.001)
    )
    (here / "moved" / "templates.json").write_text("{}")
    assert "templates.json: cannot be read" in error_line(seqvae("detect", "score", "new.log", "--detector", "moved"))
    with pytest.raises(CheckpointError):
        log_detector.load(here)


def test_new_sessions_are_added_to_the_calibration(learned: tuple[Path, dict[str, Any]], here: Path) -> None:
    shutil.copytree(learned[0], here / "x.detector")
    before = log_detector.load(here / "x.detector")
    assert learned[1]["bound"] == before.calibration.bound(before.settings.threshold, 0.02) > 0.02
    written(here / "new.log", log(range(2000, 2100)))
    done("detect", "update", "x.detector", "new.log")
    after = log_detector.load(here / "x.detector")
    assert len(after.calibration.normal) == len(before.calibration.normal) + 100
    assert files(here / "x.detector") == files(learned[0])
    assert json.loads((here / "x.detector" / "detector" / "detector.json").read_text())["model"] == "x.detector"
    found = rows("new.log", "--detector", "x.detector", "--worst-first", "--fdr", 0.2)
    assert [row["rank"] for row in found] == list(range(1, 101))
    assert [row["score"] for row in found] == sorted(row["score"] for row in found)


def test_an_update_learns_new_sessions_and_forgets_none(
    learned: tuple[Path, dict[str, Any]], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "now", time.process_time)
    shutil.copytree(learned[0], here / "x.detector")
    rng = np.random.default_rng(1)

    def backup(_: int) -> list[str]:
        """A new kind of normal session, of three new messages and an old one."""
        copied = ["copied block {0} to mirror {1}"] * int(rng.integers(1, 5))
        return ["backup number {0} starts", *copied, "check", "backup is complete"]

    strange = {1001: ["open", "melt down of {0} cores", "close"], 1002: ["close", "sync", "open", "sync"]}
    strange[1003] = ["backup is complete", "check", "backup number {0} starts"]
    places = range(1010, 1030)
    written(here / "new.log", log(range(5000, 5160), {number: backup(number) for number in range(5000, 5160)}))
    written(here / "test.log", log(range(1000, 1050), {**strange, **{number: backup(number) for number in places}}))

    def anomalous() -> set[int]:
        return {int(row["session"]) for row in rows("test.log", "--detector", "x.detector") if row["anomalous"]}

    assert anomalous() >= {*places, *strange}
    [line] = done("detect", "update", "x.detector", "new.log", "--train", "--minutes", 0.2, "--json")
    facts = json.loads(line)
    assert (facts["pieces"], facts["trained"], facts["calibrated"], facts["checked"]) == (160, 280, 196, 84)
    assert facts["templates"] == len(SAYS) + 3
    assert (facts["p_value"], facts["sessions"]) == (0.02, 560)
    after = anomalous()
    assert after >= set(strange), "anomalies stay anomalous"
    assert len(after & set(places)) <= 2, "the new kind is normal"
    assert len(after - set(strange) - set(places)) <= 3, "and so is the old one"
    assert files(here / "x.detector") == files(learned[0])
    assert len(log_detector.load(here / "x.detector").calibration.normal) == 196 - 65
    done("detect", "update", "x.detector", "new.log", "--train", "--replace", "--minutes", 0.01)
    assert len(log_detector.load(here / "x.detector").calibration.normal) == 56 - 18


def test_an_update_needs_sessions_and_a_detector_with_its_own_model(
    learned: tuple[Path, dict[str, Any]], tiny_events: Path, here: Path
) -> None:
    shutil.copytree(learned[0], here / "x.detector")
    written(here / "few.log", log(range(5)))
    assert "5 sessions are too few to train on" in error_line(
        seqvae("detect", "update", "x.detector", "few.log", "--train")
    )
    (here / "x.detector" / "sessions.json").unlink()
    written(here / "new.log", log(range(40)))
    assert "sessions.json: the detector's own" in error_line(
        seqvae("detect", "update", "x.detector", "new.log", "--train")
    )
    written(here / "normal.txt", [session(number) for number in range(600, 700)])
    done("detect", "fit", "@normal.txt", "-m", tiny_events, "-o", "y.detector", "--p-value", 0.1)
    assert "--train is for" in error_line(seqvae("detect", "update", "y.detector", "@normal.txt", "--train"), 2)


def test_few_sessions_of_few_kinds_are_learned_and_the_rate_is_reported(here: Path) -> None:
    kinds = [session(number).split() for number in range(4)]
    lines = log(range(48), {number: kinds[number % 4] for number in range(48)})
    written(here / "x.log", lines)
    result = seqvae("detect", "learn", "x.log", "--session", KEY, "-o", "x.detector", "--minutes", 0.03)
    assert result.exit_code == 0, result.stderr
    [warning] = [line for line in result.stderr.splitlines() if "warning" in line]
    assert re.match(
        r"warning: 48 sessions are too few for a p-value of 0.01, which needs about 429; the smallest possible, 0\.0",
        warning,
    )
    assert "48 sessions, 6 templates; of 7 held-out sessions" in result.stdout
    assert log_detector.load(here / "x.detector").settings.p_value == pytest.approx(1 / 13, rel=0.02)
    few = written(here / "few.log", log(range(19)))
    assert "19 sessions are too few" in last_error_line(seqvae("detect", "learn", few, "--session", KEY, "-o", "y"))


def test_errors_are_reported_at_once(here: Path) -> None:
    written(here / "x.log", log(range(30)))
    learn = ["detect", "learn", "x.log", "-o"]
    assert "give one of them" in error_line(seqvae(*learn, "y", "--session", KEY, "--window", "20"), 2)
    assert "no line matches the session key" in error_line(seqvae(*learn, "y", "--session", "(nothing)"))
    assert "has no <Content>" in error_line(seqvae(*learn, "y", "--format", "<Date>"))
    assert "is not a detector of raw logs" in last_error_line(seqvae(*learn, "x.log", "--window", "2"))
    assert not (here / "y").exists()


def test_windows_of_a_stream_are_scored_as_they_arrive(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [SAYS[event].format(i, 1) for i in range(200) for event in ("open", "read", "check", "close")]
    written(here / "x.log", lines)
    done("detect", "learn", "x.log", "--window", "4", "-o", "x.detector", "--minutes", 0.03, "--p-value", 0.1)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines[:10]).encode())))
    found = rows("--detector", "x.detector")
    assert [(row["session"], row["records"]) for row in found] == [("-:1", 4), ("-:5", 4), ("-:9", 2)]
    assert LogReader("plain").header == log_detector.load(here / "x.detector").header
