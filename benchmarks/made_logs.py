"""Synthetic raw logs for benchmarks: a package manager's log, and HDFS block sessions as raw lines.

The first is random in the line format of dpkg.log. The second has the event order of loghub's HDFS sessions, with
random addresses, sizes and times.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable
from pathlib import Path

DPKG_KEY = r"(\S+):(?:amd64|all) "
HDFS_KEY = r"(blk_-?\d+)"


def dpkg(sessions: int, seed: int) -> list[str]:
    """Lines in the format of dpkg.log: installation, configuration, upgrades and removal of `sessions` packages."""
    rng = random.Random(seed)
    rows = []
    for number in range(sessions):
        messages = _package(rng, f"lib{rng.choice('abcdefgh')}{number}:{rng.choice(['amd64', 'all'])}")
        rows += [(number + 0.7 * i + 0.3 * rng.random(), message) for i, message in enumerate(messages)]
    return [f"2025-06-24 {_clock(time)} {message}" for time, message in sorted(rows)]


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600 % 24:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def _package(rng: random.Random, name: str) -> list[str]:
    """The messages of one package."""

    def version() -> str:
        return f"{rng.randint(1, 9)}.{rng.randint(0, 40)}-{rng.randint(1, 5)}"

    def configured(at: str) -> list[str]:
        unpacked = ["status unpacked"] * (1 + (rng.random() < 0.3))
        awaited = ["status triggers-awaited"] * (rng.random() < 0.2)
        states = [*unpacked, "status half-configured", *awaited, "status installed"]
        return [f"configure {name} {at} <none>", *(f"{state} {name} {at}" for state in states)]

    def unpacked(before: str, at: str) -> list[str]:
        pending = [f"status triggers-pending {name} {at}"] * (rng.random() < 0.25)
        return [f"status half-installed {name} {before}", *pending, f"status unpacked {name} {at}"]

    now = version()
    out = [f"install {name} <none> {now}", *unpacked(now, now), *configured(now)]
    for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
        if rng.random() < 0.4:
            out += [f"trigproc {name} {now} <none>", f"status half-configured {name} {now}"]
            out += [f"status installed {name} {now}"]
        else:
            before, now = now, version()
            out += [f"upgrade {name} {before} {now}", f"status half-configured {name} {before}"]
            out += [f"status unpacked {name} {before}", *unpacked(before, now), *configured(now)]
    if rng.random() < 0.3:
        out += [f"remove {name} {now} <none>", f"status half-configured {name} {now}"]
        out += [f"status half-installed {name} {now}", f"status config-files {name} {now}"]
        if rng.random() < 0.5:
            out += [
                f"purge {name} {now} <none>",
                f"status config-files {name} {now}",
                f"status not-installed {name} <none>",
            ]
    return out


def hdfs(sessions: Iterable[str], templates: Path, seed: int) -> list[str]:
    """Raw lines of block sessions of event ids, interleaved; `templates` is the CSV file of their templates."""
    with templates.open(encoding="utf-8", newline="") as file:
        texts = {row["EventId"]: row["EventTemplate"] for row in csv.DictReader(file)}
    rng = random.Random(seed)
    rows = []
    for number, session in enumerate(sessions):
        block = f"blk_{rng.choice('-1')}{rng.randrange(10**17, 10**18)}"
        for i, event in enumerate(session.split()):
            time = number + 0.5 * i + 0.2 * rng.random()
            rows.append((time, f"INFO dfs.DataNode: {_filled(texts[event], block, rng)}"))
    return [f"081109 {_clock(time).replace(':', '')} {rng.randint(1, 999)} {text}" for time, text in sorted(rows)]


def _filled(template: str, block: str, rng: random.Random) -> str:
    """A template with the block id, and random addresses or sizes in the other placeholders."""
    text, before = "", ""
    for i, part in enumerate(template.split("<*>")):
        if i:
            if before.rstrip().lower().endswith(("block", "for", "delete:", "allocateblock:", "updated:", "of")):
                text += f" {block} " if block not in text else f" {rng.randint(1, 67108864)} "
            elif before.strip():
                text += f" /10.251.{rng.randint(1, 250)}.{rng.randint(1, 250)}:50010 "
        text, before = text + part, part
    return " ".join(text.split()) + ("" if block in text else f" {block}")
