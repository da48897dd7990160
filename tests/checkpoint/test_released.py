"""The released checkpoints: small, complete, documented, and able to do their tasks."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from commands import done

from seqvae import codec
from seqvae.anomaly import calibration, explain
from seqvae.anomaly import evidence as anomaly
from seqvae.checkpoint import folder as checkpoint
from seqvae.checkpoint.hub import RENAMED, find, released
from seqvae.codec import Codec
from seqvae.music import piece as midi
from seqvae.music.piece import Piece
from seqvae.text.tokenizer import TextTokenizer

pytestmark = pytest.mark.bf16

FOLDERS = released()
STYLES = {
    "midi": {
        "all",
        "classical",
        "country",
        "folk",
        "game",
        "gospel",
        "hymn",
        "jazz",
        "pop",
        "ragtime",
        "reggae",
        "rock",
    },
    "text": {"all", "negative", "positive", "past", "present"},
    "events": {"all", "normal"},
    "requests": {"all", "normal"},
    "prose": {"all", "narration", "dialogue", "archaic", "plain", "jane-austen"},
}
# Written for this test, in the tokenization that the model of reviews was trained on.
COMPLAINTS = [
    "the soup was cold and the bread was stale .",
    "we waited an hour for a table and nobody cared .",
    "the worst pasta i have ever had .",
    "our waitress was rude and very slow .",
    "i will never come back to this place .",
    "the rooms are dirty and the staff is not helpful .",
    "i would not recommend it to anyone .",
    "the fries were soggy and the burger was dry .",
]

none = pytest.param(None, marks=pytest.mark.skip(reason="no checkpoint is released yet"), id="none")
each = pytest.mark.parametrize("folder", [pytest.param(folder, id=folder.name) for folder in FOLDERS] or [none])


@each
def test_it_loads_and_knows_its_styles(folder: Path) -> None:
    model = codec.load(folder.name)
    assert checkpoint.find(folder.name) == folder
    expected = STYLES.get(folder.name) or STYLES.get(model.tokenizer.kind, {"all"})
    assert expected <= model.styles.keys()
    for style in model.styles.values():
        assert style.count > 0
        assert style.source
        assert style.mean.shape == (model.model.config.latent,)
        assert style.mean.isfinite().all()
        assert style.covariance.isfinite().all()
        assert (style.covariance.diagonal() > 0).all()


@each
def test_it_is_small_and_without_pickle(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".model", ".png"}


@each
def test_its_card_has_the_metadata_of_the_hub(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert card.startswith("---\n")
    assert {"license", "tags"} <= {line.partition(":")[0] for line in front.splitlines()}
    assert len(text) > 1000
    for word in ("licen", "KL"):  # sources with their licences; and no figure without its KL
        assert word in text


@each
def test_its_detector_belongs_to_its_weights_and_can_flag_an_anomaly(folder: Path) -> None:
    if folder.name in ("music", "prose"):
        pytest.skip("it is for pieces of one's own, and carries none")
    found, settings = calibration.load(folder / "detector")
    assert Path(settings.model) == folder
    assert found.p_value(settings.threshold - 1) <= (settings.p_value or 0) <= 0.01


@pytest.mark.bf16
def test_an_event_out_of_place_is_found_among_blocks_of_hdfs() -> None:
    usual = "E5 E5 E22 E5 E11 E9 E11 E9 E11 E9 E26 E26 E26 E23 E23 E23 E21 E21 E21"
    found, settings = calibration.load(find("hdfs") / "detector")
    model = codec.load("hdfs")
    pieces = [usual, usual.replace("E26 E23", "E20 E23", 1), usual.rpartition(" E21")[0], ""]
    scores = [found.scores(one)[found.score] for one in anomaly.examine(model, pieces)]
    assert [score < settings.threshold for score in scores] == [False, True, True, True]


@pytest.mark.bf16
def test_an_injection_is_found_in_a_request_with_its_characters() -> None:
    usual = "get http://localhost:8080/tienda1/publico/pagar.jsp?modo=insertar&precio=335&b1=confirmar"
    injected = usual.replace("335", "335'+or+'1'='1")
    pieces = [usual, injected, usual.replace("b1", "b1a"), usual.replace("pagar.jsp", "pagar.jsp.bak")]
    found, settings = calibration.load(find("requests") / "detector")
    model = codec.load("requests")
    evidence = list(anomaly.examine(model, pieces, settings.samples))
    assert [found.scores(one)[found.score] < settings.threshold for one in evidence] == [False, True, True, True]
    assert isinstance(model.tokenizer, TextTokenizer)
    [span] = explain.unlikely(model.tokenizer, evidence[1])
    assert span.text.startswith("'+or+'1'='1")
    assert span.start == injected.index("'")
    long = f"{usual}&{'x' * 600}"  # two segments
    printed = done("detect", "score", "-m", "requests", usual, injected, long, "--json")
    rows = [json.loads(line) for line in printed]
    assert [row["anomalous"] for row in rows] == [False, True, True]
    assert rows[1]["spans"][0]["text"] == span.text
    for row in rows:
        assert all(row["input"][one["start"] : one["end"]] == one["text"] for one in row["spans"])
    [line] = done("detect", "score", "-m", "requests", injected)
    assert f"precio=335[{span.text}]" in line


def test_the_name_of_a_retired_model_loads_its_successor() -> None:
    for old, new in RENAMED.items():
        assert old not in {folder.name for folder in FOLDERS}
        assert find(old) == find(new)


@each
def test_its_figures_are_documented(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics


@pytest.mark.bf16
@each
def test_a_chorale_blends_into_a_file_for_every_reader(folder: Path, bach: Piece) -> None:
    model = codec.load(folder)
    if model.tokenizer.kind != "midi":
        pytest.skip("not a model of music")
    import music21
    import pretty_midi
    from symusic.core import ScoreTick

    score = model.blend(bach, source="classical", target="rock", amount=0.5)
    content = midi.to_bytes(score)
    notes = sum(len(track.notes) for track in score.tracks)
    assert notes > 20
    assert sum(len(track.notes) for track in ScoreTick.from_midi(content).tracks) == notes
    assert sum(len(i.notes) for i in pretty_midi.PrettyMIDI(io.BytesIO(content)).instruments) == notes
    parsed = music21.midi.translate.midiStringToStream(content)  # type: ignore[no-untyped-call]
    assert len(list(parsed.recurse().notes)) > 20
    again = midi.read(content)
    assert again.bounds.tolist() == bach.bounds[: len(again.bounds)].tolist()


@pytest.fixture(scope="module")
def reviews() -> Codec:
    if "reviews" not in {folder.name for folder in FOLDERS}:
        pytest.skip("no model of reviews is released yet")
    return codec.load("reviews")


@pytest.mark.bf16
def test_sentences_are_reconstructed(reviews: Codec) -> None:
    """Nine of ten validation sentences are; of these eight at least five, depending on rounding."""
    assert sum(a == b for a, b in zip(reviews.transform(COMPLAINTS, lambda z: z), COMPLAINTS, strict=True)) >= 5


@pytest.mark.bf16
def test_complaints_become_praise_with_the_same_words(reviews: Codec) -> None:
    """Encoded again, the sentences lie near praise, and keep more of their words than unrelated sentences share."""
    move = reviews.translate("positive", "negative", 1.25)
    praise = reviews.transform(COMPLAINTS, move)
    good = {
        "great",
        "good",
        "best",
        "excellent",
        "friendly",
        "delicious",
        "love",
        "amazing",
        "fresh",
        "nice",
    }
    assert sum(bool(good & set(line.split())) for line in praise) >= 5, praise
    assert not any(good & set(line.split()) for line in COMPLAINTS)

    def shared(a: str, b: str) -> int:
        return len(set(a.split()) & set(b.split()) - {".", "the", "and", "was", "is", "i", "a"})

    own = sum(shared(a, b) for a, b in zip(COMPLAINTS, praise, strict=True))
    unrelated = sum(shared(a, b) for a, b in zip(COMPLAINTS, praise[1:] + praise[:1], strict=True))
    assert own > 2 * unrelated, praise


@pytest.mark.bf16
def test_an_interpolation_ends_in_the_two_sentences(reviews: Codec) -> None:
    path = reviews.interpolate(COMPLAINTS[1], COMPLAINTS[4], steps=7)
    assert (path[0], path[-1]) == (COMPLAINTS[1], COMPLAINTS[4])
    assert len(set(path)) >= 3, "the path has intermediate sentences"
    assert all(line.strip() for line in path)


def test_any_line_is_accepted(reviews: Codec) -> None:
    strange = ["", "Zażółć gęślą jaźń", "\u2581 日本語 \U0001f600", "word " * 300]
    out = reviews.transform(strange, lambda z: z)
    assert len(out) == 4
    assert out[0] == ""
    assert all("\n" not in line for line in out)
