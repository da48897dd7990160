"""A detector learned from the sessions of a raw log: templates, a small model and its calibration in one run.

Scope: the division of sessions, the folder with all three parts, and sessions to evidence. Out of scope: log files and
headers (events/lines.py), the terminal (cli/raw_logs.py).

Sessions are divided at random into three parts; equal sessions may be in several. From the first part, templates are
mined and the model is trained; on the second, p-values are calibrated; on the third, false alarms are counted. The
folder is a checkpoint that also holds `templates.json`, the sessions of each part as events, and the detector. An
update trains a new model on the old and new sessions of the first part, so that nothing is forgotten, and calibrates it
on those of the second.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from seqvae import codec
from seqvae.anomaly import calibration, conformal, faults
from seqvae.anomaly import evidence as anomaly
from seqvae.anomaly.calibration import Calibration, Settings
from seqvae.anomaly.evidence import Evidence
from seqvae.anomaly.score_names import Score
from seqvae.checkpoint.folder import write_folder
from seqvae.codec import Codec
from seqvae.config import load_recipe, read
from seqvae.data import prepare as shards
from seqvae.errors import CheckpointError, SeqVAEError
from seqvae.events.lines import LogReader
from seqvae.events.sessions import Grouping, Session
from seqvae.events.templates import NEW, Templates
from seqvae.io.untrusted import own
from seqvae.modality import make
from seqvae.train.loop import train

RECIPE = "logs-short"  # for short sessions
FILE = "templates.json"
SESSIONS = "sessions.json"
KEPT = 20_000
"""Maximum sessions of each part that a detector keeps, chosen at random."""
FORMAT = 1
PARTS = 0.5, 0.35
"""Shares of the sessions for training and for calibration; the rest is for counting false alarms."""
LEAST = 20
"""Minimum number of sessions."""
KNOWN = 2000
"""Maximum training sessions from which latent distances are measured."""
SCORE: Score = "combined"
SAMPLES = 16  # draws from the posterior
MOST_KINDS = 50
"""Maximum kinds of normal sessions in the report."""
STRANGE = 0.2
"""A source with a larger share of records without a template is not the source that was learned."""


@dataclass(frozen=True)
class Learned:
    """The sessions a detector was learned from, and the results."""

    sessions: int
    """All given sessions."""
    trained: int
    calibrated: int
    checked: int
    """Sessions in each part."""
    templates: int
    """Templates mined from the training sessions."""
    p_value: float
    """Sessions below it are anomalous: the requested p-value, or the lowest possible with these sessions."""
    alarms: int
    """Sessions of the last part that are called anomalous."""
    needed: int
    """Sessions needed for the requested p-value; 0 if there are enough."""
    bound: float
    """Upper confidence bound on the rate of false alarms; see `Calibration.bound`."""
    kinds: tuple[Kind, ...] = ()
    """The kinds of sessions assumed to be normal, the most frequent first; at most MOST_KINDS."""


@dataclass(frozen=True)
class Kind:
    """Sessions with the same set of messages, whatever their counts."""

    sessions: int
    messages: tuple[str, ...]
    """Templates in the order of their first occurrence."""


def kinds_of(sessions: Iterable[Session], templates: Templates) -> tuple[Kind, ...]:
    """The most frequent kinds of sessions."""
    found = Counter(tuple(dict.fromkeys(templates.event(record.content) for record in one.records)) for one in sessions)
    texts = {**templates.texts(), NEW: "a message without a template"}
    most = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:MOST_KINDS]
    return tuple(Kind(count, tuple(texts[event] for event in events)) for events, count in most)


def learn(
    sessions: Sequence[Session], reader: LogReader, grouping: Grouping, folder: Path, *, p_value: float = 0.01,
    confidence: float | None = None, minutes: float = 1.0, seed: int = 0, report: Callable[[str], None] = print,
) -> Learned:  # fmt: skip
    """Learn a detector from sessions that are assumed to be normal, and write its folder.

    Raises SeqVAEError for fewer than LEAST sessions and for an existing folder with other content.
    """
    refuse(folder)
    if len(sessions) < LEAST:
        raise SeqVAEError(
            f"{len(sessions)} sessions are too few to learn from; give {LEAST} or more, 500 or more for p-values of "
            "0.01, or group records by another key or a shorter window"
        )
    templates = Templates()
    parts = _parts(sessions, templates, seed)
    facts = {"format": FORMAT, "header": reader.header, "field": reader.field, **asdict(grouping)}
    learned = _learn(parts, templates, facts, folder, p_value, confidence, minutes, seed, report)
    return replace(learned, kinds=kinds_of(sessions, templates))


def extend(
    folder: Path, sessions: Sequence[Session], *, alone: bool = False, minutes: float = 1.0,
    report: Callable[[str], None] = print,
) -> Learned:  # fmt: skip
    """Learn a detector again from its sessions and new normal ones, and replace it.

    The new sessions are divided as those of `learn`; with `alone`, only they calibrate the p-values. Raises SeqVAEError
    for fewer than LEAST sessions, and for a detector that does not have its own.
    """
    found = load(folder)
    if len(sessions) < LEAST:
        raise SeqVAEError(
            f"{len(sessions)} sessions are too few to train on; give {LEAST} or more, or leave --train out"
        )
    try:
        kept = [[line for line, count in part for _ in range(count)] for part in read(own(folder, SESSIONS))["parts"]]
    except (OSError, ValueError, KeyError, TypeError, SeqVAEError) as error:
        raise CheckpointError(
            f"{folder / SESSIONS}: the detector's own sessions cannot be read ({error}); learn it again with "
            "`seqvae detect learn`"
        ) from error
    settings, templates = found.settings, found.templates
    new = _parts(sessions, templates, settings.seed)
    parts = [new[i] if alone and i else [*old, *new[i]] for i, old in enumerate(kept)]
    facts = {"format": FORMAT, "header": found.header, "field": found.field, **asdict(found.grouping)}
    return _learn(
        parts, templates, facts, folder, settings.p_value or 0.01, settings.confidence, minutes, settings.seed, report
    )


def _parts(sessions: Sequence[Session], templates: Templates, seed: int) -> list[list[str]]:
    """Sessions as text, divided at random into three parts; `templates` are mined from the first."""
    order = np.random.default_rng(seed).permutation(len(sessions)).tolist()
    first = round(PARTS[0] * len(order))
    second = first + round(PARTS[1] * len(order))
    parts = [[sessions[i] for i in sorted(part)] for part in np.split(order, [first, second])]
    templates.add(record.content for record in _as_written(parts[0]))
    return [[piece(session, templates) for session in part] for part in parts]


def _learn(
    parts: Sequence[Sequence[str]], templates: Templates, facts: dict[str, Any], folder: Path, p_value: float,
    confidence: float | None, minutes: float, seed: int, report: Callable[[str], None],
) -> Learned:  # fmt: skip
    """Train on the first part, calibrate on the second, count false alarms on the third, and write the folder."""
    trained, held, others = parts
    total = sum(map(len, parts))
    recipe = load_recipe(RECIPE, [f"train.minutes={minutes}", f"train.seed={seed}", "tokenizer.vocab_size=4000"])
    recipe = replace(recipe, name="log")
    with tempfile.TemporaryDirectory() as run:
        tokenizer = make(recipe.tokenizer, lambda: trained)
        sources = [("normal", f"session {i}", line) for i, line in enumerate(trained)]
        data = shards.tokenize(recipe, sources, tokenizer, Path(run) / "data")
        report(f"{len(templates)} templates in {len(trained)} of {total} sessions; training {minutes:g} minutes")
        best = train(recipe, data, tokenizer, Path(run) / "run", resume=False, report=lambda _: None)
        model = codec.load(best)
        report(f"calibrating on {len(held)} other sessions")
        near, tokens = anomaly.reference(model, list(dict.fromkeys(trained))[:KNOWN])
        faulty = faults.source(model, held, trained, SAMPLES, seed)
        normal = anomaly.examine(model, held, SAMPLES, seed)
        found = calibration.fit(normal, SCORE, near, seed, tokens, "events", faulty)
        limit = max(p_value, conformal.least_share(len(found.normal), confidence))
        threshold, about = found.threshold(limit, confidence), f"{len(held)} sessions of a log"
        settings = Settings(str(best), threshold, limit, SAMPLES, seed, about, confidence)
        values = [found.scores(one)[SCORE] for one in anomaly.examine(model, others, SAMPLES, seed)]
        facts = {**facts, "templates": templates.state()}

        def fill(part: Path) -> None:
            shutil.copytree(best, part, dirs_exist_ok=True)
            (part / FILE).write_text(json.dumps(facts, indent=1) + "\n")
            (part / SESSIONS).write_text(json.dumps({"parts": [_kept(one, seed) for one in parts]}) + "\n")
            calibration.save(found, settings, part / "detector", called=folder.name)

        write_folder(folder, fill)
    alarms = sum(value < settings.threshold for value in values)
    needed = 0 if limit == p_value else _enough(p_value, confidence)
    bound = found.bound(threshold, limit, confidence)
    return Learned(total, len(trained), len(held), len(others), len(templates), limit, alarms, needed, bound)


def _kept(lines: Sequence[str], seed: int) -> list[tuple[str, int]]:
    """Sessions with their counts, at most KEPT."""
    if len(lines) > KEPT:
        lines = [lines[i] for i in np.random.default_rng(seed).permutation(len(lines))[:KEPT].tolist()]
    return list(Counter(lines).items())


def _enough(p_value: float, confidence: float | None) -> int:
    """Number of sessions in a log that are enough to calibrate for a p-value; see `calibration.fit`."""
    compared = conformal.sample_size(p_value, confidence)
    held = min(math.ceil(1.5 * compared) + 1, compared + calibration.TAILS)
    return math.ceil(held / PARTS[1])


def _as_written(sessions: Iterable[Session]) -> list[Any]:
    """The records of sessions in the order of the log, on which templates depend."""
    records = [record for session in sessions for record in session.records]
    return sorted(records, key=lambda record: (record.source, record.number))


def piece(session: Session, templates: Templates) -> str:
    """A session as text for the model: the events of its records, separated by spaces."""
    return " ".join(templates.event(record.content) for record in session.records)


def evidence(
    model: Codec, sessions: Iterable[Session], templates: Templates, samples: int, seed: int
) -> Iterator[Evidence]:
    """Evidence of sessions: token i is the event of record i, and the last token is the end."""
    return anomaly.examine(model, (piece(session, templates) for session in sessions), samples, seed)


def refuse(folder: Path) -> None:
    """Raise SeqVAEError for an existing path that is not such a detector or an empty folder."""
    if folder.exists() and not ((folder / FILE).is_file() or (folder.is_dir() and not any(folder.iterdir()))):
        raise SeqVAEError(f"{folder}: exists and is not a detector of raw logs; choose another -o")


# --- a learned detector -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogDetector:
    """A learned detector, with the settings for reading logs of the same kind."""

    header: str
    field: str | None
    grouping: Grouping
    templates: Templates
    calibration: Calibration
    settings: Settings

    def reader(self) -> LogReader:
        """A reader of records with the learned header."""
        return LogReader(self.header, self.field)

    def unknown(self, sessions: Iterable[Session]) -> tuple[int, int]:
        """Number of records in sessions without a template, and number of all records."""
        found = [self.templates.event(record.content) for session in sessions for record in session.records]
        return found.count(NEW), len(found)


def is_one(folder: Path) -> bool:
    """True if a folder holds a detector of raw logs."""
    return (folder / FILE).is_file()


def load(folder: Path) -> LogDetector:
    """Read a folder that `learn` wrote; raises CheckpointError in one line if it cannot be read."""
    try:
        facts: dict[str, Any] = read(own(folder, FILE))
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']}")
        grouping = Grouping(facts["key"], facts["window"], facts.get("column"))
        LogReader(facts["header"], facts["field"])
        templates = Templates.from_state(facts["templates"])
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SeqVAEError) as error:
        raise CheckpointError(
            f"{folder / FILE}: cannot be read ({error}); learn it again with `seqvae detect learn`"
        ) from error
    found, settings = calibration.load(folder / "detector")
    return LogDetector(facts["header"], facts["field"], grouping, templates, found, settings)
