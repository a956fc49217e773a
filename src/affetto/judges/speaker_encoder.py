"""The voice judge that comes with affetto: a GE2E speaker encoder (Wan et al. 2018, arXiv 1710.10467), 1.4 M weights.

Three LSTM layers read 40 mel bands of 1.6 seconds at a time; the last state, projected, is the voice vector. A sound's
vector is the mean over its windows, which overlap by half. The weights are Resemblyzer 0.1.4's (Resemble AI,
Apache-2.0), as float16, trained on people: LibriSpeech, VoxCeleb1 and VoxCeleb2. Differences from that package:
- all pauses are cut out, by energy (`metrics.activity`), not only long ones by WebRTC's detector;
- every sound is scaled to -30 dBFS, not only quieter ones, so that loudness, which emotions change, has no effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank, window_function

from affetto.errors import MissingDependencyError
from affetto.files import hash_folder
from affetto.judges.known import BUNDLED_VOICE, KNOWN_JUDGES
from affetto.judges.threads import one_thread_each
from affetto.metrics.activity import FRAME_S, sounding_frames

SAMPLE_RATE = 16_000
BANDS, WIDTH, LAYERS = 40, 256, 3
WINDOW, HOP = 400, 160
"""Samples per spectrum, and from one to the next: 25 and 10 ms."""
FRAMES, STEP = 160, 77
"""Spectra per window of the encoder (1.6 s), and from one window to the next (1.3 windows a second)."""
BATCH = 32
"""Windows per batch."""
MIN_COVERAGE = 0.75
"""A last window of which less than this is sound is dropped, unless it is the only one."""
LEVEL_DB = -30.0
SHORTEST_S = 0.4
"""Shortest speech, without pauses, that has a vector: a syllable or two."""
_WEIGHTS = "model.safetensors"


class SpeakerEncoder(nn.Module):
    """Windows of mel spectra to voice vectors; parameters are named as in the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(BANDS, WIDTH, LAYERS, batch_first=True)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, mel_NTB: Tensor) -> Tensor:
        """Non-negative unit vectors (N, D) of power spectra in mel bands (N, T, B)."""
        _, (last_LND, _) = self.lstm(mel_NTB)
        return nn.functional.normalize(torch.relu(self.linear(last_LND[-1])), dim=-1)


class BundledVoiceJudge:
    """The bundled voice judge."""

    tier = "bundled"
    licence = "Apache-2.0"
    sample_rate = SAMPLE_RATE
    known = KNOWN_JUDGES[BUNDLED_VOICE]

    def __init__(self, device: str = "cpu") -> None:
        folder = weights_folder()
        if not (folder / _WEIGHTS).is_file():
            raise MissingDependencyError(
                "the weights of the bundled voice judge aren't in this installation; install affetto again, or name "
                "another with --judge voice=microsoft/wavlm-base-plus-sv"
            )
        self.id = f"{BUNDLED_VOICE}@{hash_folder(folder, ('*.safetensors',))[:12]}"
        self.device = device
        self.encoder = SpeakerEncoder()
        self.encoder.load_state_dict({name: value.float() for name, value in load_file(folder / _WEIGHTS).items()})
        self.encoder.to(device).eval()

    @torch.inference_mode()
    def embed(self, sounds: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64] | None]:
        """Unit vectors (256,) of mono sounds at 16 kHz; None with less than `SHORTEST_S` of speech.

        Windows of all sounds go through the network in batches of one fixed size, the last one padded, so that a vector
        doesn't depend on the other sounds.
        """
        by_sound = [encoder_windows(sound) for sound in sounds]
        windows = [mel_NTB for mel_NTB in by_sound if mel_NTB is not None]
        if not windows:
            return [None] * len(sounds)
        with one_thread_each():
            voices = iter(torch.split(self._voices(np.concatenate(windows)), [len(mel_NTB) for mel_NTB in windows]))
        return [None if mel_NTB is None else _mean_voice(next(voices)) for mel_NTB in by_sound]

    def _voices(self, mel_NTB: NDArray[np.float32]) -> Tensor:
        """Unit vectors (N, D) of windows."""
        missing = -len(mel_NTB) % BATCH
        mel = torch.from_numpy(np.pad(mel_NTB, ((0, missing), (0, 0), (0, 0))))
        voices = [self.encoder(part.to(self.device)) for part in torch.split(mel, BATCH)]
        return torch.cat(voices)[: len(mel_NTB)]


def _mean_voice(voices_ND: Tensor) -> NDArray[np.float64]:
    unit_D: NDArray[np.float64] = nn.functional.normalize(voices_ND.double().mean(dim=0), dim=0).cpu().numpy()
    return unit_D


def weights_folder() -> Path:
    """The folder of the weights, with their licence and origin."""
    return Path(str(resources.files("affetto.judges"))) / "assets" / BUNDLED_VOICE


def encoder_windows(sound: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The encoder's input for samples (S,): mel spectra (N, T, B) of N windows; None if there is too little speech."""
    speech = without_pauses(sound)
    if speech is None:
        return None
    speech = speech * np.float32(10 ** (LEVEL_DB / 20) / np.sqrt(np.mean(np.square(speech, dtype=np.float64))))
    starts = window_starts(len(speech))
    mel_TB = mel_spectra(np.pad(speech, (0, max(0, (starts[-1] + FRAMES) * HOP - len(speech)))))
    return np.stack([mel_TB[start : start + FRAMES] for start in starts])


def without_pauses(sound: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The active frames of samples (S,), joined; None if shorter than `SHORTEST_S`."""
    sounds = sounding_frames(sound, SAMPLE_RATE)
    if sounds.sum() * FRAME_S < SHORTEST_S:
        return None
    frame = round(FRAME_S * SAMPLE_RATE)
    kept: NDArray[np.float32] = sound[: len(sounds) * frame][np.repeat(sounds, frame)]
    return kept


def window_starts(num_samples: int) -> list[int]:
    """First frames of the encoder's windows over this many samples: at least one, the last mostly full."""
    num_frames = -(-(num_samples + 1) // HOP)
    starts = list(range(0, max(1, num_frames - FRAMES + STEP + 1), STEP))
    covered = (num_samples - starts[-1] * HOP) / (FRAMES * HOP)
    return starts[:-1] if covered < MIN_COVERAGE and len(starts) > 1 else starts


def mel_spectra(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Power spectra (frames, 40) in Slaney's mel bands, one frame centred every `HOP` samples."""
    framed_TN = np.lib.stride_tricks.sliding_window_view(np.pad(samples, WINDOW // 2), WINDOW)[::HOP]
    spectra_TF = np.fft.rfft(framed_TN.astype(np.float64) * _window())
    power_TF = spectra_TF.real**2 + spectra_TF.imag**2
    return (power_TF @ _filters()).astype(np.float32)


@cache
def _window() -> NDArray[np.float64]:
    return np.asarray(window_function(WINDOW, "hann"))


@cache
def _filters() -> NDArray[np.float64]:
    return np.asarray(
        mel_filter_bank(WINDOW // 2 + 1, BANDS, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    )
