"""Coding in another process: no network is loaded in this one, and nothing else is different."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
from code_signals import RATE, make_clips, manifest, vowel

from affetto.audio.sound import read_sound
from affetto.codes import workers
from affetto.codes.codec import load_codec
from affetto.codes.prepare import prepare
from affetto.codes.silence import silence_codes
from affetto.config import load_config
from affetto.errors import BaseModelError, DataError
from affetto.model.base import load_base
from affetto.model.random_base import random_base
from affetto.model.rows import make_rows
from affetto.pipeline import prepare_clips
from affetto.types import EMOTIONS, Clip, Codec


@pytest.fixture
def kept_out(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No codec that is a network can be loaded in this process until it is undone."""
    monkeypatch.setattr("affetto.codes.codec._load_neural", lambda *_: pytest.fail("loaded in this process"))
    return monkeypatch


def test_a_network_codes_in_another_process(tmp_path: Path, kept_out: pytest.MonkeyPatch) -> None:
    base = random_base("random:csm-tiny")
    source = manifest(tmp_path / "data" / "manifest.jsonl", make_clips(tmp_path / "data", 3))
    prepared = prepare([source], base, emotions=EMOTIONS)
    kept_out.setattr(workers, "ProcessPoolExecutor", lambda *_: pytest.fail("nothing is left to be coded"))
    again = prepare([source], base, emotions=EMOTIONS)
    assert again.clips == prepared.clips
    kept_out.undo()
    codec = load_codec(base)
    for clip in prepared.clips:
        np.testing.assert_array_equal(prepared.codes(clip), codec.encode(read_sound(clip.audio, codec.sample_rate)))


@pytest.mark.slow
def test_silence_and_a_dialogue_too(tmp_path: Path, moshi_folder: Path, kept_out: pytest.MonkeyPatch) -> None:
    """From the clips to the rows of a base that listens while it speaks."""
    cache = os.environ["AFFETTO_CACHE"]
    clips = make_clips(tmp_path / "data", 1) + make_clips(tmp_path / "data", 2, emotion="happy", first=1)
    own, user = vowel(130, 0.6), vowel(190, 0.6)
    soundfile.write(clips[0].audio, np.stack([own, user], axis=1), RATE, subtype="FLOAT")
    for clip in clips:
        words = {"alignments": [["hello", [0.1, 0.3], "SPEAKER_MAIN"]]}
        clip.audio.with_suffix(".json").write_text(json.dumps(words))
    source = manifest(tmp_path / "data" / "manifest.jsonl", clips)
    config = load_config(None, base=str(moshi_folder), data=(str(source),), emotions=("happy",), output_dir=tmp_path)
    prepared = prepare_clips(config, ["happy"])
    rows = make_rows(
        load_base(str(moshi_folder)), prepared.clips, prepared.codes, prepared.speakers, beside_of=prepared.beside
    )
    assert len(rows) == 3
    kept_out.undo()
    codec = load_codec(moshi_folder)
    dialogue = next(clip for clip in prepared.clips if clip.id == clips[0].id)
    beside = prepared.beside(dialogue)
    assert beside is not None
    np.testing.assert_array_equal(prepared.codes(dialogue), codec.encode(own.astype(np.float32)))
    np.testing.assert_array_equal(beside.user_TK, codec.encode(user.astype(np.float32)))
    found_TK = silence_codes(moshi_folder, 300)
    kept_out.setenv("AFFETTO_CACHE", f"{cache}-other")
    np.testing.assert_array_equal(found_TK, silence_codes(moshi_folder, 300))


@pytest.mark.slow
def test_what_a_worker_raises_is_told_here(tmp_path: Path) -> None:
    """A codec that is no whole one, a sound that has vanished, and a process that is killed."""
    base, clips = random_base("random:csm-tiny"), make_clips(tmp_path / "data", 1)
    with workers.coders(tmp_path, 1) as run, pytest.raises(BaseModelError, match=r"holds neither codec\.json"):
        list(run(_length, clips))
    with workers.coders(base, 1) as run:
        assert list(run(_length, clips)) == [12_000]
        clips[0].audio.unlink()
        with pytest.raises(DataError, match=clips[0].audio.name):
            list(run(_length, clips))
        with pytest.raises(DataError, match=r"ended before its work was done.*memory"):
            list(run(_killed, clips))


def _length(codec: Codec, clip: Clip) -> int:
    with workers.told():
        return len(read_sound(clip.audio, codec.sample_rate))


def _killed(_codec: Codec, _clip: Clip) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
