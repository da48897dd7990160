"""A detector from the sessions of a raw log: templates, a small model and its calibration, learned in one go.

Knows: which sessions each of these is learned from, the folder that holds all three, and how sessions become evidence.
Refuses to know: files of logs and headers (events/lines.py), the terminal (cli/raw_logs.py).

Sessions are divided at random into three parts, each session by itself: equal ones may be in several, as often as they
occur. On the first, templates are mined and the model is trained; on the second, p-values are calibrated; on the third,
the rate of false alarms is counted. The folder is a checkpoint, with `templates.json` and the detector in it.
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
from seqvae.anomaly import calibration, conformal
from seqvae.anomaly import scores as anomaly
from seqvae.anomaly.calibration import Calibration, Score, Settings
from seqvae.anomaly.scores import Evidence
from seqvae.checkpoint.folder import write_folder
from seqvae.checkpoint.hub import own
from seqvae.codec import Codec
from seqvae.config import load_recipe, read
from seqvae.data import prepare as shards
from seqvae.errors import CheckpointError, SeqVAEError
from seqvae.events.lines import LogReader
from seqvae.events.sessions import Grouping, Session
from seqvae.events.templates import NEW, Templates
from seqvae.modality import make
from seqvae.train.loop import train

RECIPE = "hdfs"  # for short sessions
FILE = "templates.json"
FORMAT = 1
PARTS = 0.5, 0.35
"""Shares of the sessions that are trained on and calibrated on; the others are counted on."""
LEAST = 20
"""Sessions to learn from."""
KNOWN = 2000
"""Sessions at most, of those that were trained on, that latent distances are measured from."""
SCORE: Score = "worst"
"""Finds order faults, and events that are new, dropped or doubled, where the combined score is out-voted."""
SAMPLES = 16  # draws from the posterior
MOST_KINDS = 50
"""Kinds of normal sessions that are reported at most."""
STRANGE = 0.2
"""A source with a larger share of records without a template is not the one that was learned."""


@dataclass(frozen=True)
class Learned:
    """What a detector was learned from, and what came of it."""

    sessions: int
    """All that were given."""
    trained: int
    calibrated: int
    checked: int
    """Sessions of each part."""
    templates: int
    """Mined from the sessions that were trained on."""
    p_value: float
    """A session below it is anomalous: what was asked for, or the least that so many sessions allow."""
    alarms: int
    """Sessions of the last part that are called anomalous."""
    wanted: int
    """Sessions that would allow the p-value that was asked for; 0 where these do."""
    bound: float
    """Upper confidence bound on the rate of false alarms; see `Calibration.bound`."""
    kinds: tuple[Kind, ...]
    """The kinds of sessions that were taken for normal, the most frequent first; MOST_KINDS at most."""


@dataclass(frozen=True)
class Kind:
    """Sessions with the same messages, in whatever number."""

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
    """Learn a detector from sessions that are taken for normal, and write its folder.

    Raises SeqVAEError for fewer than LEAST sessions and for a folder that is there and holds something else.
    """
    refuse(folder)
    if len(sessions) < LEAST:
        raise SeqVAEError(
            f"{len(sessions)} sessions are too few to learn from; give {LEAST} or more, 500 or more for p-values of "
            "0.01, or divide the log by another key or a shorter window"
        )
    order = np.random.default_rng(seed).permutation(len(sessions)).tolist()
    first = round(PARTS[0] * len(order))
    second = first + round(PARTS[1] * len(order))
    normal, held, others = ([sessions[i] for i in sorted(part)] for part in np.split(order, [first, second]))
    templates = Templates.mine(record.content for record in _as_written(normal))
    pieces = [piece(session, templates) for session in normal]
    recipe = load_recipe(RECIPE, [f"train.minutes={minutes}", f"train.seed={seed}", "tokenizer.vocab_size=4000"])
    recipe = replace(recipe, name="log")
    with tempfile.TemporaryDirectory() as run:
        tokenizer = make(recipe.tokenizer, lambda: pieces)
        sources = [("normal", f"session {i}", line) for i, line in enumerate(pieces)]
        data = shards.tokenize(recipe, sources, tokenizer, Path(run) / "data")
        report(f"{len(templates)} templates in {len(normal)} of {len(sessions)} sessions; training {minutes:g} minutes")
        best = train(recipe, data, tokenizer, Path(run) / "run", resume=False, report=lambda _: None)
        model = codec.load(best)
        report(f"calibrating on {len(held)} other sessions")
        near = anomaly.latents(model, list(dict.fromkeys(pieces))[:KNOWN])
        found = calibration.fit(evidence(model, held, templates, SAMPLES, seed), SCORE, near, seed)
        limit = max(p_value, conformal.least_share(len(found.normal), confidence))
        threshold, about = found.threshold(limit, confidence), f"{len(held)} sessions of a log"
        settings = Settings(str(best), threshold, limit, SAMPLES, seed, about, confidence)
        values = [found.scores(one)[SCORE] for one in evidence(model, others, templates, SAMPLES, seed)]
        facts = {"format": FORMAT, "header": reader.header, "field": reader.field, **asdict(grouping)}
        facts |= {"templates": templates.state()}

        def fill(part: Path) -> None:
            shutil.copytree(best, part, dirs_exist_ok=True)
            (part / FILE).write_text(json.dumps(facts, indent=1) + "\n")
            calibration.save(found, settings, part / "detector", called=folder.name)

        write_folder(folder, fill)
    alarms = sum(value < settings.threshold for value in values)
    wanted = 0 if limit == p_value else _enough(p_value, confidence)
    bound = found.bound(threshold, limit, confidence)
    return Learned(
        len(sessions), len(normal), len(held), len(others), len(templates), limit, alarms, wanted, bound,
        kinds_of(sessions, templates),
    )  # fmt: skip


def _enough(p_value: float, confidence: float | None) -> int:
    """Sessions of a log, such that those to compare with allow a p-value: see `calibration.fit`."""
    compared = conformal.sample_size(p_value, confidence)
    held = min(math.ceil(1.5 * compared) + 1, compared + calibration.TAILS)
    return math.ceil(held / PARTS[1])


def _as_written(sessions: Iterable[Session]) -> list[Any]:
    """The records of sessions in the order of the log: templates depend on it."""
    records = [record for session in sessions for record in session.records]
    return sorted(records, key=lambda record: (record.source, record.number))


def piece(session: Session, templates: Templates) -> str:
    """A session as the model reads it: the events of its records, with a space between them."""
    return " ".join(templates.event(record.content) for record in session.records)


def evidence(
    model: Codec, sessions: Iterable[Session], templates: Templates, samples: int, seed: int
) -> Iterator[Evidence]:
    """What a model says of sessions: its i-th token is the event of the i-th record, and the last is the end."""
    return anomaly.examine(model, (piece(session, templates) for session in sessions), samples, seed)


def refuse(folder: Path) -> None:
    """Raise SeqVAEError for what is there and is no folder of such a detector."""
    if folder.exists() and not ((folder / FILE).is_file() or (folder.is_dir() and not any(folder.iterdir()))):
        raise SeqVAEError(f"{folder}: is there and is no detector of raw logs; choose another -o")


# --- a detector that was learned --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogDetector:
    """Reads a log as it was read to learn from, and weighs its sessions."""

    header: str
    field: str | None
    grouping: Grouping
    templates: Templates
    calibration: Calibration
    settings: Settings

    def reader(self) -> LogReader:
        """Of records, with the header that was learned."""
        return LogReader(self.header, self.field)

    def unknown(self, sessions: Iterable[Session]) -> tuple[int, int]:
        """Records of sessions without a template, and all."""
        found = [self.templates.event(record.content) for session in sessions for record in session.records]
        return found.count(NEW), len(found)


def is_one(folder: Path) -> bool:
    """Whether a folder is a detector of raw logs."""
    return (folder / FILE).is_file()


def load(folder: Path) -> LogDetector:
    """Read a folder that `learn` wrote; raises CheckpointError in one line for one that cannot be read."""
    try:
        facts: dict[str, Any] = read(own(folder, FILE))
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']}")
        grouping = Grouping(facts["key"], facts["window"])
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
