"""Old names: `from seqvae.sampling import Sampling` and `codec.mover` still work, with a DeprecationWarning.

Scope: names that documentation, notebooks and users' programs import. Out of scope: all other moved names.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from inspect import isfunction, signature
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")
MOVED = {
    "seqvae.anomaly.scores": "seqvae.anomaly.evidence",
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
    "seqvae.style.vectors": "seqvae.style",
    "seqvae.tokenizer": "seqvae.modality",
    "seqvae.vocabulary": "seqvae.protocols",
}
INSIDE = {
    "seqvae.anomaly": ("seqvae.anomaly.evidence",),
    "seqvae.checkpoint": ("seqvae.checkpoint.folder",),
    "seqvae.style": (
        "seqvae.style.gaussian",
        "seqvae.style.translation",
        "seqvae.style.styles_file",
        "seqvae.style.exemplars",
    ),
    "seqvae.train": ("seqvae.train.loop",),
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
        own = name.startswith("_") or find_spec(f"{package}.{name}") is not None  # a submodule, to be imported
        for home in () if own else INSIDE[package]:
            if hasattr(module := import_module(home), name):
                _warn(f"{package}.{name}", f"{name} from {home}")
                return getattr(module, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find


def renamed(**names: str) -> Callable[[type[T]], type[T]]:
    """Gives a class its old attributes, and its methods their old keyword arguments, `old="new"` each."""

    def add(owner: type[T]) -> type[T]:
        for old, new in names.items():
            for function in [f for f in vars(owner).values() if isfunction(f) and new in signature(f).parameters]:
                setattr(owner, function.__name__, _keyword(function, old, new))
            if new in owner.__annotations__ or hasattr(owner, new):
                setattr(owner, old, _attribute(owner.__name__, old, new))
        return owner

    return add


def _attribute(owner: str, old: str, new: str) -> property:
    def get(self: object) -> object:
        warnings.warn(f"{owner}.{old} is {new} now", DeprecationWarning, stacklevel=2)
        return getattr(self, new)

    return property(get)


def _keyword(function: Callable[..., object], old: str, new: str) -> Callable[..., object]:
    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> object:
        if old in given:
            warnings.warn(f"{function.__name__}: {old} is {new} now", DeprecationWarning, stacklevel=2)
            given[new] = given.pop(old)
        return function(*args, **given)

    return call


def install() -> None:
    """Put the finder of old names in front of the import system's finders."""
    if not any(isinstance(finder, _Aliases) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Aliases())
