"""A run keeps its time budget, reports the time left, and saves its state when interrupted."""

from __future__ import annotations

import doctest
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import done, last_error_line, seqvae, song
from conftest import groove

from seqvae.checkpoint import folder as checkpoint
from seqvae.config import Recipe, TrainConfig
from seqvae.data import prepare as shards
from seqvae.data.dataset import TokenData, split_of
from seqvae.errors import SeqVAEError
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.nn.loss import Loss
from seqvae.parallel import Ranks
from seqvae.train import clock
from seqvae.train import loop as train
from seqvae.train.clock import Clock, interrupts
from seqvae.train.state import rate_at
from seqvae.train.trainer import Run

Begin = Callable[..., list[str]]


class Time:
    """A clock that advances only when work is done, in seconds."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Restores the handling of Ctrl-C, which processes started in the background ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    """A step takes a second, and a validation three."""
    time, step, validate = Time(), Run.step, Run.validate

    def slow_step(self: Run, tokens: Any) -> Loss:
        time.seconds += 1
        return step(self, tokens)

    def slow_validate(self: Run) -> dict[str, float]:
        time.seconds += 3
        return validate(self)

    monkeypatch.setattr(clock, "now", time)
    monkeypatch.setattr(Run, "step", slow_step)
    monkeypatch.setattr(Run, "validate", slow_validate)
    return time


@pytest.fixture
def recipe(small_recipe: Recipe) -> Recipe:
    """A recipe of 1,000 steps and one minute."""
    config = TrainConfig(
        steps=1000, minutes=1, batch_tokens=128, learning_rate=1e-2, warmup_steps=100, evaluate_every=50,
        save_every=500, validation_segments=8, precision="fp32",
    )  # fmt: skip
    return replace(small_recipe, train=config)


@pytest.fixture
def begin(collection: Path, tokenizer: MidiTokenizer, tmp_path: Path) -> Begin:
    """Train in a folder of the given name; returns the reports."""

    def run(recipe: Recipe, name: str = "run", resume: bool = False) -> list[str]:
        reports: list[str] = []
        train.train(recipe, TokenData(collection), tokenizer, tmp_path / name, resume=resume, report=reports.append)
        return reports

    return run


def log(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def progress(folder: Path) -> dict[str, Any]:
    about = checkpoint.load_tensors(folder / "state.safetensors")[1]
    found: dict[str, Any] = json.loads(about["progress"])
    return found


# --- minutes ----------------------------------------------------------------------------------------------------------


def test_the_examples_are_true() -> None:
    assert doctest.testmod(clock).failed == 0


def test_a_run_ends_with_its_time_budget_and_so_does_the_schedule(
    begin: Begin, recipe: Recipe, time: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    set_rate = Run.set_rate

    def noted(self: Run) -> None:
        set_rate(self)
        rates.append(self.optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(Run, "set_rate", noted)
    began = time.seconds
    begin(recipe)
    assert 59 <= time.seconds - began <= 60, "the last validation is in it"
    folder = tmp_path / "run"
    steps = progress(folder)["step"]
    validations = [line["step"] for line in log(folder, "valid")]
    assert validations[-1] == steps
    assert 3 * (len(validations) - 1) <= 0.1 * 60 + 3, "the others have a tenth of it at most"
    assert len(validations) > 1
    assert steps == len(rates) == 60 - 3 * len(validations)
    assert np.argmax(rates) <= 0.15 * steps, "a tenth of the plan is the warm-up"
    assert max(rates) > 0.95 * recipe.train.learning_rate
    assert rates[-1] == pytest.approx(rate_at(recipe.train, 1000), rel=0.2)
    assert len(seqvae_load(folder / "best")) == 16


def seqvae_load(folder: Path) -> torch.Tensor:
    """A latent vector of a checkpoint."""
    import seqvae as package

    return package.load(folder).encode([groove(3)])[0][0]


def test_a_run_without_time_left_does_nothing_and_may_get_more_time(
    begin: Begin, recipe: Recipe, time: Time, tmp_path: Path
) -> None:
    begin(recipe)
    state = (tmp_path / "run" / "state.safetensors").read_bytes()
    before = time.seconds
    begin(recipe, resume=True)
    assert time.seconds == before
    assert (tmp_path / "run" / "state.safetensors").read_bytes() == state
    reports = begin(replace(recipe, train=replace(recipe.train, minutes=1.5)), resume=True)
    assert "60 s of 90 s used" in reports[0]
    assert 29 <= time.seconds - before <= 30


def test_an_interrupted_run_uses_the_rest_of_its_time_budget(
    begin: Begin, recipe: Recipe, time: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.seconds
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 20)
        begin(recipe)
    assert progress(tmp_path / "run")["seconds"] == time.seconds - began
    time.seconds += 500  # time between two runs
    begin(recipe, resume=True)
    assert 558 <= time.seconds - began <= 560


@pytest.mark.parametrize("pretrain", [0, 2000])
def test_the_shortest_run_still_makes_a_checkpoint(
    begin: Begin, recipe: Recipe, time: Time, tmp_path: Path, pretrain: int
) -> None:
    objective = replace(recipe.objective, pretrain_steps=pretrain)
    begin(replace(recipe, objective=objective, train=replace(recipe.train, minutes=0.01)))
    assert progress(tmp_path / "run")["step"] == 1
    assert len(seqvae_load(tmp_path / "run" / "best")) == 16


def test_the_decoder_is_reset_once_at_the_scheduled_step(
    begin: Begin, recipe: Recipe, time: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    monkeypatch.setattr(Run, "restart_decoder", lambda self: steps.append(self.progress.step))
    begin(replace(recipe, objective=replace(recipe.objective, pretrain_steps=500)))
    [at] = steps
    assert 0.4 < at / progress(tmp_path / "run")["step"] < 0.6


def test_processes_share_the_time_and_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now", Time())

    class Second(Ranks):
        def add(self, tensors: Any) -> None:
            tensors[0] += torch.tensor([7.0, 1.0])  # the value of the first process

    other = Clock(1, 0.0, Second(rank=1, count=2), lambda: False)
    assert other.read() == 7
    assert other.interrupted


# --- time left --------------------------------------------------------------------------------------------------------


def test_the_time_left_is_reported_in_the_first_seconds(begin: Begin, recipe: Recipe, time: Time) -> None:
    steps = replace(recipe.train, minutes=0.0, steps=150, evaluate_every=150)
    reports = begin(replace(recipe, train=steps))
    [first] = [line for line in reports if "about" in line]
    assert first == "step 2: about 2 min left"
    [later] = [line for line in reports if line.startswith("step 100:")]
    assert later.endswith(", 50 s left")
    assert "step 2: about 58 s left" in begin(recipe, "timed")


# --- interrupts -------------------------------------------------------------------------------------------------------


def interrupt_at(monkeypatch: pytest.MonkeyPatch, at: int, number: int = signal.SIGINT) -> None:
    """Ctrl-C, or the signal of a batch system, in the middle of a step."""
    step = Run.step

    def interrupted(self: Run, tokens: Any) -> Loss:
        if self.progress.step == at - 1:
            signal.raise_signal(number)
        return step(self, tokens)

    monkeypatch.setattr(Run, "step", interrupted)


@pytest.fixture
def thirty(recipe: Recipe) -> Recipe:
    """Thirty steps, with all settings that draw random numbers."""
    objective = replace(recipe.objective, word_dropout=0.3, denoise=0.1)
    config = replace(recipe.train, minutes=0.0, steps=30, warmup_steps=5, evaluate_every=10, mix=0.5)
    return replace(recipe, objective=objective, train=config)


@pytest.mark.parametrize(("at", "number"), [(17, signal.SIGINT), (20, signal.SIGTERM), (3, signal.SIGINT)])
def test_an_interrupted_run_is_saved_and_resumes_bit_by_bit(
    begin: Begin, thirty: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, number: int
) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    begin(thirty, "straight")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        interrupt_at(patch, at, number)
        begin(thirty, "cut")
    folder = tmp_path / "cut"
    assert str(caught.value) == (
        f"interrupted at step {at}: the state is in {folder}, a model of this step in {folder / 'last'}"
    )
    assert progress(folder)["step"] == at
    assert len(seqvae_load(folder / "last")) == 16
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    begin(thirty, "cut", resume=True)
    (one, about), (two, other) = (
        checkpoint.load_tensors(tmp_path / name / "state.safetensors") for name in ("straight", "cut")
    )
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert about["progress"] == other["progress"]
    assert log(tmp_path / "straight", "valid") == log(folder, "valid")
    assert not (folder / "last").exists(), "not needed beside the best of a finished run"


def test_an_interrupt_in_the_last_step_ends_the_run_normally(
    begin: Begin, thirty: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(monkeypatch, 30)
    begin(thirty)
    assert progress(tmp_path / "run")["step"] == 30


def test_an_interrupted_run_without_time_left_is_validated_and_kept(
    begin: Begin, recipe: Recipe, time: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(recipe, train=replace(recipe.train, evaluate_every=1000))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            begin(recipe)
    assert not (tmp_path / "run" / "best").exists()
    here = (tmp_path / "run" / "last" / "model.safetensors").read_bytes()
    begin(replace(recipe, train=replace(recipe.train, minutes=0.1)), resume=True)
    assert (tmp_path / "run" / "best" / "model.safetensors").read_bytes() == here
    assert progress(tmp_path / "run")["best"] == pytest.approx(log(tmp_path / "run", "valid")[0]["loss"], abs=1e-5)


def test_a_second_interrupt_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts() as came:
        assert not came()
        signal.raise_signal(signal.SIGINT)
        assert came()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts() as came:
            signal.raise_signal(signal.SIGINT)
            assert not came()
    finally:
        signal.signal(signal.SIGINT, before)


def test_signals_are_not_caught_in_another_thread() -> None:
    found: list[bool] = []

    def work() -> None:
        with interrupts() as came:
            found.append(came())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


@pytest.mark.usefixtures("here")
def test_the_command_names_the_saved_state_and_how_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(12):
        song(Path("songs") / ("calm", "wild")[i % 2] / f"song{i}.mid", i)
    settings = ["model.latent=16", "model.width=32", "model.hidden=16", "train.batch_tokens=512"]
    run = ["train", "music", "--data", "songs", "--out", "run", *(f"--set={s}" for s in settings), "--minutes", 5]
    interrupt_at(monkeypatch, 2)
    result = seqvae(*run)
    assert (result.exit_code, result.stdout) == (130, "")
    line = result.stderr.splitlines()[-1]
    assert line.startswith(
        "seqvae: interrupted at step 2: the state is in run, a model of this step in run/last; continue"
    )
    assert re.search(r"`seqvae train music --data=songs --out=run .*--set=train\.minutes=5\.0 --resume`$", line)
    done("blend", "songs/calm/song0.mid", "-m", "run/last", "--from", "calm", "--to", "wild", "-o", "b.mid")


@pytest.mark.usefixtures("here")
def test_a_second_interrupt_ends_with_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Run, tokens: Any) -> Loss:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "step", interrupted)
    Path("normal.txt").write_text("".join(f"open read{i} close\n" for i in range(9)))
    result = seqvae("train", "hdfs", "--data", "normal.txt", "--out", "run", "--set=model.width=16")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].startswith("seqvae: interrupted; continue with `seqvae train hdfs ")


def test_an_interrupt_while_modules_are_imported_leaves_no_traceback() -> None:
    broken = "import sys, builtins, runpy; real = builtins.__import__\n" + (
        "def slow(name, *args, **kwargs):\n"
        "    if name == 'typer': raise KeyboardInterrupt\n"
        "    return real(name, *args, **kwargs)\n"
        "builtins.__import__ = slow; runpy.run_module('seqvae', run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", broken], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "seqvae: interrupted\n")


# --- validation pieces ------------------------------------------------------------------------------------------------


def never(self: Run, tokens: Any) -> Loss:
    raise AssertionError("a step was made")


def test_one_piece_and_its_copies_are_refused_before_the_first_step(
    thirty: Recipe, tokenizer: MidiTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "step", never)
    for split in ("train", "valid"):
        title = next(f"song {i}" for i in range(1000) if split_of(f"song {i}") == split)
        data = shards.tokenize(thirty, [("rock", title, groove(0))] * 3, tokenizer, tmp_path / split)
        with pytest.raises(SeqVAEError, match=r"only one song, or copies of one.*of 3 read.*add another"):
            train.train(thirty, data, tokenizer, tmp_path / "run", resume=False, report=lambda _: None)


def test_pieces_without_content_are_refused_before_the_first_step(
    thirty: Recipe, tokenizer: MidiTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "step", never)
    titles = {split: next(f"song {i}" for i in range(1000) if split_of(f"song {i}") == split)
              for split in ("train", "valid")}  # fmt: skip
    silence = replace(groove(0), notes=groove(0).notes[:0])
    pieces = [("rock", titles["train"], groove(0)), ("rock", titles["valid"], silence)]
    data = shards.tokenize(thirty, pieces, tokenizer, tmp_path / "data")
    with pytest.raises(SeqVAEError, match="validation split have no segment with content"):
        train.train(thirty, data, tokenizer, tmp_path / "run", resume=False, report=lambda _: None)


@pytest.mark.usefixtures("here")
def test_two_distinct_sessions_repeated_many_times_can_be_trained_on() -> None:
    kinds = [kind for i in range(300) if split_of(kind := f"open read{i} close") == "train"][:2]
    Path("normal.txt").write_text("".join(f"{kind}\n" for kind in kinds * 20))
    settings = ["model.latent=4", "model.width=16", "model.hidden=16", "train.steps=2"]
    run = ["train", "hdfs", "--data", "normal.txt", "--out", "run", *(f"--set={s}" for s in settings)]
    result = seqvae(*run)
    assert (result.exit_code, result.stdout) == (0, "run/best\n"), result.stderr
    assert "20 sessions to train on" in result.stderr
    Path("one.txt").write_text(f"{kinds[0]}\n" * 20)
    again = *run[:2], "--data", "one.txt", "--out", "other", *run[6:]
    assert "only one session, or copies of one" in last_error_line(seqvae(*again))
    Path("one.txt").write_text(f"{kinds[0]}\n{kinds[1]}\n")
    result = seqvae(*again)
    assert (result.exit_code, result.stdout) == (0, "other/best\n"), "the file is read again"


@pytest.mark.usefixtures("here")
@pytest.mark.filterwarnings("error")
def test_validation_on_one_segment_is_not_a_collapse() -> None:
    Path("two.txt").write_text("open read close\nopen write sync close\n")
    settings = ["model.latent=4", "model.width=16", "model.hidden=16", "train.steps=2", "objective.beta=0.01"]
    result = seqvae("train", "hdfs", "--data", "two.txt", "--out", "run", *(f"--set={s}" for s in settings))
    assert (result.exit_code, result.stdout) == (0, "run/best\n"), result.stderr
    assert log(Path("run"), "valid")[-1]["kl_bits"] > 1.0
    assert "warning" not in result.stderr.lower()
