"""Files of music on the command line: which ones the arguments name, and where each output goes.

Knows stems, folders and `-o`, and that no output may overwrite an input or another output. Refuses to know models.
lines.py is the same for kinds of pieces that come in lines.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from seqvae import collection, midi
from seqvae.errors import ReadError, SeqVAEError, UsageError
from seqvae.midi import Piece
from seqvae.terminal import report, tell

if TYPE_CHECKING:
    from torch import Tensor

FILES = True
"""Every output is a file."""
SEGMENTS = 4
"""Segments of a new piece."""


@dataclass(frozen=True)
class Item:
    """A piece to work on, or one to be made."""

    piece: Piece | None
    """What was read; None for one to be made."""
    place: Path
    """The file for its result; of pieces that are read alone, only the name."""
    facts: dict[str, Any]
    """What --json tells of it: the file that was read."""


class Desk:
    """The files of one command, and where their results go."""

    def __init__(self, items: Iterator[Item], as_json: bool) -> None:
        self._items, self._as_json = items, as_json

    def batches(self) -> Iterator[list[Item]]:
        """Pieces one by one: each is long, and its result must not depend on what else was asked for."""
        return ([item] for item in self._items)

    def write(self, item: Item, result: Any, facts: Mapping[str, Any]) -> None:
        """Write one piece and tell where."""
        midi.write(result, item.place)
        tell(str(item.place), {**item.facts, "output": str(item.place), **facts}, self._as_json)


def read(inputs: Sequence[str]) -> Iterator[list[Item]]:
    """The files that arguments name, one by one, their names in `place`; raises as `named`."""
    single, stems = alone(inputs), named(inputs)
    return ([item] for item in _items(stems, single))


@contextlib.contextmanager
def given(inputs: Sequence[str], out: str | None, ending: str, as_json: bool) -> Iterator[Desk]:
    """The files that arguments name, with the file for the result of each; raises as `outputs`."""
    yield Desk(_items(outputs(inputs, out, ending), alone(inputs)), as_json)


@contextlib.contextmanager
def new(names: Sequence[str], out: str | None, as_json: bool) -> Iterator[Desk]:
    """New pieces with the file for each; raises as `fresh`."""
    with tqdm(fresh(names, out), unit="piece", disable=None if len(names) > 1 else True, leave=False) as bar:
        yield Desk((Item(None, place, {}) for place in bar), as_json)


def one(given: str) -> Piece:
    """The piece that an argument names."""
    return midi.read(given)


frame = one
"""The piece whose tempo, metre and key another is to have."""


def members(paths: Sequence[str]) -> Iterator[Piece]:
    """All pieces in files and folders; raises ReadError at once where one does not exist."""
    found = collection.find(paths)
    return (piece for _, piece in read_each(found, alone(paths)))


def _items(places: Mapping[Path, Path], single: bool) -> Iterator[Item]:
    for source, piece in read_each(places, single):
        yield Item(piece, places[source], {"input": str(source)})


def alone(inputs: Sequence[str]) -> bool:
    """Whether one file is asked for, which must be readable, and whose output may have any name."""
    if not inputs:
        raise UsageError("missing argument 'INPUT'; name a file of music, a folder of them, or corpus:NAME")
    return len(inputs) == 1 and not Path(inputs[0]).is_dir()


def named(inputs: Sequence[str], out: str | None = None) -> dict[Path, Path]:
    """Every file that the inputs name, and its stem: with the subfolder in which it lies in a folder that was given.

    Files below `out` are left out, for they are outputs of an earlier call. Raises SeqVAEError where there is no file,
    or where two have one stem.
    """
    found: dict[Path, Path] = {}
    for given in inputs:
        for source in collection.find([given]):
            known = source.suffix.lower() in midi.SUFFIXES
            stem = source.stem if known else source.name.removeprefix(midi.CORPUS)
            within = source.parent.relative_to(given) if Path(given).is_dir() else Path()
            written = out is not None and Path(given) in Path(out).parents and source.is_relative_to(out)
            if not written:
                found.setdefault(source, within / stem)
    if not found:
        kinds = " ".join(midi.SUFFIXES)
        raise SeqVAEError(f"{' '.join(inputs)}: there is no music in it; name a folder with files in {kinds}")
    first: dict[Path, Path] = {}
    for source, name in found.items():
        if (other := first.setdefault(name, source)) != source:
            advice = "give the folder that holds both, rename one, or take them one at a time"
            raise SeqVAEError(f"{other} and {source}: both outputs would be called '{name}'; {advice}")
    return found


def outputs(inputs: Sequence[str], out: str | None, ending: str) -> dict[Path, Path]:
    """Every file that the inputs name, and the file its output goes to; without `out` it is `<stem>-<ending>.mid`.

    Raises UsageError where `out` does not suit the inputs, and SeqVAEError where an input would be overwritten.
    """
    single = alone(inputs)
    if out is None and not single:
        raise UsageError("several inputs, or a folder, need -o FOLDER")
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
    """Where pieces that come from no file go: into the folder `out`, or to that file if there is one piece."""
    if out is not None and _is_file(out, len(names) == 1):
        return [Path(out)]
    return [Path(out or ".") / f"{name}.mid" for name in names]


def _is_file(out: str, single: bool) -> bool:
    """Whether `out` names the one file to write, and not a folder; UsageError if it can be neither."""
    path = Path(out)
    if path.is_dir() or out.endswith(("/", os.sep)):
        return False
    music = path.suffix.lower() in midi.MIDI_SUFFIXES
    if not single and (music or path.exists()):
        raise UsageError(f"-o {out}: is a file, and several outputs need a folder")
    if music or (path.exists() and not path.is_file()):  # a device or a pipe may have any name
        return True
    if path.suffix or path.exists():
        raise UsageError(f"-o {out}: music is written as {' or '.join(midi.MIDI_SUFFIXES)}; end a folder's name with /")
    return False


def read_each(sources: Collection[Path], single: bool) -> Iterator[tuple[Path, Piece]]:
    """Every piece with its source, under a progress bar that covers what the caller does with it.

    A `single` file must be readable; of several, those that are not are reported with the reason, and counted at the
    end. Raises ReadError, or SeqVAEError where none could be read.
    """
    if single:
        [source] = sources
        yield source, midi.read(source)
        return
    skipped = 0
    found = collection.read_all(sources, cache=collection.default_cache(), progress=False)
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


# --- latents ----------------------------------------------------------------------------------------------------------


def pack(
    inputs: Sequence[str], items: Sequence[Item], latents: Sequence[Tensor], out: Path
) -> tuple[dict[str, Tensor], Any, list[tuple[str, dict[str, Any]]]]:
    """How latents of pieces lie in a file: the tensors, where they are from, and what to tell of them.

    Each is a tensor `(S, D)` with the name of its file.
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
    """Latents `(S, D)` of every piece with its name; raises SeqVAEError for names that `pack` does not give."""
    names = sorted(tensors)
    if not names or any(".." in Path(name).parts or Path(name).is_absolute() for name in names):
        raise SeqVAEError(f"{path}: its tensors are not named as pieces; write it with `seqvae encode`")
    return [(name, tensors[name]) for name in names]
