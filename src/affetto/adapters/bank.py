"""The bank: many LoRA adapters on one frozen base, blended row by row by gates.

For a frozen linear layer W the bank computes  y = W x + sum_e gate_e * s_e * B_e (A_e x)  in two matrix products over
the stacked A and B of the adapters that some row has on. With all gates at zero the result is the base's, bit for bit.
A full-rank adapter, made by full fine-tuning, has the change of W itself in place of A, and no B.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from affetto.adapters.checks import is_name
from affetto.adapters.targets import Part, find_targets, leaf_name, part_of
from affetto.errors import AdapterError
from affetto.files import hash_text
from affetto.model.four_bit import FourBitLinear
from affetto.model.gated_lora import GatedLora, StackedLora
from affetto.model.gates import GateSwitch

Change = tuple[Tensor, Tensor | None]
"""(A, B) of one layer, or (change, None)."""


@torch.no_grad()
def delta_norm(a_RI: Tensor, b_OR: Tensor | None, scale: float) -> float:
    """Frobenius norm of scale * B A, from products of rank size only; NaN if a factor isn't finite."""
    if b_OR is None:
        return abs(scale) * float(a_RI.double().norm())
    a_RI, b_OR = a_RI.double(), b_OR.double()
    square: float = ((b_OR.T @ b_OR) * (a_RI @ a_RI.T)).sum().item()
    return abs(scale) * math.sqrt(max(square, 0.0))


class AdapterBank:
    """All adapters of one base. Making a bank replaces the adapted layers of the model in place.

    `targets` are layer names or presets, `part` the part of the network whose layers are adapted. Adapters are kept on
    their layers' device or, with `on_host`, in the host's memory, from where the speaking engine fetches them as it
    needs them; a model on a GPU can't compute logits with them then.
    """

    def __init__(
        self, model: nn.Module, gates: GateSwitch, targets: Sequence[str] = ("both",), part: Part = "both", *,
        on_host: bool = False,
    ) -> None:  # fmt: skip
        self.on_host = on_host
        self.model = model
        self.names: list[str] = []
        self.sites: dict[str, GatedLora] = {}
        """By path; a stack has a site per matrix: `path.0`, `path.1`, …"""
        self.stacks: dict[str, int] = {}
        """Number of matrices of each adapted stack."""
        linear = _linear_layers(model)
        for path in find_targets(targets, part, list(linear)):
            layer = linear[path]
            parent, _, leaf = path.rpartition(".")
            layer.requires_grad_(False)
            made = StackedLora(layer, gates) if _is_stack(layer) else GatedLora(layer, gates)
            setattr(model.get_submodule(parent), leaf, made)
            if isinstance(made, StackedLora):
                self.stacks[path] = len(made)
                self.sites |= {f"{path}.{k}": site for k, site in enumerate(made.matrices)}
            else:
                self.sites[path] = made
        self.targets = tuple(dict.fromkeys(map(leaf_name, self.sites)))

    def add(self, name: str, rank: int, alpha: float, seed: int) -> None:
        """A fresh adapter: A drawn as in PEFT (Kaiming uniform), B zero, so that it changes nothing yet."""
        tensors = {}
        for path, site in self.sites.items():
            num_out, num_in = site.shape
            generator = torch.Generator().manual_seed(int(hash_text(str(seed), path)[:15], 16))
            a_RI = torch.empty(rank, num_in)
            # a = sqrt(5) as in PEFT and nn.Linear.
            nn.init.kaiming_uniform_(a_RI, a=5**0.5, generator=generator)
            tensors[path] = (a_RI, torch.zeros(num_out, rank))
        self.insert(name, tensors, dict.fromkeys(self.sites, alpha / rank))

    def add_full(self, name: str) -> None:
        """A fresh full-rank adapter: the change of every weight, all zero."""
        # One expanded zero per layer, which only `insert`'s copy allocates: full tensors would take the memory twice.
        zeros = {path: site.layer.weight.new_zeros(()).expand(site.shape) for path, site in self.sites.items()}
        self.insert(name, {path: (zero, None) for path, zero in zeros.items()}, {})

    def insert(self, name: str, tensors: Mapping[str, Change], scales: Mapping[str, float]) -> None:
        """Add an adapter from (A, B) by site, which are copied. Sites that are left out get rank 0."""
        if name in self.names:
            raise AdapterError(f"there is already an adapter named {name!r}; choose another name")
        # torch keeps parameters as attributes, some of whose names are taken.
        if not is_name(name) or hasattr(nn.ParameterDict(), name):
            raise AdapterError(f"an adapter can't be named {name!r}; choose another name, without dots, commas or =")
        assert set(tensors) <= set(self.sites), f"not adapted: {sorted(set(tensors) - set(self.sites))}"
        for path, site in self.sites.items():
            num_out, num_in = site.shape
            a_RI, b_OR = tensors.get(path, (torch.zeros(0, num_in), torch.zeros(num_out, 0)))
            outer = a_RI.shape if b_OR is None else (b_OR.shape[0], a_RI.shape[1])
            assert outer == site.shape, f"shapes at {path}"
            assert b_OR is None or b_OR.shape[1] == a_RI.shape[0], f"ranks at {path}"
            device = torch.device("cpu") if self.on_host else site.device
            copied = [
                factor if factor is None else factor.detach().to(device, torch.float32, copy=True)
                for factor in (a_RI, b_OR)
            ]
            assert copied[0] is not None
            site.add(name, copied[0], copied[1], scales.get(path, 1.0))
        self.names.append(name)

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Trainable tensors of one adapter, by stable names."""
        found = {}
        for path, site in self.sites.items():
            if name in site.B:
                found[f"{path}.lora_A"], found[f"{path}.lora_B"] = site.A[name], site.B[name]
            else:
                found[f"{path}.change"] = site.A[name]
        return found

    def is_full(self, name: str) -> bool:
        """Whether an adapter has full rank."""
        return not any(name in site.B for site in self.sites.values())

    def factors(self, name: str) -> Iterator[tuple[str, Tensor, Tensor | None, float]]:
        """(site, A, B, scale) of one adapter, or (site, change, None, scale) of a full-rank one."""
        for path, site in self.sites.items():
            yield path, site.A[name], site.B.get(name, None), site.scale[name]

    def summed(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor, Tensor | None, float]]:
        """(site, A, B, scale) of the exact sum of low-rank adapters as a single one, their ranks side by side.

        The scale is that of the first; the B of others with another scale are rescaled.
        """
        if len(names) == 1:
            yield from self.factors(names[0])
            return
        for path, site in self.sites.items():
            first = site.scale[names[0]]
            ratios = [site.scale[name] / first for name in names]
            b_OR = torch.cat([ratio * site.B[name] for name, ratio in zip(names, ratios, strict=True)], dim=1)
            yield path, torch.cat([site.A[name] for name in names]), b_OR, first

    def delta_norm(self, name: str) -> float:
        """Frobenius norm of an adapter's change of all weights, from products of rank size only."""
        return math.hypot(*(delta_norm(a_RI, b_OR, scale) for _, a_RI, b_OR, scale in self.factors(name)))

    def gate(self, intensities: Mapping[str, float]) -> Tensor:
        """Gate row (E,) for `{emotion: intensity}`; empty is the base. Unknown names are an error."""
        if unknown := [name for name in intensities if name not in self.names]:
            loaded = ", ".join(self.names) or "none"
            raise AdapterError(f"no adapter is loaded for {', '.join(map(repr, unknown))}; loaded: {loaded}")
        return torch.tensor([float(intensities.get(name, 0.0)) for name in self.names])


def all_targets(model: nn.Module) -> tuple[str, ...]:
    """Names of all layers that can have adapters."""
    return tuple(dict.fromkeys(leaf_name(path) for path in _linear_layers(model)))


_NOT_LAYERS = ("lm_head", "lm_heads", "input_projections")
"""Moshi's heads and the projections into its depth transformer, whose weights the network reads directly."""


def _is_stack(layer: nn.Module) -> bool:
    """Whether it is transformers' `MoshiFlexibleLinear`; compared by name, to spare all other bases the import."""
    return type(layer).__name__ == "MoshiFlexibleLinear"


def _linear_layers(model: nn.Module) -> dict[str, Any]:
    if any(isinstance(module, GatedLora) for module in model.modules()):
        raise AdapterError("this base already has a bank of adapters; load the base again, or use that bank")
    return {
        path: layer
        for path, layer in model.named_modules()
        if (isinstance(layer, (nn.Linear, FourBitLinear)) or _is_stack(layer))
        and part_of(path) is not None
        and leaf_name(path) not in _NOT_LAYERS
    }
