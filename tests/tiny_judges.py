"""Random transformers models of the classes that judges have, small enough to build in a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertForCTC,
    Wav2Vec2BertForSequenceClassification,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMForXVector,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

_SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip


def _sharpen(model: torch.nn.Module) -> None:
    """Larger weights than at the usual start, so that outputs depend visibly on the input."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)


def bert_emotion(folder: Path, labels: tuple[str, ...]) -> Path:
    torch.manual_seed(1)
    config = Wav2Vec2BertConfig(
        **_SIZES, feature_projection_input_dim=160, classifier_proj_size=16, id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )  # fmt: skip
    model = Wav2Vec2BertForSequenceClassification(config)
    _sharpen(model)
    model.save_pretrained(folder)
    SeamlessM4TFeatureExtractor().save_pretrained(folder)
    return folder


def _tokenizer(folder: Path, letters: str = "abcdefghijklmnopqrstuvwxyz'") -> Wav2Vec2CTCTokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", "|", *letters]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
    return Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))


def bert_words(folder: Path) -> Path:
    torch.manual_seed(2)
    tokenizer = _tokenizer(folder)
    model = Wav2Vec2BertForCTC(
        Wav2Vec2BertConfig(**_SIZES, feature_projection_input_dim=160, vocab_size=len(tokenizer), pad_token_id=0)
    )
    _sharpen(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SeamlessM4TFeatureExtractor().save_pretrained(folder)
    return folder


def group_norm_emotion(folder: Path, labels: tuple[str, ...]) -> Path:
    """The kind whose padding can't be masked (wav2vec 2.0 base)."""
    torch.manual_seed(3)
    config = Wav2Vec2Config(
        **_SIZES, conv_dim=(16, 16, 16), conv_kernel=(10, 3, 3), conv_stride=(5, 4, 4), num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2, feat_extract_norm="group", classifier_proj_size=16,
        id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)},
    )  # fmt: skip
    Wav2Vec2ForSequenceClassification(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    return folder


def group_norm_words(folder: Path) -> Path:
    """A recogniser as wav2vec2-base-960h is: no mask, and letters in upper case."""
    torch.manual_seed(7)
    tokenizer = _tokenizer(folder, "ETAONIHSRDLUMWCFGYPBVK'XJQZ")
    config = Wav2Vec2Config(**_SIZES, **_CONV, feat_extract_norm="group", vocab_size=len(tokenizer), pad_token_id=0)
    model = Wav2Vec2ForCTC(config)
    _sharpen(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    return folder


def whisper_words(folder: Path) -> Path:
    """Whisper with a one-second window and a tokenizer of single letters."""
    torch.manual_seed(4)
    folder.mkdir(parents=True, exist_ok=True)
    letters = [*"abcdefghijklmnopqrstuvwxyz", "Ġ"]
    tokenizer = WhisperTokenizer(vocab={letter: index for index, letter in enumerate(letters)}, merges=[])
    tokenizer.add_tokens(["<|endoftext|>", "<|startoftranscript|>"], special_tokens=True)
    end, start = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|startoftranscript|>"])
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=50,
        max_target_positions=16, pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start,
        begin_suppress_tokens=None, suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    _sharpen(model)
    model.generation_config.max_length = 12
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=1).save_pretrained(folder)
    return folder


def whisper_emotion(folder: Path, labels: tuple[str, ...]) -> Path:
    """A classifier with a window of one second, as the miniature's is of five."""
    torch.manual_seed(9)
    config = WhisperConfig(
        vocab_size=8, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=50,
        classifier_proj_size=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)},
    )  # fmt: skip
    model = WhisperForAudioClassification(config)
    _sharpen(model)
    model.save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=1).save_pretrained(folder)
    return folder


_CONV: dict[str, Any] = {
    "conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 3), "conv_stride": (5, 4, 4), "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


def wavlm_voice(folder: Path) -> Path:
    torch.manual_seed(5)
    config = WavLMConfig(
        **_SIZES, **_CONV, feat_extract_norm="group", tdnn_dim=(16, 16, 16, 16, 32), tdnn_kernel=(5, 3, 3, 1, 1),
        tdnn_dilation=(1, 2, 3, 1, 1), xvector_output_dim=8,
    )  # fmt: skip
    model = WavLMForXVector(config)
    _sharpen(model)
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return folder


def dimensions(folder: Path, labels: tuple[str, ...] = ("arousal", "dominance", "valence")) -> Path:
    """Weights named as in the published dimensional model: a wav2vec 2.0, `classifier.dense`, `classifier.out_proj`."""
    torch.manual_seed(6)
    config = Wav2Vec2Config(
        **_SIZES, **_CONV, feat_extract_norm="layer", conv_bias=True, do_stable_layer_norm=True, final_dropout=0.1,
        architectures=["Wav2Vec2ForSpeechClassification"], problem_type="regression", id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )  # fmt: skip
    body = Wav2Vec2Model(config)
    _sharpen(body)
    weights = {f"wav2vec2.{name}": value for name, value in body.state_dict().items()}
    size = _SIZES["hidden_size"]
    weights |= {
        "classifier.dense.weight": torch.randn(size, size) / 4, "classifier.dense.bias": torch.randn(size),
        "classifier.out_proj.weight": torch.randn(len(labels), size) / 4,
        "classifier.out_proj.bias": torch.randn(len(labels)),
    }  # fmt: skip
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    torch.save(weights, folder / "pytorch_model.bin")
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return folder


def regressor(folder: Path) -> Path:
    """A score of its own, as an audio classifier with one label."""
    return group_norm_emotion(folder, ("naturalness",))
