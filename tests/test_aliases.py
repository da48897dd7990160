"""Old names of modules import the new modules, and say so."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import groove

from seqvae import _aliases, modality
from seqvae.codec import Codec
from seqvae.style import translation
from seqvae.style.gaussian import Style

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("old", _aliases.MOVED)
def test_an_old_module_name_gives_the_new_module(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{old} has moved: import {_aliases.MOVED[old]}"):
        found = import_module(old)
    assert found is import_module(_aliases.MOVED[old])


@pytest.mark.parametrize(
    ("package", "name", "home"),
    [
        ("seqvae.anomaly", "examine", "seqvae.anomaly.evidence"),
        ("seqvae.checkpoint", "save", "seqvae.checkpoint.folder"),
        ("seqvae.style", "Style", "seqvae.style.gaussian"),
        ("seqvae.style", "transport", "seqvae.style.translation"),
        ("seqvae.train", "train_from", "seqvae.train.loop"),
    ],
)
def test_a_function_of_a_former_module_is_found_in_its_package(package: str, name: str, home: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{package}.{name} has moved"):
        found = getattr(import_module(package), name)
    assert found is getattr(import_module(home), name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        import_module(package).nothing  # noqa: B018 (that it raises is the test)


def test_a_submodule_is_imported_without_the_old_functions() -> None:
    code = "from seqvae.checkpoint import hub; import sys; print('seqvae.checkpoint.folder' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_a_program_with_old_names_runs() -> None:
    code = (
        "from seqvae import midi\nfrom seqvae.sampling import Sampling\nfrom seqvae.style.vectors import fit\n"
        "print(midi.__name__, Sampling.__module__, fit.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["seqvae.music.piece", "seqvae.nn.sampling", "seqvae.style.gaussian"]


def test_a_class_accepts_its_old_attributes_and_keywords() -> None:
    @_aliases.renamed(old="new", harmony="strength")
    class Thing:
        new = 3

        def blend(self, piece: str, *, strength: float = 1.0) -> tuple[str, float]:
            return piece, strength

    thing: Any = Thing()
    with pytest.warns(DeprecationWarning, match="Thing.old is new now"):
        assert thing.old == 3
    with pytest.warns(DeprecationWarning, match="blend: harmony is strength now"):
        assert thing.blend("a", harmony=0.5) == ("a", 0.5)
    assert thing.blend("a", strength=0.5) == ("a", 0.5)


def test_old_names_of_functions_and_attributes_give_the_new_ones(small: Codec) -> None:
    assert (translation.mover, translation.together) == (translation.translate, translation.compose)
    assert modality.form_of is modality.adapter_of
    for owner, old, new in (
        (small, "mover", "translate"),
        (small, "write", "generate_tokens"),
        (small, "told", "token_log_probs"),
        (small.model, "decode", "decode_logits"),
        (small.model, "write", "generate"),
        (Style(torch.zeros(2), torch.eye(2), 1), "sums", "exemplars"),
    ):
        with pytest.warns(DeprecationWarning, match=f"{old} is {new} now"):
            assert getattr(owner, old) == getattr(owner, new)
    blend: Any = small.blend
    with pytest.warns(DeprecationWarning, match="blend: harmony is chroma_guidance now"):
        blend(groove(1, 2), target="odd", harmony=0.0)
