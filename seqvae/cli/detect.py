"""Commands that tell what is not normal: calibrate a detector on normal pieces, and score others with it.

Knows arguments, and what is shown of a piece: its p-value, the verdict, and where it is surprising. Refuses to know how
evidence is found and weighed (anomaly/scores.py, anomaly/calibration.py), and scikit-learn, which anomaly/detector.py
is for. Only typer is imported here, as in cli/app.py.
"""

from __future__ import annotations

import bisect
import io
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from seqvae.cli import console as terminal
from seqvae.cli import raw_logs as raw
from seqvae.cli import verdicts
from seqvae.cli.console import Exact, Inputs, Json, Model, Seed, tell, verb
from seqvae.errors import CheckpointError, SeqVAEError, UsageError
from seqvae.text.lines import safe

if TYPE_CHECKING:
    from seqvae.anomaly.calibration import Calibration, Settings
    from seqvae.anomaly.log_report import ScoredSession
    from seqvae.anomaly.scores import Evidence
    from seqvae.cli.inputs import Kind
    from seqvae.protocols import Tokenizer

app = terminal.group("Tell which pieces are not normal.")

# as calibration.Score, whose module imports torch; a test holds them together
Score = Literal["combined", "probability", "error", "elbo", "importance", "worst", "familiar", "latent"]

WHOLE = 40  # tokens of the longest piece that is shown from end to end
AROUND = 3  # tokens shown on either side of one that is pointed at, of a longer piece
PART = 4096  # tokens put into JSON at once: a session may have a million


# --- fit --------------------------------------------------------------------------------------------------------------


@verb(
    app,
    "seqvae detect fit @normal.txt -m runs/hdfs/best -o hdfs.detector",
    "seqvae detect fit @normal.txt -m runs/hdfs/best -o hdfs.detector --known @train.txt --p-value 0.001",
    "seqvae detect fit @normal.txt -m runs/hdfs/best -o hdfs.detector --p-value 0.01 --confidence 0.95",
    "seqvae detect fit songs/ -m music -o songs.detector --contamination 0.05",
)
def fit(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write.", show_default=False)],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            help="Normal pieces that the model was not trained on: files of music, or folders of them; of text @FILE "
            "with one a line, or - for standard input, which is also read where there is no argument.",
            show_default=False,
        ),
    ] = None,
    known: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Normal pieces to measure latent distances from, best those that the model was trained on; else a "
            "third of the others.",
        ),
    ] = None,
    score: Annotated[
        Score, typer.Option(help="What is compared: several figures of a piece combined, or one of them.")
    ] = "combined",
    p_value: Annotated[
        float | None,
        typer.Option(
            callback=terminal.share, help="Share of new normal pieces to be called anomalous.  [default: 0.01]"
        ),
    ] = None,
    confidence: verdicts.Confidence = None,
    contamination: Annotated[
        float | None,
        typer.Option(callback=terminal.share, help="Instead: share of the pieces given that is to be called so."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Draws from the posterior of each segment.")] = 16,
    model: Model = "music",
    seed: Seed = 0,
    exact: Exact = False,
    as_json: Json = False,
) -> None:
    """Calibrate a detector on normal pieces. The folder goes to `seqvae detect score --detector`.

    Lines without a word are passed over, as in training.
    """
    if p_value is not None and contamination is not None:
        raise UsageError("--p-value and --contamination both say what is anomalous; give one of them")
    if confidence is not None and contamination is not None:
        raise UsageError("--confidence is that of a p-value, and a --contamination has none; give one of them")
    wanted = 0.01 if p_value is None else p_value
    from seqvae.anomaly import calibration, conformal
    from seqvae.anomaly import scores as anomaly
    from seqvae.cli.inputs import kind_of, load

    calibration.refuse(out)
    kind = kind_of(model)
    pieces = _normal(kind, inputs or [])
    near = kind.members(known) if known else None
    codec = load(model, exact=exact)
    given = 0

    def evidence() -> Iterator[Evidence]:
        nonlocal given
        for one in anomaly.examine(codec, pieces, samples, seed):
            given += 1
            yield one

    latents = [] if near is None else anomaly.latents(codec, near)
    found = calibration.fit(evidence(), score, latents, seed)
    threshold = found.threshold(wanted, confidence) if contamination is None else found.quantile(contamination)
    if threshold == -math.inf:
        enough = _enough(wanted, bool(latents), calibration.TAILS, confidence)
        surely = "" if confidence is None else f" with {confidence:g} confidence"
        raise SeqVAEError(
            f"{given} normal pieces are too few for a p-value of {wanted:g}{surely}, which takes {enough}; give so "
            f"many, or choose a --p-value of {conformal.least_share(len(found.normal), confidence):.2g} or more"
        )
    limit = None if contamination is not None else wanted
    about = ", ".join(inputs or ["standard input"])
    settings = calibration.Settings(calibration.named(model), threshold, limit, samples, seed, about, confidence)
    bound = found.bound(threshold, limit, confidence)
    calibration.save(found, settings, out)
    facts = {"model": model, "pieces": given, "compared": len(found.normal), "score": score, "threshold": threshold}
    facts |= {
        "p_value": limit,
        "confidence": confidence,
        "contamination": contamination,
        "bound": bound,
        "output": str(out),
    }
    rule = f"p-value {wanted:g}" if contamination is None else f"contamination {contamination:g}"
    sure = verdicts.bounded(bound, confidence)
    tell(f"{given} normal pieces, anomalous below {threshold:.4g}, {sure} ({rule}), in {out}", facts, as_json)


verb(
    app,
    "seqvae detect learn auth.log --session 'sshd\\[(\\d+)\\]' -o ssh.detector",
    "seqvae detect learn app.log.1.gz app.log --window 30s -o app.detector",
    "seqvae detect learn dpkg.log --format '<Date> <Time> <Content>' -o dpkg.detector",
)(raw.learn)


def _normal(kind: Kind, inputs: Sequence[str]) -> Iterator[Any]:
    """The pieces of files and folders, and lines of standard input; all are opened before the first is asked for."""
    if kind.FILES or (inputs and "-" not in inputs):
        return kind.members(inputs)
    files = [given for given in inputs if given != "-"]
    named, stream = kind.members(files), kind.read(["-"] if inputs else [])

    def pieces() -> Iterator[Any]:
        yield from named
        yield from (item.piece for batch in stream for item in batch if item.piece)

    return pieces()


def _enough(p_value: float, known: bool, tails: int, confidence: float | None = None) -> int:
    """Pieces of which, however they divide by three, so many remain to compare with that a limit can be that low.

    A third goes to the tails, `tails` at most, and another to latents where none are `known`; see `calibration.fit`.
    """
    from seqvae.anomaly import conformal

    def left(pieces: int) -> int:
        return min(n - (0 if known else n // 3) - min(tails, n // 3) for n in range(pieces, pieces + 3))

    wanted = conformal.sample_size(p_value, confidence)
    return bisect.bisect_left(range(10**12), True, key=lambda n: left(n) >= wanted)


# --- score ------------------------------------------------------------------------------------------------------------


@verb(
    app,
    "seqvae detect score @sessions.txt --detector hdfs.detector --json",
    "seqvae detect score --detector hdfs.detector -m runs/hdfs/best < sessions.txt",
    "seqvae detect score app.log --detector app.detector --html app.html",
    "seqvae detect score @sessions.txt --detector hdfs.detector --fdr 0.1 --worst-first",
)
def score(
    inputs: Inputs = None,
    detector: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder that `detect fit` or `detect learn` wrote.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="A model that carries a detector; beside --detector, where its model is now."
        ),
    ] = None,
    p_value: Annotated[
        float | None, typer.Option(callback=terminal.share, help="Another limit than the one that was fitted.")
    ] = None,
    confidence: verdicts.Confidence = None,
    fdr: verdicts.Fdr = None,
    random_ties: verdicts.RandomTies = False,
    worst_first: verdicts.WorstFirst = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Raw logs: write a report too, one page (HTML) with the marked lines."),
    ] = None,
    exact: Exact = False,
    as_json: Json = False,
) -> None:
    """Say of each piece whether it is normal. Prints its p-value, and its tokens with the most surprising ones marked.

    The p-value is the share of normal pieces that are as strange. With --json, `score` (low is anomalous), `log_prob`
    (nats) and that of every token are told too, and `bound`, the share of normal pieces that is anomalous at most.
    One line comes out for each line in, as soon as it can be answered; with --fdr and --worst-first when all are read.
    With a detector of raw logs inputs are files of raw lines, and the lines that gave a session away are shown.
    """
    chosen = verdicts.Choices(p_value, confidence, random_ties, fdr, worst_first, as_json)
    if detector is not None and model is None and _is_raw(detector):
        _score_raw(inputs or [], detector, chosen, exact, html)
        return
    if html is not None:
        raise UsageError("--html is for raw logs, with a --detector that `seqvae detect learn` wrote; leave it out")
    found, settings = _calibrated(detector, model)
    verdict = verdicts.Verdicts(found, settings, chosen, str(detector or "DETECTOR"))
    from seqvae.cli.inputs import kind_of, load

    kind = kind_of(settings.model)
    batches = kind.read(inputs or [])
    ranks = terminal.processes(kind.FILES, inputs)
    codec = load(settings.model, exact=exact)
    from seqvae.anomaly.scores import examine

    _in_utf8()
    unknown = _Unknown(codec.tokenizer, settings.model)

    def told(numbered: tuple[int, Sequence[Any]]) -> Iterator[verdicts.Row]:
        """What is said of a batch whose first piece has a number."""
        first, batch = numbered
        evidences = examine(codec, (item.piece for item in batch), settings.samples, settings.seed)
        for index, (item, evidence) in enumerate(zip(batch, evidences, strict=True), first):
            unknown.count(evidence)
            facts = {"index": index, **item.facts, **verdict.facts(index, found.scores(evidence)[found.score])}
            if as_json:
                parts = _json(codec.tokenizer, evidence)
                yield facts, parts if ranks.count == 1 else list(parts)
            else:
                name = f"{safe(item.facts['input'])}: " if kind.FILES else ""
                yield facts, [name + _shown(codec.tokenizer, item.piece, evidence)]

    for line in verdict.lines(ranks.in_rounds(_numbered(batches), told)):
        terminal.write(line)
        sys.stdout.flush()
    ranks.leave()


def _is_raw(detector: Path) -> bool:
    """Whether `detect learn` wrote it."""
    return (detector / "templates.json").is_file()


def _score_raw(inputs: Sequence[str], detector: Path, chosen: verdicts.Choices, exact: bool, html: Path | None) -> None:
    """Verdicts on the sessions of raw logs, each as soon as it is known, and the report."""
    from seqvae.anomaly import log_detector

    found = log_detector.load(detector)
    verdict = verdicts.Verdicts(found.calibration, found.settings, chosen, str(detector))
    _in_utf8()
    sessions: list[tuple[dict[str, Any], ScoredSession]] | None = None if html is None else []
    for line in verdict.lines(raw.rows(inputs, found, verdict, chosen.as_json, exact, sessions)):
        terminal.write(line)
        sys.stdout.flush()
    if html is not None and sessions is not None:
        raw.write_report(html, inputs, detector, sessions, verdict.limit, chosen.fdr)


def _in_utf8() -> None:
    """Have standard output take any text, one line for each in."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="\n", errors="surrogateescape")


def _numbered(batches: Iterable[Sequence[Any]]) -> Iterator[tuple[int, Sequence[Any]]]:
    """Batches with the number of their first piece."""
    first = 0
    for batch in batches:
        yield first, batch
        first += len(batch)


class _Unknown:
    """Warns once, on standard error, where most events have no token: raw lines are no event ids."""

    def __init__(self, tokenizer: Tokenizer, model: str) -> None:
        self._model = Path(model).name
        self._new = self._all = 0
        self._quiet = tokenizer.kind != "events"

    def count(self, evidence: Evidence) -> None:
        """Count the events of one session."""
        from seqvae.events.tokenizer import UNKNOWN
        from seqvae.protocols import EOS

        self._new += int((evidence.tokens == UNKNOWN).sum())
        self._all += int((evidence.tokens != EOS).sum())
        if not self._quiet and 2 * self._new > self._all:
            self._quiet = True
            terminal.report(
                f"warning: {self._new / self._all:.0%} of the events are unknown to {self._model}, whose verdict means "
                "little then; it wants event ids divided by spaces, and raw lines want `seqvae detect learn`"
            )


def _calibrated(detector: Path | None, model: str | None) -> tuple[Calibration, Settings]:
    """The detector that is named, or the one that a model carries; raises UsageError or CheckpointError."""
    if detector is None:
        if model is None:
            raise UsageError(
                "missing option '--detector'; name a folder that `seqvae detect fit` wrote, or with -m a model that "
                "carries one"
            )
        from seqvae.checkpoint import hub as released

        detector = released.find(model) / "detector"
        if not detector.is_dir():
            raise CheckpointError(
                f"{model}: carries no detector; fit one to normal pieces with `seqvae detect fit NORMAL -m {model} "
                "-o FOLDER`, and name it with --detector"
            )
    from seqvae.anomaly import calibration

    try:
        return calibration.load(detector, model)
    except CheckpointError as error:
        if model is not None or str(error).startswith(str(detector)):
            raise
        raise CheckpointError(
            f"{detector}: its model is not where it was; say with -m where it is ({error})"
        ) from error


def _json(tokenizer: Tokenizer, evidence: Evidence) -> Iterator[str]:
    """A line of JSON after its facts, in parts: that of a long session would take more memory than all else."""
    from seqvae.anomaly.explain import DIGITS

    total = round(float(evidence.log_prob.sum(dtype="float64")), DIGITS)
    yield f', "log_prob": {json.dumps(total)}, "tokens": ['
    for at in range(0, len(evidence.tokens), PART):
        some = zip(evidence.tokens[at : at + PART].tolist(), evidence.log_prob[at : at + PART].tolist(), strict=True)
        rows = [{"token": tokenizer.token_text(token), "log_prob": round(nats, DIGITS)} for token, nats in some]
        yield (", " if at else "") + json.dumps(rows)[1:-1]
    yield "]}"


# --- update -----------------------------------------------------------------------------------------------------------


@verb(
    app,
    "seqvae detect update hdfs.detector @normal.txt",
    "seqvae detect update ssh.detector new.log --replace",
)
def update(
    detector: Annotated[Path, typer.Argument(metavar="DETECTOR", help="Folder to recalibrate.", show_default=False)],
    inputs: Inputs = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Compare with these alone, as normal has changed.")
    ] = False,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Where its model is now.")] = None,
    exact: Exact = False,
    as_json: Json = False,
) -> None:
    """Take new normal pieces into a detector's calibration. Nothing is trained: the model and its scores stay.

    New pieces are those that nothing was fitted on. A detector of raw logs takes raw logs.
    """
    from seqvae.anomaly import calibration, conformal
    from seqvae.anomaly import scores as anomaly
    from seqvae.cli.inputs import kind_of, load

    where = detector
    if _is_raw(detector):
        from seqvae.anomaly import log_detector

        learned = log_detector.load(detector)
        where, found, settings = detector / "detector", learned.calibration, learned.settings
        evidences: Iterable[Evidence] = (evidence for _, evidence in raw.weighed(inputs or [], learned, exact)[1])
    else:
        found, settings = _calibrated(detector, model)
        pieces = _normal(kind_of(settings.model), inputs or [])
        evidences = anomaly.examine(load(settings.model, exact=exact), pieces, settings.samples, settings.seed)
    scores = [found.scores(evidence)[found.score] for evidence in evidences]
    if not scores:
        raise SeqVAEError("there is no piece to calibrate on; give normal ones")
    test = conformal.ChangeTest(len(found.normal))
    changes = [test.add(found.p_value(score)) for score in scores] + [test.look()]
    changed = any(change is not None for change in changes)
    new, settings = calibration.recalibrated(found, settings, scores, ", ".join(inputs or ["-"]), alone=replace)
    if changed and not replace:
        terminal.report(
            "warning: these are stranger than the normal ones before; where normal has changed, p-values hold for it "
            "with --replace alone"
        )
    calibration.save(new, settings, where, called=detector.name if where != detector else None)
    bound = new.bound(settings.threshold, settings.p_value, settings.confidence)
    facts: dict[str, Any] = {"pieces": len(scores), "compared": len(new.normal)}
    facts |= {"threshold": settings.threshold, "changed": changed}
    facts |= {"p_value": settings.p_value, "confidence": settings.confidence, "bound": bound, "output": str(detector)}
    sure = verdicts.bounded(bound, settings.confidence)
    tell(
        f"{len(scores)} more normal pieces, {len(new.normal)} to compare with, anomalous below "
        f"{settings.threshold:.4g}, {sure}, in {detector}",
        facts,
        as_json,
    )


# --- what is shown of a piece -----------------------------------------------------------------------------------------


def _shown(tokenizer: Tokenizer, piece: Any, evidence: Evidence) -> str:
    """The tokens of a piece with the most surprising ones marked; of a long one only what stands around these.

    The end of a chunk is left out unless it is marked: `<eos>`. Of music, each bar is told where its tokens begin.
    """
    from seqvae.anomaly.explain import pointed, spelled
    from seqvae.protocols import EOS

    ids = evidence.tokens
    marks = pointed(evidence)
    places: Sequence[int] = range(len(ids))
    if len(ids) > WHOLE:
        near = {at for i in marks for at in range(i - AROUND, i + AROUND + 1)}
        places = sorted(near.intersection(places))
    ends = ids == EOS
    bars = (ends.cumsum() - ends + 1).tolist() if tokenizer.kind == "midi" else []
    words = piece.split() if tokenizer.kind == "events" else []
    out: list[str] = []
    bar, last = 0, -1
    for group, text in spelled(tokenizer, ids.tolist(), places, words):
        if group[0] > last + 1:
            out.append(" …")
        last = group[-1]
        marked = not marks.isdisjoint(group)
        if ends[last] and not marked:
            continue
        if bars and bars[last] != bar:
            bar = bars[last]
            out.append(f" bar {bar}:")
        body = text.lstrip(" ") or text
        out += [text.removesuffix(body), terminal.marked(body) if marked else body]
    if not ends[last + 1 :].all():
        out.append(" …")
    return "".join(out).removeprefix(" ")
