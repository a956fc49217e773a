"""Which layers get adapters: layer names, presets for them, and parts of the network."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from affetto.errors import AdapterError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
PRESETS: Mapping[str, tuple[str, ...]] = {"attention": ATTENTION, "mlp": MLP, "both": (*ATTENTION, *MLP)}
"""Names that stand for several layers."""
_OTHER_MLPS = (("fc1", "fc2"), ("gate_up_proj", "down_proj"))
"""What `mlp` stands for in a base whose first matrix holds both gate and up (Moshi, Dia)."""
_INSIDE = r"(\.linear)?(\.\d+)?"
"""Ending of Moshi's paths: its linear layers are one level deeper, stacked ones are numbered by codebook."""

Part = Literal["both", "backbone", "depth"]
ADAPTED_PARTS = ("backbone_model", "decoder", "model.encoder", "model.decoder", "depth_decoder")
"""Parts of the checkpoint that may have adapters: CSM's backbone, Moshi's, Dia's two, and the depth decoder of the
first two. The codec inside, which has layers of the same names, is none of them."""
PARTS: Mapping[Part, tuple[str, ...]] = {
    "both": ADAPTED_PARTS, "backbone": ADAPTED_PARTS[:-1], "depth": ADAPTED_PARTS[-1:],
}  # fmt: skip
"""The parts by their names in the configuration."""
_CALLED: Mapping[Part, str] = {
    "both": "backbone or depth decoder", "backbone": "backbone", "depth": "depth decoder",
}  # fmt: skip


def expand_targets(names: Sequence[str], leaves: Collection[str] = ()) -> tuple[str, ...]:
    """Layer names, each once, with presets expanded for a base with layers named `leaves`."""
    return tuple(dict.fromkeys(layer for name in names for layer in _meant(name, leaves)))


def _meant(name: str, leaves: Collection[str]) -> tuple[str, ...]:
    mlp = next((names for names in _OTHER_MLPS if set(names) <= set(leaves)), MLP)
    return {"mlp": mlp, "both": (*ATTENTION, *mlp)}.get(name) or PRESETS.get(name, (name,))


def part_of(path: str) -> str | None:
    """The one of `ADAPTED_PARTS` that a layer is in; None if it can't have adapters."""
    return next((part for part in ADAPTED_PARTS if path.startswith(f"{part}.")), None)


def target_pattern(targets: Sequence[str], parts: Sequence[str] = ADAPTED_PARTS) -> str:
    """A regular expression by which PEFT finds the same layers, without the codec's."""
    return rf"({'|'.join(map(re.escape, parts))})\..*\.({'|'.join(targets)})"


def modules_pattern(sites: Sequence[str]) -> str:
    """A regular expression by which PEFT finds the linear layers named like `sites`, Moshi's a level deeper."""
    leaves = (leaf_name(site) + (r"\.linear" if site.endswith(".linear") else "") for site in sites)
    return target_pattern(tuple(dict.fromkeys(leaves)), parts_of(sites))


def leaf_name(path: str) -> str:
    """A layer's name in `target_modules`."""
    return re.sub(rf"{_INSIDE}$", "", path).rpartition(".")[2]


def find_targets(names: Sequence[str], part: Part, paths: Sequence[str]) -> list[str]:
    """Those of `paths` (all linear layers that can have adapters) that `names` mean in `part`.

    Raises `AdapterError` if a name matches no layer of the part, with the closest names.
    """
    if not names:
        raise AdapterError("an adapter needs at least one target, such as q_proj or attention")
    parts = PARTS[part]
    inside = [path for path in paths if part_of(path) in parts]
    if not inside:
        raise AdapterError(f"this base has no {_CALLED[part]}: adapted_parts must be both")
    leaves = sorted({leaf_name(path) for path in inside})
    targets = expand_targets(names, leaves)
    for name in targets:
        if name not in leaves:
            near = difflib.get_close_matches(name, [*leaves, *PRESETS], n=3)
            hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join([*leaves, *PRESETS])}."
            raise AdapterError(f"no linear layer of the {_CALLED[part]} is named {name!r}; {hint}")
    pattern = re.compile(target_pattern(targets, parts) + _INSIDE)
    return [path for path in inside if pattern.fullmatch(path)]


def parts_of(paths: Sequence[str]) -> tuple[str, ...]:
    """Parts of the checkpoint that `paths` are in, in the order of `ADAPTED_PARTS`."""
    found = {part_of(path) for path in paths}
    return tuple(part for part in ADAPTED_PARTS if part in found)


def peft_adapts(config: Mapping[str, Any], site: str) -> bool:
    """Whether PEFT would adapt the layer at `site` by this `adapter_config.json`."""
    if f"{site.rpartition('.')[0]}.weight" in (config.get("target_parameters") or ()):
        return True
    targets = config.get("target_modules")
    # The number of layer 0 is one, too.
    if all(config.get(key) is None for key in ("exclude_modules", "layers_to_transform", "layers_pattern")):
        # The simple cases, among them what affetto writes, without importing PEFT, which takes seconds.
        if isinstance(targets, str) and targets != "all-linear":
            return re.fullmatch(targets, site) is not None
        if isinstance(targets, list):
            return any(site == name or site.endswith(f".{name}") for name in targets)
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    keys = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    chosen = {key: config[key] for key in keys if config.get(key) is not None}
    try:
        told = LoraConfig(**chosen)
    except ValueError as error:
        raise AdapterError(f"adapter_config.json: {error} Copy or train the adapter again") from error
    return bool(chosen.get("target_modules")) and bool(check_target_module_exists(told, site))
