"""A web page with music on it, in one file: player, piano rolls and the sound itself, without any request.

Knows the page (page.html) and what is put into it. Refuses to know where scores come from, and files. The piano roll is
the studio's own (studio/static/roll.js), so that there is one.
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
from seqvae.music import synth as sound
from seqvae.music.pianoroll import colours, in_seconds, programs
from seqvae.music.piece import Piece

MAX_MINUTES = 10.0
"""Of sound in one page: some 64 kB a second."""

_HERE = Path(__file__).parent


def page(title: str, about: str, takes: Sequence[tuple[str, Any, Piece]]) -> str:
    """A page (HTML) to hear and see music, of which one take is heard at a time.

    Args:
        title: the heading.
        about: a line below it.
        takes: a title, a score (symusic's) and a piece that has its bars.

    Raises:
        SeqVAEError: there are more than `MAX_MINUTES` of sound, or as `sound.render`.
    """
    total = sum(sound.seconds(score) for _, score, _ in takes)
    if total > 60 * MAX_MINUTES:
        minutes = f"{total / 60:,.0f} minutes"
        raise SeqVAEError(f"cannot put {minutes} of sound into one page: {MAX_MINUTES:g} is the most; use --wav")
    tints = colours(program for _, score, _ in takes for program in programs(score))
    data = {
        "title": title,
        "about": about,
        "takes": [
            {
                "title": name,
                "sound": base64.b64encode(sound.render(score, small=True)).decode(),
                **in_seconds(score, frame, tints),
            }
            for name, score, frame in takes
        ],
    }
    script = (_HERE.parent / "studio" / "static" / "roll.js").read_text(encoding="utf-8")
    script = re.sub(r"^import .*$", "", script, flags=re.MULTILINE).replace("export ", "")
    content = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # no name may end the script
    empty = (_HERE / "page.html").read_text(encoding="utf-8")
    empty = empty.replace("<title></title>", f"<title>{html.escape(title)}</title>")
    empty = empty.replace("/* the piano roll */", script)
    return empty.replace('id="data"></script>', f'id="data">{content}</script>')
