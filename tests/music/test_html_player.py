"""The web page with music: one file without network requests, which plays in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import wave
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqvae.errors import SeqVAEError
from seqvae.music import html_player as page
from seqvae.music import piece as midi
from seqvae.music.piece import Piece

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def piece(seconds: int = 4, pitch: int = 60) -> Piece:
    """Quarter notes of half a second."""
    rows = [(i * 12, 12, pitch + i % 5, 0, 80) for i in range(2 * seconds)]
    bounds = np.arange(0, seconds * 24 + 48, 48, dtype=np.int32)
    return Piece(np.array(rows, np.int32), bounds, midi.make_frame(([(0, 500_000)], [(0, 4, 4)], [])), "tune")


def made(*pieces: Piece, title: str = "tune", about: str = "") -> str:
    return page.page(title, about, [(f"take {i}", midi.to_score(x.notes, x.frame), x) for i, x in enumerate(pieces)])


def data_of(content: str) -> dict[str, Any]:
    [found] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', content, re.DOTALL)
    data: dict[str, Any] = json.loads(found)
    return data


class Elements(HTMLParser):
    """Open tags, and all attributes so far."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        self.scripts += tag == "script"
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_it_parses_and_links_to_no_other_host() -> None:
    content = made(piece())
    elements = Elements()
    elements.feed(content)
    assert elements.open == []
    assert not [value for name, value in elements.attributes if name in ("src", "href")]
    assert not re.search(r"https?:|//[a-z0-9-]+\.[a-z]", content, re.IGNORECASE)
    assert not re.search(r"\b(import|export)\b[^(]*from|fetch\(|XMLHttpRequest|@import|url\(", content)


def test_it_contains_the_notes_and_the_sound() -> None:
    first, second = data_of(made(piece(4), piece(6)))["takes"]
    assert [len(take["tracks"][0]["notes"]) for take in (first, second)] == [8, 12]
    assert first["tracks"][0]["name"] == "Acoustic Grand Piano"
    assert first["bars"] == [0.0, 2.0, 4.0]
    with wave.open(io.BytesIO(base64.b64decode(first["sound"]))) as file:
        assert file.getnframes() / file.getframerate() == pytest.approx(5.0, abs=0.01)
        assert file.getnchannels() == 1
        assert np.abs(np.frombuffer(file.readframes(file.getnframes()), "<i2")).max() > 20_000


def test_an_instrument_has_its_colour_from_the_piano_roll() -> None:
    plot = pytest.importorskip("seqvae.plot", reason="matplotlib is not installed")
    few = [(i * 12, 12, 60, i % 3 * 30, 80) for i in range(4)]
    many = [(i * 6, 6, 72, 73 if i % 2 else midi.DRUMS, 80) for i in range(8)]
    frame, bounds = midi.make_frame(([(0, 500_000)], [(0, 4, 4)], [])), np.array([0, 48], np.int32)
    both = [Piece(np.array(rows, np.int32), bounds, frame, "") for rows in (few, few + many)]
    takes = data_of(made(*both))["takes"]
    [legend] = plot.roll([("a", both[0]), ("b", both[1])]).legends
    drawn = {text.get_text(): patch for text, patch in zip(legend.get_texts(), legend.get_patches(), strict=True)}
    shown = {track["name"]: track["colour"] for take in takes for track in take["tracks"]}
    assert len(shown) == len(set(shown.values())) == 5
    assert all(track["colour"] == shown[track["name"]] for take in takes for track in take["tracks"])
    for name, patch in drawn.items():
        assert np.allclose(patch.get_facecolor()[:3], [int(shown[name][i : i + 2], 16) / 255 for i in (1, 3, 5)])


@pytest.mark.parametrize("name", ["</script><script>alert(1)</script>", "<b>&amp;\"'", "a/* */b", "@x ünï ☃"])
def test_a_name_is_escaped(name: str) -> None:
    content = made(piece(), title=name, about=name)
    elements = Elements()
    elements.feed(content)
    assert elements.scripts == 2 and elements.open == []
    assert data_of(content)["title"] == data_of(content)["about"] == name


def test_a_page_with_too_long_sound_is_refused() -> None:
    long = piece(int(30 * page.MAX_MINUTES + 10))
    with pytest.raises(SeqVAEError, match=r"the limit is 10; use --wav"):
        made(long, long)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_plays_it_and_continues_in_the_other_take(tmp_path: Path, scheme: str) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = tmp_path / "page.html"
    path.write_text(made(piece(20), piece(20, 72), about="calm to wild"), encoding="utf-8")
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        opened = browser.new_page(color_scheme=scheme, viewport={"width": 1000, "height": 800})
        opened.set_default_timeout(120_000)  # on a busy machine
        wrong: list[str] = []
        requested: list[str] = []
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        opened.on("request", lambda request: requested.append(request.url))
        opened.goto(path.as_uri())
        assert opened.title() == "tune"
        assert opened.get_by_text("calm to wild").is_visible()
        assert opened.locator("canvas").count() == 2
        opened.get_by_role("button", name="Play").click()
        place = opened.locator("#place")

        def until(arrived: Callable[[float], bool]) -> None:  # wait_for_function evaluates text, which the page forbids
            for _ in range(600):
                if arrived(float(place.input_value())):
                    return
                opened.wait_for_timeout(100)
            pytest.fail(f"the play-head stays at {place.input_value()}")

        until(lambda at: at > 1)
        before = float(place.input_value())
        opened.get_by_label("take 0", exact=True).check()
        until(lambda at: at > before + 0.3)
        assert opened.get_by_role("button", name="Pause").is_visible()
        head = opened.locator(".head").first
        assert head.is_visible() and "%" in head.get_attribute("style")
        opened.get_by_role("button", name="Stop").click()
        until(lambda at: at == 0)
        opened.locator(".roll").first.click(position={"x": 200, "y": 50})
        assert 3 < float(place.input_value()) < 15
        browser.close()
    assert wrong == []
    assert [url for url in requested if not url.startswith(("file:", "data:"))] == []
