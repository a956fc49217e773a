"""Streaming Mimi: its layers over pieces of sounds, each keeping the state that the next piece of every row needs.

Mimi is causal, so a convolution needs its last inputs, a transposed one the tail that overlaps with what follows, and
attention its keys and values. transformers' `MimiModel.decode` keeps only the attention's state; the weights and all
layers are its own.

Rows may begin and end at any piece. All rows of the attention's cache end at the same place, so a row that began later
starts later in it, and a mask hides what comes before; each row has its own positions.

Shapes: B rows, T steps of a piece, S kept steps and the piece's; x_BCT is a layer's input (rows, channels, steps).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class MimiLayers:
    """The layers of one direction of Mimi (encoding or decoding), each with every row's state from piece to piece.

    If a layer gets more rows than it has state for, the last ones are new rows, which begin with this piece.
    """

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self._attended = _Attended(int(transformer.config.sliding_window))
        self._states: dict[Any, Tensor] = {}

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these, which are in this order from now on."""
        if not rows:
            self._states, self._attended = {}, _Attended(self._attended.window)
            return
        import torch

        places_B = torch.tensor(rows, device=self._attended.positions_B.device)
        self._states = {layer: state.index_select(0, places_B) for layer, state in self._states.items()}
        self._attended.keep(places_B)

    def attend(self, x_BCT: Tensor) -> Tensor:
        """The transformer over the new steps, with the keys and values of the earlier ones."""
        x_BTC = x_BCT.mT
        positions_BT, mask_B1TS = self._attended.places(x_BTC)
        turns = self._transformer.rotary_emb(x_BTC, positions_BT)
        for layer in self._transformer.layers:
            x_BTC = layer(
                x_BTC, attention_mask=mask_B1TS, past_key_values=self._attended, position_embeddings=turns
            )[0]  # fmt: skip
        return x_BTC.mT

    def convolve(self, layer: Any, x_BCT: Tensor) -> Tensor:
        """A plain or transposed convolution; for a plain one a piece must be whole strides."""
        from transformers.models.mimi.modeling_mimi import MimiConv1d

        return self._forwards(layer, x_BCT) if isinstance(layer, MimiConv1d) else self._backwards(layer, x_BCT)

    def _forwards(self, layer: Any, x_BCT: Tensor) -> Tensor:
        """A plain convolution; its last inputs precede the next piece, the layer's padding precedes the first."""
        import torch

        (kernel,), (stride,), (dilation,) = layer.conv.kernel_size, layer.conv.stride, layer.conv.dilation
        num_past = (kernel - 1) * dilation + 1 - stride
        past_BCT = self._states.get(layer)
        if past_BCT is None:
            x_BCT = torch.nn.functional.pad(x_BCT, (num_past, 0), mode=layer.pad_mode)
        else:
            if len(past_BCT) < len(x_BCT):
                new_BCT = x_BCT[len(past_BCT) :, :, :1].expand(-1, -1, num_past)
                new_BCT = new_BCT if layer.pad_mode == "replicate" else torch.zeros_like(new_BCT)
                past_BCT = torch.cat([past_BCT, new_BCT])
            x_BCT = torch.cat([past_BCT, x_BCT], dim=-1)
        self._states[layer] = x_BCT[..., x_BCT.shape[-1] - num_past :]
        y_BCT: Tensor = layer.conv(x_BCT)
        return y_BCT

    def _backwards(self, layer: Any, x_BCT: Tensor) -> Tensor:
        """A transposed convolution; its output past the piece's end, without the bias, is added to the next piece."""
        (stride,) = layer.conv.stride
        y_BCT = _transposed(layer.conv, x_BCT)
        tail_BCT, num_steps = self._states.get(layer), x_BCT.shape[-1] * stride
        if tail_BCT is not None:
            y_BCT[: len(tail_BCT), :, : tail_BCT.shape[-1]] += tail_BCT
        bias = layer.conv.bias
        rest_BCT = y_BCT[..., num_steps:]
        self._states[layer] = rest_BCT if bias is None else rest_BCT - bias[:, None]
        return y_BCT[..., :num_steps]


class _Attended:
    """Keys and values (B, heads, S, width) of the last `window` - 1 steps in every layer; a `transformers.Cache`.

    A row that began later has zeros before its own steps, which `places` masks.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.positions_B: Tensor
        """Position of each row's next step."""
        self._kept: list[tuple[Tensor, Tensor]] = []

    def keep(self, places_B: Tensor) -> None:
        """Forget all rows but these."""
        self.positions_B = self.positions_B.index_select(0, places_B)
        self._kept = [(k.index_select(0, places_B), v.index_select(0, places_B)) for k, v in self._kept]

    def places(self, x_BTC: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (B, T) of the steps of `x_BTC`, and their attention mask (B, 1, T, S) over kept and new steps."""
        import torch

        (num_rows, num_new, _), device = x_BTC.shape, x_BTC.device
        num_past = self._kept[0][0].shape[2] if self._kept else 0
        before_B = self.positions_B if self._kept else torch.zeros(0, dtype=torch.int64, device=device)
        before_B = torch.nn.functional.pad(before_B, (0, num_rows - len(before_B)))
        self.positions_B = before_B + num_new
        steps_S = torch.arange(-num_past, num_new, device=device)
        back_TS = steps_S[num_past:, None] - steps_S
        is_seen_B1TS = (back_TS >= 0) & (back_TS < self.window) & (steps_S >= -before_B[:, None])[:, None, None]
        mask_B1TS = torch.zeros(is_seen_B1TS.shape, dtype=x_BTC.dtype, device=device)
        return before_B[:, None] + steps_S[num_past:], mask_B1TS.masked_fill_(~is_seen_B1TS, -torch.inf)

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """See `transformers.Cache.update`: all keys and values that the layer's new steps may see."""
        if layer < len(self._kept):
            keys, values = (_appended(old, new) for old, new in zip(self._kept[layer], (keys, values), strict=True))
        else:
            assert layer == len(self._kept), "the layers come one after the other"
            self._kept.append((keys, values))
        start = max(0, keys.shape[2] - self.window + 1)
        self._kept[layer] = keys[:, :, start:], values[:, :, start:]
        return keys, values


def _appended(old: Tensor, new: Tensor) -> Tensor:
    """The steps of `old` and then of `new`; rows that only `new` has begin with zeros."""
    import torch

    if len(old) < len(new):
        old = torch.cat([old, old.new_zeros(len(new) - len(old), *old.shape[1:])])
    return torch.cat([old, new], dim=2)


def _transposed(conv: Any, x_BCT: Tensor) -> Tensor:
    """A transposed convolution as one matrix product, whose parts (a kernel per step) are added where they overlap.

    torch's own rearranges its weights on every call, which for a single frame takes three times as long as all of
    Mimi's other layers together.
    """
    y_BCT: Tensor
    if conv.groups > 1:
        y_BCT = conv(x_BCT)
        return y_BCT
    (kernel,), (stride,) = conv.kernel_size, conv.stride
    num_rows, _, num_steps = x_BCT.shape
    # Flattened, because a product of 3-D tensors would compute each row separately.
    parts = (x_BCT.mT.flatten(0, 1) @ conv.weight.flatten(1)).view(num_rows, num_steps, -1, kernel).transpose(1, 2)
    sum_shape = (num_rows, parts.shape[1], num_steps + (kernel - 1) // stride, stride)
    if conv.bias is None:
        y = parts.new_zeros(sum_shape)
    else:
        import torch

        y = conv.bias[:, None, None].expand(sum_shape).clone(memory_format=torch.contiguous_format)
    for place, part in enumerate(parts.split(stride, dim=-1)):
        y[:, :, place : place + num_steps, : part.shape[-1]] += part
    y_BCT = y.flatten(2)[..., : (num_steps - 1) * stride + kernel]
    return y_BCT
