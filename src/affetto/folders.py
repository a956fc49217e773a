"""Replacing a whole folder so that, whenever the process dies, either the old or the new one is there."""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Flags of Linux's renameat2(2): plain paths, and exchange the two names."""
_NOT_HERE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
"""Errors from kernels and file systems (NFS, say) that can't exchange names."""
_STALE_S = 3600.0
"""Temporary folders older than this were left by a process that was killed."""


def replace_folder(new: Path, old: Path) -> None:
    """Put the complete folder `new` in place of `old`; if that fails, `old` is unchanged.

    On Linux the two are exchanged in one step, so that `old` exists at every moment. On file systems that can't do
    that, `old` is set aside first, and `recover_folder` puts it back if the process dies before `new` has its name.
    Leftovers of processes that died are deleted. OSError if a folder can't be renamed.
    """
    recover_folder(old)
    _sweep(old, new)
    if not old.exists():
        new.rename(old)
    elif _exchange(new, old):
        shutil.rmtree(new, ignore_errors=True)
    else:
        aside = Path(tempfile.mkdtemp(prefix=f".{old.name}.old.", dir=old.parent))
        old.rename(aside / "was")
        try:
            new.rename(old)
        except BaseException:
            (aside / "was").rename(old)
            aside.rmdir()
            raise
        shutil.rmtree(aside, ignore_errors=True)


def recover_folder(folder: Path) -> Path:
    """`folder`, restored if a process died between the two steps of replacing it (see `replace_folder`)."""
    if not folder.exists() and folder.parent.is_dir():
        aside = [path for path in folder.parent.glob(f".{glob.escape(folder.name)}.old.*/was") if path.is_dir()]
        if aside:
            newest = max(aside, key=lambda path: path.parent.stat().st_mtime_ns)
            newest.rename(folder)
            newest.parent.rmdir()
    return folder


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False if the system can't do that. OSError if it fails."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_HERE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _sweep(folder: Path, new: Path) -> None:
    """Delete temporary folders beside `folder`, left by processes that died while they wrote or replaced it."""
    left = re.compile(rf"\.{re.escape(folder.name)}\.(old\.)?[a-z0-9_]{{8}}")
    leftovers = [path for path in folder.parent.iterdir() if left.fullmatch(path.name) and path.is_dir()]
    for path in leftovers:
        if path.name != new.name and time.time() - path.stat().st_mtime > _STALE_S:
            shutil.rmtree(path, ignore_errors=True)
