"""The miniature's speech: who says what and how, planned by id, rendered on demand, the same bits every time.

Three families of clips, with disjoint texts throughout:
  general   six voices read plainly; the base is trained on these, and other ones serve as general speech
  acted     two of the voices act six emotions at two strengths on a small set of sentences
  judging   eighteen voices, none of them an actor, act at other strengths; only the judges hear these
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

from affetto.miniature import acting
from affetto.miniature.espeak import engine
from affetto.miniature.grammar import Grammar
from affetto.miniature.lexicon import HELD_OUT

SAMPLE_RATE = 24_000
SEED = 20_261
EMOTIONS = tuple(acting.RULES)
PLAIN = "plain"
VOICES = ("m3", "f2", "Reed", "f5", "m7", "belinda")
"""espeak-ng variants of en-us by speaker id."""
ACTORS = (0, 1)
JUDGING_VOICES = (
    "Reed", "f5", "m7", "belinda", "adam", "f3", "Michael", "Annie", "Gene", "f1", "Diogo", "f4", "m1", "Alicia", "m5",
    "m2", "m6", "Hugo",
)  # fmt: skip
STRENGTHS = (1.0, 1.35)
JUDGING_STRENGTHS = (0.85, 1.15, 1.5)
_RMS = 0.055


@dataclass(frozen=True)
class Line:
    """One clip to be rendered: everything that decides its samples."""

    id: str
    text: str
    voice: str
    speaker: str
    emotion: str
    """One of `EMOTIONS`, or `plain`."""
    strength: float
    split: str
    voice_shift_st: float = 0.0
    """Shift of the voice's own pitch, which turns one voice into several (judging only)."""


def render(line: Line) -> NDArray[np.float64]:
    """Samples at 24 kHz of `line`; a pure function of it."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{SEED}/{line.id}".encode()).digest()[:8], "little"))
    rule = acting.ActingRule(1.0, 0.0, 1.0, 0.0, 0.0, jitter_st=0.0)
    if line.emotion != PLAIN:
        rule = acting.varied(acting.RULES[line.emotion], line.strength, rng)
    rate = int(np.clip(172 * rng.normal(1.0, 0.015) * rule.rate, 90, 320))
    pitch, pitch_range = int(np.clip(rng.normal(50, 1.5), 35, 65)), int(np.clip(rng.normal(50, 2), 35, 65))
    spoken = engine().speak(line.text, f"en-us+{line.voice}", rate=rate, pitch=pitch, pitch_range=pitch_range)
    samples = soxr.resample(spoken, engine().sample_rate, SAMPLE_RATE, quality="HQ")
    samples = _trim(samples)
    samples = samples * (_RMS / np.sqrt(np.mean(samples**2)))
    if line.emotion != PLAIN or line.voice_shift_st:
        moved = acting.ActingRule(**{**rule.__dict__, "level_st": rule.level_st + line.voice_shift_st})
        samples = acting.act(samples, SAMPLE_RATE, moved, rng)
    edge = np.zeros(int(0.04 * SAMPLE_RATE))
    samples = np.concatenate([edge, samples, edge, edge])
    return np.asarray(samples * min(1.0, 0.97 / max(float(np.abs(samples).max()), 1e-9)))


def general_lines(count: int, family: str, split: str) -> Iterator[Line]:
    """`count` plain clips over all voices; `family` ("base", "general", …) draws different sentences."""
    texts = _texts(count, f"{family}/{split}")
    for index, text in enumerate(texts):
        speaker = index % len(VOICES)
        yield Line(f"{family}-{split}-{index:05d}", text, VOICES[speaker], str(speaker), PLAIN, 0.0, split)


def acted_lines(emotion: str, num_texts: dict[str, int]) -> Iterator[Line]:
    """Acted clips of one emotion: actors x strengths x texts, `num_texts` per split. All emotions share texts."""
    for split, count in num_texts.items():
        for index, text in enumerate(_texts(count, f"acted/{split}")):
            for speaker in ACTORS:
                for level, strength in enumerate(STRENGTHS):
                    name = f"{emotion}-{split}-{speaker}-{level}-{index:03d}"
                    yield Line(name, text, VOICES[speaker], str(speaker), emotion, strength, split)


def judging_lines(count: int, split: str, plain_share: float) -> Iterator[Line]:
    """`count` clips for training judges; `plain_share` of them plain, the others acted."""
    draw = random.Random(f"{SEED}/judging/{split}")
    for index, text in enumerate(_texts(count, f"judging/{split}")):
        voice = draw.choice(JUDGING_VOICES)
        emotion = PLAIN if draw.random() < plain_share else EMOTIONS[index % len(EMOTIONS)]
        strength = draw.choice(JUDGING_STRENGTHS) if emotion != PLAIN else 0.0
        shift = draw.uniform(-2.5, 2.5)
        yield Line(f"judging-{split}-{index:05d}", text, voice, f"j-{voice}", emotion, strength, split, shift)


def held_out_word_texts(count: int) -> list[str]:
    """Sentences whose nouns are all held-out words: can the base say what it never read?"""
    grammar = Grammar(random.Random(f"{SEED}/held-out-words"), nouns=HELD_OUT)
    said = (text for text in grammar.sentences(40 * count) if any(word in text.split() for word in HELD_OUT))
    return [text for text, _ in zip(said, range(count), strict=False)]


def _texts(count: int, stream: str) -> list[str]:
    """`count` sentences of one stream. A text belongs to the stream that its hash names: no two share one."""
    family = _FAMILIES[stream.split("/")[0]]
    split = _SPLITS[stream.split("/")[1]]
    grammar = Grammar(random.Random(f"{SEED}/{stream}"))
    texts: dict[str, None] = {}
    while len(texts) < count:
        for text in grammar.sentences(1):
            slot = hashlib.sha256(text.lower().encode()).digest()[0] % 12
            if slot == family * 3 + split:
                texts[text] = None
    return list(texts)


_FAMILIES = {"base": 0, "general": 1, "acted": 2, "judging": 3}
_SPLITS = {"train": 0, "validation": 1, "test": 2}


def _trim(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    loud = np.flatnonzero(np.abs(samples) > 0.004)
    return samples[max(0, loud[0] - 240) : loud[-1] + 720] if len(loud) else samples
