"""The checkpoints that are released: small, complete, documented, and able to do what they are for."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from seqvae import checkpoint, codec, midi
from seqvae.midi import Piece
from seqvae.released import released

FOLDERS = released()
STYLES = {"midi": {"all", "classical", "rock", "jazz", "pop", "folk"}}

none = pytest.param(None, marks=pytest.mark.skip(reason="no checkpoint is released yet"), id="none")
each = pytest.mark.parametrize("folder", [pytest.param(folder, id=folder.name) for folder in FOLDERS] or [none])


@each
def test_it_loads_and_knows_its_styles(folder: Path) -> None:
    model = codec.load(folder.name)
    assert checkpoint.find(folder.name) == folder
    assert STYLES.get(model.tokenizer.kind, {"all"}) <= model.styles.keys()
    for style in model.styles.values():
        assert style.count > 0
        assert style.source
        assert style.mean.shape == (model.model.config.latent,)
        assert style.mean.isfinite().all()
        assert style.covariance.isfinite().all()
        assert (style.covariance.diagonal() > 0).all()


@each
def test_it_is_small_and_without_pickle(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".model"}


@each
def test_its_card_has_what_the_hub_wants(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert card.startswith("---\n")
    assert {"license", "tags"} <= {line.partition(":")[0] for line in front.splitlines()}
    assert len(text) > 1000
    for word in ("licen", "KL"):  # sources with their licences; and no figure without its KL
        assert word in text


@each
def test_its_figures_are_there(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics


@each
def test_a_chorale_blends_into_a_file_for_every_reader(folder: Path, bach: Piece) -> None:
    model = codec.load(folder)
    if model.tokenizer.kind != "midi":
        pytest.skip("not a model of music")
    import music21
    import pretty_midi
    from symusic.core import ScoreTick

    score = model.blend(bach, source="classical", target="rock", amount=0.5)
    content = midi.to_bytes(score)
    notes = sum(len(track.notes) for track in score.tracks)
    assert notes > 20
    assert sum(len(track.notes) for track in ScoreTick.from_midi(content).tracks) == notes
    assert sum(len(i.notes) for i in pretty_midi.PrettyMIDI(io.BytesIO(content)).instruments) == notes
    parsed = music21.midi.translate.midiStringToStream(content)  # type: ignore[no-untyped-call]
    assert len(list(parsed.recurse().notes)) > 20
    again = midi.read(content)
    assert again.bounds.tolist() == bach.bounds[: len(again.bounds)].tolist()
