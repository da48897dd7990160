"""Training: one loop for every kind of sequence, from recipe and data to a checkpoint folder.

Knows: the order of work, when to validate, save and stop, and what to report. Refuses to know: how a step is taken
(run.py), how a piece becomes tokens (tokenizer.py), what a user asks for (cli.py).

A run's folder holds `data/` (token shards), `state.safetensors` (everything a resumed run needs, replaced in one move),
`best/` (the checkpoint with the best validation loss) and `log.jsonl` (one line a report).
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from seqvae import distributed, shards
from seqvae.config import Recipe
from seqvae.dataset import TokenData
from seqvae.errors import ReadError, SeqVAEError
from seqvae.run import Run, rate_at
from seqvae.trained_styles import fit_styles
from seqvae.validation import collapsed
from seqvae.vocabulary import Tokenizer

Report = Callable[[str], None]
LN2 = math.log(2)


def keep_memory() -> None:
    """Tell glibc to keep large blocks: giving back and faulting in every temporary tensor costs a tenth of the time."""
    with contextlib.suppress(OSError, AttributeError):  # another system has another allocator, and no need
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        library.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def train(
    recipe: Recipe, data: TokenData, tokenizer: Tokenizer, folder: Path, *, resume: bool, report: Report,
    start: str | Path | None = None,
) -> Path:  # fmt: skip
    """Train to `recipe.train.steps` and return the folder of the best checkpoint.

    A run that is not resumed begins with random weights, or with those of the checkpoint `start`. Of several processes,
    the first alone writes there. Raises SeqVAEError when `folder` holds a run and `resume` is
    False, when another run trains there, and when the loss is no longer a number.
    """
    with _held(folder):
        return _train(recipe, data, tokenizer, folder, resume, start, report)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The lock of a run's folder, which the first of several processes holds for all."""
    with contextlib.ExitStack() as held:

        def hold() -> None:
            new = [one for one in (folder, *folder.parents) if not one.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            held.callback(_remove_empty, new)
            held.enter_context(_alone(folder))

        distributed.join().from_first(hold)
        yield


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder; it goes with the process, however that ends, and its file when all is well."""
    path = folder / "lock"
    with path.open("w") as file:
        with contextlib.suppress(ImportError):  # Windows has no such locks
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.path.samestat(os.fstat(file.fileno()), path.stat()):  # who held it has just removed it
                    raise BlockingIOError
            except OSError as error:
                reason = "another process trains here; wait for it, or choose another --out"
                raise SeqVAEError(f"{folder}: {reason}") from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows removes no open file
                path.unlink()


def _remove_empty(folders: Sequence[Path]) -> None:
    """Those that have nothing in them, the innermost first."""
    with contextlib.suppress(OSError):
        for one in folders:
            one.rmdir()


def _train(
    recipe: Recipe, data: TokenData, tokenizer: Tokenizer, folder: Path, resume: bool, start: str | Path | None,
    report: Report,
) -> Path:  # fmt: skip
    keep_memory()
    report = report if distributed.join().rank == 0 else lambda _: None
    run = Run(recipe, data, tokenizer, folder, report)
    config, progress, ranks = recipe.train, run.progress, run.ranks
    if ranks.from_first((folder / "state.safetensors").exists):
        if not resume:
            raise SeqVAEError(f"{folder}: holds a run already; add --resume to go on with it, or choose another --out")
        run.load_state()
        progress = run.progress
        report(f"resumed at step {progress.step} of {config.steps}")
    elif start is not None:
        fits, count = run.begin_from(start)
        report(f"begins with the weights of {start}: {fits:,} of {count:,} fit")
    run.cut_log()
    parameters = sum(p.numel() for p in run.model.parameters())
    where = run.device.type + (f" in {ranks.count} processes" if ranks.count > 1 else "")
    report(f"{parameters / 1e6:.1f} M parameters, {'bf16' if run.bf16 else 'fp32'} on {where}, "
           f"{len(run.batches)} pieces to train on")  # fmt: skip
    run.compile()
    started, tokens_seen = time.monotonic(), 0
    bar = tqdm(
        total=config.steps, initial=progress.step, unit="step", smoothing=0.02, disable=True if ranks.rank else None
    )
    batches = run.batches.resume(progress.epoch, progress.position)
    while progress.step < config.steps:
        progress.epoch, progress.position, tokens = next(batches)
        count = int((tokens != 0).sum())
        result = run.step(tokens)
        tokens_seen += count
        progress.recent.append([result.reconstruction, result.kl, result.accuracy, result.beta])
        bar.update()
        if progress.step % 100 == 0:
            reconstruction, kl, accuracy, beta = np.mean(progress.recent, 0).tolist()
            progress.recent.clear()
            seconds = time.monotonic() - started
            line = {
                "step": progress.step, "loss": reconstruction + beta * kl, "reconstruction": reconstruction,
                "kl_bits": kl / LN2, "beta": beta, "accuracy": accuracy, "tokens_per_second": tokens_seen / seconds,
                "learning_rate": rate_at(config, progress.step),
            }  # fmt: skip
            run.log("train", line)
            bar.set_postfix_str(
                f"loss {line['loss']:.1f} nats, KL {line['kl_bits']:.0f} bits, {line['tokens_per_second']:.0f} tokens/s"
            )
            if bar.disable:
                report(f"step {progress.step}: loss {line['loss']:.2f} nats, KL {line['kl_bits']:.1f} bits, accuracy "
                       f"{accuracy:.3f}, beta {beta:.3f}, {line['tokens_per_second']:.0f} tokens/s")  # fmt: skip
        if progress.step % config.evaluate_every == 0 or progress.step == config.steps:
            figures = run.validate()
            run.log("valid", {"step": progress.step, **figures})
            report("valid: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
            pretraining = progress.step <= recipe.objective.pretrain_steps
            warning = collapsed(figures, recipe.model.latent)
            if warning and not (recipe.objective.autoencoder or pretraining):
                report(warning)
            if recipe.objective.aggressive and not pretraining:
                progress.settled |= figures["mutual_information"] <= progress.information
                progress.information = max(progress.information, figures["mutual_information"])
            if figures["loss"] < progress.best and not pretraining:
                progress.best = figures["loss"]
                run.save_best()
        if progress.step % config.save_every == 0 or progress.step == config.steps:
            run.save_state()
    bar.close()
    return folder / "best"


def train_from(
    recipe: Recipe, data: Sequence[Path | str], folder: Path, *, tokenizer: Path | None = None, resume: bool = False,
    start: str | Path | None = None, report: Report = print,
) -> tuple[Path, list[ReadError]]:  # fmt: skip
    """From files to a finished checkpoint: read, tokenize, train, fit the styles; what the command `train` does.

    `data` and `tokenizer` as in `shards.prepare`, `start` as in `train`. Returns the checkpoint's folder and what could
    not be read. A run that has its shards does not read the files again; of several processes, the first reads them for
    all. Raises SeqVAEError as `train` and `prepare` do.
    """
    ranks = distributed.join()
    with _held(folder):
        prepared, spelled, skipped = ranks.by_turns(
            lambda: shards.prepare(
                recipe, data, folder / "data", tokenizer=tokenizer, report=report, make_them=ranks.rank == 0
            )
        )
        best = _train(recipe, prepared, spelled, folder, resume, start, report)
        if ranks.rank == 0:
            fit_styles(best, prepared, report)
    ranks.leave()
    return best, skipped
