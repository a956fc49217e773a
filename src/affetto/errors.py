"""Everything that can go wrong through a user's input, each with what to do about it."""

from __future__ import annotations

import errno
from collections.abc import Sequence

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Numbers of the system's errors where a disk, or one's share of it, is full."""
MENDABLE = NO_ROOM | {errno.ENAMETOOLONG}
"""Numbers of those that whoever gave the command can mend, wherever they arise."""


class AffettoError(Exception):
    """Base of all errors that a user can cause and mend. The command line prints it without a traceback."""


class ConfigError(AffettoError):
    """A configuration key or value is wrong."""


class DataError(AffettoError):
    """Clips, manifests or corpora are wrong or missing."""


class MissingDependencyError(AffettoError):
    """An optional package is needed for what was asked."""


class BaseModelError(AffettoError):
    """A base model can't be loaded or isn't the one that was expected."""


class AdapterError(AffettoError):
    """An adapter doesn't fit the base, is damaged, or does nothing."""


class CacheError(AffettoError):
    """A cached artefact doesn't belong to what it is asked for."""


class CheckpointError(AffettoError):
    """A training run can't be resumed from the given checkpoint."""


class JudgeError(AffettoError):
    """A judge can't be loaded or can't judge what it is asked to."""


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
    """`1 file`, `2 files`, for messages; `many` is said of several where it isn't `one` and an s (`file is`)."""
    return f"{number} {one}" if number == 1 else f"{number} {many or f'{one}s'}"
