"""One optimizer step: every term of the loss, by name, as sums over the whole step divided once."""

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
"""Names of the data terms, as they stand in the log."""
TEXT_TERMS = tuple(f"{stream}_{kind}_text" for stream in STREAMS for kind in ("ce", "kl"))
"""Those of a base whose text runs beside its frames."""


@dataclass(frozen=True)
class LossWeights:
    """How the terms add up (method.md, sections 2 to 4).

    total = s · [(1 - replay) · stream(emotion) + replay · stream(rehearsal) + m · ewc · EWC], where
    m is a forgetting budget's multiplier of all that preserves and s = 2 / (1 + m), both 1 without one;
    stream = (1 - alpha) · CE + m · alpha · T² · KL on the streams that are distilled, and CE elsewhere; where the base
    spoke the rehearsed clips itself, alpha is 1 on them: its samples carry no truth that the KL doesn't hold exactly;
    CE and KL are `first_codebook` · codebook zero + (1 - `first_codebook`) · the others, nats per code, and beside
    them the text's, nats per token, where it runs beside the frames (moshi-finetune adds them up so, too).
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
    """Of all that preserves, against the cross-entropy."""

    @property
    def ewc_weight(self) -> float:
        """What EWC's penalty, in nats per code, is multiplied by."""
        return self.ewc * self.multiplier * self._scale

    @property
    def _scale(self) -> float:
        return 2 / (1 + self.multiplier)

    @property
    def taught(self) -> dict[str, bool]:
        """Which streams need the teacher."""
        used = self.alpha > 0
        return {
            "emotion": used and self.distill_on in ("emotion", "both"),
            "rehearsal": (self.is_self_speech or (used and self.distill_on in ("rehearsal", "both")))
            and self.replay > 0,
        }

    @property
    def learned(self) -> dict[str, bool]:
        """Which streams' cross-entropy of the depth codebooks counts."""
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
    """How many codes (of text: how much weight) each term of a micro-batch sums over, before anything is computed."""
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
    """Backward of one whole step of one adapter; see `accumulate_together`."""
    return accumulate_together(network, [Share(micro_batches, weights, ewc)], accelerator)[0]


def accumulate_together(network: Any, shares: Sequence[Share], accelerator: Any) -> list[dict[str, float]]:
    """Backward of one whole step of several adapters; for each every term in nats per code, and `total`.

    On a GPU rows of all adapters go through the network together, each under its own gate; on a CPU, which one
    adapter's keep busy, one after another, without the ranks of the others. Every adapter's loss is divided by its own
    counts: what it learns is what it would learn alone. Counts are summed over micro-batches and processes first, so
    2 x 4 rows, 8 x 1 and 1 x 8 give the same gradient. Gradients are left as each process's part of the sum
    (`finish_gradients` adds them up), the penalty's included. `ewc` is told unweighted.
    """
    counts = [_total_counts(share.micro_batches, network.num_codebooks, accelerator) for share in shares]
    told: list[_Told] = []
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
                    told += [_Told(place, name, total.detach(), made) for name, total in totals.items()]
            accelerator.backward(torch.stack(used).sum())
    for place, share in enumerate(shares):
        if share.ewc is not None:
            penalty = share.ewc()
            accelerator.backward(share.weights.ewc_weight / accelerator.num_processes * penalty)
            told.append(_Told(place, "ewc", penalty.detach()))
    # Read at last and all at once: a GPU would stand still while the host waits for it and then tells what is next.
    values = torch.stack([one.total.float() for one in told]).tolist() if told else []
    _raise_unless_finite(told, values, shares, accelerator)
    return [
        _step_values(place, shares[place], counts[place], told, values, accelerator) for place in range(len(shares))
    ]


def _passes(
    micro_batches: Sequence[Sequence[TrainBatch]], device: torch.device
) -> Iterator[list[tuple[int, TrainBatch]]]:
    """Which shares' micro-batches go through the network at once, as (place of the share, batch)."""
    for group in zip_longest(*micro_batches):
        present = [(place, made) for place, made in enumerate(group) if made is not None]
        yield from [present] if device.type == "cuda" else ([one] for one in present)


@dataclass(frozen=True)
class _Told:
    """What a term came to."""

    place: int
    """Of the share."""
    name: str
    total: Tensor
    made: TrainBatch | None = None
    """On these clips; the penalty is on none."""


def _raise_unless_finite(
    told: Sequence[_Told], values: Sequence[float], shares: Sequence[Share], accelerator: Any
) -> None:
    """Nothing has been updated yet, so the state is that before the step."""
    failure = ""
    bad = [one for one, value in zip(told, values, strict=True) if not math.isfinite(value)]
    if bad and bad[0].made is None:
        value = next(value for value in values if not math.isfinite(value))
        failure = f"the EWC penalty is {value} {_on_clips(shares[bad[0].place].micro_batches)}. {_REMEDY}"
    elif bad:
        names = ", ".join(one.name for one in bad if one.made is bad[0].made)
        assert bad[0].made is not None
        failure = f"the loss is not finite ({names}) {_on_clips([bad[0].made])}. {_REMEDY}"
    # All processes stop together: one that raised alone would leave the others waiting for its sums.
    if _summed({"failures": float(bool(failure))}, accelerator)["failures"]:
        raise NonFiniteLossError(failure or f"another process met a loss that is not finite. {_REMEDY}")


def _step_values(
    place: int, share: Share, counts: Mapping[str, float], told: Sequence[_Told], values: Sequence[float],
    accelerator: Any,
) -> dict[str, float]:  # fmt: skip
    """One adapter's terms and their total."""
    # A term that only other processes have is zero here.
    mine = {name: 0.0 for name, count in counts.items() if count}
    ewc = None
    for one, value in zip(told, values, strict=True):
        if one.place != place:
            continue
        if one.name == "ewc":
            ewc = value
        else:
            mine[one.name] += value
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
        # A fused optimizer goes through memory as it lies.
        parameter.grad = parameter.grad.contiguous()
    if accelerator.num_processes > 1:
        _sum_over_processes([parameter.grad for parameter in parameters if parameter.grad is not None], accelerator)
    norm = float(accelerator.clip_grad_norm_(parameters, max_norm))
    if not math.isfinite(norm) and accelerator.scaler is None:
        raise NonFiniteLossError(f"the gradient is not finite {_on_clips(micro_batches)}. {_REMEDY}")
    return norm


def _sum_over_processes(tensors: Sequence[Tensor], accelerator: Any) -> None:
    """Sum tensors in place, those of one type in one message: of a hundred messages every one would be waited for."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = accelerator.reduce(torch.cat([tensor.flatten() for tensor in same]), "sum")
        parts = torch.split(flat, [tensor.numel() for tensor in same])
        torch._foreach_copy_(same, [part.view_as(tensor) for part, tensor in zip(parts, same, strict=True)])


def agreed(value: float, accelerator: Any) -> float:
    """The mean of `value` over processes, the same in each: what is decided by it is decided alike."""
    return _summed({"value": value}, accelerator)["value"] / float(accelerator.num_processes)


_REMEDY = "The state before this step is saved; lower learning_rate, or look at these clips"


def _on_clips(micro_batches: Sequence[TrainBatch]) -> str:
    clips = [clip_id for train_batch in micro_batches for clip_id in train_batch.batch.clip_ids]
    return f"on clips {', '.join(clips)}"


def _total_counts(micro_batches: Sequence[TrainBatch], num_codebooks: int, accelerator: Any) -> dict[str, float]:
    """Codes per term over micro-batches and processes. Every process names every term, though it has no batch of it."""
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
