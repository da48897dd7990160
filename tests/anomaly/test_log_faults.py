"""Faults injected into normal sessions, and synthetic logs, as the benchmark of faults uses them."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import SESSIONS

pytest.importorskip("drain3", reason="pip install 'seqvae[logs]'")

from seqvae.events.lines import LogReader
from seqvae.events.sessions import Grouping

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import log_faults
import made_logs


def test_each_fault_matches_its_name_and_occurs_in_no_training_session() -> None:
    train, others = SESSIONS[:200], SESSIONS[200:]
    found = log_faults.faulty(others, train, 0)
    assert not {line for lines in found.values() for line in lines} & set(train)
    counts = [Counter(line.split()) for line in others]
    assert all(Counter(line.split()) in counts for line in found["shuffled"])
    assert all(line.split().count(log_faults.NEW) == 1 for line in found["novel"])
    for how, step in (("dropped", -1), ("doubled", 1)):
        for line in found[how]:
            changed = Counter(line.split())
            assert any((changed - one if step > 0 else one - changed).total() == 1 for one in counts
                       if changed.total() - one.total() == step)  # fmt: skip
    assert {len(lines) for lines in found.values()} == {log_faults.MOST}, "several in one session"
    assert log_faults.faulty(["a", "a b", "c d"], ["b a"], 0)["shuffled"] == ["d c"] * log_faults.ROUNDS, (
        "others have no new order"
    )


def test_synthetic_logs_contain_the_sessions_they_were_made_of(tmp_path: Path) -> None:
    with (tmp_path / "templates.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(
            [("EventId", "EventTemplate"), ("E1", "<*>Served block<*>to<*>"), ("E2", "<*>Deleting block<*>file<*>")]
        )
    lines = made_logs.hdfs(["E1 E2 E1", "E2", "E1 E1"], tmp_path / "templates.csv", 0)
    records = LogReader().records(iter(lines), "x")
    sessions = list(Grouping(made_logs.HDFS_KEY).sessions(records))
    events = ["".join("1" if "Served" in one.content else "2" for one in session.records) for session in sessions]
    assert sorted(events) == ["11", "121", "2"]
    packages = made_logs.dpkg(30, 0)
    assert packages == made_logs.dpkg(30, 0) != made_logs.dpkg(30, 1)
    grouped = list(Grouping(made_logs.DPKG_KEY).sessions(LogReader().records(iter(packages), "x")))
    assert len(grouped) == 30 and sum(len(one.records) for one in grouped) == len(packages)
    assert all(one.records[0].content.startswith("install") for one in grouped)
