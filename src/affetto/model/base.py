"""Bases: a speech language model with its tokenizer and its codec's address, however it was made.

Nothing outside this folder knows whether a base is the miniature or CSM-1B.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from affetto.errors import BaseModelError
from affetto.files import hash_folder, hash_text, read_json
from affetto.model.csm import CsmNetwork
from affetto.model.packed import unpacked

MINIATURE = "miniature"
MINIATURE_FOLDER = Path(__file__).parent.parent / "miniature" / "assets" / "base"
_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Base:
    """A loaded, frozen base."""

    id: str
    """As the user named it: `miniature`, a hub id or a folder."""
    folder: Path
    hash: str
    """SHA-256 over the files of its weights; adapters and caches are bound to it."""
    model: Any
    """The transformers model, in eval mode, without gradients."""
    network: CsmNetwork
    tokenizer: Any
    sample_rate: int = 24_000
    frame_rate: float = 12.5

    @property
    def num_codebooks(self) -> int:
        """Codebooks per frame, K."""
        return self.network.num_codebooks

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def prompt_ids(self, text: str, speaker: int) -> tuple[int, ...]:
        """Token ids of one turn's text, begin and end tokens included, as the processor's chat template gives them."""
        ids = self.tokenizer(f"[{speaker}]{text}", add_special_tokens=True)["input_ids"]
        return tuple(ids)

    def to(self, device: torch.device | str) -> Base:
        """The base on another device."""
        self.model.to(device)
        self.network.to(device)
        return replace(self)


def load_base(name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Base:
    """Load a base by name, folder or hub id, frozen and in eval mode. Raises BaseModelError where it can't."""
    folder = find_base(name)
    kind = _model_type(folder)
    if kind not in BASES:
        raise BaseModelError(f"{name}: model_type {kind!r} is not supported; supported: {', '.join(BASES)}")
    try:
        with quiet_transformers():
            model, tokenizer = BASES[kind](folder, dtype)
    # What transformers, safetensors and tokenizers raise for missing, damaged or unfitting files.
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BaseModelError(
            f"{name}: the checkpoint in {folder} can't be loaded; copy or fetch it again. {error}"
        ) from error
    model.eval().requires_grad_(False)
    network = CsmNetwork(model).eval()
    base = Base(id=name, folder=folder, hash=weights_hash(folder), model=model, network=network, tokenizer=tokenizer)
    return base.to(device)


def find_base(name: str) -> Path:
    """The folder of a base; a hub id is fetched into the hub's cache (or found there, offline)."""
    if name == MINIATURE:
        if not (MINIATURE_FOLDER / "config.json").is_file():
            raise BaseModelError("the miniature's weights are not installed; run `affetto miniature build`")
        return unpacked(MINIATURE_FOLDER)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BaseModelError(f"{folder} has no config.json; give the folder of a transformers checkpoint")
        return folder
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise BaseModelError(f"there is no folder {name!r}, and it is not a hub id (owner/name) or {MINIATURE!r}")
    return _fetch(name)


def weights_hash(folder: Path) -> str:
    """SHA-256 that names the weights in `folder`."""
    return hash_text(hash_folder(folder, _WEIGHTS), (folder / "config.json").read_text())


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model"]))
    except GatedRepoError as error:
        raise BaseModelError(
            f"{name} is gated: accept its licence at https://huggingface.co/{name}, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise BaseModelError(
            f"the hub has no model {name!r}, or it is private: check the id and `hf auth login`"
        ) from error
    except HFValidationError as error:
        raise BaseModelError(f"there is no folder {name!r}, and it can't be a hub id: {error}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise BaseModelError(f"{name} is not in the hub's local cache and can't be fetched now: {error}") from error


def _model_type(folder: Path) -> Any:
    path = folder / "config.json"
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{path} can't be read ({error}); copy or fetch the checkpoint again") from error
    return config.get("model_type") if isinstance(config, dict) else None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and remarks of transformers: what the user must know is raised instead."""
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


def _load_csm(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, CsmForConditionalGeneration

    model, report = CsmForConditionalGeneration.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    report["missing_keys"] = _tie_codes(model, set(report["missing_keys"]))
    # Missing weights would be drawn at random, unexpected ones dropped.
    for what in ("missing_keys", "unexpected_keys"):
        if keys := sorted(report[what]):
            raise BaseModelError(f"{folder}: {len(keys)} {what.replace('_', ' ')}: {', '.join(keys[:6])}")
    return model, AutoTokenizer.from_pretrained(folder)


def _tie_codes(model: Any, missing: set[str]) -> set[str]:
    """Share CSM's two tables of code embeddings as its checkpoint does; returns what else is missing.

    transformers 4 did so, transformers 5 leaves the table that isn't stored at random values (transformers #48999).
    """
    if not model.config.tie_codebooks_embeddings:
        return missing
    heard, spoken = model.backbone_model.embed_tokens.embed_audio_tokens, model.depth_decoder.model.embed_tokens
    heard_key, spoken_key = (
        "backbone_model.embed_tokens.embed_audio_tokens.weight",
        "depth_decoder.model.embed_tokens.weight",
    )
    if heard_key in missing and spoken_key not in missing:
        heard.weight = spoken.weight
    elif spoken_key in missing and heard_key not in missing:
        spoken.weight = heard.weight
    elif torch.equal(heard.weight, spoken.weight):
        heard.weight = spoken.weight
    else:
        # Two different tables are stored: they were trained apart, whatever the configuration says.
        return missing
    return missing - {heard_key, spoken_key}


BASES = {"csm": _load_csm}
"""Loaders by transformers' `model_type`."""
