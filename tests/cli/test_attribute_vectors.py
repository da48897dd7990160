"""Attribute vectors on the command line: fitted, measured, added to songs; for segments and for song vectors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import done, error_line, seqvae, song

from seqvae.data.dataset import half_of
from seqvae.music import piece as midi
from seqvae.music.attributes import density
from seqvae.music.titles import title
from seqvae.style import styles_file
from seqvae.style.translation import vector


@pytest.fixture(params=["tiny_music", "song_model"])
def model(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def songs(here: Path) -> Path:
    """Six songs for fitting and three for testing, each once with all notes and once with few and no drums."""
    titles: dict[bool, list[str]] = {True: [], False: []}
    for i in range(400):
        titles[half_of(title(f"tune{i}")) == "final"].append(f"tune{i}")
    for i, name in enumerate([*titles[True][:3], *titles[False][:6]]):
        full = midi.read(song(here / "songs" / "full" / f"{name}.mid", i))
        few = full.notes[full.notes[:, midi.PROGRAM] == 0]
        midi.write(midi.to_score(few, full.frame), here / "songs" / "few" / f"{name}.mid")
    return here / "songs"


def test_an_attribute_is_fitted_measured_and_added(model: Path, songs: Path, here: Path) -> None:
    fit = ["style", "fit", "songs", "--attribute", "density", "-m", model, "--hold-out"]
    assert done(*fit, "-o", "d.styles") == ["sparse: 6 songs, in d.styles", "dense: 6 songs, in d.styles"]
    found = styles_file.load(Path("d.styles"))
    level = found["dense"].level
    assert level is not None
    assert (level.attribute, level.mean, level.low, level.high) == ("density", 3.0, 1.0, 3.0)

    given = ["-m", model, "--styles", "d.styles"]
    lines = done("style", "effect", "songs", "--attribute", "density", *given, "--songs", 2, "--json")
    there, back = (json.loads(line) for line in lines)
    assert (there["from"], there["to"], back["from"], back["to"]) == ("sparse", "dense", "dense", "sparse")
    assert (there["before"][0], there["wanted"], back["wanted"]) == (1.0, 3.0, 1.0)
    for one in (there, back):
        assert one["attribute"] == "density"
        assert 0 <= one["inside"] <= 1
        assert one["kept"].keys() == one["kept_of_another"].keys() == {"notes", "chroma", "groove", "melody"}
    assert styles_file.load(Path("d.styles"))["dense"].effects["sparse"].slope == there["slope"]
    shown = "\n".join(done("style", "show", "dense", *given))
    assert "density 3.00 on average; 1.00 to 3.00 in nine of ten songs" in shown
    assert f"{there['slope']:.2f} per difference of means" in shown

    one = next((songs / "few").glob("*.mid"))
    [line] = done("blend", one, *given, "--to", "dense", "--amount", 0.5, "-o", "out.mid", "--json")
    facts = json.loads(line)
    assert facts["attribute"] == "density"
    assert facts["before"] == density(midi.read(one))
    assert facts["after"] == density(midi.read(here / "out.mid"))
    if model.name != "songs":  # which has random weights
        assert abs(facts["after"] - 2) <= abs(facts["before"] - 2)
    done("blend", one, *given, "--from", "sparse", "--to", "dense", "--amount", 0.5, "-o", "named.mid")
    assert Path("named.mid").read_bytes() == Path("out.mid").read_bytes()
    clipped = seqvae("blend", one, *given, "--to", "dense", "--amount", 2, "-o", "out.mid")
    assert "density 5.00 is outside of the range of real songs, 1.00 to 3.00" in clipped.stderr


def test_a_vector_is_made_orthogonal_to_another(model: Path, songs: Path) -> None:
    done("style", "fit", "songs", "--attribute", "density", "-m", model, "-o", "d.styles")
    other = sorted(str(path) for path in songs.glob("f*/*.mid"))
    fit = ["style", "fit", f"a={other[0]}", f"a={other[10]}", f"b={other[3]}", "-m", model]
    done(*fit, "-o", "plain.styles")
    plain = styles_file.load(Path("plain.styles"))
    for name in ("density", "sparse:dense"):
        done(*fit, "--styles", "d.styles", "--orthogonal-to", name, "-o", "both.styles")
        found = styles_file.load(Path("both.styles"))
        assert found.keys() == {"sparse", "dense", "a", "b"}
        density_ = vector(found["sparse"], found["dense"])
        left, all_ = (abs(float(density_ @ vector(one["a"], one["b"]))) for one in (found, plain))
        assert left < 1e-3 * all_
    said = error_line(seqvae(*fit, "--orthogonal-to", "drums", "-o", "x.styles"))
    assert "seqvae style fit songs/ --attribute drums" in said


def test_a_vector_of_an_attribute_must_be_there_to_be_measured(tiny_music: Path, songs: Path) -> None:
    said = error_line(seqvae("style", "effect", "songs", "--attribute", "density", "-m", tiny_music))
    assert "no vector of 'density'" in said
