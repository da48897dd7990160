"""The studio in a real browser: each action of a visitor, with small models; skipped without Chromium."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from commands import song
from conftest import SESSIONS

from seqvae.studio import jobs
from seqvae.studio.models import Models
from seqvae.studio.server import application

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
FLAGS = [
    "--no-sandbox",  # tests run as root in containers
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]


@pytest.fixture(scope="module")
def address(names: dict[str, str]) -> Iterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application(Models(list(names.values()))), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page that fails the test on a script error or a request to another host."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    opened = context.new_page()
    opened.set_default_timeout(30_000)
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on(
        "console",
        lambda message: (
            wrong.append(message.text) if message.type == "error" and "status of" not in message.text else None
        ),
    )
    opened.on(
        "request", lambda request: None if request.url.startswith((address, "data:")) else wrong.append(request.url)
    )
    opened.goto(address)
    opened.locator("body[data-ready]").wait_for()
    yield opened
    context.close()
    assert not wrong


def open_song(page: Any, names: dict[str, str], tune: Path) -> Any:
    """Open a song; returns the element of its blend."""
    page.select_option("#music-model", names["music"])
    page.set_input_files("#music-file", tune)
    blend = page.locator("[data-take=blend]")
    blend.wait_for()
    return blend


def test_a_song_is_blended_as_the_slider_moves(page: Any, names: dict[str, str], tmp_path: Path) -> None:
    blend = open_song(page, names, song(tmp_path / "tune.mid", 2))
    assert "3 instruments" not in blend.inner_text()
    original = page.locator("[data-take=original]")
    assert original.locator(".legend button").all_inner_texts() == [
        "Acoustic Grand Piano",
        "Electric Bass (finger)",
        "Drums",
    ]
    assert "48 notes in 4 bars" in original.locator("canvas").get_attribute("aria-label")
    blend.get_by_text("tune-wild-0.5").wait_for()
    page.locator("#music-amount").fill("1.25")
    assert page.locator("#music-said").inner_text() == "1.25"
    blend.get_by_text("tune-wild-1.25").wait_for()
    page.locator("#music-amount").press("ArrowLeft")
    blend.get_by_text("tune-wild-1.2", exact=True).wait_for()
    page.select_option("#music-target", "calm")
    blend.get_by_text("tune-calm-1.2").wait_for()
    with page.expect_response("**/api/music/blend") as response:
        page.get_by_role("checkbox", name="drums").check()
    assert response.value.request.post_data_json["keep"] == ["melody", "drums"]
    with page.expect_download() as saved:
        blend.get_by_role("link", name="Download Blend as MIDI").click()
    assert Path(saved.value.path()).read_bytes().startswith(b"MThd")
    with page.expect_download() as saved:
        original.get_by_role("link", name="Download Original as WAV").click()
    assert Path(saved.value.path()).read_bytes().startswith(b"RIFF")


def test_it_is_played_stopped_looped_and_muted(page: Any, names: dict[str, str], tmp_path: Path) -> None:
    open_song(page, names, song(tmp_path / "tune.mid", 4))
    original = page.locator("[data-take=original]")
    original.get_by_role("radio").check()
    place, head = page.get_by_label("Position in the song"), original.locator(".head")
    page.get_by_role("button", name="Play", exact=True).click()
    page.get_by_role("button", name="Pause").wait_for()
    until = time.monotonic() + 20
    while float(place.input_value()) < 0.3 and time.monotonic() < until:
        time.sleep(0.05)
    assert float(place.input_value()) >= 0.3
    assert head.evaluate("(element) => parseFloat(element.style.left)") > 0
    with page.expect_response("**/*.wav?mute=2&small=1"):  # and continues without the drums
        original.get_by_role("button", name="Drums").click()
    assert original.get_by_role("button", name="Drums").get_attribute("aria-pressed") == "true"
    with page.expect_download() as saved:
        original.get_by_role("link", name="Download Original as WAV").click()
    assert saved.value.url.endswith("?mute=2")
    loop = page.get_by_role("button", name="Loop")
    loop.click()
    assert loop.get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Play", exact=True).wait_for()
    assert float(place.input_value()) == 0
    place.fill("3")
    assert "0:03 /" in page.locator(".clock").inner_text()


def test_a_song_of_the_corpus_is_opened_by_its_name(page: Any, names: dict[str, str]) -> None:
    page.select_option("#music-model", names["music"])
    page.locator("#music-corpus").fill("bach/bwv66.6")
    page.get_by_role("button", name="Open", exact=True).click()
    page.locator("[data-take=blend]").wait_for()
    assert "bach/bwv66.6" in page.locator("[data-take=original]").inner_text()


def test_a_dropped_file_is_opened_and_a_wrong_one_is_refused_with_a_message(
    page: Any, names: dict[str, str], tmp_path: Path
) -> None:
    page.select_option("#music-model", names["music"])
    content = song(tmp_path / "tune.mid", 2).read_bytes()
    drop = """([name, bytes]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], name));
        const dropped = new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
        document.querySelector("#music").dispatchEvent(dropped);
    }"""
    page.evaluate(drop, ["words.doc", list(b"abc")])
    problem = page.get_by_role("alert")
    problem.wait_for()
    assert "not a known format of music" in problem.inner_text()
    page.evaluate(drop, ["dropped.mid", list(content)])
    page.locator("[data-take=blend]").wait_for()
    assert not problem.is_visible()


def test_long_work_shows_its_progress_and_can_be_cancelled(
    page: Any, names: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = threading.Event()

    def long(self: Any, *args: Any) -> list[str]:
        try:
            for i in range(1000):
                self.inference.report(i / 1000, "walking slowly")
                time.sleep(0.02)
        except jobs.AbandonedError:
            stopped.set()
            raise
        return []

    monkeypatch.setattr("seqvae.codec.Codec.interpolate", long)
    page.get_by_role("tab", name="Text").click()
    page.select_option("#text-model", names["text"])
    page.get_by_role("button", name="Walk").click()
    bar = page.get_by_role("progressbar")
    bar.wait_for()
    assert bar.get_attribute("aria-valuetext") == "walking slowly"
    assert "walking slowly" in page.locator("#said").inner_text()
    page.get_by_role("button", name="Cancel").click()
    bar.wait_for(state="hidden")
    assert stopped.wait(10)
    page.get_by_role("button", name="Walk").click()
    bar.wait_for()
    stopped.clear()
    page.goto("about:blank")  # clients that leave are not waited for
    assert stopped.wait(jobs.PATIENCE / 2)


def test_sentences_are_interpolated_and_translated(page: Any, names: dict[str, str]) -> None:
    page.get_by_role("tab", name="Text").click()
    page.select_option("#text-model", names["text"])
    page.locator("#walk-a").fill("the food was good and the bar is new")
    page.locator("#walk-b").fill("the room is bad and the place is cold")
    page.get_by_role("button", name="Walk").click()
    steps = page.locator("#walk-steps li")
    steps.nth(8).wait_for()
    page.locator("#walk-amount").fill("8")
    assert page.locator("#walk-now").inner_text() == steps.nth(8).inner_text().partition("9")[2].strip()
    assert steps.nth(8).get_by_role("button").get_attribute("aria-current") == "step"
    page.locator("#move-text").fill("the food was bad and the bar is cold")
    page.get_by_label("Move 1: from").wait_for()
    page.locator("#move-rows input").first.fill("1")
    page.locator("#move-now").wait_for()
    page.get_by_role("button", name="Add a move").click()
    assert page.locator("#move-rows .move").count() > 1
    with page.expect_response("**/api/text/blend") as response:
        page.locator("#move-rows input").last.fill("-0.5")
    assert [move["amount"] for move in response.value.request.post_data_json["moves"]] == [1, -0.5]


def test_a_sentence_is_moved_only_as_far_as_needed(page: Any, names: dict[str, str]) -> None:
    page.get_by_role("tab", name="Text").click()
    page.select_option("#text-model", names["text"])
    page.locator("#move-text").fill("the food was bad and the bar is cold")
    page.get_by_label("Move 1: from").select_option("bad")
    page.get_by_label("Move 1: to").select_option("good")
    assert not page.locator("#move-probability").is_visible()

    def asked(until: float | None, amount: float) -> Any:
        wanted = [{"source": "bad", "target": "good", "amount": amount}], until
        return page.expect_request(
            lambda request: (
                request.url.endswith("/api/text/blend")
                and (request.post_data_json["moves"], request.post_data_json["until"]) == wanted
            )
        )

    with asked(0.9, 2.5):
        page.get_by_role("checkbox", name="Only as far as needed").check()
    page.locator("#move-how").get_by_text("probability 0.").wait_for()
    with asked(0.6, 2.5):
        page.get_by_label("Until a classifier gives").fill("0.6")
    with asked(None, 1.5):
        page.get_by_role("checkbox", name="Only as far as needed").uncheck()
    page.locator("#move-how").wait_for(state="hidden")


def test_the_map_is_decoded_by_mouse_and_by_keyboard(page: Any, names: dict[str, str]) -> None:
    page.get_by_role("tab", name="Map").click()
    page.select_option("#map-model", names["text"])
    page.locator("#map-legend").get_by_text("present").wait_for()
    plane = page.locator("#map-plane")
    plane.click(position={"x": 300, "y": 200})
    page.locator("#map-result .sentence").wait_for()
    assert "Here: " in page.locator("#map-where").inner_text()
    plane.focus()
    plane.press("ArrowRight")
    assert "cross at" in page.locator("#map-where").inner_text()
    with page.expect_response("**/api/map/decode") as response:
        plane.press("Enter")
    first = response.value.request.post_data_json
    with page.expect_response("**/api/map/decode") as response:
        page.get_by_role("button", name="Another sample here").click()
    again = response.value.request.post_data_json
    assert (first["x"], first["y"]) == (again["x"], again["y"]) and first["seed"] != again["seed"]
    page.select_option("#map-model", names["music"])
    page.locator("#map-legend").get_by_text("wild").wait_for()
    plane.click(position={"x": 400, "y": 200})
    page.locator("#map-result canvas").wait_for()


def test_sessions_are_pasted_dropped_and_coloured(page: Any, names: dict[str, str]) -> None:
    page.get_by_role("tab", name="Anomalies").click()
    page.select_option("#sessions-model", names["events"])
    page.locator("#sessions-lines").fill(f"{SESSIONS[0]}\nclose close read read write open\n")
    page.get_by_role("button", name="Score").click()
    rows = page.locator(".session")
    rows.nth(1).wait_for()
    assert rows.locator(".verdict").all_inner_texts() == ["normal", "anomalous"]
    assert page.locator(".summary").inner_text() == "1 of 2 anomalous at p ≤ 0.01"
    assert rows.nth(0).locator("mark").count() == 0 and rows.nth(1).locator("mark").count() == 5
    assert "color-mix" in rows.nth(1).locator("mark").first.get_attribute("style")
    page.evaluate(
        """(text) => {
        const data = new DataTransfer();
        data.items.add(new File([text], "sessions.txt"));
        document.querySelector("#anomalies").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
    }""",
        "\n".join(SESSIONS[:3]),
    )
    rows.nth(2).wait_for()
    page.get_by_role("button", name="Show me an example").click()
    rows.nth(4).wait_for()


def test_tabs_work_by_keyboard_and_every_control_has_a_name(page: Any) -> None:
    page.get_by_role("tab", name="Music").focus()
    for name in ("Text", "Map", "Anomalies", "Music"):
        page.keyboard.press("ArrowRight")
        tab = page.get_by_role("tab", name=name)
        assert tab.get_attribute("aria-selected") == "true"
        assert page.locator("[role=tabpanel]:visible").get_attribute("aria-labelledby") == tab.get_attribute("id")
        nameless = """() => [...document.querySelectorAll("input, select, textarea, button, a, canvas, [tabindex='0']")]
            .filter((one) => !(one.labels?.length || one.textContent.trim() || one.getAttribute("aria-label")))
            .map((one) => one.outerHTML)"""
        assert page.evaluate(nameless) == []


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (800, "dark"), (1600, "light")])
def test_it_fits_every_screen(
    browser: Any, address: str, names: dict[str, str], width: int, scheme: str, tmp_path: Path
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(address)
    page.locator("body[data-ready]").wait_for()
    open_song(page, names, song(tmp_path / "tune.mid", 1))
    for name in ("Music", "Text", "Map", "Anomalies"):
        page.get_by_role("tab", name=name).click()
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    dots = """() => [...document.querySelectorAll("[data-take=original] .legend i")]
        .map((dot) => getComputedStyle(dot).backgroundColor)"""
    colours = page.evaluate(dots)
    assert len(colours) == len(set(colours)) == 3 and "rgba(0, 0, 0, 0)" not in colours
    shade = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    bright = sum(int(part) for part in shade.strip("rgb()").split(",")) > 3 * 128
    assert bright == (scheme == "light")
    context.close()


def test_the_api_is_listed(page: Any, address: str) -> None:
    page.goto(f"{address}/api.html")
    page.locator(".route").first.wait_for()
    text = page.locator("#routes").inner_text()
    assert "/api/music/blend" in text and "all the way" in text
