"""Interfaces of seqvae ("doors") as functions of bytes, each with seeds, for benchmarks/fuzz.py.

Scope: the call that reads each kind of input, and the properties of accepted input. Out of scope: mutation of inputs
(fuzz_inputs.py), and processes. A door returns if it accepts the input and raises SeqVAEError if it refuses it; any
other exception is a bug. All seeds are made by our own code or written out below.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fuzz_inputs as inputs
import fuzz_requests
import fuzz_scores as scores
import numpy as np

from seqvae.config import ModelConfig, Recipe, TokenizerConfig, load_recipe, to_dict
from seqvae.errors import SeqVAEError
from seqvae.music import piece as midi
from seqvae.text import lines as text


@dataclass(frozen=True)
class Door:
    """An interface that reads input."""

    read: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    mutate: inputs.Mutator
    share: float
    """Share of all inputs; slow doors get fewer."""


_MEMORY = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())


@cache
def _scratch() -> Path:
    """This process's temporary folder, in memory where the system allows it."""
    return Path(tempfile.mkdtemp(prefix=f"seqvae-fuzz-{os.getpid()}-", dir=_MEMORY))


def clean(killed: int | None = None) -> None:
    """Close the studio and remove the files of this process, or remove the files of a `killed` process."""
    if killed is None and _studio.cache_info().currsize:
        _studio()[0].close()
    for folder in _MEMORY.glob(f"seqvae-fuzz-{os.getpid() if killed is None else killed}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _file(name: str, content: bytes) -> Path:
    path = _scratch() / name
    path.write_bytes(content)
    return path


def _laid_out(content: bytes, name: str) -> Path:
    """A folder with the files of a packed input; a name that ends in @ becomes a symbolic link."""
    files = inputs.unpacked(content)
    if not files:
        raise fuzz_requests.RefusedError("no folder in this input; give another")
    folder = _scratch() / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for relative, data in files.items():
        path = folder / relative.removesuffix("@")
        if ".." in path.parts or not path.is_relative_to(folder) or "\0" in relative or path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if relative.endswith("@"):
            path.symlink_to(os.fsdecode(data[:200]).replace("\0", "0") or ".")
        else:
            path.write_bytes(data)
    return folder


def _packed(folder: Path) -> bytes:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return inputs.packed({path.relative_to(folder).as_posix(): path.read_bytes() for path in found})


# --- music ------------------------------------------------------------------------------------------------------------


@cache
def _speller() -> Any:
    from seqvae.music.tokenizer import MidiTokenizer

    return MidiTokenizer()


def _music(piece: midi.Piece) -> None:
    """An accepted song can be tokenized, written and read again."""
    assert len(piece.notes) and (np.diff(piece.bounds) > 0).all()
    assert piece.bounds[-1] > piece.notes[:, midi.ONSET].max()
    if len(piece.bounds) < 5000 and len(piece.notes) < 5000:
        _speller().encode(piece)
    again = midi.read(midi.to_bytes(midi.to_score(piece.notes, piece.frame)))
    assert len(again.notes) == len(piece.notes), "notes were lost on the way to a file and back"


def _midi(content: bytes) -> None:
    _music(midi.read(content))


def _notation(suffix: str) -> Callable[[bytes], None]:
    def read(content: bytes) -> None:
        from seqvae.music import readers as notation

        notation.SECONDS = 3.0  # scores here have one page; the default is for symphonies
        _music(midi.read(_file(f"score{suffix}", content)))

    return read


# --- lines ------------------------------------------------------------------------------------------------------------

SENTENCES = [
    f"the {noun} was {how} and the {other} is new"
    for noun in ("food", "staff")
    for how in ("good", "bad")
    for other in ("bar", "room")
]
SESSIONS = ["open read check read check close", "open write sync check close", "open close"]


@cache
def _text() -> Any:
    from seqvae.modality import make

    return make(TokenizerConfig(kind="text", vocab_size=320, max_tokens=128), lambda: SENTENCES)


@cache
def _events() -> Any:
    from seqvae.modality import make

    return make(TokenizerConfig(kind="events", vocab_size=20, max_tokens=12, overlap=3), lambda: SESSIONS)


def _sentences(content: bytes) -> None:
    """Every line is recovered from its tokens."""
    for name in ("lines.txt", "lines.txt.gz") if content[:2] == b"\x1f\x8b" else ("lines.txt",):
        found = list(text.read_lines(_file(name, content)))
        tokenizer = _text()
        for line, chunks in zip(found, tokenizer.encode_all(found), strict=True):
            assert tokenizer.decode_text(chunks) == line, "a line came back changed"


def _sentence_seeds() -> list[bytes]:
    import gzip

    plain = "\n".join([*SENTENCES, "Zażółć gęślą jaźń", "日本語 \u2581 \U0001f600", "<unk> <pad>", ""]).encode()
    return [plain, b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n"), gzip.compress(plain, mtime=0)]


def _logs(content: bytes) -> None:
    """Every symbol is recovered from its tokens, or becomes <unk>."""
    found = list(text.read_lines(_file("log.txt", content)))
    tokenizer = _events()
    for line, chunks in zip(found, tokenizer.encode_all(found), strict=True):
        known = [word if word in tokenizer.symbols else "<unk>" for word in line.split()]
        assert tokenizer.decode_text(chunks).split() == known, "a session came back changed"


# --- settings ---------------------------------------------------------------------------------------------------------


def _recipe(suffix: str) -> Callable[[bytes], None]:
    def read(content: bytes) -> None:
        load_recipe(_file(f"recipe{suffix}", content))

    return read


def _change(content: bytes) -> None:
    """Changes of a recipe, as in --set."""
    load_recipe("hdfs", content.decode(errors="surrogateescape").split("\n"))


# --- folders and files of tensors -------------------------------------------------------------------------------------


@cache
def _kept(kind: str) -> Path:
    """An untrained checkpoint of a few kilobytes, with two styles and a detector."""
    import torch

    from seqvae import codec
    from seqvae.anomaly import calibration
    from seqvae.anomaly.calibration import Settings
    from seqvae.anomaly.evidence import examine
    from seqvae.checkpoint import folder as checkpoint
    from seqvae.style import gaussian, styles_file

    torch.manual_seed(0)
    tokenizer = {"text": _text, "events": _events, "midi": _speller}[kind]()
    recipe = Recipe(
        name="tiny",
        tokenizer=TokenizerConfig(kind=kind),
        model=ModelConfig(chunks=1, latent=4, width=8, hidden=8, heads=2),
    )
    kept = checkpoint.Checkpoint(recipe, checkpoint.build(recipe.model, tokenizer), tokenizer, card="---\n---\n")
    made = codec.from_checkpoint(kept)
    points = [torch.randn(3, 4) for _ in range(20)]
    kept.styles, kept.about_styles = styles_file.pack({"all": gaussian.fit(points), "calm": gaussian.fit(points[:2])})
    folder = _scratch() / f"kept-{kind}"
    checkpoint.save(kept, folder)
    if kind == "events":
        found = calibration.fit(examine(made, SESSIONS * 4, 2, 0))
        settings = Settings(str(folder), found.threshold(0.1), 0.1, 2, 0)
        made_there = _scratch() / "detector-seed"
        calibration.save(found, settings, made_there)
        facts = json.loads((made_there / "detector.json").read_text())  # no path of this process in the seed
        (made_there / "detector.json").write_text(json.dumps(facts | {"model": "events"}))
    return folder


@cache
def _use(folder: Path) -> None:
    """Load a folder once; see `_checkpoint`."""


def _checkpoint(content: bytes) -> None:
    """A loaded checkpoint encodes, decodes and translates between its styles."""
    import torch

    from seqvae import codec
    from seqvae.checkpoint import hub as released

    folder = _laid_out(content, "checkpoint")
    released.facts(folder)
    made = codec.load(folder)
    if made.tokenizer.kind == "midi":
        made.posteriors([[np.array([2], np.int32)] * made.chunks])
        return
    for name in list(made.styles)[:2]:
        made.translate(name, None, 0.5)
    lines = made.decode(made.encode(["open read close"]))
    assert isinstance(lines[0], str)
    del torch


def _style(content: bytes) -> None:
    """Accepted styles can be sampled and translated."""
    import torch

    from seqvae.style import gaussian, styles_file, translation

    found = list(styles_file.load(_file("my.styles", content), 4).values())
    for method in ("mean", "discriminant", "transport"):
        for source in found[:2]:
            z = torch.zeros(2, 4)
            try:
                z = translation.translate(source, found[-1], 0.5, method)(z)
            except SeqVAEError:
                continue
            assert z.shape == (2, 4)
    for one in found[:2]:
        gaussian.draw(one, 2, torch.Generator().manual_seed(0))


def _detector(content: bytes) -> None:
    """An accepted detector gives a p-value of any session."""
    from seqvae.anomaly import calibration

    model = _kept("events")
    found, _ = calibration.load(_laid_out(content, "detector"), str(model))
    evidence = _evidence()
    value = found.scores(evidence)[found.score]
    assert 0 <= found.p_value(value) <= 1


@cache
def _evidence() -> Any:
    from seqvae import codec
    from seqvae.anomaly.evidence import examine

    return next(iter(examine(codec.load(_kept("events")), ["open read close"], 2, 0)))


def _latents(content: bytes) -> None:
    """`seqvae decode` on a file of latents."""
    import contextlib
    import io

    from seqvae.cli.app import main

    path, out, stderr = _file("z.safetensors", content), _scratch() / "out.txt", io.StringIO()
    code: Any = 0
    try:
        with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
            main(["decode", str(path), "-m", str(_kept("events")), "-o", str(out)])
    except SystemExit as ended:
        code = ended.code
    if code:
        raise fuzz_requests.RefusedError(stderr.getvalue().rstrip("\n"))
    from seqvae.checkpoint.folder import load_tensors
    from seqvae.cli import music_io as places

    for name, _ in places.unpack(load_tensors(path)[0], path):  # where MIDI files would be written
        assert (_scratch() / "out" / f"{name}.mid").resolve().is_relative_to(_scratch() / "out"), name


def _latent_seeds() -> list[bytes]:
    import torch

    from seqvae.checkpoint.folder import save_tensors

    path, out = _scratch() / "seed.safetensors", []
    for tensors in (
        {"z": torch.randn(3, 4), "segments": torch.tensor([1, 0, 2], dtype=torch.int32)},
        {"0": torch.randn(1, 4), "a/b": torch.randn(2, 4)},
    ):
        save_tensors(tensors, {"model": "hdfs", "kind": "events", "sources": "[]"}, path)
        out.append(path.read_bytes())
    return out


def _style_seeds() -> list[bytes]:
    return [(_kept("events") / "styles.safetensors").read_bytes()]


def _detector_seeds() -> list[bytes]:
    _kept("events")
    return [_packed(_scratch() / "detector-seed")]


def _checkpoint_seeds() -> list[bytes]:
    found = [_packed(_kept(kind)) for kind in ("events", "text", "midi")]
    for kind in ("events", "events", "text", "midi"):  # as older checkpoints, without checksums
        files = inputs.unpacked(_packed(_kept(kind)))
        config = json.loads(files["config.json"])
        del config["sha256"]
        found.append(inputs.packed(files | {"config.json": json.dumps(config).encode()}))
    return found


def _shards(content: bytes) -> None:
    """Accepted shards can be iterated."""
    from seqvae.data.dataset import TokenData
    from seqvae.data.sampler import Batches

    data = TokenData(_laid_out(content, "shards"))
    for _, (_, _, tokens) in zip(range(3), Batches(data, "train", 1, 64, 8, 0).resume(0, 0), strict=False):
        assert tokens.ndim == 3


def _shard_seeds() -> list[bytes]:
    from seqvae.data.dataset import ShardWriter

    folder = _scratch() / "shards-seed"
    shutil.rmtree(folder, ignore_errors=True)
    writer = ShardWriter(folder, {"tokenizer": to_dict(TokenizerConfig(kind="events"))})
    for i, line in enumerate(SESSIONS * 4):
        writer.add(_events().encode(line), "normal", f"{i}")
    writer.close()
    return [_packed(folder)]


# --- requests ---------------------------------------------------------------------------------------------------------


@cache
def _studio() -> tuple[asyncio.Runner, Any]:
    from seqvae.checkpoint import hub as released
    from seqvae.studio.models import Models
    from seqvae.studio.server import application

    shelf = _scratch() / "shelf"
    for kind in ("events", "text", "midi"):
        shutil.copytree(_kept(kind), shelf / kind)
    shutil.copytree(_scratch() / "detector-seed", shelf / "events" / "detector")
    released.released_folder = lambda: shelf
    return asyncio.Runner(), application(Models())


def _request(content: bytes) -> None:
    """A request to the studio."""
    fuzz_requests.request(*_studio(), content)


_TOML = (Path(__file__).parent.parent / "seqvae" / "recipes" / "logs-short.toml").read_bytes
DOORS: dict[str, Door] = {
    "midi": Door(_midi, scores.midi_seeds, inputs.midi, 0.28),
    "musicxml": Door(
        _notation(".musicxml"),
        scores.xml_seeds,
        inputs.markup(b"<note>", b"</note>", b"<!ENTITY x 'y'>", b"&x;"),
        0.008,
    ),
    "mxl": Door(_notation(".mxl"), scores.mxl_seeds, inputs.archive([b"<note>", b"</note>", b"&x;"]), 0.004),
    "humdrum": Door(
        _notation(".krn"),
        lambda: scores.HUMDRUM,
        inputs.plain(b"*^", b"*v", b"\t", b"*-", b"=", b"**kern", b"[4c", most=inputs.SCORE),
        0.008,
    ),
    "abc": Door(
        _notation(".abc"),
        lambda: scores.ABC,
        inputs.plain(b"X:1\n", b"K:", b"|:", b":|", b"(3", b"L:1/0", b"[", b"V:1", most=inputs.SCORE),
        0.006,
    ),
    "text": Door(_sentences, _sentence_seeds, inputs.lines, 0.2),
    "logs": Door(_logs, lambda: ["\n".join(SESSIONS).encode()], inputs.lines, 0.18),
    "toml": Door(_recipe(".toml"), lambda: [_TOML()], inputs.plain(b"[model]", b"=", b"'''", b"[[", b"inf"), 0.09),
    "json": Door(_recipe(".json"), lambda: [json.dumps(to_dict(Recipe())).encode()], inputs.tables, 0.08),
    "set": Door(
        _change, lambda: [b"model.width=384\ntrain.steps=5", b"name=x"], inputs.plain(b"model", b"=", b"."), 0.03
    ),
    "checkpoint": Door(_checkpoint, _checkpoint_seeds, inputs.folder, 0.03),
    "styles": Door(_style, _style_seeds, inputs.tensors, 0.03),
    "detector": Door(_detector, _detector_seeds, inputs.folder, 0.02),
    "latents": Door(_latents, _latent_seeds, inputs.tensors, 0.01),
    "shards": Door(_shards, _shard_seeds, inputs.folder, 0.02),
    "http": Door(_request, fuzz_requests.seeds, inputs.request, 0.02),
}
