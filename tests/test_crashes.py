"""A killed process or a full disk leaves the old state; the next process resumes and cleans up.

A few of the kills of `benchmarks/crashes.py --kills 200`, and a test for each bug it found.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import done, error_line, files, last_error_line, seqvae, shell, song
from conftest import ROOT, SENTENCES
from safetensors.torch import save_file

from seqvae.checkpoint import folder as checkpoint
from seqvae.config import ModelConfig, Recipe, TokenizerConfig, TrainConfig, to_dict
from seqvae.data import prepare as shards
from seqvae.errors import SeqVAEError
from seqvae.io import files as places
from seqvae.io import tensors as tensor_files
from seqvae.style import gaussian, styles_file
from seqvae.text.tokenizer import TextTokenizer
from seqvae.train import loop as train
from seqvae.train.trainer import Run

RECIPE = Recipe(
    name="tiny",
    tokenizer=TokenizerConfig(kind="text", vocab_size=320, max_tokens=24),
    model=ModelConfig(chunks=1, latent=4, width=8, hidden=8, previous=True),
    train=TrainConfig(
        steps=110, batch_tokens=96, learning_rate=1e-2, evaluate_every=50, save_every=30, validation_segments=16,
        precision="fp32",
    ),
)  # fmt: skip
WORKS = ("train", "save", "tokenize")  # style fitting writes by the same calls as saving


def tree(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files(folder)}


def writer(text: str, name: str = "a") -> Callable[[Path], None]:
    """A callback that fills a folder with one file."""

    def fill(part: Path) -> None:
        (part / name).write_text(text)

    return fill


# --- killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_handful_of_kills(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "crashes.py", "--kills", "6", "--out", tmp_path]
    command += ["--work", *WORKS]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    header, _, *rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("|")]
    for row in rows:
        facts = dict(zip(header, row, strict=True))
        assert int(facts["kills"]) == (6 if facts["work"] == "all" else 2)
        assert facts["wrong"] == facts["refused"] == "0"
    assert [row[0] for row in rows] == [*WORKS, "all"]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    (tmp_path / "all.txt").write_text("".join(f"{line}\n" for line in SENTENCES))
    return tmp_path / "all.txt"


def logged(out: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: x for name, x in line.items() if name != "tokens_per_second"} for line in found]


def test_the_log_of_a_resumed_run_equals_that_of_one_run(
    lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines logged after the saved state are written again once, and means cover all steps since the line before."""

    def run(name: str, resume: bool = False) -> None:
        train.train_from(RECIPE, [lines], tmp_path / name, resume=resume, report=lambda _: None)

    run("straight")
    step = Run.step
    for last in (20, 55, 104):  # before the first saved state, and after later ones

        def cut(self: Run, tokens: Any, last: int = last) -> Any:
            if self.progress.step == last:
                raise InterruptedError
            return step(self, tokens)

        with monkeypatch.context() as patch, pytest.raises(InterruptedError):
            patch.setattr(Run, "step", cut)
            run("cut", resume=True)
        with (tmp_path / "cut" / "log.jsonl").open("a") as file:
            file.write('{"kind": "tra')  # an incomplete line
    run("cut", resume=True)
    assert logged(tmp_path / "cut") == logged(tmp_path / "straight")
    assert [line["step"] for line in logged(tmp_path / "cut")] == [50, 100, 100, 110]


def test_a_vocabulary_without_shards_is_ignored(lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards and their vocabulary are valid only together; the remains of a killed process are made again."""
    expected = shards.prepare(RECIPE, [lines], tmp_path / "straight", report=lambda _: None)[0].index
    for broken in ("nothing", "half a folder", "another vocabulary"):
        out = tmp_path / broken
        (out / "tokenizer").mkdir(parents=True)
        if broken == "half a folder":
            (out / "tokenizer" / "sentencepiece.model").write_bytes(b"half")
            (out / "shard-00000.tokens.npy").write_bytes(b"\x93NUMPY")
        elif broken == "another vocabulary":
            TextTokenizer.train(["a few other words"], 290).save(out / "tokenizer")
        data = shards.prepare(RECIPE, [lines], out, report=lambda _: None)[0]
        assert data.index == expected
        assert files(out) == files(tmp_path / "straight")
    saved: list[bool] = []
    save = TextTokenizer.save

    def watched(self: TextTokenizer, folder: Path) -> None:
        saved.append((folder.parent / "index.json").exists())
        save(self, folder)

    monkeypatch.setattr(TextTokenizer, "save", watched)
    shards.prepare(RECIPE, [lines], tmp_path / "order", report=lambda _: None)
    assert saved == [False], "the index comes last"


def test_a_folder_is_never_missing_while_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every call that moves or removes a file, the folder has one of the two states."""
    folder = tmp_path / "kept"
    checkpoint.write_folder(folder, writer("1"))
    if sys.platform != "linux":
        pytest.skip("this system cannot let two folders change places in one move")
    seen: list[str] = []
    armed = [True]

    def look(event: str, args: tuple[Any, ...]) -> None:
        if armed[0] and event in ("os.rename", "os.remove", "os.rmdir", "os.chmod") and str(tmp_path) in str(args[0]):
            seen.append((folder / "a").read_text())

    sys.addaudithook(look)
    checkpoint.write_folder(folder, writer("2"))
    armed[0] = False
    assert set(seen) == {"1", "2"}
    assert files(tmp_path) == ["kept/a"]


def test_temporary_files_of_a_library_are_left_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors writes a temporary file with owner-only permissions, and moves it."""
    seen: list[str] = []

    def watched(tensors: Any, path: Path, **named: Any) -> None:
        save_file(tensors, path, **named)
        (path.parent / ".tmp123456").write_text("killed here")
        seen.extend(str(x.relative_to(tmp_path)) for x in tmp_path.rglob("*") if x.name == ".tmp123456")

    monkeypatch.setattr(tensor_files, "save_file", watched)
    checkpoint.save_tensors({"x": torch.ones(2)}, {}, tmp_path / "a")
    checkpoint.write_folder(tmp_path / "b", lambda part: save_file({"x": torch.ones(2)}, part / "x"))
    (name,) = seen
    assert name.startswith(".a-")
    assert files(tmp_path) == ["a", "b/x"]
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "a", tmp_path / "b" / "x")] == [0o644, 0o644]


@pytest.mark.parametrize("folder", [False, True])
def test_leftovers_of_killed_processes_are_removed_and_files_being_written_are_not(
    tmp_path: Path, folder: bool
) -> None:
    script = (
        "import sys, time; from pathlib import Path; from seqvae.io import files\n"
        "with files.whole(Path(sys.argv[1]), bool(int(sys.argv[2]))) as part:\n"
        "    print(part, flush=True); time.sleep(100)"
    )
    others = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "place"), str(int(folder))], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    parts = [Path(other.stdout.readline().strip()) for other in others if other.stdout]
    parts = parts if folder else [part.parent for part in parts]
    bystanders = [tmp_path / ".place-settings", tmp_path / ".place-12345678", tmp_path / ".places-12345678.part"]
    for path in bystanders:
        path.write_text("not ours")
    others[0].kill()
    others[0].wait()
    with places.whole(tmp_path / "place", folder) as part:
        assert not parts[0].exists()
        assert parts[1].exists()
        (part / "a" if folder else part).write_text("new")
    others[1].kill()
    others[1].wait()
    with places.whole(tmp_path / "place", folder) as part:
        (part / "a" if folder else part).write_text("newer")
    assert not parts[1].exists()
    assert [path.name for path in sorted(tmp_path.iterdir())] == sorted([*(x.name for x in bystanders), "place"])
    assert (tmp_path / "place" / "a" if folder else tmp_path / "place").read_text() == "newer"


def test_a_folder_does_not_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "place").write_text("mine")
    with pytest.raises(SeqVAEError, match="Not a directory"):
        checkpoint.write_folder(tmp_path / "place", writer("new"))
    assert tree(tmp_path) == {"place": b"mine"}


def test_without_atomic_exchange_the_next_process_restores_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_exchange", lambda *_: False)
    (tmp_path / ".place-12345678.old").mkdir()  # killed between its two moves
    (tmp_path / ".place-12345678.old" / "a").write_text("old")
    with pytest.raises(SeqVAEError):
        checkpoint.write_folder(tmp_path / "place", writer("", "no/a"))
    assert tree(tmp_path) == {"place/a": b"old"}
    checkpoint.write_folder(tmp_path / "place", writer("new"))
    assert tree(tmp_path) == {"place/a": b"new"}


# --- two processes at once --------------------------------------------------------------------------------------------


def test_the_second_of_two_commands_is_refused_even_while_the_first_makes_shards(lines: Path, here: Path) -> None:
    (here / "tiny.json").write_text(json.dumps(to_dict(RECIPE)))
    script = (
        "import sys, time; from seqvae.data import prepare as shards; from seqvae.cli import app as cli\n"
        "shards.tokenize = lambda *_: (print('here', flush=True), time.sleep(100))\n"
        "cli.main(['train', 'tiny.json', '--data', sys.argv[1], '--out', 'run'])"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(lines)], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"here\n"
        before = tree(here)
        line = error_line(seqvae("train", "tiny.json", "--data", lines, "--out", "run", "--resume"))
        assert "run: another process trains here; wait for it, or choose another --out" in line
        assert tree(here) == before
        first.kill()
    done("train", "tiny.json", "--data", lines, "--out", "run", "--set", "train.steps=2")


def test_concurrent_writes_of_a_file_leave_one_complete_version(tmp_path: Path) -> None:
    script = (
        "import sys, torch; from pathlib import Path; from seqvae.checkpoint import folder as checkpoint\n"
        "folder, mine = Path(sys.argv[1]), float(sys.argv[2])\n"
        "def fill(part):\n"
        "    for name in 'ab': checkpoint.save_tensors({'x': torch.full((5000,), mine)}, {}, part / name)\n"
        "for _ in range(25):\n"
        "    checkpoint.save_tensors({'x': torch.full((5000,), mine)}, {}, folder / 'one.styles')\n"
        "    checkpoint.write_folder(folder / 'kept', fill)"
    )
    (tmp_path / "kept").mkdir()
    both = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), n]) for n in "12"]
    looks = 0
    while any(one.poll() is None for one in both):
        if (tmp_path / "one.styles").exists():
            values = checkpoint.load_tensors(tmp_path / "one.styles")[0]["x"]
            assert bool((values == values[0]).all())
            looks += 1
        time.sleep(0.005)
    assert [one.returncode for one in both] == [0, 0]
    assert looks
    held = [checkpoint.load_tensors(tmp_path / "kept" / name)[0]["x"] for name in "ab"]
    assert torch.equal(*held)
    assert files(tmp_path) == ["kept/a", "kept/b", "one.styles"]


# --- no room, no permission -------------------------------------------------------------------------------------------


def limited(limit: int, *args: object) -> str:
    """The last line of a command's output under a limit on the file size in bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        line = last_error_line(seqvae(*args))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "too large" in line
    return line


def test_a_full_disk_leaves_the_old_files_and_names_the_path(tiny_text: Path, lines: Path, here: Path) -> None:
    done("style", "fit", f"mine=@{lines}", "-m", tiny_text, "-o", "my.styles")
    done("detect", "fit", f"@{lines}", "-m", tiny_text, "-o", "det", "--p-value", 0.1)
    done("reconstruct", "food", "-m", tiny_text, "-o", "out.txt")
    before = tree(here)
    other = f"{lines.parent / 'all.txt'}"
    assert "my.styles" in limited(300, "style", "fit", f"other=@{other}", "-m", tiny_text, "-o", "my.styles")
    assert "det" in limited(20, "detect", "fit", f"@{other}", "-m", tiny_text, "-o", "det", "--p-value", 0.2)
    assert "out.txt" in limited(20, "reconstruct", f"@{other}", "-m", tiny_text, "-o", "out.txt")
    assert "z.safetensors" in limited(20, "encode", f"@{other}", "-m", tiny_text, "-o", "z.safetensors")
    assert tree(here) == before


def test_a_full_disk_while_a_midi_file_is_written(tiny_music: Path, here: Path) -> None:
    song(here / "a.mid")
    song(here / "b.mid", 1)
    before = tree(here)
    assert "cannot write b.mid" in limited(40, "reconstruct", "a.mid", "-m", tiny_music, "-o", "b.mid")
    assert tree(here) == before


def test_training_resumes_after_a_full_disk(lines: Path, here: Path) -> None:
    (here / "tiny.json").write_text(json.dumps(to_dict(RECIPE)))
    run = ["train", "tiny.json", "--data", lines, "--out", "run"]
    assert "run/data: cannot be written" in limited(3000, *run)
    assert not (here / "run" / "data" / "index.json").exists()
    done(*run, "--set", "train.steps=30")
    before = tree(here / "run")
    assert len(before) > 8
    state = (here / "run" / "state.safetensors").stat().st_size
    assert "cannot be written" in limited(state // 2, *run, "--resume")
    after = tree(here / "run")
    assert before.keys() - after.keys() == {"best/styles.safetensors"}, "a better model, without styles yet"
    assert after["state.safetensors"] == before["state.safetensors"]
    assert checkpoint.load(here / "run" / "best")
    done(*run, "--resume")
    done("train", "tiny.json", "--data", lines, "--out", "straight")
    one, other = (checkpoint.load_tensors(here / name / "state.safetensors") for name in ("run", "straight"))
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])


def test_training_resumes_after_a_full_disk_in_the_middle_of_the_log(lines: Path, here: Path) -> None:
    recipe = replace(RECIPE, train=replace(RECIPE.train, steps=300, evaluate_every=5, save_every=5))
    (here / "tiny.json").write_text(json.dumps(to_dict(recipe)))
    run = ["train", "tiny.json", "--data", lines, "--out", "run"]
    done(*run, "--set", "train.steps=50")
    with (here / "run" / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": 50, "note": " " * (200_000 - log.tell())}) + "\n")
    assert "log.jsonl: cannot be written" in limited(200_000, *run, "--resume")
    done(*run, "--resume", "--set", "train.steps=60")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path, tiny_text: Path) -> None:
    styles = {"a": gaussian.fit([torch.ones(2, 8)])}
    styles_file.save(styles, small_disk / "my.styles")
    old = (small_disk / "my.styles").read_bytes()
    (small_disk / "ballast").write_bytes(bytes(50_000))
    large = {f"style {i}": gaussian.fit([torch.full((2, 32), float(i))]) for i in range(50)}
    with pytest.raises(SeqVAEError, match=r"No space left on device.*; free some space"):
        styles_file.save(large, small_disk / "my.styles")
    with pytest.raises(SeqVAEError, match=r"No space left on device.*; free some space"):
        checkpoint.save(checkpoint.load(tiny_text), small_disk / "kept")
    assert files(small_disk) == ["ballast", "my.styles"]
    assert (small_disk / "my.styles").read_bytes() == old


def test_an_unwritable_path_is_a_one_line_error(tiny_text: Path, lines: Path, here: Path) -> None:
    """Below a file, and in /proc, where root may not write either."""
    (here / "file").write_text("x")
    (here / "tiny.json").write_text(json.dumps(to_dict(RECIPE)))
    for place in ["file", *(["/proc"] if sys.platform == "linux" else [])]:
        for command in (
            ["style", "fit", f"mine=@{lines}", "-m", tiny_text, "-o", f"{place}/my.styles"],
            ["detect", "fit", f"@{lines}", "-m", tiny_text, "-o", f"{place}/det", "--p-value", 0.1],
            ["train", "tiny.json", "--data", lines, "--out", f"{place}/run"],
            ["reconstruct", "food", "-m", tiny_text, "-o", f"{place}/out.txt"],
            ["encode", "food", "-m", tiny_text, "-o", f"{place}/z.safetensors"],
        ):
            assert place in error_line(seqvae(*command))
    assert files(here) == ["file", "tiny.json"]
    assert (here / "file").read_text() == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write in a read-only folder")
def test_a_read_only_folder_is_a_one_line_error(tiny_text: Path, lines: Path, here: Path) -> None:
    (here / "locked").mkdir(mode=0o555)
    assert "locked" in error_line(seqvae("style", "fit", f"mine=@{lines}", "-m", tiny_text, "-o", "locked/my.styles"))
    result = shell("train", "reviews", "--data", lines, "--out", "locked/run")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
