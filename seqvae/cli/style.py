"""The commands under `seqvae style`: fit styles, measure the effect of their vectors, list and describe them.

Scope: arguments, the files of styles, and printed output. Out of scope: fitting (style/gaussian.py), measuring
(evaluation/style_effect.py) and labels of music (music/attributes.py). Only typer is imported here, as in cli/app.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from seqvae.cli import console
from seqvae.cli.console import AnyModel, Json, Model, Seed, Styles, tell, verb
from seqvae.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from seqvae.cli.inputs import Kind
    from seqvae.codec import Codec
    from seqvae.style.gaussian import Style

app = console.group("Fit styles of your own, measure their effect, list and describe them.")

# a copy of attributes.ATTRIBUTES, whose module imports numpy; a test compares the two
By = Literal["drums", "mode", "density"]
Sets = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME=PATH",
        help="Name of a style and its files or folders; for text also NAME=@FILE. With --attribute, PATH alone.",
    ),
]
Attribute = Annotated[
    By | None,
    typer.Option(
        "--attribute",
        help="Music: divide the songs by an attribute: with-drums and without-drums, minor and major, or dense and "
        "sparse (the thirds with most and fewest notes per beat).",
    ),
]
Add = Annotated[bool, typer.Option("--add", help="Write to the model's own folder instead.")]


@verb(
    app,
    "seqvae style fit mine=songs/ -m music -o my.styles",
    "seqvae style fit glasses=@with.txt plain=@without.txt -m reviews -o my.styles",
    "seqvae style fit songs/ --attribute drums -m music -o drums.styles",
    "seqvae style fit songs/ --attribute density --styles drums.styles --orthogonal-to drums -m music -o both.styles",
)
def fit(
    sets: Sets,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="File to write.")] = None,
    add: Add = False,
    by: Attribute = None,
    hold_out: Annotated[
        bool, typer.Option("--hold-out", help="Leave out the test split, one in twenty, that `style effect` uses.")
    ] = False,
    orthogonal_to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Make the vector orthogonal to that of an attribute, or between two styles, FROM:TO, which it then "
            "leaves alone; several are possible.",
        ),
    ] = None,
    styles: Annotated[
        Path | None, typer.Option("--styles", help="File with styles of --orthogonal-to; they go into the output too.")
    ] = None,
    model: AnyModel = None,
    as_json: Json = False,
) -> None:
    """Fit styles to songs or sentences of your own. A name may be given several times. Use the file with --styles."""
    from seqvae.cli.inputs import chosen, load
    from seqvae.modality import counted

    if (out is None) is not add:
        raise UsageError("missing output; give -o FILE, or --add for the model's own folder")
    model, kind = chosen(model, [given.partition("=")[2] for given in sets])
    found = _sets(kind, sets) if by is None else {str(by): (_members(kind, sets, by), ", ".join(sets))}
    codec = load(model, styles)
    if hold_out:
        from seqvae.evaluation import style_effect as effect

        found = {
            name: ([piece for piece in pieces if not effect.is_test_piece(piece)], source)
            for name, (pieces, source) in found.items()
        }
    if by:
        from seqvae.style import attribute_vector

        fitted = attribute_vector.fit(codec, by, *found[by])
    else:
        fitted = codec.fit_styles(found)
    if orthogonal_to:
        from seqvae.style.translation import orthogonal

        fitted = orthogonal(fitted, [_direction(codec, name) for name in orthogonal_to])
    if styles is not None:
        from seqvae.style import styles_file

        path = _write(styles_file.load(styles) | fitted, out, model)
    else:
        path = _write(fitted, out, model)
    for name, one in fitted.items():
        facts = {"style": name, "count": one.count, "source": one.source, "output": str(path)}
        tell(f"{name}: {counted(one.count, codec.tokenizer.kind)}, in {path}", facts, as_json)


def _direction(codec: Codec, name: str) -> Tensor:
    """The vector `(D,)` of an attribute, or between two styles, FROM:TO."""
    from seqvae.style.attribute_vector import pair
    from seqvae.style.translation import vector

    source, between, target = name.partition(":")
    return vector(codec.style(source), codec.style(target)) if between else vector(*pair(codec.styles, name))


def _members(kind: Kind, sets: Sequence[str], by: By) -> list[Any]:
    """The songs to divide by an attribute; raises UsageError for lines."""
    if not kind.FILES:
        raise UsageError(f"--attribute {by}: is for music; name the lines of each style, as in NAME=@FILE")
    return list(kind.members(sets))


def _sets(kind: Kind, sets: Sequence[str]) -> dict[str, tuple[list[Any], str]]:
    """Pieces of every style, and their source; raises UsageError for an argument that is not NAME=PATH."""
    paths: dict[str, list[str]] = {}
    for given in sets:
        name, _, path = given.partition("=")
        if not name or not path or name in ("all", "prior"):
            raise UsageError(f"'{given}': write NAME=PATH, with any NAME but all and prior")
        paths.setdefault(name, []).append(path)
    found = {name: kind.members(given) for name, given in paths.items()}  # all paths are checked before one is read
    return {name: (list(found[name]), ", ".join(given)) for name, given in paths.items()}


def _write(styles: Mapping[str, Style], out: Path | None, model: str) -> Path:
    """Write styles to a file, or add them to the model's own folder; returns its path."""
    from seqvae.checkpoint import folder as checkpoint
    from seqvae.style import styles_file

    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        styles_file.save(styles, out)
        return out
    folder = checkpoint.find(model)
    kept = checkpoint.load(folder)
    tensors, about = styles_file.pack(styles)
    kept.styles, kept.about_styles = kept.styles | tensors, kept.about_styles | about
    checkpoint.save(kept, folder)
    return folder


@verb(
    app,
    "seqvae style effect rock=songs/rock jazz=songs/jazz -m music",
    "seqvae style effect songs/ --attribute drums -m music --styles drums.styles --songs 20",
    "seqvae style effect positive=@good.txt negative=@bad.txt -m reviews --songs 200 --json",
)
def effect(
    sets: Sets,
    by: Attribute = None,
    songs: Annotated[int, typer.Option(min=2, help="Songs or lines of each style to move.")] = 8,
    amount: Annotated[
        float, typer.Option(callback=console.finite, help="How far to move: 1 is the difference of two styles.")
    ] = 1.0,
    styles: Styles = None,
    add: Add = False,
    model: Model = "music",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure the effect of the vector from each style to each other one, and store it with the styles.

    Songs or lines of the test split, one in twenty by a hash of the title, are moved, and a classifier fitted on the
    others gives the probability of the target. With --attribute, the attribute itself is measured, and the length of
    its vector is set by it. The result is written to the file of --styles, or with --add to the
    model's folder; `style list` and `style show` print it. Fit the styles with --hold-out, to leave the test split out.
    """
    from seqvae.cli.inputs import kind_of, load

    if add and styles is not None:
        raise UsageError("--add writes to the model's folder, and --styles to its file; give one of them")
    kind = kind_of(model)
    members = _members(kind, sets, by) if by else []
    found = {} if by else {name: pieces for name, (pieces, _) in _sets(kind, sets).items()}
    if by is None and len(found) < 2:
        raise UsageError("an effect is measured between two styles; name at least two")
    codec = load(model, styles)
    from seqvae.evaluation import attribute_effect, style_effect
    from seqvae.evaluation.style_effect import tell as line

    if by:
        effects = attribute_effect.measure(codec, by, members, songs, amount, seed, console.report)
    else:
        effects = style_effect.measure(codec, found, songs, amount, seed, console.report)
    if add or styles is not None:
        from seqvae.style import styles_file

        known = codec.styles if styles is None else styles_file.load(styles)
        changed = {
            name: replace(one, effects={**one.effects, **effects[name]}) if name in effects else one
            for name, one in known.items()
            if name in effects or styles is not None
        }
        _write(changed, styles, model)
    for target, by_source in effects.items():
        for source, one in by_source.items():
            tell(f"{source} to {target}: {line(one)}", {"from": source, "to": target, **asdict(one)}, as_json)


@verb(app, "seqvae style list -m music --json")
def list_(model: Model = "music", styles: Styles = None, as_json: Json = False) -> None:
    """List the styles of a model, with the measured effect of moves to them by a classifier."""
    from seqvae.cli.inputs import load

    known = {name: style for name, style in sorted(load(model, styles).styles.items()) if name != "all"}
    rows: list[dict[str, Any]] = []
    for name, style in known.items():
        row: dict[str, Any] = {"style": name, "count": style.count, "source": style.source}
        if any(one.effects for one in known.values()):
            row["effect"] = {source: asdict(one) for source, one in style.effects.items()} if as_json else _brief(style)
        rows.append(row)
    console.print_rows(rows, as_json)


def _brief(style: Style) -> str:
    """The effects of all vectors to a style, averaged over sources."""
    found = list(style.effects.values())
    if not found:
        return "not measured"
    before, after = (sum(x[0] for x in xs) / len(found) for xs in ([e.before for e in found], [e.after for e in found]))
    # a figure of preserved content means nothing without its control, another song
    names = found[0].kept if all(e.kept_of_another for e in found) else ()
    kept = {name: sum(e.kept[name][0] for e in found) / len(found) for name in names}
    return ", ".join([f"{before:.2f} -> {after:.2f}", *(f"{name} {x:.2f}" for name, x in kept.items())])


@verb(app, "seqvae style show rock -m music")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Style to describe.", show_default=False)],
    model: Model = "music",
    styles: Styles = None,
    as_json: Json = False,
) -> None:
    """Describe one style: its spread, its distance from others, and the measured effect of moves to it."""
    from seqvae.cli.inputs import load

    codec = load(model, styles)
    from seqvae.modality import counted
    from seqvae.style.translation import separation

    style = codec.style(name)
    others = {n: s for n, s in sorted(codec.styles.items()) if n not in (name, "all")}
    distances = {n: float((style.mean - other.mean).norm()) for n, other in others.items()}
    apart = {n: separation(style, other) for n, other in others.items()}
    spread = float(style.covariance.trace().sqrt())
    facts = {"style": name, "count": style.count, "source": style.source, "spread": spread}
    facts |= {"persistence": style.persistence, "distances": distances, "separation": apart}
    facts |= {"effects": {source: asdict(one) for source, one in style.effects.items()}}
    lines = [
        f"{name}: {counted(style.count, codec.tokenizer.kind)} from {style.source or 'an unknown source'}",
        f"spread {spread:.3f}: root mean square distance of a segment from the mean",
        f"persistence {style.persistence:.3f}: correlation of a segment with the one before",
        *(
            f"{distances[n]:.3f} from the mean of {n}: {100 * apart[n]:.0f} % of segments can be distinguished"
            for n in others
        ),
    ]
    if (level := style.level) is not None:
        facts["level"] = asdict(level)
        lines.append(
            f"{level.attribute} {level.mean:.2f} on average; {level.low:.2f} to {level.high:.2f} in nine of ten songs "
            "of the folder"
        )
    if style.effects:
        from seqvae.evaluation.style_effect import tell as line

        lines += [f"moved there from {source}: {line(one)}" for source, one in sorted(style.effects.items())]
    tell("\n".join(lines), facts, as_json)
