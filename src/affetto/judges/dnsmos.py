"""DNSMOS P.835's network (Reddy et al., ICASSP 2022) in torch, with the weights from the published ONNX file.

Power spectra of 320 samples every 160, four 3x3 convolutions at full size (98 % of the work), three more after 2x2
poolings, the maximum over all, three dense layers. The published graph takes one window of 900 frames at a time, though
windows overlap by eight ninths and a short sound is repeated until it fills one. Here the four convolutions run once,
over the whole sound or over one period of a repeated one. Only the four frames at either end of a window, which see its
zero padding, are computed per window. Outputs differ from the graph's by rounding (1e-5), which tests check.

T are frames, P pairs of frames, W windows, F frequencies, C channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from affetto.errors import JudgeError

FRAMES = 900
"""Frames of one window."""
SHIFT = 160
"""Samples from one frame to the next; a frame has two shifts."""
STEP = 100
"""Frames from one window to the next: one second."""
_REACH = 4
"""Frames that the four convolutions see on either side."""
_CHUNK = 128
"""Frames computed at once: few enough for the processor's cache."""
_GROUP = 60
"""Windows whose features are in memory at once: 75 MB."""
_FLOOR = 1e-12
_BLOCK = 128
"""Terms that onnxruntime sums at once."""

Wire: TypeAlias = tuple[int, int | bytes]


class DnsmosNetwork:
    """The network; immutable, so that several threads may use it."""

    def __init__(self, path: Path) -> None:
        """Read the weights of the published `sig_bak_ovr.onnx`; JudgeError if `path` is something else."""
        weights = read_weights(path)
        try:
            sine, cosine = (weights[f"time2freq/stft-{part}/kernel:0"] for part in ("imag", "real"))
            convolutions = [
                (weights[f"{name}/kernel:0"], weights[f"{name}/bias:0"])
                for name in ("conv2d", *(f"conv2d_{index}" for index in range(1, 7)))
            ]
            self._dense = [
                tuple(weights[f"mos_estimator_logpow/{name}/{part}/ReadVariableOp/resource:0"] for part in parts)
                for name in ("dense", "dense_1", "dense_3")
                for parts in [("MatMul", "BiasAdd")]
            ]
        except KeyError as error:
            raise JudgeError(f"{path} isn't DNSMOS P.835: it has no {error.args[0]}") from error
        self._fourier = torch.cat([cosine[..., 0], sine[..., 0]]).T.contiguous()
        self._convolutions = [
            (kernel.contiguous(memory_format=torch.channels_last), bias) for kernel, bias in convolutions
        ]

    @torch.inference_mode()
    def score(self, samples: NDArray[np.float32], num_windows: int, period: int | None) -> NDArray[np.float32]:
        """Raw outputs (W, 3) of the windows that begin at every second of `samples` (mono, 16 kHz).

        `period` is the number of samples after which they repeat, None if they don't.
        """
        frames = None if period is None else math.lcm(period, 2 * SHIFT) // SHIFT  # even: frames are pooled in pairs
        groups = [range(first, min(first + _GROUP, num_windows)) for first in range(0, num_windows, _GROUP)]
        return np.concatenate([self._score_group(samples, group, frames) for group in groups])

    def _score_group(self, samples: NDArray[np.float32], windows: range, period: int | None) -> NDArray[np.float32]:
        first = windows[0] * STEP
        length = (len(windows) - 1) * STEP + FRAMES
        if period is None:
            period = length
        starts = [(window * STEP - first) % period for window in windows]
        length = min(length, period + 2 * _REACH)
        spectra_TF = self._spectra(samples[first * SHIFT : (first + length + 1) * SHIFT])
        # Pair n is frames 2n + 4 and 2n + 5, counted from the group's first window.
        inside_CPF = torch.cat(list(self._features(spectra_TF)), dim=1)
        scores = {}
        for start in dict.fromkeys(starts):
            ends_NTF = spectra_TF[self._ends(start, period)]
            before_CPF, after_CPF = self._convolve(ends_NTF)
            pairs = (start // 2 + torch.arange(FRAMES // 2 - _REACH)) % (period // 2)
            window_CPF = torch.cat(
                [before_CPF[:, : _REACH // 2], inside_CPF[:, pairs], after_CPF[:, -_REACH // 2 :]], 1
            )
            scores[start] = self._finish(window_CPF)
        return np.stack([scores[start] for start in starts])

    @staticmethod
    def _ends(start: int, period: int) -> Tensor:
        """Indices (2, 8) of the frames from which a window's first two and last two pooled frames are computed."""
        reach = torch.arange(2 * _REACH)
        return (start + torch.stack([reach, FRAMES - 2 * _REACH + reach])) % period

    def _spectra(self, samples: NDArray[np.float32]) -> Tensor:
        """Log power (T, F).

        If a frequency nearly cancels, its logarithm is all rounding, and scores move by 0.002 with the order of
        summation. So the order is that of onnxruntime's matrix product.
        """
        frames = torch.from_numpy(np.ascontiguousarray(samples)).unfold(0, 2 * SHIFT, SHIFT)
        parts = [
            frames[:, start : start + _BLOCK].contiguous() @ self._fourier[start : start + _BLOCK]
            for start in range(0, 2 * SHIFT, _BLOCK)
        ]
        real, imaginary = functools.reduce(torch.add, parts).chunk(2, dim=1)
        return torch.log(torch.clamp(real**2 + imaginary**2, min=_FLOOR)) / math.log(10)

    def _features(self, spectra_TF: Tensor) -> Iterator[Tensor]:
        """The four convolutions and the first pooling of all but the first and last four frames, in chunks."""
        for start in range(_REACH, len(spectra_TF) - _REACH, _CHUNK):
            end = min(start + _CHUNK, len(spectra_TF) - _REACH)
            features_CPF = self._convolve(spectra_TF[None, start - _REACH : end + _REACH])[0]
            yield features_CPF[:, _REACH // 2 : -_REACH // 2]

    def _convolve(self, spectra_NTF: Tensor) -> Tensor:
        """Features (N, C, P, F/2) of stretches with zero padding."""
        features = spectra_NTF[:, None]
        for kernel, bias in self._convolutions[:4]:
            features = functional.conv2d(features, kernel, bias, padding=1).relu_()
        return functional.max_pool2d(features, 2)

    def _finish(self, window_CPF: Tensor) -> NDArray[np.float32]:
        """The three raw outputs of a window."""
        features = window_CPF[None]
        for index, (kernel, bias) in enumerate(self._convolutions[4:]):
            if index:
                features = functional.max_pool2d(features, 2)
            features = functional.conv2d(features, kernel, bias, padding=1).relu_()
        row = features.amax(dim=(2, 3))[0]
        for index, (kernel, bias) in enumerate(self._dense):
            row = (row.relu() if index else row) @ kernel + bias
        return np.asarray(row.numpy())


def read_weights(path: Path) -> dict[str, Tensor]:
    """The float tensors of an ONNX file by name; reads only the parts of its protobuf (onnx.proto3) that these need.

    Raises JudgeError if the file isn't ONNX.
    """
    try:
        graph = dict(_fields(path.read_bytes()))[7]
        assert isinstance(graph, bytes)
        tensors = [_tensor(value) for number, value in _fields(graph) if number == 5 and isinstance(value, bytes)]
    except (OSError, KeyError, IndexError, ValueError, AssertionError) as error:
        raise JudgeError(f"{path} can't be read as an ONNX model: {error}") from error
    return {name: weights for name, weights in tensors if weights is not None}


def _tensor(message: bytes) -> tuple[str, Tensor | None]:
    """Name and values of a TensorProto: dims 1, data_type 2 (1 is float32), float_data 4, name 8, raw_data 9."""
    name, shape, kind, values = "", list[int](), 0, b""
    for number, value in _fields(message):
        if number == 1:
            shape += [value] if isinstance(value, int) else _varints(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8 and isinstance(value, bytes):
            name = value.decode()
        elif number in (4, 9) and isinstance(value, bytes):
            values += value
    if kind != 1:
        return name, None
    return name, torch.from_numpy(np.frombuffer(values, "<f4").astype(np.float32).reshape(shape))


def _fields(message: bytes) -> Iterator[Wire]:
    """(field number, value) of a protobuf message, in order."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        value: int | bytes
        if kind == 0:
            value, position = _varint(message, position)
        else:
            if kind == 2:
                length, position = _varint(message, position)
            elif kind in (1, 5):
                length = 8 if kind == 1 else 4
            else:
                raise ValueError(f"wire type {kind}")
            value = message[position : position + length]
            if len(value) < length:
                raise ValueError("it ends too early")
            position += length
        yield key >> 3, value


def _varints(packed: bytes) -> list[int]:
    values, position = list[int](), 0
    while position < len(packed):
        value, position = _varint(packed, position)
        values.append(value)
    return values


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """An integer stored in groups of seven bits, lowest first, and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        position += 1
        shift += 7
        if byte < 128:
            return value, position
