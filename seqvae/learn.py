"""Raw logs on the command line: learn a detector from one, and say of the sessions of another which are not normal.

Knows arguments, and what is shown of a session: its p-value, the verdict, and the lines that gave it away. Refuses to
know how a detector is made (log_detector.py). Only typer is imported here, as in cli.py; detect.py has the verbs.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, cast

import typer

from seqvae import terminal, text
from seqvae.errors import SeqVAEError, UsageError
from seqvae.terminal import Json, Seed, report, tell

if TYPE_CHECKING:
    from seqvae.anomaly import Evidence
    from seqvae.log_detector import LogDetector
    from seqvae.log_lines import LogReader, Record
    from seqvae.log_sessions import Session

POINTED = 5  # records of a session that are shown, at most
RARE = 0.1  # what is likelier is not shown, unless it is the least likely
DIGITS = 4  # of log-probabilities, as in detect.py
BATCH = 256  # sessions at once


def learn(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write.", show_default=False)],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="LOG",
            help="Raw logs of normal operation, .gz too; - for standard input, which is also read where there is none.",
            show_default=False,
        ),
    ] = None,
    session: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Lines with the same in its first group are a session.", show_default=False),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(metavar="N|TIME", help="Instead: so many lines, or the lines of 30s, 5m or 1h.  [default: 20]"),
    ] = None,
    header: Annotated[
        str,
        typer.Option(
            "--format", metavar="FORMAT", help="What a line is made of, such as '<Date> <Time> <Content>'; else "
            "recognised.", show_default=False,
        ),
    ] = "",
    field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Lines are JSON, and this field is the message.")
    ] = None,
    p_value: Annotated[
        float, typer.Option(callback=terminal.share, help="Share of new normal sessions to be called anomalous.")
    ] = 0.01,
    minutes: Annotated[
        float, typer.Option(min=0.01, callback=terminal.finite, help="Time to train for.")
    ] = 1.0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Learn a detector from raw logs. The folder goes to `seqvae detect score --detector`, with raw logs too.

    Headers are split off, messages become templates, and lines become sessions. Half of the sessions are trained on,
    and others calibrate the p-values; on the rest the rate of false alarms is counted.
    """
    from seqvae.log_lines import LogReader
    from seqvae.log_sessions import Grouping

    if session is not None and window is not None:
        raise UsageError("--session and --window both divide the log; give one of them")
    grouping, reader = Grouping(session, window), LogReader(header, field)
    records = list(_records(inputs or [], reader))
    sessions = list(grouping.sessions(records))
    inside = sum(len(one.records) for one in sessions)
    if not inside:
        raise SeqVAEError(_none(session))
    from seqvae import log_detector

    say = report if not as_json else _nothing
    kind = "JSON" if field is not None else f"header '{reader.header}'"
    say(f"{len(records)} records ({kind}), {inside} of them in {len(sessions)} sessions")
    learned = log_detector.learn(
        sessions, reader, grouping, out, p_value=p_value, minutes=minutes, seed=seed, report=say
    )
    if learned.wanted:
        report(
            f"warning: {learned.sessions} sessions are too few for a p-value of {p_value:g}, which takes about "
            f"{learned.wanted}; {learned.p_value:g} is the least that can be promised"
        )
    rate = learned.alarms / learned.checked
    tell(
        f"{learned.sessions} sessions, {learned.templates} templates; of {learned.checked} sessions kept apart "
        f"{learned.alarms} ({rate:.1%}) are anomalous at p <= {learned.p_value:g}; in {out}",
        {"records": len(records), "inside": inside, **asdict(learned), "false_alarms": rate, "output": str(out)},
        as_json,
    )


def _nothing(_: str) -> None:
    """Say nothing."""


def _none(key: str | None) -> str:
    if key is not None:
        return f"no line has the session key '{key}'; try it on a line of the log"
    return "there is no line with a word in it; give a log"


def _records(inputs: Sequence[str], reader: LogReader) -> Iterator[Record]:
    """The records of files and standard input; all are opened before the first is asked for."""
    if not inputs and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("missing argument 'LOG'; name a file with raw lines, or give them on standard input")
    names = [name if name == "-" else name.removeprefix("@") for name in inputs or ["-"]]
    opened = [text.read_lines(cast(BinaryIO, sys.stdin.buffer) if name == "-" else name) for name in names]
    return chain.from_iterable(reader.records(lines, name) for lines, name in zip(opened, names, strict=True))


# --- score ------------------------------------------------------------------------------------------------------------


def verdicts(
    inputs: Sequence[str], found: LogDetector, threshold: float, as_json: bool, exact: bool
) -> Iterator[Sequence[str]]:
    """The output for raw logs: of each session its p-value, verdict and name, and the lines that gave it away.

    Sessions of a window are answered as they come; those of a key when the log ends.
    """
    records = _records(inputs, found.reader())  # before a model is loaded: what is wrong is told at once
    from seqvae import kinds, log_detector

    model = kinds.load(found.settings.model, exact=exact)
    sessions = found.grouping.sessions(records)
    live = not found.grouping.lasting and (not inputs or "-" in inputs)
    index = new = total = 0
    warned = False
    while batch := list(islice(sessions, 1 if live else BATCH)):
        unknown, of = found.unknown(batch)
        new, total = new + unknown, total + of
        if new > log_detector.STRANGE * total and not warned:
            warned = True
            report(
                f"warning: {new / total:.0%} of lines match no known template; is this the source that the detector "
                "was learned from? If so, learn it again with these"
            )
        settings = found.settings
        evidences = log_detector.evidence(model, batch, found.templates, settings.samples, settings.seed)
        for session, evidence in zip(batch, evidences, strict=True):
            scores = found.calibration.scores(evidence)
            value = scores[found.calibration.score]
            facts = {"index": index, "session": session.name, "records": len(session.records), "score": value}
            facts |= {"p_value": found.calibration.p_value(value), "anomalous": value < threshold}
            yield [_json(facts, session, evidence, found)] if as_json else list(_shown(facts, session, evidence))
            index += 1
    if not index:
        raise SeqVAEError(_none(found.grouping.key))


def pointed(session: Session, evidence: Evidence) -> list[tuple[Record | None, float]]:
    """The records that surprise most, in their order, each with its log-probability; None stands for the end."""
    nats = evidence.log_prob.astype("float64").round(DIGITS)
    order = nats.argsort(kind="stable")[:POINTED].tolist()
    chosen = [i for i in order if i == order[0] or nats[i] < math.log(RARE)]
    records = session.records
    return [(records[i] if i < len(records) else None, float(nats[i])) for i in sorted(chosen)]


def _json(facts: dict[str, Any], session: Session, evidence: Evidence, found: LogDetector) -> str:
    nats = evidence.log_prob.astype("float64").round(DIGITS).tolist()
    events = [*(found.templates.event(record.content) for record in session.records), "<eos>"]
    marked = [
        {"source": one.source, "line": one.number, "text": one.text, "log_prob": value}
        if one is not None
        else {"source": None, "line": None, "text": None, "log_prob": value}
        for one, value in pointed(session, evidence)
    ]
    tokens = [{"token": event, "log_prob": value} for event, value in zip(events, nats, strict=True)]
    return json.dumps({**facts, "log_prob": round(sum(nats), DIGITS), "lines": marked, "tokens": tokens})


def _shown(facts: dict[str, Any], session: Session, evidence: Evidence) -> Iterator[str]:
    """A line of the session, and of one that is anomalous the lines that gave it away."""
    verdict = "anomalous" if facts["anomalous"] else "normal"
    yield f"{facts['p_value']:<10.3g}{verdict:<11}{terminal.safe(session.name)}"
    for record, _ in pointed(session, evidence) if facts["anomalous"] else []:
        if record is None:
            yield f"{'':10}the session ends"
        else:
            yield f"{'':10}{terminal.safe(record.source)}:{record.number}: {terminal.safe(record.text)}"
