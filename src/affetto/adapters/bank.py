"""The bank: many LoRA adapters on one frozen base, blended row by row by gates (method.md, section 1).

For a frozen linear layer W the bank computes  y = W x + sum_e gate_e * s_e * B_e (A_e x)  in two matrix products
over the stacked A and B. With every gate at zero the result is the base's, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from affetto.adapters.targets import ADAPTED_PARTS, Part, expand_targets, find_targets
from affetto.errors import AdapterError
from affetto.files import hash_text
from affetto.model.gates import GateSwitch


class GatedLora(nn.Module):
    """One adapted layer."""

    def __init__(self, layer: nn.Linear, gates: GateSwitch) -> None:
        super().__init__()
        self.layer = layer
        self.gates = gates
        self.A = nn.ParameterDict()
        """By adapter: (R, in)."""
        self.B = nn.ParameterDict()
        """By adapter: (out, R)."""
        self.scale: dict[str, float] = {}

    def add(self, name: str, a_RI: Tensor, b_OR: Tensor, scale: float) -> None:
        """Put an adapter into the last place."""
        self.A[name], self.B[name], self.scale[name] = nn.Parameter(a_RI), nn.Parameter(b_OR), scale

    def forward(self, x: Tensor) -> Tensor:
        """x (rows, S, in) → (rows, S, out)."""
        y = functional.linear(x, self.layer.weight, self.layer.bias)
        gate_BE = self.gates.rows_BE
        if gate_BE is None:
            return y
        if not any(a_RI.shape[0] for a_RI in self.A.values()):
            return y
        low = functional.linear(x, self._stacked(self.A, 0).to(x.dtype)) * self._per_rank(gate_BE, x)
        return y + functional.linear(low, self._stacked(self.B, 1).to(x.dtype))

    def _stacked(self, weights: nn.ParameterDict, dim: int) -> Tensor:
        parts = list(weights.values())
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)

    def _per_rank(self, gate_BE: Tensor, x: Tensor) -> Tensor:
        """Gate times scale for every rank: (rows, 1, sum of R)."""
        assert gate_BE.shape == (len(x), len(self.A)), (
            f"gate {tuple(gate_BE.shape)} for {len(x)} rows, {len(self.A)} adapters"
        )
        columns = [
            (gate_BE[:, e : e + 1] * self.scale[name]).expand(-1, a_RI.shape[0])
            for e, (name, a_RI) in enumerate(self.A.items())
        ]
        return torch.cat(columns, dim=1)[:, None].to(x.dtype)


@torch.no_grad()
def delta_norm(a_RI: Tensor, b_OR: Tensor, scale: float) -> float:
    """Frobenius norm of scale * B A, from products of rank size only; NaN where a factor isn't finite."""
    a_RI, b_OR = a_RI.double(), b_OR.double()
    square: float = ((b_OR.T @ b_OR) * (a_RI @ a_RI.T)).sum().item()
    return abs(scale) * math.sqrt(max(square, 0.0))


class AdapterBank:
    """All adapters of one base. Making a bank replaces the adapted layers of the model in place.

    `targets` are layer names or presets, `part` the part of the network whose layers are adapted.
    """

    def __init__(
        self, model: nn.Module, gates: GateSwitch, targets: Sequence[str] = ("both",), part: Part = "both"
    ) -> None:
        self.targets = expand_targets(targets)
        self.names: list[str] = []
        self.sites: dict[str, GatedLora] = {}
        linear = _linear_layers(model)
        for path in find_targets(targets, part, list(linear)):
            layer = linear[path]
            parent, _, leaf = path.rpartition(".")
            layer.weight.requires_grad_(False)
            self.sites[path] = GatedLora(layer, gates)
            setattr(model.get_submodule(parent), leaf, self.sites[path])

    def add(self, name: str, rank: int, alpha: float, seed: int) -> None:
        """A fresh adapter: A as PEFT draws it (Kaiming uniform), B zero, so that it starts as the base."""
        tensors = {}
        for path, site in self.sites.items():
            weight = site.layer.weight
            generator = torch.Generator().manual_seed(int(hash_text(str(seed), path)[:15], 16))
            a_RI = torch.empty(rank, weight.shape[1])
            # Kaiming uniform with a = sqrt(5) is PEFT's (and nn.Linear's) draw.
            nn.init.kaiming_uniform_(a_RI, a=5**0.5, generator=generator)
            tensors[path] = (a_RI, torch.zeros(weight.shape[0], rank))
        self.insert(name, tensors, dict.fromkeys(self.sites, alpha / rank))

    def insert(self, name: str, tensors: Mapping[str, tuple[Tensor, Tensor]], scales: Mapping[str, float]) -> None:
        """An adapter from given (A, B) by site, copied. A site that it doesn't have gets rank 0."""
        if name in self.names:
            raise AdapterError(f"there is already an adapter named {name!r}; choose another name")
        # torch keeps parameters as attributes, whose names are taken or can't have dots.
        if not name or "." in name or hasattr(nn.ParameterDict(), name):
            raise AdapterError(f"an adapter can't be named {name!r}; choose another name, without dots")
        assert set(tensors) <= set(self.sites), f"not adapted: {sorted(set(tensors) - set(self.sites))}"
        for path, site in self.sites.items():
            weight = site.layer.weight
            a_RI, b_OR = tensors.get(path, (torch.zeros(0, weight.shape[1]), torch.zeros(weight.shape[0], 0)))
            assert (b_OR.shape[0], a_RI.shape[1], a_RI.shape[0]) == (*weight.shape, b_OR.shape[1]), f"shapes at {path}"
            a_RI, b_OR = (factor.detach().to(weight.device, torch.float32, copy=True) for factor in (a_RI, b_OR))
            site.add(name, a_RI, b_OR, scales.get(path, 1.0))
        self.names.append(name)

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Trainable tensors of one adapter, by a stable name."""
        found = {}
        for path, site in self.sites.items():
            found[f"{path}.lora_A"], found[f"{path}.lora_B"] = site.A[name], site.B[name]
        return found

    def factors(self, name: str) -> Iterator[tuple[str, Tensor, Tensor, float]]:
        """(site, A, B, scale) of one adapter."""
        for path, site in self.sites.items():
            yield path, site.A[name], site.B[name], site.scale[name]

    def summed(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor, Tensor, float]]:
        """(site, A, B, scale) of the exact sum of adapters as one: their ranks side by side.

        The scale is the first one's; the other B are rescaled where theirs differs.
        """
        for path, site in self.sites.items():
            first = site.scale[names[0]]
            parts = [(site.A[name], site.B[name], site.scale[name] / first) for name in names]
            if len(parts) == 1:
                yield path, parts[0][0], parts[0][1], first
            else:
                b_OR = torch.cat([b if ratio == 1 else ratio * b for _, b, ratio in parts], dim=1)
                yield path, torch.cat([a for a, _, _ in parts]), b_OR, first

    def delta_norm(self, name: str) -> float:
        """Frobenius norm of the change of all weights, from products of rank size only."""
        return math.hypot(*(delta_norm(a_RI, b_OR, scale) for _, a_RI, b_OR, scale in self.factors(name)))

    def gate(self, intensities: Mapping[str, float]) -> Tensor:
        """Gate row (E,) for `{emotion: intensity}`; empty is the base. Unknown names are an error."""
        if unknown := [name for name in intensities if name not in self.names]:
            loaded = ", ".join(self.names) or "none"
            raise AdapterError(f"no adapter is loaded for {', '.join(map(repr, unknown))}; loaded: {loaded}")
        return torch.tensor([float(intensities.get(name, 0.0)) for name in self.names])


def all_targets(model: nn.Module) -> tuple[str, ...]:
    """Names of all layers that may carry adapters."""
    return tuple(dict.fromkeys(path.rpartition(".")[2] for path in _linear_layers(model)))


def _linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    if any(isinstance(module, GatedLora) for module in model.modules()):
        raise AdapterError("this base carries a bank of adapters already; load the base again, or use that bank")
    return {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and path.split(".")[0] in ADAPTED_PARTS
    }
