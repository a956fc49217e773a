"""Tokenizers of bases: loaded with what is wrong told by its file, and held against the text's table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from affetto.errors import BaseModelError
from affetto.files import read_json
from affetto.model.quiet import quiet_transformers

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a checkpoint's folder. BaseModelError names its file where that is missing or damaged."""
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
    # The tokenizers' own errors have no common parent; without its file transformers asks for other packages.
    except Exception as error:
        if not (folder / TOKENIZER).is_file():
            raise BaseModelError(
                f"{folder / TOKENIZER} is missing, and nothing else there makes a tokenizer; copy or fetch it again"
            ) from error
        raise _unreadable(folder / TOKENIZER, " ".join(str(error).split())) from error


def _unreadable(path: Path, why: str) -> BaseModelError:
    return BaseModelError(f"{path}: the tokenizer can't be read ({why}); copy or fetch it again")


def check_text_ids(path: Path, vocabulary: dict[str, int], num_ids: int) -> None:
    """Raise BaseModelError where the tokenizer in the file `path` gives ids that a base of `num_ids` has no row for."""
    token, largest = max(vocabulary.items(), key=lambda item: item[1], default=("", -1))
    if largest >= num_ids:
        raise BaseModelError(
            f"{path}: it has ids up to {largest} ({token!r}), and the base's text table has {num_ids} rows: it is the "
            "tokenizer of another model; copy or fetch that of this base"
        )
