from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
)

import tiny_judges
from affetto.errors import JudgeError, MissingDependencyError
from affetto.judges import choice, embeddings
from affetto.judges.choice import check_choices, choose_judges, default_judge, load_judge
from affetto.judges.kinds import KINDS, Judges
from evaluate_fakes import RATE, SOUNDS, voice

LABELS = ("hap", "sad", "neu")
OFF = {"emotion": "none", "words": "none", "quality": "none"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Classifiers of four kinds: samples without a mask, a filter bank with one, one window, and no average."""
    root = tmp_path_factory.mktemp("j")
    return {
        "wav2vec2": tiny_judges.group_norm_emotion(root / "wav2vec2", LABELS),
        "wav2vec2-bert": tiny_judges.bert_emotion(root / "bert", LABELS),
        "whisper": tiny_judges.whisper_emotion(root / "whisper", LABELS),
        "ast": _ast(root / "ast"),
    }


def _ast(folder: Path) -> Path:
    torch.manual_seed(8)
    config = ASTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_length=128,
        num_mel_bins=32, id2label=dict(enumerate(LABELS)), label2id={name: index for index, name in enumerate(LABELS)},
    )  # fmt: skip
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(max_length=128, num_mel_bins=32).save_pretrained(folder)
    return folder


def _whole(folder: Path) -> tuple[torch.nn.Module, object]:
    model = AutoModelForAudioClassification.from_pretrained(folder).eval()
    return model, AutoFeatureExtractor.from_pretrained(folder)


def _unit(vector: torch.Tensor) -> np.ndarray:
    return (vector / vector.norm()).numpy()


@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2-bert"])
def test_a_vector_is_the_projected_last_states_mean_by_which_the_model_itself_decides(
    folders: dict[str, Path], name: str
) -> None:
    model, extractor = _whole(folders[name])
    body = getattr(model, name.replace("-", "_"))
    found = load_judge("embedding", folders[name]).embed(SOUNDS)
    for sound, ours in zip(SOUNDS, found, strict=True):
        inputs = extractor(sound, sampling_rate=RATE, return_tensors="pt")
        with torch.inference_mode():
            states_TD = body(**inputs).last_hidden_state[0]
            mask = inputs.get("attention_mask")
            real_T = torch.ones(len(states_TD)).bool() if mask is None else mask[0].bool()
            pooled_D = model.projector(states_TD[real_T]).mean(dim=0)
            assert torch.allclose(model.classifier(pooled_D), model(**inputs).logits[0], atol=1e-5)
        np.testing.assert_allclose(ours, _unit(pooled_D), atol=1e-5)
    assert min(float(found[0] @ other) for other in found[1:]) < 0.9999, "vectors all alike would pass anything"


def test_of_one_window_only_the_frames_that_are_sound_are_averaged(folders: dict[str, Path]) -> None:
    model, extractor = _whole(folders["whisper"])
    judge = load_judge("embedding", folders["whisper"])
    long = np.concatenate([SOUNDS[3], SOUNDS[0]])
    num_real = {0.4: 20, 0.405: 21, 1.0: 50, len(long) / RATE: 50}  # of 50 frames of 20 ms in a window of a second
    for sound, wanted in zip(
        (voice(120, 0.4), voice(120, 0.405), voice(120, 1.0), long), num_real.values(), strict=True
    ):
        with torch.inference_mode():
            inputs = extractor(sound, sampling_rate=RATE, return_tensors="pt")
            states_TD = model.projector(model.encoder(inputs.input_features).last_hidden_state[0])
        assert len(states_TD) == 50
        (ours,) = judge.embed([sound])
        np.testing.assert_allclose(ours, _unit(states_TD[:wanted].mean(dim=0)), atol=1e-5)
        if wanted < 50:
            assert np.abs(ours - _unit(states_TD.mean(dim=0))).max() > 1e-3, "padding is in it"


def test_where_the_model_averages_nothing_the_vector_is_what_its_head_is_given(folders: dict[str, Path]) -> None:
    model, extractor = _whole(folders["ast"])
    (ours,) = load_judge("embedding", folders["ast"]).embed(SOUNDS[:1])
    with torch.inference_mode():
        inputs = extractor(SOUNDS[0], sampling_rate=RATE, return_tensors="pt")
        pooled_D = model.audio_spectrogram_transformer(**inputs).pooler_output[0]
    np.testing.assert_allclose(ours, _unit(pooled_D), atol=1e-5)


@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2-bert", "whisper", "ast"])
def test_company_changes_no_vector_and_none_is_left_behind(folders: dict[str, Path], name: str) -> None:
    judge = load_judge("embedding", folders[name])
    together, alone = judge.embed(SOUNDS[::-1])[::-1], [judge.embed([sound])[0] for sound in SOUNDS]
    np.testing.assert_array_equal(np.array(together), np.array(alone))
    assert np.linalg.norm(np.array(alone), axis=1) == pytest.approx(np.ones(len(SOUNDS)))
    assert (judge.tier, judge.sample_rate, judge.labels) == ("local", RATE, ("happy", "sad", "neutral"))


def test_a_sound_without_a_frame_has_no_vector(folders: dict[str, Path]) -> None:
    for name in ("wav2vec2", "wav2vec2-bert", "ast"):
        judge = load_judge("embedding", folders[name])
        lengths = [0, 1, 40, 160, 320, 399, 400, 401, 559, 560, 800]
        found = [judge.embed([voice(150, 1.0)[:length]])[0] is not None for length in lengths]
        assert found == sorted(found), "longer is never worse"
        assert not found[1]
        assert found[-1]
    assert load_judge("embedding", folders["whisper"]).embed([np.zeros(0, dtype=np.float32)]) == [None]


def test_the_miniatures_are_its_emotion_judges_and_keep_its_name() -> None:
    try:
        judge = load_judge("embedding", "miniature")
    except MissingDependencyError:
        pytest.skip("the miniature's judges aren't here")
    assert (judge.id, judge.tier) == (default_judge("emotion").id, "miniature")
    assert judge.labels == default_judge("emotion").labels
    low, high = judge.embed([voice(110, 1.0), voice(300, 1.0)])
    assert low is not None
    assert high is not None
    assert float(low @ high) < 0.99


def test_nothing_is_embedded_unless_somebody_asks() -> None:
    assert "embedding" in KINDS
    chosen = choose_judges(OFF, "happy")
    assert chosen.embedding is None
    assert "mimicry" in chosen.reason("embedding")
    assert "--judge embedding=" in chosen.reason("embedding")
    assert Judges().embedding is None


def test_what_cannot_tell_emotions_apart_is_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(JudgeError, match="naturalness apart, none of which is an emotion"):
        load_judge("embedding", tiny_judges.regressor(tmp_path / "regressor"))
    with pytest.raises(JudgeError, match="would stay random"):
        load_judge("embedding", tiny_judges.whisper_words(tmp_path / "words"))
    with pytest.raises(JudgeError, match="can't load"):
        load_judge("embedding", tiny_judges.wavlm_voice(tmp_path / "voice"))
    with pytest.raises(JudgeError, match="there is no folder"):
        load_judge("embedding", tmp_path / "nowhere")
    chosen = {**OFF, "embedding": str(folders["wav2vec2"])}
    for refuse in (lambda: choose_judges(chosen, "fearful"), lambda: check_choices(chosen, ["happy", "fearful"])):
        with pytest.raises(JudgeError, match=r"embedding judge local/.* can't hear 'fearful'.*--judge embedding=none"):
            refuse()
    assert choose_judges(chosen, "happy").embedding is not None
    assert choose_judges({**chosen, "embedding": "none"}, "fearful").reason("embedding").endswith("switched off")


def test_hub_judges_of_emotion_are_accepted_and_others_say_why_not() -> None:
    source = choice.find_source("embedding", "superb/wav2vec2-base-superb-er")
    assert source == choice.find_source("emotion", "superb/wav2vec2-base-superb-er")
    with pytest.raises(JudgeError, match="microsoft/wavlm-base-plus-sv judges voice, not embedding"):
        load_judge("embedding", "microsoft/wavlm-base-plus-sv")
    with pytest.raises(JudgeError, match="judges emotion, not voice"):
        load_judge("voice", "superb/wav2vec2-base-superb-er")


def test_a_model_without_a_last_layer_is_refused(folders: dict[str, Path]) -> None:
    model, extractor = _whole(folders["wav2vec2"])
    del model.classifier
    source = choice.Source("x", "local/x", "local", None)
    with pytest.raises(JudgeError, match="no last layer"):
        embeddings.EmbeddingListener(model, extractor, source, "cpu")
