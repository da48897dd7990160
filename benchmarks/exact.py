"""Cost of `exact=True`: time of warm sampling, encoding and scoring with it and without, on one thread.

    python benchmarks/exact.py

Both codecs run in one process and take turns, so that other load affects both. The median of the turns' ratios counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import processor
import torch

import seqvae
from seqvae.codec import Codec
from seqvae.music import piece as midi
from seqvae.nn.sampling import Sampling

LINES = [f"the {noun} was {how} and the staff is very friendly ." for noun in ("food", "room") for how in ("ok", "bad")]


def seconds(work: Callable[[], object]) -> float:
    """Seconds of a call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    chorale = midi.read("corpus:bach/bwv66.6")
    drawn = Sampling(temperature=0.9, top_p=0.95)
    work: list[tuple[str, str, Callable[[Codec], object]]] = [
        ("draw of 2 sentences", "reviews", lambda codec: codec.sample(2, segments=1, sampling=drawn)),
        ("draw of 32 sentences", "reviews", lambda codec: codec.sample(32, segments=1, sampling=drawn)),
        ("draw of 512 sentences", "reviews", lambda codec: codec.sample(512, segments=1, sampling=drawn)),
        ("draw of 4 segments of music", "music", lambda codec: codec.sample(1, "rock", sampling=drawn)),
        ("greedy decoding of 4 segments of music", "music", lambda codec: codec.sample(1, "rock", sampling=Sampling())),
        ("search for 4 sentences", "reviews", lambda codec: codec.encode(LINES)),
        ("search for a chorale", "music", lambda codec: codec.encode([chorale])),
        ("blend of a chorale", "music", lambda codec: codec.blend(chorale, target="rock")),
        ("scores of 4 sentences", "reviews", lambda codec: codec.log_prob(LINES)),
    ]
    pairs = {name: [seqvae.load(name, exact=exact) for exact in (False, True)] for name in ("reviews", "music")}
    print(f"{processor.described(1)}, turns: {options.turns}\n")
    print("| warm, in seconds | default | exact | times as long |\n|---|---|---|---|")
    for label, name, call in work:
        for codec in pairs[name]:
            call(codec)
        turns = [[seconds(partial(call, codec)) for codec in pairs[name]] for _ in range(options.turns)]
        plain, exact = (statistics.median(column) for column in zip(*turns, strict=True))
        ratio = statistics.median(b / a for a, b in turns)
        print(f"| {label} | {plain:.3f} | {exact:.3f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
