"""A web page with player, piano rolls and sound in one file, without network requests.

Scope: the page (page.html) and its content. Out of scope: the origin of scores, and files. The script of the piano roll
is the studio's (studio/static/roll.js).
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqvae.errors import SeqVAEError
from seqvae.music import synth
from seqvae.music.pianoroll import colours, in_seconds, programs
from seqvae.music.piece import Piece

MAX_MINUTES = 10.0
"""Limit of sound in one page, about 64 kB per second."""

_HERE = Path(__file__).parent


def page(title: str, about: str, takes: Sequence[tuple[str, Any, Piece]]) -> str:
    """An HTML page to hear and see one or several takes of music, one at a time.

    Args:
        title: the heading.
        about: a line below it.
        takes: for each take its title, its symusic score, and a piece with the same bars.

    Raises:
        SeqVAEError: the sound exceeds `MAX_MINUTES`, or `synth.render` fails.
    """
    total = sum(synth.seconds(score) for _, score, _ in takes)
    if total > 60 * MAX_MINUTES:
        minutes = f"{total / 60:,.0f} minutes"
        raise SeqVAEError(f"cannot put {minutes} of sound into one page: the limit is {MAX_MINUTES:g}; use --wav")
    tints = colours(program for _, score, _ in takes for program in programs(score))
    data = {
        "title": title,
        "about": about,
        "takes": [
            {
                "title": name,
                "sound": base64.b64encode(synth.render(score, small=True)).decode(),
                **in_seconds(score, frame, tints),
            }
            for name, score, frame in takes
        ],
    }
    script = (_HERE.parent / "studio" / "static" / "roll.js").read_text(encoding="utf-8")
    script = re.sub(r"^import .*$", "", script, flags=re.MULTILINE).replace("export ", "")
    content = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # a name must not end the script
    empty = (_HERE / "page.html").read_text(encoding="utf-8")
    empty = empty.replace("<title></title>", f"<title>{html.escape(title)}</title>")
    empty = empty.replace("/* the piano roll */", script)
    return empty.replace('id="data"></script>', f'id="data">{content}</script>')
