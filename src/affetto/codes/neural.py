"""Neural codecs through transformers: Mimi and DAC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from affetto.codes.batches import can_batch_dac, can_batch_mimi, dac_codes, exactly, mimi_codes, pack
from affetto.codes.cepstra import mel_cepstra
from affetto.codes.sound_stream import MimiEar, MimiSound, MimiSounds, can_stream_mimi
from affetto.errors import BaseModelError
from affetto.types import CodeStream, SoundStream, SoundStreams

if TYPE_CHECKING:
    import torch

_GPU_BATCH_S = 120.0
"""Seconds of sound coded at once on a GPU: by their shapes 3 GB in Mimi's first layers, 7 in DAC's."""


HEARING = ("encoder", "encoder_transformer", "downsample")
"""Parts of a codec that only encode."""


class MimiCodec:
    """Kyutai's Mimi through transformers, which has no padding mask (transformers #43377): see `codes.batches`."""

    name = "mimi"
    _quantizers = "num_quantizers"
    """What `encode` calls the number of codebooks."""

    def __init__(self, model: Any, num_codebooks: int) -> None:
        self.model = model.requires_grad_(False)
        self.sample_rate = int(model.config.sampling_rate)
        self.frame_rate = float(model.config.frame_rate)
        self.num_codebooks = num_codebooks
        self.codebook_size = int(model.config.codebook_size)
        self._is_whole = True

    @property
    def device(self) -> torch.device:
        """The device on which sound is decoded and coded."""
        device: torch.device = next(self.model.decoder.parameters()).device
        return device

    def to(self, device: torch.device | str, *, speaks_only: bool = False) -> Self:
        """Move to another device; returns itself. With `speaks_only` the encoding parts (`HEARING`, 0.16 GB of
        CSM-1B's Mimi) follow only when there is something to encode."""
        for name, part in self.model.named_children():
            if not (speaks_only and name in HEARING):
                part.to(device)
        self._is_whole = not speaks_only
        return self

    def _gather(self) -> None:
        """Move everything to one device, before encoding."""
        if not self._is_whole:
            self.to(self.device)

    def encode(self, samples: NDArray[np.floating]) -> NDArray[np.int64]:
        """Codes (T, K) of mono samples at `sample_rate`."""
        import torch

        self._gather()
        values = torch.from_numpy(self._padded(samples))[None, None].to(self.device, self.model.dtype)
        with exactly():
            codes = self.model.eval().encode(values, **{self._quantizers: self.num_codebooks}).audio_codes
        return np.asarray(codes[0].T.cpu().numpy(), dtype=np.int64)

    def encode_batch(
        self, sounds: Sequence[NDArray[np.floating]], *, batch_s: float | None = None
    ) -> list[NDArray[np.int64]]:
        """`encode` of each of `sounds`, in order, coded in batches of clips of similar length.

        Codes equal `encode`'s up to float32's rounding, which depends on a batch's shape: if two centroids are equally
        near to about 1e-6, it decides this code and with it those of its frame in later codebooks. A batch has at most
        `batch_s` seconds with its padding, or one clip. By default clips are coded one by one on a CPU, where batches
        are slower, because their layers don't fit into its caches.
        """
        if batch_s is None:
            batch_s = 0.0 if self.device.type == "cpu" else _GPU_BATCH_S
        if batch_s == 0.0 or not self._can_batch():
            return [self.encode(samples) for samples in sounds]
        self._gather()
        padded = [self._padded(samples) for samples in sounds]
        coded: dict[int, NDArray[np.int64]] = {}
        self.model.eval()
        with exactly():
            for places in pack([len(samples) for samples in padded], round(batch_s * self.sample_rate)):
                coded |= zip(places, self._encode_one_batch([padded[place] for place in places]), strict=True)
        return [coded[place] for place in range(len(sounds))]

    def _can_batch(self) -> bool:
        return can_batch_mimi(self.model)

    def _encode_one_batch(self, padded: Sequence[NDArray[np.float32]]) -> list[NDArray[np.int64]]:
        return mimi_codes(self.model, padded, self.num_codebooks)

    def _padded(self, samples: NDArray[np.floating]) -> NDArray[np.float32]:
        return np.pad(np.asarray(samples, dtype=np.float32), (0, self._num_missing(len(samples))))

    def _num_missing(self, num_samples: int) -> int:
        """Number of zeros to append to a clip: Mimi pads the last frame itself, but needs at least one."""
        return max(0, round(self.sample_rate / self.frame_rate) - num_samples)

    def decode(self, codes_TK: NDArray[np.integer]) -> NDArray[np.float32]:
        """Mono samples of codes (T, K)."""
        import torch

        if len(codes_TK) == 0:
            return np.zeros(0, dtype=np.float32)
        codes = torch.from_numpy(np.asarray(codes_TK, dtype=np.int64).T.copy())[None]
        with torch.inference_mode():
            values = self.model.eval().decode(audio_codes=codes.to(self.device)).audio_values
        return np.asarray(values[0].flatten().float().cpu().numpy(), dtype=np.float32)

    def cepstra(self, codes_TK: NDArray[np.integer]) -> NDArray[np.floating]:
        """Mel-cepstra (S, 24) of the sound of codes (T, K)."""
        return mel_cepstra(self.decode(codes_TK), self.sample_rate)

    def open_stream(self) -> SoundStream:
        """Decodes a sound while its codes come. BaseModelError if the decoder looks ahead."""
        self._require_causal()
        return MimiSound(self.model)

    def open_streams(self) -> SoundStreams:
        """Decodes several sounds together, one pass per piece. BaseModelError if the decoder looks ahead."""
        self._require_causal()
        return MimiSounds(self.model)

    def open_ear(self) -> CodeStream:
        """Encodes a sound while its samples come. BaseModelError if the encoder looks ahead."""
        self._require_causal()
        self._gather()
        return MimiEar(self.model, self.num_codebooks)

    def _require_causal(self) -> None:
        if self.name != "mimi" or not can_stream_mimi(self.model):
            raise BaseModelError(f"this {self.name}'s convolutions look ahead, so it can't stream")


class DacCodec(MimiCodec):
    """Descript's audio codec (Kumar et al. 2023, arXiv 2306.06546) through transformers."""

    name = "dac"
    _quantizers = "n_quantizers"

    def __init__(self, model: Any) -> None:
        super().__init__(model, int(model.config.n_codebooks))
        self.frame_rate = frame_rate_of(model.config)

    def _num_missing(self, num_samples: int) -> int:
        """Number of zeros up to whole frames, as Dia's processor pads."""
        hop = int(self.model.config.hop_length)
        return -num_samples % hop if num_samples else hop

    def _can_batch(self) -> bool:
        return can_batch_dac(self.model)

    def _encode_one_batch(self, padded: Sequence[NDArray[np.float32]]) -> list[NDArray[np.int64]]:
        return dac_codes(self.model, padded, self.num_codebooks)


def frame_rate_of(config: Any) -> float:
    """Frames per second by a neural codec's configuration."""
    # DAC's own `frame_rate` is rounded up to whole frames.
    return float(config.sampling_rate / config.hop_length if config.model_type == "dac" else config.frame_rate)
