"""General speech by the base itself, for users who have none: plain sentences, sampled at temperature 1.

What the base says at temperature 1, without truncation, is a sample of its own distribution, which is what must be
preserved. Such clips say nothing that the base doesn't know, so the loss on them is the KL alone (method.md, section 4;
the idea is that of self-synthesized rehearsal, Huang et al. 2024, arXiv 2403.01244). Only failures are filtered out,
since a stricter choice would change the distribution.

The texts are the package's own sentences, which any English base can read. The base's weights, the text, the speaker's
number, the sampling settings and the seed decide everything; the codes are in the code cache under the hash of these,
written shard by shard, so an interrupted run continues where it stopped, and a later one speaks nothing.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from affetto.audio.checks import SILENT_PEAK
from affetto.audio.splits import normalise_text
from affetto.codes.cache import CodeCache
from affetto.codes.codec import codec_frame_rate, load_codec
from affetto.codes.prepare import Prepared
from affetto.errors import DataError, counted
from affetto.files import cache_root, hash_text, read_json, write_json
from affetto.miniature.grammar import Grammar
from affetto.model.base import Base, find_base, load_base, weights_hash
from affetto.progress import Task, progress, say
from affetto.speak.generation import frame_cap, generate
from affetto.speak.requests import Request, Spoken
from affetto.types import SPLITS, Clip, Codec

VERSION = "1"
CORPUS = "self"
"""The `corpus` of these clips, by which they are recognised."""
TEMPERATURE, TOP_K = 1.0, 0
MIN_S = 0.4
STUCK_SHARE = 0.8
"""The base is stuck if more than this share of a clip's frames have the same code in codebook zero."""
_SHARD = 96
_PATIENCE = 16
"""The base is given up on after more failures than this, if there are also more failures than good clips."""


@dataclass(frozen=True)
class Utterance:
    """A sentence that the base is to speak, or has spoken."""

    text: str
    speaker: str
    """The data's name."""
    number: int
    """The base's number of that speaker."""
    max_frames: int
    key: str
    """Names everything that decides the codes."""

    @property
    def seed(self) -> int:
        """Seed of its sampling."""
        return int(self.key[:12], 16)

    def clip(self, split: str) -> Clip:
        """The utterance as a general clip, which has codes but no sound file."""
        name = f"{CORPUS}-{self.key[:20]}"
        return Clip(name, Path(f"{name}.wav"), self.text, None, self.speaker, CORPUS, split)


def with_self_speech(
    prepared: Prepared,
    base_name: str,
    counts: Mapping[str, int],
    *,
    by_speaker: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    use_cached_only: bool = False,
) -> Prepared:
    """`prepared` with the base's own general speech in place of its general clips: `counts` good clips per split.

    The speakers of the emotional clips speak in turn; with `by_speaker`, a split has only the speakers of its own
    emotional clips. No two splits share a text, whatever the counts, and no text is that of a clip of `prepared`.
    General clips stay, without a split, as others may have them as context. Raises `DataError` if the base fails more
    often than not, or if something has to be spoken with `use_cached_only`.
    """
    emotional = [clip for clip in prepared.clips if clip.emotion is not None]
    if not emotional:
        raise DataError("there is no emotional clip, so it isn't known in whose voices the base should speak")
    avoid = {normalise_text(clip.text) for clip in prepared.clips if clip.text is not None}
    speech = SelfSpeech(base_name, prepared.cache, seed=seed, device=device, use_cached_only=use_cached_only)
    clips: list[Clip] = []
    keys, dropped = dict(prepared.keys), Counter[str]()
    with progress("General speech by the base itself", sum(counts.values())) as bar:
        for split, count in counts.items():
            voices = {clip.speaker: prepared.speakers[clip.speaker] for clip in emotional
                      if clip.split == split or not by_speaker}  # fmt: skip
            if not voices:
                continue
            utterances, failures = speech.speak(speech.candidates(split, voices, avoid), count, bar)
            clips += [utterance.clip(split) for utterance in utterances]
            keys |= {utterance.clip(split).id: utterance.key for utterance in utterances}
            dropped += failures
    say(f"general speech by the base itself: {counted(len(clips), 'clip')}{_told(dropped)}")
    others = [clip if clip.emotion is not None else replace(clip, split=None) for clip in prepared.clips]
    return replace(prepared, clips=(*others, *clips), keys=keys)


class SelfSpeech:
    """Speech that a base makes up: its codes in `cache`, and a file that says which samples failed and why."""

    def __init__(
        self,
        base_name: str,
        cache: CodeCache,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        use_cached_only: bool = False,
    ) -> None:
        self.base_name, self.cache, self.device = base_name, cache, device
        self.seed, self.use_cached_only = seed, use_cached_only
        folder = find_base(base_name)
        self.base_hash, self._frame_rate = weights_hash(folder), codec_frame_rate(folder)
        self._failures_path = cache_root() / "self_speech" / f"{self.base_hash[:24]}.json"
        self.failures: dict[str, str] = read_json(self._failures_path) if self._failures_path.is_file() else {}

    def candidates(self, split: str, voices: Mapping[str, int], avoid: Collection[str]) -> Iterator[Utterance]:
        """Endless utterances for one split, by `voices` (number by name) in turn; no text is in `avoid`.

        A text's hash decides its split, and its voice doesn't depend on `avoid`, so that runs with different emotional
        texts share as many utterances as they can.
        """
        names = sorted(voices, key=lambda name: (voices[name], name))
        seen: set[str] = set()
        for text in Grammar(random.Random(f"self-speech/{self.seed}")).sentences(sys.maxsize):
            words = normalise_text(text)
            if words in seen or SPLITS[int(hash_text("split", words)[:8], 16) % len(SPLITS)] != split:
                continue
            name = names[len(seen) % len(names)]
            seen.add(words)
            if words not in avoid:
                yield self._utterance(text, name, voices[name])

    def _utterance(self, text: str, speaker: str, number: int) -> Utterance:
        cap = frame_cap(text, self._frame_rate)
        settings = (f"temperature={TEMPERATURE}", f"top_k={TOP_K}", f"max_frames={cap}", f"seed={self.seed}")
        key = hash_text("self-speech", VERSION, self.base_hash, text, str(number), *settings)
        return Utterance(text, speaker, number, cap, key)

    def speak(self, candidates: Iterator[Utterance], count: int, bar: Task) -> tuple[list[Utterance], Counter[str]]:
        """The first `count` utterances that the base speaks without failure, and the number of failures by reason."""
        good: list[Utterance] = []
        failed: Counter[str] = Counter()
        while len(good) < count:
            part = list(islice(candidates, min(_SHARD, count - len(good))))
            unknown = [one for one in part if one.key not in self.cache and one.key not in self.failures]
            if unknown:
                self._speak(unknown, bar.advance)
            fine = [one for one in part if one.key not in self.failures]
            failed.update(self.failures[one.key] for one in part if one.key in self.failures)
            good += fine
            bar.advance(len(fine) - len(unknown))
            if sum(failed.values()) > max(_PATIENCE, len(good)):
                raise DataError(
                    f"{self.base_name} can't speak its own general speech: of {sum(failed.values()) + len(good)} plain "
                    f"sentences{_told(failed)}. Add general clips (LJSpeech, say), or take another base"
                )
        return good, failed

    def _speak(self, utterances: Sequence[Utterance], on_progress: Callable[[int], object]) -> None:
        if self.use_cached_only:
            raise DataError("the base's own general speech isn't spoken yet: run once without --skip-datasets")
        requests = [
            Request(self._base.prompt_ids(one.text, one.number), one.max_frames, seed=one.seed,
                    temperature=TEMPERATURE, top_k=TOP_K)
            for one in utterances
        ]  # fmt: skip
        spoken = generate(self._base, requests, on_progress=on_progress)
        found = {one.key: failure(said, self._codec) for one, said in zip(utterances, spoken, strict=True)}
        if failures := {key: reason for key, reason in found.items() if reason}:
            self.failures |= failures
            write_json(self._failures_path, self.failures)
        self.cache.add({
            one.key: said.codes_TK for one, said in zip(utterances, spoken, strict=True) if not found[one.key]
        })  # fmt: skip

    @cached_property
    def _base(self) -> Base:
        return load_base(self.base_name, device=self.device)

    @cached_property
    def _codec(self) -> Codec:
        return load_codec(self._base.folder)


def failure(spoken: Spoken, codec: Codec) -> str | None:
    """Why an utterance is useless, or None. Its words and its quality are not judged."""
    codes_TK: NDArray[np.int64] = spoken.codes_TK
    if spoken.hit_cap:
        return "never ended"
    if len(codes_TK) < MIN_S * codec.frame_rate:
        return f"shorter than {MIN_S:g} s"
    if Counter(codes_TK[:, 0].tolist()).most_common(1)[0][1] > STUCK_SHARE * len(codes_TK):
        return "stuck on one code"
    if np.abs(codec.decode(codes_TK)).max() < SILENT_PEAK:
        return "silent"
    return None


def _told(failed: Mapping[str, int]) -> str:
    if not failed:
        return ""
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(failed.items()))
    return f", {sum(failed.values())} dropped ({reasons})"
