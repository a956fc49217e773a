"""Emotion-embedding judges: the vector of an utterance is the input of an emotion classifier's last layer.

For transformers' audio classifiers that project their hidden states and average them over time (wav2vec 2.0 and its
kin, Whisper), the vector is that projection averaged over the frames that aren't padding, normalised to length 1. The
classifier's own average includes padding, in Whisper a whole window of it, which would make short sounds similar. For
the one class without an average (AST) it is the input of its head. The layer before the last is what "embedding" means
in speaker verification (Snyder et al. 2018), and what emotion2vec (Ma et al. 2024, arXiv 2312.15185) averages over an
utterance; that model itself is read by `emotion2vec`.

Sounds are heard one at a time, so that no vector depends on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from affetto.errors import JudgeError
from affetto.judges.choice import Source
from affetto.judges.labels import LABELS
from affetto.judges.listeners import Sounds, TransformersJudge, load, load_whole, output_labels
from affetto.judges.voices import to_unit

_FILTER_BANK_S = 0.035
"""Two windows (25 ms, 10 ms apart) of the filter banks that models without convolutions over samples use: they divide
by the features' spread over time."""


class EmbeddingListener(TransformersJudge):
    """Embedding judge: an emotion classifier without its last layer."""

    def __init__(self, model: Any, extractor: Any, source: Source, device: str) -> None:
        super().__init__(model, extractor, source, device)
        self.labels = tuple(dict.fromkeys(output_labels(model, source)))
        if not set(self.labels) & (set(LABELS.values()) - {"other"}):
            raise JudgeError(
                f"{source.id} tells {', '.join(self.labels)} apart, none of which is an emotion: its vectors would say "
                "nothing about emotions. Name an emotion classifier with --judge embedding=ID_OR_FOLDER"
            )
        if not hasattr(model, "classifier"):
            raise JudgeError(f"{source.id} is a {type(model).__name__}, which has no last layer to take vectors before")

    @torch.inference_mode()
    def embed(self, sounds: Sounds) -> list[NDArray[np.float64] | None]:
        """Unit vectors; see `kinds.VectorJudge`."""
        return [self._vector(sound) for sound in sounds]

    def _vector(self, sound: NDArray[np.float32]) -> NDArray[np.float64] | None:
        if not self._is_enough(len(sound)):
            return None
        ((_, inputs),) = self.batches([sound])
        with self._captured() as captured:
            self.model(**inputs)
        (states_NTD,) = captured
        num_real = self._num_real(states_NTD.shape[1], len(sound), inputs)
        pooled_D = states_NTD[0, :num_real].double().mean(dim=0)
        return to_unit(pooled_D.cpu().numpy(), self.id)

    def _is_enough(self, num_samples: int) -> bool:
        """Whether the model makes a frame from this many samples."""
        if hasattr(self.model.config, "conv_kernel"):
            num_frames = int(self.model._get_feat_extract_output_lengths(torch.tensor(num_samples)))
            return num_frames >= getattr(self.model.config, "squeeze_factor", 1)
        return num_samples >= (1 if self.window else ceil(_FILTER_BANK_S * self.sample_rate))

    @contextmanager
    def _captured(self) -> Iterator[list[Tensor]]:
        """Captures the next call's input of the last layer: (N, T, D) before the average over time, (N, 1, D) if the
        model has none."""
        captured: list[Tensor] = []
        if hasattr(self.model, "projector"):
            handle = self.model.projector.register_forward_hook(
                lambda _module, _inputs, output: captured.append(output)
            )
        else:
            handle = self.model.classifier.register_forward_pre_hook(
                lambda _module, inputs: captured.append(inputs[0][:, None])
            )
        try:
            yield captured
        finally:
            handle.remove()

    def _num_real(self, num_frames: int, num_samples: int, inputs: Any) -> int:
        """Number of the model's frames that aren't padding."""
        if self.window:
            return min(num_frames, ceil(num_samples * num_frames / self.window))
        if "attention_mask" in inputs and hasattr(self.model, "projector"):
            return int(self.real_frames(num_frames, inputs["attention_mask"]).sum())
        return num_frames


def load_embedding(source: Source, device: str) -> EmbeddingListener:
    """Load an emotion classifier; JudgeError if a weight is missing."""
    model = load_whole(transformers.AutoModelForAudioClassification, source)
    return EmbeddingListener(model, load(transformers.AutoFeatureExtractor, source), source, device)
