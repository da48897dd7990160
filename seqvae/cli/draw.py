"""The commands under `seqvae plot`: piano rolls, a map of styles, evaluation figures, training curves.

Scope: arguments and output files. Out of scope: drawing (plot.py). Only typer is imported here, the rest inside the
functions: `seqvae --help` must answer at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from seqvae.cli import console
from seqvae.cli.console import Json, Model, Styles, tell, verb
from seqvae.errors import CheckpointError, SeqVAEError, UsageError

app = console.group("Draw songs, a model's styles and figures, and training curves as PNG files.")

Picture = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="PNG file to write.", show_default=False)]


@verb(
    app, "seqvae plot roll a.mid b.mid -o roll.png", "seqvae plot roll corpus:bach/bwv66.6 song.mid --stacked -o r.png"
)
def roll(
    pieces: Annotated[
        list[str], typer.Argument(metavar="PIECE", help="Music files, or corpus:NAME.", show_default=False)
    ],
    out: Picture,
    stacked: Annotated[bool, typer.Option("--stacked", help="One below the other instead of side by side.")] = False,
    as_json: Json = False,
) -> None:
    """Draw piano rolls of songs, coloured by instrument. All share their time axis, pitch range and colours."""
    _named(out)
    from seqvae import plot
    from seqvae.music import piece as midi

    read = [midi.read(piece) for piece in pieces]
    _write(plot.roll([(piece.name, piece) for piece in read], stacked=stacked), out, as_json)


@verb(app, "seqvae plot map -m music -o map.png", "seqvae plot map latents.safetensors -m music -o map.png")
def map_(
    out: Picture,
    latents: Annotated[
        Path | None, typer.Argument(metavar="LATENTS", help="File of `encode`, whose latent vectors are drawn too.")
    ] = None,
    model: Model = "music",
    styles: Styles = None,
    as_json: Json = False,
) -> None:
    """Draw the styles of a model in the plane that separates them best (linear discriminant analysis)."""
    _named(out)
    from seqvae.cli.inputs import kind_of, load

    kind = kind_of(model)
    from seqvae import plot

    codec = load(model, styles)
    from seqvae.checkpoint import folder as checkpoint
    from seqvae.style import lda as plane

    points = {}
    if latents is not None:
        points = {name: z.float() for name, z in kind.unpack(checkpoint.load_tensors(latents)[0], latents)}
        if any(z.shape[1:] != (codec.model.config.latent,) for z in points.values()):
            raise SeqVAEError(f"{latents}: was not written by {model}; encode with the same model")
    known = {name: style for name, style in sorted(codec.styles.items()) if name != "all"}
    if not known:
        raise SeqVAEError(f"{model}: has no styles to draw; fit some with `seqvae style fit`")
    _write(plot.latent_map(plane.plane(known), points), out, as_json)


@verb(app, "seqvae plot effect -m music -o effect.png")
def effect(out: Picture, model: Model = "music", as_json: Json = False) -> None:
    """Draw the effect of a blend by amount, as `seqvae evaluate` measured it, with 95 % intervals."""
    _named(out)
    from seqvae import plot
    from seqvae.checkpoint import folder as checkpoint

    path = checkpoint.find(model) / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{model}: has no measurements yet; run `seqvae evaluate` first") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: is damaged ({error}); measure again with `seqvae evaluate`") from error
    _write(plot.effect(metrics), out, as_json)


@verb(app, "seqvae plot training runs/music -o curves.png")
def training(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Folders that `seqvae train` wrote.", show_default=False)
    ],
    out: Picture,
    as_json: Json = False,
) -> None:
    """Draw training curves of runs: loss, KL, accuracy, and F1 of free-running decoding."""
    _named(out)
    from seqvae import plot

    _write(plot.training({run.resolve().name: _log(run / "log.jsonl") for run in runs}), out, as_json)


def _log(path: Path) -> list[dict[str, Any]]:
    """The log of a run, a row for each report."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise SeqVAEError(
            f"{path.parent}: is not a run, as it has no {path.name}; name a folder of `seqvae train`"
        ) from None
    except ValueError as error:
        raise SeqVAEError(f"{path}: is damaged ({error}); repair or remove that line") from error


def _named(out: Path) -> None:
    if out.suffix.lower() != ".png":
        raise UsageError(f"-o {out}: pictures are written as .png")


def _write(figure: Any, out: Path, as_json: bool) -> None:
    from seqvae import plot
    from seqvae.music import piece as midi

    midi.write_whole(out, plot.png(figure))
    tell(str(out), {"output": str(out)}, as_json)
