"""Decoding speed of sentences beside text-autoencoders (Shen et al. 2020) and GPT-2, and the time of a music blend.

    git clone https://github.com/shentianxiao/text-autoencoders PEER
    pip install transformers
    python benchmarks/decoding.py --peer PEER --threads 2
    python benchmarks/decoding.py --music

Decodes latent vectors drawn from the mixture of the released `reviews`. The peer's VAE and the GPT-2 have random
weights, the same number of parameters and the same vocabulary size. Each model runs in its own process; they take
turns, so that other load affects all of them, and the median over turns counts. The peer has neither temperature nor
top-p; it samples from the full distribution. GPT-2 is called through `generate` with its cache.

Two settings. *Even*: every row gets exactly `--length` tokens. *As they end*: rows end where the released model emits
EOS; the other models decode as many steps as the longest of these rows has, and the tokens up to each row's end count
for all models.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import processor
import torch
from numpy.typing import NDArray

import seqvae
from seqvae.nn.sampling import Sampling
from seqvae.protocols import EOS, Grammar
from seqvae.style import mixture

METHODS = {
    "greedy": Sampling(),
    "top-k 40": Sampling(temperature=0.9, top_k=40),
    "top-p 0.95": Sampling(temperature=0.9, top_p=0.95),
    "beam 5": Sampling(beam=5),
}
Generate = Callable[[str, int, int], tuple[int, int]]
"""(method, rows, steps or 0 to stop at EOS) -> tokens decoded, and steps."""


class Endless:
    """A grammar without EOS."""

    def __init__(self, inner: Grammar) -> None:
        self.start, self.advance, self.position_fields, self._inner = (
            inner.start,
            inner.advance,
            inner.position_fields,
            inner,
        )

    def allowed(self, state: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Mask `(N, V)` of the tokens that may follow."""
        ok = self._inner.allowed(state).copy()
        ok[:, EOS] = False
        return ok


def ours() -> tuple[int, Generate]:
    """The released `reviews`: number of parameters, and a function that decodes."""
    codec = seqvae.load("reviews")
    assert codec.mixture is not None
    z = mixture.draw(codec.mixture, 512, torch.Generator().manual_seed(0), 0.9)

    def generate(method: str, rows: int, steps: int) -> tuple[int, int]:
        if not steps:
            lengths = [len(row) for row in codec.generate_tokens(z[:rows], None, METHODS[method])]
            return sum(lengths), max(lengths)
        grammar = codec.tokenizer.grammar()
        codec.model.generate(
            z[:rows], Endless(grammar), grammar.start(rows), replace(METHODS[method], max_tokens=steps)
        )
        return rows * steps, steps

    return sum(p.numel() for p in codec.model.parameters()), generate


def nearest(size: Callable[[int], int], target: int) -> int:
    """The width, a multiple of 16, of the model nearest to `target` parameters."""
    with torch.device("meta"):
        return min(range(64, 1025, 16), key=lambda width: abs(size(width) - target))


def theirs(peer: Path, target: int, vocabulary: int) -> tuple[int, Generate]:
    """The peer's VAE; its LSTM is twice as wide as its embeddings, as in its defaults."""
    sys.path.insert(0, str(peer))
    from model import VAE
    from train import parser
    from vocab import Vocab

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "vocabulary.txt"
        words = ["<pad>", "<go>", "<eos>", "<unk>", "<blank>", *map(str, range(vocabulary - 5))]
        path.write_text("".join(f"{word}\t1\n" for word in words))
        vocab = Vocab(path)

    def make(width: int) -> Any:
        sizes = ["--dim_emb", str(width), "--dim_h", str(2 * width)]
        return VAE(vocab, parser.parse_args(["--train", "", "--valid", "", "--model_type", "vae", *sizes]))

    def size(width: int) -> int:
        return sum(p.numel() for p in make(width).parameters())

    model = make(nearest(size, target)).eval()
    z = torch.randn(512, 128)

    @torch.no_grad()
    def generate(method: str, rows: int, steps: int) -> tuple[int, int]:
        model.generate(z[:rows], steps, "greedy" if method == "greedy" else "sample")
        return rows * steps, steps

    return sum(p.numel() for p in model.parameters()), generate


def gpt2(target: int, vocabulary: int) -> tuple[int, Generate]:
    """A GPT-2 of six layers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    def make(width: int) -> Any:
        config = GPT2Config(vocab_size=vocabulary, n_positions=128, n_embd=width, n_layer=6, n_head=8,
                            bos_token_id=1, eos_token_id=None, pad_token_id=0)  # fmt: skip
        return GPT2LMHeadModel(config)

    def size(width: int) -> int:
        return sum(p.numel() for p in make(width).parameters())

    model = make(nearest(size, target)).eval()
    how: dict[str, dict[str, Any]] = {
        "greedy": {"do_sample": False},
        "top-k 40": {"do_sample": True, "temperature": 0.9, "top_k": 40},
        "top-p 0.95": {"do_sample": True, "temperature": 0.9, "top_k": 0, "top_p": 0.95},
        "beam 5": {"do_sample": False, "num_beams": 5},
    }

    @torch.no_grad()
    def generate(method: str, rows: int, steps: int) -> tuple[int, int]:
        begin = torch.ones(rows, 1, dtype=torch.long)
        model.generate(
            begin, attention_mask=torch.ones_like(begin), max_new_tokens=steps, use_cache=True, **how[method]
        )
        return rows * steps, steps

    return sum(p.numel() for p in model.parameters()), generate


def work(make: Callable[[], tuple[int, Generate]], threads: int, pipe: Connection) -> None:
    """Worker process: send the number of parameters, then decode each request and send seconds, tokens and steps."""
    torch.set_num_threads(threads)
    parameters, generate = make()
    pipe.send(parameters)
    for method, rows, steps in iter(pipe.recv, None):
        begin = time.perf_counter()
        tokens, steps = generate(method, rows, steps)
        pipe.send((time.perf_counter() - begin, tokens, steps))


@contextlib.contextmanager
def worker(make: Callable[[], tuple[int, Generate]], threads: int) -> Iterator[Connection]:
    """The pipe to a process that runs `work` until the block ends."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=work, args=(make, threads, other), daemon=True)
    process.start()
    other.close()
    try:
        yield pipe
    finally:
        process.terminate()
        process.join()


def sentences(options: argparse.Namespace) -> None:
    """Print the table of sentences."""
    vocabulary = seqvae.load("reviews").tokenizer.vocab_size
    with contextlib.ExitStack() as stack:
        pipes = {"seqvae": stack.enter_context(worker(ours, options.threads))}
        sizes = {"seqvae": pipes["seqvae"].recv()}
        others: dict[str, Callable[[], tuple[int, Generate]]] = {}
        if options.peer:
            others["text-autoencoders"] = partial(theirs, options.peer.resolve(), sizes["seqvae"], vocabulary)
        if options.gpt2:
            others["GPT-2"] = partial(gpt2, sizes["seqvae"], vocabulary)
        for label, make in others.items():
            pipes[label] = stack.enter_context(worker(make, options.threads))
            sizes[label] = pipes[label].recv()
        print(", ".join(f"{label}: {size / 1e6:.2f} M parameters" for label, size in sizes.items()))
        print(processor.described(options.threads))
        print(f"{vocabulary} tokens in the vocabulary, turns: {options.turns}\n")

        def request(label: str, *task: object) -> tuple[float, int, int]:
            pipes[label].send(task)
            seconds, tokens, steps = pipes[label].recv()
            return seconds, tokens, steps

        print(
            "| method | rows | model | even, tokens/s | seqvae's speed-up | as they end, tokens/s | seqvae's speed-up |"
        )
        print("|---|---|---|---|---|---|---|")
        for method in options.methods:
            for rows in options.rows:
                speeds: dict[str, list[tuple[float, float]]] = {}
                for turn in range(options.turns + 1):
                    longest = tokens = 0
                    for label in pipes:
                        if label == "text-autoencoders" and method == "beam 5":
                            continue  # not available
                        even, count, _ = request(label, method, rows, options.length)
                        if label == "seqvae":  # always the first label
                            free, tokens, longest = request(label, method, rows, 0)
                        else:
                            free, _, _ = request(label, method, rows, longest)
                        if turn:  # the first turn warms up
                            speeds.setdefault(label, []).append((count / even, tokens / free))
                for label, found in speeds.items():
                    cells = []
                    for way in (0, 1):
                        ratio = statistics.median(a[way] / b[way] for a, b in zip(speeds["seqvae"], found, strict=True))
                        cells += [f"{statistics.median(x[way] for x in found):.0f}", f"{ratio:.1f}"]
                    print(f"| {method} | {rows} | {label} | " + " | ".join(cells) + " |", flush=True)


def music(options: argparse.Namespace) -> None:
    """Print the table of music blends."""
    torch.set_num_threads(options.threads)
    codec = seqvae.load("music")
    piece = codec.adapter.read(options.song)
    end = piece.bounds[min(4, len(piece.bounds) - 1)]
    short = replace(piece, notes=piece.notes[piece.notes[:, 0] < end], bounds=piece.bounds[:5])
    print(f"{processor.described(options.threads)}, turns: {options.turns}")
    print("\n| a warm blend, half-way to rock | bars | seconds, median | fastest |\n|---|---|---|---|")
    for name, song in (("four bars", short), ("a whole song", piece)):
        took = []
        for _ in range(options.turns + 1):
            begin = time.perf_counter()
            codec.blend(song, target="rock")
            took.append(time.perf_counter() - begin)
        print(f"| {name} | {len(song.bounds) - 1} | {statistics.median(took[1:]):.2f} | {min(took[1:]):.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="a clone of shentianxiao/text-autoencoders")
    parser.add_argument(
        "--no-gpt2", dest="gpt2", action="store_false", help="leave out GPT-2, if transformers is not installed"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 512], help="batch sizes")
    parser.add_argument("--length", type=int, default=16, help="tokens of every row in the setting `even`")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--music", action="store_true", help="time blends of music instead")
    parser.add_argument("--song", default="corpus:bach/bwv66.6", help="the song to blend")
    options = parser.parse_args()
    (music if options.music else sentences)(options)


if __name__ == "__main__":
    main()
