"""Files of music on the command line: inputs from arguments, and the path of each output.

Scope: stems, folders, `-o`, protection against overwriting, and further files beside an output. Out of scope: models,
and rendering of sound, pictures and pages (music/synth.py, plot.py, music/html_player.py). cli/text_io.py is its
counterpart for lines of text.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from seqvae.cli.console import report, tell
from seqvae.errors import ReadError, SeqVAEError, UsageError
from seqvae.music import library, tune_books
from seqvae.music import piece as midi
from seqvae.music.piece import Piece

if TYPE_CHECKING:
    from torch import Tensor

    from seqvae.codec import Codec

FILES = True
"""Every output is a file."""
SEGMENTS = 4
"""Default number of segments of a generated song."""


@dataclass(frozen=True)
class Item:
    """A song that was read, or one to generate."""

    piece: Piece | None
    """The song; None for one to generate."""
    place: Path
    """Path of its result; from `read` only its name."""
    facts: dict[str, Any]
    """Entries of the output of --json: the input file."""


class Desk:
    """The input files of one command and the destinations of its results."""

    def __init__(self, items: Iterator[Item], as_json: bool, also: Collection[str] = ()) -> None:
        self._items, self._as_json, self._also = items, as_json, also

    def batches(self) -> Iterator[list[Item]]:
        """Songs one by one: each is long, and its result must not depend on other inputs."""
        return ([item] for item in self._items)

    def write(self, item: Item, result: Any, facts: Mapping[str, Any]) -> None:
        """Write one song, and its sound, picture and page if requested; print the paths."""
        midi.write(result, item.place)
        written = {"output": str(item.place)}
        for kind in self._also:
            place = item.place.with_suffix(f".{kind}")
            midi.write_whole(place, _content(kind, item, result, facts))
            written[kind] = str(place)
        tell("\n".join(written.values()), {**item.facts, **written, **facts}, self._as_json)


def read(inputs: Sequence[str]) -> Iterator[list[Item]]:
    """The files named by the arguments, one by one, with their names in `place`; raises as `named`."""
    single, stems = alone(inputs), named(inputs)
    return ([item] for item in _items(stems, single))


@contextlib.contextmanager
def given(
    inputs: Sequence[str], out: str | None, ending: str, as_json: bool, also: Collection[str] = ()
) -> Iterator[Desk]:
    """The files named by the arguments, with the path of each result; raises as `outputs`."""
    places = outputs(inputs, out, ending)
    _ready(also, places.values())
    yield Desk(_items(places, alone(inputs)), as_json, also)


@contextlib.contextmanager
def new(names: Sequence[str], out: str | None, as_json: bool, also: Collection[str] = ()) -> Iterator[Desk]:
    """Songs to generate with the path of each; raises as `fresh`."""
    places = fresh(names, out)
    _ready(also, places)
    with tqdm(places, unit="piece", disable=None if len(names) > 1 else True, leave=False) as bar:
        yield Desk((Item(None, place, {}) for place in bar), as_json, also)


def one(given: str) -> Piece:
    """The song named by an argument; raises UsageError for a file with several tunes."""
    if len(found := tune_books.tunes(Path(given))) > 1:
        raise UsageError(f"{given}: holds {len(found)} tunes; name one, {found[0]} to #{len(found)}")
    return midi.read(given)


template = one
"""The song that supplies tempo, metre and key."""


def members(paths: Sequence[str]) -> Iterator[Piece]:
    """All songs in files and folders; raises ReadError at once where a path does not exist."""
    single, found = alone(paths), library.require(paths)
    _tell_passed_over(paths)
    return (piece for _, piece in read_each(found, single))


def _items(places: Mapping[Path, Path], single: bool) -> Iterator[Item]:
    for source, piece in read_each(places, single):
        yield Item(piece, places[source], {"input": str(source)})


def alone(inputs: Sequence[str]) -> bool:
    """Whether the input is a single file or tune, which must be readable and whose output may have any name."""
    if not inputs:
        raise UsageError("missing argument 'INPUT'; name a file of music, a folder of them, or corpus:NAME")
    return len(inputs) == 1 and not Path(inputs[0]).is_dir() and len(tune_books.tunes(Path(inputs[0]))) == 1


def named(inputs: Sequence[str], out: str | None = None) -> dict[Path, Path]:
    """Every input file and its stem, which includes the subfolder below a folder that was given; of a tune `book-3`.

    Of `song.mid` and `song.abc` the first in the order of `midi.SUFFIXES` is `song`, the other `song.abc`. Files below
    `out` are left out, as outputs of an earlier call. Raises SeqVAEError where there is no file, or two have one name.
    """
    found: dict[Path, Path] = {}
    for given in inputs:
        for source in library.find([given]):
            known = tune_books.suffix(source) in midi.SUFFIXES
            stem = tune_books.stem(source) if known else source.name.removeprefix(midi.CORPUS)
            within = source.parent.relative_to(given) if Path(given).is_dir() else Path()
            written = out is not None and Path(given) in Path(out).parents and source.is_relative_to(out)
            if not written:
                found.setdefault(source, within / stem)
    if not found:
        kinds = " ".join(midi.SUFFIXES)
        raise SeqVAEError(f"{' '.join(inputs)}: holds no music; name a folder with files in {kinds}")
    _tell_passed_over(inputs)
    first: dict[Path, Path] = {}
    order = [*midi.SUFFIXES, *map(tune_books.suffix, found)]
    for source in sorted(found, key=lambda source: order.index(tune_books.suffix(source))):
        name = found[source]
        if name in first and source.name not in (first[name].name, name.name):
            name = found[source] = name.with_name(source.name)
        if (other := first.setdefault(name, source)) != source:
            advice = "give the folder that holds both, rename one, or give them one at a time"
            raise SeqVAEError(f"{other} and {source}: both outputs would be called '{name}'; {advice}")
    return found


def _tell_passed_over(inputs: Iterable[str]) -> None:
    """Report on standard error the files in the named folders that are not music."""
    if line := library.passed_over(inputs):
        report(line)


def outputs(inputs: Sequence[str], out: str | None, ending: str) -> dict[Path, Path]:
    """Every input file and the path of its output, `<stem>-<ending>.mid` without `out`.

    Raises UsageError where `out` does not fit the inputs, and SeqVAEError where an input would be overwritten.
    """
    single = alone(inputs)
    if out is None and not single:
        book = tune_books.tunes(Path(inputs[0])) if len(inputs) == 1 else []
        one_tune = f" for its {len(book)} tunes; for one of them name it, as {book[0]}" if len(book) > 1 else ""
        raise UsageError(f"several inputs, or a folder, need -o FOLDER{one_tune}")
    stems = named(inputs, out)
    if out is None:
        places = {source: Path(f"{name.name}-{ending}.mid") for source, name in stems.items()}
    elif _is_file(out, single):
        places = dict.fromkeys(stems, Path(out))
    else:
        places = {source: out / name.parent / f"{name.name}.mid" for source, name in stems.items()}
    originals = {source.resolve() for source in places}
    for place in places.values():
        if place.resolve() in originals:
            raise SeqVAEError(f"{place}: is an input and would be overwritten; choose another -o")
    return places


def fresh(names: Sequence[str], out: str | None) -> list[Path]:
    """Paths of generated songs: in the folder `out`, or the file `out` for a single song."""
    if out is not None and _is_file(out, len(names) == 1):
        return [Path(out)]
    return [Path(out or ".") / f"{name}.mid" for name in names]


def _is_file(out: str, single: bool) -> bool:
    """Whether `out` is a file rather than a folder; raises UsageError where it can be neither."""
    path = Path(out)
    if path.is_dir() or out.endswith(("/", os.sep)):
        return False
    written = midi.WRITTEN_SUFFIXES
    music = path.suffix.lower() in written
    if not single:  # a folder, whatever dots its name has
        if music or path.exists():
            raise UsageError(f"-o {out}: is a file, but several outputs need a folder")
        return False
    if music or (path.exists() and not path.is_file()):  # a device or a pipe may have any name
        return True
    if path.suffix or path.exists():
        raise UsageError(f"-o {out}: music is written as {' or '.join(written)}; end a folder's name with /")
    return False


def read_each(sources: Collection[Path], single: bool) -> Iterator[tuple[Path, Piece]]:
    """Every song with its source, under a progress bar that covers the caller's work too.

    A `single` file must be readable. Of several, unreadable ones are reported with the reason and counted at the end.
    Raises ReadError, or SeqVAEError where none could be read.
    """
    if single:
        [source] = sources
        yield source, midi.read(source)
        return
    skipped = 0
    found = library.read_all(sources, cache=library.default_cache(), progress=False)
    with contextlib.closing(found), tqdm(found, total=len(sources), unit="file", disable=None, leave=False) as bar:
        for source, piece in bar:
            if isinstance(piece, ReadError):
                skipped += 1
                report(f"skipped: {piece}")
            else:
                yield source, piece
    if skipped == len(sources):
        raise SeqVAEError(f"none of {skipped} files could be read; see the reasons above")
    if skipped:
        report(f"{skipped} of {len(sources)} files skipped")


def losses(codec: Codec, item: Item, segments: Sequence[Any], result: Any | None = None) -> str:
    """What grid, vocabulary and, for a reconstruction, the model lose of a song, after its name; or nothing."""
    from seqvae.music import losses as shares

    again = None if result is None else _drawn(result, item.piece).notes
    said = shares.sentence(codec.tokenizer, item.piece, segments, again)
    return said and f"{item.facts['input']}: {said}"


# --- further files beside an output -----------------------------------------------------------------------------------


def _ready(also: Collection[str], places: Iterable[Path]) -> None:
    """Check before any work that the further files can be written; raises UsageError."""
    for place in places if also else ():
        if place.suffix.lower() not in midi.WRITTEN_SUFFIXES:
            raise UsageError(f"-o {place}: {', '.join(f'--{x}' for x in also)} needs an output in a .mid file")
    if "png" in also:
        from seqvae import plot  # noqa: F401  (raises where matplotlib is missing)


def _content(kind: str, item: Item, result: Any, facts: Mapping[str, Any]) -> bytes:
    """The sound, picture or page of a result; picture and page show the original beside it."""
    if kind == "wav":
        from seqvae.music import synth

        return synth.render(result)
    about = _about(facts)
    shown = [] if item.piece is None else [(item.piece.name or "original", item.piece)]
    shown.append((about or item.place.stem, _drawn(result, item.piece)))
    if kind == "png":
        from seqvae import plot

        return plot.png(plot.roll(shown))
    from seqvae.music import html_player as page

    scores = [midi.to_score(piece.notes, piece.frame, tracks=piece.tracks) for _, piece in shown[:-1]] + [result]
    takes = [(title, score, piece) for (title, piece), score in zip(shown, scores, strict=True)]
    return page.page(item.place.stem, about, takes).encode()


def _about(facts: Mapping[str, Any]) -> str:
    """The moves of a song in words; empty for a generated song."""
    moves = facts.get("moves", [facts] if "to" in facts else [])
    parts = [f"{move['from'] or 'itself'} to {move['to']}, amount {move['amount']:.3g}" for move in moves]
    return " + ".join(parts)


def _drawn(result: Any, original: Piece | None) -> Piece:
    """A result as a piece; a result without notes is as long as the original."""
    if result.note_num():
        return midi.read(result)
    bounds = midi.chunk_bounds([], 1) if original is None else original.bounds
    return Piece(np.zeros((0, 5), np.int32), bounds, midi.make_frame(([], [], [])))


# --- latents ----------------------------------------------------------------------------------------------------------


def pack(
    inputs: Sequence[str], items: Sequence[Item], latents: Sequence[Tensor], out: Path
) -> tuple[dict[str, Tensor], Any, list[tuple[str, dict[str, Any]]]]:
    """Tensors of a file of latents, their sources, and lines to print with facts for --json.

    Each song is a tensor `(S, D)` under the name of its file.
    """
    tensors: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    rows: list[tuple[str, dict[str, Any]]] = []
    for item, z in zip(items, latents, strict=True):
        name, source = item.place.as_posix(), item.facts["input"]
        tensors[name], sources[name] = z, source
        facts = {"input": source, "name": name, "segments": len(z), "output": str(out)}
        rows.append((f"{source}: '{name}', {len(z)} segments, in {out}", facts))
    return tensors, sources, rows


def unpack(tensors: Mapping[str, Tensor], path: Path) -> list[tuple[str, Tensor]]:
    """Names and latents `(S, D)` of all songs; raises SeqVAEError for names that `pack` does not give."""
    names = sorted(tensors)
    if not names or any(".." in Path(name).parts or Path(name).is_absolute() for name in names):
        raise SeqVAEError(f"{path}: its tensors are not named after songs; write it with `seqvae encode`")
    return [(name, tensors[name]) for name in names]
