"""No command uses the network, except for a named model on the Hub.

Commands run in processes that may not connect or look up names beyond this machine, workers included. Only Python's
own sockets are watched; connections by native code are not seen.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import song
from conftest import SENTENCES, SESSIONS

pytestmark = pytest.mark.slow

GUARD = """
import os, sys

def note(line):
    with open(os.environ["WATCHED"], "a") as file:
        file.write(line + "\\n")

def refuse(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        host = args[1][0] if isinstance(args[1], tuple) else None  # else a socket that is a file
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost", "::1") or host.startswith("127."):
        return
    note(f"requested {host}")
    raise OSError(f"{host}: no network in tests")

sys.addaudithook(refuse)
note(f"watched {os.getpid()}")
"""

CALLS = """
import json, sys
from seqvae.cli.app import main
for call in json.loads(sys.argv[1]):
    try:
        main(call)
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{call}: exit code {ended.code}")
"""


@dataclass(frozen=True)
class Watch:
    """A place to run calls with a record of their network requests."""

    folder: Path
    environment: dict[str, str]
    notes: Path

    def recorded(self, word: str) -> list[str]:
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return [line.removeprefix(f"{word} ") for line in lines if line.startswith(word)]

    def run(self, *calls: str) -> subprocess.CompletedProcess[str]:
        """Run commands one after the other in one process, until one fails."""
        command = [sys.executable, "-c", CALLS, json.dumps([call.split() for call in calls])]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )


@pytest.fixture
def watch(here: Path, tmp_path: Path) -> Watch:
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    # the Hub's client is not in offline mode
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    root = str(Path(__file__).parent.parent)
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "guard"), root]),
        "WATCHED": str(tmp_path / "notes"),
        "HF_HOME": str(tmp_path / "hub"),
    }
    return Watch(here, environment, tmp_path / "notes")


def test_the_watch_records_a_network_request(watch: Watch) -> None:
    """The Hub's client with a Hub name: one line, and no result without the network."""
    result = watch.run("models", "style list -m nobody/nothing")
    assert "nobody/nothing: no such folder, and not available from the Hub" in result.stderr
    assert watch.recorded("requested")


def check(watch: Watch, *calls: str) -> None:
    result = watch.run(*calls)
    assert watch.recorded("requested") == []
    assert result.returncode == 0, result.stderr[-2000:]
    assert watch.recorded("watched")


def test_commands_on_music_use_no_network(watch: Watch, tiny_music: Path) -> None:
    for i in range(6):
        song(watch.folder / "songs" / ("calm", "wild")[i % 2] / f"{i}.mid", i)
    check(
        watch,
        f"reconstruct songs/calm/0.mid -m {tiny_music} -o r.mid --wav --png --html",
        f"blend corpus:bach/bwv66.6 -m {tiny_music} --from calm --to wild -o b.mid",
        f"blend songs -m {tiny_music} --from calm --to wild -o blends",
        f"generate -m {tiny_music} --style calm -n 2 -o new",
        f"interpolate songs/calm/0.mid songs/wild/1.mid -m {tiny_music} --steps 3 -o walk",
        f"encode songs/calm/0.mid -m {tiny_music} -o z.safetensors",
        f"decode z.safetensors -m {tiny_music} -o back.mid",
        f"style fit mine=songs/calm -m {tiny_music} -o my.styles",
        f"style list -m {tiny_music} --styles my.styles",
        "plot roll songs/calm/0.mid -o roll.png",
        f"plot map -m {tiny_music} -o map.png",
        f"detect fit songs -m {tiny_music} -o songs.detector --p-value 0.4 --samples 2",
        "detect score songs --detector songs.detector",
    )
    assert len(watch.recorded("watched")) > 1, "files are read, and sound is made, in processes of their own"


def test_commands_on_sentences_use_no_network(watch: Watch, tiny_text: Path) -> None:
    (watch.folder / "a.txt").write_text("".join(f"{line}\n" for line in SENTENCES))
    check(
        watch,
        f"blend @a.txt -m {tiny_text} --from good --to bad -o b.txt",
        f"generate -m {tiny_text} -n 2",
        f"interpolate food staff -m {tiny_text} --steps 3",
        f"evaluate -m {tiny_text} --data @a.txt --samples 2 --iw-lines 2",
        f"export -m {tiny_text} -o graphs",
        "tokenizer train --data a.txt --vocab-size 320 -o words",
        "train reviews --data a.txt --out run --set tokenizer.vocab_size=320 --set train.steps=2"
        " --set model.width=32 --set model.hidden=32",
        "plot training run -o curves.png",
        "models",
    )


def test_commands_on_logs_use_no_network(watch: Watch, tiny_events: Path) -> None:
    (watch.folder / "a.txt").write_text("".join(f"{line}\n" for line in SESSIONS[:60]))
    check(
        watch,
        f"detect fit @a.txt -m {tiny_events} -o a.detector --p-value 0.1 --samples 2",
        "detect score @a.txt --detector a.detector --json",
    )


def test_the_studio_uses_no_network(watch: Watch, tiny_text: Path) -> None:
    command = [sys.executable, "-m", "seqvae", "studio", str(tiny_text), "--port", "0"]
    with subprocess.Popen(
        command, cwd=watch.folder, env=watch.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as studio:
        assert studio.stdout is not None
        try:
            address = next(found[0] for line in studio.stdout if (found := re.search(r"http://[\w.:]+", line)))
            for page in ("/", "/api/models"):
                with urllib.request.urlopen(address + page, timeout=60) as answer:
                    assert answer.status == 200
        finally:
            studio.terminate()
    assert watch.recorded("requested") == []
    assert watch.recorded("watched")
