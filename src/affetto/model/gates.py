"""The adapters' gates, row by row, while a network runs; and in training the adapters' dropout and casts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor


class GateSwitch:
    """The gate that adapted layers read. The network sets it around each part, since the parts' rows differ.

    `rows_BE` has one row per row of the layers' input; None means the base alone.
    """

    def __init__(self) -> None:
        self.rows_BE: Tensor | None = None
        self._per_rank: dict[object, Tensor] = {}
        self._on_E: list[bool] | None = None
        self._dropped_share = 0.0
        self._seed = 0
        self._generator: torch.Generator | None = None
        self.factors: list[Tensor] = []
        """A and B of all low-rank adapters."""
        self._casts: dict[int, Tensor] | None = None

    @contextmanager
    def set(self, rows_BE: Tensor | None) -> Iterator[None]:
        """Use `rows_BE` inside the block; a gate without columns means the base alone."""
        before = self.rows_BE, self._per_rank, self._on_E
        self.rows_BE = rows_BE if rows_BE is not None and rows_BE.shape[-1] > 0 else None
        self._per_rank, self._on_E = {}, None
        try:
            yield
        finally:
            self.rows_BE, self._per_rank, self._on_E = before

    def is_on(self, place: int) -> bool:
        """Whether the adapter in column `place` may be on for any row.

        It counts as on if the gates are on a GPU (reading them would make the host wait), have no values (in `affetto
        plan`) or need a gradient.
        """
        assert self.rows_BE is not None
        is_readable = type(self.rows_BE) is Tensor and self.rows_BE.device.type == "cpu"
        if not is_readable or self.rows_BE.requires_grad:
            return True
        if self._on_E is None:
            self._on_E = self.rows_BE.any(dim=0).tolist()
        return self._on_E[place]

    def per_rank(self, scales: Sequence[tuple[int, float, int]], dtype: torch.dtype) -> Tensor:
        """Gates times scales (rows, 1, sum of R), for adapters given as (place, scale, rank), without a gradient.

        Layers with the same adapters share it, so it is computed once per pass and not once per layer.
        """
        assert self.rows_BE is not None
        key = (*scales, dtype)
        if key not in self._per_rank:
            rows_BE = self.rows_BE.detach()
            columns = [(rows_BE[:, e : e + 1] * scale).expand(-1, rank) for e, scale, rank in scales]
            self._per_rank[key] = torch.cat(columns, dim=1)[:, None].to(dtype)
        return self._per_rank[key]

    @contextmanager
    def one_cast(self) -> Iterator[None]:
        """Inside the block all factors are cast once and together instead of layer by layer."""
        self._casts = {}
        try:
            yield
        finally:
            self._casts = None

    def cast(self, factor: Tensor, dtype: torch.dtype) -> Tensor:
        """`factor` in `dtype`; its gradient has its own type."""
        if self._casts is None or factor.dtype == dtype:
            return factor.to(dtype)
        if not self._casts and (trained := [other for other in self.factors if other.requires_grad]):
            cast = _Cast.apply(dtype, *trained)  # type: ignore[no-untyped-call]
            self._casts = dict(zip(map(id, trained), cast, strict=True))
        if id(factor) not in self._casts:
            self._casts[id(factor)] = factor.to(dtype)
        return self._casts[id(factor)]

    @contextmanager
    def dropout(self, share: float, seed: int) -> Iterator[None]:
        """Inside the block low-rank adapters see their input with `share` of its elements dropped.

        Every layer draws its own mask, as LoRA's dropout does (Hu et al. 2021, and PEFT's `lora_dropout`). The masks
        depend on `seed` alone, so a resumed run drops the same elements as an uninterrupted one.
        """
        self._dropped_share, self._seed, self._generator = share, seed, None
        try:
            yield
        finally:
            self._dropped_share, self._generator = 0.0, None

    @property
    def is_dropping(self) -> bool:
        """Whether the code runs inside `dropout`."""
        return self._dropped_share > 0

    def again(self) -> AbstractContextManager[None]:
        """A block that restores the current gate and masks later, so that recomputing gives the same result."""
        generator = None if self._generator is None else (self._generator.device, self._generator.get_state())
        return self._restored(self.rows_BE, self._dropped_share, self._seed, generator)

    @contextmanager
    def _restored(
        self, rows_BE: Tensor | None, share: float, seed: int, generator: tuple[torch.device, Tensor] | None
    ) -> Iterator[None]:
        before = self._dropped_share, self._seed, self._generator
        self._dropped_share, self._seed, self._generator = share, seed, None
        if generator is not None:
            self._generator = torch.Generator(generator[0])
            self._generator.set_state(generator[1])
        try:
            with self.set(rows_BE):
                yield
        finally:
            self._dropped_share, self._seed, self._generator = before

    def dropped(self, x: Tensor) -> Tensor:
        """x with elements dropped and the others scaled up to keep its mean; x itself outside `dropout`."""
        if not self.is_dropping:
            return x
        if self._generator is None:
            self._generator = torch.Generator(x.device).manual_seed(self._seed)
        kept = torch.rand(x.shape, generator=self._generator, device=x.device) >= self._dropped_share
        return x * kept / (1 - self._dropped_share)


class _Cast(torch.autograd.Function):
    """Casts many tensors from one type to another, and their gradients back, each in one call."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *factors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype = factors[0].dtype
        return _copied(factors, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_copied(grads, ctx.dtype)


def _copied(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    flat = torch.empty(sum(tensor.numel() for tensor in tensors), dtype=dtype, device=tensors[0].device)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    copies = tuple(part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True))
    torch._foreach_copy_(copies, tuple(tensors))
    return copies
