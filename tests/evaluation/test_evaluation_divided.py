"""Figures measured by two processes equal those of one process, to the last digit.

The processes run this file as well: `torchrun tests/evaluation/test_evaluation_divided.py KIND CHECKPOINT DATA`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import SENTENCES, Trained, groove
from test_evaluation_music import songs  # noqa: F401, a fixture

import seqvae
from seqvae import parallel as distributed
from seqvae.codec import Codec
from seqvae.evaluation import music as evaluate
from seqvae.evaluation import text as evaluate_text
from seqvae.nn import inference
from seqvae.nn.model import SequenceVAE


def smaller() -> dict[str, int]:
    """Limits that split a small amount of work into several batches."""
    return {"BATCH_TOKENS": 256, "SCORE_NUMBERS": 1 << 15, "BATCH_CHUNKS": 8}


def figures(kind: str, codec: Codec, data: Path) -> dict[str, Any]:
    """All figures of a model."""
    if kind == "music":
        for parity, name in enumerate(("even", "odd")):
            codec.styles[name] = codec.fit_style([groove(i) for i in range(parity, 12, 2)])
        return evaluate.evaluate(codec, data, pieces=3, samples=6, pairs=5)
    lines = data.read_text().splitlines()
    by_name = {name: [x for x in lines if name in x.split()] for name in ("good", "bad")}
    return evaluate_text.evaluate_text(
        codec, lines, styles=by_name, train=by_name, samples=4, generated=40, amounts=(0.0, 1.0)
    )


def work(kind: str, checkpoint: Path, data: Path) -> None:
    """Work of one process: all figures, and how many times its model decoded."""
    for name, value in smaller().items():
        setattr(inference, name, value)
    codec, calls = seqvae.load(checkpoint), 0
    assert isinstance(codec.model, SequenceVAE)
    generate = codec.model.generate

    def counted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return generate(*args)

    codec.model.generate = counted  # type: ignore[method-assign, assignment]
    codec.ranks = distributed.join()
    found = figures(kind, codec, data)
    Path(f"{codec.ranks.rank}.json").write_text(json.dumps([calls, found]))
    codec.ranks.leave()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["music", "text"])
def test_two_processes_give_the_figures_of_one(
    kind: str, trained: Trained, tiny_text: Path, request: pytest.FixtureRequest, here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    checkpoint, data = tiny_text, here / "lines.txt"
    if kind == "music":
        checkpoint, data = trained.best, request.getfixturevalue("songs")
    else:
        data.write_text("".join(f"{line}\n" for line in SENTENCES))
    for name, value in smaller().items():
        monkeypatch.setattr(inference, name, value)
    expected = json.dumps(figures(kind, seqvae.load(checkpoint), data))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
    result = subprocess.run(
        [*command, __file__, kind, str(checkpoint), str(data)], env=environment, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    calls = []
    for rank in range(2):
        count, found = json.loads((here / f"{rank}.json").read_text())
        assert json.dumps(found) == expected
        calls.append(count)
    assert min(calls) > 0.3 * sum(calls), "both decoded"


@pytest.mark.slow
def test_evaluate_prints_the_result_of_two_processes_once(tiny_text: Path, here: Path) -> None:
    (here / "lines.txt").write_text("".join(f"{line}\n" for line in SENTENCES[::7]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "seqvae"]
    arguments = ["evaluate", "-m", str(tiny_text), "--data", "@lines.txt", "--samples", "4", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    alone, both = (
        subprocess.run(
            [*before, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=True
        )
        for before in ([sys.executable, "-m", "seqvae"], command)
    )  # fmt: skip
    assert both.stdout == alone.stdout


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
