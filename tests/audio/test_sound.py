"""Reading and writing sound against analytic sines and against soundfile itself."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_signals import sine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from affetto.audio.sound import SoundError, SoundInfo, read_sound, sound_info, write_sound
from affetto.errors import DataError

Tone = Callable[..., Path]


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_resampled_sine_is_the_sine(tone: Tone, rate: int) -> None:
    samples = read_sound(tone("a.wav", duration_s=1.0, rate=rate, subtype="FLOAT"), 24_000)
    expected = sine(1.0, 24_000)
    assert samples.dtype == np.float32
    assert samples.shape == expected.shape
    middle = slice(1_000, -1_000)  # the filter rings at the edges
    assert np.abs(samples[middle] - expected[middle]).max() < 1e-4


def test_resampling_removes_what_the_new_rate_cannot_hold(tone: Tone) -> None:
    path = tone("a.wav", rate=48_000, hertz=15_000.0, subtype="FLOAT")
    assert np.abs(read_sound(path, 48_000)).max() > 0.49
    assert np.abs(read_sound(path, 24_000)[1_000:-1_000]).max() < 1e-3, "15 kHz aliases to 9 kHz"


def test_stereo_is_the_mean_of_its_channels(tmp_path: Path) -> None:
    left, right = sine(0.5, 24_000, hertz=300.0), sine(0.5, 24_000, hertz=700.0, peak=0.2)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 24_000, subtype="FLOAT")
    np.testing.assert_allclose(read_sound(tmp_path / "a.wav", 24_000), (left + right) / 2, atol=1e-6)
    soundfile.write(tmp_path / "b.wav", np.stack([left, -left], axis=1), 24_000, subtype="FLOAT")
    assert np.abs(read_sound(tmp_path / "b.wav", 24_000)).max() < 1e-7


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [
        ("a.wav", "PCM_U8", 1 / 128),
        ("a.wav", "PCM_16", 1 / 32_768),
        ("a.wav", "PCM_24", 1e-6),
        ("a.wav", "DOUBLE", 1e-6),
        ("a.flac", "PCM_16", 1 / 32_768),
        ("a.aiff", "PCM_16", 1 / 32_768),
        ("a.ogg", "VORBIS", 0.02),
        ("a.WAV", "FLOAT", 1e-6),
    ],
)
def test_formats(tone: Tone, name: str, subtype: str, tolerance: float) -> None:
    samples = read_sound(tone(name, subtype=subtype), 24_000)
    expected = sine(1.0, 24_000)
    assert samples.shape == expected.shape
    assert np.abs(samples - expected).max() <= tolerance


def test_mp3(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.mp3", sine(1.0, 24_000), 24_000, format="MP3")
    samples = read_sound(tmp_path / "a.mp3", 24_000)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    assert abs(np.argmax(spectrum) * 24_000 / len(samples) - 440) < 2
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.05)


@given(first=st.integers(0, 23_000), length=st.integers(1, 1_000))
@settings(max_examples=30, deadline=None)
def test_segment_is_a_slice_of_the_whole(first: int, length: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.wav"
        soundfile.write(path, sine(1.0, 24_000), 24_000, subtype="PCM_16")
        whole = read_sound(path, 24_000)
        part = read_sound(path, 24_000, start_s=first / 24_000, end_s=(first + length) / 24_000)
    np.testing.assert_array_equal(part, whole[first : first + length])


def test_only_the_segment_is_decoded(tone: Tone, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tone("a.wav", duration_s=4.0)
    asked: list[int] = []
    original = soundfile.SoundFile.read

    def read(self: soundfile.SoundFile, frames: int = -1, **how: object) -> NDArray[np.float32]:
        asked.append(frames)
        return np.asarray(original(self, frames, **how))

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    assert len(read_sound(path, 24_000, start_s=2.0, end_s=2.25)) == 6_000
    assert asked == [6_000]


@pytest.mark.parametrize(("start_s", "end_s"), [(1.5, None), (0.8, 0.8), (0.9, 0.1), (-0.5, 0.5), (0.0, 1.2)])
def test_segment_outside_the_file(tone: Tone, start_s: float, end_s: float | None) -> None:
    with pytest.raises(SoundError, match=r"1 s; mend its times") as caught:
        read_sound(tone("a.wav"), 24_000, start_s=start_s, end_s=end_s)
    assert caught.value.kind == "bad-segment"


def test_segment_may_end_a_rounding_behind_the_file(tone: Tone) -> None:
    assert len(read_sound(tone("a.wav"), 24_000, start_s=0.5, end_s=1.03)) == 12_000


def test_info(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", np.zeros((22_050, 2)), 44_100)
    assert sound_info(tmp_path / "a.flac") == SoundInfo(duration_s=0.5, sample_rate=44_100, channels=2)


@given(st.lists(st.integers(-32_768, 32_767), min_size=1, max_size=200))
@settings(max_examples=30, deadline=None)
def test_16_bit_codes_survive_writing_and_reading(codes: list[int]) -> None:
    samples = np.array(codes, dtype=np.float32) / 32_768
    with tempfile.TemporaryDirectory() as folder:
        write_sound(Path(folder) / "a.wav", samples, 24_000)
        np.testing.assert_array_equal(read_sound(Path(folder) / "a.wav", 24_000), samples)


def test_writing_clips_instead_of_wrapping(tmp_path: Path) -> None:
    write_sound(tmp_path / "new" / "a.wav", np.array([1.0, 1.5, -1.0, -40.0, 0.99999]), 8_000)
    codes, rate = soundfile.read(tmp_path / "new" / "a.wav", dtype="int16")
    assert (codes.tolist(), rate) == ([32_767, 32_767, -32_768, -32_768, 32_767], 8_000)
    assert soundfile.info(tmp_path / "new" / "a.wav").subtype == "PCM_16"


def test_writing_rounds_to_the_nearest_code(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", np.array([1.9, 2.1, -1.9, -0.4]) / 32_768, 8_000)
    assert soundfile.read(tmp_path / "a.wav", dtype="int16")[0].tolist() == [2, 2, -2, 0]


@pytest.mark.parametrize(
    "samples", [np.array([0.0, np.nan]), np.array([np.inf]), np.zeros((3, 2)), np.zeros(3, dtype=np.int16)]
)
def test_what_is_not_sound_is_not_written(tmp_path: Path, samples: NDArray[np.floating]) -> None:
    (tmp_path / "a.wav").write_bytes(b"before")
    with pytest.raises(DataError, match=r"a\.wav"):
        write_sound(tmp_path / "a.wav", samples, 24_000)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
    assert (tmp_path / "a.wav").read_bytes() == b"before"


@pytest.mark.parametrize(("name", "kind"), [("a.flac", "FLAC"), ("a.FLAC", "FLAC"), ("a.wave", "WAV")])
def test_sounds_are_written_in_the_format_that_their_name_says(tmp_path: Path, name: str, kind: str) -> None:
    write_sound(tmp_path / name, sine(0.1, 8_000), 8_000)
    write_sound(tmp_path / "a.wav", sine(0.1, 8_000), 8_000)
    assert soundfile.info(tmp_path / name).format == kind
    np.testing.assert_array_equal(read_sound(tmp_path / name, 8_000), read_sound(tmp_path / "a.wav", 8_000))


@pytest.mark.parametrize("name", ["a.mp4", "a.mp3", "a"])
def test_other_formats_are_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: sounds are written as \.wav, \.wave, \.flac; name it a\.wav"):
        write_sound(tmp_path / name, sine(0.1, 8_000), 8_000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"garbage" * 300, bytes(2_000)])
def test_a_damaged_mp3_is_called_damaged(tmp_path: Path, content: bytes) -> None:
    """libsndfile says of it that it doesn't exist or isn't a regular file."""
    (tmp_path / "a.mp3").write_bytes(content)
    with pytest.raises(SoundError, match=r"a\.mp3: can't be decoded \(it is damaged, or not a sound\)") as caught:
        read_sound(tmp_path / "a.mp3", 8_000)
    assert caught.value.kind == "unreadable"


def test_stream_of_unknown_length_is_read(tone: Tone) -> None:
    path = tone("a.wav")
    content = bytearray(path.read_bytes())
    position = content.index(b"data") + 4
    content[position : position + 4] = struct.pack("<I", 0xFFFF_FFFF)  # as ffmpeg writes to a pipe
    path.write_bytes(content)
    assert len(read_sound(path, 24_000)) == 24_000


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_cut_off_file_is_an_error_not_a_shorter_sound(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 24_000)
    soundfile.write(tmp_path / name, noise, 24_000, subtype="PCM_16")
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(SoundError, match=name) as caught:
        read_sound(tmp_path / name, 24_000)
    assert caught.value.kind == "unreadable"


def test_a_pointer_of_git_lfs_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "1001_IEO_HAP_HI.wav"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 77000\n")
    with pytest.raises(SoundError, match="git lfs pull") as caught:
        read_sound(path, 16_000)
    assert caught.value.kind == "unreadable"


def test_what_macos_leaves_beside_an_mp3_is_no_part_of_it(tmp_path: Path) -> None:
    """libsndfile opens `._a.mp3` as a resource fork of `a.mp3` and gives up."""
    path = tmp_path / "a.mp3"
    soundfile.write(path, sine(0.5, 8_000), 8_000, format="MP3", subtype="MPEG_LAYER_III")
    alone = read_sound(path, 8_000)
    (tmp_path / "._a.mp3").write_bytes(b"\0\5\x16\7")
    np.testing.assert_array_equal(read_sound(path, 8_000), alone)
