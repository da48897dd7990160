"""Two processes compute the results of one, resume each other's runs, write once, and end together.

The processes also run this file as a script: `torchrun tests/test_parallel.py FOLDER`.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import done
from conftest import SENTENCES, session

from seqvae import parallel as distributed
from seqvae.checkpoint import folder as checkpoint
from seqvae.config import ModelConfig, ObjectiveConfig, Recipe, TokenizerConfig, TrainConfig
from seqvae.data import prepare as shards
from seqvae.data.dataset import TokenData
from seqvae.errors import ConfigError, SeqVAEError
from seqvae.modality import load_tokenizer
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.nn.loss import Loss
from seqvae.parallel import Ranks, divide
from seqvae.train import loop as train
from seqvae.train.trainer import Run

STEPS = 6
TRAIN = TrainConfig(
    steps=STEPS, batch_tokens=512, learning_rate=1e-2, warmup_steps=4, evaluate_every=3, save_every=3,
    validation_segments=32, precision="fp32",
)  # fmt: skip
FLOOR = 1.05  # nats: about the KL of each unit in these steps, so that parts of a batch lie on both sides
# Together: all random operations, all averages over a batch, and every kind of layer.
MUSIC = Recipe(
    model=ModelConfig(chunks=2, latent=16, width=32, hidden=32, dropout=0.1),
    objective=ObjectiveConfig(beta=0.1, anneal_steps=50, word_dropout=0.2, denoise=0.1, track_dropout=0.9, bag=0.5),
    train=replace(TRAIN, mix=0.5),
)
TEXT = Recipe(
    tokenizer=TokenizerConfig(kind="text", vocab_size=320, max_tokens=24),
    model=ModelConfig(
        chunks=1,
        latent=8,
        width=32,
        hidden=32,
        encoder="transformer",
        decoder="transformer",
        heads=4,
        dropout=0.2,
        without=0.3,
    ),
    objective=ObjectiveConfig(
        anneal_steps=5,
        free_bits=FLOOR,
        word_dropout=0.2,
        denoise=0.1,
        denoise_by="drop",
        pretrain_steps=2,
        aggressive=2,
    ),
    train=replace(TRAIN, clip=1e9),  # no clipping of the gradient's norm
)
RECIPES = {"music": MUSIC, "text": TEXT}
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulate": {"accumulate": 3},
    "shard": {"shard": True},
    "shard and accumulate": {"shard": True, "accumulate": 2},
    "fewer segments than processes": {"batch_tokens": 20},
}


def changed(kind: str, change: str) -> Recipe:
    recipe = RECIPES[kind]
    return replace(recipe, train=replace(recipe.train, **CHANGES[change]))


def curve(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Figures of every step of a run, and of a validation at its end."""
    data = TokenData(folder / recipe.tokenizer.kind)
    tokenizer = load_tokenizer(folder / recipe.tokenizer.kind / "tokenizer")
    run = Run(recipe, data, tokenizer, folder, print)
    batches, steps = run.batches.resume(0, 0), []
    for _ in range(STEPS):
        run.progress.epoch, run.progress.position, tokens = next(batches)
        result = run.step(tokens)
        steps.append([float(result.total.detach()), result.reconstruction, result.kl, result.accuracy])
        steps[-1] += [distributed.clip(run.model.parameters(), math.inf), *result.kl_per_unit.tolist()]
    return {"steps": steps, "valid": run.validate()}


def go(folder: Path, name: str, recipe: Recipe, steps: int, resume: bool = False) -> Path:
    """Train in `folder / name` for a number of its steps."""
    data, tokenizer = TokenData(folder / "text"), load_tokenizer(folder / "text" / "tokenizer")
    step = Run.step

    def stop(self: Run, tokens: Any) -> Loss:
        if self.progress.step == steps:
            raise InterruptedError
        return step(self, tokens)

    Run.step = stop  # type: ignore[method-assign]
    try:
        train.train(recipe, data, tokenizer, folder / name, resume=resume, report=lambda _: None)
    except InterruptedError:
        assert steps < recipe.train.steps
    finally:
        Run.step = step  # type: ignore[method-assign]
    return folder / name


# --- work of the two processes ----------------------------------------------------------------------------------------


def work(folder: Path) -> None:
    ranks = distributed.join()
    found: dict[str, Any] = {"rank": ranks.rank, "turn": ranks.turn}
    for count in (7, 1, 0):
        found[f"in order {count}"] = ranks.gather([i * i for i in ranks.shard(range(count))])
    tensors = [torch.full((2, 3), 1.0 + ranks.rank), torch.tensor(2.0)]
    ranks.add(tensors)
    found["sums"] = [tensor.tolist() for tensor in tensors]
    found["from first"] = ranks.broadcast(lambda: f"made by {ranks.rank}")
    seen = folder / "seen"

    def first_makes() -> bool:
        if ranks.rank == 0:
            seen.touch()
        return seen.exists()

    found["by turns"] = ranks.by_turns(first_makes)
    for failing in range(2):

        def fail(failing: int = failing) -> None:
            if ranks.rank == failing:
                raise SeqVAEError(f"{failing} cannot")

        try:
            ranks.by_turns(fail)
        except SeqVAEError as error:
            found[f"{failing} fails"] = str(error)
    for kind in RECIPES:
        for change in CHANGES:
            found[f"{kind} {change}"] = curve(changed(kind, change), folder)
    # a folder of its own, as on another machine
    mine = folder if ranks.rank == 0 else folder / "elsewhere"
    if ranks.rank:
        shutil.copytree(folder / "text", mine / "text")
    for change in ("plain", "shard"):
        go(mine, f"one, then two, {change}", changed("text", change), STEPS, resume=True)
        go(mine, f"two, then one, {change}", changed("text", change), 4)
    go(mine, "two, straight", TEXT, STEPS)
    for steps in (4, STEPS):
        go(mine, "two, then two", TEXT, steps, resume=True)
    (folder / f"{ranks.rank}.json").write_text(json.dumps(found))
    ranks.leave()


def fail_alone(folder: Path) -> None:
    """An error in the third step of the second process."""
    if os.environ["RANK"] == "1":
        step = Run.gradient

        def broken(self: Run, tokens: Any) -> Loss:
            if self.progress.step == 3:
                raise RuntimeError("a bug")
            return step(self, tokens)

        Run.gradient = broken  # type: ignore[method-assign]
    curve(MUSIC, folder)


# --- one process ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 40, 41])
def test_a_batch_is_divided_by_tokens(rows: int, count: int) -> None:
    sizes = np.sort(np.random.default_rng(rows).integers(3, 60, rows))
    parts = divide(sizes, count)
    assert len(parts) == count
    assert [row for part in parts for row in range(part.begin, part.begin + part.count)] == list(range(rows))
    assert sum(part.share for part in parts) == pytest.approx(1)
    for part in parts:
        assert part.of == rows
        assert part.begin % 2 == 0 or part.count == 0
        mine = sizes[part.begin : part.begin + part.count].sum()
        assert part.share == pytest.approx(mine / sizes.sum())
        assert abs(mine - sizes.sum() / count) <= 2 * 60, "no more apart than rows are long"
        assert len(sizes[part.rows]) == max(1, part.count)


def test_a_single_process_needs_no_communication() -> None:
    ranks = distributed.join()
    assert ranks == Ranks()
    assert list(ranks.shard("abc")) == ["a", "b", "c"]
    assert ranks.gather([3, 1]) == [3, 1]
    assert ranks.broadcast(lambda: 5) == ranks.by_turns(lambda: 5) == 5
    tensor = torch.ones(2)
    ranks.add([tensor])
    ranks.copy([tensor])
    ranks.leave()
    assert tensor.tolist() == [1, 1]


def test_unreachable_processes_are_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SeqVAEError, match="start all with torchrun"):
        distributed.join.__wrapped__()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, collection: Path) -> Path:
    """Token shards of music and of text."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(collection, folder / "midi")
    MidiTokenizer().save(folder / "midi" / "tokenizer")
    (folder / "all.txt").write_text("".join(f"{line}\n" for line in SENTENCES))
    shards.prepare(TEXT, [folder / "all.txt"], folder / "text", report=lambda _: None)
    return folder


@pytest.fixture(scope="module")
def one(folder: Path) -> Callable[..., dict[str, Any]]:
    """The curve of one process, in one pass."""
    return functools.cache(lambda kind, batch="plain": curve(changed(kind, batch), folder))


def check_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    np.testing.assert_allclose(found["steps"], expected["steps"], rtol=2e-5, atol=2e-6)
    for name, value in expected["valid"].items():
        assert found["valid"][name] == pytest.approx(value, rel=2e-5, abs=2e-6), name


@pytest.mark.parametrize("kind", RECIPES)
def test_a_batch_in_several_passes_is_the_same(kind: str, folder: Path, one: Callable[..., dict[str, Any]]) -> None:
    check_same(curve(changed(kind, "accumulate"), folder), one(kind))


def test_parts_are_not_compiled(folder: Path) -> None:
    recipe = replace(MUSIC, train=replace(MUSIC.train, compile=True, accumulate=2))
    with pytest.raises(ConfigError, match=r"train\.compile"):
        curve(recipe, folder)


# --- two processes ----------------------------------------------------------------------------------------------------


def torchrun(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.run(
        [*command, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """Results of each of two processes."""
    for change in ("plain", "shard"):
        go(folder, f"one, then two, {change}", TEXT, 4)
    result = torchrun(__file__, folder, cwd=folder)
    assert result.returncode == 0, result.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_results_come_in_the_order_of_the_items(two: list[dict[str, Any]]) -> None:
    assert [found["rank"] for found in two] == [0, 1]
    for count in (7, 1, 0):
        assert two[0][f"in order {count}"] == [i * i for i in range(count)]
        assert two[1][f"in order {count}"] == []


@pytest.mark.slow
def test_processes_exchange_sums_values_and_failures(two: list[dict[str, Any]]) -> None:
    for found in two:
        assert found["sums"] == [[[3.0] * 3] * 2, 4.0]
        assert found["from first"] == "made by 0"
        assert found["by turns"]
        assert (found["0 fails"], found["1 fails"]) == ("0 cannot", "1 cannot")
    assert [found["turn"] for found in two] == [0, 2]


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", RECIPES)
def test_two_processes_give_the_result_of_one(
    two: list[dict[str, Any]], one: Callable[..., dict[str, Any]], kind: str, change: str
) -> None:
    for found in two:
        check_same(found[f"{kind} {change}"], one(kind, change) if change.startswith("fewer") else one(kind))


@pytest.mark.slow
@pytest.mark.parametrize("change", ["plain", "shard"])
def test_a_run_resumes_with_another_number_of_processes(two: list[dict[str, Any]], folder: Path, change: str) -> None:
    assert two
    straight = folder / "straight"
    if not straight.exists():
        go(folder, "straight", TEXT, STEPS)
    expected, about = checkpoint.load_tensors(straight / "state.safetensors")
    go(folder, f"two, then one, {change}", TEXT, STEPS, resume=True)
    for name in (f"one, then two, {change}", f"two, then one, {change}"):
        found, other = checkpoint.load_tensors(folder / name / "state.safetensors")
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-4, msg=f"{name}: {key}")
        assert torch.equal(found["random"], expected["random"])
        progress, same = json.loads(other["progress"]), json.loads(about["progress"])
        assert progress.pop("best") == pytest.approx(same.pop("best"), rel=1e-5)
        assert progress.pop("information") == pytest.approx(same.pop("information"), rel=1e-4)
        np.testing.assert_allclose(progress.pop("recent"), same.pop("recent"), rtol=1e-5)
        assert progress == same
        kept = checkpoint.load(folder / name / "best").model.state_dict()
        for key, tensor in checkpoint.load(straight / "best").model.state_dict().items():
            torch.testing.assert_close(kept[key], tensor, rtol=1e-2, atol=1e-3)
        assert len((folder / name / "log.jsonl").read_text().splitlines()) == 2, "one validation, one line"


@pytest.mark.slow
def test_a_run_resumes_bit_by_bit_with_the_same_number_of_processes(two: list[dict[str, Any]], folder: Path) -> None:
    assert two
    straight, cut = (
        checkpoint.load_tensors(folder / name / "state.safetensors") for name in ("two, straight", "two, then two")
    )
    assert [key for key, tensor in straight[0].items() if not torch.equal(tensor, cut[0][key])] == []
    assert straight[1] == cut[1]


@pytest.mark.slow
def test_only_the_first_process_writes(two: list[dict[str, Any]], folder: Path) -> None:
    assert two
    assert [path.name for path in (folder / "elsewhere").iterdir()] == ["text"]


@pytest.mark.slow
def test_when_one_process_fails_the_other_ends_with_a_message(folder: Path) -> None:
    # without torchrun, which would end the other process itself
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    root = str(Path(__file__).parent.parent)
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), "fail"],
            env={**os.environ, **place, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    stderr = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert "SeqVAEError: another process has ended or does not answer" in stderr[0]
    assert "RuntimeError: a bug" in stderr[1]


@pytest.mark.slow
def test_train_under_torchrun(folder: Path, tmp_path: Path) -> None:
    settings = {"tokenizer": {"kind": "text", "vocab_size": 320}, "model": {"chunks": 1, "latent": 8, "width": 16}}
    settings |= {"train": {"steps": 2, "batch_tokens": 256, "precision": "fp32"}}
    (tmp_path / "tiny.json").write_text(json.dumps(settings))
    result = torchrun("-m", "seqvae", "train", "tiny.json", "--data", folder / "all.txt", "--out", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout == "run/best\n"
    assert result.stderr.count(" to train on") == 1
    assert "in 2 processes" in result.stderr
    assert checkpoint.load(tmp_path / "run" / "best").styles


if __name__ == "__main__":
    (fail_alone if sys.argv[2:] else work)(Path(sys.argv[1]))


@pytest.mark.slow
def test_sessions_are_scored_and_encoded_by_two_as_by_one(tiny_events: Path, tmp_path: Path) -> None:
    fit = ["detect", "fit", f"@{tmp_path / 'normal.txt'}", "-m", tiny_events, "-o", tmp_path / "detector"]
    (tmp_path / "normal.txt").write_text("".join(f"{session(i)}\n" for i in range(300, 700)))
    done(*fit, "--p-value", 0.05, "--samples", 2)
    (tmp_path / "new.txt").write_text("".join(f"{session(i)} {'odd ' * (i % 3)}\n" for i in range(1100)))
    score = ["detect", "score", f"@{tmp_path / 'new.txt'}", "--detector", tmp_path / "detector", "--json"]
    one = [json.loads(line) for line in done(*score)]
    encode = ["encode", f"@{tmp_path / 'new.txt'}", "-m", tiny_events, "-o"]
    done(*encode, tmp_path / "one.safetensors")

    both = " && ".join(
        shlex.join([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"])
        + f" -m seqvae {shlex.join(map(str, command))}"
        for command in (score, [*encode, tmp_path / "two.safetensors"])
    )
    root = str(Path(__file__).parent.parent)
    result = subprocess.run(
        both, shell=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}, timeout=300
    )
    assert result.returncode == 0, result.stderr[-4000:]
    lines = result.stdout.splitlines()
    assert [json.loads(line) for line in lines[: len(one)]] == one, "in the order of the lines"
    assert len(lines) == len(one) + 1, "encoded files are reported once"
    a, b = (checkpoint.load_tensors(tmp_path / f"{name}.safetensors")[0] for name in ("one", "two"))
    assert torch.equal(a["segments"], b["segments"])
    torch.testing.assert_close(a["z"], b["z"])


@pytest.mark.slow
def test_standard_input_is_not_divided(tiny_events: Path, tmp_path: Path) -> None:
    result = torchrun("-m", "seqvae", "encode", "-", "-m", tiny_events, "-o", "x.safetensors", cwd=tmp_path)
    assert result.returncode == 1  # torchrun's exit status, whatever that of its processes
    assert "standard input cannot be divided among several processes; give @FILE" in result.stderr
