"""Checking safetensors checkpoints by the headers of their files: which tensors they hold, and what is wrong with them.

No weights are loaded, so a bad checkpoint of many gigabytes is refused in milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affetto.errors import BaseModelError, listed
from affetto.files import read_json

USUAL = ("model.safetensors", "model.safetensors.index.json")
"""Where transformers looks, in its order."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Kinds of numbers that weights may be stored in, as safetensors names them."""
_AGAIN = "copy or fetch the checkpoint again"


NO_MODEL = (AssertionError, ValueError, TypeError, RuntimeError, ArithmeticError)
"""What torch and transformers raise if the values of a configuration don't fit together."""


def refused_config(folder: Path, error: Exception) -> BaseModelError:
    """The error for a checkpoint's config.json that transformers can't use."""
    return BaseModelError(
        f"{folder / 'config.json'}: transformers refuses this configuration; {_AGAIN}. {' '.join(str(error).split())}"
    )


@contextmanager
def only_shapes(folder: Path) -> Iterator[None]:
    """A block in which models are made without weights. BaseModelError if the configuration in `folder` is unusable."""
    import torch

    try:
        with torch.device("meta"):
            yield
    except NO_MODEL as error:
        raise refused_config(folder, error) from error


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on disk."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    """As safetensors names it, such as BF16."""


def weight_files(folder: Path, named: str | None = None) -> list[Path]:
    """The files that hold a checkpoint's weights.

    `named` is the file or index that the configuration names (`transformers_weights`: the hub's CSM-1B keeps weights of
    another format under the usual name); otherwise the usual names are tried in transformers' order.
    """
    names = (named,) if named else USUAL
    name = next((name for name in names if (folder / name).is_file()), None)
    if name is None:
        raise BaseModelError(f"{folder} holds none of {', '.join(names)}; give a checkpoint in safetensors")
    if not name.endswith(".json"):
        return [folder / name]
    try:
        files = sorted({folder / str(file) for file in read_json(folder / name)["weight_map"].values()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise BaseModelError(f"{folder / name} is no index of weights ({error!r}); {_AGAIN}") from error
    if lost := [file.name for file in files if not file.is_file()]:
        raise BaseModelError(f"{folder / name} names {', '.join(lost)}, which {folder} lacks; {_AGAIN}")
    return files


def stored_tensors(folder: Path, named: str | None = None) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint, by name. BaseModelError if a file is missing, damaged or truncated."""
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(folder, named):
        for name, facts in _header(file).items():
            tensors[name] = StoredTensor(file, tuple(facts["shape"]), str(facts["dtype"]))
    return tensors


def _header(file: Path) -> dict[str, Any]:
    """The header's entries in a safetensors file, by tensor, after checking the file's length against them."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > size - 8:
            raise BaseModelError(f"{file} is cut off or no safetensors file ({size} bytes); {_AGAIN}")
        try:
            header: dict[str, Any] = json.loads(handle.read(length))
            header.pop("__metadata__", None)
            end = max((int(facts["data_offsets"][1]) for facts in header.values()), default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise BaseModelError(f"{file} is damaged or no safetensors file ({error!r}); {_AGAIN}") from error
    if end != size - 8 - length:
        raise BaseModelError(f"{file} is cut off: {size} bytes of {8 + length + end}; {_AGAIN}")
    return header


def check_tensors(
    folder: Path, stored: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]], kind: str,
    may_lack: Collection[str] = (),
) -> None:  # fmt: skip
    """Raise BaseModelError unless a checkpoint holds exactly the tensors of a model with its configuration.

    `expected` are the model's shapes by name, `kind` its name in messages, `may_lack` the tensors that may be missing.
    """
    missing = sorted(set(expected) - set(stored) - set(may_lack))
    unexpected = sorted(set(stored) - set(expected))
    if missing:
        where = ", ".join(sorted({tensor.file.name for tensor in stored.values()}))
        known = len(set(expected) & set(stored))
        if known < len(expected) / 2:
            raise BaseModelError(
                f"{folder}: {where} holds {known} of the {len(expected)} tensors of a {kind}, so it is a checkpoint of "
                f"another kind ({', '.join(unexpected[:3])}); give one of the {kind} that config.json describes"
            )
        raise BaseModelError(f"{folder}: {where} lacks {_named(missing)}; {_AGAIN}")
    if unexpected:
        files = ", ".join(sorted({stored[name].file.name for name in unexpected}))
        raise BaseModelError(
            f"{folder}: {files} holds {_named(unexpected)}, unknown to the {kind} that config.json describes: it is of "
            f"another model, or something was added; give the original checkpoint"
        )
    for name, shape in expected.items():
        tensor = stored.get(name)
        if tensor is not None and tensor.shape != shape:
            raise BaseModelError(
                f"{tensor.file}: {name} is {tensor.shape}, but config.json says {shape}: weights and config.json are "
                f"of different models; {_AGAIN}"
            )
        if tensor is not None and tensor.dtype not in FLOATS and ("weight" in name or "bias" in name):
            raise BaseModelError(
                f"{tensor.file}: {name} is stored as {tensor.dtype}, and weights must be one of {', '.join(FLOATS)}: "
                "quantised checkpoints aren't read; give the original"
            )


def _named(names: Collection[str], most: int = 6) -> str:
    """`2 tensors: a, b`, shortened if there are many."""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}: {listed(sorted(names), most)}"
