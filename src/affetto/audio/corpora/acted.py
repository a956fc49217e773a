"""Acted corpora whose file names give speaker, emotion and sentence: CREMA-D, TESS, SAVEE, JL-Corpus.

CREMA-D (Cao et al. 2014, IEEE TAC 5(4); ODbL): `AudioWAV/1001_IEO_HAP_HI.wav`, twelve sentences by code, no surprise;
the last field says how strongly it is acted, which is specified for only one of the sentences.
One file is published as `1040_ITH_SAD_X.wav` (general knowledge, not checked on a copy).
TESS (Dupuis & Pichora-Fuller 2010; licence to be confirmed, CC BY-NC by a mirror): `OAF_back_angry.wav`, two women, who
say "Say the word ___"; `ps` is pleasant surprise. One file is published as `OA_bite_neutral.wav`.
SAVEE (Haq & Jackson 2009; licence not confirmed): `DC_sa07.wav`, or `sa07.wav` in the speaker's folder; four men. Texts
are read from .txt files beside the sounds, if there are any: what the corpus comes with was not checked.
JL-Corpus (James et al. 2018, Interspeech; licence not confirmed): `male2_concerned_6b_1.wav` with a .txt beside it, in
`Raw JL corpus (unchecked and unannotated)/JL(wav+txt)/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from affetto.audio.corpora.files import subfolders, text_beside
from affetto.audio.corpora.named import NamedFiles, Said
from affetto.audio.labels import INTENSITIES, savee_code

CREMA_D_SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
_SAVEE_SPEAKERS = ("DC", "JE", "JK", "KL")


def _crema_d_places(folder: Path) -> Iterable[Path]:
    return [folder / "AudioWAV"] if (folder / "AudioWAV").is_dir() else [folder]


def _crema_d(_path: Path, match: re.Match[str]) -> Said:
    intensity = INTENSITIES["crema-d"][match["level"]]
    return Said(match["speaker"], match["code"], CREMA_D_SENTENCES[match["sentence"]], intensity)


def _tess_places(folder: Path) -> Iterable[Path]:
    return [child for child in subfolders(folder) if re.match(r"(OAF|YAF)_", child.name)] or [folder]


def _tess(_path: Path, match: re.Match[str]) -> Said:
    return Said({"OA": "OAF"}.get(match["speaker"], match["speaker"]), match["code"], f"Say the word {match['word']}.")


def _savee_places(folder: Path) -> Iterable[Path]:
    root = folder / "AudioData" if (folder / "AudioData").is_dir() else folder
    return [root / name for name in _SAVEE_SPEAKERS if (root / name).is_dir()] or [root]


def _savee_name(path: Path) -> str:
    """The name with its speaker in front: every speaker has an a01, and a name as short as that may be any file's."""
    is_short = path.parent.name in _SAVEE_SPEAKERS and "_" not in path.stem
    return f"{path.parent.name}_{path.stem}" if is_short else path.stem


def _savee(path: Path, match: re.Match[str]) -> Said:
    return Said(match["speaker"], savee_code(path.stem), text_beside(path))


def _jl_corpus(path: Path, match: re.Match[str]) -> Said:
    return Said(match["speaker"], match["code"], text_beside(path))


CREMA_D = NamedFiles(
    "crema-d", "CREMA-D: AudioWAV/1001_IEO_HAP_HI.wav",
    re.compile(rf"(?P<speaker>\d{{4}})_(?P<sentence>{'|'.join(CREMA_D_SENTENCES)})_(?P<code>[A-Z]{{3}})_(?P<level>LO|MD|HI|XX?)"),
    _crema_d_places, _crema_d,
)  # fmt: skip
TESS = NamedFiles(
    "tess", "TESS: OAF_angry/OAF_back_angry.wav",
    re.compile(r"(?P<speaker>OAF|OA|YAF)_(?P<word>[a-z]+)_(?P<code>[a-z]+)"), _tess_places, _tess,
)  # fmt: skip
SAVEE = NamedFiles(
    "savee", "SAVEE: DC_sa07.wav, or DC/sa07.wav",
    re.compile(rf"(?P<speaker>{'|'.join(_SAVEE_SPEAKERS)})_(sa|su|a|d|f|h|n)\d\d"), _savee_places, _savee,
    named=_savee_name,
)  # fmt: skip
JL_CORPUS = NamedFiles(
    "jl-corpus", "JL-Corpus: male2_concerned_6b_1.wav with its .txt beside",
    re.compile(r"(?P<speaker>(?:fe)?male\d)_(?P<code>[a-z]+)_\d+[ab]_\d"), lambda folder: [folder], _jl_corpus,
)  # fmt: skip
