"""affetto's emotion2vec and SpeechBrain judges against the toolkits that publish them, number by number.

    pip install funasr speechbrain torchaudio
    OMP_NUM_THREADS=1 python benchmarks/parity/judges.py

Both toolkits build their own network with random weights and write them as their hub checkpoints are laid out; affetto
reads these files and judges the same sounds. emotion2vec at its base's size (768 channels, 4 + 8 blocks, 12 heads) and
in variants of every option that its configuration has; wav2vec 2.0 at its base's size. No published weights are
needed, and none were at hand. Writes `benchmarks/results/parity_judges.json` and prints a table.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from affetto.files import write_json
from affetto.judges.choice import load_judge

RESULT = Path(__file__).parents[1] / "results" / "parity_judges.json"
LABELS = ("生气/angry", "开心/happy", "中立/neutral", "unuse_0", "难过/sad", "<unk>")
SECONDS = (0.3, 1.0, 2.37, 4.0)
AUDIO: dict[str, Any] = {
    "type": "AUDIO", "prenet_depth": 4, "prenet_layerdrop": 0.05, "prenet_dropout": 0.1, "start_drop_path_rate": 0.0,
    "end_drop_path_rate": 0.0, "num_extra_tokens": 10, "init_extra_token_zero": True, "mask_noise_std": 0.01,
    "local_grad_mult": 1.0, "use_alibi_encoder": True, "alibi_scale": 1.0, "learned_alibi": False,
    "alibi_max_pos": None, "learned_alibi_scale": True, "learned_alibi_scale_per_head": True,
    "learned_alibi_scale_per_layer": False, "num_alibi_heads": 12, "model_depth": 8, "extractor_mode": "layer_norm",
    "feature_encoder_spec": "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]", "conv_pos_width": 95,
    "conv_pos_groups": 16, "conv_pos_depth": 5, "conv_pos_pre_ln": False, "decoder": None,
}  # fmt: skip
MODEL: dict[str, Any] = {
    "depth": 8, "start_drop_path_rate": 0.0, "end_drop_path_rate": 0.0, "num_heads": 12, "norm_eps": 1e-5,
    "norm_affine": True, "encoder_dropout": 0.1, "post_mlp_drop": 0.1, "attention_dropout": 0.1,
    "activation_dropout": 0.0, "dropout_input": 0.0, "layerdrop": 0.05, "embed_dim": 768, "mlp_ratio": 4.0,
    "layer_norm_first": False, "end_of_block_targets": False, "average_top_k_layers": 8, "clone_batch": 8,
    "loss_beta": 0.0, "loss_scale": None, "normalize": True,
}  # fmt: skip
SMALL: dict[str, Any] = {"embed_dim": 96, "depth": 2, "num_heads": 6}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as emotion2vec's base": ({}, {}),
    "pre-norm blocks": ({**SMALL, "layer_norm_first": True}, {"num_alibi_heads": 6}),
    "a scale per layer, for all heads": (
        SMALL, {"num_alibi_heads": 6, "learned_alibi_scale_per_layer": True, "learned_alibi_scale_per_head": False}
    ),
    "fewer heads with a bias": (SMALL, {"num_alibi_heads": 3}),
    "no bias, no extra tokens": (SMALL, {"use_alibi_encoder": False, "num_extra_tokens": 0}),
    "group norm, even kernel, norm before positions": (
        {**SMALL, "normalize": False},
        {"num_alibi_heads": 6, "extractor_mode": "default", "conv_pos_width": 24, "conv_pos_depth": 4,
         "conv_pos_pre_ln": True},
    ),
}  # fmt: skip


def main() -> None:
    """Compare, print and write."""
    from facts import run_facts

    rng = np.random.default_rng(0)
    sounds = [rng.normal(0, 0.1, int(16_000 * seconds)).astype(np.float32) for seconds in SECONDS]
    rows = [emotion2vec(name, *changes, sounds) for name, changes in VARIANTS.items()] + [speechbrain(sounds)]
    write_json(RESULT, run_facts() | {"toolkits": _toolkits(), "seconds": list(SECONDS), "parity": rows})
    for row in rows:
        print(
            f"{row['judge']}, {row['name']}: posteriors differ by at most {row['posteriors']:.1e}, "
            f"vectors by {row['vectors']:.1e} of their length"
        )


def emotion2vec(
    name: str, model: dict[str, Any], audio: dict[str, Any], sounds: Sequence[NDArray[np.float32]]
) -> dict[str, Any]:
    """FunASR's class and ours on `sounds`."""
    from funasr.models.emotion2vec.model import Emotion2vec
    from omegaconf import OmegaConf

    conf = {**MODEL, **model}
    conf["modalities"] = {"audio": {**AUDIO, "model_depth": conf["depth"], **audio}}
    torch.manual_seed(0)
    theirs = Emotion2vec(model_conf=OmegaConf.create(conf), vocab_size=len(LABELS)).eval()
    _stir(theirs)
    with TemporaryDirectory() as place:
        folder = Path(place)
        torch.save({"model": theirs.state_dict()}, folder / "model.pt")
        written = {"model": "Emotion2vec", "model_conf": conf}
        (folder / "config.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
        (folder / "tokens.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")
        ours, vectors = load_judge("emotion", folder), load_judge("embedding", folder)
    posteriors, units = [], []
    used = [index for index, label in enumerate(LABELS) if not label.startswith("unuse")]
    with torch.inference_mode():
        for sound in sounds:
            source = torch.from_numpy(sound)
            if conf["normalize"]:
                source = torch.nn.functional.layer_norm(source, source.shape)
            mean = theirs.extract_features(source[None])["x"].mean(dim=1)
            posteriors.append(theirs.proj(mean)[0, used].softmax(dim=0).double().numpy())
            units.append((mean[0] / mean[0].norm()).double().numpy())
    return {"judge": "emotion2vec", "name": name} | _differences(ours, vectors, sounds, posteriors, units)


def speechbrain(sounds: Sequence[NDArray[np.float32]]) -> dict[str, Any]:
    """SpeechBrain's parts, put together as the judge's own interface does, and ours."""
    from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
    from speechbrain.nnet.linear import Linear
    from speechbrain.nnet.pooling import StatisticsPooling
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    names = ("neu", "ang", "hap", "sad")
    with TemporaryDirectory() as place:
        base, folder = Path(place) / "base", Path(place) / "judge"
        torch.manual_seed(0)
        Wav2Vec2Model(Wav2Vec2Config()).save_pretrained(base)
        Wav2Vec2FeatureExtractor().save_pretrained(base)
        body = Wav2Vec2(str(base), str(Path(place) / "saved"), output_norm=True).eval()
        pooling, head = StatisticsPooling(return_std=False), Linear(input_size=768, n_neurons=4, bias=False)
        _stir(head, 0.1)
        folder.mkdir()
        torch.save(body.state_dict(), folder / "wav2vec2.ckpt")
        torch.save(torch.nn.ModuleList([head]).state_dict(), folder / "model.ckpt")
        lines = "".join(f"'{label}' => {index}\n" for index, label in enumerate(names))
        (folder / "label_encoder.txt").write_text(f"{lines}================\n'starting_index' => 0\n", encoding="utf-8")
        (folder / "hyperparams.yaml").write_text(
            "wav2vec2: !new:speechbrain.lobes.models.huggingface_transformers.wav2vec2.Wav2Vec2\n"
            "    source: !ref <wav2vec2_hub>\n    output_norm: True\n"
            "avg_pool: !new:speechbrain.nnet.pooling.StatisticsPooling\n    return_std: False\n",
            encoding="utf-8",
        )
        ours, vectors = load_judge("emotion", folder), load_judge("embedding", folder)
    posteriors, units = [], []
    with torch.inference_mode():
        for sound in sounds:
            mean = pooling(body(torch.from_numpy(sound)[None]), torch.ones(1))[0]
            posteriors.append(head(mean)[0].softmax(dim=0).double().numpy())
            units.append((mean[0] / mean[0].norm()).double().numpy())
    return {"judge": "SpeechBrain's", "name": "wav2vec 2.0, base"} | _differences(
        ours, vectors, sounds, posteriors, units
    )


def _differences(
    ours: Any, vectors: Any, sounds: Sequence[NDArray[np.float32]], posteriors: list[Any], units: list[Any]
) -> dict[str, float]:
    """The largest differences, and how far the toolkit's own posteriors lie apart between the sounds."""
    judged, embedded = ours.posteriors(sounds), vectors.embed(sounds)
    assert judged.shape == (len(sounds), len(posteriors[0]))
    return {
        "posteriors": float(np.abs(judged - np.array(posteriors)).max()),
        "vectors": float(max(np.abs(one - other).max() for one, other in zip(embedded, units, strict=True))),
        "posteriors_spread": float(np.ptp(np.array(posteriors), axis=0).max()),
    }


def _stir(model: torch.nn.Module, size: float = 0.05) -> None:
    """Move every weight away from where it starts, so that none of them (norms, scales, tokens) is neutral."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def _toolkits() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("funasr", "speechbrain")}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
