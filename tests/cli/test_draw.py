"""The plot commands, and the sound, pictures and pages that other commands write beside their outputs."""

from __future__ import annotations

import json
import shutil
import sys
import wave
from importlib.abc import MetaPathFinder
from pathlib import Path

import pytest
from commands import done, error_line, files, seqvae, song
from PIL import Image

from seqvae.music import piece as midi

pytestmark = pytest.mark.usefixtures("here")


def is_png(path: str) -> bool:
    with Image.open(path) as image:
        image.load()
        return image.format == "PNG" and image.width > 500


# --- seqvae plot ------------------------------------------------------------------------------------------------------


def test_rolls_of_files(here: Path) -> None:
    assert done("plot", "roll", song(here / "a.mid"), "corpus:bach/bwv66.6", "-o", "out/roll.png") == ["out/roll.png"]
    done("plot", "roll", "a.mid", "a.mid", "--stacked", "-o", "stacked.png")
    with Image.open("out/roll.png") as beside, Image.open("stacked.png") as stacked:
        assert beside.width / beside.height > stacked.width / stacked.height


def test_a_map_of_styles_and_of_latents(tiny_music: Path, tiny_text: Path, here: Path) -> None:
    done("encode", song(here / "a.mid"), "-m", tiny_music, "-o", "z.safetensors")
    assert json.loads(done("plot", "map", "-m", tiny_music, "-o", "map.png", "--json")[0]) == {"output": "map.png"}
    done("plot", "map", "z.safetensors", "-m", tiny_music, "-o", "with.png")
    done("plot", "map", "-m", tiny_text, "-o", "text.png")
    assert is_png("map.png") and is_png("text.png")
    assert Path("map.png").read_bytes() != Path("with.png").read_bytes()
    assert "was not written by" in error_line(seqvae("plot", "map", "z.safetensors", "-m", tiny_text, "-o", "no.png"))


def test_the_measured_effect(tiny_music: Path, here: Path) -> None:
    assert "seqvae evaluate" in error_line(seqvae("plot", "effect", "-m", tiny_music, "-o", "effect.png"))
    measured = shutil.copytree(tiny_music, here / "measured")
    figures = {f"amount {a}": {"classifier": [a, a / 2, a], "chroma": [1.0, 0.9, 1.0]} for a in (0.0, 0.5, 1.0)}
    (measured / "metrics.json").write_text(json.dumps({"blend": {"all": figures}}))
    assert done("plot", "effect", "-m", measured, "-o", "effect.png") == ["effect.png"]
    assert is_png("effect.png")


def test_training_curves(here: Path) -> None:
    row = {"kind": "train", "step": 100, "loss": 9.0, "kl_bits": 1.0, "accuracy": 0.5}
    (here / "run").mkdir()
    (here / "run" / "log.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "kind": "valid"}) + "\n")
    assert done("plot", "training", "run", "-o", "curves.png") == ["curves.png"]
    assert is_png("curves.png")
    (here / "run" / "log.jsonl").write_text("nonsense\n")
    assert "is damaged" in error_line(seqvae("plot", "training", "run", "-o", "curves.png"))
    assert "is not a run" in error_line(seqvae("plot", "training", "elsewhere", "-o", "curves.png"))


def test_a_picture_is_a_png(here: Path) -> None:
    assert "written as .png" in error_line(seqvae("plot", "roll", song(here / "a.mid"), "-o", "roll.jpg"), 2)


def test_without_matplotlib_the_extra_is_named(here: Path, tiny_music: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing(MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name == "matplotlib":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    for name in ("matplotlib", "matplotlib.axes", "seqvae.plot"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr("seqvae.plot", raising=False)
    blend = ["blend", song(here / "a.mid"), "-m", tiny_music, "--to", "wild", "-o", "b.mid"]
    for command in (["plot", "roll", "a.mid", "-o", "r.png"], [*blend, "--png"]):
        assert "pip install 'seqvae[plot]'" in error_line(seqvae(*command))
    assert files(here) == ["a.mid"], "the error comes before any work"


# --- beside other outputs ---------------------------------------------------------------------------------------------


def test_all_music_commands_write_files_beside_their_outputs(tiny_music: Path, here: Path) -> None:
    song(here / "in" / "a.mid")
    done("encode", "in/a.mid", "-m", tiny_music, "-o", "z.safetensors")
    commands: dict[str, list[object]] = {
        "blend": ["in/a.mid", "--to", "wild"],
        "reconstruct": ["in/a.mid"],
        "generate": ["--style", "calm", "-n", 2],
        "interpolate": ["in/a.mid", "in/a.mid", "--steps", 2],
        "decode": ["z.safetensors", "--like", "in/a.mid"],
    }
    for verb, arguments in commands.items():
        printed = done(verb, *arguments, "-m", tiny_music, "-o", f"{verb}/", "--wav", "--png", "--html")
        found = files(here / verb)
        assert sorted(printed) == [f"{verb}/{name}" for name in found]
        stems = {name.rsplit(".", 1)[0] for name in found}
        assert found == sorted(f"{stem}.{end}" for stem in stems for end in ("html", "mid", "png", "wav"))
        for stem in stems:
            assert is_png(f"{verb}/{stem}.png")
            with wave.open(f"{verb}/{stem}.wav") as file:
                assert file.getnchannels() == 2 and file.getnframes() > file.getframerate()
            takes = 2 if verb in ("blend", "reconstruct") else 1  # with the original if there is one
            assert Path(f"{verb}/{stem}.html").read_text().count('"sound":') == takes


def test_only_requested_files_are_written_and_json_lists_them(tiny_music: Path, here: Path) -> None:
    blend = ["blend", song(here / "a.mid"), "-m", tiny_music, "--from", "calm", "--to", "wild", "-o", "b.mid"]
    [row] = map(json.loads, done(*blend, "--wav", "--json"))
    assert (row["output"], row["wav"], row["to"]) == ("b.mid", "b.wav", "wild")
    assert files(here) == ["a.mid", "b.mid", "b.wav"]
    done(*blend, "--html")
    assert "calm to wild, amount 0.5" in Path("b.html").read_text()


def test_the_output_is_the_same_with_files_beside_it(tiny_music: Path, here: Path) -> None:
    blend = ["blend", song(here / "a.mid"), "-m", tiny_music, "--to", "wild"]
    done(*blend, "-o", "b.mid")
    done(*blend, "-o", "c.mid", "--wav", "--png", "--html")
    assert Path("b.mid").read_bytes() == Path("c.mid").read_bytes()


def test_a_result_without_notes_has_a_picture_and_silence(
    tiny_music: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqvae.codec.Codec.transform", lambda self, pieces, *_, **__: [midi.make_frame(([], [], []))])
    done("reconstruct", song(here / "a.mid"), "-m", tiny_music, "-o", "b.mid", "--wav", "--png", "--html")
    assert is_png("b.png")
    with wave.open("b.wav") as file:
        assert not any(file.readframes(file.getnframes()))


def test_text_has_no_sound(tiny_text: Path) -> None:
    for flag in ("--wav", "--png", "--html"):
        line = error_line(seqvae("blend", "the food is bad", "-m", tiny_text, "--to", "good", flag), 2)
        assert line.startswith(f"seqvae: {flag} is for music")
        assert f"{flag} is for music" in error_line(seqvae("generate", "-m", tiny_text, flag), 2)


def test_nothing_is_written_beside_a_device(tiny_music: Path, here: Path) -> None:
    line = error_line(
        seqvae("blend", song(here / "a.mid"), "-m", tiny_music, "--to", "wild", "-o", "/dev/null", "--wav"), 2
    )
    assert "needs an output in a .mid file" in line
