"""One batch of the Fisher pass: every adapted layer's input, and the gradient at its output.

A base that predicts a frame's other codebooks from a separate state (CSM's depth decoder) is run over the frames in
parts: each part goes forward and backward by itself, and the backbone's backward pass gets the sum. Only memory depends
on the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from affetto.model.batch import Batch
from affetto.model.losses import cross_entropy
from affetto.model.watch import Watch

Records = dict[str, tuple[Tensor, Tensor]]
"""By site: its inputs and the gradients at its outputs, (rows, positions, width) both."""
Keep = Callable[[Tensor], Tensor]
"""What is done with a record: left where it is, or moved to the host's memory."""


class Labels(Protocol):
    """The labels whose negative log likelihood is differentiated."""

    def c0(self, logits_NV: Tensor) -> Tensor:
        """Codebook zero (N,); asked for first."""

    def depth(self, logits_MJV: Tensor, part: slice) -> Tensor:
        """The other codebooks (M, J) of the decoder's frames `part`."""

    def text(self, logits_NW: Tensor) -> Tensor:
        """The text beside the frames (N,), where there is one."""


def as_it_is(tensor: Tensor) -> Tensor:
    """Keep a record where it was made."""
    return tensor


def to_host(tensor: Tensor) -> Tensor:
    """Keep a record in the host's memory."""
    return tensor.to("cpu")


def look(
    network: Any, sites: Mapping[str, nn.Module], batch: Batch, labels: Labels, *, part_frames: int,
    keep: Keep = as_it_is,
) -> Records:  # fmt: skip
    """Records of every site on `batch`, with at most `part_frames` frames in the depth decoder at once."""
    if not hasattr(network, "frame_states"):
        return _whole(network, sites, batch, labels)
    depth_sites = {site: module for site, module in sites.items() if is_depth(site)}
    others = {site: module for site, module in sites.items() if not is_depth(site)}
    gathered: dict[str, list[tuple[Tensor, Tensor]]] = {site: [] for site in depth_sites}
    with recorded(others, keep) as records, torch.enable_grad():
        states_ND = network.frame_states(batch)
        c0_NV = network.c0_logits(states_ND)
        c0_loss = cross_entropy(c0_NV, labels.c0(c0_NV)).total
        # The decoder's parts add their gradients up here.
        leaf_ND = states_ND.detach().requires_grad_(states_ND.requires_grad)
        del c0_NV
        for start in range(0, len(batch.depth_M), part_frames):
            part = slice(start, start + part_frames)
            with recorded(depth_sites, keep) as own, network.gates.set(None):
                depth_MJV = network.depth_logits(leaf_ND[batch.depth_M[part]], batch.depth_codes_MK[part])
                torch.autograd.backward(cross_entropy(depth_MJV, labels.depth(depth_MJV, part)).total)
            del depth_MJV
            _check(own, depth_sites)
            for site, record in own.items():
                gathered[site].append(record)
        if states_ND.requires_grad:
            torch.autograd.backward([c0_loss, states_ND], [torch.ones_like(c0_loss), leaf_ND.grad])
    _check(records, others)
    # Joined site by site: joining all at once would take twice the memory.
    for site in depth_sites:
        inputs, gradients = zip(*gathered.pop(site), strict=True)
        records[site] = _joined(inputs), _joined(gradients)
    return records


def _whole(network: Any, sites: Mapping[str, nn.Module], batch: Batch, labels: Labels) -> Records:
    with recorded(sites) as records, torch.enable_grad():
        logits = network(batch)
        loss = cross_entropy(logits.c0_NV, labels.c0(logits.c0_NV)).total
        loss = loss + cross_entropy(logits.depth_MJV, labels.depth(logits.depth_MJV, slice(None))).total
        if logits.text_NW is not None:
            loss = loss + cross_entropy(logits.text_NW, labels.text(logits.text_NW)).total
        torch.autograd.backward(loss)
    _check(records, sites)
    return records


@contextmanager
def recorded(sites: Mapping[str, nn.Module], keep: Keep = as_it_is) -> Iterator[Records]:
    """Collect each site's input and the gradient at its output while the block runs."""
    records: Records = {}

    def watch(site: str) -> Watch:
        def tell(input_: Tensor, gradient: Tensor) -> None:
            records[site] = keep(input_), keep(gradient)

        return Watch(site, tell)

    with ExitStack() as stack:
        for site, module in sites.items():
            stack.callback(module.register_forward_hook(watch(site)).remove)
        yield records


def is_depth(site: str) -> bool:
    """Whether the layer is the depth decoder's, whose rows are frames."""
    return site.startswith("depth_decoder.")


def _check(records: Records, sites: Mapping[str, nn.Module]) -> None:
    assert records.keys() == sites.keys(), f"no gradient at {sorted(sites.keys() - records.keys())}"


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
