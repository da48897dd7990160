"""The jobs that crashes.py kills, and the states that they may leave on disk.

Scope: training, saving, tokenizing and fitting styles, each with its checks. Out of scope: killing (crash_child.py).
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads do not survive a fork
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import torch._dynamo  # takes a second, and the optimizer needs it
from crash_child import in_child

from seqvae import codec  # noqa: F401 (before the forks)
from seqvae.checkpoint import folder as checkpoint
from seqvae.cli import app as cli
from seqvae.cli import inputs as kinds  # noqa: F401 (before the forks)
from seqvae.config import ModelConfig, ObjectiveConfig, Recipe, TokenizerConfig, TrainConfig, to_dict
from seqvae.data import dataset
from seqvae.data import prepare as shards
from seqvae.data.dataset import TokenData
from seqvae.music import piece as midi
from seqvae.style import gaussian, styles_file
from seqvae.text.tokenizer import TextTokenizer
from seqvae.train import loop as train  # noqa: F401 (before the forks)
from seqvae.train.trainer import Run

SENTENCES = [
    f"the {noun} {verb} {how} and the {other} is {price}"
    for noun in ("food", "staff", "room", "soup", "wine")
    for verb in ("was", "is", "seemed")
    for how in ("good", "bad", "so so")
    for other in ("bar", "place", "view")
    for price in ("fine", "cold", "new", "dear")
]
RECIPE = Recipe(
    name="tiny",
    tokenizer=TokenizerConfig(kind="text", vocab_size=320, max_tokens=24),
    model=ModelConfig(chunks=1, latent=8, width=16, hidden=16, previous=True),
    objective=ObjectiveConfig(beta=0.05, anneal_steps=50, word_dropout=0.3, denoise=0.1),
    train=TrainConfig(
        steps=110, batch_tokens=512, learning_rate=1e-2, warmup_steps=10, evaluate_every=20, save_every=12,
        validation_segments=32, precision="fp32",
    ),
)  # fmt: skip


class WrongError(Exception):
    """The state on disk is not an allowed one."""


def digest(*parts: Any) -> str:
    """A digest of named tensors, bytes and values for JSON."""
    whole = hashlib.sha256()
    for part in parts:
        if isinstance(part, dict) and all(isinstance(x, torch.Tensor) for x in part.values()):
            for name in sorted(part):
                whole.update(f"{name} {part[name].dtype} {tuple(part[name].shape)} ".encode())
                whole.update(part[name].contiguous().numpy().tobytes())
        else:
            whole.update(part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode())
    return whole.hexdigest()[:16]


def of_folder(folder: Path) -> str:
    """The digest of a checkpoint: its loaded content, independent of the order in its files."""
    kept = checkpoint.load(folder)
    tokenizer = [path.read_bytes() for path in sorted((folder / "tokenizer").iterdir())]
    facts = [to_dict(kept.recipe), kept.about_styles, kept.metrics, kept.card]
    return digest(kept.model.state_dict(), kept.styles, *facts, *tokenizer)


def of_state(path: Path) -> str:
    """The digest of a training state."""
    return digest(*checkpoint.load_tensors(path))


def of_shards(folder: Path) -> str:
    """The digest of all tokens of a run's shards, and its vocabulary."""
    data = TokenData(folder)
    maps = [data.shard(number) for number in range(data.index["shards"])]
    tokenizer = [path.read_bytes() for path in sorted((folder / "tokenizer").iterdir())]
    return digest(data.index, *(x.tobytes() for one in maps for x in (one.tokens, one.ends, one.pieces)), *tokenizer)


# --- jobs -------------------------------------------------------------------------------------------------------------


def litter(root: Path) -> int:
    """The number of hidden or temporary files and folders below a folder."""
    return sum(path.name.startswith(".") or path.suffix == ".part" for path in root.rglob("*"))


@dataclass
class Work:
    """A job that writes below a folder of its own."""

    root: Path
    places = 1
    """Number of destinations that it writes to in turn."""

    def prepare(self) -> None:
        """Write the inputs of the job, and find its allowed states."""

    def act(self) -> None:
        """The job, in the child."""
        raise NotImplementedError

    def state(self) -> str:
        """The state on disk: `none` or a digest.

        Raises SeqVAEError for a state that the package refuses, and WrongError for a state that is not allowed.
        """
        raise NotImplementedError

    def killed(self) -> None:
        """Called after a child was killed and its state was checked."""

    def finished(self) -> None:
        """Called after a child ended by itself; raises WrongError unless the result is that of an undisturbed job."""
        if litter(self.root):
            raise WrongError(f"{litter(self.root)} temporary files are left")

    def again(self) -> None:
        """Reset, after a wrong state."""

    def command(self, *args: object) -> None:
        """Run a command of seqvae that must succeed."""
        try:
            cli.main([str(arg) for arg in args])
        except SystemExit as ended:
            if ended.code:
                raise RuntimeError(f"{' '.join(map(str, args))}: exit code {ended.code}") from ended


@dataclass
class Training(Work):
    """`seqvae train --resume`, from files of lines to a checkpoint with its styles."""

    states: set[str] = field(default_factory=set)
    bests: set[str] = field(default_factory=set)
    expected: list[Any] = field(default_factory=list)

    def write(self) -> None:
        """Write the lines and the recipe."""
        for name in ("good", "bad", "so so"):
            lines = [line for line in SENTENCES if f" {name} " in line]
            (self.root / f"{name.split()[0]}.txt").write_text("".join(f"{line}\n" for line in lines))
        (self.root / "tiny.json").write_text(json.dumps(to_dict(RECIPE)))

    def prepare(self) -> None:
        """Run once without interruption, and log the digests of all that is saved."""
        self.write()
        log = self.root / "saved.jsonl"

        def straight() -> None:
            save_state, save = Run.save_state, checkpoint.save

            def note(kind: str, found: str) -> None:
                with log.open("a") as file:
                    file.write(json.dumps([kind, found]) + "\n")

            def state(run: Run) -> None:
                save_state(run)
                note("state", of_state(run.folder / "state.safetensors"))

            def best(kept: checkpoint.Checkpoint, folder: Path) -> None:
                save(kept, folder)
                with torch.random.fork_rng():  # loading draws initial weights
                    note("best", of_folder(folder))

            Run.save_state, checkpoint.save = state, best  # type: ignore[method-assign, assignment]
            self.act()

        assert in_child(self, straight)[0] == 0
        for kind, found in map(json.loads, log.read_text().splitlines()):
            (self.states if kind == "state" else self.bests).add(found)
        self.expected = self.all()
        shutil.rmtree(self.root / "run")

    def act(self) -> None:
        """Start or resume."""
        data = [x for name in ("good", "bad", "so") for x in ("--data", self.root / f"{name}.txt")]
        self.command("train", self.root / "tiny.json", *data, "--out", self.root / "run", "--resume")

    def all(self) -> list[Any]:
        """The result of a finished run, without its speed."""
        run = self.root / "run"
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        log = [{name: x for name, x in line.items() if name != "tokens_per_second"} for line in log]
        names = sorted(str(path.relative_to(run)) for path in run.rglob("*"))
        return [of_state(run / "state.safetensors"), of_folder(run / "best"), of_shards(run / "data"), log, names]

    def state(self) -> str:
        """The training state and the best checkpoint, which are written one after the other."""
        run = self.root / "run"
        if (log := run / "log.jsonl").exists():
            for line in log.read_text().splitlines():
                json.loads(line)
        found = []
        for path, known, read in (
            (run / "state.safetensors", self.states, of_state), (run / "best", self.bests, of_folder),
        ):  # fmt: skip
            found.append(read(path) if path.exists() else "none")
            if found[-1] not in {*known, "none"}:
                raise WrongError(f"{path.name} differs from all that the uninterrupted run saved")
        return "none" if found == ["none", "none"] else " ".join(found)

    def finished(self) -> None:
        """The run equals the uninterrupted run to the bit."""
        super().finished()
        for one, other in zip(self.all(), self.expected, strict=True):
            if one != other:
                raise WrongError(f"after resuming: {one}; without interruption: {other}"[:2000])
        self.again()

    def again(self) -> None:
        """Reset."""
        shutil.rmtree(self.root / "run", ignore_errors=True)


@dataclass
class Saving(Work):
    """Checkpoints saved over each other, each with its number in every file."""

    begun: Any = field(default_factory=lambda: multiprocessing.Value("q", 0, lock=False))
    ended: Any = field(default_factory=lambda: multiprocessing.Value("q", 0, lock=False))

    def prepare(self) -> None:
        """Save the first checkpoint."""
        self.tokenizer = TextTokenizer.train(SENTENCES, 320, max_tokens=24)
        self.save(0)

    def save(self, number: int) -> None:
        """Save a checkpoint whose values all follow from `number`."""
        model = checkpoint.build(RECIPE.model, self.tokenizer)
        for tensor in model.state_dict().values():
            tensor.fill_(number % 2048)  # integers that half precision represents
        styles, about = styles_file.pack({"one": gaussian.fit([torch.full((3, 8), float(number)), torch.ones(2, 8)])})
        kept = checkpoint.Checkpoint(
            RECIPE, model, self.tokenizer, styles, about, {"number": number}, f"number {number}"
        )
        checkpoint.save(kept, self.root / "kept")

    def act(self) -> None:
        """Save twenty more checkpoints."""
        for number in range(self.ended.value + 1, self.ended.value + 21):
            self.begun.value = number
            self.save(number)
            self.ended.value = number

    def again(self) -> None:
        """Save a complete checkpoint."""
        self.save(self.ended.value)
        self.begun.value = self.ended.value

    def state(self) -> str:
        """The number, which must be the same in all files."""
        kept = checkpoint.load(self.root / "kept")
        number = kept.metrics["number"]
        found = {int(kept.card.split()[1]) % 2048, number % 2048}
        for tensor in kept.model.state_dict().values():
            found |= set(tensor.unique().long().tolist())
        mean = styles_file.unpack(kept.styles, kept.about_styles)["one"].mean
        if len(found) > 1 or not torch.allclose(mean, torch.full((8,), (number + 1) / 2)):
            raise WrongError(f"parts of different checkpoints: {sorted(found)}, mean {mean[0]}")
        if number not in (self.ended.value, self.begun.value):
            raise WrongError(f"number {number}, expected {self.ended.value} or {self.begun.value}")
        self.ended.value = self.begun.value = number
        return str(number)


@dataclass
class Tokenizing(Work):
    """Preparation of token shards and a vocabulary: lines and songs in turn, each in several shards."""

    expected: dict[str, str] = field(default_factory=dict)
    kind: str = "text"

    def prepare(self) -> None:
        """Write lines and songs, and find the digests of their shards."""
        rng = random.Random(0)
        lines = [" ".join(rng.choice(SENTENCES) for _ in range(2)) for _ in range(4000)]
        (self.root / "all.txt").write_text("".join(f"{line}\n" for line in lines))
        for i in range(60):
            rows = [[12 * at, 12, 48 + (i * at) % 30, 0, 80] for at in range(64)]
            frame = midi.make_frame(([(0, 400_000)], [(0, 4, 4)], []))
            midi.write(midi.to_score(np.array(rows, np.int32), frame), self.root / "music" / f"{i}.mid")
        for self.kind in ("text", "midi"):
            assert in_child(self, self.act)[0] == 0
            self.expected[self.kind] = of_shards(self.root / self.kind)
            shutil.rmtree(self.root / self.kind)

    def act(self) -> None:
        """Read, learn a vocabulary, tokenize and write."""
        dataset.SHARD_TOKENS = 10_000
        recipe = Recipe(tokenizer=TokenizerConfig(kind=self.kind, vocab_size=320, max_tokens=64))  # type: ignore[arg-type]
        source = self.root / ("all.txt" if self.kind == "text" else "music")
        shards.prepare(recipe, [source], self.root / self.kind, report=lambda _: None)

    def state(self) -> str:
        """The digest of all shards; `none` without an index."""
        folder = self.root / self.kind
        if not (folder / "index.json").exists():
            return "none"
        if (found := of_shards(folder)) != self.expected[self.kind]:
            raise WrongError("tokens or vocabulary differ from the uninterrupted job")
        return found

    def finished(self) -> None:
        """All shards must be there; then switch to the other kind."""
        super().finished()
        if self.state() == "none":
            raise WrongError("no index after the job ended")
        self.again()
        self.kind = "midi" if self.kind == "text" else "text"

    def again(self) -> None:
        """Reset."""
        shutil.rmtree(self.root / self.kind, ignore_errors=True)


@dataclass
class Fitting(Work):
    """`seqvae style fit` into an existing file, and with --add into the model's own folder, in turn."""

    known: dict[str, list[str]] = field(default_factory=lambda: {"file": [], "model": []})
    turn: int = 0
    places = 2

    def prepare(self) -> None:
        """Make a model and two sets of lines, and find the digests after fitting each."""
        training = Training(self.root)
        training.write()
        assert in_child(training, training.act)[0] == 0
        shutil.move(self.root / "run" / "best", self.root / "model")
        for name, how in (("one", "good"), ("two", "bad")):
            lines = [line for line in SENTENCES if f" {how} " in line]
            (self.root / f"{name}.lines").write_text("".join(f"{line}\n" for line in lines))
        for self.turn in range(4):
            assert in_child(self, self.act)[0] == 0
            self.known[self.place].append(self.found())
        self.turn = 0

    @property
    def place(self) -> str:
        """The destination of this turn."""
        return ("file", "model")[self.turn % 2]

    def found(self) -> str:
        """The digest of this turn's destination."""
        if self.place == "model":
            return of_folder(self.root / "model")
        return digest(*checkpoint.load_tensors(self.root / "my.styles"))

    def act(self) -> None:
        """Fit the set of this turn."""
        where = ["-o", self.root / "my.styles"] if self.place == "file" else ["--add"]
        lines = self.root / f"{('one', 'two')[self.turn // 2 % 2]}.lines"
        self.command("style", "fit", f"mine=@{lines}", "-m", self.root / "model", *where)

    def state(self) -> str:
        """The digest, which must be one of the two fits."""
        if (found := self.found()) not in self.known[self.place]:
            raise WrongError("the styles are neither of the two fits")
        return found

    def killed(self) -> None:
        """The next turn."""
        self.turn += 1

    def finished(self) -> None:
        """The fit must be this turn's."""
        if self.state() != self.known[self.place][self.turn // 2 % 2]:
            raise WrongError("the command ended, but the file is the old one")
        self.turn += 1


WORKS: dict[str, type[Work]] = {"train": Training, "save": Saving, "tokenize": Tokenizing, "style": Fitting}
