"""The command line, as a user meets it: what is written, what is printed, and what is said when something is wrong."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import music21
import numpy as np
import pretty_midi
import pytest
import torch
from symusic.core import ScoreTick

from seqvae import checkpoint, codec, evaluate, midi, released, style, train
from seqvae.cli import app, main
from seqvae.config import ModelConfig, Recipe
from seqvae.tokenizer import MidiTokenizer

VERBS = [
    ["blend"], ["generate"], ["interpolate"], ["reconstruct"], ["encode"], ["decode"], ["train"], ["evaluate"],
    ["models"], ["style", "fit"], ["style", "list"], ["style", "show"],
]  # fmt: skip


@dataclass(frozen=True)
class Result:
    exit_code: int
    stdout: str
    stderr: str


def seqvae(*args: object) -> Result:
    """The command, in this process: bugs come through as exceptions."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    assert isinstance(ended.value.code, int | None)
    return Result(ended.value.code or 0, out.getvalue(), err.getvalue())


def done(*args: object) -> list[str]:
    """The command's lines of output, when it has to work."""
    result = seqvae(*args)
    assert result.exit_code == 0, result.stderr
    return result.stdout.splitlines()


def told(result: Result, code: int = 1) -> str:
    """The one line that a command says when it fails."""
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("seqvae: ")
    return line


def shell(*args: object, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own."""
    command = [sys.executable, "-m", "seqvae", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)


def song(path: Path, number: int = 0, bars: int = 4) -> Path:
    """A MIDI file with a tune, a bass and drums."""
    rows = []
    for at in range(0, 48 * bars, 12):
        tune = 60 + (number * at // 12 + number) % 12
        rows += [[at, 12, tune, 0, 70], [at, 6, 36 + number % 12, 33, 80], [at + 6, 1, 38, midi.DRUMS, 90]]
    frame = midi.make_frame(([(0, 400_000)], [(0, 4, 4)], []))
    return midi.write(midi.to_score(np.array(rows, np.int32), frame), path)


def files(folder: Path) -> list[str]:
    """Every file below a folder, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that has learned nothing, with two styles."""
    torch.manual_seed(0)
    tokenizer, recipe = MidiTokenizer(), Recipe(name="tiny", model=ModelConfig(latent=16, width=32, hidden=16))
    kept = checkpoint.Checkpoint(recipe, checkpoint.build(recipe.model, tokenizer), tokenizer)
    untaught = codec.from_checkpoint(kept)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    songs = [song(folder.parent / f"{i}.mid", i) for i in range(6)]
    styles = {"calm": songs[:3], "wild": songs[3:], "all": songs}
    fitted = {name: untaught.fit_style(pieces, f"{name} songs") for name, pieces in styles.items()}
    kept.styles, kept.about_styles = style.pack(fitted)
    checkpoint.save(kept, folder)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in an empty folder, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_command_has_an_example_that_its_own_options_understand(verb: list[str]) -> None:
    text = seqvae(*verb, "--help").stdout
    [example] = [line.strip() for line in text.partition("Example:\n")[2].splitlines()]
    assert example.startswith(" ".join(["seqvae", *verb]))
    for word in example.split():
        if word.startswith("-"):
            assert word in text.partition("Example:")[0]


def test_no_command_is_left_out_here() -> None:
    def names(group: Any) -> set[str]:
        return {command.name for command in group.registered_commands}

    [styles] = app.registered_groups
    assert {(name,) for name in names(app)} | {("style", name) for name in names(styles.typer_instance)} == {
        tuple(verb) for verb in VERBS
    }


@pytest.mark.parametrize("verb", ["--help", "--version", "models"])
def test_what_needs_no_model_answers_at_once(verb: str) -> None:
    times = []
    for _ in range(5):
        started = time.perf_counter()
        shell(verb)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.6  # 0.3 s on an idle machine


def test_models_and_help_import_neither_torch_nor_numpy_nor_rich() -> None:
    code = (
        "import sys; from seqvae.cli import app\n"
        "for verb in ['--help'], ['blend', '--help'], ['models']: app(verb, standalone_mode=False)\n"
        "print('heavy:', *sorted({'torch', 'numpy', 'symusic', 'music21', 'rich', 'tqdm'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1].split() == ["heavy:"]


# --- blend ------------------------------------------------------------------------------------------------------------


def test_a_blend_is_a_file_that_everyone_reads(model: Path, here: Path) -> None:
    assert done("blend", song(here / "a.mid"), "-m", model, "--from", "calm", "--to", "wild", "-o", "b.mid") == [
        "b.mid"
    ]
    assert files(here) == ["a.mid", "b.mid"]
    assert ScoreTick.from_file("b.mid").note_num() > 0
    assert pretty_midi.PrettyMIDI("b.mid").get_tempo_changes()[1][0] == pytest.approx(150)
    assert len(music21.converter.parse(here / "b.mid").recurse().notes) > 0


def test_the_corpus_and_scores_are_pieces_too(model: Path, here: Path) -> None:
    assert done("blend", "corpus:bach/bwv66.6", "-m", model, "--to", "wild") == ["bwv66.6-wild.mid"]
    (here / "jig.abc").write_text("X:1\nT:Jig\nM:4/4\nL:1/4\nK:C\nCDEF|GABc|\n")
    assert done("blend", "jig.abc", "-m", model, "--to", "wild", "-o", "out/") == ["out/jig.mid"]


def test_one_note_is_a_piece(model: Path, here: Path) -> None:
    frame = midi.make_frame(([], [], []))
    midi.write(midi.to_score(np.array([[0, 12, 60, 0, 80]], np.int32), frame), here / "one.mid")
    for verb in (["blend", "--to", "wild"], ["reconstruct"]):
        done(*verb, "one.mid", "-m", model, "-o", "out.mid")
        assert midi.read(here / "out.mid").notes.size or verb[0] == "reconstruct"


@pytest.mark.parametrize("amount", ["0", "-1", "2.5", "1e300"])
def test_any_finite_amount_gives_a_valid_file(model: Path, here: Path, amount: str) -> None:
    done("blend", song(here / "a.mid"), "-m", model, "--to", "wild", "--amount", amount, "-o", "b.mid")
    assert ScoreTick.from_file("b.mid").ticks_per_quarter == midi.TICKS_PER_BEAT


def test_transport_moves_otherwise_than_the_mean(model: Path, here: Path) -> None:
    blend = ["blend", song(here / "a.mid"), "-m", model, "--from", "calm", "--to", "wild", "--amount", 3]
    done(*blend, "-o", "mean.mid")
    done(*blend, "-o", "transport.mid", "--method", "transport")
    assert Path("mean.mid").read_bytes() != Path("transport.mid").read_bytes()


def test_a_folder_keeps_its_subfolders_stems_and_order(model: Path, here: Path) -> None:
    for i, name in enumerate(["z.mid", "a.midi", "sub/z.mid", "sub/.hidden.mid"]):
        song(here / "in" / name, i)
    (here / "in" / "notes.txt").write_text("no music")
    lines = done("blend", "in", "-m", model, "--to", "wild", "-o", "out")
    assert lines == ["out/a.mid", "out/sub/z.mid", "out/z.mid"]
    assert files(here / "out") == ["a.mid", "sub/z.mid", "z.mid"]
    done("blend", "in/sub/z.mid", "-m", model, "--to", "wild", "-o", "alone.mid")
    assert Path("alone.mid").read_bytes() == Path("out/sub/z.mid").read_bytes()


def test_outputs_inside_the_folder_are_no_inputs_the_next_time(model: Path, here: Path) -> None:
    song(here / "in" / "a.mid")
    for _ in range(2):
        assert done("reconstruct", "in", "-m", model, "-o", "in/out") == ["in/out/a.mid"]
    assert files(here / "in") == ["a.mid", "out/a.mid"]


def test_a_folder_goes_on_past_what_it_cannot_read(model: Path, here: Path) -> None:
    song(here / "in" / "b.mid")
    (here / "in" / "a.mid").write_bytes(b"not MIDI")
    (here / "in" / "c.mid").touch()
    result = seqvae("blend", "in", "-m", model, "--to", "wild", "-o", "out")
    assert (result.exit_code, result.stdout) == (0, "out/b.mid\n")
    not_midi, empty, count = result.stderr.splitlines()
    assert not_midi.startswith("skipped: cannot read in/a.mid: it is not a MIDI file")
    assert empty.startswith("skipped: cannot read in/c.mid: the file is empty")
    assert count == "2 of 3 files skipped"


def test_a_folder_with_nothing_readable_is_an_error(model: Path, here: Path) -> None:
    (here / "in").mkdir()
    assert "no music in it" in told(seqvae("reconstruct", "in", "-m", model, "-o", "out"))
    (here / "in" / "a.mid").write_bytes(b"not MIDI")
    result = seqvae("reconstruct", "in", "-m", model, "-o", "out")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "seqvae: none of 1 files could be read; see the reasons above"
    assert not (here / "out").exists()


def test_json_tells_what_was_done(model: Path, here: Path) -> None:
    song(here / "in" / "a.mid", bars=5)
    song(here / "in" / "é.mid")
    lines = done("blend", "in", "-m", model, "--to", "wild", "--amount", 0.25, "-o", "out", "--json")
    assert [json.loads(line) for line in lines] == [
        {"input": f"in/{n}.mid", "output": f"out/{n}.mid", "segments": s, "from": None, "to": "wild", "amount": 0.25}
        for n, s in (("a", 3), ("é", 2))
    ]


def test_the_seed_decides(model: Path, here: Path) -> None:
    blend = ["blend", song(here / "a.mid"), "-m", model, "--to", "wild", "--temperature", 1, "--seed"]
    for seed, name in ((1, "x"), (1, "y"), (2, "z")):
        done(*blend, seed, "-o", f"{name}.mid")
    x, y, z = (Path(f"{name}.mid").read_bytes() for name in "xyz")
    assert x == y != z


# --- the other verbs --------------------------------------------------------------------------------------------------


def test_generate_repeats_itself_and_any_piece_by_its_seed(model: Path) -> None:
    first = done(
        "generate", "-m", model, "--style", "wild", "-n", 3, "--segments", 2, "--seed", 5, "-o", "one", "--json"
    )
    assert [Path(json.loads(line)["output"]).name for line in first] == ["wild-1.mid", "wild-2.mid", "wild-3.mid"]
    done("generate", "-m", model, "--style", "wild", "-n", 2, "--segments", 2, "--seed", 5, "-o", "two/")
    pieces = [Path(json.loads(line)["output"]).read_bytes() for line in first]
    assert [Path(f"two/wild-{i}.mid").read_bytes() for i in (1, 2)] == pieces[:2]
    assert len(set(pieces)) == 3
    seed = json.loads(first[2])["seed"]
    done("generate", "-m", model, "--style", "wild", "--segments", 2, "--seed", seed, "-o", "third.mid")
    assert Path("third.mid").read_bytes() == pieces[2]


def test_generate_without_a_style_and_with_narrow_choices(model: Path, here: Path) -> None:
    assert done("generate", "-m", model, "--top-k", 1, "--top-p", 0.5, "--temperature", 2) == ["tiny-1.mid"]
    assert midi.read(here / "tiny-1.mid").notes.size


@pytest.mark.parametrize("kind", ["slerp", "line"])
def test_interpolate_numbers_its_steps_from_one_piece_to_the_other(model: Path, here: Path, kind: str) -> None:
    a, b = song(here / "a.mid", 1), song(here / "b.mid", 2)
    lines = done("interpolate", a, b, "-m", model, "--steps", 3, "--kind", kind, "-o", "out", "--json")
    assert [json.loads(line) for line in lines] == [
        {"output": f"out/0{i}.mid", "from": str(a), "to": str(b), "amount": i / 2} for i in range(3)
    ]
    done("reconstruct", a, "-m", model, "-o", "again.mid")
    assert Path("out/00.mid").read_bytes() == Path("again.mid").read_bytes()


def test_encode_then_decode_is_reconstruct(model: Path, here: Path) -> None:
    a = song(here / "in" / "a.mid", bars=5)
    song(here / "in" / "sub" / "b.mid", 3)
    lines = done("encode", "in", "-m", model, "-o", "new/latents.safetensors", "--json")
    assert [json.loads(line) for line in lines] == [
        {"input": "in/a.mid", "name": "a", "segments": 3, "output": "new/latents.safetensors"},
        {"input": "in/sub/b.mid", "name": "sub/b", "segments": 2, "output": "new/latents.safetensors"},
    ]
    tensors, about = checkpoint.load_tensors(Path("new/latents.safetensors"))
    assert {name: tuple(z.shape) for name, z in tensors.items()} == {"a": (3, 16), "sub/b": (2, 16)}
    assert (about["model"], about["kind"]) == (str(model), "midi")
    assert done("decode", "new/latents.safetensors", "-m", model, "-o", "out") == ["out/a.mid", "out/sub/b.mid"]

    done("encode", a, "-m", model, "-o", "a.safetensors")
    done("decode", "a.safetensors", "-m", model, "--like", a, "-o", "decoded.mid")
    done("reconstruct", a, "-m", model, "-o", "again.mid")
    assert Path("decoded.mid").read_bytes() == Path("again.mid").read_bytes()


def test_decode_writes_nowhere_but_where_it_is_told(model: Path, here: Path) -> None:
    checkpoint.save_tensors({"../../evil": torch.zeros(1, 16)}, {}, here / "evil.safetensors")
    assert "not named as pieces" in told(seqvae("decode", "evil.safetensors", "-m", model, "-o", "out"))
    checkpoint.save_tensors({"a": torch.zeros(2, 5)}, {}, here / "other.safetensors")
    assert "encode with the same model" in told(seqvae("decode", "other.safetensors", "-m", model, "-o", "out"))
    checkpoint.save_tensors({"a": torch.zeros(9, 16)}, {}, here / "long.safetensors")
    short = seqvae("decode", "long.safetensors", "-m", model, "-o", "out", "--like", song(here / "a.mid"))
    assert "'a' has 9 segments" in told(short)
    assert "cannot be read" in told(seqvae("decode", "a.mid", "-m", model, "-o", "out"))


def test_a_style_of_ones_own(model: Path, here: Path) -> None:
    for i in range(3):
        song(here / "mine" / f"{i}.mid", i)
    (here / "mine" / "bad.mid").touch()
    one = song(here / "one.mid", 7)
    fit = seqvae("style", "fit", "mine=mine", f"other={one}", f"mine={one}", "-m", model, "-o", "my.styles", "--json")
    assert fit.exit_code == 0, fit.stderr
    assert [(row["style"], row["count"]) for row in map(json.loads, fit.stdout.splitlines())] == [
        ("mine", 4),
        ("other", 1),
    ]
    assert fit.stderr.splitlines()[-1] == "1 of 5 files skipped"
    listed = [json.loads(line) for line in done("style", "list", "-m", model, "--styles", "my.styles", "--json")]
    assert [(row["style"], row["count"]) for row in listed] == [("calm", 3), ("mine", 4), ("other", 1), ("wild", 3)]
    assert [line.split() for line in done("style", "list", "-m", model)] == [
        ["style", "count", "source"], ["calm", "3", "calm", "songs"], ["wild", "3", "wild", "songs"],
    ]  # fmt: skip
    done("blend", one, "-m", model, "--styles", "my.styles", "--from", "other", "--to", "mine", "-o", "b.mid")
    done("generate", "-m", model, "--styles", "my.styles", "--style", "mine", "-o", "g.mid")


def test_a_style_is_described_by_its_place(model: Path) -> None:
    [line] = done("style", "show", "calm", "-m", model, "--json")
    shown = json.loads(line)
    styles = codec.load(model).styles
    assert (shown["style"], shown["count"], shown["source"]) == ("calm", 3, "calm songs")
    assert shown["distances"] == {"wild": pytest.approx(float((styles["calm"].mean - styles["wild"].mean).norm()))}
    assert shown["spread"] > 0
    text = "\n".join(done("style", "show", "calm", "-m", model))
    assert "3 pieces" in text
    assert "mean of wild" in text


def test_models_reads_headers_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released, "released_folder", lambda: model.parent)
    [line] = done("models", "--json")
    shown = json.loads(line)
    assert (shown["name"], shown["kind"], shown["styles"]) == ("tiny", "midi", ["calm", "wild"])
    assert shown["megabytes"] > 0
    assert done("models")[1].split()[:2] == ["tiny", "midi"]


def test_models_without_any_says_what_to_do(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released, "released_folder", lambda: here)
    assert "seqvae train" in told(seqvae("models"))
    (here / "broken").mkdir()
    (here / "broken" / "config.json").write_text("{")
    assert "broken checkpoint" in told(seqvae("models"))


def test_evaluate_prints_the_table_or_the_figures(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(_: object, data: Path, *, pieces: int, seed: int, report: Callable[[str], None]) -> dict[str, Any]:
        report("listening")
        return {"data": str(data), "pieces": pieces, "seed": seed}

    monkeypatch.setattr(evaluate, "evaluate", fake)
    monkeypatch.setattr(evaluate, "table", lambda result: f"| {result['pieces']} |")
    result = seqvae("evaluate", "-m", model, "--data", "songs", "--pieces", 3)
    assert (result.stdout, result.stderr) == ("| 3 |\n", "listening\n")
    [line] = done("evaluate", "-m", model, "--data", "songs", "--seed", 4, "--json")
    assert json.loads(line) == {"data": "songs", "pieces": 20, "seed": 4}


def test_train_from_recipe_to_a_checkpoint_that_blends(here: Path) -> None:
    for i in range(40):
        song(here / "songs" / ("calm", "wild")[i % 2] / f"song{i}.mid", i)
    (here / "songs" / "calm" / "bad.mid").touch()
    settings = ["model.latent=16", "model.width=32", "model.hidden=16", "train.batch_tokens=512"]
    settings += ["train.evaluate_every=2", "train.save_every=2"]
    run = ["train", "music", "--data", "songs", "--out", "run", *(f"--set={s}" for s in settings)]
    result = seqvae(*run, "--set=train.steps=2", "--seed", 3)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "run/best\n"
    assert "skipped: cannot read songs/calm/bad.mid: the file is empty" in result.stderr
    assert json.loads(Path("run/best/config.json").read_text())["recipe"]["train"]["seed"] == 3
    assert "--resume" in told_last(seqvae(*run, "--set=train.steps=4"))
    assert seqvae(*run, "--set=train.steps=4", "--seed", 3, "--resume").exit_code == 0
    done("blend", "songs/calm/song0.mid", "-m", "run/best", "--from", "calm", "--to", "wild", "-o", "b.mid")


def told_last(result: Result) -> str:
    """The last line of a command that fails after it has reported."""
    assert result.exit_code == 1
    line = result.stderr.splitlines()[-1]
    assert line.startswith("seqvae: ")
    return line


def test_an_interrupted_training_says_how_to_go_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_from", interrupted)
    line = told(seqvae("train", "music", "--data", "my songs", "--out", "run", "--set", "model.latent=8"), 130)
    assert "`seqvae train music '--data=my songs' --out=run --set=model.latent=8 --resume`" in line


# --- what is wrong, in one line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["blend", "text.mid", "--to", "wild"], "cannot read text.mid: it is not a MIDI file; give a MIDI file"),
        (["blend", "empty.mid", "--to", "wild"], "cannot read empty.mid: the file is empty"),
        (["blend", "silent.mid", "--to", "wild"], "cannot read silent.mid: there is not a single note in it"),
        (["blend", "long.mid", "--to", "wild"], "cannot read long.mid: it lasts 10.0 hours, and 5 is the most"),
        (["blend", "gone.mid", "--to", "wild"], "cannot read gone.mid: there is no such file or folder; check"),
        (["blend", "a.mid", "gone.mid", "--to", "wild", "-o", "out"], "cannot read gone.mid: there is no such file"),
        (["blend", "song.wav", "--to", "wild"], "cannot read song.wav: '.wav' is not a kind of music file"),
        (["blend", "corpus:bach/none", "--to", "wild"], "music21's corpus has no such work"),
        (["blend", "a.mid", "--to", "rokc"], "no style 'rokc' in"),
        (["blend", "a.mid", "--from", "rokc", "--to", "wild"], "there are: calm, wild"),
        (["blend", "a.mid", "--to", "wild", "-m", "gone"], "gone: no such checkpoint; name a folder"),
        (["blend", "a.mid", "--to", "wild", "-m", "."], "no checkpoint here (config.json is missing)"),
        (["blend", "a.mid", "--to", "wild", "-m", "nobody/nothing"], "not to be had from the Hub"),
        (["blend", "a.mid", "--to", "wild", "-o", "a.mid"], "a.mid: is an input and would be overwritten"),
        (["reconstruct", "twins/1/a.mid", "twins/2/a.mid", "-o", "out"], "both outputs would be called 'a'"),
        (["reconstruct", "a.mid", "-o", "a.mid/b.mid"], "cannot write a.mid/b.mid: "),
        (["reconstruct", "a.mid", "-o", "/dev/full"], "cannot write /dev/full: no space left on device"),
        (["encode", "a.mid", "-o", "/dev/full"], "/dev/full: is there and is no file"),
        (["encode", "a.mid", "-o", "a.mid/z.safetensors"], "a.mid: file exists"),
        (["generate", "--style", "rokc"], "no style 'rokc'"),
        (["interpolate", "a.mid", "twins", "-o", "out"], "cannot read twins: it is a folder; name a file in it"),
        (["style", "show", "rokc"], "no style 'rokc'"),
        (["style", "list", "--styles", "a.mid"], "a.mid: cannot be read as safetensors"),
        (["style", "fit", "x=empty.mid", "-o", "my.styles"], "cannot read empty.mid: the file is empty"),
        (["train", "polka", "--data", "twins", "--out", "run"], "polka: no such recipe; name a .toml file"),
        (["train", "music", "--data", "twins", "--out", "run", "--set", "a.b=1"], "unknown setting 'a'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(bad: Path, model: Path, args: list[str], line: str) -> None:
    before = files(bad)
    chosen = [] if "-m" in args or args[0] == "train" else ["-m", str(model)]
    assert line in told(seqvae(*args, *chosen))
    assert files(bad) == before


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["blend", "a.mid", "--to", "wild", "--amount", "abc"], "'--amount': Input should be a valid number"),
        (["blend", "a.mid", "--to", "wild", "--amount", "nan"], "nan is no amount"),
        (["blend", "a.mid", "--to", "wild", "--amount", "-inf"], "-inf is no amount"),
        (["blend", "a.mid", "--to", "wild", "--temperature", "-1"], "--temperature"),
        (["blend", "a.mid", "--to", "wild", "--temperature", "nan"], "--temperature"),
        (["blend", "a.mid", "--to", "wild", "--seed", "-1"], "--seed"),
        (["blend", "a.mid"], "missing option '--to'"),
        (["blend", "--to", "wild"], "missing argument 'INPUT'"),
        (["blend", "a.mid", "--to", "wild", "--method", "magic"], "is not one of 'mean', 'transport'"),
        (["blend", "a.mid", "--to", "wild", "--method", "transport"], "add --from"),
        (["blend", "twins", "--to", "wild"], "need -o FOLDER"),
        (["blend", "twins", "--to", "wild", "-o", "out.mid"], "several outputs need a folder"),
        (["blend", "a.mid", "--to", "wild", "-o", "out.wav"], "music is written as .mid or .midi"),
        (["blend", "a.mid", "--to", "wild", "-o", "song.wav"], "music is written as .mid or .midi"),
        (["generate", "-n", "0"], "--count"),
        (["generate", "--top-p", "0"], "--top-p"),
        (["generate", "-n", "2", "-o", "out.mid"], "several outputs need a folder"),
        (["interpolate", "a.mid", "a.mid", "--steps", "1", "-o", "out"], "--steps"),
        (["style", "fit", "twins", "-o", "my.styles"], "write NAME=PATH"),
        (["style", "fit", "all=twins", "-o", "my.styles"], "any NAME but all"),
        (["blnd"], "blend"),
    ],
)  # fmt: skip
def test_wrong_usage_exits_2_before_any_model_is_read(bad: Path, args: list[str], word: str) -> None:
    before = files(bad)
    assert word in told(seqvae(*args), 2)
    assert files(bad) == before


@pytest.mark.parametrize("group", [[], ["style"]])
def test_no_arguments_at_all_is_a_call_for_help(group: list[str]) -> None:
    result = seqvae(*group)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == seqvae(*group, "--help").stdout


@pytest.fixture
def bad(here: Path) -> Path:
    """A folder with one song and many things that are none."""
    song(here / "a.mid")
    song(here / "twins" / "1" / "a.mid")
    song(here / "twins" / "2" / "a.mid")
    (here / "text.mid").write_text("la la la")
    (here / "empty.mid").touch()
    (here / "song.wav").write_bytes(b"RIFF")
    midi.write(ScoreTick(480), here / "silent.mid")
    slow = midi.make_frame(([(0, 15_000_000)], [], []))
    rows = np.array([[12 * (4 * 600 - 1), 12, 60, 0, 80]], np.int32)
    midi.write(midi.to_score(rows, slow), here / "long.mid")
    return here


def test_a_full_disk_leaves_no_half_written_file(model: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        song(here / "in" / f"{name}.mid")
    write, room = Path.write_bytes, iter([True, False])

    def fill(path: Path, content: Any) -> int:
        if "out" not in path.parts or next(room):
            return write(path, content)
        write(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", fill)
    result = seqvae("reconstruct", "in", "-m", model, "-o", "out")
    assert (result.exit_code, result.stdout) == (1, "out/a.mid\n")
    assert result.stderr.startswith("seqvae: cannot write out/b.mid: no space left on device; ")
    assert result.stderr.count("\n") == 1
    assert files(here / "out") == ["a.mid"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write in a read-only folder")
def test_a_read_only_folder_is_one_line(model: Path, here: Path) -> None:
    (here / "locked").mkdir(mode=0o555)
    line = told(seqvae("reconstruct", song(here / "a.mid"), "-m", model, "-o", "locked/b.mid"))
    assert "cannot write locked/b.mid: permission denied" in line


def test_any_other_failure_of_the_system_is_one_line(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> Iterator[None]:
        raise OSError(errno.EIO, "Input/output error", "/mnt/x")

    monkeypatch.setattr(codec, "load", fail)
    assert told(seqvae("style", "list", "-m", model)).startswith("seqvae: /mnt/x: input/output error; ")


# --- as a process -----------------------------------------------------------------------------------------------------


def test_a_process_prints_no_traceback_and_knows_its_exit_codes(model: Path, here: Path) -> None:
    name = os.fsdecode(b"a\xff.mid")  # no valid UTF-8, as names from old systems are
    song(here / name)
    good = shell("blend", name, "-m", model, "--to", "wild", "-o", "out/", cwd=here, errors="surrogateescape")
    assert (good.returncode, good.stdout, good.stderr) == (0, f"out/{name}\n", "")
    wrong = shell("blend", name, "-m", model, "--to", "wild", "--amount", "abc", cwd=here)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "Traceback" not in wrong.stderr


def test_a_reader_that_leaves_hears_no_complaint(model: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "seqvae", "style", "list", "-m", str(model)]
    ran = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (ran.returncode, ran.stderr) == (141, b"")


def test_output_to_a_full_disk_is_one_line(model: Path) -> None:
    command = [sys.executable, "-m", "seqvae", "style", "list", "-m", str(model)]
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert "no space left on device" in ran.stderr
