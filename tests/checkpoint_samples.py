"""Tiny emotion judges in other toolkits' layouts, with weights that are the same whatever library draws them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from transformers import Wav2Vec2Config, Wav2Vec2Model

from affetto.judges.emotion2vec import read_shape
from affetto.judges.emotion2vec_network import Emotion2vec

TOKENS = ("生气/angry", "开心/happy", "中立/neutral", "unuse_0", "难过/sad", "<unk>")
EMOTION2VEC: dict[str, Any] = {
    "model": "Emotion2vec",
    "model_conf": {
        "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0, "norm_eps": 1e-5, "layer_norm_first": False,
        "normalize": True,
        "modalities": {"audio": {
            "prenet_depth": 1, "num_extra_tokens": 2, "use_alibi_encoder": True, "num_alibi_heads": 3,
            "learned_alibi": False, "learned_alibi_scale_per_layer": False, "learned_alibi_scale_per_head": True,
            "feature_encoder_spec": "[(8, 10, 5)] + [(8, 3, 4)] * 2", "extractor_mode": "layer_norm",
            "conv_pos_depth": 2, "conv_pos_width": 8, "conv_pos_groups": 2, "conv_pos_pre_ln": False,
        }},
    },
}  # fmt: skip
WAV2VEC2 = Wav2Vec2Config(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=48, conv_dim=[8, 8, 8],
    conv_kernel=[10, 3, 3], conv_stride=[5, 2, 2], apply_spec_augment=False,
)  # fmt: skip
SPEECHBRAIN_LABELS = ("neu", "ang", "hap", "sad")


def sounds() -> list[NDArray[np.float32]]:
    """Noise, and a falling tone."""
    noise = np.random.RandomState(7).standard_normal(4_000) * 0.1
    time_s = np.arange(9_001) / 16_000
    return [noise.astype(np.float32), (0.3 * np.sin(2000 * time_s * (1 - time_s))).astype(np.float32)]


def filled(state: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Weights by name; NumPy's legacy generator is frozen for good."""
    rng = np.random.RandomState(seed)
    found = {}
    for name in sorted(state):
        values = rng.standard_normal(tuple(state[name].shape)) * (0.1 if name.endswith(".bias") else 0.4)
        values += 1.0 if state[name].dim() == 1 and name.endswith(".weight") else 0.0
        found[name] = torch.from_numpy(values.astype(np.float32))
    return found


def emotion2vec(folder: Path, config: dict[str, Any] = EMOTION2VEC, tokens: tuple[str, ...] = TOKENS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    state = filled(Emotion2vec(read_shape(config, "sample"), len(tokens)).state_dict(), 1)
    torch.save({"model": state, "epoch": 3}, folder / "model.pt")
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "tokens.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return folder


def speechbrain(folder: Path, *, output_norm: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    body = filled(Wav2Vec2Model(WAV2VEC2).state_dict(), 2)
    torch.save({f"model.{name}": value for name, value in body.items()}, folder / "wav2vec2.ckpt")
    torch.save(filled({"0.w.weight": torch.empty(len(SPEECHBRAIN_LABELS), 64)}, 3), folder / "model.ckpt")
    lines = [f"'{label}' => {index}" for index, label in enumerate(SPEECHBRAIN_LABELS)]
    (folder / "label_encoder.txt").write_text(
        "\n".join([*reversed(lines), "================", "'starting_index' => 0"]) + "\n", encoding="utf-8"
    )
    (folder / "hyperparams.yaml").write_text(
        "wav2vec2: !new:speechbrain.lobes.models.huggingface_transformers.wav2vec2.Wav2Vec2\n"
        f"    source: !ref <wav2vec2_hub>\n    output_norm: {output_norm}\n"
        "avg_pool: !new:speechbrain.nnet.pooling.StatisticsPooling\n    return_std: False\n"
        "layers: [!ref <a>, 1]\n",
        encoding="utf-8",
    )
    return folder
