"""Raw logs on the command line: learn a detector from a log, and score the sessions of another.

Scope: arguments, and the printed p-value, verdict and surprising lines of a session. Out of scope: fitting of a
detector (anomaly/log_detector.py) and registration of the commands (cli/detect.py). Only typer is imported here, as in
cli/app.py.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, cast

import typer

from seqvae.cli import console as terminal
from seqvae.cli import verdicts
from seqvae.cli.console import Json, Seed, report, tell
from seqvae.errors import SeqVAEError, UsageError
from seqvae.text import lines as text

if TYPE_CHECKING:
    from seqvae.anomaly.log_detector import LogDetector
    from seqvae.anomaly.scores import Evidence
    from seqvae.events.lines import LogReader, Record
    from seqvae.events.sessions import Session

POINTED = 5  # most records printed for a session
RARE = 0.1  # records of a higher probability are not printed, except the least likely
DIGITS = 4  # decimals of log-probabilities, as in anomaly/explain.py
BATCH = 256  # sessions in a batch


def learn(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write.", show_default=False)],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="LOG",
            help="Raw logs of normal operation, also .gz; - for standard input, the default.",
            show_default=False,
        ),
    ] = None,
    session: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Lines with the same first group are a session.", show_default=False),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(metavar="N|TIME", help="Instead: N lines, or the lines of 30s, 5m or 1h.  [default: 20]"),
    ] = None,
    header: Annotated[
        str,
        typer.Option(
            "--format", metavar="FORMAT", help="Fields of a line, as in '<Date> <Time> <Content>'; recognised if not "
            "given.", show_default=False,
        ),
    ] = "",
    field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Lines are JSON, and this field is the message.")
    ] = None,
    p_value: Annotated[
        float, typer.Option(callback=terminal.share, help="Share of new normal sessions called anomalous.")
    ] = 0.01,
    confidence: verdicts.Confidence = None,
    minutes: Annotated[
        float, typer.Option(min=0.01, callback=terminal.finite, help="Training time.")
    ] = 1.0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Learn a detector from raw logs. Use the folder with `seqvae detect score --detector`, also on raw logs.

    Headers are split off, messages become templates, and lines become sessions. Half of the sessions train the model,
    others calibrate the p-values, and the rest give the measured rate of false alarms.
    """
    from seqvae.events.lines import LogReader
    from seqvae.events.sessions import Grouping

    if session is not None and window is not None:
        raise UsageError("--session and --window both define sessions; give one of them")
    grouping, reader = Grouping(session, window), LogReader(header, field)
    records = list(_records(inputs or [], reader))
    sessions = list(grouping.sessions(records))
    inside = sum(len(one.records) for one in sessions)
    if not inside:
        raise SeqVAEError(_none(session))
    from seqvae.anomaly import log_detector

    say = report if not as_json else _nothing
    kind = "JSON" if field is not None else f"header '{reader.header}'"
    say(f"{len(records)} records ({kind}), {inside} of them in {len(sessions)} sessions")
    learned = log_detector.learn(
        sessions, reader, grouping, out, p_value=p_value, confidence=confidence, minutes=minutes, seed=seed, report=say
    )
    if learned.wanted:
        surely = "" if confidence is None else f" with {confidence:g} confidence"
        report(
            f"warning: {learned.sessions} sessions are too few for a p-value of {p_value:g}{surely}, which needs about "
            f"{learned.wanted}; the smallest possible, {learned.p_value:g}, is used"
        )
    rate = learned.alarms / learned.checked
    tell(
        f"{learned.sessions} sessions, {learned.templates} templates; of {learned.checked} held-out sessions "
        f"{learned.alarms} ({rate:.1%}) are anomalous at p <= {learned.p_value:g}, "
        f"{verdicts.bounded(learned.bound, confidence)}; in {out}",
        {
            "records": len(records),
            "inside": inside,
            **asdict(learned),
            "confidence": confidence,
            "false_alarms": rate,
            "output": str(out),
        },
        as_json,
    )


def _nothing(_: str) -> None:
    """Discard a progress line."""


def _none(key: str | None) -> str:
    if key is not None:
        return f"no line matches the session key '{key}'; try it on a line of the log"
    return "all lines are blank; give a log"


def _records(inputs: Sequence[str], reader: LogReader) -> Iterator[Record]:
    """Records of files and standard input; all are opened before the first is read."""
    if not inputs and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("missing argument 'LOG'; name a file of raw lines, or give them on standard input")
    names = [name if name == "-" else name.removeprefix("@") for name in inputs or ["-"]]
    opened = [text.read_lines(cast(BinaryIO, sys.stdin.buffer) if name == "-" else name) for name in names]
    return chain.from_iterable(reader.records(lines, name) for lines, name in zip(opened, names, strict=True))


# --- score ------------------------------------------------------------------------------------------------------------


def rows(
    inputs: Sequence[str], found: LogDetector, verdict: verdicts.Verdicts, as_json: bool, exact: bool
) -> Iterator[verdicts.Row]:
    """Verdict, name and surprising lines of each session of raw logs.

    Sessions by window are scored as they come, sessions by key at the end of the log.
    """
    for index, (session, evidence) in enumerate(weighed(inputs, found, exact)):
        facts = {"index": index, "session": session.name, "records": len(session.records)}
        facts |= verdict.facts(index, found.calibration.scores(evidence)[found.calibration.score])
        yield facts, [_json(session, evidence, found)] if as_json else _shown(session, evidence)


def weighed(inputs: Sequence[str], found: LogDetector, exact: bool) -> Iterator[tuple[Session, Evidence]]:
    """Sessions of raw logs with their evidence; raises SeqVAEError where there is no session."""
    records = _records(inputs, found.reader())  # before the model is loaded, so that errors come at once
    from seqvae.anomaly import log_detector
    from seqvae.cli import inputs as kinds

    model = kinds.load(found.settings.model, exact=exact)
    sessions = found.grouping.sessions(records)
    live = not found.grouping.lasting and (not inputs or "-" in inputs)
    some = new = total = 0
    warned = False
    while batch := list(islice(sessions, 1 if live else BATCH)):
        unknown, of = found.unknown(batch)
        new, total = new + unknown, total + of
        if new > log_detector.STRANGE * total and not warned:
            warned = True
            report(
                f"warning: {new / total:.0%} of lines match no known template; if they come from the source of the "
                "detector, learn it again with them"
            )
        settings = found.settings
        evidences = log_detector.evidence(model, batch, found.templates, settings.samples, settings.seed)
        yield from zip(batch, evidences, strict=True)
        some += len(batch)
    if not some:
        raise SeqVAEError(_none(found.grouping.key))


def pointed(session: Session, evidence: Evidence) -> list[tuple[Record | None, float]]:
    """The least likely records in their order, each with its log-probability in nats; None is the session's end."""
    nats = evidence.log_prob.astype("float64").round(DIGITS)
    order = nats.argsort(kind="stable")[:POINTED].tolist()
    chosen = [i for i in order if i == order[0] or nats[i] < math.log(RARE)]
    records = session.records
    return [(records[i] if i < len(records) else None, float(nats[i])) for i in sorted(chosen)]


def _json(session: Session, evidence: Evidence, found: LogDetector) -> str:
    """The rest of a JSON line, after its facts."""
    nats = evidence.log_prob.astype("float64").round(DIGITS).tolist()
    events = [*(found.templates.event(record.content) for record in session.records), "<eos>"]
    marked = [
        {"source": one.source, "line": one.number, "text": one.text, "log_prob": value}
        if one is not None
        else {"source": None, "line": None, "text": None, "log_prob": value}
        for one, value in pointed(session, evidence)
    ]
    tokens = [{"token": event, "log_prob": value} for event, value in zip(events, nats, strict=True)]
    return ", " + json.dumps({"log_prob": round(sum(nats), DIGITS), "lines": marked, "tokens": tokens})[1:]


def _shown(session: Session, evidence: Evidence) -> Iterator[str]:
    """The name of a session, then its surprising lines."""
    yield text.safe(session.name)
    for record, _ in pointed(session, evidence):
        if record is None:
            yield f"{'':10}the session ends"
        else:
            yield f"{'':10}{text.safe(record.source)}:{record.number}: {text.safe(record.text)}"
