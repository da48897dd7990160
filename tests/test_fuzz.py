"""Every entry point accepts corrupted input or refuses it in one line; benchmarks/fuzz.py tries far more."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seqvae.checkpoint import hub as released
from seqvae.errors import ReadError
from seqvae.music import readers as notation

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import fuzz  # noqa: E402
import fuzz_doors  # noqa: E402
import fuzz_inputs  # noqa: E402

FEW = {"musicxml", "mxl", "humdrum", "abc"}  # music21 is slow


@pytest.fixture(scope="module", autouse=True)
def nothing_stays() -> Iterator[None]:
    """Restores settings that entry points change permanently, as they may in a process of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(released, "released_folder", released.released_folder)
        patch.setattr(notation, "SECONDS", notation.SECONDS)
        yield
    fuzz_doors.clean()
    fuzz_doors._scratch.cache_clear()


@pytest.mark.parametrize("name", fuzz_doors.DOORS)
def test_an_entry_point_accepts_corrupted_input_or_refuses_it_in_one_line(name: str) -> None:
    door = fuzz_doors.DOORS[name]
    seeds = door.seeds()
    taken = sum(fuzz.attempt(door.read, seed) for seed in seeds)
    assert taken, "no valid input is accepted"

    @settings(max_examples=8 if name in FEW else 40)
    @given(st.integers(0, 2**32))
    def spoilt(number: int) -> None:
        fuzz.attempt(door.read, door.mutate(Random(number), seeds))

    spoilt()


@given(st.binary(max_size=300))
@example(b"")
@example(b"\xff\xfe<\0?\0x\0m\0l\0")
def test_any_bytes_are_accepted_or_refused(content: bytes) -> None:
    for name in ("midi", "text", "logs", "toml", "json", "styles"):
        fuzz.attempt(fuzz_doors.DOORS[name].read, content)


@settings(max_examples=100)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_restored(line: str) -> None:
    for name in ("text", "logs", "set"):
        fuzz.attempt(fuzz_doors.DOORS[name].read, line.encode())


def test_an_input_is_determined_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, door in fuzz_doors.DOORS.items():
        seeds = door.seeds()
        some = [fuzz.made(name, 0, i, seeds) for i in range(50, 60)]
        assert some == [fuzz.made(name, 0, i, seeds) for i in range(50, 60)]
        assert len(set(some)) > 5, name


def test_a_refusal_is_distinguished_from_a_bug() -> None:
    def refuse(_: bytes) -> None:
        raise ReadError("a", "it is\nnothing", "take\nanother")

    def break_(_: bytes) -> None:
        raise ValueError

    assert fuzz.attempt(lambda _: None, b"")
    assert not fuzz.attempt(refuse, b"")
    with pytest.raises(ValueError):
        fuzz.attempt(break_, b"")


def test_packed_folders_are_unpacked_unchanged() -> None:
    files = {"a/b.json": b"{}", "c": bytes(300)}
    assert fuzz_inputs.unpacked(fuzz_inputs.packed(files)) == files
    assert fuzz_inputs.unpacked(b"PK\3\4") == {}


STUB = """
import os, time
class Door:
    share = 1.0
    def __init__(self, read): self.read = read
    def seeds(self): return [b"0", b"1", b"2", b"3"]
    def mutate(self, rng, seeds): return b"%d" % rng.randrange(100)
def on_two(act):
    return Door(lambda content: act() if content == b"2" else None)
def fail(): raise KeyError("no")
held = []
DOORS = {"sound": Door(lambda content: None), "raising": on_two(fail), "hanging": on_two(lambda: time.sleep(60)),
    "ending": on_two(lambda: os._exit(7)), "growing": on_two(lambda: held.append(b"x" * 400_000_000))}
def clean(killed=None): pass
"""


@pytest.mark.slow
def test_the_driver_finds_each_kind_of_bug_continues_and_keeps_the_input(tmp_path: Path) -> None:
    code = (BENCHMARKS / "fuzz.py").read_text().replace("SECONDS = 10.0", "SECONDS = 0.5")
    (tmp_path / "fuzz.py").write_text(code.replace("MEMORY = 2 << 30", "MEMORY = 300 << 20"))
    (tmp_path / "fuzz_doors.py").write_text(STUB)
    run = [sys.executable, "fuzz.py"]
    done = subprocess.run([*run, "--inputs", "50"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    rows = {
        row[0]: [int(x) for x in row[1:5]]
        for row in re.findall(r"^(\w+) +(\d+) +(\d+) +(\d+) +(\d+) ", done.stdout, re.M)
    }
    assert rows["sound"] == [10, 10, 0, 0]
    for name, kind in {
        "raising": "KeyError",
        "hanging": "more than 0.5 s",
        "ending": "end of the process",
        "growing": "memory",
    }.items():
        count, taken, refused, bugs = rows[name]
        assert (count, refused) == (10, 0) and bugs >= 1 and taken + bugs == 10, name
        assert re.search(rf"^  {name}: {bugs} times .*{kind}", done.stdout, re.M), done.stdout
        [kept] = (tmp_path / "fuzz-found").glob(f"{name}-*.bin")
        assert kept.read_bytes() == b"2"
    again = subprocess.run(
        [*run, "--replay", "fuzz-found/" + next((tmp_path / "fuzz-found").glob("raising-*.bin")).name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 1 and "KeyError" in again.stderr
