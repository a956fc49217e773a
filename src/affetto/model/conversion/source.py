"""The authors' checkpoint on disk: finds its files and reads their tensors one by one.

Kyutai's repositories hold `model.safetensors`, Mimi as `tokenizer-…-checkpoint125.safetensors`, the SentencePiece model
`tokenizer_spm_32k_3.model` and, since 2025, a `config.json` with the arguments of the package's `LMModel`; without one
the package assumes the published Moshi 7B, and so do we.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from affetto.errors import BaseModelError
from affetto.files import read_json, visible

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_MIMI, _TEXT = "tokenizer-*.safetensors", "tokenizer_spm_*.model"
FLOATS = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's entry in a file's header."""

    shape: tuple[int, ...]
    dtype: str
    """safetensors' name of it, such as BF16."""


class TensorFile:
    """A safetensors file whose tensors are read one at a time; nothing of it stays in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, TensorInfo] = {}
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    part = file.get_slice(name)
                    self.tensors[name] = TensorInfo(tuple(part.get_shape()), str(part.get_dtype()))
        except (OSError, SafetensorError) as error:
            raise self.unreadable(error) from error

    def read(self, name: str) -> Tensor:
        """One tensor, copied: a view would keep the file's pages in memory."""
        try:
            with safe_open(self.path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name).clone()
        except (OSError, SafetensorError) as error:
            raise self.unreadable(error) from error
        return tensor

    def unreadable(self, error: Exception) -> BaseModelError:
        """The error for a file that is damaged or truncated."""
        return BaseModelError(
            f"{self.path} can't be read ({error}): it is damaged or incomplete. Delete it and get it again"
        )


@dataclass(frozen=True)
class AuthorsCheckpoint:
    """The files of one checkpoint of the `moshi` package."""

    folder: Path
    weights: TensorFile
    mimi: TensorFile
    text_model: Path
    config: Mapping[str, Any] | None
    """Arguments of `LMModel`; None if the checkpoint has no config.json."""
    mimi_config: Mapping[str, Any] | None
    """Arguments of the package's Mimi; None means the published one."""


def is_authors_format(folder: Path) -> bool:
    """Whether `folder` holds a checkpoint of the `moshi` package instead of a transformers one."""
    if (folder / CONFIG).is_file():
        try:
            config = read_json(folder / CONFIG)
        except (OSError, ValueError):
            return False
        return isinstance(config, dict) and "dep_q" in config and "audio_encoder_config" not in config
    return bool(visible(folder, _TEXT)) and bool(visible(folder, "model*.safetensors"))


def open_checkpoint(folder: Path) -> AuthorsCheckpoint:
    """Find and open the files in `folder`. BaseModelError names what is missing, damaged or of another kind."""
    if not folder.is_dir():
        raise BaseModelError(f"there is no folder {folder} to convert")
    config = _read_config(folder / CONFIG) if (folder / CONFIG).is_file() else None
    if config is not None and "audio_encoder_config" in config:
        raise BaseModelError(f"{folder} is in transformers' format already: give it as --base as it is")
    if config is not None and "dep_q" not in config:
        raise BaseModelError(
            f"{folder / CONFIG} is of a {config.get('model_type', 'nameless')!r} model, not of the moshi package's: "
            "only Moshi's checkpoints (kyutai/moshiko-pytorch-bf16, kyutai/moshika-pytorch-bf16 or tuned from them) "
            "are converted"
        )
    names = config or {}
    if names.get("lora_name") or names.get("lora"):
        raise BaseModelError(
            f"{folder / CONFIG} names LoRA weights beside the model: merge them first (moshi-finetune saves merged "
            "weights with save_adapters: false)"
        )
    weights = _one(folder, names.get("moshi_name"), WEIGHTS, "the language model's weights")
    mimi = _one(folder, names.get("mimi_name"), _MIMI, "Mimi's weights")
    text_model = _one(folder, names.get("tokenizer_name"), _TEXT, "the text's SentencePiece model")
    mimi_config = None
    if name := names.get("mimi_config_name"):
        mimi_config = _read_config(_one(folder, name, name, "Mimi's configuration"))
    return AuthorsCheckpoint(folder, TensorFile(weights), TensorFile(mimi), text_model, config, mimi_config)


def _one(folder: Path, named: Any, pattern: str, what: str) -> Path:
    """The file that the configuration names, else the only one that matches `pattern`."""
    if named:
        # A name may be an address in another repository (hf://owner/name/file); only its last part is looked for here.
        path = folder / str(named).rpartition("/")[2]
        if not path.is_file():
            raise BaseModelError(f"{folder} has no {path.name}, which should hold {what}; put it there")
        return path
    found = visible(folder, pattern)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise BaseModelError(f"{folder} has {len(found)} files that may hold {what} ({names}): keep one")
    if not found:
        near = ", ".join(path.name for path in visible(folder, "*.safetensors")) or "no weights at all"
        hint = "; quantised weights (q8, q4) can't be converted" if "q8" in near or "q4" in near else ""
        raise BaseModelError(f"{folder} has no {pattern}, which should hold {what} (it has {near}{hint}); get it too")
    return found[0]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{path} can't be read ({error}); get it again") from error
    if not isinstance(value, dict):
        raise BaseModelError(f"{path} is not a JSON object; get it again")
    return value
