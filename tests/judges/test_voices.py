from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model, WavLMForXVector

import tiny_judges
from affetto.errors import JudgeError, MissingDependencyError
from affetto.judges import choice as judges
from affetto.judges import voices
from affetto.judges.choice import Source, load_judge
from evaluate_fakes import RATE, SOUNDS, voice


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_judges.wavlm_voice(tmp_path_factory.mktemp("j") / "wavlm-sv")


@pytest.fixture(scope="module")
def dimensional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_judges.dimensions(tmp_path_factory.mktemp("j") / "dimensional")


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
def test_vectors_are_those_of_transformers_own_call(wavlm: Path) -> None:
    judge = load_judge("voice", wavlm)
    assert (judge.tier, judge.sample_rate) == ("local", RATE)
    model, extractor = WavLMForXVector.from_pretrained(wavlm).eval(), Wav2Vec2FeatureExtractor.from_pretrained(wavlm)
    found = judge.embed(SOUNDS)
    with torch.inference_mode():
        for sound, ours in zip(SOUNDS, found, strict=True):
            theirs = model(**extractor(sound, sampling_rate=RATE, return_tensors="pt")).embeddings[0]
            theirs = torch.nn.functional.normalize(theirs, dim=-1)
            assert ours is not None
            np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    cosines = [float(found[0] @ other) for other in found[1:]]  # type: ignore[operator]
    assert min(cosines) < 0.999, "voices that are all alike would pass anything"


def test_company_changes_no_vector(wavlm: Path) -> None:
    judge = load_judge("voice", wavlm)
    together, alone = judge.embed(SOUNDS), [judge.embed([sound])[0] for sound in SOUNDS]
    np.testing.assert_array_equal(np.array(together), np.array(alone))


def test_a_sound_without_spread_has_no_vector(wavlm: Path) -> None:
    judge = load_judge("voice", wavlm)
    assert isinstance(judge, voices.XVectorListener)
    lengths = range(400, 4000, 40)
    frames = [int(judge.model._get_feat_extract_output_lengths(torch.tensor(length))) for length in lengths]
    enough = next(length for length, count in zip(lengths, frames, strict=True) if count >= judge.fewest_frames)
    assert judge.embed([voice(150, 1.0)[:200]]) == [None]
    short, long = judge.embed([voice(150, 1.0)[: enough - 80], voice(150, 1.0)[:enough]])
    assert short is None
    assert long is not None


def test_what_cannot_tell_speakers_apart_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="can't tell speakers apart"):
        load_judge("voice", tiny_judges.whisper_words(tmp_path / "whisper"))
    with pytest.raises(JudgeError, match="can't load"):
        load_judge("voice", tiny_judges.group_norm_emotion(tmp_path / "emotion", ("happy", "sad")))


def test_ecapa_needs_speechbrain_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voices.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError, match="pip install speechbrain"):
        load_judge("voice", "speechbrain/spkrec-ecapa-voxceleb")


def test_ecapa_is_asked_for_its_pinned_revision_one_sound_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    class EncoderClassifier:
        @classmethod
        def from_hparams(cls, source: str, run_opts: object, revision: str) -> EncoderClassifier:
            asked.extend([source, run_opts, revision])
            return cls()

        def encode_batch(self, sounds: torch.Tensor) -> torch.Tensor:
            assert sounds.shape[0] == 1
            return torch.stack([sounds.mean(dim=1) + 3, sounds.std(dim=1) * 0 + 4], dim=1)[:, None]

    module = types.ModuleType("speechbrain.inference.speaker")
    module.EncoderClassifier = EncoderClassifier  # type: ignore[attr-defined]
    monkeypatch.setattr(voices.importlib.util, "find_spec", lambda _name: object())
    for name in ("speechbrain", "speechbrain.inference"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "speechbrain.inference.speaker", module)
    judge = load_judge("voice", "speechbrain/spkrec-ecapa-voxceleb")
    revision = judges.KNOWN_JUDGES["speechbrain/spkrec-ecapa-voxceleb"].revision
    assert asked == ["speechbrain/spkrec-ecapa-voxceleb", {"device": "cpu"}, revision]
    assert judge.id == f"speechbrain/spkrec-ecapa-voxceleb@{revision}"
    vector, too_short = judge.embed([voice(120, 1.0), voice(120, 0.05)])
    np.testing.assert_allclose(vector, [0.6, 0.8], atol=1e-3)  # type: ignore[arg-type]
    assert too_short is None


def test_dimensions_are_those_of_the_layers_written_out(dimensional: Path) -> None:
    judge = load_judge("dimensions", dimensional)
    weights = torch.load(dimensional / "pytorch_model.bin", weights_only=True)
    body = Wav2Vec2Model.from_pretrained(dimensional, key_mapping={"^wav2vec2.": ""}).eval()
    assert torch.equal(
        body.encoder.layers[0].attention.q_proj.weight, weights["wav2vec2.encoder.layers.0.attention.q_proj.weight"]
    )
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(dimensional)
    found = judge.measure(SOUNDS)
    for sound, ours in zip(SOUNDS, found, strict=True):
        with torch.inference_mode():
            inputs = extractor(sound, sampling_rate=RATE, return_tensors="pt").input_values
            pooled = body(inputs).last_hidden_state[0].mean(dim=0)
        hidden = torch.tanh(weights["classifier.dense.weight"] @ pooled + weights["classifier.dense.bias"])
        theirs = weights["classifier.out_proj.weight"] @ hidden + weights["classifier.out_proj.bias"]
        assert list(ours.values()) == pytest.approx(theirs.tolist(), abs=1e-4)
        assert list(ours) == ["arousal", "dominance", "valence"]
    assert len({round(values["valence"], 3) for values in found}) > 1


def test_dimensions_are_read_by_name(tmp_path: Path, dimensional: Path) -> None:
    turned = tiny_judges.dimensions(tmp_path / "turned", ("valence", "arousal", "dominance"))
    straight, other = (load_judge("dimensions", folder).measure(SOUNDS[:1])[0] for folder in (dimensional, turned))
    assert other["valence"] == pytest.approx(straight["arousal"])
    assert other["arousal"] == pytest.approx(straight["dominance"])


def test_what_has_no_dimensions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="no output named dominance, valence"):
        load_judge("dimensions", tiny_judges.dimensions(tmp_path / "half", ("arousal", "calm")))
    with pytest.raises(JudgeError, match="whisper model"):
        load_judge("dimensions", tiny_judges.whisper_words(tmp_path / "whisper"))
    with pytest.raises(JudgeError, match="would stay random"):
        load_judge("dimensions", tiny_judges.group_norm_emotion(tmp_path / "emotion", ("happy", "sad", "angry")))


def test_no_such_judge_comes_with_affetto_and_the_reason_names_one() -> None:
    off = {"emotion": "none", "words": "none", "quality": "none"}
    chosen = judges.choose_judges(off, "happy")
    assert chosen.dimensions is None
    assert "non-commercial" in chosen.reason("dimensions")


def test_the_dimensional_models_licence_is_told() -> None:
    known = judges.KNOWN_JUDGES["audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim"]
    assert "non-commercial" in str(known.note)
    source = judges.find_source("dimensions", "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim")
    assert (source.licence, source.known) == ("cc-by-nc-sa-4.0", known)


def test_vectors_without_length_are_an_error() -> None:
    with pytest.raises(JudgeError, match="length 0"):
        voices.to_unit(np.zeros(3), "x")
    with pytest.raises(JudgeError, match="length nan"):
        voices.to_unit(np.array([1.0, np.nan]), "x")


def test_a_folder_with_speechbrains_parameters_is_speechbrains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hyperparams.yaml").write_text("x: 1")
    monkeypatch.setattr(voices.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError, match="SpeechBrain"):
        voices.load_voice(Source(str(tmp_path), "local/x", "local", None), "cpu")
