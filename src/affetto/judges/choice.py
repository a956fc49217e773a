"""Finds judges by name, folder or hub id, and loads them; see `kinds` for what a judge is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal, cast, overload

from affetto.errors import BaseModelError, ConfigError, JudgeError, MissingDependencyError, did_you_mean
from affetto.files import expanded, hash_folder
from affetto.judges.kinds import (
    KINDS,
    LABELLED,
    AnyJudge,
    DimensionJudge,
    EmbeddingJudge,
    EmotionJudge,
    Judges,
    Kind,
    QualityJudge,
    Tier,
    VoiceJudge,
    WordJudge,
)
from affetto.judges.known import BUNDLED_VOICE, KNOWN_JUDGES, MINIATURE_JUDGES, KnownJudge
from affetto.judges.labels import to_affetto
from affetto.model.packed import unpacked

__all__ = [
    "KINDS", "KNOWN_JUDGES", "LABELLED", "DimensionJudge", "EmbeddingJudge", "EmotionJudge", "Judges", "Kind",
    "KnownJudge", "QualityJudge", "Source", "Tier", "VoiceJudge", "WordJudge", "check_choices", "choose_judges",
    "default_judge", "find_source", "load_judge", "read_labels", "require_label", "unheard",
]  # fmt: skip

OFF = "none"
_ON_REQUEST = {
    "dimensions": "no dimensions judge comes with affetto; name one with --judge "
    "dimensions=audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim (non-commercial), or a folder with such a model",
    "embedding": "emotion embeddings are compared only on request, because their similarity rewards mimicry (arXiv "
    "2604.26347): --judge embedding=miniature, or the id or folder of an emotion classifier",
}
"""Kinds without a default judge, and how to name one."""


@dataclass(frozen=True)
class Source:
    """Where a transformers judge is loaded from, and the name it is reported under."""

    where: str
    id: str
    tier: Tier
    licence: str | None
    revision: str | None = None
    labels: Mapping[str, str] | None = None
    """affetto's labels by the model's; None uses `labels.to_affetto`."""
    known: KnownJudge | None = None
    """Its entry in the registry; None for a user's folder, which is never assumed to be a hub model."""


@overload
def load_judge(kind: Literal["emotion"], id_or_path: str | Path, device: str = "cpu") -> EmotionJudge: ...
@overload
def load_judge(kind: Literal["words"], id_or_path: str | Path, device: str = "cpu") -> WordJudge: ...
@overload
def load_judge(kind: Literal["quality"], id_or_path: str | Path, device: str = "cpu") -> QualityJudge: ...
@overload
def load_judge(kind: Literal["voice"], id_or_path: str | Path, device: str = "cpu") -> VoiceJudge: ...
@overload
def load_judge(kind: Literal["dimensions"], id_or_path: str | Path, device: str = "cpu") -> DimensionJudge: ...
@overload
def load_judge(kind: Literal["embedding"], id_or_path: str | Path, device: str = "cpu") -> EmbeddingJudge: ...
def load_judge(kind: Kind, id_or_path: str | Path, device: str = "cpu") -> AnyJudge:
    """Load a judge: a folder, a hub id, `id@revision`, or `miniature`; for quality see `predictors.load_quality`.

    Raises JudgeError if it can't be loaded completely or is of another kind, MissingDependencyError if a package
    is missing, ConfigError for a device that this machine lacks.
    """
    check_device(device)
    if kind == "quality":
        from affetto.judges.predictors import load_quality

        return load_quality(str(id_or_path), device)
    if kind == "voice" and str(id_or_path) == BUNDLED_VOICE:
        return default_judge(kind, device)
    if str(id_or_path) == "miniature":
        return _miniature(kind, device) if kind == "embedding" else default_judge(kind, device)
    return _load(kind, find_source(kind, id_or_path), device)


@overload
def default_judge(kind: Literal["emotion"], device: str = "cpu") -> EmotionJudge: ...
@overload
def default_judge(kind: Literal["words"], device: str = "cpu") -> WordJudge: ...
@overload
def default_judge(kind: Literal["quality"], device: str = "cpu") -> QualityJudge: ...
@overload
def default_judge(kind: Literal["voice"], device: str = "cpu") -> VoiceJudge: ...
@overload
def default_judge(kind: Literal["dimensions"], device: str = "cpu") -> DimensionJudge: ...
@overload
def default_judge(kind: Literal["embedding"], device: str = "cpu") -> EmbeddingJudge: ...
def default_judge(kind: Kind, device: str = "cpu") -> AnyJudge:
    """The judge that needs no network: the miniature's for emotion and words, DNSMOS for quality, GE2E for voices.

    Raises MissingDependencyError for the other kinds, and if the judge isn't installed.
    """
    if kind == "quality":
        return dnsmos()
    if kind == "voice":
        from affetto.judges.speaker_encoder import BundledVoiceJudge

        return BundledVoiceJudge(device)
    if kind in _ON_REQUEST:
        raise MissingDependencyError(_ON_REQUEST[kind])
    return _miniature(kind, device)


def choose_judges(choices: Mapping[str, str], emotion: str, device: str = "cpu") -> Judges:
    """Judges by kind: the chosen ones (`none` switches one off), else the defaults.

    A default judge that isn't installed, or doesn't know `emotion`, is missing with a reason; a chosen one that can't
    be loaded or doesn't know it raises, and so does a device that this machine lacks (ConfigError).
    """
    found, reasons = _find_all(choices, device)
    if "emotion" not in choices and "emotion" in found:
        try:
            require_label(cast(EmotionJudge, found["emotion"]), emotion)
        except JudgeError as error:
            reasons["emotion"] = str(error)
            del found["emotion"]
    for kind in LABELLED:
        if kind in found:
            require_label(cast("EmotionJudge | EmbeddingJudge", found[kind]), emotion, kind)
    return _judges(found, reasons)


def all_judges(choices: Mapping[str, str], device: str = "cpu") -> Judges:
    """Judges by kind as in `choose_judges`, whatever emotions they know."""
    return _judges(*_find_all(choices, device))


def check_device(device: str) -> None:
    """ConfigError unless judges can run on `device` here: `cpu`, `cuda`, or `cuda:` and a number."""
    if device == "cpu":
        return
    kind, mark, number = device.partition(":")
    if kind != "cuda" or (mark and not number.isdecimal()):
        raise ConfigError(f"--device {device}: judges run on cpu or cuda (cuda:1 for the second GPU)")
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(f"--device {device}: torch finds no GPU here; leave the option out, or use cpu")
    if int(number or 0) > (last := torch.cuda.device_count() - 1):
        raise ConfigError(f"--device {device}: there is no such GPU here; the last is cuda:{last}")


def check_choices(choices: Mapping[str, str], emotions: Sequence[str]) -> None:
    """Load the chosen judges and check that they know `emotions`, so that a run fails before training, not after."""
    _check_kinds(choices)
    for kind in KINDS:
        if choices.get(kind, OFF) != OFF:
            judge = load_judge(kind, choices[kind])
            for emotion in emotions if kind in LABELLED else ():
                require_label(cast("EmotionJudge | EmbeddingJudge", judge), emotion, kind)


def unheard(judges: Judges, choices: Mapping[str, str]) -> str | None:
    """Why no emotion can be judged; None if it can, or if the judge was switched off."""
    return judges.reason("emotion") if judges.emotion is None and choices.get("emotion") != OFF else None


def require_label(judge: EmotionJudge | EmbeddingJudge, emotion: str, kind: Kind = "emotion") -> None:
    """JudgeError if a judge has no label for `emotion`: a missing class is never mapped to another."""
    if emotion not in judge.labels:
        raise JudgeError(
            f"the {kind} judge {judge.id} can't hear {emotion!r}{did_you_mean(emotion, judge.labels)}; "
            f"its labels are {', '.join(judge.labels)}. "
            f"Choose another with --judge {kind}=ID_OR_FOLDER, or go without: --judge {kind}=none"
        )


def find_source(kind: Kind, id_or_path: str | Path) -> Source:
    """Resolve a folder, a hub id or `id@revision`."""
    name = str(id_or_path)
    folder = expanded(name)
    if folder.is_dir():
        return Source(str(folder), f"local/{folder.resolve().name}@{weights_hash(folder)}", "local", None)
    if isinstance(id_or_path, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise JudgeError(f"there is no folder {name} to load the {kind} judge from")
    repository, _, revision = name.partition("@")
    known = KNOWN_JUDGES.get(repository)
    if known is None:
        return Source(repository, repository, "hub", None, revision or None)
    if known.kind != kind and (known.kind, kind) != ("emotion", "embedding"):
        raise JudgeError(f"{repository} judges {known.kind}, not {kind}")
    is_pinned = revision in ("", known.revision)
    labels = known.labels if is_pinned else None
    return Source(repository, repository, "hub", known.licence, revision or known.revision, labels, known)


def read_labels(names: Sequence[str], source: Source) -> tuple[str, ...]:
    """affetto's label for each of a model's outputs, by name.

    Raises JudgeError if a pinned model's names aren't those in the registry (a revision renamed them).
    """
    if source.labels is None:
        return tuple(to_affetto(name) for name in names)
    plain = [name.rsplit("/", 1)[-1].strip().lower() for name in names]
    if set(plain) != set(source.labels):
        raise JudgeError(
            f"{source.id} has the labels {', '.join(plain)}, but {', '.join(source.labels)} were expected; "
            "its revision differs from the one that affetto knows"
        )
    return tuple(source.labels[name] for name in plain)


def weights_hash(folder: Path) -> str:
    """The hash that identifies a folder of weights."""
    return hash_folder(
        folder,
        ("config.*", "hyperparams.yaml", "*.safetensors", "*.bin", "*.pt", "*.ckpt", "tokens.txt", "label_encoder.txt"),
    )[:12]


@cache
def dnsmos() -> QualityJudge:
    """The bundled quality judge, loaded once."""
    from affetto.judges.quality import DnsmosJudge

    return DnsmosJudge()


def _find_all(choices: Mapping[str, str], device: str) -> tuple[dict[str, AnyJudge], dict[str, str]]:
    """(judges found, why the others are missing), both by kind."""
    check_device(device)
    _check_kinds(choices)
    found: dict[str, AnyJudge] = {}
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
    return found, reasons


def _judges(found: Mapping[str, AnyJudge], reasons: Mapping[str, str]) -> Judges:
    return Judges(
        emotion=cast("EmotionJudge | None", found.get("emotion")),
        words=cast("WordJudge | None", found.get("words")),
        quality=cast("QualityJudge | None", found.get("quality")),
        voice=cast("VoiceJudge | None", found.get("voice")),
        dimensions=cast("DimensionJudge | None", found.get("dimensions")),
        embedding=cast("EmbeddingJudge | None", found.get("embedding")),
        reasons=reasons,
    )


def _check_kinds(choices: Mapping[str, str]) -> None:
    if wrong := sorted(set(choices) - set(KINDS)):
        raise JudgeError(f"no such kind of judge: {', '.join(wrong)}; the kinds are {', '.join(KINDS)}")


def _miniature(kind: Kind, device: str) -> AnyJudge:
    """A judge that ships with affetto; embeddings are its emotion judge's."""
    name: Kind = "emotion" if kind == "embedding" else kind
    folder = Path(str(resources.files("affetto.miniature"))) / "assets" / "judges" / name
    if not (folder / "config.json").is_file():
        raise MissingDependencyError(
            f"the miniature's {name} judge isn't in this installation; name one with --judge {kind}=ID_OR_FOLDER"
        )
    folder = unpacked(folder)
    known = MINIATURE_JUDGES[name]
    source = Source(str(folder), f"miniature/{name}@{weights_hash(folder)}", known.tier, known.licence, known=known)
    return _load(kind, source, device)


def _load(kind: Kind, source: Source, device: str) -> AnyJudge:
    if source.tier != "hub":
        return _load_found(kind, source, device)
    from affetto.hub import loading

    try:
        with loading(source.where, source.revision):
            return _load_found(kind, source, device)
    except BaseModelError as error:
        raise JudgeError(f"can't load the {kind} judge: {error}") from error


def _load_found(kind: Kind, source: Source, device: str) -> AnyJudge:
    if kind in LABELLED:
        from affetto.judges import emotion2vec, speechbrain_emotion

        if emotion2vec.is_laid_out_so(source):
            return emotion2vec.load(source, device)
        if speechbrain_emotion.is_laid_out_so(source):
            return speechbrain_emotion.load(source, device)
    if kind == "embedding":
        from affetto.judges import embeddings

        return embeddings.load_embedding(source, device)
    if kind in ("voice", "dimensions"):
        from affetto.judges import voices

        return voices.load_voice(source, device) if kind == "voice" else voices.load_dimensions(source, device)
    from affetto.judges import listeners  # imports transformers, which takes seconds

    return listeners.load_emotion(source, device) if kind == "emotion" else listeners.load_words(source, device)
