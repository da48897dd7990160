r"""Detection of faults that are inserted into normal sessions, false alarms, and times of commands, on sets of logs.

    python benchmarks/log_faults.py ../shared/data/logs OUT [--minutes 1] [--only NAME]

Four raw logs go through `seqvae detect learn` and `seqvae detect score`, both timed: OpenSSH by process, a package log
by package (made_logs.py), HDFS by block (made_logs.py from train.normal), OpenStack by request. Detectors are saved in
OUT. The event ids of HDFS and the traces of ADFA-LD are scored by the released models, calibrated on normal sessions
outside of their training data.

Each set has normal sessions for calibration and other normal sessions for testing. One fault is inserted into each test
session: shuffled (an order that no training session has), a novel event, a dropped event, a doubled event. For every
score, the table has the share of faults detected at p <= 0.01, and the share of normal test sessions called anomalous,
as means over several divisions of the normal sessions into calibration and test with the same model: the rate of false
alarms is promised on average over calibrations.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import made_logs
import numpy as np
import processor
from detection_figures import share_interval

from seqvae import codec
from seqvae.anomaly import calibration, log_detector
from seqvae.anomaly import evidence as anomaly
from seqvae.anomaly import faults as faults_of_detectors
from seqvae.anomaly.calibration import Score
from seqvae.config import read

LEVEL = 0.01
MOST = 150  # normal test sessions with inserted faults, and maximum faults of each kind
ROUNDS = 20  # maximum faults of one kind in one session
NEW = "<new>"  # an event that occurs in no session
TRIES = 50
DIVISIONS = 4  # random divisions of the normal sessions into calibration and test


@dataclass(frozen=True)
class Part:
    """Sessions of event ids."""

    train: list[str]
    calibrate: list[str]
    test: list[str]


def faulty(sessions: Sequence[str], train: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Sessions of each fault: one for each session with more than one event, and again until there are MOST.

    Leaves out a session if all TRIES changes of it are training sessions, empty or without effect.
    """
    rng, known = np.random.default_rng(seed), {tuple(line.split()) for line in train}
    out: dict[str, list[str]] = {"shuffled": [], "novel": [], "dropped": [], "doubled": []}

    def changed(events: list[str], how: str) -> list[str]:
        at = int(rng.integers(len(events)))
        if how == "shuffled":
            return [events[i] for i in rng.permutation(len(events))]
        if how == "dropped":
            return events[:at] + events[at + 1 :]
        return [*events[:at], NEW if how == "novel" else events[at], *events[at:]]

    longer = [events for line in sessions if len(events := line.split()) > 1]
    for how, found in out.items():
        for events in longer * ROUNDS:
            tried = (changed(events, how) for _ in range(TRIES))
            new = next((some for some in tried if some != events and tuple(some) not in known), None)
            if new is not None and len(found) < MOST:
                found.append(" ".join(new))
    return out


def rates(model: codec.Codec, part: Part, seed: int) -> tuple[list[list[str]], str]:
    """Rows of a table, one per score, with means over DIVISIONS, and the numbers of sessions as text."""
    near, tokens = anomaly.reference(model, list(dict.fromkeys(part.train))[: log_detector.KNOWN])
    normal = [*part.calibrate, *part.test]
    # one call per set: equal sessions are examined once
    evidence = list(anomaly.examine(model, normal))
    found: dict[Score, dict[str, list[float]]] = {score: {} for score in get_args(Score)}
    for division in range(DIVISIONS):
        order = np.random.default_rng(seed + division).permutation(len(normal)) if division else np.arange(len(normal))
        calibrate, test = np.split(order, [len(part.calibrate)])
        faults = faulty([normal[i] for i in test[:MOST]], part.train, seed + division)
        parts = {name: list(anomaly.examine(model, some)) for name, some in faults.items()}
        parts["false alarms"] = [evidence[i] for i in test]
        own = faults_of_detectors.source(model, [normal[i] for i in calibrate], part.train, log_detector.SAMPLES, 0)
        for score, shares in found.items():
            fitted = calibration.fit([evidence[i] for i in calibrate], score, near, seed + division, tokens, faulty=own)
            compared = len(fitted.normal)
            threshold = fitted.threshold(max(LEVEL, 1 / (compared + 1)))
            for name, some in parts.items():
                hits = [fitted.scores(one)[score] < threshold for one in some]
                shares.setdefault(name, []).append(float(np.mean(hits)))
    rows = []
    for score, shares in found.items():
        alarms = shares.pop("false alarms")
        inside = sum(low <= LEVEL <= high for low, high in (_interval(share, len(part.test)) for share in alarms))
        each = ", ".join(f"{100 * share:.2f}" for share in alarms)
        cells = [f"{np.mean(some):.3f}" if np.isfinite(some).all() else "" for some in shares.values()]
        rows.append([score, *cells, f"{100 * np.mean(alarms):.2f} % ({each}; {inside} of {DIVISIONS} around 1 %)"])
    about = f"{len(part.calibrate)} calibration sessions, {compared} of them for p-values, p <= "
    about += f"{max(LEVEL, 1 / (compared + 1)):.3g}; {len(part.test)} normal test sessions; "
    return rows, about + ", ".join(f"{len(some)} {name}" for name, some in faults.items())


def _interval(share: float, sessions: int) -> tuple[float, float]:
    return share_interval(round(share * sessions), sessions)


def learned(name: str, log: Path, key: str, out: Path, minutes: float) -> Part:
    """Learn a detector of a raw log with the command line, print times, and return its sessions."""
    folder = out / f"{name}.detector"

    def timed(*arguments: str) -> tuple[float, str]:
        begin = time.perf_counter()
        command = [sys.executable, "-m", "seqvae", "detect", *arguments, "--json"]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return time.perf_counter() - begin, output

    learning, output = timed("learn", str(log), "--session", key, "-o", str(folder), "--minutes", str(minutes))
    scoring, verdicts = timed("score", str(log), "--detector", str(folder))
    facts, rows = json.loads(output), [json.loads(line) for line in verdicts.splitlines()]
    print(
        f"| {name} | {facts['inside']} | {facts['sessions']} | {learning:.0f} | {scoring:.0f} | "
        f"{facts['alarms']} of {facts['checked']} | {sum(row['anomalous'] for row in rows)} |",
        flush=True,
    )
    parts = read(folder / log_detector.SESSIONS)["parts"]
    return Part(*([line for line, count in some for _ in range(count)] for some in parts))


def made(data: Path, out: Path) -> dict[str, tuple[Path, str]]:
    """The raw logs with their session keys."""
    (out / "dpkg.log").write_text("".join(f"{line}\n" for line in made_logs.dpkg(1200, 11)))
    normal = (data / "hdfs" / "train.normal").read_text().splitlines()
    lines = made_logs.hdfs(normal, data / "hdfs" / "templates.csv", 11)
    (out / "HDFS.log").write_text("".join(f"{line}\n" for line in lines))
    return {
        "OpenSSH": (data / "raw" / "OpenSSH.log", r"sshd\[(\d+)"),
        "dpkg": (out / "dpkg.log", made_logs.DPKG_KEY),
        "HDFS": (out / "HDFS.log", made_logs.HDFS_KEY),
        "OpenStack": (data / "raw" / "OpenStack.log", r"(req-[\w-]+)"),
    }


def released(data: Path) -> dict[str, tuple[str, Callable[[], Part]]]:
    """Sets of event ids with the released model of each."""

    def lines(name: str) -> list[str]:
        return (data / name).read_text().splitlines()

    def hdfs() -> Part:
        normal = lines("hdfs/train.normal")
        random.Random(0).shuffle(normal)
        return Part(normal[1000:], normal[:1000], lines("hdfs/test.normal"))

    def adfa() -> Part:
        normal = lines("adfa/test.normal")
        random.Random(0).shuffle(normal)
        return Part(lines("adfa/train.normal"), normal[:1073], normal[1073:])

    return {"HDFS, released": ("hdfs", hdfs), "ADFA-LD, released": ("syscalls", adfa)}


def main() -> None:
    """Print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--only", help="one set")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    print(processor.described(1))
    print("\n| log | lines | sessions | learn, s | score, s | held-out sessions called anomalous | of the whole log |")
    print("|---|---|---|---|---|---|---|")
    sets: dict[str, tuple[str | Path, Part]] = {}
    for name, (log, key) in made(options.data, options.out).items():
        if options.only in (None, name):
            part = learned(name, log, key, options.out, options.minutes)
            sets[name] = options.out / f"{name}.detector", part
    for name, (model, of) in released(options.data).items():
        if options.only in (None, name):
            sets[name] = model, of()
    for name, (place, part) in sets.items():
        rows, about = rates(codec.load(place), part, options.seed)
        print(f"\n{name}: {about}\n\n| score | shuffled | novel | dropped | doubled | false alarms |")
        print("|---|---|---|---|---|---|")
        print("\n".join(f"| {' | '.join(row)} |" for row in rows), flush=True)


if __name__ == "__main__":
    main()
