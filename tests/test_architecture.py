"""The house as a table: who may import whom, and who owns which dependency.

Knows files by their name and what they import, wherever in the file. Refuses to run them, but for the last test.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_LINES = 500
FORBIDDEN_WORDS = {"util", "utils", "common", "helper", "helpers", "base", "manager", "managers", "misc"}

# Each line may import from the lines above it in its column, and never from its own: imports run one way.
GROUND = [{"errors", "files"}, {"config"}]
DATA = [
    {"text", "bars", "humdrum", "musicxml", "midi_bytes", "track_events"},
    {"notation", "abc_fields"},
    {"abc_voice"},
    {"abc"},
    {"midi", "log_lines"},
    {"log_sessions", "log_templates"},
    {"collection", "sound", "roll"},
    {"vocabulary", "tonality"},
    {"midi_tokenizer", "text_tokenizer", "event_tokenizer"},  # one for each kind of sequence
    {"tokenizer", "attributes"},
    {"dataset"},
    {"shards"},
]
MODEL = [{"layers", "latent"}, {"encoder", "decoder"}, {"memory"}, {"model"}, {"objective", "song_model"}]
ALONE = {
    "sampling",
    "products",
    "distributed",
    "measures",
    "text_measures",
    "distributions",
    "conformal",
    "released",
}  # stand on the ground only; the model column and what is above may call on them
DOORS = {"__init__", "__main__"}
ABOVE = [
    {"checkpoint", "batches"},  # where the columns meet
    {"note_statistics", "copying"},  # measures of music that build on `measures`
    {"arrangement"},
    {"band", "guidance"},
    {"interpolate", "style", "mixture", "tracks"},  # pure tensors: what a codec does with its latents
    {"forms", "plane", "song_bars"},
    {"arranger"},
    {"codec", "song_codec"},
    {"validation", "trained_styles", "clock"},
    {"run"},
    {"train"},
    {"controls"},
    {"held_out", "judge"},
    {"rule"},
    {"evaluate_transfer", "evaluate_blend", "evaluate_samples", "evaluate_paths", "evaluate_arrangement"},
    {"evaluate_reconstruction"},
    {"anomaly", "effect", "evaluate", "evaluate_text", "export", "plot", "page", "terminal"},
    {"calibration"},
    {"detector", "log_detector"},
    {"places", "lines"},  # one for pieces in files, one for pieces in lines
    {"kinds"},
    {"verdicts"},
    {"learn"},
    {"workshop", "detect", "draw", "stylebook"},
    {"studio"},
    {"cli"},
    DOORS,
]
# The names in `seqvae` itself are for those outside, and inside for these alone: they would close a circle elsewhere.
PUBLIC = {"", "Codec", "Detector", "SequenceVAE", "__version__", "load"}
PUBLIC_USERS = {"cli", "studio", "__main__"}


def _table() -> dict[str, frozenset[str]]:
    """Every module of the house, with the modules of ours that it may import."""
    allowed: dict[str, frozenset[str]] = {}

    def build(column: list[set[str]], below: set[str]) -> set[str]:
        for line in column:
            allowed.update(dict.fromkeys(line, frozenset(below)))
            below = below | line
        return below

    ground = build(GROUND, set())
    build([ALONE], ground)
    data = build(DATA, ground)
    model = build(MODEL, ground | ALONE)
    build(ABOVE, data | model)
    return allowed


ALLOWED = _table()

# One owner per dependency: what changes outside is met in one file. Not in the list: refused everywhere.
OWNERS = {
    "symusic": {"abc", "bars", "midi", "notation", "sound", "track_events"},
    "pretty_midi": {"midi"},
    "music21": {"notation"},
    "sentencepiece": {"text_tokenizer"},
    "safetensors": {"checkpoint"},
    "huggingface_hub": {"released"},
    "fsspec": {"dataset"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "tensorboard": {"train"},
    "torch.utils.tensorboard": {"train"},
    "sklearn": {"judge", "evaluate_transfer", "evaluate_arrangement", "detector"},
    "sacrebleu": {"text_measures"},
    "matplotlib": {"plot"},
    "PIL": {"plot"},
    "drain3": {"log_templates"},
    "typer": {"terminal", "verdicts", "workshop", "detect", "learn", "draw", "stylebook", "cli"},
    "fastapi": {"studio"},
    "starlette": {"studio"},
    "pydantic": {"studio"},
    "uvicorn": {"studio"},
    "anyio": {"studio"},
    # Shared by the rest. Files are read in many processes, and none of them waits for torch; the objective is
    # arithmetic on tensors, and needs nothing else.
    "torch": ALLOWED.keys()
    - DOORS
    - {
        "errors",
        "files",
        "config",
        "text",
        "bars",
        "abc_fields",
        "abc_voice",
        "abc",
        "humdrum",
        "musicxml",
        "notation",
        "midi",
        "collection",
        "sound",
        "roll",
        "measures",
        "text_measures",
        "released",
    }
    - {"distributions", "note_statistics", "copying", "judge", "arrangement", "rule", "band", "guidance", "batches"}
    - {
        "vocabulary",
        "midi_tokenizer",
        "text_tokenizer",
        "event_tokenizer",
        "tokenizer",
        "terminal",
        "conformal",
        "verdicts",
        "page",
        "draw",
        "workshop",
        "detect",
        "learn",
        "stylebook",
        "log_lines",
        "log_sessions",
        "log_templates",
    },
    "numpy": ALLOWED.keys() - DOORS - {"errors", "files", "config", "objective"},
    "tqdm": ALLOWED.keys() - DOORS - {"errors", "files", "config", "objective"},
}


def _imports(source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of all that is imported, inside functions and `if TYPE_CHECKING` too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)


def _refusal(module: str, imported: str) -> str | None:
    """Why this module may not import that name, or None."""
    top, *rest = imported.split(".")
    if not top:
        return "relative import: write the full name, seqvae.<module>"
    if top == "seqvae":
        target = rest[0] if rest else ""
        if target in ALLOWED:
            if target == module or target in ALLOWED[module]:
                return None
            may = ", ".join(sorted(ALLOWED[module])) or "nothing of ours"
            return f"{module} may not import seqvae.{target}: imports run one way, it may import {may}"
        if target not in PUBLIC:
            return f"seqvae.{target} has no place in the house: add it to the table in tests/test_architecture.py"
        return None if module in PUBLIC_USERS else f"{module} may not import from seqvae itself: name the module"
    if top in sys.stdlib_module_names:
        return None
    owned = [name for name in OWNERS if f"{imported}.".startswith(f"{name}.")]
    if not owned:
        return f"{top} has no owner: add it to OWNERS"
    owners = OWNERS[max(owned, key=len)]
    return None if module in owners else f"{module} may not import {top}: only {', '.join(sorted(owners))} may"


def violations(path: Path, source: str) -> list[str]:
    """All that is wrong with one file of the package, each with file, line and rule; `path` is relative to the root."""
    found = []
    folder, *inside = path.with_suffix("").parts[1:]
    module = folder
    if inside and folder != "studio":
        return [f"{path}:1: only studio/ is a folder of modules; data folders hold no Python"]
    if module not in ALLOWED:
        return [f"{path}:1: {module} has no place in the house: add it to the table in tests/test_architecture.py"]
    lines = source.count("\n")
    if lines > MAX_LINES:
        found.append(f"{path}:{lines}: more than {MAX_LINES} lines: make two rooms of it")
    for line, imported in _imports(source):
        if reason := _refusal(module, imported):
            found.append(f"{path}:{line}: {reason}")
    return found


def _python_files(*folders: str) -> list[Path]:
    return [path.relative_to(ROOT) for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_the_house_is_as_the_table_says() -> None:
    files = _python_files("seqvae")
    assert {"errors.py", "__init__.py"} <= {path.name for path in files}, "the walk found no house to check"
    found = [line for path in files for line in violations(path, (ROOT / path).read_text(encoding="utf-8"))]
    assert not found, "\n" + "\n".join(found)


def test_no_file_is_a_drawer_for_odds_and_ends() -> None:
    found = [
        f"{path}:1: '{word}' says nothing about what the file holds: name it for that"
        for path in _python_files("seqvae", "tests", "benchmarks")
        for word in FORBIDDEN_WORDS.intersection(path.stem.lower().split("_"))
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("midi", "import seqvae.modality", "1: midi may not import seqvae.modality"),
        ("text", "from seqvae.music.piece import read", "1: text may not import seqvae.music.piece"),
        ("dataset", "from seqvae.nn import model", "1: dataset may not import seqvae.nn.model"),
        ("model", "def f():\n    from seqvae.data.dataset import load", "2: model may not import seqvae.data.dataset"),
        ("style", "if True:\n    import seqvae.cli.app as c", "2: style may not import seqvae.cli.app"),
        ("codec", "from .midi import read", "1: relative import"),
        ("train", "from seqvae import load", "1: train may not import from seqvae itself"),
        ("cli", "from seqvae import drawer", "1: seqvae.drawer has no place in the house"),
        ("sampling", "import seqvae.nn.model", "1: sampling may not import seqvae.nn.model"),
        (
            "codec",
            "import os, symusic",
            "1: codec may not import symusic: only abc, bars, midi, notation, sound, track_events may",
        ),
        ("objective", "import numpy as np", "1: objective may not import numpy"),
        ("plot", "from torch.utils.tensorboard import SummaryWriter", "1: plot may not import torch"),
        ("midi", "import torch.nn", "1: midi may not import torch"),
        ("midi", "import partitura", "1: partitura has no owner"),
        ("model", "\n" * 501, "501: more than 500 lines"),
        ("drawer", "", "1: drawer has no place in the house: add it to the table"),
        ("recipes/music", "", "1: only studio/ is a folder of modules"),
        ("studio/server", "import symusic", "1: studio may not import symusic"),
    ],
)
def test_a_breach_is_found(module: str, source: str, complaint: str) -> None:
    found = violations(Path(f"seqvae/{module}.py"), source)
    assert len(found) == 1
    assert found[0].startswith(f"seqvae/{module}.py:{complaint}")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("midi", "import json\nimport symusic\nfrom seqvae.errors import ReadError"),
        (
            "model",
            "from seqvae.nn.decoder import Decoder\nfrom seqvae.nn import sampling\nimport torch.nn.functional as F",
        ),
        (
            "codec",
            "from seqvae.checkpoint.folder import load\nfrom seqvae.music.piece import read\nfrom seqvae.nn.model import Model",
        ),
        ("train", "from torch.utils.tensorboard import SummaryWriter"),
        ("studio/server", "import fastapi\nfrom seqvae.studio.page import page\nfrom seqvae import load"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert violations(Path(f"seqvae/{module}.py"), source) == []


@pytest.mark.parametrize("module", ["seqvae", "seqvae.config", "seqvae.cli.app"])
def test_importing_it_is_quick(module: str) -> None:
    if not (ROOT / module.replace(".", "/")).with_suffix(".py").exists() and module != "seqvae":
        pytest.skip(f"{module} is not there yet")
    code = f"import sys, {module}; print(*sorted({{'torch', 'music21'}} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
