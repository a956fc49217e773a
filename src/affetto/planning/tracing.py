"""Traces a network on shape-only tensors: its real code runs while bytes and FLOPs are counted.

So the figures are for what the code does, including adapters, checkpointing and float32 heads, not from a separate
formula.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from affetto.adapters.bank import AdapterBank
from affetto.adapters.targets import Part
from affetto.model.base import BASES, nothing_to_pack
from affetto.model.batch import Batch, Logits
from affetto.model.four_bit import FourBitLinear, packed_sizes, replace_linears
from affetto.model.losses import cross_entropy
from affetto.model.network import Network
from affetto.model.rows_at_once import depth_frames_at_once
from affetto.planning.blank import blank_batch
from affetto.planning.numberless import Numberless
from affetto.preserve.distillation import distillation_kl
from affetto.preserve.fisher_pass import as_it_is, is_depth, look
from affetto.preserve.teacher import halved
from affetto.quiet import quiet_transformers
from affetto.tensors import NO_MODEL, refused_config

ADAPTER = "planned"


@dataclass(frozen=True)
class Cost:
    """What one pass needs beyond what is allocated before it."""

    peak_bytes: int
    flops: int
    """Operations of matrix products and attention; a multiplication and an addition count as two."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tracks all tensors made while it is on: the bytes alive now, and the peak.

    FLOPs are counted by torch's own formulas; its `FlopCounterMode` would keep tensors alive.
    """

    def __init__(self, existing: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.flops = 0
        self._alive: dict[int, Any] = {}
        for tensor in existing:
            self._watch(tensor, counted=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and track its results."""
        result = func(*args, **(kwargs or {}))
        if (count_flops := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += int(count_flops(*args, **(kwargs or {}), out_val=result))
        for item in tree_leaves(result):
            if isinstance(item, Tensor):
                self._watch(item, counted=True)
        return result

    def _watch(self, tensor: Tensor, *, counted: bool) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes() if counted else 0
        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, lambda _: self._forget(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> None:
        self._alive.pop(key, None)
        self.now -= size


@dataclass(frozen=True)
class ShapeOnly:
    """A base's network with a fresh adapter in its bank, all as shape-only tensors."""

    mode: FakeTensorMode | Numberless
    model: Any
    network: Network
    bank: AdapterBank

    def batch(self, rows: int, frames: int, text_tokens: int, depth_frames: int) -> Batch:
        """A batch of `rows` rows of `frames` predicted frames each, `depth_frames` in all for the depth decoder."""
        batch = blank_batch(self.network, rows, frames, text_tokens, depth_frames)
        if isinstance(self.mode, Numberless):
            return batch
        emptied: dict[str, Any] = {
            name: self.mode.from_tensor(value) for name, value in vars(batch).items() if isinstance(value, Tensor)
        }
        return replace(batch, **emptied)

    def cost(self, work: Callable[[], object]) -> Cost:
        """The cost of `work`, which runs on shape-only tensors."""
        live = LiveBytes(list(self.model.parameters()))
        with self.mode, live:
            work()
        return Cost(live.peak, live.flops)


class _Packed(FourBitLinear):
    """A shape-only layer in four bits, which doesn't need bitsandbytes."""

    @property
    def weight(self) -> Tensor:
        """The weight at its unpacked size."""
        return torch.empty(self.shape, dtype=self.dtype)


def _packed(layer: Any) -> _Packed:
    shape = (layer.out_features, layer.in_features)
    num_bytes, num_scales = packed_sizes(shape)
    scales = torch.empty(num_scales, dtype=torch.float32)
    return _Packed(torch.empty(num_bytes, 1, dtype=torch.uint8), scales, shape, layer.weight.dtype, layer.bias)


def shape_only(
    config: Any, dtype: torch.dtype, targets: Sequence[str], part: Part, rank: int | None, *, checkpointing: bool,
    is_packed: bool = False, name: str = "",
) -> ShapeOnly:  # fmt: skip
    """The network of a base's configuration, with an adapter of `rank` (None is full rank), and layers in four bits if
    `is_packed`. BaseModelError, about the base `name`, if no layer can be packed or the configuration is invalid.
    """
    name = name or config.model_type
    kind = BASES[config.model_type]
    mode = Numberless() if kind.outline.reads_indices else FakeTensorMode()
    try:
        with mode, _default(dtype):
            model = kind.outline.model(config)
            network = kind.network(model).eval()
    except NO_MODEL as error:
        raise refused_config(Path(name), error) from error
    with mode:
        if is_packed and not replace_linears(model, _packed):
            raise nothing_to_pack(name)
        bank = AdapterBank(model, network.gates, targets, part)
        shapes = {path: site.shape for path, site in bank.sites.items()}
        if rank is None:
            bank.insert(ADAPTER, {path: (torch.zeros(shape), None) for path, shape in shapes.items()}, {})
        else:
            factors = {path: (torch.zeros(rank, i), torch.zeros(o, rank)) for path, (o, i) in shapes.items()}
            bank.insert(ADAPTER, factors, {})
    if checkpointing:
        with quiet_transformers():
            network.enable_checkpointing()
    return ShapeOnly(mode, model, network, bank)


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def training_cost(
    shape: ShapeOnly, batch: Batch, streams: Sequence[tuple[float, bool]], *, autocast: torch.dtype | None
) -> Cost:
    """Forward, losses and backward of a step.

    `streams` are the emotional and the rehearsed rows: their share of the frames, and whether the teacher answers them.
    """

    def step() -> None:
        network = shape.network.train()
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            logits = network(batch)
        terms = []
        # Each stream's frames are selected for each of its terms, as in `batch_terms`.
        for share, is_taught in streams:
            for values, targets in _predicted(logits, batch):
                chosen = torch.zeros(max(1, round(share * len(values))), dtype=torch.long)
                terms.append(cross_entropy(values[chosen], targets[chosen]).total)
                if is_taught:
                    answers = torch.empty(len(chosen), *values.shape[1:], dtype=torch.float16)
                    terms.append(distillation_kl(answers, values[chosen]).total)
        torch.autograd.backward(torch.stack(terms).sum())
        network.eval()

    return shape.cost(step)


def _predicted(logits: Logits, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Logits and targets of all predictions."""
    parts = [(logits.c0_NV, batch.c0_targets_N), (logits.depth_MJV, batch.depth_targets_MJ)]
    return parts if logits.text_NW is None else [*parts, (logits.text_NW, batch.text_targets_N)]


def answering_cost(shape: ShapeOnly, batch: Batch) -> Cost:
    """Forward only, and a KL against cached answers, as in validation."""

    @torch.no_grad()
    def answer() -> None:
        logits = shape.network(batch)
        for values, _ in _predicted(logits, batch):
            distillation_kl(torch.empty(values.shape), values)

    return shape.cost(answer)


def asking_cost(shape: ShapeOnly, batch: Batch) -> Cost:
    """The base's forward only, and its log-probabilities in float16, as for the teacher's answers."""
    plain = batch.with_gate(batch.gate_BE[:, :0])

    @torch.no_grad()
    def ask() -> None:
        logits = shape.network(plain)
        kept = [halved(values) for values, _ in _predicted(logits, plain)]
        # Each row's log-probabilities are copied out.
        kept += [values.clone() for values in kept]

    return shape.cost(ask)


def fisher_cost(shape: ShapeOnly, batch: Batch, *, curvature: str = "kfac", on_host: bool = False) -> Cost:
    """The Fisher's pass: the base only, all layers' inputs and gradients kept until its end, then the curvature update.

    With `on_host`, records that wait for other parts of a batch and random numbers are in the host's memory, which
    isn't counted.
    """
    plain = batch.with_gate(batch.gate_BE[:, :0])
    part_frames = depth_frames_at_once(shape.network)
    has_parts = hasattr(shape.network, "frame_states") and part_frames < len(batch.depth_M)
    keep = _offloaded if on_host and has_parts else as_it_is

    # CSM's masks, which exist only in planning, take more than its times.
    labels = _Labels(plain, has_times=not on_host and isinstance(shape.mode, Numberless))

    def work() -> None:
        records = look(shape.network, shape.bank.sites, plain, labels, part_frames=part_frames, keep=keep)
        for site in shape.bank.sites:
            # Offloaded records come back site by site.
            inputs, gradients = _reloaded(shape, plain, site) if keep is _offloaded else records.pop(site)
            _update(inputs.flatten(0, 1), gradients.flatten(0, 1), curvature)
            del inputs, gradients

    return shape.cost(work)


class _Labels:
    """The data's own labels, with the memory of sampling labels: probabilities in double precision, and with
    `has_times` the times that a draw compares, as many as there are logits and equally precise.
    """

    def __init__(self, batch: Batch, *, has_times: bool) -> None:
        self.batch, self.has_times = batch, has_times
        self.times_MJV: Tensor | None = None

    def c0(self, logits_NV: Tensor) -> Tensor:
        self._draw(logits_NV)
        return self.batch.c0_targets_N

    def depth(self, logits_MJV: Tensor, part: slice) -> Tensor:
        self.times_MJV = self._draw(logits_MJV)
        return self.batch.depth_targets_MJ[part]

    def text(self, logits_NW: Tensor) -> Tensor:
        self._draw(logits_NW)
        return self.batch.text_targets_N

    def _draw(self, logits: Tensor) -> Tensor | None:
        times = torch.empty(logits.shape, dtype=torch.float64) if self.has_times else None
        weights = logits.detach().double().softmax(dim=-1)
        if times is not None:
            weights.div(times)
        return times


def _offloaded(tensor: Tensor) -> Tensor:
    """A record that is no longer on the device."""
    return tensor.new_empty(0)


def _reloaded(shape: ShapeOnly, batch: Batch, site: str) -> tuple[Tensor, Tensor]:
    num_out, num_in = shape.bank.sites[site].shape
    positions = len(batch.depth_M) * shape.network.num_codebooks if is_depth(site) else batch.text_BS.numel()
    dtype = shape.model.dtype
    return torch.empty(1, positions, num_in, dtype=dtype), torch.empty(1, positions, num_out, dtype=dtype)


def _update(inputs_PI: Tensor, gradients_PO: Tensor, curvature: str) -> None:
    """A curvature's update with a layer's clips: they are selected, converted to float32, multiplied and squared."""
    selected = inputs_PI.clone(), gradients_PO.clone()
    inputs_PI, gradients_PO = (values.to(torch.float32, copy=True) for values in selected)
    if curvature == "kfac":
        products = inputs_PI.T @ inputs_PI, gradients_PO.T @ gradients_PO
    else:
        product_OI = gradients_PO.T @ inputs_PI
        products = product_OI, product_OI.square()
    # A named variable, because both must be alive at the same time.
    del products
