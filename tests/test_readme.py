"""Commands of the README work and print the output shown, and its links lead to existing files.

.ci/run runs its commands unchanged, because they install and test; the first one runs here without that.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import wave
from pathlib import Path

import pytest
from commands import song

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^<!-- (\w+): ([\w-]+) -->\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = {(kind, name): text for kind, name, text in BLOCK.findall(README)}
EXAMPLES = [name for kind, name in BLOCKS if kind == "example"]


def run(command: str, folder: Path) -> list[str]:
    """Output lines of a shell command, with the `seqvae` of this Python."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_it_has_four_examples_and_the_three_commands() -> None:
    assert len(EXAMPLES) == 4
    assert {("command", name) for name in ("blend", "test", "slow-tests")} <= BLOCKS.keys()


@pytest.mark.slow
@pytest.mark.bf16
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_the_output_shown(name: str, tmp_path: Path) -> None:
    shown = BLOCKS["output", name].splitlines()
    printed = run(BLOCKS["example", name], tmp_path)
    assert len(printed) == len(shown)
    # another processor may round differently and change a line; on the original one all are equal
    assert 2 * sum(a == b for a, b in zip(printed, shown, strict=True)) >= len(shown), printed


@pytest.mark.slow
def test_the_first_command_without_its_installation_and_with_sound(tmp_path: Path) -> None:
    command = BLOCKS["command", "blend"].strip().rpartition(" && ")[2].removeprefix(".venv/bin/")
    assert command.startswith("seqvae blend corpus:bach/bwv66.6 ")
    assert run(f"{command} --wav", tmp_path) == ["blend.mid", "blend.wav"]
    assert (tmp_path / "blend.mid").read_bytes()[:4] == b"MThd"
    with wave.open(str(tmp_path / "blend.wav")) as sound:
        assert sound.getnframes() > 10 * sound.getframerate()


@pytest.mark.slow
def test_its_python_runs(here: Path) -> None:
    [block] = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    for number, name in enumerate(("song", "a", "b")):
        song(here / f"{name}.mid", number, bars=2)
    variables: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), variables)  # the README is ours
    for name, count in {"between": 7, "new": 4, "nats": 1}.items():
        made = variables[name]
        assert isinstance(made, list)
        assert len(made) == count


def test_its_links_lead_to_existing_files() -> None:
    targets = {target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", README)}
    missing = [t for t in targets if t and not t.startswith("https://") and not (ROOT / t).exists()]
    assert not missing
