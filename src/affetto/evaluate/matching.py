"""How strongly an adapter should speak: as strongly as the clips that it learned from.

The loss can't tell: an adapter that predicts acted clips best speaks more weakly than they do, since it samples what it
finds likely. So it speaks held-out texts, on which no result is measured, and prosody is compared: median F0, F0 range,
syllables per second and level (`FEATURES`), as each speaker's difference from the base's plain reading of the same
texts, in standard deviations of that reading. Strength is the projection of the adapter's mean difference d(i) at
intensity i onto the clips' difference D,

    s(i) = d(i)·D / D·D,

which is 0 for the base, and 1 where the adapter moves as far as the clips in their direction. The intensity with s = 1
is searched for between `LEAST` and `MOST`. No judge takes part, so the judges' verdict on the result remains evidence.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affetto.audio.stratified import spread
from affetto.codes.decoding import decode_each
from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.errors import counted
from affetto.evaluate.journal import source_hash
from affetto.evaluate.results import FileRow
from affetto.evaluate.scoring import Item, score_files
from affetto.evaluate.sentences import Sentence, ask, texts_of
from affetto.evaluate.spoken import speaker_key, speech_key
from affetto.files import cache_root, hash_text, read_json, write_json
from affetto.judges.kinds import Judges
from affetto.progress import progress
from affetto.speak.requests import Request
from affetto.speak.voice import Voice

FEATURES = ("f0_median_st", "f0_range_st", "syllables_per_s", "level_db")
LEAST, START, MOST = 0.5, 1.0, 1.25
_STEP = 0.25
_LOOKS = 5
"""Most measurements: the base, the clips, and three intensities."""
FEWEST = 8
"""Fewest sentences, and clips, to measure with."""
NEAREST = 1.0
"""Length of D, in standard deviations, below which the clips are too similar to plain speech to be matched."""
_PER_VOICE = 6
"""Fewest sentences per voice, which limits the number of voices."""
_SEED = 500_000
"""Added to the run's seed, so that the draws differ from those of the evaluated sentences."""

ByVoice = Mapping[str, NDArray[np.float64]]
"""Values of `FEATURES`, (utterances, 4), by speaker."""


@dataclass(frozen=True)
class Match:
    """The intensity at which an adapter speaks as strongly as its clips; None, with a reason, if it wasn't found."""

    intensity: float | None
    strengths: Mapping[float, float]
    """s by intensity, as far as measured."""
    distance: float | None
    """Length of D."""
    reason: str | None = None

    def document(self) -> dict[str, Any]:
        """In the form of `affetto.json`."""
        strengths = [{"intensity": at, "strength": round(s, 4)} for at, s in sorted(self.strengths.items())]
        distance = None if self.distance is None else round(self.distance, 3)
        return {"intensity": self.intensity, "strengths": strengths, "distance": distance, "reason": self.reason}


def match_clips(config: Config, emotion: str, prepared: Prepared, adapter: Path, voice: Voice) -> Match:
    """Match the adapter in the folder `adapter`, which `voice` has loaded as `emotion`, to its training clips.

    It is compared with the most strongly acted clips, by the voices with most of them, through the base's codec.
    """
    facts = read_json(adapter / "affetto.json")
    clips = prepared.select(emotion, "train")
    strongest = max((clip.gate for clip in clips), default=1.0)
    clips = [clip for clip in clips if clip.gate == strongest]
    counts = Counter(clip.speaker for clip in clips)
    most = max(1, config.matching_sentences // _PER_VOICE)
    speakers = sorted(sorted(counts, key=lambda name: (-counts[name], name))[:most])
    sentences = matching_sentences(config, emotion, prepared, speakers, facts["speakers"])
    clips = [clip for clip in clips if clip.speaker in speakers]
    clips = spread(clips, prepared.num_frames(), config.matching_sentences, "matching")
    if min(len(sentences), len(clips)) < FEWEST:
        few = f"{counted(len(sentences), 'held-out text')} and {counted(len(clips), 'clip')}"
        return Match(None, {}, None, f"{few}: at least {FEWEST} are needed")
    with progress(f"Matching {emotion}", _LOOKS) as bar:

        def say(intensity: float) -> ByVoice:
            cued = intensity > 0
            requests = ask(
                voice, sentences, emotion if cued else None, intensity=intensity, cued=cued,
                temperature=config.sampling_temperature, depth_temperature=config.sampling_depth_temperature,
                takes=config.sampling_takes,
            )  # fmt: skip

            def measure() -> ByVoice:
                sounds = voice.decode_each(voice.generate(requests))
                items = [
                    Item(f"{number}", sound, voice.codec.sample_rate, text=sentence.text, speaker=sentence.speaker)
                    for number, (sentence, sound) in enumerate(zip(sentences, sounds, strict=True))
                ]
                return by_voice(score_files(items, Judges(), emotion))

            prosody = measure() if cued else kept_prosody(_plain_key(voice, requests, sentences), measure)
            bar.advance(1)
            return prosody

        sounds = decode_each(voice.codec, [prepared.codes(clip) for clip in clips])
        items = [
            Item(clip.id, sound, voice.codec.sample_rate, text=clip.text, speaker=clip.speaker)
            for clip, sound in zip(clips, sounds, strict=True)
        ]
        acted = by_voice(score_files(items, Judges(), emotion))
        bar.advance(1)
        result = match(say, acted, strongest)
        bar.advance(_LOOKS - 2 - len(result.strengths))
    return result


def matching_sentences(
    config: Config, emotion: str, prepared: Prepared, speakers: Sequence[str], numbers: Mapping[str, int]
) -> list[Sentence]:
    """Validation texts, the emotion's own first, to be spoken by `speakers` in turn."""
    clips = [*prepared.select(emotion, "validation"), *prepared.select(None, "validation")]
    texts = texts_of(clips, config.matching_sentences)
    return [
        Sentence(text, speaker, numbers[speaker], seed=config.seed + _SEED + index)
        for index, text in enumerate(texts)
        for speaker in [speakers[index % len(speakers)]]
    ]


def _plain_key(voice: Voice, requests: Sequence[Request], sentences: Sequence[Sentence]) -> str:
    names = [sentence.speaker for sentence in sentences]
    return hash_text(speech_key(requests, *speaker_key(voice)), source_hash(), json.dumps([names, FEATURES]))


def kept_prosody(key: str, measure: Callable[[], ByVoice]) -> ByVoice:
    """The result of `measure`, from the cache (`prosody/`) if it was measured with this `key` before."""
    path = cache_root() / "prosody" / f"{key}.json"

    def read() -> ByVoice:
        found = {str(name): np.asarray(values, dtype=np.float64) for name, values in read_json(path).items()}
        if not all(values.ndim == 2 and values.shape[1] == len(FEATURES) for values in found.values()):
            raise ValueError(f"{path} isn't what was written")
        return found

    try:
        return read()
    except (OSError, ValueError, TypeError, AttributeError):
        write_json(path, {name: values.tolist() for name, values in measure().items()})
        return read()


def by_voice(rows: Sequence[FileRow]) -> dict[str, NDArray[np.float64]]:
    """`FEATURES` of the rows that have all of them, by speaker."""
    found: dict[str, list[list[float]]] = {}
    for row in rows:
        values = [row["values"].get(name) for name in FEATURES]
        if None not in values:
            found.setdefault(str(row["speaker"]), []).append([float(value) for value in values if value is not None])
    return {speaker: np.asarray(values) for speaker, values in found.items()}


def match(say: Callable[[float], ByVoice], acted: ByVoice, acted_at: float = 1.0) -> Match:
    """Search for the intensity at which `say` is as strong as `acted`, clips acted at intensity `acted_at`.

    `say(0)` is the base. The search begins at `START` and steps up or down until s passes 1, then interpolates between
    the last two. If it reaches the end of the range, the intensity with the nearest s is taken.
    """
    plain = say(0.0)
    voices = [name for name in acted if name in plain and len(plain[name]) > 1]
    if not voices:
        return Match(None, {}, None, "no voice has pitch and rate both in the base's speech and in the clips")
    spread_F = np.sqrt(np.mean([plain[name].var(axis=0, ddof=1) for name in voices], axis=0))
    spread_F = np.maximum(spread_F, 1e-6)

    def difference(spoken: ByVoice) -> NDArray[np.float64]:
        shifts = [
            (spoken[name].mean(axis=0) - plain[name].mean(axis=0)) / spread_F for name in voices if name in spoken
        ]
        return np.mean(shifts, axis=0) if shifts else np.zeros(len(FEATURES))

    aim_F = difference(acted) / acted_at
    distance = float(np.linalg.norm(aim_F))
    if distance < NEAREST:
        reason = f"the clips differ from plain speech by {distance:.2f} standard deviations, less than {NEAREST:g}"
        return Match(None, {}, distance, reason)

    strengths: dict[float, float] = {}

    def strength(intensity: float) -> float:
        strengths[intensity] = float(difference(say(intensity)) @ aim_F) / distance**2
        return strengths[intensity]

    at, step = START, _STEP if strength(START) < 1 else -_STEP
    while LEAST < at < MOST or at == START:
        before, at = at, at + step
        strength(at)
        if (strengths[before] - 1) * (strengths[at] - 1) <= 0 and strengths[before] != strengths[at]:
            share = (1 - strengths[before]) / (strengths[at] - strengths[before])
            return Match(round(before + share * (at - before), 2), strengths, distance)
    nearest = min(strengths, key=lambda intensity: abs(strengths[intensity] - 1))
    return Match(nearest, strengths, distance)
