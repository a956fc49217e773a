"""Mimi and DAC over batches of clips of unequal lengths: every clip gets the codes that it gets alone.

transformers' encoders have no padding mask (#43377): past the end of a clip that isn't the batch's longest,
convolutions would see biases that went through earlier layers, which the clip alone doesn't have. So before every
convolution that can see past a row's end, what follows the end is set to what the layer pads a single clip with: zeros,
or the last value repeated. The weights and all layers are transformers' own. Attention needs no mask, since it only
looks back; nor does quantisation, which is per frame.

Shapes: B clips, N samples, C channels, T steps of the current layer, D latent size, F frames of all clips, K codebooks,
W steps after an end. A batch's N is whole frames, so that only `_fill` has to deal with the ends of rows.
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
    """Groups clips into batches: indices into `lengths`, the shortest clips first.

    A batch has at most `most` samples including padding, unless it is a single longer clip.
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: (lengths[place], place)):
        # Clips are sorted by length, so this one would be the batch's longest.
        if batches and (len(batches[-1]) + 1) * lengths[place] <= most:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def can_batch_mimi(model: Any) -> bool:
    """Whether every layer pads with zeros or the last value, as `mimi_latents` requires."""
    from transformers.models.mimi.modeling_mimi import MimiConv1d

    convolutions = [layer for layer in model.modules() if isinstance(layer, MimiConv1d)]
    return all(layer.pad_mode in ("constant", "replicate") for layer in convolutions)


def mimi_codes(model: Any, sounds: Sequence[NDArray[np.floating]], num_codebooks: int) -> list[NDArray[np.int64]]:
    """Codes (T, K) of each of the mono `sounds`, coded in one batch; each must have at least one frame."""
    latents_FD, frames = mimi_latents(model, sounds)
    codes_KF = model.quantizer.encode(latents_FD.T[None], num_codebooks)[:, 0].cpu()
    return [np.asarray(part_TK.numpy(), dtype=np.int64) for part_TK in codes_KF.T.split(frames)]


def mimi_latents(model: Any, sounds: Sequence[NDArray[np.floating]]) -> tuple[Tensor, list[int]]:
    """The inputs (F, D) of Mimi's quantiser for all sounds' frames, sound by sound, and each sound's number of frames.

    The encoder is walked layer by layer, not called, because its convolutions ask the GPU for each of their paddings.
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
    """Whether whole frames are whole steps in every layer, as `dac_codes` requires."""
    return all(ratio > 1 for ratio in model.config.downsampling_ratios)


def dac_codes(model: Any, sounds: Sequence[NDArray[np.floating]], num_codebooks: int) -> list[NDArray[np.int64]]:
    """Codes (T, K) of each of the mono `sounds`, coded in one batch; each must be whole frames."""
    hop = int(model.config.hop_length)
    samples_BN, lengths_B = _batch(sounds, hop, model)
    with _silence_after(model.encoder, lengths_B, samples_BN.shape[-1]):
        codes_BKT = model.encode(samples_BN[:, None], n_quantizers=num_codebooks).audio_codes
    return [
        np.asarray(codes_KT[:, : len(sound) // hop].T.numpy(), dtype=np.int64)
        for codes_KT, sound in zip(codes_BKT.cpu(), sounds, strict=True)
    ]


@contextmanager
def _silence_after(encoder: Any, lengths_B: Tensor, num_samples: int) -> Iterator[None]:
    """Make each convolution of `encoder` see zeros after a row's end, which is how it pads a single clip."""
    import torch

    def silenced(_: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (x_BCT,) = inputs
        ends_B = lengths_B * x_BCT.shape[-1] // num_samples
        is_after_BT = torch.arange(x_BCT.shape[-1], device=x_BCT.device) >= ends_B[:, None]
        return (x_BCT.masked_fill(is_after_BT[:, None], 0.0),)

    with ExitStack() as stack:
        for layer in encoder.modules():
            if isinstance(layer, torch.nn.Conv1d) and layer.padding != (0,):
                stack.callback(layer.register_forward_pre_hook(silenced).remove)
        yield


@contextmanager
def exactly() -> Iterator[None]:
    """No gradients, and convolutions in float32 even on a GPU, where cuDNN by default rounds factors to 10 bits."""
    import torch

    is_on = torch.backends.cudnn.enabled
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=is_on, allow_tf32=False):
        yield


def walk(layer: Any, x_BCT: Tensor, convolve: Callable[[Any, Tensor], Tensor]) -> Tensor:
    """The output (B, C, T) of a layer of Mimi's encoder or decoder, with `convolve` in place of its convolutions."""
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
    """A `MimiConv1d` over rows that end where their `lengths_B` samples do."""
    import torch

    (kernel,), (stride,), (dilation,) = layer.conv.kernel_size, layer.conv.stride, layer.conv.dilation
    total = (kernel - 1) * dilation + 1 - stride
    right = 0 if layer.causal else total // 2
    # A layer pads a clip's last stride, so its outputs see this far past the end.
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
    """Set the `width` steps after each row's end to zero, or to the row's last value, in place."""
    import torch

    x_BTC = x_BCT.mT
    rows_B1 = torch.arange(len(x_BTC), device=x_BTC.device)[:, None]
    places_BW = ends_B[:, None] + torch.arange(width, device=x_BTC.device)
    if keeps_last:
        x_BTC[rows_B1, places_BW] = x_BTC[rows_B1, ends_B[:, None] - 1]
    else:
        x_BTC[rows_B1, places_BW] = 0.0


def _batch(sounds: Sequence[NDArray[np.floating]], frame: int, model: Any) -> tuple[Tensor, Tensor]:
    """Samples (B, N), zero-padded to whole frames, and the sounds' own lengths (B)."""
    import torch

    lengths = [len(sound) for sound in sounds]
    samples_BN = np.zeros((len(sounds), -(-max(lengths) // frame) * frame), dtype=np.float32)
    for row_N, sound in zip(samples_BN, sounds, strict=True):
        row_N[: len(sound)] = sound
    return torch.from_numpy(samples_BN).to(model.device, model.dtype), torch.tensor(lengths, device=model.device)
