"""SpeechBrain's emotion judge (Wang et al. 2021, arXiv 2111.02735) from its published files, without SpeechBrain.

A checkpoint is `hyperparams.yaml`, `wav2vec2.ckpt`, `model.ckpt` and `label_encoder.txt`: wav2vec 2.0 (transformers'
own, under a prefix), its last hidden states, with `output_norm` normalised to mean 0 and variance 1 over frames and
channels together, averaged over time, and one linear layer. SpeechBrain's pooling adds noise of 1e-5 to 9e-5 to the
mean, in inference too; here there is none, so that a sound always gets the same result.
`benchmarks/parity/judges.py` compares this with SpeechBrain's code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from affetto.errors import JudgeError
from affetto.judges.checkpoints import (
    CheckpointListener,
    at_commit,
    checkpoint_folder,
    fewest_samples,
    load_state,
    read_state,
)
from affetto.judges.choice import Source

FILES = ("hyperparams.yaml", "wav2vec2.ckpt", "model.ckpt", "label_encoder.txt")
"""The files of a checkpoint."""
_HEAD = "0.w"
"""The linear layer in `model.ckpt`, the only one of a list."""
_HEAD_SIZE = 64
"""Channels per attention head, which the weights don't show; the same in every published wav2vec 2.0."""
_LABEL = re.compile(r"'(.+)' => (\d+)")


class SpeechBrainEmotion(nn.Module):
    """Samples to scores; `head` has no bias in the published checkpoint."""

    def __init__(self, config: Wav2Vec2Config, num_labels: int, *, normalises_output: bool, has_bias: bool) -> None:
        super().__init__()
        self.model = Wav2Vec2Model(config)
        self.head = nn.Linear(config.hidden_size, num_labels, bias=has_bias)
        self.normalises_output = normalises_output

    @property
    def fewest_samples(self) -> int:
        """Number of samples that make one frame."""
        config = self.model.config
        return fewest_samples(list(zip(config.conv_kernel, config.conv_stride, strict=True)))

    def vector(self, sound_1S: Tensor) -> Tensor:
        """The utterance vector (1, D) that is classified."""
        sound_1S = F.layer_norm(sound_1S, sound_1S.shape[1:])
        states_1TD = self.model(sound_1S).last_hidden_state
        if self.normalises_output:
            states_1TD = F.layer_norm(states_1TD, states_1TD.shape[1:])
        pooled: Tensor = states_1TD.mean(dim=1)
        return pooled

    def scores(self, sound_1S: Tensor) -> Tensor:
        """Logits (1, labels)."""
        logits: Tensor = self.head(self.vector(sound_1S))
        return logits


def is_laid_out_so(source: Source) -> bool:
    """Whether a source is laid out like SpeechBrain's emotion judge."""
    if source.known is not None:
        return bool(source.known.layout == "speechbrain")
    return (Path(source.where) / "hyperparams.yaml").is_file()


def load(source: Source, device: str) -> CheckpointListener:
    """Load a checkpoint; JudgeError if it can't be loaded completely."""
    folder = checkpoint_folder(source, FILES)
    source = at_commit(source, folder)
    states = {name: read_state(folder / f"{name}.ckpt", source.id) for name in ("wav2vec2", "model")}
    body = {key: value for key, value in states["wav2vec2"].items() if key.startswith("model.")}
    head = {key.replace(_HEAD, "head"): value for key, value in states["model"].items() if key.startswith(_HEAD)}
    names = _read_labels(folder / "label_encoder.txt", source.id)
    if "head.weight" not in head or len(head["head.weight"]) != len(names):
        raise JudgeError(f"the model.ckpt of {source.id} isn't one linear layer to {', '.join(names)}")
    parameters = _read_parameters(folder / "hyperparams.yaml", source.id)
    if (parameters.get("avg_pool") or {}).get("return_std", True):
        raise JudgeError(f"{source.id} pools by more than the mean (avg_pool without return_std: False)")
    normalises = bool((parameters.get("wav2vec2") or {}).get("output_norm", False))
    model = SpeechBrainEmotion(
        shape_of(body, source.id), len(names), normalises_output=normalises, has_bias="head.bias" in head
    )
    load_state(model, body | head, source.id)
    return CheckpointListener(model, names, source, device)


def shape_of(state: Mapping[str, Tensor], name: str) -> Wav2Vec2Config:
    """The configuration inferred from the weights under `model.`; strides and head size are every wav2vec 2.0's."""
    try:
        convolutions: list[torch.Size] = []
        while (key := f"model.feature_extractor.conv_layers.{len(convolutions)}.conv.weight") in state:
            convolutions.append(state[key].shape)
        width, last = state["model.feature_projection.projection.weight"].shape
        layers = 0
        while f"model.encoder.layers.{layers}.layer_norm.weight" in state:
            layers += 1
        inner = len(state["model.encoder.layers.0.feed_forward.intermediate_dense.weight"])
        assert last == convolutions[-1][0]
    except (KeyError, IndexError, AssertionError) as error:
        raise JudgeError(f"the wav2vec2.ckpt of {name} isn't a wav2vec 2.0: {error!r}") from error
    has_layer_norm = "model.feature_extractor.conv_layers.1.layer_norm.weight" in state
    return Wav2Vec2Config(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=max(1, width // _HEAD_SIZE),
        intermediate_size=inner, conv_dim=[shape[0] for shape in convolutions],
        conv_kernel=[shape[2] for shape in convolutions], conv_stride=[5, 2, 2, 2, 2, 2, 2][: len(convolutions)],
        conv_bias="model.feature_extractor.conv_layers.0.conv.bias" in state,
        feat_extract_norm="layer" if has_layer_norm else "group", do_stable_layer_norm=has_layer_norm,
        apply_spec_augment=False,
    )  # fmt: skip


class _Untagged(yaml.SafeLoader):
    """Reads HyperPyYAML's numbers and strings; its tags neither build nor refer to anything."""


def _plain(loader: yaml.SafeLoader, _suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    assert isinstance(node, yaml.ScalarNode)
    return loader.construct_scalar(node)


_Untagged.add_multi_constructor("!", _plain)


def _read_parameters(path: Path, name: str) -> dict[str, Any]:
    try:
        parameters = yaml.load(path.read_text(encoding="utf-8"), Loader=_Untagged)
    except yaml.YAMLError as error:
        raise JudgeError(f"can't read the hyperparams.yaml of {name}: {error}") from error
    return parameters if isinstance(parameters, dict) else {}


def _read_labels(path: Path, name: str) -> list[str]:
    """Labels in the order of the outputs, from lines like `'neu' => 0`."""
    table = path.read_text(encoding="utf-8").partition("=====")[0]
    by_output = {int(output): label for label, output in _LABEL.findall(table)}
    if not by_output or sorted(by_output) != list(range(len(by_output))):
        raise JudgeError(f"the label_encoder.txt of {name} doesn't name outputs 0, 1, …: {sorted(by_output)}")
    return [by_output[output] for output in range(len(by_output))]
