"""How often the test for a change of normal gives an alarm: unchanged, with anomalies, with a new kind, and shifted.

Scores are normally distributed; anomalies and pieces of a new kind lie below all others. Nothing is read.

    python benchmarks/change.py
"""

from __future__ import annotations

import argparse

import numpy as np

from seqvae.anomaly.conformal import ChangeTest

CASES = {"none": (0.0, 0.0), "5 %": (0.05, 0.0), "10 %": (0.1, 0.0), "20 %": (0.2, 0.0), "30 %": (0.3, 0.0),
         "shift 0.5": (0.0, 0.5), "shift 1": (0.0, 1.0)}  # fmt: skip


def alarms(n: int, m: int, strange: float, shift: float, runs: int) -> float:
    """The share of runs with an alarm within m new pieces, `shift` standard deviations lower but for those strange."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(runs):
        normal, new = np.sort(rng.normal(size=n)), rng.normal(size=m) - shift
        new[rng.permutation(m)[: round(strange * m)]] = -99
        test = ChangeTest(n)
        p_values = (1 + np.searchsorted(normal, new, "right")) / (n + 1)
        found += any(change is not None for change in [*(test.add(float(p)) for p in p_values), test.look()])
    return found / runs


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    runs = parser.parse_args().runs
    print("| n | m |", " | ".join(CASES), "|")
    print("|---|---|" + "---|" * len(CASES))
    for n in (100, 300, 1000):
        for m in (50, 200, 1000):
            print(f"| {n} | {m} |", " | ".join(f"{alarms(n, m, *case, runs):.1%}" for case in CASES.values()), "|")


if __name__ == "__main__":
    main()
