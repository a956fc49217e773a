"""Errors that a user can cause and fix, and the phrases that their messages share."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Collection, Sequence

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers of a full disk or quota."""
MENDABLE = NO_ROOM | {errno.ENAMETOOLONG}
"""Error numbers of the operating system that the user can fix, wherever they arise."""


_MOST_NAMES = 500
"""Searching more names for a near miss would take longer than reading the message."""


class AffettoError(Exception):
    """Base of all errors that a user can cause and fix. The command line prints them without a traceback."""


class ConfigError(AffettoError):
    """A configuration key or value is wrong."""


class DataError(AffettoError):
    """Clips, manifests or corpora are wrong or missing."""


class MissingDependencyError(AffettoError):
    """An optional package is needed for the request."""


class BaseModelError(AffettoError):
    """A base model can't be loaded or isn't the one that was expected."""


class AdapterError(AffettoError):
    """An adapter doesn't fit the base, is damaged, or does nothing."""


class CacheError(AffettoError):
    """A cached artefact doesn't belong to the clip or base that it is requested for."""


class CheckpointError(AffettoError):
    """A training run can't be resumed from the given checkpoint."""


class JudgeError(AffettoError):
    """A judge can't be loaded or can't judge what is needed."""


class NonFiniteLossError(AffettoError):
    """A loss became NaN or infinite; carries the ids of the batch's clips."""


class CurvatureError(AffettoError):
    """A curvature can't be estimated; carries the layer and the clip."""


class Interrupted(AffettoError):
    """Training was stopped by a signal after its state had been saved."""


def listed(names: Sequence[str], most: int = 6) -> str:
    """`a, b and 3 more`, for messages."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def counted(number: int, one: str, many: str = "") -> str:
    """`1 file` or `2 files`, for messages; `many` is the plural if it isn't `one` plus s (`files are`)."""
    return f"{number} {one}" if number == 1 else f"{number} {many or f'{one}s'}"


def did_you_mean(word: str, known: Collection[str]) -> str:
    """` (did you mean 'happy'?)` if a known name is close to `word` or shares its stem, else an empty string."""
    if len(known) > _MOST_NAMES:
        return ""
    lowered = word.casefold()
    near = difflib.get_close_matches(lowered, list(known), n=2, cutoff=0.6)
    if len(lowered) >= 3:
        near += [name for name in sorted(known) if name.startswith(lowered[:3]) and name not in near]
    return f" (did you mean {' or '.join(repr(name) for name in near[:2])}?)" if near else ""
