"""The options of `blend` joined into moves between styles.

Scope: as many --from and --amount as --to, STYLE=AMOUNT, checks of options of music, lines moved until a classifier
accepts them. Out of scope: the options
themselves (cli/app.py), the moves (style/translation.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqvae.cli import console
from seqvae.errors import UsageError

if TYPE_CHECKING:
    from seqvae.cli.inputs import Desk, Kind
    from seqvae.codec import Codec
    from seqvae.style.method import Method

Move = tuple[str | None, str, float]
"""Source, target and amount; without a source, a move starts from the input itself."""
Until = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        callback=console.share,
        help="Text: move each line only until the classifier of the styles accepts it with this probability, and keep "
        "the words that need no change; 0.9, for example.",
    ),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        "--weight",
        metavar="NAME=NUMBER",
        help="With --until: weight of style, content or fluency in the ranking of accepted candidates.",
    ),
]
FARTHEST = 2.5
"""Farthest amount that --until tries by default."""
WEIGHTS = ("style", "content", "fluency")
"""Names of --weight, which are those of `style.choice.Choice`."""


def check_music_options(
    kind: Kind, keep: Sequence[str] = (), chroma_guidance: float | None = None, chords: str | None = None
) -> None:
    """Raises UsageError for options of music where the model is none, for unknown tracks, and for unknown chords."""
    if chords is not None and not kind.FILES:
        raise UsageError(f"--chords '{chords}': text has no harmony; leave it out, it is for music")
    if keep and not kind.FILES:
        raise UsageError(f"--keep {keep[0]}: text has no tracks; leave it out, it is for music")
    if chroma_guidance is not None and not kind.FILES:
        raise UsageError(f"--chroma-guidance {chroma_guidance:g}: text has no harmony; leave it out, it is for music")
    if keep:
        from seqvae.music import tracks

        tracks.named(keep)
    if chords is not None:
        over(chords, 1)


def segments_for(chords: str | None, chunks: int) -> int:
    """Segments of `chunks` bars that hold all bars of the chords; 0 without chords."""
    if chords is None:
        return 0
    from seqvae.music.chords import bars

    return -(-len(bars(chords)) // chunks)


def over(chords: str, bars: int) -> Any:
    """The song of these chords, a `music.piece.Piece`; see `music.chords.song`."""
    from seqvae.music.chords import song

    return song(chords, bars)


def move_facts(moves: Sequence[Move], keep: Sequence[str]) -> dict[str, Any]:
    """Moves and kept tracks, for --json."""
    rows = [{"from": source, "to": target, "amount": amount} for source, target, amount in moves]
    facts: dict[str, Any] = {**rows[0]} if len(rows) == 1 else {"moves": rows}
    return facts | ({"keep": keep} if keep else {})


def target_weights(moves: Sequence[Move]) -> dict[str, float]:
    """The sum of the amounts of each target."""
    weights: dict[str, float] = {}
    for _, target, amount in moves:
        weights[target] = weights.get(target, 0.0) + amount
    return weights


def moves_of(
    targets: Sequence[str], sources: Sequence[str], amounts: Sequence[float], default: float = 0.5
) -> list[Move]:
    """Source, target and amount of every move; UsageError where the counts of the options do not match."""
    if len(sources) not in (0, 1, len(targets)) or len(amounts) not in (0, 1, len(targets)):
        raise UsageError(
            f"{len(targets)} --to, {len(sources)} --from and {len(amounts)} --amount do not fit together; "
            "give --from and --amount once, or once for every --to"
        )
    starts: Sequence[str | None] = sources or [None]
    starts = [*starts] * len(targets) if len(starts) == 1 else starts
    given: Sequence[float | None] = amounts or [None]
    given = [*given] * len(targets) if len(given) == 1 else given
    moves = []
    for source, target, far in zip(starts, targets, given, strict=True):
        name, weighed, weight = target.partition("=")
        try:
            own = console.finite(float(weight)) if weighed else None
        except ValueError:
            raise UsageError(f"--to {target}: '{weight}' is not a number; write STYLE=AMOUNT, as in rock=0.3") from None
        if own is None:
            moves.append((source, name, default if far is None else far))
        else:
            moves.append((source, name, own if far is None else own * far))
    return moves


def choice_of(
    until: float | None, weights: Sequence[str], sources: Sequence[str], temperature: float
) -> dict[str, Any] | None:
    """Settings of `style.choice.Choice`, None without --until; raises UsageError for options that do not fit."""
    if until is None:
        if weights:
            raise UsageError(f"--weight {weights[0]}: ranks the candidates of --until; add --until 0.9")
        return None
    if not sources:
        raise UsageError("--until compares two styles: add --from")
    if temperature:
        raise UsageError(f"--temperature {temperature:g}: --until takes the most likely tokens; leave one of them out")
    settings: dict[str, Any] = {"until": until}
    for given in weights:
        name, _, number = given.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if name not in WEIGHTS or not 0 <= value < float("inf"):
            raise UsageError(f"--weight {given}: write NAME=NUMBER with {', '.join(WEIGHTS)} and a number from 0")
        settings[name] = value
    return settings


def write_chosen(
    desk: Desk, codec: Codec, moves: Sequence[Move], settings: dict[str, Any], method: Method, strict: bool = False
) -> None:
    """Move every line until the classifier accepts it, and report how many lines it does not accept.

    Lines that the model does not represent well get a notice, or an error if `strict`; see cli/notices.py.
    """
    from seqvae.cli.notices import Notices
    from seqvae.style.choice import Choice

    notices = Notices(codec, strict)

    choice = Choice(**settings)
    path = [(source or "", target, far) for source, target, far in moves]
    short = total = 0
    for batch in desk.batches():
        notices.check_length(batch)
        lines = [item.piece for item in batch]
        split = [codec.segments(line) for line in lines]
        latents = codec.means(split) if notices.active else None
        notices.look(batch, split, latents)
        found = codec.blend_until(lines, path, choice, method, latents)
        for item, one in zip(batch, found, strict=True):
            facts = move_facts([(source, target, one.share * far) for source, target, far in moves], [])
            desk.write(item, one.line, {**facts, "probability": round(one.probability, 4)})
            total += bool(item.piece)
            short += bool(item.piece) and one.probability < choice.until
    if short:
        console.report(
            f"{short} of {total} lines stay below --until {choice.until:g}; each is the candidate with the highest "
            "probability, which --json prints"
        )
    notices.report()
