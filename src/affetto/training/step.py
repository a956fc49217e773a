"""One optimizer step: every term of the loss, by name, summed over the whole step and divided once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

import torch
from torch import Tensor, nn

from affetto.errors import NonFiniteLossError
from affetto.model.batch import Logits, join
from affetto.model.losses import LossTerm, cross_entropy, text_loss
from affetto.preserve.distillation import distillation_kl
from affetto.training.batches import TrainBatch

DistillOn = Literal["rehearsal", "emotion", "both"]
STREAMS = ("emotion", "rehearsal")
TERMS = tuple(f"{stream}_{kind}_{part}" for stream in STREAMS for kind in ("ce", "kl") for part in ("c0", "depth"))
"""Names of the data terms, as in the log."""
TEXT_TERMS = tuple(f"{stream}_{kind}_text" for stream in STREAMS for kind in ("ce", "kl"))
"""Further terms of a base whose text runs beside its frames."""


@dataclass(frozen=True)
class LossWeights:
    """How the terms add up (method.md, sections 2 to 4).

    total = s · [(1 - replay) · stream(emotion) + replay · stream(rehearsal) + m · ewc · EWC], where
    m is a forgetting budget's multiplier of the preservation terms and s = 2 / (1 + m), both 1 without a budget;
    stream = (1 - alpha) · CE + m · alpha · T² · KL on the streams that are distilled, and CE elsewhere; where the base
    spoke the rehearsed clips itself, alpha is 1 on them, as its samples say nothing that the KL doesn't say exactly;
    CE and KL are `first_codebook` · codebook zero + (1 - `first_codebook`) · the others, in nats per code, plus the
    text's in nats per token where text runs beside the frames (as in moshi-finetune).
    """

    replay: float
    alpha: float
    temperature: float
    first_codebook: float
    ewc: float
    distill_on: DistillOn
    is_self_speech: bool = False
    """Whether the rehearsed clips are the base's own samples."""
    multiplier: float = 1.0
    """Of the preservation terms, against the cross-entropy."""

    @property
    def ewc_weight(self) -> float:
        """Weight of EWC's penalty, which is in nats per code."""
        return self.ewc * self.multiplier * self._scale

    @property
    def _scale(self) -> float:
        return 2 / (1 + self.multiplier)

    @property
    def taught(self) -> dict[str, bool]:
        """Which streams are distilled, and so need the teacher's answers."""
        used = self.alpha > 0
        return {
            "emotion": used and self.distill_on in ("emotion", "both"),
            "rehearsal": (self.is_self_speech or (used and self.distill_on in ("rehearsal", "both")))
            and self.replay > 0,
        }

    @property
    def learned(self) -> dict[str, bool]:
        """Which streams' cross-entropy on the depth codebooks has a weight."""
        return {stream: self.of(f"{stream}_ce_depth") > 0 for stream in STREAMS}

    def of(self, name: str) -> float:
        """Weight of the term `name`, such as `rehearsal_kl_c0`."""
        stream, kind, part = name.split("_")
        weight = self.replay if stream == "rehearsal" else 1 - self.replay
        weight *= self._scale * _part_share(part, self.first_codebook)
        if not self.taught[stream]:
            return weight if kind == "ce" else 0.0
        alpha = 1.0 if self.is_self_speech and stream == "rehearsal" else self.alpha
        return weight * ((1 - alpha) if kind == "ce" else alpha * self.temperature**2 * self.multiplier)


def _part_share(part: str, first_codebook: float) -> float:
    return {"c0": first_codebook, "depth": 1 - first_codebook, "text": 1.0}[part]


def rehearsal_kl(terms: Mapping[str, float], num_codebooks: int) -> float | None:
    """KL(base || adapted) of a step's rehearsed clips, nats per code over all codebooks; None where it had none.

    The text beside a frame counts with the frame's codes.
    """
    if "rehearsal_kl_c0" not in terms or "rehearsal_kl_depth" not in terms:
        return None
    codes = terms["rehearsal_kl_c0"] + (num_codebooks - 1) * terms["rehearsal_kl_depth"]
    return (codes + terms.get("rehearsal_kl_text", 0.0)) / num_codebooks


def batch_terms(logits: Logits, train_batch: TrainBatch, temperature: float) -> dict[str, LossTerm]:
    """Every data term of a micro-batch: {emotion, rehearsal} x {ce, kl} x {c0, depth, text}."""
    batch = train_batch.batch
    depth_targets_MJ = batch.depth_targets_MJ
    terms: dict[str, LossTerm] = {}
    for stream, mine in train_batch.places.items():
        terms[f"{stream}_ce_c0"] = cross_entropy(_at(logits.c0_NV, mine.ce_N), _at(batch.c0_targets_N, mine.ce_N))
        terms[f"{stream}_ce_depth"] = cross_entropy(_at(logits.depth_MJV, mine.ce_M), _at(depth_targets_MJ, mine.ce_M))
        if logits.text_NW is not None:
            terms[f"{stream}_ce_text"] = text_loss(logits, batch, mine.ce_N)
        if len(mine.kl_N):
            taught = {"c0": (train_batch.teacher_c0, mine.taught_N, logits.c0_NV, mine.kl_N)}
            taught["depth"] = (train_batch.teacher_depth, mine.taught_M, logits.depth_MJV, mine.kl_M)
            if logits.text_NW is not None and train_batch.teacher_text is not None:
                taught["text"] = (train_batch.teacher_text, mine.taught_N, logits.text_NW, mine.kl_N)
            for part, (answers, told, said, asked) in taught.items():
                terms[f"{stream}_kl_{part}"] = distillation_kl(_at(answers, told), _at(said, asked), temperature)
    return terms


def _at(values: Tensor, places: Tensor) -> Tensor:
    return values.index_select(0, places)


def term_counts(train_batch: TrainBatch, num_codebooks: int) -> dict[str, float]:
    """How many codes (for text: how much weight) each term of a micro-batch sums over, before any forward pass."""
    batch = train_batch.batch
    counts: dict[str, float] = {}
    for stream, mine in train_batch.places.items():
        counts[f"{stream}_ce_c0"] = len(mine.ce_N)
        counts[f"{stream}_ce_depth"] = len(mine.ce_M) * (num_codebooks - 1)
        counts[f"{stream}_kl_c0"] = len(mine.kl_N)
        counts[f"{stream}_kl_depth"] = len(mine.kl_M) * (num_codebooks - 1)
        if batch.text_weights_BS is not None:
            counts[f"{stream}_ce_text"] = float(batch.text_weights_N[mine.ce_N].sum())
            counts[f"{stream}_kl_text"] = counts[f"{stream}_kl_c0"]
    return counts


@dataclass(frozen=True)
class Share:
    """One adapter's share of a step: its own rows, its own weights, its own penalty."""

    micro_batches: Sequence[TrainBatch]
    weights: LossWeights
    ewc: Callable[[], Tensor] | None


def accumulate_gradients(
    network: Any,
    micro_batches: Sequence[TrainBatch],
    weights: LossWeights,
    ewc: Callable[[], Tensor] | None,
    accelerator: Any,
) -> dict[str, float]:
    """Backward pass of one adapter's whole step; see `accumulate_together`."""
    return accumulate_together(network, [Share(micro_batches, weights, ewc)], accelerator)[0]


def accumulate_together(network: Any, shares: Sequence[Share], accelerator: Any) -> list[dict[str, float]]:
    """Backward pass of a whole step of several adapters; returns for each its terms in nats per code, and `total`.

    On a GPU the rows of all adapters go through the network together, each under its own gate. On a CPU, which one
    adapter keeps busy, they go one adapter after another, without the ranks of the others. Each adapter's loss is
    divided by its own counts, so it learns what it would learn alone. The counts are summed over micro-batches and
    processes first, so 2 x 4 rows, 8 x 1 and 1 x 8 give the same gradient. Gradients, the penalty's included, are left
    as each process's part of the sum, which `finish_gradients` adds up. `ewc` is returned unweighted.
    """
    counts = [_total_counts(share.micro_batches, network.num_codebooks, accelerator) for share in shares]
    computed: list[_Term] = []
    for group in _passes([share.micro_batches for share in shares], accelerator.device):
        present = [(place, made.to(accelerator.device)) for place, made in group]
        batches = [made.batch for _, made in present]
        used = []
        with network.gates.one_cast():
            with accelerator.autocast():
                for (place, made), logits in zip(present, network(join(batches)).split(batches), strict=True):
                    weights, count = shares[place].weights, counts[place]
                    terms = batch_terms(logits, made, weights.temperature)
                    totals = {name: terms[name].total for name in terms if count[name]}
                    used += [weights.of(name) / count[name] * total for name, total in totals.items()]
                    computed += [_Term(place, name, total.detach(), made) for name, total in totals.items()]
            accelerator.backward(torch.stack(used).sum())
    for place, share in enumerate(shares):
        if share.ewc is not None:
            penalty = share.ewc()
            accelerator.backward(share.weights.ewc_weight / accelerator.num_processes * penalty)
            computed.append(_Term(place, "ewc", penalty.detach()))
    # Read at the end and all at once: each read would let the GPU run idle until the host has queued more work.
    values = torch.stack([term.total.float() for term in computed]).tolist() if computed else []
    _raise_unless_finite(computed, values, shares, accelerator)
    return [
        _step_values(place, shares[place], counts[place], computed, values, accelerator) for place in range(len(shares))
    ]


def _passes(
    micro_batches: Sequence[Sequence[TrainBatch]], device: torch.device
) -> Iterator[list[tuple[int, TrainBatch]]]:
    """The micro-batches that go through the network at once, each with the place of its share."""
    for group in zip_longest(*micro_batches):
        present = [(place, made) for place, made in enumerate(group) if made is not None]
        yield from [present] if device.type == "cuda" else ([one] for one in present)


@dataclass(frozen=True)
class _Term:
    """The sum of one loss term, not yet read from the device."""

    place: int
    """Of the share that it belongs to."""
    name: str
    total: Tensor
    made: TrainBatch | None = None
    """The batch that it was computed on; None for the penalty."""


def _raise_unless_finite(
    computed: Sequence[_Term], values: Sequence[float], shares: Sequence[Share], accelerator: Any
) -> None:
    """NonFiniteLossError if a value isn't finite. Nothing has been updated yet, so the state before the step stands."""
    failure = ""
    bad = [term for term, value in zip(computed, values, strict=True) if not math.isfinite(value)]
    if bad and bad[0].made is None:
        value = next(value for value in values if not math.isfinite(value))
        failure = f"the EWC penalty is {value} {_on_clips(shares[bad[0].place].micro_batches)}. {_REMEDY}"
    elif bad:
        names = ", ".join(term.name for term in bad if term.made is bad[0].made)
        assert bad[0].made is not None
        failure = f"the loss is not finite ({names}) {_on_clips([bad[0].made])}. {_REMEDY}"
    # All processes stop together: if one raised alone, the others would wait for its sums forever.
    if _summed({"failures": float(bool(failure))}, accelerator)["failures"]:
        raise NonFiniteLossError(failure or f"another process met a loss that is not finite. {_REMEDY}")


def _step_values(
    place: int, share: Share, counts: Mapping[str, float], computed: Sequence[_Term], values: Sequence[float],
    accelerator: Any,
) -> dict[str, float]:  # fmt: skip
    """One adapter's terms, summed over processes, and their weighted total."""
    # A term that only other processes have is zero here.
    mine = {name: 0.0 for name, count in counts.items() if count}
    ewc = None
    for term, value in zip(computed, values, strict=True):
        if term.place != place:
            continue
        if term.name == "ewc":
            ewc = value
        else:
            mine[term.name] += value
    found = {name: total / counts[name] for name, total in _summed(mine, accelerator).items()}
    total = sum(share.weights.of(name) * value for name, value in found.items())
    if ewc is not None:
        found["ewc"] = ewc
        total += share.weights.ewc_weight * ewc
    return found | {"total": total}


def finish_gradients(
    parameters: Sequence[nn.Parameter], max_norm: float, accelerator: Any, micro_batches: Sequence[TrainBatch] = ()
) -> float:
    """Sum gradients over processes, then clip this adapter's norm; returns the norm before clipping.

    Raises NonFiniteLossError before anything is updated, unless fp16's loss scaling is there to skip the step.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        # A fused optimizer reads memory in storage order.
        parameter.grad = parameter.grad.contiguous()
    if accelerator.num_processes > 1:
        _sum_over_processes([parameter.grad for parameter in parameters if parameter.grad is not None], accelerator)
    norm = float(accelerator.clip_grad_norm_(parameters, max_norm))
    if not math.isfinite(norm) and accelerator.scaler is None:
        raise NonFiniteLossError(f"the gradient is not finite {_on_clips(micro_batches)}. {_REMEDY}")
    return norm


def _sum_over_processes(tensors: Sequence[Tensor], accelerator: Any) -> None:
    """Sum tensors in place, all of one type in a single message instead of waiting for hundreds."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = accelerator.reduce(torch.cat([tensor.flatten() for tensor in same]), "sum")
        parts = torch.split(flat, [tensor.numel() for tensor in same])
        torch._foreach_copy_(same, [part.view_as(tensor) for part, tensor in zip(parts, same, strict=True)])


def agreed(value: float, accelerator: Any) -> float:
    """The mean of `value` over processes: the same in each, so that all decide alike."""
    return _summed({"value": value}, accelerator)["value"] / float(accelerator.num_processes)


_REMEDY = "The state before this step is saved; lower learning_rate, or look at these clips"


def _on_clips(micro_batches: Sequence[TrainBatch]) -> str:
    clips = [clip_id for train_batch in micro_batches for clip_id in train_batch.batch.clip_ids]
    return f"on clips {', '.join(clips)}"


def _total_counts(micro_batches: Sequence[TrainBatch], num_codebooks: int, accelerator: Any) -> dict[str, float]:
    """Codes per term over micro-batches and processes. Each process names every term, even one it has no batch for."""
    counts = dict.fromkeys((*TERMS, *TEXT_TERMS), 0.0)
    for train_batch in micro_batches:
        for name, count in term_counts(train_batch, num_codebooks).items():
            counts[name] += count
    return _summed(counts, accelerator)


def _summed(values: Mapping[str, float], accelerator: Any) -> dict[str, float]:
    if accelerator.num_processes == 1:
        return dict(values)
    tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=accelerator.device)
    return dict(zip(values, accelerator.reduce(tensor, "sum").tolist(), strict=True))
