"""The kernels of `affetto.speak.kernels` as functions of tensors: grids, tiles and results' memory."""

from __future__ import annotations

from functools import cache

import torch
import triton
from torch import Tensor

from affetto.speak import kernels
from affetto.speak.layers import Rotary
from affetto.speak.sites import Site
from affetto.speak.weights import Shape


@cache
def _starts_early(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def _early(x: Tensor) -> dict[str, bool]:
    """Whether a kernel starts before the one in front of it has ended, and waits for it inside (NVIDIA's Hopper on).

    By then its first weights are being loaded.
    """
    is_on = _starts_early(x.device)
    return {"EARLY": is_on, "launch_pdl": is_on}


def project(
    x_1I: Tensor, site: Site, eps: float = 0.0, norm_I: Tensor | None = None, added_1O: Tensor | None = None, *,
    is_normed: bool = False, is_gated: bool = False, row: Tensor | None = None, dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """The product of one row: (1, O), or (1, O / 2) if SwiGLU follows (`is_gated`).

    The row is `x`, or x[row] for a `row` on the device. With `is_normed` it is normed first, with the weight `norm_I`
    or ones. `added` is added last.
    """
    # With adapters of full rank each chunk has a matrix of its own; a single row is one chunk.
    w_IO, low = site.w if site.w.dim() == 2 else site.w[0], None
    if site.a_GIR is not None:
        low = project(x_1I, Site(site.a_GIR[0]), eps, norm_I, is_normed=is_normed, row=row, dtype=torch.float32)
    num_in, num_out = w_IO.shape
    num_out //= 1 + is_gated
    y_1O = torch.empty(1, num_out, dtype=dtype or x_1I.dtype, device=x_1I.device)
    block_o, block_i, num_warps = _tile(num_in, num_out)
    rank = 0 if low is None else low.shape[1]
    kernels.project_kernel[(triton.cdiv(num_out, block_o),)](
        x_1I, row, norm_I, w_IO, low, site.b_GRO, added_1O, y_1O, eps, w_IO.stride(1), w_IO.stride(0), rank,
        IN=num_in, OUT=num_out, NORMED=is_normed, GATED=is_gated, RANK=triton.next_power_of_2(max(rank, 1)),
        BLOCK_O=block_o, BLOCK_I=block_i, num_warps=num_warps, **_early(x_1I),
    )  # fmt: skip
    return y_1O


def _tile(num_in: int, num_out: int) -> tuple[int, int, int]:
    """Outputs and inputs that a program takes at a time, and its number of warps.

    Many programs of few outputs and whole rows: of 267 tiles tried on an H100 with CSM-1B's shapes, these are within a
    few percent of the best for each shape.
    """
    block_i = min(triton.next_power_of_2(num_in), 2048)
    block_o = 1 if num_out < 256 else 2
    return block_o, block_i, 8 if num_in > block_i else 4


def attend(
    qkv_BX: Tensor, keys_NDS: Tensor, values_NSD: Tensor, shape: Shape, rotary: Rotary, slot: Tensor, starts_B: Tensor
) -> Tensor:
    """Attention of one position (B, query heads * Dh), whose key and value are stored in the cache's `slot` (1,)."""
    num_heads, width, num_slots = keys_NDS.shape
    y_BX = torch.empty(len(qkv_BX), shape.num_kv * shape.group * width, dtype=qkv_BX.dtype, device=qkv_BX.device)
    kernels.attend_kernel[(num_heads,)](
        qkv_BX, keys_NDS, values_NSD, y_BX, rotary.cos_S2H, rotary.sin_S2H, slot, starts_B, num_slots, width**-0.5,
        NUM_KV=shape.num_kv, GROUP=shape.group, HALF=width // 2,
        BLOCK=min(64, max(16, triton.next_power_of_2(num_slots))),
        PRECISION="ieee" if qkv_BX.dtype == torch.float32 else "tf32", num_warps=4, **_early(qkv_BX),
    )  # fmt: skip
    return y_BX


def norm(x_BD: Tensor, eps: float, weight_D: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
    """RMSNorm (B, D)."""
    y_BD = torch.empty_like(x_BD, dtype=dtype or x_BD.dtype)
    width = x_BD.shape[1]
    kernels.norm_kernel[(len(x_BD),)](
        x_BD, weight_D, y_BD, eps, WIDTH=width, BLOCK=triton.next_power_of_2(width), num_warps=4, **_early(x_BD)
    )
    return y_BD


def swiglu(x_BF: Tensor) -> Tensor:
    """SiLU of the first half of each row times the second half (B, F / 2)."""
    num_rows, width = x_BF.shape[0], x_BF.shape[1] // 2
    y_BF = x_BF.new_empty(num_rows, width)
    kernels.swiglu_kernel[num_rows, triton.cdiv(width, 1024)](
        x_BF, y_BF, WIDTH=width, BLOCK=1024, num_warps=4, **_early(x_BF)
    )
    return y_BF


def embed(codes_BK: Tensor, table_VD: Tensor, vocab_size: int) -> Tensor:
    """Sum (B, D) over a frame's codebooks, each with `vocab_size` rows of the table."""
    (num_rows, num_books), width = codes_BK.shape, table_VD.shape[1]
    y_BD = table_VD.new_empty(num_rows, width)
    grid = num_rows, triton.cdiv(width, 256)
    kernels.embed_kernel[grid](
        codes_BK, table_VD, y_BD, vocab_size, WIDTH=width, BOOKS=num_books, BLOCK=256, num_warps=2, **_early(codes_BK)
    )
    return y_BD


def draw(
    logits_BC: Tensor, codes_BK: Tensor, book: int, uniform_BTK: Tensor, frame: Tensor, temperature_B: Tensor,
    top_k_B: Tensor | None,
) -> None:  # fmt: skip
    """Write codebook `book`'s code of every row, as `Sampling.pick` with the uniform numbers of frame `frame` (1,)."""
    num_rows, num_codes = logits_BC.shape
    kernels.draw_kernel[(num_rows,)](
        logits_BC, uniform_BTK, frame, temperature_B, top_k_B, codes_BK, book, uniform_BTK.shape[1], CODES=num_codes,
        BOOKS=codes_BK.shape[1], HAS_CUT=top_k_B is not None, BLOCK=triton.next_power_of_2(num_codes), num_warps=8,
        **_early(logits_BC),
    )  # fmt: skip
