"""Gain of a decoder conditioned on the previous segment, trained and measured beside one without.

    python benchmarks/search_context.py --data ../shared/data/music --out runs/search [--steps 500] [--only base ...]

As `search.py`, with the same rows and folders; the model of the rows `context` is in `context.py`.

Refinement of z proceeds segment by segment, because each segment is decoded given the refined vector of the previous
one. The use of the context is measured as the rise in nats when the previous segment comes from another song.

*Flow*: similarity of adjacent bars within a segment and across a segment boundary: cosine of chroma and of onsets, and
Jaccard index of instruments. It is measured on real songs (where a boundary means nothing), on their reconstructions,
and on samples as `Codec.sample` draws them: greedy decoding of exemplars; a style's Gaussian; and the prior N(0, I),
independent for each segment; the last two at temperature .9. Intervals are over songs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from context import ContextData, ContextVAE, in_context, sounds
from search import BARS, arguments, row, short, validation
from search_tokens import cells
from torch import Tensor

from seqvae import codec
from seqvae.codec import Codec
from seqvae.config import ObjectiveConfig, Recipe
from seqvae.data.dataset import TokenData
from seqvae.data.prepare import prepare
from seqvae.evaluation import test_songs
from seqvae.music import note_metrics as measures
from seqvae.music.notes import ONSET, PROGRAM, by_bar
from seqvae.music.piece import Piece
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.nn import inference
from seqvae.nn.kernels import multiplies_bf16
from seqvae.nn.loss import loss
from seqvae.nn.posterior import Posterior
from seqvae.nn.refine import refine
from seqvae.nn.sampling import TOP_P, Sampling
from seqvae.protocols import PAD, Ints, Tokenizer
from seqvae.style import gaussian
from seqvae.style.gaussian import Style
from seqvae.train.fit_styles import pieces_of_styles

ROWS: dict[str, tuple[bool, list[str]]] = {
    "base": (False, []),
    "context": (True, []),
    "KL at 0.25": (False, ["objective.beta=0.25"]),
    "context, KL at 0.25": (True, ["objective.beta=0.25"]),
}
"""Whether the decoder is conditioned on the previous segment, and changes to the recipe."""
SEGMENTS = 8  # segments of a sample
DRAWN = 8  # samples per style
FITTED = 60  # songs per style

# --- figures ----------------------------------------------------------------------------------------------------------


def condition(model: Codec, z: Tensor) -> None:
    """Set the previous segments' latents `z (B, D)` for the next pass, if the model is conditioned on them."""
    if isinstance(model.model, ContextVAE):
        model.model.before = z


def previous(z: Sequence[Tensor], sounding: Sequence[Tensor]) -> Tensor:
    """Latents of the segment before each segment, from songs' latents `z (S, D)`: zeros first and after silence."""
    return torch.cat([torch.cat([torch.zeros_like(x[:1]), (x * s)[:-1]]) for x, s in zip(z, sounding, strict=True)])


def split(model: Codec, song: Piece) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens `(S, C, T)` of a song, their position fields, and a mask `(S, 1)` of segments with notes."""
    tokens, fields = model.tensors(model.segments(song))
    return tokens, fields, sounds(tokens.numpy().astype(np.int32))


def encode(model: Codec, songs: Sequence[Piece]) -> list[test_songs.Song]:
    """As `test_songs.encode`, segment by segment: each refinement is given the refined previous segment."""
    parts = [split(model, song) for song in songs]
    means: list[list[Tensor]] = [[] for _ in songs]
    kl: list[list[float]] = [[] for _ in songs]
    low = multiplies_bf16(torch.device("cpu"))
    for at in range(max(len(tokens) for tokens, _, _ in parts)):
        some = [i for i, (tokens, _, _) in enumerate(parts) if at < len(tokens)]
        tokens, fields = model.tensors([model.segments(songs[i])[at] for i in some])
        posterior = model.model.encode(tokens, fields)
        last = [means[i][-1] * parts[i][2][at - 1] if at else torch.zeros(posterior.mean.shape[1]) for i in some]
        condition(model, torch.stack(last))
        if model.refinement.steps:
            posterior = refine(
                model.model, tokens, fields, model._batched.allowed(tokens), posterior, model.refinement, low
            )
        for i, mean, nats in zip(some, posterior.mean, posterior.kl().sum(1).tolist(), strict=True):
            means[i].append(mean)
            kl[i].append(nats)
    found = []
    for song, z, nats_ in zip(songs, means, kl, strict=True):
        posterior = Posterior(torch.stack(z), torch.zeros(len(z), len(z[0])))
        found.append(replace(test_songs._song(model, "", song, posterior), kl=np.array(nats_)))
    return found


def decode(model: Codec, songs: Sequence[test_songs.Song]) -> list[Ints]:
    """As `test_songs.decode`, each segment given the previous one."""
    assert sum(len(song.z) for song in songs) <= inference.BATCH_CHUNKS // model.chunks, "more than one batch"
    condition(model, previous([song.z for song in songs], [split(model, song.piece)[2] for song in songs]))
    return test_songs.decode(model, songs, [song.z for song in songs])


def figures(folder: Path, songs: Sequence[Piece]) -> dict[str, Any]:
    """As `search.figures`."""
    model, out = codec.load(folder), dict[str, Any]()
    for name, steps in (("rough", 0), ("refined", model.refinement.steps)):
        model.refinement = replace(model.refinement, steps=steps)
        encoded = encode(model, songs)
        out[name] = [
            measures.note_f1(test_songs.spell(model, model.tokenizer.encode(song.piece), song), mine)
            for song, mine in zip(encoded, decode(model, encoded), strict=True)
        ]
        out[f"{name}_bits"] = [
            float(song.kl.sum() / np.log(2) / (len(song.piece.bounds) - 1)) for song in encoded
        ]  # fmt: skip
    return out


@torch.no_grad()
def nats(model: Codec, songs: Sequence[Piece], other: int = 0) -> list[float]:
    """As `search_tokens.nats`, given the previous segment of the song itself, or of the song `other` places on."""
    torch.manual_seed(0)
    parts = [split(model, song) for song in songs]
    means = [previous([model.model.encode(tokens, fields).mean], [sounds]) for tokens, fields, sounds in parts]
    out = []
    for i, (song, (tokens, fields, _)) in enumerate(zip(songs, parts, strict=True)):
        before = means[(i + other) % len(songs)]
        condition(model, before[torch.arange(len(tokens)) % len(before)])
        found = loss(model.model, tokens, fields, ObjectiveConfig(), 1 << 30, False, model._batched.allowed(tokens))
        out.append((found.reconstruction + found.kl) * len(tokens) / (len(song.bounds) - 1))
    return out


# --- flow -------------------------------------------------------------------------------------------------------------


def similarities(notes: Ints, bounds: Ints, chunks: int) -> dict[str, tuple[float, float]]:
    """Mean similarities of adjacent bars within segments and across boundaries, by measure; NaN if undefined."""
    bars = by_bar(notes, bounds)
    for bar, begin in zip(bars, bounds, strict=False):
        bar[:, ONSET] -= begin
    kinds: dict[str, Callable[[Ints, Ints], float | None]] = {
        "chroma": measures.chroma_similarity,
        "groove": lambda a, b: measures.groove_fidelity(a, b, 0, int(np.diff(bounds).max())),
        "instruments": shared,
    }
    out = {}
    for name, kind in kinds.items():
        found: tuple[list[float], list[float]] = ([], [])
        for at in range(len(bars) - 1):
            value = kind(bars[at], bars[at + 1])
            if value is not None:
                found[int((at + 1) % chunks == 0)].append(value)
        out[name] = tuple(float(np.mean(values)) if values else float("nan") for values in found)
    return out  # type: ignore[return-value]


def shared(a: Ints, b: Ints) -> float | None:
    """Jaccard index of the instruments of two bars; None if the first has none."""
    x, y = set(a[:, PROGRAM].tolist()), set(b[:, PROGRAM].tolist())
    return len(x & y) / len(x | y) if x else None


def styles(model: Codec, data: TokenData) -> list[Style]:
    """Styles fitted on FITTED training songs each, as in `fit_styles`."""
    out = []
    for _, chosen in sorted(pieces_of_styles(data, np.random.default_rng(0), FITTED).items()):
        pieces, firsts, _ = data.windows(chosen, model.chunks)
        rank = np.arange(len(pieces)) - np.searchsorted(pieces, pieces)
        pieces, firsts = pieces[rank < 16], firsts[rank < 16]
        tokens = data.gather(pieces, firsts, model.chunks)
        means = model.posteriors([[chunk[chunk != PAD] for chunk in segment] for segment in tokens]).mean
        out.append(gaussian.fit(torch.split(means, np.unique(pieces, return_counts=True)[1].tolist())))
    return out


def draws(model: Codec, fitted: Sequence[Style], way: str) -> list[tuple[Ints, Ints]]:
    """Notes and bounds of samples, DRAWN per style."""
    assert isinstance(model.tokenizer, MidiTokenizer)
    out = []
    for number, one in enumerate(fitted):
        generator = torch.Generator().manual_seed(number)
        size = model.model.config.latent
        if way == "exemplars":
            z = [gaussian.draw(one, SEGMENTS, generator, 0.9) for _ in range(DRAWN)]
        elif way == "Gaussian":
            z = [gaussian.draw(replace(one, exemplars=None), SEGMENTS, generator, 0.9) for _ in range(DRAWN)]
        else:
            z = [torch.randn(SEGMENTS, size, generator=generator) for _ in range(DRAWN)]
        condition(model, previous(z, [torch.ones(SEGMENTS, 1)] * DRAWN))
        greedy = way == "exemplars"
        sampling = Sampling(seed=number) if greedy else Sampling(temperature=0.9, top_p=TOP_P, seed=number)
        bars = SEGMENTS * model.chunks
        bounds = (np.arange(bars + 1) * model.tokenizer.max_steps).astype(np.int32)
        chunks = model.generate_tokens(torch.cat(z), np.tile(np.diff(bounds), DRAWN), sampling)
        for i in range(DRAWN):
            out.append((model.tokenizer.decode_notes(chunks[i * bars : (i + 1) * bars], bounds), bounds))
    return out


def flow(model: Codec, data: TokenData, songs: Sequence[Piece]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Similarities of each song within segments and across boundaries, by source of the songs and by measure."""
    encoded = encode(model, songs)
    sets = {"songs": [(song.piece.notes, song.piece.bounds) for song in encoded]}
    sets["reconstructions"] = [
        (notes, song.piece.bounds) for notes, song in zip(decode(model, encoded), encoded, strict=True)
    ]
    fitted = styles(model, data)
    sets |= {way: draws(model, fitted, way) for way in ("exemplars", "Gaussian", "prior")}
    out: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, pieces in sets.items():
        values = [similarities(notes.copy(), bounds, model.chunks) for notes, bounds in pieces]
        out[name] = {kind: [value[kind] for value in values] for kind in values[0]}
    return out


def main() -> None:
    options = arguments(__doc__, ROWS)
    roots, shards = options.data.resolve(), options.out / "data"
    songs = validation(roots, options.songs, BARS)
    found: dict[str, dict[str, Any]] = {}
    for name in options.only:
        context, changes = ROWS[name]
        recipe = short(options.recipe, options.steps, changes)
        folder = options.out / name.replace(" ", "-").replace(",", "")

        def prepared(recipe: Recipe, context: bool = context) -> tuple[TokenData, Tokenizer]:
            data, tokenizer, _ = prepare(recipe, [roots], shards, report=print)
            return (ContextData(shards) if context else data), tokenizer

        with in_context(context):
            found[name] = row(folder, recipe, prepared, songs, figures)
            kept = folder / "flow.json"
            if not kept.exists():
                model = codec.load(folder / "best")
                more = {
                    "bars": {"nats": nats(model, songs), "other": nats(model, songs, len(songs) // 2)},
                    "flow": flow(model, TokenData(shards), songs),
                }
                kept.write_text(json.dumps(more))
            found[name] |= json.loads(kept.read_text())
        print(f"{name}: done", flush=True)
    print(f"\n{options.steps} steps, {len(songs)} validation songs of {BARS} bars; p against the row without context\n")
    print("| | minutes | nats per bar | p | note F1, encoder alone | p | after refinement | p | KL, bits per bar |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, one in found.items():
        beside = found.get("KL at 0.25" if "KL" in name else "base")
        print(f"| {name} | {one['minutes']:.1f} | " + " | ".join(cells(one, beside)) + " |")
    for name, one in found.items():
        other = np.array(one["bars"]["other"]) - np.array(one["bars"]["nats"])
        rise = "{:.1f} [{:.1f}, {:.1f}]".format(*measures.interval(other))
        print(f"{name}: {rise} nats per bar more with the context of another song")
    print("\n| songs | model | " + " | ".join(f"{kind}, within | across | difference" for kind in KINDS) + " |")
    print("|---" * (2 + 3 * len(KINDS)) + "|")
    for source in found[options.only[0]]["flow"]:
        for name, one in found.items():
            values = []
            for kind in KINDS:
                pairs = np.array(one["flow"][source][kind], float)
                pairs = pairs[~np.isnan(pairs).any(1)]
                values += [f"{x:.2f}" for x in pairs.mean(0)]
                values.append("{:.2f} [{:.2f}, {:.2f}]".format(*measures.interval(pairs[:, 0] - pairs[:, 1])))
            print(f"| {source} | {name} | " + " | ".join(values) + " |")


KINDS = ("chroma", "groove", "instruments")

if __name__ == "__main__":
    main()
