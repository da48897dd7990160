"""The state of a training run: model, optimizer, progress and log, saved so that a resumed run continues bit for bit.

Scope: weights and the groups of the optimizer, the learning rate, precision, files of a run. Out of scope: batches and
steps (train/trainer.py), the times of saving (train/loop.py).
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from seqvae import parallel
from seqvae.checkpoint import folder as checkpoint
from seqvae.checkpoint.folder import Checkpoint
from seqvae.config import Recipe, TrainConfig, from_dict, to_dict
from seqvae.errors import ConfigError, SeqVAEError
from seqvae.io import files
from seqvae.nn.blocks import TransformerLayer
from seqvae.nn.kernels import multiplies_bf16
from seqvae.nn.model import SequenceVAE
from seqvae.parallel import like, sharded, whole
from seqvae.protocols import Tokenizer, spelling

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


class State:
    """Model, optimizer and progress of a run in a folder."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, folder: Path) -> None:
        self.recipe, self.tokenizer, self.folder = recipe, tokenizer, folder
        self.ranks = parallel.join()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(recipe.train.seed)
        self.model: SequenceVAE = checkpoint.build(recipe.model, tokenizer).to(self.device)
        self.ranks.copy(self.model.parameters())  # the same seed may give other weights on another processor
        if recipe.train.shard and self.ranks.count > 1:
            parallel.shard(self.model, TransformerLayer)
        self.names = self._decayed_or_not()
        self.optimizer = self._adamw()
        self.bf16 = half_precision(recipe.train, self.device)
        self.progress = Progress()

    def _decayed_or_not(self) -> list[list[str]]:
        """The names of parameters with weight decay, and of those without.

        Embeddings, keys and vectors have none: a key that shrinks no longer unbinds what it bound.
        """
        named = dict(self.model.named_parameters())
        matrices = [n for n, p in named.items() if p.ndim > 1 and "binding" not in n and "field_embeddings" not in n]
        return [matrices, [n for n in named if n not in set(matrices)]]

    def _adamw(self) -> torch.optim.AdamW:
        named, config = dict(self.model.named_parameters()), self.recipe.train
        groups = [
            {"params": kind, "weight_decay": decay}
            for names, decay in zip(self.names, (config.weight_decay, 0.0), strict=True)
            for apart in (False, True)  # sharded and whole tensors need separate groups
            if (kind := [named[name] for name in names if sharded(named[name]) == apart])
        ]
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)

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
        for another tokenizer and for a song model.
        """
        before = self.ranks.broadcast(lambda: checkpoint.load(name))
        if before.recipe.model.song is not None:
            raise ConfigError(
                f"{name}: is a song model, which `seqvae train` cannot go on with; a few songs of your own become a "
                f"style in seconds: seqvae style fit mine=songs/ -m {name} -o mine.styles"
            )
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

    def set_rate(self) -> None:
        """Set the learning rate of this step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.recipe.train, self.progress.place)

    def _fork(self, enabled: bool = True) -> contextlib.AbstractContextManager[None]:
        """A context that restores the random generators afterwards, if `enabled`."""
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [], enabled=enabled)


def _logged(line: str) -> float:
    """The step of a line of the log; infinity for an incomplete line."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, LookupError, TypeError):
        return math.inf
