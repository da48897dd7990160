"""Metrics of anomaly detectors for anomalies.py: AUROC, F1 at a threshold, false alarms, 95 % intervals, and a table.

Scope: metrics of given scores. Out of scope: models and baselines.

Low scores are anomalous throughout. Intervals come from a bootstrap over pieces, stratified by normal and anomalous;
those of shares are exact (Clopper and Pearson 1934). All methods share the resampled pieces, so differences between two
methods have intervals as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from seqvae.evaluation.statistics import Figure, with_interval

Ints = NDArray[np.int64]
Doubles = NDArray[np.float64]
DRAWS = 1000
NUMBERS = 4_000_000  # weights in one block of the bootstrap: limits memory, does not change results


@dataclass(frozen=True)
class Scores:
    """Scores and thresholds of one method."""

    method: str
    normal: Doubles
    anomalous: Doubles
    thresholds: dict[float, float]
    """By level; a score below the threshold is called anomalous."""
    rates: dict[str, float]
    """Pieces per second, by way of counting."""


@dataclass(frozen=True)
class Figures:
    """Metrics of one method."""

    method: str
    sizes: tuple[int, int]
    """Numbers of normal and of anomalous pieces."""
    auroc: float
    alarms: dict[float, tuple[int, int]]
    """By level: numbers of normal and of anomalous pieces called anomalous."""
    rate: float
    """Pieces per second."""
    drawn_auroc: Doubles
    drawn_f1: dict[float, Doubles]
    """Bootstrap replicates of both."""

    def f1(self, level: float) -> float:
        """F1 at a level: 2 true positives / (called anomalous + anomalous)."""
        false, true = self.alarms[level]
        return 2 * true / (true + false + self.sizes[1])

    def facts(self, counted: str) -> dict[str, Any]:
        """The metrics as a JSON object."""
        out: dict[str, Any] = {"method": self.method, "counted": counted, "pieces_per_second": self.rate}
        out["auroc"] = with_interval(self.auroc, self.drawn_auroc)
        for level, (false, true) in self.alarms.items():
            out[f"p <= {level:g}"] = {
                "f1": with_interval(self.f1(level), self.drawn_f1[level]),
                "precision": true / (true + false) if true + false else None,
                "recall": true / self.sizes[1],
                "false_alarms": (false / self.sizes[0], *share_interval(false, self.sizes[0])),
            }
        return out


class Curve:
    """AUROC of fixed scores under weights of the pieces."""

    def __init__(self, normal: Doubles, anomalous: Doubles) -> None:
        values = np.concatenate([normal, anomalous])
        self._order = np.argsort(values, kind="stable")
        ranked = values[self._order]
        self._groups = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))  # first index of each distinct score
        self._normal = self._order < len(normal)

    def area(self, normal: Doubles, anomalous: Doubles) -> Doubles:
        """AUROC `(B,)` with weights `(B, n)` of the normal and `(B, m)` of the anomalous pieces.

        It is the probability that an anomalous piece scores lower than a normal one.
        """
        weights = np.concatenate([normal, anomalous], 1)[:, self._order]
        good = np.add.reduceat(np.where(self._normal, weights, 0.0), self._groups, axis=1)
        bad = np.add.reduceat(np.where(self._normal, 0.0, weights), self._groups, axis=1)
        total = good.sum(1)
        wins = bad * (total[:, None] - good.cumsum(1) + good / 2)  # a tie is half a win
        area: Doubles = wins.sum(1) / (total * bad.sum(1))
        return area


def figures(scores: Sequence[Scores], counted: str, rows: tuple[Ints, Ints], seed: int) -> list[Figures]:
    """Metrics of every method on the normal and anomalous pieces with the indices `rows`."""
    sizes = len(rows[0]), len(rows[1])
    curves, called, drawn = [], [], [(list[Doubles](), dict[float, list[Doubles]]()) for _ in scores]
    for one in scores:
        normal, anomalous = one.normal[rows[0]], one.anomalous[rows[1]]
        curves.append(Curve(normal, anomalous))
        called.append({level: (normal < line, anomalous < line) for level, line in one.thresholds.items()})
    for normal, anomalous in _resampled(sizes, seed):
        for curve, flags, (areas, f1s) in zip(curves, called, drawn, strict=True):
            areas.append(curve.area(normal, anomalous))
            for level, (false, true) in flags.items():
                hits = anomalous @ true
                f1s.setdefault(level, []).append(2 * hits / (hits + normal @ false + sizes[1]))
    return [
        Figures(
            one.method,
            sizes,
            float(curve.area(np.ones((1, sizes[0])), np.ones((1, sizes[1])))[0]),
            {level: (int(false.sum()), int(true.sum())) for level, (false, true) in flags.items()},
            one.rates[counted],
            np.concatenate(areas),
            {level: np.concatenate(parts) for level, parts in f1s.items()},
        )
        for one, curve, flags, (areas, f1s) in zip(scores, curves, called, drawn, strict=True)
    ]


def _resampled(sizes: tuple[int, int], seed: int) -> Iterator[tuple[Doubles, Doubles]]:
    """Multiplicities of normal `(B, n)` and anomalous `(B, m)` pieces in samples drawn with replacement."""
    rng = np.random.default_rng(seed)
    block = max(1, NUMBERS // sum(sizes))
    for done in range(0, DRAWS, block):
        n, m = (rng.multinomial(s, np.full(s, 1 / s), size=min(block, DRAWS - done)).astype(float) for s in sizes)
        yield n, m


def share_interval(hits: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share, by Clopper and Pearson."""
    low = stats.beta.ppf(0.025, hits, trials - hits + 1) if hits else 0.0
    high = stats.beta.ppf(0.975, hits + 1, trials - hits) if hits < trials else 1.0
    return float(low), float(high)


def expected(level: float, calibrated: int, trials: int) -> tuple[float, float] | None:
    """The interval of the false-alarm share in 95 of 100 calibrations; None if no p-value can reach the level.

    It holds for distinct scores; ties lower the share. With k = floor(level (N + 1)), the number of false alarms is
    beta-binomial(k, N + 1 - k): the level is guaranteed on average over calibrations, not for each of them.
    """
    k = math.floor(level * (calibrated + 1) * (1 + 1e-12))
    if k < 1:
        return None
    among = stats.betabinom(trials, k, calibrated + 1 - k)
    return float(among.ppf(0.025)) / trials, float(among.ppf(0.975)) / trials


def promise(level: float, calibrated: int, trials: int) -> str:
    """The result of `expected` as a sentence."""
    shares = expected(level, calibrated, trials)
    if shares is None:
        return f"with {calibrated} calibration scores no p-value is as low as {level:g}: nothing is called anomalous."
    low, high = (100 * share for share in shares)
    return (
        f"at {level:g}, with {calibrated} calibration scores, 95 of 100 calibrations give {low:.2f} to {high:.2f} % "
        f"false alarms of {trials}, fewer with tied scores."
    )


# --- as text ----------------------------------------------------------------------------------------------------------


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the header."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def table(found: Mapping[str, Sequence[Figures]], noun: str) -> str:
    """The table of all metrics, by way of counting."""
    levels = next(iter(found.values()))[0].alarms
    head = ["counted", "method", "AUROC"]
    head += [f"{name} at {level:g}" for level in levels for name in ("F1", "precision", "recall", "false alarms")]
    rows = [[*head, f"{noun}/s"]]
    for counted, methods in found.items():
        for one in methods:
            row = [counted, one.method, _shown(with_interval(one.auroc, one.drawn_auroc), 5)]
            for level, (false, true) in one.alarms.items():
                precision = f"{true / (true + false):.3f}" if true + false else "none called"
                share = f"{100 * false / one.sizes[0]:.2f} %"
                row += [f"{one.f1(level):.3f}", precision, f"{true / one.sizes[1]:.3f}", share]
            rows.append([*row, f"{one.rate:.0f}" if one.rate >= 100 else f"{one.rate:.3g}"])
    return markdown(rows)


def comparison(found: Mapping[str, Sequence[Figures]], ours: str, others: Sequence[str], noun: str) -> list[str]:
    """Sentences: the `others` better than `ours` in AUROC and F1, and those not significantly different (95 %)."""
    out = []
    for counted, methods in found.items():
        by_name = {one.method: one for one in methods}
        mine = by_name[ours]
        population = f"all {noun}" if counted == "every" else f"distinct {noun}"
        differences: dict[str, list[tuple[str, Figure]]] = {}
        for name in others:
            one = by_name[name]
            gain = with_interval(one.auroc - mine.auroc, one.drawn_auroc - mine.drawn_auroc)
            differences.setdefault("AUROC", []).append((name, gain))
            for level in mine.alarms:
                gain = with_interval(one.f1(level) - mine.f1(level), one.drawn_f1[level] - mine.drawn_f1[level])
                differences.setdefault(f"F1 at {level:g}", []).append((name, gain))
        for metric, gains in differences.items():
            digits = 5 if metric == "AUROC" else 3
            better = [f"{name} ({_shown(gain, digits, '+')})" for name, gain in gains if gain[1] > 0]
            similar = [f"{name} ({_shown(gain, digits, '+')})" for name, gain in gains if gain[1] <= 0 <= gain[2]]
            verdict = f"better than {ours}: {', '.join(better)}" if better else f"no baseline is better than {ours}"
            verdict += f"; not significantly different: {', '.join(similar)}" if similar else ""
            out.append(f"{metric}, {population}: {verdict}.")
    return out


def _shown(figure: Figure, digits: int, sign: str = "") -> str:
    value, low, high = (f"{x:{sign}.{digits}f}" for x in figure)
    return f"{value} [{low}, {high}]"
