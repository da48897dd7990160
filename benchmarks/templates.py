"""Grouping accuracy and speed of log templates on loghub's samples, beside Drain without masks.

Grouping accuracy (Zhu et al. 2019): the share of messages whose group equals the group of their true template.
The folder has a `NAME.structured.csv` for each system, with the columns Content and EventId.

    python benchmarks/templates.py ../shared/data/logs/raw
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from drain3.drain import Drain

from seqvae.events.templates import Templates


def grouping_accuracy(found: Sequence[object], true: Sequence[object]) -> float:
    """The share of messages whose group is equal under both labellings."""
    groups: list[set[frozenset[int]]] = []
    for labels in (found, true):
        members = defaultdict(list)
        for index, label in enumerate(labels):
            members[label].append(index)
        groups.append({frozenset(group) for group in members.values()})
    return sum(map(len, groups[0] & groups[1])) / len(true)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    rows, seconds, messages = [], [0.0, 0.0, 0.0], 0
    for path in sorted(parser.parse_args().folder.glob("*.structured.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        contents, true = [line["Content"] for line in lines], [line["EventId"] for line in lines]
        messages += len(lines)
        begun = time.process_time()
        plain = Drain()
        clusters = [plain.add_log_message(content)[0].cluster_id for content in contents]
        between = time.process_time()
        ours = Templates.mine(contents)
        mined = time.process_time()
        events = [ours.event(content) for content in contents]
        spent = between - begun, mined - between, time.process_time() - mined
        seconds = [before + new for before, new in zip(seconds, spent, strict=True)]
        rows.append((path.name.split(".")[0], grouping_accuracy(clusters, true), grouping_accuracy(events, true)))
    rows.append(("mean", *(sum(column) / len(rows) for column in list(zip(*rows, strict=True))[1:])))
    print("| system | drain3, its defaults | seqvae |\n|---|---|---|")
    for name, *figures in rows:
        print(f"| {name} | {figures[0]:.3f} | {figures[1]:.3f} |")
    plain_mined, mined_too, matched = (messages / one for one in seconds)
    rates = f"drain3 {plain_mined:.0f}, seqvae mining {mined_too:.0f}, seqvae matching {matched:.0f}"
    print(f"messages per second of processor time: {rates}")


if __name__ == "__main__":
    main()
