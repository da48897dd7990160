"""Architecture: contracts about imports, lengths and names of files.

The contracts are in `pyproject.toml`; CONTRIBUTING.md describes the packages.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINES = 500
FORBIDDEN_WORDS = {"util", "utils", "common", "helper", "helpers", "base", "manager", "managers", "misc"}
PUBLIC = {"Codec", "Detector", "SequenceVAE", "__version__", "load"}


def _python_files(*folders: str) -> list[Path]:
    return [path.relative_to(ROOT) for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def linted(tree: Path) -> subprocess.CompletedProcess[str]:
    """`lint-imports` on a tree with the contracts of `pyproject.toml`."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", command, "--config", str(ROOT / "pyproject.toml"), "--no-cache"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_contracts_about_imports_are_kept() -> None:
    pytest.importorskip("importlinter", reason="pip install -e '.[dev]'")
    done = linted(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", _python_files("seqvae"), ids=str)
def test_a_module_has_limited_length_and_depth_and_absolute_imports(path: Path) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    assert source.count("\n") <= MAX_LINES, "divide it into two modules"
    assert len(path.parts) <= 3, "packages are one level deep"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: write the full name, seqvae.<package>.<module>"
            if node.module == "seqvae" and path != Path("seqvae/__init__.py"):
                names = PUBLIC.intersection(alias.name for alias in node.names)
                assert not names, f"line {node.lineno}: import {names} from its own module: else imports run in circles"


def test_no_file_has_a_catch_all_name() -> None:
    found = [
        f"{path}:1: '{word}' says nothing about what the file holds: name it for that"
        for path in _python_files("seqvae", "tests", "benchmarks")
        for word in FORBIDDEN_WORDS.intersection(path.stem.lower().split("_"))
    ]
    assert not found, "\n" + "\n".join(found)


def test_tests_are_in_the_folders_of_the_code_they_test() -> None:
    packages = {path.parent.name for path in (ROOT / "seqvae").glob("*/__init__.py")}
    folders = {path.parts[1] for path in _python_files("tests") if len(path.parts) > 2}
    assert folders <= packages


@pytest.mark.parametrize("module", ["seqvae", "seqvae.config", "seqvae.modality", "seqvae.cli.app"])
def test_importing_seqvae_is_quick(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{'torch', 'music21', 'numpy', 'pebble'}} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
