"""Cosines between files' vectors: whose voice it is, and, on request, how like real recordings the emotion sounds.

By a voice judge's vectors, for each file, means over files by the same speaker:
- `speaker_similarity`: the base's other texts in the same voice. The base is held against itself in the same way,
  leaving out the text at hand, so its value is what re-saying costs, and the paired difference from it is what the
  adapter changed; that difference has method.md's margin of 0.02;
- `similarity_same_prompt`: the base's file of the same text, speaker and seed (of another seed for the base that is
  re-seeded); none for the base itself;
- `similarity_to_reference`: the speaker's reference clips, but for those that speak the same text;
- `voice_consistency`: the system's own other texts in the same voice and of the same kind of prompt.
Other texts only, because the same words make two voices alike. Files whose text isn't known each count as a text of
their own, and files whose speaker isn't known count as one voice.

By an embedding judge's vectors, `emotion_similarity`: to held-out real recordings of the emotion that speak another
text, the same speaker's where there are any, else all. The base's value is where an adapter starts from, and that of
the recordings among themselves, likewise without their own text, what can be reached. It is secondary: likeness to
recordings rewards mimicry of them (arXiv 2604.26347), and a system may convey an emotion in another way.
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
"""Files, and the rows that they were scored into."""

_DECIMALS = 6
_CHUNK = 64
"""Sounds held in memory at once."""


@dataclass(frozen=True)
class Embedded:
    """A file's vector and what it may be compared by."""

    row: FileRow
    unit_D: NDArray[np.float64]

    @property
    def text(self) -> str:
        """What it says, or what stands for that."""
        return f"file:{self.row['file']}" if self.row["text"] is None else f"text:{self.row['text']}"


def compare_voices(
    judge: VoiceJudge, base: Scored, others: Sequence[Scored], references: Sequence[Item],
    reseeded: Scored = ((), ()), on_progress: Callable[[int], object] | None = None,
) -> None:  # fmt: skip
    """Fill the four values of voices in the rows of `base`, each of `others` and the `reseeded` base, in place.

    `on_progress` is told of how many more files a voice was heard, the references' included.
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
    """Vectors of the files that have no error and are long enough; `items` are what `rows` were scored from.

    Nothing without a judge.
    """
    usable = [(item, row) for item, row in zip(items, rows, strict=True) if row["error"] is None] if judge else []
    found: list[Embedded] = []
    for start in range(0, len(usable), _CHUNK):
        part = usable[start : start + _CHUNK]
        assert judge is not None
        vectors = judge.embed([load(item, judge.sample_rate) for item, _ in part])
        found += [Embedded(row, unit) for (_, row), unit in zip(part, vectors, strict=True) if unit is not None]
        if on_progress:
            on_progress(len(part))
    if on_progress:
        on_progress(len(items) - len(usable))
    return found


def reference_rows(items: Sequence[Item]) -> list[FileRow]:
    """Rows that say who speaks what in reference clips, and no numbers."""
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
    """Fill the four values of `voiced`'s rows; those that lack something to be compared with stay null."""
    own = group_by(voiced, lambda one: (one.row["speaker"], one.row["prompt"]))
    theirs, clips = (group_by(found, lambda one: one.row["speaker"]) for found in (base, references))
    same = {_prompt(one, by_seed): one for one in base if one.row["text"] is not None}
    for one in voiced:
        speaker, values = one.row["speaker"], one.row["values"]
        values["voice_consistency"] = likeness(one, own.get((speaker, one.row["prompt"])))
        values["speaker_similarity"] = likeness(one, theirs.get(speaker))
        values["similarity_to_reference"] = likeness(one, clips.get(speaker))
        twin = None if is_base or one.row["text"] is None else same.get(_prompt(one, by_seed))
        values["similarity_same_prompt"] = None if twin is None else round(float(one.unit_D @ twin.unit_D), _DECIMALS)


def set_emotion_similarity(embedded: Sequence[Embedded], recordings: Sequence[Embedded]) -> None:
    """Fill `emotion_similarity`; files that no recording of another text can be held against stay null."""
    everybody = group_by(recordings, lambda _one: None).get(None)
    by_speaker = group_by(recordings, lambda one: one.row["speaker"])
    for one in embedded:
        speaker = one.row["speaker"]
        cosine = None if speaker is None else likeness(one, by_speaker.get(speaker))
        one.row["values"]["emotion_similarity"] = likeness(one, everybody) if cosine is None else cosine


@dataclass(frozen=True)
class Group:
    """Files that belong together: the mean vector of each of their texts, and the sum of these."""

    by_text: Mapping[str, NDArray[np.float64]]
    total_D: NDArray[np.float64]


def group_by(embedded: Iterable[Embedded], key: Callable[[Embedded], Hashable]) -> dict[Hashable, Group]:
    """Groups of files; sums are taken in an order that the files' order doesn't change."""
    members: dict[Hashable, dict[str, list[Embedded]]] = {}
    for one in embedded:
        members.setdefault(key(one), {}).setdefault(one.text, []).append(one)
    found = {}
    for name, texts in members.items():
        means = {
            text: np.mean([one.unit_D for one in sorted(texts[text], key=lambda one: one.row["file"])], axis=0)
            for text in sorted(texts)
        }
        found[name] = Group(means, np.sum(list(means.values()), axis=0))
    return found


def likeness(one: Embedded, group: Group | None) -> float | None:
    """Mean cosine to the group's other texts, each text weighing the same; None where there is no other."""
    if group is None:
        return None
    own_D = group.by_text.get(one.text)
    num_others = len(group.by_text) - (own_D is not None)
    if not num_others:
        return None
    others_D = group.total_D if own_D is None else group.total_D - own_D
    return round(float(one.unit_D @ others_D) / num_others, _DECIMALS)


def _prompt(one: Embedded, by_seed: bool) -> tuple[str | None, str | None, int | None]:
    return one.row["text"], one.row["speaker"], one.row["seed"] if by_seed else None
