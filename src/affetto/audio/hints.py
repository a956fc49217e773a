"""Near misses for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Collection

_MOST = 500
"""Beyond this many names the search would take longer than reading the message."""


def did_you_mean(word: str, known: Collection[str]) -> str:
    """` (did you mean 'happy'?)` where a known name is near `word` or shares its stem, else an empty string."""
    if len(known) > _MOST:
        return ""
    lowered = word.casefold()
    near = difflib.get_close_matches(lowered, list(known), n=2, cutoff=0.6)
    if len(lowered) >= 3:
        near += [name for name in sorted(known) if name.startswith(lowered[:3]) and name not in near]
    return f" (did you mean {' or '.join(repr(name) for name in near[:2])}?)" if near else ""
