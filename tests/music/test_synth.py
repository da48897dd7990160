"""Synthesized sound: right pitch, right time, no clipping."""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from symusic.core import NoteTick, ScoreTick, TempoTick, TrackTick

from seqvae.errors import SeqVAEError
from seqvae.music import piece as midi
from seqvae.music import synth as sound

Note = tuple[int, int, int, int]  # onset and duration in ticks, pitch, velocity
FLUTE, PIANO, OBOE, OVERDRIVEN = 73, 0, 68, 29


def score(*tracks: tuple[int, list[Note]], tempo: float = 120.0) -> ScoreTick:
    """Notes at 480 ticks a quarter by program; `midi.DRUMS` for drums."""
    made = ScoreTick(480)
    made.tempos.append(TempoTick(0, qpm=tempo))
    for program, notes in tracks:
        drums = program == midi.DRUMS
        track = TrackTick("", 0 if drums else program, drums)
        for note in notes:
            track.notes.append(NoteTick(*note))
        made.tracks.append(track)
    return made


def samples_of(content: bytes) -> tuple[NDArray[np.float64], int]:
    """Samples `(N, channels)` of a WAV file, in units of full scale, and its rate."""
    with wave.open(io.BytesIO(content)) as file:
        samples: NDArray[Any] = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return samples.reshape(-1, file.getnchannels()) / 32768, file.getframerate()


def energy_at(samples: NDArray[np.float64], rate: int, pitch: float) -> float:
    """Share of the energy within a quarter tone of a pitch and of its overtones, regardless of octaves below."""
    spectrum = np.abs(np.fft.rfft(samples[:, 0] * np.hanning(len(samples)))) ** 2
    ratio = np.fft.rfftfreq(len(samples), 1 / rate)[1:] / (440 * 2 ** ((pitch - 69) / 12))
    near = np.abs(np.log2(ratio / np.maximum(np.round(ratio), 1))) < 1 / 24
    return float(spectrum[1:][near & (ratio < 16)].sum() / spectrum.sum())


@pytest.mark.parametrize("program", [PIANO, FLUTE, OBOE, 24, 33, 48, 56])
@pytest.mark.parametrize("pitch", [48, 69])
@pytest.mark.parametrize("small", [False, True])
def test_a_note_is_at_its_pitch(program: int, pitch: int, small: bool) -> None:
    samples, rate = samples_of(sound.render(score((program, [(0, 1920, pitch, 100)])), small=small))
    assert energy_at(samples[: 2 * rate], rate, pitch) > 0.8
    assert energy_at(samples[: 2 * rate], rate, pitch + 1.5) < 0.2


@pytest.mark.parametrize("tempo", [60.0, 120.0, 200.0])
def test_the_sound_is_as_long_as_the_notes_and_their_release(tempo: float) -> None:
    content = sound.render(score((PIANO, [(0, 480, 60, 90), (960, 960, 64, 90)]), tempo=tempo))
    samples, rate = samples_of(content)
    assert rate == sound.RATE
    assert len(samples) / rate == pytest.approx(4 * 60 / tempo + sound.TAIL, abs=1 / rate)


def test_a_rest_is_silent_and_a_note_begins_on_its_beat() -> None:
    samples, rate = samples_of(sound.render(score((PIANO, [(1920, 480, 60, 100), (9600, 480, 60, 100)]))))
    loud = np.abs(samples).max(1)
    assert loud[: 2 * rate].max() == 0
    assert loud[2 * rate : round(2.1 * rate)].max() > 0.3
    assert loud[8 * rate : round(9.9 * rate)].max() < 0.01, "silent five seconds later"
    assert loud[10 * rate : round(10.1 * rate)].max() > 0.3


def test_sound_has_two_channels_and_small_sound_has_one_at_half_the_rate() -> None:
    piece = score((PIANO, [(0, 960, 60, 100)]))
    (full, rate), (small, half) = samples_of(sound.render(piece)), samples_of(sound.render(piece, small=True))
    assert full.shape[1] == 2 and small.shape[1] == 1
    assert (rate, half) == (sound.RATE, sound.RATE // 2)
    assert len(small) == pytest.approx(len(full) / 2, abs=1)


@pytest.mark.parametrize("small", [False, True])
def test_the_loudest_sample_is_the_same_for_soft_and_loud_pieces(small: bool) -> None:
    """The dense piece makes the synthesizer clip at full channel volume."""
    wall = [(OVERDRIVEN, [(0, 960, 40 + pitch, 127) for pitch in range(40)])]
    for piece in (score((PIANO, [(0, 960, 60, 50)])), score(*wall)):
        samples, _ = samples_of(sound.render(piece, small=small))
        assert np.abs(samples).max() == pytest.approx(sound.PEAK, abs=0.01)
        assert (np.abs(samples) > 0.98 * sound.PEAK).mean() < 0.001, "samples at full scale are clipped"


def test_louder_notes_are_louder() -> None:
    samples, rate = samples_of(sound.render(score((PIANO, [(0, 240, 60, 40), (9600, 240, 60, 110)]))))
    assert np.abs(samples[:rate]).max() < 0.5 * np.abs(samples[10 * rate :]).max()


def test_more_programs_than_channels_all_have_their_own_sound() -> None:
    """The last of eighteen programs sounds as it does alone, so it shares no channel."""
    quiet = [(program, [(0, 120, 30, 1)]) for program in range(32, 49)]
    alone, rate = samples_of(sound.render(score((FLUTE, [(4800, 960, 81, 100)]))))
    among, _ = samples_of(sound.render(score(*quiet, (FLUTE, [(4800, 960, 81, 100)]))))
    a, b = alone[5 * rate : 6 * rate, 0], among[5 * rate : 6 * rate, 0]
    assert np.corrcoef(a, b)[0, 1] > 0.99


def test_drums_are_audible_beside_sixteen_programs() -> None:
    tracks = [(program, [(0, 480, 60, 1)]) for program in range(16)]
    samples, rate = samples_of(sound.render(score(*tracks, (midi.DRUMS, [(1920, 480, 38, 120)]))))
    assert np.abs(samples[2 * rate : round(2.2 * rate)]).max() > 0.5


@pytest.mark.parametrize("piece", [score(), score((PIANO, []))])
def test_a_score_without_notes_is_silence(piece: ScoreTick) -> None:
    samples, rate = samples_of(sound.render(piece))
    assert len(samples) == round(rate * sound.TAIL)
    assert not samples.any()


def test_synthesis_is_reproducible_and_does_not_change_the_score() -> None:
    piece = score((PIANO, [(0, 480, 60, 90)]))
    before = piece.copy()
    assert sound.render(piece) == sound.render(piece)
    assert piece == before


def test_a_too_long_score_is_refused_before_synthesis() -> None:
    ticks = int(480 * 2 * 60 * (sound.MAX_MINUTES + 1))
    with pytest.raises(SeqVAEError, match=r"cannot make sound of 31 minutes: the limit is 30; cut the song first"):
        sound.render(score((PIANO, [(0, 480, 60, 90), (ticks - 480, 480, 60, 90)])))


def test_a_missing_synthesizer_is_an_error_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SeqVAEError, match="pip install midirenderer"):
        sound.render(score((PIANO, [(0, 480, 60, 90)])))


def test_a_failing_synthesizer_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound, "_PLAY", "raise ValueError('no sound\\ntoday')")
    with pytest.raises(SeqVAEError, match="the synthesizer failed") as error:
        sound.render(score((PIANO, [(0, 480, 60, 90)])))
    assert "\n" not in str(error.value)
