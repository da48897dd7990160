"""A checkpoint from a run of the song model's training."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import ROOT, groove

import seqvae
from seqvae.checkpoint import folder as checkpoint
from seqvae.music import piece as midi
from seqvae.nn.song_vae import SongVAE


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("song_checkpoint", ROOT / "benchmarks" / "song_checkpoint.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_becomes_a_checkpoint_with_styles(
    script: ModuleType, song_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(script, "FEWEST", 3)
    model = seqvae.load(song_model).model
    assert isinstance(model, SongVAE)
    assert model.config.song is not None
    run = tmp_path / "run"
    run.mkdir()
    shape = {**dataclasses.asdict(model.config.song), "vocab": 510}  # earlier runs have it
    (run / "song.json").write_text(json.dumps({"config": shape, "step": 3}))
    weights = list(model.net.state_dict().items())
    for i, part in enumerate((weights[:20], weights[20:])):
        checkpoint.save_tensors({name: x.bfloat16() for name, x in part}, {}, run / f"song-{i}.safetensors")
    listed = []
    for i in range(8):
        name = f"{('even', 'odd')[i % 2]}/{i}.mid"
        piece = groove(i, 6)
        midi.write(midi.to_score(piece.notes, piece.frame), tmp_path / "music" / name)
        listed.append(f"{name.split('/')[0]}\t{'test' if i == 7 else 'train'}\t{name}\n")
    (tmp_path / "songs.txt").write_text("".join(listed) + "mixed\ttrain\tmixed/9.mid\nfew\ttrain\tfew/9.mid\n")
    out = tmp_path / "songs"
    given = [str(x) for x in (run, tmp_path / "music", tmp_path / "songs.txt", out)]
    monkeypatch.setattr(sys, "argv", ["song_checkpoint.py", *given, "--name", "songs", "--bars", "4", "--search", "2"])
    script.main()
    codec = seqvae.load(out)
    assert {name: style.count for name, style in codec.styles.items()} == {"even": 4, "odd": 3, "all": 7}
    assert all(style.exemplars is None and style.shared == 6 for style in codec.styles.values())
    assert codec.refinement.steps == 2
    assert "Styles: even, odd." in (out / "README.md").read_text()
    again = codec.model
    assert isinstance(again, SongVAE)
    for name, x in model.net.state_dict().items():
        torch.testing.assert_close(again.net.state_dict()[name], x, rtol=0.01, atol=1e-3)
