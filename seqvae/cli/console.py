"""What every command does at the terminal: it is registered, prints, and says what is wrong in one line.

Knows typer, exit codes, the two ways to print (for people, and JSON), and the options that many commands have. Refuses
to know what any command does. Only typer is imported here, and the rest inside the functions, so that `seqvae --help`
answers at once.

Exit codes: 0 done, 1 bad input, 2 wrong usage, 130 interrupted, 141 when whoever read the output has left.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from seqvae.errors import SeqVAEError, UsageError

if TYPE_CHECKING:
    from seqvae.parallel import Ranks

Verb = Callable[..., None]
EXTRAS = {
    "drain3": "logs",
    "sklearn": "eval",
    "sacrebleu": "eval",
    "fastapi": "studio",
    "uvicorn": "studio",
    "multipart": "studio",
    "matplotlib": "plot",
}


def group(text: str) -> typer.Typer:
    """A group of commands with its line of help."""
    return typer.Typer(
        help=text,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # rich takes longer to import than --help may take
    )


def verb(where: typer.Typer, *examples: str) -> Callable[[Verb], Verb]:
    """Register a command under its function's name, with examples in its help and its errors told in one line."""

    def register(function: Verb) -> Verb:
        @functools.wraps(function)
        def told(*args: Any, **kwargs: Any) -> None:
            with _errors_in_one_line():
                function(*args, **kwargs)

        shown = "\n  ".join([f"Example{'s' * (len(examples) > 1)}:", *examples])
        where.command(function.__name__.rstrip("_"), epilog=f"\b\n{shown}")(told)  # \b: keep the lines as they are
        return function

    return register


# --- options ----------------------------------------------------------------------------------------------------------


def finite(value: float) -> float:
    """Refuse nan and inf, which are numbers to Python."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no amount; give a number such as 0.5")
    return value


def all_finite(values: list[float] | None) -> list[float]:
    """As `finite`, for an option that may be given several times."""
    return [finite(value) for value in values or []]


def share(value: float | None) -> float | None:
    """Refuse what is no share: 0 and 1, which would call nothing anomalous, or everything, and nan."""
    if value is not None and not 0 < value < 1:
        raise typer.BadParameter(f"{value} is not between 0 and 1")
    return value


def probability(value: float | None) -> float | None:
    """Refuse what is no probability, and 0, which leaves nothing to draw; None is for no choice."""
    if value is not None and not 0 < value <= 1:
        raise typer.BadParameter(f"{value} is not above 0 and at most 1")
    return value


Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT",
        help="Music files, folders of them, or corpus:NAME; of text a sentence or session, @FILE with one a line, or - "
        "for standard input, which is also read where there is no argument.",
        show_default=False,
    ),
]
Model = Annotated[str, typer.Option("--model", "-m", help="A released name, a checkpoint folder or a Hub id.")]
Styles = Annotated[Path | None, typer.Option("--styles", help="Add the styles of a file that `style fit` wrote.")]
Wav = Annotated[bool, typer.Option("--wav", help="Music: its sound too, beside each output.")]
Png = Annotated[bool, typer.Option("--png", help="Music: a piano roll too, beside each output.")]
Html = Annotated[bool, typer.Option("--html", help="Music: a page to hear and see it, beside each output.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same output.")]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact", help="The same to the bit with any number of threads and whatever else is in the batch; slower."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]


# --- processes --------------------------------------------------------------------------------------------------------


def processes(files: bool, inputs: Sequence[str] | None) -> Ranks:
    """This process and those that torchrun started with it, which divide the pieces among them.

    Raises UsageError where they would have to share standard input.
    """
    from seqvae import parallel as distributed

    ranks = distributed.join()
    if ranks.count > 1 and not files and (not inputs or "-" in inputs):
        raise UsageError("standard input cannot be divided among several processes; give @FILE")
    return ranks


# --- printing ---------------------------------------------------------------------------------------------------------


def report(line: str) -> None:
    """A line on standard error, above a progress bar if one is shown."""
    from tqdm import tqdm

    tqdm.write(" ".join(line.splitlines()), file=sys.stderr)


def tell(text: str, facts: Mapping[str, Any], as_json: bool) -> None:
    """Output for people, or the same as one line of JSON."""
    from tqdm import tqdm

    tqdm.write(json.dumps(facts) if as_json else text)


def write(parts: Iterable[str]) -> None:
    """One line of output, as its parts come: a long one need not be held whole."""
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stdout):
        for part in parts:
            sys.stdout.write(part)
        sys.stdout.write("\n")


def marked(text: str) -> str:
    """Text that is to stand out: red where standard output is a terminal with colours, else in brackets."""
    # see no-color.org
    plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return f"[{text}]" if plain else f"\x1b[1;31m{text}\x1b[0m"


def print_rows(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
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


# --- errors -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
        sys.stdout.flush()
    except SeqVAEError as error:
        end(str(error), error.exit_code)
    except KeyboardInterrupt:
        end("interrupted", 130)
    except BrokenPipeError:  # `seqvae ... | head`: whoever read has left, and wants no word about it
        _flush_or_drop()
        raise typer.Exit(141) from None
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        end(f"{error.name} is not installed, and this needs it; `pip install 'seqvae[{EXTRAS[error.name]}]'`", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = (error.strerror or str(error)).lower()
        end(f"{where}{reason}; check the name, the free space and the permissions", 1)


def end(line: str, code: int) -> NoReturn:
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
