"""espeak-ng as the voice of the miniature's corpus.

espeak-ng is GPL-3.0. It is loaded here, at run time, from the separately installed package
`espeakng-loader`, to make sound files; nothing else in affetto touches it, and no part of it is
shipped. One engine per process: the library keeps global state.

Through that state an utterance would also depend on earlier ones (the phase of the flutter, the echo's buffer) and on
the time of day (the seed of its breath noise). So the library is reloaded and seeded for every utterance, which takes
2 ms and makes the samples a pure function of the arguments.
"""

from __future__ import annotations

import _ctypes
import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affetto.errors import MissingDependencyError

_SYNCHRONOUS, _CHARS_UTF8, _END_PAUSE = 2, 1, 0x1000
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_SEED = 1
_NO_EVENT, _WORD = 0, 1
_REMEDY = "pip install --force-reinstall espeakng-loader"


class _Event(ctypes.Structure):
    """`espeak_EVENT` of espeak-ng's speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("id", ctypes.c_char * 8),
    )  # fmt: skip


@dataclass(frozen=True)
class Utterance:
    """An utterance by espeak-ng."""

    samples: NDArray[np.float64]
    """Mono, in [-1, 1], at the engine's `sample_rate`."""
    word_starts: tuple[tuple[int, float], ...]
    """(place of the word's first letter in the text, seconds) of each word; words spoken as one count as one."""


class Espeak:
    """A synchronous espeak-ng engine. Use `engine()`, which makes one per process."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise MissingDependencyError(
                "the miniature's corpus is spoken by espeak-ng: pip install espeakng-loader"
            ) from error
        try:
            self._path, self._data = str(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path())
        except RuntimeError as error:
            raise MissingDependencyError(f"espeak-ng finds no data ({error}): {_REMEDY}") from error
        self._chunks: list[NDArray[np.int16]] = []
        self._word_starts: list[tuple[int, float]] = []
        shorts, events = ctypes.POINTER(ctypes.c_short), ctypes.POINTER(_Event)
        signature = ctypes.CFUNCTYPE(ctypes.c_int, shorts, ctypes.c_int, events)
        self._callback = signature(self._collect)
        self._library: Any = None
        self.sample_rate = self._load()

    def _load(self) -> int:
        """Load the library with fresh state; returns its sample rate."""
        if self._library is not None:
            self._library.espeak_Terminate()
            unload = getattr(_ctypes, "dlclose", None) or getattr(_ctypes, "FreeLibrary")  # noqa: B009 (Windows)
            unload(self._library._handle)
        try:
            self._library = ctypes.CDLL(self._path)
        except OSError as error:
            raise MissingDependencyError(f"espeak-ng can't be loaded ({error}): {_REMEDY}") from error
        sample_rate = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, str(self._data).encode(), 0))
        if sample_rate <= 0:
            raise MissingDependencyError(f"espeak-ng finds no data in {self._data}: {_REMEDY}")
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(_SEED))
        if hasattr(self._library, "srand"):
            self._library.srand(_SEED)
        return sample_rate

    def _collect(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        index = 0
        while events[index].type != _NO_EVENT:
            if events[index].type == _WORD:
                self._word_starts.append((events[index].text_position - 1, events[index].audio_position / 1000.0))
            index += 1
        return 0

    def speak(self, text: str, voice: str, *, rate: int = 175, pitch: int = 50, pitch_range: int = 50) -> Utterance:
        """Say `text`.

        `rate` is in words per minute; `pitch` and `pitch_range` are espeak-ng's 0 to 99. `voice` is a language and,
        after +, a variant; an unknown one is a `ValueError` (espeak-ng itself ignores unknown variants).
        """
        self._load()
        self._chunks.clear()
        self._word_starts.clear()
        variant = voice.partition("+")[2]
        is_known = not variant or (self._data / "voices" / "!v" / variant).is_file()
        if not is_known or self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        for parameter, value in ((_RATE, rate), (_VOLUME, 100), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, int(value), 0)
        data = text.encode()
        self._library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _CHARS_UTF8 | _END_PAUSE, None, None)
        if not self._chunks:
            raise ValueError(f"espeak-ng said nothing for {text!r}")
        return Utterance(np.concatenate(self._chunks).astype(np.float64) / 32768.0, tuple(self._word_starts))


@cache
def engine() -> Espeak:
    """This process's engine."""
    return Espeak()
