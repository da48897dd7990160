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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from seqvae import checkpoint, distributed, shards
from seqvae.checkpoint import Checkpoint
from seqvae.config import Recipe, TrainConfig, from_dict, to_dict
from seqvae.dataset import Batches, Ints, Split, TokenData
from seqvae.distributed import Part, clip, divide, like, sharded, whole
from seqvae.errors import ConfigError, ReadError, SeqVAEError
from seqvae.layers import TransformerLayer, multiplies_bf16
from seqvae.model import PAD, SequenceVAE
from seqvae.objective import Loss, loss
from seqvae.trained_styles import fit_styles
from seqvae.validation import collapsed, told
from seqvae.vocabulary import Tokenizer

Report = Callable[[str], None]
LN2 = math.log(2)


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
        self.ranks = distributed.join()
        if recipe.train.compile and self.ranks.count * recipe.train.accumulate > 1:
            raise ConfigError(
                "train.compile: works on whole batches; set it to false, or take one process and one pass"
            )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(recipe.train.seed)
        self.model: SequenceVAE = checkpoint.build(recipe.model, tokenizer).to(self.device)
        self.ranks.copy(self.model.parameters())  # the same seed may make others on another processor
        if recipe.train.shard and self.ranks.count > 1:
            distributed.shard(self.model, TransformerLayer)
        # embeddings, keys and vectors are not decayed: a key that shrinks no longer undoes what it bound
        named = dict(self.model.named_parameters())
        matrices = [n for n, p in named.items() if p.ndim > 1 and "binding" not in n and "place" not in n]
        self.names = [matrices, [n for n in named if n not in set(matrices)]]
        groups = [
            {"params": kind, "weight_decay": decay}
            for names, decay in zip(self.names, (recipe.train.weight_decay, 0.0), strict=True)
            for apart in (False, True)  # what is in shards is not updated along with what is not
            if (kind := [named[name] for name in names if sharded(named[name]) == apart])
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.train.learning_rate, betas=(0.9, 0.98), fused=True)
        self.bf16 = half_precision(recipe.train, self.device)
        self.progress = Progress()
        self.batches = self._batches("train", recipe.train.batch_tokens, recipe.train.max_windows)
        self.held_out = self._batches("valid", 4 * recipe.train.batch_tokens, 8)
        if not len(self.batches):
            raise SeqVAEError(f"{folder}: every piece fell into the validation splits; add more pieces")

    def _batches(self, split: Split, tokens: int, windows: int) -> Batches:
        return Batches(self.data, split, self.recipe.model.chunks, tokens, windows, self.recipe.train.seed)

    # --- state --------------------------------------------------------------------------------------------------------

    def _states(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter, and how the names of its optimizer's state begin."""
        named = dict(self.model.named_parameters())
        for i, names in enumerate(self.names):
            for j, name in enumerate(names):
                yield f"optimizer.{i}.{j}.", named[name]

    def save_state(self) -> None:
        """Everything a resumed run needs, in any number of processes; to the bit in as many."""
        tensors: dict[str, Tensor] = {f"model.{k}": whole(v).cpu() for k, v in self.model.state_dict().items()}
        for prefix, parameter in self._states():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[prefix + key] = whole(value).cpu()
        if self.ranks.rank:
            return
        tensors["random"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(self.device)
        about = {"progress": json.dumps(self.progress.__dict__), "recipe": json.dumps(to_dict(self.recipe))}
        checkpoint.save_tensors(tensors, about, self.folder / "state.safetensors")

    def load_state(self) -> None:
        """Go on where `save_state` left off; raises ConfigError if the model or the tokenizer has changed."""
        # read once: the other machines need not see the folder
        path = self.folder / "state.safetensors"
        tensors, about = self.ranks.from_first(lambda: checkpoint.load_tensors(path))
        before = from_dict(Recipe, json.loads(about["recipe"]), "state")
        if (before.model, before.tokenizer) != (self.recipe.model, self.recipe.tokenizer):
            raise ConfigError(f"{self.folder}: was trained with another model or tokenizer; choose another --out")
        weights = self.model.state_dict()
        self.model.load_state_dict({k: like(tensors[f"model.{k}"], v) for k, v in weights.items()})
        for prefix, parameter in self._states():
            # the step counter of fused AdamW lives on the parameter's device in fp32, in one piece
            state = {
                k[len(prefix) :]: like(v, parameter) if v.ndim else v.to(self.device, copy=True)
                for k, v in tensors.items()
                if k.startswith(prefix)
            }
            if state:
                self.optimizer.state[parameter] = state
        torch.set_rng_state(tensors["random"])
        if self.device.type == "cuda" and "random_cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random_cuda"], self.device)
        self.progress = Progress(**json.loads(about["progress"]))
        self.set_rate()  # an encoder that leads goes on at the rate of the last step

    def whole_model(self) -> SequenceVAE:
        """The model with all of its weights in this process: a copy where it holds a shard of them."""
        if not any(map(sharded, self.model.parameters())):
            return self.model
        with self._fork():
            model = checkpoint.build(self.recipe.model, self.tokenizer).to(self.device)
        model.load_state_dict({k: whole(v) for k, v in self.model.state_dict().items()})
        return model

    def save_best(self) -> None:
        """The checkpoint of this moment."""
        model = self.whole_model()
        if self.ranks.rank == 0:
            checkpoint.save(Checkpoint(self.recipe, model, self.tokenizer), self.folder / "best")

    def log(self, kind: str, figures: dict[str, float]) -> None:
        """Append one line to the run's log."""
        if self.ranks.rank == 0:
            with (self.folder / "log.jsonl").open("a") as file:
                file.write(json.dumps({"kind": kind, **{k: round(float(v), 6) for k, v in figures.items()}}) + "\n")

    # --- work ---------------------------------------------------------------------------------------------------------

    def tensors(self, tokens: Ints) -> tuple[Tensor, Tensor]:
        """`tokens (B, C, T)` and their cues `(B, C, T, K)` on the model's device."""
        cues = self.tokenizer.cues(tokens)
        return torch.from_numpy(tokens).long().to(self.device), torch.from_numpy(cues).long().to(self.device)

    def _fork(self, wanted: bool = True) -> contextlib.AbstractContextManager[None]:
        """What is drawn within it is as if it had not been, where `wanted`."""
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [], enabled=wanted)

    def loss(
        self, tokens: Ints, training: bool, model: SequenceVAE | None = None,
        mean_kl: Callable[[Tensor], Tensor] | None = None,
    ) -> Loss:  # fmt: skip
        """The loss of `tokens (B, C, T)` at this step; of a part of a batch, `mean_kl` as `whole` in objective.loss."""
        inputs, cues = self.tensors(tokens)
        rules = self.tokenizer.allowed(tokens)
        allowed = None if rules is None else torch.from_numpy(rules).to(self.device)
        step = self.progress.step
        return loss(model or self.model, inputs, cues, self.recipe.objective, step, training, allowed, mean_kl)

    def part_loss(
        self, tokens: Ints, part: Part, mean_kl: Callable[[Tensor], Tensor] | None = None, again: bool = False
    ) -> Loss:
        """The loss of a part of a batch `tokens (B, C, T)`; with `again`, what follows draws the same noise."""
        with (
            self._fork(again),
            part.noise(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16),
        ):
            return self.loss(tokens[part.rows], training=True, mean_kl=mean_kl)

    def gradient(self, tokens: Ints) -> Loss:
        """Leave the gradient of a batch `tokens (B, C, T)` with every process, which computes its parts of it.

        Returns the figures of the batch. All are, to rounding, those of one pass over it.
        """
        self.optimizer.zero_grad(set_to_none=True)
        ranks, objective = self.ranks, self.recipe.objective
        parts = divide((tokens != PAD).sum((1, 2)), ranks.count * self.recipe.train.accumulate)
        if len(parts) == 1:
            result = self.part_loss(tokens, parts[0])
            result.total.backward()  # type: ignore[no-untyped-call]
            return result
        mine = list(ranks.mine(parts))

        def mean(kl: Sequence[Tensor]) -> Tensor:
            """Of the whole batch, from those of the parts of each process."""
            total = torch.stack([one * (part.count / len(tokens)) for part, one in zip(mine, kl, strict=True)]).sum(0)
            ranks.add([total])
            return total

        mean_kl: Callable[[Tensor], Tensor] | None = None
        if objective.free_bits > 0 or objective.free_bits_total > 0 or objective.target_kl > 0:
            known: Tensor | None = None
            if len(mine) > 1:  # none can go back before the mean of all is known: go through them once for that alone
                with torch.no_grad():
                    known = mean([self.part_loss(tokens, part, again=True).kl_per_unit for part in mine])

            def mean_kl(kl: Tensor) -> Tensor:
                return mean([kl]) if known is None else known

        figures = torch.zeros(4 + self.recipe.model.latent, device=self.device)
        for part in mine:
            result = self.part_loss(tokens, part, mean_kl, again=part is not mine[-1])
            (result.total * part.share).backward()  # type: ignore[no-untyped-call]
            total, rows = float(result.total.detach()), part.count / len(tokens)
            means = [total * part.share, result.reconstruction * rows, result.kl * rows, result.accuracy * part.share]
            figures += torch.cat([figures.new_tensor(means), result.kl_per_unit * rows])
        # FSDP has added up what is in shards
        ranks.add([figures, *(p.grad for p in self.model.parameters() if p.grad is not None and not sharded(p))])
        reconstruction, kl, accuracy = figures[1:4].tolist()
        return Loss(figures[0], reconstruction, kl, result.beta, accuracy, figures[4:])

    def restart_decoder(self) -> None:
        """Give the decoder fresh weights, but for the embeddings and keys that the encoder reads with."""
        with self._fork():
            torch.manual_seed(self.recipe.train.seed + 1)
            fresh = dict(checkpoint.build(self.recipe.model, self.tokenizer).decoder.named_parameters())
        for name, parameter in self.model.decoder.named_parameters():
            if not name.startswith("binding."):
                with torch.no_grad():
                    parameter.copy_(like(fresh[name], parameter))
                self.optimizer.state.pop(parameter, None)

    def set_rate(self) -> None:
        """The learning rate of this step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.recipe.train, self.progress.step)

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
            result = self.gradient(self.batches.strangers(count, rng))
            for parameter in self.model.decoder.parameters():
                parameter.grad = None  # the optimizer passes over what has none
            clip(self.model.encoder.parameters(), self.recipe.train.clip)
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
        self.set_rate()
        result = self.gradient(tokens)
        norm = clip(self.model.parameters(), config.clip)
        total = float(result.total.detach())
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise SeqVAEError(
                f"step {progress.step}: the loss is {total} and its gradient's norm {norm} at batch "
                f"{progress.position} of epoch {progress.epoch}; the state saved last is as it was, resume with a "
                "lower train.learning_rate"
            )
        self.optimizer.step()
        return result

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Figures on segments of the validation split, always the same ones; training's randomness is not touched.

        Each process measures its rows of every batch, and the first what needs them all.
        """
        totals = torch.zeros(3, dtype=torch.float64, device=self.device)
        mine: list[tuple[Tensor, ...]] = []  # means, log-variances and draws
        shown: dict[int, Ints] = {}  # some tokens, and the number of the first of them
        seen = 0
        model = self.whole_model().eval()
        with self._fork():
            torch.manual_seed(0)
            for rows, firsts in self.held_out.some(self.recipe.train.validation_segments):
                tokens = self.data.gather(rows, firsts, self.recipe.model.chunks)
                part = divide((tokens != PAD).sum((1, 2)), self.ranks.count)[self.ranks.rank]
                with part.noise(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                    result = self.loss(tokens[part.rows], training=False, model=model)
                    posterior = model.encode(*self.tensors(tokens[part.rows]))
                    measured = posterior.mean, posterior.logvar, posterior.sample()
                mine.append(tuple(tensor[: part.count].cpu() for tensor in measured))
                means = result.reconstruction * part.count, result.kl * part.count
                totals += totals.new_tensor([*means, result.accuracy * part.share * len(tokens)])
                shown |= {seen: tokens[:16]} if len(shown) < 4 else {}
                seen += len(tokens)
                if seen >= self.recipe.train.validation_segments:
                    break
        if not seen:
            raise SeqVAEError(f"{self.folder}: no piece fell into the validation split; add more pieces")
        self.ranks.add([totals])
        found = [tuple(tensor.to(self.device) for tensor in one) for one in self.ranks.in_order(mine)]
        figures = self.ranks.from_first(
            lambda: told(model, self.tokenizer, self.recipe.objective, (totals / seen).tolist(), found, shown)
        )
        self.model.train()
        return figures


def train(recipe: Recipe, data: TokenData, tokenizer: Tokenizer, folder: Path, *, resume: bool, report: Report) -> Path:
    """Train to `recipe.train.steps` and return the folder of the best checkpoint.

    Of several processes, the first alone writes there. Raises SeqVAEError when `folder` holds a run and `resume` is
    False, when another run trains there, and when the loss is no longer a number.
    """
    with contextlib.ExitStack() as held:

        def hold() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(_alone(folder))

        distributed.join().from_first(hold)
        tell = report if distributed.join().rank == 0 else lambda _: None
        return _train(recipe, data, tokenizer, folder, resume, tell)


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
    config, progress, ranks = recipe.train, run.progress, run.ranks
    if ranks.from_first((folder / "state.safetensors").exists):
        if not resume:
            raise SeqVAEError(f"{folder}: holds a run already; add --resume to go on with it, or choose another --out")
        run.load_state()
        progress = run.progress
        report(f"resumed at step {progress.step} of {config.steps}")
    parameters = sum(p.numel() for p in run.model.parameters())
    where = run.device.type + (f" in {ranks.count} processes" if ranks.count > 1 else "")
    report(f"{parameters / 1e6:.1f} M parameters, {'bf16' if run.bf16 else 'fp32'} on {where}, "
           f"{len(run.batches)} pieces to train on")  # fmt: skip
    if config.compile:
        run.model.compile()
    recent: list[tuple[float, ...]] = []
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
    report: Report = print,
) -> tuple[Path, list[ReadError]]:  # fmt: skip
    """From files to a finished checkpoint: read, tokenize, train, fit the styles; what the command `train` does.

    `data` and `tokenizer` as in `shards.prepare`. Returns the checkpoint's folder and what could not be read. A run
    that has its shards does not read the files again; of several processes, the first reads them for all. Raises
    SeqVAEError as `train` and `prepare` do.
    """
    ranks = distributed.join()
    prepared, spelled, skipped = ranks.by_turns(
        lambda: shards.prepare(
            recipe, data, folder / "data", tokenizer=tokenizer, report=report, make_them=ranks.rank == 0
        )
    )
    best = train(recipe, prepared, spelled, folder, resume=resume, report=report)
    if ranks.rank == 0:
        fit_styles(best, prepared, report)
    ranks.leave()
    return best, skipped
