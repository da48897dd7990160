"""Training: one loop for every kind of sequence, from recipe and data to a checkpoint folder.

Knows: the order of work, the optimizer, the schedule of the learning rate, what a resumed run needs, what to report.
Refuses to know: how a piece becomes tokens (tokenizer.py), what the loss is (objective.py), what a user asks for
(cli.py).

A run's folder holds `data/` (token shards), `state.safetensors` (everything a resumed run needs, replaced in one move),
`best/` (the checkpoint with the best validation loss) and `log.jsonl` (one line a report).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from seqvae import checkpoint, mixture, shards, style
from seqvae.checkpoint import Checkpoint
from seqvae.codec import load
from seqvae.config import Recipe, TrainConfig, from_dict, to_dict
from seqvae.dataset import Batches, Ints, Split, TokenData, split_of
from seqvae.errors import ConfigError, ReadError, SeqVAEError
from seqvae.latent import Posterior, active_units, mutual_information
from seqvae.layers import multiplies_bf16
from seqvae.model import PAD, SequenceVAE
from seqvae.objective import Loss, loss
from seqvae.sampling import Sampling
from seqvae.vocabulary import Tokenizer

Report = Callable[[str], None]
LN2 = math.log(2)
STYLE_PIECES = 20000  # of one style at most: its mean is known long before
MIXTURE = 64  # groups of the mixture, where there are points enough: 16 and 256 drew sentences less like real ones
STYLE_BATCH = 4096  # segments gathered at a time


def rate_at(config: TrainConfig, step: int) -> float:
    """Learning rate of a step (1 is the first): a line up over the warm-up, then half a cosine down to `final_rate`."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    done = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    share = config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate * share


def half_precision(config: TrainConfig, device: torch.device) -> bool:
    """Whether to train under bf16 autocast."""
    if config.precision != "auto":
        return config.precision == "bf16"
    return multiplies_bf16(device)


def keep_memory() -> None:
    """Tell glibc to keep large blocks: giving back and faulting in every temporary tensor costs a tenth of the time."""
    with contextlib.suppress(OSError, AttributeError):  # another system has another allocator, and no need
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        library.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


@dataclass
class Progress:
    """Where a run is; saved with its state."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    best: float = math.inf
    information: float = 0.0
    """Largest mutual information that a validation found, in nats."""
    settled: bool = False
    """It has stopped to rise, and the encoder is updated with the rest (He et al. 2019)."""


class Run:
    """A training run in a folder: start it, resume it, step through it."""

    def __init__(self, recipe: Recipe, data: TokenData, tokenizer: Tokenizer, folder: Path, report: Report) -> None:
        self.recipe, self.data, self.tokenizer, self.folder, self.report = recipe, data, tokenizer, folder, report
        if recipe.objective.denoise_by == "drop" and tokenizer.cue_sizes:
            raise ConfigError("objective.denoise_by: a token that is left out would leave its cue behind; choose mask")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(recipe.train.seed)
        self.model: SequenceVAE = checkpoint.build(recipe.model, tokenizer).to(self.device)
        # embeddings, keys and vectors are not decayed: a key that shrinks no longer undoes what it bound
        matrices = [
            p for n, p in self.model.named_parameters() if p.ndim > 1 and "binding" not in n and "place" not in n
        ]
        decayed = set(map(id, matrices))
        vectors = [p for p in self.model.parameters() if id(p) not in decayed]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": recipe.train.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=recipe.train.learning_rate, betas=(0.9, 0.98), fused=True,
        )  # fmt: skip
        self.bf16 = half_precision(recipe.train, self.device)
        self.progress = Progress()
        self.batches = self._batches("train", recipe.train.batch_tokens, recipe.train.max_windows)
        if not len(self.batches.row_ids):
            raise SeqVAEError(f"{folder}: every piece fell into the validation splits; add more pieces")

    def _batches(self, split: Split, tokens: int, windows: int) -> Batches:
        return Batches(self.data, split, self.recipe.model.chunks, tokens, windows, self.recipe.train.seed)

    # --- state --------------------------------------------------------------------------------------------------------

    def save_state(self) -> None:
        """Everything a resumed run needs to go on to the bit."""
        tensors: dict[str, Tensor] = {f"model.{k}": v.cpu() for k, v in self.model.state_dict().items()}
        for i, group in enumerate(self.optimizer.param_groups):
            for j, parameter in enumerate(group["params"]):
                for key, value in self.optimizer.state.get(parameter, {}).items():
                    tensors[f"optimizer.{i}.{j}.{key}"] = value.cpu()
        tensors["random"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(self.device)
        about = {"progress": json.dumps(self.progress.__dict__), "recipe": json.dumps(to_dict(self.recipe))}
        checkpoint.save_tensors(tensors, about, self.folder / "state.safetensors")

    def load_state(self) -> None:
        """Go on where `save_state` left off; raises ConfigError if the model or the tokenizer has changed."""
        tensors, about = checkpoint.load_tensors(self.folder / "state.safetensors")
        before = from_dict(Recipe, json.loads(about["recipe"]), "state")
        if (before.model, before.tokenizer) != (self.recipe.model, self.recipe.tokenizer):
            raise ConfigError(f"{self.folder}: was trained with another model or tokenizer; choose another --out")
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        for i, group in enumerate(self.optimizer.param_groups):
            for j, parameter in enumerate(group["params"]):
                prefix = f"optimizer.{i}.{j}."
                state = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
                if state:
                    # the step counter of fused AdamW lives on the parameter's device in fp32
                    self.optimizer.state[parameter] = {k: v.clone().to(self.device) for k, v in state.items()}
        torch.set_rng_state(tensors["random"])
        if self.device.type == "cuda" and "random_cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random_cuda"], self.device)
        self.progress = Progress(**json.loads(about["progress"]))

    def save_best(self) -> None:
        """The checkpoint of this moment."""
        checkpoint.save(Checkpoint(self.recipe, self.model, self.tokenizer), self.folder / "best")

    # --- work ---------------------------------------------------------------------------------------------------------

    def tensors(self, tokens: Ints) -> tuple[Tensor, Tensor]:
        """`tokens (B, C, T)` and their cues `(B, C, T, K)` on the model's device."""
        cues = self.tokenizer.cues(tokens)
        return torch.from_numpy(tokens).long().to(self.device), torch.from_numpy(cues).long().to(self.device)

    def loss(self, tokens: Ints, training: bool) -> Loss:
        """The loss of `tokens (B, C, T)` at this step."""
        inputs, cues = self.tensors(tokens)
        rules = self.tokenizer.allowed(tokens)
        allowed = None if rules is None else torch.from_numpy(rules).to(self.device)
        return loss(self.model, inputs, cues, self.recipe.objective, self.progress.step, training, allowed)

    def restart_decoder(self) -> None:
        """Give the decoder fresh weights, but for the embeddings and keys that the encoder reads with."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.recipe.train.seed + 1)
            fresh = dict(checkpoint.build(self.recipe.model, self.tokenizer).decoder.named_parameters())
        for name, parameter in self.model.decoder.named_parameters():
            if not name.startswith("binding."):
                with torch.no_grad():
                    parameter.copy_(fresh[name])
                self.optimizer.state.pop(parameter, None)

    def lead(self) -> None:
        """Bring the encoder up to the decoder before both move (He et al. 2019): up to `objective.aggressive` updates.

        It ends when ten updates have not lowered the loss of the ten before.
        """
        objective = self.recipe.objective
        if self.progress.settled or self.progress.step < objective.pretrain_steps:
            return
        rng = np.random.default_rng([self.recipe.train.seed, self.progress.step, 1])
        count = max(1, self.recipe.train.batch_tokens // 32)
        before, losses = math.inf, []
        for _ in range(objective.aggressive):
            tokens = self.batches.strangers(count, rng)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                result = self.loss(tokens, training=True)
            self.optimizer.zero_grad(set_to_none=True)
            result.total.backward()  # type: ignore[no-untyped-call]
            for parameter in self.model.decoder.parameters():
                parameter.grad = None  # the optimizer passes over what has none
            torch.nn.utils.clip_grad_norm_(self.model.encoder.parameters(), self.recipe.train.clip)
            self.optimizer.step()
            losses.append(float(result.total.detach()))
            if len(losses) == 10:
                if not np.mean(losses) < before:
                    break
                before, losses = float(np.mean(losses)), []

    def step(self, tokens: Ints) -> Loss:
        """One optimizer step; raises SeqVAEError, before any weight moves, when loss or gradient is not finite."""
        config, progress = self.recipe.train, self.progress
        # what is random about a batch follows from its place, so that a resumed run draws the same
        rng = np.random.default_rng([config.seed, progress.epoch, progress.position])
        if rng.random() < config.mix:
            tokens = self.tokenizer.mix(tokens, self.batches.strangers(len(tokens), rng), rng)
            tokens = tokens[: max(1, config.batch_tokens // (tokens.shape[1] * tokens.shape[2]))]
        if config.transpose:
            shifts = rng.integers(-config.transpose, config.transpose + 1, len(tokens))
            for shift in np.unique(shifts):
                tokens[shifts == shift] = self.tokenizer.augment(tokens[shifts == shift], int(shift))
        objective = self.recipe.objective
        if objective.pretrain_steps and progress.step == objective.pretrain_steps:
            self.restart_decoder()
        if objective.aggressive:
            self.lead()
        progress.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(config, progress.step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            result = self.loss(tokens, training=True)
        self.optimizer.zero_grad(set_to_none=True)
        result.total.backward()  # type: ignore[no-untyped-call]
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip))
        total = float(result.total.detach())
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise SeqVAEError(
                f"step {progress.step}: the loss is {total} and its gradient's norm {norm} at batch "
                f"{progress.position} of epoch {progress.epoch}; the state saved last is as it was, resume with a "
                "lower train.learning_rate"
            )
        self.optimizer.step()
        return result

    def free_running(self, tokens: Ints, z: Tensor) -> float:
        """F1 between segments `tokens (B, C, T)` and what their `z (B, D)` decode to, greedily and alone.

        Counted over the pairs of a token and its cue, so that for music a note counts where program, position and pitch
        are right, whatever was decoded before it.
        """
        grammar = self.tokenizer.grammar()
        rows = tokens.reshape(-1, tokens.shape[-1])
        written = self.model.write(z, grammar, grammar.start(len(rows)), Sampling(max_tokens=2 * tokens.shape[-1]))

        def pairs(row: Ints) -> Counter[tuple[int, ...]]:
            row = row[row != PAD]
            return Counter(map(tuple, np.column_stack([row, self.tokenizer.cues(row)]).tolist()))

        common = total = 0
        for a, b in zip(rows, (chunk for segment in written for chunk in segment), strict=True):
            x, y = pairs(a), pairs(b)
            common += (x & y).total()
            total += x.total() + y.total()
        return 2 * common / total

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Figures on segments of the validation split, always the same ones; training's randomness is not touched."""
        batches = self._batches("valid", 4 * self.recipe.train.batch_tokens, 8).epoch(0)
        if not batches:
            raise SeqVAEError(f"{self.folder}: no piece fell into the validation split; add more pieces")
        totals: dict[str, float] = {"reconstruction": 0.0, "kl": 0.0, "accuracy": 0.0}
        means, logvars, draws, seen = [], [], [], 0
        free: list[float] = []
        self.model.eval()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)
            for rows, firsts in batches:
                tokens = self.data.gather(rows, firsts, self.recipe.model.chunks)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                    result = self.loss(tokens, training=False)
                    posterior = self.model.encode(*self.tensors(tokens))
                for key in totals:
                    totals[key] += getattr(result, key) * len(tokens)
                means.append(posterior.mean)
                logvars.append(posterior.logvar)
                draws.append(posterior.sample())
                if len(free) < 4:
                    free.append(self.free_running(tokens[:16], posterior.mean[:16]))
                seen += len(tokens)
                if seen >= self.recipe.train.validation_segments:
                    break
        self.model.train()
        posterior = Posterior(torch.cat(means)[:512], torch.cat(logvars)[:512])
        figures = {key: value / seen for key, value in totals.items()}
        objective = self.recipe.objective
        charged = 0.0 if objective.autoencoder else objective.beta * figures["kl"]
        return {
            "loss": figures["reconstruction"] + charged,
            "elbo": -(figures["reconstruction"] + figures["kl"]),
            "kl_bits": figures["kl"] / LN2,
            "active_units": float(active_units(torch.cat(means))),
            "mutual_information": mutual_information(posterior, torch.cat(draws)[:512]),
            "accuracy": figures["accuracy"],
            "free_running": float(np.mean(free)),
        }


def collapsed(figures: dict[str, float], latent: int) -> str | None:
    """A warning in words when the posterior says next to nothing, or None."""
    if figures["kl_bits"] > 1.0 and figures["active_units"] > 0.05 * latent:
        return None
    return (
        f"warning: the posterior is collapsing (KL {figures['kl_bits']:.2f} bits, "
        f"{figures['active_units']:.0f} of {latent} units active): lower objective.beta, raise objective.free_bits, "
        "objective.bag or objective.word_dropout, or lengthen objective.anneal_steps"
    )


def train(recipe: Recipe, data: TokenData, tokenizer: Tokenizer, folder: Path, *, resume: bool, report: Report) -> Path:
    """Train to `recipe.train.steps` and return the folder of the best checkpoint.

    Raises SeqVAEError when `folder` holds a run and `resume` is False, when another process trains there, and when the
    loss is no longer a number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        return _train(recipe, data, tokenizer, folder, resume, report)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder; it goes with the process, however that ends."""
    with (folder / "lock").open("w") as file:
        try:
            import fcntl
        except ImportError:  # Windows has no such locks
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SeqVAEError(f"{folder}: another process trains here; wait for it, or choose another --out") from error
        yield


def _train(recipe: Recipe, data: TokenData, tokenizer: Tokenizer, folder: Path, resume: bool, report: Report) -> Path:
    keep_memory()
    run = Run(recipe, data, tokenizer, folder, report)
    config, progress = recipe.train, run.progress
    if (folder / "state.safetensors").exists():
        if not resume:
            raise SeqVAEError(f"{folder}: holds a run already; add --resume to go on with it, or choose another --out")
        run.load_state()
        progress = run.progress
        report(f"resumed at step {progress.step} of {config.steps}")
    parameters = sum(p.numel() for p in run.model.parameters())
    report(f"{parameters / 1e6:.1f} M parameters, {'bf16' if run.bf16 else 'fp32'} on {run.device.type}, "
           f"{len(run.batches.row_ids)} pieces to train on")  # fmt: skip
    step: Callable[[Any], Loss] = run.step
    if config.compile:
        run.model.compile()
    recent: list[tuple[float, ...]] = []
    started, tokens_seen = time.monotonic(), 0
    bar = tqdm(total=config.steps, initial=progress.step, unit="step", disable=None, smoothing=0.02)
    batches = run.batches.resume(progress.epoch, progress.position)
    while progress.step < config.steps:
        progress.epoch, progress.position, tokens = next(batches)
        count = int((tokens != 0).sum())
        result = step(tokens)
        tokens_seen += count
        recent.append((result.reconstruction, result.kl, result.accuracy, result.beta))
        bar.update()
        if progress.step % 100 == 0:
            reconstruction, kl, accuracy, beta = np.mean(recent, 0)
            recent.clear()
            seconds = time.monotonic() - started
            line = {
                "step": progress.step, "loss": reconstruction + beta * kl, "reconstruction": reconstruction,
                "kl_bits": kl / LN2, "beta": beta, "accuracy": accuracy, "tokens_per_second": tokens_seen / seconds,
                "learning_rate": rate_at(config, progress.step),
            }  # fmt: skip
            log(folder, "train", line)
            bar.set_postfix_str(
                f"loss {line['loss']:.1f} nats, KL {line['kl_bits']:.0f} bits, {line['tokens_per_second']:.0f} tokens/s"
            )
            if bar.disable:
                report(f"step {progress.step}: loss {line['loss']:.2f} nats, KL {line['kl_bits']:.1f} bits, accuracy "
                       f"{accuracy:.3f}, beta {beta:.3f}, {line['tokens_per_second']:.0f} tokens/s")  # fmt: skip
        if progress.step % config.evaluate_every == 0 or progress.step == config.steps:
            figures = run.validate()
            log(folder, "valid", {"step": progress.step, **figures})
            report("valid: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
            warning = collapsed(figures, recipe.model.latent)
            if warning and not (recipe.objective.autoencoder or progress.step <= recipe.objective.pretrain_steps):
                report(warning)
            pretraining = progress.step <= recipe.objective.pretrain_steps
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
    recipe: Recipe, data: Sequence[Path], folder: Path, *, tokenizer: Path | None = None, resume: bool = False,
    report: Report = print,
) -> tuple[Path, list[ReadError]]:  # fmt: skip
    """From files to a finished checkpoint: read, tokenize, train, fit the styles; what the command `train` does.

    `data` and `tokenizer` as in `shards.prepare`. Returns the checkpoint's folder and what could not be read. A run
    that has its shards does not read the files again. Raises SeqVAEError as `train` and `prepare` do.
    """
    prepared, spelled, skipped = shards.prepare(recipe, data, folder / "data", tokenizer=tokenizer, report=report)
    best = train(recipe, prepared, spelled, folder, resume=resume, report=report)
    fit_styles(best, prepared, report)
    return best, skipped


def fit_styles(folder: Path, data: TokenData, report: Report, segments: int = 16) -> None:
    """Fit every style of the training split, and `all` of them together, and write them into the checkpoint.

    At most `segments` segments in a row of each piece, from a random place, and of at most STYLE_PIECES pieces.
    """
    codec = load(folder)
    rng = np.random.default_rng(0)
    by_style: dict[str, list[int]] = {}
    for number, row in enumerate(data.rows):
        if split_of(row.group) == "train":
            by_style.setdefault(row.style, []).append(number)
    latents: dict[str, list[Tensor]] = {}
    draws: list[Tensor] = []  # of the posteriors: what the mixture is to be like, wider than their means
    generator = torch.Generator().manual_seed(0)
    for name, numbers in sorted(by_style.items()):
        chosen = np.sort(rng.permutation(numbers)[:STYLE_PIECES])
        pieces, firsts, _ = data.windows(chosen, codec.chunks)
        # of each piece some segments in a row: rank them within the piece, and begin at a place of its own
        rank = np.arange(len(pieces)) - np.searchsorted(pieces, pieces)
        count = np.searchsorted(pieces, pieces, side="right") - np.searchsorted(pieces, pieces)
        begin = (rng.random(len(data.rows))[pieces] * np.maximum(1, count - segments + 1)).astype(np.int64)
        kept = (rank >= begin) & (rank < begin + segments)
        pieces, firsts = pieces[kept], firsts[kept]
        means: list[Tensor] = []
        for at in range(0, len(pieces), STYLE_BATCH):
            tokens = data.gather(pieces[at : at + STYLE_BATCH], firsts[at : at + STYLE_BATCH], codec.chunks)
            posterior = codec.posteriors([[chunk[chunk != PAD] for chunk in segment] for segment in tokens])
            means.append(posterior.mean)
            draws.append(posterior.sample(generator))
        if means:
            _, sizes = np.unique(pieces, return_counts=True)
            latents[name] = list(torch.split(torch.cat(means), sizes.tolist()))
    about = "{}: {} pieces of the training split"
    styles = {
        name: style.fit(z, f"{name}: {len(z)} pieces of the training split") for name, z in sorted(latents.items())
    }
    everything = [z for one in latents.values() for z in one]
    styles["all"] = style.fit(everything, about.format("all styles", len(everything)))
    kept = checkpoint.load(folder)
    kept.styles, kept.about_styles = style.pack(styles)
    if all(len(z) == 1 for z in everything):  # longer pieces are drawn segment after segment, each leaning on the last
        drawn = torch.cat(draws)
        kept.styles |= mixture.pack(mixture.fit(drawn, min(MIXTURE, max(1, len(drawn) // 300))))
    checkpoint.save(kept, folder)
    report("styles: " + ", ".join(f"{name} ({one.count} pieces)" for name, one in styles.items()))


def log(folder: Path, kind: str, figures: dict[str, float]) -> None:
    """Append one line to the run's log."""
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps({"kind": kind, **{k: round(float(v), 6) for k, v in figures.items()}}) + "\n")
