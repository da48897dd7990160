"""Functions called in worker processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from seqvae.io.workers import Workers


def test_a_call_that_fails_crashes_or_times_out_affects_no_other_call() -> None:
    with Workers(1) as workers:
        assert workers.call(60, divmod, 7, 2).result() == (3, 1)
        with pytest.raises(ZeroDivisionError):
            workers.call(60, divmod, 7, 0).result()
        with pytest.raises(OSError, match="Abnormal termination"):
            workers.call(60, os._exit, 3).result()
        with pytest.raises(TimeoutError):
            workers.call(0.1, time.sleep, 60).result()
        slow = workers.call(60, time.sleep, 60)
        slow.cancel()
        with pytest.raises(CancelledError):
            slow.result()
        assert workers.call(60, divmod, 7, 2).result() == (3, 1)


def test_a_process_that_ends_between_calls_is_replaced() -> None:
    with Workers(1) as workers:
        first = workers.call(60, os.getpid).result()
        os.kill(first, 9)
        until = time.monotonic() + 20
        while workers._pool is not None and workers._pool.active and time.monotonic() < until:
            time.sleep(0.05)
        assert workers.call(60, os.getpid).result() != first


def test_the_calling_script_runs_once_and_worker_prints_are_not_its_output(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from seqvae.io.workers import Workers\n"
        "print('script')\n"
        "with Workers(2) as workers:\n"
        "    workers.call(60, print, 'worker').result()\n"
        "assert sys.modules['__main__'].__file__\n"
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert run.stdout == "script\n"
