"""The blind listening sheet: its files, and the counting of answers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from conftest import Trained, groove
from PIL import Image

import seqvae
from seqvae.evaluation import arrangement as ruler
from seqvae.evaluation.arrangement import Excerpts

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "sheet.py"


@pytest.fixture(scope="module")
def sheet() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sheet", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_only_the_key_identifies_the_letters(
    sheet: ModuleType, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = seqvae.load(trained.best)
    codec.styles = {name: codec.fit_style([groove(i) for i in (at, at + 2)]) for name, at in (("even", 0), ("odd", 1))}
    pieces = {"even": [groove(i, 4) for i in (0, 2, 4)], "odd": [groove(i, 4) for i in (1, 3)]}
    monkeypatch.setattr(ruler, "excerpts", lambda *_, **__: Excerpts(pieces, pieces))
    sheet.draw(codec, tmp_path, 5, tmp_path / "out", 0)
    key = json.loads((tmp_path / "out" / "key.json").read_text())
    assert [(one["from"], one["amount"]) for one in key.values()] == [
        ("even", 0.5), ("odd", 0.5), ("even", 1.0), ("odd", 1.0), ("even", 0.5),
    ]  # fmt: skip
    assert all({one["A"], one["B"]} == {"model", "rule"} for one in key.values())
    assert {one["A"] for one in key.values()} == {"model", "rule"}, "in no fixed order"
    sheet_text = (tmp_path / "out" / "sheet.md").read_text()
    assert "| 03.png | even | all the way to odd | |" in sheet_text
    assert "model" not in sheet_text
    with Image.open(tmp_path / "out" / "05.png") as picture:
        assert picture.height > picture.width


def test_answers_are_counted(sheet: ModuleType) -> None:
    key = {
        "01": {"A": "model", "B": "rule", "amount": 0.5},
        "02": {"A": "rule", "B": "model", "amount": 0.5},
        "03": {"A": "rule", "B": "model", "amount": 1.0},
    }
    shares = sheet.count("01 A\n02 a because of the bass\n\n03 B\n", key)
    assert {name: x[0] for name, x in shares.items()} == {
        "all": pytest.approx(2 / 3), "amount 0.5": 0.5, "amount 1": 1,
    }  # fmt: skip
