"""The miniature's codec: vocoder features, residually quantised at Mimi's frame rate.

Every 10 ms WORLD (Morise et al. 2016) gives 24 coded cepstra, log F0 and voicing; eight such frames make
one 80 ms block of 208 numbers, centred and weighted, projected to 96 principal components and coded
by eight residual codebooks of 256 (RVQ, Zeghidour et al. 2021). Cepstra are weighted by the root of their deviation:
equal weights would spend the codes on fine structure that carries no words, their natural scale on loudness
(docs/log.md). A beam search (Chen et al. 2010) finds the codes, and the codebooks are fitted to them. Decoding reverses
these steps, with the aperiodicity set by the voicing. There is no network, so a clip's codes don't depend on its batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyworld
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from affetto.codes.sound_stream import RepeatingStream, SeparateStreams
from affetto.errors import BaseModelError
from affetto.files import write_atomically, write_json
from affetto.types import SoundStream, SoundStreams

FloatArray = NDArray[np.float64]

SAMPLE_RATE = 24_000
HOP = 240
BLOCK = 8
FRAME_SAMPLES = HOP * BLOCK
NUM_CEPSTRA = 24
NUM_FEATURES = NUM_CEPSTRA + 2
FFT_SIZE = 1024
_FRAME_MS = 1000.0 * HOP / SAMPLE_RATE
_F0_FLOOR, _F0_CEIL = 60.0, 640.0
_F0_WEIGHT, _VOICING_WEIGHT = 3.0, 2.0
_BEAM = 8
_FRAMES_AT_ONCE = 2048


def analyse(samples: FloatArray) -> FloatArray:
    """Vocoder features of mono 24 kHz `samples`: (frames of 10 ms, 26), a whole number of 80 ms blocks."""
    num_frames = BLOCK * max(1, -(-len(samples) // FRAME_SAMPLES))
    samples = np.pad(np.asarray(samples, dtype=np.float64), (0, num_frames * HOP - len(samples)))
    # A noise floor of -96 dB keeps the envelopes of digital silence bounded.
    samples = samples + 1.6e-5 * np.random.default_rng(0).standard_normal(len(samples))
    f0, times = pyworld.dio(samples, SAMPLE_RATE, f0_floor=_F0_FLOOR, f0_ceil=_F0_CEIL, frame_period=_FRAME_MS, speed=4)
    f0 = pyworld.stonemask(samples, f0, times, SAMPLE_RATE)
    envelope = pyworld.cheaptrick(samples, f0, times, SAMPLE_RATE, fft_size=FFT_SIZE)
    cepstra = pyworld.code_spectral_envelope(envelope, SAMPLE_RATE, NUM_CEPSTRA)
    features = np.empty((num_frames, NUM_FEATURES))
    features[:, :NUM_CEPSTRA] = cepstra[:num_frames]
    voiced = f0[:num_frames] > 0
    features[:, NUM_CEPSTRA] = _continuous_log_f0(f0[:num_frames], voiced)
    features[:, NUM_CEPSTRA + 1] = voiced
    return features


def synthesise(features: FloatArray) -> NDArray[np.float32]:
    """Samples from features (frames, 26), 240 per frame, as float32 in [-1, 1]."""
    cepstra = np.ascontiguousarray(features[:, :NUM_CEPSTRA])
    voiced = features[:, NUM_CEPSTRA + 1] > 0.5
    f0 = np.where(voiced, np.clip(np.exp(features[:, NUM_CEPSTRA]), 50.0, 700.0), 0.0)
    envelope = pyworld.decode_spectral_envelope(cepstra, SAMPLE_RATE, FFT_SIZE)
    aperiodicity = np.where(voiced[:, None], _VOICED_APERIODICITY[None, :], 1.0 - 1e-9)
    samples = pyworld.synthesize(f0, envelope, aperiodicity, SAMPLE_RATE, _FRAME_MS)
    whole = np.zeros(len(features) * HOP)
    whole[: len(samples)] = samples[: len(whole)]
    return np.clip(whole, -1.0, 1.0).astype(np.float32)


def _continuous_log_f0(f0: FloatArray, voiced: NDArray[np.bool_]) -> FloatArray:
    if not voiced.any():
        return np.full(len(f0), np.log(120.0))
    places = np.flatnonzero(voiced)
    return np.asarray(np.interp(np.arange(len(f0)), places, np.log(f0[places])))


def _aperiodicity_of_voiced_speech() -> FloatArray:
    frequency = np.linspace(0.0, SAMPLE_RATE / 2, FFT_SIZE // 2 + 1)
    level_db = np.interp(frequency, [0, 1500, 4000, 8000, 12000], [-40.0, -28.0, -14.0, -6.0, -2.0])
    return np.asarray(10.0 ** (level_db / 20.0))


_VOICED_APERIODICITY = _aperiodicity_of_voiced_speech()


class VocoderCodec:
    """`affetto.types.Codec` over WORLD features.

    `mean_D`, `scale_D` standardise a block (D = 208), `basis_DP` projects it (P = 96), `codebooks_KVP` code it.
    """

    name = "vocoder"
    sample_rate = SAMPLE_RATE
    frame_rate = SAMPLE_RATE / FRAME_SAMPLES

    def __init__(
        self, mean_D: FloatArray, scale_D: FloatArray, basis_DP: FloatArray, codebooks_KVP: FloatArray
    ) -> None:
        # Rounded as `save` writes them, so that a fitted codec and the loaded one give the same codes.
        self.mean_D, self.scale_D, self.basis_DP, self.codebooks_KVP = (
            np.asarray(values, dtype=np.float32).astype(np.float64)
            for values in (mean_D, scale_D, basis_DP, codebooks_KVP)
        )
        self.num_codebooks, self.codebook_size = codebooks_KVP.shape[:2]

    def encode(self, samples: NDArray[np.floating]) -> NDArray[np.int64]:
        """Codes (T, K) of mono samples at `sample_rate`; T = ceil(seconds * 12.5), at least 1."""
        return self.quantise(analyse(np.asarray(samples, dtype=np.float64)))

    def decode(self, codes_TK: NDArray[np.integer]) -> NDArray[np.float32]:
        """T * 1920 mono samples of codes (T, K)."""
        if len(codes_TK) == 0:
            return np.zeros(0, dtype=np.float32)
        return synthesise(self.features(codes_TK))

    def cepstra(self, codes_TK: NDArray[np.integer]) -> FloatArray:
        """WORLD's mel-cepstra (4 T, 24) that codes (T, K) stand for."""
        return self.features(codes_TK)[::2, :NUM_CEPSTRA]

    def open_stream(self) -> SoundStream:
        """Decodes a sound while its codes come; pulses end within 1024 samples, so one frame is held back."""
        return RepeatingStream(self.decode)

    def open_streams(self) -> SoundStreams:
        """Decodes several sounds while their codes come, one by one."""
        return SeparateStreams(self.open_stream)

    def quantise(self, features: FloatArray) -> NDArray[np.int64]:
        """Codes (T, K) of features (8 T, 26): the nearest sum of centroids that a beam search finds."""
        return _search((_blocks(features) - self.mean_D) / self.scale_D @ self.basis_DP, self.codebooks_KVP)

    def features(self, codes_TK: NDArray[np.integer]) -> FloatArray:
        """Features (8 T, 26) that codes (T, K) stand for."""
        coded = sum(book[codes_TK[:, k]] for k, book in enumerate(self.codebooks_KVP))
        blocks = np.asarray(coded) @ self.basis_DP.T * self.scale_D + self.mean_D
        return blocks.reshape(-1, NUM_FEATURES)

    def save(self, folder: Path) -> None:
        """Write `codec.json` and `codec.safetensors`."""
        tensors = {"mean": self.mean_D, "scale": self.scale_D, "basis": self.basis_DP, "codebooks": self.codebooks_KVP}
        # safetensors writes memory in storage order and ignores strides: columns would become rows.
        values = {key: np.ascontiguousarray(value, dtype=np.float32) for key, value in tensors.items()}
        write_atomically(folder / "codec.safetensors", lambda path: save_file(values, path))
        facts = {"codec": self.name, "sample_rate": SAMPLE_RATE, "num_codebooks": self.num_codebooks,
                 "codebook_size": self.codebook_size}  # fmt: skip
        write_json(folder / "codec.json", facts)

    @classmethod
    def load(cls, folder: Path) -> VocoderCodec:
        """Read what `save` wrote. Raises `BaseModelError` if it is missing or damaged."""
        try:
            tensors = load_file(folder / "codec.safetensors")
            return cls(*(tensors[key] for key in ("mean", "scale", "basis", "codebooks")))
        except (SafetensorError, OSError, KeyError) as error:
            raise BaseModelError(f"the codec in {folder} can't be read ({error}); get the base again") from error

    @classmethod
    def fit(
        cls, clips: Iterable[FloatArray], *, num_components: int = 96, num_codebooks: int = 8,
        codebook_size: int = 256, seed: int = 0, iterations: int = 25, refinements: int = 4,
    ) -> VocoderCodec:  # fmt: skip
        """Fit the codec to the features of many clips (each from `analyse`)."""
        blocks = np.concatenate([_blocks(features) for features in clips])
        mean = blocks.mean(axis=0)
        # One scale per feature, not per place in the block, because the block's eight frames are alike.
        deviation = np.sqrt(((blocks - mean) ** 2).reshape(len(blocks), BLOCK, NUM_FEATURES).mean(axis=(0, 1)))
        deviation = np.maximum(deviation, 1e-6)
        scale = np.tile(deviation / _weights(deviation), BLOCK)
        standard = (blocks - mean) / scale
        values, vectors = np.linalg.eigh(standard.T @ standard / len(standard))
        basis = vectors[:, np.argsort(values)[::-1][:num_components]]
        points = standard @ basis
        # First one codebook at a time, each on the residual of the previous ones; then all of them together.
        residual = points
        rng = np.random.default_rng(seed)
        books = []
        for _ in range(num_codebooks):
            book = _kmeans(residual, codebook_size, iterations, rng)
            residual = residual - book[_nearest(residual, book)]
            books.append(book)
        codebooks = np.stack(books)
        for _ in range(refinements):
            codebooks = _refined(points, codebooks)
        return cls(mean, scale, basis, codebooks)


def _weights(deviation: FloatArray) -> FloatArray:
    """The weight (26,) of one standard deviation of each feature."""
    weight = np.sqrt(deviation)
    weight[:NUM_CEPSTRA] /= np.sqrt((weight[:NUM_CEPSTRA] ** 2).mean())
    weight[NUM_CEPSTRA], weight[NUM_CEPSTRA + 1] = _F0_WEIGHT, _VOICING_WEIGHT
    return weight


def _search(points_TP: NDArray[np.floating], codebooks_KVP: NDArray[np.floating]) -> NDArray[np.int64]:
    """Codes (T, K) whose centroids nearly add up to each point, by a beam search of width `_BEAM`."""
    num_books, size = codebooks_KVP.shape[:2]
    codes = np.empty((len(points_TP), num_books), dtype=np.int64)
    points_TP, codebooks_KVP = points_TP.astype(np.float32), codebooks_KVP.astype(np.float32)
    for start in range(0, len(points_TP), _FRAMES_AT_ONCE):
        left = points_TP[start : start + _FRAMES_AT_ONCE, None, :]
        found = np.empty((len(left), 1, 0), dtype=np.int64)
        for book in codebooks_KVP:
            errors = (left**2).sum(axis=-1, keepdims=True) - 2.0 * left @ book.T + (book**2).sum(axis=1)
            errors = errors.reshape(len(left), -1)
            width = min(_BEAM, errors.shape[1])
            best = np.argpartition(errors, width - 1, axis=1)[:, :width]
            # Sorted, so that ties are broken the same way wherever a clip is in the batch.
            best.sort(axis=1)
            parents, code = best // size, best % size
            found = np.concatenate([np.take_along_axis(found, parents[..., None], axis=1), code[..., None]], axis=2)
            left = np.take_along_axis(left, parents[..., None], axis=1) - book[code]
        winner = (left**2).sum(axis=-1).argmin(axis=1)
        codes[start : start + len(left)] = found[np.arange(len(left)), winner]
    return codes


def _refined(points: FloatArray, codebooks: FloatArray) -> FloatArray:
    """Codebooks refitted to the codes that the search finds, one after the other."""
    codes = _search(points, codebooks)
    books = codebooks.copy()
    residual = points - sum(book[codes[:, k]] for k, book in enumerate(books))
    for k in range(len(books)):
        residual += books[k][codes[:, k]]
        books[k] = _means(residual, codes[:, k], books[k])
        residual -= books[k][codes[:, k]]
    return books


def _means(points: FloatArray, nearest: NDArray[np.int64], book: FloatArray) -> FloatArray:
    """Mean of the points of each code; a code without points stays as it is in `book`."""
    counts = np.bincount(nearest, minlength=len(book))
    order = np.argsort(nearest, kind="stable")
    alive = counts > 0
    starts = np.cumsum(counts[alive]) - counts[alive]
    means = book.copy()
    means[alive] = np.add.reduceat(points[order], starts, axis=0) / counts[alive, None]
    return means


def _blocks(features: FloatArray) -> FloatArray:
    return features.reshape(-1, BLOCK * NUM_FEATURES)


def _nearest(points: FloatArray, book: FloatArray) -> NDArray[np.int64]:
    half_norms = 0.5 * (book**2).sum(axis=1)
    parts = [
        np.argmin(half_norms - part @ book.T, axis=1) for part in np.array_split(points, max(1, len(points) // 8192))
    ]
    return np.concatenate(parts).astype(np.int64)


def _kmeans(points: FloatArray, size: int, iterations: int, rng: np.random.Generator) -> FloatArray:
    assert len(points) >= size, f"{len(points)} blocks of 80 ms are too few for {size} codes"
    book = points[rng.choice(len(points), size, replace=False)].copy()
    for _ in range(iterations):
        nearest = _nearest(points, book)
        book = _means(points, nearest, book)
        dead = np.bincount(nearest, minlength=size) == 0
        if dead.any():
            book[dead] = points[rng.choice(len(points), int(dead.sum()), replace=False)]
    return book
