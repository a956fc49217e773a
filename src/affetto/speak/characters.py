"""Letters and digits that a base can't say, because its tokenizer has no token for them."""

from __future__ import annotations

from collections import Counter

from affetto.model.base import Base

_UNKNOWN_SIGN = "\ue000"
"""A private-use character: no tokenizer has a token for it, so it is encoded like any unknown sign."""


class Signs:
    """Looks up which signs a base has tokens for, each once."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._is_unknown: dict[str, bool] = {}

    def unknown(self, text: str) -> list[str]:
        """Letters and digits of `text` that the base's tokenizer has no token for."""

        def tokens(sign: str) -> Counter[int]:
            return Counter(self._base.prompt_ids(sign, 0)) - nothing

        signs = [sign for sign in dict.fromkeys(text) if sign.isalnum()]
        if new := [sign for sign in signs if sign not in self._is_unknown]:
            nothing = Counter(self._base.prompt_ids("", 0))
            unknown = tokens(_UNKNOWN_SIGN).keys()
            self._is_unknown |= {sign: tokens(sign).keys() <= unknown for sign in new}
        return [sign for sign in signs if self._is_unknown[sign]]
