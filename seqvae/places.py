"""Files of music on the command line: which ones the arguments name, and where each output goes.

Knows stems, folders and `-o`, and that no output may overwrite an input or another output. Refuses to know models and
what is printed. A kind of sequence that comes in lines brings a module of its own beside this one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from seqvae import collection, midi
from seqvae.errors import ReadError, SeqVAEError, UsageError
from seqvae.midi import Piece


def alone(inputs: Sequence[str]) -> bool:
    """Whether one file is asked for, which must be readable, and whose output may have any name."""
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


def read_each(sources: Collection[Path], single: bool, report: Callable[[str], None]) -> Iterator[tuple[Path, Piece]]:
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
