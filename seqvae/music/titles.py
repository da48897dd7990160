"""Song titles from names of files, so that a split of songs keeps all files of a song together.

Scope: names of music files. Out of scope: content of files.
"""

from __future__ import annotations

import re
from pathlib import Path

from seqvae.music import tune_books

_CATALOGUES = (
    re.compile(r"\b(bwv)\W*0*(\d+)"),
    re.compile(r"\b(k)v?\W*(\d{1,3})"),  # at most three digits: more belong to another number whose slash is lost
    re.compile(r"\b(op)\W*0*(\d+)(?:\W*(n)o?\W*0*(\d+))?"),
)
# fmt: off
_NO_TITLE = frozenset({
    "a", "an", "the", "and", "of", "in", "on", "to", "for", "from", "with", "at", "by", "as", "is", "it", "its",
    "i", "im", "ive", "id", "ill", "me", "my", "you", "your", "youre", "we", "be", "do", "dont", "if", "so", "no",
    "or", "this", "midi", "classical", "kern",
})
_FORMS = frozenset({
    "piano", "keyboard", "string", "sonata", "sonatas", "symphony", "concerto", "quartet", "quartets", "prelude",
    "preludes", "fugue", "etude", "etudes", "suite", "impromptu", "waltz", "minuet", "menuet", "rondo",
    "overture", "op",
})
_VERSIONS = frozenset({
    "live", "acoustic", "instrumental", "karaoke", "cover", "demo", "remix", "mix", "remaster", "remastered", "version",
    "edit", "medley", "solo", "piano", "guitar", "full", "original", "midi", "kar",
})
# fmt: on


def title(path: str | Path) -> str:
    """Key that files of one song or work share, for a split that keeps each song on one side.

    Names of files add anything after a song's title (arranger, artist, version) and after a work's number (movement,
    repeats), so only the beginning counts: the catalogue number if there is one, else the first distinctive word,
    with the next word or number after a musical form. A name in parts separated by ` - ` begins with the artist.
    `all-blues-dz`, `AllBlues` and `all-blues-miles-davis-bl` share a title. Different songs may share one as well,
    which does no harm to a split. A tune in an ABC file has its own title (`tune_books.title`).
    """
    if tune_books.divided(path)[1]:
        path = tune_books.title(path)
    text = path if isinstance(path, str) else path.as_posix()
    name = re.split(r"[/\\:]", text)[-1].replace("'", "")
    name = re.sub(r"(?i)\.(midi?|kar|rmi|smf|mxl|musicxml|xml|krn|abc)$", "", name)
    if re.fullmatch(r"[A-Za-z]*(-[a-z])?\d+", name):
        return name.lower()  # a number in a collection: `jigs104`, `reelsa-c12`, `001`
    for catalogue in _CATALOGUES:
        if found := catalogue.search(name.lower()):
            return "".join(part for part in found.groups() if part)
    name = _song(name)
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    words = [word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word]
    telling = [word for word in words if (word not in _NO_TITLE and len(word) > 1) or word.isdigit()]
    chosen: list[str] = []
    for word in telling:
        if re.fullmatch(r"[0-9a-f]{6,}", word) and not word.isalpha() and not word.isdigit():
            continue  # a checksum before the name
        word = re.sub(r"(?<=[a-z]{4})\d$", "", word)  # a version: `broadway2`
        chosen.append(word[:7] if word.isalpha() else word)  # only the first letters, because spellings differ later
        if word not in _FORMS:
            break
    return "-".join(chosen or words) or name.lower()


def _song(name: str) -> str:
    """The song in `artist - song`, `02 - artist - song - live` and similar names; other names unchanged.

    For `artist - work - movement` the work, and for `artist - album - song` the album; a coarser title does no harm.
    """
    parts = [part for part in re.split(r"\s+[-\u2013\u2014]\s+|_+[-\u2013\u2014]_+", name) if re.search(r"\w", part)]
    parts = [part for part in parts[:-1] if not re.fullmatch(r"\W*\d{1,3}\W*", part)] + parts[-1:]
    last = set(re.findall(r"[^\W_]+", parts[-1].lower())) if parts else set()
    if len(parts) > 1 and last & _VERSIONS and last <= _VERSIONS | _NO_TITLE:
        parts.pop()
    if not parts or _FORMS & set(re.findall(r"[a-z]+", parts[0].lower())):
        return name  # no artist: `Sonata No. 3 - Allegro`
    return parts[1] if len(parts) > 1 else parts[0]
