"""One step and one validation of a training run.

Scope: batches, their division into parts, gradients, metrics of the validation split. Out of scope: optimizer and saved
state (train/state.py); the times of validation, saving and stopping, and reports (train/loop.py); tokenization
(modality.py); the loss (nn/loss.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seqvae import parallel
from seqvae.checkpoint import folder as checkpoint
from seqvae.config import Recipe
from seqvae.data.dataset import Ints, Longs, Split, TokenData
from seqvae.data.sampler import Batches
from seqvae.errors import ConfigError, SeqVAEError
from seqvae.modality import modality
from seqvae.nn import noise
from seqvae.nn.blocks import Residual, TransformerLayer
from seqvae.nn.loss import Loss, loss
from seqvae.nn.model import SequenceVAE
from seqvae.parallel import Part, clip, divide, like, sharded
from seqvae.protocols import PAD, Tokenizer
from seqvae.train.metrics import validation_metrics
from seqvae.train.state import LOWER, State

Report = Callable[[str], None]


class Run(State):
    """A training run in a folder: batches, steps and validations."""

    def __init__(self, recipe: Recipe, data: TokenData, tokenizer: Tokenizer, folder: Path, report: Report) -> None:
        self.data, self.report = data, report
        if recipe.objective.denoise_by == "drop" and tokenizer.field_sizes:
            raise ConfigError("objective.denoise_by: tokens with position fields cannot be dropped; choose mask")
        if recipe.train.compile and parallel.join().count * recipe.train.accumulate > 1:
            raise ConfigError(
                "train.compile: works on whole batches; set it to false, or take one process and one pass"
            )
        super().__init__(recipe, tokenizer, folder)
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
        config, noun = self.recipe.train, modality(self.tokenizer.kind).noun
        validation = self._batches("valid", 4 * config.batch_tokens, 8)
        if not len(self.batches) or not len(validation):  # with two groups each split has one, see dataset.cuts
            raise SeqVAEError(
                f"{self.folder}: there is only one {noun}, or copies of one, to train on and none to validate with "
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
                f"{self.folder}: the {len(validation)} {noun}s of the validation split have no segment with content "
                f"and at most {validation.max_tokens} tokens a chunk; add more"
            )
        return chosen

    def _alike(self) -> bool:
        rows, firsts = (np.concatenate(part) for part in zip(*self.validation, strict=True))
        segments = (
            self.data.gather(rows[i : i + 1], firsts[i : i + 1], self.recipe.model.chunks) for i in range(len(rows))
        )
        first = next(segments)
        return all(np.array_equal(first, other) for other in segments)

    # --- work ---------------------------------------------------------------------------------------------------------

    def tensors(self, tokens: Ints) -> tuple[Tensor, Tensor]:
        """`tokens (B, C, T)` and their position fields `(B, C, T, K)` on the model's device."""
        fields = self.tokenizer.position_fields(tokens)
        return torch.from_numpy(tokens).long().to(self.device), torch.from_numpy(fields).long().to(self.device)

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
            noise.of(part),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16),
        ):
            return self.loss(tokens[part.rows], training=True, mean_kl=mean_kl)

    def gradient(self, tokens: Ints) -> Loss:
        """Compute the gradient of a batch `tokens (B, C, T)` in every process, each from its own parts.

        Returns the loss of the batch. Loss and gradients equal those of one pass over the batch, except for rounding.
        """
        self.optimizer.zero_grad(set_to_none=True)
        parts = divide((tokens != PAD).sum((1, 2)), self.ranks.count * self.recipe.train.accumulate)
        if len(parts) == 1:
            result = self.part_loss(tokens, parts[0])
            result.total.backward()  # type: ignore[no-untyped-call]
            return result
        mine = list(self.ranks.shard(parts))
        mean_kl = self._mean_kl(tokens, mine)
        figures = torch.zeros(4 + self.recipe.model.latent, device=self.device)
        for part in mine:
            result = self.part_loss(tokens, part, mean_kl, again=part is not mine[-1])
            (result.total * part.share).backward()  # type: ignore[no-untyped-call]
            total, rows = float(result.total.detach()), part.count / len(tokens)
            means = [total * part.share, result.reconstruction * rows, result.kl * rows, result.accuracy * part.share]
            figures += torch.cat([figures.new_tensor(means), result.kl_per_unit * rows])
        # FSDP has already summed sharded gradients
        self.ranks.add([figures, *(p.grad for p in self.model.parameters() if p.grad is not None and not sharded(p))])
        reconstruction, kl, accuracy = figures[1:4].tolist()
        return Loss(figures[0], reconstruction, kl, result.beta, accuracy, figures[4:])

    def _mean_kl(self, tokens: Ints, mine: Sequence[Part]) -> Callable[[Tensor], Tensor] | None:
        """The function `whole` of nn/loss.py for the parts `mine` of this process; None if the loss has no floor."""
        objective = self.recipe.objective
        if not (objective.free_bits > 0 or objective.free_bits_total > 0 or objective.target_kl > 0):
            return None

        def mean(kl: Sequence[Tensor]) -> Tensor:
            """The mean over the whole batch, from the means of each process's parts."""
            total = torch.stack([one * (part.count / len(tokens)) for part, one in zip(mine, kl, strict=True)]).sum(0)
            self.ranks.add([total])
            return total

        if len(mine) == 1:
            return lambda kl: mean([kl])
        with torch.no_grad():  # backward needs the mean of all parts: a first pass computes it
            known = mean([self.part_loss(tokens, part, again=True).kl_per_unit for part in mine])
        return lambda _: known

    def compile(self) -> None:
        """Compile the feed-forward and transformer blocks, if `train.compile` is set, for batches of any shape.

        These blocks gain from it: compiling the whole model takes many times as long, and the computation of positions,
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
            for name, parameter in self.model.named_parameters():
                if not name.startswith("encoder."):
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
        tokens = self._varied(tokens)
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

    def _varied(self, tokens: Ints) -> Ints:
        """The batch `tokens (B, C, T)` after mixing.

        Its randomness depends on the position of the batch alone, so that a resumed run repeats it.
        """
        config, progress = self.recipe.train, self.progress
        rng = np.random.default_rng([config.seed, progress.epoch, progress.position])
        if rng.random() < config.mix:
            tokens = self.tokenizer.mix(tokens, self.batches.random_segments(len(tokens), rng), rng)
            tokens = tokens[: max(1, config.batch_tokens // (tokens.shape[1] * tokens.shape[2]))]
        return tokens

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
                with noise.of(part), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
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
