"""General speech of many speakers: LibriTTS and LibriTTS-R, VCTK.

LibriTTS (Zen et al. 2019, Interspeech; CC BY 4.0) and LibriTTS-R (Koizumi et al. 2023, Interspeech; its licence isn't
confirmed here) have the same layout and count as one corpus, so don't mix them:
`SUBSET/SPEAKER/CHAPTER/SPEAKER_CHAPTER_….wav` with `.normalized.txt` beside it; a subset's folder is recognised.
VCTK (Yamagishi et al. 2019, Edinburgh DataShare; CC BY 4.0): `wav48_silence_trimmed/p225/p225_001_mic1.flac` and
`txt/p225/p225_001.txt` (0.92), or `wav48/p225/p225_001.wav` (earlier). The second microphone is skipped. The layout is
from general knowledge, not checked on a copy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from affetto.audio.corpora.files import subfolders, text_beside
from affetto.audio.corpora.named import NamedFiles, Said

_VCTK_ROOTS = ("wav48_silence_trimmed", "wav48")


def _chapters(folder: Path) -> Iterable[Path]:
    speakers = [child for child in subfolders(folder) if child.name.isdigit()]
    return [chapter for speaker in speakers for chapter in subfolders(speaker) if chapter.name.isdigit()]


def _libritts(path: Path, match: re.Match[str]) -> Said:
    return Said(match["speaker"], None, text_beside(path))


def _vctk_places(folder: Path) -> Iterable[Path]:
    roots = [folder / name for name in _VCTK_ROOTS if (folder / name).is_dir()]
    return [speaker for root in roots[:1] for speaker in subfolders(root)]


def _vctk(path: Path, match: re.Match[str]) -> Said:
    text = path.parents[2] / "txt" / match["speaker"] / f"{match['name']}.txt"
    return Said(match["speaker"], None, text_beside(text))


LIBRITTS = NamedFiles(
    "libritts", "LibriTTS: SUBSET/84/121123/84_121123_000007_000001.wav with .normalized.txt beside",
    re.compile(r"(?P<speaker>\d+)_\d+_\d{6}_\d{6}"), _chapters, _libritts,
)  # fmt: skip
VCTK = NamedFiles(
    "vctk", "VCTK: wav48_silence_trimmed/p225/p225_001_mic1.flac and txt/p225/p225_001.txt",
    re.compile(r"(?P<name>(?P<speaker>[ps]\d+)_\d+)(?:_mic1)?"), _vctk_places, _vctk,
    is_other=lambda path: path.stem.endswith("_mic2"),
)  # fmt: skip
