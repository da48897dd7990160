"""The command line: a verb is a function, thin over codec and style.

Knows arguments, and what each verb makes of them. Refuses to know music and sentences (kinds.py finds who does), models
and figures, how errors are told (terminal.py), and how models are made (workshop.py). Only typer is imported here, and
the rest inside the functions, so that `seqvae --help` answers at once.
"""

from __future__ import annotations

import io
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from seqvae import detect, terminal, workshop
from seqvae.errors import SeqVAEError, UsageError
from seqvae.terminal import Inputs, Json, Model, Seed, tell, verb

if TYPE_CHECKING:
    from torch import Tensor

    from seqvae.codec import Codec
    from seqvae.kinds import Desk, Kind

# as style.Method, whose module imports torch; a test holds them together
Method = Literal["mean", "discriminant", "transport"]

app = terminal.group("Blend, walk and sample music, sentences and logs in the latent space of a sequence VAE.")
styles_app = terminal.group("Fit styles of your own, list and describe the ones there are.")
app.add_typer(styles_app, name="style")
app.add_typer(detect.app, name="detect")
app.add_typer(workshop.app)


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


# --- options that several verbs have ----------------------------------------------------------------------------------

Out = Annotated[
    str | None,
    typer.Option(
        "--out", "-o", metavar="PATH", help="File to write, or folder for several pieces of music; text else printed."
    ),
]
Latents = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="File to write.", show_default=False)]
Styles = Annotated[Path | None, typer.Option("--styles", help="Add the styles of a file that `style fit` wrote.")]
Temperature = Annotated[
    float,
    typer.Option(min=0, callback=terminal.finite, help="0 takes the likeliest token; higher is more adventurous."),
]
TopP = Annotated[
    float, typer.Option(callback=terminal.probability, help="Draw among tokens that reach this probability.")
]
TopK = Annotated[int, typer.Option(min=0, help="Draw among this many tokens; 0 for all.")]
Beam = Annotated[
    int,
    typer.Option(
        min=0,
        help="Look for the likeliest tokens with this many candidates instead of drawing them; --temperature then "
        "only widens what is drawn in the latent space. 0 for none.",
    ),
]


# --- verbs ------------------------------------------------------------------------------------------------------------


@verb(
    app,
    "seqvae blend corpus:bach/bwv66.6 -m music --from classical --to rock --amount 0.5 -o blend.mid",
    "seqvae blend -m reviews --from negative --to positive --amount 1.5 < in.txt > out.txt",
    "seqvae blend @in.txt -m reviews --from negative --to positive --from past --to present --amount 1 -o out.txt",
)
def blend(
    targets: Annotated[list[str], typer.Option("--to", help="Style to move toward.", show_default=False)],
    inputs: Inputs = None,
    sources: Annotated[
        list[str] | None, typer.Option("--from", help="Style to start from; else the piece itself.")
    ] = None,
    amounts: Annotated[
        list[float] | None,
        typer.Option(
            "--amount",
            callback=terminal.all_finite,
            help="How far: 0 stays, 0.5 is half-way, 1 all the way; any number.  [default: 0.5]",
        ),
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="Add the difference of means, or of it as much as a piece lacks; or carry the spread over too."
        ),
    ] = "mean",
    model: Model = "music",
    styles: Styles = None,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Move pieces from one style toward another.

    Several moves are added up: give --from, --to and --amount once for each; one --amount serves for all.
    """
    from seqvae.kinds import kind_of, load

    starts: Sequence[str | None] = sources or [None] * len(targets)
    far = amounts or [0.5]
    far = far * len(targets) if len(far) == 1 else far
    if not len(starts) == len(far) == len(targets):
        raise UsageError(
            f"{len(targets)} --to, {len(sources or [])} --from and {len(amounts or [])} --amount do not fit together; "
            "give each once for every move"
        )
    if method != "mean" and not sources:
        raise UsageError(f"--method {method} starts from a style: add --from")
    moves = list(zip(starts, targets, far, strict=True))
    kind = kind_of(model)
    with kind.given(inputs or [], out, "-".join(targets), as_json) as desk:
        codec = load(model, styles)
        movers = [codec.mover(target, source, amount, method) for source, target, amount in moves]
        rows = [{"from": source, "to": target, "amount": amount} for source, target, amount in moves]
        facts = rows[0] if len(rows) == 1 else {"moves": rows}
        _change(kind, desk, codec, _together(movers), facts, temperature, seed)


def _together(movers: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    """All moves at once: each is a displacement from where the piece lies, and displacements add up."""
    if len(movers) == 1:
        return movers[0]
    return lambda z: z + sum(move(z) - z for move in movers)


def _change(
    kind: Kind, desk: Desk, codec: Codec, move: Callable[[Tensor], Tensor], facts: dict[str, Any],
    temperature: float = 0.0, seed: int = 0,
) -> None:  # fmt: skip
    """Send every piece through the latent space, moved on the way.

    What is drawn does not depend on the batches: the rows of all lines are numbered, and those of each file of music.
    """
    from seqvae.sampling import Sampling

    row = 0
    for batch in desk.batches():
        pieces = [item.piece for item in batch]
        split = [codec.segments(piece) for piece in pieces]
        sampling = Sampling(temperature=temperature, seed=seed, first_row=row)
        for item, result, segments in zip(batch, codec.transform(pieces, move, sampling), split, strict=True):
            desk.write(item, result, {"segments": len(segments), **facts})
        row += 0 if kind.FILES else sum(max(map(len, segment)) > 1 for segments in split for segment in segments)


@verb(
    app,
    "seqvae generate -m music --style jazz -n 4 -o out/",
    "seqvae generate -m reviews --style positive -n 10 --temperature 0.8",
)
def generate(
    model: Model = "music",
    style: Annotated[
        str | None, typer.Option(help="Style to draw from, or prior, what the model was drawn toward; else all styles.")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Pieces.")] = 1,
    segments: Annotated[
        int | None, typer.Option(min=1, help="Segments in each piece.  [default: 4 of music, 1 of text]")
    ] = None,
    temperature: Temperature = 0.9,
    top_p: TopP = 0.95,
    top_k: TopK = 0,
    beam: Beam = 0,
    styles: Styles = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Make new pieces. The first ones have the seed given; --json tells the seed of each."""
    from seqvae.kinds import kind_of, load

    kind = kind_of(model)
    size = segments or kind.SEGMENTS
    digits, stem = len(str(count)), style or Path(model).absolute().name
    with kind.new([f"{stem}-{i + 1:0{digits}}" for i in range(count)], out, as_json) as desk:
        codec = load(model, styles)
        from seqvae.sampling import Sampling

        draw, own = random.Random(seed), seed
        for batch in desk.batches():
            sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=own, beam=beam)
            pieces = codec.sample(len(batch), style, temperature, size, own, sampling)
            for item, piece in zip(batch, pieces, strict=True):
                desk.write(item, piece, {"style": style, "segments": size, "seed": own})
            own = draw.getrandbits(32)


@verb(
    app,
    "seqvae interpolate a.mid b.mid -m music --steps 7 -o out/",
    'seqvae interpolate "the food was great" "we had to wait" -m reviews --steps 7',
)
def interpolate(
    a: Annotated[str, typer.Argument(metavar="A", help="Piece to start from.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="Piece to end with.", show_default=False)],
    out: Out = None,
    steps: Annotated[int, typer.Option(min=2, help="Pieces, both ends included.")] = 7,
    kind: Annotated[Literal["slerp", "line"], typer.Option(help="Along the arc, or the straight line.")] = "slerp",
    model: Model = "music",
    as_json: Json = False,
) -> None:
    """Walk from one piece to another. The first output is A as the model says it, the last one B."""
    from seqvae.kinds import kind_of, load

    own = kind_of(model)
    if own.FILES and out is None:
        raise UsageError("missing option '--out'; the steps are several files, which need -o FOLDER")
    digits = max(2, len(str(steps - 1)))
    start, end = own.one(a), own.one(b)
    with own.new([f"{i:0{digits}}" for i in range(steps)], out, as_json) as desk:
        pieces = load(model).interpolate(start, end, steps=steps, kind=kind)
        items = [item for batch in desk.batches() for item in batch]
        for i, (item, piece) in enumerate(zip(items, pieces, strict=True)):
            desk.write(item, piece, {"from": a, "to": b, "amount": i / (steps - 1)})
    if not own.FILES:
        for wanted, said in ((start, pieces[0]), (end, pieces[-1])):
            if said != wanted:
                terminal.report(f"the model says '{said}' for '{wanted}'")


@verb(app, "seqvae reconstruct song.mid -m music -o again.mid", "seqvae reconstruct -m reviews < in.txt > out.txt")
def reconstruct(inputs: Inputs = None, model: Model = "music", out: Out = None, as_json: Json = False) -> None:
    """Send pieces through the latent space and back. Shows what the model keeps of them."""
    from seqvae.kinds import kind_of, load

    kind = kind_of(model)
    with kind.given(inputs or [], out, "reconstructed", as_json) as desk:
        _change(kind, desk, load(model), lambda z: z, {})


@verb(
    app,
    "seqvae encode song.mid -m music -o latents.safetensors",
    "seqvae encode @in.txt -m reviews -o latents.safetensors",
)
def encode(out: Latents, inputs: Inputs = None, model: Model = "music", as_json: Json = False) -> None:
    """Write the latent vectors of pieces.

    Of music, each is a tensor (segments, dimensions) with the name of its file. Of text, `z` has the vectors of all
    lines in a row, and `segments` how many of them each line has: one, or none for a line without a word.
    """
    from seqvae.kinds import kind_of, load

    kind = kind_of(model)
    batches = kind.read(inputs or [])
    ranks = terminal.processes(kind.FILES, inputs)
    codec = load(model)
    from seqvae import checkpoint

    def encoded(batch: Sequence[Any]) -> Iterator[tuple[Any, Tensor]]:
        return zip(batch, codec.encode([item.piece for item in batch]), strict=True)

    items: list[Any] = []
    latents: list[Tensor] = []
    for item, z in ranks.in_rounds(batches, encoded):
        items.append(item)
        latents.append(z)
    ranks.leave()
    if ranks.rank:
        return
    tensors, sources, rows = kind.pack(inputs or [], items, latents, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"model": model, "kind": codec.tokenizer.kind, "sources": json.dumps(sources)}
    checkpoint.save_tensors(tensors, about, out)
    for text, facts in rows:
        tell(text, facts, as_json)


@verb(
    app,
    "seqvae decode latents.safetensors -m music --like song.mid -o out/",
    "seqvae decode latents.safetensors -m reviews > out.txt",
)
def decode(
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="File that `encode` wrote.", show_default=False)],
    model: Model = "music",
    like: Annotated[str | None, typer.Option(help="Music: piece to take tempo, metre and key from.")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Turn latent vectors back into pieces. Music has the names of its tensors, text comes in the order of lines."""
    from seqvae.kinds import kind_of, load

    kind = kind_of(model)
    frame = None if like is None else kind.frame(like)
    from seqvae import checkpoint

    tensors, about = checkpoint.load_tensors(latents)
    pieces = kind.unpack(tensors, latents)
    with kind.new([name for name, _ in pieces], out, as_json) as desk:
        codec = load(model)
        if about.get("kind", codec.tokenizer.kind) != codec.tokenizer.kind:
            raise SeqVAEError(f"{latents}: holds {about['kind']}, and {model} speaks {codec.tokenizer.kind}; choose -m")
        most = None if frame is None else len(codec.segments(frame))
        for name, z in pieces:
            if most is not None and len(z) > most:
                raise SeqVAEError(f"'{name}' has {len(z)} segments, and --like {like} only {most}; name a longer piece")
        rest = iter(pieces)
        for batch in desk.batches():
            named = [(name, z.float()) for _, (name, z) in zip(batch, rest, strict=False)]
            frames = None if frame is None else [frame] * len(batch)
            results = codec.decode([z for _, z in named], like=frames)
            for item, (name, z), piece in zip(batch, named, results, strict=True):
                desk.write(item, piece, {"name": name, "segments": len(z)})


# --- styles -----------------------------------------------------------------------------------------------------------


@verb(
    styles_app,
    "seqvae style fit mine=songs/ -m music -o my.styles",
    "seqvae style fit glasses=@with.txt plain=@without.txt -m reviews -o my.styles",
)
def fit(
    sets: Annotated[
        list[str],
        typer.Argument(metavar="NAME=PATH", help="Files, or folders of them; of text, NAME=@FILE is understood too."),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="File to write.")] = None,
    add: Annotated[bool, typer.Option("--add", help="Write them into the model's own folder instead.")] = False,
    model: Model = "music",
    as_json: Json = False,
) -> None:
    """Fit styles to pieces of your own. A name may be given several times; use the file with --styles."""
    from seqvae.kinds import kind_of, load

    if (out is None) is not add:
        raise UsageError("say where the styles go: -o FILE, or --add for the model's own folder")
    paths: dict[str, list[str]] = {}
    for given in sets:
        name, _, path = given.partition("=")
        if not name or not path or name in ("all", "prior"):
            raise UsageError(f"'{given}': write NAME=PATH, with any NAME but all and prior")
        paths.setdefault(name, []).append(path)
    kind = kind_of(model)
    found = {name: kind.members(given) for name, given in paths.items()}
    codec = load(model)
    from seqvae import checkpoint, style

    fitted = {name: codec.fit_style(list(found[name]), ", ".join(given)) for name, given in paths.items()}
    if out is None:
        out = checkpoint.find(model)
        kept = checkpoint.load(out)
        tensors, about = style.pack(fitted)
        kept.styles, kept.about_styles = kept.styles | tensors, kept.about_styles | about
        checkpoint.save(kept, out)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        style.save(fitted, out)
    for name, one in fitted.items():
        facts = {"style": name, "count": one.count, "source": one.source, "output": str(out)}
        tell(f"{name}: {one.count} pieces, in {out}", facts, as_json)


@verb(styles_app, "seqvae style list -m music --json")
def list_(model: Model = "music", styles: Styles = None, as_json: Json = False) -> None:
    """List the styles of a model."""
    from seqvae.kinds import load

    known = {name: style for name, style in sorted(load(model, styles).styles.items()) if name != "all"}
    rows = [{"style": name, "count": style.count, "source": style.source} for name, style in known.items()]
    terminal.print_rows(rows, as_json)


@verb(styles_app, "seqvae style show rock -m music")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Style to describe.", show_default=False)],
    model: Model = "music",
    styles: Styles = None,
    as_json: Json = False,
) -> None:
    """Describe one style. Tells how wide it is, and how far its mean lies from every other one's."""
    from seqvae.kinds import load

    codec = load(model, styles)
    from seqvae.style import separation

    style = codec.style(name)
    others = {n: s for n, s in sorted(codec.styles.items()) if n not in (name, "all")}
    distances = {n: float((style.mean - other.mean).norm()) for n, other in others.items()}
    apart = {n: separation(style, other) for n, other in others.items()}
    spread = float(style.covariance.trace().sqrt())
    facts = {"style": name, "count": style.count, "source": style.source, "spread": spread}
    facts |= {"persistence": style.persistence, "distances": distances, "told_apart": apart}
    lines = [
        f"{name}: {style.count} pieces from {style.source or 'an unknown source'}",
        f"spread {spread:.3f}: root mean square distance of a segment from the mean",
        f"persistence {style.persistence:.3f}: correlation of a segment with the one before",
        *(
            f"{distances[n]:.3f} from the mean of {n}: {100 * apart[n]:.0f} % of segments are told apart"
            for n in others
        ),
    ]
    tell("\n".join(lines), facts, as_json)


# --- the program itself -----------------------------------------------------------------------------------------------


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(version("seqvae"))
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None: ...
