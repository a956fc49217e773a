"""Judges that are known by name: what they hear, how they call it, where they learned it, and who may use them.

A judge that was trained on the corpus under test flatters; `heard` says which corpora each knows. Any other model that
transformers can load works as well; its labels are then read by `labels.to_affetto`, and what isn't known of it is
null in the results. Licences and label orders are from the models' cards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from affetto.judges.kinds import Kind, Tier


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
    languages: tuple[str, ...] = ("en",)
    """What it was trained for; `many` where they are too many to list."""
    scale: str | None = None
    """What its numbers mean."""
    note: str | None = None
    """What a reader of its numbers must know."""
    layout: Literal["transformers", "funasr", "speechbrain"] = "transformers"
    """Whose files it is published as. All are run without that toolkit, but SpeechBrain's judge of voices."""

    @property
    def is_non_commercial(self) -> bool:
        """Whether its licence forbids commercial use."""
        return "-nc" in self.licence.lower()


BUNDLED_VOICE = "ge2e"
"""The voice judge that comes with affetto: `speaker_encoder`."""

_IEMOCAP = {"neu": "neutral", "hap": "happy", "ang": "angry", "sad": "sad"}
"""Here `hap` includes excited; there is no fear and no surprise."""
_EKMAN = {
    "angry": "angry", "disgust": "disgusted", "fearful": "fearful", "happy": "happy", "neutral": "neutral",
    "sad": "sad", "surprised": "surprised",
}  # fmt: skip
_EMOTION2VEC = {
    "angry": "angry", "disgusted": "disgusted", "fearful": "fearful", "happy": "happy", "neutral": "neutral",
    "other": "other", "sad": "sad", "surprised": "surprised", "<unk>": "other",
}  # fmt: skip
_WEB = "680,000 h (large-v3: 5 million h) of speech from the web, not listed"


def _whisper(revision: str, *, is_english: bool = False, licence: str = "apache-2.0") -> KnownJudge:
    languages = ("en",) if is_english else ("many",)
    return KnownJudge("words", "hub", licence, 16_000, revision, heard=(_WEB,), languages=languages)


KNOWN_JUDGES: dict[str, KnownJudge] = {
    # Emotion classes.
    "superb/wav2vec2-base-superb-er": KnownJudge(
        "emotion", "hub", "apache-2.0", 16_000, "441a7599c3b22107314dcbd9166621c5c83f2cc5", _IEMOCAP, ("IEMOCAP",)
    ),
    "firdhokk/speech-emotion-recognition-with-openai-whisper-large-v3": KnownJudge(
        "emotion", "hub", "apache-2.0", 16_000, "83e7cc6cebb3978e4cc314ebad9f1614c177a94a", _EKMAN,
        ("RAVDESS", "SAVEE", "TESS", "URDU"), ("en", "ur"),
    ),
    "emotion2vec/emotion2vec_plus_large": KnownJudge(
        "emotion", "hub", "model-license", 16_000, "27810dc2d2f86f80faeeb11b56a61260841f9201", _EMOTION2VEC,
        languages=("many",), layout="funasr",
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
    "openai/whisper-base.en": _whisper("911407f4214e0e1d82085af863093ec0b66f9cd6", is_english=True),
    "openai/whisper-small": _whisper("973afd24965f72e36ca33b3055d56a652f456b4d"),
    "openai/whisper-medium": _whisper("abdf7c39ab9d0397620ccaea8974cc764cd0953e"),
    "openai/whisper-large-v3": _whisper("06f233fe06e710322aca913c1bc4249a0d71fce1"),
    "openai/whisper-large-v3-turbo": _whisper("41f01f3fe87f28c78e2fbf8b568835947dd65ed9", licence="mit"),
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
        "quality", "bundled", "MIT", 16_000, None, languages=("many",), scale="1 to 5 (may leave it)"
    ),
}  # fmt: skip
