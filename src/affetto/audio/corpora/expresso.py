"""Expresso (Nguyen et al. 2023, Interspeech; CC BY-NC 4.0): `audio_48khz/read/ex04/happy/base/…` and conversations.

`read_transcriptions.txt` is `id TAB text`. Recordings called `longform` are listed; most are too long to be a clip, and
checks say so. Singing is skipped. Styles that aren't emotions keep their names (`whisper`, `laughing`, …).

The conversations (`audio_48khz/conversational/ex04-ex01/child-childdir/ex04-ex01_child-childdir_005.wav`) are stereo,
minutes long. Speaker and style of the first channel are before the hyphen, those of the second after it; a single style
is both channels'. They are cut by the voice activity that the authors publish, `NAME/channel1 TAB (start, end) (start,
end) …` in seconds; the names of styles and the format of that file are from the authors' repository
(facebookresearch/textlesslib, examples/expresso/dataset). What the file is called in the archive isn't confirmed, so
any `*VAD*.txt` in the corpus's folder counts. There are no transcripts: `affetto data transcribe` writes them. Each
stretch is a clip; it may last from a tenth of a second to minutes, and checks report the unusable ones.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from affetto.audio.corpora.files import read_lines, sound_files, tree
from affetto.audio.corpora.named import Said, add_clip
from affetto.audio.labels import LABELS
from affetto.types import Clip, Problem

LAYOUT = "Expresso: audio_48khz/read/ex04/happy/base/ex04_happy_00085.wav and read_transcriptions.txt"
_NAME = re.compile(r"(?P<speaker>ex\d\d)_(?P<code>[a-z]+)(?:_[a-z]+)?_\d+(?:-\d+)?")
_CONVERSATION = re.compile(r"(?P<speakers>ex\d\d-ex\d\d)_(?P<styles>[a-z]+(?:-[a-z]+)?)_\d+")
_CONVERSATIONS = Path("audio_48khz") / "conversational"
_VOICE_ACTIVITY = re.compile(r"(?P<name>[^/\s]+)/channel(?P<channel>[12])\t(?P<stretches>[^\t]*)")
_STRETCH = re.compile(r"\(\s*([0-9.]+)\s*,\s*([0-9.]+)\s*\)")
_PASSED_OVER = ("singing",)
Stretches = dict[tuple[str, int], list[tuple[float, float]]]
"""(start, end) in seconds of each stretch of speech, by file name and channel."""


def recognises(folder: Path) -> bool:
    """Whether `folder` has the transcriptions and `audio_48khz/read`."""
    return (folder / "read_transcriptions.txt").is_file() and (folder / "audio_48khz" / "read").is_dir()


def read(folder: Path, _emotions: Collection[str] = ()) -> tuple[list[Clip], list[Problem]]:
    """The read clips and the stretches of the conversations; files with other names are reported."""
    rows = (line.split("\t", 1) for line in read_lines(folder / "read_transcriptions.txt"))
    texts = {cells[0].strip(): cells[1].strip() for cells in rows if len(cells) == 2}
    clips: dict[str, Clip] = {}
    problems: list[Problem] = []
    for path in (path for place in tree(folder / "audio_48khz" / "read") for path in sound_files(place)):
        where = path.relative_to(folder.parent).as_posix()
        match = _NAME.fullmatch(path.stem)
        if match is None:
            problems.append(Problem(where, "bad-row", f"the name isn't {LAYOUT}; rename or move it"))
        elif match["code"] not in _PASSED_OVER:
            problem = add_clip(
                clips, "expresso", path, Said(match["speaker"], match["code"], texts.get(path.stem)), where
            )
            problems += [problem] if problem else []
    conversation_clips, conversation_problems = _conversations(folder)
    return [*clips.values(), *conversation_clips], [*problems, *conversation_problems]


def _conversations(folder: Path) -> tuple[list[Clip], list[Problem]]:
    root = folder / _CONVERSATIONS
    paths = [path for place in tree(root) for path in sound_files(place)] if root.is_dir() else []
    paths = [path for path in paths if not any(word in path.stem for word in _PASSED_OVER)]
    if not paths:
        return [], []
    stretches, problems = _voice_activity(folder)
    if not stretches:
        message = (
            f"{len(paths)} conversations are left out: no *VAD*.txt in {folder} says who speaks when; "
            "put the corpus's own there"
        )
        return [], [*problems, Problem(f"{folder.name}/{_CONVERSATIONS.as_posix()}", "missing-file", message)]
    clips: list[Clip] = []
    for path in paths:
        where = path.relative_to(folder.parent).as_posix()
        if (wrong := _problem(path, stretches)) is None:
            clips += _turns(path, stretches)
        else:
            problems.append(Problem(where, *wrong))
    return clips, problems


def _problem(path: Path, stretches: Stretches) -> tuple[str, str] | None:
    """Kind and message of a problem with a conversation's name, style or voice activity; None if there is none."""
    match = _CONVERSATION.fullmatch(path.stem)
    if match is None:
        return "bad-row", "the name isn't that of a conversation, ex04-ex01_child-childdir_005.wav; rename or move it"
    if unknown := [style for style in match["styles"].split("-") if style not in LABELS["expresso"]]:
        return "unknown-emotion", f"expresso has no style {unknown[0]!r}; rename it or leave it out"
    if not any((path.stem, channel) in stretches for channel in (1, 2)):
        return "bad-segment", "the voice activity (*VAD*.txt) doesn't list it, so it isn't known who speaks when"
    return None


def _turns(path: Path, stretches: Stretches) -> Iterator[Clip]:
    """A conversation's clips, in order of their starts."""
    speakers, styles, _ = path.stem.split("_")
    by_channel = styles.split("-") if "-" in styles else [styles, styles]
    turns = [
        (start_s, end_s, channel) for channel in (1, 2) for start_s, end_s in stretches.get((path.stem, channel), [])
    ]
    for number, (start_s, end_s, channel) in enumerate(sorted(turns)):
        speaker, style = speakers.split("-")[channel - 1], by_channel[channel - 1]
        yield Clip(
            f"expresso-{path.stem}-{number:03d}", path.absolute(), None, LABELS["expresso"][style],
            f"expresso-{speaker}", "expresso", start_s=start_s, end_s=end_s, channel=channel,
        )  # fmt: skip


def _voice_activity(folder: Path) -> tuple[Stretches, list[Problem]]:
    """The stretches in `*VAD*.txt` of the corpus's folder, and a problem for each line that can't be read."""
    stretches: Stretches = {}
    problems: list[Problem] = []
    for path in sorted(path for path in folder.glob("*.txt") if "VAD" in path.name):
        for number, line in enumerate(read_lines(path), start=1):
            if not line.strip() or line.startswith("#") or "/channel" not in line:
                continue  # a remark, or a longform reading
            match = _VOICE_ACTIVITY.fullmatch(line.rstrip())
            times = _STRETCH.findall(match["stretches"]) if match else []
            if match is None or _STRETCH.sub("", match["stretches"]).strip():
                message = "isn't NAME/channel1 TAB (start, end) (start, end) …; mend it"
                problems.append(Problem(f"{path.name}:{number}", "bad-row", message))
                continue
            pairs = [(float(start), float(end)) for start, end in times]
            stretches[match["name"], int(match["channel"])] = [pair for pair in pairs if pair[0] < pair[1]]
    return stretches, problems
