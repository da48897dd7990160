"""Screenshots of the studio and of a song's page for docs/pictures, with the released models.

    python docs/screenshots.py [NAME ...]

Scope: the content of each picture; needs playwright and the system's Chromium. Out of scope: checks of the result; look
at each picture before you keep it.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

PICTURES = Path(__file__).parent / "pictures"
WIDE, NARROW = {"width": 1240, "height": 900}, {"width": 390, "height": 800}
PIECE = "bach/bwv66.6"


def music(page: Any) -> None:
    """A chorale and its blend half-way to rock, with the playback position in the middle."""
    page.locator("#music-corpus").fill(PIECE)
    page.get_by_role("button", name="Open", exact=True).click()
    page.locator("[data-take=blend]").wait_for()
    page.select_option("#music-source", "classical")
    with page.expect_response("**/api/music/blend"):
        page.select_option("#music-target", "rock")
    page.get_by_text("bwv66.6-rock-0.5").wait_for()
    page.get_by_label("Position in the song").fill("8")


def text(page: Any) -> None:
    """Interpolation of two sentences, and a sentence moved only as far as needed."""
    page.get_by_role("tab", name="Text").click()
    page.get_by_role("button", name="Walk").click()
    page.locator("#walk-steps li").nth(8).wait_for()
    page.locator("#walk-amount").fill("4")
    page.get_by_label("Move 1: from").wait_for()
    page.get_by_role("checkbox", name="Only as far as needed").check()
    page.locator("#move-how").wait_for()


def styles(page: Any) -> None:
    """The map of genres, and the decoded point between two of them."""
    page.get_by_role("tab", name="Map").click()
    page.locator("#map-legend").get_by_text("rock").wait_for()
    box = page.locator("#map-plane").bounding_box()
    page.locator("#map-plane").click(position={"x": 0.53 * box["width"], "y": 0.55 * box["height"]})
    page.locator("#map-result canvas").wait_for()


def anomalies(page: Any) -> None:
    """The example of the page: four sessions sampled from the model, and a shuffled one."""
    page.get_by_role("tab", name="Anomalies").click()
    page.get_by_role("button", name="Show me an example").click()
    page.locator(".session").nth(4).wait_for()


def file(page: Any) -> None:
    """A song's page at four seconds."""
    page.locator("#place").fill("4")


STUDIO: dict[str, tuple[Callable[[Any], None], dict[str, int], str]] = {
    "studio-music": (music, WIDE, "light"),
    "studio-text": (text, WIDE, "light"),
    "studio-map": (styles, WIDE, "light"),
    "studio-anomalies": (anomalies, WIDE, "light"),
    "studio-dark": (music, WIDE, "dark"),
    "studio-narrow": (music, NARROW, "light"),
}
PAGE = {
    "page-light": (file, {"width": 1240, "height": 720}, "light"),
    "page-dark": (file, {"width": 1240, "height": 720}, "dark"),
}


def take(browser: Any, address: str, name: str, show: Callable[[Any], None], size: Any, scheme: str) -> None:
    """Save a screenshot of the full page."""
    page = browser.new_page(viewport=size, color_scheme=scheme)
    page.set_default_timeout(120_000)
    page.goto(address)
    if not address.startswith("file:"):
        page.locator("body[data-ready]").wait_for()
    show(page)
    page.wait_for_timeout(3000)  # for the other moves and the hiding of the progress bar
    page.mouse.move(0, 0)
    page.evaluate("() => document.activeElement.blur()")  # no focus ring
    image = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(PICTURES / f"{name}.png", optimize=True)  # a third of the size
    print(f"{name}.png: {image.width} x {image.height}, {(PICTURES / f'{name}.png').stat().st_size // 1000} kB")
    page.close()


def main() -> None:
    """Take the named pictures, or all."""
    wanted = sys.argv[1:] or [*STUDIO, *PAGE]
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    command = [sys.executable, "-m", "seqvae"]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        studio = subprocess.Popen([*command, "studio", "--port", "0"], stdout=subprocess.PIPE, text=True)
        try:
            assert studio.stdout is not None
            address = studio.stdout.readline().split()[0]
            for name in wanted:
                if name in STUDIO:
                    take(browser, address, name, *STUDIO[name])
        finally:
            studio.terminate()
            studio.wait()
        if not {*wanted}.isdisjoint(PAGE):
            blend = [
                "blend",
                f"corpus:{PIECE}",
                "-m",
                "music",
                "--from",
                "classical",
                "--to",
                "rock",
                "--amount",
                "0.5",
            ]
            subprocess.run([*command, *blend, "-o", f"{folder}/blend.mid", "--html"], check=True)
            for name in wanted:
                if name in PAGE:
                    take(browser, Path(folder, "blend.html").as_uri(), name, *PAGE[name])
        browser.close()


if __name__ == "__main__":
    main()
