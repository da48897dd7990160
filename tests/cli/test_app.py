"""The command line as a program: help, speed, exit codes, and errors of the operating system."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import error_line, seqvae, shell, song

from seqvae import codec
from seqvae.cli import style as stylebook
from seqvae.cli.app import app
from seqvae.cli.console import OLD_OPTIONS
from seqvae.music import attributes

pytestmark = pytest.mark.usefixtures("here")

VERBS = [
    ["blend"], ["generate"], ["interpolate"], ["reconstruct"], ["encode"], ["decode"], ["train"], ["evaluate"],
    ["export"], ["models"], ["style", "effect"], ["style", "fit"], ["style", "list"], ["style", "show"],
    ["tokenizer", "train"], ["tokenizer", "encode"], ["detect", "learn"], ["detect", "fit"], ["detect", "score"],
    ["detect", "update"], ["plot", "roll"], ["plot", "map"], ["plot", "effect"], ["plot", "training"], ["studio"],
]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_command_has_examples_that_its_parser_accepts(verb: list[str]) -> None:
    text = seqvae(*verb, "--help").stdout
    options, _, examples = text.partition("  Example")
    for example in map(str.strip, examples.splitlines()[1:]):
        assert example.startswith(" ".join(["seqvae", *verb]))
        for word in example.split():
            if word.startswith("-"):
                assert word in options


def test_the_list_of_commands_is_complete() -> None:
    def walk(command: Any, *names: str) -> Iterator[list[str]]:
        inside = getattr(command, "commands", {})
        if not inside:
            yield list(names)
        for name, child in inside.items():
            yield from walk(child, *names, name)

    assert sorted(walk(typer.main.get_command(app))) == sorted(VERBS)


def test_choices_equal_those_of_the_library_modules() -> None:
    assert set(typing.get_args(stylebook.By)) == set(attributes.ATTRIBUTES)


@pytest.mark.parametrize("verb", ["--help", "--version", "models"])
def test_commands_without_a_model_are_fast(verb: str) -> None:
    used = []  # processor time, because other processes may be busy
    for _ in range(5):
        before = os.times()
        shell(verb)
        after = os.times()
        used.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(used) < 0.6  # 0.15 s on an idle machine


def test_models_and_help_import_neither_torch_nor_numpy_nor_rich() -> None:
    code = (
        "import sys; from seqvae.cli.app import app\n"
        "for verb in ['--help'], ['blend', '--help'], ['models']: app(verb, standalone_mode=False)\n"
        "print('heavy:', *sorted({'torch', 'numpy', 'symusic', 'music21', 'rich', 'tqdm'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1].split() == ["heavy:"]


@pytest.mark.parametrize("group", [[], ["style"], ["tokenizer"]], ids=str)
def test_no_arguments_print_the_help(group: list[str]) -> None:
    result = seqvae(*group)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == seqvae(*group, "--help").stdout


def test_any_other_system_error_is_one_line(tiny_music: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object, **settings: object) -> Iterator[None]:
        raise OSError(errno.EIO, "Input/output error", "/mnt/x")

    monkeypatch.setattr(codec, "load", fail)
    assert error_line(seqvae("style", "list", "-m", tiny_music)).startswith("seqvae: /mnt/x: input/output error; ")


def test_a_process_prints_no_traceback_and_has_the_documented_exit_codes(tiny_music: Path, here: Path) -> None:
    name = os.fsdecode(b"a\xff.mid")  # invalid UTF-8, as in file names from old systems
    song(here / name)
    good = shell("blend", name, "-m", tiny_music, "--to", "wild", "-o", "out/", cwd=here, errors="surrogateescape")
    assert (good.returncode, good.stdout, good.stderr) == (0, f"out/{name}\n", "")
    wrong = shell("blend", name, "-m", tiny_music, "--to", "wild", "--amount", "abc", cwd=here)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "Traceback" not in wrong.stderr


def test_a_closed_output_pipe_is_not_an_error(tiny_music: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "seqvae", "style", "list", "-m", str(tiny_music)]
    ran = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (ran.returncode, ran.stderr) == (141, b"")


def test_output_to_a_full_disk_is_one_line(tiny_music: Path) -> None:
    command = [sys.executable, "-m", "seqvae", "style", "list", "-m", str(tiny_music)]
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert "no space left on device" in ran.stderr


def test_earlier_names_of_options_are_accepted_and_hidden(tiny_text: Path, here: Path) -> None:
    for command, old in ((["style", "fit"], "--by"), (["evaluate"], "--between"), (["blend"], "--harmony"),
                         (["detect", "fit"], "--known")):  # fmt: skip
        shown = seqvae(*command, "--help").stdout
        assert OLD_OPTIONS[old] in shown
        assert f"{old} " not in shown
    line = error_line(seqvae("blend", "a", "-m", tiny_text, "--to", "good", "--harmony=1"), 2)
    assert line == error_line(seqvae("blend", "a", "-m", tiny_text, "--to", "good", "--chroma-guidance", "1"), 2)
    line = error_line(seqvae("style", "fit", "@in.txt", "-m", tiny_text, "--by", "drums", "-o", "x"), 2)
    assert "--attribute drums" in line
    assert "--by" in error_line(seqvae("style", "fit", "-m", tiny_text, "-o", "x", "--", "--by"), 2), (
        "a value, not an option"
    )
