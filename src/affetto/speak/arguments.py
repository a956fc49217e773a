"""Checks of a voice's arguments, before anything slow: text, emotions, strength, seed, speaker, earlier turns."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from affetto.errors import ConfigError, DataError, listed

if TYPE_CHECKING:
    from affetto.model.batch import Turn

MOST_SEED = 2**63 - 1
"""torch takes 64 bits, and the seeds of further takes are above a request's own."""
_EXAMPLES = "write happy or happy=0.6,surprised=0.4"


def blend_of(emotion: str | Mapping[str, float] | None) -> dict[str, float]:
    """`happy`, `happy=0.6,surprised=0.4` or {name: share} as {name: share}. A single name has share 1; None is {}.

    Shares are of the intensity. ConfigError if a name is empty or given twice, or if a share isn't 0 or more.
    """
    if emotion is None:
        return {}
    if isinstance(emotion, str):
        emotion = _read_blend(emotion)
    elif not (isinstance(emotion, Mapping) and all(isinstance(name, str) for name in emotion)):
        raise ConfigError(f"emotion {emotion!r}: {_EXAMPLES}, or give {{name: share}}")
    return {name: require_strength(share, f"emotion {name}, its share") for name, share in emotion.items()}


def _read_blend(emotion: str) -> dict[str, float]:
    blend: dict[str, float] = {}
    for part in emotion.split(","):
        name, sign, share = (piece.strip() for piece in part.partition("="))
        if not name:
            raise ConfigError(f"emotion {emotion!r}: {part!r} names no emotion; {_EXAMPLES}")
        if name in blend:
            raise ConfigError(f"emotion {emotion!r}: {name} is named twice")
        try:
            blend[name] = float(share) if sign else 1.0
        except ValueError:
            raise ConfigError(f"emotion {emotion!r}: {share!r} is not a number") from None
    return blend


def require_strength(value: float, name: str = "intensity") -> float:
    """`value` as a float. ConfigError, which calls it `name`, if it isn't a finite number of 0 or more."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ConfigError(f"{name} {value}: it must be a finite number, 0 (the base) or more")
    return number


def require_intensity(intensity: float | None, blend: Mapping[str, float]) -> None:
    """ConfigError for an invalid intensity, or one without an emotion."""
    if intensity is not None and (strength := require_strength(intensity)) > 0 and not blend:
        raise ConfigError(f"intensity {strength:g} is the strength of an emotion: name one, or leave it out")


def has_words(text: str) -> bool:
    """Whether `text` has anything to speak: a letter or a digit."""
    return any(map(str.isalnum, text))


def require_words(text: object) -> None:
    """ConfigError if `text` isn't a string, isn't valid Unicode, or has nothing that any base could speak."""
    if not isinstance(text, str):
        raise ConfigError(f"{text!r} can't be spoken: give a text, a string")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{text!r} can't be spoken: parts of it are bytes that aren't UTF-8; write it in UTF-8"
        ) from None
    if not has_words(text):
        raise ConfigError(f"nothing in {text!r} can be spoken: it has no letter and no digit")


def require_seed(seed: SupportsIndex) -> int:
    """`seed`, Python's or NumPy's int, as Python's. ConfigError if it isn't an int from 0 to `MOST_SEED`."""
    number = _whole(seed)
    if number is None or not 0 <= number <= MOST_SEED:
        raise ConfigError(f"seed {seed}: it must be a whole number from 0 to {MOST_SEED}")
    return number


def require_speaker(speaker: SupportsIndex, known: Mapping[int, str]) -> int:
    """`speaker` as a Python int of 0 or more. If it isn't one, ConfigError with the `known` speakers."""
    number = _whole(speaker)
    if number is None or number < 0:
        names = [f"{place}" if name == f"{place}" else f"{place} ({name})" for place, name in sorted(known.items())]
        hint = f"; known are {listed(names)}" if names else ""
        raise ConfigError(f"speaker {speaker!r}: speakers are numbers, 0 or more{hint}")
    return number


def require_takes(takes: SupportsIndex) -> None:
    """ConfigError if `takes` isn't a whole number of 1 or more."""
    if (_whole(takes) or 0) < 1:
        raise ConfigError(f"takes must be 1 or more, a whole number, not {takes}")


def require_temperature(value: object, name: str = "temperature") -> float:
    """`value` as a float. ConfigError, which calls it `name`, if it isn't a finite number of 0 or more."""
    if not 0 <= (number := _real(value)) < math.inf:
        raise ConfigError(f"{name} must be 0 (greedy) or a positive number, not {value}")
    return number


def require_rate(sample_rate: object) -> None:
    """ConfigError if `sample_rate` isn't a number above 0."""
    if not 0 < _real(sample_rate) < math.inf:
        raise ConfigError(f"sample_rate {sample_rate!r}: it must be above 0, a number in Hz")


def turns_of(context: object) -> list[Turn]:
    """Earlier turns as a list. ConfigError for anything but a sequence of them."""
    from affetto.model.batch import Turn

    if not isinstance(context, Sequence) or not all(isinstance(turn, Turn) for turn in context):
        raise ConfigError(f"context {context!r}: give a list of earlier turns, as Voice.turn makes them")
    return list(context)


def _whole(value: SupportsIndex) -> int | None:
    try:
        return operator.index(value)
    except TypeError:
        return None


def _real(value: object) -> float:
    """NaN for anything but a real number."""
    return float(value) if isinstance(value, Real) else math.nan


def mono_sound(samples: ArrayLike) -> NDArray[np.float32]:
    """Mono samples (N,) in [-1, 1] of (N,) or (N, channels), as if read from a file.

    Channels are averaged, and integers of 8, 16 or 32 bits scaled by their full range (for unsigned ones, as in 8-bit
    WAV, silence is mid-range). DataError for other shapes and types, no samples, and samples that are NaN or infinite.
    """
    sound = np.asarray(samples)
    kind, bits = sound.dtype.kind, 8 * sound.dtype.itemsize
    if kind in "iu" and bits <= 32:
        full_range = 2.0 ** (bits - 1)
        sound = (sound - (full_range if kind == "u" else 0.0)) / full_range
    elif kind != "f":
        raise DataError(f"samples of type {sound.dtype}: give floats in [-1, 1], or int16 or int32 of full range")
    if sound.ndim == 2 and sound.shape[1] < sound.shape[0]:
        sound = sound.mean(axis=1)
    if sound.ndim != 1 or not len(sound):
        raise DataError(f"samples of shape {sound.shape}: give mono ones (N,), or one column a channel (N, channels)")
    if not np.isfinite(sound).all():
        raise DataError(f"{np.count_nonzero(~np.isfinite(sound))} of {len(sound)} samples are NaN or infinite")
    return sound.astype(np.float32)


def require_device(device: object) -> None:
    """ConfigError unless `device` is cpu, or cuda (maybe with a number) and that GPU is there."""
    kind, mark, number = str(device).partition(":")
    if kind not in ("cpu", "cuda") or (mark and not number.isdecimal()):
        raise ConfigError(f"device {device}: it is cpu or cuda")
    if kind == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(f"device {device}: torch finds no GPU here; leave it out, or say cpu")
    if int(number or 0) >= (count := torch.cuda.device_count()):
        raise ConfigError(f"device {device}: there is no such GPU here; the last is cuda:{count - 1}")


def require_dtype(dtype: object) -> None:
    """ConfigError if a voice can't compute in `dtype`."""
    import torch

    kinds = (torch.float32, torch.bfloat16, torch.float16)
    if dtype not in kinds:
        raise ConfigError(f"dtype {dtype}: it is {', '.join(map(str, kinds[:-1]))} or {kinds[-1]}")
