"""Sound of a score as the content of a WAV file.

Scope: the synthesizer (rustysynth, through midirenderer) and its soundfont (TimGM6mb, included in pretty_midi),
loudness and the limit of duration. Out of scope: the origin of scores, and files.

symusic's synthesizer is not used: with this soundfont it plays a piano's A4 at 1,656 Hz, most programs are as far off,
and velocities have no effect (symusic 0.4.8 to 0.5.9).
"""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from symusic.core import (
    ControlChangeTick,
    ControlChangeTickList,
    ScoreTick,
    TextMetaSecond,
    TextMetaSecondList,
    TrackTick,
    TrackTickList,
)

from seqvae.errors import SeqVAEError
from seqvae.music import piece as midi

RATE = 48_000
"""Frames per second; half as many in a `small` file."""
TAIL = 1.0
"""Seconds after the last note, in which it fades."""
MAX_MINUTES = 30.0
"""Duration limit of a score; a longer file would exceed 350 MB."""
PEAK = 0.9
"""Loudest sample as a share of full scale."""

_CHANNELS = 15  # MIDI has sixteen, and one is for drums
_VOLUMES = (127, 50, 20)  # of the channels: the next one is tried if the synthesizer clips
_MOST_GAIN = 64.0  # 36 dB; beyond it 16-bit samples are mostly noise
_VOLUME = 7  # MIDI controller of the volume
_USUAL = 100  # volume of a channel without a volume controller, if other channels have one
_REACH = 32  # filter taps on each side before downsampling

# Runs in a process of its own: the library holds Python's interpreter lock while it plays, which would block a server,
# and a failure in it ends the process.
_PLAY = """
import sys
from pathlib import Path
from midirenderer import render_wave_from
sys.stdout.buffer.write(render_wave_from(Path(sys.argv[1]).read_bytes(), sys.stdin.buffer.read()))
"""

Frames = NDArray[Any]
"""Samples `(N, 2)` or `(N,)`, integers or floats."""


def render(score: ScoreTick, *, small: bool = False) -> bytes:
    """A 16-bit WAV file, `TAIL` seconds longer than the notes; the loudest sample is at `PEAK`.

    Args:
        score: tracks and tempos, as from `midi.to_score`. A score without notes is `TAIL` seconds of silence.
        small: one channel at half the rate, a quarter of the bytes, for a web page.

    Raises:
        SeqVAEError: the score exceeds `MAX_MINUTES`, or there is no synthesizer on this machine.
    """
    length = seconds(score)
    if length > 60 * MAX_MINUTES:
        minutes = f"{length / 60:,.0f} minutes"
        raise SeqVAEError(f"cannot make sound of {minutes}: the limit is {MAX_MINUTES:g}; cut the song first")
    frames: Frames = np.zeros((round(RATE * (length + TAIL)), 2), np.int16)
    tracks = [track for track in score.tracks if len(track.notes)]
    for volume in _VOLUMES if tracks else ():
        frames, clipped = _played(score, tracks, volume, len(frames))
        if not clipped:
            break
    return _wav(_halved(frames), RATE // 2) if small else _wav(frames, RATE)


def seconds(score: ScoreTick) -> float:
    """End of the last note of a score, in seconds."""
    clock: Any = score.to("second")
    return max((float(track.end()) for track in clock.tracks if len(track.notes)), default=0.0)


def _played(score: ScoreTick, tracks: Sequence[TrackTick], volume: int, length: int) -> tuple[Frames, bool]:
    """`length` frames of all tracks mixed, and whether the synthesizer clipped any."""
    bare: ScoreTick = score.copy()
    bare.tracks = TrackTickList()
    # the synthesizer stops at the last event, so add a silent one: a marker
    clock: Any = bare.to("second")
    clock.markers = TextMetaSecondList([TextMetaSecond(length / RATE, "")])
    bare.markers = clock.to("tick").markers
    has_levels = any(control.number == _VOLUME for track in tracks for control in track.controls)
    total: Frames | None = None
    clipped = False
    for first in range(0, len(tracks), _CHANNELS):  # every track gets a channel of its own
        part: ScoreTick = bare.copy()
        for track in tracks[first : first + _CHANNELS]:
            part.tracks.append(track.copy())
            first_level = ControlChangeTick(0, _VOLUME, _USUAL if has_levels else 127)
            levels = [(x.time, x.number, x.value) for x in (first_level, *track.controls)]
            part.tracks[-1].controls = ControlChangeTickList(
                [ControlChangeTick(at, n, x * volume // 127 if n == _VOLUME else x) for at, n, x in levels]
            )
        frames = _synthesized(midi.to_bytes(part))[:length]
        clipped = clipped or int(frames.max()) == 32767 or int(frames.min()) == -32768
        total = frames if total is None else total + frames.astype(np.int32)
    assert total is not None
    return np.pad(total, ((0, length - len(total)), (0, 0))), clipped


def _synthesized(content: bytes) -> Frames:
    """Frames `(N, 2)` int16 of a MIDI file with notes."""
    if importlib.util.find_spec("midirenderer") is None:
        raise SeqVAEError("sound needs a synthesizer, and none is installed; `pip install midirenderer`")
    home = importlib.util.find_spec("pretty_midi")  # importing it would take 0.2 s
    assert home is not None and home.origin is not None
    soundfont = Path(home.origin).with_name("TimGM6mb.sf2")
    if not soundfont.exists():
        raise SeqVAEError(f"{soundfont}: the soundfont is missing; `pip install --force-reinstall pretty-midi`")
    played = subprocess.run([sys.executable, "-c", _PLAY, str(soundfont)], input=content, capture_output=True)
    if played.returncode:
        reason = played.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {played.returncode}"]
        raise SeqVAEError(f"the synthesizer failed ({reason[-1][:120]}); check that midirenderer works")
    with wave.open(io.BytesIO(played.stdout)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).reshape(-1, file.getnchannels())


def _halved(frames: Frames) -> Frames:
    """The mean of the channels of `(N, 2)` at half the rate, low-pass filtered against aliasing, `(N / 2,)`."""
    at = np.arange(-_REACH, _REACH + 1)
    low = 0.45 * np.sinc(0.45 * at) * np.hamming(len(at))
    mono = frames.astype(np.float32).mean(1)
    return np.convolve(mono, (low / low.sum()).astype(np.float32), "same")[::2]


def _wav(frames: Frames, rate: int) -> bytes:
    """A WAV file of frames `(N,)` or `(N, 2)`, normalised to `PEAK`."""
    gain = min(_MOST_GAIN, PEAK * 32767 / max(1.0, float(np.abs(frames.max())), float(np.abs(frames.min()))))
    loud = np.empty(frames.shape, "<i2")
    for at in range(0, len(frames), rate):  # a second at a time, to save memory
        loud[at : at + rate] = np.rint(frames[at : at + rate] * gain)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1 if frames.ndim == 1 else 2)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(loud.data)
    return buffer.getvalue()
