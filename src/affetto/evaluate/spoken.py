"""Reuse of speech: a folder of sounds with a note of what made them, so that an interrupted evaluation can resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from affetto.files import hash_bytes, hash_file, hash_folder, hash_text, made_once, read_json, write_json
from affetto.model.batch import turn_bytes
from affetto.provenance import versions
from affetto.speak.requests import Request
from affetto.speak.voice import Voice

NOTE = "spoken.json"
_SPEAKING = ("speak/*.py", "native/*", "codes/*.py", "model/*.py")


def speech_key(requests: Sequence[Request], *made_by: str) -> str:
    """One hash of everything that the sounds of `requests` depend on.

    `made_by` are hashes of base (`Base.answers_hash`, which covers the precision), codec and adapter, and the device.
    """
    asked = [
        {**asdict(replace(request, context=())), "context": hash_bytes(*turn_bytes(request.context))}
        for request in requests
    ]
    return hash_text(*made_by, json.dumps([asked, versions(), speaking_hash()], sort_keys=True))


def speaker_key(voice: Voice) -> tuple[str, ...]:
    """What the base's sounds depend on, apart from the requests: hashes of base and codec, and the device."""
    return voice.base.answers_hash, hash_folder(voice.base.folder, ("codec.*",)), voice.base.device.type


@cache
def speaking_hash() -> str:
    """Hash of the code that speaks, so that sounds by other code (another choice of takes, say) aren't reused."""
    return hash_folder(Path(__file__).parents[1], _SPEAKING)


def note_spoken(folder: Path, key: str, hit_caps: Mapping[str, bool]) -> None:
    """Note what made the files in `folder`; `hit_caps` says for each name whether the frame cap ended it."""
    files = {name: {"hit_cap": hit_cap, "sha256": hash_file(folder / name)} for name, hit_cap in hit_caps.items()}
    write_json(folder / NOTE, {"key": key, "files": files})


def read_spoken(folder: Path, key: str) -> dict[str, bool] | None:
    """`hit_caps` of the files in `folder` if they were made with `key` and haven't changed since; else None."""
    try:
        note: Any = read_json(folder / NOTE)
        if note["key"] != key:
            return None
        files = {str(name): (bool(facts["hit_cap"]), facts["sha256"]) for name, facts in note["files"].items()}
        is_same = all(hash_file(folder / name) == content for name, (_, content) in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return {name: hit_cap for name, (hit_cap, _) in files.items()} if is_same else None


def copy_spoken(kept: Path, folder: Path, key: str, say: Callable[[Path], object]) -> None:
    """Copy the folder `kept` to `folder`; `say` makes it first if it is missing, changed or of another `key`."""
    if kept.is_dir() and read_spoken(kept, key) is None:
        shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(made_once(kept, say), folder)
