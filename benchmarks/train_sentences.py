"""Training of a sentence model within a number of minutes on one GPU, from the files of `sentence_corpora.py`.

    python benchmarks/train_sentences.py prose --data CORPORA --out OUT --minutes 4.5

The loss is that of `nn/loss.py` with posterior samples throughout. Word dropout has a random share for each line, from
0 to 1, and denoising one from 0 to three times the recipe's. The recipe's `train.mix` is the share of the lines that
are added again with words outside of the vocabulary. The learning rate follows the share of elapsed time, so the
schedule ends on time on any device. beta rises while validation accuracy is above `ACCURACY`, and falls otherwise
(after Rezende and Viola 2018), never below the recipe's beta in the second half of the time. The peak rate and the
optimizer of matrices are chosen first: each entry of RACE trains for a short time on a GPU, and the best one continues.
The decoder sees perturbed samples (`perturbed`). The share `model.without` of the lines of a batch is decoded without z
and without word dropout, so that the decoder is a language model too; these lines are not encoded, cost no KL, and are
none of those with added words. Products use bf16 copies of the weights; the optimizer keeps fp32 weights.

Needs torch, numpy, safetensors and sentencepiece. Writes `NAME.safetensors` (bf16, with the recipe as metadata) every
two minutes and at the end, and `NAME.json`: the log, and metrics of greedy decoding of validation lines. `--start` with
that file continues.
"""

from __future__ import annotations

import argparse
import bz2
import copy
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from muon import Muon
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from seqvae.config import ObjectiveConfig, load_recipe, to_dict
from seqvae.nn.binding import shifted
from seqvae.nn.memory import MemoryDecoder, PooledEncoder
from seqvae.nn.model import SequenceVAE
from seqvae.nn.posterior import Posterior
from seqvae.protocols import BOS, EOS, MASK, PAD
from seqvae.text.augment import augmented
from seqvae.text.tokenizer import TextTokenizer

LENGTHS = (8, 16, 24, 32, 40, 48, 64)  # padded lengths of lines
WARMUP = 0.03  # share of the time
SETTLED = 0.7  # share of the time after which beta is constant
FIRST_BETA, MOST_BETA = 0.002, 0.7
# Shares of validation tokens predicted from posterior means and samples; beta rises while both are exceeded.
ACCURACY = {"accuracy": 0.96, "accuracy_sample": 0.9}
REPORT, SAVE, RESERVED = 10.0, 120.0, 20.0  # seconds between reports, between saves, and reserved for the evaluation
CPU_REPORT = 60.0  # validation takes seconds on a CPU
EVALUATED = 500  # validation lines
RACE = (("muon", 2e-3), ("muon", 5e-3), ("adamw", 2e-3))  # optimizer of matrices, peak rate
HEAT = 0.035  # share of the time for each entry of RACE
LN2 = math.log(2)


def padded(lines: list[list[int]], device: torch.device) -> list[Tensor]:
    """Token ids of lines, EOS added, in one tensor `(N, T)` for each of LENGTHS; longer lines are left out."""
    out, least = [], 0
    for length in LENGTHS:
        rows = [line for line in lines if least < len(line) + 1 <= length]
        tokens = np.full((len(rows), length), PAD, np.int16)
        for row, line in zip(tokens, rows, strict=True):
            row[: len(line)], row[len(line)] = line, EOS
        out.append(torch.from_numpy(tokens).to(device))
        least = length
    return out


def batches(buckets: list[Tensor], plain: list[int], size: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Batches `(B, T)` of about `size` tokens, epoch after epoch; the first `plain` lines of each bucket come first."""
    while True:
        epoch = []
        for bucket, first in zip(buckets, plain, strict=True):
            rows = max(1, size // bucket.shape[1])
            order = torch.from_numpy(rng.permutation(len(bucket))).to(bucket.device)
            parts = torch.split(order, rows)
            sorted_ = (part[(part >= first).byte().argsort(stable=True)] for part in parts)
            epoch += [(bucket, part) for part in sorted_ if len(part) > rows // 4]
        for i in rng.permutation(len(epoch)).tolist():
            bucket, part = epoch[i]
            yield bucket[part].long()


def posterior_of(model: SequenceVAE, source: Tensor, mask: Tensor) -> Posterior:
    """The posterior `(B, D)` of tokens `source (B, T)`."""
    assert isinstance(model.encoder, PooledEncoder)
    return model.encoder.read(model.decoder.binding.tokens(source), mask)


def next_logits(model: SequenceVAE, z: Tensor, inputs: Tensor) -> Tensor:
    """Logits `(B, T, V)` of the token after each of `inputs (B, T)`."""
    assert isinstance(model.decoder, MemoryDecoder)
    hidden, _ = model.decoder.hidden(z.to(model.decoder.norm.weight.dtype), inputs, [])
    return model.decoder.binding.logits(hidden)


def perturbed(z: Tensor) -> Tensor:
    """Posterior samples `(B, D)`: half of them as they are, a quarter mixed with another line's, a quarter with noise.

    The share of the other line is uniform up to one half, that of the noise up to one. So the decoder learns to write a
    sentence from a point between two others, and from one that the prior drew.
    """
    rows = len(z)
    kind, t = torch.rand(2, rows, 1, device=z.device)
    share = torch.where(kind < 0.25, t / 2, torch.where(kind < 0.5, t, 0.0)).to(z.dtype)
    other = torch.where(kind < 0.25, z.roll(1, 0), torch.randn_like(z))
    straight = torch.rand(rows, 1, device=z.device) < 0.5  # on the line between the two, or on the arc
    length = torch.where(straight & (kind < 0.25), 1.0, ((1 - share).square() + share.square()).sqrt())
    return ((1 - share) * z + share * other) / length


def masked_by_row(tokens: Tensor, most: float) -> Tensor:
    """Tokens `(B, T)` with a share of each row masked: `most` times the square of a uniform number."""
    shares = most * torch.rand(len(tokens), 1, device=tokens.device).square()
    hit = torch.rand(tokens.shape, device=tokens.device) < shares
    return tokens.masked_fill(hit & (tokens != PAD), MASK)


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """-log p of `tokens (B, T)` under `logits (B, T, V)` in nats, summed over all but PAD."""
    return functional.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), ignore_index=PAD, reduction="sum")


@torch.no_grad()
def validate(model: SequenceVAE, buckets: list[Tensor]) -> dict[str, float]:
    """Accuracy of the next token with teacher forcing, from means and from samples; nats and KL bits per line.

    And nats a token from samples and, for a model that has learned it, without z.
    """
    right = {"mean": 0.0, "sample": 0.0}
    tokens = lines = nats = rate = alone = 0.0
    for rows in buckets:
        if not len(rows):
            continue
        rows = rows.long()
        mask = rows != PAD
        posterior = posterior_of(model, rows, mask)
        for name, z in (("mean", posterior.mean), ("sample", posterior.sample())):
            logits = next_logits(model, z, shifted(rows)).float()
            right[name] += float((logits.argmax(-1) == rows)[mask].sum())
        nats += float(cross_entropy(logits, rows))
        if model.config.without:
            logits = next_logits(model, model.absent.expand(len(rows), -1), shifted(rows))
            alone += float(cross_entropy(logits, rows))
        rate += float(posterior.kl().sum())
        tokens, lines = tokens + float(mask.sum()), lines + len(rows)
    return {
        "accuracy": right["mean"] / tokens,
        "accuracy_sample": right["sample"] / tokens,
        "nats": nats / lines,
        "kl_bits": rate / lines / LN2,
        "nats_with_z": nats / tokens,
        **({"nats_without_z": alone / tokens} if model.config.without else {}),
    }


@torch.no_grad()
def greedy(model: SequenceVAE, z: Tensor, tokenizer: TextTokenizer, most: int = 64) -> list[str]:
    """Greedy decoding of `z (B, D)` to lines."""
    inputs = torch.full((len(z), 1), BOS, device=z.device)
    for _ in range(most):
        inputs = torch.cat([inputs, next_logits(model, z, inputs)[:, -1:].argmax(-1)], 1)
        if bool((inputs == EOS).any(1).all()):
            break
    return [tokenizer.decode_text([row]) for row in inputs[:, 1:].cpu().numpy().astype(np.int32)]


def bleu(references: list[str], outputs: list[str]) -> float:
    """Corpus BLEU of words between spaces (Papineni et al. 2002), one reference each, in percent."""
    matches, counts = [0] * 4, [0] * 4
    for reference, output in zip(references, outputs, strict=True):
        a, b = reference.split(), output.split()
        for n in range(4):
            x, y = (Counter(tuple(w[i : i + n + 1]) for i in range(len(w) - n)) for w in (a, b))
            matches[n] += (x & y).total()
            counts[n] += y.total()
    if not all(matches):
        return 0.0
    long, short = (sum(len(line.split()) for line in lines) for lines in (references, outputs))
    brevity = min(0.0, 1 - long / short)
    return 100 * math.exp(brevity + sum(math.log(m / c) for m, c in zip(matches, counts, strict=True)) / 4)


def evaluate(model: SequenceVAE, tokenizer: TextTokenizer, lines: list[str], device: torch.device) -> dict[str, object]:
    """BLEU and share of exact reconstructions by greedy decoding, from means and from samples."""
    out: dict[str, object] = {}
    for most in (15, 20, 40):
        chosen = [line for line in lines if len(line.split()) <= most][: EVALUATED if device.type == "cuda" else 100]
        encoded = [one[0] for one in tokenizer.encode_all(chosen)]
        tokens = np.full((len(chosen), max(map(len, encoded))), PAD, np.int64)
        for row, one in zip(tokens, encoded, strict=True):
            row[: len(one)] = one
        rows = torch.from_numpy(tokens).to(device)
        with torch.no_grad():
            posterior = posterior_of(model, rows, rows != PAD)
        mean, sample = posterior.mean, posterior.sample()
        for name, z in (("mean", mean), ("sample", sample)):
            outputs = greedy(model, z, tokenizer, tokens.shape[1] + 4)
            same = sum(a == b for a, b in zip(chosen, outputs, strict=True)) / len(chosen)
            out[f"{name}_{most}"] = {"bleu": bleu(chosen, outputs), "exact": same, "lines": len(chosen)}
            if most == 20:
                out[f"shown_{name}"] = list(zip(chosen[:8], outputs[:8], strict=True))
    mean_ = mean[torch.arange(0, 20, 2)] * 0.5 + mean[torch.arange(1, 21, 2)] * 0.5
    out["shown_half_way"] = greedy(model, mean_, tokenizer)
    return out


def rate_at(passed: float) -> float:
    """The learning rate as a share of its peak: linear warm-up, then half a cosine."""
    if passed < WARMUP:
        return passed / WARMUP
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (passed - WARMUP) / (1 - WARMUP)))


class Run:
    """A model in training: fp32 weights of the optimizer, and bf16 copies for the products."""

    def __init__(self, model: SequenceVAE, matrices: str, rate: float, beta: float) -> None:
        self.model, self.rate, self.beta = model, rate, beta
        self.low = copy.deepcopy(model).bfloat16()
        self.weights: list[Tensor] = list(model.parameters())
        self.copies: list[Tensor] = list(self.low.parameters())
        assert isinstance(model.decoder, MemoryDecoder)
        inner = (model.encoder, model.decoder.retrievals, model.decoder.layers)
        square: list[Tensor] = [w for part in inner for w in part.parameters() if w.ndim == 2 and matrices == "muon"]
        rest = {id(w) for w in square}
        self.muon = Muon(square)
        self.adamw = torch.optim.AdamW(
            [w for w in self.weights if id(w) not in rest], rate, (0.9, 0.98), weight_decay=0.0, fused=True
        )
        self.sums = torch.zeros(3, device=self.weights[0].device)
        self.norm = torch.zeros(())

    def step(self, tokens: Tensor, denoise: float, share: float) -> None:
        """Train on `tokens (B, T)` at a `share` of the peak rate; adds nats, KL and tokens to `sums`."""
        mask, clear = tokens != PAD, shifted(tokens)
        alone = round(self.low.config.without * len(tokens))  # the first lines, which are not augmented
        posterior = posterior_of(self.low, masked_by_row(tokens[alone:], 3 * denoise), mask[alone:])
        z, inputs = perturbed(posterior.sample()), torch.cat([clear[:alone], masked_by_row(clear[alone:], 1.0)])
        if alone:
            z = torch.cat([self.low.absent.expand(alone, -1), z])
        nats = cross_entropy(next_logits(self.low, z, inputs), tokens)
        rate, count = posterior.kl().sum(), mask.sum()
        ((nats + self.beta * rate) / count).backward()  # type: ignore[no-untyped-call]
        for weight, copied in zip(self.weights, self.copies, strict=True):
            weight.grad = None if copied.grad is None else copied.grad.float()
            copied.grad = None
        self.norm = nn.utils.clip_grad_norm_(self.weights, 1.0, foreach=True)
        self.adamw.param_groups[0]["lr"] = self.rate * share
        self.adamw.step()
        self.muon.step(self.rate * share, 0.02)
        with torch.no_grad():
            torch._foreach_copy_(self.copies, self.weights)
            self.sums += torch.stack([nats.detach(), rate.detach(), count.float()])

    def metrics(self, valid: list[Tensor]) -> dict[str, float]:
        """Means over the steps since the last call, and metrics of validation lines."""
        nats, rate, count = self.sums.tolist()
        if not math.isfinite(nats):
            raise SystemExit("the loss is not finite")
        self.sums.zero_()
        means = {"nats_a_token": nats / count, "kl_a_token": rate / count, "beta": self.beta, "norm": float(self.norm)}
        return {**means, **validate(self.low, valid)}

    def adapt(self, figures: dict[str, float], passed: float, least: float) -> None:
        """Raise beta if `figures` exceed ACCURACY, else lower it; `passed` is the share of elapsed time.

        The lower bound rises linearly to `least` at half of the time.
        """
        up = all(figures[name] > share for name, share in ACCURACY.items())
        bound = max(FIRST_BETA, least * min(1.0, 2 * passed))
        self.beta = min(MOST_BETA, max(bound, self.beta * (1.3 if up else 0.85)))


def raced(
    model: SequenceVAE, feed: Iterator[Tensor], valid: list[Tensor], denoise: float, seconds: float
) -> tuple[Run, list[dict[str, object]]]:
    """The run of RACE with the least validation loss after `seconds` of training each, and the metrics of all."""
    warm = Run(copy.deepcopy(model), "muon", 0.0, FIRST_BETA)
    for _ in range(10):  # one-off work of the device must not count for the first entry
        warm.step(next(feed), denoise, 0.0)
    best: tuple[float, Run] | None = None
    log: list[dict[str, object]] = []
    for matrices, rate in RACE:
        run = Run(copy.deepcopy(model), matrices, rate, FIRST_BETA)
        start, step = time.monotonic(), 0
        while (passed := (time.monotonic() - start) / seconds) < 1:
            run.step(next(feed), denoise, min(1.0, 3 * passed))
            step += 1
            if run.sums.is_cuda and step % 20 == 0:
                torch.cuda.synchronize()
        figures = validate(run.low, valid)
        worth = figures["nats"] + FIRST_BETA * LN2 * figures["kl_bits"]
        worth = worth if math.isfinite(worth) else math.inf
        log.append({"matrices": matrices, "rate": rate, "steps": step, "worth": worth, **figures})
        print(json.dumps(log[-1]), flush=True)
        if best is None or worth < best[0]:
            best = worth, run
    assert best is not None
    return best[1], log


def save(model: SequenceVAE, about: dict[str, str], path: Path) -> None:
    """Write weights in bf16, atomically."""
    part = path.with_suffix(".part")
    save_file({k: v.detach().bfloat16().cpu().contiguous() for k, v in model.state_dict().items()}, part, about)
    part.replace(path)


def trained(
    run: Run, feed: Iterator[Tensor], valid: list[Tensor], objective: ObjectiveConfig, end: float, name: str,
    keep: Callable[[], None],
) -> dict[str, object]:  # fmt: skip
    """Train until the time `end`, with reports; `keep` saves the weights every SAVE seconds and at the end."""
    begun = reported = saved = time.monotonic()
    log: list[dict[str, float]] = []
    step = seen = 0
    while (now := time.monotonic()) < end:
        passed = (now - begun) / (end - begun)
        tokens = next(feed)
        run.step(tokens, objective.denoise, rate_at(passed))
        step, seen = step + 1, seen + tokens.numel()
        if tokens.is_cuda and step % 20 == 0:
            torch.cuda.synchronize()  # so that the clock counts finished steps
        if (now := time.monotonic()) - reported > (REPORT if tokens.is_cuda else CPU_REPORT):
            speed = {"seconds": round(now - begun, 1), "tokens_per_second": round(seen / (now - begun))}
            log.append({"step": step, **speed, **run.metrics(valid)})
            print(f"{name} " + " ".join(f"{k} {v:.4g}" for k, v in log[-1].items()), flush=True)
            if passed < SETTLED:
                run.adapt(log[-1], passed, objective.beta)
            reported = time.monotonic()
        if now - saved > SAVE:
            keep()
            saved = time.monotonic()
    keep()
    return {"log": log, "steps": step, "tokens": seen}


def main() -> None:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="prose or reviews")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="total time, with start-up and evaluation")
    parser.add_argument("--batch", type=int, default=32768, help="tokens per batch")
    parser.add_argument("--lines", type=int, default=0, help="training lines at most, 0 for all")
    parser.add_argument("--start", type=Path, help="weights to continue from, instead of the race")
    parser.add_argument("--set", action="append", default=[], help="change of the recipe, section.name=value")
    args = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = load_recipe(args.name, args.set)
    tokenizer = TextTokenizer.load(args.data / f"{args.name}.tokenizer", recipe.tokenizer.max_tokens)
    content = json.loads(bz2.decompress((args.data / f"{args.name}.json.bz2").read_bytes()))
    lines = content["train"]
    if args.lines:
        lines = [lines[i] for i in rng.permutation(len(lines))[: args.lines]]
    draw = random.Random(0)
    added = [augmented(line, draw) for line in lines if draw.random() < recipe.train.mix]
    parts = [
        padded([one[0][:-1].tolist() for one in tokenizer.encode_all(some) if len(one) == 1], device)
        for some in (lines, added)
    ]
    buckets, plain = [torch.cat(both) for both in zip(*parts, strict=True)], [len(one) for one in parts[0]]
    checked = content["valid"][:EVALUATED]
    valid = padded([one[0][:-1].tolist() for one in tokenizer.encode_all(checked) if len(one) == 1], device)
    model = SequenceVAE(recipe.model, (), torch.from_numpy(tokenizer.binding_depth).long()).to(device)
    card = torch.cuda.get_device_name() if device.type == "cuda" else "processor"
    print(f"{args.name}: {sum(w.numel() for w in model.parameters()) / 1e6:.2f} M parameters on {card}, "
          f"{sum(map(len, buckets)):,} lines, {sum(int((b != PAD).sum()) for b in buckets):,} tokens, "
          f"ready after {time.monotonic() - started:.0f} s", flush=True)  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    about = {"recipe": json.dumps(to_dict(recipe)), "corpus": args.name}
    feed, objective = batches(buckets, plain, args.batch, rng), recipe.objective
    end = started + 60 * args.minutes - RESERVED
    race: list[dict[str, object]] = []
    if args.start is not None:
        with torch.no_grad():
            known = {name: x.float() for name, x in load_file(args.start).items()}
            model.load_state_dict(model.state_dict() | known)  # older weights have no vector in place of z
        run = Run(model, *RACE[0], objective.beta / 3)
    elif device.type == "cpu":
        run = Run(model, *RACE[0], FIRST_BETA)
    else:
        run, race = raced(model, feed, valid, objective.denoise, HEAT * (end - time.monotonic()))
    path = args.out / f"{args.name}.safetensors"
    found = trained(run, feed, valid, objective, end, args.name, lambda: save(run.model, about, path))
    result = {"race": race, **found, "beta": run.beta, "device": card}
    (args.out / f"{args.name}.json").write_text(json.dumps(result))
    result["evaluation"] = evaluate(run.low, tokenizer, content["valid"], device)
    print(json.dumps(result["evaluation"], indent=1, ensure_ascii=False), flush=True)
    (args.out / f"{args.name}.json").write_text(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
