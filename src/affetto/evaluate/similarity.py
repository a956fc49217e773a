"""Whose voice it is: cosines between a voice judge's vectors, of files by the same speaker.

For each file, means over
- `speaker_similarity`: the base's other texts in the same voice. The base is held against itself in the same way,
  leaving out the text at hand, so its value is what re-saying costs, and the paired difference from it is what the
  adapter changed; that difference has method.md's margin of 0.02;
- `similarity_same_prompt`: the base's file of the same text, speaker and seed; none for the base itself;
- `similarity_to_reference`: the speaker's reference clips, but for those that speak the same text;
- `voice_consistency`: the system's own other texts in the same voice and of the same kind of prompt.
Other texts only, because the same words make two voices alike. Files whose text isn't known each count as a text of
their own, and files whose speaker isn't known count as one voice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from affetto.evaluate.results import FileRow
from affetto.evaluate.scoring import Item, load
from affetto.judges.kinds import VoiceJudge

_DECIMALS = 6
_CHUNK = 64
"""Sounds held in memory at once."""


@dataclass(frozen=True)
class Voiced:
    """A file's vector and what it may be compared by."""

    row: FileRow
    unit_D: NDArray[np.float64]

    @property
    def text(self) -> str:
        """What it says, or what stands for that."""
        return f"file:{self.row['file']}" if self.row["text"] is None else f"text:{self.row['text']}"


def hear_voices(items: Sequence[Item], rows: Sequence[FileRow], judge: VoiceJudge | None) -> list[Voiced]:
    """Vectors of the files that have no error and are long enough; `items` are what `rows` were scored from.

    Nothing without a judge.
    """
    usable = [(item, row) for item, row in zip(items, rows, strict=True) if row["error"] is None] if judge else []
    found: list[Voiced] = []
    for start in range(0, len(usable), _CHUNK):
        part = usable[start : start + _CHUNK]
        assert judge is not None
        vectors = judge.embed([load(item, judge.sample_rate) for item, _ in part])
        found += [Voiced(row, unit) for (_, row), unit in zip(part, vectors, strict=True) if unit is not None]
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
    voiced: Sequence[Voiced], base: Sequence[Voiced] = (), references: Sequence[Voiced] = (), *, is_base: bool = False
) -> None:
    """Fill the four values of `voiced`'s rows; those that lack something to be compared with stay null."""
    own, theirs, clips = _by_speaker(voiced), _by_speaker(base), _by_speaker(references)
    same = {_prompt(one): one for one in base if one.row["text"] is not None}
    for one in voiced:
        speaker, values = one.row["speaker"], one.row["values"]
        alike = [other for other in own.get(speaker, []) if other.row["prompt"] == one.row["prompt"]]
        values["voice_consistency"] = _mean_cosine(one, alike)
        values["speaker_similarity"] = _mean_cosine(one, theirs.get(speaker, []))
        values["similarity_to_reference"] = _mean_cosine(one, clips.get(speaker, []))
        twin = None if is_base or one.row["text"] is None else same.get(_prompt(one))
        values["similarity_same_prompt"] = None if twin is None else round(float(one.unit_D @ twin.unit_D), _DECIMALS)


def _mean_cosine(one: Voiced, others: Sequence[Voiced]) -> float | None:
    """Over other texts, each text weighing the same; summed in an order that the files' order doesn't change."""
    by_text: dict[str, list[float]] = {}
    for other in others:
        if other.text != one.text:
            by_text.setdefault(other.text, []).append(float(one.unit_D @ other.unit_D))
    means = [float(np.mean(sorted(by_text[text]))) for text in sorted(by_text)]
    return round(float(np.mean(means)), _DECIMALS) if means else None


def _by_speaker(voiced: Sequence[Voiced]) -> Mapping[str | None, list[Voiced]]:
    found: dict[str | None, list[Voiced]] = {}
    for one in voiced:
        found.setdefault(one.row["speaker"], []).append(one)
    return found


def _prompt(one: Voiced) -> tuple[str | None, str | None, int | None]:
    return one.row["text"], one.row["speaker"], one.row["seed"]
