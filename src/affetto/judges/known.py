"""Registry of judges by name: what they judge, their labels, training corpora and licences.

A judge that was trained on the corpus under test flatters it; `heard` lists each judge's corpora, as far as published.
Any other model that transformers can load works as well; its labels are then read by `labels.to_affetto`, and unknown
facts are absent from the results. Licences and label orders are from the models' cards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from affetto.judges.kinds import Kind, Tier


@dataclass(frozen=True)
class Script:
    """How a quality judge's TorchScript file is called; a JSON beside the file overrides it (see `predictors`)."""

    name: str
    file: str | None
    """Its file in the hub repository; None if none is published and it has to be exported."""
    input: Literal["float32", "int16"] = "float32"
    outputs: tuple[str, ...] = ("mos",)


@dataclass(frozen=True)
class KnownJudge:
    """What is known about a judge before it is loaded."""

    kind: Kind
    tier: Tier
    licence: str
    sample_rate: int
    revision: str | None
    """Commit on the hub that these facts are about; None if not on the hub, or for the newest (`note` says why)."""
    labels: Mapping[str, str] | None = None
    """The model's own label names (lower case) → affetto's. By name, never by position."""
    heard: tuple[str, ...] | None = None
    """Corpora it was trained on, whose clips it would flatter; None if unknown, which is not "none"."""
    languages: tuple[str, ...] | None = ("en",)
    """Languages it was trained for; `many` if they are too many to list, None if unknown."""
    scale: str | None = None
    """What its numbers mean."""
    note: str | None = None
    """What a reader of its numbers must know."""
    layout: Literal["transformers", "funasr", "speechbrain"] = "transformers"
    """The toolkit whose format its files have; only SpeechBrain's voice judge needs that toolkit."""
    script: Script | None = None
    """Set if it is a TorchScript file."""


BUNDLED_VOICE = "ge2e"
"""The voice judge that comes with affetto: `speaker_encoder`."""

_IEMOCAP = {"neu": "neutral", "hap": "happy", "ang": "angry", "sad": "sad"}
"""Here `hap` includes excited; there is no fear and no surprise."""
_EKMAN = {
    "angry": "angry", "disgust": "disgusted", "fearful": "fearful", "happy": "happy", "neutral": "neutral",
    "sad": "sad", "surprised": "surprised",
}  # fmt: skip
_UTMOS = "UTMOS's strong learner (arXiv 2204.02152): learned from the listening tests of the VoiceMOS Challenge 2022"
_EMOTION2VEC = {
    "angry": "angry", "disgusted": "disgusted", "fearful": "fearful", "happy": "happy", "neutral": "neutral",
    "other": "other", "sad": "sad", "surprised": "surprised", "<unk>": "other",
}  # fmt: skip


def _whisper(
    revision: str, *, hours: str = "680,000", is_english: bool = False, licence: str = "apache-2.0"
) -> KnownJudge:
    languages = ("en",) if is_english else ("many",)
    note = f"learned from {hours} h of speech from the web, which aren't listed"
    return KnownJudge("words", "hub", licence, 16_000, revision, languages=languages, note=note)


def _emotion2vec(revision: str | None, note: str, labels: Mapping[str, str] | None = None) -> KnownJudge:
    return KnownJudge(
        "emotion", "hub", "model-license", 16_000, revision, labels, languages=("many",), note=note, layout="funasr"
    )


MINIATURE_JUDGES: dict[Kind, KnownJudge] = {
    kind: KnownJudge(
        kind, "miniature", "Apache-2.0", 16_000, None, heard=("miniature",),
        note="hears the miniature's synthetic voices only",
    )
    for kind in ("emotion", "words")
}  # fmt: skip
"""The miniature's judges, by kind."""

KNOWN_JUDGES: dict[str, KnownJudge] = {
    # Emotion classes.
    "superb/wav2vec2-base-superb-er": KnownJudge(
        "emotion", "hub", "apache-2.0", 16_000, "441a7599c3b22107314dcbd9166621c5c83f2cc5", _IEMOCAP, ("IEMOCAP",)
    ),
    "firdhokk/speech-emotion-recognition-with-openai-whisper-large-v3": KnownJudge(
        "emotion", "hub", "apache-2.0", 16_000, "83e7cc6cebb3978e4cc314ebad9f1614c177a94a", _EKMAN,
        ("RAVDESS", "SAVEE", "TESS", "URDU"), ("en", "ur"),
    ),
    "emotion2vec/emotion2vec_plus_large": _emotion2vec(
        "27810dc2d2f86f80faeeb11b56a61260841f9201",
        "learned from 42,526 h labelled by its predecessors, the first of which learned from EmoBox's corpora",
        _EMOTION2VEC,
    ),
    "emotion2vec/emotion2vec_plus_base": _emotion2vec(
        "b318240bfe67db81a8c572ecb37ce9c3759b81c9",
        "learned from 4,788 h labelled by its predecessor, which learned from EmoBox's corpora",
        _EMOTION2VEC,
    ),
    "emotion2vec/emotion2vec_plus_seed": _emotion2vec(
        None,
        "learned from 201 h of academic corpora out of EmoBox (arXiv 2406.07162), it isn't said which; not pinned, "
        "because its list of labels changed from five to nine at a commit that isn't known here",
    ),
    "speechbrain/emotion-recognition-wav2vec2-IEMOCAP": KnownJudge(
        "emotion", "hub", "apache-2.0", 16_000, "2384ca84857782409803eebc9349acb106e4232d", _IEMOCAP, ("IEMOCAP",),
        layout="speechbrain",
    ),
    # Emotion's dimensions.
    "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim": KnownJudge(
        "dimensions", "hub", "cc-by-nc-sa-4.0", 16_000, "8e3d0e563eeab584c131afcb65641492b14be7fb",
        {"arousal": "arousal", "dominance": "dominance", "valence": "valence"}, ("MSP-Podcast",),
        scale="about 0 to 1 each", note="non-commercial licence: for research only",
    ),
    # Words.
    "openai/whisper-tiny": _whisper("169d4a4341b33bc18d8881c4b69c2e104e1cc0af"),
    "openai/whisper-base.en": _whisper("911407f4214e0e1d82085af863093ec0b66f9cd6", is_english=True),
    "openai/whisper-small": _whisper("973afd24965f72e36ca33b3055d56a652f456b4d"),
    "openai/whisper-medium": _whisper("abdf7c39ab9d0397620ccaea8974cc764cd0953e"),
    "openai/whisper-large-v2": _whisper("ae4642769ce2ad8fc292556ccea8e901f1530655"),
    "openai/whisper-large-v3": _whisper("06f233fe06e710322aca913c1bc4249a0d71fce1", hours="5 million"),
    "openai/whisper-large-v3-turbo": _whisper(
        "41f01f3fe87f28c78e2fbf8b568835947dd65ed9", hours="5 million", licence="mit"
    ),
    "facebook/wav2vec2-base-960h": KnownJudge(
        "words", "hub", "apache-2.0", 16_000, "7ee7fd3d1158795356cccf9cbb6965dbd4009182", heard=("LibriSpeech",)
    ),
    # Voices.
    "microsoft/wavlm-base-plus-sv": KnownJudge(
        "voice", "hub", "cc-by-sa-3.0", 16_000, "feb593a6c23c1cc3d9510425c29b0a14d2b07b1e",
        heard=("VoxCeleb1", "Libri-Light", "GigaSpeech", "VoxPopuli"), scale="cosine, -1 to 1",
        note="the licence is that of its authors' code repository, which its card points to",
    ),
    "speechbrain/spkrec-ecapa-voxceleb": KnownJudge(
        "voice", "hub", "apache-2.0", 16_000, "5c0be3875fda05e81f3c004ed8c7c06be308de1e",
        heard=("VoxCeleb1", "VoxCeleb2"), scale="cosine, -1 to 1", layout="speechbrain",
    ),
    BUNDLED_VOICE: KnownJudge(
        "voice", "bundled", "apache-2.0", 16_000, None, heard=("LibriSpeech", "VoxCeleb1", "VoxCeleb2"),
        scale="cosine, 0 to 1",
    ),
    # Quality.
    "dnsmos": KnownJudge("quality", "bundled", "MIT", 16_000, None, languages=("many",), scale="1 to 5"),
    "distillmos": KnownJudge(
        "quality", "package", "MIT", 16_000, None, languages=("many",), scale="1 to 5 (may leave it)"
    ),
    "Blinorot/UTMOS-PyTorch": KnownJudge(
        "quality", "hub", "mit", 16_000, None, scale="1 to 5 (may leave it)",
        note=f"{_UTMOS}; not pinned, because it isn't known here which commit the file came with",
        script=Script("utmos", "utmos_scripted.pt"),
    ),
    "balacoon/utmos": KnownJudge(
        "quality", "hub", "mit", 16_000, "b44d848644aa5d89a6e4f180ea50452d8c162db2", scale="1 to 5 (may leave it)",
        note=f"{_UTMOS}; traced on a GPU, which it may need", script=Script("utmos", "utmos.jit", "int16"),
    ),
    "nisqa": KnownJudge(
        "quality", "local", "cc-by-nc-sa-4.0", 48_000, None, languages=None, scale="1 to 5 (may leave it)",
        note="non-commercial licence: for research only",
        script=Script("nisqa", None, outputs=("mos", "noisiness", "discontinuity", "coloration", "loudness")),
    ),
}  # fmt: skip

SCRIPTS = {"utmos": "Blinorot/UTMOS-PyTorch", "nisqa": "nisqa"}
"""Short names of quality judges that are TorchScript files."""


def known_script(name: str, file: str) -> KnownJudge:
    """The entry for a local file named `name` of `SCRIPTS`: that of the repository whose file has its name."""
    entries = (known for known in KNOWN_JUDGES.values() if known.script and known.script.name == name)
    return next((known for known in entries if known.script and known.script.file == file), KNOWN_JUDGES[SCRIPTS[name]])
