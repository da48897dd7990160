"""Session keys found in a log."""

from __future__ import annotations

import random

import pytest

from seqvae.events.lines import LogReader, Record
from seqvae.events.session_keys import suggest
from seqvae.events.sessions import Grouping


def records(lines: list[str]) -> list[Record]:
    return list(LogReader("plain").records(lines))


def interleaved(*sessions: list[str]) -> list[str]:
    """Lines of interleaved sessions, each in its own order."""
    rng = random.Random(0)
    waiting, out = [list(one) for one in sessions], []
    while waiting:
        one = rng.choice(waiting[:3])
        out.append(one.pop(0))
        waiting = [rest for rest in waiting if rest]
    return out


@pytest.mark.parametrize(
    ("line", "pattern"),
    [
        ("Dec 10 06:55:46 host sshd[{id}]: {word} from 10.0.0.1", r"sshd\[(\d+)"),
        ("INFO dfs.DataNode: {word} block blk_-16{id} of size 67108864", r"blk_(-?\d+)"),
        ("GET /x {word} session={id} status=200", r"session=(\d+)"),
        ("{word} [instance: 1f23{id}-9a5c-4c9f-8ac7-3b2f0c2a1d4e] ok", r"[instance: (uuid)"),
    ],
)
def test_an_identifier_that_divides_the_log_is_found(line: str, pattern: str) -> None:
    words = ["open", "read", "write", "close"]
    given = records(interleaved(*[[line.format(id=1000 + n, word=word) for word in words] for n in range(60)]))
    best = suggest(given)[0]
    if "uuid" not in pattern:
        assert best.pattern == pattern
    assert (best.covered, best.sessions, best.length) == (1.0, 60, 4.0)
    sessions = list(Grouping(best.pattern).sessions(given))
    assert len(sessions) == 60 and all(len(one.records) == 4 for one in sessions)
    assert [[word for word in words if word in record.text] for record in sessions[7].records] == [[w] for w in words]


def test_a_log_without_an_identifier_has_no_session_key() -> None:
    assert suggest([]) == []
    assert suggest(records(["all is well", "disk is full"] * 50)) == []
    alone = [f"request[{n}]: done" for n in range(200)]  # no value comes twice
    assert suggest(records(alone)) == []
    one = [f"app[7]: step {n % 9}" for n in range(200)]  # one value throughout
    assert suggest(records(one)) == []


def test_values_in_close_lines_rank_before_spread_ones() -> None:
    lines = [f"app[{n // 4}]: worker={n * 7 % 13} says {n % 4}" for n in range(400)]
    assert [key.pattern for key in suggest(records(lines))] == [r"app\[(\d+)", r"worker=(\d+)"]
