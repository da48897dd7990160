"""Raw logs on the command line: learn a detector from a log, and score the sessions of another.

Scope: arguments, and the printed p-value, verdict and surprising lines of a session. Out of scope: fitting of a
detector (anomaly/log_detector.py) and registration of the commands (cli/detect.py). Only typer is imported here, as in
cli/app.py.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, cast

import typer

from seqvae.cli import console, verdicts
from seqvae.cli.console import Folder, Json, Seed, report, tell
from seqvae.errors import SeqVAEError, UsageError
from seqvae.text import lines as text

if TYPE_CHECKING:
    from seqvae.anomaly.evidence import Evidence
    from seqvae.anomaly.log_detector import Learned, LogDetector
    from seqvae.anomaly.log_report import ScoredSession
    from seqvae.codec import Codec
    from seqvae.events.lines import LogReader, Record
    from seqvae.events.session_keys import SessionKey
    from seqvae.events.sessions import Session

POINTED = 5  # most records printed for a session
RARE = 0.1  # records of a higher probability are not printed, except the least likely
DIGITS = 4  # decimals of log-probabilities, as in anomaly/explain.py
BATCH = 256  # sessions in a batch
KINDS = 8  # most kinds of normal sessions printed, the most frequent first
MESSAGES = 4  # most messages printed of a kind
EXPECTED = 3  # most expected messages printed at a marked line
LEAST = 0.01  # smallest probability of an expected message
END = "the session ends"


def learn(
    out: Folder,
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
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX", help="Leave out sessions with a line that matches; may be given several times."),
    ] = None,
    p_value: Annotated[
        float, typer.Option(callback=console.share, help="Share of new normal sessions called anomalous.")
    ] = 0.01,
    confidence: verdicts.Confidence = None,
    minutes: Annotated[
        float, typer.Option(min=0.01, callback=console.finite, help="Training time in minutes.")
    ] = 1.0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Learn a detector from raw logs. Use the folder with `seqvae detect score --detector`, also on raw logs.

    Headers are split off, messages become templates, and lines become sessions. Half of the sessions train the model,
    others calibrate the p-values, and the rest give the measured rate of false alarms. All sessions count as normal:
    the most frequent kinds are printed, and --exclude leaves out those that are not.
    """
    from seqvae.events import session_keys
    from seqvae.events.lines import LogReader
    from seqvae.events.sessions import Grouping, matchers, without

    if session is not None and window is not None:
        raise UsageError("--session and --window both define sessions; give one of them")
    grouping, reader, excluded = Grouping(session, window), LogReader(header, field), matchers(exclude or [])
    records = list(_records(inputs or [], reader))
    sessions = list(grouping.sessions(records))
    inside = sum(len(one.records) for one in sessions)
    if not inside:
        raise SeqVAEError(_none(session))
    keys = session_keys.suggest(records) if session is None and window is None else []
    if keys:
        report(_suggestion(keys[0], grouping.lines))
    given = len(sessions)
    sessions = without(sessions, excluded)
    if exclude:
        report(f"{given - len(sessions)} of {given} sessions are excluded")
        inside = sum(len(one.records) for one in sessions)
    from seqvae.anomaly import log_detector

    say = report if not as_json else _nothing
    kind = "JSON" if field is not None else f"header '{reader.header}'"
    say(f"{len(records)} records ({kind}), {inside} of them in {len(sessions)} sessions")
    learned = log_detector.learn(
        sessions, reader, grouping, out, p_value=p_value, confidence=confidence, minutes=minutes, seed=seed, report=say
    )
    _report_learned(learned, p_value, confidence, as_json)
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
            "excluded": given - len(sessions),
            "session_keys": [asdict(key) for key in keys],
            "output": str(out),
        },
        as_json,
    )


def _suggestion(best: SessionKey, lines: int) -> str:
    """A session key for a log that was divided into windows of some lines."""
    return (
        f"no --session is given, so that {lines} lines in a row are a session; --session '{best.pattern}' is in "
        f"{best.covered:.0%} of the lines and makes sessions of {best.length:.1f} lines"
    )


def _report_learned(learned: Learned, p_value: float, confidence: float | None, as_json: bool) -> None:
    """Warn of too few sessions, and print the kinds of sessions taken for normal."""
    if learned.needed:
        surely = "" if confidence is None else f" with {confidence:g} confidence"
        report(
            f"warning: {learned.sessions} sessions are too few for a p-value of {p_value:g}{surely}, which needs about "
            f"{learned.needed}; the smallest possible, {learned.p_value:g}, is used"
        )
    for normal in learned.kinds[:KINDS] if not as_json else []:
        if normal.sessions == 1:
            break
        more = len(normal.messages) - MESSAGES
        about = "; ".join(normal.messages[:MESSAGES]) + (f"; and {more} more" if more > 0 else "")
        report(f"taken for normal: {normal.sessions} sessions ({normal.sessions / learned.sessions:.0%}): {about}")


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


def train(inputs: Sequence[str], detector: Path, alone: bool, minutes: float, as_json: bool) -> None:
    """Learn a detector again from its own sessions and those of `inputs`; see `log_detector.extend`."""
    from seqvae.anomaly import log_detector

    found = log_detector.load(detector)
    sessions = list(found.grouping.sessions(_records(inputs, found.reader())))
    learned = log_detector.extend(
        detector, sessions, alone=alone, minutes=minutes, report=report if not as_json else _nothing
    )
    rate = learned.alarms / max(1, learned.checked)
    confidence = found.settings.confidence
    tell(
        f"{len(sessions)} more normal sessions, {learned.trained} to train on, {learned.calibrated} to calibrate on; "
        f"of {learned.checked} held-out sessions {learned.alarms} ({rate:.1%}) are anomalous at "
        f"p <= {learned.p_value:g}, {verdicts.bounded(learned.bound, confidence)}; in {detector}",
        {"pieces": len(sessions), **asdict(learned), "confidence": confidence, "false_alarms": rate,
         "output": str(detector)},
        as_json,
    )  # fmt: skip


# --- score ------------------------------------------------------------------------------------------------------------


def rows(
    inputs: Sequence[str], found: LogDetector, verdict: verdicts.Verdicts, as_json: bool, exact: bool,
    collected: list[tuple[dict[str, Any], ScoredSession]] | None = None,
) -> Iterator[verdicts.Row]:  # fmt: skip
    """Verdict, name and surprising lines of each session of raw logs.

    Sessions by window are scored as they come, sessions by key at the end of the log. All are appended to `collected`.
    """
    model, weighed_sessions = weighed(inputs, found, exact)
    texts = found.templates.texts()
    for index, (session, evidence) in enumerate(weighed_sessions):
        facts = {"index": index, "session": session.name, "records": len(session.records)}
        facts |= verdict.facts(index, found.calibration.scores(evidence)[found.calibration.score])
        marked = pointed(session, evidence)
        if verdict.suspects(facts):
            marked = explained(model, found, session, marked, texts)
        if collected is not None:
            collected.append((facts, _reported(facts, session, evidence, marked if verdict.suspects(facts) else None)))
        yield facts, [_json(session, evidence, found, marked)] if as_json else _shown(session, marked)


def weighed(inputs: Sequence[str], found: LogDetector, exact: bool) -> tuple[Codec, Iterator[tuple[Session, Evidence]]]:
    """The model, and the sessions of raw logs with their evidence; raises SeqVAEError where there is no session."""
    records = _records(inputs, found.reader())  # before the model is loaded, so that errors come at once
    from seqvae.cli import inputs as kinds

    model = kinds.load(found.settings.model, exact=exact)
    live = not found.grouping.lasting and (not inputs or "-" in inputs)
    return model, _weighed(model, records, found, 1 if live else BATCH)


def _weighed(
    model: Codec, records: Iterator[Record], found: LogDetector, size: int
) -> Iterator[tuple[Session, Evidence]]:
    """Sessions with their evidence, in batches of `size`."""
    from seqvae.anomaly import log_detector

    sessions = found.grouping.sessions(records)
    count = new = total = 0
    warned = False
    while batch := list(islice(sessions, size)):
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
        count += len(batch)
    if not count:
        raise SeqVAEError(_none(found.grouping.key))


@dataclass(frozen=True)
class Marked:
    """A surprising place of a session."""

    place: int
    """Index of the record; the number of records for the end of the session."""
    record: Record | None
    """None for the end."""
    log_prob: float
    """Nats."""
    expected: tuple[tuple[str, float], ...] = ()
    """The most likely messages there, each with its probability."""


def pointed(session: Session, evidence: Evidence) -> list[Marked]:
    """The most surprising places, in their order."""
    nats = evidence.log_prob.astype("float64").round(DIGITS)
    order = nats.argsort(kind="stable")[:POINTED].tolist()
    chosen = [i for i in order if i == order[0] or nats[i] < math.log(RARE)]
    records = session.records
    return [Marked(i, records[i] if i < len(records) else None, float(nats[i])) for i in sorted(chosen)]


def explained(
    model: Codec, found: LogDetector, session: Session, marked: Sequence[Marked], texts: Mapping[str, str]
) -> list[Marked]:
    """The same places with the messages that the model expects there; `texts` are the templates by event."""
    from seqvae.anomaly import log_detector
    from seqvae.anomaly.expectation import expected
    from seqvae.protocols import EOS

    line, settings = log_detector.piece(session, found.templates), found.settings
    places = [one.place for one in marked]
    options = expected(model, line, places, EXPECTED, settings.samples, settings.seed)
    out = []
    for one, choices in zip(marked, options, strict=True):
        named = [
            (text, round(share, DIGITS))
            for token, share in choices
            if (text := END if token == EOS else texts.get(model.tokenizer.token_text(token), ""))
            and share >= max(LEAST, math.exp(one.log_prob))
        ]
        out.append(replace(one, expected=tuple(named)))
    return out


def _json(session: Session, evidence: Evidence, found: LogDetector, marked: Sequence[Marked]) -> str:
    """The rest of a JSON line, after its facts."""
    nats = evidence.log_prob.astype("float64").round(DIGITS).tolist()
    events = [*(found.templates.event(record.content) for record in session.records), "<eos>"]
    lines = []
    for one in marked:
        record = one.record
        place = (None, None, None) if record is None else (record.source, record.number, record.text)
        expected = [{"message": text, "probability": share} for text, share in one.expected]
        facts = dict(zip(("source", "line", "text"), place, strict=True))
        lines.append({**facts, "log_prob": one.log_prob, "expected": expected})
    tokens = [{"token": event, "log_prob": value} for event, value in zip(events, nats, strict=True)]
    return ", " + json.dumps({"log_prob": round(sum(nats), DIGITS), "lines": lines, "tokens": tokens})[1:]


def _shown(session: Session, marked: Sequence[Marked]) -> Iterator[str]:
    """The name of a session, then its surprising lines."""
    yield text.safe(session.name)
    for one in marked:
        record = one.record
        where = END if record is None else f"{text.safe(record.source)}:{record.number}: {text.safe(record.text)}"
        yield f"{'':10}{where}"
        if one.expected:
            options = ", ".join(f"'{text.safe(message)}' ({share:.0%})" for message, share in one.expected)
            yield f"{'':12}expected here: {options}"


def _reported(
    facts: Mapping[str, Any], session: Session, evidence: Evidence, marked: Sequence[Marked] | None
) -> ScoredSession:
    """A session for the HTML report, with its lines if places are `marked`."""
    from seqvae.anomaly.log_report import Line, ScoredSession

    records, lines = session.records, []
    if marked is not None:
        by_place = {one.place: one for one in marked}
        nats = evidence.log_prob.astype("float64").round(DIGITS).tolist()
        for place in range(len(records) + (len(records) in by_place)):
            record = records[place] if place < len(records) else None
            where = "" if record is None else f"{record.source}:{record.number}"
            one = by_place.get(place)
            lines.append(
                Line(where, "" if record is None else record.text, math.exp(nats[place]), one is not None,
                     () if one is None else one.expected)
            )  # fmt: skip
    return ScoredSession(
        session.name, facts["p_value"], facts["anomalous"], records[0].seconds, len(records), tuple(lines)
    )


def refuse_report(path: Path) -> None:
    """Raise SeqVAEError if no report can be written there, before sessions are scored."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> SeqVAEError:
    return SeqVAEError(f"{path}: cannot be written ({error.strerror}); choose another --html")


def write_report(
    path: Path, inputs: Sequence[str], detector: Path, sessions: Sequence[tuple[dict[str, Any], ScoredSession]],
    limit: float | None, fdr: float | None,
) -> None:  # fmt: skip
    """Write the HTML report of scored sessions; raises SeqVAEError where it cannot be written."""
    from seqvae.anomaly import log_report
    from seqvae.io import files

    name = ", ".join(inputs) or "standard input"
    final = [replace(one, anomalous=facts.get("discovery", facts["anomalous"])) for facts, one in sessions]
    content = log_report.page(name, f"Scored by {detector}", final, limit, fdr or 0.0)
    try:
        with files.whole(path) as part:
            part.write_text(content, encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error) from error
    report(f"report in {path}")
