"""The sounds that an evaluation judges, as files: sentences that systems speak, and recordings through the codec."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affetto.audio.sound import write_sound
from affetto.codes.decoding import decode_each
from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.evaluate.scoring import Item
from affetto.evaluate.sentences import Sentence, ask, recordings_in_turn
from affetto.evaluate.spoken import copy_spoken, note_spoken, read_spoken, speaker_key, speech_key
from affetto.files import cache_root, hash_folder, write_text
from affetto.progress import progress
from affetto.speak.requests import Request
from affetto.speak.voice import Voice

_LONGEST_NAME = 80
_REFERENCES = 8
"""Recordings per speaker that voices are compared with."""


@dataclass(frozen=True)
class Studio:
    """Lets one voice speak into the folders of `output_dir`/evaluation/test_samples."""

    voice: Voice
    output_dir: Path
    temperature: float
    depth_temperature: float | None
    takes: int
    resume: bool
    """Whether to reuse what the same weights spoke before."""
    made_by: tuple[str, ...]
    """See `speaker_key`."""
    adapter: str
    """Hash of the adapter."""

    @classmethod
    def of(cls, voice: Voice, adapter: Path, config: Config, *, resume: bool) -> Studio:
        """The studio of a voice that has loaded the adapter of the folder `adapter`."""
        made_by, own = speaker_key(voice), hash_folder(adapter, ("*.safetensors",))
        return cls(
            voice, config.output_dir, config.sampling_temperature, config.sampling_depth_temperature,
            config.sampling_takes, resume, made_by, own,
        )  # fmt: skip

    def folder(self, name: str) -> Path:
        """The folder of the sounds called `name`."""
        return self.output_dir / "evaluation" / "test_samples" / name

    def speak(
        self, name: str, sentences: Sequence[Sentence], emotion: str | None = None, intensity: float = 0.0, *,
        cued: bool = False,
    ) -> list[Item]:  # fmt: skip
        """Speak into the folder `name`, a wav and a txt per sentence, replacing what an earlier evaluation left.

        With `resume` that is reused if it has the same sentences and weights. The base's speech, without `emotion`, is
        cached (`spoken/`) and spoken once for all runs.
        """
        folder = self.folder(name)
        requests = ask(
            self.voice, sentences, emotion, intensity=intensity, temperature=self.temperature,
            depth_temperature=self.depth_temperature, cued=cued, takes=self.takes,
        )  # fmt: skip
        key = speech_key(requests, *self.made_by, *([] if emotion is None else [self.adapter]))
        say = partial(self._say, key, requests, sentences, folder.name)
        hit_caps = read_spoken(folder, key) if self.resume else None
        if hit_caps is None:
            shutil.rmtree(folder, ignore_errors=True)
            if emotion is None:
                copy_spoken(cache_root() / "spoken" / key, folder, key, say)
            else:
                say(folder)
            hit_caps = read_spoken(folder, key)
            assert hit_caps is not None
        return [
            Item(
                self._name(folder / file), folder / file, text=sentence.text, speaker=sentence.speaker,
                seed=sentence.seed, hit_cap=hit_cap,
            )
            for sentence, (file, hit_cap) in zip(sentences, hit_caps.items(), strict=True)
        ]  # fmt: skip

    def _say(
        self, key: str, requests: Sequence[Request], sentences: Sequence[Sentence], title: str, folder: Path
    ) -> None:
        """Speak `requests` into `folder`."""
        with progress(f"Speaking {title}", len(requests)) as bar:
            spoken = self.voice.generate(requests, bar.advance)
        paths = [folder / f"{index:03d}.wav" for index in range(len(spoken))]

        def write(path: Path, sentence: Sentence, sound: NDArray[np.float32]) -> None:
            write_sound(path, sound, self.voice.codec.sample_rate)
            write_text(path.with_suffix(".txt"), sentence.text + "\n")

        # Several at once, because writing a file is mostly waiting for the disk.
        with ThreadPoolExecutor() as pool:
            written = pool.map(write, paths, sentences, self.voice.decode_each(spoken))
            assert len(list(written)) == len(sentences)
        note_spoken(folder, key, {path.name: said.hit_cap for path, said in zip(paths, spoken, strict=True)})

    def recordings(self, name: str, prepared: Prepared, emotion: str, most: int) -> tuple[list[Item], list[float]]:
        """Held-out recordings through the codec, and their intensities; no adapter can sound better than these.

        They are written into the folder `name` like the systems' speech, and judged as written; file names end with the
        clips' ids.
        """
        folder, codec = self.folder(name), self.voice.codec
        chosen = recordings_in_turn(prepared.select(emotion, "test"), most)
        shutil.rmtree(folder, ignore_errors=True)
        items = []
        sounds = decode_each(codec, [prepared.codes(clip) for clip in chosen])
        for index, (clip, sound) in enumerate(zip(chosen, sounds, strict=True)):
            path = folder / f"{index:03d}_{_file_name(clip.id)}.wav"
            write_sound(path, sound, codec.sample_rate)
            if clip.text:
                write_text(path.with_suffix(".txt"), clip.text + "\n")
            items.append(Item(self._name(path), path, text=clip.text, speaker=clip.speaker))
        return items, [clip.gate for clip in chosen]

    def references(self, prepared: Prepared, speakers: Sequence[str]) -> list[Item]:
        """A few plain recordings of each of `speakers` through the codec; they aren't written to disk."""
        plain = [clip for clip in prepared.clips if clip.emotion in (None, "neutral")]
        chosen = [clip for name in speakers for clip in [each for each in plain if each.speaker == name][:_REFERENCES]]
        codec = self.voice.codec
        sounds = decode_each(codec, [prepared.codes(clip) for clip in chosen])
        return [
            Item(clip.id, sound, codec.sample_rate, text=clip.text, speaker=clip.speaker)
            for clip, sound in zip(chosen, sounds, strict=True)
        ]

    def _name(self, path: Path) -> str:
        return path.relative_to(self.output_dir).as_posix()


def _file_name(name: str) -> str:
    """A clip's id with only characters that are safe in file names."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[-_LONGEST_NAME:]
