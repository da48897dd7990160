"""Alarm rates of the test for a change of the normal scores: without change, with outliers, and with a shift.

Simulated from normally distributed scores; outliers lie below all other scores. No data is read.

    python benchmarks/change.py
"""

from __future__ import annotations

import argparse

import numpy as np

from seqvae.anomaly.conformal import ChangeTest

CASES = {"none": (0.0, 0.0), "5 %": (0.05, 0.0), "10 %": (0.1, 0.0), "20 %": (0.2, 0.0), "30 %": (0.3, 0.0),
         "shift 0.5": (0.0, 0.5), "shift 1": (0.0, 1.0)}  # fmt: skip


def alarms(n: int, m: int, outliers: float, shift: float, runs: int) -> float:
    """The share of runs with an alarm within m new scores after n normal ones.

    New scores lie `shift` standard deviations lower; a share `outliers` of them lies below all others.
    """
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(runs):
        normal, new = np.sort(rng.normal(size=n)), rng.normal(size=m) - shift
        new[rng.permutation(m)[: round(outliers * m)]] = -99
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
