"""The studio's API: each route against the package, and refused requests."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import song
from conftest import SESSIONS
from fastapi.testclient import TestClient
from studios import HOME, notes, refusal, result, wait

from seqvae import codec
from seqvae.anomaly import explain
from seqvae.errors import CheckpointError, SeqVAEError
from seqvae.music import piece as midi
from seqvae.nn.inference import BatchInference
from seqvae.studio import guard, shelf
from seqvae.studio.models import Models
from seqvae.studio.server import application, listen
from seqvae.style.choice import Choice
from seqvae.style.translation import compose


@pytest.fixture(scope="module")
def opened(client: TestClient, tune: Path) -> dict[str, Any]:
    roll: dict[str, Any] = result(client, "/api/music/pieces", files={"file": (tune.name, tune.read_bytes())})
    return roll


# --- models -----------------------------------------------------------------------------------------------------------


def test_models_are_the_released_and_the_named_ones(client: TestClient, names: dict[str, str]) -> None:
    rows = {row["name"]: row for row in client.get("/api/models").json()}
    assert {"music", "reviews", "hdfs", *names.values()} <= rows.keys()
    assert rows[names["music"]] == {
        "name": names["music"],
        "kind": "midi",
        "content": "songs",
        "styles": ["calm", "wild"],
        "detector": False,
        "raw": False,
    }
    assert rows[names["events"]]["detector"]


def test_requests_cannot_name_another_folder(client: TestClient, names: dict[str, str], opened: Any) -> None:
    for other in ("/etc", "../music", "nobody/nothing", str(Path(names["music"]).parent)):
        body = {"model": other, "piece": opened["id"], "target": "calm"}
        assert "no model" in refusal(client.post("/api/music/blend", json=body), 400)


def test_a_folder_without_a_checkpoint_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        Models([str(tmp_path)])


def test_a_model_of_another_modality_is_refused(client: TestClient, names: dict[str, str]) -> None:
    body = {"model": names["music"], "a": "one", "b": "two"}
    assert "is for midi" in refusal(client.post("/api/text/steps", json=body), 400)


# --- music ------------------------------------------------------------------------------------------------------------


def test_a_file_is_shown_unchanged(opened: dict[str, Any], tune: Path) -> None:
    piece = midi.read(tune)
    assert opened["name"] == "my tune"
    assert len(notes(opened)) == len(piece.notes)
    assert opened["bars"] == pytest.approx([0, 1.6, 3.2, 4.8, 6.4])  # four bars of 4/4 at 150 beats a minute
    assert {track["program"] for track in opened["tracks"]} == {0, 33, midi.DRUMS}
    assert opened["seconds"] == pytest.approx(6.4)


def test_the_first_bars_of_a_long_song_are_used(client: TestClient, tune: Path) -> None:
    files = {"file": (tune.name, tune.read_bytes())}
    roll = result(client, "/api/music/pieces", files=files, data={"bars": 2})
    assert roll["bars"] == pytest.approx([0, 1.6, 3.2])
    assert roll["seconds"] <= 3.2 + 1e-6


BOOK = b"X:1\nT:One\nM:4/4\nL:1/4\nK:C\nCDEF|\n\nX:2\nT:Two\nM:3/4\nL:1/4\nK:G\nGAB|\n"


def test_one_tune_of_a_book_is_opened(client: TestClient) -> None:
    def opened(**data: int) -> list[int]:
        roll = result(client, "/api/music/pieces", files={"file": ("book.abc", BOOK)}, data=data)
        return [note[2] for note in roll["tracks"][0]["notes"]]

    assert opened() == opened(tune=1) == [60, 62, 64, 65]
    assert opened(tune=2) == [67, 69, 71]
    told = client.post("/api/music/pieces", files={"file": ("book.abc", BOOK)}, data={"tune": 3})
    assert "book.abc#3" in refusal(wait(client, told), 400)


def test_humdrum_is_opened(client: TestClient) -> None:
    content = b"**kern\n*M2/4\n4c\n4d\n=\n4e\n4f\n==\n*-\n"
    roll = result(client, "/api/music/pieces", files={"file": ("tune.krn", content)})
    assert [note[2] for note in roll["tracks"][0]["notes"]] == [60, 62, 64, 65]


def test_a_song_of_the_corpus_is_opened_by_its_name(client: TestClient, bach: midi.Piece) -> None:
    assert "bach/bwv66.6" in client.get("/api/music/corpus").json()
    roll = result(client, "/api/music/corpus", {"name": "bach/bwv66.6"})
    assert len(notes(roll)) == len(bach.notes)
    for wrong in ("../../etc/passwd", "/etc/passwd", "no/such/work"):
        assert "no such work" in refusal(wait(client, client.post("/api/music/corpus", json={"name": wrong})), 400)
    refusal(client.post("/api/music/corpus", json={"name": "a\nb"}), 422)


def test_every_blend_equals_that_of_the_codec(
    client: TestClient, names: dict[str, str], opened: Any, tune: Path
) -> None:
    alone = codec.load(names["music"])
    for amount in (0.0, 0.5, 1.5):
        body = {"model": names["music"], "piece": opened["id"], "source": "calm", "target": "wild", "amount": amount}
        roll = result(client, "/api/music/blend", body)
        score = alone.blend(tune, source="calm", target="wild", amount=amount)
        assert len(notes(roll)) == sum(len(track.notes) for track in score.tracks)
        content = client.get(f"/api/music/{roll['id']}.mid")
        assert content.headers["content-disposition"].startswith('attachment; filename="my-tune-wild-')
        assert np.array_equal(midi.read(content.content).notes, midi.read(midi.to_bytes(score)).notes)


def test_instruments_of_the_song_keep_their_colours_in_every_blend(
    client: TestClient, names: dict[str, str], opened: Any
) -> None:
    own = {track["program"]: track["colour"] for track in opened["tracks"]}
    assert len(set(own.values())) == len(own) == 3
    for amount in (0.0, 0.7, 1.5):
        body = {"model": names["music"], "piece": opened["id"], "target": "wild", "amount": amount}
        tracks = result(client, "/api/music/blend", {**body, "keep": ["melody", "drums"]})["tracks"]
        assert len({track["program"] for track in tracks} & own.keys()) > 1
        assert all(own.get(track["program"], track["colour"]) == track["colour"] for track in tracks)
        assert len({track["colour"] for track in tracks}) == len(tracks)


def test_kept_drums_are_unchanged(client: TestClient, names: dict[str, str], opened: Any) -> None:
    body = {"model": names["music"], "piece": opened["id"], "target": "wild", "amount": 1.5, "keep": ["drums"]}
    roll = result(client, "/api/music/blend", body)
    drums = [[note[:1] + note[1:4] for note in notes(one) if note[0] == midi.DRUMS] for one in (opened, roll)]
    assert drums[0] == drums[1] != []


def test_a_song_is_encoded_once_for_all_amounts(
    client: TestClient, names: dict[str, str], tune: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    plain = BatchInference.posteriors

    def counted(self: BatchInference, segments: Any, refined: bool = False) -> Any:
        encoded.append(len(segments))
        return plain(self, segments, refined)

    monkeypatch.setattr(BatchInference, "posteriors", counted)
    files = {"file": ("other.mid", song(tune.with_name("other.mid"), 5).read_bytes())}
    piece = result(client, "/api/music/pieces", files=files)["id"]
    for amount in (0.1, 0.2, 0.3):
        result(
            client, "/api/music/blend", {"model": names["music"], "piece": piece, "target": "wild", "amount": amount}
        )
    assert sum(encoded) == 2  # four bars in segments of two


def test_sound_is_a_wav_file_without_the_muted_tracks(client: TestClient, opened: Any) -> None:
    address = f"/api/music/{opened['id']}.wav"
    response = client.get(address, params={"small": 1})
    assert response.status_code == 200 and response.headers["content-type"] == "audio/wav"
    with wave.open(io.BytesIO(response.content)) as file:
        assert file.getnframes() / file.getframerate() > 6.4
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    assert np.abs(samples).max() > 1000
    with wave.open(io.BytesIO(client.get(address, params={"small": 1, "mute": [0, 1, 2]}).content)) as file:
        assert not np.frombuffer(file.readframes(file.getnframes()), np.int16).any()
    part = client.get(address, params={"small": 1}, headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"RIFF")  # needed by browsers to seek


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("amount", 1.6, 422),
        ("amount", -0.1, 422),
        ("amount", "much", 422),
        ("target", "grunge", 400),
        ("source", "grunge", 400),
        ("piece", "0" * 32, 404),
        ("keep", ["bass"], 422),
        ("model", 7, 422),
    ],
)
def test_an_invalid_blend_is_refused_with_a_message(
    client: TestClient, names: dict[str, str], opened: Any, field: str, value: Any, status: int
) -> None:
    body = {"model": names["music"], "piece": opened["id"], "target": "wild", field: value}
    assert refusal(client.post("/api/music/blend", json=body), status)


def test_a_blend_cannot_be_blended_again(client: TestClient, names: dict[str, str], opened: Any) -> None:
    body = {"model": names["music"], "piece": opened["id"], "target": "wild"}
    blended = result(client, "/api/music/blend", body)
    assert "this is a blend" in refusal(client.post("/api/music/blend", json={**body, "piece": blended["id"]}), 400)


@pytest.mark.parametrize(
    ("name", "content", "status", "word"),
    [
        ("song.txt", b"la la", 415, "not a known format of music"),
        ("song", b"MThd", 415, "not a known format of music"),
        ("song.mid", b"", 400, "empty"),
        ("song.mid", b"not music at all", 400, "not a MIDI file"),
        ("song.musicxml", b"<score-partwise>", 400, "cannot read"),
        ("song.mid", b"0" * (guard.LIMIT + 1), 413, "4 MB"),
    ],
)
def test_an_unreadable_file_is_refused_with_a_message(
    client: TestClient, name: str, content: bytes, status: int, word: str
) -> None:
    response = client.post("/api/music/pieces", files={"file": (name, content)})
    assert word in refusal(wait(client, response), status)


def test_too_many_notes_and_too_long_sound_are_refused(
    client: TestClient, opened: Any, tune: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "NOTES", 10)
    response = client.post("/api/music/pieces", files={"file": (tune.name, tune.read_bytes())}, data={"bars": 3})
    assert "more than 10 notes" in refusal(wait(client, response), 413)
    monkeypatch.setattr(shelf, "MINUTES", 0)
    assert "fewer bars" in refusal(client.get(f"/api/music/{opened['id']}.wav"), 413)
    assert "no longer kept" in refusal(client.get("/api/music/nothing.wav"), 404)


# --- text, map, anomalies ---------------------------------------------------------------------------------------------


def test_every_step_between_two_sentences_is_returned(client: TestClient, names: dict[str, str]) -> None:
    a, b = "the food was good and the bar is new", "the room is bad and the place is cold"
    answer = result(client, "/api/text/steps", {"model": names["text"], "a": a, "b": b, "steps": 5})
    assert [step["amount"] for step in answer] == [0, 0.25, 0.5, 0.75, 1]
    assert [step["text"] for step in answer] == codec.load(names["text"]).interpolate(a, b, 5)
    refusal(client.post("/api/text/steps", json={"model": names["text"], "a": " ", "b": b}), 422)


def test_styles_add_up(client: TestClient, names: dict[str, str]) -> None:
    line = "the food was bad and the bar is cold"
    moves = [("bad", "good", 1.0), ("past", "present", 1.5)]
    requested = [{"source": a, "target": b, "amount": amount} for a, b, amount in moves]
    answer = result(client, "/api/text/blend", {"model": names["text"], "text": line, "moves": requested})
    alone = codec.load(names["text"])
    move = compose([alone.translate(b, a, amount) for a, b, amount in moves])
    [moved], unmoved = alone.transform([line], move), alone.reconstruct(line)
    assert answer == {"text": moved, "unmoved": unmoved, "amounts": [1.0, 1.5], "probability": None}
    still = result(client, "/api/text/blend", {"model": names["text"], "text": line, "moves": []})
    assert still["text"] == still["unmoved"]
    requested[0]["target"] = "angry"
    refusal(client.post("/api/text/blend", json={"model": names["text"], "text": line, "moves": requested}), 400)


def test_a_sentence_is_moved_until_the_classifier_accepts_it(client: TestClient, names: dict[str, str]) -> None:
    line = "the food was bad and the bar is cold"
    move = {"source": "bad", "target": "good", "amount": 2.5}
    body = {"model": names["text"], "text": line, "moves": [move], "until": 0.6}
    answer = result(client, "/api/text/blend", body)
    alone = codec.load(names["text"])
    [chosen] = alone.blend_until([line], [("bad", "good", 2.5)], Choice(until=0.6))
    assert answer["text"] == chosen.line != line
    assert answer["unmoved"] == alone.reconstruct(line)
    assert answer["amounts"] == [pytest.approx(2.5 * chosen.share)]
    assert answer["probability"] == pytest.approx(chosen.probability, abs=1e-3) and answer["probability"] >= 0.6
    start = {**body, "moves": [move, {"target": "present", "amount": 1}]}
    assert "name the style" in refusal(client.post("/api/text/blend", json=start), 400)
    refusal(client.post("/api/text/blend", json={**body, "until": 1}), 422)


def test_a_map_has_every_style_and_the_mean_of_a_style_belongs_to_it(client: TestClient, names: dict[str, str]) -> None:
    answer = result(client, "/api/map", {"model": names["text"]})
    assert [place["name"] for place in answer["styles"]] == ["bad", "good", "past", "present"]
    assert len({place["colour"] for place in answer["styles"]}) == 4
    for place in answer["styles"]:
        x, y = place["mean"]
        found = result(client, "/api/map/decode", {"model": names["text"], "x": x, "y": y, "spread": 0})
        assert sum(found["shares"].values()) == pytest.approx(1, abs=0.001)
        assert found["shares"][place["name"]] > 0.25  # four styles, each half of another two
        assert found["text"] and found["roll"] is None


def test_music_on_the_map_has_sound_and_a_picture(client: TestClient, names: dict[str, str]) -> None:
    body = {"model": names["music"], "x": 0.5, "y": -0.5, "spread": 1, "seed": 4}
    found = result(client, "/api/map/decode", body)
    assert found["text"] is None and len(found["roll"]["bars"]) == 3
    assert client.get(f"/api/music/{found['roll']['id']}.wav", params={"small": 1}).status_code == 200
    refusal(client.post("/api/map/decode", json={**body, "x": 1e9}), 422)


def test_sessions_are_scored_as_by_the_command(client: TestClient, names: dict[str, str]) -> None:
    from commands import seqvae

    lines = [*SESSIONS[:3], "close close read read write open", "", "never seen at all"]
    answer = result(client, "/api/anomalies", {"model": names["events"], "lines": lines})
    printed = seqvae("detect", "score", "-m", names["events"], *(line or " " for line in lines)).stdout.splitlines()
    assert answer["p_value"] == 0.01
    for session, line, row in zip(answer["sessions"], lines, printed, strict=True):
        p_value, verdict, _ = row.split(maxsplit=2)
        assert f"{session['p_value']:.3g}" == p_value
        assert session["anomalous"] is (verdict == "anomalous")
        words = [token["text"].strip() for token in session["tokens"]]
        assert words == [*line.split(), "<eos>"]
        assert sum(token["marked"] for token in session["tokens"]) == min(explain.POINTED, len(words))
    assert answer["sessions"][3]["anomalous"]


def test_there_are_example_sessions(client: TestClient, names: dict[str, str]) -> None:
    lines = result(client, "/api/anomalies/examples", {"model": names["events"]})
    assert len(lines) == 5 and sorted(lines[4].split()) == sorted(max(lines[:4], key=len).split())


def test_too_many_sessions_are_refused(client: TestClient, names: dict[str, str]) -> None:
    refusal(client.post("/api/anomalies", json={"model": names["events"], "lines": ["a"] * 501}), 422)
    refusal(client.post("/api/anomalies", json={"model": names["events"], "lines": ["a b " * 4000] * 20}), 413)
    refusal(client.post("/api/anomalies", json={"model": names["events"], "lines": []}), 422)
    assert "no detector" in refusal(
        wait(client, client.post("/api/anomalies", json={"model": names["text"], "lines": ["a"]})), 400
    )


# --- access -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8321", "localhost.evil.example", "", "[", "a b"])
def test_other_hosts_are_refused(client: TestClient, host: str) -> None:
    assert "not a name of this server" in refusal(client.get("/api/models", headers={"Host": host}), 400)
    assert "not a name of this server" in refusal(client.get("/", headers={"Host": host}), 400)


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8321", "127.0.0.1:8321", "[::1]:8321", "192.168.0.7", "LOCALHOST"]
)
def test_own_host_names_are_served(client: TestClient, host: str) -> None:
    assert client.get("/api/models", headers={"Host": host}).status_code == 200


def test_a_given_host_name_is_served(names: dict[str, str]) -> None:
    with TestClient(application(Models(), ["studio.lan"]), HOME) as named:
        assert named.get("/api/models", headers={"Host": "studio.lan:80"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    ],
)
def test_other_origins_are_refused(client: TestClient, names: dict[str, str], headers: dict[str, str]) -> None:
    body = {"model": names["text"], "a": "one", "b": "two"}
    assert "other sites" in refusal(client.post("/api/text/steps", json=body, headers=headers), 403)


def test_a_link_from_another_site_opens_the_page_but_its_scripts_read_nothing(client: TestClient) -> None:
    far = {"Sec-Fetch-Site": "cross-site"}
    assert client.get("/", headers={**far, "Sec-Fetch-Mode": "navigate"}).status_code == 200
    refusal(client.get("/api/models", headers={**far, "Sec-Fetch-Mode": "cors"}), 403)
    own = {"Sec-Fetch-Site": "same-origin", "Origin": HOME}
    assert client.get("/api/models", headers=own).status_code == 200


def test_other_content_types_are_refused(client: TestClient) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        response = client.post("/api/text/steps", content=b"{}", headers={"Content-Type": kind})
        assert "send application/json" in refusal(response, 415)
    assert "send multipart" in refusal(client.post("/api/music/pieces", json={"file": "x"}), 415)


def test_an_endless_body_is_refused(client: TestClient) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(2 * guard.LIMIT // 65536):
            yield b"0" * 65536

    for path, kind in (
        ("/api/text/steps", "application/json"),
        ("/api/music/pieces", "multipart/form-data; boundary=x"),
    ):
        response = client.post(path, content=endless(), headers={"Content-Type": kind})
        assert "4 MB" in refusal(response, 413)


def test_an_invalid_request_is_refused_with_a_message(client: TestClient) -> None:
    response = client.post("/api/text/steps", content=b"{", headers={"Content-Type": "application/json"})
    assert "not a JSON object" in refusal(response, 422)
    assert "nothing at this address" in refusal(client.get("/api/nothing"), 404)
    assert "does not accept this method" in refusal(client.delete("/api/models"), 405)
    assert "nothing at this address" in refusal(client.get("/../server.py"), 404)


def test_pages_load_nothing_from_other_hosts(client: TestClient) -> None:
    for path in ("/", "/api.html", "/studio.js", "/api/models", "/openapi.json"):
        response = client.get(path)
        assert response.status_code == 200
        assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert response.headers["x-content-type-options"] == "nosniff"
        if path.endswith((".js", ".html", "/")):
            assert "://" not in response.text.replace("http://www.w3.org/2000/svg", "")
    routes = client.get("/openapi.json").json()["paths"]
    assert {
        "/api/music/blend",
        "/api/text/steps",
        "/api/map/decode",
        "/api/anomalies",
        "/api/jobs/{job}",
    } <= routes.keys()


def test_a_port_in_use_is_an_error_in_one_line() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(SeqVAEError, match="choose another --port"):
        listen("127.0.0.1", taken.getsockname()[1])
