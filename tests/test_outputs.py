"""Released models give the recorded notes and words; the record is compared after changes that move code.

`python tests/test_outputs.py` makes a new record, after a change that should change the outputs. Processors
round differently, so a few of many notes or words may differ from the record.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
RECORD = ROOT / "tests" / "data" / "outputs.json"
LINES = {
    "reviews": [
        "the food was great and the staff is very friendly .",
        "i will never go back .",
        "it took an hour to get our drinks .",
        "good .",
        "we love this place !",
    ],
    "prose": ["She walked slowly down to the river.", "“What have you done?” asked the old man."],
    "hdfs": ["E5 E22 E5 E5 E11 E9 E11 E9 E26 E26", "E5 E5 E22 E11 E9"],
    "requests": [
        "get http://localhost:8080/tienda1/publico/pagar.jsp?modo=insertar&precio=335&b1=confirmar",
        "get http://localhost:8080/tienda1/publico/pagar.jsp.bak",
    ],
    "syscalls": ["6 6 63 6 42 120 6 195 120 6 6 114 114 1", "3 3 3 3 5 5 19 6 6"],
}
Outputs = dict[str, list[Any]]


def outputs(name: str) -> Outputs:
    """Outputs of a released model on a few small inputs: notes or lines for each function, and scores."""
    import torch
    from conftest import groove

    from seqvae import load
    from seqvae.anomaly.evidence import examine
    from seqvae.nn.sampling import Sampling

    torch.manual_seed(0)
    codec = load(name)
    kind = codec.tokenizer.kind
    pieces: list[Any] = [groove(1, 4)] if kind == "midi" else LINES[name]
    made = {
        "reconstruct": codec.transform(pieces, lambda z: z),
        "generate": codec.sample(2, segments=2 if kind == "midi" else 1, seed=7, sampling=Sampling()),
    }
    if kind == "midi":
        made["blend"] = [codec.blend(pieces[0], source="classical", target="rock", amount=0.5)]
        made["generate jazz"] = codec.sample(1, "jazz", temperature=0.8, segments=2, seed=7)
    elif name == "reviews":
        made["blend"] = [codec.blend(line, source="positive", target="negative", amount=1.0) for line in pieces]
    shown: Outputs = {what: [shows(piece) for piece in some] for what, some in made.items()}
    shown["scores"] = [round(one.elbo, 2) for one in examine(codec, pieces, 4)]
    return shown


def shows(piece: Any) -> str:
    """A line unchanged; music as its notes `tick:duration:pitch:program`."""
    if isinstance(piece, str):
        return piece
    return " ".join(
        f"{note.time}:{note.duration}:{note.pitch}:{128 if track.is_drum else track.program}"
        for track in piece.tracks
        for note in track.notes
    )


def shared(before: list[str], now: list[str]) -> float:
    """Share of common notes or words of two outputs, from 0 to 1."""
    x, y = (Counter(word for line in lines for word in line.split()) for lines in (before, now))
    return 2 * (x & y).total() / max(1, x.total() + y.total())


@pytest.mark.bf16
@pytest.mark.parametrize("name", json.loads(RECORD.read_text()) if RECORD.exists() else [])
def test_a_released_model_gives_the_recorded_outputs(name: str) -> None:
    before, now = json.loads(RECORD.read_text())[name], outputs(name)
    assert before.keys() == now.keys()
    scores, scores_now = before.pop("scores"), now.pop("scores")
    assert scores_now == pytest.approx(scores, rel=0.01, abs=0.5)
    for what, recorded in before.items():
        assert shared(recorded, now[what]) >= 0.75, (what, recorded, now[what])


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from seqvae.checkpoint.hub import released

    RECORD.write_text(json.dumps({folder.name: outputs(folder.name) for folder in released()}, indent=1) + "\n")
