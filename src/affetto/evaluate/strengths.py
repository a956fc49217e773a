"""Evaluates intensities other than the main one on the same sentences, for emotion and words only.

An adapter's intensity multiplies its change of the weights. That moves log-odds evenly, but not what is heard: below
some intensity hardly anything shows, above it the emotion is overdone and words suffer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from affetto.evaluate.results import AT_STRENGTHS, FileRow, Metric, Strength, System
from affetto.evaluate.scoring import Item, score_files
from affetto.evaluate.sentences import Sentence, ask
from affetto.evaluate.summary import build_system
from affetto.judges.choice import Judges
from affetto.speak.voice import Voice


def hear(
    voice: Voice, sentences: Sequence[Sentence], emotion: str, judges: Judges, *, intensity: float, temperature: float,
    depth_temperature: float | None = None, cued: bool = True,
) -> dict[str, Metric]:  # fmt: skip
    """Speak `sentences` at one intensity and judge emotion and words, without writing files."""
    requests = ask(
        voice, sentences, emotion, intensity=intensity, temperature=temperature, depth_temperature=depth_temperature,
        cued=cued,
    )  # fmt: skip
    spoken = voice.generate(requests)
    items = [
        Item(
            f"{number:03d}", sound, voice.codec.sample_rate, text=sentence.text, speaker=sentence.speaker,
            seed=sentence.seed, hit_cap=said.hit_cap,
        )
        for number, (sentence, said, sound) in enumerate(
            zip(sentences, spoken, voice.decode_each(spoken), strict=True)
        )
    ]  # fmt: skip
    few = of_strengths(judges)
    return build_system(emotion, "adapter", score_files(items, few, emotion), few, intensity)["metrics"]


def hear_strengths(
    own: System, intensities: Sequence[float], judges: Judges, say: Callable[[float], list[FileRow]]
) -> list[Strength]:
    """Metrics at each of `intensities`, which `say` speaks and scores; `own` provides those of its own intensity.

    Weakest first; empty without other `intensities`, or if neither emotion nor words can be judged.
    """
    others = [intensity for intensity in intensities if intensity != own["intensity"]]
    if not others or (judges.emotion is None and judges.words is None) or own["intensity"] is None:
        return []
    few = of_strengths(judges)
    measured = {own["intensity"]: own["metrics"]}
    for intensity in others:
        measured[intensity] = build_system(own["name"], "adapter", say(intensity), few, intensity)["metrics"]
    return [
        Strength(intensity=intensity, metrics={name: metrics[name] for name in AT_STRENGTHS})
        for intensity, metrics in sorted(measured.items())
    ]


def by_intensity(rows: Sequence[FileRow], acted: Sequence[float], judges: Judges) -> list[Strength]:
    """`AT_STRENGTHS` of recordings by their acted intensity, weakest first; empty if all have the same."""
    if len(set(acted)) < 2 or (judges.emotion is None and judges.words is None):
        return []
    few, strengths = of_strengths(judges), []
    for intensity in sorted(set(acted)):
        chosen = [row for row, own in zip(rows, acted, strict=True) if own == intensity]
        metrics = build_system("real", "real", chosen, few)["metrics"]
        strengths.append(Strength(intensity=intensity, metrics={name: metrics[name] for name in AT_STRENGTHS}))
    return strengths


def of_strengths(judges: Judges) -> Judges:
    """The judges that are used at every intensity: emotion and words."""
    return replace(judges, quality=None, voice=None, dimensions=None, embedding=None)
