"""The commands for training models: train, tokenizer, evaluate, models."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import done, error_line, files, last_error_line, seqvae, song
from conftest import SENTENCES

from seqvae.checkpoint import hub as released
from seqvae.config import load_recipe
from seqvae.data import prepare as shards
from seqvae.errors import SeqVAEError
from seqvae.evaluation import arrangement as evaluate_arrangement
from seqvae.evaluation import arrangement_report, music_report, published, text_report
from seqvae.evaluation import music as evaluate
from seqvae.evaluation import text as evaluate_text
from seqvae.train import loop as train

pytestmark = pytest.mark.usefixtures("here")


def test_models_reads_only_headers(tiny_music: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released, "released_folder", lambda: tiny_music.parent)
    [line] = done("models", "--json")
    shown = json.loads(line)
    assert (shown["name"], shown["kind"], shown["styles"]) == ("tiny", "midi", ["calm", "wild"])
    assert shown["megabytes"] > 0
    assert done("models")[1].split()[:2] == ["tiny", "midi"]


def test_models_without_checkpoints_says_how_to_train_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released, "released_folder", lambda: here)
    assert "seqvae train" in error_line(seqvae("models"))
    (here / "broken").mkdir()
    (here / "broken" / "config.json").write_text("{")
    assert "broken checkpoint" in error_line(seqvae("models"))


def test_evaluate_prints_a_table_or_json(tiny_music: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(_: object, data: Path, *, report: Callable[[str], None], **settings: int) -> dict[str, Any]:
        report("listening")
        return {"data": str(data), **settings}

    monkeypatch.setattr(evaluate, "evaluate", fake)
    monkeypatch.setattr(music_report, "table", lambda result: f"| {result['pieces']} |")
    result = seqvae("evaluate", "-m", tiny_music, "--data", "songs", "--pieces", 3)
    assert (result.stdout, result.stderr) == ("| 3 |\n", "listening\n")
    [line] = done("evaluate", "-m", tiny_music, "--data", "songs", "--seed", 4, "--json")
    assert json.loads(line) == {"data": "songs", "pieces": 20, "samples": 200, "seed": 4, "split": "final"}
    [line] = done("evaluate", "-m", tiny_music, "--data", "songs", "--split", "choose", "--json")
    assert json.loads(line)["split"] == "choose"
    assert "give one folder" in error_line(seqvae("evaluate", "-m", tiny_music, "--data", "a", "--data", "b"), 2)


def test_evaluate_measures_arrangements(tiny_music: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(_: object, data: Path, *, report: Callable[[str], None], **settings: Any) -> dict[str, Any]:
        return {"data": str(data), **settings}

    monkeypatch.setattr(evaluate_arrangement, "evaluate", fake)
    monkeypatch.setattr(arrangement_report, "table", lambda result: f"| {result['songs']} |")
    command = ["evaluate", "-m", tiny_music, "--data", "songs", "--arrangement"]
    assert seqvae(*command).stdout == "| 16 |\n"
    [line] = done(*command, "--pairs", "a/b", "--pairs", "b/c", "--pieces", 3, "--split", "choose", "--json")
    pairs = [["a", "b"], ["b", "c"]]
    assert json.loads(line) == {"data": "songs", "songs": 3, "pairs": pairs, "half": "choose", "seed": 0}
    monkeypatch.setattr(evaluate_arrangement, "pairs_of", lambda _, every: [("x", "y")] * every)
    [line] = done(*command, "--pairs", "all", "--json")
    assert json.loads(line)["pairs"] == [["x", "y"]]
    assert "write two styles as A/B" in error_line(seqvae(*command, "--pairs", "a/b/c"), 2)


def test_a_recipe_for_text_refuses_music(here: Path) -> None:
    song(here / "songs" / "a.mid")
    line = error_line(seqvae("train", "reviews", "--data", "songs", "--out", "run"))
    assert "cannot read songs/a.mid: it is not text but music; give files in UTF-8" in line
    assert "music" in error_line(seqvae("tokenizer", "train", "--data", "songs", "-o", "tokens"))
    assert not (here / "run" / "data").exists()


@pytest.mark.parametrize("recipe", ["reviews", "logs-short"])
def test_a_recipe_for_lines_refuses_a_table_and_explains_how_to_extract_lines(here: Path, recipe: str) -> None:
    (here / "my logs").mkdir()
    rows = 'Time;Content\n1;Receiving block\n2;"Sent;  block"\n'
    (here / "my logs" / "log.csv").write_text(rows, encoding="utf-8-sig")
    line = error_line(seqvae("train", recipe, "--data", "my logs", "--out", "run"))
    assert line.startswith(
        "seqvae: cannot read my logs/log.csv: it is a table (Time, Content), not one sentence a line"
    )
    assert "for column 'Content': " in line
    command = line.partition("'Content': ")[2].replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(command, shell=True, cwd=here / "my logs", check=True)
    assert (here / "my logs" / "lines.txt").read_text() == "Receiving block\nSent; block\n"


def test_a_recipe_for_music_refuses_text(here: Path) -> None:
    (here / "lines").mkdir()
    (here / "lines" / "good.txt").write_text("a good place\n")
    line = error_line(seqvae("train", "music", "--data", "lines", "--out", "run"))
    assert "cannot read lines: it holds no music (files passed over: 1, not music by their suffix (1 .txt))" in line
    assert "sentences and logs are for models of text" in line
    assert files(here) == ["lines/good.txt"]


def test_fine_tuning_on_a_few_songs_is_one_short_command(here: Path, tiny_music: Path) -> None:
    for i in range(5):
        song(here / "mine" / f"song{i}.mid", i)
    settings = ["--set=model.latent=16", "--set=model.width=32", "--set=model.hidden=16"]
    result = seqvae("train", "music", "--data", "mine/", "--start", tiny_music, "--minutes", 0.02, *settings)
    assert (result.exit_code, result.stdout) == (0, "runs/music/best\n"), result.stderr
    used = json.loads(Path("runs/music/best/config.json").read_text())["recipe"]["train"]["learning_rate"]
    assert used == pytest.approx(0.15 * load_recipe("music").train.learning_rate)
    assert done("blend", "mine/song0.mid", "-m", "runs/music/best", "--to", "mine") == ["song0-mine.mid"]


def test_training_from_a_recipe_gives_a_checkpoint_that_blends(here: Path) -> None:
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
    assert "only 40 songs: `seqvae style fit" in result.stderr
    assert json.loads(Path("run/best/config.json").read_text())["recipe"]["train"]["seed"] == 3
    assert "--resume" in last_error_line(seqvae(*run, "--set=train.steps=4"))
    assert seqvae(*run, "--set=train.steps=4", "--seed", 3, "--resume").exit_code == 0
    done("blend", "songs/calm/song0.mid", "-m", "run/best", "--from", "calm", "--to", "wild", "-o", "b.mid")


def test_interrupted_training_explains_how_to_resume(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_from", interrupted)
    run = ["train", "music", "--data", "my songs", "--out", "run", "--set", "model.latent=8"]
    line = error_line(seqvae(*run), 130)
    assert "`seqvae train music '--data=my songs' --out=run --set=model.latent=8 --resume`" in line
    assert "--out=run --tokenizer=mine --set=" in error_line(seqvae(*run, "--tokenizer", "mine"), 130)


# --- text -------------------------------------------------------------------------------------------------------------


def text_file(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_a_vocabulary_is_learned_and_shown(here: Path, algorithm: str) -> None:
    text_file(here / "a.txt", [*SENTENCES, ""])
    text_file(here / "more" / "b.txt", SENTENCES[:3])
    learn = ["tokenizer", "train", "--data", "@a.txt", "--data", "more", "--vocab-size", 290, "-o", "new/mine"]
    learn += ["--algorithm", algorithm]
    [line] = done(*learn, "--json")
    tokens = json.loads(line)["tokens"]
    assert 261 < tokens <= 290
    assert json.loads(line) == {"lines": len(SENTENCES) + 3, "tokens": tokens, "output": "new/mine"}
    assert [path.name for path in sorted(Path("new/mine").iterdir())] == ["sentencepiece.model", "tokenizer.json"]
    assert done(*learn) == [f"{tokens} tokens from {len(SENTENCES) + 3} lines, in new/mine"], "it may be learned again"
    [shown] = done("tokenizer", "encode", "the food ☃", "-t", "new/mine")
    assert shown.replace(" ", "").replace("\u2581", " ") == " the food <0xE2><0x98><0x83>"
    [line] = done("tokenizer", "encode", "the food ☃", "-t", "new/mine", "--json")
    assert [len(json.loads(line)[key]) for key in ("tokens", "ids")] == [len(shown.split())] * 2


def test_a_vocabulary_is_learned_from_lines_that_fit_into_memory(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shortest = min(map(len, SENTENCES))
    text_file(here / "a.txt", SENTENCES * 50)
    monkeypatch.setattr(shards, "LEARNED", 10_000)  # bytes; a line takes 50 beside its letters
    [line] = done("tokenizer", "train", "--data", "a.txt", "--vocab-size", 290, "-o", "mine", "--json")
    assert 20 < json.loads(line)["lines"] <= 10_000 // (shortest + 50)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["train", "--data", "gone.txt", "-o", "new"], "cannot read gone.txt: "),
        (["train", "--data", "blank.txt", "-o", "new"], "there are no lines to learn a vocabulary from"),
        (["train", "--data", "a.txt", "--vocab-size", "100", "-o", "new"], "choose more"),
        (["train", "--data", "a.txt", "-o", "."], ".: exists and is not the folder of a tokenizer"),
        (["train", "--data", "a.txt", "-o", "a.txt"], "a.txt: exists and is not the folder of a tokenizer"),
        (["encode", "a", "-t", "gone"], "no tokenizer can be read here"),
    ],
)
def test_an_impossible_vocabulary_size_is_a_one_line_error(here: Path, args: list[str], line: str) -> None:
    text_file(here / "a.txt", SENTENCES[:2])
    text_file(here / "blank.txt", ["", " "])
    assert line in error_line(seqvae("tokenizer", *args))
    assert files(here) == ["a.txt", "blank.txt"]


def test_tokens_of_a_checkpoint_are_shown_too(tiny_text: Path, tiny_music: Path) -> None:
    assert done("tokenizer", "encode", "the food", "-t", tiny_text) == ["\u2581the \u2581food"]
    assert "a tokenizer of midi, not of sentences" in error_line(
        seqvae("tokenizer", "encode", "the food", "-t", tiny_music)
    )


def test_train_on_files_of_sentences(here: Path) -> None:
    for name in ("good", "bad"):
        text_file(here / "in" / f"{name}.txt", [line for line in SENTENCES if f" {name} " in line])
    done("tokenizer", "train", "--data", "in", "--vocab-size", 300, "-o", "mine")
    settings = ["tokenizer.kind=text", "model.chunks=1", "model.latent=8", "model.width=16", "model.hidden=16"]
    settings += ["train.batch_tokens=256", "train.evaluate_every=2", "train.save_every=2", "train.steps=2"]
    run = ["train", "music", "--tokenizer", "mine", "--out", "run", *(f"--set={s}" for s in settings)]
    result = seqvae(*run, "--data", "in/good.txt", "--data", "in/bad.txt")
    assert (result.exit_code, result.stdout) == (0, "run/best\n"), result.stderr
    assert Path("run/best/tokenizer/sentencepiece.model").read_bytes() == Path("mine/sentencepiece.model").read_bytes()
    assert [json.loads(line)["style"] for line in done("style", "list", "-m", "run/best", "--json")] == ["bad", "good"]


def test_evaluate_reads_styles_from_file_names(tiny_text: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def fake(_: object, lines: list[str], *, report: Callable[[str], None], **rest: Any) -> dict[str, Any]:
        report("measuring")
        given.clear()
        given.update(rest, lines=lines)
        return {"lines": len(lines)}

    monkeypatch.setattr(evaluate_text, "evaluate_text", fake)
    monkeypatch.setattr(text_report, "table", lambda result: f"| {result['lines']} |")
    for name in ("test.good", "test.bad", "train.good", "train.bad", "plain"):
        text_file(here / name, [name, "", f"more of {name}"])
    sets = ["--data", "good=@test.good", "--data", "bad=test.bad", "--train", "good=@train.good"]
    evaluate_ = ["evaluate", "-m", tiny_text, *sets, "--train", "bad=@train.bad"]
    result = seqvae(*evaluate_)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "| 4 |\n", "measuring\n")
    assert given == {
        "lines": ["test.good", "more of test.good", "test.bad", "more of test.bad"],
        "styles": {"good": ["test.good", "more of test.good"], "bad": ["test.bad", "more of test.bad"]},
        "train": {"good": ["train.good", "more of train.good"], "bad": ["train.bad", "more of train.bad"]},
        "corpus": None, "opposites": None, "seed": 0, "samples": 500, "iw_lines": 500, "transfer_lines": 1000,
    }  # fmt: skip
    more = ["--data", "@plain", "--train", "plain", "--pairs", "good/bad", "--samples", 3, "--iw-lines", 0]
    [line] = done(*evaluate_, *more, "--pieces", 5, "--json")
    assert json.loads(line) == {"lines": 2}
    assert (given["lines"], given["corpus"]) == (["plain", "more of plain"], ["plain", "more of plain"])
    assert list(given["styles"]) == list(given["train"]) == ["good", "bad"]
    assert (given["opposites"], given["samples"], given["iw_lines"], given["transfer_lines"]) == (
        [("good", "bad")], 3, None, 5,
    )  # fmt: skip
    assert "write two styles as A/B" in error_line(seqvae(*evaluate_, "--pairs", "good"), 2)
    assert "cannot read gone" in error_line(seqvae(*evaluate_, "--data", "@gone"))


def test_evaluate_measures_the_sets_of_a_folder(tiny_text: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(_: object, folder: Path, *, report: Callable[[str], None], **rest: Any) -> dict[str, Any]:
        return {"folder": str(folder), **rest}

    monkeypatch.setattr(published, "evaluate", fake)
    monkeypatch.setattr(text_report, "table", str)
    (here / "sets").mkdir()
    [line] = done("evaluate", "-m", tiny_text, "--data", "sets", "--pieces", 9, "--pairs", "a/b", "--json")
    assert json.loads(line) == {
        "folder": "sets", "lines": 9, "samples": 500, "iw_lines": 500, "pairs": [["a", "b"]], "seed": 0,
    }  # fmt: skip
    more = ("--train", "@gone")
    assert "which is in the folder" in error_line(seqvae("evaluate", "-m", tiny_text, "--data", "sets", *more), 2)


def test_evaluate_measures_sentences(tiny_text: Path, here: Path) -> None:
    text_file(here / "test.txt", SENTENCES[::7])
    [line] = done("evaluate", "-m", tiny_text, "--data", "@test.txt", "--samples", 4, "--json")
    assert json.loads(line)["reconstruction"]["encoder's mean"]["exact"][0] == 1
    assert "importance weighting" in "\n".join(done("evaluate", "-m", tiny_text, "--data", "@test.txt", "--samples", 4))


def test_arrangement_evaluation_refuses_sentences(tiny_text: Path, here: Path) -> None:
    text_file(here / "test.txt", SENTENCES[::7])
    line = error_line(seqvae("evaluate", "-m", tiny_text, "--data", "@test.txt", "--arrangement"), 2)
    assert "--arrangement: is for music" in line


def test_a_missing_extra_is_a_one_line_error(tiny_text: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from seqvae.evaluation import text as evaluate_text

    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")

    monkeypatch.setattr(evaluate_text, "evaluate_text", missing)
    (here / "a.txt").write_text("the food was good\n")
    result = seqvae("evaluate", "-m", tiny_text, "--data", "@a.txt")
    assert "pip install 'seqvae[eval]'" in error_line(result, 1)


def everything(folder: Path) -> list[str]:
    """Every file and folder below this one, empty ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("recipe", ["music", "reviews", "hdfs"])
@pytest.mark.parametrize("out", ["deep/er/run", "empty", "used"])
def test_training_on_unreadable_input_leaves_the_old_files(here: Path, recipe: str, out: str) -> None:
    (here / "data").mkdir()
    (here / "data" / ("a.mid" if recipe == "music" else "a.txt")).touch()
    (here / "empty").mkdir()
    (here / "used").mkdir()
    (here / "used" / "notes.txt").write_text("mine")
    before = everything(here)
    last_error_line(seqvae("train", recipe, "--data", "data", "--out", out))
    assert everything(here) == before


def test_the_lock_of_a_run_is_removed_at_its_end_and_a_removed_lock_is_not_held(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    with train._alone(here):
        assert files(here) == ["lock"]
    assert files(here) == []
    take = fcntl.flock

    def late(file: Any, how: int) -> None:
        (here / "lock").unlink()  # the holder has ended between our opening and our locking
        take(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(SeqVAEError, match="another process trains here"), train._alone(here):
        pass


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (["tokenizer.steps_per_beat=6", "tokenizer.max_steps=24"], "unknown setting 'steps_per_beat'"),
        (["tokenizer.max_steps=24"], "choose a multiple of 12 from 48 to 384"),
        (["tokenizer.max_steps=1200"], "choose a multiple of 12 from 48 to 384"),
    ],
)
def test_an_invalid_grid_is_a_one_line_error(here: Path, changes: list[str], word: str) -> None:
    song(here / "songs" / "a.mid")
    line = error_line(seqvae("train", "music", "--data", "songs", "--out", "run", *(f"--set={one}" for one in changes)))
    assert word in line
