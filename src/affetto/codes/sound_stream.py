"""Sound while it is spoken: codes go in as they come, and samples come out that no later code changes.

Mimi's decoder is causal, and here each of its layers keeps what the next piece needs: a convolution its last inputs, a
transposed one the tail that overlaps with what follows, attention its keys and values. A frame then costs the same
wherever it stands, and its samples are there at once. transformers' `MimiModel.decode` keeps the attention's state
alone; the weights and all layers are its own.

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
    """Whether no layer of Mimi's decoder looks ahead."""
    from transformers.models.mimi.modeling_mimi import MimiConv1d, MimiConvTranspose1d

    layers = [*model.decoder.modules(), *(model.upsample.modules() if model.upsample is not None else ())]
    forwards = [layer for layer in layers if isinstance(layer, MimiConv1d)]
    backwards = [layer for layer in layers if isinstance(layer, MimiConvTranspose1d)]
    return all(layer.causal and layer.pad_mode in ("constant", "replicate") for layer in forwards) and all(
        layer.causal and layer.padding_left == 0 for layer in backwards
    )


class MimiStream:
    """Mimi's decoder with the state of every layer; the model must pass `can_stream_mimi`."""

    def __init__(self, model: Any) -> None:
        from transformers import DynamicCache

        self._model = model.eval()
        self._states: dict[Any, Tensor] = {}
        self._attended = DynamicCache(config=model.decoder_transformer.config)

    def push(self, codes_TK: NDArray[np.integer]) -> NDArray[np.float32]:
        """See `affetto.types.SoundStream`; every frame's samples are settled."""
        if len(codes_TK) == 0:
            return _NOTHING
        import torch

        model = self._model
        codes_1KT = torch.from_numpy(np.asarray(codes_TK, dtype=np.int64).T.copy())[None].to(model.device)
        with exactly():
            x_BCT = model.quantizer.decode(codes_1KT)
            if model.upsample is not None:
                x_BCT = self._convolve(model.upsample, x_BCT)
            x_BCT = model.decoder_transformer(
                x_BCT.mT, past_key_values=self._attended, use_cache=True, return_dict=True
            ).last_hidden_state.mT
            for layer in model.decoder.layers:
                x_BCT = walk(layer, x_BCT, self._convolve)
        return np.asarray(x_BCT.flatten().float().cpu().numpy(), dtype=np.float32)

    def finish(self) -> NDArray[np.float32]:
        """See `affetto.types.SoundStream`; nothing is held back."""
        return _NOTHING

    def _convolve(self, layer: Any, x_BCT: Tensor) -> Tensor:
        from transformers.models.mimi.modeling_mimi import MimiConv1d

        return self._forwards(layer, x_BCT) if isinstance(layer, MimiConv1d) else self._backwards(layer, x_BCT)

    def _forwards(self, layer: Any, x_BCT: Tensor) -> Tensor:
        """A convolution, whose last inputs stand before the next piece; before the first what the layer pads with."""
        import torch

        (kernel,), (dilation,) = layer.conv.kernel_size, layer.conv.dilation
        num_past = (kernel - 1) * dilation
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
