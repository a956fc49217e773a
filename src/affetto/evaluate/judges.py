"""Who judges: protocols, the judges that are known by name, and how one is found.

A judge's `tier` says where it comes from, and nothing that was found offline is ever reported under a hub model's
name: `miniature` (ships with affetto, hears the miniature's voices only), `bundled` (comes with a dependency),
`local` (a folder on disk, named after it and its weights' hash), `hub` (a Hugging Face id, pinned to a commit).
A judge that was trained on the corpus under test flatters; `KNOWN_JUDGES` says which corpora each has heard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal, Protocol, cast, overload

import numpy as np
from numpy.typing import NDArray

from affetto.errors import JudgeError, MissingDependencyError
from affetto.evaluate.labels import to_affetto
from affetto.files import hash_folder
from affetto.model.packed import unpacked

Kind = Literal["emotion", "words", "quality"]
KINDS: tuple[Kind, ...] = ("emotion", "words", "quality")
Tier = Literal["miniature", "bundled", "hub", "local"]
OFF = "none"


class _Judge(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def tier(self) -> str: ...
    @property
    def licence(self) -> str | None: ...
    @property
    def sample_rate(self) -> int: ...


class EmotionJudge(_Judge, Protocol):
    """Says how likely each of its emotions is."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Emotions in affetto's vocabulary, one per column."""
        ...

    def posteriors(self, sounds: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        """Probabilities (N, L) of mono sounds at `sample_rate`; rows sum to 1 and don't depend on their neighbours."""
        ...


class WordJudge(_Judge, Protocol):
    """Writes down what it hears."""

    def transcribe(self, sounds: Sequence[NDArray[np.float32]]) -> list[str]:
        """English text of mono sounds at `sample_rate`."""
        ...


class QualityJudge(_Judge, Protocol):
    """Predicts listening scores."""

    def score(self, sounds: Sequence[NDArray[np.float32]]) -> list[dict[str, float]]:
        """Scores from 1 to 5 by metric name (`mos_overall`, …) of mono sounds at `sample_rate`."""
        ...


@dataclass(frozen=True)
class Judges:
    """The judges of one evaluation; `reasons` says by kind why one is missing."""

    emotion: EmotionJudge | None = None
    words: WordJudge | None = None
    quality: QualityJudge | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def reason(self, kind: str) -> str:
        """Why there is no judge of that kind."""
        return self.reasons.get(kind, f"no {kind} judge was given")


@dataclass(frozen=True)
class KnownJudge:
    """What is known of a judge before it is loaded."""

    kind: Kind
    tier: Tier
    licence: str
    sample_rate: int
    revision: str | None
    """Commit on the hub that these facts are about."""
    labels: Mapping[str, str] | None = None
    """The model's own label names (lower case) → affetto's. By name, never by position."""
    heard: tuple[str, ...] = ()
    """Corpora it was trained on, whose clips it would flatter."""
    obstacle: str | None = None
    """Why affetto can't run it."""


_IEMOCAP = {"neu": "neutral", "hap": "happy", "ang": "angry", "sad": "sad"}
"""Here `hap` includes excited; there is no fear and no surprise."""

KNOWN_JUDGES: dict[str, KnownJudge] = {
    "dnsmos": KnownJudge("quality", "bundled", "MIT", 16_000, None),
    "superb/wav2vec2-base-superb-er": KnownJudge(
        "emotion", "hub", "apache-2.0", 16_000, "441a7599c3b22107314dcbd9166621c5c83f2cc5", _IEMOCAP, ("IEMOCAP",)
    ),
    "firdhokk/speech-emotion-recognition-with-openai-whisper-large-v3": KnownJudge(
        "emotion", "hub", "apache-2.0", 16_000, "83e7cc6cebb3978e4cc314ebad9f1614c177a94a",
        {"angry": "angry", "disgust": "disgusted", "fearful": "fearful", "happy": "happy", "neutral": "neutral",
         "sad": "sad", "surprised": "surprised"},
        ("RAVDESS", "SAVEE", "TESS", "URDU"),
    ),
    "emotion2vec/emotion2vec_plus_large": KnownJudge(
        "emotion", "hub", "model-license", 16_000, "27810dc2d2f86f80faeeb11b56a61260841f9201",
        {"angry": "angry", "disgusted": "disgusted", "fearful": "fearful", "happy": "happy", "neutral": "neutral",
         "other": "other", "sad": "sad", "surprised": "surprised", "<unk>": "other"},
        obstacle="it is a FunASR checkpoint, which transformers can't load",
    ),
    "speechbrain/emotion-recognition-wav2vec2-IEMOCAP": KnownJudge(
        "emotion", "hub", "apache-2.0", 16_000, "2384ca84857782409803eebc9349acb106e4232d", _IEMOCAP, ("IEMOCAP",),
        obstacle="it is a SpeechBrain checkpoint, which transformers can't load",
    ),
    "openai/whisper-base.en": KnownJudge(
        "words", "hub", "apache-2.0", 16_000, "911407f4214e0e1d82085af863093ec0b66f9cd6"
    ),
    "facebook/wav2vec2-base-960h": KnownJudge(
        "words", "hub", "apache-2.0", 16_000, "7ee7fd3d1158795356cccf9cbb6965dbd4009182", heard=("LibriSpeech",)
    ),
}  # fmt: skip
"""Any other model that transformers can load works as well; its labels are then read by `labels.to_affetto`."""


@dataclass(frozen=True)
class Source:
    """Where a transformers judge is loaded from, and the name it is reported under."""

    where: str
    id: str
    tier: Tier
    licence: str | None
    revision: str | None = None
    labels: Mapping[str, str] | None = None
    """None reads them by `labels.to_affetto`."""


@overload
def load_judge(kind: Literal["emotion"], id_or_path: str | Path, device: str = "cpu") -> EmotionJudge: ...
@overload
def load_judge(kind: Literal["words"], id_or_path: str | Path, device: str = "cpu") -> WordJudge: ...
@overload
def load_judge(kind: Literal["quality"], id_or_path: str | Path, device: str = "cpu") -> QualityJudge: ...
def load_judge(kind: Kind, id_or_path: str | Path, device: str = "cpu") -> EmotionJudge | WordJudge | QualityJudge:
    """Load a judge: a folder, a hub id, `id@revision`, `miniature`, or `dnsmos` for quality.

    Raises JudgeError where it can't be loaded whole or is of another kind, MissingDependencyError where a package
    is missing.
    """
    if kind == "quality":
        if str(id_or_path) != "dnsmos":
            raise JudgeError(f"the only quality judge is dnsmos, not {id_or_path}")
        return _dnsmos()
    if str(id_or_path) == "miniature":
        return default_judge(kind, device)
    return _load(kind, find_source(kind, id_or_path), device)


@overload
def default_judge(kind: Literal["emotion"], device: str = "cpu") -> EmotionJudge: ...
@overload
def default_judge(kind: Literal["words"], device: str = "cpu") -> WordJudge: ...
@overload
def default_judge(kind: Literal["quality"], device: str = "cpu") -> QualityJudge: ...
def default_judge(kind: Kind, device: str = "cpu") -> EmotionJudge | WordJudge | QualityJudge:
    """The judge that needs no network: the miniature's for emotion and words, DNSMOS for quality."""
    if kind == "quality":
        return _dnsmos()
    folder = Path(str(resources.files("affetto.miniature"))) / "assets" / "judges" / kind
    if not (folder / "config.json").is_file():
        raise MissingDependencyError(
            f"the miniature's {kind} judge isn't in this installation; name one with --judge {kind}=ID_OR_FOLDER"
        )
    folder = unpacked(folder)
    name = f"miniature/{kind}@{_weights_hash(folder)}"
    return _load(kind, Source(str(folder), name, "miniature", "Apache-2.0"), device)


def choose_judges(choices: Mapping[str, str], emotion: str, device: str = "cpu") -> Judges:
    """Judges by kind: as chosen (`none` switches one off), else the default ones.

    A default judge that isn't installed, or doesn't know `emotion`, is missing with a reason; a chosen one that can't
    be loaded or doesn't know it raises.
    """
    _check_kinds(choices)
    found: dict[str, object] = {}
    reasons: dict[str, str] = {}
    for kind in KINDS:
        if choices.get(kind) == OFF:
            reasons[kind] = f"the {kind} judge was switched off"
        elif kind in choices:
            found[kind] = load_judge(kind, choices[kind], device)
        else:
            try:
                found[kind] = default_judge(kind, device)
            except MissingDependencyError as error:
                reasons[kind] = str(error)
    if "emotion" not in choices and "emotion" in found:
        try:
            require_label(cast(EmotionJudge, found["emotion"]), emotion)
        except JudgeError as error:
            reasons["emotion"] = str(error)
            del found["emotion"]
    judges = Judges(
        cast("EmotionJudge | None", found.get("emotion")),
        cast("WordJudge | None", found.get("words")),
        cast("QualityJudge | None", found.get("quality")),
        reasons,
    )
    if judges.emotion is not None:
        require_label(judges.emotion, emotion)
    return judges


def check_choices(choices: Mapping[str, str], emotions: Sequence[str]) -> None:
    """Load the chosen judges and see that they know `emotions`: before a run, what would stop its evaluation."""
    _check_kinds(choices)
    for kind in KINDS:
        if choices.get(kind, OFF) != OFF:
            judge = load_judge(kind, choices[kind])
            for emotion in emotions if kind == "emotion" else ():
                require_label(cast(EmotionJudge, judge), emotion)


def _check_kinds(choices: Mapping[str, str]) -> None:
    if wrong := sorted(set(choices) - set(KINDS)):
        raise JudgeError(f"no such kind of judge: {', '.join(wrong)}; the kinds are {', '.join(KINDS)}")


def require_label(judge: EmotionJudge, emotion: str) -> None:
    """Refuse a judge that has no label for `emotion`: a class it lacks is never mapped to another."""
    if emotion not in judge.labels:
        raise JudgeError(
            f"the emotion judge {judge.id} can't hear {emotion!r}; its labels are {', '.join(judge.labels)}. "
            "Choose another with --judge emotion=ID_OR_FOLDER, or go without: --judge emotion=none"
        )


def find_source(kind: Kind, id_or_path: str | Path) -> Source:
    """Resolve a folder, a hub id or `id@revision`."""
    name = str(id_or_path)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return Source(str(folder), f"local/{folder.resolve().name}@{_weights_hash(folder)}", "local", None)
    if isinstance(id_or_path, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise JudgeError(f"there is no folder {name} to load a {kind} judge from")
    repository, _, revision = name.partition("@")
    known = KNOWN_JUDGES.get(repository)
    if known is None:
        return Source(repository, repository, "hub", None, revision or None)
    if known.kind != kind:
        raise JudgeError(f"{repository} judges {known.kind}, not {kind}")
    if known.obstacle:
        raise JudgeError(f"{repository} can't be a judge here: {known.obstacle}")
    is_pinned = revision in ("", known.revision)
    labels = known.labels if is_pinned else None
    return Source(repository, repository, "hub", known.licence, revision or known.revision, labels)


def read_labels(names: Sequence[str], source: Source) -> tuple[str, ...]:
    """Affetto's label of each of a model's outputs, by name.

    Raises JudgeError where a pinned model doesn't have the names it is known to have (a revision that renamed them).
    """
    if source.labels is None:
        return tuple(to_affetto(name) for name in names)
    plain = [name.rsplit("/", 1)[-1].strip().lower() for name in names]
    if set(plain) != set(source.labels):
        raise JudgeError(
            f"{source.id} has the labels {', '.join(plain)} where {', '.join(source.labels)} were expected; "
            "its revision differs from the one that affetto knows"
        )
    return tuple(source.labels[name] for name in plain)


def _load(kind: Kind, source: Source, device: str) -> EmotionJudge | WordJudge:
    from affetto.evaluate import listeners  # imports transformers, which takes seconds

    return listeners.load_emotion(source, device) if kind == "emotion" else listeners.load_words(source, device)


@cache
def _dnsmos() -> QualityJudge:
    from affetto.evaluate.quality import DnsmosJudge

    return DnsmosJudge()


def _weights_hash(folder: Path) -> str:
    return hash_folder(folder, ("config.json", "*.safetensors", "*.bin"))[:12]
