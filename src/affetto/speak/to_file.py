"""`affetto speak`: one sentence, with any trained emotion or blend, into a sound file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from affetto.adapters.peft_files import read_facts
from affetto.audio.corpora.files import text_beside
from affetto.audio.hints import did_you_mean
from affetto.audio.sound import read_sound, sound_format, write_sound
from affetto.errors import AdapterError, ConfigError, DataError
from affetto.files import make_writable
from affetto.folders import recover_folder
from affetto.model.batch import Turn
from affetto.progress import say
from affetto.speak.voice import Voice, usual_device
from affetto.types import SPEAKING_TEMPERATURE


def speak_to_file(
    text: str,
    blend: Mapping[str, float],
    out: Path,
    *,
    base: str = "miniature",
    models: Path = Path("emotion_models"),
    intensity: float | None = None,
    speaker: int = 0,
    seed: int = 0,
    temperature: float | None = None,
    takes: int | None = None,
    after: Sequence[tuple[Path, int]] = (),
    device: str | None = None,
) -> None:
    """Load what the blend needs from `models/<emotion>/best`, speak, write `out`.

    `after` are earlier turns, (sound file with its words in a .txt beside it, speaker), oldest first. `device` is cpu
    or cuda; None is the `usual_device`. On a GPU the base is in bfloat16. `temperature` and `takes` are the library's
    where they are None. Raises AffettoErrors, those that can be known before it is loaded at once; what can be spoken
    in part, a speaker that isn't known, and a strength beyond what training measured, are told.
    """
    sound_format(out)
    if not any(map(str.isalnum, text)):
        raise ConfigError(f"nothing in {text!r} can be spoken: it has no letter and no digit")
    if intensity is not None:
        _check_intensity(intensity, blend)
    folders = {name: _find_adapter(models, name) for name in blend}
    if device is None:
        device = usual_device(base)
    elif device not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device}: it is cpu or cuda")
    elif device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU here; leave the option out, or say cpu")
    make_writable(out.parent)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    voice = Voice.load(base, device=device, dtype=dtype, only_speaks=True)
    for name, folder in folders.items():
        voice.load_adapter(name, folder)
        _tell_beyond(name, folder, blend[name] * (1.0 if intensity is None else intensity))
    _check_request(voice, text, speaker)
    context = [_read_turn(voice, path, who) for path, who in after]
    samples, rate = voice.speak(
        text, blend, intensity=intensity, speaker=speaker, seed=seed, context=context, takes=takes,
        temperature=SPEAKING_TEMPERATURE if temperature is None else temperature,
    )  # fmt: skip
    write_sound(out, samples, rate)


def _check_intensity(intensity: float, blend: Mapping[str, float]) -> None:
    if intensity < 0:
        raise ConfigError(f"--intensity {intensity:g}: it is 0 (the base) or more")
    if intensity > 0 and not blend:
        raise ConfigError(f"--intensity {intensity:g} is the strength of an emotion: name one with --emotion")


def _find_adapter(models: Path, name: str) -> Path:
    """The folder of the adapter `name`; AdapterError where there is none, naming those that there are."""
    folder = models / name / "best"
    if recover_folder(folder).is_dir():
        return folder
    trained = sorted(path.parent.name for path in models.glob("*/best") if path.is_dir())
    there = f"{did_you_mean(name, trained)}; {models} has {', '.join(trained)}" if trained else ""
    raise AdapterError(
        f"there is no adapter {folder}{there}. Train it: affetto train --emotion {name}; or point --models elsewhere"
    )


def _tell_beyond(name: str, folder: Path, strength: float) -> None:
    """A line where an adapter is to speak more strongly than its training looked at."""
    measured = [float(point["intensity"]) for point in read_facts(folder).get("frontier") or ()]
    if measured and strength > max(measured):
        say(
            f"{name} was measured up to intensity {max(measured):g}; at {strength:g} speech may fall apart",
            style="yellow",
        )


def _check_request(voice: Voice, text: str, speaker: int) -> None:
    """ConfigError where nothing of `text` can be spoken; a line where some of it can't, or by nobody known."""
    if unknown := voice.unknown_signs(text):
        told = ", ".join(map(repr, unknown))
        if not any(sign.isalnum() and sign not in unknown for sign in text):
            raise ConfigError(f"nothing in {text!r} can be spoken: {voice.base.id} has no tokens for {told}")
        say(f"{voice.base.id} has no tokens for {told}: they aren't spoken", style="yellow")
    if voice.knows_speaker(speaker) is False:
        say(f"no clip was of a speaker {speaker}: whose voice this becomes is chance", style="yellow")


def _read_turn(voice: Voice, path: Path, speaker: int) -> Turn:
    rate = voice.codec.sample_rate
    samples, text = read_sound(path, rate), text_beside(path)
    if text is None:
        raise DataError(f"write what {path} says into {path.with_suffix('.txt').name} beside it")
    return voice.turn(text, samples, rate, speaker)
