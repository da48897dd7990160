"""Templates: masking, mining, and new messages."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("drain3", reason="pip install 'seqvae[logs]'")

from seqvae.errors import SeqVAEError
from seqvae.events.templates import NEW, Templates, mask

LOG = [
    "Accepted password for anna from 10.0.0.7 port 4022",
    "session opened for user anna",
    "Accepted password for bob from 10.0.0.9 port 4099",
    "",
    "session opened for user bob",
    "7 left",
]


@pytest.mark.parametrize(
    ("raw", "masked"),
    [
        ("took 12 ms, 3.5% of -4", "took <*> ms, <*>% of <*>"),
        ("from 10.0.0.7:22 to fe80:0:0:0:1:2:3:4 at 00:1b:44:11:3a:b7", "from <*> to <*> at <*>"),
        ("GET https://a.example/x?y=1 and /var/log/x.log", "GET <*> and <*>"),
        (r"in C:\Windows\a.dll", "in <*>"),
        ("0x7f01 deadbeef12 req-550e8400-e29b-41d4-a716-446655440000", "<*> <*> req-<*>"),
        ("blk_-38 took pid=12", "blk_<*> took pid=<*>"),
        ("version v2 of and/or a1b, facade", "version v2 of and/or a1b, facade"),
    ],
)
def test_variable_parts_are_masked(raw: str, masked: str) -> None:
    assert mask(raw) == masked


def test_messages_become_events() -> None:
    found = Templates.mine(LOG)
    assert [found.event(message) for message in LOG] == ["E1", "E2", "E1", "E3", "E2", "E4"]
    assert found.texts() == {
        "E1": "Accepted password for <*> from <*> port <*>", "E2": "session opened for user <*>", "E3": "",
        "E4": "<*> left",
    }  # fmt: skip
    assert found.counts() == {"E1": 2, "E2": 2, "E3": 1, "E4": 1}
    assert len(found) == 4


def test_messages_without_a_template_stay_new() -> None:
    found = Templates.mine(LOG)
    strange = "kernel panic: not syncing"
    assert [found.event(strange) for _ in range(3)] == [NEW] * 3
    assert len(found) == 4
    assert found.event("Accepted password for carl from 10.0.0.1 port 1") == "E1", "a new value makes no new template"


def test_the_first_two_words_distinguish_templates() -> None:
    lines = [f"status {what} pkg{i} 1.{i}" for i in range(9) for what in ("installed", "removed")]
    assert sorted(Templates.mine(lines).texts().values()) == ["status installed <*> <*>", "status removed <*> <*>"]


def test_templates_round_trip_through_json() -> None:
    first = ["42 a b c d", "node7 x y z", "node8 x y z", *LOG, "1a b", "2b b"]
    found = Templates.mine(first)
    again = Templates.from_state(json.loads(json.dumps(found.state())))
    others = [*first, "9 a b c e", "node9 x y z", "3c b", "what is this"]
    assert [again.event(one) for one in others] == [found.event(one) for one in others]
    assert again.state() == found.state()


@pytest.mark.parametrize(
    "state",
    [
        None,
        [{}],
        [{"template": "a", "first": 1, "count": 1}],
        [{"template": "a", "first": ["a b"], "count": 1}],
        [{"template": "a", "first": [], "count": 1}],
        [[]],
        ["a"],
    ],
)
def test_a_broken_state_is_refused(state: Any) -> None:
    with pytest.raises(SeqVAEError, match="templates that cannot be read"):
        Templates.from_state(state)
