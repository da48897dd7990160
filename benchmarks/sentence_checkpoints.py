"""Checkpoints of sentence models from the weights of `train_sentences.py`, with styles fitted on training lines.

    python benchmarks/sentence_corpora.py DATA CORPORA
    python benchmarks/train_sentences.py prose --data CORPORA --out WEIGHTS --minutes 8.5
    python benchmarks/sentence_checkpoints.py prose WEIGHTS CORPORA DATA checkpoints/prose
    seqvae evaluate -m checkpoints/prose ... --json > figures.json
    python benchmarks/card.py checkpoints/prose figures.json

The third command writes the checkpoint and the tokenizer in `tokenizers/`, if it is not there. A model card in the
folder is kept; without one, a stub is written with a place for the tables of `card.py`.

WEIGHTS is the folder with `prose.safetensors`; CORPORA and DATA are the folders of `sentence_corpora.py`. Styles of
`prose`: authors, narration and dialogue, questions and statements, and the same verses in archaic (King James), plain
(Basic English) and modern (World English) versions. Styles of `reviews`: negative and positive, past and present. Both
models get the style `all` and a mixture for sampling.
"""

from __future__ import annotations

import csv
import json
import random
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from sentence_corpora import VERSIONS, is_suitable
from torch import Tensor

from seqvae.checkpoint import folder as checkpoint
from seqvae.checkpoint.folder import Checkpoint
from seqvae.codec import Codec
from seqvae.config import Recipe, from_dict, load_recipe
from seqvae.data.dataset import split_of
from seqvae.evaluation.text_sets import AUTHORS, style_of
from seqvae.style import gaussian, mixture, offsets, styles_file
from seqvae.style.gaussian import Style
from seqvae.text import lines as text
from seqvae.text.tokenizer import TextTokenizer
from seqvae.train.fit_styles import MIXTURE

LINES = 5000  # lines per style at most
AUTHORS_LINES = 1500  # lines per author at most
RANK, WIDE = 3, 24  # rank of the covariance of an author, of whom there are dozens, and of another style
FEWEST = 500  # least number of training lines of an author with a style
POINTS = 40_000  # posterior samples that the mixture is fitted to
BATCH = 2000  # lines encoded at a time
LARGEST = 16_000_000  # bytes of a released checkpoint
GROUPS = (  # styles that a classifier tells apart
    ("narration", "dialogue"), ("question", "statement"), ("archaic", "plain", "modern"),
    ("negative", "positive"), ("past", "present"), tuple(sorted({author for pair in AUTHORS for author in pair})),
)  # fmt: skip


def trained(lines: list[str]) -> list[str]:
    """The lines of the training split."""
    return [line for line in lines if is_suitable(line) and split_of(text.title(line)) == "train"]


def styles_of_prose(data: Path) -> dict[str, tuple[list[str], str]]:
    """Lines and description of each style."""
    authors: dict[str, list[str]] = {}
    with (data / "books/books.tsv").open() as file:
        for row in csv.DictReader(file, delimiter="\t"):
            lines = trained(list(text.read_lines(data / f"books/{row['file']}.txt")))
            authors.setdefault(row["author"], []).extend(lines)
    books = [line for lines in authors.values() for line in lines]
    out = {
        style_of(author): (lines, f"{author}, sentences of the training split")
        for author, lines in sorted(authors.items())
        if len(lines) >= FEWEST
    }
    spoken = [line for line in books if line.startswith(("\u201c", '"'))]
    narration = [line for line in books if not re.search('[\u201c\u201d"]', line)]
    out["dialogue"] = spoken, "books: sentences that begin with a quotation mark"
    out["narration"] = narration, "books: sentences without quotation marks"
    out["question"] = [line for line in books if line.rstrip("\u201d\"'\u2019").endswith("?")], "books: questions"
    statements = [line for line in books if line.rstrip("\u201d\"'\u2019").endswith(".")]
    out["statement"] = statements, "books: sentences that end with a full stop"
    verses = [list(text.read_lines(data / f"bible/{version}.txt")) for version in VERSIONS]
    same = [
        each for i, each in enumerate(zip(*verses, strict=True))
        if split_of(f"verse {i}") == "train" and all(map(is_suitable, each))
    ]  # fmt: skip
    names = {"archaic": "King James Version", "plain": "Bible in Basic English", "modern": "World English Bible"}
    for (name, about), version in zip(names.items(), zip(*same, strict=True), strict=True):
        out[name] = list(version), f"{about}: verses of the training split"
    return out


def styles_of_reviews(data: Path) -> dict[str, tuple[list[str], str]]:
    """Lines and description of each style; every other line of a review is left for judges (choosing.py)."""
    out = {
        name: (trained(list(text.read_lines(data / f"yelp/train.{name}"))[::2]), f"{name} reviews, training split")
        for name in ("negative", "positive")
    }
    for name in ("past", "present"):
        there = [line for line in text.read_lines(data / f"yelp/tense/valid.{name}") if line.strip()]
        out[name] = trained(there), f"{name} tense: nine tenths of tense/valid.{name}"
    return out


def with_author_offsets(authors: dict[str, Style]) -> dict[str, Style]:
    """Offsets of all authors, as long as those of the authors with a classifier."""
    lengths = [float(one.offset.norm()) for one in authors.values() if one.offset is not None]
    ways = offsets.directions(list(authors.values())) if lengths else None
    if ways is None:
        return authors
    return {
        name: replace(one, offset=lengths[0] * way / way.norm())
        for (name, one), way in zip(authors.items(), ways, strict=True)
    }


def stub(name: str, styles: list[str]) -> str:
    """A model card with the places that remain to be written."""
    return (
        f"# {name}\n\nA sequence VAE of English sentences. Styles: {', '.join(styles)}.\n\n"
        "## Data\n\n## Figures\n\n<!-- figures -->\n<!-- end of figures -->\n\n## Limits\n"
    )


def main() -> None:
    name, weights, corpora, data, folder = sys.argv[1], *map(Path, sys.argv[2:])
    with safe_open(weights / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (no dict)
        about = file.metadata() or {}
    recipe = from_dict(Recipe, json.loads(about["recipe"]), name) if "recipe" in about else load_recipe(name)
    tokenizer = TextTokenizer.load(corpora / f"{name}.tokenizer", recipe.tokenizer.max_tokens)
    model = checkpoint.build(recipe.model, tokenizer)
    model.load_state_dict(tensors)
    kept = Checkpoint(recipe, model.eval(), tokenizer)
    codec = Codec(tokenizer, model)
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    lines = styles_of_prose(data) if name == "prose" else styles_of_reviews(data)
    means: dict[str, Tensor] = {}
    draws: list[Tensor] = []
    large = {"dialogue", "narration", "question", "statement", "archaic", "plain", "modern"}
    large |= {"negative", "positive", "past", "present"}
    for one, (there, _) in lines.items():
        part = rng.sample(there, min(len(there), LINES if one in large else AUTHORS_LINES))
        parts = []
        for at in range(0, len(part), BATCH):
            segments = [codec.segments(line)[0] for line in part[at : at + BATCH]]
            posterior = codec.posteriors(segments)
            parts.append(posterior.mean)
            draws.append(posterior.sample(generator))
        means[one] = torch.cat(parts)
    fitted = {one: gaussian.fit(list(z[:, None]), lines[one][1]) for one, z in means.items()}
    for group in GROUPS:
        if fitted.keys() >= set(group):
            fitted |= offsets.fitted_together(
                codec, {one: fitted[one] for one in group}, {one: lines[one][0] for one in group}
            )
    fitted |= with_author_offsets({one: fit for one, fit in fitted.items() if one not in large})
    everything = torch.cat([z for one, z in means.items()])
    source = f"all styles: {len(everything)} sentences of the training split"
    fitted["all"] = offsets.centre(gaussian.fit(list(everything[:, None]), source), fitted)
    wide = {one: fit for one, fit in fitted.items() if one in large or one == "all"}
    kept.styles, kept.about_styles = styles_file.pack(wide, WIDE)
    narrow = styles_file.pack({one: fit for one, fit in fitted.items() if one not in wide}, RANK)
    kept.styles |= narrow[0]
    kept.about_styles |= narrow[1]
    points = torch.cat(draws)
    points = points[torch.randperm(len(points), generator=generator)[:POINTS]]
    kept.styles |= mixture.pack(mixture.fit(points, MIXTURE))
    kept.card = card.read_text() if (card := folder / "README.md").exists() else stub(name, sorted(fitted))
    checkpoint.save(kept, folder)
    if not (learned := Path("tokenizers") / name).exists():
        tokenizer.save(learned)
    size = sum((folder / file).stat().st_size for file in checkpoint.FILES if (folder / file).exists())
    print(f"{folder}: {len(fitted)} styles, {size / 1e6:.1f} MB")
    if size > LARGEST:
        raise SystemExit(f"{folder}: more than {LARGEST / 1e6:.0f} MB; fit fewer styles, or with a lower RANK")


if __name__ == "__main__":
    main()
