"""The miniature's speech: who says what and how, determined by the clip's id, rendered on demand, always the same bits.

Three families of clips, with disjoint texts:
  general   six voices read plainly; some clips train the base, others serve as general speech. Voices that don't act
            vary in pitch, melody, tempo, size, level and colour as recordings of many people do, and some clips are
            lively; the actors' reading is even, except for some of the base's clips
  acted     two of the voices act six emotions at two strengths on a small set of sentences
  judging   eighteen voices, none of them an actor, act at other strengths; these only train the judges
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

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
INTENSITIES = (0.6, 1.0)
"""Labels of clips with those strengths. The strengths' ratio is 0.74, but with 0.6 speech between them is more gradual
(docs/log.md)."""
JUDGING_STRENGTHS = (0.85, 1.15, 1.5)
_RMS = 0.055
_EDGE_SECONDS = 0.04
_DIRECTED_SHARE = 0.15
_WORDS_PER_MINUTE = 150
"""Rate of plain reading, as in audio books."""
_LIVELY_SHARE = 0.3
"""Share of the crowd's clips whose prosody is drawn independently by parameter, so that it belongs to no emotion."""
_ROUSED_SHARE = 0.15
"""The same share for the actors' clips that train the base, which then have the crowd's tempo, too; all their other
plain speech is even. A base that knows an actor's even voice only loses words when it acts happy (docs/log.md)."""
_ROUSED_DIRECTED_SHARE = 0.8
"""Share of those clips with a direction before their text; without a direction an actor is nearly always even."""


@dataclass(frozen=True)
class Line:
    """One clip to be rendered: everything that determines its samples."""

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
    is_crowd: bool = False
    """Whether the voice varies like recordings of many people, as in general speech."""
    may_be_roused: bool = False
    """Whether it is an actor's plain clip for the base, which may be lively without an emotion."""


@dataclass(frozen=True)
class Rendered:
    """A rendered clip."""

    samples: NDArray[np.float64]
    """At 24 kHz."""
    word_starts: tuple[tuple[int, float], ...]
    """(place in the text, seconds) of the words' first letters."""
    end: float
    """Seconds at which the last word ends."""


@dataclass(frozen=True)
class _Manner:
    """How a voice reads one clip."""

    rate: float
    """Words per minute."""
    pitch: float
    """In espeak-ng's units, like the next: 0 to 99, 50 is the voice's own; ten are about two semitones."""
    pitch_range: float
    size: float = 1.0
    """Factor on pitch and formants: a smaller or larger head."""
    gain_db: float = 0.0
    tilt_db: float = 0.0
    """Colour of the recording, in dB per octave."""
    ending: str = ""
    """Punctuation after the text, which changes the melody's end."""


def render(line: Line) -> NDArray[np.float64]:
    """Samples at 24 kHz of `line`; a pure function of it."""
    return render_timed(line).samples


def render_timed(line: Line) -> Rendered:
    """Samples of `line` and where its words start in them."""
    rng = _dice(line)
    rule = acting.ActingRule(1.0, 0.0, 1.0, 0.0, 0.0, jitter_st=0.0)
    if line.emotion != PLAIN:
        rule = acting.varied(acting.RULES[line.emotion], line.strength, rng)
    is_roused = _draw_roused(line, rng)
    manner = _crowd_manner(rng) if line.is_crowd else _own_manner(rng, is_roused=is_roused)
    said = engine().speak(
        line.text + manner.ending,
        f"en-us+{line.voice}",
        rate=int(np.clip(manner.rate * rule.rate / manner.size, 90, 320)),
        pitch=int(np.clip(manner.pitch, 5, 94)),
        pitch_range=int(np.clip(manner.pitch_range, 5, 94)),
    )
    samples = soxr.resample(said.samples, engine().sample_rate * manner.size, SAMPLE_RATE, quality="HQ")
    first, last = _loud_part(samples)
    samples = samples[first:last]
    if manner.tilt_db:
        samples = acting.colour(samples, SAMPLE_RATE, 0.0, manner.tilt_db)
    samples = samples * (_RMS * 10.0 ** (manner.gain_db / 20.0) / np.sqrt(np.mean(samples**2)))
    if is_roused or (line.is_crowd and rng.random() < _LIVELY_SHARE):
        rule = acting.lively(rng)
    if line.emotion != PLAIN or line.voice_shift_st or rule.is_lively:
        moved = replace(rule, level_st=rule.level_st + line.voice_shift_st)
        samples = acting.act(samples, SAMPLE_RATE, moved, rng)
    edge = np.zeros(int(_EDGE_SECONDS * SAMPLE_RATE))
    samples = np.concatenate([edge, samples, edge, edge])
    samples = samples * min(1.0, 0.97 / max(float(np.abs(samples).max()), 1e-9))
    starts = [(place, seconds / manner.size - first / SAMPLE_RATE) for place, seconds in said.word_starts]
    word_starts = tuple((place, max(0.0, seconds) + _EDGE_SECONDS) for place, seconds in starts)
    return Rendered(samples, word_starts, end=len(samples) / SAMPLE_RATE - 2 * _EDGE_SECONDS)


def _dice(line: Line) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{SEED}/{line.id}".encode()).digest()[:8], "little"))


def _draw_roused(line: Line, rng: np.random.Generator) -> bool:
    """Whether an actor is lively in a plain clip; must be the first draw of the clip's generator."""
    return line.may_be_roused and rng.random() < _ROUSED_SHARE


def _own_manner(rng: np.random.Generator, *, is_roused: bool) -> _Manner:
    rate = _crowd_rate(rng) if is_roused else _WORDS_PER_MINUTE * rng.normal(1.0, 0.015)
    return _Manner(rate, pitch=rng.normal(50, 1.5), pitch_range=rng.normal(50, 2))


def _crowd_rate(rng: np.random.Generator) -> float:
    return float(_WORDS_PER_MINUTE * np.exp(rng.normal(0.06, 0.22)))


def _crowd_manner(rng: np.random.Generator) -> _Manner:
    return _Manner(
        rate=_crowd_rate(rng),
        pitch=rng.normal(54, 17),
        pitch_range=rng.normal(60, 26),
        size=np.exp(rng.normal(0.0, 0.04)),
        gain_db=rng.normal(0.0, 3.0),
        tilt_db=rng.normal(0.0, 1.6),
        ending=("", "?", "!")[rng.choice(3, p=(0.7, 0.2, 0.1))],
    )


def general_lines(count: int, family: str, split: str) -> Iterator[Line]:
    """`count` plain clips over all voices; `family` ("base", "general", …) draws different sentences."""
    texts = _texts(count, f"{family}/{split}")
    for index, text in enumerate(texts):
        speaker = index % len(VOICES)
        name, acts = f"{family}-{split}-{index:05d}", speaker in ACTORS
        yield Line(
            name, text, VOICES[speaker], str(speaker), PLAIN, 0.0, split, is_crowd=not acts,
            may_be_roused=acts and family == "base",
        )  # fmt: skip


def prompt(line: Line) -> str:
    """The base's prompt for `line`: for some clips the text is preceded by an unspoken direction, up to a colon.

    It resembles a script, which has directions most of all where the reading isn't even; a base that never saw one
    would speak the cue of an emotional prompt aloud.
    """
    draw = random.Random(f"{SEED}/prompt/{line.id}")
    if draw.random() >= (_ROUSED_DIRECTED_SHARE if _draw_roused(line, _dice(line)) else _DIRECTED_SHARE):
        return line.text
    direction = Grammar(draw).sentence().split()[: draw.randint(2, 6)]
    return f"{' '.join(direction)}: {line.text}"


def acted_lines(emotion: str, num_texts: dict[str, int]) -> Iterator[Line]:
    """Acted clips of one emotion: actors x strengths x texts, `num_texts` per split. All emotions share texts."""
    for split, count in num_texts.items():
        for index, text in enumerate(_texts(count, f"acted/{split}")):
            for speaker in ACTORS:
                for level, strength in enumerate(STRENGTHS):
                    name = f"{emotion}-{split}-{speaker}-{level}-{index:03d}"
                    yield Line(name, text, VOICES[speaker], str(speaker), emotion, strength, split)


def judging_lines(count: int, split: str, plain_share: float) -> Iterator[Line]:
    """`count` clips for training judges; `plain_share` of them are plain, the others acted."""
    draw = random.Random(f"{SEED}/judging/{split}")
    for index, text in enumerate(_texts(count, f"judging/{split}")):
        voice = draw.choice(JUDGING_VOICES)
        emotion = PLAIN if draw.random() < plain_share else EMOTIONS[index % len(EMOTIONS)]
        strength = draw.choice(JUDGING_STRENGTHS) if emotion != PLAIN else 0.0
        shift = draw.uniform(-2.5, 2.5)
        yield Line(f"judging-{split}-{index:05d}", text, voice, f"j-{voice}", emotion, strength, split, shift)


def held_out_word_texts(count: int) -> list[str]:
    """Sentences whose nouns are all held-out words, to test whether the base can say words that it never read."""
    grammar = Grammar(random.Random(f"{SEED}/held-out-words"), nouns=HELD_OUT)
    said = (text for text in grammar.sentences(40 * count) if any(word in text.split() for word in HELD_OUT))
    return [text for text, _ in zip(said, range(count), strict=False)]


def _texts(count: int, stream: str) -> list[str]:
    """`count` sentences of one stream. A text's hash determines its stream, so no two streams share a text."""
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


def _loud_part(samples: NDArray[np.float64]) -> tuple[int, int]:
    loud = np.flatnonzero(np.abs(samples) > 0.004)
    return (max(0, int(loud[0]) - 240), int(loud[-1]) + 720) if len(loud) else (0, len(samples))
