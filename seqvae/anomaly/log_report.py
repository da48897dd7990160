"""A report of a scored log as one HTML file: key figures, a time line, a table of sessions, and surprising lines.

Scope: the page, without scripts and without network requests. Out of scope: scores and p-values (conformal.py),
expected tokens (expectation.py), files.
"""

from __future__ import annotations

import html
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

LINES = 60
"""Maximum lines shown of a session; of a longer session, those around surprising lines."""
AROUND = 4
"""Lines shown before and after a surprising one."""
SESSIONS = 500
"""Maximum sessions in the table, the most anomalous first."""
DOTS = 5000
"""Maximum normal sessions on the time line, which shows all anomalous ones."""


@dataclass(frozen=True)
class Line:
    """A record of a session."""

    where: str
    """Its file and number, such as `app.log:12`; empty for the end of the session."""
    text: str
    probability: float
    """Probability of its event, given the events before it."""
    marked: bool
    """True for the most surprising lines of an anomalous session."""
    expected: Sequence[tuple[str, float]] = ()
    """Messages that are likelier at this position, with their probabilities."""


@dataclass(frozen=True)
class ScoredSession:
    """A session with its verdict."""

    name: str
    p_value: float
    anomalous: bool
    seconds: float | None
    """Start time in seconds since 1970; None if the log has no time stamps."""
    count: int
    """Number of records."""
    lines: Sequence[Line] = ()
    """Its records, if they are shown."""


def page(title: str, about: str, sessions: Sequence[ScoredSession], limit: float | None, fdr: float = 0.0) -> str:
    """The report of sessions in the order of the log.

    A session is anomalous at a p-value up to `limit` (None for a contamination), or among discoveries at a rate `fdr`.
    """
    strange = [one for one in sessions if one.anomalous]
    first = sorted(sessions, key=lambda one: (not one.anomalous, one.p_value))
    facts = {
        "sessions": f"{len(sessions):,}",
        "records": f"{sum(one.count for one in sessions):,}",
        _rule(limit, fdr): f"{len(strange):,}",
    }
    if limit is not None and not fdr:
        facts["false alarms expected, were all normal"] = f"{limit * len(sessions):,.1f}"
    figures = "".join(f"<div><b>{value}</b>{html.escape(name)}</div>" for name, value in facts.items())
    rows = "".join(map(_row, first[:SESSIONS]))
    rest = len(sessions) - SESSIONS
    more = f"<p class=soft>and {rest:,} sessions with larger p-values</p>" if rest > 0 else ""
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{html.escape(title)}</title>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        '<meta name=color-scheme content="light dark">'
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1><p class=soft>{html.escape(about)}</p>"
        f"<div class=figures>{figures}</div><h2>Time line</h2>{_time_line(sessions, None if fdr else limit)}"
        f"<h2>Sessions, the strangest first</h2><div class=table>{rows}</div>{more}</body></html>\n"
    )


def _rule(limit: float | None, fdr: float) -> str:
    """The rule by which a session is anomalous."""
    if fdr:
        return f"anomalous at a false discovery rate of {fdr:g}"
    return "anomalous" if limit is None else f"anomalous at p ≤ {limit:g}"


def _row(one: ScoredSession) -> str:
    """A session: its verdict, with its lines to unfold."""
    verdict = "anomalous" if one.anomalous else "normal"
    head = (
        f"<span class=p>{one.p_value:.3g}</span><span class={verdict}>{verdict}</span>"
        f"<span class=name>{html.escape(one.name)}</span>"
        f"<span class=soft>{', '.join([f'{one.count} records', *_when(one.seconds)])}</span>"
    )
    if not one.lines:
        return f"<div class=row>{head}</div>"
    return (
        f"<details class=row{' open' if one.anomalous else ''}><summary>{head}</summary>{_lines(one.lines)}</details>"
    )


def _when(seconds: float | None) -> list[str]:
    """The time of day, with the date if it is known; empty without a time."""
    if seconds is None:
        return []
    form = "%b %d %H:%M:%S" if seconds >= 86400 else "%H:%M:%S"
    return [time.strftime(form, time.gmtime(seconds))]


def _lines(lines: Sequence[Line]) -> str:
    """A session's lines; surprising ones with their probability and the expected messages."""
    shown = set(range(len(lines)))
    if len(lines) > LINES:
        marks = [i for i, line in enumerate(lines) if line.marked]
        shown &= {at for i in marks for at in range(i - AROUND, i + AROUND + 1)}
    out, last = [], -1
    for i in sorted(shown):
        if i > last + 1:
            out.append(f"<div class=gap>{i - last - 1} more lines</div>")
        out.append(_line(lines[i]))
        last = i
    if last + 1 < len(lines):
        out.append(f"<div class=gap>{len(lines) - last - 1} more lines</div>")
    return f"<div class=lines>{''.join(out)}</div>"


def _line(line: Line) -> str:
    text = html.escape(line.text) if line.where else "<i>the session ends</i>"
    body = f"<span class=where>{html.escape(line.where)}</span><span class=text>{text}</span>"
    if not line.marked:
        return f"<div>{body}</div>"
    instead = "".join(
        f"<div class=instead>{share:.0%} <span>{html.escape(message)}</span></div>" for message, share in line.expected
    )
    instead = f"<div class=why>a normal session has here{instead}</div>" if instead else ""
    return f"<div class=mark>{body}<span class=p>{line.probability:.2g}</span>{instead}</div>"


def _time_line(sessions: Sequence[ScoredSession], limit: float | None) -> str:
    """A picture (SVG): sessions over time, higher for lower p-values; in order if times are unknown."""
    if not sessions:
        return ""
    timed = all(one.seconds is not None for one in sessions)
    at = [float(one.seconds or 0.0) if timed else float(i) for i, one in enumerate(sessions)]
    low, high = min(at), max(at)
    least = min(min(one.p_value for one in sessions), limit or 1.0)
    depth = max(1.0, -math.log10(least))

    def x(value: float) -> float:
        return 40 + 940 * ((value - low) / (high - low) if high > low else 0.5)

    def y(p: float) -> float:
        return 150 - 130 * min(1.0, -math.log10(max(p, least)) / depth)

    every = max(1, len(sessions) // DOTS)
    dots = "".join(
        f'<circle cx="{x(value):.1f}" cy="{y(one.p_value):.1f}" r="{4 if one.anomalous else 2}" '
        f'class="{"anomalous" if one.anomalous else "normal"}"><title>'
        f"{html.escape(one.name)}: {', '.join([f'p {one.p_value:.3g}', *_when(one.seconds)])}</title></circle>"
        for i, (value, one) in enumerate(zip(at, sessions, strict=True))
        if one.anomalous or not i % every
    )
    line = (
        ""
        if limit is None
        else (
            f'<line x1="40" x2="980" y1="{y(limit):.1f}" y2="{y(limit):.1f}" class="limit"/>'
            f'<text x="36" y="{y(limit) + 4:.1f}" class="end">{limit:g}</text>'
        )
    )
    left, right = ("".join(_when(v)) if timed else f"session {v + 1:.0f}" for v in (low, high))
    return (
        '<svg viewBox="0 0 1000 185" role=img aria-label="p-values of sessions over time">'
        f'{line}<text x="36" y="154" class="end">p 1</text>{dots}<text x="40" y="178">{html.escape(left)}</text>'
        f'<text x="980" y="178" class="end">{html.escape(right)}</text></svg>'
    )


STYLE = """
:root { color-scheme: light dark; --paper: light-dark(#faf9f7, #16181b); --card: light-dark(#fff, #1e2125);
  --ink: light-dark(#22262b, #e6e4df); --soft: light-dark(#62676f, #9da3ac); --line: light-dark(#e3e0da, #33383f);
  --bad: light-dark(#b3261e, #ff8a80); --mark: light-dark(#fdecea, #3a2422); --good: light-dark(#0b6e69, #5fc9c0); }
body { margin: 0 auto; padding: 1.5rem; max-width: 1100px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.3rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
.soft, .where, .gap, .why { color: var(--soft); } p.soft { margin: .1rem 0 1rem; }
.figures { display: flex; flex-wrap: wrap; gap: .6rem; }
.figures div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .5rem .9rem;
  color: var(--soft); font-size: .85rem; } .figures b { display: block; font-size: 1.25rem; color: var(--ink); }
svg { width: 100%; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
svg text { font-size: 12px; fill: var(--soft); } svg .end { text-anchor: end; }
circle.normal { fill: var(--good); opacity: .45; } circle.anomalous { fill: var(--bad); }
.limit { stroke: var(--bad); stroke-dasharray: 4 4; }
.table { border: 1px solid var(--line); border-radius: 8px; background: var(--card); }
.row { padding: .35rem .8rem; border-bottom: 1px solid var(--line); } .row:last-child { border: 0; }
summary { cursor: pointer; } .p { display: inline-block; min-width: 5rem; font-variant-numeric: tabular-nums; }
span.anomalous, span.normal { display: inline-block; min-width: 6rem; } span.anomalous { color: var(--bad);
  font-weight: 600; } span.normal { color: var(--good); } .name { margin-right: 1rem; overflow-wrap: anywhere; }
.lines { font: 12.5px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; margin: .4rem 0 .6rem; overflow-x: auto; }
.lines .text { white-space: pre-wrap; overflow-wrap: anywhere; } .where { margin-right: .8rem; }
.mark { background: var(--mark); border-left: 3px solid var(--bad); padding: .1rem .5rem; }
.mark > .p { float: right; color: var(--bad); min-width: 0; } .why { padding-left: 1rem; }
.instead { padding-left: 1rem; } .instead span { color: var(--ink); } .gap { padding-left: 1rem; }
"""
