"""The miniature's judges: a word recogniser (CTC) and an emotion judge, both transformers' own classes.

They are trained on espeak-ng speech, most of it through the codec, with voices, texts and strengths that no adapter's
acted clip has. The recogniser first learns which letter each frame belongs to, as given by the synthesiser, and then
finds its own alignment (CTC). For the emotion judge plain reading is neutral, like the acted neutral. In training it
also has to predict each frame's pitch, known from the codec, by which most emotions can be recognised (docs/log.md).
"""

from __future__ import annotations

import copy
import json
import logging
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertForCTC,
    Wav2Vec2BertProcessor,
    Wav2Vec2CTCTokenizer,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
    set_seed,
)

from affetto.codes.vocoder import NUM_CEPSTRA
from affetto.miniature.corpus import EMOTIONS, PLAIN, Rendered
from affetto.miniature.muon import Muon
from affetto.miniature.products import fast_products, training_device

_log = logging.getLogger(__name__)

STRIDE = 3
LABELS = EMOTIONS
_LETTERS = "abcdefghijklmnopqrstuvwxyz'"
_GRAPHEMES = """
bb cc dd ff gg ll mm nn pp rr ss tt zz ee oo
th sh ch tch ck ng qu wh ph kn wr mb dge igh eigh ough augh
ai ay ea ei ey ie oa oi oy ou ow au aw ew ue ui
ar er ir or ur ear eer our air
"""
_BLANK = 0
VOCABULARY = {unit: index for index, unit in enumerate(["<pad>", "<unk>", "|", *_LETTERS, *_GRAPHEMES.split()])}
"""The recogniser's outputs: letters, and groups of letters for one sound.

Doubled letters are among them, since CTC would need a blank between the two, for which frames of 30 ms leave no room.
"""
_UNIT = re.compile(
    "|".join(sorted((re.escape(unit) for unit in VOCABULARY if unit[0] != "<"), key=len, reverse=True)) + "|."
)


@dataclass(frozen=True)
class JudgeRecipe:
    """How a judge is trained."""

    num_epochs: int
    hidden_size: int
    num_layers: int
    frames_per_batch: int = 1400
    """Frames of features, padding included."""
    lr: float = 1.5e-3
    muon_lr: float = 0.012
    aligned_share: float = 0.0
    """Share of the training that uses the synthesiser's alignment; CTC alone predicts only blanks for a long time."""
    seed: int = 0


RECOGNISER = JudgeRecipe(num_epochs=5, hidden_size=192, num_layers=4, frames_per_batch=2000, aligned_share=0.25)
RECOGNISER_AGAIN = JudgeRecipe(
    num_epochs=3, hidden_size=192, num_layers=4, frames_per_batch=2000, lr=0.8e-3, muon_lr=0.007
)
"""For continuing an earlier recogniser."""
EMOTION = JudgeRecipe(num_epochs=10, hidden_size=96, num_layers=3, frames_per_batch=12_800)
_LEVEL_SPREAD = 0.05
"""In the pitch extractor's units, where 0.25 is 10 dB."""
_PITCH_HZ, _PITCH_SCALE_ST = 150.0, 6.0
_PITCH_WEIGHT = 0.5


def label(emotion: str) -> int:
    """The judge's class of a clip's emotion; plain reading is neutral."""
    return LABELS.index("neutral" if emotion == PLAIN else emotion)


def make_feature_extractor() -> SeamlessM4TFeatureExtractor:
    """Log-mel features of 16 kHz sound, three frames of 10 ms stacked."""
    return SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80, sampling_rate=16_000, stride=STRIDE)


def make_pitch_extractor() -> WhisperFeatureExtractor:
    """Log-mel features of 16 kHz sound for the emotion judge: five seconds of 80 frames per second, 128 bands.

    Windows of 64 ms resolve harmonics; the recognisers' usual 25 ms blur a man's pitch (docs/log.md).
    """
    return WhisperFeatureExtractor(feature_size=128, sampling_rate=16_000, hop_length=200, chunk_length=5, n_fft=1024)


def letter_places(rendered: Rendered, text: str, num_frames: int) -> NDArray[np.int16]:
    """Place in `text` of the letter in each of the recogniser's frames of 30 ms (num_frames,); -1 in silence.

    The synthesiser gives the start of each word; a word's letters, and the space after it, share its time evenly.
    """
    places, seconds = zip(*rendered.word_starts, strict=True)
    middles = (np.arange(num_frames) + 0.5) * 0.01 * STRIDE
    heard = np.interp(middles, (*seconds, rendered.end), (*places, len(text)))
    inside = (middles >= seconds[0]) & (middles < rendered.end)
    return np.where(inside, np.minimum(heard, len(text) - 1), -1).astype(np.int16)


def train_recogniser(
    features: Mapping[str, NDArray[np.float16]], texts: Mapping[str, str],
    places: Mapping[str, NDArray[np.int16]], recipe: JudgeRecipe, folder: Path, start: Path | None = None,
) -> Wav2Vec2BertForCTC:  # fmt: skip
    """Train the word recogniser on features (frames, 240) by clip id, and save it to `folder` with its processor.

    `places` are the clips' `letter_places` (frames,). `start` is the folder of a recogniser to continue from.
    """
    set_seed(recipe.seed)
    config = Wav2Vec2BertConfig(
        hidden_size=recipe.hidden_size, num_hidden_layers=recipe.num_layers, num_attention_heads=4,
        intermediate_size=3 * recipe.hidden_size, feature_projection_input_dim=80 * STRIDE,
        position_embeddings_type="relative_key", left_max_position_embeddings=32, right_max_position_embeddings=32,
        conv_depthwise_kernel_size=15, layerdrop=0.0, hidden_dropout=0.0, attention_dropout=0.0,
        activation_dropout=0.0, feat_proj_dropout=0.0, final_dropout=0.05, mask_time_prob=0.08, mask_time_length=4,
        mask_feature_prob=0.0, add_adapter=False, use_intermediate_ffn_before_adapter=False,
        vocab_size=len(VOCABULARY), pad_token_id=_BLANK,
    )  # fmt: skip
    model = Wav2Vec2BertForCTC(config)
    if start is not None:
        model.load_state_dict({name: value.float() for name, value in load_file(start / "model.safetensors").items()})
    spelled = {key: _spelled(text) for key, text in texts.items()}

    def loss(inputs: Tensor, mask: Tensor, keys: Sequence[str], done: float) -> Tensor:
        with fast_products():
            logits = model(input_features=inputs, attention_mask=mask).logits.float()
        if done < recipe.aligned_share:
            aligned = torch.full(mask.shape, _BLANK)
            for row, key in enumerate(keys):
                heard = np.where(places[key] < 0, _BLANK, spelled[key].by_letter[places[key]])
                aligned[row, : len(heard)] = torch.from_numpy(heard)
            return nn.functional.cross_entropy(logits[mask.bool()], aligned.to(mask.device)[mask.bool()])
        targets = torch.from_numpy(np.concatenate([spelled[key].units for key in keys]))
        lengths = torch.tensor([len(spelled[key].units) for key in keys])
        scores = logits.log_softmax(dim=-1).transpose(0, 1)
        return nn.functional.ctc_loss(
            scores, targets.to(mask.device), mask.sum(dim=1), lengths.to(mask.device), _BLANK, zero_infinity=True
        )

    _train(model, features, loss, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps(VOCABULARY))
    tokenizer = Wav2Vec2CTCTokenizer(str(vocabulary), unk_token="<unk>", pad_token="<pad>", word_delimiter_token="|",
                                     bos_token=None, eos_token=None)  # fmt: skip
    Wav2Vec2BertProcessor(feature_extractor=make_feature_extractor(), tokenizer=tokenizer).save_pretrained(folder)
    _save(model, folder)
    return model


@dataclass(frozen=True)
class _Spelled:
    units: NDArray[np.int64]
    """The text as the recogniser should write it (num_units,)."""
    by_letter: NDArray[np.int64]
    """The unit that each letter of the text belongs to (num_letters,)."""


def _spelled(text: str) -> _Spelled:
    parts = _UNIT.findall(text.lower().replace(" ", "|"))
    units = np.asarray([VOCABULARY.get(part, 1) for part in parts])
    return _Spelled(units, np.repeat(units, [len(part) for part in parts]))


def pitch_track(codec_features: NDArray[np.float64]) -> NDArray[np.float16]:
    """(pitch, voicing) of every state of the emotion judge (200, 2), from a vocoder codec's features (10 ms, 26).

    Pitch in units of 6 semitones around 150 Hz; the judge's states are 25 ms apart, and silent after the clip's end.
    """
    num_states = make_pitch_extractor().nb_max_frames // 2
    places = np.rint(np.arange(num_states) * 25.0 / 10.0).astype(int)
    inside = places < len(codec_features)
    log_f0, voicing = codec_features[places[inside], NUM_CEPSTRA : NUM_CEPSTRA + 2].T
    track = np.zeros((num_states, 2), dtype=np.float16)
    track[inside, 0] = 12.0 * (log_f0 / np.log(2.0) - np.log2(_PITCH_HZ)) / _PITCH_SCALE_ST
    track[inside, 1] = voicing > 0.5
    return track


def pitch_loss(said_BT2: Tensor, true_BT2: Tensor) -> Tensor:
    """Cross-entropy of voicing plus, on voiced frames, the absolute error of pitch."""
    voiced_BT = true_BT2[..., 1]
    voicing = nn.functional.binary_cross_entropy_with_logits(said_BT2[..., 1], voiced_BT)
    error_BT = (said_BT2[..., 0] - true_BT2[..., 0]).abs() * voiced_BT
    return voicing + error_BT.sum() / voiced_BT.sum().clamp(min=1.0)


def train_emotion_judge(
    features: Mapping[str, NDArray[np.float16]], emotions: Mapping[str, str],
    pitches: Mapping[str, NDArray[np.float16]], recipe: JudgeRecipe, folder: Path,
) -> WhisperForAudioClassification:  # fmt: skip
    """Train the emotion judge on features (frames, mels) of `make_pitch_extractor` by clip id, and save it to `folder`.

    `pitches` are the clips' `pitch_track`s (frames / 2, 2). Each time a clip is used its level is changed by some 2 dB,
    so that loudness alone isn't enough.
    """
    set_seed(recipe.seed)
    extractor = make_pitch_extractor()
    config = WhisperConfig(
        num_mel_bins=extractor.feature_size, max_source_positions=extractor.nb_max_frames // 2,
        d_model=recipe.hidden_size, encoder_layers=recipe.num_layers, encoder_attention_heads=4,
        encoder_ffn_dim=3 * recipe.hidden_size, decoder_layers=1, decoder_attention_heads=4,
        decoder_ffn_dim=recipe.hidden_size, vocab_size=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None, dropout=0.1,
        classifier_proj_size=recipe.hidden_size, num_labels=len(LABELS), id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )  # fmt: skip
    model = WhisperForAudioClassification(config)
    pitch_head = nn.Linear(recipe.hidden_size, 2)

    def loss(inputs: Tensor, _mask: Tensor, keys: Sequence[str], _done: float) -> Tensor:
        labels = torch.tensor([label(emotions[key]) for key in keys], device=inputs.device)
        moved = inputs + _LEVEL_SPREAD * torch.randn(len(keys), 1, 1).to(inputs.device)
        with fast_products():
            heard = model(moved.mT, output_hidden_states=True)
            said = pitch_head(heard.hidden_states[-1])
        emotion = nn.functional.cross_entropy(heard.logits.float(), labels, label_smoothing=0.02)
        true = torch.from_numpy(np.stack([pitches[key] for key in keys]).astype(np.float32))
        return emotion + _PITCH_WEIGHT * pitch_loss(said.float(), true.to(inputs.device))

    _train(nn.ModuleDict({"judge": model, "pitch": pitch_head}), features, loss, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    extractor.save_pretrained(folder)
    _save(model, folder)
    return model


def _save(model: Any, folder: Path) -> None:
    copy.deepcopy(model).half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


_Loss = Callable[[Tensor, Tensor, Sequence[str], float], Tensor]
"""Takes inputs, their mask, the clips' ids, and the finished share of the training."""


def _train(model: nn.Module, features: Mapping[str, NDArray[np.float16]], loss: _Loss, recipe: JudgeRecipe) -> None:
    named = dict(model.named_parameters())
    is_matrix = {
        name: weight.ndim == 2 and ".layers." in name and "embed" not in name for name, weight in named.items()
    }
    matrices = [weight for name, weight in named.items() if is_matrix[name]]
    others = [weight for name, weight in named.items() if not is_matrix[name]]
    adam = torch.optim.AdamW(others, recipe.lr, betas=(0.9, 0.98), weight_decay=0.01)
    optimizers = (adam, Muon(matrices, recipe.muon_lr))
    device = training_device()
    model.to(device)
    plan = [(epoch, group) for epoch in range(recipe.num_epochs) for group in _groups(features, recipe, epoch)]
    model.train()
    recent: list[float] = []
    for step, (epoch, keys) in enumerate(plan):
        factor = min(1.0, (step + 1) / 100, (len(plan) - step) / (0.5 * len(plan)))
        for optimizer, peak in zip(optimizers, (recipe.lr, recipe.muon_lr), strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
        inputs, mask = pad([features[key] for key in keys])
        value = loss(inputs.to(device), mask.to(device), keys, step / len(plan))
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent.append(value.item())
        if (step + 1) % 100 == 0:
            _log.info("epoch %d step %d of %d: loss %.4f", epoch, step + 1, len(plan), np.mean(recent[-100:]))
    model.cpu().eval()


def pad(features: Sequence[NDArray[np.float16]]) -> tuple[Tensor, Tensor]:
    """Batch of features (B, frames, 240) padded on the right, and its mask."""
    width = max(len(item) for item in features)
    inputs = torch.zeros(len(features), width, features[0].shape[1])
    mask = torch.zeros(len(features), width, dtype=torch.long)
    for row, item in enumerate(features):
        inputs[row, : len(item)] = torch.from_numpy(item.astype(np.float32))
        mask[row, : len(item)] = 1
    return inputs, mask


def _groups(features: Mapping[str, NDArray[np.float16]], recipe: JudgeRecipe, epoch: int) -> Iterator[list[str]]:
    draw = random.Random(f"{recipe.seed}/{epoch}")
    order = sorted(features, key=lambda key: len(features[key]) + draw.uniform(-6, 6))
    groups: list[list[str]] = [[]]
    for key in order:
        if groups[-1] and (len(groups[-1]) + 1) * (len(features[key]) + 6) > recipe.frames_per_batch:
            groups.append([])
        groups[-1].append(key)
    draw.shuffle(groups)
    yield from groups
