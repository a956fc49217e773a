"""Runs in the authors' environment: a tiny random checkpoint in their files, and what their package says of it.

moshi_reference.py FOLDER writes FOLDER/checkpoint (as in kyutai/moshiko-pytorch-bf16, with a config.json) and
FOLDER/reference.safetensors. It imports nothing of affetto.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import sentencepiece
import torch
from moshi.models import loaders
from moshi.models.lm import LMGen
from safetensors.torch import save_file
from torch import Tensor

SENTENCES = [
    "the silver key is under the old bridge", "Hello, world!", "we went home in the rain and laughed",
    "naïve café, 100 % of $5", "what a lovely day it is", "nobody knew where the train would stop",
]  # fmt: skip
TEXTS = [*SENTENCES, "", " two  spaces ", "unseen words: xylophone quartz", "日本 🎉"]
LANGUAGE_MODEL = {
    "dim": 32, "n_q": 8, "dep_q": 4, "card": 32, "num_heads": 4, "num_layers": 2, "context": 40, "depformer_dim": 16,
    "depformer_dim_feedforward": int(4.125 * 16), "depformer_num_heads": 2, "depformer_num_layers": 2,
    "delays": [0, 0, 1, 1, 1, 0, 1, 1, 1],
}  # fmt: skip
BATCH, FRAMES, TEXT_PIECES = 2, 14, 50


def main() -> None:
    """Make the checkpoint, load it with the package, and write what it says."""
    folder = Path(sys.argv[1])
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    text_card = train_text_model(checkpoint)
    config = write_checkpoint(checkpoint, text_card)
    info = loaders.CheckpointInfo.from_hf_repo(
        "local", moshi_weights=checkpoint / "model.safetensors", config_path=checkpoint / "config.json",
        mimi_weights=checkpoint / config["mimi_name"], tokenizer=checkpoint / config["tokenizer_name"],
        mimi_config_path=checkpoint / "mimi.json",
    )  # fmt: skip
    model = info.get_moshi(dtype=torch.float32)
    found = teacher_forced(model) | greedy(model) | mimi(info.get_mimi())
    words = info.get_text_tokenizer()
    for number, text in enumerate(TEXTS):
        found[f"text/{number}"] = torch.tensor(words.encode(text), dtype=torch.int64)
    facts = {"texts": json.dumps(TEXTS), "moshi": "0.2.13", "torch": torch.__version__}
    save_file({name: value.contiguous() for name, value in found.items()}, folder / "reference.safetensors", facts)


def train_text_model(folder: Path) -> int:
    """A SentencePiece model with the published one's special tokens; returns its size."""
    text = folder / "text.txt"
    text.write_text("\n".join(SENTENCES * 5), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer_spm_32k_3"), vocab_size=256 + TEXT_PIECES,
        byte_fallback=True, model_type="unigram", unk_id=0, bos_id=1, eos_id=2, pad_id=3, split_digits=True,
        minloglevel=2,
    )  # fmt: skip
    text.unlink()
    (folder / "tokenizer_spm_32k_3.vocab").unlink()
    return 256 + TEXT_PIECES


def write_checkpoint(folder: Path, text_card: int) -> dict:
    """Random weights in the published files' names and layout (attention of all steps in one matrix)."""
    arguments = {**loaders._lm_kwargs, **LANGUAGE_MODEL, "text_card": text_card}
    names = {
        "model_type": "moshi", "moshi_name": "model.safetensors", "mimi_config_name": "mimi.json",
        "mimi_name": "tokenizer-e351c8d8-checkpoint125.safetensors", "tokenizer_name": "tokenizer_spm_32k_3.model",
    }  # fmt: skip
    config = {**arguments, **names}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    mimi_config = copy.deepcopy(loaders._mimi_config)
    mimi_config["seanet"].update(dimension=32, n_filters=2)
    mimi_config["quantizer"].update(dimension=8, n_q=8, bins=arguments["card"], input_dimension=32, output_dimension=32)
    mimi_config["transformer"].update(
        d_model=32, num_heads=4, num_layers=2, dim_feedforward=48, input_dimension=32, output_dimensions=[32]
    )
    (folder / "mimi.json").write_text(json.dumps(mimi_config, indent=2))
    language_model = loaders.get_moshi_lm(None, arguments, dtype=torch.float32)
    weights = randomised(language_model.state_dict())
    save_file({name: value.bfloat16() for name, value in weights.items()}, folder / "model.safetensors")
    codec = loaders.get_mimi(None, mimi_config, num_codebooks=8)
    save_file(randomised(codec.state_dict()), folder / names["mimi_name"])
    return config


def randomised(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights far from the usual start, rounded as bfloat16 stores them, the attention's fused."""
    drawn, fused = {}, {}
    for name, value in state.items():
        if name.endswith(("_initialized", "cluster_usage")):
            drawn[name] = torch.ones_like(value)
        elif name.endswith("alpha") or "norm" in name or "layer_scale" in name:
            drawn[name] = 1 + 0.3 * torch.randn_like(value)
        elif value.ndim == 1:
            drawn[name] = 0.1 * torch.randn_like(value)
        else:
            drawn[name] = torch.randn_like(value) * 1.2 / value[0].numel() ** 0.5
    rounded = {name: value.bfloat16().float() for name, value in drawn.items()}
    for name in [name for name in rounded if ".in_projs." in name or ".out_projs." in name]:
        fused.setdefault(name.rpartition("s.")[0].replace("_projs", "_proj"), []).append(rounded.pop(name))
    # Published files call the one "in_proj_weight" and the other "out_proj.weight", steps below one another.
    for name, parts in fused.items():
        rounded[name + ("_weight" if name.endswith("in_proj") else ".weight")] = torch.cat(parts)
    return rounded


@torch.no_grad()
def teacher_forced(model) -> dict[str, Tensor]:
    """Logits of `LMModel.forward` on random codes of all streams."""
    card, text_card, streams = model.card, model.text_card, model.num_codebooks
    codes = torch.randint(0, card, (BATCH, streams, FRAMES))
    codes[:, 0] = torch.randint(0, text_card, (BATCH, FRAMES))
    said = model(codes)
    return {
        "codes": codes, "logits": said.logits, "mask": said.mask, "text_logits": said.text_logits[:, 0],
    }  # fmt: skip


@torch.no_grad()
def greedy(model) -> dict[str, Tensor]:
    """What `LMGen` says, always the likeliest token, to random user codes; call 0 gives no frame (`LMGen` drops it)."""
    user = torch.randint(0, model.card, (BATCH, model.dep_q, FRAMES))
    calls, texts = [torch.zeros_like(user[:, :, :1]), *user.split(1, dim=2)], []
    generator = LMGen(model, use_sampling=False, on_text_hook=lambda token: texts.append(token.clone()))
    spoken = []
    with generator.streaming(BATCH):
        for call in calls:
            tokens = generator.step(call)
            if tokens is not None:
                spoken.append(tokens)
    return {"user": user, "spoken": torch.cat(spoken, dim=2), "spoken_text": torch.stack(texts, dim=1)}


@torch.no_grad()
def mimi(codec) -> dict[str, Tensor]:
    """Codes and sound of noise."""
    codec.set_num_codebooks(4)
    samples = 0.3 * torch.randn(1, 1, 1920 * 6)
    codes = codec.encode(samples)
    return {"samples": samples, "mimi_codes": codes, "mimi_sound": codec.decode(codes)}


if __name__ == "__main__":
    main()
