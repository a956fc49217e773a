"""Speaking through transformers' own modules and the bank's own layers, whole batches without joining or leaving.

What the engine is held to: plain, slow, and right (its greedy codes are those of transformers' `generate`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from affetto.model.base import Base
from affetto.model.batch import Row, Turn, collate, stack_gates
from affetto.model.csm import CsmNetwork
from affetto.speak.requests import Request, Spoken


@torch.inference_mode()
def speak_plainly(base: Base, requests: Sequence[Request]) -> list[Spoken]:
    network, device = base.network, base.device
    embeds_BSD, mask_BS = _prompts(base, requests)
    sampling = _Sampling(requests, network, device)
    cache = DynamicCache(config=base.model.config)
    frames: list[Tensor] = []
    caps = torch.tensor([request.max_frames for request in requests])
    lengths = torch.full((len(requests),), -1)
    with _eval_mode(network), network.gates.set(stack_gates([request.gate for request in requests]).to(device)):
        while bool(((lengths < 0) & (len(frames) < caps)).any()):
            positions = mask_BS.long().cumsum(dim=1)[:, -embeds_BSD.shape[1] :] - 1
            hidden_BSD = network.backbone(
                inputs_embeds=embeds_BSD, attention_mask=mask_BS, position_ids=positions.clamp(min=0),
                past_key_values=cache, use_cache=True,
            ).last_hidden_state  # fmt: skip
            codes_BK = _frame(network, hidden_BSD[:, -1], sampling)
            # As transformers does, on all codebooks but the last.
            stopped = (codes_BK[:, :-1] == 0).all(dim=1).cpu()
            lengths = torch.where((lengths < 0) & stopped, len(frames), lengths)
            frames.append(codes_BK.cpu())
            embeds_BSD = network.backbone.embed_tokens(codes_BK[:, None])
            mask_BS = torch.cat([mask_BS, mask_BS.new_ones(len(requests), 1)], dim=1)
    codes_BTK = (
        torch.stack(frames, dim=1).numpy() if frames else np.zeros((len(requests), 0, base.num_codebooks), np.int64)
    )
    results = []
    for codes_TK, length, cap in zip(codes_BTK, lengths.tolist(), caps.tolist(), strict=True):
        # A row alone never sees the frame at its cap, so an end frame there, in a longer batch, doesn't count.
        hit_cap = not 0 <= length < cap
        results.append(Spoken(codes_TK[: cap if hit_cap else length], hit_cap))
    return results


def _prompts(base: Base, requests: Sequence[Request]) -> tuple[Tensor, Tensor]:
    """Left-padded input embeddings (B, S, D) and their mask (B, S)."""
    network, rows = base.network, []
    for request in requests:
        # A single dummy frame closes the row, as `collate` wants something to predict; it is cut off again.
        dummy = np.zeros((0, base.num_codebooks), dtype=np.int64)
        batch = collate([Row("", (*request.context, Turn(request.text_ids, dummy)))], base.num_codebooks)
        rows.append(network.embed(batch.to(base.device))[0, :-1])
    width = max(len(row) for row in rows)
    embeds = rows[0].new_zeros(len(rows), width, rows[0].shape[-1])
    mask = torch.zeros(len(rows), width, dtype=torch.bool, device=base.device)
    for index, row in enumerate(rows):
        embeds[index, width - len(row) :] = row
        mask[index, width - len(row) :] = True
    return embeds, mask


class _Sampling:
    """How the rows of a batch draw their codes; on the device, so that drawing a code never waits for the host."""

    def __init__(self, requests: Sequence[Request], network: CsmNetwork, device: torch.device) -> None:
        self.dice = [torch.Generator().manual_seed(request.seed) for request in requests]
        self.num_codebooks = network.num_codebooks
        self.codebook_size = network.codebook_size
        self.device = device
        temperatures = [request.temperature for request in requests]
        depth = [
            t if request.depth_temperature is None else request.depth_temperature
            for t, request in zip(temperatures, requests, strict=True)
        ]
        self.temperature_KB1 = torch.tensor([temperatures, *[depth] * (self.num_codebooks - 1)], device=device)[
            ..., None
        ]
        top_k = torch.tensor([min(request.top_k, network.codebook_size) for request in requests], device=device)
        self.most = int(top_k.max())
        self.is_cut_B1 = (top_k > 0)[:, None]
        self.place_B1 = (top_k - 1).clamp(min=0)[:, None]

    def uniform(self) -> Tensor:
        """One number in [0, 1) per row and codebook of the next frame, each row's from its own seed: (B, K)."""
        # Drawn in double precision on the host, so that a seed says the same on every device.
        rows = [torch.rand(self.num_codebooks, generator=die, dtype=torch.float64) for die in self.dice]
        return torch.stack(rows).to(self.device, torch.float32)

    def pick(self, logits_BV: Tensor, uniform_B: Tensor, k: int) -> Tensor:
        """One code per row: where the cumulative distribution passes `uniform`, or the most likely one (greedy)."""
        # Beyond the codec's codes the vocabulary has marks, such as padding, that can't be spoken.
        logits_BC = logits_BV[:, : self.codebook_size]
        greedy_B = logits_BC.argmax(dim=-1)
        temperature_B1 = self.temperature_KB1[k]
        if not temperature_B1.any():
            return greedy_B
        scores_BC = logits_BC / temperature_B1.clamp(min=1e-6)
        if self.most > 0:
            best_BM = scores_BC.topk(self.most, dim=-1).values
            least_B1 = best_BM.gather(1, self.place_B1)
            scores_BC = scores_BC.masked_fill(self.is_cut_B1 & (scores_BC < least_B1), -torch.inf)
        cumulative_BC = scores_BC.softmax(dim=-1).cumsum(dim=-1)
        total_B1 = cumulative_BC[:, -1:]
        # Below the total and from the right: a code of probability zero is never drawn.
        target_B1 = torch.minimum(uniform_B[:, None] * total_B1, total_B1.nextafter(torch.zeros_like(total_B1)))
        drawn_B = torch.searchsorted(cumulative_BC, target_B1, right=True).squeeze(1)
        return torch.where(temperature_B1.squeeze(1) == 0, greedy_B, drawn_B)


def _frame(network: CsmNetwork, state_BD: Tensor, sampling: _Sampling) -> Tensor:
    """All codebooks (B, K) of the next frame, from the backbone's last state."""
    uniform_BK = sampling.uniform()
    codes = [sampling.pick(network.c0_logits(state_BD), uniform_BK[:, 0], 0)]
    table, cache = network.depth.model.embed_tokens, DynamicCache(config=network.depth.config)
    inputs_BSD = torch.stack([state_BD, table(codes[0])], dim=1)
    for k in range(1, network.num_codebooks):
        hidden_BSD = network.depth.model(
            inputs_embeds=inputs_BSD, past_key_values=cache, use_cache=True
        ).last_hidden_state
        codes.append(sampling.pick(network.next_logits(hidden_BSD[:, -1], k), uniform_BK[:, k], k))
        inputs_BSD = table(codes[-1] + k * network.vocab_size)[:, None]
    return torch.stack(codes, dim=1)


@contextmanager
def _eval_mode(network: CsmNetwork) -> Iterator[None]:
    """In train mode activation checkpointing would drop the key-value cache."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
