"""The miniature's model card: every figure measured again by `affetto miniature measure`."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from affetto.codes.codec import load_codec
from affetto.files import read_json, write_text
from affetto.judges.choice import EmotionJudge, WordJudge, default_judge
from affetto.metrics.words import score_words, word_error_rate
from affetto.miniature import corpus
from affetto.model.base import MINIATURE, find_base
from affetto.progress import progress, say
from affetto.provenance import versions
from affetto.speak.voice import Voice
from affetto.types import Codec

_TEXTS = 15
"""Held-out acted texts; two actors and two strengths each."""
_SENTENCES = 120
_EVERY = 1000
"""More than there are held-out texts, of which an adapter says every one."""
_RATE = 16_000


@dataclass(frozen=True)
class Trained:
    """What one training run of `happy` gave, on held-out sentences and clips."""

    recall: float
    wer: float
    wer_of_base: float
    wer_of_plain_prompts: float
    delta_nll: float
    """On general clips, nats per code."""
    num_sentences: int


@dataclass(frozen=True)
class Figures:
    """What the card reports."""

    wer_codec_plain: float
    wer_codec_acted: dict[str, float]
    wer_codec_letters: float
    """Of all of these, by the recogniser's letters without its language model."""
    wer_base: float
    wer_base_actors: float
    """Of the two voices that no judge ever heard."""
    wer_base_unseen_words: float
    stop_failures: float
    recall_real: dict[str, float]
    heard_on_base: dict[str, float]
    """Of the two voices that act, reading plainly."""
    parameters_m: float
    went_on_from: str | None
    """Hash of the earlier base's weights that training began with; None where it began from nothing."""
    preserved: Trained
    naive: Trained

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall over the six emotions on real held-out acted clips."""
        return float(np.mean(list(self.recall_real.values())))

    @property
    def most_heard_on_base(self) -> tuple[str, float]:
        """The emotion, neutral apart, that the base's plain speech is most often heard as, and how often."""
        others = {name: self.heard_on_base.get(name, 0.0) for name in corpus.EMOTIONS if name != "neutral"}
        return max(others.items(), key=lambda item: item[1])


def measure(output: Path) -> Figures:
    """Measure the installed miniature and write its card to `output`."""
    words, emotion = default_judge("words"), default_judge("emotion")
    voice = Voice.load("miniature")
    codec = load_codec(find_base(MINIATURE))

    # 1. The codec: real held-out clips through it, heard by the recogniser.
    plain = list(corpus.general_lines(_SENTENCES, "general", "test"))
    acted = {name: list(corpus.acted_lines(name, {"test": _TEXTS})) for name in corpus.EMOTIONS}
    with progress("Coding held-out clips", 1 + len(acted)) as bar:
        coded_plain = _recoded(plain, codec)
        bar.advance(1)
        coded = {}
        for name, lines in acted.items():
            coded[name] = _recoded(lines, codec)
            bar.advance(1)

    # 2. The base: held-out sentences, and sentences of words that it never read.
    texts = [line.text for line in plain]
    unseen = corpus.held_out_word_texts(60)
    speakers = [index % len(corpus.VOICES) for index in range(len(texts) + len(unseen))]
    requests = [
        voice.request(text, speaker=speaker, seed=index)
        for index, (text, speaker) in enumerate(zip([*texts, *unseen], speakers, strict=True))
    ]
    heard = [(line.text, sound) for name in acted for line, sound in zip(acted[name], coded[name], strict=True)]
    heard += [(line.text, sound) for line, sound in zip(plain, coded_plain, strict=True)]
    with progress("Speaking", len(requests)) as bar:
        spoken = voice.generate(requests, bar.advance)
    said = [_to_16k(voice.decode(item)) for item in spoken]

    by_actors = [index for index in range(len(texts)) if speakers[index] in corpus.ACTORS]

    # 3. What the laboratory is for: with and without what preserves.
    from affetto.laboratory.methods import PLAIN_LORA

    with tempfile.TemporaryDirectory() as folder:
        preserved = _trained(Path(folder) / "preserved", {})
        # As somebody would use it who measures nothing.
        naive = _trained(Path(folder) / "naive", {**PLAIN_LORA, "matching_sentences": 0}, intensity=1.0)

    figures = Figures(
        wer_codec_plain=_wer(words, [line.text for line in plain], coded_plain),
        wer_codec_acted={name: _wer(words, [line.text for line in acted[name]], coded[name]) for name in acted},
        wer_codec_letters=_wer(_without_language_model(words), *map(list, zip(*heard, strict=True))),
        wer_base=_wer(words, texts, said[: len(texts)]),
        wer_base_actors=_wer(words, [texts[index] for index in by_actors], [said[index] for index in by_actors]),
        wer_base_unseen_words=_wer(words, unseen, said[len(texts) :]),
        stop_failures=float(np.mean([item.hit_cap or len(item.codes_TK) == 0 for item in spoken])),
        recall_real={name: _heard(emotion, coded[name]).get(name, 0.0) for name in acted},
        heard_on_base=_heard(emotion, [said[index] for index in by_actors]),
        parameters_m=sum(p.numel() for n, p in voice.base.model.named_parameters() if "codec" not in n) / 1e6,
        went_on_from=read_json(find_base(MINIATURE) / "miniature.json").get("went_on_from"),
        preserved=preserved,
        naive=naive,
    )
    write_text(output, card(figures))
    say(card(figures))
    return figures


def card(figures: Figures) -> str:
    """The card's text."""
    rows = [
        ("recogniser's WER on plain speech through the codec", f"{figures.wer_codec_plain:.1%}", "≤ 3 %"),
        *((f"the same, {name}", f"{value:.1%}", "≤ 3 %") for name, value in figures.wer_codec_acted.items()),
        ("all of these by letters alone, without its language model", f"{figures.wer_codec_letters:.1%}", ""),
        ("base's WER on held-out sentences", f"{figures.wer_base:.1%}", "≤ 10 %"),
        ("the same, the two voices that no judge ever heard", f"{figures.wer_base_actors:.1%}", "≤ 10 %"),
        ("base's WER on sentences of words that it never read", f"{figures.wer_base_unseen_words:.1%}", ""),
        ("stop failures of the base", f"{figures.stop_failures:.1%}", "≤ 1 %"),
        ("emotion judge's balanced accuracy, real held-out acted clips", f"{figures.balanced_accuracy:.1%}", "≥ 90 %"),
        *((f"its recall of {name}", f"{value:.1%}", "") for name, value in figures.recall_real.items()),
        ("the base's plain speech, acting voices: heard as neutral", f"{figures.heard_on_base['neutral']:.1%}", ""),
        (
            f"the same, heard as {figures.most_heard_on_base[0]} (the commonest other)",
            f"{figures.most_heard_on_base[1]:.1%}",
            "≤ 1/6",
        ),
        *_trained_rows("`happy` with affetto's defaults", figures.preserved, ("≥ 70 %", "≤ 2 points more", "≤ 0.05")),
        *_trained_rows("`happy` by plain LoRA at intensity 1 (nothing preserves)", figures.naive, ("", "", "far more")),
    ]
    table = "\n".join(f"| {name} | {value} | {aim} |" for name, value, aim in rows)
    libraries = ", ".join(f"{name} {value}" for name, value in versions().items())
    return f"""# The miniature

A complete small world for affetto: codec, base and judges, trained by `affetto miniature build` on speech that
espeak-ng renders with published emotional prosody rules. Apache-2.0. It speaks simple sentences in six synthetic
voices, and nothing else: it is a laboratory and a default that runs anywhere, not a voice for people.

- **Codec**: WORLD features in 80 ms blocks, 8 residual codebooks of 256, 12.5 frames per second, 24 kHz.
- **Base**: a `CsmForConditionalGeneration` of {figures.parameters_m:.1f} M parameters, trained on general
  speech only: a quarter of it lively, none of it by rule of an emotion.
- **Judges**: `Wav2Vec2BertForCTC` and `WhisperForAudioClassification`, trained on other voices, texts and
  strengths than any adapter's acted clips. Two thirds of what they heard went through the codec. The recogniser also
  heard the base's four voices that don't act, on other texts than it is tested on, and knows a bigram model of the
  sentences that the base read.
{_carried(figures.went_on_from)}
Measured by `affetto miniature measure` with {libraries}:

| figure | measured | aim |
|---|---|---|
{table}

The corpus is spoken by espeak-ng (GPL-3.0), called as a separate program library when clips are rendered; nothing of
it is inside these weights or this package.
"""


def _carried(earlier: str | None) -> str:
    if earlier is None:
        return ""
    return (
        "\nBase and recogniser went on from an earlier miniature's weights (`affetto miniature build --from`;\n"
        f"its base's begin with {earlier}), so the recipe alone doesn't lead to them: docs/log.md.\n"
    )


def _trained(output: Path, settings: dict[str, Any], intensity: float | None = None) -> Trained:
    """Train, speak and judge `happy` as `affetto run` does; at `intensity` in place of the recommended one."""
    from affetto.config import load_config
    from affetto.evaluate.suite import evaluate
    from affetto.pipeline import prepare_clips, train_emotions

    config = load_config(
        None, emotions=("happy",), output_dir=output, trackers=(), judges={"quality": "none", "voice": "none"}
    ).model_copy(update={"evaluation_sentences": _EVERY, "evaluation_strengths": (), **settings})
    prepared = prepare_clips(config, ["happy"])
    list(train_emotions(config, ["happy"], prepared, command="affetto miniature measure"))
    results = evaluate(config, "happy", prepared, intensity=intensity)
    base, happy = (next(item for item in results["systems"] if item["role"] == role) for role in ("base", "adapter"))
    assert happy["plain_metrics"] is not None
    assert results["retention"] is not None
    found = {
        "recall": happy["metrics"]["recall"], "wer": happy["metrics"]["wer"], "wer_of_base": base["metrics"]["wer"],
        "wer_of_plain_prompts": happy["plain_metrics"]["wer"], "delta_nll": results["retention"]["delta_nll"],
    }  # fmt: skip
    values = {name: metric["value"] for name, metric in found.items() if metric["value"] is not None}
    assert len(values) == len(found), found
    return Trained(num_sentences=happy["metrics"]["wer"]["n"], **values)


def _trained_rows(title: str, trained: Trained, aims: tuple[str, str, str]) -> list[tuple[str, str, str]]:
    return [
        (f"{title}: recall in {trained.num_sentences} sentences", f"{trained.recall:.1%}", aims[0]),
        (f"{title}: WER (base, same sentences: {trained.wer_of_base:.1%})", f"{trained.wer:.1%}", aims[1]),
        (f"{title}: WER of plain prompts", f"{trained.wer_of_plain_prompts:.1%}", ""),
        (f"{title}: ΔNLL on general speech, nats per code", f"{trained.delta_nll:.3f}", aims[2]),
    ]


def _recoded(lines: list[corpus.Line], codec: Codec) -> list[NDArray[np.float32]]:
    return [_to_16k(codec.decode(codec.encode(corpus.render(line)))) for line in lines]


def _to_16k(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(soxr.resample(samples, corpus.SAMPLE_RATE, _RATE, quality="HQ"), dtype=np.float32)


def _without_language_model(judge: WordJudge) -> WordJudge:
    letters = copy.copy(judge)
    letters.words = None  # type: ignore[attr-defined]
    return letters


def _wer(judge: WordJudge, texts: list[str], sounds: list[NDArray[np.float32]]) -> float:
    scores = [score_words(text, heard) for text, heard in zip(texts, judge.transcribe(_audible(sounds)), strict=True)]
    return word_error_rate([score for score in scores if score is not None])


def _heard(judge: EmotionJudge, sounds: list[NDArray[np.float32]]) -> dict[str, float]:
    """Share of `sounds` by the judge's first choice."""
    choices = judge.posteriors(_audible(sounds)).argmax(axis=1)
    return {label: float(np.mean(choices == index)) for index, label in enumerate(judge.labels)}


def _audible(sounds: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Sounds, an empty one replaced by a tenth of a second of silence, which no judge hears a word in."""
    return [sound if len(sound) else np.zeros(_RATE // 10, dtype=np.float32) for sound in sounds]
