"""The commands on sentences: one output line for each input line, whatever its content and source."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import done, error_line, files, seqvae, song
from conftest import SENTENCES, SESSIONS

from seqvae import codec
from seqvae.checkpoint import folder as checkpoint
from seqvae.cli import inputs
from seqvae.codec import Codec
from seqvae.evaluation import style_effect as effect

pytestmark = pytest.mark.usefixtures("here")

ODD = ["", "the food was good", "  ", "a\u2028b\x0bc\x85d", "\t", "naïve ☃ 食べ物", "the bar is new " * 20, "", "x"]
Reconstructed = Callable[[list[str]], list[str]]


@pytest.fixture
def reconstructed(tiny_text: Path) -> Reconstructed:
    """Reconstructions of lines one by one by the model, without the command."""
    loaded = codec.load(tiny_text)
    return lambda lines: [loaded.reconstruct(line) if line.strip() else "" for line in lines]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | bytes], None]:
    """Put text on standard input."""

    def put(text: str | bytes) -> None:
        content = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return put


def text_file(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


# --- lines in, lines out ----------------------------------------------------------------------------------------------


def test_each_input_line_gives_one_output_line_whatever_it_contains(
    tiny_text: Path, here: Path, reconstructed: Reconstructed
) -> None:
    text_file(here / "in.txt", ODD)
    lines = done("reconstruct", "@in.txt", "-m", tiny_text)
    assert lines == reconstructed(ODD)
    assert [i for i, line in enumerate(lines) if not line] == [i for i, line in enumerate(ODD) if not line.strip()]


def test_learned_sentences_are_reconstructed_and_translated(tiny_text: Path, here: Path) -> None:
    text_file(here / "in.txt", SENTENCES)
    assert done("reconstruct", "@in.txt", "-m", tiny_text) == SENTENCES
    better = done("blend", "@in.txt", "-m", tiny_text, "--from", "bad", "--to", "good", "--amount", 1.5)
    bad = [new for old, new in zip(SENTENCES, better, strict=True) if " bad " in old]
    assert sum(" good " in line for line in bad) > len(bad) / 2


def test_until_moves_each_line_as_far_as_it_needs(tiny_text: Path, here: Path) -> None:
    lines = [*SENTENCES, "", SENTENCES[0]]
    text_file(here / "in.txt", lines)
    command = ["blend", "@in.txt", "-m", tiny_text, "--from", "bad", "--to", "good", "--until", 0.6]
    rows = [json.loads(line) for line in done(*command, "--json")]
    assert [row["output"] for row in rows] == done(*command)
    assert [row["input"] for row in rows] == lines
    stayed = [row["output"] == row["input"] for row in rows]
    assert all(same for same, line in zip(stayed, lines, strict=True) if " bad " not in line)
    amounts = {row["amount"] for row, same in zip(rows, stayed, strict=True) if not same}
    assert len(amounts) > 1 and all(0 < amount <= 2.5 for amount in amounts)
    near = [json.loads(line) for line in done(*command, "--amount", 0.1, "--json")]
    assert max(row["amount"] for row in near) <= 0.1


def test_lines_below_until_are_counted_on_standard_error(tiny_text: Path, here: Path) -> None:
    bad = [line for line in SENTENCES if " bad " in line][:3]
    text_file(here / "in.txt", bad)
    result = seqvae("blend", "@in.txt", "-m", tiny_text, "--from", "bad", "--to", "good", "--until", 0.9999999)
    assert len(result.stdout.splitlines()) == 3
    assert result.stderr.startswith("3 of 3 lines stay below --until 1; each is the candidate with the highest")


def test_text_without_a_named_model_uses_the_text_model(
    tiny_text: Path, here: Path, reconstructed: Reconstructed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "TEXT", str(tiny_text))
    lines = ["the food was good", "the bar is new"]
    text_file(here / "in.txt", lines)
    for given in ([lines[0]], ["@in.txt"]):
        result = seqvae("reconstruct", *given)
        assert result.stdout.splitlines() == reconstructed(lines[: 2 if given[0] == "@in.txt" else 1])
        assert result.stderr.splitlines()[0] == f"text without -m: taken by the model {tiny_text}"
    assert done("style", "fit", "a=@in.txt", "-o", "my.styles") == ["a: 2 sentences, in my.styles"]
    (here / "my songs").mkdir()
    for music in ("song.mid", "my song.mid", "corpus:bach/bwv66.6", "my songs"):
        assert inputs.chosen(None, [music])[0] == "music"
        assert inputs.chosen("reviews", [music])[0] == "reviews"


def test_music_is_refused_by_a_text_model(tiny_text: Path, here: Path) -> None:
    song(here / "a.mid")
    assert "a.mid: is a file of music" in error_line(seqvae("reconstruct", "a.mid", "-m", tiny_text), 2)
    assert "cannot read a.mid: it is not text but music" in error_line(seqvae("reconstruct", "@a.mid", "-m", tiny_text))
    assert "not text but music" in error_line(seqvae("style", "fit", "a=a.mid", "-m", tiny_text, "-o", "my.styles"))


def test_a_file_given_without_its_sign_is_taken_as_text_with_a_note(tiny_text: Path, here: Path) -> None:
    (here / "a.txt").write_text("the food was good\n")
    result = seqvae("reconstruct", "a.txt", "-m", tiny_text)
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 1
    assert "'a.txt' is taken as the text itself; to read the file of that name, write @a.txt" in result.stderr


def test_sentences_files_and_standard_input_can_be_mixed(
    tiny_text: Path, here: Path, reconstructed: Reconstructed, typed: Callable[[str], None]
) -> None:
    text_file(here / "in.txt", ["from a file", "and more"])
    typed("from a pipe\nno end")
    lines = done("reconstruct", "a sentence", "@in.txt", "-", "the last one", "-m", tiny_text)
    assert lines == reconstructed(["a sentence", "from a file", "and more", "from a pipe", "no end", "the last one"])


def test_standard_input_is_read_without_arguments(
    tiny_text: Path, reconstructed: Reconstructed, typed: Callable[[str | bytes], None]
) -> None:
    typed("\ufefffirst\r\n\r\nthird\n")
    assert done("reconstruct", "-m", tiny_text) == reconstructed(["first", "", "third"])
    typed(b"not \xff UTF-8\n")
    assert done("reconstruct", "-m", tiny_text) == reconstructed(["not \ufffd UTF-8"])
    typed("")
    assert done("reconstruct", "-m", tiny_text) == []


def test_more_lines_than_fit_into_a_batch_keep_their_order(
    tiny_text: Path, here: Path, reconstructed: Reconstructed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqvae.cli.text_io.BATCH", 7)
    text_file(here / "in.txt", SENTENCES[:20])
    assert done("reconstruct", "@in.txt", "-m", tiny_text) == reconstructed(SENTENCES[:20])


def test_samples_do_not_depend_on_the_batches(tiny_text: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text_file(here / "in.txt", ["", ODD[5], *["the food was good"] * 8, ODD[6], "x"])
    blend = ["blend", "@in.txt", "-m", tiny_text, "--to", "good", "--temperature", 3, "--exact", "--seed"]
    whole = done(*blend, 5)
    assert whole != done(*blend, 6)
    assert len(set(whole[2:10])) > 4, "each line has independent samples"
    monkeypatch.setattr("seqvae.cli.text_io.BATCH", 3)
    assert done(*blend, 5) == whole


def test_json_has_an_object_for_each_line(tiny_text: Path, here: Path, reconstructed: Reconstructed) -> None:
    text_file(here / "in.txt", ["the food", ""])
    rows = [json.loads(line) for line in done("reconstruct", "@in.txt", "é", "-m", tiny_text, "--json")]
    first, last = reconstructed(["the food", "é"])
    assert [(row["index"], row["input"], row["output"]) for row in rows] == [
        (0, "the food", first), (1, "", ""), (2, "é", last)
    ]  # fmt: skip
    [row] = map(json.loads, done("blend", "x", "-m", tiny_text, "--from", "bad", "--to", "good", "--json"))
    assert (row["from"], row["to"], row["amount"]) == ("bad", "good", 0.5)


# --- as a process -----------------------------------------------------------------------------------------------------


@pytest.fixture
def running(tiny_text: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`seqvae reconstruct` with a pipe as standard input."""
    command = [sys.executable, "-m", "seqvae", "reconstruct", "-m", str(tiny_text)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        # a shell that runs the tests in the background makes them and their children ignore interrupts
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        yield process
        process.kill()


def test_each_line_is_processed_before_the_next_is_written(
    running: subprocess.Popen[bytes], reconstructed: Reconstructed
) -> None:
    assert running.stdin
    assert running.stdout
    answers = io.BufferedReader(running.stdout)  # type: ignore[type-var]  # a raw file, with bufsize=0
    for line in ("the food was good", "", "naïve"):
        for part in (line[:5], f"{line[5:]}\n"):  # a line may arrive in parts
            running.stdin.write(part.encode())
        assert answers.readline().decode() == f"{reconstructed([line])[0]}\n"
    running.stdin.write(b"one\ntwo\nno end")
    running.stdin.close()
    assert answers.read().decode() == "".join(f"{line}\n" for line in reconstructed(["one", "two", "no end"]))
    assert running.wait() == 0


def test_an_interrupt_ends_it_in_one_line(running: subprocess.Popen[bytes]) -> None:
    assert running.stdin
    assert running.stdout
    assert running.stderr
    running.stdin.write(b"the food\n")
    assert running.stdout.read(1)  # the command is running
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130
    assert running.stderr.read() == b"seqvae: interrupted\n"


def test_a_closed_output_pipe_is_not_an_error(running: subprocess.Popen[bytes]) -> None:
    assert running.stdin
    assert running.stdout
    assert running.stderr
    running.stdout.close()
    running.stdin.write(b"the food\n")
    assert running.wait() == 141
    assert running.stderr.read() == b""


def test_the_output_is_utf8_whatever_the_locale(tiny_text: Path, here: Path) -> None:
    command = [sys.executable, "-m", "seqvae", "interpolate", "食べ物", "☃", "-m", str(tiny_text), "--steps", "2"]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    ran = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert ran.stdout.decode().split("\n")[:-1] == ["食べ物", "☃"]


# --- into a file ------------------------------------------------------------------------------------------------------


def test_the_output_file_appears_when_all_lines_are_done(
    tiny_text: Path, here: Path, reconstructed: Reconstructed
) -> None:
    text_file(here / "in.txt", ODD)
    assert done("reconstruct", "@in.txt", "-m", tiny_text, "-o", "new/out.txt") == []
    assert Path("new/out.txt").read_bytes().decode() == "".join(f"{line}\n" for line in reconstructed(ODD))
    Path("link.txt").symlink_to("new/out.txt")
    done("generate", "-m", tiny_text, "-n", 2, "-o", "link.txt")
    assert Path("link.txt").is_symlink()
    assert Path("new/out.txt").read_text().count("\n") == 2
    assert files(here) == ["in.txt", "link.txt", "new/out.txt"]


def test_an_interrupted_command_leaves_the_old_file(
    tiny_text: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text_file(here / "in.txt", SENTENCES)
    (here / "out.txt").write_text("old")
    monkeypatch.setattr("seqvae.cli.text_io.BATCH", 7)
    whole = Codec.transform

    def stops(self: Codec, pieces: list[str], *args: Any, **named: Any) -> list[str]:
        if pieces[0] != SENTENCES[0]:
            raise KeyboardInterrupt
        return whole(self, pieces, *args, **named)

    monkeypatch.setattr(Codec, "transform", stops)
    assert "interrupted" in error_line(seqvae("reconstruct", "@in.txt", "-m", tiny_text, "-o", "out.txt"), 130)
    assert (here / "out.txt").read_text() == "old"
    assert files(here) == ["in.txt", "out.txt"]
    result = seqvae("reconstruct", "@in.txt", "-m", tiny_text)
    assert len(result.stdout.splitlines()) >= 7, "finished lines are printed"


# --- the other verbs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", ["0", "-1", "2.5"])
def test_several_moves_add_up(tiny_text: Path, amount: str) -> None:
    loaded, line = codec.load(tiny_text), SENTENCES[0]
    two = ["--from", "bad", "--to", "good", "--from", "past", "--to", "present"]
    [out] = done("blend", line, "-m", tiny_text, *two, "--amount", amount)
    style, [z] = loaded.styles, loaded.encode([line])
    moved = z + float(amount) * sum(style[b].mean - style[a].mean for a, b in (("bad", "good"), ("past", "present")))
    assert out == loaded.decode([moved])[0]


def test_generate_prints_sentences_for_a_style_and_a_seed(tiny_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqvae.cli.text_io.BATCH", 4)
    generate = ["generate", "-m", tiny_text, "--exact", "--style", "good", "--seed", 3]
    ten = done(*generate, "-n", 10)
    assert len(ten) == 10
    assert len(set(ten)) > 3
    assert sum(" good " in line for line in ten) > 5
    assert done(*generate, "-n", 8) == ten[:8]
    assert done(*generate[:-1], 4, "-n", 10) != ten
    rows = [json.loads(line) for line in done(*generate, "-n", 10, "--json")]
    assert [(row["index"], row["output"]) for row in rows] == list(enumerate(ten))
    assert done(*generate[:-1], rows[4]["seed"], "-n", 4) == ten[4:8]
    assert len(done("generate", "-m", tiny_text, "--top-k", 2, "--top-p", 0.5, "--temperature", 2)) == 1


@pytest.mark.parametrize("kind", [[], ["--kind", "slerp"], ["--kind", "line"]])
def test_interpolation_ends_in_the_sentences_it_was_given(tiny_text: Path, here: Path, kind: list[str]) -> None:
    a, b = SENTENCES[0], SENTENCES[-1]
    text_file(here / "end.txt", [b])
    walk = ["interpolate", a, "@end.txt", "-m", tiny_text, "--steps", 5, *kind]
    result = seqvae(*walk)
    lines = result.stdout.split("\n")[:-1]
    assert (result.exit_code, len(lines), lines[0], lines[-1], result.stderr) == (0, 5, a, b, "")
    assert done(*walk, "-o", "out.txt", "--json") == []
    assert [json.loads(line) for line in Path("out.txt").read_text().splitlines()] == [
        {"index": i, "output": line, "from": a, "to": "@end.txt", "amount": i / 4} for i, line in enumerate(lines)
    ]


def test_a_grid_of_sentences_is_printed_row_by_row(tiny_text: Path) -> None:
    corners = [SENTENCES[i] for i in (0, 11, 24, 35)]
    result = seqvae("interpolate", *corners, "-m", tiny_text, "--grid", 4)
    lines = result.stdout.split("\n")[:-1]
    assert (result.exit_code, len(lines), result.stderr) == (0, 16, "")
    assert [lines[i] for i in (0, 3, 12, 15)] == corners


def test_the_effect_of_a_style_vector_on_sentences_is_measured(
    tiny_text: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effect, "is_test_piece", lambda line: "room" in line)
    for name in ("good", "bad"):
        text_file(here / f"{name}.txt", [line for line in SENTENCES if name in line.split()])
    lines = done("style", "effect", "good=@good.txt", "bad=@bad.txt", "-m", tiny_text, "--amount", 2, "--json")
    for one in map(json.loads, lines):
        assert (one["songs"], one["amount"], list(one["kept"])) == (8, 2.0, ["bleu"])
        assert one["before"][0] < 0.5 < one["after"][0]
        # with only two styles about half of the random vectors point to the other
        assert one["control"][0] < one["after"][0]
        assert one["p"] < 0.1
        assert one["kept_of_another"].keys() == one["kept_of_none"].keys() == {"bleu"}
    assert not done("style", "show", "good", "-m", tiny_text, "--json")[0].count("bleu"), "kept without --keep"


def test_interpolation_names_the_end_it_cannot_reconstruct(tiny_text: Path, reconstructed: Reconstructed) -> None:
    walk = ["interpolate", SENTENCES[0], "who knows", "-m", tiny_text, "--steps", 4]
    [other] = reconstructed(["who knows"])
    assert seqvae(*walk, "--kind", "slerp").stdout.split("\n")[3] == other
    result = seqvae(*walk)
    assert (result.exit_code, result.stdout.split("\n")[3]) == (0, "who knows")
    assert f"line 2 'who knows' comes back as '{other}" in result.stderr


def test_interpolation_of_sessions_names_an_end_that_is_decoded_as_another(tiny_events: Path) -> None:
    result = seqvae("interpolate", SESSIONS[0], "never seen at all", "-m", tiny_events, "--steps", 3)
    lines = result.stdout.splitlines()
    assert result.exit_code == 0 and lines[2] != "never seen at all"
    assert f"'never seen at all' is decoded as '{lines[2]}'" in result.stderr.splitlines()


def test_empty_input_encodes_and_decodes_to_nothing(tiny_text: Path, here: Path, typed: Callable[[str], None]) -> None:
    for text in ("", "\n\n"):
        typed(text)
        done("encode", "-m", tiny_text, "-o", "z.safetensors")
        assert done("decode", "z.safetensors", "-m", tiny_text) == [""] * len(text)


def test_a_style_can_be_fitted_and_used(tiny_text: Path, here: Path) -> None:
    text_file(here / "room.txt", ["", *(line for line in SENTENCES if "room" in line)])
    text_file(here / "staff" / "a.txt", [line for line in SENTENCES if "staff" in line])
    fit = ["style", "fit", "room=@room.txt", "staff=staff", "-m", tiny_text, "-o", "my.styles", "--json"]
    assert [(row["style"], row["count"]) for row in map(json.loads, done(*fit))] == [("room", 24), ("staff", 24)]
    mine = ["-m", tiny_text, "--styles", "my.styles"]
    listed = [json.loads(line)["style"] for line in done("style", "list", *mine, "--json")]
    assert listed == ["bad", "good", "past", "present", "room", "staff"]
    both = ["--from", "bad", "--to", "good", "--from", "room", "--to", "staff"]
    assert len(done("blend", SENTENCES[0], *mine, *both, "--amount", 2)) == 1
    assert len(done("generate", *mine, "--style", "room", "-n", 3)) == 3
    shown = "\n".join(done("style", "show", "room", *mine))
    assert "room: 24 sentences from @room.txt" in shown
    assert "from the mean of staff: " in shown


def test_a_style_shows_its_distance_to_the_others(tiny_text: Path) -> None:
    [line] = done("style", "show", "good", "-m", tiny_text, "--json")
    apart = json.loads(line)["separation"]
    assert set(apart) == {"bad", "past", "present"}
    assert all(0.5 <= share <= 1 for share in apart.values())
    assert apart["bad"] > max(apart["past"], apart["present"]), "good and bad share no sentence, good and past do"
    assert "% of segments can be distinguished" in done("style", "show", "good", "-m", tiny_text)[-1]


def test_styles_can_be_written_into_the_model_folder(tiny_text: Path, here: Path) -> None:
    shutil.copytree(tiny_text, here / "model")
    text_file(here / "room.txt", [line for line in SENTENCES if "room" in line])
    before = done("generate", "-m", here / "model", "-n", 3)
    done("style", "fit", "room=@room.txt", "-m", here / "model", "--add")
    listed = [json.loads(line)["style"] for line in done("style", "list", "-m", here / "model", "--json")]
    assert listed == ["bad", "good", "past", "present", "room"]
    assert done("generate", "-m", here / "model", "-n", 3) == before, "everything else is unchanged"


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["blend", "a", "--to", "rokc"], "no style 'rokc' in"),
        (["blend", "@gone.txt", "--to", "good"], "cannot read gone.txt: "),
        (["reconstruct", "@sub"], "cannot read sub: it is a folder"),
        (["reconstruct", "@in.txt", "-o", "in.txt"], "in.txt: is an input and would be overwritten"),
        (["reconstruct", "a", "-o", "in.txt/b.txt"], "cannot write in.txt/b.txt: "),
        (["reconstruct", "a", "-o", "/dev/full"], "cannot write /dev/full: no space left on device"),
        (["encode", "@gone.txt", "-o", "z"], "cannot read gone.txt: "),
        (["decode", "music.safetensors"], "holds midi, and "),
        (["decode", "wide.safetensors"], "encode with the same model"),
        (["decode", "short.safetensors"], "z and segments do not match"),
        (["decode", "in.txt"], "cannot be read as safetensors"),
        (["style", "fit", "x=@gone.txt", "-o", "my.styles"], "cannot read gone.txt: "),
        (["style", "fit", "x=blank.txt", "-o", "my.styles"], "a style needs at least one piece"),
        (["style", "fit", "x=empty", "-o", "my.styles"], "cannot read empty: there is no file in it"),
    ],
)
def test_bad_input_is_a_one_line_error_and_leaves_no_files(
    bad: Path, tiny_text: Path, args: list[str], line: str
) -> None:
    before = files(bad)
    assert line in error_line(seqvae(*args, "-m", tiny_text))
    assert files(bad) == before


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["blend", "a"], "missing option '--to'"),
        (["blend", "a", "--to", "good", "--method", "transport"], "add --from"),
        (["blend", "a", "--to", "good", "--method", "discriminant"], "add --from"),
        (["blend", "a", "--to", "good", "--to", "bad", "--to", "past", *["--from", "past"] * 2], "do not fit together"),
        (["blend", "a", "--to", "good", "--amount", "1", "--amount", "2"], "do not fit together"),
        (["blend", "a", "--to", "good", "--until", "0.9"], "--until compares two styles: add --from"),
        (["blend", "a", "--to", "good", "--from", "bad", "--until", "1"], "--until"),
        (["blend", "a", "--to", "good", "--weight", "style=1"], "add --until 0.9"),
        (["blend", "a", "--to", "good", "--from", "bad", "--until", ".9", "--weight", "x=1"], "write NAME=NUMBER"),
        (["blend", "a", "--to", "good", "--from", "bad", "--until", ".9", "--temperature", "1"], "--temperature 1: "),
        (["reconstruct", "a", "-o", "sub"], "is a folder; lines go into one file"),
        (["reconstruct", "a", "-o", "new/"], "is a folder; lines go into one file"),
        (["interpolate", "@in.txt", "b"], "@in.txt: holds several lines"),
        (["interpolate", "@blank.txt", "b", "--steps", "1"], "--steps"),
        (["interpolate", "b"], "missing argument 'B'"),
        (["blend", "b", "--to", "good", "--keep", "melody"], "--keep melody: text has no tracks"),
        (["style", "fit", "@in.txt", "--attribute", "drums", "-o", "x"], "--attribute drums: is for music"),
        (["decode", "wide.safetensors", "--like", "a.mid"], "--like a.mid: is for music"),
        (["style", "fit", "in.txt", "-o", "my.styles"], "write NAME=PATH"),
    ],
)
def test_wrong_usage_exits_2_before_the_model_is_loaded(
    bad: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], word: str
) -> None:
    monkeypatch.setattr(codec, "load", None)
    before = files(bad)
    assert word in error_line(seqvae(*args, "-m", tiny_text), 2)
    assert files(bad) == before


@pytest.fixture
def bad(here: Path) -> Path:
    """A folder with files of lines, and with latents that fit no text model."""
    text_file(here / "in.txt", ["one", "two"])
    text_file(here / "blank.txt", ["", " "])
    text_file(here / "sub" / "in.txt", ["one"])
    (here / "empty").mkdir()
    for name, tensors, about in (
        ("music", {"a": torch.zeros(1, 8)}, {"kind": "midi"}),
        ("wide", {"z": torch.zeros(2, 9), "segments": torch.ones(2)[:, None].int()[:, 0]}, {}),
        ("short", {"z": torch.zeros(2, 8), "segments": torch.ones(3).int()}, {}),
    ):
        checkpoint.save_tensors(tensors, about, here / f"{name}.safetensors")
    return here


def test_a_terminal_without_an_argument_is_wrong_usage(tiny_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stdin in (Terminal(), None):
        monkeypatch.setattr(sys, "stdin", stdin)
        assert "missing argument 'INPUT'" in error_line(seqvae("reconstruct", "-m", tiny_text), 2)
