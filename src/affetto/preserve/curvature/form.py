"""The interface of curvatures: a quadratic form in the changes of the adapted layers, fed clip by clip.

A curvature is fed (a_t, g_t): a layer's input and the gradient at its output, at every position, of the summed
negative log likelihood of labels sampled from the base itself (the true Fisher; Kunstner et al. 2019 on why not the
data's own labels). `form` then gives dW^T F dW in nats per code for dW = s B A, the function's change and not its
factors': at B = 0 the gradient of A vanishes, so a Fisher over (A, B) would protect nothing (method.md, section 2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from affetto.errors import CacheError, CurvatureError
from affetto.files import write_atomically
from affetto.native.functional import mm

Factor = tuple[str, Tensor, Tensor | None, float]
"""(site, A (R, in), B (out, R), scale) of one adapted layer: its weights change by scale * B A.

Without B, as where every weight is trained, A (out, in) is the change itself.
"""


class Curvature(ABC):
    """One approximation of the Fisher, as named tensors per layer."""

    name: ClassVar[str]

    def __init__(self) -> None:
        self.tensors: dict[str, dict[str, Tensor]] = {}
        """By kind, then by site."""
        self.num_codes = 0
        self.num_clips = 0

    @abstractmethod
    def update(
        self, site: str, clip_ids: Sequence[str], inputs_CPI: Sequence[Tensor], gradients_CPO: Sequence[Tensor]
    ) -> None:
        """Add clips at layer `site`: for each its positions' inputs (P, in) and gradients (P, out).

        Positions without gradient are left out. Raises CurvatureError where a product is not finite.
        """

    @abstractmethod
    def form(self, factors: Sequence[Factor], step: int | None = None) -> Tensor:
        """dW^T F dW over all layers, nats per code, differentiable in A and B.

        Sampled curvatures take a small random part of their sample, drawn by `step`, where one is given; None is all.
        """

    def site_memory(self) -> dict[str, int]:
        """Bytes that each layer takes."""
        found: dict[str, int] = {}
        for by_site in self.tensors.values():
            for site, tensor in by_site.items():
                found[site] = found.get(site, 0) + tensor.nbytes
        return found

    def save(self, path: Path, key: str = "") -> None:
        """Write everything as safetensors; `key` identifies the base and the clips that it was estimated on."""
        flat = {f"{kind}/{site}": value for kind, by_site in self.tensors.items() for site, value in by_site.items()}
        facts = {
            "curvature": self.name, "num_codes": str(self.num_codes), "num_clips": str(self.num_clips), "key": key
        }  # fmt: skip
        write_atomically(path, lambda temporary: save_file(flat, temporary, metadata=facts))

    @classmethod
    def load(cls, path: Path, key: str = "", device: torch.device | str = "cpu") -> Self:
        """Read what `save` wrote; CacheError if it is damaged, another curvature, or of another base or clips."""
        curvature = cls()
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata() or {}
            flat = load_file(path, device=str(device))
        except (OSError, SafetensorError) as error:
            raise CacheError(f"{path} can't be read ({error}); delete it") from error
        if facts.get("curvature") != cls.name:
            raise CacheError(f"{path} holds the curvature {facts.get('curvature')!r}, not {cls.name!r}; delete it")
        if facts.get("key") != key:
            raise CacheError(
                f"{path} is of another base or other clips ({str(facts.get('key'))[:12]}) than these ({key[:12]}); "
                "delete it"
            )
        for name, value in flat.items():
            kind, _, site = name.partition("/")
            curvature.tensors.setdefault(kind, {})[site] = value
        curvature.num_codes, curvature.num_clips = int(facts["num_codes"]), int(facts["num_clips"])
        return curvature

    def _add(self, kind: str, site: str, value: Tensor) -> None:
        by_site = self.tensors.setdefault(kind, {})
        if site in by_site:
            by_site[site].add_(value)
        else:
            by_site[site] = value.clone()

    def _append(self, kind: str, site: str, value: Tensor) -> None:
        by_site = self.tensors.setdefault(kind, {})
        by_site[site] = torch.cat([by_site[site], value]) if site in by_site else value

    def _per_code(self) -> float:
        assert self.num_codes > 0, f"the {self.name} curvature has seen no speech"
        return 1.0 / self.num_codes


def active(inputs_PI: Tensor, gradients_PO: Tensor) -> tuple[Tensor, Tensor]:
    """The positions that a clip's loss depends on, in float32: padding and idle positions have no gradient at all."""
    kept = gradients_PO.abs().amax(dim=-1) != 0
    return inputs_PI[kept].float(), gradients_PO[kept].float()


def clip_gradient(site: str, clip_id: str, inputs_PI: Tensor, gradients_PO: Tensor) -> Tensor:
    """A clip's gradient at the layer's weight, sum over positions of g a^T: (out, in), float32."""
    gradient_OI = mm(gradients_PO.float().T, inputs_PI.float())
    check_finite(site, clip_id, gradient_OI)
    return gradient_OI


def along(values: Tensor, b_OR: Tensor | None) -> Tensor:
    """`values` (…, out) times B (…, R); without B as they are."""
    return values if b_OR is None else values @ b_OR


def check_finite(site: str, clip_id: str, *values: Tensor) -> None:
    """Raise CurvatureError where a value is NaN or infinite."""
    # The sum of finite values is finite unless it overflows, so the cheaper check comes first.
    if not all(torch.isfinite(value.sum()) or torch.isfinite(value).all() for value in values):
        raise CurvatureError(
            f"the curvature is not finite at layer {site} on clip {clip_id}; look at that clip, leave it out, or "
            "estimate in float32"
        )
