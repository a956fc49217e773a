"""Full-rank adapters on disk: a whole checkpoint, which transformers loads as it loads the base.

The bank takes its difference from the base, so a fully fine-tuned emotion can be spoken at any strength and blended
like any other (interpolating between base and checkpoint: WiSE-FT, Wortsman et al. 2022).
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from affetto.adapters.bank import AdapterBank, Change, delta_norm
from affetto.adapters.peft_files import (
    CONFIG,
    FACTS,
    AdapterFile,
    check_base,
    check_change,
    insert_adapter,
    read_adapter,
    read_facts,
)
from affetto.adapters.trained_clips import TRAINED, write_trained
from affetto.codes.codec import codec_tensors
from affetto.errors import AdapterError, counted, listed
from affetto.files import new_folder, place_told, write_json
from affetto.folders import recover_folder
from affetto.quiet import quiet_transformers

_NOT_COPIED = ("*.safetensors.index.json", "model*.safetensors", "*.bin", "README.md", ".*", FACTS, TRAINED)


def save_checkpoint(
    folder: Path, bank: AdapterBank, name: str, model: Any, base_folder: Path, facts: Mapping[str, Any],
    trained: Collection[str] | None = None,
) -> None:  # fmt: skip
    """Write base plus adapter `name` as `folder`, which replaces an older one as a whole.

    Weights are in float32, so that small changes aren't rounded away; tokenizer, processor and codec are the base's own
    files. `trained` is as for `save_adapter`. DataError if the folder can't be written, or the disk is full.
    """

    def copy(source: str, target: str) -> None:
        # Caught here, because what `copytree` raises at its end has no errno.
        with place_told(folder):
            shutil.copy2(source, target)

    left_out = shutil.ignore_patterns(*_NOT_COPIED)
    with new_folder(folder) as temporary:
        shutil.copytree(base_folder, temporary, dirs_exist_ok=True, ignore=left_out, copy_function=copy)
        with quiet_transformers():
            state = dict(merged_weights(model, bank, name)) | codec_tensors(base_folder)
            model.save_pretrained(temporary, state_dict=state)
        for path in temporary.glob("*.safetensors"):
            path.chmod(0o644)
        write_json(temporary / FACTS, dict(facts))
        if trained is not None:
            write_trained(temporary, trained)


@torch.no_grad()
def merged_weights(model: Any, bank: AdapterBank, name: str) -> Iterator[tuple[str, Tensor]]:
    """(name, value) of every tensor of the checkpoint with adapter `name` at intensity 1, under the base's names."""
    changes = {site: scale * change for site, change, none, scale in bank.factors(name) if none is None}
    inside = tuple(f"{site}." for site in bank.sites)
    stacks: dict[str, list[Tensor]] = {path: [] for path in bank.stacks}
    for key, value in model.state_dict().items():
        if not key.startswith(inside):
            yield key, value.float() if value.is_floating_point() else value
            continue
        site, _, leaf = key.rpartition(".layer.")
        if site not in bank.sites:
            continue
        whole = value.float() + changes[site] if leaf == "weight" else value.float()
        path = site.rpartition(".")[0]
        if path in stacks:
            stacks[path].append(whole)
        else:
            yield f"{site}.{leaf}", whole
    for path, parts in stacks.items():
        yield f"{path}.weight", torch.stack(parts)


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` holds a whole checkpoint rather than a LoRA adapter."""
    return (folder / "config.json").is_file() and not (folder / CONFIG).is_file()


def read_checkpoint(folder: Path, bank: AdapterBank) -> AdapterFile:
    """What the checkpoint in `folder` changes at the bank's layers.

    AdapterError if it can't be read, is of another base than the bank's, or changes more of it than the bank blends.
    """
    tensors: dict[str, Change] = {}
    others = {key.replace(".layer.bias", ".bias"): value for key, value in bank.model.state_dict().items()}
    changed: list[str] = []
    paths = sorted(folder.glob("*.safetensors"))
    try:
        for path in paths:
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
                for site, layer in bank.sites.items():
                    stack, _, number = site.rpartition(".")
                    name = f"{stack if stack in bank.stacks else site}.weight"
                    if name in names:
                        stored = file.get_tensor(name).float()
                        stored = stored[int(number)] if stack in bank.stacks else stored
                        check_change(folder, site, stored.shape, torch.Size(layer.shape))
                        tensors[site] = (stored - layer.layer.weight.detach().cpu().float(), None)
                changed += [key for key in sorted(names & set(others)) if _differ(file.get_tensor(key), others[key])]
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{folder} can't be read ({error}); copy or train it again") from error
    if missing := [site for site in bank.sites if site not in tensors]:
        raise AdapterError(
            f"{folder}: {counted(len(missing), 'layer of the base has', 'layers of the base have')} no weights in it, "
            f"{missing[0]} first; give the base it was made from, or, if this is that one, copy or train it again"
        )
    if changed:
        tell = counted(len(changed), "tensor is", "tensors are")
        raise AdapterError(
            f"{folder}: {tell} not the base's, and adapters are blended in linear layers alone: {listed(changed)}. "
            f"Speak with it as a base of its own (--base, Voice.load), or train those layers alone"
        )
    return AdapterFile(folder, tensors, dict.fromkeys(tensors, 1.0), {}, read_facts(folder))


def _differ(stored: Tensor, own: Tensor) -> bool:
    """Whether two tensors differ by more than the rounding of the less precise of them."""
    dtype = min(stored.dtype, own.dtype, key=lambda one: one.itemsize)
    return not torch.equal(stored.to(dtype), own.detach().cpu().to(dtype))


def check_adapter(folder: Path, base_hash: str) -> None:
    """AdapterError if `folder` holds no readable adapter, or one of another base. Only the adapter's files are read, so
    no base need be loaded."""
    recover_folder(folder)
    adapter = AdapterFile(folder, {}, {}, facts=read_facts(folder)) if is_checkpoint(folder) else read_adapter(folder)
    check_base(adapter, base_hash, allow_other_base=False)


def load_adapter(
    bank: AdapterBank, name: str, folder: Path, base_hash: str, allow_other_base: bool = False
) -> AdapterFile:
    """Put the LoRA or whole checkpoint in `folder` into the bank as `name`, or say why it doesn't fit."""
    recover_folder(folder)
    if not is_checkpoint(folder):
        adapter = read_adapter(folder)
        insert_adapter(bank, name, adapter, base_hash, allow_other_base)
        return adapter
    # Checked first, because with another base the errors about shapes would say less about what is wrong.
    check_base(AdapterFile(folder, {}, {}, facts=read_facts(folder)), base_hash, allow_other_base)
    adapter = read_checkpoint(folder, bank)
    changes = {site: change for site, (change, _) in adapter.tensors.items()}
    if not all(torch.isfinite(change).all() for change in changes.values()):
        raise AdapterError(f"{folder}: some of its weights are NaN or infinite; train or copy it again")
    if not any(delta_norm(change, None, 1.0) for change in changes.values()):
        raise AdapterError(f"{folder}: this checkpoint is the base itself; it was never trained")
    bank.insert(name, adapter.tensors, adapter.scales)
    return adapter
