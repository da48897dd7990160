"""The program `seqvae` and its main commands, each a thin function over the codec and the styles.

Scope: arguments, and the calls that each command makes. Out of scope: music and text (cli/inputs.py chooses the
module), printing and errors (cli/console.py), training and evaluation (cli/training.py). Only typer is imported here,
the rest inside the functions: `seqvae --help` must answer at once.
"""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from seqvae.cli import console, detect, draw, training, vectors
from seqvae.cli import style as style_commands
from seqvae.cli.console import (
    AnyModel,
    Exact,
    Html,
    Inputs,
    Json,
    Model,
    Out,
    Png,
    Seed,
    Strict,
    Styles,
    Wav,
    verb,
)
from seqvae.cli.moves import (
    FARTHEST,
    Until,
    Weights,
    check_music_options,
    choice_of,
    move_facts,
    moves_of,
    over,
    segments_for,
    target_weights,
    write_chosen,
)
from seqvae.errors import UsageError
from seqvae.style.method import Method

if TYPE_CHECKING:
    from torch import Tensor

    from seqvae.cli.inputs import Desk, Kind
    from seqvae.codec import Codec
    from seqvae.style.arranger import Goal
    from seqvae.style.attribute_vector import AttributeGoal

app = console.group("Blend, interpolate and sample music, sentences and logs in the latent space of a sequence VAE.")
app.add_typer(style_commands.app, name="style")
app.add_typer(detect.app, name="detect")
app.add_typer(draw.app, name="plot")
app.add_typer(vectors.app)
app.add_typer(training.app)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command `seqvae` and end the process."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file name may hold any bytes
    try:
        sys.exit(app(args, prog_name="seqvae", standalone_mode=False))
    except typer.TyperException as error:
        line, context = error.format_message(), getattr(error, "ctx", None)
        if "\n" not in line:  # several lines are the help, shown where there are no arguments
            command = context.command_path if context else "seqvae"
            line = f"seqvae: {line[:1].lower()}{line[1:].removesuffix('.')}; see `{command} --help`"
        print(line, file=sys.stderr)
        sys.exit(error.exit_code)


# --- options of several commands --------------------------------------------------------------------------------------

Temperature = Annotated[
    float,
    typer.Option(min=0, callback=console.finite, help="0 takes the most likely token; higher values vary more."),
]
TopP = Annotated[
    float | None,
    typer.Option(
        callback=console.probability,
        help="Sample from the most likely tokens that together reach this probability.  [default: 0.95; 0.6 for "
        "sentences that are drawn without a latent vector; the most likely token for styles with stored examples, such "
        "as those of music]",
    ),
]
BestOf = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Models that draw without a latent vector: the most probable of this many draws, 1 for any.  [default: 8 "
        "for sentences, else 1]",
    ),
]
TopK = Annotated[int, typer.Option(min=0, help="Sample from this many of the most likely tokens; 0 for all.")]
Beam = Annotated[
    int,
    typer.Option(
        min=0,
        help="Beam search with this many candidates instead of sampling tokens; --temperature then scales the latent "
        "vectors only. 0 for none.",
    ),
]


# --- commands ---------------------------------------------------------------------------------------------------------


@verb(
    app,
    "seqvae blend corpus:bach/bwv66.6 -m music --from classical --to rock --amount 0.5 -o blend.mid",
    "seqvae blend song.mid -m music --to jazz --amount 1 -o jazz.mid --wav --png --html",
    "seqvae blend -m reviews --from negative --to positive --amount 1.5 < in.txt > out.txt",
    "seqvae blend @in.txt -m reviews --from negative --to positive --until 0.9 -o out.txt",
    "seqvae blend @in.txt -m reviews --from negative --to positive --from past --to present --amount 1 -o out.txt",
    "seqvae blend song.mid -m music --from pop --to rock=0.3 --to jazz=0.5 --keep melody --keep drums -o blend.mid",
)
def blend(
    targets: Annotated[
        list[str],
        typer.Option("--to", metavar="STYLE[=AMOUNT]", help="Style to move toward, and how far.", show_default=False),
    ],
    inputs: Inputs = None,
    sources: Annotated[
        list[str] | None, typer.Option("--from", help="Style to start from; without it, the input itself.")
    ] = None,
    amounts: Annotated[
        list[float] | None,
        typer.Option(
            "--amount",
            callback=console.all_finite,
            help="How far to move: 0 stays, 0.5 is half-way, 1 is all the way; any number. With --until, the farthest "
            "that is tried.  [default: 0.5; 2.5 with --until]",
        ),
    ] = None,
    until: Until = None,
    weights: Weights = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="Music: tracks to keep unchanged: melody, drums, or an instrument by its General MIDI name or program "
            "(0 to 127); none for no track.  [default: melody]"
        ),
    ] = None,
    chroma_guidance: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=lambda value: None if value is None else console.finite(value),
            help="Music: how strongly new notes follow the harmony of the original; 0 for not at all.  [default: 1.5]",
        ),
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="mean adds the difference of means, discriminant the part of it that the input lacks, transport maps "
            "the covariance too."
        ),
    ] = "mean",
    model: AnyModel = None,
    styles: Styles = None,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    out: Out = None,
    wav: Wav = False,
    png: Png = False,
    html: Html = False,
    exact: Exact = False,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Move songs, sentences or sessions from one style toward another.

    Several moves are added: give --to once for each, and --from and --amount once, or once for each. An amount after
    a style, as in --to rock=0.3 --to jazz=0.5, is multiplied by --amount where both are given.
    """
    from seqvae.cli.inputs import also, chosen, load

    settings = choice_of(until, weights or [], sources or [], temperature)
    moves = moves_of(targets, sources or [], amounts or [], 0.5 if settings is None else FARTHEST)
    if method != "mean" and not sources:
        raise UsageError(f"--method {method} starts from a style: add --from")
    model, kind = chosen(model, inputs or [])
    check_music_options(kind, keep or [], chroma_guidance)
    if until is not None and kind.FILES:
        raise UsageError(f"--until {until:g}: is for lines of text; songs are moved by --amount")
    with kind.given(
        inputs or [], out, "-".join(target for _, target, _ in moves), as_json, also(wav, png, html)
    ) as desk:
        codec = load(model, styles, exact)
        if settings is not None:
            return write_chosen(desk, codec, moves, settings, method, strict)
        from seqvae.codec import CHROMA_GUIDANCE
        from seqvae.style.translation import compose

        move = compose([codec.translate(target, source, amount, method) for source, target, amount in moves])
        strength = CHROMA_GUIDANCE if chroma_guidance is None else chroma_guidance
        source, target, amount = moves[0]
        goal = codec.goal(target, amount, source) if len(moves) == 1 else codec.goal(target_weights(moves))
        _change(kind, desk, codec, move, move_facts(moves, keep or []), temperature, seed, keep, strength, goal, strict)


def _change(
    kind: Kind, desk: Desk, codec: Codec, move: Callable[[Tensor], Tensor], facts: dict[str, Any],
    temperature: float = 0.0, seed: int = 0, keep: Sequence[str] | None = (), chroma_guidance: float = 0.0,
    goal: Goal | AttributeGoal | None = None, strict: bool = False,
) -> None:  # fmt: skip
    """Encode every piece, apply `move` to its latent vectors, decode and write the result; notices at the end.

    Random draws depend on the row number, not on the batch, apart from rounding (`Codec.exact`). Rows are numbered over
    all lines of text, and anew in each file of music.
    """
    from seqvae.cli.notices import Notices
    from seqvae.cli.progress import ShownInference
    from seqvae.nn.sampling import Sampling
    from seqvae.style.attribute_vector import AttributeGoal, written

    if kind.FILES:  # a song has many segments; lines are counted where they are read
        codec.wrap = ShownInference
    still = all(move["amount"] == 0 for move in facts.get("moves", [facts] if facts else []))
    notices = Notices(codec, strict)
    row = 0
    for batch in desk.batches():
        notices.check_length(batch)
        pieces = [item.piece for item in batch]
        split = [codec.segments(piece) for piece in pieces]
        sampling = Sampling(temperature=temperature, seed=seed, first_row=row)
        latents = codec.means(split) if facts and notices.active else None
        results = codec.transform(pieces, move, sampling, keep, chroma_guidance, split, latents, goal)
        notices.look(batch, split, latents, None if facts else results)
        for item, result, segments in zip(batch, results, split, strict=True):
            reached: dict[str, Any] = {}
            if isinstance(goal, AttributeGoal):
                moved = written(codec.adapter, result, item.piece)
                reached = goal.facts(item.piece, moved)
                if said := goal.notice(item.piece, moved):
                    console.report(f"{item.facts['input']}: {said}")
            desk.write(item, result, {"segments": len(segments), **facts, **reached})
            if kind.FILES and (said := kind.losses(codec, item, segments, result if still else None)):
                console.report(said)
        row += 0 if kind.FILES else sum(max(map(len, segment)) > 1 for segments in split for segment in segments)
    notices.report()


@verb(
    app,
    "seqvae generate -m music --style jazz -n 4 -o out/",
    "seqvae generate -m music --style rock --chords 'C | Am | F | G' --segments 8 -o out/",
    "seqvae generate -m reviews --style positive -n 10 --temperature 0.8",
)
def generate(
    model: Model = "music",
    style: Annotated[
        str | None, typer.Option(help="Style to draw from, or prior for the model's prior; without it, all styles.")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of songs, sentences or sessions.")] = 1,
    segments: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Segments in each of them.  [default: 4 for music, 16 where a segment is a bar, more for longer "
            "--chords; 1 for text]",
        ),
    ] = None,
    chords: Annotated[
        str | None,
        typer.Option(metavar="CHORDS", help="Chords of new songs by bar, again from the first: 'C | Am7 | F G | %'."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=lambda value: None if value is None else console.finite(value),
            help="0 takes the most likely token; higher values vary more.  [default: 0.9; 1 of song models]",
        ),
    ] = None,
    top_p: TopP = None,
    top_k: TopK = 0,
    beam: Beam = 0,
    best_of: BestOf = None,
    styles: Styles = None,
    seed: Seed = 0,
    out: Out = None,
    wav: Wav = False,
    png: Png = False,
    html: Html = False,
    exact: Exact = False,
    as_json: Json = False,
) -> None:
    """Generate new songs, sentences or sessions. The first batch has the seed given; --json prints the seed of each."""
    from seqvae.cli.inputs import also, kind_of, load
    from seqvae.cli.notices import of_draws

    kind = kind_of(model)
    check_music_options(kind, chords=chords)
    digits, stem = len(str(count)), style or Path(model).absolute().name
    with kind.new([f"{stem}-{i + 1:0{digits}}" for i in range(count)], out, as_json, also(wav, png, html)) as desk:
        codec = load(model, styles, exact)
        if best_of is not None and not codec.model.config.without:
            raise UsageError(f"--best-of {best_of}: is for models trained with model.without; {model} is not")
        if said := of_draws(codec):
            console.report(said)
        from seqvae.nn.sampling import TEMPERATURE, TOP_P, Sampling
        from seqvae.style.form import BARS, SAMPLING

        usual = BARS if codec.model.shared else kind.SEGMENTS
        size = segments or max(usual, segments_for(chords, codec.chunks))
        facts = {"style": style, "segments": size} | ({} if chords is None else {"chords": chords})
        like = None if chords is None else over(chords, size * codec.chunks)
        chosen = top_p is not None or top_k or beam
        heat, top = SAMPLING if codec.model.shared else (TEMPERATURE, TOP_P)
        heat = heat if temperature is None else temperature
        sampling = Sampling(temperature=heat, top_p=top_p or top, top_k=top_k, beam=beam) if chosen else None
        draw, own, known = random.Random(seed), seed, codec.styles.get(style or "all")
        row = len(known.exemplars) if known is not None and known.exemplars is not None else 1
        for batch in desk.batches():
            pieces = codec.sample(len(batch), style, temperature, size, own, sampling, like, best_of=best_of)
            for item, piece in zip(batch, pieces, strict=True):
                desk.write(item, piece, {**facts, "seed": own})
            # consecutive seeds draw the examples of a style without replacement
            own = draw.getrandbits(32) // row * row + (own + 1) % row


@verb(
    app,
    "seqvae interpolate a.mid b.mid -m music --steps 7 -o out/",
    'seqvae interpolate "the food was great" "we had to wait" -m reviews --steps 7',
    "seqvae interpolate a.mid b.mid c.mid d.mid -m music --grid 5 -o out/",
)
def interpolate(
    pieces: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C D]", help="Song or sentence to start from, and one to end with; four corners for --grid.",
            show_default=False,
        ),
    ],
    out: Out = None,
    steps: Annotated[int, typer.Option(min=2, help="Number of outputs, both ends included.")] = 7,
    grid: Annotated[
        int | None, typer.Option(min=2, help="Instead of steps: a square grid of this size, A B on top, C D below.")
    ] = None,
    kind: Annotated[
        Literal["slerp", "line"] | None,
        typer.Option(
            help="Along an arc, or a straight line. Default: an arc for songs; sentences chosen around both.",
            show_default=False,
        ),
    ] = None,
    model: AnyModel = None,
    wav: Wav = False,
    png: Png = False,
    html: Html = False,
    exact: Exact = False,
    strict: Strict = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Interpolate between two songs or sentences. The first output is A, the last is B.

    Songs, and sentences with --kind or --grid, end as the model decodes A and B. Steps are chosen to differ evenly in
    the output. With --grid, rows follow one another.
    """
    from seqvae.cli.inputs import also, chosen, load

    _check_ends(pieces, grid)
    model, own = chosen(model, pieces)
    if own.FILES and out is None:
        raise UsageError("missing option '--out'; the steps are several files; give -o FOLDER")
    given = [own.one(piece) for piece in pieces]
    names, corners = _places(steps, grid)
    with own.new(names, out, as_json, also(wav, png, html)) as desk:
        codec = load(model, exact=exact)
        from seqvae.cli.notices import Notices

        notices = Notices(codec, strict)
        notices.look_at_ends(given)
        if grid is None:
            results = codec.interpolate(given[0], given[1], steps, kind)
        else:
            results = [piece for row in codec.grid(given, grid, kind or "slerp") for piece in row]
        items = [item for batch in desk.batches() for item in batch]
        for i, (item, piece) in enumerate(zip(items, results, strict=True)):
            amount = {"from": pieces[0], "to": pieces[1], "amount": i / (steps - 1)}
            facts = amount if grid is None else {"corners": pieces, "row": i // grid, "column": i % grid}
            desk.write(item, piece, facts)
    notices.report()
    if not own.FILES and not notices.active:
        for piece, at in zip(given, corners, strict=True):
            if results[at] != piece:
                console.report(f"'{piece}' is decoded as '{results[at]}'")


def _check_ends(pieces: Sequence[str], grid: int | None) -> None:
    """Raises UsageError for more or fewer inputs than the command needs."""
    needed = 2 if grid is None else 4
    if len(pieces) < needed:
        raise UsageError(
            f"missing argument '{'ABCD'[len(pieces)]}'; {'a grid' if grid else 'the command'} needs {needed} inputs"
        )
    if len(pieces) > needed:
        raise UsageError(f"{len(pieces)} inputs; give two, or four with --grid")


def _places(steps: int, grid: int | None) -> tuple[list[str], list[int]]:
    """Names of the steps or of the places of a grid, and the indices of the given ends or corners."""
    places = range(steps if grid is None else grid)
    digits = max(2, len(str(len(places) - 1)))
    names = [f"{i:0{digits}}" for i in places]
    if grid is None:
        return names, [0, len(names) - 1]
    names = [f"{row}-{column}" for row in names for column in names]
    return names, [0, grid - 1, len(names) - grid, len(names) - 1]


@verb(app, "seqvae reconstruct song.mid -m music -o again.mid", "seqvae reconstruct -m reviews < in.txt > out.txt")
def reconstruct(
    inputs: Inputs = None, model: AnyModel = None, out: Out = None, wav: Wav = False, png: Png = False,
    html: Html = False, exact: Exact = False, strict: Strict = False, as_json: Json = False,
    search: Annotated[
        int | None,
        typer.Option(min=0, help="Gradient steps from the encoder's mean to a vector that decodes to the input; "
                     "by default as many as the model's recipe says."),
    ] = None,
) -> None:  # fmt: skip
    """Encode and decode again, to show how much the model keeps."""
    from seqvae.cli.inputs import also, chosen, load

    model, kind = chosen(model, inputs or [])
    with kind.given(inputs or [], out, "reconstructed", as_json, also(wav, png, html)) as desk:
        codec = load(model, exact=exact)
        if search is not None:
            codec = replace(codec, refinement=replace(codec.refinement, steps=search))
        _change(kind, desk, codec, lambda z: z, {}, strict=strict)


# --- the page ---------------------------------------------------------------------------------------------------------


@verb(app, "seqvae studio", "seqvae studio runs/music/best --port 9000")
def studio(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Checkpoint folders or Hub ids, besides the released models."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any address but the default may be reached by other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 chooses a free port.")] = 8321,
) -> None:
    """Serve a web page: blends to see and hear, sentences, a map of styles, anomalies.

    It works offline. Other programs may use its API, which the page documents.
    """
    from seqvae.studio import server
    from seqvae.studio.models import Models

    known = Models(models or [])
    listening = server.listen(host, port)
    place = f"[{host}]" if ":" in host else host
    print(f"http://{place}:{listening.getsockname()[1]}/  (Ctrl-C ends it)", flush=True)
    server.serve(known, listening, [host])


# --- the program itself -----------------------------------------------------------------------------------------------


def _version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        print(version("seqvae"))
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None: ...
