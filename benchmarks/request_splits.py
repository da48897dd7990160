"""Splits of the CSIC 2010 requests for training, calibration and testing of the model `requests`.

    python benchmarks/request_splits.py normal.txt anomalous.txt OUT

Writes train, validation, calibrate and test.normal.txt, and test.anomalous.txt: distinct requests, without anomalous
ones that also occur as normal. Requests that differ only in the method are in the same split, because nearly every
request was sent by GET and by POST.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

SHARES = {"train": 0.65, "validation": 0.05, "calibrate": 0.15, "test": 0.15}


def distinct(path: Path) -> list[str]:
    """The distinct lines of a file, in order."""
    return list(dict.fromkeys(line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()))


def write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} requests in {path}")


def main(normal: Path, anomalous: Path, out: Path) -> None:
    lines = distinct(normal)
    groups: dict[str, list[str]] = {}
    for line in lines:
        groups.setdefault(line.split(" ", 1)[1], []).append(line)
    order = list(groups)
    random.Random(0).shuffle(order)
    out.mkdir(parents=True, exist_ok=True)
    begin, total = 0, 0.0
    for name, share in SHARES.items():
        total = round(total + share, 2)
        end = int(len(order) * total)
        write(out / f"{name}.normal.txt", [line for key in order[begin:end] for line in groups[key]])
        begin = end
    known = set(lines)
    write(out / "test.anomalous.txt", [line for line in distinct(anomalous) if line not in known])


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*map(Path, sys.argv[1:]))
