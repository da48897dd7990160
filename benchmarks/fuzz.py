"""Fuzzing of every interface of seqvae with damaged and hostile input: numbers of inputs accepted, refused, and bugs.

    python benchmarks/fuzz.py --inputs 100000                     # all interfaces, by their shares (fuzz_doors.py)
    python benchmarks/fuzz.py --inputs 5000 --door midi --seed 7
    python benchmarks/fuzz.py --guided --seconds 60 --door midi    # coverage-guided, with atheris
    python benchmarks/fuzz.py --replay fuzz-found/midi-0123456789ab.bin

A "door" is an interface that reads input. An input may be accepted, or refused with a SeqVAEError (over HTTP with a
status from 400 to 499) with a message of one line. Everything else is a bug: another exception, more than 10 s, more
than 2 GB of memory, the end of the process. Bugs are printed, and their inputs saved in a folder for --replay. Input n
of a door is determined by the seed, the door's name and n. Each door runs in its own process, which is monitored and
restarted after a crash. The exit code is 1 if there was a bug.

--guided chooses inputs by code coverage (libFuzzer, through `pip install atheris`). It instruments seqvae and music21,
but not the compiled code of symusic, SentencePiece and safetensors. It counts inputs, but not accepted ones.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import random
import re
import resource
import subprocess
import sys
import time
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # names in inputs must not cause network requests
sys.path.insert(0, str(Path(__file__).parent))  # also for the processes of doors

SECONDS = 10.0  # processor time for one input; four times as much wall time, for other load
MEMORY = 2 << 30  # bytes of resident memory of a process
LINE = 1000  # characters of a message
AT, STARTED, WORKED, TAKEN, REFUSED = range(5)  # fields of the array that a door's process shares with the monitor
CHECKED = 64  # inputs kept for each kind of bug


def attempt(read: Any, content: bytes) -> bool:
    """Whether an input is accepted.

    Raises AssertionError for a refusal that is not one line, and any exception that is not a refusal.
    """
    from seqvae.errors import SeqVAEError

    try:
        read(content)
    except SeqVAEError as error:
        message = str(error)
        assert message and len(message.splitlines()) == 1, f"a refusal of more than one line, or none: {message!r}"
        assert len(message) <= LINE, f"a refusal of {len(message)} characters: {message[:200]!r}"
        return False
    return True


def work(name: str, seed: int, first: int, last: int, shared: Any, pipe: Connection) -> None:
    """Process of a door: read inputs `first` to `last`, and send each bug through `pipe`."""
    import fuzz_doors

    door = fuzz_doors.DOORS[name]
    seeds = door.seeds()
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # silence libraries
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    # end the process before it can exhaust the machine
    resource.setrlimit(resource.RLIMIT_AS, (held + 2 * MEMORY, resource.RLIM_INFINITY))
    try:
        for i in range(first, last):
            content = made(name, seed, i, seeds)
            shared[AT], shared[WORKED], shared[STARTED] = i, time.process_time(), time.monotonic()
            try:
                shared[TAKEN if attempt(door.read, content) else REFUSED] += 1
            except BaseException as error:  # some libraries raise BaseException
                pipe.send((i, "".join(traceback.format_exception(error)[-12:]), signature(error)))
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MEMORY:
                pipe.send((i, f"more than {MEMORY >> 30} GB of memory", "memory"))
                os._exit(3)
            shared[STARTED] = 0.0
        shared[AT] = last
    finally:
        fuzz_doors.clean()


def made(name: str, seed: int, i: int, seeds: list[bytes]) -> bytes:
    """Input number i of a door; the first ones are the unchanged seeds."""
    from fuzz_doors import DOORS

    return seeds[i] if i < len(seeds) else DOORS[name].mutate(random.Random(f"{seed} {name} {i}"), seeds)


def signature(error: BaseException) -> str:
    """Key that groups equal bugs: the type of error, and the innermost line in our own files."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/seqvae/" in frame.filename]
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "door"
    return f"{type(error).__name__} at {where}"


def run(name: str, seed: int, count: int, seconds: float, found: Path) -> tuple[int, int, int, dict[str, int]]:
    """Send inputs to one door: numbers of inputs, of accepted and of refused ones, and bugs by signature."""
    context = multiprocessing.get_context("spawn")
    shared = context.Array("d", 5, lock=False)
    bugs: dict[str, int] = {}
    first, until = 0, time.monotonic() + seconds

    def keep(i: int, text: str, kind: str) -> None:
        bugs[kind] = bugs.get(kind, 0) + 1
        if bugs[kind] <= CHECKED:
            content = made(name, seed, i, seeds)
            path = found / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}.bin"
            found.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            if bugs[kind] == 1:
                print(f"{name}: {kind}\n  {path}\n  {text.strip()[-1500:]}", flush=True)

    import fuzz_doors

    seeds = fuzz_doors.DOORS[name].seeds()
    while first < count and time.monotonic() < until:
        ours, theirs = context.Pipe(duplex=False)
        shared[AT], shared[STARTED] = first, 0.0
        process = context.Process(target=work, args=(name, seed, first, count, shared, theirs))
        process.start()
        theirs.close()
        ended = ""
        while process.is_alive() and not ended:
            if ours.poll(0.02):
                keep_all(ours, keep)
            started = shared[STARTED]
            late = time.monotonic() - started if started else 0.0
            if late > SECONDS and (late > 4 * SECONDS or worked(process.pid) - shared[WORKED] > SECONDS):
                ended = f"more than {SECONDS:g} s"
            elif resident(process.pid) > MEMORY:
                ended = "memory"
            elif time.monotonic() > until:
                ended = "no time left"
        process.kill() if ended else None
        process.join()
        fuzz_doors.clean(process.pid)
        kept = keep_all(ours, keep)
        first = int(shared[AT])
        if ended == "no time left" or first >= count:
            break
        if process.exitcode == 1 and not ended:
            raise RuntimeError(f"the input {first} of '{name}' could not be made; see work() and made()")
        if not kept:
            keep(first, ended or f"the process ended with {process.exitcode}", ended or "end of the process")
        first += 1
    return int(shared[AT]), int(shared[TAKEN]), int(shared[REFUSED]), bugs


def keep_all(pipe: Connection, keep: Any) -> bool:
    """Keep the bugs that a process has sent; whether it ended on purpose after the last one."""
    kind = ""
    try:
        while pipe.poll(0):
            i, text, kind = pipe.recv()
            keep(i, text, kind)
    except EOFError:
        pass
    return kind == "memory"


def worked(pid: int | None) -> float:
    """Processor time of a process, in seconds."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


def resident(pid: int | None) -> int:
    """Resident memory of a process, in bytes."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def guide(name: str, seconds: float, seed: int, found: Path) -> NoReturn:
    """Run atheris on a door; it ends this process."""
    import atheris

    scores = name in ("musicxml", "mxl", "humdrum", "abc")  # instrumenting music21 takes most of a minute
    with atheris.instrument_imports(include=["seqvae", *["music21"] * scores]):
        import fuzz_doors

        import seqvae.checkpoint.folder
        import seqvae.data.dataset
        import seqvae.modality

        if scores:
            import seqvae.music.readers  # noqa: F401
    door = fuzz_doors.DOORS[name]
    seeds = door.seeds()
    corpus = found / f"corpus-{name}"
    corpus.mkdir(parents=True, exist_ok=True)
    for i, content in enumerate(seeds):
        (corpus / f"seed-{i}").write_bytes(content)
    warnings.simplefilter("ignore")

    def one(content: bytes) -> None:
        attempt(door.read, content)

    def mutate(content: bytes, most: int, number: int) -> bytes:
        if number % 2:  # alternate the mutator of the format and atheris's own
            return door.mutate(random.Random(number), [content])[:most]
        return bytes(atheris.Mutate(content, most))

    atheris.Setup(
        [sys.argv[0], str(corpus), f"-max_total_time={seconds:g}", f"-seed={seed + 1}", f"-timeout={SECONDS:g}",
         f"-rss_limit_mb={MEMORY >> 20}", f"-artifact_prefix={found}/{name}-", "-max_len=65536"],
        one, custom_mutator=mutate,
    )  # fmt: skip
    atheris.Fuzz()
    sys.exit(0)


def guided(name: str, seconds: float, seed: int, found: Path) -> tuple[int, str]:
    """Number of runs of a door under atheris, and its report of a bug."""
    command = [sys.executable, __file__, "--guided", "--inside", "--door", name, "--seconds", str(seconds)]
    more = ["--seed", str(seed), "--found", str(found)]
    import fuzz_doors

    with subprocess.Popen(
        command + more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        output, _ = process.communicate()
    fuzz_doors.clean(process.pid)
    counts = [int(number) for number in re.findall(r"^(?:#|Done )(\d+)", output, re.MULTILINE)]
    return max(counts, default=0), "" if process.returncode == 0 else output[-2500:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="total over all doors")
    parser.add_argument("--door", nargs="+", help="only these doors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600, help="time limit for each door")
    parser.add_argument("--found", type=Path, default=Path("fuzz-found"), help="folder for inputs that caused bugs")
    parser.add_argument("--guided", action="store_true", help="coverage-guided, with atheris")
    parser.add_argument("--replay", type=Path, help="run a saved input again; its file name begins with the door")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        guide(args.door[0], args.seconds, args.seed, args.found)
    import fuzz_doors

    if args.replay:
        name = (args.door or [args.replay.name.partition("-")[0]])[0]
        accepted = attempt(fuzz_doors.DOORS[name].read, args.replay.read_bytes())
        fuzz_doors.clean()
        print("accepted" if accepted else "refused")
        return
    doors = args.door or list(fuzz_doors.DOORS)
    whole = sum(fuzz_doors.DOORS[name].share for name in doors)
    total, began = [0, 0, 0, 0], time.monotonic()
    row = "{:12} {:>9} {:>9} {:>9} {:>6} {:>8}"
    print(row.format("door", "inputs", "accepted", "refused", "bugs", "seconds"), flush=True)
    for name in doors:
        started = time.monotonic()
        if args.guided:
            count, failure = guided(name, args.seconds, args.seed, args.found)
            figures = [count, 0, 0, int(bool(failure))]
            print(failure, end="")
        else:
            count, taken, refused, bugs = run(
                name, args.seed, round(args.inputs * fuzz_doors.DOORS[name].share / whole), args.seconds, args.found
            )
            figures = [count, taken, refused, sum(bugs.values())]
            for kind, times in bugs.items():
                print(f"  {name}: {times} times {kind}")
        total = [a + b for a, b in zip(total, figures, strict=True)]
        print(row.format(name, *figures, round(time.monotonic() - started, 1)), flush=True)
    print(row.format("all", *total, round(time.monotonic() - began, 1)))
    fuzz_doors.clean()
    sys.exit(1 if total[3] else 0)


if __name__ == "__main__":
    main()
