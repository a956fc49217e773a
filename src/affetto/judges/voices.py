"""Judges of voices (speaker verification) and of emotion dimensions.

Speaker verification runs transformers' x-vector classes (WavLM-SV) or, where SpeechBrain is installed, its ECAPA-TDNN
(Desplanques et al. 2020). The dimensional judge has the layout of the published arousal, dominance and valence model
(Wagner et al. 2023, arXiv 2203.07378), whose class isn't in transformers: wav2vec 2.0's last hidden states, averaged
over time, then two dense layers with tanh between. Sounds are heard one at a time if padding would affect the result.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from affetto.errors import JudgeError, MissingDependencyError
from affetto.judges.choice import Source
from affetto.judges.kinds import DIMENSIONS
from affetto.judges.listeners import Sounds, TransformersJudge, load, load_whole, output_labels


class XVectorListener(TransformersJudge):
    """Voice judge: a transformers x-vector model."""

    @property
    def fewest_frames(self) -> int:
        """Hidden frames that the model's time-delay layers need for two outputs, without which there is no spread."""
        config = self.model.config
        layers = zip(config.tdnn_kernel, config.tdnn_dilation, strict=True)
        return 2 + sum(int(dilation) * (int(kernel) - 1) for kernel, dilation in layers)

    @torch.inference_mode()
    def embed(self, sounds: Sounds) -> list[NDArray[np.float64] | None]:
        """Unit vectors; see `kinds.VoiceJudge`."""
        vectors: list[NDArray[np.float64] | None] = []
        for sound in sounds:
            frames = int(self.model._get_feat_extract_output_lengths(torch.tensor(len(sound))))
            if frames < self.fewest_frames:
                vectors.append(None)
                continue
            _, inputs = next(self.batches([sound]))
            # One sound has no padding; its mask would be all ones.
            embedding = self.model(inputs[self.model.main_input_name]).embeddings[0]
            vectors.append(to_unit(embedding.double().cpu().numpy(), self.id))
        return vectors


class EcapaListener:
    """Voice judge: SpeechBrain's ECAPA-TDNN."""

    sample_rate = 16_000
    fewest_samples = 1_600
    """The filter bank needs one window, the pooling more."""

    def __init__(self, source: Source, device: str) -> None:
        if importlib.util.find_spec("speechbrain") is None:
            raise MissingDependencyError(
                f"{source.id} is a SpeechBrain model: pip install speechbrain, or choose a transformers one, for "
                "example --judge voice=microsoft/wavlm-base-plus-sv"
            )
        classifier = importlib.import_module("speechbrain.inference.speaker").EncoderClassifier
        options = {"revision": source.revision} if source.revision else {}
        try:
            self.model = classifier.from_hparams(source.where, run_opts={"device": device}, **options)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise JudgeError(f"can't load the judge {source.id} with SpeechBrain: {error}") from error
        self.device = device
        self.id = f"{source.id}@{source.revision}" if source.revision else source.id
        self.tier, self.licence, self.known = source.tier, source.licence, source.known

    @torch.inference_mode()
    def embed(self, sounds: Sounds) -> list[NDArray[np.float64] | None]:
        """Unit vectors; see `kinds.VoiceJudge`."""
        vectors: list[NDArray[np.float64] | None] = []
        for sound in sounds:
            if len(sound) < self.fewest_samples:
                vectors.append(None)
                continue
            vector = self.model.encode_batch(torch.from_numpy(np.ascontiguousarray(sound))[None].to(self.device))
            vectors.append(to_unit(vector.reshape(-1).double().cpu().numpy(), self.id))
        return vectors


class DimensionHead(nn.Module):
    """Mean hidden states (N, D) to the dimensions' values (N, num_labels); named as in the published weights."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, pooled_ND: Tensor) -> Tensor:
        """Values on the model's own scale; the published head's dropout has no effect in inference."""
        values: Tensor = self.out_proj(torch.tanh(self.dense(pooled_ND)))
        return values


class DimensionModel(transformers.Wav2Vec2PreTrainedModel):  # type: ignore[misc]
    """wav2vec 2.0 under a `DimensionHead`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.wav2vec2 = transformers.Wav2Vec2Model(config)
        self.classifier = DimensionHead(config)
        self.post_init()

    def forward(self, input_values: Tensor) -> Tensor:
        """Values (1, num_labels) of one sound (1, samples); a batch would need a masked mean, so it isn't allowed."""
        assert input_values.shape[0] == 1, input_values.shape
        values: Tensor = self.classifier(self.wav2vec2(input_values).last_hidden_state.mean(dim=1))
        return values


class DimensionListener(TransformersJudge):
    """Dimensional judge."""

    def __init__(self, model: Any, extractor: Any, source: Source, device: str) -> None:
        super().__init__(model, extractor, source, device)
        self.labels = output_labels(model, source)
        if missing := [name for name in DIMENSIONS if name not in self.labels]:
            raise JudgeError(
                f"{source.id} has no output named {', '.join(missing)}: a dimensional judge needs "
                f"{', '.join(DIMENSIONS)}, and this one has {', '.join(self.labels)}"
            )

    @torch.inference_mode()
    def measure(self, sounds: Sounds) -> list[dict[str, float]]:
        """Values by dimension; see `kinds.DimensionJudge`."""
        found = []
        for sound in sounds:
            _, inputs = next(self.batches([sound]))
            values = self.model(inputs["input_values"])[0].double().cpu().numpy()
            found.append({name: float(values[self.labels.index(name)]) for name in DIMENSIONS})
        return found


def load_voice(source: Source, device: str) -> XVectorListener | EcapaListener:
    """Load a speaker-verification model; SpeechBrain loads its own ids, and folders with its `hyperparams.yaml`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_XVECTOR_MAPPING

    if source.where.startswith("speechbrain/") or (Path(source.where) / "hyperparams.yaml").is_file():
        return EcapaListener(source, device)
    config = load(transformers.AutoConfig, source)
    if type(config) not in MODEL_FOR_AUDIO_XVECTOR_MAPPING:
        raise JudgeError(f"{source.id} is a {config.model_type} model, which can't tell speakers apart")
    model = load_whole(transformers.AutoModelForAudioXVector, source)
    return XVectorListener(model, load(transformers.AutoFeatureExtractor, source), source, device)


def load_dimensions(source: Source, device: str) -> DimensionListener:
    """Load a wav2vec 2.0 model with a dimensional head; JudgeError if a weight is missing."""
    config = load(transformers.AutoConfig, source)
    if config.model_type != "wav2vec2":
        raise JudgeError(f"{source.id} is a {config.model_type} model; the dimensional judge's layout is wav2vec2's")
    model = load_whole(DimensionModel, source)
    return DimensionListener(model, load(transformers.AutoFeatureExtractor, source), source, device)


def to_unit(vector: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """`vector` (D,) normalised to length 1; JudgeError, with the judge's `name`, if its length is 0 or not finite."""
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length == 0:
        raise JudgeError(f"the judge {name} gave a vector of length {length}")
    unit: NDArray[np.float64] = vector / length
    return unit
