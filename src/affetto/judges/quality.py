"""DNSMOS P.835 (Reddy et al., ICASSP 2022): predicted listening scores from 1 to 5, without a reference.

The weights come in speechmos' wheel (MIT). speechmos itself is never imported, because it needs librosa; its ONNX graph
is computed in torch (`dnsmos`), which makes windows cheap. Differences from the published script (speechmos 0.0.1.1,
dnsmos.py):
- its float arithmetic makes windows 7 to 23 one sample short and skips them; here every window counts, so only
  files of 16 s and more differ;
- samples beyond full scale are clipped instead of refused;
- the P.808 model is left out: it needs log-mel features and answers the same question as `mos_overall`.
Sounds are scored in parallel, one thread each. Scores are cached: the base's sentences are the same for every emotion
of a run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affetto.errors import JudgeError, MissingDependencyError
from affetto.files import hash_bytes
from affetto.judges.known import KNOWN_JUDGES
from affetto.judges.threads import one_thread_each

SAMPLE_RATE = 16_000
WINDOW = 144_160
"""Samples of one window: 9.01 s."""
HOP = 16_000
NAMES = ("mos_overall", "mos_signal", "mos_background")

_FITS = {
    "mos_signal": (-0.08397278, 1.22083953, 0.0052439),
    "mos_background": (-0.13166888, 1.60915514, -0.39604546),
    "mos_overall": (-0.06766283, 1.11546468, 0.04602535),
}
"""The published script's mapping of raw outputs to the listeners' scale: quadratic, highest power first."""


class DnsmosJudge:
    """The bundled quality judge."""

    id = "speechmos/dnsmos-p835"
    known = KNOWN_JUDGES["dnsmos"]
    tier, licence, scale = known.tier, known.licence, known.scale
    sample_rate = SAMPLE_RATE

    def __init__(self, num_threads: int | None = None) -> None:
        import torch

        from affetto.judges.dnsmos import DnsmosNetwork

        self._num_threads = num_threads or torch.get_num_threads()
        self._heard: dict[str, dict[str, float]] = {}
        self._network = DnsmosNetwork(find_model())

    def score(self, sounds: Sequence[NDArray[np.float32]]) -> list[dict[str, float]]:
        """Scores by name of each sound (mono, 16 kHz): means over its windows."""
        keys = [hash_bytes(np.ascontiguousarray(sound, dtype=np.float32).tobytes()) for sound in sounds]
        unheard = {key: sound for key, sound in zip(keys, sounds, strict=True) if key not in self._heard}
        with one_thread_each(), ThreadPoolExecutor(self._num_threads) as pool:
            self._heard.update(zip(unheard, pool.map(self._hear, unheard.values()), strict=True))
        return [dict(self._heard[key]) for key in keys]

    def _hear(self, sound: NDArray[np.float32]) -> dict[str, float]:
        filled = fill(sound)
        period = len(sound) if len(filled) > len(sound) else None
        return _scores(self._network.score(filled, count_windows(len(filled)), period), sound)


def _scores(raw_W3: NDArray[np.float32], sound: NDArray[np.float32]) -> dict[str, float]:
    columns = {"mos_signal": 0, "mos_background": 1, "mos_overall": 2}
    scores = {name: float(np.polyval(_FITS[name], raw_W3[:, columns[name]]).mean()) for name in NAMES}
    if not all(np.isfinite(score) for score in scores.values()):
        raise JudgeError(f"DNSMOS gave {scores}; the samples are between {sound.min()} and {sound.max()}")
    return scores


def fill(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """A sound clipped to full scale and doubled until it fills a window, as in the published script."""
    if len(sound) == 0:
        raise JudgeError("an empty sound has no quality")
    filled = np.clip(sound, -1.0, 1.0).astype(np.float32)
    while len(filled) < WINDOW:
        filled = np.concatenate([filled, filled])
    return filled


def count_windows(num_samples: int) -> int:
    """Number of windows of 9.01 s, one every second, in at least `WINDOW` samples."""
    return max(1, min(num_samples // HOP - 9, (num_samples - WINDOW) // HOP + 1))


def find_model() -> Path:
    """Path of the P.835 model inside the installed speechmos, which is not imported."""
    spec = importlib.util.find_spec("speechmos")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder) / "dnsmos_models" / "sig_bak_ovr.onnx"
        if path.is_file():
            return path
    raise MissingDependencyError("DNSMOS needs speechmos' model files: pip install --no-deps speechmos")
