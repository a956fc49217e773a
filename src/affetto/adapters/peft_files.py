"""Adapters on disk: PEFT's own files, so that PEFT can load them without affetto, and `affetto.json` with the facts.

Loading is strict. Errors name every tensor that is missing, unknown or of the wrong shape. An adapter is refused if it
changes nothing, belongs to another base, or was made by a method whose change isn't s·B·A.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from affetto.adapters.bank import AdapterBank, Change, delta_norm
from affetto.adapters.checks import check_config, check_facts
from affetto.adapters.stacks import stacked_for_peft, unstacked
from affetto.adapters.targets import modules_pattern, peft_adapts
from affetto.adapters.trained_clips import write_trained
from affetto.errors import AdapterError, counted, listed
from affetto.files import new_folder, read_json, write_json

CONFIG, WEIGHTS, FACTS = "adapter_config.json", "adapter_model.safetensors", "affetto.json"
_PREFIX = "base_model.model."
_KEY = re.compile(r"base_model\.model\.(?P<site>.+)\.lora_(?P<factor>[AB])\.weight")
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_OTHER_METHODS = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules",
    "alora_invocation_tokens": "aLoRA",
    "lora_bias": "biases of B",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow",
    "trainable_token_indices": "trained tokens",
    "layer_replication": "replicated layers",
}
"""PEFT's keys for methods that change weights by something else than s·B·A of linear layers."""
_CODEC = ("codec_model.", "audio_encoder.")
_STACKED = "depth_decoder."
"""Where Moshi's stacks are, which PEFT adapts as bare parameters."""
_AGAIN = "Copy or train the adapter again"
_PEFT_DEFAULT = 8
"""PEFT's default for both rank and alpha."""


@dataclass(frozen=True)
class AdapterFile:
    """An adapter as read from disk."""

    folder: Path
    tensors: dict[str, Change]
    """(A (R, in), B (out, R)) by site; (change, None) of a whole checkpoint."""
    scales: dict[str, float]
    config: dict[str, Any] = field(default_factory=dict)
    """`adapter_config.json`."""
    facts: dict[str, Any] = field(default_factory=dict)
    """`affetto.json`, empty for adapters made elsewhere."""

    @property
    def base_hash(self) -> str | None:
        """Hash of the base's weights that the adapter was trained on, if it says."""
        base = self.facts.get("base")
        value = base.get("hash") if isinstance(base, dict) else None
        return value if isinstance(value, str) else None

    @property
    def recommended_intensity(self) -> float:
        """The intensity that its training recommends, which may be 0; 1 if there is none."""
        value = self.facts.get("recommended_intensity")
        return 1.0 if value is None else float(value)


def save_adapter(
    folder: Path, bank: AdapterBank, names: str | Sequence[str], base_id: str, facts: Mapping[str, Any],
    trained: Collection[str] | None = None,
) -> None:  # fmt: skip
    """Write an adapter, or the exact sum of several, as `folder`, which replaces an older one as a whole.

    Layers that the adapter doesn't have are left out; layers with other ranks or scales become PEFT's patterns.
    `trained` are the hashes of the clips that it was trained on (`trained_clips`), if known. DataError if the folder
    can't be written, or the disk is full.
    """
    factors = bank.summed([names] if isinstance(names, str) else names)
    layers = {site: (a_RI, b_OR, scale) for site, a_RI, b_OR, scale in factors if a_RI.shape[0]}
    assert layers, f"adapter {names!r} has no layers"
    tensors = {}
    for site, (a_RI, b_OR, _) in layers.items():
        assert b_OR is not None, f"adapter {names!r} has full rank: it is written as a checkpoint"
        tensors[f"{_PREFIX}{site}.lora_A.weight"] = a_RI.detach().cpu().float().contiguous()
        tensors[f"{_PREFIX}{site}.lora_B.weight"] = b_OR.detach().cpu().float().contiguous()
    tensors = stacked_for_peft(tensors, bank.stacks, _PREFIX)
    config = _peft_config(bank, base_id, {site: (a_RI.shape[0], scale) for site, (a_RI, _, scale) in layers.items()})
    with new_folder(folder) as temporary:
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        # safetensors makes files that only their owner can read, but adapters are shared.
        (temporary / WEIGHTS).chmod(0o644)
        write_json(temporary / CONFIG, config)
        write_json(temporary / FACTS, dict(facts))
        if trained is not None:
            write_trained(temporary, trained)


def read_adapter(folder: Path) -> AdapterFile:
    """Read an adapter folder, affetto's or any PEFT LoRA; `insert_adapter` checks whether it fits a base."""
    if not (folder / CONFIG).is_file():
        raise AdapterError(
            f"{folder}: no {CONFIG} here. Give the folder that holds it, such as emotion_models/happy/best"
        )
    config = _read_object(folder / CONFIG)
    check_config(folder / CONFIG, config)
    _refuse_other_methods(folder, config)
    if not (folder / WEIGHTS).is_file():
        raise AdapterError(
            f"{folder}: no {WEIGHTS} here; save the adapter as safetensors (pickled .bin files are not read)"
        )
    try:
        stored = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{folder / WEIGHTS} can't be read ({error}). {_AGAIN}") from error
    halves: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in stored.items():
        match = _KEY.fullmatch(key)
        if match is None:
            unknown.append(key)
        else:
            halves.setdefault(match["site"], {})[match["factor"]] = tensor
    unknown += [f"{site} (half)" for site, pair in halves.items() if len(pair) != 2]
    if unknown:
        raise AdapterError(
            f"{folder / WEIGHTS}: {counted(len(unknown), 'tensor is', 'tensors are')} not LoRA of linear layers: "
            f"{listed(unknown)}. {_AGAIN}"
        )
    tensors = {site: (pair["A"], pair["B"]) for site, pair in halves.items()}
    tensors = unstacked(tensors, config, lambda site: _rank(config, site))
    _check_ranks(folder, config, tensors)
    scales = {site: _scale(config, site, a_RI.shape[0]) for site, (a_RI, _) in tensors.items()}
    return AdapterFile(folder, dict(tensors), scales, config, read_facts(folder))


def read_facts(folder: Path) -> dict[str, Any]:
    """`affetto.json` of an adapter's folder; empty if there is none. AdapterError if it is damaged."""
    facts = _read_object(folder / FACTS) if (folder / FACTS).is_file() else {}
    check_facts(folder / FACTS, facts)
    return facts


def check_base(adapter: AdapterFile, base_hash: str, allow_other_base: bool) -> None:
    """Raise AdapterError if the adapter was made for another base, unless that is allowed."""
    if adapter.base_hash is not None and adapter.base_hash != base_hash and not allow_other_base:
        base = adapter.facts.get("base")
        trained = base.get("id", "another base") if isinstance(base, dict) else "another base"
        raise AdapterError(
            f"{adapter.folder / FACTS}: trained on {trained} with weights {adapter.base_hash[:12]}, but the base given "
            f"has {base_hash[:12]}. Give that base, or train again (Voice.load_adapter has allow_other_base=True)"
        )


def check_change(folder: Path, site: str, found: Sequence[int], expected: Sequence[int]) -> None:
    """Raise AdapterError if a layer's weights have another shape than the base's."""
    if tuple(found) != tuple(expected):
        raise AdapterError(
            f"{folder}: {site} is {tuple(found)}, the base's layer {tuple(expected)}: give the base it was made from"
        )


def insert_adapter(
    bank: AdapterBank, name: str, adapter: AdapterFile, base_hash: str, allow_other_base: bool = False
) -> None:
    """Put `adapter` into the bank as `name`, or say exactly why it doesn't fit."""
    weights, named = adapter.folder / WEIGHTS, adapter.config.get("base_model_name_or_path")
    remedy = f"Give the base that it was trained on{f', {named} by its {CONFIG}' if named else ''}"
    check_base(adapter, base_hash, allow_other_base)
    # Plain target names make PEFT adapt the codec inside CSM too, which training never reaches: those change nothing.
    factors = {site: (a, b) for site, (a, b) in adapter.tensors.items() if b is not None}
    dead = {site for site, (a, b) in factors.items() if site.startswith(_CODEC) and not (a.any() and b.any())}
    tensors = {site: pair for site, pair in factors.items() if site not in dead}
    outside = sorted(set(tensors) - set(bank.sites))
    if outside:
        raise AdapterError(
            f"{weights}: {counted(len(outside), 'layer is', 'layers are')} not in this base or not adapted here: "
            f"{listed(outside)}. {remedy}"
        )
    missing = [site for site in bank.sites if site not in tensors and peft_adapts(adapter.config, site)]
    if missing:
        mend = f"{remedy}, or, if this is that one, copy or train it again"
        if adapter.base_hash == base_hash:
            mend = _AGAIN
        layers = counted(len(missing), "layer of its target_modules has", "layers of its target_modules have")
        raise AdapterError(f"{weights}: {layers} no tensors: {listed(missing)}. {mend}")
    wrong = []
    for site, (a_RI, b_OR) in tensors.items():
        out_features, in_features = bank.sites[site].shape
        if a_RI.shape[1] != in_features or b_OR.shape[0] != out_features or a_RI.shape[0] != b_OR.shape[1]:
            wrong.append(
                f"{site}: A {tuple(a_RI.shape)}, B {tuple(b_OR.shape)} for a layer {out_features}x{in_features}"
            )
    if wrong:
        raise AdapterError(f"{weights}: shapes don't fit: {listed(wrong)}. {remedy}")
    norms = [delta_norm(a_RI, b_OR, adapter.scales[site]) for site, (a_RI, b_OR) in tensors.items()]
    if not all(map(math.isfinite, norms)):
        raise AdapterError(f"{weights}: some of its weights are NaN or infinite. {_AGAIN}")
    if not any(norms):
        raise AdapterError(f"{weights}: it changes nothing (its B·A is zero); it was never trained. {_AGAIN}")
    bank.insert(name, tensors, adapter.scales)


def _peft_config(bank: AdapterBank, base_id: str, layers: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    """`layers` are (rank, scale) by site. The most common become the adapter's own, the others go into patterns."""
    ranks = {site: rank for site, (rank, _) in layers.items()}
    # Twelve digits undo the rounding of alpha / rank · rank.
    alphas = {site: float(f"{scale * rank:.12g}") for site, (rank, scale) in layers.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    stacks = [path for path in bank.stacks if f"{path}.0" in layers]
    plain = [site for site in layers if site.rpartition(".")[0] not in stacks]
    pattern = modules_pattern(plain)
    is_whole = all(site in layers for site in bank.sites if re.fullmatch(pattern, site))
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_id,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "rank_pattern": {re.escape(site): value for site, value in ranks.items() if value != rank},
        "alpha_pattern": {re.escape(site): value for site, value in alphas.items() if value != alpha},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": (pattern if is_whole else plain) if plain else None,
        "modules_to_save": None,
        **({"target_parameters": [f"{path}.weight" for path in stacks]} if stacks else {}),
    }


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} can't be read ({error}). {_AGAIN}") from error
    if not isinstance(value, dict):
        raise AdapterError(f"{path} is not a JSON object. {_AGAIN}")
    return value


def _refuse_other_methods(folder: Path, config: Mapping[str, Any]) -> None:
    where, kind = folder / CONFIG, config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"{where}: peft_type is {kind!r}; affetto blends plain LoRA only: train that")
    init = str(config.get("init_lora_weights", True)).lower()
    if any(init.startswith(name) for name in _CHANGES_BASE):
        raise AdapterError(
            f"{where}: initialised by {init}, which changes the base's weights; convert it to plain LoRA first"
        )
    for key, name in _OTHER_METHODS.items():
        if config.get(key):
            raise AdapterError(f"{where}: it carries {name}, which is not s·B·A; merge it or train plain LoRA")
    if any(not name.startswith(_STACKED) for name in config.get("target_parameters") or ()):
        raise AdapterError(f"{where}: it carries bare parameters, which is not s·B·A; merge it or train plain LoRA")
    if config.get("bias", "none") != "none":
        raise AdapterError(
            f"{where}: it trained biases too (bias={config['bias']!r}), which the bank doesn't blend; train plain LoRA"
        )


def _check_ranks(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """AdapterError if tensors have another rank than the configuration: PEFT divides alpha by that one, so they would
    be scaled wrongly."""
    wrong = []
    for site, (a_RI, b_OR) in tensors.items():
        rank = _rank(config, site)
        if a_RI.ndim != 2 or b_OR.ndim != 2 or not a_RI.shape[0] == b_OR.shape[1] == rank:
            wrong.append(f"{site}: A {tuple(a_RI.shape)}, B {tuple(b_OR.shape)} for rank {rank}")
    if wrong:
        layers = counted(len(wrong), "layer doesn't", "layers don't")
        raise AdapterError(f"{folder / WEIGHTS}: {layers} have the rank of {CONFIG}: {listed(wrong)}. {_AGAIN}")


def _rank(config: Mapping[str, Any], site: str) -> int:
    rank: int = _by_pattern(config.get("rank_pattern") or {}, site, config.get("r", _PEFT_DEFAULT))
    return rank


def _scale(config: Mapping[str, Any], site: str, rank: int) -> float:
    alpha = float(_by_pattern(config.get("alpha_pattern") or {}, site, config.get("lora_alpha", _PEFT_DEFAULT)))
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, Any], site: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", site):
            return value
    return default
