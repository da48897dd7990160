"""Verdicts of `detect score`: thresholds, false discovery rate, and a test for a change of the normal data.

Scope: options of `detect score` for all modalities, and its output lines. Out of scope: reading, scoring and printing
of single pieces (cli/detect.py, cli/raw_logs.py).
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqvae.cli import console
from seqvae.errors import SeqVAEError, UsageError

if TYPE_CHECKING:
    from seqvae.anomaly.calibration import Calibration, Settings
    from seqvae.anomaly.conformal import Change, ChangeTest

Row = tuple[dict[str, Any], Iterable[str]]
"""Facts of a piece, and the parts of its output: the rest of a JSON line, or a line and the lines of an anomaly."""

Confidence = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        callback=console.share,
        help="Bound the rate of false alarms with this confidence, such as 0.95, instead of on average.",
        show_default=False,
    ),
]
Fdr = Annotated[
    float | None,
    typer.Option(
        metavar="RATE",
        callback=console.share,
        help="Call anomalies at this false discovery rate: the expected share of normal inputs among them.",
        show_default=False,
    ),
]
RandomTies = Annotated[bool, typer.Option("--random-ties", help="Break ties of p-values at random, by the seed.")]
WorstFirst = Annotated[bool, typer.Option("--worst-first", help="Sort by score, the strangest first.")]


@dataclass(frozen=True)
class Choices:
    """Options for verdicts."""

    p_value: float | None
    confidence: float | None
    random_ties: bool
    fdr: float | None
    worst_first: bool
    as_json: bool


class Verdicts:
    """Turns scores into output lines, and warns on standard error if the normal data seem to have changed.

    Raises UsageError for options that exclude each other, and SeqVAEError for a p-value too small for the calibration.
    """

    def __init__(self, found: Calibration, settings: Settings, chosen: Choices, detector: str) -> None:
        from seqvae.anomaly import calibration, conformal

        self._found, self._chosen, self._seed, self._detector = found, chosen, settings.seed, detector
        given = chosen.p_value is not None or chosen.confidence is not None
        self._limit = settings.p_value if chosen.p_value is None else chosen.p_value
        confidence = settings.confidence if chosen.confidence is None else chosen.confidence
        if self._limit is None and (given or chosen.random_ties):
            raise UsageError("the detector was fitted for a contamination; give a --p-value too")
        if chosen.random_ties and chosen.confidence is not None:
            raise UsageError("--confidence bounds p-values without random ties; give one of the two")
        threshold = settings.threshold
        if given and self._limit is not None and not chosen.random_ties:
            threshold = found.threshold(self._limit, confidence)
            if threshold == -math.inf:
                raise SeqVAEError(calibration.too_few(len(found.normal), self._limit, confidence))
        self._threshold = threshold
        self._bound = None if chosen.random_ties else found.bound(threshold, self._limit, confidence)
        self._test: ChangeTest | None = conformal.ChangeTest(len(found.normal))

    def facts(self, index: int, score: float) -> dict[str, Any]:
        """Verdict on a piece by its score, for --json."""
        from seqvae.anomaly import conformal

        if self._chosen.random_ties and self._limit is not None:
            p_value = self._found.p_value(score, conformal.uniform(self._seed, index))
            anomalous = p_value <= self._limit
        else:
            p_value, anomalous = self._found.p_value(score), score < self._threshold
        return {"score": score, "p_value": p_value, "anomalous": anomalous, "bound": self._bound}

    def suspects(self, facts: dict[str, Any]) -> bool:
        """Whether a piece with these facts may be called anomalous, now or when all are compared."""
        return bool(facts["anomalous"] or facts["p_value"] <= (self._chosen.fdr or 0.0))

    @property
    def limit(self) -> float | None:
        """The largest p-value of an anomaly; None where the detector was fitted for a contamination."""
        return self._limit

    def lines(self, rows: Iterable[Row]) -> Iterator[Iterable[str]]:
        """Output lines in parts: one by one, or after the last row where all rows are compared."""
        compared = self._chosen.fdr is not None or self._chosen.worst_first
        for facts, rest in self._compared(self._watched(rows)) if compared else self._watched(rows):
            if self._chosen.as_json:
                yield chain([json.dumps(facts)[:-1]], rest)
            else:
                anomalous = facts.get("discovery", facts["anomalous"])
                shown = iter(rest)
                yield [f"{facts['p_value']:<10.3g}{'anomalous' if anomalous else 'normal':<11}", next(shown)]
                yield from ([line] for line in shown if anomalous)

    def _watched(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            yield row
            if self._test is not None:
                self._warn(self._test.add(self._found.p_value(row[0]["score"])))
        if self._test is not None:
            self._warn(self._test.look())

    def _warn(self, change: Change | None) -> None:
        if change is None:
            return
        self._test = None
        console.report(
            f"warning: {change.share:.0%} of {change.seen} are as strange as the strangest {change.level:.0%} of the "
            "normal ones; normal may have changed. If these are normal, recalibrate with `seqvae detect update "
            f"{self._detector} INPUT --replace`"
        )

    def _compared(self, rows: Iterable[Row]) -> Iterator[Row]:
        """All rows with their `rank` and `discovery`; their output waits in a temporary file."""
        from seqvae.anomaly import conformal

        sign = "" if self._chosen.as_json else "\n"
        held: list[tuple[dict[str, Any], int]] = []
        with tempfile.TemporaryFile() as file:
            for facts, rest in rows:
                data = sign.join(rest).encode("utf-8", "surrogateescape")
                held.append((facts, file.write(data)))
            starts = list(accumulate((size for _, size in held), initial=0))
            order = sorted(range(len(held)), key=lambda i: (held[i][0]["p_value"], held[i][0]["score"]))
            for place, i in enumerate(order, 1):
                held[i][0]["rank"] = place
            if self._chosen.fdr is not None:
                p_values = [facts["p_value"] for facts, _ in held]
                found = conformal.discoveries(p_values, self._chosen.fdr).tolist()
                for (facts, _), is_one in zip(held, found, strict=True):
                    facts["discovery"] = is_one
                if held and not any(found):
                    self._none(len(held), self._chosen.fdr)
            for i in order if self._chosen.worst_first else range(len(held)):
                file.seek(starts[i])
                text = file.read(held[i][1]).decode("utf-8", "surrogateescape")
                yield held[i][0], [text] if self._chosen.as_json else text.split("\n")

    def _none(self, pieces: int, rate: float) -> None:
        from seqvae.anomaly import conformal

        n = len(self._found.normal)
        least = conformal.least_discoveries(pieces, n, rate)
        if least > 1 and not self._chosen.random_ties:
            console.report(
                f"no discovery at --fdr {rate:g}: calibrated on {n} normal ones, at least {least} of {pieces} "
                f"must be stranger than all of them; with {conformal.sample_size(rate / pieces)}, one is enough"
            )


def bounded(bound: float, confidence: float | None) -> str:
    """An upper bound on the rate of false alarms, in words."""
    from seqvae.anomaly import conformal

    return f"with {confidence or conformal.CONFIDENCE:.4g} confidence at most {bound:.2%} of new normal ones"
