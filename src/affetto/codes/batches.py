"""Mimi and DAC over batches of clips of unequal lengths: every clip gets the codes that it gets alone.

transformers' encoders have no padding mask (#43377): at the end of a clip that isn't a batch's longest, convolutions
would see what the clip alone doesn't have there, biases that went through layers before. Here each row's end is made
what it is in the clip alone, before every convolution that can see behind it: zeros, or the last value again, as the
layer pads. The weights and all layers are transformers' own. Attention needs no mask, since it looks back only; nor
does quantisation, being of single frames.

Shapes: B clips, N samples, C channels, T steps of the layer at hand, D latent size, F frames of all clips, K codebooks,
W steps behind an end. A batch's N is whole frames, so that nothing but `_fill` cares for the ends of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


def pack(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Which clips go into a batch together: places in `lengths`, the shortest clips first.

    A batch has at most `most` samples with its padding, but for a clip that is longer by itself.
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: (lengths[place], place)):
        # Clips come by length: this one would be the batch's longest.
        if batches and (len(batches[-1]) + 1) * lengths[place] <= most:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def can_batch_mimi(model: Any) -> bool:
    """Whether each layer pads with zeros or with the last value: then a row's end can be made as it is alone."""
    from transformers.models.mimi.modeling_mimi import MimiConv1d

    convolutions = [layer for layer in model.modules() if isinstance(layer, MimiConv1d)]
    return all(layer.pad_mode in ("constant", "replicate") for layer in convolutions)


def mimi_codes(model: Any, sounds: Sequence[NDArray[np.floating]], num_codebooks: int) -> list[NDArray[np.int64]]:
    """Codes (T, K) of each of mono `sounds`, which are coded in one batch and have one frame at least."""
    latents_FD, frames = mimi_latents(model, sounds)
    codes_KF = model.quantizer.encode(latents_FD.T[None], num_codebooks)[:, 0].cpu()
    return [np.asarray(part_TK.numpy(), dtype=np.int64) for part_TK in codes_KF.T.split(frames)]


def mimi_latents(model: Any, sounds: Sequence[NDArray[np.floating]]) -> tuple[Tensor, list[int]]:
    """What the quantiser of Mimi gets of each sound's own frames (F, D), one sound after the other, and their numbers.

    The encoder is walked through rather than called: its convolutions ask the GPU for each of their paddings.
    """
    import torch

    config = model.config
    samples_BN, lengths_B = _batch(sounds, round(config.sampling_rate / config.frame_rate), model)
    x_BCT = samples_BN[:, None]
    convolve = partial(_convolve, lengths_B=lengths_B, num_samples=samples_BN.shape[-1])
    for layer in model.encoder.layers:
        x_BCT = walk(layer, x_BCT, convolve)
    x_BCT = model.encoder_transformer(x_BCT.mT, use_cache=False, return_dict=True).last_hidden_state.mT
    if model.downsample is not None:
        x_BCT = convolve(model.downsample, x_BCT)
    frames_B = -(-lengths_B * x_BCT.shape[-1] // samples_BN.shape[-1])
    is_own_BT = torch.arange(x_BCT.shape[-1], device=x_BCT.device) < frames_B[:, None]
    return x_BCT.mT[is_own_BT], frames_B.tolist()


def can_batch_dac(model: Any) -> bool:
    """Whether whole frames stay whole steps in every layer, as `dac_codes` takes for granted."""
    return all(ratio > 1 for ratio in model.config.downsampling_ratios)


def dac_codes(model: Any, sounds: Sequence[NDArray[np.floating]], num_codebooks: int) -> list[NDArray[np.int64]]:
    """Codes (T, K) of each of mono `sounds`, which are coded in one batch and have whole frames."""
    hop = int(model.config.hop_length)
    samples_BN, lengths_B = _batch(sounds, hop, model)
    with _silence_behind(model.encoder, lengths_B, samples_BN.shape[-1]):
        codes_BKT = model.encode(samples_BN[:, None], n_quantizers=num_codebooks).audio_codes
    return [
        np.asarray(codes_KT[:, : len(sound) // hop].T.numpy(), dtype=np.int64)
        for codes_KT, sound in zip(codes_BKT.cpu(), sounds, strict=True)
    ]


@contextmanager
def _silence_behind(encoder: Any, lengths_B: Tensor, num_samples: int) -> Iterator[None]:
    """Let each convolution of `encoder` see zeros behind a row's end, as a clip alone is padded by it."""
    import torch

    def silenced(_: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (x_BCT,) = inputs
        ends_B = lengths_B * x_BCT.shape[-1] // num_samples
        is_behind_BT = torch.arange(x_BCT.shape[-1], device=x_BCT.device) >= ends_B[:, None]
        return (x_BCT.masked_fill(is_behind_BT[:, None], 0.0),)

    with ExitStack() as stack:
        for layer in encoder.modules():
            if isinstance(layer, torch.nn.Conv1d) and layer.padding != (0,):
                stack.callback(layer.register_forward_pre_hook(silenced).remove)
        yield


@contextmanager
def exactly() -> Iterator[None]:
    """No gradients, and convolutions in float32 on a GPU too, where cuDNN rounds factors to 10 bits by default."""
    import torch

    is_on = torch.backends.cudnn.enabled
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=is_on, allow_tf32=False):
        yield


def walk(layer: Any, x_BCT: Tensor, convolve: Callable[[Any, Tensor], Tensor]) -> Tensor:
    """What a layer of Mimi's encoder or decoder gives, with `convolve` for its convolutions (B, C, T)."""
    from transformers.models.mimi.modeling_mimi import MimiConv1d, MimiConvTranspose1d, MimiResnetBlock

    if isinstance(layer, MimiConv1d | MimiConvTranspose1d):
        return convolve(layer, x_BCT)
    y_BCT: Tensor
    if not isinstance(layer, MimiResnetBlock):
        y_BCT = layer(x_BCT)
        return y_BCT
    y_BCT = x_BCT
    for part in layer.block:
        y_BCT = walk(part, y_BCT, convolve)
    return walk(layer.shortcut, x_BCT, convolve) + y_BCT


def _convolve(layer: Any, x_BCT: Tensor, *, lengths_B: Tensor, num_samples: int) -> Tensor:
    """A `MimiConv1d` of rows that end where `lengths_B` samples do."""
    import torch

    (kernel,), (stride,), (dilation,) = layer.conv.kernel_size, layer.conv.stride, layer.conv.dilation
    total = (kernel - 1) * dilation + 1 - stride
    right = 0 if layer.causal else total // 2
    # A layer fills a clip's last stride up, so that its outputs see so far behind the end.
    width = right + stride - 1
    left = total - right
    ends_B = -(-lengths_B * x_BCT.shape[-1] // num_samples)
    mode = layer.pad_mode
    padded_BCT = torch.nn.functional.pad(x_BCT, (left, width), mode=mode)
    if width:
        _fill(padded_BCT, left + ends_B, width, keeps_last=mode == "replicate")
    y_BCT: Tensor = layer.conv(padded_BCT)
    return y_BCT


def _fill(x_BCT: Tensor, ends_B: Tensor, width: int, *, keeps_last: bool = False) -> None:
    """Set what stands in `width` steps behind each row's end to zero, or to the row's last value, in place."""
    import torch

    x_BTC = x_BCT.mT
    rows_B1 = torch.arange(len(x_BTC), device=x_BTC.device)[:, None]
    places_BW = ends_B[:, None] + torch.arange(width, device=x_BTC.device)
    if keeps_last:
        x_BTC[rows_B1, places_BW] = x_BTC[rows_B1, ends_B[:, None] - 1]
    else:
        x_BTC[rows_B1, places_BW] = 0.0


def _batch(sounds: Sequence[NDArray[np.floating]], frame: int, model: Any) -> tuple[Tensor, Tensor]:
    """Samples (B, N) with zeros behind each sound up to whole frames, and the sounds' own lengths (B)."""
    import torch

    lengths = [len(sound) for sound in sounds]
    samples_BN = np.zeros((len(sounds), -(-max(lengths) // frame) * frame), dtype=np.float32)
    for row_N, sound in zip(samples_BN, sounds, strict=True):
        row_N[: len(sound)] = sound
    return torch.from_numpy(samples_BN).to(model.device, model.dtype), torch.tensor(lengths, device=model.device)
