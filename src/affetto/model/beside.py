"""The streams beside the codes of a base that listens while it speaks (Moshi): when words are said, and the user.

A clip's words are timed by an annotation file beside it, else by a recogniser (`codes.timing`). In a dialogue with two
channels the first is the base's own voice and the second the user's, as in moshi-finetune. Everything is cached beside
the codes, so a second run only looks it up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affetto.audio.channels import channel_use
from affetto.audio.checks import SILENT_PEAK
from affetto.audio.manifest import broken_context
from affetto.audio.sound import read_clip
from affetto.codes.codec import codec_frame_rate, load_codec
from affetto.codes.prepare import Prepared
from affetto.codes.timing import Recogniser, Word, aligned_words, annotated_words, annotation_of, spread_words
from affetto.codes.workers import coders, told
from affetto.errors import DataError, counted
from affetto.files import cache_root, hash_text, read_json, write_json
from affetto.model.base import has_text_stream
from affetto.model.monologue import text_stream
from affetto.model.text_ids import load_tokenizer
from affetto.progress import progress, say
from affetto.types import Clip, Codec, Problem

_VERSION = "1"
_SHARD = 256
"""Clips between two writes to the cache."""
MOST_DOUBT = 3.0
"""Nats per token above which the recogniser is taken to hear other words than the text's; these are then spread over
the clip by their length. The miniature's recogniser gives its own clips at most 0.1 and another clip's text at least
11.5 (benchmarks/word_alignment.py). Real recordings, which it doesn't understand, get at least 3.4 (40 clips of
LJSpeech, 40 of RAVDESS; another clip's text gets as much), and its alignment is hardly better than spreading there."""


def with_streams(
    prepared: Prepared, base_folder: Path, find_recogniser: Callable[[], Recogniser], *, use_cached_only: bool = False
) -> Prepared:
    """`prepared` with timed words and the other speaker's codes added for every clip that lacks them.

    Returns it unchanged if the base's text comes before its frames. Clips whose words can't be aligned with their
    frames are left out, as are clips with one of them in their context, and listed among the problems: unaligned (more
    text than sound, or none that the recogniser can spell), bad-annotation, silent. With `use_cached_only` nothing is
    coded or aligned, and clips with anything missing from the cache are left out silently.
    """
    waiting = [clip for clip in prepared.clips if clip.id not in prepared.words and clip.text is not None]
    if not waiting or not has_text_stream(base_folder):
        return prepared
    stage = _Stage(prepared, base_folder, find_recogniser, use_cached_only)
    dialogues = stage.two_speakers(waiting)
    stage.code_channels(dialogues)
    silent = stage.bad
    stage.time_words([clip for clip in waiting if clip.id not in silent])
    bad, clips = stage.bad, {clip.id: clip for clip in prepared.clips}
    broken = broken_context(clips, bad)
    problems = [*stage.problems, *(Problem(name, "bad-context", message) for name, message in broken.items())]
    if use_cached_only:
        problems = []
    left = [clip for clip in prepared.clips if clip.id not in bad and clip.id not in broken]
    if not left:
        reasons = "\n".join(f"  {problem.message}" for problem in problems[:10]) or "  run once without --skip-datasets"
        raise DataError(f"no clip is left whose words are timed:\n{reasons}")
    stage.tell(len(dialogues))
    return replace(
        prepared, clips=tuple(left), problems=(*prepared.problems, *problems), keys=stage.keys,
        words={**prepared.words, **stage.words}, user_keys={**prepared.user_keys, **stage.user_keys},
    )  # fmt: skip


class _Stage:
    """The work of `with_streams`, and its results."""

    def __init__(
        self, prepared: Prepared, base_folder: Path, find_recogniser: Callable[[], Recogniser], use_cached_only: bool
    ) -> None:
        self.cache, self.keys = prepared.cache, dict(prepared.keys)
        self.base_folder, self.use_cached_only = base_folder, use_cached_only
        self.find_recogniser = find_recogniser
        self.words: dict[str, tuple[Word, ...]] = {}
        self.user_keys: dict[str, str] = {}
        self.problems: list[Problem] = []
        self.ways: Counter[str] = Counter()
        self.num_doubled = 0

    @property
    def bad(self) -> set[str]:
        """Ids of clips that can't be used."""
        return {problem.where for problem in self.problems}

    def two_speakers(self, clips: Sequence[Clip]) -> list[Clip]:
        """Clips that are dialogues in two channels; the answer is cached by the file's contents."""
        path = cache_root() / "dialogues.json"
        cached: dict[str, str] = read_json(path) if path.is_file() else {}
        num_before = len(cached)
        for clip in clips:
            key = self.keys[clip.id]
            if key not in cached and clip.audio.is_file():
                cached[key] = channel_use(clip)
        if len(cached) > num_before:
            write_json(path, cached)
        uses = [cached.get(self.keys[clip.id]) for clip in clips]
        self.num_doubled = uses.count("same")
        return [clip for clip, use in zip(clips, uses, strict=True) if use == "two"]

    def code_channels(self, dialogues: Sequence[Clip]) -> None:
        """Code each dialogue's channels: the first as the clip's own codes, the second as the user's."""
        missing = []
        for clip in dialogues:
            keys = [hash_text(self.keys[clip.id], f"channel {channel}") for channel in (1, 2)]
            self.keys[clip.id], self.user_keys[clip.id] = keys
            if not all(key in self.cache for key in keys):
                missing.append(clip)
        if self.use_cached_only:
            self.problems += [Problem(clip.id, "unaligned", "its channels aren't coded yet") for clip in missing]
            return
        if not missing:
            return
        with coders(self.base_folder, len(missing)) as run, progress("Coding dialogues", len(missing)) as bar:
            for start in range(0, len(missing), _SHARD):
                coded: dict[str, NDArray[np.int64]] = {}
                part = missing[start : start + _SHARD]
                for clip, channels in zip(part, run(_both_channels, part), strict=True):
                    if channels is None:
                        message = (
                            f"{clip.audio}: its first channel, the model's own voice, is silent; swap the channels"
                        )
                        self.problems.append(Problem(clip.id, "silent", message))
                    else:
                        coded[self.keys[clip.id]], coded[self.user_keys[clip.id]] = channels
                    bar.advance(1)
                self.cache.add(coded)

    def time_words(self, clips: Sequence[Clip]) -> None:
        """Time the words of `clips`, and check that their tokens fit into their frames."""
        unannotated = []
        for clip in clips:
            path = annotation_of(clip.audio)
            if path is None:
                unannotated.append(clip)
                continue
            try:
                self._take(clip, annotated_words(path, clip.start_s or 0.0, clip.end_s), "annotated")
            except DataError as error:
                self.problems.append(Problem(clip.id, "bad-annotation", str(error)))
        if unannotated:
            self._align(unannotated)

    def _align(self, clips: Sequence[Clip]) -> None:
        recogniser = self.find_recogniser()
        path = cache_root() / "words" / f"{hash_text(_VERSION, recogniser.id)[:24]}.json"
        cached: dict[str, Any] = read_json(path) if path.is_file() else {}
        waiting = [clip for clip in clips if self.keys[clip.id] not in cached and not self.use_cached_only]
        if waiting:
            with progress("Aligning words", len(waiting)) as bar:
                for start in range(0, len(waiting), _SHARD):
                    for clip in waiting[start : start + _SHARD]:
                        cached[self.keys[clip.id]] = self._alignment(clip, recogniser)
                        bar.advance(1)
                    write_json(path, cached)
        for clip in clips:
            alignment = cached.get(self.keys[clip.id], {"problem": "its words aren't aligned yet"})
            is_own_speech = not clip.audio.is_file()
            if "problem" in alignment and not is_own_speech:
                self.problems.append(Problem(clip.id, "unaligned", f"{clip.audio}: {alignment['problem']}"))
            elif "problem" in alignment or alignment["doubt"] > MOST_DOUBT:
                assert clip.text is not None
                frames = self.cache.num_frames(self.keys[clip.id])
                self._take(clip, spread_words(clip.text, frames / self.frame_rate), "spread")
            else:
                self._take(clip, [Word(text, start_s) for text, start_s in alignment["words"]], f"by {recogniser.id}")

    def _alignment(self, clip: Clip, recogniser: Recogniser) -> dict[str, Any]:
        """The cache's entry for one clip: its words and the recogniser's doubt, or a problem."""
        assert clip.text is not None
        channel = 1 if clip.id in self.user_keys else clip.channel
        try:
            aligned = aligned_words(clip.text, self._samples(clip, recogniser.sample_rate, channel), recogniser)
        except DataError as error:
            return {"problem": str(error)}
        words = [[word.text, round(word.start_s, 4)] for word in aligned.words]
        return {"words": words, "doubt": round(aligned.doubt, 4)}

    def _take(self, clip: Clip, words: Sequence[Word], way: str) -> None:
        frames = self.cache.num_frames(self.keys[clip.id])
        try:
            text_stream(words, frames, self.tokenizer, self.frame_rate, clip.id)
        except DataError as error:
            self.problems.append(Problem(clip.id, "unaligned", str(error)))
            return
        self.words[clip.id] = tuple(words)
        self.ways[way] += 1

    def _samples(self, clip: Clip, sample_rate: int, channel: int | None) -> NDArray[np.float32]:
        """The clip's samples, decoded from its codes if it has no file (the base's own speech)."""
        if clip.audio.is_file():
            return read_clip(replace(clip, channel=channel), sample_rate)
        import soxr

        spoken = self.codec.decode(self.cache[self.keys[clip.id]])
        return np.asarray(soxr.resample(spoken, self.codec.sample_rate, sample_rate, quality="HQ"), dtype=np.float32)

    @cached_property
    def codec(self) -> Codec:
        """The base's codec."""
        return load_codec(self.base_folder)

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer."""
        return load_tokenizer(self.base_folder)

    @cached_property
    def frame_rate(self) -> float:
        """Frames per second of the base's codec."""
        return codec_frame_rate(self.base_folder)

    def tell(self, num_dialogues: int) -> None:
        """Print how many clips were timed in which way, and which channels are used."""
        ways = ", ".join(f"{count} {way}" for way, count in sorted(self.ways.items()))
        say(f"when words are said, of {counted(self.ways.total(), 'clip')}: {ways}")
        if spread := self.ways["spread"]:
            say(
                f"in {spread} of them the recogniser hears other words than the text, so the words are spread by their "
                "length: fix the texts, annotate the clips, or name another recogniser (judges: words:)",
                style="yellow",
            )
        if num_dialogues:
            say(f"{counted(num_dialogues, 'dialogue')}: the first channel is the model's voice, the second its user's")
        if self.num_doubled:
            files = counted(self.num_doubled, "file has", "files have")
            say(f"{files} the same sound in both channels, which are averaged; the user is silent")


def _both_channels(codec: Codec, clip: Clip) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Codes of both channels of a dialogue; None if the first, the model's own, is silent."""
    with told():
        own_N, user_N = (read_clip(replace(clip, channel=channel), codec.sample_rate) for channel in (1, 2))
    if np.abs(own_N).max(initial=0.0) < SILENT_PEAK:
        return None
    return codec.encode(own_N), codec.encode(user_N)
