"""Crash tests: SIGKILL at random moments of training, saving, tokenizing and style fitting, and checks of the files.

    python benchmarks/crashes.py --kills 200

A child runs a user's command and is killed in one of three ways. `clock`: after a random share of the job's duration.
`held`: at a random call that writes below its folder (open, rename, mkdir, remove), where it pauses until it is dead.
`after`: up to three milliseconds after such a call. The files must then be in an allowed state, old or new, or be
refused in one line, and other files must be unchanged. The next child continues from there. In the end the result must
equal that of an undisturbed job to the bit, without temporary files.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from crash_child import in_child
from crash_works import WORKS, Work, WrongError, litter

from seqvae.errors import SeqVAEError


def kill(name: str, kills: int, root: Path, rng: random.Random) -> Counter[str]:
    """Kill one job `kills` times, and count the states after each kill."""
    work = WORKS[name](root)
    others = {root / "beside.txt": b"beside", root / "other" / "deep.bin": bytes(range(256))}
    for path, content in others.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    work.prepare()
    code, calls, seconds = in_child(work, work.act)  # its duration and its number of writing calls
    assert code == 0, f"see {root}.log"
    work.finished()
    count: Counter[str] = Counter()
    while count["kills"] < kills:
        before, left = work.state(), litter(root)
        how, share = rng.choice(("clock", "held", "after")), rng.random()

        def wait(bell: int, how: str = how, share: float = share) -> None:
            if how == "clock":
                time.sleep(share * seconds)
            else:
                os.read(bell, 1)  # also returns when the child ends
                time.sleep(0.003 * share * (how == "after"))

        at = 0 if how == "clock" else rng.randrange(calls) + 1
        code = in_child(work, work.act, wait, at, how == "held")[0]
        count["litter"] = max(count["litter"], litter(root))
        try:
            if any(path.read_bytes() != content for path, content in others.items()):
                raise WrongError("another file has changed")
            if code == -signal.SIGKILL:
                count["kills"] += 1
                count[how] += 1
                count["writing"] += how != "clock" or litter(root) > left
                found = work.state()
                count["none" if found == "none" else "old" if found == before else "new"] += 1
                work.killed()
            elif code:
                raise WrongError(f"exit code {code}; see {root}.log")
            else:
                count["finished"] += 1
                work.finished()
        except SeqVAEError as error:
            count["refused"] += 1
            print(f"{name}: refused after {how}: {error}", flush=True)
            work.again()
        except Exception as error:
            count["wrong"] += 1
            print(f"{name}: wrong after {how}: {type(error).__name__}: {error}", flush=True)
            work.again()
    for _ in range(work.places):  # finally without kills
        code = max(code, in_child(work, work.act)[0])
        work.finished()
    Work.finished(work)
    assert code <= 0, f"see {root}.log"
    return count


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--out", type=Path, help="working folder, which is kept; default: a temporary one")
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp(prefix="crashes-"))
    columns = ("kills", "clock", "held", "after", "writing", "old", "new", "none", "refused", "wrong", "finished",
               "litter")  # fmt: skip
    rows = []
    for i, name in enumerate(args.work):
        share = args.kills * (i + 1) // len(args.work) - args.kills * i // len(args.work)
        rows.append((name, kill(name, share, out / name, random.Random(f"{args.seed} {name}"))))
        print(f"{name}: {dict(rows[-1][1])}", flush=True)
    total = sum((count for _, count in rows), Counter())
    total["litter"] = max(count["litter"] for _, count in rows)
    print(f"seed {args.seed}")
    print("| work | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, count in [*rows, ("all", total)]:
        print(f"| {name} | " + " | ".join(str(count[column]) for column in columns) + " |")
    if args.out is None:
        shutil.rmtree(out)
    sys.exit(bool(total["wrong"]))


if __name__ == "__main__":
    main()
