"""The Fisher pass: one look at general speech by the frozen base, gates at zero, in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from affetto.files import hash_text
from affetto.model.batch import Batch, Logits, Row, collate
from affetto.model.rows_at_once import rows_at_once
from affetto.preserve.curvature import Curvature
from affetto.terms import cross_entropy

FisherKind = Literal["true", "empirical"]
C = TypeVar("C", bound=Curvature)


def estimate_fisher(
    network: Any,
    sites: Mapping[str, nn.Module],
    rows: Sequence[Row],
    curvature: C,
    *,
    kind: FisherKind = "true",
    seed: int = 0,
    rows_per_batch: int = 8,
    on_progress: Callable[[int], object] | None = None,
) -> C:
    """Feed `curvature` with every code of `rows`, and the text beside them where the base has one.

    `sites` are the adapted layers by path. Labels are sampled per clip from its own generator, so the result does not
    depend on the batch size; `kind="empirical"` takes the data's labels, for comparison only.
    """
    network.eval()
    at_once = rows_at_once(network, rows, rows_per_batch, with_gradient=True)
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        batch = collate([Row(row.clip_id, row.turns) for row in part], network.num_codebooks).to(_device(network))
        with recorded(sites) as records, torch.enable_grad():
            logits = network(batch)
            c0_N, depth_MJ = _labels(logits, batch, kind, seed)
            loss = cross_entropy(logits.c0_NV, c0_N).total + cross_entropy(logits.depth_MJV, depth_MJ).total
            if logits.text_NW is not None:
                loss = loss + cross_entropy(logits.text_NW, _text_labels(logits.text_NW, batch, kind, seed)).total
            torch.autograd.backward(loss)
        assert records.keys() == sites.keys(), f"no gradient at {sorted(sites.keys() - records.keys())}"
        for site, (inputs, gradients) in records.items():
            owner = network.depth_rows(batch) if _is_depth(site) else None
            clips = (_by_clip(values, owner, len(part)) for values in (inputs, gradients))
            curvature.update(site, batch.clip_ids, *clips)
        curvature.num_codes += c0_N.numel() + depth_MJ.numel()
        curvature.num_clips += len(part)
        if on_progress:
            on_progress(len(part))
    return curvature


def _labels(logits: Logits, batch: Batch, kind: FisherKind, seed: int) -> tuple[Tensor, Tensor]:
    """Labels of codebook zero (N,) and of the others (M, J)."""
    if kind == "empirical":
        return batch.c0_targets_N, batch.depth_targets_MJ
    rows_N = batch.frames_N2[:, 0]
    rows_M = rows_N[batch.depth_M]
    c0_N, depth_MJ = torch.empty_like(batch.c0_targets_N), torch.empty_like(batch.depth_targets_MJ)
    for b, clip_id in enumerate(batch.clip_ids):
        generator = torch.Generator().manual_seed(int(hash_text(str(seed), clip_id)[:15], 16))
        c0_N[rows_N == b] = _sample(logits.c0_NV[rows_N == b], generator)
        depth_MJ[rows_M == b] = _sample(logits.depth_MJV[rows_M == b], generator)
    return c0_N, depth_MJ


def _text_labels(text_NW: Tensor, batch: Batch, kind: FisherKind, seed: int) -> Tensor:
    """Labels (N,) of the text beside the frames."""
    if kind == "empirical":
        return batch.text_targets_N
    rows_N, text_N = batch.frames_N2[:, 0], torch.empty_like(batch.text_targets_N)
    for b, clip_id in enumerate(batch.clip_ids):
        generator = torch.Generator().manual_seed(int(hash_text(str(seed), clip_id, "text")[:15], 16))
        text_N[rows_N == b] = _sample(text_NW[rows_N == b], generator)
    return text_N


def _sample(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One draw (…) from each softmax of (…, V), on the CPU's generator whatever the device."""
    weights = logits.detach().double().softmax(dim=-1).cpu()
    flat = torch.multinomial(weights.flatten(0, -2), 1, generator=generator)
    return flat.reshape(weights.shape[:-1]).to(logits.device)


@contextmanager
def recorded(sites: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Collect each site's input and the gradient at its output while the block runs."""
    records: dict[str, tuple[Tensor, Tensor]] = {}
    seen: set[str] = set()

    def watch(site: str) -> Callable[[nn.Module, tuple[Tensor, ...], Any], Any]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
            # Nothing in a frozen base asks for gradients: the first adapted layers start the graph.
            output = output if output.requires_grad else output.detach().requires_grad_()
            kept = inputs[0].detach()
            # A second run (weight sharing, activation checkpointing) would replace the first one's record.
            assert site not in seen, f"{site} ran twice in one pass"
            seen.add(site)
            output.register_hook(lambda gradient: records.__setitem__(site, (kept, gradient.detach())))
            return output

        return hook

    with ExitStack() as stack:
        for site, module in sites.items():
            stack.callback(module.register_forward_hook(watch(site)).remove)
        yield records


def _is_depth(site: str) -> bool:
    return site.startswith("depth_decoder.")


def _by_clip(values: Tensor, owner: Tensor | None, num_clips: int) -> list[Tensor]:
    """Split (rows, P, D) by clip into (positions, D): backbone rows are clips, depth rows are frames of `owner`."""
    if owner is None:
        return list(values)
    return [values[owner == clip].flatten(0, 1) for clip in range(num_clips)]


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
