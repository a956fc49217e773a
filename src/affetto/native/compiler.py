"""The machine's own compiler makes affetto's C for its own processor, once, into affetto's cache.

torch's compiler and Triton do the same with what they make. Without a compiler, or with AFFETTO_NATIVE=0, whoever asks
goes without: NumPy and torch do the same then, slower (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from affetto.files import cache_root, hash_text
from affetto.progress import say

FOLDER = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
MOST_MATRIX_BYTES = 2**22
"""Of a matrix, up to which products in C are the quicker: they read it as it lies, over and over, from a cache."""
MOST_LANES = 16
"""Numbers in a vector, of any processor."""
_COMPILING_S = 120


@cache
def library(name: str) -> ctypes.CDLL | None:
    """The compiled functions of `name`.c; None, and said why, where there is no compiler or it fails."""
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if os.environ.get("AFFETTO_NATIVE") == "0" or compiler is None:
        return None
    source = FOLDER / f"{name}.c"
    try:
        command = [*shlex.split(compiler), *FLAGS]
        sources = [path.read_text(encoding="utf-8") for path in (source, *sorted(FOLDER.glob("*.h")))]
        key = hash_text("\n".join([*sources, *command, _processor()]))
        path = cache_root() / "native" / f"{key[:16]}.so"
        if not path.is_file():
            _compile(command, source, path)
        return ctypes.CDLL(str(path))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        # What was told until time was up is bytes in any case.
        told = told.decode(errors="replace") if isinstance(told, bytes) else told
        say(
            f"{source.name} couldn't be compiled, so it takes longer (AFFETTO_NATIVE=0 doesn't try): "
            f"{' '.join(told.split())[:300]}",
            style="yellow",
        )
        return None


def required(name: str) -> ctypes.CDLL:
    """`library`, where it is known to be there."""
    loaded = library(name)
    assert loaded is not None, "ask before whether there is one"
    return loaded


def whole_vectors(count: int) -> int:
    """Room for `count` numbers that are computed a vector at a time, whatever the processor's."""
    return -(-count // MOST_LANES) * MOST_LANES


def _compile(command: Sequence[str], source: Path, path: Path) -> None:
    """Into a file of another name first: another process may be at the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        made = Path(folder) / "made.so"
        subprocess.run(
            [*command, str(source), "-o", str(made), "-lm"],
            check=True, capture_output=True, text=True, errors="replace", timeout=_COMPILING_S,
        )  # fmt: skip
        made.replace(path)


def _processor() -> str:
    """What tells processors apart that a home folder is shared by."""
    known = Path("/proc/cpuinfo")
    told = known.read_text(encoding="utf-8", errors="replace").splitlines() if known.is_file() else []
    lines = [line for line in told if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join([platform.machine(), platform.processor(), *sorted(set(lines))])
