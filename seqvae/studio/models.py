"""The models of the studio: which there are, loaded when first asked for, and kept.

Knows names, kinds, detectors, and a codec that remembers what it has encoded and tells how far it is. Refuses to know
what is done with them, and HTTP. Only the thread of the worker calls a codec.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from seqvae import calibration, kinds, released
from seqvae.calibration import Calibration, Settings
from seqvae.codec import Codec, Floats, Ints
from seqvae.errors import SeqVAEError
from seqvae.latent import Posterior
from seqvae.sampling import Sampling
from seqvae.studio.cache import Cache

Tell = Callable[[float, str], None]
REMEMBERED = 64 << 20  # bytes of posteriors kept, each model
SEGMENTS = 8  # encoded or decoded between two words about progress


class PatientCodec(Codec):
    """A codec that encodes no segment twice, tells how far it is, and stops when telling raises."""

    tell: Tell
    _known: Cache[tuple[Tensor, Tensor]]

    def posteriors(self, segments: Sequence[list[Ints]], refined: bool = False) -> Posterior:
        """As the codec's, with what is known already taken from memory."""
        keys = [f"{refined} " + " ".join(chunk.tobytes().hex() for chunk in segment) for segment in segments]
        found = {key: self._known.get(key) for key in keys}
        new = [i for key, i in {key: i for i, key in enumerate(keys)}.items() if found[key] is None]
        for at in range(0, len(new), SEGMENTS):
            self.tell(at / len(new), "encoding")
            some = new[at : at + SEGMENTS]
            told = super().posteriors([segments[i] for i in some], refined)
            for i, mean, logvar in zip(some, told.mean, told.logvar, strict=True):
                copies = mean.clone(), logvar.clone()  # views would keep the whole batch
                found[keys[i]] = self._known.put(keys[i], copies, 8 * len(mean) + len(keys[i]))
        rows = [row for key in keys if (row := found[key]) is not None]
        if not rows:
            return super().posteriors([], refined)
        mean, logvar = (torch.stack(part) for part in zip(*rows, strict=True))
        return Posterior(mean, logvar)

    def write(
        self, z: Tensor, limits: Ints | None, sampling: Sampling, harmony: Floats | None = None, strength: float = 0.0
    ) -> list[Ints]:
        """As the codec's, part by part."""
        chunks: list[Ints] = []
        for at in range(0, len(z), SEGMENTS):
            self.tell(at / len(z), "decoding")
            first = at * self.chunks
            here = slice(first, first + SEGMENTS * self.chunks)
            chunks += super().write(
                z[at : at + SEGMENTS],
                None if limits is None else limits[here],
                replace(sampling, first_row=sampling.first_row + first),
                None if harmony is None else harmony[here],
                strength,
            )
        return chunks


def patient(codec: Codec) -> PatientCodec:
    """The same codec, patient."""
    made = PatientCodec(**{field.name: getattr(codec, field.name) for field in fields(Codec) if field.init})
    made.tell = lambda _progress, _message: None
    made._known = Cache(REMEMBERED)
    return made


@dataclass(frozen=True)
class Facts:
    """What the page is told of one model."""

    name: str
    """What a request calls it."""
    kind: str
    """midi, text or events."""
    styles: list[str]
    """The styles that it knows."""
    detector: bool
    """Whether it tells anomalies."""


class Models:
    """The released models, and the folders that were named when the studio was started."""

    def __init__(self, more: Sequence[str] = ()) -> None:
        """Raises CheckpointError where a name of `more` (a folder or a Hub id) is no checkpoint."""
        self._folders: dict[str, Path] = {str(name): released.find(name) for name in more}
        self._folders |= {path.name: path for path in released.released() if path.name not in self._folders}
        self.facts = [self._facts(name, folder) for name, folder in self._folders.items()]
        self._codecs: dict[str, PatientCodec] = {}
        self._detectors: dict[str, tuple[Calibration, Settings]] = {}

    @staticmethod
    def _facts(name: str, folder: Path) -> Facts:
        told = released.facts(folder)
        return Facts(name, told.kind, told.styles, (folder / "detector").is_dir())

    def find(self, name: str, *kinds_wanted: str) -> Facts:
        """What is known of a model; raises SeqVAEError for one that is not here, or is for something else."""
        found = next((one for one in self.facts if one.name == name), None)
        if found is None:
            known = ", ".join(self._folders)
            raise SeqVAEError(f"no model '{name}' here; choose from {known}, or name its folder after `seqvae studio`")
        if kinds_wanted and found.kind not in kinds_wanted:
            raise SeqVAEError(f"the model '{name}' is for {found.kind}; choose one for {' or '.join(kinds_wanted)}")
        return found

    def codec(self, name: str, tell: Tell) -> PatientCodec:
        """The model, which says to `tell` how far it is, until it is asked for again."""
        facts = self.find(name)
        if facts.name not in self._codecs:
            tell(0.0, f"loading {name}")
            self._codecs[name] = patient(kinds.load(str(self._folders[name])))
        codec = self._codecs[name]
        codec.tell = tell
        return codec

    def detector(self, name: str) -> tuple[Calibration, Settings]:
        """A model's detector; raises SeqVAEError where it has none."""
        if not self.find(name).detector:
            raise SeqVAEError(f"the model '{name}' carries no detector; fit one with `seqvae detect fit`")
        if name not in self._detectors:
            folder = self._folders[name]
            self._detectors[name] = calibration.load(folder / "detector", str(folder))
        return self._detectors[name]
