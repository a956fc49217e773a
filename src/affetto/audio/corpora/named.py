"""Corpora whose file names give everything: speaker, emotion and, through a table or a .txt beside, the text."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from affetto.audio.corpora.files import TextError, sound_files
from affetto.audio.labels import LABELS, emotion_of
from affetto.types import Clip, Problem


@dataclass(frozen=True)
class Said:
    """What a file's name and the files around it say about it."""

    speaker: str
    """The corpus's name for the speaker; the clip's speaker is prefixed with the corpus's name."""
    code: str | None
    """The corpus's code for the emotion; None is general speech."""
    text: str | None
    intensity: float | None = None
    """`Clip.intensity`."""


@dataclass(frozen=True)
class NamedFiles:
    """A reader (`CorpusReader`) of files that are identified by their names."""

    corpus: str
    LAYOUT: str
    name: re.Pattern[str]
    """Matches the whole name that `named` gives. Files with other names are reported unless `is_other` accepts them."""
    places: Callable[[Path], Iterable[Path]]
    """The folders under a corpus's root that hold its files."""
    say: Callable[[Path, re.Match[str]], Said]
    is_other: Callable[[Path], bool] = lambda _: False
    """Whether a file belongs to the corpus but is skipped."""
    named: Callable[[Path], str] = lambda path: path.stem
    """A file's name, completed from its folder's name if needed."""

    def recognises(self, folder: Path) -> bool:
        """Whether one of the `places` of `folder` holds a file with such a name."""
        return any(
            self.name.fullmatch(self.named(path)) for place in self.places(folder) for path in sound_files(place)
        )

    def read(self, folder: Path, _emotions: Collection[str] = ()) -> tuple[list[Clip], list[Problem]]:
        """The clips, whose ids are the corpus's and the file's name (`named`), and problems with other files."""
        clips: dict[str, Clip] = {}
        problems: list[Problem] = []
        for place in self.places(folder):
            for path in sound_files(place):
                where = path.relative_to(folder.parent).as_posix()
                name = self.named(path)
                match = self.name.fullmatch(name)
                if match is None:
                    if not self.is_other(path):
                        problems.append(Problem(where, "bad-row", f"the name isn't {self.LAYOUT}; rename or move it"))
                    continue
                try:
                    said = self.say(path, match)
                except TextError as error:
                    problems.append(Problem(where, error.kind, str(error)))
                    continue
                problem = add_clip(clips, self.corpus, path, said, where, name=name)
                problems += [problem] if problem else []
        return list(clips.values()), problems


def add_clip(
    clips: dict[str, Clip], corpus: str, path: Path, said: Said, where: str, part: str = "", name: str | None = None
) -> Problem | None:
    """Add the clip of `path` to `clips`, or return why not: an unknown emotion, or an id that is taken.

    The id is made from `name`, by default the file's; it includes `part` if names repeat between parts of the corpus.
    """
    if said.code is not None and said.code not in LABELS[corpus]:
        return Problem(where, "unknown-emotion", f"{corpus} has no emotion {said.code!r}; rename it or leave it out")
    emotion = None if said.code is None else emotion_of(corpus, said.code)
    clip_id = "-".join(filter(None, (corpus, part, name or path.stem)))
    if taken := clips.get(clip_id):
        return Problem(where, "duplicate-id", f"{taken.audio.name} is already clip {clip_id!r}; remove one of them")
    clips[clip_id] = Clip(
        clip_id, path.absolute(), said.text, emotion, f"{corpus}-{said.speaker}", corpus, intensity=said.intensity
    )
    return None
