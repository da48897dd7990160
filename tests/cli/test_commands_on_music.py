"""The commands on music files: output files and printed output."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import music21
import numpy as np
import pretty_midi
import pytest
import torch
from commands import done, error_line, files, seqvae, song
from symusic.core import ScoreTick

from seqvae import codec
from seqvae.checkpoint import folder as checkpoint
from seqvae.data.dataset import half_of
from seqvae.music import piece as midi
from seqvae.music.titles import title
from seqvae.music.tokenizer import MidiTokenizer
from seqvae.style.gaussian import Style
from seqvae.style.styles_file import save

pytestmark = pytest.mark.usefixtures("here")


def test_a_blend_is_a_file_that_other_libraries_read(tiny_music: Path, here: Path) -> None:
    assert done("blend", song(here / "a.mid"), "-m", tiny_music, "--from", "calm", "--to", "wild", "-o", "b.mid") == [
        "b.mid"
    ]
    assert files(here) == ["a.mid", "b.mid"]
    assert ScoreTick.from_file("b.mid").note_num() > 0
    assert pretty_midi.PrettyMIDI("b.mid").get_tempo_changes()[1][0] == pytest.approx(150)
    assert len(music21.converter.parse(here / "b.mid").recurse().notes) > 0


def test_corpus_pieces_and_scores_are_accepted(tiny_music: Path, here: Path) -> None:
    assert done("blend", "corpus:bach/bwv66.6", "-m", tiny_music, "--to", "wild") == ["bwv66.6-wild.mid"]
    (here / "jig.abc").write_text("X:1\nT:Jig\nM:4/4\nL:1/4\nK:C\nCDEF|GABc|\n")
    assert done("blend", "jig.abc", "-m", tiny_music, "--to", "wild", "-o", "out/") == ["out/jig.mid"]


def test_a_single_note_is_a_valid_song(tiny_music: Path, here: Path) -> None:
    frame = midi.make_frame(([], [], []))
    midi.write(midi.to_score(np.array([[0, 12, 60, 0, 80]], np.int32), frame), here / "one.mid")
    for verb in (["blend", "--to", "wild"], ["reconstruct"]):
        done(*verb, "one.mid", "-m", tiny_music, "-o", "out.mid")
        assert midi.read(here / "out.mid").notes.size or verb[0] == "reconstruct"


@pytest.mark.parametrize("amount", ["0", "-1", "2.5", "1e300"])
def test_any_finite_amount_gives_a_valid_file(tiny_music: Path, here: Path, amount: str) -> None:
    done("blend", song(here / "a.mid"), "-m", tiny_music, "--to", "wild", "--amount", amount, "-o", "b.mid")
    assert ScoreTick.from_file("b.mid").ticks_per_quarter == midi.TICKS_PER_BEAT


def test_transport_differs_from_the_mean_method(tiny_music: Path, here: Path) -> None:
    blend = ["blend", song(here / "a.mid"), "-m", tiny_music, "--from", "calm", "--to", "wild", "--amount", 3]
    done(*blend, "-o", "mean.mid")
    done(*blend, "-o", "transport.mid", "--method", "transport")
    assert Path("mean.mid").read_bytes() != Path("transport.mid").read_bytes()


def test_translations_add_up(tiny_music: Path, here: Path) -> None:
    blend = ["blend", song(here / "a.mid"), "-m", tiny_music]
    there = ["--from", "calm", "--to", "wild"]
    done(*blend, *there, "--amount", 2, "-o", "once.mid")
    done(*blend, *there, *there, "--amount", 1, "-o", "twice.mid")
    done(*blend, *there, *there, "--amount", -0.5, "--amount", 2.5, "-o", "back.mid")
    once, *others = (Path(f"{name}.mid").read_bytes() for name in ("once", "twice", "back"))
    assert others == [once, once]
    [line] = done(*blend, *there, "--from", "wild", "--to", "calm", "-o", "x.mid", "--json")
    assert json.loads(line)["moves"] == [
        {"from": "calm", "to": "wild", "amount": 0.5}, {"from": "wild", "to": "calm", "amount": 0.5}
    ]  # fmt: skip


def test_styles_have_weights_and_share_one_source(tiny_music: Path, here: Path) -> None:
    blend = ["blend", song(here / "a.mid"), "-m", tiny_music, "--from", "calm"]
    [line] = done(*blend, "--to", "wild=2", "--to", "calm=0.5", "-o", "one.mid", "--json")
    assert json.loads(line)["moves"] == [
        {"from": "calm", "to": "wild", "amount": 2.0}, {"from": "calm", "to": "calm", "amount": 0.5}
    ]  # fmt: skip
    done(*blend, "--to", "wild", "--amount", 2, "-o", "two.mid")
    done(*blend, "--to", "wild=4", "--amount", 0.5, "-o", "three.mid")
    one, *others = (Path(f"{name}.mid").read_bytes() for name in ("one", "two", "three"))
    assert others == [one, one]
    assert done(*blend, "--to", "wild=1", "--to", "calm=1") == ["a-wild-calm.mid"]


def test_kept_parts_are_unchanged(tiny_music: Path, here: Path) -> None:
    blend = ["blend", song(here / "a.mid"), "-m", tiny_music, "--to", "wild", "--amount", 3]
    done(*blend, "-o", "b.mid")
    [line] = done(*blend, "--keep", "drums", "--keep", "electric bass (finger)", "-o", "c.mid", "--json")
    assert json.loads(line)["keep"] == ["drums", "electric bass (finger)"]
    old, new, kept = (midi.read(here / f"{name}.mid").notes for name in "abc")
    for program in (midi.DRUMS, 33):
        assert np.array_equal(*(x[x[:, midi.PROGRAM] == program] for x in (old, kept)))
        assert not np.array_equal(*(x[x[:, midi.PROGRAM] == program] for x in (old, new)))


def test_a_grid_interpolates_four_songs(tiny_music: Path, here: Path) -> None:
    corners = [song(here / f"{name}.mid", i) for i, name in enumerate("abcd")]
    lines = done("interpolate", *corners, "-m", tiny_music, "--grid", 3, "-o", "out", "--json")
    told_ = [json.loads(line) for line in lines]
    assert [(x["output"], x["row"], x["column"]) for x in told_] == [
        (f"out/0{row}-0{column}.mid", row, column) for row in range(3) for column in range(3)
    ]
    for name, corner in zip(("00-00", "00-02", "02-00", "02-02"), corners, strict=True):
        done("reconstruct", corner, "-m", tiny_music, "-o", "again.mid")
        assert Path(f"out/{name}.mid").read_bytes() == Path("again.mid").read_bytes()


def test_a_folder_is_divided_by_an_attribute(tiny_music: Path, here: Path) -> None:
    for i in range(3):
        song(here / "in" / f"{i}.mid", i)
        score = midi.read(here / "in" / f"{i}.mid")
        bare = score.notes[score.notes[:, midi.PROGRAM] != midi.DRUMS]
        midi.write(midi.to_score(bare, score.frame), here / "in" / f"bare {i}.mid")
    lines = done("style", "fit", "in", "--attribute", "drums", "-m", tiny_music, "-o", "drums.styles")
    assert lines == ["without-drums: 3 songs, in drums.styles", "with-drums: 3 songs, in drums.styles"]
    to = ["--from", "without-drums", "--to", "with-drums", "--styles", "drums.styles"]
    assert done("blend", "in/0.mid", "-m", tiny_music, *to, "-o", "b.mid") == ["b.mid"]
    assert "is sparse" not in error_line(
        seqvae("style", "fit", "in/0.mid", "--attribute", "mode", "-m", tiny_music, "-o", "x")
    )


def test_the_effect_of_a_style_vector_is_measured_saved_and_shown(tiny_music: Path, here: Path) -> None:
    titles: dict[bool, list[str]] = {True: [], False: []}
    for i in range(400):
        titles[half_of(title(f"tune{i}")) == "final"].append(f"tune{i}")
    for style, number in (("calm", 1), ("wild", 5)):
        for i, name in enumerate([*titles[True][:3], *titles[False][:6]]):
            song(here / style / f"{name}.mid", number + i)
    sets = ["calm=calm", "wild=wild", "-m", tiny_music]
    fitted = done("style", "fit", *sets, "--hold-out", "-o", "my.styles")
    assert fitted == ["calm: 6 songs, in my.styles", "wild: 6 songs, in my.styles"], "held-out songs are left out"
    before = done("style", "list", "-m", tiny_music, "--styles", "my.styles", "--json")
    assert all(json.loads(line).keys() == {"style", "count", "source"} for line in before)
    lines = done("style", "effect", *sets, "--styles", "my.styles", "--songs", 2, "--json")
    there, back = (json.loads(line) for line in lines)
    assert {(x["from"], x["to"], x["songs"], x["amount"]) for x in (there, back)} == {
        ("calm", "wild", 2, 1.0), ("wild", "calm", 2, 1.0)
    }  # fmt: skip
    for one in (there, back):
        for of in ("kept", "kept_of_another", "kept_of_none"):
            assert one[of].keys() == {"chroma", "groove", "melody"}
        assert all(0 <= low <= mean <= high <= 1 for mean, low, high in (one["before"], one["after"], one["control"]))
        assert 0 < one["p"] <= 1
    shown = json.loads(done("style", "show", "wild", "-m", tiny_music, "--styles", "my.styles", "--json")[0])
    expected = there if there["to"] == "wild" else back
    assert shown["effects"]["calm"] == {k: v for k, v in expected.items() if k not in ("from", "to")}
    assert "moved there from calm: probability" in "\n".join(
        done("style", "show", "wild", "-m", tiny_music, "--styles", "my.styles")
    )
    table = done("style", "list", "-m", tiny_music, "--styles", "my.styles")
    assert table[0].split() == ["style", "count", "source", "effect"]
    assert "chroma" in table[1]


def test_a_folder_keeps_its_subfolders_stems_and_order(tiny_music: Path, here: Path) -> None:
    for i, name in enumerate(["z.mid", "a.midi", "sub/z.mid", "sub/.hidden.mid"]):
        song(here / "in" / name, i)
    (here / "in" / "notes.txt").write_text("no music")
    lines = done("blend", "in", "-m", tiny_music, "--to", "wild", "-o", "out")
    assert lines == ["out/a.mid", "out/sub/z.mid", "out/z.mid"]
    assert files(here / "out") == ["a.mid", "sub/z.mid", "z.mid"]
    done("blend", "in/sub/z.mid", "-m", tiny_music, "--to", "wild", "-o", "alone.mid")
    assert Path("alone.mid").read_bytes() == Path("out/sub/z.mid").read_bytes()


@pytest.mark.parametrize("inputs", [["in/a-0.5.mid", "in/b.mid"], ["in"]])
def test_a_folder_of_several_outputs_may_have_any_name(tiny_music: Path, here: Path, inputs: list[str]) -> None:
    for i, name in enumerate(["a-0.5.mid", "b.mid"]):
        song(here / "in" / name, i)
    lines = done("blend", *inputs, "-m", tiny_music, "--to", "wild", "-o", "out/a-0.5")
    assert lines == ["out/a-0.5/a-0.5.mid", "out/a-0.5/b.mid"]
    assert files(here / "out") == ["a-0.5/a-0.5.mid", "a-0.5/b.mid"]
    assert done("generate", "-n", 2, "-m", tiny_music, "-o", "v1.2") == ["v1.2/tiny-1.mid", "v1.2/tiny-2.mid"]


def test_a_command_tokenizes_each_song_once(tiny_music: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spelled, encode = [], MidiTokenizer.encode

    def counted(self: MidiTokenizer, piece: midi.Piece) -> list[Any]:
        spelled.append(piece.name)
        return encode(self, piece)

    monkeypatch.setattr(MidiTokenizer, "encode", counted)
    for i, name in enumerate("abcd"):
        song(here / "in" / f"{name}.mid", i)
    paths = [f"in/{name}.mid" for name in "abcd"]
    for args in (
        ["blend", "in", "--to", "wild", "-o", "out"], ["reconstruct", "in", "-o", "out"],
        ["encode", "in", "-o", "z.safetensors"], ["interpolate", *paths, "--grid", 2, "-o", "out"],
    ):  # fmt: skip
        spelled.clear()
        done(*args, "-m", tiny_music)
        assert sorted(spelled) == list("abcd"), args[0]
    spelled.clear()
    done("interpolate", *paths[:2], "--steps", 2, "-m", tiny_music, "-o", "out")
    assert sorted(spelled) == ["a", "b"]


def test_outputs_inside_the_folder_are_not_inputs_of_the_next_run(tiny_music: Path, here: Path) -> None:
    song(here / "in" / "a.mid")
    for _ in range(2):
        assert done("reconstruct", "in", "-m", tiny_music, "-o", "in/out") == ["in/out/a.mid"]
    assert files(here / "in") == ["a.mid", "out/a.mid"]


def test_unreadable_files_in_a_folder_are_skipped(tiny_music: Path, here: Path) -> None:
    song(here / "in" / "b.mid")
    (here / "in" / "a.mid").write_bytes(b"not MIDI")
    (here / "in" / "c.mid").touch()
    result = seqvae("blend", "in", "-m", tiny_music, "--to", "wild", "-o", "out")
    assert (result.exit_code, result.stdout) == (0, "out/b.mid\n")
    not_midi, empty, count = result.stderr.splitlines()
    assert not_midi.startswith("skipped: cannot read in/a.mid: it is not a MIDI file")
    assert empty.startswith("skipped: cannot read in/c.mid: the file is empty")
    assert count == "2 of 3 files skipped"


def test_files_with_the_same_stem_are_all_read_and_ignored_files_counted(tiny_music: Path, here: Path) -> None:
    content = Path(song(here / "in" / "a.mid")).read_bytes()
    (here / "in" / "a.kar").write_bytes(content)
    (here / "in" / "a.abc").write_text("X:1\nM:4/4\nL:1/4\nK:C\nCDEF|\n")
    (here / "in" / "cover.png").touch()
    result = seqvae("reconstruct", "in", "-m", tiny_music, "-o", "out")
    assert result.stdout.split() == ["out/a.abc.mid", "out/a.kar.mid", "out/a.mid"]
    assert result.stderr.startswith("files passed over: 1, not music by their suffix (1 .png)\n")
    rows = [json.loads(line) for line in done("encode", "in", "-m", tiny_music, "-o", "z.safetensors", "--json")]
    assert {row["input"]: row["name"] for row in rows} == {"in/a.abc": "a.abc", "in/a.kar": "a.kar", "in/a.mid": "a"}


def test_each_tune_of_a_file_is_a_song(tiny_music: Path, here: Path) -> None:
    tunes = "X:1\nT:One\nM:4/4\nL:1/4\nK:C\nCDEF|\n\nX:2\nT:Two\nM:4/4\nL:1/4\nK:C\nGABc|\n"
    (here / "in").mkdir()
    (here / "in" / "book.abc").write_text(tunes)
    song(here / "in" / "book-2.mid")
    blend = ["blend", "-m", tiny_music, "--to", "wild"]
    assert done(*blend, "in/book.abc", "-o", "out") == ["out/book-1.mid", "out/book-2.mid"]
    assert done(*blend, "in/book.abc#2") == ["book-2-wild.mid"]
    assert midi.read(here / "out" / "book-2.mid").notes.tolist() == midi.read(here / "book-2-wild.mid").notes.tolist()
    assert done("reconstruct", "in", "-m", tiny_music, "-o", "all") == [
        "all/book-2.mid", "all/book-1.mid", "all/book.abc#2.mid"
    ]  # fmt: skip
    rows = [json.loads(x) for x in done("encode", "in/book.abc", "-m", tiny_music, "-o", "z.safetensors", "--json")]
    assert [(row["input"], row["name"]) for row in rows] == [("in/book.abc#1", "book-1"), ("in/book.abc#2", "book-2")]
    assert done("style", "fit", "mine=in/book.abc", "-m", tiny_music, "-o", "my.styles") == [
        "mine: 2 songs, in my.styles"
    ]
    message = error_line(seqvae(*blend, "in/book.abc"), 2)
    assert "need -o FOLDER for its 2 tunes; for one of them name it, as in/book.abc#1" in message
    one = error_line(seqvae("interpolate", "in/book.abc", "in/book-2.mid", "-m", tiny_music, "-o", "out"), 2)
    assert "in/book.abc: holds 2 tunes; name one, in/book.abc#1 to #2" in one


def test_a_folder_without_readable_music_is_an_error(tiny_music: Path, here: Path) -> None:
    (here / "in").mkdir()
    assert "holds no music" in error_line(seqvae("reconstruct", "in", "-m", tiny_music, "-o", "out"))
    (here / "in" / "a.mid").write_bytes(b"not MIDI")
    result = seqvae("reconstruct", "in", "-m", tiny_music, "-o", "out")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "seqvae: none of 1 files could be read; see the reasons above"
    assert not (here / "out").exists()


def test_json_reports_the_outputs(tiny_music: Path, here: Path) -> None:
    song(here / "in" / "a.mid", bars=5)
    song(here / "in" / "é.mid")
    lines = done("blend", "in", "-m", tiny_music, "--to", "wild", "--amount", 0.25, "-o", "out", "--json")
    assert [json.loads(line) for line in lines] == [
        {"input": f"in/{n}.mid", "output": f"out/{n}.mid", "segments": s, "from": None, "to": "wild", "amount": 0.25}
        for n, s in (("a", 3), ("é", 2))
    ]


def test_the_seed_decides_the_output(tiny_music: Path, here: Path) -> None:
    blend = ["blend", song(here / "a.mid"), "-m", tiny_music, "--to", "wild", "--temperature", 1, "--seed"]
    for seed, name in ((1, "x"), (1, "y"), (2, "z")):
        done(*blend, seed, "-o", f"{name}.mid")
    x, y, z = (Path(f"{name}.mid").read_bytes() for name in "xyz")
    assert x == y != z


def test_generate_repeats_each_song_by_its_seed(tiny_music: Path) -> None:
    first = done(
        "generate", "-m", tiny_music, "--style", "wild", "-n", 3, "--segments", 2, "--seed", 5, "-o", "one", "--json"
    )
    assert [Path(json.loads(line)["output"]).name for line in first] == ["wild-1.mid", "wild-2.mid", "wild-3.mid"]
    done("generate", "-m", tiny_music, "--style", "wild", "-n", 2, "--segments", 2, "--seed", 5, "-o", "two/")
    pieces = [Path(json.loads(line)["output"]).read_bytes() for line in first]
    assert [Path(f"two/wild-{i}.mid").read_bytes() for i in (1, 2)] == pieces[:2]
    assert len(set(pieces)) == 3
    seed = json.loads(first[2])["seed"]
    done("generate", "-m", tiny_music, "--style", "wild", "--segments", 2, "--seed", seed, "-o", "third.mid")
    assert Path("third.mid").read_bytes() == pieces[2]


def test_generated_songs_take_the_exemplars_of_a_style_in_turn(tiny_music: Path, here: Path) -> None:
    size = codec.load(tiny_music).model.config.latent
    pairs = torch.randn(5, 4, size, generator=torch.Generator().manual_seed(0))
    save({"mine": Style(torch.zeros(size), torch.eye(size), 10, exemplars=pairs)}, here / "my.styles")
    command = ["generate", "-m", tiny_music, "--styles", "my.styles", "--style", "mine", "--segments", 1]
    seeds = [json.loads(line)["seed"] for line in done(*command, "-n", 7, "--seed", 3, "-o", "new", "--json")]
    assert [seed % 5 for seed in seeds] == [3, 4, 0, 1, 2, 3, 4]
    assert len(set(seeds)) == 7


def test_generate_without_a_style_and_with_narrow_choices(tiny_music: Path, here: Path) -> None:
    assert done("generate", "-m", tiny_music, "--top-k", 1, "--top-p", 0.5, "--temperature", 2) == ["tiny-1.mid"]
    assert midi.read(here / "tiny-1.mid").notes.size


@pytest.mark.parametrize("kind", ["slerp", "line"])
def test_interpolate_numbers_its_steps_from_one_song_to_the_other(tiny_music: Path, here: Path, kind: str) -> None:
    a, b = song(here / "a.mid", 1), song(here / "b.mid", 2)
    lines = done("interpolate", a, b, "-m", tiny_music, "--steps", 3, "--kind", kind, "-o", "out", "--json")
    assert [json.loads(line) for line in lines] == [
        {"output": f"out/0{i}.mid", "from": str(a), "to": str(b), "amount": i / 2} for i in range(3)
    ]
    done("reconstruct", a, "-m", tiny_music, "-o", "again.mid")
    assert Path("out/00.mid").read_bytes() == Path("again.mid").read_bytes()


def test_encode_then_decode_is_reconstruct(tiny_music: Path, here: Path) -> None:
    a = song(here / "in" / "a.mid", bars=5)
    song(here / "in" / "sub" / "b.mid", 3)
    lines = done("encode", "in", "-m", tiny_music, "-o", "new/latents.safetensors", "--json")
    assert [json.loads(line) for line in lines] == [
        {"input": "in/a.mid", "name": "a", "segments": 3, "output": "new/latents.safetensors"},
        {"input": "in/sub/b.mid", "name": "sub/b", "segments": 2, "output": "new/latents.safetensors"},
    ]
    tensors, about = checkpoint.load_tensors(Path("new/latents.safetensors"))
    assert {name: tuple(z.shape) for name, z in tensors.items()} == {"a": (3, 16), "sub/b": (2, 16)}
    assert (about["model"], about["kind"]) == (str(tiny_music), "midi")
    assert done("decode", "new/latents.safetensors", "-m", tiny_music, "-o", "out") == ["out/a.mid", "out/sub/b.mid"]

    done("encode", a, "-m", tiny_music, "-o", "a.safetensors")
    done("decode", "a.safetensors", "-m", tiny_music, "--like", a, "-o", "decoded.mid")
    done("reconstruct", a, "-m", tiny_music, "-o", "again.mid")
    assert Path("decoded.mid").read_bytes() == Path("again.mid").read_bytes()


def test_decode_writes_only_to_the_given_path(tiny_music: Path, here: Path) -> None:
    checkpoint.save_tensors({"../../evil": torch.zeros(1, 16)}, {}, here / "evil.safetensors")
    assert "not named after songs" in error_line(seqvae("decode", "evil.safetensors", "-m", tiny_music, "-o", "out"))
    checkpoint.save_tensors({"a": torch.zeros(2, 5)}, {}, here / "other.safetensors")
    assert "encode with the same model" in error_line(
        seqvae("decode", "other.safetensors", "-m", tiny_music, "-o", "out")
    )
    checkpoint.save_tensors({"a": torch.zeros(9, 16)}, {}, here / "long.safetensors")
    short = seqvae("decode", "long.safetensors", "-m", tiny_music, "-o", "out", "--like", song(here / "a.mid"))
    assert "'a' has 9 segments" in error_line(short)
    assert "cannot be read" in error_line(seqvae("decode", "a.mid", "-m", tiny_music, "-o", "out"))


def test_a_style_can_be_fitted_and_used(tiny_music: Path, here: Path) -> None:
    for i in range(3):
        song(here / "mine" / f"{i}.mid", i)
    (here / "mine" / "bad.mid").touch()
    one = song(here / "one.mid", 7)
    fit = seqvae(
        "style", "fit", "mine=mine", f"other={one}", f"mine={one}", "-m", tiny_music, "-o", "my.styles", "--json"
    )
    assert fit.exit_code == 0, fit.stderr
    assert [(row["style"], row["count"]) for row in map(json.loads, fit.stdout.splitlines())] == [
        ("mine", 4),
        ("other", 1),
    ]
    assert fit.stderr.splitlines()[-1] == "1 of 5 files skipped"
    listed = [json.loads(line) for line in done("style", "list", "-m", tiny_music, "--styles", "my.styles", "--json")]
    assert [(row["style"], row["count"]) for row in listed] == [("calm", 3), ("mine", 4), ("other", 1), ("wild", 3)]
    assert [line.split() for line in done("style", "list", "-m", tiny_music)] == [
        ["style", "count", "source"], ["calm", "3", "calm", "songs"], ["wild", "3", "wild", "songs"],
    ]  # fmt: skip
    done("blend", one, "-m", tiny_music, "--styles", "my.styles", "--from", "other", "--to", "mine", "-o", "b.mid")
    done("generate", "-m", tiny_music, "--styles", "my.styles", "--style", "mine", "-o", "g.mid")


def test_a_style_is_described_by_its_position(tiny_music: Path) -> None:
    [line] = done("style", "show", "calm", "-m", tiny_music, "--json")
    shown = json.loads(line)
    styles = codec.load(tiny_music).styles
    assert (shown["style"], shown["count"], shown["source"]) == ("calm", 3, "calm songs")
    assert shown["distances"] == {"wild": pytest.approx(float((styles["calm"].mean - styles["wild"].mean).norm()))}
    assert shown["spread"] > 0
    text = "\n".join(done("style", "show", "calm", "-m", tiny_music))
    assert "3 songs" in text
    assert "mean of wild" in text


def test_a_reconstruction_has_as_many_steps_of_search_as_asked_for(here: Path, tiny_music: Path) -> None:
    path = song(here / "a.mid", 3)
    loaded = codec.load(tiny_music)
    made = []
    for steps in (0, 30):
        done("reconstruct", path, "-m", tiny_music, "--search", steps, "-o", f"{steps}.mid")
        searched = replace(loaded, refinement=replace(loaded.refinement, steps=steps))
        made.append(midi.read(f"{steps}.mid").notes.tolist())
        assert made[-1] == midi.read(searched.reconstruct(path)).notes.tolist()
    assert made[0] != made[1]
    assert "--search" in error_line(seqvae("reconstruct", path, "-m", tiny_music, "--search", -1), 2)
