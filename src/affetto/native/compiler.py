"""Compiles affetto's C for this processor with the machine's own compiler, once, into affetto's cache.

torch.compile and Triton do the same with their code. Without a compiler, or with AFFETTO_NATIVE=0, NumPy and torch are
used instead, which is slower (docs/performance.md).
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
"""Largest matrix for which products in C are faster: they read it again and again, from a cache."""
MOST_LANES = 16
"""Most numbers in a vector, on any processor."""
_COMPILING_S = 120


@cache
def library(name: str) -> ctypes.CDLL | None:
    """The compiled functions of `name`.c; None without a compiler, or if it fails, which is reported."""
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
        output = getattr(error, "stderr", None) or str(error)
        # After a timeout the output is bytes even in text mode.
        output = output.decode(errors="replace") if isinstance(output, bytes) else output
        say(
            f"{source.name} couldn't be compiled, so it takes longer (AFFETTO_NATIVE=0 doesn't try): "
            f"{' '.join(output.split())[:300]}",
            style="yellow",
        )
        return None


def required(name: str) -> ctypes.CDLL:
    """`library`, if it is cpuinfo to be there."""
    loaded = library(name)
    assert loaded is not None, "ask before whether there is one"
    return loaded


def whole_vectors(count: int) -> int:
    """Memory for `count` numbers that are computed in whole vectors, whatever their size."""
    return -(-count // MOST_LANES) * MOST_LANES


def _compile(command: Sequence[str], source: Path, path: Path) -> None:
    """Compile into a temporary file first: another process may be doing the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        made = Path(folder) / "made.so"
        subprocess.run(
            [*command, str(source), "-o", str(made), "-lm"],
            check=True, capture_output=True, text=True, errors="replace", timeout=_COMPILING_S,
        )  # fmt: skip
        made.replace(path)


def _processor() -> str:
    """Identifies the processor, since several machines may share a home folder."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    lines = [line for line in text if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join([platform.machine(), platform.processor(), *sorted(set(lines))])
