"""AUROC of scores of the model `requests` on synthetic corruptions of normal requests: the choice of its score.

    python benchmarks/request_scores.py requests OUT/validation.normal.txt

OUT is the output folder of request_splits.py; no anomalous request is read. Prints the AUROC of each score by kind of
corruption, the best mean first. There are three values per character: the log-probability (`log p`), the
log-probability plus the entropy (`excess`), and the log of the total probability of all characters at most as likely
(`tail`). Scores are their sum, mean and minimum, the lowest mean of k consecutive characters (`window`) and the mean of
the k lowest (`lowest`).
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from seqvae import codec
from seqvae.codec import Codec
from seqvae.nn.binding import shifted

Doubles = NDArray[np.float64]
Pair = tuple[str, str]
DRAWS, BATCH = 4, 64
SIGNS = "#%;<>|~/\\!?'\"()*{}[]-"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
PAYLOADS = (
    "'+or+'1'='1", "1;drop+table+users--", "<script>alert(1)</script>", "../../../../etc/passwd", "%00",
    "|cat+/etc/shadow", "${jndi:ldap://x}", "<!--#exec+cmd=ls-->",
)  # fmt: skip


def parts(request: str) -> tuple[str, str, list[Pair]]:
    """Method, path and parameters."""
    method, _, url = request.partition(" ")
    path, _, query = url.partition("?")
    pairs = [one.partition("=") for one in query.split("&")] if query else []
    return method, path, [(name, value) for name, _, value in pairs]


def joined(method: str, path: str, pairs: Sequence[Pair]) -> str:
    return f"{method} {path}" + ("?" + "&".join(f"{name}={value}" for name, value in pairs) if pairs else "")


def corruptions(request: str, chance: random.Random) -> Iterator[tuple[str, str]]:
    """One corruption of each kind."""
    at = chance.randrange(request.index("8080"), len(request))
    yield "sign", request[:at] + chance.choice(SIGNS) + request[at:]
    yield "letter", request[:at] + chance.choice(LETTERS) + request[at:]
    method, path, pairs = parts(request)
    yield "method", joined(chance.choice(["put", "head", "delete", "trace"]), path, pairs)
    suffix = chance.choice([".bak", "~", ".old", "/", ".inc"])
    yield "path", joined(method, path + suffix, chance.choice([pairs, []]))
    if len(pairs) < 2:
        return
    i, j = chance.sample(range(len(pairs)), 2)
    name, value = pairs[i]

    def changed(*new: Pair) -> str:
        return joined(method, path, [*pairs[:i], *new, *pairs[i + 1 :]])

    yield "name", changed((name + chance.choice("abxz"), value))
    yield "drop", changed()
    yield "double", changed((name, value), (name, value))
    yield "empty", changed((name, chance.choice(["", "+"])))
    yield "payload", changed((name, chance.choice([value, ""]) + chance.choice(PAYLOADS)))
    yield "long", changed((name, "".join(chance.choices(LETTERS, k=chance.randrange(8, 30)))))
    swapped = list(pairs)
    swapped[i], swapped[j] = (name, pairs[j][1]), (pairs[j][0], value)
    yield "swap", joined(method, path, swapped)


@torch.no_grad()
def characters(model: Codec, lines: Sequence[str]) -> Iterator[dict[str, Doubles]]:
    """Three values of each character, by line, from the mean probability over samples of z."""
    noise = torch.randn(DRAWS, model.model.config.latent, generator=torch.Generator().manual_seed(0))
    for first in range(0, len(lines), BATCH):
        segments = [model.segments(line)[0] for line in lines[first : first + BATCH]]
        posterior = model.posteriors(segments)
        tokens, fields = model.tensors(segments)
        p = torch.zeros(())
        for one in noise:
            z = posterior.mean + (0.5 * posterior.logvar).exp() * one
            logits = model.model.decode_logits(z, shifted(tokens), fields)[0].float()
            p = p + logits.softmax(-1)[:, 0] / DRAWS
        log_p = p.clamp(min=1e-12).log()
        own = p.gather(-1, tokens[:, 0, :, None])
        tail = (p * (p <= 1.0001 * own)).sum(-1).clamp(min=1e-12).log()
        mine = own[..., 0].clamp(min=1e-12).log()
        measures = {"log p": mine, "excess": mine - (p * log_p).sum(-1), "tail": tail}
        for row, segment in enumerate(segments):
            yield {name: x[row, : len(segment[0])].double().numpy() for name, x in measures.items()}


def scores(measures: dict[str, Doubles]) -> dict[str, float]:
    """All scores of a request."""
    out = {}
    for name, x in measures.items():
        out |= {f"{name}, sum": x.sum(), f"{name}, mean": x.mean(), f"{name}, minimum": x.min()}
        sums = np.concatenate([[0.0], np.cumsum(x)])
        for k in (2, 3, 5, 8, 16):
            run = min(k, len(x))
            out[f"{name}, window {k}"] = (sums[run:] - sums[:-run]).min() / run
            out[f"{name}, lowest {k}"] = np.sort(x)[:k].mean()
    return out


def main(name: str, path: Path) -> None:
    model = codec.load(name)
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    chance, known = random.Random(1), set(lines)
    kinds: dict[str, list[str]] = {}
    for line in lines:
        for kind, changed in corruptions(line, chance):
            if changed not in known:
                kinds.setdefault(kind, []).append(changed)

    def rate(some: Sequence[str]) -> list[dict[str, float]]:
        return [scores(one) for one in characters(model, some)]

    normal = rate(lines)
    found: dict[str, list[float]] = {score: [] for score in normal[0]}
    for changed in kinds.values():
        odd = rate(changed)
        truth = [1] * len(normal) + [0] * len(odd)
        for score, areas in found.items():
            areas.append(float(roc_auc_score(truth, [row[score] for row in (*normal, *odd)])))
    print(" | ".join(["score", "mean", *kinds]))
    for score, areas in sorted(found.items(), key=lambda item: -np.mean(item[1])):
        print(" | ".join([score, f"{np.mean(areas):.4f}", *(f"{area:.4f}" for area in areas)]))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]))
