"""Exported models: every graph against torch, and the torch-free program of docs/export.md."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import done, error_line, files, last_error_line, seqvae, song
from conftest import ROOT, SENTENCES, SESSIONS

from seqvae import codec, export
from seqvae.checkpoint import folder as checkpoint
from seqvae.nn.sampling import Sampling

pytest.importorskip("onnx", reason="onnx is not installed; `pip install 'seqvae[export]'`")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; `pip install 'seqvae[export]'`")

pytestmark = pytest.mark.usefixtures("here")
KINDS = ["music", "text", "events"]
FILES = ["config.json", "encoder.onnx", "start.onnx", "step.onnx", "tokenizer/tokenizer.json"]
PROGRAM = (ROOT / "docs" / "export.md").read_text().split("```python\n")[1].split("```")[0]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tiny(kind: str, request: pytest.FixtureRequest) -> Path:
    """A checkpoint of each modality; its music ends, unlike that of the untrained `tiny_music`."""
    folder = request.getfixturevalue("trained").best if kind == "music" else request.getfixturevalue(f"tiny_{kind}")
    return Path(folder)


@pytest.fixture
def exported(kind: str, tiny: Path, exports: Path) -> Path:
    """Its export for use without torch, written once per modality."""
    if not (exports / kind).exists():
        export.export_model(tiny, exports / kind, segments=4)
    return exports / kind


@pytest.fixture
def sources(kind: str, here: Path) -> list[Any]:
    """Pieces of each modality: bars of notes with a partial last segment, or one line each."""
    if kind == "music":
        return [str(song(here / f"{bars}.mid", bars, bars)) for bars in (1, 3, 4)]
    return [*SENTENCES[::9], "zzz never seen ü", ""] if kind == "text" else [*SESSIONS[:8], "open odd close", ""]


def network(tiny: Path, folder: Path, **sizes: Any) -> Path:
    """A checkpoint with the tokenizer of another and an untrained network of another shape."""
    kept = checkpoint.load(tiny)
    recipe = dataclasses.replace(kept.recipe, model=dataclasses.replace(kept.recipe.model, **sizes))
    torch.manual_seed(0)
    model = checkpoint.build(recipe.model, kept.tokenizer)
    for weights in model.parameters():  # some are initially 0, which would hide mistakes
        weights.data += 0.1 * torch.randn_like(weights)
    checkpoint.save(checkpoint.Checkpoint(recipe, model, kept.tokenizer), folder)
    return folder


def program() -> Any:
    """The class `Model` of docs/export.md."""
    names: dict[str, Any] = {"__name__": "loop"}
    exec(compile(PROGRAM, "docs/export.md", "exec"), names)
    return names["Model"]


# --- against torch ----------------------------------------------------------------------------------------------------


def test_a_thousand_sequences_give_the_results_of_torch(tiny: Path, exported: Path) -> None:
    found = export.compare(checkpoint.load(tiny), exported, 1000, seed=1)
    assert 0 < found.encoder < 1e-4
    assert 0 < found.decoder < 1e-4


@pytest.mark.parametrize(
    ("which", "sizes"),
    [
        ("tiny_music", {"encoder": "recurrent", "decoder": "transformer", "layers": 2, "hidden": 32}),
        ("tiny_music", {"encoder": "transformer", "layers": 2, "chunks": 3}),
        ("tiny_text", {"encoder": "recurrent", "decoder": "transformer", "heads": 4}),
        ("tiny_text", {"encoder": "pooled", "decoder": "memory", "heads": 4, "previous": False}),
        ("tiny_events", {"encoder": "recurrent", "layers": 2}),
    ],
    ids=str,
)
def test_networks_of_every_shape_give_the_results_of_torch(
    which: str, sizes: dict[str, Any], here: Path, request: pytest.FixtureRequest
) -> None:
    folder = network(request.getfixturevalue(which), here / "other", **sizes)
    kept, _ = export.export_model(folder, here / "onnx", segments=1)
    found = export.compare(kept, here / "onnx", 200, seed=1)
    assert max(found.encoder, found.decoder) < 1e-4


def test_random_sequences_have_all_lengths_and_follow_the_grammar(tiny: Path) -> None:
    tokenizer = checkpoint.load(tiny).tokenizer
    rng = np.random.default_rng(0)
    lengths = set()
    for _ in range(40):
        tokens = export.random_tokens(tokenizer, 3, 2, rng)
        assert tokens.shape[:2] == (3, 2)
        for row in tokens.reshape(6, -1):
            chunk = row[: int((row != 0).sum())]
            assert chunk[-1] == 2
            assert (chunk[:-1] > 2).all()
            allowed = tokenizer.allowed(chunk[None])
            assert allowed is None or allowed[0, np.arange(len(chunk)), chunk].all()
            lengths.add(len(chunk))
    assert len(lengths) > 10


def test_the_graphs_have_the_documented_inputs(kind: str, exported: Path) -> None:
    def names(graph: str) -> tuple[list[str], list[str]]:
        session = onnxruntime.InferenceSession(str(exported / f"{graph}.onnx"))
        return [x.name for x in session.get_inputs()], [x.name for x in session.get_outputs()]

    fields = ["fields"] if kind == "music" else []
    assert names("encoder") == (["tokens", *fields], ["mean", "logvar"])
    assert names("start") == (["z"], ["code", "cache_0", "cache_1"])
    assert names("step") == (["code", "tokens", *fields, "cache_0", "cache_1"], ["logits", "next_0", "next_1"])


# --- without torch ----------------------------------------------------------------------------------------------------


def test_the_program_of_the_page_writes_the_same_tokens(tiny: Path, exported: Path, sources: list[Any]) -> None:
    there, here = codec.load(tiny), program()(exported)
    for source in sources:
        piece = there.adapter.read(source)
        limits = there.adapter.limits(piece)
        mean, logvar = here.encode(piece)
        posterior = there.posteriors(there.segments(piece))
        np.testing.assert_allclose(mean, posterior.mean, atol=1e-4)
        np.testing.assert_allclose(logvar, posterior.logvar, atol=1e-4)
        lengths = None if limits is None else np.append(limits, np.ones(-len(limits) % there.chunks, np.int32))
        written = here.decode(mean, lengths)
        expected = there.generate_tokens(torch.from_numpy(mean), lengths, Sampling())
        assert [chunk.tolist() for chunk in written] == [chunk.tolist() for chunk in expected]
        assert content(there.decode([torch.from_numpy(mean)], like=[piece])[0]) == content(
            there.adapter.assemble(written if limits is None else written[: len(limits)], piece)
        )


def content(piece: Any) -> Any:
    """Comparable content of a piece: a line, or the notes of a score."""
    if isinstance(piece, str):
        return piece
    return [(track.program, note.time, note.duration, note.pitch) for track in piece.tracks for note in track.notes]


def test_it_truncates_unfinished_pieces_like_the_codec(tiny_music: Path, tiny_text: Path, here: Path) -> None:
    for name, tiny in {"music": tiny_music, "text": tiny_text}.items():
        there = codec.load(network(tiny, here / name))
        export.export_model(here / name, here / f"{name}.onnx", segments=1)
        z = torch.randn(3, there.model.config.latent, generator=torch.Generator().manual_seed(0))
        without = program()(here / f"{name}.onnx")
        without.tokenizer.max_tokens = 20
        expected = there.generate_tokens(z, None, Sampling(max_tokens=20))
        assert [x.tolist() for x in without.decode(z.numpy())] == [x.tolist() for x in expected]
        assert 18 <= max(map(len, expected)) <= 21


def test_it_needs_no_torch(kind: str, tiny: Path, exported: Path, sources: list[Any], here: Path) -> None:
    if kind == "music" and version("huggingface_hub").startswith(("0.", "1.")):
        pytest.skip("MidiTok imports the Hub's client, which before 2.0 imports torch")
    (here / "loop.py").write_text(PROGRAM)
    # MidiTok imports torch if installed: it must not be
    absent = "sys.modules['torch'] = None\n" if kind == "music" else ""
    checked = "assert sys.modules.get('torch') is None, 'torch was imported'\n"
    runner = f"import runpy, sys\n{absent}runpy.run_path('loop.py', run_name='__main__')\n{checked}"
    source = sources[1]
    ran = subprocess.run(
        [sys.executable, "-c", runner, str(exported), source],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    there = codec.load(tiny)
    mean = there.posteriors(there.segments(there.adapter.read(source))).mean
    assert ran.stdout == f"{there.decode([mean], like=[source])[0]}\n"


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_reports_its_files_and_progress(tiny_text: Path, tiny_events: Path, here: Path) -> None:
    [line] = done("export", "-m", tiny_text, "-o", "a.onnx/")
    assert " MB in a.onnx; over 64 random segments up to " in line
    assert files(here / "a.onnx") == sorted([*FILES, "README.md", "tokenizer/sentencepiece.model"])
    [line] = done("export", "-m", tiny_events, "-o", "a.onnx", "--json")  # an export replaces another
    facts = json.loads(line)
    assert max(facts.pop("encoder"), facts.pop("decoder")) < 1e-4
    assert facts.pop("megabytes") < 1
    assert facts == {"output": "a.onnx", "segments": 64}
    assert files(here / "a.onnx") == sorted([*FILES, "README.md"])
    assert sorted(path.name for path in here.iterdir()) == ["a.onnx"]


def test_it_reports_that_refinement_is_left_out(tiny_events: Path, here: Path) -> None:
    kept = checkpoint.load(tiny_events)
    refine = dataclasses.replace(kept.recipe.refine, steps=7)
    kept.recipe = dataclasses.replace(kept.recipe, refine=refine)
    checkpoint.save(kept, here / "searches")
    assert "without the 7 refinement steps" in seqvae("export", "-m", here / "searches", "-o", "out").stderr


def test_no_other_folder_is_replaced(tiny_events: Path, here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "notes.txt").write_text("mine")
    (here / "file").write_text("mine")
    for out in ("mine", "file", tiny_events):
        line = error_line(seqvae("export", "-m", tiny_events, "-o", out))
        assert line == f"seqvae: {out}: exists and is not an exported model's folder; choose another -o"
    assert files(here) == ["file", "mine/notes.txt"]
    assert (tiny_events / "model.safetensors").exists()


def test_a_graph_with_other_results_is_not_kept(tiny_events: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _spoilt(monkeypatch, "logvar", 0.01):
        line = last_error_line(seqvae("export", "-m", tiny_events, "-o", "out"))
    assert "differ from torch by 0.01 (encoder)" in line
    with _spoilt(monkeypatch, "next_1", 0.5):  # one cell state: seen from the second token on
        line = last_error_line(seqvae("export", "-m", tiny_events, "-o", "out"))
    assert "were not saved" in line
    with _spoilt(monkeypatch, "mean", float("nan")):
        line = last_error_line(seqvae("export", "-m", tiny_events, "-o", "out"))
    assert "differ from torch by nan (encoder)" in line
    assert list(here.iterdir()) == []


@contextmanager
def _spoilt(monkeypatch: pytest.MonkeyPatch, output: str, by: float) -> Iterator[None]:
    """Onnxruntime adds something to one output."""
    whole = export._run

    def run(session: Any, **feed: Any) -> list[Any]:
        names = [x.name for x in session.get_outputs()]
        return [x + by if name == output else x for name, x in zip(names, whole(session, **feed), strict=True)]

    with monkeypatch.context() as patched:
        patched.setattr(export, "_run", run)
        yield


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_packages_are_an_error_with_the_install_command(
    package: str, tiny_events: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    line = error_line(seqvae("export", "-m", tiny_events, "-o", "out"))
    assert line == f"seqvae: {package} is not installed, and exporting needs it; `pip install 'seqvae[export]'`"
    assert list(here.iterdir()) == []
