"""`affetto speak`: what is refused before a base is loaded, and what is told of speech that isn't what was asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from affetto.adapters.bank import AdapterBank
from affetto.adapters.peft_files import save_adapter
from affetto.errors import AdapterError, ConfigError, DataError
from affetto.model.base import Base, load_base
from affetto.speak.requests import Spoken
from affetto.speak.to_file import speak_to_file
from affetto.speak.voice import Voice


@pytest.fixture
def _loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Voice, "load", lambda *_, **__: pytest.fail("the base was loaded before"))


@pytest.mark.usefixtures("_loads_nothing")
@pytest.mark.parametrize(
    ("text", "blend", "out", "error", "told"),
    [
        ("a key", {"happy": 1.0}, "a.wav", AdapterError, "affetto train --emotion happy"),
        ("a key", {}, "a.mp4", DataError, r"a\.mp4: sounds are written as"),
        ("a key", {}, "file/a.wav", DataError, r"can't write .*file \(File exists\)"),
        ("!!! …", {}, "a.wav", ConfigError, "no letter and no digit"),
        ("caf\udce9", {}, "a.wav", ConfigError, "bytes that aren't UTF-8"),
        ("a key", "happy/", "a.wav", ConfigError, "'happy/' isn't the name of an emotion; give the folder"),
        ("a key", "../happy=0.5", "a.wav", ConfigError, r"'\.\./happy' isn't the name of an emotion"),
        ("a key", {"happy": float("inf")}, "a.wav", ConfigError, "share inf: it must be a finite number"),
    ],
)
def test_what_can_be_known_is_told_before_the_base_is_loaded(
    tmp_path: Path, text: str, blend: str | dict[str, float], out: str, error: type[Exception], told: str
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(error, match=told):
        speak_to_file(text, blend, tmp_path / out, models=tmp_path / "models")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("_loads_nothing")
def test_an_emotion_that_is_not_trained_is_told_with_those_that_are(tmp_path: Path) -> None:
    for name in ("happy", "sad"):
        (tmp_path / name / "best").mkdir(parents=True)
    with pytest.raises(AdapterError, match=r"hapy/best \(did you mean 'happy'\?\); .* has happy, sad"):
        speak_to_file("a key", {"hapy": 1.0}, tmp_path / "a.wav", models=tmp_path)


@pytest.mark.usefixtures("_loads_nothing")
@pytest.mark.parametrize(
    ("intensity", "blend", "told"),
    [(-1.0, {"happy": 1.0}, "0 .* or more"), (None, {"happy": -1.0}, "0 .* or more"), (2.0, {}, "name one")],
)
def test_a_strength_of_nothing_or_below_nothing_is_refused(
    tmp_path: Path, intensity: float | None, blend: dict[str, float], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        speak_to_file("a key", blend, tmp_path / "a.wav", models=tmp_path, intensity=intensity)


@pytest.mark.usefixtures("_loads_nothing")
def test_a_turn_that_is_gone_on_from_is_not_spoken_over(tmp_path: Path) -> None:
    turn = tmp_path / "turn.wav"
    soundfile.write(turn, np.zeros(2400), 24_000)
    (tmp_path / "same.wav").symlink_to(turn)
    before = turn.read_bytes()
    for name in ("turn.wav", "same.wav"):
        with pytest.raises(ConfigError, match=r"would be lost: name another file with --out"):
            speak_to_file("a key", {}, tmp_path / name, after=[(turn, 0)])
    assert turn.read_bytes() == before


def test_flac_is_flac(tiny_base_folder: Path, tmp_path: Path) -> None:
    for name in ("a.wav", "a.flac"):
        speak_to_file("a key", {}, tmp_path / name, base=str(tiny_base_folder))
    assert soundfile.info(tmp_path / "a.flac").format == "FLAC"
    sounds = [soundfile.read(tmp_path / name)[0] for name in ("a.wav", "a.flac")]
    np.testing.assert_array_equal(*sounds)


def test_signs_that_the_tokenizer_lacks_are_told_and_alone_are_refused(
    tiny_base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = str(tiny_base_folder), tmp_path / "a.wav"
    with pytest.raises(ConfigError, match=r"nothing in '你好!' can be spoken: .* has no tokens for '你', '好'"):
        speak_to_file("你好!", {}, out, base=base)
    assert not out.exists()
    speak_to_file("a café, 2 KEYS!", {}, out, base=base)
    assert "has no tokens for 'é': they aren't spoken" in capsys.readouterr().err
    speak_to_file("a cafe, 2 KEYS!", {}, out, base=base)
    assert "no tokens" not in capsys.readouterr().err


def test_a_tokenizer_of_bytes_knows_every_sign(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    def spelt(text: str, speaker: int) -> tuple[int, ...]:
        return (0, 256 + speaker, *text.encode(), 1)

    monkeypatch.setattr(Base, "prompt_ids", lambda _, text, speaker: spelt(text, speaker))
    assert Voice(tiny_base).unknown_signs("hello, 你好 \0é") == []


def _save_happy(base_folder: Path, models: Path, **facts: object) -> None:
    base = load_base(str(base_folder))
    bank = AdapterBank(base.model, base.network.gates)
    bank.add("happy", rank=2, alpha=8.0, seed=0)
    for _, _, b_OR, _ in bank.factors("happy"):
        b_OR.data.fill_(0.1)
    save_adapter(
        models / "happy" / "best", bank, "happy", base.id, {"base": {"id": "tiny", "hash": base.hash}, **facts}
    )


def test_a_speaker_of_no_clip_is_told(
    tiny_base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _save_happy(tiny_base_folder, tmp_path, speakers={"ann": 0, "zoe": 1})
    for blend, speaker, is_told in (({"happy": 1.0}, 2, True), ({"happy": 1.0}, 1, False), ({}, 99, False)):
        how: Any = {"base": str(tiny_base_folder), "models": tmp_path, "speaker": speaker}
        speak_to_file("a key", blend, tmp_path / "a.wav", **how)
        assert (f"no clip was of a speaker {speaker}" in capsys.readouterr().err) == is_told


def test_the_intensity_that_is_spoken_at_is_told(
    tiny_base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A share is of the recommended intensity where none is given: what is told is the gate, and not the share."""
    _save_happy(tiny_base_folder, tmp_path, recommended_intensity=1.2, frontier=[{"intensity": 1.5}])
    how: Any = {"base": str(tiny_base_folder), "models": tmp_path}
    beyond = "happy was measured up to intensity 1.5; at {} speech may fall apart"
    for emotion, intensity, told in (
        ("happy", None, ["happy at intensity 1.2"]),
        ("happy=1.4", None, ["happy at intensity 1.68, 1.4 of 1.2", beyond.format("1.68")]),
        ("happy=0.5", 2.0, ["happy at intensity 1, 0.5 of 2"]),
        ("happy", 2.0, ["happy at intensity 2", beyond.format(2)]),
    ):
        speak_to_file("a key", emotion, tmp_path / "a.wav", intensity=intensity, **how)
        assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("happy")] == told
    speak_to_file("a key", None, tmp_path / "a.wav", **how)
    assert "intensity" not in capsys.readouterr().err


def test_the_miniatures_voices_are_known(tiny_base: Base) -> None:
    assert Voice(tiny_base).knows_speaker(99) is None
    object.__setattr__(tiny_base, "id", "miniature")
    assert [Voice(tiny_base).knows_speaker(number) for number in (0, 5, 6)] == [True, True, False]


@pytest.mark.parametrize(
    ("frames", "hit_cap", "told"),
    [(10, True, "cut off after 0.8 s"), (10, False, ""), (0, False, "nothing was said"), (0, True, "nothing was said")],
)
def test_speech_that_was_cut_off_or_is_empty_is_told(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], frames: int, hit_cap: bool,
    told: str,
) -> None:  # fmt: skip
    spoken = Spoken(np.zeros((frames, 8), dtype=np.int64), hit_cap)
    monkeypatch.setattr(Voice, "generate", lambda *_: [spoken])
    samples, rate = Voice(tiny_base).speak("a key")
    assert len(samples) == frames * 0.08 * rate
    said = capsys.readouterr().err
    assert told in said
    assert (said == "") == (told == "")
