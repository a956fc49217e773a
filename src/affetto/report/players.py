"""The report's players: each clip encoded into the page, with its picture, transcript and the judges' answers."""

from __future__ import annotations

import base64
import difflib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from affetto.audio.sound import read_sound
from affetto.errors import DataError
from affetto.evaluate.results import VALUE_NAMES
from affetto.report.canvas import Picture
from affetto.report.measures import ABSENT, MEASURES, scale_of, write_number
from affetto.report.speech_picture import Voice, hear, speech_picture

SAMPLE_RATE = 24_000
MAX_BYTES = 13_000_000
"""Limit for players and pictures; clips beyond it are listed without sound, so that the page still opens on a phone."""
_NAMES = {"transcript": ("transcript", "heard"), "label": ("label", "first_choice"), "posterior": ("posterior",)}
"""The facts under a player's picture, and their names in `values`, including those of docs/results.md."""
_FLAGS = ("truncated", "repeated", "runaway")
_LISTED = ("wer", "mos_overall")
"""The values of docs/results.md that a player lists."""


@dataclass(frozen=True)
class AudioCell:
    """One system's sound for a text. `values` are a FILE's of docs/results.md, or `transcript`, `label` and
    `posterior` (the judges' answers), and any other values to list by name."""

    system: str
    path: Path
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AudioRow:
    """One text, spoken by several systems with the same speaker and seed."""

    text: str
    prompt: str
    """`emotional` or `plain`."""
    speaker: str
    seed: int | None
    cells: tuple[AudioCell, ...]


@dataclass(frozen=True)
class Player:
    """One clip on the page; `problem` says why it can't be played."""

    system: str
    number: int
    uri: str | None
    picture: Picture | None
    problem: str | None
    duration_s: float
    pitch: str
    transcript: tuple[tuple[str, str], ...]
    """(word, `same` | `extra` | `missing`)."""
    label: str | None
    posterior: str
    others: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PlayerRow:
    """One row of players on a shared time axis."""

    row: AudioRow
    duration_s: float
    players: tuple[Player, ...]


def player_rows(rows: Sequence[AudioRow], numbers: Mapping[str, int]) -> list[PlayerRow]:
    """The page's rows of players; `numbers` gives each system its colour. Unreadable sounds become problems."""
    left, shown = MAX_BYTES, []
    for index, row in enumerate(rows):
        player_row = _player_row(row, numbers, f"speech-{index}", left)
        left -= sum(_num_bytes(player) for player in player_row.players)
        shown.append(player_row)
    return shown


def sound_uri(samples: NDArray[np.floating]) -> str:
    """Mono samples at 24 kHz as a data: URI.

    MP3 (LAME, about 64 kbit/s at 24 kHz) takes a seventh of WAV's size, is deterministic, and plays in every browser
    since 2012. Ogg Vorbis is no smaller here, libsndfile gives its stream a random serial number, and Safari plays it
    only since 18.4; Opus resamples to 48 kHz. A libsndfile without LAME writes FLAC: lossless, three times as large.
    """
    with_mp3 = "MP3" in soundfile.available_formats()
    kind, subtype, mime = ("MP3", "MPEG_LAYER_III", "audio/mpeg") if with_mp3 else ("FLAC", "PCM_16", "audio/flac")
    encoded = io.BytesIO()
    soundfile.write(encoded, np.clip(samples, -1, 1), SAMPLE_RATE, format=kind, subtype=subtype)
    return f"data:{mime};base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _player_row(row: AudioRow, numbers: Mapping[str, int], name: str, left: int) -> PlayerRow:
    voices: list[Voice | str] = []
    for cell in row.cells:
        try:
            voices.append(hear(read_sound(Path(cell.path), SAMPLE_RATE), SAMPLE_RATE))
        except DataError as error:
            voices.append(str(error))
    heard = [voice for voice in voices if isinstance(voice, Voice)]
    duration_s = max((voice.duration_s for voice in heard), default=0.0)
    first = voices[0] if voices else None
    reference_hz = first.median_hz if isinstance(first, Voice) else None
    players = []
    for index, (cell, voice) in enumerate(zip(row.cells, voices, strict=True)):
        number = numbers.get(cell.system, index)
        uri, drawn, problem, pitch = None, None, None, ""
        if isinstance(voice, str):
            problem = voice
        else:
            uri = sound_uri(voice.samples)
            drawn = speech_picture(
                voice, duration_s=duration_s, number=number, reference_hz=reference_hz, system=cell.system,
                name=f"{name}-{index}", is_reference=index == 0,
            )  # fmt: skip
            left -= len(uri) + len(drawn.svg)
            pitch = _pitch(voice)
            if left < 0:
                uri, drawn, problem = None, None, f"left out to keep this page small; it is at {cell.path}"
        length_s = voice.duration_s if isinstance(voice, Voice) else 0.0
        players.append(_player(row, cell, number, uri, drawn, problem, length_s, pitch))
    return PlayerRow(row, duration_s, tuple(players))


def _player(
    row: AudioRow, cell: AudioCell, number: int, uri: str | None, drawn: Picture | None, problem: str | None,
    duration_s: float, pitch: str,
) -> Player:  # fmt: skip
    said = {
        key: next((cell.values[name] for name in names if name in cell.values), None) for key, names in _NAMES.items()
    }
    return Player(
        system=cell.system,
        number=number,
        uri=uri,
        picture=drawn,
        problem=problem,
        duration_s=duration_s,
        pitch=pitch,
        transcript=() if said["transcript"] is None else compare_words(row.text, str(said["transcript"])),
        label=None if said["label"] is None else str(said["label"]),
        posterior="" if said["posterior"] is None else write_number(float(said["posterior"]), scale_of("share")),
        others=tuple(_others(cell.values)),
    )


def _others(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    special = {name for names in _NAMES.values() for name in names}
    for key, value in values.items():
        if key in _FLAGS:
            if value:
                yield key, ""
        elif key in _LISTED and value is not None:
            yield MEASURES[key].label, write_number(float(value), scale_of(MEASURES[key].unit))
        elif key not in VALUE_NAMES and key not in special:
            yield key, f"{value:.4g}" if isinstance(value, float) else ABSENT if value is None else str(value)


def compare_words(text: str, transcript: str) -> tuple[tuple[str, str], ...]:
    """Words of `transcript` as (word, `same` or `extra`), with those of `text` that weren't heard as `missing`.

    Only for display: it ignores case and punctuation, whereas the word error rate also normalises spelling.
    """
    heard, wanted = transcript.split(), text.split()
    matcher = difflib.SequenceMatcher(None, [_bare(word) for word in wanted], [_bare(word) for word in heard], False)
    words: list[tuple[str, str]] = []
    for kind, i, j, k, m in matcher.get_opcodes():
        words += [(word, "same") for word in heard[k:m]] if kind == "equal" else []
        words += [(word, "missing") for word in wanted[i:j]] if kind in ("delete", "replace") else []
        words += [(word, "extra") for word in heard[k:m]] if kind in ("insert", "replace") else []
    return tuple(words)


def _bare(word: str) -> str:
    return re.sub(r"[^\w']", "", word.lower())


def _pitch(voice: Voice) -> str:
    if voice.median_hz is None or voice.range_st is None:
        return "too little is voiced to measure a pitch"
    return f"median {voice.median_hz:.0f} Hz, range {voice.range_st:.1f} st"


def _num_bytes(player: Player) -> int:
    return len(player.uri or "") + len(player.picture.svg if player.picture else "")
