"""Cosines between files' vectors: similarity of voices and, on request, of the emotion to real recordings.

From a voice judge's vectors, for each file the mean over files by the same speaker:
- `speaker_similarity`: to the base's other texts in the same voice. The base is compared with itself in the same way,
  leaving out the text in question, so its value is the effect of saying another text, and the paired difference from
  it is what the adapter changed; that difference has method.md's margin of 0.02;
- `similarity_same_prompt`: to the base's file of the same text, speaker and seed (of another seed for the re-seeded
  base); none for the base itself;
- `similarity_to_reference`: to the speaker's reference clips, except those with the same text;
- `voice_consistency`: to the system's own other texts in the same voice and with the same kind of prompt.
Only other texts are used, because the same words make two voices similar. Each file without a known text counts as a
text of its own, and files without a known speaker count as one voice.

From an embedding judge's vectors, `emotion_similarity`: to held-out real recordings of the emotion with other texts, by
the same speaker if there are any, else all. The base's value is an adapter's starting point, and that of the recordings
among themselves, likewise without their own text, is what can be reached. It is secondary: similarity to recordings
rewards mimicking them (arXiv 2604.26347), and a system may convey an emotion in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from affetto.evaluate.results import FileRow
from affetto.evaluate.scoring import Item, load
from affetto.judges.kinds import EmbeddingJudge, VectorJudge, VoiceJudge

Scored = tuple[Sequence[Item], Sequence[FileRow]]
"""Files and their rows."""

_DECIMALS = 6
_CHUNK = 64
"""Sounds held in memory at once."""


@dataclass(frozen=True)
class Embedded:
    """A file's row and its unit vector."""

    row: FileRow
    unit_D: NDArray[np.float64]

    @property
    def text(self) -> str:
        """A key of its text, or of the file if the text isn't known."""
        return f"file:{self.row['file']}" if self.row["text"] is None else f"text:{self.row['text']}"


def compare_voices(
    judge: VoiceJudge, base: Scored, others: Sequence[Scored], references: Sequence[Item],
    reseeded: Scored = ((), ()), on_progress: Callable[[int], object] | None = None,
) -> None:  # fmt: skip
    """Fill the four voice values in the rows of `base`, each of `others` and the `reseeded` base, in place.

    `on_progress` gets the number of newly embedded files, references included.
    """
    base_voices = embed_files(*base, judge, on_progress)
    clips = embed_files(references, reference_rows(references), judge, on_progress)
    set_similarities(base_voices, base_voices, clips, is_base=True)
    for items, rows in others:
        set_similarities(embed_files(items, rows, judge, on_progress), base_voices, clips)
    set_similarities(embed_files(*reseeded, judge, on_progress), base_voices, clips, by_seed=False)


def compare_emotions(judge: EmbeddingJudge, systems: Sequence[Scored], real: Scored) -> None:
    """Fill `emotion_similarity` in the rows of each of `systems` and of the `real` recordings, in place."""
    recordings = embed_files(*real, judge)
    for embedded in (recordings, *(embed_files(items, rows, judge) for items, rows in systems)):
        set_emotion_similarity(embedded, recordings)


def embed_files(
    items: Sequence[Item], rows: Sequence[FileRow], judge: VectorJudge | None,
    on_progress: Callable[[int], object] | None = None,
) -> list[Embedded]:  # fmt: skip
    """Vectors of the files that have no error and are long enough; `rows` are the scores of `items`.

    Empty without a judge.
    """
    usable = [(item, row) for item, row in zip(items, rows, strict=True) if row["error"] is None] if judge else []
    embedded: list[Embedded] = []
    for start in range(0, len(usable), _CHUNK):
        part = usable[start : start + _CHUNK]
        assert judge is not None
        vectors = judge.embed([load(item, judge.sample_rate) for item, _ in part])
        embedded += [Embedded(row, unit) for (_, row), unit in zip(part, vectors, strict=True) if unit is not None]
        if on_progress:
            on_progress(len(part))
    if on_progress:
        on_progress(len(items) - len(usable))
    return embedded


def reference_rows(items: Sequence[Item]) -> list[FileRow]:
    """Rows of reference clips with text and speaker but no values."""
    return [
        FileRow(
            file=item.file, prompt=None, text=item.text, speaker=item.speaker, seed=None, duration_s=None,
            error=item.error, values={},
        )
        for item in items
    ]  # fmt: skip


def set_similarities(
    voiced: Sequence[Embedded], base: Sequence[Embedded] = (), references: Sequence[Embedded] = (), *,
    is_base: bool = False, by_seed: bool = True,
) -> None:  # fmt: skip
    """Fill the four voice values of `voiced`'s rows; values with nothing to compare with stay null."""
    own = group_by(voiced, lambda file: (file.row["speaker"], file.row["prompt"]))
    theirs, clips = (group_by(files, lambda file: file.row["speaker"]) for files in (base, references))
    same = {_prompt(file, by_seed): file for file in base if file.row["text"] is not None}
    for file in voiced:
        speaker, values = file.row["speaker"], file.row["values"]
        values["voice_consistency"] = likeness(file, own.get((speaker, file.row["prompt"])))
        values["speaker_similarity"] = likeness(file, theirs.get(speaker))
        values["similarity_to_reference"] = likeness(file, clips.get(speaker))
        twin = None if is_base or file.row["text"] is None else same.get(_prompt(file, by_seed))
        values["similarity_same_prompt"] = None if twin is None else round(float(file.unit_D @ twin.unit_D), _DECIMALS)


def set_emotion_similarity(embedded: Sequence[Embedded], recordings: Sequence[Embedded]) -> None:
    """Fill `emotion_similarity`; it stays null for files without a recording of another text."""
    everybody = group_by(recordings, lambda _file: None).get(None)
    by_speaker = group_by(recordings, lambda file: file.row["speaker"])
    for file in embedded:
        speaker = file.row["speaker"]
        cosine = None if speaker is None else likeness(file, by_speaker.get(speaker))
        file.row["values"]["emotion_similarity"] = likeness(file, everybody) if cosine is None else cosine


@dataclass(frozen=True)
class Group:
    """A group of files: the mean vector of each of their texts, and the sum of these."""

    by_text: Mapping[str, NDArray[np.float64]]
    total_D: NDArray[np.float64]


def group_by(embedded: Iterable[Embedded], key: Callable[[Embedded], Hashable]) -> dict[Hashable, Group]:
    """Groups of files; sums are taken in an order that doesn't depend on the files' order."""
    members: dict[Hashable, dict[str, list[Embedded]]] = {}
    for file in embedded:
        members.setdefault(key(file), {}).setdefault(file.text, []).append(file)
    groups = {}
    for name, texts in members.items():
        means = {
            text: np.mean([file.unit_D for file in sorted(texts[text], key=lambda file: file.row["file"])], axis=0)
            for text in sorted(texts)
        }
        groups[name] = Group(means, np.sum(list(means.values()), axis=0))
    return groups


def likeness(one: Embedded, group: Group | None) -> float | None:
    """Mean cosine to the group's other texts, with equal weights; None if there is no other text."""
    if group is None:
        return None
    own_D = group.by_text.get(one.text)
    num_others = len(group.by_text) - (own_D is not None)
    if not num_others:
        return None
    others_D = group.total_D if own_D is None else group.total_D - own_D
    return round(float(one.unit_D @ others_D) / num_others, _DECIMALS)


def _prompt(file: Embedded, by_seed: bool) -> tuple[str | None, str | None, int | None]:
    return file.row["text"], file.row["speaker"], file.row["seed"] if by_seed else None
