"""Releases are complete: the wheel contains all that the package reads, the source archive all that the tests
read; cards are valid, numbers agree.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
SOURCES = 80 << 20  # maximal bytes of the archive: nearly all of it are the checkpoints, once
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CARDS = sorted((ROOT / "checkpoints").glob("*/README.md"))


def linked(tree: Path, names: Iterable[str]) -> Path:
    """A folder of links to this tree, so that builds write nothing into the tree."""
    for module in PROJECT["build-system"]["requires"]:
        name = re.split(r"\W", module)[0]
        if find_spec(name) is None:
            pytest.skip(f"{name} is not here, and no test asks the network")
    for name in names:
        (tree / name).symlink_to(ROOT / name)
    return tree


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in a wheel of this tree."""
    out = tmp_path_factory.mktemp("wheel")
    tree = linked(tmp_path_factory.mktemp("tree"), ("seqvae", "checkpoints", "pyproject.toml", "README.md", "LICENSE"))
    command = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(tree)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [path] = out.glob("seqvae-*.whl")
    return set(zipfile.ZipFile(path).namelist())


@pytest.mark.slow
def test_the_wheel_holds_all_that_the_package_reads(wheel: set[str]) -> None:
    sources = [path for path in (ROOT / "seqvae").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {path.relative_to(ROOT).as_posix() for path in sources}
    assert {"seqvae/music/page.html", "seqvae/studio/static/index.html", "seqvae/recipes/music.toml"} <= expected
    released = [path for path in (ROOT / "checkpoints").rglob("*") if path.is_file()]
    expected |= {f"seqvae/{path.relative_to(ROOT).as_posix()}" for path in released}
    assert sorted(expected - wheel) == []
    extra = {name for name in wheel - expected if ".dist-info/" not in name}
    assert not extra


@pytest.mark.slow
def test_the_archive_of_the_sources_runs_its_tests_and_has_each_checkpoint_once(tmp_path: Path) -> None:
    folders = ("seqvae", "checkpoints", "tests", "docs", "notebooks", "benchmarks")
    single = [
        path.name for path in ROOT.iterdir() if path.is_file() and path.name != ".gitignore" and path.suffix != ".mid"
    ]
    (tmp_path / "tree").mkdir()
    tree = linked(tmp_path / "tree", (*folders, *single))
    build = [sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"]
    done = subprocess.run(build, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [path] = tmp_path.glob("seqvae-*.tar.gz")
    assert path.stat().st_size < SOURCES
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = path.with_name(path.name.removesuffix(".tar.gz"))
    files = [file for file in unpacked.rglob("*") if file.is_file()]
    kept = {file.relative_to(unpacked).as_posix() for file in files}
    made = re.compile(r"(^|/)(__pycache__|\.\w+_cache|\.ipynb_checkpoints)/|\.pyc$")  # by running and looking
    there = {
        file.relative_to(ROOT).as_posix() for name in folders for file in (ROOT / name).rglob("*") if file.is_file()
    }
    assert sorted({name for name in there | set(single) if not made.search(name)} - kept) == []
    assert not [name for name in kept if made.search(name)]
    large = [hashlib.sha256(file.read_bytes()).digest() for file in files if file.stat().st_size > 100_000]
    assert len(large) == len(set(large)) >= len(CARDS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/text/test_text_lines.py",
        "tests/style/test_translation.py",
    ]
    done = subprocess.run(command, cwd=unpacked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("path", [pytest.param(path, id=path.parent.name) for path in CARDS])
def test_a_card_is_valid_for_the_hub(path: Path) -> None:
    card = ModelCard.load(path)  # raises if its first lines are not metadata
    facts = card.data.to_dict()
    assert facts["library_name"] == "seqvae"
    assert {"license", "tags"} <= facts.keys()
    if facts["license"] == "other":
        assert facts["license_name"]
    assert f"# {path.parent.name}\n" in card.text


def test_the_version_is_the_same_everywhere() -> None:
    version = PROJECT["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_citation_has_the_required_fields() -> None:
    facts = dict(re.findall(r"^([\w-]+): *(.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    assert {"cff-version", "message", "title", "authors"} <= facts.keys()
    assert facts["license"] == PROJECT["project"]["license"]


def test_every_dependency_has_a_lower_bound_and_every_upper_bound_a_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    extras = PROJECT["project"]["optional-dependencies"].values()
    expected = [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"], *chain(*extras)]
    needs = [Requirement(text) for text in expected]
    assert len(needs) > 30
    assert [need.name for need in needs if need.name != "seqvae" and not _bounds(need, ">=")] == []
    for text, need in zip(expected, needs, strict=True):
        if _bounds(need, "<", "<=", "==", "~=", "!="):
            [line] = [line for line in lines if f'"{text}"' in line]
            assert re.search(r"  # \w.{20,}$", line), f"{text}: say beside it what breaks"


def test_every_dependency_is_pinned_in_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    versions = {
        canonicalize_name(pin.name): one.version for pin in pins for one in pin.specifier if one.operator == "=="
    }
    assert len(versions) == len(pins), "each once, and to one version"
    assert not any("+" in version for version in versions.values()), "a build for one platform binds the others"
    needs, seen = ["seqvae[dev]"], set()
    while needs:
        need = Requirement(needs.pop())
        if need.name == "seqvae":
            groups = [PROJECT["project"]["optional-dependencies"][extra] for extra in need.extras]
            needs += chain(PROJECT["project"]["dependencies"] if "seqvae" not in seen else [], *groups)
        else:
            assert need.specifier.contains(versions[canonicalize_name(need.name)]), need
        seen.add(need.name)
    assert len(seen) > 30


def _bounds(need: Requirement, *operators: str) -> list[str]:
    return [one.version for one in need.specifier if one.operator in operators]
