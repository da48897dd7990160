"""The training loop, for every kind of sequence: from recipe and data to a checkpoint folder.

Scope: the order of work, the times of validation, saving and stopping, and reports. Out of scope: a step
(train/trainer.py), tokenization (modality.py), the command line (cli/app.py).

A run's folder holds `data/` (token shards), `state.safetensors` (everything a resumed run needs, replaced in one move),
`best/` (the checkpoint with the best validation loss) and `log.jsonl` (one line a report). An interrupted run also has
the checkpoint of its last step in `last/`, until it is finished.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
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
from seqvae.modality import modality
from seqvae.protocols import Tokenizer
from seqvae.train.clock import Clock, interrupts, span
from seqvae.train.fit_styles import fit_styles
from seqvae.train.metrics import collapsed
from seqvae.train.trainer import Run, rate_at

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
    """Hold the lock of a run's folder; the system releases it when the process ends, and its file is removed."""
    path = folder / "lock"
    with path.open("w") as file:
        with contextlib.suppress(ImportError):  # Windows has no such locks
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.path.samestat(os.fstat(file.fileno()), path.stat()):  # its last holder has just removed it
                    raise BlockingIOError
            except OSError as error:
                reason = "another process trains here; wait for it, or choose another --out"
                raise SeqVAEError(f"{folder}: {reason}") from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows does not remove open files
                path.unlink()


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove the folders that are empty, the innermost first."""
    with contextlib.suppress(OSError):
        for one in folders:
            one.rmdir()


def _train(
    recipe: Recipe, data: TokenData, tokenizer: Tokenizer, folder: Path, resume: bool, start: str | Path | None,
    report: Report,
) -> Path:  # fmt: skip
    keep_memory()
    report = report if parallel.join().rank == 0 else lambda _: None
    run = Run(recipe, data, tokenizer, folder, report)
    config, progress, ranks = recipe.train, run.progress, run.ranks
    if ranks.broadcast((folder / "state.safetensors").exists):
        if not resume:
            raise SeqVAEError(f"{folder}: holds a run already; add --resume to go on with it, or choose another --out")
        run.load_state()
        progress = run.progress
        used = f", {span(progress.seconds)} of {span(60 * config.minutes)} used" if config.minutes else ""
        report(f"resumed at step {progress.step}{used or f' of {config.steps}'}")
    elif start is not None:
        fits, count = run.begin_from(start)
        report(f"begins with the weights of {start}: {fits:,} of {count:,} fit")
    elif modality(recipe.tokenizer.kind).content == "songs" and len(data) < FEW_SONGS:
        report(f"only {len(data)} songs: `--start music --minutes 5` fine-tunes a model of thousands of songs")
    run.cut_log()
    parameters = sum(p.numel() for p in run.model.parameters())
    where = run.device.type + (f" in {ranks.count} processes" if ranks.count > 1 else "")
    report(f"{parameters / 1e6:.1f} M parameters, {'bf16' if run.bf16 else 'fp32'} on {where}, "
           f"{len(run.batches)} pieces to train on")  # fmt: skip
    run.compile()
    with interrupts() as interrupted:
        _loop(run, Clock(config.minutes, progress.seconds, ranks, interrupted), report)
    if ranks.rank == 0:
        shutil.rmtree(folder / "last", ignore_errors=True)
    return folder / "best"


def _loop(run: Run, clock: Clock, report: Report) -> None:
    """Run steps until the run is finished; raises KeyboardInterrupt after saving if it must stop early."""
    config, progress, folder = run.recipe.train, run.progress, run.folder
    timed = clock.budget > 0
    began, tokens_seen, told = clock.used, 0, False
    bar = tqdm(
        total=clock.budget or config.steps, initial=clock.used if timed else progress.step, unit="step", smoothing=0.02,
        bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}" if timed else None,
        disable=True if run.ranks.rank else None,
    )  # fmt: skip
    batches = run.batches.resume(progress.epoch, progress.position)
    last = progress.seconds >= clock.budget if timed else progress.step >= config.steps
    if last and math.isinf(progress.best):  # no time or step is left, but nothing was validated yet
        _validate(run, last, report)
        run.save_state()
    while not last:
        run.share, before = clock.share, progress.place
        progress.epoch, progress.position, tokens = next(batches)
        result = run.step(tokens)
        tokens_seen += int((tokens != 0).sum())
        progress.recent.append([result.reconstruction, result.kl, result.accuracy, result.beta])
        seconds = clock.step()
        bar.update(seconds if timed else 1)
        last = clock.over if timed else progress.step >= config.steps
        left = clock.left(config.steps - progress.step)
        if bar.disable and not told and clock.used - began >= FIRST_WORD:
            report(f"step {progress.step}: about {left} left")
            told = True
        if progress.step % 100 == 0:
            _tell(run, tokens_seen / (clock.used - began), left, bar, report)
        due = progress.place // config.evaluate_every > before // config.evaluate_every and clock.may_validate
        if due or last:
            _validate(run, last, report)
            bar.update(clock.validated() if timed else 0)
        if timed:
            progress.seconds = max(clock.used, clock.budget) if last else clock.used
        if progress.step % config.save_every == 0 or last or clock.interrupted:
            run.save_state()
        if clock.interrupted and not last:
            run.save("last")
            bar.close()
            where = f"the state is in {folder}, a model of this step in {folder / 'last'}"
            raise KeyboardInterrupt(f"interrupted at step {progress.step}: {where}")
    bar.close()


def _tell(run: Run, per_second: float, left: str, bar: Any, report: Report) -> None:
    """Log and report means over the steps since the last report."""
    progress = run.progress
    reconstruction, kl, accuracy, beta = np.mean(progress.recent, 0).tolist()
    progress.recent.clear()
    line = {
        "step": progress.step, "loss": reconstruction + beta * kl, "reconstruction": reconstruction,
        "kl_bits": kl / LN2, "beta": beta, "accuracy": accuracy, "tokens_per_second": per_second,
        "learning_rate": rate_at(run.recipe.train, progress.place),
    }  # fmt: skip
    run.log("train", line)
    bar.set_postfix_str(f"loss {line['loss']:.1f} nats, KL {line['kl_bits']:.0f} bits, {per_second:.0f} tokens/s")
    if bar.disable:
        report(f"step {progress.step}: loss {line['loss']:.2f} nats, KL {line['kl_bits']:.1f} bits, accuracy "
               f"{accuracy:.3f}, beta {beta:.3f}, {per_second:.0f} tokens/s, {left} left")  # fmt: skip


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
