"""Loading restores the saved objects, for all file formats. Tokens and notes are tested with their modalities."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SENTENCES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqvae.anomaly import calibration
from seqvae.anomaly.calibration import Calibration, Settings
from seqvae.anomaly.odds import Odds
from seqvae.checkpoint import folder as checkpoint
from seqvae.checkpoint.folder import Checkpoint, load_tensors, save_tensors
from seqvae.cli import music_io as places
from seqvae.cli import text_io as lines
from seqvae.config import ModelConfig, ObjectiveConfig, Recipe, TokenizerConfig, TrainConfig, from_dict, to_dict
from seqvae.data.dataset import ShardWriter, TokenData
from seqvae.events.tokenizer import EventTokenizer
from seqvae.modality import load_tokenizer
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.protocols import EOS, PAD
from seqvae.text.tokenizer import TextTokenizer

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)
SYMBOLS = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=8)


@contextmanager
def folder() -> Iterator[Path]:
    """An empty one; pytest's would be shared by all examples."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Tensors of any type and shape with any bits, infinity and NaN too."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 4), max_size=3))
    made = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) * 1e4
    if made.numel():
        made.view(-1)[0] = draw(st.sampled_from([0.0, float("inf"), float("nan"), 1e-40]))
    made = made.nan_to_num(0, 0, 0) if not dtype.is_floating_point else made
    return made.to(dtype).mT if len(shape) > 1 and draw(st.booleans()) else made.to(dtype)


def same(a: Tensor, b: Tensor) -> bool:
    kind = a.dtype == b.dtype and a.shape == b.shape
    return kind and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@given(
    # the library cannot always read a file without tensors
    st.dictionaries(TEXT.filter(lambda name: name != "__metadata__"), tensors(), min_size=1, max_size=4),
    st.dictionaries(TEXT, TEXT, max_size=4),
)
def test_tensors_and_their_metadata(some: dict[str, Tensor], about: dict[str, str]) -> None:
    with folder() as place:
        save_tensors(some, about, place / "a.safetensors")
        again, metadata = load_tensors(place / "a.safetensors")
    assert metadata == about
    assert again.keys() == some.keys()
    assert all(same(again[name], tensor) for name, tensor in some.items())


PIECES = st.lists(st.lists(st.lists(st.integers(4, 65535), max_size=6), min_size=1, max_size=5), min_size=1, max_size=6)


@given(PIECES, st.integers(0, 999))
def test_pieces_in_shards(pieces: list[list[list[int]]], seed: int) -> None:
    spelled = [[np.array([*chunk, EOS], np.int32) for chunk in piece] for piece in pieces]
    with folder() as place:
        writer = ShardWriter(place, {"seed": seed})
        for i, piece in enumerate(spelled):
            writer.add(piece, f"style {i % 2}", f"song {i}")
        writer.close()
        data = TokenData(place)
        assert len(data) == len(spelled)
        for i, piece in enumerate(spelled):
            (back,) = data.gather(np.array([i]), np.array([data.record(i)["first"]]), len(piece))
            assert [chunk[chunk != PAD].tolist() for chunk in back] == [chunk.tolist() for chunk in piece]


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Any numbers and flags in place of the defaults; named choices and dependent settings stay."""

    def changed(some: object, fixed: set[str]) -> dict[str, object]:
        kinds = {
            bool: st.booleans(),
            int: st.integers(1, 10**6),
            float: st.floats(0, 1),
        }
        old = {field.name: getattr(some, field.name) for field in fields(some)}  # type: ignore[arg-type]
        return {
            name: draw(kinds[type(value)]) for name, value in old.items() if type(value) in kinds and name not in fixed
        }

    shape = {"width", "hidden", "heads", "chunks", "latent", "layers", "dropout"}
    return Recipe(
        name=draw(TEXT),
        tokenizer=replace(TokenizerConfig(), max_tokens=draw(st.integers(8, 99)), common_key=draw(st.booleans())),
        model=replace(ModelConfig(), **changed(ModelConfig(), shape)),  # type: ignore[arg-type]
        objective=replace(ObjectiveConfig(), **changed(ObjectiveConfig(), set())),  # type: ignore[arg-type]
        train=replace(TrainConfig(), **changed(TrainConfig(), set())),  # type: ignore[arg-type]
    )


@given(recipes())
def test_a_recipe_and_its_serialised_values(recipe: Recipe) -> None:
    assert from_dict(Recipe, to_dict(recipe), "there and back") == recipe


@given(st.lists(SYMBOLS, min_size=1, max_size=30, unique=True), st.integers(3, 20), st.data())
def test_a_tokenizer_of_logs(symbols: list[str], window: int, data: st.DataObject) -> None:
    tokenizer = EventTokenizer(symbols, window, data.draw(st.integers(0, window - 2)))
    session = " ".join(data.draw(st.lists(st.sampled_from([*symbols, "never seen"]), max_size=40)))
    with folder() as place:
        tokenizer.save(place)
        again = load_tokenizer(place)
    assert isinstance(again, EventTokenizer)
    assert [ids.tolist() for ids in again.encode(session)] == [ids.tolist() for ids in tokenizer.encode(session)]
    assert again.decode_text(again.encode(session)) == tokenizer.decode_text(tokenizer.encode(session))


@given(st.integers(4, 32), st.booleans(), st.integers(0, 99))
@settings(max_examples=20)
def test_a_tokenizer_of_music(beats: int, common_key: bool, seed: int) -> None:
    tokenizer = MidiTokenizer(max_steps=12 * beats, common_key=common_key)
    with folder() as place:
        tokenizer.save(place)
        again = load_tokenizer(place)
    assert isinstance(again, MidiTokenizer)
    rng = np.random.default_rng(seed)
    length = 12 * beats
    bounds = np.array([0, length, 2 * length], np.int32)
    columns = (
        rng.integers(0, 2 * length, 30),
        rng.integers(1, 12, 30),
        rng.integers(30, 90, 30),
        rng.integers(0, 129, 30),
    )
    notes = np.stack(columns, 1).astype(np.int32)
    spelled = tokenizer.encode_notes(notes, bounds)
    assert [ids.tolist() for ids in again.encode_notes(notes, bounds)] == [ids.tolist() for ids in spelled]
    back = again.decode_notes(spelled, bounds)
    assert np.array_equal(back, tokenizer.decode_notes(spelled, bounds))
    assert {tuple(row) for row in back[:, [0, 2, 3]]} == {tuple(row) for row in notes[:, [0, 2, 3]]}, (
        "bars of any length"
    )


@pytest.fixture(scope="module")
def words() -> TextTokenizer:
    return TextTokenizer.train(SENTENCES, 320, max_tokens=20)


@given(line=TEXT)
@settings(max_examples=30)
def test_a_tokenizer_of_text(words: TextTokenizer, line: str) -> None:
    with folder() as place:
        words.save(place)
        again = load_tokenizer(place)
    assert isinstance(again, TextTokenizer)
    assert [ids.tolist() for ids in again.encode(line)] == [ids.tolist() for ids in words.encode(line)]
    assert again.decode_text(words.encode(line)) == words.decode_text(words.encode(line))


@given(st.integers(1, 3), st.integers(2, 12), st.sampled_from([8, 16]), st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_a_checkpoint(chunks: int, latent: int, width: int, seed: int) -> None:
    tokenizer = EventTokenizer(["a", "b"], 8, 0)
    config = ModelConfig(chunks=chunks, latent=latent, width=width, hidden=width, heads=2)
    torch.manual_seed(seed)
    recipe = Recipe(name="any", tokenizer=TokenizerConfig(kind="events"), model=config)
    kept = Checkpoint(
        recipe, checkpoint.build(config, tokenizer), tokenizer, {"a.mean": torch.zeros(latent)}, {"a": ""}
    )
    with folder() as place:
        checkpoint.save(kept, place / "any")
        again = checkpoint.load(place / "any")
    assert again.recipe == recipe
    assert again.about_styles == kept.about_styles
    old, new = kept.model.state_dict(), again.model.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.allclose(new[name].float(), old[name].float(), rtol=2**-10, atol=1e-7) for name in old)
    # weights are stored in half precision: loaded weights are stored exactly
    with folder() as place:
        checkpoint.save(again, place / "any")
        third = checkpoint.load(place / "any").model.state_dict()
    assert all(torch.equal(third[name], new[name]) for name in new)


@given(st.integers(1, 4), st.integers(1, 9), st.floats(-1e4, 0), st.none() | st.floats(0, 1), TEXT)
@settings(max_examples=20)
def test_a_detector(axes: int, pieces: int, threshold: float, p_value: float | None, about: str) -> None:
    seed = torch.Generator().manual_seed(pieces)
    kept = Calibration(
        "probability",
        torch.randn(4, generator=seed),
        torch.randn(4, axes, generator=seed),
        torch.randn(pieces, axes, generator=seed),
        torch.arange(pieces),
        np.sort(np.random.default_rng(pieces).normal(size=(pieces, len(calibration.COLUMNS))), 0),
        np.sort(np.random.default_rng(axes).normal(size=pieces)),
    )
    written = Settings("hdfs", threshold, p_value, 3, 1, about)
    with folder() as place:
        calibration.save(kept, written, place / "a.detector")
        again, told_again = calibration.load(place / "a.detector")
    assert told_again == written
    for field in fields(Calibration):
        a, b = getattr(kept, field.name), getattr(again, field.name)
        if isinstance(a, Odds):
            assert (a.weights.tolist(), a.landmarks.tolist()) == (b.weights.tolist(), b.landmarks.tolist())
        elif field.name != "_seen":
            assert a == b if isinstance(a, str) else np.array_equal(np.asarray(a), np.asarray(b))


@given(st.lists(st.integers(0, 3), max_size=6), st.integers(0, 99))
def test_latents_of_lines(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = [torch.randn(size, 4, generator=generator) for size in sizes]
    items = [lines.Item("a line" if size else "", {}) for size in sizes]
    packed, _, _ = lines.pack(["a.txt"], items, z, Path("z"))
    back = lines.unpack(packed, Path("z"))
    assert all(torch.equal(part, old) for (_, part), old in zip(back, z, strict=True))


@given(
    st.lists(SYMBOLS.filter(lambda s: not set("/\0") & set(s) and s.strip(".")), min_size=1, max_size=5, unique=True)
)
def test_latents_of_files(names: list[str]) -> None:
    z = {name: torch.full((i + 1, 4), float(i)) for i, name in enumerate(names)}
    items = [places.Item(None, Path(name), {"input": name}) for name in names]
    packed, _, _ = places.pack(names, items, list(z.values()), Path("z"))
    back = dict(places.unpack(packed, Path("z")))
    assert back.keys() == z.keys()
    assert all(torch.equal(back[name], z[name]) for name in z)
