"""The models of the studio, loaded at first use and kept.

Scope: names, modalities, detectors, and a codec for each job. Out of scope: routes, HTTP, and the work that jobs of a
model share (studio/inference.py).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from seqvae import codec
from seqvae.anomaly import calibration
from seqvae.anomaly.calibration import Calibration, Settings
from seqvae.checkpoint import hub
from seqvae.codec import Codec
from seqvae.errors import SeqVAEError
from seqvae.modality import MODALITIES, Content, modality
from seqvae.studio.inference import JobInference, Report, Shared

if TYPE_CHECKING:  # it needs the extra `logs`
    from seqvae.anomaly.log_detector import LogDetector


@dataclass(frozen=True)
class Facts:
    """Description of one model for the page."""

    name: str
    """Name in requests."""
    kind: str
    """midi, text or events, or another modality."""
    content: Content
    """What its pieces are."""
    styles: list[str]
    """Names of its styles."""
    detector: bool
    """Whether it has a detector of anomalies."""
    raw: bool
    """Whether it was learned from a raw log, and takes raw lines."""


class Models:
    """The released models, and the folders that were named when the studio was started."""

    def __init__(self, more: Sequence[str] = ()) -> None:
        """Raises CheckpointError where a name of `more` (a folder or a Hub id) is not a checkpoint."""
        self._folders: dict[str, Path] = {str(name): hub.find(name) for name in more}
        self._folders |= {path.name: path for path in hub.released() if path.name not in self._folders}
        self.facts = [self._facts(name, folder) for name, folder in self._folders.items()]
        self._codecs: dict[str, tuple[Codec, Shared]] = {}
        self._detectors: dict[str, tuple[Calibration, Settings]] = {}
        self._logs: dict[str, LogDetector] = {}
        self._loading = threading.Lock()

    def add(self, name: str, folder: Path) -> None:
        """Add a model that was made after the start."""
        facts = self._facts(name, folder)
        with self._loading:
            self._folders[name] = folder
            self.facts.append(facts)

    @staticmethod
    def _facts(name: str, folder: Path) -> Facts:
        facts = hub.facts(folder)
        detector, raw = (folder / "detector").is_dir(), (folder / "templates.json").is_file()
        return Facts(name, facts.kind, modality(facts.kind).content, facts.styles, detector, raw)

    def find(self, name: str, *contents: Content) -> Facts:
        """Description of a model; raises SeqVAEError where it is unknown, or none of `contents` is its content."""
        found = next((one for one in self.facts if one.name == name), None)
        if found is None:
            known = ", ".join(self._folders)
            raise SeqVAEError(f"no model '{name}' here; choose from {known}, or name its folder after `seqvae studio`")
        if contents and found.content not in contents:
            kinds = " or ".join(kind for kind, entry in MODALITIES.items() if entry.content in contents)
            raise SeqVAEError(f"the model '{name}' is for {found.kind}; choose one for {kinds}")
        return found

    def codec(self, name: str, report: Report) -> Codec:
        """The codec of a model for one job, which reports progress, and stops where `report` raises."""
        facts = self.find(name)
        with self._loading:
            if facts.name not in self._codecs:
                report(0.0, f"loading {name}")
                self._codecs[name] = codec.load(self._folders[name], device="auto"), Shared()
        own, shared = copy.copy(self._codecs[name][0]), self._codecs[name][1]
        own.wrap = partial(JobInference, shared=shared, report=report)
        return own

    def detector(self, name: str) -> tuple[Calibration, Settings]:
        """A model's detector; raises SeqVAEError where it has none."""
        if not self.find(name).detector:
            raise SeqVAEError(f"the model '{name}' has no detector; fit one with `seqvae detect fit`")
        with self._loading:
            if name not in self._detectors:
                folder = self._folders[name]
                self._detectors[name] = calibration.load(folder / "detector", str(folder))
        return self._detectors[name]

    def log(self, name: str) -> LogDetector:
        """A detector of raw logs; raises SeqVAEError where the model is none."""
        if not self.find(name).raw:
            raise SeqVAEError(f"the model '{name}' was not learned from a raw log; learn one from yours")
        from seqvae.anomaly import log_detector

        with self._loading:
            if name not in self._logs:
                self._logs[name] = log_detector.load(self._folders[name])
        return self._logs[name]
