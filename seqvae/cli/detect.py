"""The commands under `seqvae detect`: calibrate a detector on normal sessions, score others, recalibrate.

Scope: arguments, and the printed p-value, verdict and surprising tokens. Out of scope: scores and calibration
(anomaly/evidence.py, anomaly/calibration.py) and scikit-learn (anomaly/detector.py). Only typer is imported here, as in
cli/app.py.
"""

from __future__ import annotations

import bisect
import io
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqvae.anomaly.score_names import Score
from seqvae.cli import console, marks, verdicts
from seqvae.cli import raw_logs as raw
from seqvae.cli.console import Exact, Folder, Inputs, Json, Model, Seed, tell, verb
from seqvae.errors import CheckpointError, SeqVAEError, UsageError
from seqvae.text.lines import safe

if TYPE_CHECKING:
    from seqvae.anomaly.calibration import Calibration, Settings
    from seqvae.anomaly.evidence import Evidence
    from seqvae.anomaly.log_report import ScoredSession
    from seqvae.cli.inputs import Kind
    from seqvae.protocols import Tokenizer

app = console.group("Find sessions, sentences and songs that are not normal.")


# --- fit --------------------------------------------------------------------------------------------------------------


@verb(
    app,
    "seqvae detect fit @normal.txt -m runs/hdfs/best -o hdfs.detector",
    "seqvae detect fit @normal.txt -m runs/hdfs/best -o hdfs.detector --reference @train.txt --p-value 0.001",
    "seqvae detect fit @normal.txt -m runs/hdfs/best -o hdfs.detector --p-value 0.01 --confidence 0.95",
    "seqvae detect fit songs/ -m music -o songs.detector --contamination 0.05",
)
def fit(
    out: Folder,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            help="Normal data that the model was not trained on. Music: files or folders. Text: @FILE with one session "
            "or sentence on each line, or - for standard input, the default.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Normal data for latent distances and novelty, preferably the training data; without it, a third of "
            "INPUT.",
        ),
    ] = None,
    score: Annotated[Score, typer.Option(help="Anomaly score: several scores combined, or one of them.")] = "combined",
    p_value: Annotated[
        float | None,
        typer.Option(callback=console.share, help="Share of new normal inputs called anomalous.  [default: 0.01]"),
    ] = None,
    confidence: verdicts.Confidence = None,
    contamination: Annotated[
        float | None,
        typer.Option(callback=console.share, help="Instead of a p-value: share of INPUT called anomalous."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples from the posterior of each segment.")] = 16,
    model: Model = "music",
    seed: Seed = 0,
    exact: Exact = False,
    as_json: Json = False,
) -> None:
    """Calibrate a detector on normal data. Use the folder with `seqvae detect score --detector`.

    Blank lines are skipped, as in training.
    """
    if p_value is not None and contamination is not None:
        raise UsageError("--p-value and --contamination both set the threshold; give one of them")
    if confidence is not None and contamination is not None:
        raise UsageError("--confidence is for a --p-value, not for --contamination; give one of them")
    share = 0.01 if p_value is None else p_value
    limit = share if contamination is None else None
    from seqvae.anomaly import calibration, faults
    from seqvae.anomaly import evidence as anomaly
    from seqvae.cli.inputs import kind_of, load
    from seqvae.modality import counted

    calibration.refuse(out)
    kind = kind_of(model)
    pieces: Iterable[Any] = _normal(kind, inputs or [])
    near: Iterable[Any] | None = kind.members(reference) if reference else None
    codec = load(model, exact=exact)
    faulty = None
    if score == "combined" and faults.applies(codec):
        listed, known = list(pieces), list(near or ())
        pieces, near = listed, known if reference else None
        faulty = faults.source(codec, listed, known, samples, seed)
    given = 0

    def evidence() -> Iterator[Evidence]:
        nonlocal given
        for one in anomaly.examine(codec, pieces, samples, seed):
            given += 1
            yield one

    latents, tokens = ([], []) if near is None else anomaly.reference(codec, near)
    found = calibration.fit(evidence(), score, latents, seed, tokens, codec.tokenizer.kind, faulty)
    normal = counted(given, codec.tokenizer.kind, "normal ")
    threshold = found.threshold(share, confidence) if contamination is None else found.quantile(contamination)
    if threshold == -math.inf:
        raise _too_few(found, normal, share, bool(latents), confidence)
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
    rule = f"p-value {share:g}" if contamination is None else f"contamination {contamination:g}"
    sure = verdicts.bounded(bound, confidence)
    tell(f"{normal}, anomalous below {threshold:.4g}, {sure} ({rule}), in {out}", facts, as_json)


verb(
    app,
    "seqvae detect learn auth.log --session 'sshd\\[(\\d+)\\]' -o ssh.detector",
    "seqvae detect learn app.log.1.gz app.log --window 30s -o app.detector",
    "seqvae detect learn dpkg.log --format '<Date> <Time> <Content>' -o dpkg.detector",
)(raw.learn)


def _normal(kind: Kind, inputs: Sequence[str]) -> Iterator[Any]:
    """Pieces of files, folders and standard input; all are opened before the first is read."""
    if kind.FILES or (inputs and "-" not in inputs):
        return kind.members(inputs)
    files = [given for given in inputs if given != "-"]
    named, stream = kind.members(files), kind.read(["-"] if inputs else [])

    def pieces() -> Iterator[Any]:
        yield from named
        yield from (item.piece for batch in stream for item in batch if item.piece)

    return pieces()


def _too_few(found: Calibration, normal: str, p_value: float, known: bool, confidence: float | None) -> SeqVAEError:
    """The error for fewer `normal` sequences (such as "9 normal sessions") than a p-value needs."""
    from seqvae.anomaly import calibration, conformal

    enough = _enough(p_value, known, calibration.TAILS, confidence)
    surely = "" if confidence is None else f" with {confidence:g} confidence"
    return SeqVAEError(
        f"{normal} are too few for a p-value of {p_value:g}{surely}, which needs {enough}; give as "
        f"many, or choose a --p-value of {conformal.least_share(len(found.normal), confidence):.2g} or more"
    )


def _enough(p_value: float, known: bool, tails: int, confidence: float | None = None) -> int:
    """Smallest number of normal pieces that allows a threshold at `p_value`, whatever its remainder modulo three.

    `calibration.fit` takes a third for the tails, at most `tails`, and another for latents unless they are `known`.
    """
    from seqvae.anomaly import conformal

    def left(pieces: int) -> int:
        return min(n - (0 if known else n // 3) - min(tails, n // 3) for n in range(pieces, pieces + 3))

    needed = conformal.sample_size(p_value, confidence)
    return bisect.bisect_left(range(10**12), True, key=lambda n: left(n) >= needed)


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
        typer.Option("--model", "-m", help="A model with a detector; with --detector, the present place of its model."),
    ] = None,
    p_value: Annotated[
        float | None,
        typer.Option(callback=console.share, help="Largest p-value of an anomaly, instead of the fitted one."),
    ] = None,
    confidence: verdicts.Confidence = None,
    fdr: verdicts.Fdr = None,
    random_ties: verdicts.RandomTies = False,
    worst_first: verdicts.WorstFirst = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Raw logs: also write a report, one HTML page with the marked lines."),
    ] = None,
    exact: Exact = False,
    as_json: Json = False,
) -> None:
    """Score sessions, sentences or songs. Prints the p-value, the verdict, and the tokens, surprising ones marked.

    The p-value is the share of normal inputs that are as strange. --json adds `score` (low is anomalous), `log_prob`
    (nats, in all and of each token), and `bound`, an upper bound on the share of normal inputs called anomalous.
    Each input line gives one output line, as soon as it is scored; with --fdr and --worst-first after the last input.
    A detector of raw logs takes files of raw lines, and prints the surprising lines of each anomalous session.
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
    ranks = console.processes(kind.FILES, inputs)
    codec = load(settings.model, exact=exact)
    from seqvae.anomaly.evidence import examine

    _in_utf8()
    unknown = _Unknown(codec.tokenizer, settings.model)

    def scored(numbered: tuple[int, Sequence[Any]]) -> Iterator[verdicts.Row]:
        """Output rows of a numbered batch."""
        first, batch = numbered
        evidences = examine(codec, (item.piece for item in batch), settings.samples, settings.seed)
        for index, (item, evidence) in enumerate(zip(batch, evidences, strict=True), first):
            unknown.count(evidence)
            facts = {"index": index, **item.facts, **verdict.facts(index, found.scores(evidence)[found.score])}
            if as_json:
                parts = marks.rest_of_json(codec.tokenizer, evidence)
                yield facts, parts if ranks.count == 1 else list(parts)
            else:
                name = f"{safe(item.facts['input'])}: " if kind.FILES else ""
                yield facts, [name + marks.shown(codec.tokenizer, item.piece, evidence)]

    for line in verdict.lines(ranks.in_rounds(_numbered(batches), scored)):
        console.write(line)
        sys.stdout.flush()
    ranks.leave()


def _is_raw(detector: Path) -> bool:
    """Whether `detect learn` wrote this detector."""
    return (detector / "templates.json").is_file()


def _score_raw(inputs: Sequence[str], detector: Path, chosen: verdicts.Choices, exact: bool, html: Path | None) -> None:
    """Print verdicts on the sessions of raw logs, each as soon as it is scored, and write the report."""
    from seqvae.anomaly import log_detector

    if html is not None:
        raw.refuse_report(html)
    found = log_detector.load(detector)
    verdict = verdicts.Verdicts(found.calibration, found.settings, chosen, str(detector))
    _in_utf8()
    sessions: list[tuple[dict[str, Any], ScoredSession]] | None = None if html is None else []
    for line in verdict.lines(raw.rows(inputs, found, verdict, chosen.as_json, exact, sessions)):
        console.write(line)
        sys.stdout.flush()
    if html is not None and sessions is not None:
        raw.write_report(html, inputs, detector, sessions, verdict.limit, chosen.fdr)


def _in_utf8() -> None:
    """Write standard output in UTF-8 with newlines as they are."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="\n", errors="surrogateescape")


def _numbered(batches: Iterable[Sequence[Any]]) -> Iterator[tuple[int, Sequence[Any]]]:
    """Batches with the number of their first piece."""
    first = 0
    for batch in batches:
        yield first, batch
        first += len(batch)


class _Unknown:
    """Warns once, on standard error, if most events have no token, as in raw lines."""

    def __init__(self, tokenizer: Tokenizer, model: str) -> None:
        self._model = Path(model).name
        self._new = self._all = 0
        self._unknown = tokenizer.unknown
        self._quiet = self._unknown is None

    def count(self, evidence: Evidence) -> None:
        """Count the events of one session."""
        from seqvae.protocols import EOS

        if self._quiet:
            return
        self._new += int((evidence.tokens == self._unknown).sum())
        self._all += int((evidence.tokens != EOS).sum())
        if 2 * self._new > self._all:
            self._quiet = True
            console.report(
                f"warning: {self._new / self._all:.0%} of the events are unknown to {self._model}, so its verdict "
                "means little; give event ids separated by spaces, or use `seqvae detect learn` for raw lines"
            )


def _calibrated(detector: Path | None, model: str | None) -> tuple[Calibration, Settings]:
    """The named detector, or that of the model; raises UsageError or CheckpointError."""
    if detector is None:
        if model is None:
            raise UsageError(
                "missing option '--detector'; name a folder that `seqvae detect fit` wrote, or with -m a model that "
                "has a detector"
            )
        from seqvae.checkpoint import hub

        detector = hub.find(model) / "detector"
        if not detector.is_dir():
            raise CheckpointError(
                f"{model}: has no detector; fit one to normal data with `seqvae detect fit NORMAL -m {model} "
                "-o FOLDER`, and name it with --detector"
            )
    from seqvae.anomaly import calibration

    try:
        return calibration.load(detector, model)
    except CheckpointError as error:
        if model is not None or str(error).startswith(str(detector)):
            raise
        raise CheckpointError(f"{detector}: its model has moved; give its place with -m ({error})") from error


# --- update -----------------------------------------------------------------------------------------------------------


@verb(
    app,
    "seqvae detect update hdfs.detector @normal.txt",
    "seqvae detect update ssh.detector new.log --replace",
    "seqvae detect update ssh.detector new.log --train",
)
def update(
    detector: Annotated[Path, typer.Argument(metavar="DETECTOR", help="Folder to recalibrate.", show_default=False)],
    inputs: Inputs = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the old calibration, where normal has changed.")
    ] = False,
    train: Annotated[
        bool,
        typer.Option(
            "--train", help="Raw logs: also train the model on half of the new sessions and all its old ones."
        ),
    ] = False,
    minutes: Annotated[
        float, typer.Option(min=0.01, callback=console.finite, help="Training time in minutes, with --train.")
    ] = 1.0,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Present place of its model.")] = None,
    exact: Exact = False,
    as_json: Json = False,
) -> None:
    """Add new normal data to a detector's calibration. Without --train, the model and its scores stay as they are.

    Nothing may have been fitted on the new data. A detector of raw logs takes raw logs.
    """
    if train:
        if not _is_raw(detector):
            raise UsageError(
                "--train is for a detector that `seqvae detect learn` wrote; train other models with `seqvae train`, "
                "and fit a detector to them"
            )
        raw.train(inputs or [], detector, replace, minutes, as_json)
        return
    from seqvae.anomaly import calibration, conformal
    from seqvae.modality import counted

    where, found, settings, evidences, sequence = _recalibrating(detector, inputs or [], model, exact)
    scores = [found.scores(evidence)[found.score] for evidence in evidences]
    if not scores:
        raise SeqVAEError("there is nothing to calibrate on; give normal sessions, sentences or songs")
    test = conformal.ChangeTest(len(found.normal))
    changes = [test.add(found.p_value(score)) for score in scores] + [test.look()]
    changed = any(change is not None for change in changes)
    new, settings = calibration.recalibrated(found, settings, scores, ", ".join(inputs or ["-"]), alone=replace)
    if changed and not replace:
        console.report(
            "warning: the new normal data are stranger than the old; where normal has changed, p-values are valid "
            "only with --replace"
        )
    calibration.save(new, settings, where, called=detector.name if where != detector else None)
    bound = new.bound(settings.threshold, settings.p_value, settings.confidence)
    facts: dict[str, Any] = {"pieces": len(scores), "compared": len(new.normal)}
    facts |= {"threshold": settings.threshold, "changed": changed}
    facts |= {"p_value": settings.p_value, "confidence": settings.confidence, "bound": bound, "output": str(detector)}
    sure = verdicts.bounded(bound, settings.confidence)
    tell(
        f"{counted(len(scores), sequence, 'more normal ')}, {len(new.normal)} to compare with, anomalous below "
        f"{settings.threshold:.4g}, {sure}, in {detector}",
        facts,
        as_json,
    )


def _recalibrating(
    detector: Path, inputs: Sequence[str], model: str | None, exact: bool
) -> tuple[Path, Calibration, Settings, Iterable[Evidence], str]:
    """The folder of a detector's calibration, the calibration, its settings, the new evidence, and the kind."""
    if _is_raw(detector):
        from seqvae.anomaly import log_detector

        learned = log_detector.load(detector)
        logged = (evidence for _, evidence in raw.weighed(inputs, learned, exact)[1])
        return detector / "detector", learned.calibration, learned.settings, logged, "events"
    from seqvae.anomaly.evidence import examine
    from seqvae.cli.inputs import kind_of, load

    found, settings = _calibrated(detector, model)
    pieces = _normal(kind_of(settings.model), inputs)
    codec = load(settings.model, exact=exact)
    evidences = examine(codec, pieces, settings.samples, settings.seed)
    return detector, found, settings, evidences, codec.tokenizer.kind
