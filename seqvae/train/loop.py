"""The training loop, for every kind of sequence: from recipe and data to a checkpoint folder.

Scope: the order of work, the times of validation, saving and stopping, and reports. Out of scope: a step
(train/trainer.py), the saved state (train/state.py), tokenization (modality.py), the command line (cli/app.py).

A run's folder holds `data/` (token shards), `state.safetensors` (everything a resumed run needs, replaced in one move),
`best/` (the checkpoint with the best validation loss) and `log.jsonl` (one line a report). An interrupted run also has
the checkpoint of its last step in `last/`, until it is finished.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from seqvae import parallel
from seqvae.config import Recipe
from seqvae.data import prepare as shards
from seqvae.data.dataset import TokenData
from seqvae.errors import ReadError, SeqVAEError
from seqvae.io.locks import lock_file
from seqvae.modality import counted, modality
from seqvae.protocols import PAD, Tokenizer
from seqvae.train.clock import Clock, interrupts, span
from seqvae.train.fit_styles import fit_styles
from seqvae.train.metrics import collapsed
from seqvae.train.state import rate_at
from seqvae.train.trainer import Run

Report = Callable[[str], None]
LN2 = math.log(2)
FIRST_WORD = 2.0  # seconds until a run without progress bar reports its expected time
FEW_SONGS = 200  # with fewer songs, a model trained from random weights learns little
LAST_PIECES, LAST_SEGMENTS = 500, 4  # maximum per style after an interrupt, so that the user does not wait long


def keep_memory() -> None:
    """Make glibc keep large blocks: freeing and faulting in every temporary tensor costs a tenth of the time."""
    with contextlib.suppress(OSError, AttributeError):  # other systems have other allocators
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        library.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def train(
    recipe: Recipe, data: TokenData, tokenizer: Tokenizer, folder: Path, *, resume: bool, report: Report,
    start: str | Path | None = None,
) -> Path:  # fmt: skip
    """Train for `recipe.train.steps` or `recipe.train.minutes`, and return the folder of the best checkpoint.

    A run that is not resumed starts from random weights, or from those of the checkpoint `start`. Of several processes,
    only the first writes files. On SIGINT or SIGTERM the current step is finished, the state and the checkpoint `last`
    are written, and KeyboardInterrupt is raised with a line that names them. Raises SeqVAEError if `folder` holds a run
    and `resume` is False, if another run trains there, if there are no two different pieces, and if the loss is NaN or
    infinite.
    """
    with _held(folder):
        return _train(recipe, data, tokenizer, folder, resume, start, report)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder; the first of several processes holds it for all."""
    with contextlib.ExitStack() as held:

        def hold() -> None:
            new = [one for one in (folder, *folder.parents) if not one.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            held.callback(_remove_empty, new)
            held.enter_context(_alone(folder))

        parallel.join().broadcast(hold)
        yield


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder; raises SeqVAEError if another process has it."""
    with lock_file(folder / "lock") as held:
        if not held:
            reason = "another process trains here; wait for it, or choose another --out"
            raise SeqVAEError(f"{folder}: {reason}")
        yield


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove the folders that are empty, the innermost first."""
    with contextlib.suppress(OSError):
        for one in folders:
            one.rmdir()


def _train(
    recipe: Recipe, data: TokenData, tokenizer: Tokenizer, folder: Path, resume: bool, start: str | Path | None,
    report: Report,
) -> Path:  # fmt: skip
    """As `train`, under the folder's lock."""
    keep_memory()
    report = report if parallel.join().rank == 0 else lambda _: None
    run = Run(recipe, data, tokenizer, folder, report)
    _begin(run, resume, start, report)
    run.cut_log()
    report(_summary(run))
    run.compile()
    with interrupts() as interrupted:
        _loop(run, Clock(recipe.train.minutes, run.progress.seconds, run.ranks, interrupted), report)
    if run.ranks.rank == 0:
        shutil.rmtree(folder / "last", ignore_errors=True)
    return folder / "best"


def _begin(run: Run, resume: bool, start: str | Path | None, report: Report) -> None:
    """Load the saved state, or the weights of the checkpoint `start`, or neither, and report it."""
    config, progress, folder = run.recipe.train, run.progress, run.folder
    if run.ranks.broadcast((folder / "state.safetensors").exists):
        if not resume:
            raise SeqVAEError(f"{folder}: holds a run already; add --resume to go on with it, or choose another --out")
        run.load_state()
        progress = run.progress
        used = f", {span(progress.seconds)} of {span(60 * config.minutes)} used" if config.minutes else ""
        report(f"resumed at step {progress.step}{used or f' of {config.steps}'}")
    elif start is not None:
        fits, count = run.begin_from(start)
        report(f"begins with the weights of {start}: {fits:,} of {count:,} fit")
    elif modality(run.recipe.tokenizer.kind).content == "songs" and len(run.data) < FEW_SONGS:
        report(
            f"only {len(run.data)} songs: `seqvae style fit mine=songs/ -m music -o mine.styles` makes them a style "
            "of a model of thousands of songs, in seconds"
        )


def _summary(run: Run) -> str:
    """Size, precision and device of a run in a line."""
    parameters = sum(p.numel() for p in run.model.parameters())
    where = run.device.type + (f" in {run.ranks.count} processes" if run.ranks.count > 1 else "")
    return (
        f"{parameters / 1e6:.1f} M parameters, {'bf16' if run.bf16 else 'fp32'} on {where}, "
        f"{counted(len(run.batches), run.tokenizer.kind)} to train on"
    )


def _loop(run: Run, clock: Clock, report: Report) -> None:
    """Run steps until the run is finished; raises KeyboardInterrupt after saving if it must stop early."""
    config, progress = run.recipe.train, run.progress
    timed = clock.budget > 0
    reports = _Reports(run, clock, report)
    batches = run.batches.resume(progress.epoch, progress.position)
    last = progress.seconds >= clock.budget if timed else progress.step >= config.steps
    if last and math.isinf(progress.best):  # no time or step is left, but nothing was validated yet
        _validate(run, last, report)
        run.save_state()
    while not last:
        run.share, before = clock.share, progress.place
        progress.epoch, progress.position, tokens = next(batches)
        result = run.step(tokens)
        progress.recent.append([result.reconstruction, result.kl, result.accuracy, result.beta])
        seconds = clock.step()
        last = clock.over if timed else progress.step >= config.steps
        reports.step(int((tokens != PAD).sum()), seconds)
        due = progress.place // config.evaluate_every > before // config.evaluate_every and clock.may_validate
        if due or last:
            _validate(run, last, report)
            reports.bar.update(clock.validated() if timed else 0)
        if timed:
            progress.seconds = max(clock.used, clock.budget) if last else clock.used
        if progress.step % config.save_every == 0 or last or clock.interrupted:
            run.save_state()
        if clock.interrupted and not last:
            run.save("last")
            reports.bar.close()
            where = f"the state is in {run.folder}, a model of this step in {run.folder / 'last'}"
            raise KeyboardInterrupt(f"interrupted at step {progress.step}: {where}")
    reports.bar.close()


class _Reports:
    """Progress bar, log and lines of a run's steps."""

    def __init__(self, run: Run, clock: Clock, report: Report) -> None:
        self.run, self.clock, self.report = run, clock, report
        self.timed = clock.budget > 0
        self.began, self.tokens = clock.used, 0
        self.announced = False
        """True once the expected time has been reported."""
        self.bar: Any = tqdm(
            total=clock.budget or run.recipe.train.steps, initial=clock.used if self.timed else run.progress.step,
            unit="step", smoothing=0.02, disable=True if run.ranks.rank else None,
            bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}" if self.timed else None,
        )  # fmt: skip

    def step(self, tokens: int, seconds: float) -> None:
        """Report a step that took `tokens` and `seconds`: the expected time once, metrics at every hundredth step."""
        progress, passed = self.run.progress, self.clock.used - self.began
        self.tokens += tokens
        self.bar.update(seconds if self.timed else 1)
        left = self.clock.left(self.run.recipe.train.steps - progress.step)
        if self.bar.disable and not self.announced and passed >= FIRST_WORD:
            self.report(f"step {progress.step}: about {left} left")
            self.announced = True
        if progress.step % 100 == 0:
            self._metrics(self.tokens / passed, left)

    def _metrics(self, per_second: float, left: str) -> None:
        """Log and report means over the steps since the last report."""
        progress = self.run.progress
        reconstruction, kl, accuracy, beta = np.mean(progress.recent, 0).tolist()
        progress.recent.clear()
        line = {
            "step": progress.step, "loss": reconstruction + beta * kl, "reconstruction": reconstruction,
            "kl_bits": kl / LN2, "beta": beta, "accuracy": accuracy, "tokens_per_second": per_second,
            "learning_rate": rate_at(self.run.recipe.train, progress.place),
        }  # fmt: skip
        self.run.log("train", line)
        short = f"loss {line['loss']:.1f} nats, KL {line['kl_bits']:.0f} bits, {per_second:.0f} tokens/s"
        self.bar.set_postfix_str(short)
        if self.bar.disable:
            self.report(
                f"step {progress.step}: loss {line['loss']:.2f} nats, KL {line['kl_bits']:.1f} bits, accuracy "
                f"{accuracy:.3f}, beta {beta:.3f}, {per_second:.0f} tokens/s, {left} left"
            )


def _validate(run: Run, last: bool, report: Report) -> None:
    """Validate, log and report the metrics, and save the best checkpoint."""
    recipe, progress = run.recipe, run.progress
    figures = run.validate()
    run.log("valid", {"step": progress.step, **figures})
    report("valid: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    pretraining = progress.place <= recipe.objective.pretrain_steps
    warning = collapsed(figures, recipe.model.latent, run.alike)
    if warning and not (recipe.objective.autoencoder or pretraining):
        report(warning)
    if recipe.objective.aggressive and not pretraining:
        progress.settled |= figures["mutual_information"] <= progress.information
        progress.information = max(progress.information, figures["mutual_information"])
    if (figures["loss"] < progress.best and not pretraining) or (last and math.isinf(progress.best)):
        progress.best = figures["loss"]
        run.save("best")


def train_from(
    recipe: Recipe, data: Sequence[Path | str], folder: Path, *, tokenizer: Path | None = None, resume: bool = False,
    start: str | Path | None = None, report: Report = print,
) -> tuple[Path, list[ReadError]]:  # fmt: skip
    """From files to a finished checkpoint: read, tokenize, train, fit styles; the command `train`.

    `data` and `tokenizer` as in `shards.prepare`, `start` as in `train`. Returns the checkpoint's folder and the files
    that could not be read. A resumed run does not read the files again; of several processes, the first reads them for
    all. Raises SeqVAEError as `train` and `prepare` do.
    """
    ranks = parallel.join()
    with _held(folder):
        first = ranks.rank == 0
        # without a saved state, shards may come from other files
        anew = first and not resume and not (folder / "state.safetensors").exists()
        prepared, spelled, skipped = ranks.by_turns(
            lambda: shards.prepare(
                recipe, data, folder / "data", tokenizer=tokenizer, report=report, make_them=first, anew=anew
            )
        )
        try:
            best = _train(recipe, prepared, spelled, folder, resume, start, report)
        except KeyboardInterrupt as stop:
            if stop.args:  # the state is saved
                if ranks.rank == 0:
                    fit_styles(folder / "last", prepared, lambda _: None, LAST_SEGMENTS, LAST_PIECES)
                ranks.leave()
            raise
        if ranks.rank == 0:
            fit_styles(best, prepared, report)
    ranks.leave()
    return best, skipped
