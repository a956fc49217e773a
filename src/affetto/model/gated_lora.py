"""A frozen linear layer with the adapters of a bank, blended row by row by gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from affetto.model.four_bit import FourBitLinear, frozen_linear
from affetto.model.gated import Factors, computing_dtype, gated_linears
from affetto.model.gates import GateSwitch
from affetto.native.functional import linear


class GatedLora(nn.Module):
    """One linear layer with its adapters."""

    def __init__(self, layer: Any, gates: GateSwitch) -> None:
        super().__init__()
        self.layer = layer
        self.gates = gates
        self.A = nn.ParameterDict()
        """By adapter: (R, in), or (out, in) of a full-rank one."""
        self.B = nn.ParameterDict()
        """By low-rank adapter: (out, R)."""
        self.scale: dict[str, float] = {}
        self.ranks: dict[str, tuple[int, float, int]] = {}
        """Low-rank adapters with a rank above 0: place among the gates, scale, rank."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        # Reading the shape of `weight` would unpack a four-bit layer.
        shape = self.layer.shape if isinstance(self.layer, FourBitLinear) else self.layer.weight.shape
        return shape[0], shape[1]

    @property
    def device(self) -> torch.device:
        """Where the layer is."""
        device: torch.device = next(self.layer.parameters()).device
        return device

    def add(self, name: str, a_RI: Tensor, b_OR: Tensor | None, scale: float) -> None:
        """Add an adapter in the last place."""
        self.A[name], self.scale[name] = nn.Parameter(a_RI), scale
        if b_OR is not None:
            self.B[name] = nn.Parameter(b_OR)
            self.gates.factors += [self.A[name], self.B[name]]
            if len(a_RI):
                self.ranks[name] = (len(self.A) - 1, scale, len(a_RI))

    def forward(self, x: Tensor) -> Tensor:
        """x (rows, S, in) → (rows, S, out)."""
        gate_BE = self.gates.rows_BE
        if gate_BE is None:
            return frozen_linear(x, self.layer)
        assert gate_BE.shape == (len(x), len(self.A)), (
            f"gate {tuple(gate_BE.shape)} for {len(x)} rows, {len(self.A)} adapters"
        )
        y = _at_once([self], x)[0] if self.is_one_operation else self._one_by_one(x)
        for name, e in self.full_on.items():
            gate_B11 = (gate_BE[:, e] * self.scale[name])[:, None, None].to(x.dtype)
            y = y + gate_B11 * linear(x, self.A[name].to(x.dtype))
        return y

    def with_others(self, others: Sequence[nn.Module], x: Tensor) -> Sequence[Tensor]:
        """The outputs of this layer and others for one x (rows, S, in), in one operation if all are adapted alike."""
        layers = [self, *others]
        mine = [layer for layer in layers if isinstance(layer, GatedLora)]
        if len(mine) == len(layers) and all(site.is_one_operation and len(site.B) == len(site.A) for site in mine):
            return _at_once(mine, x)
        return [layer(x) for layer in layers]

    def factors(self, dtype: torch.dtype) -> Factors:
        """A and B of the low-rank adapters that are on, in `dtype`, their ranks side by side."""
        cast, names = self.gates.cast, list(self.ranks_on)
        return (
            _stacked([cast(self.A[name], dtype) for name in names], 0),
            _stacked([cast(self.B[name], dtype) for name in names], 1),
        )

    @property
    def ranks_on(self) -> dict[str, tuple[int, float, int]]:
        """Those of `ranks` that some row of the current pass has on."""
        return {name: entry for name, entry in self.ranks.items() if self.gates.is_on(entry[0])}

    @property
    def full_on(self) -> dict[str, int]:
        """The full-rank adapters that some row of the current pass has on, with their places among the gates."""
        return {name: e for e, name in enumerate(self.A) if name not in self.B and self.gates.is_on(e)}

    @property
    def is_one_operation(self) -> bool:
        """Whether the low-rank adapters that are on can be computed by `gated_linears`."""
        # Gates that require a gradient are differentiated twice (`affetto.preserve.forecast`), which it can't do.
        gate_BE = self.gates.rows_BE
        is_plain = gate_BE is not None and not gate_BE.requires_grad and not self.gates.is_dropping
        return is_plain and bool(self.ranks_on)

    def _one_by_one(self, x: Tensor) -> Tensor:
        """The layer and its low-rank adapters, by autograd's own steps."""
        y = frozen_linear(x, self.layer)
        assert self.gates.rows_BE is not None
        for name, (e, scale, _) in self.ranks_on.items():
            low = functional.linear(self.gates.dropped(x), self.A[name].to(x.dtype))
            gate_B11 = (self.gates.rows_BE[:, e] * scale)[:, None, None].to(x.dtype)
            y = y + functional.linear(low * gate_B11, self.B[name].to(x.dtype))
        return y


def _at_once(sites: Sequence[GatedLora], x: Tensor) -> Sequence[Tensor]:
    """x (rows, S, in) → (rows, S, out) of each site; only low-rank adapters are counted in."""
    dtype = computing_dtype(x)
    ranks = [entry for site in sites for entry in site.ranks_on.values()]
    return gated_linears(
        x,
        [site.layer for site in sites],
        [site.factors(dtype) for site in sites],
        lambda dtype: sites[0].gates.per_rank(ranks, dtype),
    )


class StackedLora(nn.ModuleList):
    """A stack of matrices, one per codebook (Moshi's depth transformer), each with adapters of its own."""

    def __init__(self, layer: Any, gates: GateSwitch) -> None:
        super().__init__()
        self.matrices = [GatedLora(_Matrix(weight_OI), gates) for weight_OI in layer.weight.data.unbind()]
        self.extend(self.matrices)

    def forward(self, x: Tensor, layer_idx: Tensor | None = None) -> Tensor:
        """x (rows, L, in), or (rows, 1, in) for all, through the matrices `layer_idx` (L,), or all → (rows, L, out)."""
        places = range(len(self)) if layer_idx is None else layer_idx.tolist()
        return torch.cat([self[k](x if x.shape[1] == 1 else x[:, [n]]) for n, k in enumerate(places)], dim=1)


class _Matrix(nn.Module):
    """One matrix of a stack, as a linear layer without bias."""

    bias = None

    def __init__(self, weight_OI: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_OI, requires_grad=False)


def _stacked(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)
