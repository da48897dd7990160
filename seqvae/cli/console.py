"""Registration of commands, shared options, output, and errors in one line.

Scope: typer, exit codes, output as text or JSON. Out of scope: the work of any command. Only typer is imported here,
the rest inside the functions: `seqvae --help` must answer at once.

Exit codes: 0 done, 1 bad input, 2 wrong usage, 130 interrupted, 141 reader of the output gone.
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
from typer.core import TyperCommand

from seqvae.errors import SeqVAEError, UsageError

if TYPE_CHECKING:
    from seqvae.parallel import Ranks

OLD_OPTIONS = {
    "--between": "--pairs",
    "--by": "--attribute",
    "--harmony": "--chroma-guidance",
    "--known": "--reference",
}
"""Options by their names in earlier versions, which are still taken and not shown."""
Verb = Callable[..., None]
EXTRAS = {
    "drain3": "logs",
    "narwhals": "logs",
    "sklearn": "eval",
    "sacrebleu": "eval",
    "cachetools": "studio",
    "fastapi": "studio",
    "uvicorn": "studio",
    "multipart": "studio",
    "matplotlib": "plot",
}


class Command(TyperCommand):
    """A command that takes OLD_OPTIONS too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer's, with new names in the place of old ones."""
        own = {option for one in self.params for option in one.opts}
        stop = args.index("--") if "--" in args else len(args)
        for i, (old, equals, value) in enumerate(arg.partition("=") for arg in args[:stop]):
            if old not in own and OLD_OPTIONS.get(old) in own:
                args[i] = OLD_OPTIONS[old] + equals + value
        return super().parse_args(ctx, args)


def group(text: str) -> typer.Typer:
    """A group of commands with a line of help."""
    return typer.Typer(
        help=text,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # rich takes longer to import than --help may take
    )


def verb(where: typer.Typer, *examples: str) -> Callable[[Verb], Verb]:
    """Register a command under its function's name, with examples in its help and errors in one line."""

    def register(function: Verb) -> Verb:
        @functools.wraps(function)
        def command(*args: Any, **kwargs: Any) -> None:
            with _errors_in_one_line():
                function(*args, **kwargs)

        shown = "\n  ".join([f"Example{'s' * (len(examples) > 1)}:", *examples])
        where.command(function.__name__.rstrip("_"), epilog=f"\b\n{shown}", cls=Command)(
            command
        )  # \b: keep the lines as they are
        return function

    return register


# --- options ----------------------------------------------------------------------------------------------------------


def finite(value: float) -> float:
    """Accept a finite number; raises BadParameter for nan and inf."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not finite; give a number such as 0.5")
    return value


def all_finite(values: list[float] | None) -> list[float]:
    """`finite` for an option that may be given several times."""
    return [finite(value) for value in values or []]


def share(value: float | None) -> float | None:
    """Accept a share above 0 and below 1; raises BadParameter for others and nan."""
    if value is not None and not 0 < value < 1:
        raise typer.BadParameter(f"{value} is not between 0 and 1")
    return value


def probability(value: float | None) -> float | None:
    """Accept a probability above 0 and up to 1, or None; raises BadParameter for others."""
    if value is not None and not 0 < value <= 1:
        raise typer.BadParameter(f"{value} is not above 0 and at most 1")
    return value


Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT",
        help="Music: files, folders, or corpus:NAME. Text: a sentence or session, @FILE with one on each line, or - "
        "for standard input, the default.",
        show_default=False,
    ),
]
Model = Annotated[str, typer.Option("--model", "-m", help="Released name, checkpoint folder or Hub id.")]
AnyModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Released name, checkpoint folder or Hub id.  [default: music, or reviews for sentences]",
    ),
]
Styles = Annotated[Path | None, typer.Option("--styles", help="File of `style fit` whose styles are added.")]
Wav = Annotated[bool, typer.Option("--wav", help="Music: also write the sound beside each output.")]
Png = Annotated[bool, typer.Option("--png", help="Music: also write a piano roll beside each output.")]
Html = Annotated[bool, typer.Option("--html", help="Music: also write a page with player and piano roll.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same output.")]
Exact = Annotated[
    bool,
    typer.Option("--exact", help="Identical results for any number of threads and any batch; slower."),
]
Out = Annotated[
    str | None,
    typer.Option(
        "--out", "-o", metavar="PATH", help="File to write; a folder for several songs. Without it, text is printed."
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Text: fail at a line that the model does not represent well.")]
Folder = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on each line.")]


# --- processes --------------------------------------------------------------------------------------------------------


def processes(files: bool, inputs: Sequence[str] | None) -> Ranks:
    """The processes that torchrun started, which divide the inputs among them.

    Raises UsageError where several would read standard input.
    """
    from seqvae import parallel

    ranks = parallel.join()
    if ranks.count > 1 and not files and (not inputs or "-" in inputs):
        raise UsageError("standard input cannot be divided among several processes; give @FILE")
    return ranks


# --- printing ---------------------------------------------------------------------------------------------------------


def report(line: str) -> None:
    """Print a line on standard error, above a progress bar."""
    from tqdm import tqdm

    tqdm.write(" ".join(line.splitlines()), file=sys.stderr)


def tell(text: str, facts: Mapping[str, Any], as_json: bool) -> None:
    """Print text, or the facts as one line of JSON."""
    from tqdm import tqdm

    tqdm.write(json.dumps(facts) if as_json else text)


def write(parts: Iterable[str]) -> None:
    """Print one line part by part, so that a long line is never in memory as a whole."""
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stdout):
        for part in parts:
            sys.stdout.write(part)
        sys.stdout.write("\n")


def marked(text: str) -> str:
    """Highlighted text: red on a terminal with colours, in brackets elsewhere."""
    # see no-color.org
    plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return f"[{text}]" if plain else f"\x1b[1;31m{text}\x1b[0m"


def print_rows(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print a table with the keys as its header, or one JSON object for each row."""
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
    except BrokenPipeError:  # `seqvae ... | head`: no message, as other commands do
        _flush_or_drop()
        raise typer.Exit(141) from None
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        end(f"this needs {error.name}, which is not installed; `pip install 'seqvae[{EXTRAS[error.name]}]'`", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = (error.strerror or str(error)).lower()
        end(f"{where}{reason}; check the name, the free space and the permissions", 1)


def end(line: str, code: int) -> NoReturn:
    """Print the reason on standard error and exit."""
    _flush_or_drop()
    print(f"seqvae: {' '.join(line.splitlines())}", file=sys.stderr)
    raise typer.Exit(code) from None


def _flush_or_drop() -> None:
    """Flush standard output, or discard it: Python would report the failure once more at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
