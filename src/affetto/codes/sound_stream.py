"""Sound while it is spoken and while it is heard: codes or samples go in as they come, and what nothing later changes
comes out.

Mimi is causal, and here each of its layers keeps what the next piece needs: a convolution its last inputs, a
transposed one the tail that overlaps with what follows, attention its keys and values. A frame then costs the same
wherever it stands, and its samples, or its codes, are there at once. transformers' `MimiModel.decode` keeps the
attention's state alone; the weights and all layers are its own.

A codec that keeps nothing decodes all that was said so far for every piece, and the work grows with the square of the
length.

Shapes: T frames, K codebooks, N samples; x_BCT is what goes into a layer (one row, channels, steps).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from affetto.codes.batches import exactly, walk

if TYPE_CHECKING:
    from torch import Tensor

_NOTHING = np.zeros(0, dtype=np.float32)


class RepeatingStream:
    """Decodes everything again for each piece and holds `num_held` frames back, which later ones change."""

    def __init__(self, decode: Callable[[NDArray[np.integer]], NDArray[np.float32]], num_held: int = 1) -> None:
        self._decode, self._num_held = decode, num_held
        self._frames: list[NDArray[np.integer]] = []
        self._num_told = 0

    def push(self, codes_TK: NDArray[np.integer]) -> NDArray[np.float32]:
        """See `affetto.types.SoundStream`."""
        self._frames.extend(codes_TK)
        num_settled = len(self._frames) - self._num_held
        if num_settled <= 0:
            return _NOTHING
        samples = self._decode(np.stack(self._frames))
        return self._tell(samples[: len(samples) * num_settled // len(self._frames)])

    def finish(self) -> NDArray[np.float32]:
        """See `affetto.types.SoundStream`."""
        return self._tell(self._decode(np.stack(self._frames))) if self._frames else _NOTHING

    def _tell(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        told, self._num_told = samples[self._num_told :], len(samples)
        return told


def can_stream_mimi(model: Any) -> bool:
    """Whether no layer of Mimi looks ahead."""
    from transformers.models.mimi.modeling_mimi import MimiConv1d, MimiConvTranspose1d

    forwards = [layer for layer in model.modules() if isinstance(layer, MimiConv1d)]
    backwards = [layer for layer in model.modules() if isinstance(layer, MimiConvTranspose1d)]
    return all(layer.causal and layer.pad_mode in ("constant", "replicate") for layer in forwards) and all(
        layer.causal and layer.padding_left == 0 for layer in backwards
    )


class MimiSound:
    """Codes to samples by Mimi's decoder (`affetto.types.SoundStream`); the model must pass `can_stream_mimi`."""

    def __init__(self, model: Any) -> None:
        self._model = model.eval()
        self._layers = _Layers(model.decoder_transformer)

    def push(self, codes_TK: NDArray[np.integer]) -> NDArray[np.float32]:
        """Every frame's samples are settled."""
        if len(codes_TK) == 0:
            return _NOTHING
        import torch

        model = self._model
        codes_1KT = torch.from_numpy(np.asarray(codes_TK, dtype=np.int64).T.copy())[None].to(model.device)
        with exactly():
            x_BCT = model.quantizer.decode(codes_1KT)
            if model.upsample is not None:
                x_BCT = self._layers.convolve(model.upsample, x_BCT)
            x_BCT = self._layers.attend(x_BCT)
            for layer in model.decoder.layers:
                x_BCT = walk(layer, x_BCT, self._layers.convolve)
        return np.asarray(x_BCT.flatten().float().cpu().numpy(), dtype=np.float32)

    def finish(self) -> NDArray[np.float32]:
        """Nothing is held back."""
        return _NOTHING


class MimiEar:
    """Samples to codes by Mimi's encoder (`affetto.types.CodeStream`); the model must pass `can_stream_mimi`."""

    def __init__(self, model: Any, num_codebooks: int) -> None:
        self._model, self._num_codebooks = model.eval(), num_codebooks
        self._layers = _Layers(model.encoder_transformer)
        self._hop = round(model.config.sampling_rate / model.config.frame_rate)
        self._waiting = _NOTHING

    def push(self, samples: NDArray[np.floating]) -> NDArray[np.int64]:
        """The codes (T, K) of the frames that are whole now."""
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


class _Layers:
    """The layers of one direction of Mimi, each with what it keeps from piece to piece."""

    def __init__(self, transformer: Any) -> None:
        from transformers import DynamicCache

        self._transformer = transformer
        self._attended = DynamicCache(config=transformer.config)
        self._states: dict[Any, Tensor] = {}

    def attend(self, x_BCT: Tensor) -> Tensor:
        """The transformer over what is new, with the keys and values of what was."""
        y_BTC: Tensor = self._transformer(
            x_BCT.mT, past_key_values=self._attended, use_cache=True, return_dict=True
        ).last_hidden_state
        return y_BTC.mT

    def convolve(self, layer: Any, x_BCT: Tensor) -> Tensor:
        """A convolution of either kind; a piece must be whole strides of the former."""
        from transformers.models.mimi.modeling_mimi import MimiConv1d

        return self._forwards(layer, x_BCT) if isinstance(layer, MimiConv1d) else self._backwards(layer, x_BCT)

    def _forwards(self, layer: Any, x_BCT: Tensor) -> Tensor:
        """A convolution, whose last inputs stand before the next piece; before the first what the layer pads with."""
        import torch

        (kernel,), (stride,), (dilation,) = layer.conv.kernel_size, layer.conv.stride, layer.conv.dilation
        num_past = (kernel - 1) * dilation + 1 - stride
        if layer in self._states:
            x_BCT = torch.cat([self._states[layer], x_BCT], dim=-1)
        else:
            x_BCT = torch.nn.functional.pad(x_BCT, (num_past, 0), mode=layer.pad_mode)
        self._states[layer] = x_BCT[..., x_BCT.shape[-1] - num_past :]
        y_BCT: Tensor = layer.conv(x_BCT)
        return y_BCT

    def _backwards(self, layer: Any, x_BCT: Tensor) -> Tensor:
        """A transposed convolution: what reaches over the piece's end, its bias apart, is added to the next piece."""
        (stride,) = layer.conv.stride
        y_BCT = _transposed(layer.conv, x_BCT)
        tail_BCT, num_steps = self._states.get(layer), x_BCT.shape[-1] * stride
        if tail_BCT is not None:
            y_BCT[..., : tail_BCT.shape[-1]] += tail_BCT
        bias = layer.conv.bias
        rest_BCT = y_BCT[..., num_steps:]
        self._states[layer] = rest_BCT if bias is None else rest_BCT - bias[:, None]
        return y_BCT[..., :num_steps]


def _transposed(conv: Any, x_BCT: Tensor) -> Tensor:
    """A transposed convolution as one product and a sum of what overlaps.

    torch's own lays its weights out anew for every call, which for a single frame takes three times as long as all of
    Mimi's other layers together.
    """
    import torch

    if conv.groups > 1:
        y_BCT: Tensor = conv(x_BCT)
        return y_BCT
    (kernel,), (stride,) = conv.kernel_size, conv.stride
    width = (x_BCT.shape[-1] - 1) * stride + kernel
    parts_BPT = (x_BCT.mT @ conv.weight.flatten(1)).mT
    y_BCT = torch.nn.functional.fold(parts_BPT, (1, width), (1, kernel), stride=(1, stride))[:, :, 0]
    return y_BCT if conv.bias is None else y_BCT + conv.bias[:, None]
