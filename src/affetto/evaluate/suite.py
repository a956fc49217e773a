"""`affetto evaluate`: base and adapter speak the same held-out sentences and are scored alongside real recordings."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace

from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.errors import DataError
from affetto.evaluate.journal import Journal, journal_path
from affetto.evaluate.judge_facts import judge_facts
from affetto.evaluate.results import (
    FileRow,
    Prompt,
    Results,
    Retention,
    Strength,
    System,
    build_results,
    write_results,
)
from affetto.evaluate.retention import general_test_rows, measure_retention
from affetto.evaluate.scoring import Item
from affetto.evaluate.sentences import Sentence, texts_of
from affetto.evaluate.similarity import compare_emotions, compare_voices
from affetto.evaluate.speaking import Studio
from affetto.evaluate.strengths import by_intensity, hear_strengths, of_strengths
from affetto.evaluate.summary import build_system, compare
from affetto.evaluate.training_known import what_is_known
from affetto.judges.choice import Judges, choose_judges, unheard
from affetto.model.batch import Row
from affetto.progress import progress, say
from affetto.speak.arguments import require_strength
from affetto.speak.voice import Voice


def evaluate(
    config: Config, emotion: str, prepared: Prepared, *, intensity: float | None = None, command: str = "",
    resume: bool = False,
) -> Results:  # fmt: skip
    """Evaluate `emotion_models/<emotion>/best`; writes `evaluation_results/<emotion>_results.json` and its CSV twin.

    There are four systems. The base, with plain prompts, since it knows no cue. The adapter, with its cue (what it
    conveys) and with plain prompts (what leaks). Real held-out recordings of the emotion through the base's codec,
    which bound what any adapter could convey and the judge could hear. And the base with other seeds, which differs
    from itself by chance alone: that is what the adapter's differences on plain prompts are compared with.

    With `resume`, what an interrupted evaluation with the same weights, sentences and judges spoke and judged is reused
    (`spoken`, `journal`). ConfigError for an `intensity` below 0 or not finite, and if test clips were trained on.
    """
    require_strength(intensity or 0.0)
    # 1. The adapter as a user would load it, and the judges.
    folder = config.model_of(emotion) / "best"
    known = what_is_known(folder, emotion, prepared, intensity)
    voice = Voice.of_run(config.base, config.base_precision)
    voice.load_adapter(emotion, folder)
    device = str(voice.base.device.type)
    judges = choose_judges(config.judges, emotion, device)
    if why := unheard(judges, config.judges):
        say(f"{emotion}: recall and posterior are left out: {why}", style="yellow")
    output = config.results_of(emotion)
    journal = Journal(journal_path(output), judges, emotion, resume=resume, device=device)

    # 2. Speak held-out texts in the voices that the adapter learned from, and prepare the recordings beside them.
    sentences = held_out_sentences(config, emotion, prepared, known.trained_speakers, known.speakers)
    studio = Studio.of(voice, folder, config, resume=resume)
    said = studio.speak(f"{emotion}_base", sentences)
    asked = studio.speak(emotion, sentences, emotion, known.intensity, cued=True)
    unasked = studio.speak(f"{emotion}_plain", sentences, emotion, known.intensity)
    said_again = studio.speak(f"{emotion}_base_reseeded", [_with_other_seed(sentence) for sentence in sentences])
    recordings, acted = studio.recordings(f"{emotion}_real", prepared, emotion, config.evaluation_sentences)

    # 3. Judge everything.
    base_rows = _score(said, journal, "base", prompt="emotional", lasting=True)
    plain_base_rows = [FileRow(**{**row, "prompt": "plain"}) for row in base_rows]
    adapter_rows = [
        *_score(asked, journal, emotion, prompt="emotional"),
        *_score(unasked, journal, f"{emotion}, plain prompts", prompt="plain"),
    ]
    real_rows = _score(recordings, journal, "real recordings", prompt=None, lasting=True)
    chance_rows = _score(said_again, journal, RESEEDED, prompt="plain", lasting=True)
    base, adapter = (said, base_rows), ([*asked, *unasked], adapter_rows)
    real, chance = (recordings, real_rows), (said_again, chance_rows)
    if judges.voice is not None:
        references = studio.references(prepared, known.trained_speakers)
        compare_voices(judges.voice, base, (adapter, real), references, chance)
    if judges.embedding is not None:
        compare_emotions(judges.embedding, (base, adapter, chance), real)
    systems = [
        build_system("base", "base", [*base_rows, *plain_base_rows], judges, 0.0),
        build_system(emotion, "adapter", adapter_rows, judges, known.intensity),
        build_system("real", "real", real_rows, judges),
        build_system(RESEEDED, "reseeded", chance_rows, judges, 0.0),
    ]
    comparisons = [
        compare(adapter_rows, base_rows, system=emotion, against="base", prompt="emotional", emotion=emotion),
        compare(adapter_rows, plain_base_rows, system=emotion, against="base", prompt="plain"),
        compare(chance_rows, plain_base_rows, system=RESEEDED, against="base", prompt="plain", by_seed=False),
    ]

    # 4. Measure forgetting, teacher-forced on general clips that nothing was trained on.
    held_out = general_test_rows(voice.base, prepared, config.evaluation_clips, config.seed, known.speakers)
    retention = _retention(voice, held_out, {emotion: known.intensity})

    # 5. Judge the adapter at other intensities, and the recordings by the intensity of their acting.
    strengths = _strengths(config, studio, sentences, systems[1], judges)
    real_strengths = by_intensity(real_rows, acted, judges)

    # 6. Write the results.
    ceiling = systems[2]["metrics"]["recall"]
    results = build_results(
        emotion, command, judge_facts(judges, ceiling), systems, comparisons, retention, strengths, real_strengths,
        known.notes,
    )  # fmt: skip
    write_results(output, results)
    return results


RESEEDED = "base, other seeds"
"""Name of the system that is the base with other seeds."""
_OTHER_SEEDS = 1_000_000
"""What is added to the sentences' seeds for that system."""


def held_out_sentences(
    config: Config, emotion: str, prepared: Prepared, trained_speakers: Sequence[str], numbers: Mapping[str, int]
) -> list[Sentence]:
    """Held-out texts, those of the emotion's own test clips first, to be spoken by its training voices in turn."""
    clips = [*prepared.select(emotion, "test"), *prepared.select(None, "test")]
    texts = texts_of(clips, config.evaluation_sentences)
    if not texts:
        raise DataError(f"no held-out text to speak: neither {emotion} nor general clips have a test split")
    return [
        Sentence(text, speaker, numbers[speaker], seed=config.seed + 1000 + index)
        for index, text in enumerate(texts)
        for speaker in [trained_speakers[index % len(trained_speakers)]]
    ]


def _with_other_seed(sentence: Sentence) -> Sentence:
    return replace(sentence, seed=sentence.seed + _OTHER_SEEDS)


def _retention(voice: Voice, held_out: Sequence[Row], gates: Mapping[str, float]) -> Retention | None:
    """Retention of the base with adapters at `gates`; None without general clips."""
    if not held_out:
        return None
    assert voice.bank is not None
    with progress("Measuring retention", len(held_out)) as bar:
        gate = tuple(voice.bank.gate(gates).tolist())
        return measure_retention(voice.base, held_out, gate, bar.advance).document()


def _strengths(
    config: Config, studio: Studio, sentences: Sequence[Sentence], own: System, judges: Judges
) -> list[Strength]:  # fmt: skip
    """Metrics at the configuration's other intensities; the sounds of each have a folder of their own."""
    emotion = own["name"]
    path = config.output_dir / "evaluation_results" / f"{emotion}_strengths.json"
    device = str(studio.voice.base.device.type)
    journal = Journal(journal_path(path), of_strengths(judges), emotion, resume=studio.resume, device=device)
    kept = f"{emotion}_strengths"
    if not studio.resume:
        shutil.rmtree(studio.folder(kept), ignore_errors=True)

    def say(intensity: float) -> list[FileRow]:
        name = f"{emotion}_at_{intensity:g}"
        items = studio.speak(f"{kept}/{name}", sentences, emotion, intensity, cued=True)
        return _score(items, journal, name.replace("_", " "), prompt="emotional")

    return hear_strengths(own, config.evaluation_strengths, judges, say)


def _score(
    items: Sequence[Item], journal: Journal, title: str, *, prompt: Prompt | None, lasting: bool = False
) -> list[FileRow]:
    marked = [Item(**{**item.__dict__, "prompt": prompt}) for item in items]
    with progress(f"Judging {title}", len(marked)) as bar:
        return journal.score(marked, bar.advance, lasting=lasting)
