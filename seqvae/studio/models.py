"""The models of the studio, loaded at first use and kept.

Scope: names, modalities, detectors, and a codec that caches posteriors, reports progress, and decodes the requests of
several jobs in one batch. Out of scope: routes and HTTP. Each job has its own codec; for each model one job at a time
encodes and one decodes, as more would slow each other and need more memory.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from seqvae import codec
from seqvae.anomaly import calibration
from seqvae.anomaly.calibration import Calibration, Settings
from seqvae.checkpoint import hub
from seqvae.codec import Codec, Floats, Ints
from seqvae.errors import SeqVAEError
from seqvae.modality import MODALITIES, Content, modality
from seqvae.nn.batches import joined
from seqvae.nn.posterior import Posterior
from seqvae.nn.sampling import Sampling
from seqvae.protocols import Guide
from seqvae.studio.cache import Cache

Tell = Callable[[float, str], None]
REMEMBERED = 64 << 20  # bytes of posteriors kept for each model
SEGMENTS = 8  # segments encoded between two reports of progress
CHUNKS = 32  # chunks decoded between two reports of progress


@dataclass(eq=False)
class Order:
    """Arguments of a call of `Codec.generate_tokens` by a job."""

    z: Tensor
    limits: Ints | None
    sampling: Sampling
    harmony: Floats | None
    strength: float
    chunks: list[Ints] | None = None
    """The decoded chunks."""

    def joins(self, other: Order) -> bool:
        """Whether one batch of both gives the same result; random draws depend on the row number."""
        return (
            self.sampling.temperature == 0
            and replace(self.sampling, first_row=0) == replace(other.sampling, first_row=0)
            and (self.harmony is None, self.strength) == (other.harmony is None, other.strength)
        )


class PatientCodec(Codec):
    """A codec that caches posteriors, reports progress through `tell`, and stops when `tell` raises.

    Copies share the cache, and a copy that decodes includes the orders of the others in its batch.
    """

    tell: Tell
    _known: Cache[tuple[Tensor, Tensor]]
    _orders: list[Order]
    _encoding: threading.Lock
    _decoding: threading.Lock

    def posteriors(self, segments: Sequence[list[Ints]], refined: bool = False) -> Posterior:
        """As the codec's, with cached posteriors reused."""
        keys = [f"{refined} " + " ".join(chunk.tobytes().hex() for chunk in segment) for segment in segments]
        found = {key: known for key in keys if (known := self._known.get(key)) is not None}
        new = [(key, i) for key, i in {key: i for i, key in enumerate(keys)}.items() if key not in found]
        for at in range(0, len(new), SEGMENTS):
            with self._encoding if refined else nullcontext():  # only refinement takes long
                self.tell(at / len(new), "encoding")
                part = new[at : at + SEGMENTS]
                found |= {key: known for key, _ in part if (known := self._known.get(key)) is not None}
                some = [(key, i) for key, i in part if key not in found]  # another job may have encoded the same
                if not some:
                    continue
                told = super().posteriors([segments[i] for _, i in some], refined)
                for (key, _), mean, logvar in zip(some, told.mean, told.logvar, strict=True):
                    copies = mean.clone(), logvar.clone()  # views would keep the whole batch
                    found[key] = self._known.put(key, copies, 8 * len(mean) + len(key))
        if not keys:
            return super().posteriors([], refined)
        mean, logvar = (torch.stack(part) for part in zip(*(found[key] for key in keys), strict=True))
        return Posterior(mean, logvar)

    def generate_tokens(
        self, z: Tensor, limits: Ints | None, sampling: Sampling, harmony: Floats | None = None, strength: float = 0.0,
        guide: Guide | None = None,
    ) -> list[Ints]:  # fmt: skip
        """As the codec's, part by part, each in one batch with the orders of other jobs; alone with a guide."""
        if guide is not None:
            self.tell(0.0, "decoding")
            with self._decoding:
                return super().generate_tokens(z, limits, sampling, harmony, strength, guide)
        chunks: list[Ints] = []
        each = max(1, CHUNKS // self.chunks)
        for at in range(0, len(z), each):
            self.tell(at / len(z), "decoding")
            first = at * self.chunks
            here = slice(first, first + each * self.chunks)
            chunks += self._written(
                Order(
                    z[at : at + each],
                    None if limits is None else limits[here],
                    replace(sampling, first_row=sampling.first_row + first),
                    None if harmony is None else harmony[here],
                    strength,
                )
            )
        return chunks

    def _written(self, mine: Order) -> list[Ints]:
        """Decoded chunks of an order, by this thread or by another in its batch."""
        self._orders.append(mine)
        with self._decoding:
            if mine.chunks is None:
                self._orders.remove(mine)
                batch = [mine, *(order for order in self._orders if order.joins(mine))]
                z = torch.cat([order.z for order in batch])
                limits, harmony = joined([order.limits for order in batch]), joined([order.harmony for order in batch])
                chunks = iter(super().generate_tokens(z, limits, mine.sampling, harmony, mine.strength))
                for order in batch:
                    order.chunks = list(islice(chunks, len(order.z) * self.chunks))
                for order in batch[1:]:
                    self._orders.remove(order)
        assert mine.chunks is not None
        return mine.chunks


def _loaded(folder: Path) -> Codec:
    """A model's codec, on the GPU if there is one."""
    loaded = codec.load(folder)
    if torch.cuda.is_available():
        loaded.model.cuda()
    return loaded


def patient(codec: Codec) -> PatientCodec:
    """A PatientCodec with the fields of a codec."""
    made = PatientCodec(**{field.name: getattr(codec, field.name) for field in fields(Codec) if field.init})
    made.tell = lambda _progress, _message: None
    made._known, made._orders = Cache(REMEMBERED), []
    made._encoding, made._decoding = threading.Lock(), threading.Lock()
    return made


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


class Models:
    """The released models, and the folders that were named when the studio was started."""

    def __init__(self, more: Sequence[str] = ()) -> None:
        """Raises CheckpointError where a name of `more` (a folder or a Hub id) is not a checkpoint."""
        self._folders: dict[str, Path] = {str(name): hub.find(name) for name in more}
        self._folders |= {path.name: path for path in hub.released() if path.name not in self._folders}
        self.facts = [self._facts(name, folder) for name, folder in self._folders.items()]
        self._codecs: dict[str, PatientCodec] = {}
        self._detectors: dict[str, tuple[Calibration, Settings]] = {}
        self._loading = threading.Lock()

    @staticmethod
    def _facts(name: str, folder: Path) -> Facts:
        facts = hub.facts(folder)
        return Facts(name, facts.kind, modality(facts.kind).content, facts.styles, (folder / "detector").is_dir())

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

    def codec(self, name: str, tell: Tell) -> PatientCodec:
        """The codec of a model for one job, which reports progress through `tell`."""
        facts = self.find(name)
        with self._loading:
            if facts.name not in self._codecs:
                tell(0.0, f"loading {name}")
                self._codecs[name] = patient(_loaded(self._folders[name]))
        codec = copy.copy(self._codecs[name])
        codec.tell = tell
        return codec

    def detector(self, name: str) -> tuple[Calibration, Settings]:
        """A model's detector; raises SeqVAEError where it has none."""
        if not self.find(name).detector:
            raise SeqVAEError(f"the model '{name}' has no detector; fit one with `seqvae detect fit`")
        with self._loading:
            if name not in self._detectors:
                folder = self._folders[name]
                self._detectors[name] = calibration.load(folder / "detector", str(folder))
        return self._detectors[name]
