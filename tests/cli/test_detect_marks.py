"""Marks of surprising tokens in the output of `detect score`, for sessions, sentences and songs."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from commands import done, error_line, last_error_line, seqvae, song
from conftest import SENTENCES
from verdicts import HELD_OUT, STRANGE, fitted, lowest, marks, rows, text_file

from seqvae.cli import marks as shown_marks
from seqvae.cli.app import main
from seqvae.music.tokenizer import MidiTokenizer

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory, tiny_events: Path) -> Path:
    return fitted(tmp_path_factory.mktemp("detect"), tiny_events)


def test_brackets_mark_the_five_least_likely_tokens(detector: Path) -> None:
    for line in [*HELD_OUT[:8], STRANGE[0], ""]:
        [row] = rows(line, "--detector", detector)
        [shown] = done("detect", "score", line, "--detector", detector)
        assert marks(shown) == lowest(row)
        tokens = shown.split()[2:]
        assert ("<eos>" in shown) is ("<eos>" in lowest(row)), "an unsurprising end is left out"
        assert [token.strip("[]") for token in tokens if "eos" not in token] == line.split()


def test_an_unknown_event_is_shown_verbatim(detector: Path) -> None:
    [shown] = done("detect", "score", "open melt \x1b[31m check close", "--detector", detector)
    assert "[melt]" in shown
    assert "[\\x1b[31m]" in shown, "a log does not paint the terminal"
    assert [token["token"] for token in rows("open melt", "--detector", detector)[0]["tokens"]][1] == "<unk>"


def test_only_the_context_of_the_marks_of_a_long_piece_is_shown(detector: Path) -> None:
    middle = ["open", *["read", "check"] * 40, *["sync"] * 5, *["read", "check"] * 40, "close"]
    [row] = rows(" ".join(middle), "--detector", detector)
    [shown] = done("detect", "score", " ".join(middle), "--detector", detector)
    assert marks(shown) == lowest(row)
    parts = [part.split() for part in shown.split("  ")[-1].strip().split("…")]
    assert len(parts) > 1
    spelled = " " + " ".join([*middle, "<eos>"]) + " "
    for part in parts:
        assert len(part) <= 5 * (2 * shown_marks.AROUND + 1)
        assert not part or f" {' '.join(part).replace('[', '').replace(']', '')} " in spelled
    assert sum(map(len, parts)) <= 5 * (2 * shown_marks.AROUND + 1)


@pytest.mark.parametrize(
    ("terminal", "variables", "coloured"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "xterm", "NO_COLOR": ""}, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {"TERM": "xterm"}, False),
    ],
)
def test_marks_are_red_on_a_terminal_with_colours(
    detector: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool, variables: dict[str, str], coloured: bool
) -> None:
    class Output(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with redirect_stdout(Output()) as output, pytest.raises(SystemExit):
        main(["detect", "score", HELD_OUT[0], "--detector", str(detector)])
    [plain] = done("detect", "score", HELD_OUT[0], "--detector", detector)
    painted = re.sub(r"\[([^]]*)\]", "\x1b[1;31m\\1\x1b[0m", plain)
    assert output.getvalue() == (painted if coloured else plain) + "\n"


@pytest.fixture(scope="module")
def of_text(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path) -> Path:
    made = tmp_path_factory.mktemp("text") / "d"
    normal = text_file(made.parent / "in.txt", SENTENCES[:30])
    done("detect", "fit", f"@{normal}", "-m", tiny_text, "-o", made, "--p-value", 0.1, "--samples", 2)
    return made


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        *((line, line) for line in SENTENCES[:3]),
        ("the  food (was) odd", "the  food (was) odd"),
        (" naïve ☃", " naïve ☃"),
        ("a\tb\x0bc\u2028d\\n", "a\\tb\\x0bc\\u2028d\\n"),
        ("x\ny", "x\\ny"),
    ],
)
def test_tokens_of_a_sentence_read_as_the_sentence(of_text: Path, line: str, expected: str) -> None:
    [shown] = done("detect", "score", line, "--detector", of_text)
    assert re.sub(r"[][]", "", shown[21:].replace(" [<eos>]", "")) == expected
    assert 1 <= len(marks(shown)) <= 5


def test_the_least_likely_words_are_marked_and_characters_stay_whole(of_text: Path) -> None:
    [row] = rows(SENTENCES[0], "--detector", of_text)
    [shown] = done("detect", "score", SENTENCES[0], "--detector", of_text)
    assert marks(shown) == [token.strip() for token in lowest(row)]
    assert "".join(token["token"] for token in row["tokens"]) == f" {SENTENCES[0]}<eos>"
    [row] = rows("the food ☃", "--detector", of_text)
    assert [token["token"] for token in row["tokens"]][-5:] == [" ", "<0xE2>", "<0x98>", "<0x83>", "<eos>"]
    [shown] = done("detect", "score", "the food ☃", "--detector", of_text)
    assert shown.endswith("food [☃] [<eos>]"), "the model's space character is not shown"


def test_a_long_sentence_has_a_gap_between_words(of_text: Path) -> None:
    [shown] = done("detect", "score", " ".join(SENTENCES[:8]), "--detector", of_text)
    assert "…" in shown
    assert shown[21:].count("[") == 5


def test_music_is_scored_file_by_file_and_unreadable_files_are_skipped(tiny_music: Path, here: Path) -> None:
    for i in range(7):
        song(here / "in" / f"{i}.mid", i, bars=2 + i % 3)
    (here / "in" / "bad.mid").write_text("no music")
    result = seqvae("detect", "fit", "in", "-m", tiny_music, "-o", "d", "--contamination", 0.3, "--samples", 2)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (0, "1 of 8 files skipped"), result.stderr
    assert result.stdout.startswith("7 normal songs, ")
    result = seqvae("detect", "score", "in", "--detector", "d", "--json")
    scored = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["index"], row["input"]) for row in scored] == [(i, f"in/{i}.mid") for i in range(7)]
    assert "skipped: cannot read in/bad.mid" in result.stderr
    assert scored[0]["tokens"][0]["token"] == "Program_0"
    [shown] = done("detect", "score", "in/2.mid", "--detector", "d")
    start, _, tokens = shown.partition(" in/2.mid: ")
    assert start.split()[1] in ("normal", "anomalous")
    assert len(marks(tokens)) == 5
    bar, marked = 1, []
    for token in tokens.split():
        if token.endswith(":"):
            bar = int(token[:-1])
        elif token.startswith("["):
            marked.append((bar, token[1:-1]))
    tokens_ = scored[2]["tokens"]
    order = sorted(range(len(tokens_)), key=lambda i: tokens_[i]["log_prob"])[:5]
    bars = [1 + sum(token["token"] == "<eos>" for token in tokens_[:i]) for i in range(len(tokens_))]
    assert marked == [(bars[i], tokens_[i]["token"]) for i in sorted(order)]
    assert "cannot read in/bad.mid" in error_line(seqvae("detect", "score", "in/bad.mid", "--detector", "d"))
    assert "none of 1 files could be read" in last_error_line(
        seqvae("detect", "score", bad_folder(here), "--detector", "d")
    )


def bad_folder(here: Path) -> Path:
    (here / "bad").mkdir()
    (here / "bad" / "one.mid").write_text("no music")
    return Path("bad")


def test_tokens_of_music_have_names(tokenizer: MidiTokenizer) -> None:
    assert [tokenizer.token_text(i) for i in range(4)] == ["<pad>", "<bos>", "<eos>", "<mask>"]
    for name in ("Program_33", "Position_12", "Pitch_60", "PitchDrum_38"):
        assert tokenizer.token_text(tokenizer.vocabulary[name]) == name
