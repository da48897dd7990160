"""Commands that tell what is not normal: calibrate a detector on normal pieces, and score others with it.

Knows arguments, and what is shown of a piece: its p-value, the verdict, and where it is surprising. Refuses to know how
evidence is found and weighed (anomaly.py, calibration.py), and scikit-learn, which detector.py is for. Only typer is
imported here, as in cli.py.
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

from seqvae import learn as raw
from seqvae import terminal
from seqvae.errors import CheckpointError, SeqVAEError, UsageError
from seqvae.terminal import Exact, Inputs, Json, Model, Seed, tell, verb

if TYPE_CHECKING:
    from seqvae.anomaly import Evidence
    from seqvae.calibration import Calibration, Settings
    from seqvae.kinds import Kind
    from seqvae.vocabulary import Tokenizer

app = terminal.group("Tell which pieces are not normal.")

# as calibration.Score, whose module imports torch; a test holds them together
Score = Literal["combined", "probability", "error", "elbo", "importance", "worst", "familiar", "latent"]

POINTED = 5  # tokens of a piece that are pointed at
WHOLE = 40  # tokens of the longest piece that is shown from end to end
AROUND = 3  # tokens shown on either side of one that is pointed at, of a longer piece
DIGITS = 4  # of log-probabilities: the last ones depend on what else was asked for
PART = 4096  # tokens put into JSON at once: a session may have a million


# --- fit --------------------------------------------------------------------------------------------------------------


@verb(
    app,
    "seqvae detect fit @normal.txt -m runs/hdfs/best -o hdfs.detector",
    "seqvae detect fit @normal.txt -m runs/hdfs/best -o hdfs.detector --known @train.txt --p-value 0.001",
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
    wanted = 0.01 if p_value is None else p_value
    from seqvae import anomaly, calibration
    from seqvae.kinds import kind_of, load

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
    threshold = found.threshold(wanted) if contamination is None else found.quantile(contamination)
    if threshold == -math.inf:
        enough = _enough(wanted, bool(latents), calibration.TAILS)
        raise SeqVAEError(
            f"{given} normal pieces are too few for a p-value of {wanted:g}, which takes {enough}; give so many, or "
            f"choose a --p-value of {_least(found)} or more"
        )
    limit = None if contamination is not None else wanted
    about = ", ".join(inputs or ["standard input"])
    settings = calibration.Settings(calibration.named(model), threshold, limit, samples, seed, about)
    calibration.save(found, settings, out)
    facts = {"model": model, "pieces": given, "compared": len(found.normal), "score": score, "threshold": threshold}
    facts |= {"p_value": limit, "contamination": contamination, "output": str(out)}
    rule = f"p-value {wanted:g}" if contamination is None else f"contamination {contamination:g}"
    tell(f"{given} normal pieces, anomalous below {threshold:.4g} ({rule}), in {out}", facts, as_json)


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


def _enough(p_value: float, known: bool, tails: int) -> int:
    """Pieces of which, however they divide by three, so many remain to compare with that one p-value is that low.

    A third goes to the tails, `tails` at most, and another to latents where none are `known`; see `calibration.fit`.
    """

    def left(pieces: int) -> int:
        return min(n - (0 if known else n // 3) - min(tails, n // 3) for n in range(pieces, pieces + 3))

    return bisect.bisect_left(range(10**12), True, key=lambda n: 1 / (left(n) + 1) <= p_value)


def _least(found: Calibration) -> str:
    """The lowest p-value there can be, rounded up: one that is not refused again."""
    value = 1 / (len(found.normal) + 1)
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / step) * step:.2g}"


# --- score ------------------------------------------------------------------------------------------------------------


@verb(
    app,
    "seqvae detect score @sessions.txt --detector hdfs.detector --json",
    "seqvae detect score --detector hdfs.detector -m runs/hdfs/best < sessions.txt",
    "seqvae detect score app.log --detector app.detector",
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
    exact: Exact = False,
    as_json: Json = False,
) -> None:
    """Say of each piece whether it is normal. Prints its p-value, and its tokens with the most surprising ones marked.

    The p-value is the share of normal pieces that are as strange. With --json, `score` (low is anomalous), `log_prob`
    (nats) and that of every token are told too. One line comes out for each line in, as soon as it can be answered.
    With a detector of raw logs inputs are files of raw lines, and the lines that gave a session away are shown.
    """
    if detector is not None and model is None and (detector / "templates.json").is_file():
        _score_raw(inputs or [], detector, p_value, exact, as_json)
        return
    found, settings = _calibrated(detector, model)
    threshold = _threshold(found, settings, p_value)
    from seqvae.kinds import kind_of, load

    kind = kind_of(settings.model)
    batches = kind.read(inputs or [])
    ranks = terminal.processes(kind.FILES, inputs)
    codec = load(settings.model, exact=exact)
    from seqvae.anomaly import examine

    _in_utf8()
    unknown = _Unknown(codec.tokenizer, settings.model)

    def told(numbered: tuple[int, Sequence[Any]]) -> Iterator[Iterable[str]]:
        """The lines of a batch whose first piece has a number, each in parts."""
        first, batch = numbered
        evidences = examine(codec, (item.piece for item in batch), settings.samples, settings.seed)
        for index, (item, evidence) in enumerate(zip(batch, evidences, strict=True), first):
            unknown.count(evidence)
            value = found.scores(evidence)[found.score]
            rare, anomalous = found.p_value(value), value < threshold
            facts = {"index": index, **item.facts, "score": value, "p_value": rare, "anomalous": anomalous}
            if as_json:
                parts = _json(facts, codec.tokenizer, evidence)
                yield parts if ranks.count == 1 else list(parts)
            else:
                verdict = "anomalous" if anomalous else "normal"
                name = f"{terminal.safe(item.facts['input'])}: " if kind.FILES else ""
                yield [f"{rare:<10.3g}{verdict:<11}{name}", _shown(codec.tokenizer, item.piece, evidence)]

    for line in ranks.in_rounds(_numbered(batches), told):
        terminal.write(line)
        sys.stdout.flush()
    ranks.leave()


def _threshold(found: Calibration, settings: Settings, p_value: float | None) -> float:
    """What a score has to be below to be anomalous; raises SeqVAEError for a p-value that none can have."""
    threshold = settings.threshold if p_value is None else found.threshold(p_value)
    if p_value is not None and threshold == -math.inf:
        raise SeqVAEError(
            f"--p-value {p_value:g}: with {len(found.normal)} normal pieces to compare with, none is lower than "
            f"{_least(found)}; choose so much, or fit the detector on more"
        )
    return threshold


def _score_raw(inputs: Sequence[str], detector: Path, p_value: float | None, exact: bool, as_json: bool) -> None:
    """Verdicts on the sessions of raw logs, each as soon as it can be told."""
    from seqvae import log_detector

    found = log_detector.load(detector)
    threshold = _threshold(found.calibration, found.settings, p_value)
    _in_utf8()
    for said in raw.verdicts(inputs, found, threshold, as_json, exact):
        for line in said:
            terminal.write([line])
        sys.stdout.flush()


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
        from seqvae.event_tokenizer import UNKNOWN
        from seqvae.vocabulary import EOS

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
        from seqvae import released

        detector = released.find(model) / "detector"
        if not detector.is_dir():
            raise CheckpointError(
                f"{model}: carries no detector; fit one to normal pieces with `seqvae detect fit NORMAL -m {model} "
                "-o FOLDER`, and name it with --detector"
            )
    from seqvae import calibration

    try:
        return calibration.load(detector, model)
    except CheckpointError as error:
        if model is not None or str(error).startswith(str(detector)):
            raise
        raise CheckpointError(
            f"{detector}: its model is not where it was; say with -m where it is ({error})"
        ) from error


def _json(facts: dict[str, Any], tokenizer: Tokenizer, evidence: Evidence) -> Iterator[str]:
    """A line of JSON in parts: that of a long session would take more memory than all else."""
    total = round(float(evidence.log_prob.sum(dtype="float64")), DIGITS)
    yield json.dumps({**facts, "log_prob": total})[:-1] + ', "tokens": ['
    for at in range(0, len(evidence.tokens), PART):
        some = zip(evidence.tokens[at : at + PART].tolist(), evidence.log_prob[at : at + PART].tolist(), strict=True)
        rows = [{"token": tokenizer.token_text(token), "log_prob": round(nats, DIGITS)} for token, nats in some]
        yield (", " if at else "") + json.dumps(rows)[1:-1]
    yield "]}"


# --- what is shown of a piece -----------------------------------------------------------------------------------------


def pointed(evidence: Evidence) -> set[int]:
    """The places of the tokens that surprise most."""
    return set(evidence.log_prob.round(DIGITS).argsort(kind="stable")[:POINTED].tolist())


def _shown(tokenizer: Tokenizer, piece: Any, evidence: Evidence) -> str:
    """The tokens of a piece with the most surprising ones marked; of a long one only what stands around these.

    The end of a chunk is left out unless it is marked: `<eos>`. Of music, each bar is told where its tokens begin.
    """
    from seqvae.vocabulary import EOS

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


def spelled(
    tokenizer: Tokenizer, ids: Sequence[int], places: Sequence[int], words: Sequence[str]
) -> Iterator[tuple[list[int], str]]:
    """Tokens at some places, each with the space before it.

    The bytes of a letter go together, and a space of its own with what follows. An event without a token is shown as it
    stands in `words`.
    """
    from seqvae.event_tokenizer import UNKNOWN
    from seqvae.text_tokenizer import TextTokenizer
    from seqvae.vocabulary import EOS

    if not isinstance(tokenizer, TextTokenizer):
        for i in places:
            unknown = i < len(words) and ids[i] == UNKNOWN
            yield [i], " " + terminal.safe(words[i] if unknown else tokenizer.token_text(ids[i]))
        return
    value = tokenizer.byte_of
    groups: list[list[int]] = []
    for i in places:
        before = ids[i - 1]
        letter = value[before] >= 0 and 0x80 <= value[ids[i]] < 0xC0
        blank = not tokenizer.token_text(before).strip(" ")
        if groups and groups[-1][-1] == i - 1 and ids[i] != EOS and (letter or blank):
            groups[-1].append(i)
        else:
            groups.append([i])
    for group in groups:
        parts = [(ids[i], int(value[ids[i]])) for i in group]
        content = b"".join(bytes([n]) if n >= 0 else tokenizer.token_text(token).encode() for token, n in parts)
        yield group, " <eos>" if ids[group[0]] == EOS else terminal.safe(content.decode(errors="replace"))
