"""Speed of log scoring from file to scores: raw lines per second of processor time by stage, beside drain3 alone.

    python benchmarks/log_speed.py LOG DETECTOR

LOG is a raw log and DETECTOR the folder that `seqvae detect learn` made from it (benchmarks/log_faults.py leaves both
in its output folder). Equal sessions are examined once; the share of distinct ones is printed. One run.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import processor
import torch
from drain3.drain import Drain

from seqvae import codec
from seqvae.anomaly import evidence as anomaly
from seqvae.anomaly import log_detector
from seqvae.text import lines as text


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("detector", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found, model = log_detector.load(options.detector), codec.load(options.detector)
    seconds: dict[str, float] = {}
    begin = time.process_time()

    def done(part: str) -> None:
        nonlocal begin
        seconds[part] = time.process_time() - begin
        begin = time.process_time()

    records = list(found.reader().records(text.read_lines(str(options.log)), options.log.name))
    sessions = list(found.grouping.sessions(records))
    done("reading and grouping")
    pieces = [log_detector.piece(session, found.templates) for session in sessions]
    done("templates")
    settings = found.settings
    for evidence in anomaly.examine(model, pieces, settings.samples, settings.seed):
        found.calibration.p_value(found.calibration.scores(evidence)[found.calibration.score])
    done("scores")
    whole = sum(seconds.values())
    drain = Drain()
    for record in records:
        drain.add_log_message(record.content)
    done("drain3 alone, its defaults")
    seconds["reading, templates and scores"] = whole
    print(processor.described(1))
    share = len(set(pieces)) / len(pieces)
    print(f"{len(records)} records in {len(sessions)} sessions, {share:.0%} of them distinct")
    print("\n| stage | raw lines per second |\n|---|---|")
    print("\n".join(f"| {part} | {len(records) / spent:,.0f} |" for part, spent in seconds.items()))


if __name__ == "__main__":
    main()
