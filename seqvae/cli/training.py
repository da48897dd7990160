"""Commands for models: train, learn a vocabulary, evaluate, export, and list the released ones.

Scope: arguments, and the calls that each command makes; cli/app.py adds these commands to its own. Out of scope:
training and evaluation (train/loop.py, evaluation/music.py, evaluation/text.py). Only typer is imported here, as in
cli/app.py.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from seqvae.cli import console
from seqvae.cli.console import Folder, Json, Model, Seed, report, tell, verb
from seqvae.errors import SeqVAEError, UsageError

if TYPE_CHECKING:
    from seqvae.codec import Codec

app = console.group("Train, evaluate and export models.")
tokenizer_app = console.group("Learn a vocabulary for text, and show its tokens.")
app.add_typer(tokenizer_app, name="tokenizer")

Algorithm = Literal["bpe", "unigram", "char"]
START_RATE = 0.15
"""Share of the recipe's learning rate for training that begins with a trained model: with all of it, one of sentences
forgot what it had learned."""
Half = Literal["choose", "final"]  # a copy of dataset.Half; a test compares the two


@verb(
    app,
    "seqvae train music --data mine/ --start runs/songs/best --minutes 5",
    "seqvae train music --data songs/ --out runs/music --set model.latent=256",
    "seqvae train reviews --data positive.txt --data negative.txt --out runs/mine --minutes 10",
)
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, or a .toml.", show_default=False)],
    data: Annotated[
        list[str],
        typer.Option("--data", metavar="PATH", help="Folder of music, or file of sentences.", show_default=False),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder of the run.  [default: runs/RECIPE]")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Text: use this vocabulary instead of learning one.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Start from the weights of this model, not from random ones, with 0.15 times the learning rate.",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01, callback=lambda value: None if value is None else console.finite(value),
            help="Training time in minutes, with a schedule to match, instead of the recipe's train.steps.",
        ),
    ] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a setting.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's train.seed.")] = None,
) -> None:  # fmt: skip
    """Train a model. Prints the path of the checkpoint. Ctrl-C saves the state; continue with --resume.

    For music, --data is a folder with a folder for each style. For text, each file, one sentence on each line, is a
    style named after it. It can also be the folder `data` of an earlier run, or its address (s3://...).
    """
    from seqvae.config import load_recipe

    gentle = (
        [] if start is None else [f"train.learning_rate={START_RATE * load_recipe(recipe, []).train.learning_rate:g}"]
    )
    changed = [*gentle, *(changes or []), *([f"train.seed={seed}"] if seed is not None else [])]
    changed += [f"train.minutes={minutes}"] if minutes is not None else []
    settings = load_recipe(recipe, changed)
    from seqvae.modality import modality
    from seqvae.train.loop import train_from

    out = out or Path("runs") / Path(recipe).stem
    try:
        if start is not None and tokenizer is None and modality(settings.tokenizer.kind).vocabulary != "fixed":
            from seqvae.checkpoint import hub

            tokenizer = hub.find(start) / "tokenizer"  # weights belong to one vocabulary
        best, skipped = train_from(settings, data, out, tokenizer=tokenizer, resume=resume, start=start, report=report)
    except KeyboardInterrupt as stop:
        options = [f"--data={path}" for path in data] + [f"--out={out}"]
        options += [f"--tokenizer={tokenizer}"] if tokenizer is not None else []
        options += [f"--start={start}"] if start is not None else []
        options += [f"--set={change}" for change in changed]
        _interrupted(str(stop) or "interrupted", ["seqvae", "train", recipe, *options, "--resume"])
    from seqvae import parallel

    if parallel.join().rank == 0:
        if skipped:
            report(f"{len(skipped)} files skipped")
        print(best)


def _interrupted(reason: str, command: Sequence[str]) -> NoReturn:
    """End a training, with the command that continues it printed by the first of several processes."""
    from seqvae import parallel

    if parallel.join().rank:
        raise typer.Exit(130) from None
    console.end(f"{reason}; continue with `{shlex.join(command)}`", 130)


@verb(tokenizer_app, "seqvae tokenizer train --data reviews.txt --vocab-size 4000 -o tokenizers/mine")
def train_(
    data: Annotated[
        list[str], typer.Option("--data", metavar="FILE", help="Sentences, one on each line.", show_default=False)
    ],
    out: Folder,
    vocab_size: Annotated[int, typer.Option(min=1, help="Most tokens; few lines give fewer.")] = 4000,
    algorithm: Annotated[
        Algorithm, typer.Option(help="Algorithm that splits words into tokens; char splits at every character.")
    ] = "bpe",
    max_tokens: Annotated[int, typer.Option(min=5, help="Most tokens in a segment; longer lines are divided.")] = 128,
    as_json: Json = False,
) -> None:
    """Learn a vocabulary from lines. Use the folder with `seqvae train --tokenizer`.

    From more than 128 MiB of text, it learns from a random sample of that size, as `seqvae train` does.
    """
    from seqvae.cli import text_io as lines

    files = list(out.iterdir()) if out.is_dir() else []
    if out.exists() and (not out.is_dir() or {path.name for path in files} - {"tokenizer.json", "sentencepiece.model"}):
        raise SeqVAEError(f"{out}: exists and is not the folder of a tokenizer; choose another -o")
    members = lines.members(data)
    from seqvae.checkpoint import folder as checkpoint
    from seqvae.data import prepare as shards
    from seqvae.text.tokenizer import TextTokenizer

    learned = shards.evenly(members, shards.LEARNED)
    tokenizer = TextTokenizer.train(learned, vocab_size, algorithm, max_tokens)
    checkpoint.write_folder(out, tokenizer.save)
    facts = {"lines": len(learned), "tokens": tokenizer.vocab_size, "output": str(out)}
    tell(f"{tokenizer.vocab_size} tokens from {len(learned)} lines, in {out}", facts, as_json)


@verb(tokenizer_app, 'seqvae tokenizer encode "the food was good" -t tokenizers/mine')
def encode(
    folder: Annotated[
        Path,
        typer.Option("--tokenizer", "-t", metavar="DIR", help="Tokenizer or checkpoint.", show_default=False),
    ],
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT", help="A sentence, @FILE with one on each line, or -.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the tokens of sentences, with spaces as underscores."""
    from seqvae.cli import text_io as lines
    from seqvae.modality import load_tokenizer
    from seqvae.text.tokenizer import SPACE, TextTokenizer

    with lines.given(inputs or [], None, "", as_json) as desk:
        inside = folder / "tokenizer"
        tokenizer = load_tokenizer(inside if inside.is_dir() else folder)
        if not isinstance(tokenizer, TextTokenizer):
            raise SeqVAEError(f"{folder}: is a tokenizer of {tokenizer.kind}, not of sentences; choose another -t")
        for batch in desk.batches():
            for item, chunks in zip(batch, tokenizer.encode_all([item.facts["input"] for item in batch]), strict=True):
                ids = [int(token) for chunk in chunks for token in chunk[:-1]]
                spelled = [tokenizer.token_text(token).replace(" ", SPACE) for token in ids]
                desk.write(item, " ".join(spelled), {"tokens": spelled, "ids": ids})


@verb(
    app,
    "seqvae evaluate -m music --data songs/ --json",
    "seqvae evaluate -m music --data songs/ --arrangement --pairs classical/rock",
    "seqvae evaluate -m reviews --data text/ --pieces 200",
    "seqvae evaluate -m reviews --data good=@test.good --data bad=@test.bad --train good=@train.good "
    "--train bad=@train.bad",
)
def evaluate(
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            metavar="PATH",
            help="Music: folder with a folder for each style. Text: held-out lines as @FILE, of a style as NAME=@FILE; "
            "or a folder of public sets.",
            show_default=False,
        ),
    ],
    model: Model = "music",
    training: Annotated[
        list[str] | None,
        typer.Option("--train", metavar="[NAME=]@FILE", help="Text: training lines for classifier and language model."),
    ] = None,
    opposites: Annotated[
        list[str] | None,
        typer.Option(
            "--pairs",
            metavar="A/B",
            help="Text: styles to move between, in both directions; default all. Arrangements: from A to B, or all; "
            "default five pairs.",
        ),
    ] = None,
    pieces: Annotated[
        int | None,
        typer.Option(min=1, help="Most songs or lines of each style.  [default: 20 songs, 1000 lines]"),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Music: generated songs. Text: samples for importance weighting.  [default: 200; 500 for text]",
        ),
    ] = None,
    iw_lines: Annotated[int, typer.Option(min=0, help="Text: lines with importance weighting; 0 for all.")] = 500,
    split: Annotated[
        Half, typer.Option(help="Music: half of the held-out songs, for choices (choose) or final figures (final).")
    ] = "final",
    arrangement: Annotated[
        bool,
        typer.Option(
            "--arrangement",
            help="Music: only compare blends of 16 bars with real songs and a rule. 16 songs by default.",
        ),
    ] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Evaluate a model on held-out data: reconstruction, likelihood, style and content of blends.

    For text, the likelihood is that of the lines given without a name; without them, of the lines of all styles. Under
    torchrun the model's work is divided among the processes.
    """
    from seqvae.checkpoint import hub
    from seqvae.cli.inputs import load
    from seqvae.modality import modality

    if modality(hub.kind_of(hub.find(model))).content == "songs":
        if len(data) != 1:
            raise UsageError(f"{len(data)} --data: for music give one folder, with a folder for each style")
        codec, say = _sharded(load(model))
        if arrangement:
            figures, table = _arrangement_figures(codec, Path(data[0]), pieces or 16, opposites or [], split, seed, say)
        else:
            from seqvae.evaluation import music, music_report

            figures = music.evaluate(
                codec, Path(data[0]), pieces=pieces or 20, samples=samples or 200, seed=seed, split=split, report=say
            )
            table = music_report.table(figures)
    else:
        if arrangement:
            raise UsageError(f"--arrangement: is for music, and {model} is not a model of music; leave it out")
        from seqvae.evaluation import text_report

        pairs, sizes = _pairs(opposites or []) or None, (pieces or 1000, samples or 500, iw_lines or None)
        if any(Path(one).is_dir() for one in data):
            if len(data) > 1 or training:
                raise UsageError(
                    "--data: of a folder of sets give nothing else, and no --train, which is in the folder"
                )
            codec, say = _sharded(load(model))
            figures = _published_figures(codec, Path(data[0]), pairs, sizes, seed, say)
        else:
            lines, training_lines = _by_name(data), _by_name(training or [])
            codec, say = _sharded(load(model))
            figures = _text_figures(codec, lines, training_lines, pairs, sizes, seed, say)
        table = text_report.table(figures)
    if codec.ranks.rank == 0:  # once, in the first of several processes
        tell(table, figures, as_json)
    codec.ranks.leave()


def _arrangement_figures(
    codec: Codec, data: Path, songs: int, pairs: Sequence[str], split: Half, seed: int, say: Callable[[str], None]
) -> tuple[dict[str, Any], str]:
    """Figures of blends as arrangements, and their tables."""
    from seqvae.evaluation import arrangement, arrangement_report

    chosen = arrangement.pairs_of(codec, every=True) if [*pairs] == ["all"] else _pairs(pairs) or None
    figures = arrangement.evaluate(codec, data, songs=songs, pairs=chosen, half=split, seed=seed, report=say)
    return figures, arrangement_report.table(figures)


Pairs = list[tuple[str, str]]
Sizes = tuple[int, int, int | None]  # lines of each style, samples of each posterior, lines with importance weighting


def _published_figures(
    codec: Codec, folder: Path, pairs: Pairs | None, sizes: Sizes, seed: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Figures on the public sets of a folder."""
    from seqvae.evaluation import published

    lines, samples, iw_lines = sizes
    return published.evaluate(
        codec, folder, lines=lines, samples=samples, iw_lines=iw_lines, pairs=pairs, seed=seed, report=say
    )


def _text_figures(
    codec: Codec, lines: dict[str, list[str]], train: dict[str, list[str]], pairs: Pairs | None, sizes: Sizes,
    seed: int, say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Figures on held-out lines by style, and under "" those for the likelihood; training lines alike."""
    from seqvae.evaluation import text

    plain, corpus = lines.pop("", None), train.pop("", None)
    moved, samples, iw_lines = sizes
    return text.evaluate_text(
        codec,
        plain if plain is not None else [line for members in lines.values() for line in members],
        styles=lines,
        train=train,
        corpus=corpus,
        opposites=pairs,
        seed=seed,
        samples=samples,
        iw_lines=iw_lines,
        transfer_lines=moved,
        report=say,
    )


def _pairs(given: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of styles written as A/B; raises UsageError for any other form."""
    pairs = [(a, b) for a, slash, b in (text.partition("/") for text in given) if a and b and "/" not in b]
    if len(pairs) < len(given):
        raise UsageError(f"--pairs {' '.join(given)}: write two styles as A/B")
    return pairs


def _sharded(codec: Codec) -> tuple[Codec, Callable[[str], None]]:
    """A codec whose work is divided among the processes of torchrun, and a report function of the first process."""
    from seqvae import parallel

    codec.ranks = parallel.join()
    return codec, report if codec.ranks.rank == 0 else lambda _: None


def _by_name(given: Iterable[str]) -> dict[str, list[str]]:
    """Lines of every `NAME=@FILE`, and of `@FILE` and `FILE` under "", without blank ones; raises ReadError."""
    from seqvae.cli import text_io as lines

    paths: dict[str, list[str]] = {}
    for one in given:
        name, equals, path = ("", "", one) if one.startswith("@") else one.partition("=")
        paths.setdefault(name if equals else "", []).append(path if equals or not name else name)
    members = {name: lines.members(files) for name, files in paths.items()}  # all are opened before any is read
    return {name: list(found) for name, found in members.items()}


@verb(app, "seqvae export -m reviews -o reviews.onnx/")
def export(
    out: Folder,
    model: Model = "music",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write encoder and decoder as ONNX, for programs without torch. Prints their largest difference from torch.

    The folder holds encoder.onnx, start.onnx and step.onnx, the tokenizer and config.json; docs/export.md shows a
    program that encodes and decodes with them.
    """
    # torch's exporter warns about recurrent encoders; export_model compares the graphs with torch
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from seqvae.export import SEGMENTS, export_model

    kept, found = export_model(model, out, SEGMENTS, seed)
    steps = kept.recipe.refine.steps
    if steps:
        report(f"encoder.onnx gives the encoder's mean, without the {steps} refinement steps that follow it in seqvae")
    megabytes = sum(path.stat().st_size for path in out.glob("*.onnx")) / 1e6
    facts = {"output": str(out), "megabytes": round(megabytes, 1), "segments": SEGMENTS, **dataclasses.asdict(found)}
    far = f"{found.encoder:.0e} (encoder) and {found.decoder:.0e} (decoder)"
    tell(f"{megabytes:.1f} MB in {out}; over {SEGMENTS} random segments up to {far} from torch", facts, as_json)


@verb(app, "seqvae models")
def models(as_json: Json = False) -> None:
    """List the released models."""
    from seqvae.checkpoint import hub

    rows: Sequence[dict[str, Any]] = [dataclasses.asdict(hub.facts(folder)) for folder in hub.released()]
    if not rows:
        raise SeqVAEError(f"no released model in {hub.released_folder()}; train one with `seqvae train`")
    console.print_rows(rows, as_json)
