"""Which layers carry adapters: layer names, presets for them, and parts of the network."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from affetto.errors import AdapterError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
PRESETS: Mapping[str, tuple[str, ...]] = {"attention": ATTENTION, "mlp": MLP, "both": (*ATTENTION, *MLP)}
"""Names that may stand for several layers' names."""

Part = Literal["both", "backbone", "depth"]
ADAPTED_PARTS = ("backbone_model", "depth_decoder")
"""Parts of the checkpoint that may carry adapters; the codec inside CSM has layers of the same names."""
PARTS: Mapping[Part, tuple[str, ...]] = {
    "both": ADAPTED_PARTS, "backbone": ADAPTED_PARTS[:1], "depth": ADAPTED_PARTS[1:],
}  # fmt: skip
"""What the configuration calls them."""
_CALLED: Mapping[Part, str] = {
    "both": "backbone or depth decoder", "backbone": "backbone", "depth": "depth decoder",
}  # fmt: skip


def expand_targets(names: Sequence[str]) -> tuple[str, ...]:
    """Layer names, each once, with presets replaced by what they stand for."""
    return tuple(dict.fromkeys(layer for name in names for layer in PRESETS.get(name, (name,))))


def target_pattern(targets: Sequence[str], parts: Sequence[str] = ADAPTED_PARTS) -> str:
    """The regular expression by which PEFT finds the same layers, the codec's excluded."""
    return rf"({'|'.join(parts)})\..*\.({'|'.join(targets)})"


def find_targets(names: Sequence[str], part: Part, paths: Sequence[str]) -> list[str]:
    """Those of `paths` (every linear layer that may carry an adapter) that are meant.

    Raises `AdapterError` where a name matches no layer of the part, and says which names come near.
    """
    if not names:
        raise AdapterError("an adapter needs at least one target, such as q_proj or attention")
    parts, targets = PARTS[part], expand_targets(names)
    inside = [path for path in paths if path.split(".")[0] in parts]
    leaves = sorted({_leaf(path) for path in inside})
    for name in targets:
        if name not in leaves:
            near = difflib.get_close_matches(name, [*leaves, *PRESETS], n=3)
            hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join([*leaves, *PRESETS])}."
            raise AdapterError(f"no linear layer of the {_CALLED[part]} is named {name!r}; {hint}")
    pattern = re.compile(target_pattern(targets, parts))
    return [path for path in inside if pattern.fullmatch(path)]


def parts_of(paths: Sequence[str]) -> tuple[str, ...]:
    """Parts of the checkpoint that `paths` lie in, in `ADAPTED_PARTS`' order."""
    found = {path.split(".")[0] for path in paths}
    return tuple(part for part in ADAPTED_PARTS if part in found)


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]
