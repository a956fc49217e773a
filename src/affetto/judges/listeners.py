"""Judges that are transformers models: audio classifiers for emotion, CTC and sequence-to-sequence models for words.

Sounds are batched by length only if that can't change a result: if the feature extractor gives an attention mask and
the model uses it, or if every sound is padded to one fixed window (Whisper). Models whose first layer normalises over
time including padding (wav2vec 2.0 with `feat_extract_norm: group`) hear one sound at a time.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from affetto.errors import JudgeError
from affetto.judges.beam_search import WordModel, decode, find_word_model
from affetto.judges.choice import Source, read_labels

BATCH_SIZE = 8
_UNUSED_WHEN_JUDGING = ("masked_spec_embed",)
"""Weights that only training uses, so a checkpoint may lack them."""
_LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError)

Sounds = Sequence[NDArray[np.float32]]


class TransformersJudge:
    """A model, its feature extractor and where they come from; base of the judges below."""

    def __init__(self, model: Any, extractor: Any, source: Source, device: str) -> None:
        self.model = model.float().eval().to(device)
        self.extractor = extractor
        self.device = device
        self.sample_rate = int(extractor.sampling_rate)
        commit = getattr(model.config, "_commit_hash", None) or source.revision
        self.id = f"{source.id}@{commit}" if source.tier == "hub" and commit else source.id
        self.tier = source.tier
        self.licence = source.licence
        self.known = source.known

    @property
    def window(self) -> int | None:
        """Number of samples of the fixed window that every sound is padded to; None without one."""
        num_samples = getattr(self.extractor, "n_samples", None)
        return int(num_samples) if num_samples else None

    @property
    def batch_size(self) -> int:
        """Number of sounds that may be batched without changing a result."""
        has_mask = "attention_mask" in self.extractor.model_input_names
        has_mask = has_mask and getattr(self.extractor, "return_attention_mask", True) is not False
        uses_mask = getattr(self.model.config, "feat_extract_norm", "layer") != "group"
        return BATCH_SIZE if self.window or (has_mask and uses_mask) else 1

    def batches(self, sounds: Sounds) -> Iterator[tuple[list[int], Any]]:
        """(positions in `sounds`, the model's inputs) of each batch of sounds of similar length."""
        order = sorted(range(len(sounds)), key=lambda index: len(sounds[index]))
        for start in range(0, len(order), self.batch_size):
            indices = order[start : start + self.batch_size]
            padding = {} if self.window else {"padding": True}
            inputs = self.extractor(
                [sounds[index] for index in indices], sampling_rate=self.sample_rate, return_tensors="pt", **padding
            )
            yield indices, inputs.to(self.device)

    def real_frames(self, num_frames: int, attention_mask: torch.Tensor) -> torch.Tensor:
        """Which of the model's frames (N, frames) aren't padding; `attention_mask` is (N, inputs)."""
        if attention_mask.shape[1] == num_frames:
            return attention_mask.bool()
        mask: torch.Tensor = self.model._get_feature_vector_attention_mask(num_frames, attention_mask)
        return mask.bool()


class EmotionListener(TransformersJudge):
    """Emotion judge; the probabilities of outputs that mean the same emotion are added."""

    def __init__(self, model: Any, extractor: Any, source: Source, device: str) -> None:
        super().__init__(model, extractor, source, device)
        by_output = output_labels(model, source)
        self.labels = tuple(dict.fromkeys(by_output))
        self._columns = [self.labels.index(label) for label in by_output]

    @torch.inference_mode()
    def posteriors(self, sounds: Sounds) -> NDArray[np.float64]:
        """Probabilities (N, L); see `kinds.EmotionJudge`."""
        posteriors_NL = np.zeros((len(sounds), len(self.labels)))
        for indices, inputs in self.batches(sounds):
            outputs = torch.softmax(self.model(**inputs).logits.double(), dim=-1).cpu().numpy()
            for output, column in enumerate(self._columns):
                posteriors_NL[indices, column] += outputs[:, output]
        return posteriors_NL


class CtcListener(TransformersJudge):
    """Word judge with a CTC head.

    Without a word model it decodes greedily; with one, it finds the likeliest words (`beam_search`), and `id` names the
    model too.
    """

    def __init__(
        self, model: Any, extractor: Any, tokenizer: Any, source: Source, device: str, words: WordModel | None = None
    ) -> None:
        super().__init__(model, extractor, source, device)
        self.tokenizer = tokenizer
        self.words = words
        if words is not None:
            if self.between is None:
                raise JudgeError(
                    f"{source.id} has a language_model/, but no token between words, so it can't tell words apart: "
                    "remove that folder to hear by letters alone"
                )
            self.id += f"+lm@{words.name[:8]}"

    @property
    def blank(self) -> int:
        """See `timing.Recogniser`; in all of transformers' CTC classes it is the padding token."""
        return int(self.model.config.pad_token_id)

    @property
    def between(self) -> int | None:
        """See `timing.Recogniser`; SentencePiece has none, because it marks the beginnings of words instead."""
        token: int | None = getattr(self.tokenizer, "word_delimiter_token_id", None)
        return token

    @torch.inference_mode()
    def log_probs(self, sound: NDArray[np.float32]) -> NDArray[np.float64]:
        """Log-probabilities (T, V) of the frames of one sound; see `timing.Recogniser`."""
        ((_, inputs),) = self.batches([sound])
        logits_TV = self.model(**inputs).logits[0]
        if "attention_mask" in inputs:
            logits_TV = logits_TV[self.real_frames(len(logits_TV), inputs["attention_mask"])[0]]
        return np.asarray(logits_TV.double().log_softmax(dim=-1).cpu().numpy())

    def spell(self, word: str) -> list[int]:
        """A word's tokens, in the case and with or without the accents that leave the fewest letters unknown."""
        plain = unicodedata.normalize("NFKD", word)
        plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
        unknown, silent = self.tokenizer.unk_token_id, {self.tokenizer.unk_token_id, self.blank, self.between}
        spellings = [
            self.tokenizer(text, add_special_tokens=False)["input_ids"]
            for form in (word, plain)
            for text in (form, form.lower(), form.upper())
        ]
        best: list[int] = min(spellings, key=lambda tokens: tokens.count(unknown))
        return [token for token in best if token not in silent]

    @torch.inference_mode()
    def transcribe(self, sounds: Sounds) -> list[str]:
        """English text; see `kinds.WordJudge`."""
        heard = [""] * len(sounds)
        for indices, inputs in self.batches(sounds):
            logits_NTV = self.model(**inputs).logits
            is_real_NT = torch.ones(logits_NTV.shape[:2], dtype=torch.bool, device=logits_NTV.device)
            if "attention_mask" in inputs:  # frames of padding must not spell words
                is_real_NT = self.real_frames(logits_NTV.shape[1], inputs["attention_mask"])
            texts = (
                self._best(logits_NTV, is_real_NT) if self.words is None else self._likeliest(logits_NTV, is_real_NT)
            )
            for index, text in zip(indices, texts, strict=True):
                heard[index] = text.strip()
        return heard

    def _best(self, logits_NTV: torch.Tensor, is_real_NT: torch.Tensor) -> list[str]:
        tokens_NT = logits_NTV.argmax(dim=-1)
        tokens_NT[~is_real_NT] = self.tokenizer.pad_token_id
        texts: list[str] = self.tokenizer.batch_decode(tokens_NT, skip_special_tokens=True)
        return texts

    def _likeliest(self, logits_NTV: torch.Tensor, is_real_NT: torch.Tensor) -> list[str]:
        assert self.words is not None
        assert self.between is not None
        blank, delimiter = self.blank, self.between
        written = self.tokenizer.convert_ids_to_tokens(list(range(logits_NTV.shape[2])))
        marks = set(self.tokenizer.all_special_tokens) - {written[blank], written[delimiter]}
        is_mark = [token in marks for token in written]
        logits_NTV = logits_NTV.masked_fill(torch.tensor(is_mark, device=logits_NTV.device), -torch.inf)
        log_probs_NTV = logits_NTV.double().log_softmax(dim=-1).cpu().numpy()
        return [
            decode(log_probs_TV[is_real_T], written, blank, delimiter, self.words)
            for log_probs_TV, is_real_T in zip(log_probs_NTV, is_real_NT.cpu().numpy(), strict=True)
        ]


class SequenceListener(TransformersJudge):
    """Word judge that decodes token by token (Whisper and similar), greedily and so deterministically.

    Sounds longer than the model's window are cut at the quietest moment near the window's end.
    """

    def __init__(self, model: Any, extractor: Any, tokenizer: Any, source: Source, device: str) -> None:
        super().__init__(model, extractor, source, device)
        self.tokenizer = tokenizer

    @torch.inference_mode()
    def transcribe(self, sounds: Sounds) -> list[str]:
        """English text; see `kinds.WordJudge`."""
        limit = self.window or max((len(sound) for sound in sounds), default=1)
        pieces = [(index, piece) for index, sound in enumerate(sounds) for piece in cut(sound, limit, self.sample_rate)]
        is_multilingual = getattr(self.model.generation_config, "is_multilingual", False)
        language = {"language": "en", "task": "transcribe"} if is_multilingual else {}
        texts = [""] * len(pieces)
        for positions, inputs in self.batches([piece for _, piece in pieces]):
            tokens = self.model.generate(**inputs, do_sample=False, num_beams=1, **language)
            for position, text in zip(
                positions, self.tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True
            ):
                texts[position] = text.strip()
        return [
            " ".join(text for (owner, _), text in zip(pieces, texts, strict=True) if owner == index and text)
            for index in range(len(sounds))
        ]


def cut(sound: NDArray[np.float32], limit: int, sample_rate: int) -> list[NDArray[np.float32]]:
    """Pieces of at most `limit` samples that make up `sound`, cut at the quietest 20 ms of each piece's last sixth."""
    frame = max(1, sample_rate // 50)
    pieces = []
    while len(sound) > limit:
        start = limit - max(frame, limit // 6)
        tail = sound[start:limit]
        frames = tail[: len(tail) // frame * frame].reshape(-1, frame)
        at = start + int(np.argmin((frames.astype(np.float64) ** 2).mean(axis=1))) * frame + frame // 2
        pieces.append(sound[:at])
        sound = sound[at:]
    return [*pieces, sound]


def output_labels(model: Any, source: Source) -> tuple[str, ...]:
    """affetto's label for each of a classifier's outputs; see `choice.read_labels`."""
    return read_labels([str(model.config.id2label[index]) for index in range(model.config.num_labels)], source)


def load_emotion(source: Source, device: str) -> EmotionListener:
    """Load an audio classifier; JudgeError if a weight is missing."""
    model = load_whole(transformers.AutoModelForAudioClassification, source)
    return EmotionListener(model, load(transformers.AutoFeatureExtractor, source), source, device)


def load_words(source: Source, device: str) -> CtcListener | SequenceListener:
    """Load a CTC or sequence-to-sequence recogniser; JudgeError if a weight is missing."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING, MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING

    config = load(transformers.AutoConfig, source)
    if type(config) not in MODEL_FOR_CTC_MAPPING and type(config) not in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING:
        raise JudgeError(f"{source.id} is a {config.model_type} model, which can't transcribe speech")
    is_ctc = type(config) in MODEL_FOR_CTC_MAPPING
    model = load_whole(transformers.AutoModelForCTC if is_ctc else transformers.AutoModelForSpeechSeq2Seq, source)
    extractor, tokenizer = load(transformers.AutoFeatureExtractor, source), load(transformers.AutoTokenizer, source)
    if is_ctc:
        return CtcListener(model, extractor, tokenizer, source, device, find_word_model(Path(source.where)))
    return SequenceListener(model, extractor, tokenizer, source, device)


def load(auto_class: Any, source: Source, **options: Any) -> Any:
    """`auto_class.from_pretrained` of a source; JudgeError if that fails."""
    try:
        return auto_class.from_pretrained(source.where, revision=source.revision or "main", **options)
    except _LOADING_ERRORS as error:
        raise JudgeError(f"can't load the judge {source.id} as {auto_class.__name__}: {error}") from error


def load_whole(auto_class: Any, source: Source) -> Any:
    """`load` of a model; JudgeError if the checkpoint lacks a weight, which would stay random."""
    with _no_progress_bar():
        model, info = load(auto_class, source, output_loading_info=True)
    missing = sorted(key for key in info["missing_keys"] if not key.endswith(_UNUSED_WHEN_JUDGING))
    missing += sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise JudgeError(
            f"{source.id} doesn't hold a complete {type(model).__name__}: {', '.join(missing)} would stay random. "
            "It was saved for another task"
        )
    return model


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing its own bar while weights load."""
    was_enabled = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers.utils.logging.enable_progress_bar()
