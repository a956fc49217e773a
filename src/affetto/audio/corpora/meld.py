"""MELD (Poria et al. 2019, ACL; GPL-3 repository, TV recordings): `train_sent_emo.csv` and `dia0_utt0.wav`.

It is published as videos; extract their sound first (`ffmpeg -i dia0_utt0.mp4 -vn dia0_utt0.wav`). Each
`PART_sent_emo.csv` (in the corpus's folder or in `PART/`) lists the utterances in folders with PART as a word of their
name: `train/train_splits`, `dev/dev_splits_complete`, `test/output_repeated_splits_test`. Duplicates in the last, which
are called `final_videos_test…`, aren't read. Apostrophes and dashes that are published as control characters (Windows'
code page 1252 read as Latin-1) are corrected.

Not confirmed on a copy: the names of files, columns and labels, that the videos' sound has 48 kHz, and that the three
parts are the official split.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection
from pathlib import Path

from affetto.audio.corpora.files import files, read_lines, sound_files, subfolders, tree
from affetto.audio.corpora.named import Said, add_clip
from affetto.types import Clip, Problem

LAYOUT = "MELD: train_sent_emo.csv and train_splits/dia0_utt0.wav"
_LIST = "_sent_emo.csv"
_COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")


def recognises(folder: Path) -> bool:
    """Whether `folder` has one of the three lists."""
    return any(path.name.endswith(_LIST) for path in files(folder))


def read(folder: Path, _emotions: Collection[str] = ()) -> tuple[list[Clip], list[Problem]]:
    """The listed utterances; rows without a sound file and lists without the columns are reported."""
    clips: dict[str, Clip] = {}
    problems: list[Problem] = []
    lists = [path for place in (folder, *subfolders(folder)) for path in files(place) if path.name.endswith(_LIST)]
    for listed in lists:
        part = listed.name.removesuffix(_LIST)
        sounds = _sounds(folder, part)
        table = csv.DictReader(io.StringIO("\n".join(read_lines(listed)), newline=""))
        where = listed.relative_to(folder.parent).as_posix()
        if missing := [name for name in _COLUMNS if name not in (table.fieldnames or ())]:
            problems.append(Problem(f"{where}:1", "bad-row", f"columns missing: {', '.join(missing)}"))
            continue
        for row in table:
            name = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
            if name not in sounds:
                message = f"no sound file {name}; extract it from the video: ffmpeg -i {name}.mp4 -vn {name}.wav"
                problems.append(Problem(f"{where}:{table.line_num}", "missing-file", message))
                continue
            said = Said(row["Speaker"].strip(), row["Emotion"].strip(), _mended(row["Utterance"]).strip() or None)
            problem = add_clip(clips, "meld", sounds[name], said, f"{where}:{table.line_num}", part)
            problems += [problem] if problem else []
    return list(clips.values()), problems


def _sounds(folder: Path, part: str) -> dict[str, Path]:
    """Sound files of a part, by utterance name."""
    return {
        path.stem: path
        for place in tree(folder)
        if part in {word for name in place.relative_to(folder).parts for word in re.split(r"[\W_]", name)}
        for path in sound_files(place)
    }


def _mended(text: str) -> str:
    """`text` with the control characters U+0080 to U+009F decoded as code page 1252."""
    return re.sub("[\x80-\x9f]", lambda match: match[0].encode("latin-1").decode("cp1252", errors="ignore"), text)
