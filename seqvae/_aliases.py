"""Old names of modules: `from seqvae.sampling import Sampling` still works, with a DeprecationWarning.

Scope: names that documentation, notebooks and users' programs import. Out of scope: all other moved names.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import ModuleType

MOVED = {
    "seqvae.calibration": "seqvae.anomaly.calibration",
    "seqvae.forms": "seqvae.modality",
    "seqvae.latent": "seqvae.nn.posterior",
    "seqvae.measures": "seqvae.music.note_metrics",
    "seqvae.midi": "seqvae.music.piece",
    "seqvae.objective": "seqvae.nn.loss",
    "seqvae.plane": "seqvae.style.lda",
    "seqvae.released": "seqvae.checkpoint.hub",
    "seqvae.sampling": "seqvae.nn.sampling",
    "seqvae.sound": "seqvae.music.synth",
    "seqvae.tokenizer": "seqvae.modality",
    "seqvae.vocabulary": "seqvae.protocols",
}
INSIDE = {
    "seqvae.anomaly": "seqvae.anomaly.scores",
    "seqvae.checkpoint": "seqvae.checkpoint.folder",
    "seqvae.style": "seqvae.style.vectors",
    "seqvae.train": "seqvae.train.loop",
}
"""Modules that are packages now, and the modules that hold their functions."""


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} has moved: import {new}", DeprecationWarning, stacklevel=3)


class _Aliases(MetaPathFinder, Loader):
    """Imports the new module for an old name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_loader(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        _warn(old, MOVED[old])
        sys.modules[old] = import_module(MOVED[old])  # importlib returns the entry of sys.modules


def of_package(package: str) -> Callable[[str], object]:
    """The `__getattr__` of a package that was a module: finds its functions in their new module."""

    def find(name: str) -> object:
        home = INSIDE[package]
        own = name.startswith("_") or find_spec(f"{package}.{name}") is not None  # a submodule, to be imported
        if not own and hasattr(import_module(home), name):
            _warn(f"{package}.{name}", f"{name} from {home}")
            return getattr(import_module(home), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find


def install() -> None:
    """Put the finder of old names in front of the import system's finders."""
    if not any(isinstance(finder, _Aliases) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Aliases())
