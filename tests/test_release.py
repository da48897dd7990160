"""What is released is whole: the wheel holds all that the package reads, cards are valid, numbers agree."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CARDS = sorted((ROOT / "checkpoints").glob("*/README.md"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in a wheel of this tree, built from links to it, so that nothing is written into it."""
    for module in PROJECT["build-system"]["requires"]:
        name = re.split(r"\W", module)[0]
        if find_spec(name) is None:
            pytest.skip(f"{name} is not here, and no test asks the network")
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("seqvae", "checkpoints", "pyproject.toml", "README.md", "LICENSE"):
        (tree / name).symlink_to(ROOT / name)
    command = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(tree)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [path] = out.glob("seqvae-*.whl")
    return set(zipfile.ZipFile(path).namelist())


@pytest.mark.slow
def test_the_wheel_holds_all_that_the_package_reads(wheel: set[str]) -> None:
    sources = [path for path in (ROOT / "seqvae").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    wanted = {path.relative_to(ROOT).as_posix() for path in sources}
    assert {"seqvae/page.html", "seqvae/studio/static/index.html", "seqvae/recipes/music.toml"} <= wanted
    released = [path for path in (ROOT / "checkpoints").rglob("*") if path.is_file()]
    wanted |= {f"seqvae/{path.relative_to(ROOT).as_posix()}" for path in released}
    assert sorted(wanted - wheel) == []
    extra = {name for name in wheel - wanted if ".dist-info/" not in name}
    assert not extra


@pytest.mark.parametrize("path", [pytest.param(path, id=path.parent.name) for path in CARDS])
def test_a_card_is_one_for_the_hub(path: Path) -> None:
    card = ModelCard.load(path)  # raises where its first lines are no metadata
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


def test_the_citation_has_what_the_format_wants() -> None:
    facts = dict(re.findall(r"^([\w-]+): *(.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    assert {"cff-version", "message", "title", "authors"} <= facts.keys()
    assert facts["license"] == PROJECT["project"]["license"]
