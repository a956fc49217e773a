"""Loads the tokenizers of bases, with errors that name the file, and checks them against the text's embedding table."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from affetto.errors import BaseModelError
from affetto.files import read_json
from affetto.quiet import quiet_transformers

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a checkpoint's folder. BaseModelError names its file if that is missing or damaged."""
    from transformers import AutoTokenizer

    for path in (folder / SETTINGS, folder / TOKENIZER):
        try:
            is_object = not path.is_file() or isinstance(read_json(path), dict)
        except (OSError, ValueError) as error:
            raise _unreadable(path, str(error)) from error
        if not is_object:
            raise _unreadable(path, "it is not a JSON object")
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(folder)
    # tokenizers' errors have no common parent; without the file transformers asks for unrelated packages.
    except Exception as error:
        if not (folder / TOKENIZER).is_file():
            raise BaseModelError(
                f"{folder / TOKENIZER} is missing, and no other file there defines a tokenizer; copy or fetch it again"
            ) from error
        raise _unreadable(folder / TOKENIZER, " ".join(str(error).split())) from error


def tokenizer_path(folder: Path) -> Path:
    """The file of the tokenizer in a checkpoint's folder, for messages."""
    return next((folder / file for file in (TOKENIZER, SETTINGS) if (folder / file).is_file()), folder)


def _unreadable(path: Path, why: str) -> BaseModelError:
    return BaseModelError(f"{path}: the tokenizer can't be read ({why}); copy or fetch it again")


def check_tokenizer(path: Path, tokenizer: Any, num_ids: int) -> None:
    """Raise BaseModelError if the tokenizer in the file `path` has ids from `num_ids` on, so that it is another base's.

    Special tokens aren't checked: one that was added for padding, say, never occurs in a text; if it does, `check_ids`
    finds it.
    """
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    check_ids(path, [number for number in tokenizer.get_vocab().values() if number not in special], num_ids)


def check_ids(path: Path, ids: Collection[int], num_ids: int) -> None:
    """Raise BaseModelError if one of `ids`, from the tokenizer in `path`, has no row in the text's embedding table."""
    if (largest := max(ids, default=-1)) >= num_ids:
        raise BaseModelError(
            f"{path}: it has ids up to {largest}, and those of the base's text end at {num_ids - 1}: it is the "
            "tokenizer of another model; copy or fetch this base's"
        )
