"""Augmentation of lines for training: words that a vocabulary lacks, capitals, other scripts.

Scope: the text of a line. Out of scope: tokens (text/tokenizer.py), and which lines are augmented (train/trainer.py).

Few corpora hold emoji, addresses or other scripts, and the byte tokens that spell them would hardly be trained. Random
ones, different at every call, can be reconstructed by copying alone.
"""

from __future__ import annotations

import string
from random import Random

_SCRIPTS = (  # first and last letter, most letters of a word
    (0x00C0, 0x017F, 7),  # Latin with diacritics
    (0x03B1, 0x03C9, 7),  # Greek
    (0x0410, 0x044F, 7),  # Cyrillic
    (0x05D0, 0x05EA, 6),  # Hebrew
    (0x0621, 0x063A, 6),  # Arabic
    (0x0905, 0x0939, 5),  # Devanagari
    (0x0E01, 0x0E2E, 5),  # Thai
    (0x3041, 0x3096, 4),  # Hiragana
    (0x30A1, 0x30FA, 4),  # Katakana
    (0x4E00, 0x9FFF, 4),  # Chinese characters
    (0x4E00, 0x9FFF, 4),
    (0xAC00, 0xD7A3, 4),  # Hangul
)
_EMOJI = ((0x1F300, 0x1F5FF), (0x1F600, 0x1F64F), (0x1F680, 0x1F6C5), (0x1F900, 0x1F9FF), (0x2600, 0x27BF))
_TONES, _VARIANT = (0x1F3FB, 0x1F3FF), "\ufe0f"
_SIGNS = "€£¥©®°±×÷½…—«»¿¡•→"
_DOMAINS = ("com", "org", "net", "de", "co.uk", "io", "edu")
_INSERTED, _CASED = 0.7, 0.15  # shares of lines with new words, and of lines in another case; the rest is one script


def augmented(line: str, rng: Random) -> str:
    """A variant of a line: one to three random words in it, another case, or random words of one script instead.

    Raises ValueError for a line without words.
    """
    words = line.split(" ")
    if not line.strip():
        raise ValueError("a blank line has no variant")
    kind = rng.random()
    if kind < _INSERTED:
        for _ in range(rng.choice((1, 1, 2, 3))):
            at = rng.randrange(len(words) + 1)
            words[at : at + rng.randint(0, 1)] = [_word(words[at] if at < len(words) else "", rng)]
        return " ".join(words)
    if kind < _INSERTED + _CASED:
        return rng.choice((line.upper(), line.lower(), line.title()))
    script = rng.choice(_SCRIPTS)
    return " ".join(_letters(script, rng) for _ in range(rng.randint(1, min(4, len(words)))))


def _word(word: str, rng: Random) -> str:
    """A random word: emoji, address, number, name, sign, or letters of any script; or a variant of `word`."""
    latin = _latin(rng)
    makers = (
        lambda: rng.choice(("", word)) + "".join(_emoji(rng) for _ in range(rng.choice((1, 1, 2, 3)))),
        lambda: _address(rng),
        lambda: f"{latin}@{_latin(rng)}.{rng.choice(_DOMAINS)}",
        lambda: rng.choice("#@") + rng.choice((latin, latin.capitalize(), f"{latin}{rng.randint(0, 99)}")),
        lambda: _number(rng),
        lambda: rng.choice((word.upper(), word.capitalize(), latin, latin.upper(), latin.capitalize())) or latin,
        lambda: word + "".join(rng.choice(string.punctuation) for _ in range(rng.randint(1, 3))),
        lambda: rng.choice(_SIGNS) + rng.choice(("", word, str(rng.randint(1, 999)))),
        lambda: _letters(rng.choice(_SCRIPTS), rng),
        lambda: _letters(rng.choice(_SCRIPTS), rng),
    )
    return rng.choice(makers)()


def _letters(script: tuple[int, int, int], rng: Random) -> str:
    first, last, most = script
    return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, most)))


def _latin(rng: Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 8)))


def _emoji(rng: Random) -> str:
    ending = rng.choice(("", "", "", "", _VARIANT, chr(rng.randint(*_TONES))))
    return chr(rng.randint(*rng.choice(_EMOJI))) + ending


def _address(rng: Random) -> str:
    """A web address."""
    beginning = rng.choice(("https://www.", "https://", "http://", "www.", ""))
    path = "".join(f"/{_latin(rng)}" for _ in range(rng.choice((0, 1, 1, 2))))
    ending = rng.choice(("", "", "/", ".html", f"?{_latin(rng)}={rng.randint(0, 999)}"))
    return f"{beginning}{_latin(rng)}.{rng.choice(_DOMAINS)}{path}{ending}"


def _number(rng: Random) -> str:
    """A number, sum of money, date or time."""
    size = 10 ** rng.randint(1, 7)
    return rng.choice(
        (
            f"{rng.randrange(size)}",
            f"{rng.randrange(size):,}",
            f"{rng.choice('$€£')}{rng.randrange(1000)}.{rng.randrange(100):02}",
            f"{rng.randrange(1000) / 10}%",
            f"{rng.randint(1, 23)}:{rng.randrange(60):02}",
            f"{rng.randint(1900, 2030)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
            f"{rng.randint(1, 28)}/{rng.randint(1, 12)}/{rng.randint(1900, 2030)}",
            f"+{rng.randint(1, 99)} {rng.randrange(1000)} {rng.randrange(10**6)}",
        )
    )
