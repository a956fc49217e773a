"""Curvature of the base at general speech, as seen through each adapted layer.

A curvature is fed (a_t, g_t): a layer's input and the gradient at its output, at every position, of the summed
negative log likelihood of labels sampled from the base itself (the true Fisher; Kunstner et al. 2019 on why not the
data's own labels). `penalty` then gives dW^T F dW in nats per code for dW = s B A, the function's change and not its
factors': at B = 0 the gradient of A vanishes, so a Fisher over (A, B) would protect nothing (method.md, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from affetto.errors import CacheError
from affetto.files import write_atomically


class Curvature(Protocol):
    """One approximation of the Fisher."""

    num_codes: int

    def update(self, site: str, inputs_CPI: Sequence[Tensor], gradients_CPO: Sequence[Tensor]) -> None:
        """Add clips: for each its positions' inputs (P, in) and gradients (P, out) at layer `site`."""
        ...

    def penalty(self, site: str, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
        """dW^T F dW of one layer, nats per code, differentiable in A and B."""
        ...


class Diagonal:
    """The guide's EWC (Kirkpatrick et al. 2017): one importance per weight.

    Exact for the diagonal: each clip's gradient sum_t g_t a_t^T is formed before it is squared, so positions of one
    clip may reinforce or cancel each other.
    """

    name = "diagonal"

    def __init__(self) -> None:
        self.sums_OI: dict[str, Tensor] = {}
        self.num_codes = 0
        self.num_clips = 0

    def update(self, site: str, inputs_CPI: Sequence[Tensor], gradients_CPO: Sequence[Tensor]) -> None:
        """Add squared per-clip gradients of one layer, in float32."""
        for inputs_PI, gradients_PO in zip(inputs_CPI, gradients_CPO, strict=True):
            gradient_OI = gradients_PO.float().T @ inputs_PI.float()
            if site not in self.sums_OI:
                self.sums_OI[site] = torch.zeros_like(gradient_OI)
            self.sums_OI[site].addcmul_(gradient_OI, gradient_OI)

    def penalty(self, site: str, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
        """dW^T F dW, nats per code. A diagonal has no low-rank form, so the layer's dW is formed and let go."""
        change_OI = b_OR @ a_RI
        return scale**2 / max(self.num_codes, 1) * (self.sums_OI[site] * change_OI * change_OI).sum()

    def save(self, path: Path) -> None:
        """Write sums and counts as safetensors."""
        facts = {"curvature": self.name, "num_codes": str(self.num_codes), "num_clips": str(self.num_clips)}
        write_atomically(path, lambda temporary: save_file(self.sums_OI, temporary, metadata=facts))

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> Diagonal:
        """Read what `save` wrote; CacheError where it is damaged or another curvature."""
        curvature = cls()
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata() or {}
            curvature.sums_OI = load_file(path, device=str(device))
        except (OSError, SafetensorError) as error:
            raise CacheError(f"{path} can't be read ({error}); delete it") from error
        if facts.get("curvature") != cls.name:
            raise CacheError(f"{path} holds the curvature {facts.get('curvature')!r}, not {cls.name!r}; delete it")
        curvature.num_codes, curvature.num_clips = int(facts["num_codes"]), int(facts["num_clips"])
        return curvature


CURVATURES = {"diagonal": Diagonal}
"""By the name that `ewc_curvature` takes in the configuration."""
