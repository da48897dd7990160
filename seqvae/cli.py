"""The command line: a verb is a function, thin over codec, style, train and evaluate.

Knows arguments, exit codes and what is printed. Refuses to know music, models, figures and where outputs go (places.py
does). Only typer is imported here, and the rest inside the functions, so that `seqvae --help` answers at once.

Exit codes: 0 done, 1 bad input, 2 wrong usage, 130 interrupted; with one line on standard error that says what to do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import random
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from seqvae.errors import SeqVAEError, UsageError

if TYPE_CHECKING:
    from seqvae.codec import Codec

Verb = Callable[..., None]
_PLAIN: dict[str, Any] = {  # rich takes longer to import than --help may take
    "add_completion": False,
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}
app = typer.Typer(help="Blend, walk and sample music in the latent space of a sequence VAE.", **_PLAIN)
styles_app = typer.Typer(help="Fit styles of your own, list and describe the ones there are.", **_PLAIN)
app.add_typer(styles_app, name="style")


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The command `seqvae`, which ends the process."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file name may be any bytes, and is printed as it is
    try:
        sys.exit(app(args, prog_name="seqvae", standalone_mode=False))
    except typer.TyperException as error:
        line, context = error.format_message(), getattr(error, "ctx", None)
        if "\n" not in line:  # else it is the whole help, which is what no arguments at all ask for
            command = context.command_path if context else "seqvae"
            line = f"seqvae: {line[:1].lower()}{line[1:].removesuffix('.')}; see `{command} --help`"
        print(line, file=sys.stderr)
        sys.exit(error.exit_code)


# --- what all verbs share ---------------------------------------------------------------------------------------------


def _finite(value: float) -> float:
    """Refuse nan and inf, which are numbers to Python."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no amount; give a number such as 0.5")
    return value


def _probability(value: float) -> float:
    if not 0 < value <= 1:
        raise typer.BadParameter(f"{value} is not above 0 and at most 1")
    return value


Inputs = Annotated[
    list[str], typer.Argument(metavar="INPUT", help="Music files, folders of them, or corpus:NAME.", show_default=False)
]
Model = Annotated[str, typer.Option("--model", "-m", help="A released name, a checkpoint folder or a Hub id.")]
Out = Annotated[
    str | None,
    typer.Option("--out", "-o", metavar="PATH", help="File or folder to write; several outputs need a folder."),
]
Styles = Annotated[Path | None, typer.Option("--styles", help="Add the styles of a file that `style fit` wrote.")]
Temperature = Annotated[
    float, typer.Option(min=0, callback=_finite, help="0 takes the likeliest token; higher is more adventurous.")
]
TopP = Annotated[float, typer.Option(callback=_probability, help="Draw among tokens that reach this probability.")]
TopK = Annotated[int, typer.Option(min=0, help="Draw among this many tokens; 0 for all.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same output.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]


def _verb(group: typer.Typer, example: str) -> Callable[[Verb], Verb]:
    """Register a command under its function's name, with an example in its help and its errors told in one line."""

    def register(function: Verb) -> Verb:
        @functools.wraps(function)
        def told(*args: Any, **kwargs: Any) -> None:
            with _errors_in_one_line():
                function(*args, **kwargs)

        # \b: keep the lines as they are
        group.command(function.__name__.rstrip("_"), epilog=f"\b\nExample:\n  {example}")(told)
        return function

    return register


@contextlib.contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
        sys.stdout.flush()
    except SeqVAEError as error:
        _end(str(error), error.exit_code)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except BrokenPipeError:  # `seqvae ... | head`: whoever read has left, and wants no word about it
        _flush_or_drop()
        raise typer.Exit(141) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = (error.strerror or str(error)).lower()
        _end(f"{where}{reason}; check the name, the free space and the permissions", 1)


def _end(line: str, code: int) -> NoReturn:
    """Say why, and exit."""
    _flush_or_drop()
    print(f"seqvae: {' '.join(line.splitlines())}", file=sys.stderr)
    raise typer.Exit(code) from None


def _flush_or_drop() -> None:
    """What is printed goes out now or never: Python would complain once more at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _report(line: str) -> None:
    """A line on standard error, above a progress bar if one is shown."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


def _write(piece: Any, place: Path, facts: Mapping[str, Any], as_json: bool) -> None:
    """Write one piece and tell where."""
    from seqvae import midi

    midi.write(piece, place)
    _tell(str(place), {"output": str(place), **facts}, as_json)


def _tell(text: str, facts: Mapping[str, Any], as_json: bool) -> None:
    """Output for people, or the same as one line of JSON."""
    from tqdm import tqdm

    tqdm.write(json.dumps(facts) if as_json else text)


def _print_rows(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """A table with the keys on top, or one JSON object a row."""
    if as_json:
        for row in rows:
            print(json.dumps(row))
    elif rows:
        table = [
            list(rows[0]),
            *([", ".join(v) if isinstance(v, list) else str(v) for v in row.values()] for row in rows),
        ]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for cells in table:
            print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def _load(model: str, styles: Path | None = None) -> Codec:
    """The codec, on the GPU if there is one, with the styles of a file added."""
    import torch

    from seqvae import codec, style

    loaded = codec.load(model)
    if torch.cuda.is_available():
        loaded.model.cuda()
    if styles is not None:
        loaded.styles.update(style.load(styles, loaded.model.config.latent))
    return loaded


# --- verbs ------------------------------------------------------------------------------------------------------------


@_verb(app, "seqvae blend corpus:bach/bwv66.6 -m music --from classical --to rock --amount 0.5 -o blend.mid")
def blend(
    inputs: Inputs,
    target: Annotated[str, typer.Option("--to", help="Style to move toward.", show_default=False)],
    source: Annotated[str | None, typer.Option("--from", help="Style to start from; else the piece itself.")] = None,
    amount: Annotated[
        float, typer.Option(callback=_finite, help="How far: 0 stays, 0.5 is half-way, 1 all the way; any number.")
    ] = 0.5,
    method: Annotated[
        Literal["mean", "transport"], typer.Option(help="Add the difference of means, or transport the covariance too.")
    ] = "mean",
    model: Model = "music",
    styles: Styles = None,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Move pieces from one style toward another."""
    from seqvae import places
    from seqvae.sampling import Sampling

    if method == "transport" and source is None:
        raise UsageError("--method transport starts from a style: add --from")
    targets = places.outputs(inputs, out, target)
    codec = _load(model, styles)
    for name in filter(None, (source, target)):
        codec.style(name)  # an unknown one is told before anything is read
    sampling = Sampling(temperature=temperature, seed=seed)
    for path, piece in places.read_each(targets, places.alone(inputs), _report):
        moved = codec.blend(piece, target=target, source=source, amount=amount, method=method, sampling=sampling)
        facts = {"input": str(path), "segments": len(codec.segments(piece)), "from": source, "to": target}
        _write(moved, targets[path], {**facts, "amount": amount}, as_json)


@_verb(app, "seqvae generate -m music --style jazz -n 4 -o out/")
def generate(
    model: Model = "music",
    style: Annotated[str | None, typer.Option(help="Style to draw from; else all of them together.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Pieces.")] = 1,
    segments: Annotated[int, typer.Option(min=1, help="Segments in each piece.")] = 4,
    temperature: Temperature = 0.9,
    top_p: TopP = 0.95,
    top_k: TopK = 0,
    styles: Styles = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Compose new pieces. The first has the seed given; --json tells the seed of each."""
    from tqdm import tqdm

    from seqvae import places
    from seqvae.sampling import Sampling

    digits = len(str(count))
    stem = style or Path(model).absolute().name
    targets = places.fresh([f"{stem}-{i + 1:0{digits}}" for i in range(count)], out)
    codec = _load(model, styles)
    draw = random.Random(seed)
    for i, place in enumerate(tqdm(targets, unit="piece", disable=None if count > 1 else True, leave=False)):
        own = seed if i == 0 else draw.getrandbits(32)
        sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=own)
        [piece] = codec.sample(1, style, temperature, segments, own, sampling)
        _write(piece, place, {"style": style, "segments": segments, "seed": own}, as_json)


@_verb(app, "seqvae interpolate a.mid b.mid -m music --steps 7 -o out/")
def interpolate(
    a: Annotated[str, typer.Argument(metavar="A", help="Piece to start from.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="Piece to end with.", show_default=False)],
    out: Annotated[str, typer.Option("--out", "-o", metavar="FOLDER", help="Folder to write.", show_default=False)],
    steps: Annotated[int, typer.Option(min=2, help="Pieces, both ends included.")] = 7,
    kind: Annotated[Literal["slerp", "line"], typer.Option(help="Along the arc, or the straight line.")] = "slerp",
    model: Model = "music",
    as_json: Json = False,
) -> None:
    """Walk from one piece to another. The first output is A as the model hears it, the last one B."""
    from seqvae import midi, places

    digits = max(2, len(str(steps - 1)))
    targets = places.fresh([f"{i:0{digits}}" for i in range(steps)], out)
    start, end = midi.read(a), midi.read(b)
    pieces = _load(model).interpolate(start, end, steps=steps, kind=kind)
    for i, (piece, place) in enumerate(zip(pieces, targets, strict=True)):
        _write(piece, place, {"from": a, "to": b, "amount": i / (steps - 1)}, as_json)


@_verb(app, "seqvae reconstruct song.mid -m music -o again.mid")
def reconstruct(inputs: Inputs, model: Model = "music", out: Out = None, as_json: Json = False) -> None:
    """Send pieces through the latent space and back. Shows what the model keeps of them."""
    from seqvae import places

    targets = places.outputs(inputs, out, "reconstructed")
    codec = _load(model)
    for path, piece in places.read_each(targets, places.alone(inputs), _report):
        facts = {"input": str(path), "segments": len(codec.segments(piece))}
        _write(codec.reconstruct(piece), targets[path], facts, as_json)


Latents = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="File to write.", show_default=False)]


@_verb(app, "seqvae encode song.mid -m music -o latents.safetensors")
def encode(inputs: Inputs, out: Latents, model: Model = "music", as_json: Json = False) -> None:
    """Write the latent vectors of pieces. Each is a tensor (segments, dimensions) with the name of its file."""
    from seqvae import checkpoint, places

    stems = places.named(inputs)
    codec = _load(model)
    tensors, sources = {}, {}
    for path, piece in places.read_each(stems, places.alone(inputs), _report):
        name = stems[path].as_posix()
        [tensors[name]] = codec.encode([piece])
        sources[name] = str(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"model": model, "kind": codec.tokenizer.kind, "sources": json.dumps(sources)}
    checkpoint.save_tensors(tensors, about, out)
    for name, z in tensors.items():
        facts = {"input": sources[name], "name": name, "segments": len(z), "output": str(out)}
        _tell(f"{sources[name]}: '{name}', {len(z)} segments, in {out}", facts, as_json)


@_verb(app, "seqvae decode latents.safetensors -m music --like song.mid -o out/")
def decode(
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="File that `encode` wrote.", show_default=False)],
    model: Model = "music",
    like: Annotated[str | None, typer.Option(help="Piece to take tempo, metre and key from.")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Turn latent vectors back into pieces. Each has the name of its tensor."""
    from seqvae import checkpoint, midi, places

    tensors, _ = checkpoint.load_tensors(latents)
    names = sorted(tensors)
    if not names or any(".." in Path(name).parts or Path(name).is_absolute() for name in names):
        raise SeqVAEError(f"{latents}: its tensors are not named as pieces; write it with `seqvae encode`")
    targets = places.fresh(names, out)
    frame = None if like is None else midi.read(like)
    codec = _load(model)
    for name, place in zip(names, targets, strict=True):
        z = tensors[name].float()
        if frame is not None and len(z) > (most := len(codec.segments(frame))):
            raise SeqVAEError(f"'{name}' has {len(z)} segments, and --like {like} only {most}; name a longer piece")
        [piece] = codec.decode([z], like=None if frame is None else [frame])
        _write(piece, place, {"name": name, "segments": len(z)}, as_json)


@_verb(styles_app, "seqvae style fit mine=songs/ -m music -o my.styles")
def fit(
    sets: Annotated[list[str], typer.Argument(metavar="NAME=PATH", help="Files or folders.", show_default=False)],
    out: Latents,
    model: Model = "music",
    as_json: Json = False,
) -> None:
    """Fit styles to your own music. A name may be given several times; use the file with --styles."""
    from seqvae import collection, places, style

    paths: dict[str, list[str]] = {}
    for given in sets:
        name, _, path = given.partition("=")
        if not name or not path or name == "all":
            raise UsageError(f"'{given}': write NAME=PATH, with any NAME but all")
        paths.setdefault(name, []).append(path)
    found = {name: collection.find(given) for name, given in paths.items()}
    codec = _load(model)
    fitted = {}
    for name, inputs in paths.items():
        pieces = places.read_each(found[name], places.alone(inputs), _report)
        fitted[name] = codec.fit_style([piece for _, piece in pieces], ", ".join(inputs))
    out.parent.mkdir(parents=True, exist_ok=True)
    style.save(fitted, out)
    for name, one in fitted.items():
        facts = {"style": name, "count": one.count, "source": one.source, "output": str(out)}
        _tell(f"{name}: {one.count} pieces, in {out}", facts, as_json)


@_verb(styles_app, "seqvae style list -m music --json")
def list_(model: Model = "music", styles: Styles = None, as_json: Json = False) -> None:
    """List the styles of a model."""
    known = {name: style for name, style in sorted(_load(model, styles).styles.items()) if name != "all"}
    rows = [{"style": name, "count": style.count, "source": style.source} for name, style in known.items()]
    _print_rows(rows, as_json)


@_verb(styles_app, "seqvae style show rock -m music")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Style to describe.", show_default=False)],
    model: Model = "music",
    styles: Styles = None,
    as_json: Json = False,
) -> None:
    """Describe one style. Tells how wide it is, and how far its mean lies from every other one's."""
    codec = _load(model, styles)
    style = codec.style(name)
    others = {n: float((style.mean - s.mean).norm()) for n, s in sorted(codec.styles.items()) if n not in (name, "all")}
    spread = float(style.covariance.trace().sqrt())
    facts = {"style": name, "count": style.count, "source": style.source, "spread": spread}
    facts |= {"persistence": style.persistence, "distances": others}
    lines = [
        f"{name}: {style.count} pieces from {style.source or 'an unknown source'}",
        f"spread {spread:.3f}: root mean square distance of a segment from the mean",
        f"persistence {style.persistence:.3f}: correlation of a segment with the one before",
        *(f"{distance:.3f} from the mean of {other}" for other, distance in others.items()),
    ]
    _tell("\n".join(lines), facts, as_json)


Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder with a folder a style.", show_default=False)]


@_verb(app, "seqvae train music --data songs/ --out runs/music --set model.latent=256")
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, or a .toml.", show_default=False)],
    data: Annotated[list[Path], typer.Option("--data", metavar="DIR", help="Folder of music.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the run.", show_default=False)],
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a setting.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's train.seed.")] = None,
) -> None:
    """Train a model on a folder of pieces. Prints where the checkpoint is."""
    from seqvae.config import load_recipe

    changed = [*(changes or []), *([f"train.seed={seed}"] if seed is not None else [])]
    settings = load_recipe(recipe, changed)
    from seqvae.train import train_from

    try:
        best, skipped = train_from(settings, data, out, resume=resume, report=_report)
    except KeyboardInterrupt:
        command = ["seqvae", "train", recipe, *(f"--data={path}" for path in data), f"--out={out}"]
        command += [f"--set={change}" for change in changed]
        _end(f"interrupted; go on with `{shlex.join(command)} --resume`", 130)
    if skipped:
        _report(f"{len(skipped)} files skipped")
    print(best)


@_verb(app, "seqvae evaluate -m music --data songs/ --json")
def evaluate(
    data: Data,
    model: Model = "music",
    pieces: Annotated[int, typer.Option(min=1, help="Held-out pieces of each style at most.")] = 20,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure a model on held-out pieces. Tells what it keeps of them, and where blends arrive."""
    from seqvae import evaluate

    figures = evaluate.evaluate(_load(model), data, pieces=pieces, seed=seed, report=_report)
    _tell(evaluate.table(figures), figures, as_json)


@_verb(app, "seqvae models")
def models(as_json: Json = False) -> None:
    """List the released models."""
    from seqvae import released

    rows = [dataclasses.asdict(released.facts(folder)) for folder in released.released()]
    if not rows:
        raise SeqVAEError(f"no released model in {released.released_folder()}; train one with `seqvae train`")
    _print_rows(rows, as_json)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(version("seqvae"))
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None: ...
