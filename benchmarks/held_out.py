"""Held-out sentences as the base and its adapters say them, judged: more of them than an evaluation compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.evaluate.results import FileRow, Prompt
from affetto.evaluate.scoring import Item, score_files
from affetto.evaluate.sentences import Sentence, ask, texts_of
from affetto.evaluate.similarity import Scored
from affetto.judges.kinds import Judges
from affetto.speak.voice import Voice

SEED = 5_000_000
SEEDS_APART = 100_000


def sentences(
    prepared: Prepared, facts: dict[str, Any], num_seeds: int, splits: Sequence[str] = ("validation", "test")
) -> list[Sentence]:
    """Every held-out text of `splits` in every voice of the adapter whose facts these are, with so many seeds."""
    emotion = str(facts["emotion"])
    texts = texts_of(
        clip for split in splits for which in (emotion, None) for clip in prepared.select(which, split)
    )  # fmt: skip
    return [
        Sentence(text, name, facts["speakers"][name], seed=SEED + index + seed * SEEDS_APART)
        for seed in range(num_seeds)
        for index, text in enumerate(texts)
        for name in facts["trained_speakers"]
    ]


def say(
    voice: Voice, judges: Judges, wanted: Sequence[Sentence], emotion: str | None, intensity: float,
    *, cued: bool, judged_as: str, prompt: Prompt,
) -> Scored:  # fmt: skip
    """Items and rows of the sentences as `affetto speak` says them, with as many takes.

    `emotion` None is the base. Recall and posterior are those of `judged_as`.
    """
    config = Config()
    requests = ask(
        voice, wanted, emotion, intensity=intensity, cued=cued, temperature=config.sampling_temperature,
        depth_temperature=config.sampling_depth_temperature, takes=config.sampling_takes,
    )  # fmt: skip
    spoken = voice.generate(requests)
    items = [
        Item(
            f"{emotion or 'base'} {index}", sound, voice.codec.sample_rate, text=one.text, speaker=one.speaker,
            seed=one.seed, prompt=prompt, hit_cap=said.hit_cap,
        )
        for index, (one, said, sound) in enumerate(zip(wanted, spoken, voice.decode_each(spoken), strict=True))
    ]  # fmt: skip
    return items, score_files(items, judges, judged_as)


def pooled(rows_of_each: Sequence[Sequence[FileRow]]) -> list[FileRow]:
    """The rows of several adapters, told apart by seeds that don't meet."""
    return [
        FileRow(**{**row, "seed": (row["seed"] or 0) + number * 10 * SEED})
        for number, rows in enumerate(rows_of_each)
        for row in rows
    ]
