"""The notebooks run as for a reader, each in an empty folder, and are stored without output."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 600
"""What a cell may take: the readers' two minutes are for two idle cores."""

nbformat = pytest.importorskip("nbformat", reason="the extra `notebooks` is not installed")
notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def opened(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def test_they_are_numbered_and_listed() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{i + 1}-" for i in range(5)]
    listed = (ROOT / "notebooks" / "README.md").read_text()
    assert all(f"({path.name})" in listed for path in NOTEBOOKS)


@notebook
def test_every_call_has_an_explanation_before_it(path: Path) -> None:
    cells = opened(path).cells
    assert [cell.cell_type for cell in cells] == ["markdown", "code"] * (len(cells) // 2) + ["markdown"]


@notebook
def test_notebooks_are_stored_without_output(path: Path) -> None:
    kept = opened(path)
    nbformat.validate(kept)
    code = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    ids = [cell.id for cell in kept.cells]
    assert len(set(ids)) == len(ids)


@pytest.mark.slow
@notebook
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="the extra `notebooks` is not installed")
    for scheme in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):  # without network access
        monkeypatch.setitem(os.environ, scheme, "http://127.0.0.1:9")
    run = opened(path)
    nbclient.NotebookClient(run, timeout=SECONDS, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in run.cells if cell.cell_type == "code" for output in cell.outputs]
    assert shown
    assert not [output for output in shown if output.output_type == "error"]
