"""`affetto speak`: one sentence, with any trained emotion or blend, spoken into a sound file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from affetto.adapters.peft_files import read_facts
from affetto.audio.corpora.files import text_beside
from affetto.audio.sound import read_sound, sound_format, write_sound
from affetto.errors import AdapterError, ConfigError, DataError, did_you_mean
from affetto.files import expanded, is_same_file, make_writable
from affetto.folders import recover_folder
from affetto.model.batch import Turn
from affetto.progress import say
from affetto.speak.arguments import blend_of, require_device, require_intensity, require_seed, require_words
from affetto.speak.voice import Voice, usual_device
from affetto.types import SPEAKING_TEMPERATURE


def speak_to_file(
    text: str,
    emotion: str | Mapping[str, float] | None,
    out: Path,
    *,
    base: str = "miniature",
    models: Path = Path("emotion_models"),
    intensity: float | None = None,
    speaker: int = 0,
    seed: int = 0,
    temperature: float | None = None,
    depth_temperature: float | None = None,
    takes: int | None = None,
    after: Sequence[tuple[Path, int]] = (),
    device: str | None = None,
) -> None:
    """Load the adapters of `emotion` (`blend_of`) from `models/<emotion>/best`, speak `text`, and write `out`.

    `after` are earlier turns, oldest first, as (sound file with its words in a .txt beside it, speaker). `device` is
    cpu or cuda; None is the `usual_device`. On a GPU the base is in bfloat16. Temperatures and `takes` of None are the
    library's defaults. AffettoErrors are raised before anything is loaded whenever possible. Says the intensity of each
    adapter, and warns of one beyond what training measured, of an unknown speaker, and of text that can't be spoken.
    """
    if not out.name:
        raise ConfigError("no name is given for the sound file to write; --out speech.wav, say")
    sound_format(out)
    if any(path.exists() and is_same_file(path, out) for path, _ in after):
        raise ConfigError(f"{out} is one of the earlier turns, and would be lost: name another file with --out")
    require_words(text)
    blend = blend_of(emotion)
    require_intensity(intensity, blend)
    require_seed(seed)
    folders = {name: _find_adapter(expanded(models), name) for name in blend}
    if device not in (None, "cpu", "cuda"):
        raise ConfigError(f"device {device}: it is cpu or cuda")
    device = device or usual_device(base)
    require_device(device)
    make_writable(out.parent)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    voice = Voice.load(base, device=device, dtype=dtype, only_speaks=True)
    for name, folder in folders.items():
        voice.load_adapter(name, folder)
    for name, strength in voice.strengths(blend, intensity).items():
        full = voice.recommended_intensity(name) if intensity is None else intensity
        _say_intensity(name, folders[name], strength, "" if strength == full else f", {blend[name]:g} of {full:.4g}")
    context = [_read_turn(voice, path, number) for path, number in after]
    samples, rate = voice.speak(
        text, blend, intensity=intensity, speaker=speaker, seed=seed, context=context, takes=takes,
        temperature=SPEAKING_TEMPERATURE if temperature is None else temperature, depth_temperature=depth_temperature,
    )  # fmt: skip
    write_sound(out, samples, rate)


def _find_adapter(models: Path, name: str) -> Path:
    """The folder of the adapter `name`. AdapterError, with the adapters that there are, if there is none; ConfigError
    if it can't be an emotion's name."""
    if name in ("", ".", "..") or Path(name).name != name:
        raise ConfigError(f"{name!r} isn't the name of an emotion; give the folder of the adapters with --models")
    folder = models / name / "best"
    if recover_folder(folder).is_dir():
        return folder
    trained = sorted(path.parent.name for path in models.glob("*/best") if path.is_dir())
    hint = f"{did_you_mean(name, trained)}; {models} has {', '.join(trained)}" if trained else ""
    raise AdapterError(
        f"there is no adapter {folder}{hint}. Train it: affetto train --emotion {name}; or point --models elsewhere"
    )


def _say_intensity(name: str, folder: Path, strength: float, why: str) -> None:
    """Say the intensity that an adapter speaks at, and warn if it is more than its training measured."""
    say(f"{name} at intensity {strength:.4g}{why}")
    measured = [float(point["intensity"]) for point in read_facts(folder).get("frontier") or ()]
    if measured and strength > max(measured):
        say(
            f"{name} was measured up to intensity {max(measured):g}; at {strength:.4g} speech may fall apart",
            style="yellow",
        )


def _read_turn(voice: Voice, path: Path, speaker: int) -> Turn:
    rate = voice.codec.sample_rate
    samples, text = read_sound(path, rate), text_beside(path)
    if text is None:
        raise DataError(f"write what {path} says into {path.with_suffix('.txt').name} beside it")
    return voice.turn(text, samples, rate, speaker)
