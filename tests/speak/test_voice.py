"""The library's speaking interface: loading, blending, prompts, sound, and errors that say what to do."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from transformers import MimiModel
from typer.testing import CliRunner

from affetto.adapters.bank import AdapterBank
from affetto.adapters.peft_files import save_adapter
from affetto.audio.sound import read_sound
from affetto.cli import app
from affetto.codes.neural import MimiCodec
from affetto.errors import AdapterError, BaseModelError, ConfigError, DataError
from affetto.miniature.base import make_config
from affetto.model.base import Base, load_base
from affetto.model.batch import Turn
from affetto.model.dia import DiaNetwork
from affetto.model.moshi import MoshiNetwork
from affetto.model.network import Network
from affetto.speak.arguments import mono_sound
from affetto.speak.engine import Engine
from affetto.speak.requests import Spoken
from affetto.speak.to_file import speak_to_file
from affetto.speak.voice import Voice

PYTHON_DOCS = Path(__file__).resolve().parents[2] / "docs" / "python.md"


@pytest.fixture(scope="module")
def models(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of two emotions, on different layers."""
    folder = tmp_path_factory.mktemp("emotion_models")
    told = {"happy": {"prompt_template": "be glad: {text}", "recommended_intensity": 0.5}, "sad": {}}
    targets = {"happy": ("q_proj", "down_proj"), "sad": ("v_proj", "inputs_embeds_projector")}
    for seed, name in enumerate(told):
        base = load_base(str(tiny_base_folder))
        bank = AdapterBank(base.model, base.network.gates, targets[name])
        bank.add(name, rank=2, alpha=8.0, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, _, b_OR, _ in bank.factors(name):
                b_OR.normal_(std=0.2, generator=generator)
        save_adapter(
            folder / name / "best", bank, name, base.id, {"base": {"id": "tiny", "hash": base.hash}, **told[name]}
        )
    return folder


@pytest.fixture
def voice(tiny_base: Base, models: Path) -> Voice:
    made = Voice(tiny_base)
    for name in ("happy", "sad"):
        made.load_adapter(name, models / name / "best")
    return made


def test_speech_is_float32_at_the_codecs_rate(voice: Voice) -> None:
    samples, rate = voice.speak("a", "happy", seed=3)
    assert rate == voice.codec.sample_rate == 24_000
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert len(samples) % 1920 == 0
    assert len(samples) >= 1920
    assert np.abs(samples).max() <= 1.0
    assert samples.std() > 1e-4
    again, _ = voice.speak("a", "happy", seed=3)
    assert np.array_equal(samples, again)


def test_a_stream_is_the_speech_in_pieces(voice: Voice) -> None:
    whole, rate = voice.speak("a key", "happy", seed=3, takes=1)
    pieces = list(voice.stream("a key", "happy", seed=3))
    assert np.array_equal(np.concatenate(pieces), whole)
    frame = round(rate / voice.base.frame_rate)
    assert len(pieces) >= len(whole) // frame - 1 > 3
    assert all(len(piece) == frame for piece in pieces[:-1])


def test_torchs_default_dtype_changes_nothing(tiny_base_folder: Path, models: Path) -> None:
    def said() -> list[float]:
        voice = Voice.load(str(tiny_base_folder))
        voice.load_adapter("happy", models / "happy" / "best")
        samples: list[float] = voice.speak("a key", "happy", takes=1)[0].tolist()
        return samples

    expected = said()
    torch.set_default_dtype(torch.float64)
    try:
        assert said() == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_cannot_be_streamed_is_refused_before_a_piece_is_asked_for(voice: Voice) -> None:
    with pytest.raises(AdapterError, match="for angry; loaded: happy, sad"):
        voice.stream("a key", "angry")
    with pytest.raises(ConfigError, match="stream one take"):
        voice.stream_together([voice.request("a key", takes=2)])


def test_a_stream_says_its_first_frame_after_the_second(voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = Engine.step, []
    monkeypatch.setattr(Engine, "step", lambda engine: calls.append(1) or step(engine))
    next(voice.stream("a key", seed=3))
    assert len(calls) == 2


def test_with_mimi_every_frame_is_heard_at_once(voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    mimi = MimiCodec(MimiModel(make_config().codec_config), 8)
    monkeypatch.setitem(voice.__dict__, "codec", mimi)
    step, calls = Engine.step, []
    monkeypatch.setattr(Engine, "step", lambda engine: calls.append(1) or step(engine))
    pieces = voice.stream("a key", "happy", seed=3)
    found = [next(pieces)]
    assert len(calls) == 1
    found += pieces
    whole, _ = voice.speak("a key", "happy", seed=3, takes=1)
    np.testing.assert_allclose(np.concatenate(found), whole, rtol=1e-4, atol=1e-6)


def test_the_docs_lines_speak_as_they_stand(
    tiny_base_folder: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [lines] = re.findall(r"^```python\n(.*?)^```$", PYTHON_DOCS.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    told: dict[str, Any] = {}
    exec(lines.replace("miniature", str(tiny_base_folder)).replace("emotion_models", str(models)), told)
    assert [len(sound) > 0 for sound in told["sounds"]] == [True, True]
    assert {shape for shape in capsys.readouterr().out.split("\n") if shape} == {"(1920,)"}
    assert [turn.text_ids for turn in told["turns"]] == [
        told["voice"].base.prompt_ids(text, speaker) for speaker, text in enumerate(told["texts"])
    ]


def _earlier(voice: Voice, seconds: float, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(0.0, 0.05, round(seconds * voice.codec.sample_rate))


def test_earlier_turns_are_read_and_heard_before_the_text(voice: Voice) -> None:
    sound = _earlier(voice, 0.4)
    turn = voice.turn("a lock", sound, voice.codec.sample_rate, speaker=1)
    assert turn.text_ids == voice.base.prompt_ids("a lock", 1)
    np.testing.assert_array_equal(turn.codes_TK, voice.codec.encode(sound))
    plain, _ = voice.speak("a key", "happy", seed=3, takes=1)
    after, _ = voice.speak("a key", "happy", seed=3, context=[turn], takes=1)
    assert plain.tolist() != after.tolist()
    wish = replace(voice.request("a key", "happy", seed=3), context=(turn,))
    np.testing.assert_array_equal(after, voice.decode(voice.generate([wish])[0]))
    np.testing.assert_array_equal(after, np.concatenate(list(voice.stream("a key", "happy", seed=3, context=[turn]))))
    at_48 = voice.turn("a lock", np.repeat(sound, 2), 2 * voice.codec.sample_rate)
    assert at_48.num_positions == turn.num_positions, "resampled to the codec's rate"


def test_of_more_turns_than_the_window_holds_the_last_are_heard(
    voice: Voice, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [voice.turn("a", _earlier(voice, 0.4, seed), 24_000) for seed in range(3)]
    room = voice.request("a key").max_frames + len(voice.base.prompt_ids("a key", 0)) + 2 * turns[0].num_positions
    monkeypatch.setattr(voice.base.network, "window", room)
    assert voice.request("a key", context=turns).context == tuple(turns[1:])
    assert "room for 2 of 3 earlier turns" in capsys.readouterr().err
    assert voice.request("a key", context=turns[1:]).context == tuple(turns[1:])
    assert capsys.readouterr().err == ""


def test_the_command_speaks_after_a_recording(tiny_base_folder: Path, models: Path, tmp_path: Path) -> None:
    def said(*more: str) -> bytes:
        out = tmp_path / "out.wav"
        result = CliRunner().invoke(
            app, ["speak", "a key", "--base", str(tiny_base_folder), "--models", str(models), "--out", str(out), *more]
        )
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return out.read_bytes()

    clip = tmp_path / "clip.wav"
    soundfile.write(clip, np.random.default_rng(0).normal(0.0, 0.05, 9600), 24_000)
    with pytest.raises(DataError, match=r"write what .*clip\.wav says into clip\.txt"):
        said("--after", str(clip))
    clip.with_suffix(".txt").write_text("a lock\n")
    assert len({said(), said("--after", str(clip)), said("--after", f"1:{clip}")}) == 3
    assert said("--after", str(clip)) == said("--after", f"0:{clip}")


def test_emotions_change_the_speech_and_intensity_zero_does_not(voice: Voice, tiny_base_folder: Path) -> None:
    def codes(of: Voice, *wishes: tuple[str | dict[str, float] | None, float]) -> list[str]:
        requests = [of.request("a", emotion, intensity=intensity, seed=1) for emotion, intensity in wishes]
        return [str(spoken.codes_TK.tolist()) for spoken in of.generate(requests)]

    (base,) = codes(Voice.load(str(tiny_base_folder)), (None, 0.0))
    silent = codes(voice, (None, 0.0), ("happy", 0.0), ({"happy": 0.7, "sad": 0.3}, 0.0))
    assert silent == [base] * 3
    said = codes(voice, ("happy", 1.0), ("sad", 1.0), ({"happy": 0.5, "sad": 0.5}, 1.0))
    assert len({base, *said}) == 4


def test_adapters_of_different_layers_share_a_bank(voice: Voice) -> None:
    assert voice.emotions == ("happy", "sad")
    assert voice.bank is not None
    assert voice.bank.delta_norm("happy") > 0
    assert voice.bank.delta_norm("sad") > 0


def test_intensities_scale_what_training_recommends(voice: Voice) -> None:
    assert voice.request("a", "happy").gate == (0.5, 0.0)
    assert voice.request("a", "happy", intensity=0.9).gate == pytest.approx((0.9, 0.0))
    assert voice.request("a", {"happy": 0.6, "sad": 0.4}).gate == pytest.approx((0.3, 0.4))
    assert voice.request("a", {"happy": 0.6, "sad": 0.4}, intensity=2.0).gate == pytest.approx((1.2, 0.8))
    assert voice.request("a").gate == (0.0, 0.0)


@pytest.mark.parametrize(
    ("emotion", "options", "wording"),
    [
        ("happy", {}, "be glad: the key"),
        ("sad", {}, "the key"),
        (None, {}, "the key"),
        ("happy", {"cued": False}, "the key"),
        ("happy", {"intensity": 0.0}, "the key"),
        ({"happy": 0.9, "sad": 0.1}, {}, "be glad: the key"),
        ({"happy": 0.1, "sad": 0.9}, {}, "the key"),
    ],
)
def test_the_prompt_is_that_of_the_strongest_emotion(
    voice: Voice, emotion: str | dict[str, float] | None, options: dict[str, object], wording: str
) -> None:
    request = voice.request("the key", emotion, speaker=12, **options)  # type: ignore[arg-type]
    assert request.text_ids == voice.base.prompt_ids(wording, 12)


def test_the_cap_is_of_the_text_and_not_of_the_cue(voice: Voice) -> None:
    assert voice.request("the key", "happy").max_frames == voice.request("the key").max_frames


def test_a_voice_may_be_given_a_trained_bank(tiny_base: Base) -> None:
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates)
    bank.add("calm", rank=2, alpha=2.0, seed=0)
    request = Voice(tiny_base, bank).request("the key", "calm")
    assert request.gate == (1.0,)
    assert request.text_ids == tiny_base.prompt_ids("the key", 0)


def test_codebooks_behind_the_first_are_drawn_at_the_share_of_the_base(voice: Voice) -> None:
    def drawn_at(**options: float) -> tuple[float, float]:
        return voice.request("the key", **options).temperatures  # type: ignore[arg-type]

    share = voice.base.network.depth_temperature_share
    assert share == pytest.approx(2 / 3), "docs/training.md names it"
    assert drawn_at() == (0.6, pytest.approx(0.4))
    assert drawn_at(temperature=1.2) == (1.2, pytest.approx(0.8))
    assert drawn_at(temperature=0.0) == (0.0, 0.0)
    assert drawn_at(temperature=0.9, depth_temperature=0.9) == (0.9, 0.9)
    assert drawn_at(depth_temperature=0.0) == (0.6, 0.0)
    assert voice.request("the key", takes=3, temperature=0.0, depth_temperature=0.5).takes == 3, "that isn't greedy"
    assert Network.depth_temperature_share == DiaNetwork.depth_temperature_share == 1
    assert MoshiNetwork.depth_temperature_share == 1


def test_requests_made_before_an_adapter_was_loaded_still_speak(tiny_base: Base, models: Path) -> None:
    voice = Voice(tiny_base)
    plain = voice.request("a key", seed=1)
    before = voice.generate([plain])[0].codes_TK.tolist()
    voice.load_adapter("happy", models / "happy" / "best")
    happy = voice.request("a key", "happy", seed=1)
    alone = voice.generate([happy])[0].codes_TK.tolist()
    voice.load_adapter("sad", models / "sad" / "best")
    both = voice.generate([plain, happy])
    assert [one.codes_TK.tolist() for one in both] == [before, alone]


def test_a_request_of_a_voice_with_more_adapters_is_not_spoken_without_them(
    voice: Voice, tiny_base_folder: Path
) -> None:
    request, other = voice.request("a key", "happy"), Voice.load(str(tiny_base_folder))
    for say in (other.generate, other.stream_together):
        with pytest.raises(AdapterError, match="for 2 adapters, and 0 are loaded here: it is another voice's"):
            say([request])


def test_unknown_emotions_name_those_that_are_loaded(voice: Voice, tiny_base_folder: Path) -> None:
    with pytest.raises(AdapterError, match=r"no adapter is loaded for angry; loaded: happy, sad"):
        voice.request("a", "angry")
    with pytest.raises(AdapterError, match=r"for angry, bored; loaded"):
        voice.speak("a", {"angry": 0.5, "happy": 0.2, "bored": 0.3})
    with pytest.raises(AdapterError, match="loaded: none"):
        Voice.load(str(tiny_base_folder)).request("a", "happy")


def test_settings_out_of_range_are_refused(voice: Voice) -> None:
    with pytest.raises(ConfigError, match=r"^temperature must be 0"):
        voice.speak("a", temperature=-1.0)
    with pytest.raises(ConfigError, match=r"^depth_temperature must be 0"):
        voice.speak("a", depth_temperature=-1.0)
    for wrong in (-1.0, float("nan"), float("inf"), "much"):
        with pytest.raises(
            ConfigError, match=rf"intensity {wrong}: it must be a finite number, 0 \(the base\) or more"
        ):
            voice.request("a", "happy", intensity=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="intensity 2 is the strength of an emotion: name one"):
        voice.speak("a", intensity=2.0)
    for seed in (-1, 2**63, 10**30, 1.5, "x"):
        with pytest.raises(ConfigError, match=f"seed {seed}: it must be a whole number from 0 to {2**63 - 1}"):
            voice.speak("a", seed=seed)  # type: ignore[arg-type]


def test_whole_numbers_may_be_numpys(voice: Voice) -> None:
    asked = voice.request("a key", seed=np.int64(3), speaker=np.uint8(1))
    assert asked == voice.request("a key", seed=3, speaker=1)
    assert type(asked.seed) is int
    samples, _ = voice.speak("a", seed=2**63 - 1)
    assert len(samples), "the seeds of its takes fit, too"


def test_what_cannot_be_spoken_is_refused_on_every_road(voice: Voice) -> None:
    for text, told in {
        "": "no letter and no digit", "!!! …": "no letter and no digit", "caf\udce9": "aren't UTF-8",
        "你好": "no tokens for '你', '好'",
    }.items():  # fmt: skip
        for road in (
            voice.speak,
            voice.request,
            lambda text: next(voice.stream(text)),
            lambda text: voice.turn(text, np.zeros(9600), 24_000),
        ):
            with pytest.raises(ConfigError, match=told):
                road(text)


def test_signs_that_are_not_spoken_are_told_once(voice: Voice, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("a café", "a café", "the café", "a key"):
        voice.request(text)
    told = capsys.readouterr().err
    assert told.count("has no tokens for 'é': they aren't spoken") == 1
    voice.request("a naïve café")
    assert "has no tokens for 'ï', 'é'" in capsys.readouterr().err


def test_a_blend_is_written_as_on_the_command_line(voice: Voice) -> None:
    wished = {"happy": 0.6, "sad": 0.4}
    assert voice.request("a", "happy=0.6,sad=0.4") == voice.request("a", wished)
    assert voice.request("a", "happy=0.6,sad=0.4", intensity=2) == voice.request("a", wished, intensity=2.0)
    assert voice.request("a", "happy = 1") == voice.request("a", "happy")
    with pytest.raises(ConfigError, match="emotion 'happy,happy': happy is named twice"):
        voice.speak("a", "happy,happy")


def test_what_each_adapter_speaks_at_is_its_share_of_the_strength(voice: Voice) -> None:
    assert (voice.recommended_intensity("happy"), voice.recommended_intensity("sad")) == (0.5, 1.0)
    assert voice.strengths("happy=1.4,sad=0.5") == pytest.approx({"happy": 0.7, "sad": 0.5})
    assert voice.strengths("happy=1.4", 2.0) == pytest.approx({"happy": 2.8})
    assert voice.strengths(None) == {}
    with pytest.raises(AdapterError, match="no adapter is loaded for nope; loaded: happy, sad"):
        voice.recommended_intensity("nope")


@pytest.mark.parametrize(
    ("text", "how", "told"),
    [
        (None, {}, "None can't be spoken: give a text, a string"), (b"hi", {}, "b'hi' can't be spoken: give a text"),
        (5, {}, "5 can't be spoken: give a text"),
        ("a key", {"takes": 1.5}, "takes must be 1 or more, a whole number, not 1.5"),
        ("a key", {"takes": "3"}, "takes must be 1 or more, a whole number, not 3"),
        ("a key", {"context": ["x"]}, r"context \['x'\]: give a list of earlier turns, as Voice\.turn makes them"),
        ("a key", {"context": Turn((1,), None)}, r"context Turn\(.*: give a list of earlier turns"),
        ("a key", {"temperature": "hot"}, r"temperature must be 0 \(greedy\) or a positive number, not hot"),
        ("a key", {"temperature": None}, "temperature must be 0 .*, not None"),
        ("a key", {"depth_temperature": "hot"}, "depth_temperature must be 0 .*, not hot"),
        ("a key", {"emotion": {1: 1.0}}, r"emotion \{1: 1.0\}: write happy"),
        ("a key", {"intensity": "2"}, "intensity 2 is the strength of an emotion: name one"),
    ],
)  # fmt: skip
def test_what_is_of_another_kind_is_told_with_what_is_expected(
    voice: Voice, text: Any, how: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        voice.speak(text, **how)


@pytest.mark.parametrize("rate", ["24000", None, float("nan"), float("inf"), 0])
def test_a_sample_rate_is_a_number_above_0(voice: Voice, rate: Any) -> None:
    with pytest.raises(ConfigError, match=rf"sample_rate {rate!r}: it must be above 0, a number in Hz"):
        voice.turn("a key", np.zeros(9600), rate)
    for good in (np.int32(24_000), np.float32(24_000), 24_000.0):
        assert voice.turn("a key", np.zeros(9600), good).num_positions  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, "fp32", None])
def test_a_type_that_nothing_is_spoken_in_is_told_before_the_base_is_loaded(dtype: Any) -> None:
    told = rf"dtype {dtype}: it is torch\.float32, torch\.bfloat16 or torch\.float16"
    with pytest.raises(ConfigError, match=told):
        Voice.load("nowhere", dtype=dtype)


def test_an_adapter_too_strong_for_numbers_is_told_before_the_base_is_blamed(voice: Voice) -> None:
    told = r"NaN or infinite with an adapter at intensity 1e\+38: speak at a lower one\. If the base alone does this"
    with pytest.raises(BaseModelError, match=told):
        voice.speak("a key", "happy=1,sad=0.5", intensity=1e38)
    assert len(voice.speak("a key")[0])


def test_speakers_are_numbers_and_their_names_tell_them(
    tiny_base: Base, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voice = Voice(tiny_base)
    for wrong in ("anna", -1, 1.0):
        with pytest.raises(ConfigError, match=rf"speaker {wrong!r}: speakers are numbers, 0 or more$"):
            voice.speak("a key", speaker=wrong)  # type: ignore[arg-type]
    voice.load_adapter("happy", models / "happy" / "best")
    voice._speakers["happy"] = {"zoe": 1, "ann": 0}
    for wrong in ("anna", "ann", -1):
        with pytest.raises(ConfigError, match=rf"speaker {wrong!r}: .*, 0 or more; known are 0 \(ann\), 1 \(zoe\)"):
            voice.turn("a key", np.zeros(9600), 24_000, speaker=wrong)  # type: ignore[arg-type]
    for speaker in (1, 7, 7):
        voice.request("a key", speaker=speaker)
    assert capsys.readouterr().err.count("no clip was of a speaker") == 1


@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda"), "gpu", "cuda:x", "mps"])
def test_a_device_that_is_not_here_is_told_before_the_base_is_loaded(
    monkeypatch: pytest.MonkeyPatch, device: str | torch.device
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = "torch finds no GPU here; leave it out, or say cpu" if device in ("cuda", "cuda:0") else "it is cpu or cuda"
    told = "torch finds no GPU here" if isinstance(device, torch.device) else told
    with pytest.raises(ConfigError, match=rf"device {device}: {told}"):
        Voice.load("nowhere", device=device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="device cuda:2: there is no such GPU here; the last is cuda:1"):
        Voice.load("nowhere", device="cuda:2")


def test_an_earlier_turns_samples_are_read_as_a_files(voice: Voice, tmp_path: Path) -> None:
    """Integers, channels and rates, against what libsndfile and `read_sound` make of them."""
    sound = np.random.default_rng(0).uniform(-0.4, 0.4, (9600, 2))
    soundfile.write(tmp_path / "two.wav", sound, 24_000, subtype="PCM_16")
    mono = read_sound(tmp_path / "two.wav", 24_000)
    expected = voice.turn("a lock", mono, 24_000)
    for kind in ("int16", "int32", "float32", "float64"):
        samples, rate = soundfile.read(tmp_path / "two.wav", dtype=kind)
        np.testing.assert_allclose(mono_sound(samples), mono, atol=1e-7)
        np.testing.assert_array_equal(voice.turn("a lock", samples, rate).codes_TK, expected.codes_TK)
    bytes_, _ = soundfile.read(tmp_path / "two.wav", dtype="int16")
    np.testing.assert_allclose(mono_sound((bytes_[:, 0] // 256 + 128).astype(np.uint8)), bytes_[:, 0] // 256 / 128)
    np.testing.assert_array_equal(mono_sound(torch.ones(5, 1)), np.ones(5))


@pytest.mark.parametrize(
    ("samples", "told"),
    [
        (np.zeros((2, 9600)), r"shape \(2, 9600\): give mono ones \(N,\), or one column a channel"),
        (np.zeros(0), r"shape \(0,\)"), (np.zeros((9, 2, 2)), r"shape \(9, 2, 2\)"), (0.0, r"shape \(\)"),
        (np.zeros(9600, dtype=np.int64), "type int64: give floats"), (np.zeros(9600, dtype=complex), "type complex128"),
        (np.array([0.0, np.nan, np.inf]), "2 of 3 samples are NaN or infinite"),
    ],
)  # fmt: skip
def test_samples_that_are_not_one_sound_are_refused(voice: Voice, samples: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        voice.turn("a lock", samples, 24_000)
    with pytest.raises(ConfigError, match="sample_rate 0: it must be above 0"):
        voice.turn("a lock", np.zeros(9600), 0)


def test_loading_twice_or_from_nowhere_is_refused(voice: Voice, models: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="already an adapter named 'happy'"):
        voice.load_adapter("happy", models / "happy" / "best")
    with pytest.raises(AdapterError, match="an adapter can't be named 5"):
        voice.load_adapter(5, models / "happy" / "best")  # type: ignore[arg-type]
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        voice.load_adapter("angry", tmp_path)
    assert voice.emotions == ("happy", "sad")


@pytest.mark.parametrize(
    ("key", "value"),
    [("recommended_intensity", "strong"), ("speakers", ["a"]), ("prompt_template", "no text"), ("frontier", [{}])],
)
def test_an_adapter_whose_facts_are_damaged_is_not_loaded_at_all(
    tiny_base: Base, models: Path, tmp_path: Path, key: str, value: object
) -> None:
    folder = Path(shutil.copytree(models / "happy" / "best", tmp_path / "best"))
    facts, whole = folder / "affetto.json", (folder / "affetto.json").read_text()
    facts.write_text(json.dumps({**json.loads(whole), key: value}))
    voice = Voice(tiny_base)
    with pytest.raises(AdapterError, match=rf"affetto\.json: {key} must be "):
        voice.load_adapter("happy", folder)
    assert voice.emotions == ()
    facts.write_text(whole)
    voice.load_adapter("happy", folder)
    assert voice.recommended_intensity("happy") == 0.5


def test_adapters_of_another_base_are_refused_unless_allowed(tiny_base: Base, models: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "happy" / "best", tmp_path / "best"))
    (folder / "affetto.json").write_text(json.dumps({"base": {"id": "other", "hash": "0" * 64}}))
    voice = Voice(tiny_base)
    with pytest.raises(AdapterError, match="trained on other"):
        voice.load_adapter("happy", folder)
    voice.load_adapter("happy", folder, allow_other_base=True)
    assert voice.emotions == ("happy",)


def test_speaking_into_a_file(tiny_base_folder: Path, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "said.wav"
    speak_to_file("a key", {"happy": 1.0}, out, base=str(tiny_base_folder), models=models, seed=2)
    samples, rate = soundfile.read(out, dtype="float32")
    voice = Voice.load(str(tiny_base_folder))
    voice.load_adapter("happy", models / "happy" / "best")
    expected, expected_rate = voice.speak("a key", "happy", seed=2)
    assert rate == expected_rate
    assert samples == pytest.approx(expected, abs=2.0**-15)


def test_a_missing_adapter_says_how_to_train_it(tiny_base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="affetto train --emotion angry"):
        speak_to_file("a", {"angry": 1.0}, tmp_path / "x.wav", base=str(tiny_base_folder), models=tmp_path)
    assert not (tmp_path / "x.wav").exists()


def test_an_unknown_base_is_refused() -> None:
    with pytest.raises(BaseModelError, match="no folder"):
        Voice.load("nowhere")


def test_a_text_that_the_window_cannot_hold_is_refused(voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is spoken, with how long it may be; a text of that length is taken."""
    text = "the silver key is in the river. " * 20
    monkeypatch.setattr(voice.base.network, "window", len(voice.base.prompt_ids(text, 0)) + 100)
    with pytest.raises(ConfigError, match=rf"text of {len(text)} characters.*Split it into sentences") as caught:
        voice.request(text)
    most = int(str(caught.value).split("enough for about ")[1].split(".")[0])
    assert 20 < most < len(text)
    request = voice.request(text[:most])
    assert len(request.text_ids) + request.max_frames <= voice.base.window
    monkeypatch.setattr(voice.base.network, "window", 4)
    with pytest.raises(ConfigError, match="can't be spoken at once"):
        voice.request(text)


def test_a_text_that_may_fit_is_begun_and_cut_off_with_the_reason(
    voice: Voice, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "the silver key is here"
    whole = voice.request(text)
    monkeypatch.setattr(voice.base.network, "window", len(whole.text_ids) + 15)
    request = voice.request(text, context=[Turn(whole.text_ids, np.zeros((3, 8), dtype=np.int64))])
    assert (request.max_frames, request.context) == (15, ())
    codes_TK = np.zeros((15, 8), dtype=np.int64)
    monkeypatch.setattr(voice, "generate", lambda _: [Spoken(codes_TK, True)])
    capsys.readouterr()
    voice.speak(text)
    assert "cut off after 1.2 s, where the base's window ends; split the text" in " ".join(
        capsys.readouterr().err.split()
    )
