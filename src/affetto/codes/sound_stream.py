"""Streaming: codes or samples go in as they come, and what nothing later can change comes out.

With Mimi every frame costs the same, and its samples or codes come out at once: its layers keep the state that the next
piece needs (`codes.mimi_layers`). Many sounds are decoded in one pass; a single one is a batch of one.

A codec without state decodes everything so far again for each piece, so the work grows with the square of the length.

Shapes: B rows (sounds), T frames, K codebooks, N samples; x_BCT is a layer's input (rows, channels, steps).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from affetto.codes.batches import exactly, walk
from affetto.codes.mimi_layers import MimiLayers
from affetto.errors import DataError
from affetto.types import SoundStream

if TYPE_CHECKING:
    from torch import Tensor

_NOTHING = np.zeros(0, dtype=np.float32)


class RepeatingStream:
    """Decodes everything again for each piece and holds back the last `num_held` frames, which later ones change."""

    def __init__(self, decode: Callable[[NDArray[np.integer]], NDArray[np.float32]], num_held: int = 1) -> None:
        self._decode, self._num_held = decode, num_held
        self._frames: list[NDArray[np.integer]] = []
        self._num_returned = 0

    def push(self, codes_TK: NDArray[np.integer]) -> NDArray[np.float32]:
        """See `affetto.types.SoundStream`."""
        self._frames.extend(codes_TK)
        num_settled = len(self._frames) - self._num_held
        if num_settled <= 0:
            return _NOTHING
        samples = self._decode(np.stack(self._frames))
        return self._new(samples[: len(samples) * num_settled // len(self._frames)])

    def finish(self) -> NDArray[np.float32]:
        """See `affetto.types.SoundStream`."""
        return self._new(self._decode(np.stack(self._frames))) if self._frames else _NOTHING

    def _new(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """The samples that haven't been returned yet."""
        new, self._num_returned = samples[self._num_returned :], len(samples)
        return new


class SeparateStreams:
    """`affetto.types.SoundStreams` for a codec that decodes one sound at a time: a stream for each sound."""

    def __init__(self, open_stream: Callable[[], SoundStream]) -> None:
        self._open, self._streams = open_stream, dict[int, SoundStream]()

    def push(self, codes: Mapping[int, NDArray[np.integer]]) -> dict[int, NDArray[np.float32]]:
        """See `affetto.types.SoundStreams`."""
        check_together(self._streams, codes)
        self._streams |= {number: self._open() for number in codes if number not in self._streams}
        return {number: self._streams[number].push(codes_TK) for number, codes_TK in codes.items()}

    def finish(self, number: int) -> NDArray[np.float32]:
        """See `affetto.types.SoundStreams`."""
        stream = self._streams.pop(number, None)
        return _NOTHING if stream is None else stream.finish()


def check_together(open_numbers: Iterable[int], codes: Mapping[int, NDArray[np.integer]]) -> int:
    """The number of frames of each sound in `codes`; DataError unless it is the same and all open sounds have codes."""
    if missing := [number for number in open_numbers if number not in codes]:
        listed = ", ".join(map(str, missing))
        raise DataError(f"no codes for sound {listed}: all open sounds go on together; finish those that have ended")
    lengths = {len(codes_TK) for codes_TK in codes.values()}
    if len(lengths) > 1:
        raise DataError(f"sounds that are decoded together need the same number of frames, not {sorted(lengths)}")
    return lengths.pop() if lengths else 0


def can_stream_mimi(model: Any) -> bool:
    """Whether no layer of Mimi looks ahead."""
    from transformers.models.mimi.modeling_mimi import MimiConv1d, MimiConvTranspose1d

    forwards = [layer for layer in model.modules() if isinstance(layer, MimiConv1d)]
    backwards = [layer for layer in model.modules() if isinstance(layer, MimiConvTranspose1d)]
    return all(layer.causal and layer.pad_mode in ("constant", "replicate") for layer in forwards) and all(
        layer.causal and layer.padding_left == 0 for layer in backwards
    )


class MimiSounds:
    """Decodes many sounds with Mimi, in one pass for all (`affetto.types.SoundStreams`).

    The model must pass `can_stream_mimi`.
    """

    def __init__(self, model: Any) -> None:
        self._model = model.eval()
        self._layers = MimiLayers(model.decoder_transformer)
        self._rows: list[int | None] = []
        """The number of the sound in each row; None if it has ended."""

    def push(self, codes: Mapping[int, NDArray[np.integer]]) -> dict[int, NDArray[np.float32]]:
        """See `affetto.types.SoundStreams`; every frame's samples are final."""
        if check_together([number for number in self._rows if number is not None], codes) == 0:
            return dict.fromkeys(codes, _NOTHING)
        import torch

        with exactly():
            numbers = self._arrange(codes)
            # The encoding parts may be on another device.
            device = next(self._model.decoder.parameters()).device
            codes_BTK = np.stack([np.asarray(codes[number], dtype=np.int64) for number in numbers])
            samples_BN = self._decoded(torch.from_numpy(codes_BTK).to(device).mT)
            samples = np.asarray(samples_BN.float().cpu().numpy(), dtype=np.float32)
        return dict(zip(numbers, samples, strict=True))

    def finish(self, number: int) -> NDArray[np.float32]:
        """Returns nothing, since nothing is held back; frees the row before the next piece."""
        if number in self._rows:
            self._rows[self._rows.index(number)] = None
        return _NOTHING

    def _arrange(self, codes: Mapping[int, Any]) -> list[int]:
        """Drop the rows of sounds that have ended, append rows for new ones; returns the sound number of each row."""
        if None in self._rows:
            self._layers.keep([row for row, number in enumerate(self._rows) if number is not None])
        numbers = [number for number in self._rows if number is not None]
        open_numbers = set(numbers)
        numbers += [number for number in codes if number not in open_numbers]
        self._rows = [*numbers]
        return numbers

    def _decoded(self, codes_BKT: Tensor) -> Tensor:
        model = self._model
        x_BCT = model.quantizer.decode(codes_BKT)
        if model.upsample is not None:
            x_BCT = self._layers.convolve(model.upsample, x_BCT)
        x_BCT = self._layers.attend(x_BCT)
        for layer in model.decoder.layers:
            x_BCT = walk(layer, x_BCT, self._layers.convolve)
        return x_BCT.flatten(1)


class MimiSound:
    """Decodes one sound with Mimi: `MimiSounds` with a single row (`affetto.types.SoundStream`)."""

    def __init__(self, model: Any) -> None:
        self._sounds = MimiSounds(model)

    def push(self, codes_TK: NDArray[np.integer]) -> NDArray[np.float32]:
        """Samples of the new frames, all of them final."""
        return self._sounds.push({0: codes_TK})[0]

    def finish(self) -> NDArray[np.float32]:
        """Returns nothing, since nothing is held back."""
        return self._sounds.finish(0)


class MimiEar:
    """Encodes a sound with Mimi (`affetto.types.CodeStream`); the model must pass `can_stream_mimi`."""

    def __init__(self, model: Any, num_codebooks: int) -> None:
        self._model, self._num_codebooks = model.eval(), num_codebooks
        self._layers = MimiLayers(model.encoder_transformer)
        self._hop = round(model.config.sampling_rate / model.config.frame_rate)
        self._waiting = _NOTHING

    def push(self, samples: NDArray[np.floating]) -> NDArray[np.int64]:
        """Codes (T, K) of the frames that are now complete."""
        self._waiting = np.concatenate([self._waiting, np.asarray(samples, dtype=np.float32)])
        whole = self._waiting[: len(self._waiting) // self._hop * self._hop]
        self._waiting = self._waiting[len(whole) :]
        if len(whole) == 0:
            return np.zeros((0, self._num_codebooks), dtype=np.int64)
        import torch

        model = self._model
        x_BCT = torch.from_numpy(whole)[None, None].to(model.device, model.dtype)
        with exactly():
            for layer in model.encoder.layers:
                x_BCT = walk(layer, x_BCT, self._layers.convolve)
            x_BCT = self._layers.attend(x_BCT)
            if model.downsample is not None:
                x_BCT = self._layers.convolve(model.downsample, x_BCT)
            codes_KBT = model.quantizer.encode(x_BCT, self._num_codebooks)
        return np.asarray(codes_KBT[:, 0].T.cpu().numpy(), dtype=np.int64)
