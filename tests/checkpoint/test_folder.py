"""A checkpoint is written completely or not at all, and a broken one is an error in one line."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from styles import noise

from seqvae.checkpoint import folder as checkpoint
from seqvae.checkpoint import hub as released
from seqvae.checkpoint.folder import (
    ROW_SCALE,
    STORED,
    Checkpoint,
    _packed,
    _unpacked,
    find,
    load,
    load_tensors,
    loaded,
    save,
    save_tensors,
    stored,
    write_folder,
)
from seqvae.config import ModelConfig, Recipe
from seqvae.errors import CheckpointError, SeqVAEError
from seqvae.io import files
from seqvae.io import tensors as tensor_files
from seqvae.music.tokenizer import MidiTokenizer

RECIPE = Recipe(name="tiny", model=ModelConfig(chunks=1, latent=4, width=16, hidden=8, heads=2))


@pytest.fixture(scope="module")
def kept(tokenizer: MidiTokenizer) -> Checkpoint:
    torch.manual_seed(0)
    model = checkpoint.build(RECIPE.model, tokenizer)
    return Checkpoint(
        RECIPE, model, tokenizer, {"a.mean": torch.arange(4.0)}, {"a": "about"}, {"f1": 0.5}, "---\nlicense: mit\n---\n"
    )


@pytest.fixture(scope="module")
def written(kept: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "tiny"
    save(kept, folder)
    return folder


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    """A checkpoint to break: an older one, without checksums, which would report every other fault first."""
    folder = Path(shutil.copytree(written, tmp_path / "copy"))
    change_config(folder, sha256={})
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def one_line(error: SeqVAEError) -> str:
    text = str(error)
    assert "\n" not in text
    assert len(text) < 500
    return text


# --- saving and loading -----------------------------------------------------------------------------------------------


def test_loading_returns_the_saved_state(kept: Checkpoint, written: Path) -> None:
    again = load(written)
    assert again.recipe == kept.recipe
    assert (again.metrics, again.card, again.about_styles) == (kept.metrics, kept.card, kept.about_styles)
    assert torch.equal(again.styles["a.mean"], kept.styles["a.mean"])
    assert again.tokenizer.vocab_size == kept.tokenizer.vocab_size
    assert not again.model.training
    weights, others = kept.model.state_dict(), again.model.state_dict()
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        # weights may lie in half precision
        torch.testing.assert_close(others[name], weight, rtol=1e-3, atol=1e-4)
        assert others[name].dtype == torch.float32


def test_the_folder_has_the_documented_files(written: Path) -> None:
    found = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    assert found == {
        "config.json", "model.safetensors", "tokenizer/tokenizer.json", "styles.safetensors", "metrics.json",
        "README.md",
    }  # fmt: skip
    assert names(written.parent) == ["tiny"], "no other file is left"
    assert written.stat().st_mode & 0o777 == 0o755, "readable by others"


def test_weights_in_half_precision_are_read_as_single_precision(copy: Path, kept: Checkpoint) -> None:
    path = copy / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    again = load(copy).model.state_dict()
    for name, weight in kept.model.state_dict().items():
        assert again[name].dtype == torch.float32
        torch.testing.assert_close(again[name], weight, rtol=1e-3, atol=1e-4)


def test_a_matrix_in_bytes_is_off_by_half_a_step_of_its_row_at_most() -> None:
    weights = noise(6, 50, seed=1) * 10.0 ** torch.arange(-3.0, 3.0)[:, None]
    weights[2] = 0.0
    tensors = _packed("a.weight", weights, True)
    assert {name: x.dtype for name, x in tensors.items()} == {
        "a.weight": torch.int8, f"a.weight{ROW_SCALE}": torch.bfloat16,
    }  # fmt: skip
    again = _unpacked(tensors)
    assert list(again) == ["a.weight"]
    step = tensors[f"a.weight{ROW_SCALE}"].float()
    assert ((again["a.weight"] - weights).abs() <= 0.5001 * step).all()
    assert (step <= weights.abs().amax(1, keepdim=True) / 126).all()
    second = _packed("a.weight", again["a.weight"], True)
    assert all(torch.equal(x, second[name]) for name, x in tensors.items())


def test_a_song_model_that_is_read_and_saved_again_has_the_same_bytes(song_model: Path, tmp_path: Path) -> None:
    save(load(song_model), tmp_path / "again")
    assert names(tmp_path / "again") == names(song_model)
    for name in ("model.safetensors", "styles.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (song_model / name).read_bytes()
    held = load_file(song_model / "model.safetensors")
    matrices = [name for name, x in held.items() if x.ndim == 2 and not name.endswith(ROW_SCALE)]
    assert matrices
    assert all(held[name].dtype == torch.int8 for name in matrices)


def test_scales_of_another_shape_are_an_error_in_one_line(song_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(song_model, tmp_path / "copy"))
    change_config(folder, sha256={})
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith(ROW_SCALE))
    tensors[name] = tensors[name][:, 0].contiguous()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert f"scales of {len(tensors[name])} rows" in one_line(caught.value)


def test_optional_parts_default_to_empty(copy: Path) -> None:
    for name in ("styles.safetensors", "metrics.json", "README.md"):
        (copy / name).unlink()
    again = load(copy)
    assert (again.styles, again.metrics, again.card) == ({}, {}, "")


def test_a_folder_is_replaced_completely(kept: Checkpoint, copy: Path) -> None:
    (copy / "map.png").write_text("of these weights")
    (copy / "detector").mkdir()
    (copy / "detector" / "settings.json").write_text("of these weights")
    save(replace(kept, card="new", styles={}), copy)
    assert load(copy).card == "new"
    assert (copy / "map.png").exists(), "files of the same weights stay"
    assert (copy / "detector" / "settings.json").exists()
    model = load(copy).model
    with torch.no_grad():
        next(iter(model.parameters())).add_(1)
    save(replace(kept, model=model, styles={}), copy)
    assert not (copy / "map.png").exists(), "files of other weights are removed"
    assert not (copy / "detector").exists()
    assert not (copy / "styles.safetensors").exists()
    assert names(copy.parent) == ["copy"]


# --- broken folders ---------------------------------------------------------------------------------------------------


def truncate(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weights": [1.0] * 100}))


def torch_pickled(folder: Path) -> None:
    torch.save({"weights": torch.zeros(100)}, folder / "model.safetensors")


def other_weights(folder: Path) -> None:
    save_file({"weights": torch.zeros(4)}, folder / "model.safetensors")


def weights_of_another_shape(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(name for name, tensor in weights.items() if tensor.ndim == 2)
    save_file({**weights, name: weights[name][:-1].contiguous()}, path)


BREAKAGES: dict[str, Callable[[Path], Any]] = {
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no tokenizer": lambda folder: shutil.rmtree(folder / "tokenizer"),
    "weights cut short": lambda folder: truncate(folder / "model.safetensors", 0.7),
    "weights cut to a few bytes": lambda folder: truncate(folder / "model.safetensors", 0.00001),
    "weights empty": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "config cut short": lambda folder: truncate(folder / "config.json", 0.5),
    "config empty": lambda folder: (folder / "config.json").write_text(""),
    "config a list": lambda folder: (folder / "config.json").write_text("[]"),
    "config a number": lambda folder: (folder / "config.json").write_text("3"),
    "config of something else": lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'),
    "config no text": lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"),
    "recipe with an unknown setting": lambda folder: change_config(folder, recipe={"model": {"colour": 3}}),
    "recipe a number": lambda folder: change_config(folder, recipe=3),
    "sizes that do not fit": lambda folder: change_config(
        folder, recipe={"model": {"encoder": "transformer", "width": 30}}
    ),
    "no heads": lambda folder: change_config(folder, recipe={"model": {"encoder": "transformer", "heads": 0}}),
    "another vocabulary": lambda folder: change_config(folder, vocab_size=9),
    "other position fields": lambda folder: change_config(folder, cue_sizes=[1, 2]),
    "position fields no list": lambda folder: change_config(folder, cue_sizes=3),
    "format 2": lambda folder: change_config(folder, format=2),
    "tokenizer of another kind": lambda folder: (folder / "tokenizer/tokenizer.json").write_text('{"kind": "smoke"}'),
    "tokenizer no table": lambda folder: (folder / "tokenizer/tokenizer.json").write_text("3"),
    "weights a pickle": pickled,
    "weights of torch.save": torch_pickled,
    "weights of another model": other_weights,
    "weights of another shape": weights_of_another_shape,
    "metrics cut short": lambda folder: (folder / "metrics.json").write_text('{"f1":'),
    "styles cut short": lambda folder: truncate(folder / "styles.safetensors", 0.9),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_folder_is_an_error_in_one_line(copy: Path, breakage: str) -> None:
    load(copy)
    BREAKAGES[breakage](copy)
    with pytest.raises(CheckpointError) as caught:
        load(copy)
    assert str(copy) in one_line(caught.value)


def test_a_newer_format_names_the_version_that_reads_it(copy: Path) -> None:
    change_config(copy, format=2)
    with pytest.raises(CheckpointError, match="format 2, this version reads 1; install another seqvae"):
        load(copy)


def test_no_pickle_is_ever_run(copy: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    for name in ("model.safetensors", "styles.safetensors"):
        (copy / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError):
        load(copy)
    assert not (tmp_path / "sprung").exists()


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Released checkpoints: one, called `small`; and no network."""
    folder = tmp_path / "shelf"
    shutil.copytree(written, folder / "small")
    monkeypatch.setattr(released, "released_folder", lambda: folder)

    def no_network(name: str, **_: Any) -> str:
        raise ConnectionError(f"cannot reach the Hub for {name}\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    return folder


def test_a_released_name_and_a_folder_are_found(shelf: Path, written: Path) -> None:
    assert find("small") == shelf / "small"
    assert find(str(written)) == written


def test_the_name_of_an_earlier_release_finds_the_model_that_replaces_it(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(released, "RENAMED", {"smaller": "small"})
    assert find("smaller") == shelf / "small"
    with pytest.raises(CheckpointError):
        find("./smaller")


def test_a_folder_of_the_same_name_elsewhere_does_not_hide_a_released_one(
    shelf: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy.rename(copy.with_name("small"))
    monkeypatch.chdir(copy.parent)
    assert find("small") == shelf / "small"
    for path in ("./small", Path("small"), str(copy.with_name("small"))):
        assert find(path).resolve() == copy.with_name("small").resolve(), "a path is a path"


@pytest.mark.parametrize("name", ["smal", "no/such/folder", "./nowhere", "/nowhere", "someone/something"])
def test_an_unknown_name_lists_the_released_checkpoints(shelf: Path, name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(name)
    text = one_line(caught.value)
    assert text.startswith(f"{name}: no such")
    assert "small" in text.removeprefix(name)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_path_without_a_checkpoint_is_an_error(shelf: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    if kind == "folder":
        path.mkdir()
    else:
        path.write_text("x")
    with pytest.raises(CheckpointError, match=r"no checkpoint here \(config\.json is missing\)"):
        load(path)


def test_a_hub_name_is_fetched(shelf: Path, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[str] = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        assert not {"*.bin", "*.pt", "*"}.intersection(allow_patterns)
        requested.append(name)
        return str(written)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert load("someone/something").recipe == RECIPE
    assert requested == ["someone/something"]


def test_released_checkpoints_lie_beside_the_package() -> None:
    assert released.released_folder().name == "checkpoints"
    assert all((folder / "config.json").is_file() for folder in released.released())


# --- interrupted writes -----------------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_the_old_folder(copy: Path, error: Any) -> None:
    before = tree(copy.parent)

    def fill(part: Path) -> None:
        (part / "config.json").write_text("half of it")
        raise error

    with pytest.raises(SeqVAEError if isinstance(error, OSError) else error):
        write_folder(copy, fill)
    assert tree(copy.parent) == before
    assert names(copy.parent) == [copy.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("move", [1, 2])
def test_a_write_stopped_between_its_moves_leaves_the_old_folder(
    copy: Path, monkeypatch: pytest.MonkeyPatch, error: Any, move: int
) -> None:
    before = tree(copy.parent)
    moves = []
    rename = Path.rename

    def write_new(part: Path) -> None:
        (part / "config.json").write_text("new")

    def count(self: Path, target: Path) -> Path:
        moves.append(target)
        if len(moves) == move:
            raise error
        return rename(self, target)

    monkeypatch.setattr(files, "_exchange", lambda *_: False)  # as where there is no such move
    monkeypatch.setattr(Path, "rename", count)
    with pytest.raises(SeqVAEError if isinstance(error, OSError) else error):
        write_folder(copy, write_new)
    assert tree(copy.parent) == before


def test_a_full_disk_is_an_error_in_one_line(tmp_path: Path) -> None:
    def fill(part: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(SeqVAEError) as caught:
        write_folder(tmp_path / "new", fill)
    text = one_line(caught.value)
    assert "No space left on device" in text
    assert "free some space" in text
    assert names(tmp_path) == []


def test_an_impossible_folder_path_is_an_error_in_one_line(tmp_path: Path, kept: Checkpoint) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SeqVAEError) as caught:
        save(kept, tmp_path / "file" / "checkpoint")
    one_line(caught.value)
    assert (tmp_path / "file").read_text() == "x"


# --- single files -----------------------------------------------------------------------------------------------------


def test_tensors_and_their_metadata_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "z.safetensors"
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor([1, 2])}
    save_tensors(tensors, {"who": "me"}, path)
    again, about = load_tensors(path)
    assert about == {"who": "me"}
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    assert names(tmp_path) == ["z.safetensors"]


@pytest.mark.parametrize("content", [None, b"", b"RIFF", b"\x80\x04\x95"])
def test_a_foreign_file_is_an_error_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "z.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_tensors(path)
    assert str(path) in one_line(caught.value)


def test_a_file_is_replaced_in_one_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "z.safetensors"
    save_tensors({"a": torch.zeros(2)}, {}, path)
    before = path.read_bytes()

    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_files, "save_file", no_space)
    with pytest.raises(SeqVAEError, match="free some space"):
        save_tensors({"a": torch.ones(2)}, {}, path)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["z.safetensors"]


def test_the_same_content_makes_the_same_file(tmp_path: Path) -> None:
    about = {f"key {i}": f'"é\\ \n\x7f {i}"' for i in range(9)}
    files = [tmp_path / f"{i}.safetensors" for i in range(20)]
    for path in files:
        save_tensors({"b": torch.ones(3), "a": torch.zeros(2, 2)}, about, path)
    assert len({path.read_bytes() for path in files}) == 1
    tensors, metadata = load_tensors(files[0])
    assert metadata == about
    assert {name: tuple(x.shape) for name, x in tensors.items()} == {"a": (2, 2), "b": (3,)}


def test_a_file_in_no_folder_is_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SeqVAEError) as caught:
        save_tensors({"a": torch.zeros(2)}, {}, tmp_path / "no" / "z.safetensors")
    one_line(caught.value)


def test_files_keep_the_old_names_of_weights() -> None:
    for old, new in STORED:
        assert (loaded(f"{old}weight"), stored(f"{new}weight")) == (f"{new}weight", f"{old}weight")
    found = list(released.released())
    for folder in found:
        names = load_file(folder / "model.safetensors").keys()
        assert [stored(loaded(name)) for name in names] == list(names)
        weights = {loaded(name) for name in names if not name.endswith(ROW_SCALE)}
        assert weights == load(folder).model.state_dict().keys()
    assert len(found) > 3
