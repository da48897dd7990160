"""Notices on lines that a model of sentences does not represent well, and the limit on their length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from commands import done, error_line, seqvae, song
from conftest import SENTENCES

from seqvae import load
from seqvae.cli import notices
from seqvae.style import sentences

pytestmark = pytest.mark.usefixtures("here")
KNOWN, STRANGE = SENTENCES[0], "我们都喜欢这道菜"
COMMANDS = {
    "reconstruct": ["reconstruct"],
    "blend": ["blend", "--from", "bad", "--to", "good"],
    "encode": ["encode", "-o", "z.safetensors"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_line_of_another_script_is_noticed(name: str, tiny_text: Path) -> None:
    result = seqvae(*COMMANDS[name], "-m", tiny_text, KNOWN, STRANGE)
    assert result.exit_code == 0
    [line] = result.stderr.splitlines()
    assert line.startswith(f"1 of 2 lines are not represented well: line 2 '{STRANGE}' is mostly of characters outside")


@pytest.mark.parametrize("name", COMMANDS)
def test_known_lines_and_blank_ones_give_no_notice(name: str, tiny_text: Path) -> None:
    result = seqvae(*COMMANDS[name], "-m", tiny_text, KNOWN, "", "--strict")
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_line_that_comes_back_as_another_is_noticed_with_it(name: str, tiny_text: Path) -> None:
    line = "an hour later nobody remembered any of it"
    [back] = done("reconstruct", "-m", tiny_text, line)
    said = seqvae(*COMMANDS[name], "-m", tiny_text, line).stderr
    assert f"line 1 '{line}' comes back as '{back[:50]}" in said


@pytest.mark.parametrize("name", COMMANDS)
def test_strict_makes_it_an_error_without_output(name: str, tiny_text: Path) -> None:
    said = error_line(seqvae(*COMMANDS[name], "-m", tiny_text, KNOWN, STRANGE, "--strict"))
    assert "line 2" in said
    assert not Path("z.safetensors").exists()


def test_lines_moved_until_a_classifier_accepts_them_are_noticed_too(tiny_text: Path) -> None:
    until = ["blend", "-m", tiny_text, "--from", "bad", "--to", "good", "--until", 0.6]
    result = seqvae(*until, KNOWN, STRANGE)
    assert result.exit_code == 0
    assert f"1 of 2 lines are not represented well: line 2 '{STRANGE}' is mostly of characters" in result.stderr
    assert "line 2" in error_line(seqvae(*until, KNOWN, STRANGE, "--strict", "-o", "out.txt"))
    assert not Path("out.txt").exists()
    Path("huge.txt").write_text("the food was good " * 25_000)
    assert "450,000 characters, and the limit is 100,000" in error_line(seqvae(*until, "@huge.txt"))


def test_ends_of_an_interpolation_are_noticed(tiny_text: Path) -> None:
    walk = ["interpolate", "-m", tiny_text, "--steps", 2, KNOWN]
    result = seqvae(*walk, STRANGE)
    assert (result.exit_code, result.stdout.splitlines()) == (0, [KNOWN, STRANGE])
    assert result.stderr.startswith(f"1 of 2 lines are not represented well: line 2 '{STRANGE}' is mostly of")
    assert "line 2" in error_line(seqvae(*walk, STRANGE, "--strict", "-o", "out.txt"))
    assert not Path("out.txt").exists()
    result = seqvae(*walk, SENTENCES[-1], "--strict")
    assert (result.exit_code, result.stderr) == (0, "")
    Path("huge.txt").write_text("the food was good " * 25_000)
    assert "450,000 characters, and the limit is 100,000" in error_line(seqvae(*walk, "@huge.txt"))


def test_unknown_characters_are_named(tiny_text: Path) -> None:
    said = seqvae("reconstruct", "-m", tiny_text, "nobody knew 食 or Ж there").stderr
    assert "(outside of the vocabulary:" in said
    assert "食" in said.partition("outside of the vocabulary")[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_huge_line_is_refused_with_the_limit(name: str, tiny_text: Path) -> None:
    Path("huge.txt").write_text(f"{KNOWN}\n" + "the food was good " * 25_000)
    said = error_line(seqvae(*COMMANDS[name], "-m", tiny_text, "@huge.txt"))
    assert "line 2 'the food" in said
    assert "450,000 characters, and the limit is 100,000" in said


def test_of_many_lines_encode_looks_at_a_sample(tiny_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "SAMPLED", 3)
    Path("in.txt").write_text(f"{STRANGE}\n" * 10)
    assert "3 of 3 lines" in seqvae("encode", "-m", tiny_text, "@in.txt", "-o", "z.safetensors").stderr


def test_strict_is_for_sentences(tiny_music: Path) -> None:
    said = seqvae("reconstruct", "-m", tiny_music, song(Path("a.mid")), "-o", "b.mid", "--strict")
    assert said.exit_code == 2
    assert "--strict: is for sentences" in said.stderr


def test_a_model_that_cannot_draw_sentences_says_so(tiny_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no sentences" not in seqvae("generate", "-m", tiny_text).stderr
    result = seqvae("generate", "-m", "prose", "--seed", 3)
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(result.stdout.split()) >= sentences.LEAST
    codec = load("prose")
    monkeypatch.setattr(codec.model, "config", replace(codec.model.config, without=0.0))
    assert notices.of_draws(codec).startswith("most of these lines are no sentences")


def test_best_of_is_for_models_that_draw_without_a_vector(tiny_text: Path) -> None:
    said = seqvae("generate", "-m", tiny_text, "--best-of", 4)
    assert said.exit_code == 2
    assert "--best-of 4: is for models trained with model.without" in said.stderr
    one, many = (done("generate", "-m", "prose", "-n", 2, "--best-of", best) for best in (1, 8))
    assert many == done("generate", "-m", "prose", "-n", 2) != one
