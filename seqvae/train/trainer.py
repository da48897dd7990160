"""A training run: the model, its optimizer, the position in the data, and one step.

Scope: the optimizer, the learning rate schedule, the division of a batch, the state for resuming. Out of scope: the
times of validation, saving and stopping, and reports (train/loop.py); tokenization (modality.py); the loss
(nn/loss.py).
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seqvae import parallel
from seqvae.checkpoint import folder as checkpoint
from seqvae.checkpoint.folder import Checkpoint
from seqvae.config import Recipe, TrainConfig, from_dict, to_dict
from seqvae.data.dataset import Ints, Longs, Split, TokenData
from seqvae.data.sampler import Batches
from seqvae.errors import ConfigError, SeqVAEError
from seqvae.io import files
from seqvae.nn.layers import Residual, TransformerLayer, multiplies_bf16
from seqvae.nn.loss import Loss, loss
from seqvae.nn.model import SequenceVAE
from seqvae.parallel import Part, clip, divide, like, sharded, whole
from seqvae.protocols import PAD, Tokenizer, spelling
from seqvae.train.metrics import validation_metrics

Report = Callable[[str], None]
LOWER = "the last saved state is unchanged, resume with a lower train.learning_rate"


def rate_at(config: TrainConfig, step: float) -> float:
    """Learning rate of a step (the first is 1): linear warm-up, then half a cosine down to `final_rate`."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    done = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    share = config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate * share


def half_precision(config: TrainConfig, device: torch.device) -> bool:
    """True to train under bf16 autocast.

    Raises ConfigError if `config` requires bf16 and the device has no instructions for it.
    """
    possible = multiplies_bf16(device)
    if config.precision == "bf16" and not possible:
        raise ConfigError(
            "train.precision: bf16 needs instructions that the processor lacks or ONEDNN_MAX_CPU_ISA disables; "
            "set it to auto or fp32"
        )
    return possible and config.precision != "fp32"


def _logged(line: str) -> float:
    """The step of a line of the log; infinity for an incomplete line."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, LookupError, TypeError):
        return math.inf


@dataclass
class Progress:
    """Progress of a run; saved with its state."""

    step: int = 0
    place: float = 0.0
    """Position in the recipe's schedule, in steps: the step, or the used share of `train.minutes` times all steps."""
    seconds: float = 0.0
    """Used seconds of `train.minutes`."""
    epoch: int = 0
    position: int = 0
    best: float = math.inf
    information: float = 0.0
    """Largest mutual information of a validation so far, in nats."""
    settled: bool = False
    """True once it has stopped rising; then the encoder is updated with the rest only (He et al. 2019)."""
    recent: list[list[float]] = field(default_factory=list)
    """Metrics of the steps since the last line of the log."""


class Run:
    """A training run in a folder: start, resume, step, validate."""

    def __init__(self, recipe: Recipe, data: TokenData, tokenizer: Tokenizer, folder: Path, report: Report) -> None:
        self.recipe, self.data, self.tokenizer, self.folder, self.report = recipe, data, tokenizer, folder, report
        if recipe.objective.denoise_by == "drop" and tokenizer.field_sizes:
            raise ConfigError("objective.denoise_by: tokens with position fields cannot be dropped; choose mask")
        self.ranks = parallel.join()
        if recipe.train.compile and self.ranks.count * recipe.train.accumulate > 1:
            raise ConfigError(
                "train.compile: works on whole batches; set it to false, or take one process and one pass"
            )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(recipe.train.seed)
        self.model: SequenceVAE = checkpoint.build(recipe.model, tokenizer).to(self.device)
        self.ranks.copy(self.model.parameters())  # the same seed may give other weights on another processor
        if recipe.train.shard and self.ranks.count > 1:
            parallel.shard(self.model, TransformerLayer)
        # no decay of embeddings, keys and vectors: a key that shrinks no longer unbinds what it bound
        named = dict(self.model.named_parameters())
        matrices = [n for n, p in named.items() if p.ndim > 1 and "binding" not in n and "field_embeddings" not in n]
        self.names = [matrices, [n for n in named if n not in set(matrices)]]
        groups = [
            {"params": kind, "weight_decay": decay}
            for names, decay in zip(self.names, (recipe.train.weight_decay, 0.0), strict=True)
            for apart in (False, True)  # sharded and whole tensors need separate groups
            if (kind := [named[name] for name in names if sharded(named[name]) == apart])
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.train.learning_rate, betas=(0.9, 0.98), fused=True)
        self.bf16 = half_precision(recipe.train, self.device)
        self.progress = Progress()
        self.share = 0.0
        """Used share of `train.minutes` at the next step."""
        self.batches = self._batches("train", recipe.train.batch_tokens, recipe.train.max_windows)
        self.validation = self._validation_batches()
        self.alike = self._alike()
        """True if all validation segments are equal."""

    def _batches(self, split: Split, tokens: int, windows: int) -> Batches:
        return Batches(self.data, split, self.recipe.model.chunks, tokens, windows, self.recipe.train.seed)

    def _validation_batches(self) -> list[tuple[Longs, Longs]]:
        """The batches of every validation: (pieces, first chunks) of segments.

        Raises SeqVAEError if there is nothing to train on or nothing to validate on.
        """
        config = self.recipe.train
        validation = self._batches("valid", 4 * config.batch_tokens, 8)
        if not len(self.batches) or not len(validation):  # with two groups each split has one, see dataset.cuts
            raise SeqVAEError(
                f"{self.folder}: there is only one piece, or copies of one, to train on and none to validate with "
                f"(of {len(self.data)} read, none has another title or text); add another"
            )
        chosen, segments = [], 0
        for batch in validation.some(config.validation_segments):
            chosen.append(batch)
            segments += len(batch[0])
            if segments >= config.validation_segments:
                break
        if not chosen:
            raise SeqVAEError(
                f"{self.folder}: the {len(validation)} pieces of the validation split have no segment with content and "
                f"at most {validation.max_tokens} tokens a chunk; add more pieces"
            )
        return chosen

    def _alike(self) -> bool:
        rows, firsts = (np.concatenate(part) for part in zip(*self.validation, strict=True))
        segments = (
            self.data.gather(rows[i : i + 1], firsts[i : i + 1], self.recipe.model.chunks) for i in range(len(rows))
        )
        first = next(segments)
        return all(np.array_equal(first, other) for other in segments)

    # --- state --------------------------------------------------------------------------------------------------------

    def _states(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter, with the prefix of its optimizer state's names."""
        named = dict(self.model.named_parameters())
        for i, names in enumerate(self.names):
            for j, name in enumerate(names):
                yield f"optimizer.{i}.{j}.", named[name]

    def save_state(self) -> None:
        """Save everything a resumed run needs, in any number of processes; resuming is bit-exact with the same number.

        Raises SeqVAEError, and keeps the saved state, if a weight is NaN or infinite.
        """
        tensors: dict[str, Tensor] = {
            f"model.{checkpoint.stored(k)}": whole(v).cpu() for k, v in self.model.state_dict().items()
        }
        for prefix, parameter in self._states():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[prefix + key] = whole(value).cpu()
        self._check_finite(tensors.values())
        if self.ranks.rank:
            return
        tensors["random"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(self.device)
        about = {"progress": json.dumps(self.progress.__dict__), "recipe": json.dumps(to_dict(self.recipe))}
        about["spelling"] = spelling(self.tokenizer)
        checkpoint.save_tensors(tensors, about, self.folder / "state.safetensors")

    def load_state(self) -> None:
        """Resume from the state of `save_state`; raises ConfigError if the model or the tokenizer has changed."""
        # read by the first process: other machines need not see the folder
        path = self.folder / "state.safetensors"
        tensors, about = self.ranks.broadcast(lambda: checkpoint.load_tensors(path))
        try:
            self._take(tensors, about)
        except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"{path}: is not a state of this run ({reason}); choose another --out") from error

    def _take(self, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
        """Load weights, optimizer, random generators and progress from a state."""
        before = from_dict(Recipe, json.loads(about["recipe"]), "state")
        same = about.get("spelling") in (None, spelling(self.tokenizer))  # None: from an earlier version
        if (before.model, before.tokenizer) != (self.recipe.model, self.recipe.tokenizer) or not same:
            raise ConfigError(f"{self.folder}: was trained with another model or tokenizer; choose another --out")
        weights = self.model.state_dict()
        self.model.load_state_dict({k: like(tensors[f"model.{checkpoint.stored(k)}"], v) for k, v in weights.items()})
        for prefix, parameter in self._states():
            # fused AdamW needs its step counter whole, in fp32, on the parameter's device
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
        progress = json.loads(about["progress"])
        self.progress = Progress(**{"place": progress["step"], **progress})  # earlier versions have steps alone
        self.set_rate()  # `lead` runs before the next step sets its rate

    def begin_from(self, name: str | Path) -> tuple[int, int]:
        """Load the weights of a checkpoint that have the same shape here; the numbers of loaded and of all weights.

        So a longer segment or another size of z starts with all weights that do not depend on it. Raises ConfigError
        for another tokenizer.
        """
        before = self.ranks.broadcast(lambda: checkpoint.load(name))
        if spelling(before.tokenizer) != spelling(self.tokenizer):
            raise ConfigError(f"{name}: has another tokenizer; leave out --start, or use its tokenizer")
        known, fits = before.model.state_dict(), 0
        weights = {}
        for key, now in self.model.state_dict().items():
            weights[key] = now
            if key in known and known[key].shape == now.shape:
                weights[key] = like(known[key], now)
                fits += now.numel()
        self.model.load_state_dict(weights)
        return fits, sum(tensor.numel() for tensor in weights.values())

    def whole_model(self) -> SequenceVAE:
        """The model with all of its weights in this process: a copy if the process holds a shard of them."""
        if not any(map(sharded, self.model.parameters())):
            return self.model
        with self._fork():
            model = checkpoint.build(self.recipe.model, self.tokenizer).to(self.device)
        model.load_state_dict({k: whole(v) for k, v in self.model.state_dict().items()})
        return model

    def save(self, name: str) -> None:
        """Save the current model as a checkpoint in the folder `name` of the run."""
        model = self.whole_model()
        if self.ranks.rank == 0:
            checkpoint.save(Checkpoint(self.recipe, model, self.tokenizer), self.folder / name)

    def _check_finite(self, tensors: Iterable[Tensor]) -> None:
        """Raise SeqVAEError if a weight or optimizer state is NaN or infinite."""
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            raise SeqVAEError(f"step {self.progress.step}: weights are NaN or infinite; {LOWER}")

    def cut_log(self) -> None:
        """Remove lines from the run's log after the resumed state; they will be logged again."""
        path = self.folder / "log.jsonl"
        if self.ranks.rank or not path.exists():
            return
        lines = path.read_text(errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if _logged(line) <= self.progress.step]
        if kept != lines:
            with files.whole(path) as part:
                part.write_text("".join(kept))

    def log(self, kind: str, figures: dict[str, float]) -> None:
        """Append one line to the run's log."""
        if self.ranks.rank == 0:
            path = self.folder / "log.jsonl"
            try:
                with path.open("a") as file:
                    file.write(json.dumps({"kind": kind, **{k: round(float(v), 6) for k, v in figures.items()}}) + "\n")
            except OSError as error:
                raise SeqVAEError(f"{path}: cannot be written ({error}); free some space, and --resume") from error

    # --- work ---------------------------------------------------------------------------------------------------------

    def tensors(self, tokens: Ints) -> tuple[Tensor, Tensor]:
        """`tokens (B, C, T)` and their position fields `(B, C, T, K)` on the model's device."""
        fields = self.tokenizer.position_fields(tokens)
        return torch.from_numpy(tokens).long().to(self.device), torch.from_numpy(fields).long().to(self.device)

    def _fork(self, wanted: bool = True) -> contextlib.AbstractContextManager[None]:
        """A context that restores the random generators afterwards, if `wanted`."""
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [], enabled=wanted)

    def loss(
        self, tokens: Ints, training: bool, model: SequenceVAE | None = None,
        mean_kl: Callable[[Tensor], Tensor] | None = None,
    ) -> Loss:  # fmt: skip
        """The loss of `tokens (B, C, T)` at this step; for a part of a batch, `mean_kl` is `whole` in nn/loss.py."""
        inputs, fields = self.tensors(tokens)
        rules = self.tokenizer.allowed(tokens)
        allowed = None if rules is None else torch.from_numpy(rules).to(self.device)
        place = self.progress.place
        return loss(model or self.model, inputs, fields, self.recipe.objective, place, training, allowed, mean_kl)

    def part_loss(
        self, tokens: Ints, part: Part, mean_kl: Callable[[Tensor], Tensor] | None = None, again: bool = False
    ) -> Loss:
        """The loss of a part of a batch `tokens (B, C, T)`; with `again`, later passes draw the same noise."""
        with (
            self._fork(again),
            part.noise(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16),
        ):
            return self.loss(tokens[part.rows], training=True, mean_kl=mean_kl)

    def gradient(self, tokens: Ints) -> Loss:
        """Compute the gradient of a batch `tokens (B, C, T)` in every process, each from its own parts.

        Returns the loss of the batch. Loss and gradients equal those of one pass over the batch, except for rounding.
        """
        self.optimizer.zero_grad(set_to_none=True)
        ranks, objective = self.ranks, self.recipe.objective
        parts = divide((tokens != PAD).sum((1, 2)), ranks.count * self.recipe.train.accumulate)
        if len(parts) == 1:
            result = self.part_loss(tokens, parts[0])
            result.total.backward()  # type: ignore[no-untyped-call]
            return result
        mine = list(ranks.shard(parts))

        def mean(kl: Sequence[Tensor]) -> Tensor:
            """The mean over the whole batch, from the means of each process's parts."""
            total = torch.stack([one * (part.count / len(tokens)) for part, one in zip(mine, kl, strict=True)]).sum(0)
            ranks.add([total])
            return total

        mean_kl: Callable[[Tensor], Tensor] | None = None
        if objective.free_bits > 0 or objective.free_bits_total > 0 or objective.target_kl > 0:
            known: Tensor | None = None
            if len(mine) > 1:  # backward needs the mean of all parts: a first pass computes it
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
        # FSDP has already summed sharded gradients
        ranks.add([figures, *(p.grad for p in self.model.parameters() if p.grad is not None and not sharded(p))])
        reconstruction, kl, accuracy = figures[1:4].tolist()
        return Loss(figures[0], reconstruction, kl, result.beta, accuracy, figures[4:])

    def compile(self) -> None:
        """Compile the feed-forward and transformer blocks, if `train.compile` is set, for batches of any shape.

        These blocks gain from it: compiling the whole model takes many times as long, and the computation of places,
        the LSTM and the softmax do not get faster.
        """
        if self.recipe.train.compile:
            for block in self.model.modules():
                if isinstance(block, Residual | TransformerLayer):
                    block.compile(dynamic=True, options={"fallback_random": True})  # same noise as without

    def restart_decoder(self) -> None:
        """Initialise the decoder again, except for the embeddings and keys that it shares with the encoder."""
        with self._fork():
            torch.manual_seed(self.recipe.train.seed + 1)
            fresh = dict(checkpoint.build(self.recipe.model, self.tokenizer).decoder.named_parameters())
        for name, parameter in self.model.decoder.named_parameters():
            if not name.startswith("binding."):
                with torch.no_grad():
                    parameter.copy_(like(fresh[name], parameter))
                self.optimizer.state.pop(parameter, None)

    def set_rate(self) -> None:
        """Set the learning rate of this step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.recipe.train, self.progress.place)

    def lead(self) -> None:
        """Train the encoder alone before the joint step (He et al. 2019): up to `objective.aggressive` updates.

        It ends when ten updates have not lowered the loss of the ten before.
        """
        objective = self.recipe.objective
        if self.progress.settled or self.progress.place < objective.pretrain_steps:
            return
        rng = np.random.default_rng([self.recipe.train.seed, self.progress.step, 1])
        count = max(1, self.recipe.train.batch_tokens // 32)
        before, losses = math.inf, []
        for _ in range(objective.aggressive):
            result = self.gradient(self.batches.random_segments(count, rng))
            for parameter in self.model.decoder.parameters():
                parameter.grad = None  # the optimizer skips parameters without gradient
            norm = clip(self.model.encoder.parameters(), self.recipe.train.clip)
            self._check(result, norm, "segments drawn for the encoder to lead by")
            self.optimizer.step()
            losses.append(float(result.total.detach()))
            if len(losses) == 10:
                if not np.mean(losses) < before:
                    break
                before, losses = float(np.mean(losses)), []

    def step(self, tokens: Ints) -> Loss:
        """One optimizer step; raises SeqVAEError before any weight changes if loss or gradient is not finite."""
        config, progress = self.recipe.train, self.progress
        if (largest := int(tokens.max(initial=0))) >= self.tokenizer.vocab_size:
            raise SeqVAEError(
                f"{self.folder}: its shards hold token {largest}, and the vocabulary has {self.tokenizer.vocab_size}; "
                "make them again with this tokenizer, in another --out"
            )
        # the randomness of a batch depends on its position alone, so that a resumed run repeats it
        rng = np.random.default_rng([config.seed, progress.epoch, progress.position])
        if rng.random() < config.mix:
            tokens = self.tokenizer.mix(tokens, self.batches.random_segments(len(tokens), rng), rng)
            tokens = tokens[: max(1, config.batch_tokens // (tokens.shape[1] * tokens.shape[2]))]
        if config.transpose:
            shifts = rng.integers(-config.transpose, config.transpose + 1, len(tokens))
            for shift in np.unique(shifts):
                tokens[shifts == shift] = self.tokenizer.augment(tokens[shifts == shift], int(shift))
        objective = self.recipe.objective
        place = progress.step + 1.0 if not config.minutes else max(1.0, self.share * config.steps)
        if objective.pretrain_steps and progress.place <= objective.pretrain_steps < place:
            self.restart_decoder()
        if objective.aggressive:
            self.lead()
        progress.step, progress.place = progress.step + 1, place
        self.set_rate()
        result = self.gradient(tokens)
        norm = clip(self.model.parameters(), config.clip)
        self._check(result, norm)
        self.optimizer.step()
        return result

    def _check(self, result: Loss, norm: float, where: str = "") -> None:
        """Raise SeqVAEError if a loss or its gradient's norm is not finite, naming the batch or `where`."""
        total, progress = float(result.total.detach()), self.progress
        if math.isfinite(total) and math.isfinite(norm):
            return
        if not where:
            rows, _ = next(islice(self.batches.epoch(progress.epoch), progress.position - 1, None))
            pieces = np.unique(rows).tolist()
            more = f" and {len(pieces) - 10} more" if len(pieces) > 10 else ""
            where = (
                f"batch {progress.position} of epoch {progress.epoch}, which holds pieces "
                f"{', '.join(map(str, pieces[:10]))}{more} (from 0, as they were read)"
            )
        raise SeqVAEError(
            f"step {progress.step}: the loss is {total} and its gradient's norm {norm} at {where}; {LOWER}"
        )

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Metrics on the same validation segments each time; the random generators of training are not changed.

        Each process evaluates its rows of every batch, and the first process the metrics over all rows.
        """
        totals = torch.zeros(3, dtype=torch.float64, device=self.device)
        mine: list[tuple[Tensor, ...]] = []  # means, log-variances and draws
        shown: dict[int, Ints] = {}  # some tokens, by the index of their first segment
        seen = 0
        model = self.whole_model().eval()
        self._check_finite(model.state_dict().values())
        with self._fork():
            torch.manual_seed(0)
            for rows, firsts in self.validation:
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
        self.ranks.add([totals])
        found = [tuple(tensor.to(self.device) for tensor in one) for one in self.ranks.gather(mine)]
        figures = self.ranks.broadcast(
            lambda: validation_metrics(
                model, self.tokenizer, self.recipe.objective, (totals / seen).tolist(), found, shown
            )
        )
        self.model.train()
        return figures
