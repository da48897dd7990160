"""Shared fixtures: a tokenizer, a real piece, pieces made of rows, and a small model trained on a few of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings

if TYPE_CHECKING:  # test files without torch and music21 must not wait for their import
    from fastapi.testclient import TestClient
    from torch import Tensor

    from seqvae.codec import Codec
    from seqvae.config import Recipe
    from seqvae.music.piece import Piece
    from seqvae.music.tokenizer import MidiTokenizer
    from seqvae.nn.song_model import Conditions, SongModel

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models here are too small for two threads to be faster than one
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # with two threads, a waiting one leaves its core to others
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test uses the network
settings.register_profile("seqvae", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("seqvae")

ROOT = Path(__file__).parent.parent
MakePiece = Callable[..., "Piece"]


@pytest.fixture(scope="session")
def tokenizer() -> MidiTokenizer:
    from seqvae.music.tokenizer import MidiTokenizer

    return MidiTokenizer()


@pytest.fixture(scope="session")
def bach() -> Piece:
    """A real piece: a chorale from the corpus inside music21."""
    from seqvae.music import piece as midi

    return midi.read("corpus:bach/bwv66.6")


@pytest.fixture(scope="session")
def music_folder() -> Path:
    folder = ROOT.parent / "shared" / "data" / "music"
    if not folder.is_dir():
        pytest.skip(f"the data folder {folder} is not on this machine")
    return folder


@pytest.fixture(scope="session")
def make_piece() -> MakePiece:
    return _piece


def _piece(
    notes: Sequence[Sequence[int]],
    bounds: Sequence[int],
    *,
    tempos: Sequence[tuple[int, int]] = ((0, 500_000),),
    metres: Sequence[tuple[int, int, int]] = ((0, 4, 4),),
    keys: Sequence[tuple[int, int, int]] = (),
    name: str = "",
) -> Piece:
    """A piece of rows [onset, duration, pitch, program, velocity]."""
    from seqvae.music import piece as midi

    rows = np.array(sorted(notes, key=lambda row: (row[0], row[3], row[2])), np.int32).reshape(-1, 5)
    frame = midi.make_frame((list(tempos), list(metres), list(keys)))
    return midi.Piece(rows, np.array(bounds, np.int32), frame, name)


def groove(number: int, bars: int = 8) -> Piece:
    """Bars of 4/4 that differ from piece to piece and repeat within: chords, a bass and drums on the beat."""
    rows = []
    for bar in range(bars):
        at, root = 48 * bar, 48 + (5 * number + 7 * (bar % 4)) % 12
        for beat in range(4):
            rows.append([at + 12 * beat, 12, root - 12, 33, 80])
            rows.append([at + 12 * beat, 1, 36 if beat % 2 == 0 else 38, 128, 90])
            rows += [[at + 12 * beat + 6 * (number % 2), 6, root + up, 0, 70] for up in (12, 16, 19)]
    return _piece(rows, range(0, 48 * bars + 1, 48), name=f"groove {number}")


def rows(score: Any) -> list[list[int]]:
    """Every note of a score: onset, duration, pitch, program or 128, velocity."""
    found = [
        [note.time, note.duration, note.pitch, 128 if track.is_drum else track.program, note.velocity]
        for track in score.tracks
        for note in track.notes
    ]
    return sorted(found)


@dataclass(frozen=True)
class Trained:
    """A run of `seqvae.train.loop` on a dozen synthetic pieces."""

    recipe: Recipe
    folder: Path
    reports: list[str]

    @property
    def best(self) -> Path:
        return self.folder / "best"


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory, tokenizer: MidiTokenizer) -> Path:
    """Token shards of pieces in the training and validation splits."""
    from seqvae.config import Recipe
    from seqvae.data import prepare as shards
    from seqvae.data.dataset import split_of

    titles: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for i in range(1000):
        titles[split_of(f"song {i}")].append(f"song {i}")
    chosen = titles["train"][:12] + titles["valid"][:4]
    pieces = [("rock", title, groove(i)) for i, title in enumerate(chosen)]
    folder = tmp_path_factory.mktemp("collection")
    shards.tokenize(Recipe(), pieces, tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def small_recipe() -> Recipe:
    from seqvae.config import ModelConfig, ObjectiveConfig, Recipe, TrainConfig

    return Recipe(
        name="small",
        model=ModelConfig(chunks=2, latent=16, width=32, hidden=32, heads=4),
        objective=ObjectiveConfig(beta=0.1, anneal_steps=50, word_dropout=0.2, bag=0.5),
        train=TrainConfig(
            steps=120,
            batch_tokens=1024,
            learning_rate=1e-2,
            warmup_steps=10,
            evaluate_every=60,
            save_every=60,
            precision="fp32",
        ),
    )


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: MidiTokenizer, collection: Path, small_recipe: Recipe
) -> Trained:
    """A small model after some seconds of training: poor, but it ends its bars and depends on its latent vector."""
    from seqvae.data.dataset import TokenData
    from seqvae.train import loop as train

    folder = tmp_path_factory.mktemp("run")
    reports: list[str] = []
    train.train(small_recipe, TokenData(collection), tokenizer, folder, resume=False, report=reports.append)
    return Trained(small_recipe, folder, reports)


# --- for the command line ---------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture(scope="session")
def tiny_music(tmp_path_factory: pytest.TempPathFactory, tokenizer: MidiTokenizer) -> Path:
    """An untrained checkpoint with three styles."""
    import torch
    from commands import song

    from seqvae import codec
    from seqvae.checkpoint import folder as checkpoint
    from seqvae.config import ModelConfig, Recipe
    from seqvae.style import styles_file

    torch.manual_seed(0)
    recipe = Recipe(name="tiny", model=ModelConfig(latent=16, width=32, hidden=16))
    kept = checkpoint.Checkpoint(recipe, checkpoint.build(recipe.model, tokenizer), tokenizer)
    untaught = codec.from_checkpoint(kept)
    folder = tmp_path_factory.mktemp("music") / "tiny"
    songs = [song(folder.parent / f"{i}.mid", i) for i in range(6)]
    styles = {"calm": songs[:3], "wild": songs[3:], "all": songs}
    fitted = {name: untaught.fit_style(pieces, f"{name} songs") for name, pieces in styles.items()}
    kept.styles, kept.about_styles = styles_file.pack(fitted)
    checkpoint.save(kept, folder)
    return folder


@pytest.fixture(scope="session")
def song_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint of a song model with two styles and all, whose prior depends on song and harmony."""
    import torch
    from commands import song

    from seqvae import codec
    from seqvae.checkpoint import folder as checkpoint
    from seqvae.config import ModelConfig, Recipe, SongConfig, TokenizerConfig
    from seqvae.music.tokenizer import MidiTokenizer
    from seqvae.nn.song_vae import SongVAE
    from seqvae.style import styles_file

    torch.manual_seed(0)
    shape = SongConfig(
        song=6, bar=32, width=16, heads=2, queries=2, encoder_layers=1, decoder_layers=1, prior_width=16,
        prior_layers=1,
    )  # fmt: skip
    recipe = Recipe("songs", TokenizerConfig(common_key=True), ModelConfig(chunks=1, latent=38, width=32, song=shape))
    tokenizer = MidiTokenizer(common_key=True)
    model = checkpoint.restored(recipe.model, tokenizer)
    assert isinstance(model, SongVAE)
    with torch.no_grad():
        torch.nn.init.normal_(model.net.prior.out.weight, std=0.3)
        model.net.binding.bias.sub_(1.0)  # bars end soon
    kept = checkpoint.Checkpoint(recipe, model, tokenizer)
    untaught = codec.from_checkpoint(kept)
    folder = tmp_path_factory.mktemp("songs") / "songs"
    songs = [song(folder.parent / f"{i}.mid", i, bars=4) for i in range(6)]
    fitted = {
        name: untaught.fit_style(pieces, f"{name} songs")
        for name, pieces in {"calm": songs[:3], "wild": songs[3:], "all": songs}.items()
    }
    kept.styles, kept.about_styles = styles_file.pack(fitted)
    checkpoint.save(kept, folder)
    return folder


SENTENCES = [
    f"the {what} {verb} {how} and the {other} is {price}"
    for what in ("food", "staff", "room")
    for verb in ("was", "is")
    for how in ("good", "bad")
    for other in ("bar", "place")
    for price in ("fine", "cold", "new")
]


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that has memorised SENTENCES in two seconds of training, with four styles."""
    from seqvae.config import ModelConfig, ObjectiveConfig, Recipe, TokenizerConfig, TrainConfig
    from seqvae.train.loop import train_from

    folder = tmp_path_factory.mktemp("text")
    for name, word in {"good": "good", "bad": "bad", "past": "was", "present": "is"}.items():
        lines = [line for line in SENTENCES if line.split()[2 if name in ("past", "present") else 3] == word]
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    recipe = Recipe(
        name="tiny",
        tokenizer=TokenizerConfig(kind="text", vocab_size=320, max_tokens=24),
        model=ModelConfig(chunks=1, latent=8, width=32, hidden=32, previous=True),
        objective=ObjectiveConfig(beta=0.05, anneal_steps=50, word_dropout=0.3),
        train=TrainConfig(
            steps=150,
            batch_tokens=1024,
            learning_rate=1e-2,
            warmup_steps=10,
            evaluate_every=150,
            save_every=150,
            precision="fp32",
        ),
    )
    best, _ = train_from(recipe, sorted(folder.glob("*.txt")), folder / "run", report=lambda _: None)
    return best


def session(number: int) -> str:
    """A session of a synthetic server: open, a few reads or writes, close."""
    rng = np.random.default_rng(number)
    work = [["read", "check"], ["write", "sync", "check"]]
    done = [event for kind in rng.integers(0, 2, rng.integers(1, 8)) for event in work[kind]]
    return " ".join(["open", *done, "close"])


SESSIONS = [session(number) for number in range(300)]


@pytest.fixture(scope="session")
def tiny_events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint trained on SESSIONS for two seconds; sessions of more than 11 events have several windows."""
    from seqvae.config import ModelConfig, ObjectiveConfig, Recipe, TokenizerConfig, TrainConfig
    from seqvae.train.loop import train_from

    folder = tmp_path_factory.mktemp("events")
    (folder / "normal.txt").write_text("".join(f"{line}\n" for line in SESSIONS))
    recipe = Recipe(
        name="tiny",
        tokenizer=TokenizerConfig(kind="events", vocab_size=40, max_tokens=12, overlap=3),
        model=ModelConfig(chunks=1, latent=4, width=32, hidden=32),
        objective=ObjectiveConfig(beta=0.5, anneal_steps=50, word_dropout=0.3),
        train=TrainConfig(
            steps=150,
            batch_tokens=1024,
            learning_rate=1e-2,
            warmup_steps=10,
            evaluate_every=150,
            save_every=150,
            precision="fp32",
        ),
    )
    best, _ = train_from(recipe, [folder / "normal.txt"], folder / "run", report=lambda _: None)
    return best


@pytest.fixture(scope="module")
def names(
    tiny_music: Path, tiny_text: Path, tiny_events: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Three small models for the studio; the model of logs has a detector."""
    from studios import with_detector

    watchful = with_detector(tiny_events, tmp_path_factory.mktemp("studio"))
    return {"music": str(tiny_music), "text": str(tiny_text), "events": str(watchful)}


@pytest.fixture(scope="module")
def client(names: dict[str, str]) -> Iterator[TestClient]:
    """A studio with these models."""
    from fastapi.testclient import TestClient
    from studios import HOME

    from seqvae.studio.models import Models
    from seqvae.studio.server import application

    with TestClient(application(Models(list(names.values()))), HOME, raise_server_exceptions=False) as served:
        yield served


@pytest.fixture(scope="module")
def tune(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of four bars."""
    from commands import song

    return song(tmp_path_factory.mktemp("tune") / "my tune.mid", 3, bars=4)


@pytest.fixture(scope="module")
def small(trained: Trained) -> Codec:
    """A small trained model with three styles."""
    import seqvae

    model = seqvae.load(trained.best)
    model.name = "small"
    odd, even = [groove(i) for i in range(1, 12, 2)], [groove(i) for i in range(0, 12, 2)]
    model.styles = {name: model.fit_style(pieces) for name, pieces in
                    {"odd": odd, "even": even, "all": odd + even}.items()}  # fmt: skip
    return model


@pytest.fixture(scope="module")
def song(make_piece: MakePiece) -> Piece:
    """Eleven bars, the first of 3/4. Bars 1 and 4 have no notes, nor have 6 and 7, which make a segment."""
    bounds = [0, 36, 72, 108, 156, 204, 252, 300, 348, 396, 444, 492]
    rng = np.random.default_rng(0)
    rows = [
        [bounds[bar] + int(step), 12, int(pitch), int(program), 40 + 5 * bar]
        for bar in (0, 2, 3, 5, 8, 9, 10)
        for step, pitch, program in zip(
            range(0, 36, 6), rng.integers(40, 80, 6), rng.choice([0, 33, 128], 6), strict=True
        )
    ]
    return make_piece(
        rows, bounds, tempos=[(0, 600_000), (156, 400_000)], metres=[(0, 3, 4), (108, 4, 4)],
        keys=[(0, -2, 0), (204, 3, 1)], name="song",
    )  # fmt: skip


def teacher_forced(
    model: SongModel, tokens: Tensor, z: Tensor, song: Tensor, given: Conditions
) -> tuple[Tensor, Tensor]:
    """Hidden vectors of bars, and the tokens that may follow."""
    import torch

    from seqvae.nn.binding import shifted
    from seqvae.nn.song_model import place_fields

    before, fields = shifted(tokens), place_fields(tokens, model.kind, model.value)
    keys, place = model.keys(fields), torch.nn.functional.pad(fields[:, :-1], (0, 0, 1, 0))
    written = model.written_part(before, model.bound(before, keys.before()))
    hidden = model.teacher_forced(before, fields, keys, written, z, song, given)
    return hidden, model.allowed(before, place, fields, given.length)
