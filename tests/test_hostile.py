"""Hostile folders and files: false sizes, links to other places, and code that runs when opened."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import one_line
from safetensors.torch import load_file, save_file

from seqvae import codec, config
from seqvae.anomaly import calibration
from seqvae.anomaly import evidence as anomaly
from seqvae.checkpoint import folder as checkpoint
from seqvae.checkpoint import hub as released
from seqvae.checkpoint.folder import load, load_tensors
from seqvae.config import load_recipe
from seqvae.data.dataset import TokenData
from seqvae.errors import ConfigError, ReadError, SeqVAEError, StyleError
from seqvae.style import styles_file, translation

OLD = Path(__file__).parent / "data" / "format-1"
"""A checkpoint with its detector and the shards it was trained on, as version 0.1.0 wrote them; not to be made anew."""
LINES = ["open read check close", "open write sync check read check close"]


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def tensors_file(header: Any, body: bytes = b"") -> bytes:
    """A .safetensors file with any header."""
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + body


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the old checkpoint, to corrupt."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """The same checkpoint, written by this version."""
    checkpoint.save(load(OLD), tmp_path / "new")
    return tmp_path / "new"


# --- files of earlier versions ----------------------------------------------------------------------------------------


def test_a_checkpoint_of_version_0_1_is_read() -> None:
    assert sum(path.stat().st_size for path in OLD.rglob("*") if path.is_file()) < 60_000
    model = codec.load(OLD)
    z = model.encode(LINES)
    means = [[[2.19845, 0.71569, 0.65213, -0.00652]], [[0.84177, 1.19303, -0.05560, -0.09779]]]
    for found, expected in zip(z, means, strict=True):
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=2e-3)
    assert model.decode(z) == LINES
    assert {name: one.count for name, one in model.styles.items()} == {"normal": 55, "all": 55}


def test_a_detector_of_version_0_1_is_read() -> None:
    found, settings = calibration.load(OLD / "detector")
    assert (settings.p_value, settings.samples) == (0.05, 2)
    [evidence] = anomaly.examine(codec.load(OLD), LINES[:1], settings.samples, settings.seed)
    assert found.score == "fisher"  # its name since another combination is called combined
    assert found.scores(evidence)["fisher"] == pytest.approx(-3.167, abs=0.02)


def test_shards_of_version_0_1_are_read() -> None:
    data = TokenData(OLD / "data")
    assert (len(data), data.styles) == (60, ["normal"])
    everything = np.arange(len(data))
    assert data.counts(everything).sum() == 101
    first = data.gather(everything[:1], np.zeros(1, np.int64), 1)
    tokens = [int(token) for token in first[0, 0] if token]
    assert load(OLD).tokenizer.token_text(tokens[0]) == "open"


@pytest.mark.parametrize("file", ["config.json", "detector/detector.json"])
def test_a_newer_format_is_refused_with_a_message(old: Path, file: str) -> None:
    change(old / file, format=2 if file == "config.json" else 5)
    read = load if file == "config.json" else lambda folder: calibration.load(folder / "detector")
    message = one_line(lambda: read(old))
    assert "format 2" in message or "another version" in message


def test_newer_shards_are_refused_with_a_message(old: Path) -> None:
    change(old / "data" / "index.json", version=3)
    assert "version 3, and this seqvae reads 1 and 2" in one_line(lambda: TokenData(old / "data"), ReadError)


# --- checksums --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["model.safetensors", "styles.safetensors", "tokenizer/tokenizer.json"])
def test_an_altered_file_is_reported(new: Path, file: str) -> None:
    content = bytearray((new / file).read_bytes())
    content[-4] ^= 1
    (new / file).write_bytes(content)
    assert f"{file} is not the file that was saved" in one_line(lambda: load(new))


def test_a_file_with_a_checksum_must_exist(new: Path) -> None:
    (new / "styles.safetensors").unlink()
    assert "styles.safetensors" in one_line(lambda: load(new))


def test_files_for_users_to_edit_have_no_checksum(new: Path) -> None:
    (new / "README.md").write_text("mine")
    (new / "metrics.json").write_text("{}")
    assert load(new).card == "mine"


@pytest.mark.parametrize("checksums", [3, [1], {"../../secret": "0"}, {"model.safetensors": 5}, {"nothing": "0"}, None])
def test_invalid_checksums_are_an_error_in_one_line(new: Path, checksums: Any) -> None:
    change(new / "config.json", sha256=checksums)
    one_line(lambda: load(new))


# --- sizes are checked before memory is taken -------------------------------------------------------------------------

HUGE = 10**12
HEADERS: dict[str, Any] = {
    "more numbers than there are": {"a": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}},
    "more than fit a number": {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}},
    "less than nothing": {"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
    "two in one place": {
        "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    },
    "a gap": {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}},
    "the end before the start": {"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}},
    "a type of no size": {"a": {"dtype": "OBJECT", "shape": [4], "data_offsets": [0, 16]}},
    "no table": [1, 2],
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_with_a_false_size_is_refused(old: Path, what: str) -> None:
    for path in (old / "model.safetensors", old / "styles.safetensors"):
        path.write_bytes(tensors_file(HEADERS[what], bytes(16)))
        assert str(path) in one_line(lambda path=path: load_tensors(path))  # type: ignore[misc]
    one_line(lambda: load(old))


@pytest.mark.parametrize("length", [0, 3, 2**62, 2**64 - 1])
def test_a_header_longer_than_its_file_is_refused(old: Path, length: int) -> None:
    (old / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    one_line(lambda: load(old))


@pytest.mark.parametrize(
    "sizes",
    [{"width": 2**17}, {"latent": HUGE}, {"hidden": 2**17}, {"layers": HUGE}, {"chunks": HUGE}, {"width": 2**62}],
)
def test_a_model_far_larger_than_its_weights_is_refused_before_allocation(
    old: Path, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "build", lambda *_: pytest.fail("memory was requested"))
    settings = json.loads((old / "config.json").read_text())
    settings["recipe"]["model"] |= sizes
    change(old / "config.json", **settings)
    assert "the settings need at least" in one_line(lambda: load(old))


def test_a_vocabulary_far_larger_than_its_weights_is_refused(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "build", lambda *_: pytest.fail("memory was requested"))
    change(old / "tokenizer" / "tokenizer.json", symbols=[str(i) for i in range(100_000)])
    change(old / "config.json", vocab_size=100_005)
    assert "the settings need at least" in one_line(lambda: load(old))


def test_integer_weights_are_refused(old: Path) -> None:
    path = old / "model.safetensors"
    save_file({name: tensor.to(torch.int64) for name, tensor in load_file(path).items()}, path)
    assert "weights of type I64" in one_line(lambda: load(old))


@pytest.mark.parametrize("steps", [12 * 10**9, 480])
def test_an_unbounded_grid_is_refused(tmp_path: Path, steps: int) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"kind": "midi", "max_steps": steps}))
    from seqvae.modality import load_tokenizer

    assert "from 48 to 384" in one_line(lambda: load_tokenizer(tmp_path))


def write_styles(path: Path, mean: Any, factors: Any, variances: Any) -> Path:
    facts = {"a": json.dumps({"count": 1, "source": "", "persistence": 0.0})}
    save_file({"a.mean": mean, "a.factors": factors, "a.variances": variances}, path, metadata=facts)
    return path


def test_a_small_file_cannot_request_a_huge_covariance(tmp_path: Path) -> None:
    """A million variances are 4 MB; their covariance, which is never stored, would be 4,000 GB."""
    n = 1_000_000
    path = write_styles(tmp_path / "a.styles", torch.zeros(n), torch.zeros(n, 0), torch.ones(n))
    assert "too large" in one_line(lambda: styles_file.load(path), StyleError)


@pytest.mark.parametrize(
    ("mean", "factors", "variances"),
    [
        (torch.zeros(4), torch.zeros(4, 2), torch.full((4,), float("nan"))),
        (torch.full((4,), float("inf")), torch.zeros(4, 2), torch.ones(4)),
        (torch.zeros(4), torch.full((4, 2), float("nan")), torch.ones(4)),
        (torch.zeros(4), torch.zeros(4, 2), -torch.ones(4)),
        (torch.zeros(()), torch.zeros(1, 2), torch.ones(1)),
        (torch.zeros(4), torch.zeros(4, 2, 3), torch.ones(4)),
    ],
)
def test_invalid_gaussians_are_refused(tmp_path: Path, mean: Any, factors: Any, variances: Any) -> None:
    path = write_styles(tmp_path / "a.styles", mean, factors, variances)
    assert str(path) in one_line(lambda: styles_file.load(path), StyleError)


def test_a_style_without_variance_is_harmless(tmp_path: Path) -> None:
    path = write_styles(tmp_path / "a.styles", torch.zeros(4), torch.zeros(4, 1), torch.zeros(4))
    point = styles_file.load(path)["a"]
    z = torch.ones(2, 4)
    assert torch.equal(translation.translate(point, point, 0.5, "discriminant")(z), z)


def test_a_checkpoint_with_styles_of_another_latent_space_is_refused(old: Path) -> None:
    write_styles(old / "styles.safetensors", torch.zeros(9), torch.zeros(9, 1), torch.ones(9))
    assert "9 dimensions, the model 4" in one_line(lambda: codec.load(old), SeqVAEError)


# --- links out of the folder ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [*checkpoint.FILES, "detector/detector.json", "detector/calibration.safetensors"])
@pytest.mark.parametrize("target", ["elsewhere", "/dev/zero", "itself"])
def test_a_link_out_of_the_folder_is_refused(old: Path, file: str, target: str) -> None:
    path = old / file
    if path.exists():
        path.rename(old.parent / "elsewhere")
    else:
        (old.parent / "elsewhere").write_text("{}")
    path.symlink_to({"elsewhere": old.parent / "elsewhere", "itself": path}.get(target, Path(target)))
    one_line(lambda: calibration.load(old / "detector") if file.startswith("detector") else load(old))


def test_a_link_within_the_folder_is_followed(old: Path) -> None:
    (old / "model.safetensors").rename(old / "weights")
    (old / "model.safetensors").symlink_to("weights")
    load(old)


def test_the_links_of_the_hubs_cache_are_followed(old: Path) -> None:
    cache = old.parent / "models--a--b"
    snapshot = cache / "snapshots" / "0123"
    (cache / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in old.rglob("*") if path.is_file())):
        path.rename(cache / "blobs" / str(number))
        link = snapshot / path.relative_to(old)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(cache / "blobs" / str(number), link.parent))
    assert load(snapshot).card
    calibration.load(snapshot / "detector")


@pytest.mark.parametrize("file", ["tokenizer/sentencepiece.model", "styles.safetensors", "metrics.json"])
def test_a_pipe_is_not_waited_for(old: Path, file: str) -> None:
    (old / file).unlink(missing_ok=True)
    os.mkfifo(old / file)
    one_line(lambda: load(old))
    released.facts(old)


# --- pickles ----------------------------------------------------------------------------------------------------------


class Trap:
    """Leaves a file as a trace when unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.sprung,)


@pytest.fixture(params=["pickle 2", "pickle 4", "pickle 5", "torch.save", "named .pt", "named .bin", "named .pkl"])
def trap(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A pickle, by its content or by its name."""
    kind = request.param
    path = tmp_path / ("file" + (kind.split()[1] if kind.startswith("named") else ".safetensors"))
    if kind == "torch.save":
        torch.save({"w": torch.zeros(3)}, path)
    elif kind.startswith("pickle"):
        path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), int(kind.split()[1])))
    else:
        path.write_bytes(b"whatever")
    return path


def test_a_pickle_in_place_of_any_file_is_refused_with_the_reason(trap: Path, old: Path) -> None:
    in_a_folder = Path(shutil.copytree(old, old.with_name("with a pickle")))
    (in_a_folder / "model.safetensors").unlink()
    shutil.copy(trap, in_a_folder / "pytorch_model.bin")
    for call in (
        lambda: load(trap),
        lambda: load(str(trap)),
        lambda: styles_file.load(trap),
        lambda: load_tensors(trap),
        lambda: calibration.load(trap),
        lambda: load(in_a_folder),
    ):
        message = one_line(call)
        assert "is a pickle, which may run any program when it is opened" in message
        assert ".safetensors" in message
    assert not (old.parent / "sprung").exists()


def test_object_arrays_are_not_opened(old: Path) -> None:
    path = old / "data" / "shard-00000.tokens.npy"
    np.save(path, np.array([Trap(old.parent / "sprung")], object), allow_pickle=True)
    one_line(lambda: TokenData(old / "data"), ReadError)
    assert not (old.parent / "sprung").exists()


# --- settings ---------------------------------------------------------------------------------------------------------

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "file", ["config.json", "metrics.json", "tokenizer/tokenizer.json", "detector/detector.json", "styles.safetensors"]
)
def test_endlessly_nested_json_is_refused(old: Path, file: str) -> None:
    content = struct.pack("<Q", len(DEEP)) + DEEP.encode() if file.endswith("tensors") else DEEP.encode()
    (old / file).write_bytes(content)
    one_line(lambda: calibration.load(old / "detector") if file.startswith("detector") else load(old))
    if file in ("config.json", "styles.safetensors"):
        one_line(lambda: released.facts(old))


@pytest.mark.parametrize("name", ["r.json", "r.toml"])
def test_an_endlessly_nested_recipe_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a = " * name.endswith("toml") + DEEP)
    assert "nested too deeply" in one_line(lambda: load_recipe(tmp_path / name), ConfigError)


def test_a_number_too_large_for_a_float_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"objective": {"beta": ' + "9" * 400 + "}}")
    assert "out of range" in one_line(lambda: load_recipe(tmp_path / "r.json"), ConfigError)


def test_too_large_settings_are_not_read_completely(old: Path) -> None:
    with (old / "config.json").open("r+b") as file:
        file.truncate(10**12)  # a sparse file: it takes no disk space
    assert f"more than {config.MOST >> 20} MB" in one_line(lambda: load(old))


def test_a_long_value_does_not_make_a_long_message(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps({"model": {"decoder": [0] * 1000}}))
    message = one_line(lambda: load_recipe(tmp_path / "r.json"), ConfigError)
    assert message.startswith(str(tmp_path)[:100]) and message.endswith("is not one of recurrent, transformer, memory")


@pytest.mark.parametrize("header", ['"x"', "3", "[]", '{"__metadata__": 3}'])
def test_a_header_other_than_an_object_is_refused_by_the_list_of_models(old: Path, header: str) -> None:
    (old / "styles.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode())
    one_line(lambda: released.facts(old))


@pytest.mark.parametrize(
    "facts",
    [{"p_value": 10**30}, {"p_value": -1}, {"samples": 10**12}, {"samples": 0}, {"samples": 2.5}, {"p_value": "x"}],
)
def test_a_detector_of_impossible_settings_is_refused(old: Path, facts: dict[str, Any]) -> None:
    """The search for the threshold of a p-value of 10^30 was endless."""
    change(old / "detector" / "detector.json", threshold=None, **facts)
    one_line(lambda: calibration.load(old / "detector"))


# --- shards -----------------------------------------------------------------------------------------------------------


def rewritten(old: Path, name: str, make: Callable[[Any], Any]) -> None:
    path = old / "data" / f"shard-00000.{name}.npy"
    np.save(path, make(np.load(path).copy()))


def with_field(name: str, value: int) -> Callable[[Any], Any]:
    def make(pieces: Any) -> Any:
        pieces[name][3] = value
        return pieces

    return make


def linked(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


SHARDS: dict[str, Callable[[Path], Any]] = {
    "chunks that are not there": lambda old: rewritten(old, "pieces", with_field("chunks", 10**9)),
    "no pieces": lambda old: rewritten(old, "pieces", lambda pieces: pieces[:0]),
    "no shards": lambda old: change(old / "data" / "index.json", shards=0),
    "pieces of nothing": lambda old: rewritten(old, "pieces", with_field("chunks", 0)),
    "a place that is not there": lambda old: rewritten(old, "pieces", with_field("first", 10**9)),
    "a style that is not there": lambda old: rewritten(old, "pieces", with_field("style", 7)),
    "ends that go back": lambda old: rewritten(old, "ends", lambda ends: ends[::-1]),
    "ends beyond the end": lambda old: rewritten(old, "ends", lambda ends: ends + 10**6),
    "other numbers": lambda old: rewritten(old, "tokens", lambda tokens: tokens.astype(float)),
    "a table of tokens": lambda old: rewritten(old, "tokens", lambda tokens: tokens[:, None]),
    "no file": lambda old: (old / "data" / "shard-00000.ends.npy").unlink(),
    "an empty file": lambda old: (old / "data" / "shard-00000.ends.npy").write_bytes(b""),
    "a zip": lambda old: (old / "data" / "shard-00000.ends.npy").write_bytes(b"PK\3\4"),
    "half a header": lambda old: (old / "data" / "shard-00000.ends.npy").write_bytes(
        b"\x93NUMPY\1\0\x76\0{'descr': '<i8', 'fortran_order': False, 'shape': (3,".ljust(128)
    ),
    "a shape beyond all memory": lambda old: (old / "data" / "shard-00000.ends.npy").write_bytes(
        b"\x93NUMPY\1\0\x76\0{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999999999999,), }".ljust(128)
    ),
    "as many shards as there are numbers": lambda old: change(old / "data" / "index.json", shards=10**15),
    "an index that is a device": lambda old: linked(old / "data" / "index.json", "/dev/zero"),
    "an index without a bottom": lambda old: (old / "data" / "index.json").write_text(DEEP),
}


@pytest.mark.parametrize("what", SHARDS)
def test_inconsistent_shards_are_refused(old: Path, what: str) -> None:
    SHARDS[what](old)
    assert str(old) in one_line(lambda: TokenData(old / "data"), ReadError)
