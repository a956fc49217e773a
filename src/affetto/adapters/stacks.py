"""Stacks of matrices in PEFT's files: Moshi's depth transformer has one matrix per codebook in a single parameter.

PEFT adapts such a parameter (`target_parameters`) with one A and one B for all E matrices: A's rows are matrix by
matrix, B's columns rank by rank, each with its E matrices (peft `ParamWrapper`). The bank has a site for each matrix,
`path.0` to `path.E-1`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def stacked_for_peft(tensors: Mapping[str, Tensor], stacks: Mapping[str, int], prefix: str) -> dict[str, Tensor]:
    """`tensors` in PEFT's form, the sites of each stack (path: number of matrices) joined into one."""
    done = dict(tensors)
    for path, count in stacks.items():
        if f"{prefix}{path}.0.lora_A.weight" not in done:
            continue
        a_ERI = torch.stack([done.pop(f"{prefix}{path}.{k}.lora_A.weight") for k in range(count)])
        b_ORE = torch.stack([done.pop(f"{prefix}{path}.{k}.lora_B.weight") for k in range(count)], dim=-1)
        done[f"{prefix}{path}.lora_A.weight"] = a_ERI.flatten(0, 1).contiguous()
        done[f"{prefix}{path}.lora_B.weight"] = b_ORE.flatten(1, 2).contiguous()
    return done


def unstacked(
    factors: Mapping[str, tuple[Tensor, Tensor]], config: Mapping[str, Any], rank_of: Callable[[str], int]
) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) by site of the bank, from PEFT's by path. Anything but a whole number of ranks is left as it is."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    named = tuple(config.get("target_parameters") or ())
    for path, (a_RI, b_OR) in factors.items():
        is_named = any(f"{path}.weight".endswith(name) for name in named)
        is_whole = a_RI.ndim == b_OR.ndim == 2 and b_OR.shape[1] == len(a_RI) and len(a_RI) % rank_of(path) == 0
        if not (is_named and is_whole):
            found[path] = (a_RI, b_OR)
            continue
        count = len(a_RI) // rank_of(path)
        b_ORE = b_OR.reshape(len(b_OR), -1, count)
        for k, a_part_RI in enumerate(a_RI.chunk(count)):
            found[f"{path}.{k}"] = (a_part_RI.contiguous(), b_ORE[..., k].contiguous())
    return found
