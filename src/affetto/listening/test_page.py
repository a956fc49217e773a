"""A listening test for people: blinded, loudness-matched, a single self-contained page.

Three questions: how natural (1 to 5), which emotion (forced choice, with `other` and `none`), which of two. Sounds have
random names; a key beside the test's folder, never inside it, says which system each comes from. All sounds are set to
one level, so that loudness affects no vote and nobody is startled.
"""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from affetto.audio.corpora.files import sound_files, text_beside
from affetto.audio.sound import SoundError, read_sound
from affetto.errors import DataError, counted
from affetto.files import hash_text, make_writable, write_json, write_text
from affetto.listening.webmushra import one_after_another, stereo, webmushra_config
from affetto.metrics.activity import find_activity
from affetto.report.page_templates import page_templates

KEY_SCHEMA, VOTES_SCHEMA = "affetto.listening-key/1", "affetto.votes/1"
CHOICES = ("other", "none")
"""Choices besides the emotions of a forced choice."""
_RATE = 24_000
_LEVEL_DB, _PEAK_DB = -26.0, -1.0


@dataclass(frozen=True)
class Item:
    """One sound of the test."""

    id: str
    """The random name of its file."""
    system: str
    file: str
    text: str | None
    samples: NDArray[np.float32]


def export_test(
    systems: Mapping[str, Path], out: Path, emotions: Sequence[str], *, num_sentences: int = 8, seed: int = 0
) -> Path:
    """Write the test of `systems` (folders in which files of the same name say the same sentence); returns the key.

    `out` gets a self-contained `test.html`, and `webmushra.yaml` with `audio/` for webMUSHRA's `configs`; the key goes
    to `OUT_key.json` beside it. Raises DataError if fewer than two systems share a file, a sound can't be read, `out`
    can't be written, or `out` or the key already exists: tests are never mixed, and a key may be of a running test.
    """
    key = out.with_name(f"{out.name}_key.json")
    _check_new(out, key)
    items, sentences = _items(systems, num_sentences, seed)
    pairs = _pairs(items, sentences, seed)
    test = hash_text(*(item.id for item in items))[:12]
    sounds = {item.id: item.samples for item in items}
    sounds |= {name: one_after_another(a.samples, b.samples, _RATE) for name, a, b in pairs}
    make_writable(out / "audio")
    for name, samples in sounds.items():
        (out / "audio" / f"{name}.wav").write_bytes(_wav(stereo(samples, _RATE)))
    choices = [*dict.fromkeys(emotions), *CHOICES]
    write_text(out / "test.html", _page(test, items, pairs, choices))
    config = webmushra_config(
        test, out.resolve().name, [item.id for item in items], [name for name, _, _ in pairs], choices
    )
    write_text(out / "webmushra.yaml", config)
    write_json(
        key,
        {
            "schema": KEY_SCHEMA,
            "test": test,
            "choices": choices,
            "items": {item.id: {"system": item.system, "file": item.file, "text": item.text} for item in items},
            "pairs": {name: {"a": a.id, "b": b.id} for name, a, b in pairs},
        },
    )
    return key


def level(samples: NDArray[np.floating], sample_rate: int) -> NDArray[np.float32]:
    """`samples` at -26 dBFS RMS without pauses, or as near as peaks under -1 dBFS allow; silence is unchanged."""
    activity = find_activity(samples, sample_rate)
    if activity is None:
        return np.asarray(samples, dtype=np.float32)
    gain = min(10 ** ((_LEVEL_DB - activity.level_db) / 20), 10 ** (_PEAK_DB / 20) / float(np.abs(samples).max()))
    return np.asarray(samples * gain, dtype=np.float32)


def _check_new(out: Path, key: Path) -> None:
    if key.exists():
        raise DataError(f"{key} is the key of an earlier test: name another --out, or move it away")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out} already holds something: name another --out, or move it away")


def _items(systems: Mapping[str, Path], num_sentences: int, seed: int) -> tuple[list[Item], list[str]]:
    by_system = {name: {path.stem: path for path in sound_files(folder)} for name, folder in systems.items()}
    shared = sorted(set.intersection(*(set(files) for files in by_system.values()))) if len(by_system) > 1 else []
    if not shared:
        given = ", ".join(f"{name} ({counted(len(files), 'file')})" for name, files in by_system.items())
        raise DataError(
            "a listening test needs at least two folders with sound files of the same names (000.wav says the same "
            f"sentence in each); given: {given}"
        )
    draw = random.Random(f"listening/{seed}")
    sentences = sorted(draw.sample(shared, min(num_sentences, len(shared))))
    items = []
    for sentence in sentences:
        for name, files in by_system.items():
            path = files[sentence]
            try:
                samples = level(read_sound(path, _RATE), _RATE)
            except SoundError as error:
                raise DataError(f"{path} can't be played: {error}") from error
            # A letter first, because YAML readers take digits around an e for a number.
            blind = "s" + hash_text("listening", str(seed), name, sentence, str(draw.random()))[:10]
            items.append(Item(blind, name, path.name, text_beside(path), samples))
    draw.shuffle(items)
    return items, sentences


def _pairs(items: Sequence[Item], sentences: Sequence[str], seed: int) -> list[tuple[str, Item, Item]]:
    """(name, A, B) of every pair of systems on every sentence, with random sides."""
    draw = random.Random(f"pairs/{seed}")
    by_place = {(Path(item.file).stem, item.system): item for item in items}
    systems = sorted({item.system for item in items})
    pairs = []
    for sentence in sentences:
        for first, second in combinations(systems, 2):
            sides = [by_place[sentence, first], by_place[sentence, second]]
            draw.shuffle(sides)
            pairs.append((f"pair-{hash_text(sides[0].id, sides[1].id)[:8]}", sides[0], sides[1]))
    draw.shuffle(pairs)
    return pairs


def _wav(samples: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, _RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _page(test: str, items: Sequence[Item], pairs: Sequence[tuple[str, Item, Item]], choices: Sequence[str]) -> str:
    environment, texts = page_templates(("listen.html.j2", "report.css"))
    sounds = {
        item.id: "data:audio/wav;base64," + base64.b64encode(_wav(item.samples)).decode("ascii") for item in items
    }
    return environment.get_template("listen.html.j2").render(
        test=test,
        schema=VOTES_SCHEMA,
        css=texts["report.css"],
        sounds=sounds,
        items=[item.id for item in items],
        pairs=[(name, a.id, b.id) for name, a, b in pairs],
        choices=list(choices),
    )
