"""The documentation builds without a warning, loads nothing from other hosts, and shows existing commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name

import pytest
import typer
from commands import seqvae

from seqvae.cli.app import app

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "checkpoints").glob("*/README.md")])


def shown(text: str) -> Iterator[str]:
    """Every call of `seqvae` in the shell blocks of a page."""
    for block in re.findall(r"^ *```(?:bash|sh)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        # a pipe or a backslash at the end of a line continues it; a comment ends with its line
        for line in re.sub(r"\\\n|(?<=\|)\n", " ", block).splitlines():
            words = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
            words.whitespace_split = True
            call: list[str] = []
            for word in [*words, ";"]:
                if not set(word) <= set("|&;<>"):
                    call.append(word)
                    continue
                if Path(next(iter(call), "")).name == "seqvae":
                    yield shlex.join(call[1:])
                call = []


@pytest.mark.parametrize("page", [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in PAGES])
def test_commands_on_a_page_are_accepted(page: Path) -> None:
    """Names of commands and options, and types of values; nothing is run."""
    for line in shown(page.read_text()):
        if "DIR" in line.split() or "..." in line or "PATH" in line.split():
            continue  # a pattern, not a command
        command, context, words = typer.main.get_command(app), None, shlex.split(line)
        name = "seqvae"
        while children := getattr(command, "commands", {}):
            if not words or words[0].startswith("-"):
                break
            assert words[0] in children, f"{line}: no command {words[0]}"
            context = command.make_context(name, [], parent=context, resilient_parsing=True)
            name, *words = words
            command = children[name]
        try:
            command.make_context(name, words, parent=context)
        except typer.Exit:
            continue  # --help, --version
        except typer.TyperException as error:
            pytest.fail(f"seqvae {line}: {error.format_message()}")


def test_every_command_is_shown_somewhere() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    missing = [name for name in typer.main.get_command(app).commands if f"seqvae {name}" not in text]  # type: ignore[attr-defined]
    assert not missing


def test_an_unknown_option_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash\ncat a | seqvae blend a.mid --to rock --louder > b\n```\n")
    assert list(shown(page.read_text())) == ["blend a.mid --to rock --louder"]
    with pytest.raises(pytest.fail.Exception, match="--louder"):
        test_commands_on_a_page_are_accepted(page)


def test_contributing_names_every_file() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    tree = re.search(r"^```\n(seqvae/\n.*?)^checkpoints/ ", page, re.MULTILINE | re.DOTALL)
    assert tree is not None
    named, folder = [], ""
    for line in tree[1].splitlines()[1:]:
        entry = re.match(r"(  |    )(\S+) +\S", line)
        assert entry is not None, f"no caption: {line}"
        folder = "" if entry[1] == "  " else folder
        if entry[2].endswith("/"):
            folder = entry[2]
        else:
            named.append(f"{folder if entry[1] == '    ' else ''}{entry[2]}")
    package = ROOT / "seqvae"
    there = [path.relative_to(package).as_posix() for path in package.rglob("*.py")]
    there = [name for name in there if not name.endswith("/__init__.py")]
    assert sorted(there) == sorted(name for name in named if name.endswith(".py"))


def test_the_page_on_the_flow_of_a_blend_names_existing_code() -> None:
    names = re.findall(r"`(\w+(?:\.\w+)+)`", (ROOT / "docs" / "flow.md").read_text())
    assert len(names) > 30
    for name in names:
        if not name.endswith(".json"):
            resolve_name(f"seqvae.{name}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a warning is an error."""
    for module in ("mkdocs", "material", "mkdocstrings"):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not here; pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # the theme's notice about its future, on every start
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.mark.slow
def test_the_site_has_cards_commands_and_reference(site: Path) -> None:
    for card in (ROOT / "checkpoints").glob("*/README.md"):
        assert (site / "cards" / card.parent.name / "index.html").is_file()
    commands = re.sub(r"<[^>]+>", "", (site / "reference" / "commands.html").read_text())
    assert seqvae("style", "fit", "--help").stdout.splitlines()[2].strip() in commands
    reference = (site / "reference" / "python.html").read_text()
    for name in ("load", "Codec", "Codec.blend", "Detector", "SequenceVAE"):
        assert f'id="seqvae.{name}"' in reference


@pytest.mark.slow
def test_the_site_loads_nothing_from_other_hosts(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        for tag in re.findall(r"<(?:script|link|img|iframe|source|audio|video)\b[^>]*>", page.read_text()):
            assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag), f"{page.name}: {tag}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import", sheet.read_text()), sheet.name
