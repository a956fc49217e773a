"""`affetto evaluate`: the same held-out sentences through base and adapter, scored beside real recordings."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from affetto.audio.sound import write_sound
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
from affetto.evaluate.sentences import Sentence, ask, recordings_in_turn
from affetto.evaluate.similarity import compare_emotions, compare_voices
from affetto.evaluate.spoken import note_spoken, read_spoken, speech_key
from affetto.evaluate.strengths import by_intensity, hear_strengths, of_strengths
from affetto.evaluate.summary import build_system, compare
from affetto.files import hash_folder, read_json, write_text
from affetto.judges.choice import Judges, choose_judges
from affetto.model.batch import Row
from affetto.progress import progress
from affetto.speak.voice import Voice


@dataclass(frozen=True)
class _Again:
    """Whether to go on from what was spoken before, and the hashes of the weights that must have spoken it."""

    resume: bool
    weights: tuple[str, ...]


def evaluate(
    config: Config, emotion: str, prepared: Prepared, *, intensity: float | None = None, command: str = "",
    resume: bool = False,
) -> Results:  # fmt: skip
    """Evaluate `emotion_models/<emotion>/best` and write `evaluation_results/<emotion>_results.json` and its CSV twin.

    Three systems: the base, which is asked plainly since it knows no cue; the adapter, asked with its cue (what it
    conveys) and plainly (what leaks); and real held-out recordings of the emotion through the base's codec, which bound
    what any adapter could convey and the judge could hear. With `resume`, what a stopped evaluation with the same
    weights, sentences and judges spoke and judged is taken up (see `spoken` and `journal`).
    """
    # 1. The adapter as a user would load it, and the judges.
    folder = config.output_dir / "emotion_models" / emotion / "best"
    voice = Voice.load(config.base)
    voice.load_adapter(emotion, folder)
    facts = read_json(folder / "affetto.json")
    strength = float(facts["recommended_intensity"]) if intensity is None else intensity
    judges = choose_judges(config.judges, emotion)
    output = config.output_dir / "evaluation_results" / f"{emotion}_results.json"
    journal = Journal(journal_path(output), judges, emotion, resume=resume)

    # 2. Speak: held-out texts, the voices that the adapter learned from.
    sentences = held_out_sentences(config, emotion, prepared, facts["trained_speakers"], facts["speakers"])
    samples = config.output_dir / "evaluation" / "test_samples"
    again = _Again(
        resume, (voice.base.hash, hash_folder(voice.base.folder, ("codec.*",)), hash_folder(folder, ("*.safetensors",)))
    )
    spoken = {
        "base": _speak(config, voice, sentences, samples / f"{emotion}_base", None, 0.0, cued=False, again=again),
        emotion: _speak(config, voice, sentences, samples / emotion, emotion, strength, cued=True, again=again),
        "plain": _speak(
            config, voice, sentences, samples / f"{emotion}_plain", emotion, strength, cued=False, again=again
        ),
    }

    # 3. Judge everything, the real recordings too.
    base_rows = _score(spoken["base"], journal, "base", prompt="emotional")
    plain_base_rows = [FileRow(**{**row, "prompt": "plain"}) for row in base_rows]
    adapter_rows = [
        *_score(spoken[emotion], journal, emotion, prompt="emotional"),
        *_score(spoken["plain"], journal, f"{emotion}, plain prompts", prompt="plain"),
    ]
    recordings, acted = _recordings(config, emotion, prepared, voice, samples / f"{emotion}_real")
    real_rows = _score(recordings, journal, "real recordings", prompt=None)
    base, real = (spoken["base"], base_rows), (recordings, real_rows)
    adapter = ([*spoken[emotion], *spoken["plain"]], adapter_rows)
    if judges.voice is not None:
        compare_voices(judges.voice, base, (adapter, real), _references(prepared, voice, facts["trained_speakers"]))
    if judges.embedding is not None:
        compare_emotions(judges.embedding, (base, adapter), real)
    systems = [
        build_system("base", "base", [*base_rows, *plain_base_rows], judges, 0.0),
        build_system(emotion, "adapter", adapter_rows, judges, strength),
        build_system("real", "real", real_rows, judges),
    ]
    comparisons = [
        compare(
            adapter_rows, [*base_rows, *plain_base_rows], system=emotion, against="base", prompt=prompt,
            emotion=emotion if prompt == "emotional" else None,
        )
        for prompt in _PROMPTS
    ]  # fmt: skip

    # 4. What was forgotten, teacher-forced on general clips that nothing was trained on.
    held_out = general_test_rows(voice.base, prepared, config.evaluation_clips, config.seed, facts["speakers"])
    retention = _retention(voice, held_out, {emotion: strength})

    # 5. What is heard at other strengths, and of recordings by theirs.
    strengths = _strengths(config, voice, sentences, systems[1], judges, again)
    real_strengths = by_intensity(real_rows, acted, judges)

    # 6. Write it down.
    ceiling = systems[-1]["metrics"]["recall"]
    results = build_results(
        emotion, command, judge_facts(judges, ceiling), systems, comparisons, retention, strengths, real_strengths
    )
    write_results(output, results)
    return results


_PROMPTS: tuple[Prompt, ...] = ("emotional", "plain")
_LONGEST_NAME = 80
_REFERENCES = 8
"""Recordings that a voice is known by."""


def held_out_sentences(
    config: Config, emotion: str, prepared: Prepared, trained_speakers: Sequence[str], numbers: dict[str, int]
) -> list[Sentence]:
    """Held-out texts, those of the emotion's own test clips first, spoken in turn by its training clips' voices."""
    clips = [*prepared.select(emotion, "test"), *prepared.select(None, "test")]
    texts = list(dict.fromkeys(clip.text for clip in clips if clip.text))[: config.evaluation_sentences]
    if not texts:
        raise DataError(f"no held-out text to speak: neither {emotion} nor general clips have a test split")
    return [
        Sentence(text, speaker, numbers[speaker], seed=config.seed + 1000 + index)
        for index, text in enumerate(texts)
        for speaker in [trained_speakers[index % len(trained_speakers)]]
    ]


def _speak(
    config: Config,
    voice: Voice,
    sentences: Sequence[Sentence],
    folder: Path,
    emotion: str | None,
    intensity: float,
    *,
    cued: bool,
    again: _Again,
) -> list[Item]:
    """Speak into `folder`, one wav and one txt per sentence; what an earlier evaluation left there goes, or is used."""
    requests = ask(voice, sentences, emotion, intensity=intensity, temperature=config.sampling_temperature, cued=cued)
    key = speech_key(requests, *again.weights)
    hit_caps = read_spoken(folder, key) if again.resume else None
    if hit_caps is None:
        shutil.rmtree(folder, ignore_errors=True)
        with progress(f"Speaking {folder.name}", len(requests)) as bar:
            spoken = voice.generate(requests, bar.advance)
        hit_caps = {}
        for index, (sentence, result) in enumerate(zip(sentences, spoken, strict=True)):
            path = folder / f"{index:03d}.wav"
            write_sound(path, voice.decode(result), voice.codec.sample_rate)
            write_text(path.with_suffix(".txt"), sentence.text + "\n")
            hit_caps[path.name] = result.hit_cap
        note_spoken(folder, key, hit_caps)
    return [
        Item(
            _name(folder / name, config), folder / name, text=sentence.text, speaker=sentence.speaker,
            seed=sentence.seed, hit_cap=hit_cap,
        )
        for sentence, (name, hit_cap) in zip(sentences, hit_caps.items(), strict=True)
    ]  # fmt: skip


def _recordings(
    config: Config, emotion: str, prepared: Prepared, voice: Voice, folder: Path
) -> tuple[list[Item], list[float]]:
    """Held-out recordings through the base's codec, than which no adapter can sound better, and their intensities.

    They are written into `folder` like what the systems speak, and judged as written; names end in the clips' ids.
    """
    chosen = recordings_in_turn(prepared.select(emotion, "test"), config.evaluation_sentences)
    shutil.rmtree(folder, ignore_errors=True)
    items = []
    for index, clip in enumerate(chosen):
        path = folder / f"{index:03d}_{_file_name(clip.id)}.wav"
        write_sound(path, voice.codec.decode(prepared.codes(clip)), voice.codec.sample_rate)
        if clip.text:
            write_text(path.with_suffix(".txt"), clip.text + "\n")
        items.append(Item(_name(path, config), path, text=clip.text, speaker=clip.speaker))
    return items, [clip.gate for clip in chosen]


def _file_name(name: str) -> str:
    """What of a clip's id may stand in a file's name anywhere."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[-_LONGEST_NAME:]


def _references(prepared: Prepared, voice: Voice, speakers: Sequence[str]) -> list[Item]:
    """A few plain recordings of each voice, through the base's codec."""
    plain = [clip for clip in prepared.clips if clip.emotion in (None, "neutral")]
    chosen = [clip for name in speakers for clip in [each for each in plain if each.speaker == name][:_REFERENCES]]
    rate = voice.codec.sample_rate
    return [
        Item(clip.id, voice.codec.decode(prepared.codes(clip)), rate, text=clip.text, speaker=clip.speaker)
        for clip in chosen
    ]


def _retention(voice: Voice, held_out: Sequence[Row], gates: Mapping[str, float]) -> Retention | None:
    """What the base under `gates` kept; None without general clips."""
    if not held_out:
        return None
    assert voice.bank is not None
    with progress("Measuring retention", len(held_out)) as bar:
        gate = tuple(voice.bank.gate(gates).tolist())
        return measure_retention(voice.base, held_out, gate, bar.advance).document()


def _strengths(
    config: Config, voice: Voice, sentences: Sequence[Sentence], own: System, judges: Judges, again: _Again
) -> list[Strength]:
    """What is heard at the configuration's other strengths; the sounds are kept in a folder for each."""
    emotion = own["name"]
    path = config.output_dir / "evaluation_results" / f"{emotion}_strengths.json"
    journal = Journal(journal_path(path), of_strengths(judges), emotion, resume=again.resume)
    kept = config.output_dir / "evaluation" / "test_samples" / f"{emotion}_strengths"
    if not again.resume:
        shutil.rmtree(kept, ignore_errors=True)

    def say(intensity: float) -> list[FileRow]:
        name = f"{emotion}_at_{intensity:g}"
        items = _speak(config, voice, sentences, kept / name, emotion, intensity, cued=True, again=again)
        return _score(items, journal, name.replace("_", " "), prompt="emotional")

    return hear_strengths(own, config.evaluation_strengths, judges, say)


def _score(items: Sequence[Item], journal: Journal, title: str, *, prompt: Prompt | None) -> list[FileRow]:
    marked = [Item(**{**item.__dict__, "prompt": prompt}) for item in items]
    with progress(f"Judging {title}", len(marked)) as bar:
        return journal.score(marked, bar.advance)


def _name(path: Path, config: Config) -> str:
    return path.relative_to(config.output_dir).as_posix()
